//! IQ2_BN (GGUF type 135, ik_llama.cpp): a row is an f32 scale and 16 bytes a 64 weights, whose
//! byte `j` holds weights `j`, `j + 16`, `j + 32`, `j + 48` from the low bits up: our own block.
//!
//! # Source
//! ik_llama.cpp `ggml/src/iqk/iqk_quantize.cpp`, by description: no file was at hand to check
//! against.

use super::{BLOCK, BLOCK_BYTES, Packed, TernaryError, check_len, code_3, has_code_3};

const LAYOUT: &str = "IQ2_BN";

/// The matrix `[n, k]` in `bytes`; scales a row.
///
/// # Errors
/// [`TernaryError`] when the length is wrong, `k` is no multiple of 64, a scale is not finite, or
/// there is a code 3.
pub fn decode(bytes: &[u8], n: usize, k: usize) -> Result<Packed, TernaryError> {
    let bad = |reason: &str| TernaryError::Shape { layout: LAYOUT, n, k, reason: reason.into() };
    if k == 0 || !k.is_multiple_of(BLOCK) {
        return Err(bad("rows are not a multiple of 64"));
    }
    let row_bytes = k / BLOCK * BLOCK_BYTES + 4;
    let expected = row_bytes.checked_mul(n).ok_or_else(|| bad("its size overflows"))?;
    check_len(LAYOUT, n, k, expected, bytes.len())?;
    let mut codes = Vec::with_capacity(n * (row_bytes - 4));
    let mut row_scales = Vec::with_capacity(n);
    for (row, bytes) in bytes.chunks_exact(row_bytes).enumerate() {
        let got = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        if !got.is_finite() {
            let reason = "not finite";
            return Err(TernaryError::Scale { layout: LAYOUT, row, column: 0, got, reason });
        }
        row_scales.push(got);
        codes.extend_from_slice(&bytes[4..]);
    }
    let bad_code = has_code_3(&codes);
    let packed = Packed { n, k, codes, row_scales, block_scales: None };
    if bad_code { Err(code_3(LAYOUT, &packed)) } else { Ok(packed) }
}
