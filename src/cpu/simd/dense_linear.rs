//! Dense matrices over registers: four rows and up to four tokens at a time.
//!
//! int8 weights meet activations rounded to int16, group by group of 32: products of integers, which take a
//! third of the instructions that floats do. The rounding is far below that of the weights.

use super::registers::{Simd, ahead};
use crate::cpu::matrix::{Dense, Values};
use crate::cpu::rows::{RowsMut, RowsRef};
use half::f16;
use std::ops::Range;

const ROWS: usize = 4;

/// Weights that share a scale where they are int8.
const GROUP: usize = 32;

/// Activations, and the weights they meet.
pub(in crate::cpu) struct Task<'a> {
    x: RowsRef<'a>,
    w: Dense<'a>,
    /// For weights of int8, `x` is about `q · d`: `[T, K]`.
    q: Vec<i16>,
    /// `[T, K/32]`.
    d: Vec<f32>,
}

impl<'a> Task<'a> {
    pub fn new(x: RowsRef<'a>, w: Dense<'a>) -> Self {
        let (mut q, mut d) = (Vec::new(), Vec::new());
        if let Values::Q8(..) = w.values {
            q.reserve_exact(x.rows * w.k);
            d.reserve_exact(x.rows * w.k / GROUP);
            for group in (0..x.rows).flat_map(|t| x.row(t).chunks_exact(GROUP)) {
                let largest = group.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                let onto = f32::from(i16::MAX) / largest;
                // What is no number, or infinite, makes the group's scale no number.
                let finite: f32 = group.iter().map(|v| v * 0.0).sum();
                d.push(largest / f32::from(i16::MAX) + finite);
                // `as` saturates; NaN, of a group of zeros, becomes 0.
                q.extend(group.iter().map(|v| (v * onto).round_ties_even() as i16));
            }
        }
        Task { x, w, q, d }
    }
}

/// Rows `rows` of all tokens.
#[inline(always)]
pub(super) unsafe fn dense_linear<S: Simd>(task: &Task<'_>, rows: Range<usize>, out: &RowsMut<'_>) {
    for n in rows.clone().step_by(ROWS) {
        let n = n..(n + ROWS).min(rows.end);
        let mut t = 0;
        while t < out.rows {
            // SAFETY: the caller's.
            unsafe {
                if out.rows - t >= 4 {
                    tile::<S, 4>(task, n.clone(), t, out);
                    t += 4;
                } else {
                    tile::<S, 1>(task, n.clone(), t, out);
                    t += 1;
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn tile<S: Simd, const T: usize>(
    task: &Task<'_>,
    rows: Range<usize>,
    t0: usize,
    out: &RowsMut<'_>,
) {
    let (x, w) = (task.x, task.w);
    let k = w.k;
    let whole = k / S::FLOATS * S::FLOATS;
    // A tile past the last row repeats it.
    let row = |r: usize| (rows.start + r).min(rows.end - 1);
    // SAFETY: indices stay below `N·K` of the weights and `K` of the activations.
    unsafe {
        let mut x_at = [std::ptr::null::<f32>(); T];
        for (t, x_at) in x_at.iter_mut().enumerate() {
            *x_at = x.row(t0 + t)[..k].as_ptr();
        }
        let mut sums = [[S::splat(0.0); T]; ROWS];
        match w.values {
            Values::F32(v) => {
                for i in (0..whole).step_by(S::FLOATS) {
                    for r in 0..ROWS {
                        let w = S::load_f32(v.as_ptr().add(row(r) * k + i));
                        for t in 0..T {
                            sums[r][t] = S::mul_add(w, S::load_f32(x_at[t].add(i)), sums[r][t]);
                        }
                    }
                }
            }
            Values::F16(v) => {
                for i in (0..whole).step_by(S::FLOATS) {
                    for r in 0..ROWS {
                        let w = S::load_f16(v.as_ptr().add(row(r) * k + i));
                        for t in 0..T {
                            sums[r][t] = S::mul_add(w, S::load_f32(x_at[t].add(i)), sums[r][t]);
                        }
                    }
                }
            }
            Values::Q8(q, d) => {
                // K is a multiple of a group, and a group of FLOATS: no rest.
                let groups = k / GROUP;
                let ahead = ahead::<S>(bytemuck::cast_slice(q), rows.start * k, rows.len() * k);
                let (mut q_at, mut d_at) = ([task.q.as_ptr(); T], [task.d.as_ptr(); T]);
                for t in 0..T {
                    q_at[t] = task.q[(t0 + t) * k..][..k].as_ptr();
                    d_at[t] = task.d[(t0 + t) * groups..][..groups].as_ptr();
                }
                let w_at: [_; ROWS] = std::array::from_fn(|r| q.as_ptr().add(row(r) * k));
                let mut scales = [[[0.0f32; 16]; T]; ROWS];
                for first in (0..groups).step_by(S::FLOATS) {
                    let count = S::FLOATS.min(groups - first);
                    // Plain loops: closures would not have the instructions.
                    for r in 0..ROWS {
                        let d = &d[row(r) * groups + first..][..count];
                        for t in 0..T {
                            let (scales, x) = (&mut scales[r][t], d_at[t].add(first));
                            if count == S::FLOATS {
                                let d = S::mul(S::load_f16(d.as_ptr()), S::load_f32(x));
                                S::store_f32(scales.as_mut_ptr(), d);
                            } else {
                                for (i, &d) in d.iter().enumerate() {
                                    scales[i] = half_to_f32(d) * *x.add(i);
                                }
                            }
                        }
                    }
                    for group in first..first + count {
                        for r in 0..ROWS {
                            if T == 1 && group % 2 == 0 {
                                let at = (row(r) - rows.start) * k + group * GROUP;
                                S::prefetch(ahead.wrapping_add(at));
                            }
                            let w = w_at[r].add(group * GROUP);
                            for t in 0..T {
                                let dot = S::dot_group(w, q_at[t].add(group * GROUP));
                                let d = S::splat(scales[r][t][group - first]);
                                sums[r][t] = S::mul_add(S::to_f32(dot), d, sums[r][t]);
                            }
                        }
                    }
                }
            }
        }
        for t in 0..T {
            let out = out.part(t0 + t, rows.clone());
            for (r, out) in out.iter_mut().enumerate() {
                *out = S::sum(sums[r][t]);
                for i in whole..k {
                    *out += w.at(rows.start + r, i) * *x_at[t].add(i);
                }
            }
        }
    }
}

/// As [`f16::to_f32`], but without asking the processor each time; exact for all finite values.
#[inline(always)]
pub(super) fn half_to_f32(bits: u16) -> f32 {
    // Exponent and mantissa moved to where f32 has them, then the bias corrected by 2^112.
    let magnitude = f32::from_bits(u32::from(bits & 0x7fff) << 13) * f32::from_bits(0x7780_0000);
    if bits & 0x7c00 == 0x7c00 {
        return f16::from_bits(bits).to_f32();
    }
    f32::from_bits(magnitude.to_bits() | u32::from(bits & 0x8000) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_to_f32_is_exact() {
        for bits in 0..=u16::MAX {
            let (a, b) = (half_to_f32(bits), f16::from_bits(bits).to_f32());
            assert!(a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan(), "{bits:#x}");
        }
    }
}
