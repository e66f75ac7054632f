//! W2A8 over registers: a tile of four rows and a few tokens, for one token (decode, bound by
//! memory) as for many (prefill, bound by arithmetic).

use super::dense_linear::half_to_f32;
use super::registers::{PREFETCH_BYTES, Simd};
use crate::cpu::matrix::Ternary;
use crate::cpu::quantize::QuantRows;
use crate::cpu::rows::RowsMut;
use crate::cpu::ternary_linear::{CHUNK, join, segment};
use crate::cpu::threads::Threads;
use crate::ternary::BLOCK_BYTES;

use std::ops::Range;

/// Rows of a tile: as many as one [`Simd::sum4`] joins.
const ROWS: usize = 4;

/// Activations lined up with the registers, and the weights they meet.
pub(in crate::cpu) struct Task<'a> {
    pub w: Ternary<'a>,
    segment: usize,
    segments: usize,
    /// Bytes a row of `q`: whole registers of codes.
    stride: usize,
    /// For each register of codes its four registers of activations, `[T, stride]`.
    q: Vec<i8>,
    /// Sum of a segment's `q`, `[T, segments]`.
    sums: Vec<i32>,
    /// Scale of each segment, `[T, segments]`.
    d: Vec<f32>,
    /// Whether the whole row is one segment without a block scale.
    uniform: bool,
}

impl<'a> Task<'a> {
    pub fn new(x: &QuantRows, w: Ternary<'a>, lanes: usize, threads: &Threads) -> Self {
        let segment = segment(x.rule, &w);
        let segments = w.k.div_ceil(segment);
        let register = 64 * lanes;
        let stride = w.k.next_multiple_of(register);
        let mut q = vec![0i8; x.rows * stride];
        let mut sums = vec![0i32; x.rows * segments];
        let mut d = vec![0f32; x.rows * segments];
        let rows = q.chunks_exact_mut(stride).zip(sums.chunks_exact_mut(segments));
        let rows = rows.zip(d.chunks_exact_mut(segments)).enumerate();
        threads.each(super::super::kernels::rows_a_task(w.k), rows, |(t, ((q, sums), d))| {
            let (row, scales) = x.row(t);
            let row = &row[..w.k.next_multiple_of(64)];
            for (block, values) in row.chunks_exact(64).enumerate() {
                let at = block / lanes * register + block % lanes * 16;
                for (shift, values) in values.chunks_exact(16).enumerate() {
                    q[at + shift * 16 * lanes..][..16].copy_from_slice(values);
                }
            }
            for (i, values) in row.chunks(segment).enumerate().take(segments) {
                sums[i] = values.iter().map(|&v| i32::from(v)).sum();
                d[i] = scales[x.rule.group().map_or(0, |g| i * segment / g as usize)];
            }
        });
        let uniform = segments == 1 && w.blocks.is_none();
        Task { w, segment, segments, stride, q, sums, d, uniform }
    }
}

/// Rows `rows` of all tokens.
#[inline(always)]
pub(super) unsafe fn ternary_linear<S: Simd>(
    task: &Task<'_>,
    rows: Range<usize>,
    out: &RowsMut<'_>,
) {
    let mut scratch = Scratch::default();
    let mut t = 0;
    while t < out.rows {
        let left = out.rows - t;
        let tokens = if S::TOKENS >= 6 && left >= 6 {
            6
        } else if S::TOKENS >= 4 && left >= 4 {
            4
        } else {
            left.min(2)
        };
        for n in rows.clone().step_by(ROWS) {
            let n = n..(n + ROWS).min(rows.end);
            // SAFETY: the caller's; the tile lies inside `rows`.
            unsafe {
                match tokens {
                    6 => tile::<S, 6>(task, t, n, out, &mut scratch),
                    4 => tile::<S, 4>(task, t, n, out, &mut scratch),
                    2 => tile::<S, 2>(task, t, n, out, &mut scratch),
                    _ => tile::<S, 1>(task, t, n, out, &mut scratch),
                }
            }
        }
        t += tokens;
    }
}

