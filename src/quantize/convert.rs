//! Tensor by tensor from the input to the output.

use std::io::Write;

use rayon::prelude::*;

use super::input::{Input, Job, Kind, unsupported, weights_error};
use super::{
    LinearType, OnProgress, Options, Progress, QuantizeError, Report, TableType, TensorReport,
};
use crate::format::gguf::DEFAULT_ALIGNMENT;
use crate::format::{DType, TensorInfo, gguf_write};
use crate::session::repack;
use crate::ternary::dense::{Rows, Source};
use crate::ternary::{Packed, TernaryError, absmean, row_bytes, tq1_0, tq2_0};

/// Bytes of an embedding's rows that are converted at a time, on all threads.
const TABLE_CHUNK_BYTES: usize = 16 << 20;
/// Bytes of them for one thread.
const TABLE_PART_BYTES: usize = 1 << 20;

/// Writes the whole output.
pub(super) fn write(
    input: &mut Input,
    options: &Options,
    out: &mut impl Write,
    on_progress: OnProgress<'_>,
) -> Result<Report, QuantizeError> {
    let jobs = std::mem::take(&mut input.jobs);
    let mut infos = Vec::with_capacity(jobs.len());
    for job in &jobs {
        infos.push((job.name.clone(), output_type(input, job, options)?, job.shape.clone()));
    }
    let (header, infos) = gguf_write::header(&input.metadata, &infos)?;
    // The last tensor is padded like the others, as reference writers do.
    let alignment =
        u64::from(input.metadata.get_u32("general.alignment")?.unwrap_or(DEFAULT_ALIGNMENT));
    let end = infos.last().map_or(header.len() as u64, |t| t.offset + t.bytes);
    let total_bytes = end.next_multiple_of(alignment);
    out.write_all(&header)?;
    let mut written = Counted { out, bytes: header.len() as u64 };
    let mut tensors = Vec::with_capacity(jobs.len());
    for (job, info) in jobs.iter().zip(&infos) {
        written.pad_to(info.offset)?;
        let mut go_on = |bytes: u64| {
            let progress = Progress { tensor: &job.name, done_bytes: bytes, total_bytes };
            if on_progress(progress) { Ok(()) } else { Err(QuantizeError::Cancelled) }
        };
        go_on(written.bytes)?;
        let (sparsity, relative_error) = match job.kind {
            Kind::Linear { .. } => linear(input, job, options, &mut written)?,
            Kind::Table => (None, table(input, job, options.tables, &mut written, &mut go_on)?),
            Kind::Vector => {
                let info = input.tensors[job.tensor].1.clone();
                let bytes = input.read_all(job.tensor)?;
                let floats =
                    repack::floats(&info, &bytes).map_err(|e| weights_error(&info.name, e))?;
                let bytes: Vec<u8> = floats.iter().flat_map(|v| v.to_le_bytes()).collect();
                written.write(&bytes)?;
                (None, 0.0)
            }
            Kind::Raw => {
                written.write(&input.read_all(job.tensor)?)?;
                (None, 0.0)
            }
        };
        tensors.push(TensorReport {
            name: job.name.clone(),
            shape: job.shape.clone(),
            from: input.tensors[job.tensor].1.dtype.name(),
            to: info.dtype.name(),
            bytes: info.bytes,
            sparsity,
            relative_error,
        });
    }
    written.pad_to(total_bytes)?;
    let weights = infos.iter().map(TensorInfo::elems).sum();
    Ok(Report {
        tensors,
        weights,
        input_bytes: input.tensors.iter().map(|(_, t)| t.bytes).sum(),
        output_bytes: written.bytes,
        f32_bytes: 4 * weights,
        f16_bytes: 2 * weights,
        notes: std::mem::take(&mut input.notes),
    })
}

