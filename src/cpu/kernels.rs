//! Which implementation of a kernel runs, and how its work is split over threads.

use super::kv_append::KvRows;
use super::matrix::{Dense, Ternary, Values};
use super::quantize::QuantRows;
use super::rows::{RowsMut, RowsRef};
use super::simd::elementwise;
use super::simd::{self, Table};
use super::threads::Threads;
use super::{attention, dense_linear, gated_act, quantize, rms_norm, ternary_linear, wide};
use crate::backend::BackendError;
use crate::plan::{ActQuant, Activation};

/// Instruction set of the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Isa {
    /// The twins.
    Plain,
    /// Loops shaped for vectors, for what the crate was compiled for.
    Portable,
    /// AVX2 with FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX2 with 256-bit VNNI.
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    /// AVX-512 with VNNI.
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    /// NEON.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// NEON with the dot product instructions.
    #[cfg(target_arch = "aarch64")]
    NeonDotprod,
    /// WebAssembly's simd128, with relaxed SIMD where the crate was compiled for it.
    #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
    Simd128,
    /// Relaxed SIMD whose dot product of bytes is one instruction of the processor.
    #[cfg(all(target_arch = "wasm32", target_feature = "relaxed-simd"))]
    RelaxedDot,
}

impl Isa {
    /// The best that this processor has.
    pub fn detect() -> Self {
        Isa::all().last().copied().unwrap_or(Isa::Portable)
    }

    /// The one of this processor's whose [`name`](Isa::name) is `name`.
    ///
    /// # Errors
    /// [`BackendError::Unsupported`] when it has none, with the names that there are.
    pub fn named(name: &str) -> Result<Self, BackendError> {
        let all = Isa::all();
        all.iter().copied().find(|isa| isa.name() == name).ok_or_else(|| {
            let names: Vec<_> = all.iter().map(|isa| isa.name()).collect();
            let reason = format!("no instructions {name:?}; there are {}", names.join(", "));
            BackendError::Unsupported { reason }
        })
    }

    /// All that this processor has, the best last.
    pub fn all() -> Vec<Self> {
        #[allow(unused_mut)] // Elsewhere nothing is added.
        let mut all = vec![Isa::Plain, Isa::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            if has!("avx2") && has!("fma") && has!("f16c") {
                all.push(Isa::Avx2);
                if has!("avxvnni") {
                    all.push(Isa::AvxVnni);
                }
                let wide = has!("avx512f") && has!("avx512bw") && has!("avx512dq");
                if wide && has!("avx512vl") && has!("avx512vnni") {
                    all.push(Isa::Avx512Vnni);
                }
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            use std::arch::is_aarch64_feature_detected as has;
            if has!("neon") {
                all.push(Isa::Neon);
                if has!("dotprod") {
                    all.push(Isa::NeonDotprod);
                }
            }
        }
        #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
        all.push(Isa::Simd128);
        #[cfg(all(target_arch = "wasm32", target_feature = "relaxed-simd"))]
        if simd::wasm::has_relaxed_dot() {
            all.push(Isa::RelaxedDot);
        }
        all
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Plain => "plain",
            Isa::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => "avx-vnni",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => "avx512-vnni",
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => "neon",
            #[cfg(target_arch = "aarch64")]
            Isa::NeonDotprod => "neon-dotprod",
            #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
            Isa::Simd128 if cfg!(target_feature = "relaxed-simd") => "relaxed-simd",
            #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
            Isa::Simd128 => "simd128",
            #[cfg(all(target_arch = "wasm32", target_feature = "relaxed-simd"))]
            Isa::RelaxedDot => "relaxed-simd-dot",
        }
    }

