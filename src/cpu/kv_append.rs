//! The KV cache, and writing keys or values of a token to it.

use super::quantize;
use crate::backend::KvType;
use crate::plan::ActQuant;
use half::f16;
use half::slice::HalfFloatSliceExt;
use std::collections::TryReserveError;

/// Positions that the cache grows by.
const GROWTH_TOKENS: usize = 256;

/// Keys, or values, of one layer: a row of `G·D` values a position. Grows with the positions used.
#[derive(Clone, Debug)]
pub struct KvRows {
    /// Values a row, `G·D`.
    pub dim: usize,
    /// The values.
    pub values: KvValues,
}

/// Stored values of [`KvRows`].
#[derive(Clone, Debug)]
pub enum KvValues {
    /// Exact.
    F32(Vec<f32>),
    /// Rounded to nearest even.
    F16(Vec<f16>),
    /// Rows of int8 with one f16 scale a 32 values (the last group of a row may be shorter).
    Q8(Vec<i8>, Vec<f16>),
}

impl Default for KvRows {
    fn default() -> Self {
        KvRows::new(KvType::F32, 0)
    }
}

impl KvRows {
    /// An empty cache.
    pub fn new(kv_type: KvType, dim: usize) -> Self {
        let values = match kv_type {
            KvType::F32 => KvValues::F32(Vec::new()),
            KvType::F16 => KvValues::F16(Vec::new()),
            KvType::Q8 => KvValues::Q8(Vec::new(), Vec::new()),
        };
        KvRows { dim, values }
    }

    /// Scales a row (Q8).
    pub fn groups(&self) -> usize {
        self.dim.div_ceil(32)
    }

    /// Makes room for `tokens` positions, and a few more up to `context`.
    ///
    /// # Errors
    /// When memory is out.
    pub fn grow(&mut self, tokens: usize, context: usize) -> Result<(), TryReserveError> {
        let rows = tokens.next_multiple_of(GROWTH_TOKENS).min(context.max(tokens));
        let (dim, groups) = (self.dim, self.groups());
        match &mut self.values {
            KvValues::F32(v) => grow(v, rows * dim),
            KvValues::F16(v) => grow(v, rows * dim),
            KvValues::Q8(q, d) => {
                grow(d, rows * groups)?;
                grow(q, rows * dim)
            }
        }
    }

    /// Bytes allocated.
    pub fn bytes(&self) -> usize {
        match &self.values {
            KvValues::F32(v) => v.capacity() * 4,
            KvValues::F16(v) => v.capacity() * 2,
            KvValues::Q8(q, d) => q.capacity() + d.capacity() * 2,
        }
    }

    /// The stored value.
    pub fn at(&self, pos: usize, i: usize) -> f32 {
        match &self.values {
            KvValues::F32(v) => v[pos * self.dim + i],
            KvValues::F16(v) => v[pos * self.dim + i].to_f32(),
            KvValues::Q8(q, d) => {
                f32::from(q[pos * self.dim + i]) * d[pos * self.groups() + i / 32].to_f32()
            }
        }
    }
}

fn grow<T: Clone + Default>(v: &mut Vec<T>, len: usize) -> Result<(), TryReserveError> {
    if len > v.len() {
        v.try_reserve_exact(len - v.len())?;
        v.resize(len, T::default());
    }
    Ok(())
}

/// Writes the row of one token.
///
/// # Shapes
/// `x [G·D]`; the cache has room for `pos` ([`KvRows::grow`]).
///
/// # Exactness
/// Q8 follows [`ActQuant::Block32`].
pub fn kv_append(cache: &mut KvRows, pos: usize, x: &[f32]) {
    let (dim, groups) = (cache.dim, cache.groups());
    match &mut cache.values {
        KvValues::F32(v) => v[pos * dim..][..dim].copy_from_slice(x),
        KvValues::F16(v) => v[pos * dim..][..dim].convert_from_f32_slice(x),
        KvValues::Q8(q, d) => {
            let q = &mut q[pos * dim..][..dim];
            let d = &mut d[pos * groups..][..groups];
            for ((x, q), d) in x.chunks(32).zip(q.chunks_mut(32)).zip(d) {
                let mut scale = [0.0];
                quantize::quantize(ActQuant::Block32, x, q, &mut scale);
                *d = f16::from_f32(scale[0]);
            }
        }
    }
}
