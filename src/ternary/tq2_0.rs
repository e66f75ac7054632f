//! TQ2_0 (GGUF type 35): 66 bytes a 256 weights, `qs[64]` and an f16 scale.
//!
//! Byte `32h + m` holds the codes of weights `128h + m`, `+32`, `+64`, `+96` from its low bits up.
//! A weight is `d · (code − 1)`; a block of zeros has `d = 0`. Code 3 stands for +2.
//!
//! # Source
//! ggml `ggml-quants.c` (`quantize_row_tq2_0_ref`, `dequantize_row_tq2_0`).

use super::{Blocks, Packed, TernaryError};

const BLOCKS: Blocks = Blocks { layout: "TQ2_0", elems: 256, bytes: 66 };

/// The matrix `[n, k]` in `bytes`; scales a 256.
///
/// # Errors
/// [`TernaryError`] when the length is wrong, `k` is no multiple of 256, or a scale is not finite.
pub fn decode(bytes: &[u8], n: usize, k: usize) -> Result<Packed, TernaryError> {
    BLOCKS.decode(bytes, n, k, 64, |block, codes| {
        for (half, codes) in block[..64].chunks_exact(32).zip(codes.chunks_exact_mut(128)) {
            for (s, run) in codes.chunks_exact_mut(32).enumerate() {
                for (code, byte) in run.iter_mut().zip(half) {
                    *code = byte >> (2 * s) & 3;
                }
            }
        }
    })
}

/// The bytes of a matrix.
///
/// # Errors
/// [`TernaryError`] when `k` is no multiple of 256 or a scale does not fit f16.
pub fn encode(packed: &Packed) -> Result<Vec<u8>, TernaryError> {
    BLOCKS.encode(packed, |codes, d, out| {
        for c in codes.chunks_exact(128) {
            out.extend((0..32).map(|m| c[m] | c[32 + m] << 2 | c[64 + m] << 4 | c[96 + m] << 6));
        }
        out.extend(d.to_le_bytes());
    })
}