    /// Its kernels in intrinsics, where it has them.
    fn table(self) -> Option<&'static Table> {
        match self {
            Isa::Plain | Isa::Portable => None,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => Some(&simd::x86::AVX2),
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => Some(&simd::x86::AVX_VNNI),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => Some(&simd::x86::AVX512_VNNI),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => Some(&simd::neon::NEON),
            #[cfg(target_arch = "aarch64")]
            Isa::NeonDotprod => Some(&simd::neon::NEON_DOTPROD),
            #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
            Isa::Simd128 => Some(&simd::wasm::SIMD128),
            #[cfg(all(target_arch = "wasm32", target_feature = "relaxed-simd"))]
            Isa::RelaxedDot => Some(&simd::wasm::RELAXED_DOT),
        }
    }
}

/// Runs the loops of an [`Isa`]: the twin, the portable ones, or those of a [`Table`].
macro_rules! dispatch {
    ($isa:expr, $plain:expr, $portable:expr, $table:ident => $fast:expr $(,)?) => {{
        if let Some($table) = $isa.table() {
            return $fast;
        }
        match $isa {
            Isa::Plain => $plain,
            _ => $portable,
        }
    }};
}

/// Fewest rows of `dim` values that are worth a task of their own.
pub(super) fn rows_a_task(dim: usize) -> usize {
    (16_384 / dim.max(1)).max(1)
}

/// Fewest weights that are worth a task of their own.
const WEIGHTS_A_TASK: usize = 65_536;

/// Tokens that share a tile of keys and values.
const TOKENS_A_TILE: usize = 8;

/// Attention of one token: q, keys, values, positions, heads, scale, out.
type AttendOne = fn(&[f32], &KvRows, &KvRows, usize, usize, f32, &mut [f32]);

/// Keys and values of a layer; the first token of the step is at `pos`.
#[derive(Clone, Copy)]
pub(super) struct Cache<'a> {
    pub keys: &'a KvRows,
    pub values: &'a KvRows,
    pub pos: usize,
}

pub(super) fn rms_norm(isa: Isa, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    dispatch!(
        isa,
        rms_norm::rms_norm(x, weight, eps, out),
        elementwise::rms_norm(x, weight, eps, out),
        // SAFETY: `Cpu` accepts only instructions that the processor has; here and below.
        fast => unsafe { (fast.rms_norm)(x, weight, eps, out) },
    );
}

pub(super) fn quantize(isa: Isa, rule: ActQuant, x: &[f32], q: &mut [i8], d: &mut [f32]) {
    dispatch!(
        isa,
        quantize::quantize(rule, x, q, d),
        elementwise::quantize(rule, x, q, d),
        // SAFETY: as above.
        fast => unsafe { (fast.quantize)(rule, x, q, d) },
    );
}

pub(super) fn gated_act(isa: Isa, act: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) {
    dispatch!(
        isa,
        gated_act::gated_act(act, gate, up, out),
        elementwise::gated_act(act, gate, up, out),
        // SAFETY: as above.
        fast => unsafe { (fast.gated_act)(act, gate, up, out) },
    );
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
    let each_token = |one: AttendOne| {
        threads.split(out.rows, 1, 1, |rows| {
            for t in rows {
                let (positions, Cache { keys, values, .. }) = (cache.pos + t + 1, cache);
                // SAFETY: each row is one task's.
                one(q.row(t), keys, values, positions, heads, scale, unsafe { out.row(t) });
            }
        });
    };
    dispatch!(isa, each_token(attention::attention), each_token(wide::attention), fast => {
        let head_dim = q.dim / heads;
        let kv_heads = cache.keys.dim / head_dim;
        let task = simd::attention::Task { q, heads, head_dim, scale };
        let token_tiles = out.rows.div_ceil(TOKENS_A_TILE);
        // Below a few thousand multiplications a task costs more to hand out than to do.
        let work = (cache.pos + out.rows) * out.rows.min(TOKENS_A_TILE) * q.dim / kv_heads;
        threads.split(kv_heads * token_tiles, 1, (16_384 / work.max(1)).max(1), |tasks| {
            for i in tasks {
                let first = i / kv_heads * TOKENS_A_TILE;
                let tokens = first..(first + TOKENS_A_TILE).min(out.rows);
                // SAFETY: as above; each task writes its own heads of its own rows.
                unsafe { (fast.attention)(&task, cache, i % kv_heads, tokens, out) }
            }
        });
    });
}