/// Memory of the tiles with segments.
#[derive(Default)]
struct Scratch {
    /// `[T, block of 64, 2 halves, ROWS]`: sums of code·q.
    sums: Vec<i32>,
    /// `[segment, ROWS]`.
    block_scales: Vec<f32>,
}

#[inline(always)]
unsafe fn tile<S: Simd, const T: usize>(
    task: &Task<'_>,
    t0: usize,
    rows: Range<usize>,
    out: &RowsMut<'_>,
    scratch: &mut Scratch,
) {
    // A tile past the last row repeats it.
    let row = |r: usize| task.w.row((rows.start + r).min(rows.end - 1)).as_ptr();
    let rows_at: [*const u8; ROWS] = [row(0), row(1), row(2), row(3)];
    let mut x = [task.q.as_ptr(); T];
    for (t, x) in x.iter_mut().enumerate() {
        *x = task.q[(t0 + t) * task.stride..][..task.stride].as_ptr();
    }
    // SAFETY: pointers to whole rows of codes and of lined-up activations.
    unsafe {
        if task.uniform {
            uniform::<S, T>(task, rows_at, x, t0, rows, out);
        } else {
            segmented::<S, T>(task, rows_at, x, t0, rows, out, scratch);
        }
    }
}

/// Adds one register of codes of each row times activations to narrow sums.
#[inline(always)]
unsafe fn step<S: Simd, const T: usize>(
    codes: [S::Int; ROWS],
    x: &[*const i8; T],
    at: usize,
    narrow: &mut [[S::Int; T]; ROWS],
) {
    // SAFETY: the caller's.
    unsafe {
        shifted::<S, T, 0>(codes, x, at, narrow);
        shifted::<S, T, 1>(codes, x, at, narrow);
        shifted::<S, T, 2>(codes, x, at, narrow);
        shifted::<S, T, 3>(codes, x, at, narrow);
    }
}

#[inline(always)]
unsafe fn shifted<S: Simd, const T: usize, const SHIFT: i32>(
    codes: [S::Int; ROWS],
    x: &[*const i8; T],
    at: usize,
    narrow: &mut [[S::Int; T]; ROWS],
) {
    // SAFETY: the caller's.
    unsafe {
        let c = [
            S::codes::<SHIFT>(codes[0]),
            S::codes::<SHIFT>(codes[1]),
            S::codes::<SHIFT>(codes[2]),
            S::codes::<SHIFT>(codes[3]),
        ];
        for t in 0..T {
            let x = S::load(x[t].add(at + SHIFT as usize * 16 * S::LANES).cast());
            for r in 0..ROWS {
                narrow[r][t] = S::dot(narrow[r][t], c[r], x);
            }
        }
    }
}

#[inline(always)]
unsafe fn load_codes<S: Simd>(rows: [*const u8; ROWS], at: usize, lanes: usize) -> [S::Int; ROWS] {
    // SAFETY: the caller's.
    unsafe {
        if lanes == S::LANES {
            [
                S::load(rows[0].add(at)),
                S::load(rows[1].add(at)),
                S::load(rows[2].add(at)),
                S::load(rows[3].add(at)),
            ]
        } else {
            [
                S::load_part(rows[0].add(at), lanes),
                S::load_part(rows[1].add(at), lanes),
                S::load_part(rows[2].add(at), lanes),
                S::load_part(rows[3].add(at), lanes),
            ]
        }
    }
}

/// The rows of a tile lie one behind the other: what is ahead of them are the next tiles.
#[inline(always)]
unsafe fn prefetch<S: Simd>(rows: [*const u8; ROWS], at: usize) {
    // Once a cache line.
    if at.is_multiple_of(64) {
        for row in rows {
            // SAFETY: the caller's; nothing is read.
            unsafe { S::prefetch(row.wrapping_add(at + PREFETCH_BYTES)) };
        }
    }
}

