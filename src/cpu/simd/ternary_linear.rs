//! W2A8 over registers: a tile of four rows and a few tokens, whose lanes lie along the row. For one
//! token (decode, bound by memory), and for many where `ternary_gemm` is not.

use super::registers::{PREFETCH_BYTES, Simd};
use super::segments::{ROWS, Scales, Segments};
use crate::cpu::matrix::Ternary;
use crate::cpu::quantize::QuantRows;
use crate::cpu::rows::RowsMut;
use crate::cpu::ternary_linear::join;
use crate::cpu::threads::Threads;
use crate::ternary::BLOCK_BYTES;

use std::ops::Range;

/// Rows whose codes stay in the second-level cache while many tokens pass by.
pub(super) const ROWS_A_PASS: usize = 64;

/// Activations lined up with the registers, and the weights they meet.
pub(in crate::cpu) struct Task<'a> {
    w: Ternary<'a>,
    segments: Segments,
    /// Bytes a row of `q`: whole registers of codes.
    stride: usize,
    /// For each register of codes its four registers of activations, `[T, stride]`.
    q: Vec<i8>,
    /// Sum of each segment's `q`, once for each row of a tile: `[T, half, unit, 4]`.
    sums: Vec<i32>,
    /// Scale of each segment, likewise.
    d: Vec<f32>,
}

impl<'a> Task<'a> {
    pub fn new(x: &QuantRows, w: Ternary<'a>, lanes: usize, threads: &Threads) -> Self {
        let segments = Segments::new(x, &w);
        let (halves, units) = (segments.halves(), segments.units());
        let register = 64 * lanes;
        let stride = w.k.next_multiple_of(register);
        let scales = halves * units * ROWS;
        let mut q = vec![0i8; x.rows * stride];
        let mut sums = vec![0i32; x.rows * scales];
        let mut d = vec![0f32; x.rows * scales];
        let rows = q.chunks_exact_mut(stride).zip(sums.chunks_exact_mut(scales));
        let rows = rows.zip(d.chunks_exact_mut(scales)).enumerate();
        threads.each(super::super::kernels::rows_a_task(w.k), rows, |(t, ((q, sums), d))| {
            let row = &x.row(t).0[..w.k.next_multiple_of(64)];
            for (block, values) in row.chunks_exact(64).enumerate() {
                let at = block / lanes * register + block % lanes * 16;
                for (shift, values) in values.chunks_exact(16).enumerate() {
                    q[at + shift * 16 * lanes..][..16].copy_from_slice(values);
                }
            }
            for (i, sum, scale) in segments.of(x, w.k, t) {
                let at = (i % halves * units + i / halves) * ROWS;
                sums[at..][..ROWS].fill(sum);
                d[at..][..ROWS].fill(scale);
            }
        });
        Task { w, segments, stride, q, sums, d }
    }

    /// Sums and scales of token `t`, `[half, unit, 4]`.
    #[inline(always)]
    fn scales(&self, t: usize) -> (&[i32], &[f32]) {
        let len = self.segments.halves() * self.segments.units() * ROWS;
        (&self.sums[t * len..][..len], &self.d[t * len..][..len])
    }
}

/// Rows `rows` of all tokens.
#[inline(always)]
pub(super) unsafe fn ternary_linear<S: Simd>(
    task: &Task<'_>,
    rows: Range<usize>,
    out: &RowsMut<'_>,
) {
    let mut scales = Scales::default();
    for start in rows.clone().step_by(ROWS_A_PASS) {
        let rows = start..(start + ROWS_A_PASS).min(rows.end);
        // SAFETY: the caller's.
        unsafe { scales.fill::<S>(&task.w, task.segments, rows.clone()) };
        let mut t = 0;
        while t < out.rows {
            let left = out.rows - t;
            let tokens = if S::TOKENS >= 4 && left >= 4 { 4 } else { left.min(2) };
            for (i, n) in rows.clone().step_by(ROWS).enumerate() {
                let n = n..(n + ROWS).min(rows.end);
                // SAFETY: the caller's; the tile lies inside `rows`.
                unsafe {
                    match tokens {
                        4 => tile::<S, 4>(task, t, n, out, scales.tile(i)),
                        2 => tile::<S, 2>(task, t, n, out, scales.tile(i)),
                        _ => tile::<S, 1>(task, t, n, out, scales.tile(i)),
                    }
                }
            }
            t += tokens;
        }
    }
}

