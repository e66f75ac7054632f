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
//! # Codecs
//! A module a foreign layout. `decode(bytes, n, k, …)` takes the whole tensor as it lies in the file
//! and gives a [`Packed`]; `encode` is the inverse, for the layouts that we write. Both go row by
//! row through one byte a code, in loops that compilers vectorise.
//!
//! | module | source |
//! |---|---|
//! | [`i2_s`] | bitnet.cpp I2_S, in three variants under one type id |
//! | [`tq1_0`], [`tq2_0`] | llama.cpp TQ1_0 and TQ2_0 |
//! | [`q1_0`], [`q2_0`] | llama.cpp Q1_0 and Q2_0; Q2_0 with groups of 128; PQ2_0 |
//! | [`ptq1_0`] | PTQ1_0 |
//! | [`iq2_bn`] | ik_llama.cpp IQ2_BN |
//! | [`hf_packed`] | transformers' `pack_weights` |
//! | [`absmean`] | float master weights, ternarised as in training |
//! | [`dense`] | not ternary: embeddings and heads |
//!
//! This room does no I/O and may import no other room.

pub mod absmean;
pub mod dense;
pub mod hf_packed;
pub mod i2_s;
pub mod iq2_bn;
pub mod ptq1_0;
pub mod q1_0;
pub mod q2_0;
mod q6_k;
pub mod tq1_0;
pub mod tq2_0;

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

/// Packs one row, one byte a code, into the packed layout; `packed` has [`row_bytes`] bytes.
fn pack_row(codes: &[u8], packed: &mut [u8]) {
    for (codes, block) in codes.chunks(BLOCK).zip(packed.chunks_exact_mut(BLOCK_BYTES)) {
        let mut padded = [1; BLOCK];
        padded[..codes.len()].copy_from_slice(codes);
        for (i, byte) in block.iter_mut().enumerate() {
            *byte = padded[i] | padded[16 + i] << 2 | padded[32 + i] << 4 | padded[48 + i] << 6;
        }
    }
}

/// The inverse of [`pack_row`].
fn unpack_row(packed: &[u8], codes: &mut [u8]) {
    for (codes, block) in codes.chunks_mut(BLOCK).zip(packed.chunks_exact(BLOCK_BYTES)) {
        for (s, run) in codes.chunks_mut(16).enumerate() {
            for (code, byte) in run.iter_mut().zip(block) {
                *code = byte >> (2 * s) & 3;
            }
        }
    }
}

/// Packs `n` rows of `k` codes; `fill` writes the codes of a row.
fn pack_rows(n: usize, k: usize, mut fill: impl FnMut(usize, &mut [u8])) -> Vec<u8> {
    let mut packed = vec![0; n * row_bytes(k)];
    if k > 0 {
        let mut codes = vec![1; k];
        for (row, packed) in packed.chunks_exact_mut(row_bytes(k)).enumerate() {
            fill(row, &mut codes);
            pack_row(&codes, packed);
        }
    }
    packed
}

impl Packed {
    /// The codes of each row, one byte each, in order.
    fn for_each_row(&self, mut f: impl FnMut(usize, &[u8])) {
        let mut codes = vec![0; self.k];
        for (row, packed) in self.codes.chunks_exact(row_bytes(self.k).max(1)).enumerate() {
            unpack_row(packed, &mut codes);
            f(row, &codes);
        }
    }

    /// Share of the weights that are zero.
    pub fn sparsity(&self) -> f64 {
        let mut zeros = 0u64;
        self.for_each_row(|_, codes| zeros += codes.iter().filter(|&&c| c == 1).count() as u64);
        zeros as f64 / (self.n as f64 * self.k as f64).max(1.0)
    }

    /// The weights as floats, row-major: `(code − 1) · block_scale · row_scale`.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = Vec::with_capacity(self.n * self.k);
        self.for_each_row(|row, codes| {
            out.extend(codes.iter().enumerate().map(|(i, &code)| {
                let block = self.block_scales.as_ref().map_or(1.0, |(len, scales)| {
                    let blocks = self.k.div_ceil(*len);
                    half::f16::from_bits(scales[row * blocks + i / len]).to_f32()
                });
                (f32::from(code) - 1.0) * block * self.row_scales[row]
            }));
        });
        out
    }
}