/// Adds narrow sums to wide ones.
#[inline(always)]
unsafe fn widen<S: Simd, const T: usize>(
    wide: &mut [[S::Int; T]; ROWS],
    narrow: [[S::Int; T]; ROWS],
) {
    for (wide, narrow) in wide.iter_mut().zip(narrow) {
        for (wide, narrow) in wide.iter_mut().zip(narrow) {
            // SAFETY: the caller's.
            *wide = unsafe { S::widen(*wide, narrow) };
        }
    }
}

/// One scale a token and one a row: the sum over the whole row is an integer.
#[inline(always)]
unsafe fn uniform<S: Simd, const T: usize>(
    task: &Task<'_>,
    rows_at: [*const u8; ROWS],
    x: [*const i8; T],
    t0: usize,
    rows: Range<usize>,
    out: &RowsMut<'_>,
) {
    let blocks = task.w.row_bytes() / BLOCK_BYTES;
    // SAFETY: the caller's.
    unsafe {
        let mut wide = [[S::zero(); T]; ROWS];
        let mut at = 0;
        while at < blocks / S::LANES {
            let mut narrow = [[S::zero(); T]; ROWS];
            let end = blocks.div_euclid(S::LANES).min(at.saturating_add(S::NARROW_DOTS / 4));
            for i in at..end {
                if T == 1 {
                    prefetch::<S>(rows_at, i * 16 * S::LANES);
                }
                let codes = load_codes::<S>(rows_at, i * 16 * S::LANES, S::LANES);
                step::<S, T>(codes, &x, i * 64 * S::LANES, &mut narrow);
            }
            widen::<S, T>(&mut wide, narrow);
            at = end;
        }
        if !blocks.is_multiple_of(S::LANES) {
            let mut narrow = [[S::zero(); T]; ROWS];
            let codes = load_codes::<S>(rows_at, at * 16 * S::LANES, blocks % S::LANES);
            step::<S, T>(codes, &x, at * 64 * S::LANES, &mut narrow);
            widen::<S, T>(&mut wide, narrow);
        }
        for t in 0..T {
            let mut lanes = [0i32; 16];
            let joined = S::sum4(wide[0][t], wide[1][t], wide[2][t], wide[3][t]);
            S::store(lanes.as_mut_ptr(), joined);
            let (sum, d) = (task.sums[t0 + t], task.d[t0 + t]);
            let out = out.part(t0 + t, rows.clone());
            for (r, out) in out.iter_mut().enumerate() {
                let total: i32 = (0..S::LANES).map(|l| lanes[4 * l + r]).sum();
                *out = (total - sum) as f32 * d * task.w.row_scales[rows.start + r];
            }
        }
    }
}

