//! Q1_0 (GGUF type 41): 18 bytes a 128 weights, an f16 scale and then one sign bit a weight, from
//! the low bits up: 1 stands for `+d`, 0 for `−d` (codes 2 and 0).
//!
//! # Source
//! ggml `ggml-quants.c` (`dequantize_row_q1_0`).

use super::{Blocks, Packed, TernaryError};

const BLOCKS: Blocks = Blocks { layout: "Q1_0", elems: 128, bytes: 18 };

/// The matrix `[n, k]` in `bytes`; scales a 128.
///
/// # Errors
/// [`TernaryError`] when the length is wrong, `k` is no multiple of 128, or a scale is not finite.
pub fn decode(bytes: &[u8], n: usize, k: usize) -> Result<Packed, TernaryError> {
    BLOCKS.decode(bytes, n, k, 0, |block, codes| {
        for (eight, byte) in codes.chunks_exact_mut(8).zip(&block[2..]) {
            for (i, code) in eight.iter_mut().enumerate() {
                *code = (byte >> i & 1) << 1;
            }
        }
    })
}
