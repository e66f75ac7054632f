//! Element types of GGUF and safetensors, with their block sizes.

use super::FormatError;

/// Defines [`DType`] and its table: variant, name, GGUF id, elements and bytes of a block.
macro_rules! dtypes {
    ($($(#[$doc:meta])* $variant:ident $name:literal $id:expr, $elems:literal $bytes:literal;)*) => {
        /// Element type of a tensor, in GGUF or safetensors.
        ///
        /// Types that no kernel of ours reads are listed too, so that a file can be inspected and
        /// its sizes checked; whoever needs the values says which types it takes.
        ///
        /// Source: ggml `ggml.h` (`enum ggml_type`), bitnet.cpp and ik_llama.cpp for their own;
        /// safetensors `tensor.rs` (`enum Dtype`).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[allow(non_camel_case_types, reason = "the names that files and programs use")]
        #[non_exhaustive]
        pub enum DType { $($(#[$doc])* $variant,)* }

        const TABLE: &[(DType, &str, Option<u32>, u64, u64)] =
            &[$((DType::$variant, $name, $id, $elems, $bytes),)*];
    };
}

dtypes! {
    /// IEEE single precision.
    F32 "F32" Some(0), 1 4;
    /// IEEE half precision.
    F16 "F16" Some(1), 1 2;
    /// bfloat16.
    BF16 "BF16" Some(30), 1 2;
    /// IEEE double precision.
    F64 "F64" Some(28), 1 8;
    /// 4 bits, one f16 scale a 32.
    Q4_0 "Q4_0" Some(2), 32 18;
    /// 4 bits, scale and minimum a 32.
    Q4_1 "Q4_1" Some(3), 32 20;
    /// 5 bits, one f16 scale a 32.
    Q5_0 "Q5_0" Some(6), 32 22;
    /// 5 bits, scale and minimum a 32.
    Q5_1 "Q5_1" Some(7), 32 24;
    /// int8, one f16 scale a 32.
    Q8_0 "Q8_0" Some(8), 32 34;
    /// int8, scale and sum a 32.
    Q8_1 "Q8_1" Some(9), 32 36;
    /// 2-bit K-quant.
    Q2_K "Q2_K" Some(10), 256 84;
    /// 3-bit K-quant.
    Q3_K "Q3_K" Some(11), 256 110;
    /// 4-bit K-quant.
    Q4_K "Q4_K" Some(12), 256 144;
    /// 5-bit K-quant.
    Q5_K "Q5_K" Some(13), 256 176;
    /// 6-bit K-quant.
    Q6_K "Q6_K" Some(14), 256 210;
    /// int8 with one f32 scale a 256 (activations of K-quants).
    Q8_K "Q8_K" Some(15), 256 292;
    /// Codebook quant, 2.06 bits.
    IQ2_XXS "IQ2_XXS" Some(16), 256 66;
    /// Codebook quant, 2.31 bits.
    IQ2_XS "IQ2_XS" Some(17), 256 74;
    /// Codebook quant, 3.06 bits.
    IQ3_XXS "IQ3_XXS" Some(18), 256 98;
    /// Codebook quant, 1.56 bits.
    IQ1_S "IQ1_S" Some(19), 256 50;
    /// Non-linear 4 bits, one f16 scale a 32.
    IQ4_NL "IQ4_NL" Some(20), 32 18;
    /// Codebook quant, 3.44 bits.
    IQ3_S "IQ3_S" Some(21), 256 110;
    /// Codebook quant, 2.5 bits.
    IQ2_S "IQ2_S" Some(22), 256 82;
    /// Non-linear 4 bits, 256-blocks.
    IQ4_XS "IQ4_XS" Some(23), 256 136;
    /// Codebook quant, 1.75 bits.
    IQ1_M "IQ1_M" Some(29), 256 56;
    /// 4-bit microscaling floats.
    MXFP4 "MXFP4" Some(39), 32 17;
    /// Ternary, 2 bits, one f32 scale a tensor after the codes, 32 bytes more than the codes
    /// (bitnet.cpp). Three layouts share the id: [`crate::ternary`] tells them apart.
    I2_S "I2_S" Some(36), 4 1;
    /// Ternary, base 3 in 1.69 bits, one f16 scale a 256.
    TQ1_0 "TQ1_0" Some(34), 256 54;
    /// Ternary, 2.06 bits, one f16 scale a 256.
    TQ2_0 "TQ2_0" Some(35), 256 66;
    /// Binary (±1), one f16 scale a 128.
    Q1_0 "Q1_0" Some(41), 128 18;
    /// 2 bits (−1, 0, 1, 2), one f16 scale a 64.
    Q2_0 "Q2_0" Some(42), 64 18;
    /// The same with one scale a 128: older files give it the same id (see
    /// [`gguf`](super::gguf)), so it has none of its own here.
    Q2_0_128 "Q2_0 (128)" None, 128 34;
    /// Q2_0 of 128 with Hadamard-rotated inputs.
    PQ2_0 "PQ2_0" Some(142), 128 34;
    /// Base-3 ternary, one f16 scale a 128, with Hadamard-rotated inputs.
    PTQ1_0 "PTQ1_0" Some(143), 128 28;
    /// Ternary, base 3 in 1.63 bits, one f16 scale a row (ik_llama.cpp).
    IQ1_BN "IQ1_BN" Some(134), 64 13;
    /// Ternary, 2 bits, one f32 scale a row (ik_llama.cpp).
    IQ2_BN "IQ2_BN" Some(135), 64 16;
    /// int8.
    I8 "I8" Some(24), 1 1;
    /// int16.
    I16 "I16" Some(25), 1 2;
    /// int32.
    I32 "I32" Some(26), 1 4;
    /// int64.
    I64 "I64" Some(27), 1 8;
    /// uint8 (safetensors), such as four packed ternary codes.
    U8 "U8" None, 1 1;
    /// uint16 (safetensors).
    U16 "U16" None, 1 2;
    /// uint32 (safetensors).
    U32 "U32" None, 1 4;
    /// uint64 (safetensors).
    U64 "U64" None, 1 8;
    /// A byte that is 0 or 1 (safetensors).
    Bool "BOOL" None, 1 1;
    /// 8-bit float, 4 exponent bits (safetensors).
    F8_E4M3 "F8_E4M3" None, 1 1;
    /// 8-bit float, 5 exponent bits (safetensors).
    F8_E5M2 "F8_E5M2" None, 1 1;
}

/// Types of safetensors files.
const SAFETENSORS: &[DType] = &[
    DType::F64,
    DType::F32,
    DType::F16,
    DType::BF16,
    DType::F8_E4M3,
    DType::F8_E5M2,
    DType::I64,
    DType::I32,
    DType::I16,
    DType::I8,
    DType::U64,
    DType::U32,
    DType::U16,
    DType::U8,
    DType::Bool,
];

impl DType {
    fn row(self) -> &'static (DType, &'static str, Option<u32>, u64, u64) {
        // Declaration order is table order: one macro writes both.
        &TABLE[self as usize]
    }

    /// Name, as programs print it.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// Type id in GGUF files, for types that have one.
    pub fn gguf_id(self) -> Option<u32> {
        self.row().2
    }

    /// Elements of one block.
    pub fn block_elems(self) -> u64 {
        self.row().3
    }

    /// Bytes of one block.
    pub fn block_bytes(self) -> u64 {
        self.row().4
    }

    /// The type with this id in GGUF files.
    pub fn from_gguf_id(id: u32) -> Option<DType> {
        TABLE.iter().find(|row| row.2 == Some(id)).map(|row| row.0)
    }

    /// The type with this name in safetensors files.
    pub fn from_safetensors(name: &str) -> Option<DType> {
        SAFETENSORS.iter().copied().find(|d| d.name() == name)
    }

    /// Bytes that a tensor of `shape` (outermost first) takes, without padding.
    ///
    /// # Errors
    /// [`FormatError::BadShape`] when a number overflows or a row is not whole blocks; `tensor`
    /// names it in the error.
    pub fn tensor_bytes(self, tensor: &str, shape: &[u64]) -> Result<u64, FormatError> {
        let bad = |reason: String| FormatError::BadShape {
            tensor: tensor.into(),
            shape: shape.to_vec(),
            reason,
        };
        let overflow = || bad("its size overflows".into());
        let elems = shape
            .iter()
            .try_fold(1u64, |n, &d| n.checked_mul(d))
            .filter(|&n| i64::try_from(n).is_ok())
            .ok_or_else(overflow)?;
        let row = shape.last().copied().unwrap_or(1);
        // I2_S packs the tensor as one run of values: rows need not be whole bytes.
        let run = if self == DType::I2_S { elems } else { row };
        if run % self.block_elems() != 0 {
            return Err(bad(format!(
                "{run} values in a row are not a multiple of the block size {} of {}",
                self.block_elems(),
                self.name()
            )));
        }
        let extra = match self {
            DType::I2_S => 32, // f32 scale and 28 bytes of padding
            DType::IQ1_BN if row > 0 => 2 * (elems / row),
            DType::IQ2_BN if row > 0 => 4 * (elems / row),
            _ => 0,
        };
        (elems / self.block_elems())
            .checked_mul(self.block_bytes())
            .and_then(|bytes| bytes.checked_add(extra))
            .ok_or_else(overflow)
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_in_declaration_order_and_ids_are_unique() {
        for (i, row) in TABLE.iter().enumerate() {
            assert_eq!(row.0 as usize, i);
            if let Some(id) = row.2 {
                assert_eq!(DType::from_gguf_id(id), Some(row.0));
            }
        }
        for &d in SAFETENSORS {
            assert_eq!(DType::from_safetensors(d.name()), Some(d));
        }
    }

    #[test]
    fn sizes_match_the_fixtures_layouts() {
        assert_eq!(DType::I2_S.tensor_bytes("t", &[256, 512]), Ok(32768 + 32));
        assert_eq!(DType::TQ2_0.tensor_bytes("t", &[256, 512]), Ok(33792));
        assert_eq!(DType::Q2_0.tensor_bytes("t", &[128, 256]), Ok(9216));
        assert_eq!(DType::IQ2_BN.tensor_bytes("t", &[3, 128]), Ok(3 * (4 + 32)));
        assert!(DType::TQ2_0.tensor_bytes("t", &[256, 128]).is_err());
        assert!(DType::F32.tensor_bytes("t", &[1 << 32, 1 << 32]).is_err());
        assert!(DType::F64.tensor_bytes("t", &[1 << 62]).is_err());
    }
}