/// Scales that change along the row.
#[inline(always)]
unsafe fn segmented<S: Simd, const T: usize>(
    task: &Task<'_>,
    rows_at: [*const u8; ROWS],
    x: [*const i8; T],
    t0: usize,
    rows: Range<usize>,
    out: &RowsMut<'_>,
    scratch: &mut Scratch,
) {
    let blocks = task.w.row_bytes() / BLOCK_BYTES;
    let steps = blocks.div_ceil(S::LANES);
    let blocks_a_segment = (task.segment / 64).max(1);
    // Registers of one segment add up before they are joined: 16 dots at most.
    let registers = (blocks_a_segment / S::LANES).max(1);
    // Room for whole registers and whole segments; what no step writes stays 0.
    let room = (steps * S::LANES).next_multiple_of(CHUNK / 64) * ROWS;
    let halves = task.segment == 32;
    scratch.sums.resize(2 * T * room, 0);
    // SAFETY: the caller's; stores stay inside `room` of their half and token.
    unsafe {
        for (slot, start) in (0..steps).step_by(registers).enumerate() {
            let mut first = [[S::zero(); T]; ROWS];
            let mut second = [[S::zero(); T]; ROWS];
            for i in start..(start + registers).min(steps) {
                if T == 1 {
                    prefetch::<S>(rows_at, i * 16 * S::LANES);
                }
                let lanes = (blocks - i * S::LANES).min(S::LANES);
                let codes = load_codes::<S>(rows_at, i * 16 * S::LANES, lanes);
                let at = i * 64 * S::LANES;
                if halves {
                    shifted::<S, T, 0>(codes, &x, at, &mut first);
                    shifted::<S, T, 1>(codes, &x, at, &mut first);
                    shifted::<S, T, 2>(codes, &x, at, &mut second);
                    shifted::<S, T, 3>(codes, &x, at, &mut second);
                } else {
                    step::<S, T>(codes, &x, at, &mut second);
                }
            }
            for t in 0..T {
                let sums = scratch.sums.as_mut_ptr().add(2 * t * room + slot * S::LANES * ROWS);
                S::store(sums, join_rows::<S, T>(&second, t));
                if halves {
                    S::store(sums.add(room), join_rows::<S, T>(&first, t));
                }
            }
        }
    }
    scratch.block_scales.clear();
    scratch.block_scales.resize(task.segments * ROWS, 1.0);
    if let Some((len, _)) = task.w.blocks {
        let repeats = len / task.segment;
        for r in 0..rows.len() {
            let Some((_, scales)) = task.w.row_blocks(rows.start + r) else { break };
            let segments = scratch.block_scales.chunks_mut(repeats * ROWS);
            for (segments, &bits) in segments.zip(scales) {
                let scale = half_to_f32(bits);
                for segment in segments.chunks_exact_mut(ROWS) {
                    segment[r] = scale;
                }
            }
        }
    }
    let partials = (CHUNK / task.segment).max(1);
    // Sums that a segment has: those of its blocks, or of the lanes of its registers.
    let parts = blocks_a_segment / registers;
    for t in 0..T {
        let at = (t0 + t) * task.segments;
        let (sums, d) = (&task.sums[at..][..task.segments], &task.d[at..][..task.segments]);
        let second = &scratch.sums[2 * t * room..][..room];
        let first = &scratch.sums[(2 * t + 1) * room..][..room];
        let mut partial = [[0.0f32; ROWS]; 8];
        for s in 0..task.segments {
            let mut total = [0i32; ROWS];
            if halves {
                let half = if s % 2 == 0 { first } else { second };
                total.copy_from_slice(&half[s / 2 * ROWS..][..ROWS]);
            } else {
                for part in s * parts..(s + 1) * parts {
                    for (total, &v) in total.iter_mut().zip(&second[part * ROWS..][..ROWS]) {
                        *total += v;
                    }
                }
            }
            let scales = &scratch.block_scales[s * ROWS..][..ROWS];
            let partial = &mut partial[s % partials];
            for r in 0..ROWS {
                partial[r] += (total[r] - sums[s]) as f32 * (d[s] * scales[r]);
            }
        }
        // SAFETY: the caller's.
        let out = unsafe { out.part(t0 + t, rows.clone()) };
        for (r, out) in out.iter_mut().enumerate() {
            let mut row: [f32; 8] = std::array::from_fn(|i| partial[i][r]);
            *out = join(&mut row, partials) * task.w.row_scales[rows.start + r];
        }
    }
}

#[inline(always)]
unsafe fn join_rows<S: Simd, const T: usize>(narrow: &[[S::Int; T]; ROWS], t: usize) -> S::Int {
    // SAFETY: the caller's.
    unsafe {
        let zero = S::zero();
        S::sum4(
            S::widen(zero, narrow[0][t]),
            S::widen(zero, narrow[1][t]),
            S::widen(zero, narrow[2][t]),
            S::widen(zero, narrow[3][t]),
        )
    }
}
