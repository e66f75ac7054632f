//! Float master weights, ternarised as in training: `s = 1 / max(mean|W|, 1e-5)`,
//! `t = clamp(round_half_even(W·s), −1, 1)`, weight `t / s`; `s` and products in f32.
//!
//! The scale stays an f32, as when transformers runs such a checkpoint in f32 (in a bf16 run it
//! rounds, along with everything else). Files are another matter: transformers' packed checkpoints
//! hold it as bf16, and so do the GGUF files that the reference quantisers make of them;
//! quantising to a file therefore rounds it. On the default model that is 0.02 % of its nats.
//!
//! # Source
//! "The Era of 1-bit LLMs" (arXiv 2402.17764), §2; transformers `integrations/bitnet.py`
//! (`WeightQuant`).

use super::{Packed, TernaryError, dense, pack_row, row_bytes};

/// The ternary matrix of the float master weights `[n, k]` in `bytes`; one scale for all.
///
/// The mean is summed in f64: frameworks sum in f32 in an order of their own, and differ from it
/// (and from each other) in the last bits.
///
/// # Errors
/// [`TernaryError`] when the length is wrong or a weight is not finite.
pub fn decode(
    source: dense::Source,
    bytes: &[u8],
    n: usize,
    k: usize,
) -> Result<Packed, TernaryError> {
    let mut sum = 0.0;
    for_each_row(source, bytes, n, k, |_, row| {
        // Eight sums side by side: one would wait for each addition.
        let mut sums = [0.0f64; 8];
        for run in row.chunks(8) {
            run.iter().zip(&mut sums).for_each(|(w, sum)| *sum += f64::from(w.abs()));
        }
        sum += sums.iter().sum::<f64>();
    })?;
    let mean = sum / (n as f64 * k as f64).max(1.0);
    let s = 1.0 / (mean as f32).max(1e-5);
    // round_half_even(x) is 1 or more just above 0.5, and −1 or less just below −0.5.
    let code = |w: f32| 1 + u8::from(w * s > 0.5) - u8::from(w * s < -0.5);
    let codes = pack(source, bytes, n, k, code)?;
    Ok(Packed { n, k, codes, row_scales: vec![1.0 / s; n], block_scales: None })
}

/// The matrix, if its weights are ternary already: each one is 0 or ± one and the same number, as in
/// float files that were made from ternary ones. Nothing is lost then, and the absmean would be
/// the wrong scale.
///
/// # Errors
/// [`TernaryError`] when the length is wrong or a weight is not finite.
pub fn decode_exact(
    source: dense::Source,
    bytes: &[u8],
    n: usize,
    k: usize,
) -> Result<Option<Packed>, TernaryError> {
    let (mut scale, mut exact) = (0.0f32, true);
    for_each_row(source, bytes, n, k, |_, row| {
        if scale == 0.0 {
            scale = row.iter().map(|w| w.abs()).find(|&w| w > 0.0).unwrap_or(0.0);
        }
        exact &= row.iter().fold(true, |exact, w| exact & ((*w == 0.0) | (w.abs() == scale)));
    })?;
    if !exact {
        return Ok(None);
    }
    let code = |w: f32| 1 + u8::from(w > 0.0) - u8::from(w < 0.0);
    let codes = pack(source, bytes, n, k, code)?;
    Ok(Some(Packed { n, k, codes, row_scales: vec![scale; n], block_scales: None }))
}

fn for_each_row(
    source: dense::Source,
    bytes: &[u8],
    n: usize,
    k: usize,
    mut f: impl FnMut(usize, &[f32]),
) -> Result<(), TernaryError> {
    let row_bytes = source.check(bytes, n, k)?;
    let mut row = vec![0.0; k];
    for (r, bytes) in bytes.chunks_exact(row_bytes.max(1)).enumerate() {
        source.read_row(r, bytes, &mut row)?;
        f(r, &row);
    }
    Ok(())
}

fn pack(
    source: dense::Source,
    bytes: &[u8],
    n: usize,
    k: usize,
    code: impl Fn(f32) -> u8,
) -> Result<Vec<u8>, TernaryError> {
    let mut packed = vec![0; n * row_bytes(k)];
    let mut codes = vec![1; k];
    for_each_row(source, bytes, n, k, |r, row| {
        codes.iter_mut().zip(row).for_each(|(c, w)| *c = code(*w));
        pack_row(&codes, &mut packed[r * row_bytes(k)..][..row_bytes(k)]);
    })?;
    Ok(packed)
}
