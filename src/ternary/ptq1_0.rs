//! PTQ1_0 (GGUF type 143): 28 bytes a 128 weights, `qs[24]`, `qh[2]` and an f16 scale.
//!
//! Base-3 digits as in [`tq1_0`](super::tq1_0):
//!
//! | bytes | digit `i` is weight |
//! |---|---|
//! | `qs[m]`, m 0..16 | `16i + m`, 5 digits |
//! | `qs[16 + m]`, m 0..8 | `80 + 8i + m`, 5 digits |
//! | `qh[j]`, j 0..2 | `120 + 2i + j`, 4 digits |
//!
//! Files of this type also rotate the inputs of the product. That is not part of the layout, and no
//! plan does it: models with such linears are refused when their tensors are looked up.
//!
//! # Source
//! PrismML's llama.cpp fork, by description: no file was at hand to check against.

use super::{Blocks, Packed, TernaryError, tq1_0::digits_of};

const BLOCKS: Blocks = Blocks { layout: "PTQ1_0", elems: 128, bytes: 28 };

/// The matrix `[n, k]` in `bytes`; scales a 128.
///
/// # Errors
/// [`TernaryError`] when the length is wrong, `k` is no multiple of 128, or a scale is not finite.
pub fn decode(bytes: &[u8], n: usize, k: usize) -> Result<Packed, TernaryError> {
    BLOCKS.decode(bytes, n, k, 26, |block, codes| {
        digits_of(&block[..16], &mut codes[..80]);
        digits_of(&block[16..24], &mut codes[80..120]);
        digits_of(&block[24..26], &mut codes[120..]);
    })
}
