//! Attention in tiles of positions with an online softmax: keys and values of a tile are widened to
//! f32 once for all query heads and tokens that read them.

use super::dense_linear::half_to_f32;
use super::elementwise::exp;
use super::registers::Simd;
use crate::cpu::kernels::Cache;
use crate::cpu::kv_append::{KvRows, KvValues};
use crate::cpu::rows::{RowsMut, RowsRef};
use std::ops::Range;

/// Positions of a tile: 64 · 128 floats of keys are 32 KiB.
const TILE: usize = 64;

/// What all parts of one attention share.
pub(in crate::cpu) struct Task<'a> {
    pub q: RowsRef<'a>,
    pub heads: usize,
    pub head_dim: usize,
    pub scale: f32,
}

/// All query heads that read `kv_head`, for `tokens` of the step.
#[inline(always)]
pub(super) unsafe fn attention<S: Simd>(
    task: &Task<'_>,
    cache: Cache<'_>,
    kv_head: usize,
    tokens: Range<usize>,
    out: &RowsMut<'_>,
) {
    let dim = task.head_dim;
    let group = task.heads / (cache.keys.dim / dim);
    let first = kv_head * group;
    // Rows padded to whole registers, so that the inner loops have no rest.
    let padded = dim.next_multiple_of(S::FLOATS);
    let queries = tokens.len() * group;
    let mut q = vec![0.0f32; queries * padded];
    for (i, q) in q.chunks_exact_mut(padded).enumerate() {
        let (t, h) = (tokens.start + i / group, first + i % group);
        let row = &task.q.row(t)[h * dim..][..dim];
        for (q, &v) in q.iter_mut().zip(row) {
            *q = v * task.scale;
        }
    }
    let mut sums = vec![0.0f32; queries * padded];
    let mut max = vec![f32::NEG_INFINITY; queries];
    let mut total = vec![0.0f32; queries];
    let mut tile = vec![0.0f32; TILE * padded];
    let mut scores = vec![0.0f32; queries * TILE];
    let last = cache.pos + tokens.end;
    // SAFETY: `tile`, `q`, `sums` have whole rows of `padded` floats, a multiple of FLOATS.
    unsafe {
        for start in (0..last).step_by(TILE) {
            let positions = TILE.min(last - start);
            widen::<S>(cache.keys, start, positions, kv_head * dim, dim, padded, &mut tile);
            for i in 0..queries {
                let seen = (cache.pos + tokens.start + i / group + 1).saturating_sub(start);
                let scores = &mut scores[i * TILE..][..TILE];
                for (p, score) in scores.iter_mut().enumerate() {
                    *score = if p < positions.min(seen) {
                        dot::<S>(q.as_ptr().add(i * padded), tile.as_ptr().add(p * padded), padded)
                    } else {
                        f32::NEG_INFINITY
                    };
                }
                let new_max = largest(scores, max[i]);
                let rescale = if max[i] == new_max { 1.0 } else { exp(max[i] - new_max) };
                max[i] = new_max;
                scores.iter_mut().for_each(|score| *score = exp(*score - new_max));
                let mut sum = S::splat(0.0);
                for p in (0..TILE).step_by(S::FLOATS) {
                    sum = S::mul_add(S::load_f32(scores.as_ptr().add(p)), S::splat(1.0), sum);
                }
                total[i] = total[i] * rescale + S::sum(sum);
                if rescale != 1.0 {
                    sums[i * padded..][..padded].iter_mut().for_each(|v| *v *= rescale);
                }
            }
            widen::<S>(cache.values, start, positions, kv_head * dim, dim, padded, &mut tile);
            let (scores, tile) = (scores.as_ptr(), tile.as_ptr());
            let mut i = 0;
            while i < queries {
                let (weights, sums) = (scores.add(i * TILE), sums.as_mut_ptr().add(i * padded));
                if i + 2 <= queries {
                    add_values::<S, 2>(weights, tile, positions, padded, sums);
                    i += 2;
                } else {
                    add_values::<S, 1>(weights, tile, positions, padded, sums);
                    i += 1;
                }
            }
        }
        for i in 0..queries {
            let (t, h) = (tokens.start + i / group, first + i % group);
            let out = out.part(t, h * dim..(h + 1) * dim);
            for (o, &v) in out.iter_mut().zip(&sums[i * padded..]) {
                *o = v / total[i];
            }
        }
    }
}

