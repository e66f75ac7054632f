//! W2A8 over registers: a tile of four rows and a few tokens, whose lanes lie along the row. For one
//! token (decode, bound by memory), and for many where `ternary_gemm` is not.

use super::registers::{PREFETCH_BYTES, Simd, ahead};
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
    let mut unpacked = vec![0u8; if out.rows > 1 { ROWS * task.stride } else { 0 }];
    for start in rows.clone().step_by(ROWS_A_PASS) {
        let pass = start..(start + ROWS_A_PASS).min(rows.end);
        // SAFETY: the caller's.
        unsafe { scales.fill::<S>(&task.w, task.segments, pass.clone()) };
        for (i, n) in pass.clone().step_by(ROWS).enumerate() {
            let n = n..(n + ROWS).min(pass.end);
            // SAFETY: the caller's; the tile lies inside `rows`.
            unsafe {
                let mut codes = Codes::<S>::new(task, n.clone());
                codes.unpack(&mut unpacked);
                let mut t = 0;
                while t < out.rows {
                    let left = out.rows - t;
                    let tokens = if S::TOKENS >= 4 && left >= 4 { 4 } else { left.min(2) };
                    match tokens {
                        4 => tile::<S, 4>(task, &codes, t, n.clone(), out, scales.tile(i)),
                        2 => tile::<S, 2>(task, &codes, t, n.clone(), out, scales.tile(i)),
                        _ => tile::<S, 1>(task, &codes, t, n.clone(), out, scales.tile(i)),
                    }
                    t += tokens;
                }
            }
        }
    }
}

/// Where the codes of a tile are.
struct Codes<S: Simd> {
    rows: [*const u8; ROWS],
    /// As many bytes as a tile has, of the tiles that come next.
    ahead: *const u8,
    /// For more tokens than one, `[register, 4 in a byte, row]`: a byte a code.
    unpacked: *const u8,
    /// Of a row.
    blocks: usize,
    /// Masks of two neighbouring codes.
    three: S::Int,
    twelve: S::Int,
}

impl<S: Simd> Codes<S> {
    #[inline(always)]
    unsafe fn new(task: &Task<'_>, rows: Range<usize>) -> Self {
        let row_bytes = task.w.row_bytes();
        // A tile past the last row repeats it.
        let row = |r: usize| task.w.row((rows.start + r).min(rows.end - 1)).as_ptr();
        // With fewer rows than a tile has, activations are asked for: they are as many bytes.
        let (codes, at) = match task.w.codes.len() < ROWS * row_bytes {
            true => (bytemuck::cast_slice(&task.q), 0),
            false => (task.w.codes, rows.start * row_bytes),
        };
        let ahead = ahead::<S>(codes, at, ROWS * row_bytes);
        let blocks = row_bytes / BLOCK_BYTES;
        // SAFETY: the caller's.
        let (three, twelve) = unsafe { (S::splat_byte(3), S::splat_byte(12)) };
        let rows = [row(0), row(1), row(2), row(3)];
        Codes { rows, ahead, unpacked: std::ptr::null(), blocks, three, twelve }
    }

    /// Fills `to`, if it has room, as `unpacked` says.
    #[inline(always)]
    unsafe fn unpack(&mut self, to: &mut [u8]) {
        self.unpacked = to.as_ptr();
        for (i, to) in to.chunks_exact_mut(64 * S::LANES * ROWS).enumerate() {
            let mut to = to.as_mut_ptr();
            for shift in 0..4 {
                for r in 0..ROWS {
                    // SAFETY: the caller's; `to` has room for four registers of each row.
                    unsafe {
                        let packed = self.load(r, i, self.blocks - i * S::LANES);
                        let codes = match shift {
                            0 => S::codes::<0>(packed, self.three),
                            1 => S::codes::<1>(packed, self.three),
                            2 => S::codes::<2>(packed, self.three),
                            _ => S::codes::<3>(packed, self.three),
                        };
                        S::store(to.cast(), codes);
                        to = to.add(16 * S::LANES);
                    }
                }
            }
        }
    }

    /// Register `i` of row `r`; `lanes`: those that the row has from there on.
    #[inline(always)]
    unsafe fn load(&self, r: usize, i: usize, lanes: usize) -> S::Int {
        // SAFETY: the caller's.
        unsafe {
            let at = self.rows[r].add(i * 16 * S::LANES);
            if lanes >= S::LANES { S::load(at) } else { S::load_part(at, lanes) }
        }
    }
}

/// `scales`: those of the blocks, `[unit, 4]`.
#[inline(always)]
unsafe fn tile<S: Simd, const T: usize>(
    task: &Task<'_>,
    codes: &Codes<S>,
    t0: usize,
    rows: Range<usize>,
    out: &RowsMut<'_>,
    scales: Option<&[f32]>,
) {
    let mut x = [task.q.as_ptr(); T];
    for (t, x) in x.iter_mut().enumerate() {
        *x = task.q[(t0 + t) * task.stride..][..task.stride].as_ptr();
    }
    // SAFETY: pointers to whole rows of codes and of lined-up activations.
    unsafe {
        if task.segments.count == 1 && scales.is_none() {
            uniform::<S, T>(task, codes, x, t0, rows, out);
        } else if task.segments.halves() == 2 {
            segmented::<S, T, 2>(task, codes, x, t0, rows, out, scales);
        } else {
            segmented::<S, T, 1>(task, codes, x, t0, rows, out, scales);
        }
    }
}