pub(super) fn ternary_linear(
    isa: Isa,
    threads: &Threads,
    x: &QuantRows,
    w: Ternary<'_>,
    out: &RowsMut<'_>,
) {
    let (least, tokens) = (WEIGHTS_A_TASK / w.k, out.rows);
    dispatch!(
        isa,
        threads.split(w.n, 16, least, |rows| {
            for t in 0..tokens {
                let (q, d) = x.row(t);
                // SAFETY: each column is one task's.
                let out = unsafe { out.part(t, rows.clone()) };
                ternary_linear::ternary_linear(x.rule, q, d, w.rows(rows.clone()), out);
            }
        }),
        threads.split(w.n, 16, least, |rows| {
            let (w, first) = (w.rows(rows.clone()), rows.start);
            // SAFETY: each column is one task's.
            let mut put = |t, n, y| unsafe { out.part(t, first + n..first + n + 1) }[0] = y;
            wide::ternary_linear(x, tokens, w, &mut put);
        }),
        fast => {
            if let Some(gemm) = &fast.ternary_gemm && tokens >= simd::ternary_gemm::LEAST_TOKENS {
                let task = simd::ternary_gemm::Task::new(x, w, gemm.tokens, threads);
                return threads.split(w.n, 16, least, |rows| {
                    // SAFETY: as above; each column is one task's.
                    unsafe { (gemm.run)(&task, rows, out) }
                });
            }
            let task = simd::ternary_linear::Task::new(x, w, fast.lanes, threads);
            threads.split(w.n, 4, least, |rows| {
                // SAFETY: as above.
                unsafe { (fast.ternary_linear)(&task, rows, out) }
            });
        },
    );
}

pub(super) fn ternary_linear_f32(
    isa: Isa,
    threads: &Threads,
    x: RowsRef<'_>,
    w: Ternary<'_>,
    out: &RowsMut<'_>,
) {
    threads.split(w.n, 4, WEIGHTS_A_TASK / w.k, |rows| {
        if isa == Isa::Plain {
            for t in 0..out.rows {
                // SAFETY: each column is one task's.
                let out = unsafe { out.part(t, rows.clone()) };
                ternary_linear::ternary_linear_f32(x.row(t), w.rows(rows.clone()), out);
            }
            return;
        }
        // Rows are widened to f32 a few at a time and go through the dense kernel.
        let mut values = vec![0.0f32; 4 * w.k];
        for start in rows.clone().step_by(4) {
            let rows = start..(start + 4).min(rows.end);
            for (n, values) in rows.clone().zip(values.chunks_exact_mut(w.k)) {
                for (k, v) in values.iter_mut().enumerate() {
                    *v = w.unscaled(n, k) * w.row_scales[n];
                }
            }
            let few =
                Dense { n: rows.len(), k: w.k, values: Values::F32(&values[..rows.len() * w.k]) };
            dense_linear(isa, threads, x, few, &out.columns(rows));
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
    let least = WEIGHTS_A_TASK / w.k.max(1);
    dispatch!(
        isa,
        threads.split(w.n, 16, least, |rows| {
            for t in 0..out.rows {
                // SAFETY: each column is one task's.
                let out = unsafe { out.part(t, rows.clone()) };
                dense_linear::dense_linear(x.row(t), w.rows(rows.clone()), out);
            }
        }),
        threads.split(w.n, 16, least, |rows| {
            let (w, first) = (w.rows(rows.clone()), rows.start);
            // SAFETY: each column is one task's.
            let mut put = |t, n, y| unsafe { out.part(t, first + n..first + n + 1) }[0] = y;
            wide::dense_linear(x, out.rows, w, &mut put);
        }),
        fast => {
            let task = simd::dense_linear::Task::new(x, w);
            threads.split(w.n, 16, least, |rows| {
                // SAFETY: as above; each column is one task's.
                unsafe { (fast.dense_linear)(&task, rows, out) }
            });
        },
    );
}
