//! Ternary weights: the packed layout that the kernels read, and a codec for every foreign layout.
//!
//! # The packed layout
//! A matrix `[N, K]` is `N` rows of `ceil(K/64)` blocks. A block is 16 bytes for 64 weights; byte
//! `i` holds at bit pair `s` (bits `2s`, `2s+1`) the code of weight `16·s + i`:
//!
//! ```text
//!            bits 0-1   2-3    4-5    6-7
//!  byte  0     w0      w16    w32    w48
//!  byte  1     w1      w17    w33    w49
//!   …
//!  byte 15     w15     w31    w47    w63
//! ```
//! A code is `t + 1` for the ternary value `t`: 0, 1, 2 stand for −1, 0, +1. (Code 3, which a few
//! formats can hold, stands for +2.) Rows are padded to whole blocks with code 1.
//!
//! Why so: one 16-byte load, shifted right by `2·s` and masked with `0x03` a byte, lines up with
//! 16 *consecutive* activations. That is a SIMD register on a CPU, and on a GPU a `vec4<u32>` whose
//! four components meet four consecutive words of packed int8 activations in `dot4I8Packed`.
//! The products sum `q·code`; one subtraction of `sum(q)` makes that `q·t`.
//!
//! A weight is `t · block_scale · row_scale`: one f32 scale a row always (a tensor-wide scale is
//! repeated, so that matrices can be joined row-wise), and one f16 scale a 64, 128 or 256 weights
//! where the source has them. No source format loses anything.
//!
//! This room does no I/O and may import no other room.

/// Weights in one block of the packed layout.
pub const BLOCK: usize = 64;
/// Bytes of one block of the packed layout.
pub const BLOCK_BYTES: usize = 16;

/// Bytes of a packed row of `k` weights.
pub fn row_bytes(k: usize) -> usize {
    k.div_ceil(BLOCK) * BLOCK_BYTES
}

/// A ternary matrix in the packed layout.
#[derive(Clone, Debug, PartialEq)]
pub struct Packed {
    /// Out-features.
    pub n: usize,
    /// In-features.
    pub k: usize,
    /// `[N, ceil(K/64)]` blocks of 16 bytes.
    pub codes: Vec<u8>,
    /// `[N]`.
    pub row_scales: Vec<f32>,
    /// Block length and f16 scales `[N, K/block]` (as bits), where the source has them.
    pub block_scales: Option<(usize, Vec<u16>)>,
}

/// The code of weight `k` in a packed row.
pub fn code(row: &[u8], k: usize) -> u8 {
    row[k / BLOCK * BLOCK_BYTES + k % 16] >> (k % BLOCK / 16 * 2) & 3
}

/// Sets the code of weight `k` in a packed row.
pub fn set_code(row: &mut [u8], k: usize, code: u8) {
    let byte = &mut row[k / BLOCK * BLOCK_BYTES + k % 16];
    let shift = k % BLOCK / 16 * 2;
    *byte = *byte & !(3 << shift) | (code & 3) << shift;
}
