//! Hugging Face packed weights: uint8 `[out/4, in]`, four rows a byte.
//!
//! `byte[r][c] = code[r][c] | code[r+R][c] << 2 | code[r+2R][c] << 4 | code[r+3R][c] << 6` with
//! `R = out/4`: rows a quarter of the matrix apart. Code 3 stands for +2. The scale lies in a tensor
//! of its own, and whether it multiplies or divides is said in the model's configuration, so the
//! caller gives the factor of each row.
//!
//! # Source
//! transformers `integrations/bitnet.py` (`pack_weights`, `unpack_weights`).

use super::{Packed, TernaryError, check_len, pack_rows, quarter};

const LAYOUT: &str = "packed uint8";

/// The matrix `[n, k]` in `bytes`, with `row_scales` that multiply.
///
/// # Errors
/// [`TernaryError`] when the length is wrong, `n` is no multiple of 4, or a scale is negative or
/// not finite.
///
/// # Panics
/// When there are not `n` row scales.
pub fn decode(
    bytes: &[u8],
    n: usize,
    k: usize,
    row_scales: Vec<f32>,
) -> Result<Packed, TernaryError> {
    assert_eq!(row_scales.len(), n, "one scale a row");
    if !n.is_multiple_of(4) {
        let reason = "rows are not a multiple of 4".into();
        return Err(TernaryError::Shape { layout: LAYOUT, n, k, reason });
    }
    check_len(LAYOUT, n, k, quarter(LAYOUT, n, k)?, bytes.len())?;
    if let Some(row) = row_scales.iter().position(|s| !s.is_finite() || *s < 0.0) {
        let (got, reason) = (row_scales[row], "negative or not finite");
        return Err(TernaryError::Scale { layout: LAYOUT, row, column: 0, got, reason });
    }
    let quarter = n / 4;
    let codes = pack_rows(n, k, |row, codes| {
        let shift = 2 * (row / quarter);
        for (code, byte) in codes.iter_mut().zip(&bytes[row % quarter * k..]) {
            *code = byte >> shift & 3;
        }
    });
    Ok(Packed { n, k, codes, row_scales, block_scales: None })
}

/// The bytes of a matrix, without its scales.
///
/// # Errors
/// [`TernaryError::Shape`] when the rows are no multiple of 4.
pub fn encode(packed: &Packed) -> Result<Vec<u8>, TernaryError> {
    let (n, k) = (packed.n, packed.k);
    if !n.is_multiple_of(4) {
        let reason = "rows are not a multiple of 4".into();
        return Err(TernaryError::Shape { layout: LAYOUT, n, k, reason });
    }
    let mut out = vec![0; quarter(LAYOUT, n, k)?];
    let quarter = n / 4;
    packed.for_each_row(|row, codes| {
        let shift = 2 * (row / quarter);
        for (code, byte) in codes.iter().zip(&mut out[row % quarter * k..]) {
            *byte |= code << shift;
        }
    });
    Ok(out)
}