/// Type of a tensor in the output, once its shape is known to fit it.
fn output_type(input: &Input, job: &Job, options: &Options) -> Result<DType, QuantizeError> {
    let k = job.shape.last().copied().unwrap_or(0);
    let fits = |multiple: u64, dtype: DType| {
        if k.is_multiple_of(multiple) {
            return Ok(dtype);
        }
        Err(unsupported(format!(
            "{:?} has rows of {k} weights, and {dtype} needs a multiple of {multiple}",
            job.name
        )))
    };
    match job.kind {
        Kind::Linear { .. } => fits(options.linears.row_multiple(), options.linears.dtype()),
        Kind::Table => fits(options.tables.dtype().block_elems(), options.tables.dtype()),
        Kind::Vector => Ok(DType::F32),
        Kind::Raw => Ok(input.tensors[job.tensor].1.dtype),
    }
}

/// Writes a ternary linear; its sparsity and relative error.
fn linear(
    input: &mut Input,
    job: &Job,
    options: &Options,
    out: &mut Counted<'_, impl Write>,
) -> Result<(Option<f64>, f64), QuantizeError> {
    let info = input.tensors[job.tensor].1.clone();
    let Kind::Linear { scale, permute_heads } = job.kind else {
        return Err(unsupported("not a linear"));
    };
    let &[n, k] = &job.shape[..] else {
        return Err(unsupported(format!("{:?} is not a matrix", job.name)));
    };
    // `resolve` has checked them against the configuration, which bounds them.
    let (n, k) = (n as usize, k as usize);
    let bytes = input.read_all(job.tensor)?;
    let bad = |e: TernaryError| QuantizeError::from(weights_error(&info.name, e));
    // Quantised floats are floats too: only what is ternary skips the question.
    let floats = dense_source(info.dtype);
    let mut packed = match floats {
        None => repack::pack(&info, &bytes, n, k, input.variant).map_err(bad)?,
        Some(source) => match absmean::decode_exact(source, &bytes, n, k).map_err(bad)? {
            Some(packed) => packed,
            None => {
                let mut packed = absmean::decode(source, &bytes, n, k).map_err(bad)?;
                let scale = packed.row_scales.first().copied().unwrap_or(0.0);
                packed.row_scales.fill(half::bf16::from_f32(scale).to_f32());
                if !input.declared && !options.force {
                    let error = float_error(source, &bytes, &packed).map_err(bad)?;
                    let (tensor, percent) = (info.name.clone(), 100.0 * error);
                    return Err(QuantizeError::NotTernary { tensor, percent });
                }
                packed
            }
        },
    };
    if let Some((tensor, divide)) = scale {
        let info = input.tensors[tensor].1.clone();
        let bytes = input.read_all(tensor)?;
        let bad = |e| QuantizeError::from(weights_error(&info.name, e));
        let got = repack::floats(&info, &bytes).map_err(bad)?.first().copied().unwrap_or(0.0);
        let scale = if divide { 1.0 / got } else { got };
        if !(scale.is_finite() && scale > 0.0) {
            let (layout, reason) = ("a ternary matrix", "not a positive finite number");
            return Err(bad(TernaryError::Scale { layout, row: 0, column: 0, got, reason }));
        }
        packed.row_scales.iter_mut().for_each(|s| *s *= scale);
    }
    if let Some(heads) = permute_heads {
        interleave(&mut packed, heads as usize);
    }
    let encoded = match options.linears {
        LinearType::I2_S => crate::ternary::i2_s::encode(&packed),
        LinearType::TQ2_0 => tq2_0::encode(&packed),
        LinearType::TQ1_0 => tq1_0::encode(&packed),
    }
    .map_err(bad)?;
    out.write(&encoded)?;
    let rounded = rounded_scales(&packed, options.linears);
    let error = match floats {
        // Rows may have moved: their order does not matter to a float matrix's own error.
        Some(source) if permute_heads.is_none() => {
            float_error(source, &bytes, &rounded).map_err(bad)?
        }
        _ => relative_scale_error(&packed, &rounded),
    };
    Ok((Some(packed.sparsity()), error))
}

