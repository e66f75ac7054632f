//! Float master weights, ternarised as in training: `s = 1 / max(mean|W|, 1e-5)`,
//! `t = clamp(round_half_even(W·s), −1, 1)`, weight `t / s`; `s` and products in f32.
//!
//! # Source
//! "The Era of 1-bit LLMs" (arXiv 2402.17764), §2; transformers `integrations/bitnet.py`
//! (`WeightQuant`).

use super::{Packed, TernaryError, dense, pack_rows};

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
    let mut sum = 0.0f64;
    let mut row_f32 = vec![0.0; k];
    let row = source.check(bytes, n, k)?;
    for (r, bytes) in bytes.chunks_exact(row.max(1)).enumerate() {
        source.read_row(r, bytes, &mut row_f32)?;
        sum += row_f32.iter().map(|w| f64::from(w.abs())).sum::<f64>();
    }
    let mean = sum / (n as f64 * k as f64).max(1.0);
    let s = 1.0 / (mean as f32).max(1e-5);
    let codes = pack_rows(n, k, |r, codes| {
        // The first pass has checked every value.
        let _ = source.read_row(r, &bytes[r * row..][..row], &mut row_f32);
        for (code, w) in codes.iter_mut().zip(&row_f32) {
            *code = ((w * s).round_ties_even().clamp(-1.0, 1.0) + 1.0) as u8;
        }
    });
    Ok(Packed { n, k, codes, row_scales: vec![1.0 / s; n], block_scales: None })
}