/// Why bytes are not a ternary (or dense) tensor.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum TernaryError {
    /// The bytes of a tensor are not as many as its shape needs.
    #[error("a {layout} tensor [{n}, {k}] takes {expected} bytes, not {got}")]
    Length {
        /// The layout.
        layout: &'static str,
        /// Out-features.
        n: usize,
        /// In-features.
        k: usize,
        /// Bytes that it takes.
        expected: usize,
        /// Bytes that were given.
        got: usize,
    },
    /// A shape that the layout cannot hold.
    #[error("{layout} cannot hold a tensor [{n}, {k}]: {reason}")]
    Shape {
        /// The layout.
        layout: &'static str,
        /// Out-features.
        n: usize,
        /// In-features.
        k: usize,
        /// What is wrong.
        reason: String,
    },
    /// A scale that is not a sane number.
    #[error("scale {got} of {layout} at row {row}, column {column}: {reason}")]
    Scale {
        /// The layout.
        layout: &'static str,
        /// Row that it belongs to (0 for a tensor-wide scale).
        row: usize,
        /// First column that it belongs to.
        column: usize,
        /// The scale.
        got: f32,
        /// What is wrong.
        reason: &'static str,
    },
    /// A code that the layout cannot hold.
    #[error(
        "code {got} of {layout} at row {row}, column {column}: only 0, 1 and 2 stand for weights"
    )]
    Code {
        /// The layout.
        layout: &'static str,
        /// Row.
        row: usize,
        /// Column.
        column: usize,
        /// The code.
        got: u8,
    },
    /// A weight that is not a number, or too large for the type it should become.
    #[error("weight {got} at row {row}, column {column} cannot become {into}")]
    Value {
        /// What it should become.
        into: &'static str,
        /// Row.
        row: usize,
        /// Column.
        column: usize,
        /// The weight.
        got: f32,
    },
    /// A layout with one scale a tensor was to hold several scales.
    #[error("{layout} holds one scale a tensor, but there are {first} and {other}")]
    SeveralScales {
        /// The layout.
        layout: &'static str,
        /// One scale.
        first: f32,
        /// Another one.
        other: f32,
    },
}

/// A layout of whole blocks along the row.
struct Blocks {
    layout: &'static str,
    /// Weights in a block.
    elems: usize,
    /// Bytes of a block.
    bytes: usize,
}

impl Blocks {
    /// Bytes of a tensor.
    fn tensor_bytes(&self, n: usize, k: usize) -> Result<usize, TernaryError> {
        let bad = |reason: String| TernaryError::Shape { layout: self.layout, n, k, reason };
        if !k.is_multiple_of(self.elems) {
            return Err(bad(format!("rows are not a multiple of {}", self.elems)));
        }
        (k / self.elems)
            .checked_mul(self.bytes)
            .and_then(|row| row.checked_mul(n))
            .ok_or_else(|| bad("its size overflows".into()))
    }

    /// Decodes a tensor of blocks with one f16 scale each at byte `d_at`; `codes_of` writes the
    /// codes of a block.
    fn decode(
        &self,
        bytes: &[u8],
        n: usize,
        k: usize,
        d_at: usize,
        codes_of: impl Fn(&[u8], &mut [u8]),
    ) -> Result<Packed, TernaryError> {
        check_len(self.layout, n, k, self.tensor_bytes(n, k)?, bytes.len())?;
        let mut scales = Vec::with_capacity(n * (k / self.elems));
        for (i, block) in bytes.chunks_exact(self.bytes).enumerate() {
            let d = half::f16::from_le_bytes([block[d_at], block[d_at + 1]]);
            if !d.is_finite() {
                let at = i * self.elems;
                return Err(TernaryError::Scale {
                    layout: self.layout,
                    row: at / k,
                    column: at % k,
                    got: d.to_f32(),
                    reason: "not finite",
                });
            }
            scales.push(d.to_bits());
        }
        let row = k / self.elems * self.bytes;
        let codes = pack_rows(n, k, |r, codes| {
            let blocks = bytes[r * row..][..row].chunks_exact(self.bytes);
            for (block, codes) in blocks.zip(codes.chunks_exact_mut(self.elems)) {
                codes_of(block, codes);
            }
        });
        let block_scales = Some((self.elems, scales));
        Ok(Packed { n, k, codes, row_scales: vec![1.0; n], block_scales })
    }

