//! The hot kernels again, in plain loops shaped for vector registers, for processors that `simd`
//! has no intrinsics for.
//!
//! Integer kernels agree with their twins bit for bit; float kernels sum in f32, in lanes.

use super::kv_append::{KvRows, KvValues};
use super::matrix::{Dense, Ternary, Values};
use super::quantize::QuantRows;
use super::rows::RowsRef;
use super::ternary_linear::{join, partials, segment};
use crate::ternary::{BLOCK, BLOCK_BYTES};
use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};

/// Takes the output of row (token) `t`, column (out-feature) `n`.
pub(super) type Put<'a> = &'a mut dyn FnMut(usize, usize, f32);

/// Lanes that all the machines split evenly.
const LANES: usize = 16;
/// Products of int8 and a code that an i16 holds: 64 · 3 · 128 < 2¹⁵.
const NARROW: usize = 64;
/// From this many tokens on, a row of weights is unpacked once for all of them.
const UNPACK_TOKENS: usize = 3;

pub(super) fn ternary_linear(x: &QuantRows, tokens: usize, w: Ternary<'_>, put: Put<'_>) {
    let segment = segment(x.rule, &w);
    let (lanes, segments) = (partials(segment), w.k.div_ceil(segment));
    let padded = w.k.next_multiple_of(BLOCK);
    let end = |start: usize| (start + segment).min(padded);
    let group = x.rule.group().map_or(usize::MAX, |g| g as usize);
    // Σ q·(code − 1) = Σ q·code − Σ q, and the second sum is the same for all rows of weights.
    let mut sums = Vec::with_capacity(tokens * segments);
    for t in 0..tokens {
        let q = x.row(t).0;
        sums.extend((0..segments).map(|i| {
            let start = i * segment;
            q[start..end(start)].iter().map(|&q| i32::from(q)).sum::<i32>()
        }));
    }
    let unpack = tokens >= UNPACK_TOKENS;
    let mut codes = vec![0; if unpack { padded } else { 0 }];
    let mut scales = vec![1.0; segments];
    for n in 0..w.n {
        let row = w.row(n);
        if unpack {
            unpack_row(row, &mut codes);
        }
        if let Some((len, blocks)) = w.row_blocks(n) {
            for (i, scale) in scales.iter_mut().enumerate() {
                *scale = f16::from_bits(blocks[i * segment / len]).to_f32();
            }
        }
        for (t, sums) in sums.chunks_exact(segments).enumerate() {
            let (q, d) = x.row(t);
            let mut partial = [0.0; 8];
            for (i, (sum, scale)) in sums.iter().zip(&scales).enumerate() {
                let start = i * segment;
                let q = &q[start..end(start)];
                let dot = if unpack {
                    dot_codes(q, &codes[start..end(start)])
                } else if segment < BLOCK {
                    dot_half(q, &row[start / 4 / BLOCK_BYTES * BLOCK_BYTES..], start % BLOCK)
                } else {
                    dot_blocks(q, &row[start / 4..])
                };
                partial[i % lanes] += (dot - sum) as f32 * (d[start / group] * scale);
            }
            put(t, n, join(&mut partial, lanes) * w.row_scales[n]);
        }
    }
}

/// One byte a code, in order.
#[inline(always)]
fn unpack_row(row: &[u8], codes: &mut [i8]) {
    for (codes, block) in codes.chunks_exact_mut(BLOCK).zip(row.chunks_exact(BLOCK_BYTES)) {
        for s in 0..4 {
            for i in 0..BLOCK_BYTES {
                codes[16 * s + i] = (block[i] >> (2 * s) & 3) as i8;
            }
        }
    }
}

/// Σ q·code over whole packed blocks.
#[inline(always)]
fn dot_blocks(q: &[i8], blocks: &[u8]) -> i32 {
    let mut total = 0;
    // Four products a block and lane.
    let run = NARROW / 4;
    for (q, blocks) in q.chunks(BLOCK * run).zip(blocks.chunks(BLOCK_BYTES * run)) {
        let mut lanes = [0i16; LANES];
        for (q, block) in q.chunks_exact(BLOCK).zip(blocks.chunks_exact(BLOCK_BYTES)) {
            for s in 0..4 {
                for i in 0..LANES {
                    lanes[i] += i16::from(q[16 * s + i]) * i16::from(block[i] >> (2 * s) & 3);
                }
            }
        }
        total += lanes.iter().map(|&l| i32::from(l)).sum::<i32>();
    }
    total
}