/// The matrix with its scales as the output type stores them.
fn rounded_scales(packed: &Packed, linears: LinearType) -> Packed {
    let mut rounded = packed.clone();
    if linears != LinearType::I2_S && packed.block_scales.is_none() {
        for s in &mut rounded.row_scales {
            *s = half::f16::from_f32(*s).to_f32();
        }
    }
    rounded
}

/// Largest relative change of a row's scale.
fn relative_scale_error(a: &Packed, b: &Packed) -> f64 {
    let changes = a.row_scales.iter().zip(&b.row_scales);
    let relative = |(a, b): (&f32, &f32)| f64::from((a - b).abs()) / f64::from(a.abs()).max(1e-30);
    changes.map(relative).fold(0.0, f64::max)
}

/// ‖W − W'‖ / ‖W‖ for a float matrix and what was made of it.
fn float_error(source: Source, bytes: &[u8], packed: &Packed) -> Result<f64, TernaryError> {
    let row_len = source.row_bytes(packed.k)?;
    let mut row = vec![0.0; packed.k];
    let (mut change, mut size) = (0.0, 0.0);
    for (r, bytes) in bytes.chunks_exact(row_len.max(1)).enumerate() {
        source.read_row(r, bytes, &mut row)?;
        let codes = &packed.codes[r * row_bytes(packed.k)..];
        let scale = packed.row_scales[r];
        for (i, w) in row.iter().enumerate() {
            let t = f32::from(crate::ternary::code(codes, i)) - 1.0;
            change += f64::from(w - t * scale).powi(2);
            size += f64::from(*w).powi(2);
        }
    }
    Ok(if size > 0.0 { (change / size).sqrt() } else { 0.0 })
}

/// Rows of each head from half-split to interleaved order: what was at `h·D/2 + i` goes to
/// `2i + h`.
///
/// # Source
/// llama.cpp `convert_hf_to_gguf.py` (`LlamaModel.permute`).
fn interleave(packed: &mut Packed, heads: usize) {
    let row = row_bytes(packed.k);
    let head_dim = packed.n / heads.max(1);
    let half = head_dim / 2;
    let (codes, scales) = (packed.codes.clone(), packed.row_scales.clone());
    for to in 0..packed.n {
        let (head, i) = (to / head_dim, to % head_dim);
        let from = head * head_dim + i % 2 * half + i / 2;
        packed.codes[to * row..][..row].copy_from_slice(&codes[from * row..][..row]);
        packed.row_scales[to] = scales[from];
    }
}

/// Writes an embedding or a head, some rows at a time; its relative error.
fn table(
    input: &mut Input,
    job: &Job,
    to: TableType,
    out: &mut Counted<'_, impl Write>,
    go_on: &mut dyn FnMut(u64) -> Result<(), QuantizeError>,
) -> Result<f64, QuantizeError> {
    let info = input.tensors[job.tensor].1.clone();
    let bad = |e: TernaryError| QuantizeError::from(weights_error(&info.name, e));
    let Some(source) = dense_source(info.dtype) else {
        return Err(unsupported(format!("{:?} has type {}", info.name, info.dtype)));
    };
    let k = job.shape.last().copied().unwrap_or(0) as usize;
    let row_len = source.row_bytes(k).map_err(bad)?.max(1);
    let part = (TABLE_PART_BYTES / row_len).max(1) * row_len;
    let chunk = (TABLE_CHUNK_BYTES / part).max(1) * part;
    let (mut change, mut size) = (0.0, 0.0);
    let mut at = 0;
    while at < info.bytes {
        let n = usize::try_from(info.bytes - at).map_or(chunk, |left| left.min(chunk));
        let bytes = input.read(job.tensor, at, n)?;
        let first_row = (at / row_len as u64) as usize;
        let parts: Vec<_> = bytes
            .par_chunks(part)
            .enumerate()
            .map(|(i, bytes)| convert(source, to, k, first_row + i * (part / row_len), bytes))
            .collect();
        for converted in parts {
            let (bytes, c, s) = converted.map_err(bad)?;
            (change, size) = (change + c, size + s);
            out.write(&bytes)?;
        }
        at += n as u64;
        go_on(out.bytes)?;
    }
    Ok(if size > 0.0 { f64::sqrt(change / size) } else { 0.0 })
}