/// `scales`: those of the blocks, `[unit, 4]`.
#[inline(always)]
unsafe fn tile<S: Simd, const T: usize>(
    task: &Task<'_>,
    t0: usize,
    rows: Range<usize>,
    out: &RowsMut<'_>,
    scales: Option<&[f32]>,
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
        if task.segments.count == 1 && scales.is_none() {
            uniform::<S, T>(task, rows_at, x, t0, rows, out);
        } else if task.segments.halves() == 2 {
            segmented::<S, T, 2>(task, rows_at, x, t0, rows, out, scales);
        } else {
            segmented::<S, T, 1>(task, rows_at, x, t0, rows, out, scales);
        }
    }
}

/// Adds one register of codes of each row times activations to narrow sums. Of one token, whose time is
/// that of unpacking, every other code stays where it is, four times too large: `fours` takes those.
#[inline(always)]
unsafe fn step<S: Simd, const T: usize>(
    codes: [S::Int; ROWS],
    x: &[*const i8; T],
    at: usize,
    narrow: &mut [[S::Int; T]; ROWS],
    fours: &mut [S::Int; ROWS],
) {
    // SAFETY: the caller's.
    unsafe {
        if T > 1 {
            shifted::<S, T, 0>(codes, x, at, narrow);
            shifted::<S, T, 1>(codes, x, at, narrow);
            shifted::<S, T, 2>(codes, x, at, narrow);
            shifted::<S, T, 3>(codes, x, at, narrow);
            return;
        }
        for half in 0..2 {
            let x = x[0].add(at + half * 32 * S::LANES).cast();
            let (near, far) = (S::load(x), S::load(x.add(16 * S::LANES)));
            for r in 0..ROWS {
                let v = if half == 0 { codes[r] } else { S::upper(codes[r]) };
                narrow[r][0] = S::dot(narrow[r][0], S::codes::<0>(v), near);
                fours[r] = S::dot(fours[r], S::quadruple(v), far);
            }
        }
    }
}

/// Adds what [`step`] left in `fours`.
#[inline(always)]
unsafe fn add_fours<S: Simd, const T: usize>(
    narrow: &mut [[S::Int; T]; ROWS],
    fours: [S::Int; ROWS],
) {
    if T == 1 {
        for r in 0..ROWS {
            // SAFETY: the caller's.
            narrow[r][0] = unsafe { S::add_quarter(narrow[r][0], fours[r]) };
        }
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
        // Four dots a register; of one token two for each sum, of which half count four times.
        let run = S::NARROW_DOTS / if T == 1 { 8 } else { 4 };
        let mut at = 0;
        while at < blocks / S::LANES {
            let mut narrow = [[S::zero(); T]; ROWS];
            let mut fours = [S::zero(); ROWS];
            let end = blocks.div_euclid(S::LANES).min(at.saturating_add(run));
            for i in at..end {
                if T == 1 {
                    prefetch::<S>(rows_at, i * 16 * S::LANES);
                }
                let codes = load_codes::<S>(rows_at, i * 16 * S::LANES, S::LANES);
                step::<S, T>(codes, &x, i * 64 * S::LANES, &mut narrow, &mut fours);
            }
            add_fours::<S, T>(&mut narrow, fours);
            widen::<S, T>(&mut wide, narrow);
            at = end;
        }
        if !blocks.is_multiple_of(S::LANES) {
            let mut narrow = [[S::zero(); T]; ROWS];
            let mut fours = [S::zero(); ROWS];
            let codes = load_codes::<S>(rows_at, at * 16 * S::LANES, blocks % S::LANES);
            step::<S, T>(codes, &x, at * 64 * S::LANES, &mut narrow, &mut fours);
            add_fours::<S, T>(&mut narrow, fours);
            widen::<S, T>(&mut wide, narrow);
        }
        for t in 0..T {
            let mut lanes = [0i32; 16];
            let joined = S::sum4(wide[0][t], wide[1][t], wide[2][t], wide[3][t]);
            S::store(lanes.as_mut_ptr(), joined);
            let (sums, d) = task.scales(t0 + t);
            let out = out.part(t0 + t, rows.clone());
            for (r, out) in out.iter_mut().enumerate() {
                let total: i32 = (0..S::LANES).map(|l| lanes[4 * l + r]).sum();
                *out = (total - sums[0]) as f32 * d[0] * task.w.row_scales[rows.start + r];
            }
        }
    }
}