/// The largest of a tile's scores and `least`, lane by lane first.
#[inline(always)]
fn largest(scores: &[f32], least: f32) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [least; 16];
    for scores in scores.chunks_exact(16) {
        for (lane, &score) in lanes.iter_mut().zip(scores) {
            *lane = larger(*lane, score);
        }
    }
    lanes.into_iter().fold(least, larger)
}

/// `sums[q] += Σ_p weights[q, p] · values[p]` for `Q` queries. Each sum is a chain in which every
/// addition waits for the one before: several run side by side.
///
/// # Safety
/// `weights [Q, TILE]`, `values [positions, padded]`, `sums [Q, padded]`.
#[inline(always)]
unsafe fn add_values<S: Simd, const Q: usize>(
    weights: *const f32,
    values: *const f32,
    positions: usize,
    padded: usize,
    sums: *mut f32,
) {
    // SAFETY: the caller's.
    unsafe {
        let mut at = 0;
        while at < padded {
            let (sums, values) = (sums.add(at), values.add(at));
            if at + 4 * S::FLOATS <= padded {
                add_columns::<S, Q, 4>(weights, values, positions, padded, sums);
                at += 4 * S::FLOATS;
            } else {
                add_columns::<S, Q, 1>(weights, values, positions, padded, sums);
                at += S::FLOATS;
            }
        }
    }
}

/// [`add_values`] for `R` registers of columns.
#[inline(always)]
unsafe fn add_columns<S: Simd, const Q: usize, const R: usize>(
    weights: *const f32,
    values: *const f32,
    positions: usize,
    padded: usize,
    sums: *mut f32,
) {
    // SAFETY: the caller's.
    unsafe {
        let mut sum = [[S::splat(0.0); R]; Q];
        for q in 0..Q {
            for r in 0..R {
                sum[q][r] = S::load_f32(sums.add(q * padded + r * S::FLOATS));
            }
        }
        for p in 0..positions {
            for q in 0..Q {
                let weight = S::splat(*weights.add(q * TILE + p));
                for r in 0..R {
                    let value = S::load_f32(values.add(p * padded + r * S::FLOATS));
                    sum[q][r] = S::mul_add(weight, value, sum[q][r]);
                }
            }
        }
        for q in 0..Q {
            for r in 0..R {
                S::store_f32(sums.add(q * padded + r * S::FLOATS), sum[q][r]);
            }
        }
    }
}

#[inline(always)]
unsafe fn dot<S: Simd>(a: *const f32, b: *const f32, len: usize) -> f32 {
    // SAFETY: the caller's.
    unsafe {
        let mut sum = [S::splat(0.0); 2];
        let mut i = 0;
        while i + 2 * S::FLOATS <= len {
            for (j, sum) in sum.iter_mut().enumerate() {
                let at = i + j * S::FLOATS;
                *sum = S::mul_add(S::load_f32(a.add(at)), S::load_f32(b.add(at)), *sum);
            }
            i += 2 * S::FLOATS;
        }
        if i < len {
            sum[0] = S::mul_add(S::load_f32(a.add(i)), S::load_f32(b.add(i)), sum[0]);
        }
        S::sum(S::mul_add(sum[1], S::splat(1.0), sum[0]))
    }
}

/// Values `at..at + dim` of `positions` rows as f32, rows of `padded` (whose rest stays 0).
#[inline(always)]
unsafe fn widen<S: Simd>(
    rows: &KvRows,
    start: usize,
    positions: usize,
    at: usize,
    dim: usize,
    padded: usize,
    tile: &mut [f32],
) {
    let whole = dim / S::FLOATS * S::FLOATS;
    for p in 0..positions {
        let from = (start + p) * rows.dim + at;
        let to = &mut tile[p * padded..][..dim];
        match &rows.values {
            KvValues::F32(v) => to.copy_from_slice(&v[from..from + dim]),
            KvValues::F16(v) => {
                let v = &v[from..from + dim];
                for i in (0..whole).step_by(S::FLOATS) {
                    // SAFETY: inside both slices.
                    unsafe {
                        S::store_f32(to.as_mut_ptr().add(i), S::load_f16(v.as_ptr().add(i).cast()));
                    }
                }
                for i in whole..dim {
                    to[i] = half_to_f32(v[i].to_bits());
                }
            }
            KvValues::Q8(q, d) => {
                let d = &d[(start + p) * rows.groups()..][..rows.groups()];
                for (i, (to, &q)) in to.iter_mut().zip(&q[from..from + dim]).enumerate() {
                    *to = f32::from(q) * half_to_f32(d[(at + i) / 32].to_bits());
                }
            }
        }
    }
}
