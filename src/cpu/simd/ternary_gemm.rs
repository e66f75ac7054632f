//! W2A8 of many tokens over wide registers: lanes are rows of the matrix. Four bytes of a row's codes
//! meet four bytes of activations in every 32-bit lane, so that nothing is added across lanes, a
//! segment's scale costs three instructions for as many rows as a register has lanes, and a register
//! of codes that was shifted and masked once meets many tokens.

use super::registers::Wide;
use super::segments::{ROWS, Scales, Segments};
use super::ternary_linear::ROWS_A_PASS;
use crate::cpu::matrix::Ternary;
use crate::cpu::quantize::QuantRows;
use crate::cpu::rows::RowsMut;
use crate::cpu::threads::Threads;
use crate::ternary::{BLOCK, BLOCK_BYTES};
use std::ops::Range;

/// Fewest tokens that this is worth it for.
pub(in crate::cpu) const LEAST_TOKENS: usize = 3;

/// Activations of all tokens, and the weights they meet.
pub(in crate::cpu) struct Task<'a> {
    w: Ternary<'a>,
    segments: Segments,
    panels: Vec<Panel>,
}

/// Tokens that share a register of codes; those past the last are zeros.
struct Panel {
    first: usize,
    /// 4, 8 or 16.
    tokens: usize,
    /// Words of four values, `[K/4, tokens]`.
    q: Vec<[i8; 4]>,
    /// Sum of each segment's `q`, `[segments, tokens]`.
    sums: Vec<i32>,
    /// Scale of each segment, likewise.
    d: Vec<f32>,
}

impl<'a> Task<'a> {
    /// `most`: tokens of a panel.
    pub fn new(x: &QuantRows, w: Ternary<'a>, most: usize, threads: &Threads) -> Self {
        let segments = Segments::new(x, &w);
        let words = w.k.next_multiple_of(BLOCK) / 4;
        let mut panels = Vec::new();
        let mut first = 0;
        while first < x.rows {
            let tokens = (x.rows - first).next_power_of_two().clamp(4, most);
            let (q, scales) = (vec![[0; 4]; words * tokens], segments.count * tokens);
            panels.push(Panel { first, tokens, q, sums: vec![0; scales], d: vec![0.0; scales] });
            first += tokens;
        }
        let least = super::super::kernels::rows_a_task(w.k).div_ceil(most);
        threads.each(least, panels.iter_mut(), |panel| {
            let tokens = panel.tokens;
            for t in 0..tokens.min(x.rows - panel.first) {
                let row = x.row(panel.first + t).0[..4 * words].chunks_exact(4);
                for (words, word) in panel.q.chunks_exact_mut(tokens).zip(row) {
                    words[t].copy_from_slice(word);
                }
                for (i, sum, d) in segments.of(x, w.k, panel.first + t) {
                    (panel.sums[i * tokens + t], panel.d[i * tokens + t]) = (sum, d);
                }
            }
        });
        Task { w, segments, panels }
    }
}

/// Rows `rows` of all tokens.
#[inline(always)]
pub(super) unsafe fn ternary_gemm<S: Wide>(task: &Task<'_>, rows: Range<usize>, out: &RowsMut<'_>) {
    let mut scales = Scales::default();
    for start in rows.clone().step_by(ROWS_A_PASS) {
        let pass = start..(start + ROWS_A_PASS).min(rows.end);
        // SAFETY: the caller's.
        unsafe { scales.fill::<S>(&task.w, task.segments, pass.clone()) };
        for panel in &task.panels {
            for n in pass.clone().step_by(4 * S::LANES) {
                let tile = n..(n + 4 * S::LANES).min(pass.end);
                // SAFETY: the caller's; the tile lies inside `rows`.
                unsafe {
                    match panel.tokens {
                        16 => tile_of::<S, 16>(task, panel, tile, out, &scales, n - start),
                        8 => tile_of::<S, 8>(task, panel, tile, out, &scales, n - start),
                        _ => tile_of::<S, 4>(task, panel, tile, out, &scales, n - start),
                    }
                }
            }
        }
    }
}

