//! Which implementation of a kernel runs, and how its work is split over threads.

use super::kv_append::KvRows;
use super::matrix::{Dense, Ternary};
use super::quantize::QuantRows;
use super::rows::{RowsMut, RowsRef};
use super::threads::Threads;
use super::{attention, dense_linear, gated_act, quantize, rms_norm, ternary_linear, wide};
use crate::plan::{ActQuant, Activation};

/// Instruction set of the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// The twins.
    Plain,
    /// The wide loops, for what the crate was compiled for.
    Portable,
    /// The wide loops, for AVX2.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// The wide loops, for AVX-512.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Isa {
    /// The best that this processor has.
    pub fn detect() -> Self {
        Isa::all().last().copied().unwrap_or(Isa::Portable)
    }

    /// All that this processor has, the best last.
    pub fn all() -> Vec<Self> {
        #[cfg_attr(not(target_arch = "x86_64"), allow(unused_mut))]
        let mut all = vec![Isa::Plain, Isa::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            if has!("avx2") {
                all.push(Isa::Avx2);
                if has!("avx512f") && has!("avx512bw") && has!("avx512vl") {
                    all.push(Isa::Avx512);
                }
            }
        }
        all
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Plain => "plain",
            Isa::Portable if cfg!(target_feature = "simd128") => "simd128",
            Isa::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => "avx512",
        }
    }
}

/// Calls a wide kernel for `isa`, or `plain`.
macro_rules! wide {
    ($isa:expr, $name:ident($($arg:expr),* $(,)?), $plain:expr) => {
        match $isa {
            Isa::Plain => $plain,
            Isa::Portable => wide::portable::$name($($arg),*),
            // SAFETY: `Isa::all` has seen that the processor has these instructions.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { wide::avx2::$name($($arg),*) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { wide::avx512::$name($($arg),*) },
        }
    };
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

pub(super) fn quantize(isa: Isa, rule: ActQuant, x: &[f32], q: &mut [i8], d: &mut [f32]) {
    wide!(isa, quantize(rule, x, q, d), quantize::quantize(rule, x, q, d));
}

pub(super) fn gated_act(_isa: Isa, act: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) {
    gated_act::gated_act(act, gate, up, out);
}

pub(super) fn attention(
    isa: Isa,
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
            let (q, Cache { keys, values, .. }) = (q.row(t), cache);
            wide!(
                isa,
                attention(q, keys, values, positions, heads, scale, out),
                attention::attention(q, keys, values, positions, heads, scale, out)
            );
        }
    });
}

pub(super) fn ternary_linear(
    isa: Isa,
    threads: &Threads,
    x: &QuantRows,
    w: Ternary<'_>,
    out: &RowsMut<'_>,
) {
    threads.split(w.n, 16, WEIGHTS_A_TASK / w.k, |rows| {
        let (w, first) = (w.rows(rows.clone()), rows.start);
        // SAFETY: each column is one task's.
        let mut put = |t, n, y| unsafe { out.part(t, first + n..first + n + 1) }[0] = y;
        wide!(isa, ternary_linear(x, out.rows, w, &mut put), {
            for t in 0..out.rows {
                let (q, d) = x.row(t);
                // SAFETY: each column is one task's.
                let out = unsafe { out.part(t, rows.clone()) };
                ternary_linear::ternary_linear(x.rule, q, d, w, out);
            }
        });
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
    isa: Isa,
    threads: &Threads,
    x: RowsRef<'_>,
    w: Dense<'_>,
    out: &RowsMut<'_>,
) {
    threads.split(w.n, 16, WEIGHTS_A_TASK / w.k.max(1), |rows| {
        let (w, first) = (w.rows(rows.clone()), rows.start);
        // SAFETY: each column is one task's.
        let mut put = |t, n, y| unsafe { out.part(t, first + n..first + n + 1) }[0] = y;
        wide!(isa, dense_linear(x, out.rows, w, &mut put), {
            for t in 0..out.rows {
                // SAFETY: each column is one task's.
                let out = unsafe { out.part(t, rows.clone()) };
                dense_linear::dense_linear(x.row(t), w, out);
            }
        });
    });
}