/// Scales that change along the row: sums of segments are joined to one 128-bit lane each, of four
/// rows, before they become floats. `HALVES`: segments that a block of codes holds.
#[inline(always)]
unsafe fn segmented<S: Simd, const T: usize, const HALVES: usize>(
    task: &Task<'_>,
    rows_at: [*const u8; ROWS],
    x: [*const i8; T],
    t0: usize,
    rows: Range<usize>,
    out: &RowsMut<'_>,
    scales: Option<&[f32]>,
) {
    let blocks = task.w.row_bytes() / BLOCK_BYTES;
    // Registers that fill the lanes of one with sums of whole segments: 1, 2 or 4.
    let registers = (task.segments.len / 64).max(1);
    // Those that add up as they are; the others' lanes are added in pairs.
    let run = (registers / S::LANES).max(1);
    let units = task.segments.units();
    // Registers of sums until a lane's partial sum comes again.
    let period = 4 / S::LANES;
    // SAFETY: the caller's; `units` are whole registers, of sums and scales as well.
    unsafe {
        let mut partial = [[[S::splat(0.0); T]; 4]; HALVES];
        for batch in 0..blocks.div_ceil(S::LANES * registers) {
            let mut joined = [[[S::zero(); T]; 4]; HALVES];
            for i in 0..registers / run {
                let mut sums = [[[S::zero(); T]; ROWS]; HALVES];
                let mut fours = [S::zero(); ROWS];
                let first = batch * registers + i * run;
                for register in first..first + run {
                    let lanes = blocks.saturating_sub(register * S::LANES).min(S::LANES);
                    if lanes == 0 {
                        break;
                    }
                    if T == 1 {
                        prefetch::<S>(rows_at, register * 16 * S::LANES);
                    }
                    let codes = load_codes::<S>(rows_at, register * 16 * S::LANES, lanes);
                    let at = register * 64 * S::LANES;
                    if HALVES == 1 {
                        step::<S, T>(codes, &x, at, &mut sums[0], &mut fours);
                    } else {
                        shifted::<S, T, 0>(codes, &x, at, &mut sums[0]);
                        shifted::<S, T, 1>(codes, &x, at, &mut sums[0]);
                        shifted::<S, T, 2>(codes, &x, at, &mut sums[HALVES - 1]);
                        shifted::<S, T, 3>(codes, &x, at, &mut sums[HALVES - 1]);
                    }
                }
                if HALVES == 1 {
                    add_fours::<S, T>(&mut sums[0], fours);
                }
                for half in 0..HALVES {
                    for t in 0..T {
                        joined[half][i][t] = join_rows::<S, T>(&sums[half], t);
                    }
                }
            }
            let unit = batch * S::LANES;
            for half in 0..HALVES {
                for t in 0..T {
                    let j = &joined[half];
                    let (a, b, c, d) = (j[0][t], j[1][t], j[2][t], j[3][t]);
                    let total = match registers / run {
                        1 => a,
                        2 => S::pair_lanes(a, b),
                        _ => S::pair_lanes(S::pair_lanes(a, b), S::pair_lanes(c, d)),
                    };
                    let (sums, d) = task.scales(t0 + t);
                    let at = (half * units + unit) * ROWS;
                    let sum = S::sub(total, S::load(sums[at..].as_ptr().cast()));
                    let mut d = S::load_f32(d[at..].as_ptr());
                    if let Some(scales) = scales {
                        d = S::mul(d, S::load_f32(scales[unit * ROWS..].as_ptr()));
                    }
                    let partial = &mut partial[half][batch % period][t];
                    *partial = S::add(*partial, S::mul(S::to_f32(sum), d));
                }
            }
        }
        for t in 0..T {
            // `[4, ROWS]` of each half.
            let mut lanes = [[0.0f32; 4 * ROWS]; HALVES];
            for (lanes, partial) in lanes.iter_mut().zip(&partial) {
                for (lanes, partial) in lanes.chunks_exact_mut(S::FLOATS).zip(partial) {
                    S::store_f32(lanes.as_mut_ptr(), partial[t]);
                }
            }
            let out = out.part(t0 + t, rows.clone());
            for (r, out) in out.iter_mut().enumerate() {
                let mut row: [f32; 8] =
                    std::array::from_fn(|i| lanes[i % HALVES][i / HALVES % 4 * ROWS + r]);
                *out = join(&mut row, 4 * HALVES) * task.w.row_scales[rows.start + r];
            }
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