/// `at`: where the tile starts in `scales`.
#[inline(always)]
unsafe fn tile_of<S: Wide, const T: usize>(
    task: &Task<'_>,
    panel: &Panel,
    rows: Range<usize>,
    out: &RowsMut<'_>,
    scales: &Scales,
    at: usize,
) {
    let (w, segments) = (task.w, task.segments);
    let blocks = w.row_bytes() / BLOCK_BYTES;
    // A tile past the last row repeats it.
    let codes: [*const u8; 16] =
        std::array::from_fn(|r| w.row((rows.start + r).min(rows.end - 1)).as_ptr());
    let x = panel.q.as_ptr().cast::<i8>();
    let scales = scales.tile(at / ROWS).map(|tile| (tile.as_ptr(), scales.tile_stride()));
    let row = Row { task, panel, scales };
    // SAFETY: the caller's; pointers to whole rows of codes and whole panels.
    unsafe {
        let three = S::splat_byte(3);
        let mut partial = [[S::splat(0.0); T]; 8];
        if segments.halves() == 2 {
            for block in 0..blocks {
                let turned = turn::<S>(&codes, block);
                let x = x.add(block * BLOCK * T);
                let mut first = [S::zero(); T];
                let mut second = [S::zero(); T];
                shifted::<S, T, 0>(turned, three, x, &mut first);
                shifted::<S, T, 1>(turned, three, x, &mut first);
                row.join::<S, T>(2 * block, widened::<S, T>(first), &mut partial);
                if 2 * block + 1 < segments.count {
                    shifted::<S, T, 2>(turned, three, x, &mut second);
                    shifted::<S, T, 3>(turned, three, x, &mut second);
                    row.join::<S, T>(2 * block + 1, widened::<S, T>(second), &mut partial);
                }
            }
        } else {
            // Blocks whose products the narrow sums hold.
            let run = (S::NARROW_DOTS / 16).max(1);
            let blocks_a_segment = segments.len / BLOCK;
            for i in 0..segments.count {
                let end = ((i + 1) * blocks_a_segment).min(blocks);
                let mut block = i * blocks_a_segment;
                let mut sums = [S::zero(); T];
                while block < end {
                    let mut narrow = [S::zero(); T];
                    let stop = end.min(block.saturating_add(run));
                    for block in block..stop {
                        let turned = turn::<S>(&codes, block);
                        let x = x.add(block * BLOCK * T);
                        shifted::<S, T, 0>(turned, three, x, &mut narrow);
                        shifted::<S, T, 1>(turned, three, x, &mut narrow);
                        shifted::<S, T, 2>(turned, three, x, &mut narrow);
                        shifted::<S, T, 3>(turned, three, x, &mut narrow);
                    }
                    for t in 0..T {
                        sums[t] = S::widen(sums[t], narrow[t]);
                    }
                    block = stop;
                }
                row.join::<S, T>(i, sums, &mut partial);
            }
        }
        let mut row_scales = [0.0; 16];
        row_scales[..rows.len()].copy_from_slice(&w.row_scales[rows.clone()]);
        let row_scales = S::load_f32(row_scales.as_ptr());
        for t in 0..T.min(out.rows - panel.first) {
            let mut total = four::<S, T>(&partial, 0, t);
            if segments.partials == 8 {
                total = S::add(total, four::<S, T>(&partial, 4, t));
            }
            let mut values = [0.0; 16];
            S::store_f32(values.as_mut_ptr(), S::mul(total, row_scales));
            let out = out.part(panel.first + t, rows.clone());
            out.copy_from_slice(&values[..rows.len()]);
        }
    }
}

/// Four partial sums of token `t`, from the `i`th on, in pairs.
#[inline(always)]
unsafe fn four<S: Wide, const T: usize>(p: &[[S::Float; T]; 8], i: usize, t: usize) -> S::Float {
    // SAFETY: the caller's.
    unsafe { S::add(S::add(p[i][t], p[i + 1][t]), S::add(p[i + 2][t], p[i + 3][t])) }
}

/// What the integers of a segment of a tile are multiplied by.
struct Row<'a> {
    task: &'a Task<'a>,
    panel: &'a Panel,
    /// Those of the blocks, `[tile, unit, 4 rows]`, and the floats from one tile to the next.
    scales: Option<(*const f32, usize)>,
}

// No closures: they would be compiled without the instructions.
impl Row<'_> {
    /// Adds the sums of segment `i`, times its scales, to the partial sum whose turn it is.
    #[inline(always)]
    unsafe fn join<S: Wide, const T: usize>(
        &self,
        i: usize,
        sums: [S::Int; T],
        partial: &mut [[S::Float; T]; 8],
    ) {
        let (segments, at) = (self.task.segments, i * T);
        let partial = &mut partial[i % segments.partials];
        // SAFETY: the caller's; the panel has as many segments, the tile as many units.
        unsafe {
            let mut scale = S::splat(1.0);
            if let Some((tile, stride)) = self.scales {
                let unit = tile.add(i / segments.halves() * ROWS);
                scale = S::as_floats(S::load_lanes(unit.cast(), stride * size_of::<f32>()));
            }
            for t in 0..T {
                let sum = self.panel.sums.as_ptr().add(at + t);
                let sum = S::to_f32(S::sub(sums[t], S::splat_word(sum.cast())));
                let d = S::mul(S::splat(*self.panel.d.as_ptr().add(at + t)), scale);
                partial[t] = S::add(partial[t], S::mul(sum, d));
            }
        }
    }
}

/// A block of `4 · LANES` rows: the 32-bit lanes of register `j` are words `j` of the rows.
#[inline(always)]
unsafe fn turn<S: Wide>(codes: &[*const u8; 16], block: usize) -> [S::Int; 4] {
    let mut rows = [[codes[0]; 4]; 4];
    for (i, rows) in rows.iter_mut().enumerate() {
        for (l, row) in rows.iter_mut().enumerate().take(S::LANES) {
            *row = codes[4 * l + i].wrapping_add(block * BLOCK_BYTES);
        }
    }
    // SAFETY: the caller's: rows have that block.
    unsafe {
        S::turn([
            S::gather_lanes(rows[0]),
            S::gather_lanes(rows[1]),
            S::gather_lanes(rows[2]),
            S::gather_lanes(rows[3]),
        ])
    }
}

#[inline(always)]
unsafe fn shifted<S: Wide, const T: usize, const SHIFT: i32>(
    turned: [S::Int; 4],
    three: S::Int,
    x: *const i8,
    narrow: &mut [S::Int; T],
) {
    for j in 0..4 {
        // SAFETY: the caller's.
        unsafe {
            let codes = S::codes::<SHIFT>(turned[j], three);
            let x = x.add((SHIFT as usize * 16 + 4 * j) * T);
            for t in 0..T {
                narrow[t] = S::dot(narrow[t], codes, S::splat_word(x.add(4 * t)));
            }
        }
    }
}

#[inline(always)]
unsafe fn widened<S: Wide, const T: usize>(narrow: [S::Int; T]) -> [S::Int; T] {
    let mut sums = narrow;
    for sums in &mut sums {
        // SAFETY: the caller's.
        *sums = unsafe { S::widen(S::zero(), *sums) };
    }
    sums
}
