//! How a row falls into runs of weights that share their scales, and those scales as the kernels
//! load them.

use super::registers::Simd;
use crate::cpu::matrix::Ternary;
use crate::cpu::quantize::QuantRows;
use crate::cpu::ternary_linear::{partials, segment};
use crate::ternary::BLOCK;
use std::ops::Range;

/// Rows whose scales lie side by side: as many as one `sum4` joins.
pub(super) const ROWS: usize = 4;

/// The runs of a product: see [`segment`].
#[derive(Clone, Copy)]
pub(super) struct Segments {
    /// Weights of a run.
    pub len: usize,
    /// Runs of a row.
    pub count: usize,
    /// Partial sums of a row.
    pub partials: usize,
}

impl Segments {
    pub fn new(x: &QuantRows, w: &Ternary<'_>) -> Self {
        let len = segment(x.rule, w);
        Segments { len, count: w.k.div_ceil(len), partials: partials(len) }
    }

    /// Runs that one block of codes holds: 2 where they are shorter than it.
    pub fn halves(&self) -> usize {
        (BLOCK / self.len).max(1)
    }

    /// Runs, or whole blocks where a run is shorter: whole registers of them.
    pub fn units(&self) -> usize {
        self.count.div_ceil(self.halves()).next_multiple_of(4)
    }

    /// For each run of token `t` its number, the sum of its `q` and its `d`.
    pub fn of(self, x: &QuantRows, k: usize, t: usize) -> impl Iterator<Item = (usize, i32, f32)> {
        let (q, d) = x.row(t);
        let group = x.rule.group().map_or(usize::MAX, |g| g as usize);
        let runs = q[..k.next_multiple_of(BLOCK)].chunks(self.len).take(self.count);
        runs.enumerate().map(move |(i, run)| {
            let sum = run.iter().map(|&q| i32::from(q)).sum();
            (i, sum, d[i * self.len / group])
        })
    }
}

/// Block scales of some rows as f32, `[tile of 4 rows, unit, 4 rows]`.
#[derive(Default)]
pub(super) struct Scales {
    values: Vec<f32>,
    /// The same as f16 bits.
    bits: Vec<u16>,
    units: usize,
}

impl Scales {
    /// Those of `rows`; whole registers of tiles, finite past the rows'.
    #[inline(always)]
    pub unsafe fn fill<S: Simd>(
        &mut self,
        w: &Ternary<'_>,
        segments: Segments,
        rows: Range<usize>,
    ) {
        let Some((len, all)) = w.blocks else { return };
        let (repeats, per_row) = (len / segments.len.max(BLOCK), w.k.div_ceil(len));
        self.units = segments.units();
        let tile = self.units * ROWS;
        let tiles = rows.len().div_ceil(ROWS).next_multiple_of(4);
        self.bits.resize(tiles * tile, 0);
        self.values.resize(tiles * tile, 0.0);
        for (n, places) in rows.clone().step_by(ROWS).zip(self.bits.chunks_exact_mut(tile)) {
            // A tile past the last row repeats it.
            let row = |r: usize| &all[(n + r).min(rows.end - 1) * per_row..][..per_row];
            let (a, b, c, d) = (row(0), row(1), row(2), row(3));
            for i in 0..per_row {
                let four = [a[i], b[i], c[i], d[i]];
                if repeats == 1 {
                    places[i * ROWS..][..ROWS].copy_from_slice(&four);
                } else {
                    let units = places.chunks_exact_mut(ROWS);
                    units.skip(i * repeats).take(repeats).for_each(|u| u.copy_from_slice(&four));
                }
            }
        }
        // Tiles are whole registers.
        let values = self.values.chunks_exact_mut(S::FLOATS);
        for (values, bits) in values.zip(self.bits.chunks_exact(S::FLOATS)) {
            // SAFETY: the caller's; as many halves and floats as a register has.
            unsafe { S::store_f32(values.as_mut_ptr(), S::load_f16(bits.as_ptr())) };
        }
    }

    /// Floats from one tile to the next.
    pub fn tile_stride(&self) -> usize {
        self.units * ROWS
    }

    /// Those of tile `i`, `[unit, 4 rows]`, and of the tiles after it; `None` where blocks have none.
    pub fn tile(&self, i: usize) -> Option<&[f32]> {
        if self.values.is_empty() { None } else { self.values.get(i * self.tile_stride()..) }
    }
}
