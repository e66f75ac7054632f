//! Dense matrices over registers: four rows and up to four tokens at a time.

use super::registers::{Simd, ahead};
use crate::cpu::matrix::{Dense, Values};
use crate::cpu::rows::{RowsMut, RowsRef};
use half::f16;
use std::ops::Range;

const ROWS: usize = 4;

/// Rows `rows` of all tokens.
#[inline(always)]
pub(super) unsafe fn dense_linear<S: Simd>(
    x: RowsRef<'_>,
    w: Dense<'_>,
    rows: Range<usize>,
    out: &RowsMut<'_>,
) {
    for n in rows.clone().step_by(ROWS) {
        let n = n..(n + ROWS).min(rows.end);
        let mut t = 0;
        while t < out.rows {
            // SAFETY: the caller's.
            unsafe {
                if out.rows - t >= 4 {
                    tile::<S, 4>(x, w, n.clone(), t, out);
                    t += 4;
                } else {
                    tile::<S, 1>(x, w, n.clone(), t, out);
                    t += 1;
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn tile<S: Simd, const T: usize>(
    x: RowsRef<'_>,
    w: Dense<'_>,
    rows: Range<usize>,
    t0: usize,
    out: &RowsMut<'_>,
) {
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
                // K is a multiple of 32, and 32 of FLOATS: no rest.
                let groups = k / 32;
                for first in (0..groups).step_by(S::FLOATS) {
                    let count = S::FLOATS.min(groups - first);
                    // Plain loops: closures would not have the instructions.
                    let mut scales = [[0.0f32; 16]; ROWS];
                    for r in 0..ROWS {
                        let d = &d[row(r) * groups + first..][..count];
                        if count == S::FLOATS {
                            S::store_f32(scales[r].as_mut_ptr(), S::load_f16(d.as_ptr()));
                        } else {
                            for (scale, &d) in scales[r].iter_mut().zip(d) {
                                *scale = half_to_f32(d);
                            }
                        }
                    }
                    for group in first..first + count {
                        for r in 0..ROWS {
                            let at = row(r) * k + group * 32;
                            let row = q.as_ptr().add(at);
                            if T == 1 && group % 2 == 0 {
                                S::prefetch(ahead::<S>(bytemuck::cast_slice(q), at, 1));
                            }
                            let d = S::splat(scales[r][group - first]);
                            // One multiplication by the scale a group, not one a register.
                            let w = S::load_i8(row);
                            let mut parts = [d; T];
                            for t in 0..T {
                                parts[t] = S::mul(w, S::load_f32(x_at[t].add(group * 32)));
                            }
                            for i in (S::FLOATS..32).step_by(S::FLOATS) {
                                let w = S::load_i8(row.add(i));
                                for t in 0..T {
                                    let x = S::load_f32(x_at[t].add(group * 32 + i));
                                    parts[t] = S::mul_add(w, x, parts[t]);
                                }
                            }
                            for t in 0..T {
                                sums[r][t] = S::mul_add(parts[t], d, sums[r][t]);
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