/// Σ q·code over the half of a packed block that starts at weight `at` (0 or 32).
#[inline(always)]
fn dot_half(q: &[i8], block: &[u8], at: usize) -> i32 {
    let mut lanes = [0i16; LANES];
    for s in 0..2 {
        for i in 0..LANES {
            let code = block[i] >> (at / 8 + 2 * s) & 3;
            lanes[i] += i16::from(q[16 * s + i]) * i16::from(code);
        }
    }
    lanes.iter().map(|&l| i32::from(l)).sum()
}

/// Σ q·code over unpacked codes; a multiple of 16 of them.
#[inline(always)]
fn dot_codes(q: &[i8], codes: &[i8]) -> i32 {
    let mut total = 0;
    for (q, codes) in q.chunks(LANES * NARROW).zip(codes.chunks(LANES * NARROW)) {
        let mut lanes = [0i16; LANES];
        for (q, codes) in q.chunks_exact(LANES).zip(codes.chunks_exact(LANES)) {
            for i in 0..LANES {
                lanes[i] += i16::from(q[i]) * i16::from(codes[i]);
            }
        }
        total += lanes.iter().map(|&l| i32::from(l)).sum::<i32>();
    }
    total
}

pub(super) fn dense_linear(x: RowsRef<'_>, tokens: usize, w: Dense<'_>, put: Put<'_>) {
    let mut row = vec![0.0; w.k];
    for n in 0..w.n {
        let at = n * w.k;
        let row: &[f32] = match w.values {
            Values::F32(v) => &v[at..at + w.k],
            Values::F16(v) => {
                v[at..at + w.k].reinterpret_cast::<f16>().convert_to_f32_slice(&mut row);
                &row
            }
            Values::Q8(q, d) => {
                let scales = &d[n * w.k.div_ceil(32)..];
                let groups = row.chunks_mut(32).zip(q[at..at + w.k].chunks(32)).zip(scales);
                for ((row, q), d) in groups {
                    let d = f16::from_bits(*d).to_f32();
                    for (r, q) in row.iter_mut().zip(q) {
                        *r = f32::from(*q) * d;
                    }
                }
                &row
            }
        };
        for t in 0..tokens {
            put(t, n, dot(x.row(t), row));
        }
    }
}

/// Σ a·b.
#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    const WIDE: usize = 2 * LANES;
    let mut lanes = [0.0f32; WIDE];
    let (a_chunks, b_chunks) = (a.chunks_exact(WIDE), b.chunks_exact(WIDE));
    let rest = a_chunks.remainder().iter().zip(b_chunks.remainder());
    let rest: f32 = rest.map(|(a, b)| a * b).sum();
    for (a, b) in a_chunks.zip(b_chunks) {
        for i in 0..WIDE {
            lanes[i] += a[i] * b[i];
        }
    }
    lanes.iter().sum::<f32>() + rest
}

pub(super) fn attention(
    q: &[f32],
    keys: &KvRows,
    values: &KvRows,
    positions: usize,
    heads: usize,
    scale: f32,
    out: &mut [f32],
) {
    let head_dim = q.len() / heads;
    let group = heads / (keys.dim / head_dim);
    let mut row = vec![0.0; head_dim];
    let mut scores = vec![0.0; positions];
    for (h, (q, out)) in q.chunks_exact(head_dim).zip(out.chunks_exact_mut(head_dim)).enumerate() {
        let at = h / group * head_dim;
        let mut max = f32::NEG_INFINITY;
        for (p, score) in scores.iter_mut().enumerate() {
            *score = dot(q, cached(keys, p, at, &mut row)) * scale;
            max = max.max(*score);
        }
        let mut total = 0.0;
        out.fill(0.0);
        for (p, score) in scores.iter().enumerate() {
            let weight = (score - max).exp();
            total += weight;
            for (o, v) in out.iter_mut().zip(cached(values, p, at, &mut row)) {
                *o += weight * v;
            }
        }
        out.iter_mut().for_each(|o| *o /= total);
    }
}

/// The cached values of a head at position `pos`, as f32.
#[inline(always)]
fn cached<'a>(cache: &'a KvRows, pos: usize, at: usize, row: &'a mut [f32]) -> &'a [f32] {
    let start = pos * cache.dim + at;
    let range = start..start + row.len();
    match &cache.values {
        KvValues::F32(v) => return &v[range],
        KvValues::F16(v) => v[range].convert_to_f32_slice(row),
        KvValues::Q8(q, d) => {
            let scales = &d[pos * cache.groups()..];
            for (i, (r, q)) in row.iter_mut().zip(&q[range]).enumerate() {
                *r = f32::from(*q) * scales[(at + i) / 32].to_f32();
            }
        }
    }
    row
}
