//! Activations to int8: the three rules of [`ActQuant`].

use super::kernels::{self, Isa};
use super::rows::RowsRef;
use super::threads::Threads;
use crate::plan::ActQuant;
use half::f16;
use std::collections::TryReserveError;
use std::ops::Range;

/// Quantised rows: the contents of a [`crate::plan::BufKind::Quant`] buffer.
#[derive(Clone, Debug)]
pub struct QuantRows {
    /// The rule they follow.
    pub rule: ActQuant,
    /// Values a row.
    pub dim: usize,
    /// From one row of `q` to the next: `dim` rounded up to a multiple of 64.
    pub stride: usize,
    /// Scales a row.
    pub groups: usize,
    /// `[rows, stride]`.
    pub q: Vec<i8>,
    /// `[rows, groups]`.
    pub d: Vec<f32>,
    /// Rows in use.
    pub rows: usize,
}

impl Default for QuantRows {
    fn default() -> Self {
        QuantRows::new(ActQuant::PerToken, 0)
    }
}

impl QuantRows {
    /// No rows yet, of `dim` values each.
    pub fn new(rule: ActQuant, dim: usize) -> Self {
        let stride = dim.next_multiple_of(64);
        let groups = rule.group().map_or(1, |g| dim.div_ceil(g as usize));
        QuantRows { rule, dim, stride, groups, q: Vec::new(), d: Vec::new(), rows: 0 }
    }

    /// Makes it `rows` rows.
    ///
    /// # Errors
    /// When memory is out.
    pub fn resize(&mut self, rows: usize) -> Result<(), TryReserveError> {
        let (q, d) = (rows.saturating_mul(self.stride), rows.saturating_mul(self.groups));
        self.q.try_reserve_exact(q.saturating_sub(self.q.len()))?;
        self.d.try_reserve_exact(d.saturating_sub(self.d.len()))?;
        self.q.resize(q.max(self.q.len()), 0);
        self.d.resize(d.max(self.d.len()), 0.0);
        self.rows = rows;
        Ok(())
    }

    /// Bytes allocated.
    pub fn bytes(&self) -> usize {
        self.q.capacity() + self.d.capacity() * 4
    }

    /// int8 values (with their padding) and scales of row `r`.
    pub fn row(&self, r: usize) -> (&[i8], &[f32]) {
        (&self.q[r * self.stride..][..self.stride], &self.d[r * self.groups..][..self.groups])
    }

    /// Some of the rows as bytes: all `q`, all `d`.
    pub(super) fn bytes_of(&self, rows: Range<usize>) -> [&[u8]; 2] {
        let q = &self.q[rows.start * self.stride..rows.end * self.stride];
        let d = &self.d[rows.start * self.groups..rows.end * self.groups];
        [bytemuck::cast_slice(q), bytemuck::cast_slice(d)]
    }

    /// Takes `rows` rows as [`QuantRows::bytes_of`] gives them; `None` when the length is another.
    pub(super) fn read(&mut self, rows: usize, bytes: &[u8]) -> Option<()> {
        let (q, d) = bytes.split_at_checked(rows.checked_mul(self.stride)?)?;
        if d.len() != rows.checked_mul(self.groups)?.checked_mul(4)? {
            return None;
        }
        self.resize(rows).ok()?;
        bytemuck::cast_slice_mut(&mut self.q[..q.len()]).copy_from_slice(q);
        bytemuck::cast_slice_mut(&mut self.d[..rows * self.groups]).copy_from_slice(d);
        Some(())
    }

    /// `q · d` of row `r`.
    pub fn dequantize(&self, r: usize) -> Vec<f32> {
        let (q, d) = self.row(r);
        let group = self.rule.group().map_or(self.dim, |g| g as usize);
        (0..self.dim).map(|k| f32::from(q[k]) * d[k / group]).collect()
    }

    /// Quantises as many rows as it has.
    pub(super) fn quantize(&mut self, isa: Isa, threads: &Threads, x: RowsRef<'_>) {
        let (rule, stride, groups) = (self.rule, self.stride.max(1), self.groups.max(1));
        let rows = self.q.chunks_exact_mut(stride).zip(self.d.chunks_exact_mut(groups));
        let rows = rows.take(self.rows).enumerate();
        threads.each(kernels::rows_a_task(self.dim), rows, |(r, (q, d))| {
            kernels::quantize(isa, rule, x.row(r), q, d);
        });
    }
}