/// Converts rows; the bytes, ‖W − W'‖² and ‖W‖².
fn convert(
    source: Source,
    to: TableType,
    k: usize,
    first_row: usize,
    bytes: &[u8],
) -> Result<(Vec<u8>, f64, f64), TernaryError> {
    let mut rows = Rows::starting_at(source, k, first_row)?;
    let mut out = Vec::new();
    let target = match to {
        TableType::F16 => {
            rows.to_f16(bytes, &mut out)?;
            Source::F16
        }
        TableType::Q8_0 => {
            rows.to_q8_0(bytes, &mut out)?;
            Source::Q8_0
        }
        TableType::Q6_K if source == Source::Q6_K => {
            out.extend_from_slice(bytes);
            Source::Q6_K
        }
        TableType::Q6_K => {
            rows.to_q6_k(bytes, &mut out)?;
            Source::Q6_K
        }
    };
    let (mut before, mut after) = (vec![0.0; k], vec![0.0; k]);
    let (mut change, mut size) = (0.0, 0.0);
    let (a, b) = (source.row_bytes(k)?.max(1), target.row_bytes(k)?.max(1));
    for (i, (a, b)) in bytes.chunks_exact(a).zip(out.chunks_exact(b)).enumerate() {
        source.read_row(first_row + i, a, &mut before)?;
        target.read_row(first_row + i, b, &mut after)?;
        for (a, b) in before.iter().zip(&after) {
            change += f64::from(a - b).powi(2);
            size += f64::from(*a).powi(2);
        }
    }
    Ok((out, change, size))
}

fn dense_source(dtype: DType) -> Option<Source> {
    match dtype {
        DType::F32 => Some(Source::F32),
        DType::F16 => Some(Source::F16),
        DType::BF16 => Some(Source::BF16),
        DType::Q8_0 => Some(Source::Q8_0),
        DType::Q6_K => Some(Source::Q6_K),
        DType::Q4_K => Some(Source::Q4_K),
        DType::Q4_0 => Some(Source::Q4_0),
        _ => None,
    }
}

/// Counts what is written.
struct Counted<'a, W> {
    out: &'a mut W,
    bytes: u64,
}

impl<W: Write> Counted<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.out.write_all(bytes)?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Zeros up to byte `at` of the file.
    fn pad_to(&mut self, at: u64) -> std::io::Result<()> {
        while self.bytes < at {
            let n = (at - self.bytes).min(64) as usize;
            self.write(&[0; 64][..n])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk with room for so many bytes.
    struct Disk(usize);

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            if self.0 == 0 {
                return Err(std::io::ErrorKind::StorageFull.into());
            }
            let n = bytes.len().min(self.0);
            self.0 -= n;
            Ok(n)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_is_an_error_wherever_it_fills_up() {
        let fixtures = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/malformed");
        let (options, mut fits) = (Options::default(), 0);
        for room in (0..120_000).step_by(9_973) {
            let mut input =
                Input::open(&fixtures.join("ok-control.gguf"), "out".as_ref(), &options).unwrap();
            match write(&mut input, &options, &mut Disk(room), &mut |_| true) {
                Ok(report) => {
                    assert!(report.output_bytes <= room as u64);
                    fits += 1;
                }
                Err(QuantizeError::Write { source, .. }) => {
                    assert_eq!(source.kind(), std::io::ErrorKind::StorageFull);
                }
                Err(other) => panic!("{other}"),
            }
        }
        assert_eq!(fits, 2);
    }
}