/// Adds halves `FROM..TO` (weights 0 to 31 and 32 to 63 of each block) of registers `range` of each row
/// times the activations of one token, whose time is that of unpacking. Every other code stays where it
/// is, four times too large: `fours` takes those.
#[inline(always)]
unsafe fn packed<S: Simd, const FROM: usize, const TO: usize>(
    codes: &Codes<S>,
    range: Range<usize>,
    x: *const i8,
    narrow: [S::Int; ROWS],
) -> [S::Int; ROWS] {
    let whole = codes.blocks / S::LANES;
    // SAFETY: the caller's.
    unsafe {
        let mut sums = (narrow, [S::zero(); ROWS]);
        for i in range.start..range.end.min(whole) {
            sums = step::<S, FROM, TO>(codes, i, S::LANES, x, sums);
        }
        if S::LANES > 1 && range.end > whole {
            sums = step::<S, FROM, TO>(codes, whole, codes.blocks % S::LANES, x, sums);
        }
        let (mut narrow, fours) = sums;
        for r in 0..ROWS {
            narrow[r] = S::add_quarter(narrow[r], fours[r]);
        }
        narrow
    }
}

/// Register `i`, of which `lanes` lanes lie inside the row.
#[inline(always)]
unsafe fn step<S: Simd, const FROM: usize, const TO: usize>(
    codes: &Codes<S>,
    i: usize,
    lanes: usize,
    x: *const i8,
    (mut narrow, mut fours): ([S::Int; ROWS], [S::Int; ROWS]),
) -> ([S::Int; ROWS], [S::Int; ROWS]) {
    // SAFETY: the caller's.
    unsafe {
        if FROM == 0 {
            // The rows of a tile lie one behind the other: what is ahead of them are the next tiles.
            if S::PREFETCH_READS {
                for line in 0..S::LANES {
                    S::prefetch(codes.ahead.wrapping_add((i * S::LANES + line) * 64));
                }
            } else if (i * 16 * S::LANES).is_multiple_of(64) {
                for row in codes.rows {
                    S::prefetch(row.wrapping_add(i * 16 * S::LANES + PREFETCH_BYTES));
                }
            }
        }
        for half in FROM..TO {
            // Added apart: what is constant becomes part of the instruction.
            let x = x.add(i * 64 * S::LANES).add(half * 32 * S::LANES).cast();
            let (near, far) = (S::load(x), S::load(x.add(16 * S::LANES)));
            for r in 0..ROWS {
                let v = codes.load(r, i, lanes);
                let v = if half == 0 { v } else { S::upper(v) };
                narrow[r] = S::dot(narrow[r], S::and(v, codes.three), near);
                fours[r] = S::dot(fours[r], S::and(v, codes.twelve), far);
            }
        }
    }
    (narrow, fours)
}

/// Adds unpacked registers `range` of each row times the activations of some tokens to narrow sums.
#[inline(always)]
unsafe fn unpacked<S: Simd, const T: usize>(
    codes: &Codes<S>,
    range: Range<usize>,
    x: &[*const i8; T],
    narrow: &mut [[S::Int; T]; ROWS],
) {
    for i in range {
        // SAFETY: the caller's.
        unsafe {
            let at = codes.unpacked.add(i * ROWS * 16 * S::LANES);
            let mut values = [S::zero(); T];
            for t in 0..T {
                values[t] = S::load(x[t].add(i * 16 * S::LANES).cast());
            }
            for r in 0..ROWS {
                let codes = S::load(at.add(r * 16 * S::LANES));
                for t in 0..T {
                    narrow[r][t] = S::dot(narrow[r][t], codes, values[t]);
                }
            }
        }
    }
}