/// Rounds the row `x` to `q` with multipliers `d`, so that `q · d ≈ x`.
///
/// # Shapes
/// `x [K]`; `q [≥ K]`, of which everything past `K` becomes 0; `d [groups]`, see [`ActQuant::groups`].
///
/// # Exactness
/// f32 in the order written here; the rules of the reference programs, so that other backends must
/// agree bit for bit wherever their division does.
#[inline(always)] // into each instruction set's own version
pub fn quantize(rule: ActQuant, x: &[f32], q: &mut [i8], d: &mut [f32]) {
    q[x.len()..].fill(0);
    let group = rule.group().map_or(x.len(), |g| g as usize).max(1);
    for ((x, q), d) in x.chunks(group).zip(q.chunks_mut(group)).zip(d) {
        let (inverse, multiplier) = scales(rule, x);
        *d = multiplier;
        for (q, &v) in q.iter_mut().zip(x) {
            // `as` saturates, which is the clamp to −128..127; NaN becomes 0.
            *q = (v * inverse).round_ties_even() as i8;
        }
    }
}

/// The factor onto int8 and the multiplier `d` back, of one group.
#[inline(always)]
pub fn scales(rule: ActQuant, x: &[f32]) -> (f32, f32) {
    let max = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    match rule {
        ActQuant::PerToken => {
            let inverse = 127.0 / max.max(1e-5);
            (inverse, 1.0 / inverse)
        }
        ActQuant::Block256 => {
            // The first value of largest magnitude decides the sign.
            match x.iter().find(|v| v.abs() == max) {
                Some(&v) if max > 0.0 => {
                    let inverse = -127.0 / v;
                    (inverse, 1.0 / inverse)
                }
                _ => (0.0, 0.0),
            }
        }
        // The vectorised form of the reference, which multiplies by 127/max and does not divide by d.
        ActQuant::Block32 => {
            let inverse = if max > 0.0 { 127.0 / max } else { 0.0 };
            (inverse, f16::from_f32(max / 127.0).to_f32())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(rule: ActQuant, x: &[f32]) -> (Vec<i8>, Vec<f32>) {
        let mut q = vec![99; x.len().next_multiple_of(64)];
        let mut d = vec![0.0; rule.groups(x.len() as u32) as usize];
        quantize(rule, x, &mut q, &mut d);
        (q, d)
    }

    #[test]
    fn quantize_per_token_rounds_half_to_even_and_pads_with_zeros() {
        // max 127 makes the factor exactly 1.
        let (q, d) = run(ActQuant::PerToken, &[127.0, 0.5, 1.5, -2.5, -127.0]);
        assert_eq!(q[..6], [127, 0, 2, -2, -127, 0]);
        assert_eq!((q.len(), d), (64, vec![1.0]));
    }

    #[test]
    fn quantize_per_token_clamps_small_rows() {
        let (q, d) = run(ActQuant::PerToken, &[0.0, 5e-6]);
        assert_eq!(q[..2], [0, 64]); // 5e-6 · 127e5 = 63.5, to even
        assert!((d[0] - 1e-5 / 127.0).abs() < 1e-13);
    }

    #[test]
    fn quantize_block256_takes_its_sign_from_the_largest() {
        let mut x = vec![0.0; 300];
        (x[3], x[4], x[299]) = (2.0, -1.0, -4.0);
        let (q, d) = run(ActQuant::Block256, &x);
        assert_eq!((q[3], q[4], q[299]), (-127, 64, -127));
        assert_eq!(d, [1.0 / (-127.0 / 2.0), 1.0 / (-127.0 / -4.0)]);
        assert_eq!(run(ActQuant::Block256, &[0.0; 256]).1, [0.0]);
    }

    #[test]
    fn quantize_block32_stores_its_scale_as_f16() {
        let (q, d) = run(ActQuant::Block32, &[1.0, -0.5]);
        assert_eq!(q[..2], [127, -64]);
        assert_eq!(d, [f16::from_f32(1.0 / 127.0).to_f32()]);
        assert_eq!(run(ActQuant::Block32, &[0.0; 32]).1, [0.0]);
    }
}
