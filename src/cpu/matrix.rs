//! Borrowed views of weights, as the kernels read them.

use crate::plan::MatrixType;
use crate::ternary;
use half::f16;
use std::ops::Range;

/// A ternary matrix `[N, K]` in the packed layout of [`crate::ternary`].
#[derive(Clone, Copy, Debug)]
pub struct Ternary<'a> {
    /// Out-features.
    pub n: usize,
    /// In-features.
    pub k: usize,
    /// `[N, ceil(K/64)]` blocks of 16 bytes.
    pub codes: &'a [u8],
    /// `[N]`.
    pub row_scales: &'a [f32],
    /// Block length and f16 bits `[N, ceil(K/block)]`, where the source has them.
    pub blocks: Option<(usize, &'a [u16])>,
}

impl<'a> Ternary<'a> {
    /// Bytes from one row of codes to the next.
    pub fn row_bytes(&self) -> usize {
        ternary::row_bytes(self.k)
    }

    /// Some of the rows.
    pub fn rows(&self, rows: Range<usize>) -> Self {
        let bytes = self.row_bytes();
        Ternary {
            n: rows.len(),
            k: self.k,
            codes: &self.codes[rows.start * bytes..rows.end * bytes],
            row_scales: &self.row_scales[rows.clone()],
            blocks: self.blocks.map(|(len, scales)| {
                let per_row = self.k.div_ceil(len);
                (len, &scales[rows.start * per_row..rows.end * per_row])
            }),
        }
    }

    /// Packed codes of row `n`.
    pub fn row(&self, n: usize) -> &'a [u8] {
        &self.codes[n * self.row_bytes()..][..self.row_bytes()]
    }

    /// Block length and scales (f16 bits) of row `n`.
    pub fn row_blocks(&self, n: usize) -> Option<(usize, &'a [u16])> {
        self.blocks.map(|(len, scales)| {
            let per_row = self.k.div_ceil(len);
            (len, &scales[n * per_row..][..per_row])
        })
    }

    /// `t · block_scale`, the weight but for its row's scale.
    pub fn unscaled(&self, n: usize, k: usize) -> f32 {
        let t = f32::from(ternary::code(self.row(n), k)) - 1.0;
        self.row_blocks(n).map_or(t, |(len, scales)| t * f16::from_bits(scales[k / len]).to_f32())
    }
}

/// A dense matrix `[N, K]`.
#[derive(Clone, Copy, Debug)]
pub struct Dense<'a> {
    /// Out-features.
    pub n: usize,
    /// In-features.
    pub k: usize,
    /// The elements.
    pub values: Values<'a>,
}

/// Elements of a dense matrix, row-major.
#[derive(Clone, Copy, Debug)]
pub enum Values<'a> {
    /// f32 `[N, K]`.
    F32(&'a [f32]),
    /// f16 bits `[N, K]`.
    F16(&'a [u16]),
    /// int8 `[N, K]` and f16 bits `[N, K/32]`: value = q·d.
    Q8(&'a [i8], &'a [u16]),
}

impl Dense<'_> {
    /// Some of the rows.
    pub fn rows(&self, rows: Range<usize>) -> Self {
        let (a, b) = (rows.start * self.k, rows.end * self.k);
        let values = match self.values {
            Values::F32(v) => Values::F32(&v[a..b]),
            Values::F16(v) => Values::F16(&v[a..b]),
            Values::Q8(q, d) => {
                let groups = self.k.div_ceil(32);
                Values::Q8(&q[a..b], &d[rows.start * groups..rows.end * groups])
            }
        };
        Dense { n: rows.len(), k: self.k, values }
    }

    /// The element type.
    pub fn dtype(&self) -> MatrixType {
        match self.values {
            Values::F32(_) => MatrixType::F32,
            Values::F16(_) => MatrixType::F16,
            Values::Q8(..) => MatrixType::Q8,
        }
    }

    /// The element at row `n`, column `k`.
    pub fn at(&self, n: usize, k: usize) -> f32 {
        let i = n * self.k + k;
        match self.values {
            Values::F32(v) => v[i],
            Values::F16(v) => f16::from_bits(v[i]).to_f32(),
            Values::Q8(q, d) => {
                let per_row = self.k.div_ceil(32);
                f32::from(q[i]) * f16::from_bits(d[n * per_row + k / 32]).to_f32()
            }
        }
    }
}

/// A matrix of either kind.
#[derive(Clone, Copy, Debug)]
pub enum Matrix<'a> {
    /// Ternary.
    Ternary(Ternary<'a>),
    /// Dense.
    Dense(Dense<'a>),
}
