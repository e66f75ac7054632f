//! Which implementation of a kernel runs, and how its work is split over threads.

use super::kv_append::KvRows;
use super::matrix::{Dense, Ternary};
use super::quantize::QuantRows;
use super::rows::{RowsMut, RowsRef};
use super::threads::Threads;
use super::{attention, dense_linear, gated_act, quantize, rms_norm, ternary_linear};
use crate::plan::{ActQuant, Activation};

/// Instruction set of the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// The twins.
    Plain,
}

impl Isa {
    /// The best that this processor has.
    pub fn detect() -> Self {
        Isa::Plain
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Plain => "plain",
        }
    }
}

/// Fewest rows of `dim` values that are worth a task of their own.
pub(super) fn rows_a_task(dim: usize) -> usize {
    (16_384 / dim.max(1)).max(1)
}

/// Fewest weights that are worth a task of their own.
const WEIGHTS_A_TASK: usize = 65_536;

/// Keys and values of a layer; the first token of the step is at `pos`.
#[derive(Clone, Copy)]
pub(super) struct Cache<'a> {
    pub keys: &'a KvRows,
    pub values: &'a KvRows,
    pub pos: usize,
}

pub(super) fn rms_norm(_isa: Isa, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    rms_norm::rms_norm(x, weight, eps, out);
}

pub(super) fn quantize(_isa: Isa, rule: ActQuant, x: &[f32], q: &mut [i8], d: &mut [f32]) {
    quantize::quantize(rule, x, q, d);
}

pub(super) fn gated_act(_isa: Isa, act: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) {
    gated_act::gated_act(act, gate, up, out);
}

pub(super) fn attention(
    _isa: Isa,
    threads: &Threads,
    q: RowsRef<'_>,
    cache: Cache<'_>,
    heads: usize,
    scale: f32,
    out: &RowsMut<'_>,
) {
    threads.split(out.rows, 1, 1, |rows| {
        for t in rows {
            let positions = cache.pos + t + 1;
            // SAFETY: each row is one task's.
            let out = unsafe { out.row(t) };
            attention::attention(q.row(t), cache.keys, cache.values, positions, heads, scale, out);
        }
    });
}

pub(super) fn ternary_linear(
    _isa: Isa,
    threads: &Threads,
    x: &QuantRows,
    w: Ternary<'_>,
    out: &RowsMut<'_>,
) {
    threads.split(w.n, 16, WEIGHTS_A_TASK / w.k, |rows| {
        for t in 0..out.rows {
            let (q, d) = x.row(t);
            // SAFETY: each column is one task's.
            let out = unsafe { out.part(t, rows.clone()) };
            ternary_linear::ternary_linear(x.rule, q, d, w.rows(rows.clone()), out);
        }
    });
}

pub(super) fn ternary_linear_f32(
    _isa: Isa,
    threads: &Threads,
    x: RowsRef<'_>,
    w: Ternary<'_>,
    out: &RowsMut<'_>,
) {
    threads.split(w.n, 16, WEIGHTS_A_TASK / w.k, |rows| {
        for t in 0..out.rows {
            // SAFETY: each column is one task's.
            let out = unsafe { out.part(t, rows.clone()) };
            ternary_linear::ternary_linear_f32(x.row(t), w.rows(rows.clone()), out);
        }
    });
}

pub(super) fn dense_linear(
    _isa: Isa,
    threads: &Threads,
    x: RowsRef<'_>,
    w: Dense<'_>,
    out: &RowsMut<'_>,
) {
    threads.split(w.n, 16, WEIGHTS_A_TASK / w.k.max(1), |rows| {
        for t in 0..out.rows {
            // SAFETY: each column is one task's.
            let out = unsafe { out.part(t, rows.clone()) };
            dense_linear::dense_linear(x.row(t), w.rows(rows.clone()), out);
        }
    });
}