/// Adds part `HALF` of `HALVES` of registers `range` of each row times activations to narrow sums.
#[inline(always)]
unsafe fn products<S: Simd, const T: usize, const HALF: usize, const HALVES: usize>(
    codes: &Codes<S>,
    range: Range<usize>,
    x: &[*const i8; T],
    narrow: &mut [[S::Int; T]; ROWS],
) {
    // SAFETY: the caller's.
    unsafe {
        if T > 1 {
            let (first, len) = (4 * range.start + HALF * 2, 4 * range.len() / HALVES);
            return unpacked::<S, T>(codes, first..first + len, x, narrow);
        }
        let mut sums = [narrow[0][0], narrow[1][0], narrow[2][0], narrow[3][0]];
        if HALVES == 1 && S::LANES > 1 {
            sums = packed::<S, 0, 2>(codes, range, x[0], sums);
        } else {
            // Half by half: fewer registers, of which WebAssembly's engines have 15.
            if HALVES == 1 || HALF == 0 {
                sums = packed::<S, 0, 1>(codes, range.clone(), x[0], sums);
            }
            if HALVES == 1 || HALF == 1 {
                sums = packed::<S, 1, 2>(codes, range, x[0], sums);
            }
        }
        for r in 0..ROWS {
            narrow[r][0] = sums[r];
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
    codes: &Codes<S>,
    x: [*const i8; T],
    t0: usize,
    rows: Range<usize>,
    out: &RowsMut<'_>,
) {
    // SAFETY: the caller's.
    unsafe {
        let mut wide = [[S::zero(); T]; ROWS];
        // Four dots a register; of one token two for each sum, of which half count four times.
        let run = S::NARROW_DOTS / if T == 1 { 8 } else { 4 };
        let registers = codes.blocks.div_ceil(S::LANES);
        let mut at = 0;
        while at < registers {
            let mut narrow = [[S::zero(); T]; ROWS];
            let end = registers.min(at.saturating_add(run));
            products::<S, T, 0, 1>(codes, at..end, &x, &mut narrow);
            widen::<S, T>(&mut wide, narrow);
            at = end;
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
    codes: &Codes<S>,
    x: [*const i8; T],
    t0: usize,
    rows: Range<usize>,
    out: &RowsMut<'_>,
    scales: Option<&[f32]>,
) {
    // Registers that fill the lanes of one with sums of whole segments: 1, 2 or 4.
    let registers = (task.segments.len / 64).max(1);
    // Those that add up as they are; the others' lanes are added in pairs.
    let run = if S::LANES == 1 { registers } else { (registers / S::LANES).max(1) };
    let parts = if S::LANES == 1 { 1 } else { registers / run };
    let units = task.segments.units();
    // Registers of sums until a lane's partial sum comes again.
    let period = 4 / S::LANES;
    let mut sums_at = [std::ptr::null(); T];
    let mut d_at = [std::ptr::null(); T];
    for t in 0..T {
        let (sums, d) = task.scales(t0 + t);
        (sums_at[t], d_at[t]) = (sums.as_ptr(), d.as_ptr());
    }
    let scales = scales.map(<[f32]>::as_ptr);
    let whole = codes.blocks.div_ceil(S::LANES);
    // SAFETY: the caller's; `units` are whole registers, of sums and scales as well.
    unsafe {
        let mut partial = [[[S::splat(0.0); T]; 4]; HALVES];
        for batch in 0..codes.blocks.div_ceil(S::LANES * registers) {
            let mut joined = [[[S::zero(); T]; 4]; HALVES];
            for i in 0..parts {
                let mut sums = [[[S::zero(); T]; ROWS]; HALVES];
                let first = batch * registers + i * run;
                let range = first..(first + run).min(whole);
                if HALVES == 1 {
                    products::<S, T, 0, 1>(codes, range, &x, &mut sums[0]);
                } else {
                    products::<S, T, 0, 2>(codes, range.clone(), &x, &mut sums[0]);
                    products::<S, T, 1, 2>(codes, range, &x, &mut sums[HALVES - 1]);
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
                    let total = match parts {
                        1 => a,
                        2 => S::pair_lanes(a, b),
                        _ => S::pair_lanes(S::pair_lanes(a, b), S::pair_lanes(c, d)),
                    };
                    let at = (half * units + unit) * ROWS;
                    let sum = S::sub(total, S::load(sums_at[t].add(at).cast()));
                    let mut d = S::load_f32(d_at[t].add(at));
                    if let Some(scales) = scales {
                        d = S::mul(d, S::load_f32(scales.add(unit * ROWS)));
                    }
                    let partial = &mut partial[half][batch % period][t];
                    *partial = S::add(*partial, S::mul(S::to_f32(sum), d));
                }
            }
        }
        let row_scales = &task.w.row_scales[rows.clone()];
        for t in 0..T {
            let mut totals = [0.0f32; ROWS];
            if S::LANES == 1 {
                // Neighbours first, as `join` does.
                let mut p =
                    [partial[0][0][t], partial[0][1][t], partial[0][2][t], partial[0][3][t]];
                for half in 1..HALVES {
                    for i in 0..4 {
                        p[i] = S::add(p[i], partial[half][i][t]);
                    }
                }
                let total = S::add(S::add(p[0], p[1]), S::add(p[2], p[3]));
                S::store_f32(totals.as_mut_ptr(), total);
            } else {
                // `[4, ROWS]` of each half.
                let mut lanes = [[0.0f32; 4 * ROWS]; HALVES];
                for (lanes, partial) in lanes.iter_mut().zip(&partial) {
                    for (lanes, partial) in lanes.chunks_exact_mut(S::FLOATS).zip(partial) {
                        S::store_f32(lanes.as_mut_ptr(), partial[t]);
                    }
                }
                for (r, total) in totals.iter_mut().enumerate() {
                    let mut row: [f32; 8] =
                        std::array::from_fn(|i| lanes[i % HALVES][i / HALVES % 4 * ROWS + r]);
                    *total = join(&mut row, 4 * HALVES);
                }
            }
            let out = out.part(t0 + t, rows.clone());
            for ((out, total), scale) in out.iter_mut().zip(totals).zip(row_scales) {
                *out = total * scale;
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
