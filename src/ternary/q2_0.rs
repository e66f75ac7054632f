//! Q2_0 (GGUF type 42): an f16 scale, then four consecutive codes a byte from the low bits up.
//!
//! llama.cpp has 18 bytes a 64 weights; older PrismML files use the same id for 34 bytes a 128, and
//! PQ2_0 (type 142) is that with rotated inputs. A weight is `d · (code − 1)`; code 3 stands for +2.
//!
//! # Source
//! ggml `ggml-quants.c` (`dequantize_row_q2_0`).

use super::{Blocks, Packed, TernaryError};

/// The matrix `[n, k]` in `bytes`, with one scale a `group` (64 or 128) weights.
///
/// # Errors
/// [`TernaryError`] when the length is wrong, `k` is no multiple of the group, or a scale is not
/// finite.
///
/// # Panics
/// When `group` is neither 64 nor 128.
pub fn decode(bytes: &[u8], n: usize, k: usize, group: usize) -> Result<Packed, TernaryError> {
    assert!(group == 64 || group == 128, "no Q2_0 has groups of {group}");
    let blocks = Blocks { layout: "Q2_0", elems: group, bytes: 2 + group / 4 };
    blocks.decode(bytes, n, k, 0, |block, codes| {
        for (four, byte) in codes.chunks_exact_mut(4).zip(&block[2..]) {
            for (i, code) in four.iter_mut().enumerate() {
                *code = byte >> (2 * i) & 3;
            }
        }
    })
}
