//! The header of a GGUF v3 file; the caller writes it, and then the tensors at their offsets.

use super::gguf::{DEFAULT_ALIGNMENT, MAX_ALIGNMENT};
use super::{Array, DType, FormatError, Metadata, TensorInfo, Value};

/// The bytes up to the first tensor, and where each tensor belongs in the file: in the order given,
/// each on the alignment (`general.alignment`, else 32).
///
/// # Errors
/// [`FormatError`] for what the format cannot hold: types without an id, more than 4 dimensions,
/// names above 64 bytes, rows that are not whole blocks, a bad alignment.
pub fn header(
    metadata: &Metadata,
    tensors: &[(String, DType, Vec<u64>)],
) -> Result<(Vec<u8>, Vec<TensorInfo>), FormatError> {
    let alignment = metadata.get_u32("general.alignment")?.unwrap_or(DEFAULT_ALIGNMENT);
    if !alignment.is_power_of_two() || alignment > MAX_ALIGNMENT {
        return Err(FormatError::Alignment { got: alignment });
    }
    let alignment = u64::from(alignment);
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata.iter() {
        string(key, &mut out);
        out.extend((value.value_type() as u32).to_le_bytes());
        write_value(value, &mut out);
    }
    let mut infos = Vec::with_capacity(tensors.len());
    let mut offset = 0u64;
    for (name, dtype, shape) in tensors {
        let bad = |reason: &str| FormatError::BadShape {
            tensor: name.clone(),
            shape: shape.clone(),
            reason: reason.into(),
        };
        if name.len() > 64 {
            return Err(bad("a name of more than 64 bytes"));
        }
        if !(1..=4).contains(&shape.len()) || shape.contains(&0) {
            return Err(bad("not 1 to 4 dimensions above 0"));
        }
        let Some(id) = dtype.gguf_id() else {
            let (tensor, got) = (name.clone(), dtype.name().to_owned());
            return Err(FormatError::UnknownTensorType { tensor, got });
        };
        string(name, &mut out);
        out.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|d| out.extend(d.to_le_bytes()));
        out.extend(id.to_le_bytes());
        out.extend(offset.to_le_bytes());
        let bytes = dtype.tensor_bytes(name, shape)?;
        infos.push(TensorInfo {
            name: name.clone(),
            dtype: *dtype,
            shape: shape.clone(),
            offset,
            bytes,
        });
        offset = offset
            .checked_add(bytes)
            .and_then(|end| end.checked_next_multiple_of(alignment))
            .ok_or_else(|| bad("the file would be too large"))?;
    }
    while !(out.len() as u64).is_multiple_of(alignment) {
        out.push(0);
    }
    infos.iter_mut().for_each(|t| t.offset += out.len() as u64);
    Ok((out, infos))
}

fn string(s: &str, out: &mut Vec<u8>) {
    out.extend((s.len() as u64).to_le_bytes());
    out.extend(s.as_bytes());
}

fn write_value(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::U8(v) => out.extend(v.to_le_bytes()),
        Value::I8(v) => out.extend(v.to_le_bytes()),
        Value::U16(v) => out.extend(v.to_le_bytes()),
        Value::I16(v) => out.extend(v.to_le_bytes()),
        Value::U32(v) => out.extend(v.to_le_bytes()),
        Value::I32(v) => out.extend(v.to_le_bytes()),
        Value::F32(v) => out.extend(v.to_le_bytes()),
        Value::U64(v) => out.extend(v.to_le_bytes()),
        Value::I64(v) => out.extend(v.to_le_bytes()),
        Value::F64(v) => out.extend(v.to_le_bytes()),
        Value::Bool(v) => out.push((*v).into()),
        Value::String(s) => string(s, out),
        Value::Array(array) => {
            out.extend((array.elem_type() as u32).to_le_bytes());
            out.extend((array.len() as u64).to_le_bytes());
            match array {
                Array::Scalars { bytes, .. } => out.extend(bytes),
                Array::Strings(strings) => strings.iter().for_each(|s| string(s, out)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Event, gguf};
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let mut metadata = Metadata::default();
        let ints = [1i32, -2].iter().flat_map(|v| v.to_le_bytes()).collect();
        for (key, value) in [
            ("general.architecture", Value::String("llama".into())),
            ("general.alignment", Value::U32(64)),
            ("a", Value::Array(Array::Strings(["x", "", "ö"].iter().collect()))),
            ("b", Value::Array(Array::Scalars { ty: super::super::ValueType::I32, bytes: ints })),
            ("c", Value::F64(0.1)),
            ("d", Value::Bool(true)),
        ] {
            metadata.insert(key.into(), value).unwrap();
        }
        let tensors =
            [("t".to_owned(), DType::I2_S, vec![3, 128]), ("u".to_owned(), DType::F32, vec![5])];
        let (mut bytes, infos) = header(&metadata, &tensors).unwrap();
        assert_eq!((infos[0].bytes, infos[1].offset), (128, infos[0].offset + 128));
        bytes.resize((infos[1].offset + infos[1].bytes) as usize, 0);
        let mut parser = gguf::Parser::new(Some(bytes.len() as u64));
        assert_eq!(parser.next(&mut &bytes[..]).unwrap(), Event::Header);
        assert_eq!(parser.tensors(), infos);
        assert!(parser.metadata().iter().eq(metadata.iter()));
    }

    #[test]
    fn what_gguf_cannot_hold_is_refused() {
        let one = |name: &str, dtype, shape: &[u64]| {
            header(&Metadata::default(), &[(name.into(), dtype, shape.to_vec())]).is_ok()
        };
        assert!(one("a", DType::F32, &[2, 2]));
        assert!(!one(&"a".repeat(65), DType::F32, &[2]));
        assert!(!one("a", DType::U8, &[2]));
        assert!(!one("a", DType::F32, &[1; 5]) && !one("a", DType::F32, &[]));
        assert!(!one("a", DType::TQ2_0, &[2, 128]) && !one("a", DType::F32, &[0]));
    }
}
