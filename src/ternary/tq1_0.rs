//! TQ1_0 (GGUF type 34): 54 bytes a 256 weights, `qs[48]`, `qh[4]` and an f16 scale.
//!
//! A byte holds five base-3 digits (codes), the first weight most significant, scaled to fill the
//! byte: `ceil(q · 256 / 243)`. So the next digit is the carry of a multiplication by 3.
//!
//! | bytes | digit `i` is weight |
//! |---|---|
//! | `qs[m]`, m 0..32 | `32i + m`, 5 digits |
//! | `qs[32 + m]`, m 0..16 | `160 + 16i + m`, 5 digits |
//! | `qh[j]`, j 0..4 | `240 + 4i + j`, 4 digits |
//!
//! # Source
//! ggml `ggml-quants.c` (`quantize_row_tq1_0_ref`, `dequantize_row_tq1_0`).

use super::{Blocks, Packed, TernaryError};

const BLOCKS: Blocks = Blocks { layout: "TQ1_0", elems: 256, bytes: 54 };

/// Byte runs of a block: first byte, bytes, first weight, digits.
const RUNS: [(usize, usize, usize, usize); 3] = [(0, 32, 0, 5), (32, 16, 160, 5), (48, 4, 240, 4)];

/// The matrix `[n, k]` in `bytes`; scales a 256.
///
/// # Errors
/// [`TernaryError`] when the length is wrong, `k` is no multiple of 256, or a scale is not finite.
pub fn decode(bytes: &[u8], n: usize, k: usize) -> Result<Packed, TernaryError> {
    BLOCKS.decode(bytes, n, k, 52, |block, codes| {
        for (byte, len, first, digits) in RUNS {
            digits_of(&block[byte..][..len], &mut codes[first..][..len * digits]);
        }
    })
}

/// Splits bytes into their leading base-3 digits: `codes[i · len + m]` is digit `i` of byte `m`.
pub(super) fn digits_of(bytes: &[u8], codes: &mut [u8]) {
    let mut scale = 1u8;
    for run in codes.chunks_exact_mut(bytes.len()) {
        for (code, byte) in run.iter_mut().zip(bytes) {
            *code = ((u16::from(byte.wrapping_mul(scale)) * 3) >> 8) as u8;
        }
        scale = scale.wrapping_mul(3);
    }
}

/// The bytes of a matrix.
///
/// # Errors
/// [`TernaryError`] when `k` is no multiple of 256, a scale does not fit f16, or there is a code 3.
pub fn encode(packed: &Packed) -> Result<Vec<u8>, TernaryError> {
    let mut code_3 = false;
    packed.for_each_row(|_, codes| code_3 |= codes.contains(&3));
    if code_3 {
        return Err(super::code_3(BLOCKS.layout, packed));
    }
    BLOCKS.encode(packed, |codes, d, out| {
        for (_, len, first, digits) in RUNS {
            out.extend((0..len).map(|m| {
                let q = (0..5).fold(0u16, |q, i| {
                    q * 3 + if i < digits { codes[first + i * len + m].into() } else { 0 }
                });
                (q * 256).div_ceil(243) as u8
            }));
        }
        out.extend(d.to_le_bytes());
    })
}