    /// Encodes row by row; `write` appends a block from its codes and its scale (f16 bits).
    fn encode(
        &self,
        packed: &Packed,
        write: impl Fn(&[u8], u16, &mut Vec<u8>),
    ) -> Result<Vec<u8>, TernaryError> {
        let mut out = Vec::with_capacity(self.tensor_bytes(packed.n, packed.k)?);
        let mut result = Ok(());
        packed.for_each_row(|row, codes| {
            for (i, codes) in codes.chunks_exact(self.elems).enumerate() {
                let column = i * self.elems;
                match packed.block_scale(self.layout, row, column, self.elems, codes) {
                    Ok(d) => write(codes, d, &mut out),
                    Err(e) => result = Err(e),
                }
            }
        });
        result.map(|()| out)
    }
}

impl Packed {
    /// The scale of the block of `elems` weights at `row`, `column`, as f16 bits: 0 for a block of
    /// zeros, as the reference quantisers write it.
    fn block_scale(
        &self,
        layout: &'static str,
        row: usize,
        column: usize,
        elems: usize,
        codes: &[u8],
    ) -> Result<u16, TernaryError> {
        if codes.iter().all(|&c| c == 1) {
            return Ok(0);
        }
        let own = match &self.block_scales {
            None => 1.0,
            Some((len, scales)) if *len == elems => {
                half::f16::from_bits(scales[row * (self.k / len) + column / len]).to_f32()
            }
            Some((len, _)) => {
                return Err(TernaryError::Shape {
                    layout,
                    n: self.n,
                    k: self.k,
                    reason: format!("it has one scale a {len} weights, {layout} one a {elems}"),
                });
            }
        };
        let got = own * self.row_scales[row];
        let d = half::f16::from_f32(got);
        if !d.is_finite() || d.to_f32() == 0.0 {
            let reason = "not a normal f16";
            return Err(TernaryError::Scale { layout, row, column, got, reason });
        }
        Ok(d.to_bits())
    }

    /// The one scale of all weights.
    fn tensor_scale(&self, layout: &'static str) -> Result<f32, TernaryError> {
        let first = self.row_scales.first().copied().unwrap_or(0.0);
        let other = self.row_scales.iter().find(|s| s.to_bits() != first.to_bits());
        if let Some(&other) = other {
            return Err(TernaryError::SeveralScales { layout, first, other });
        }
        let Some((len, scales)) = &self.block_scales else { return Ok(first) };
        // Blocks of zeros may have any scale.
        let blocks = self.k.div_ceil(*len);
        let (mut d, mut result) = (None, Ok(()));
        self.for_each_row(|row, codes| {
            for (codes, &bits) in codes.chunks(*len).zip(&scales[row * blocks..]) {
                if codes.iter().any(|&c| c != 1) && *d.get_or_insert(bits) != bits {
                    let value = |bits| half::f16::from_bits(bits).to_f32() * first;
                    let (first, other) = (value(d.unwrap_or(bits)), value(bits));
                    result = Err(TernaryError::SeveralScales { layout, first, other });
                }
            }
        });
        result.map(|()| d.map_or(0.0, |bits| half::f16::from_bits(bits).to_f32() * first))
    }
}

fn check_len(
    layout: &'static str,
    n: usize,
    k: usize,
    expected: usize,
    got: usize,
) -> Result<(), TernaryError> {
    if expected == got { Ok(()) } else { Err(TernaryError::Length { layout, n, k, expected, got }) }
}

/// `n · k / 4` for layouts that pack four weights a byte across the tensor.
fn quarter(layout: &'static str, n: usize, k: usize) -> Result<usize, TernaryError> {
    n.checked_mul(k).map(|elems| elems / 4).ok_or_else(|| TernaryError::Shape {
        layout,
        n,
        k,
        reason: "its size overflows".into(),
    })
}

/// Whether some crumb (bit pair) of a byte is 3.
fn has_code_3(bytes: &[u8]) -> bool {
    bytes.iter().fold(0, |any, b| any | (b & (b >> 1))) & 0x55 != 0
}

/// The first code 3 of a matrix, as the error of a layout that cannot hold one.
fn code_3(layout: &'static str, packed: &Packed) -> TernaryError {
    let mut at = (0, 0);
    packed.for_each_row(|row, codes| {
        if at == (0, 0)
            && let Some(column) = codes.iter().position(|&c| c == 3)
        {
            at = (row, column);
        }
    });
    TernaryError::Code { layout, row: at.0, column: at.1, got: 3 }
}

#[cfg(test)]
mod tests;
