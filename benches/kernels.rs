//! Speed of the processor's kernels on the shapes of BitNet-b1.58-2B-4T, each instruction set apart.
//!
//! `cargo bench --bench kernels` measures; `cargo test` runs every case once. A case is a plan
//! around one operation; only that operation is timed. Throughput counts the bytes of weights (or
//! of cache) that it reads, for many tokens the products.

use bitnet_rust::backend::{Backend, KvType, Outputs, RunOptions, Step};
use bitnet_rust::cpu::{Cpu, Isa};
use bitnet_rust::plan::*;
use bitnet_rust::synthetic;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pollster::block_on;
use std::time::Duration;

/// Embedding rows that feed the operation.
const VOCAB: u32 = 61;

/// A processor with a plan around one operation.
struct Case {
    cpu: Cpu,
    /// Its place in the plan.
    op: usize,
}

impl Case {
    /// `op` reads buffer 0, `[T, K]` (or its quantised form, 1) and writes buffer 2, `[T, N]`.
    fn new(isa: Isa, k: u32, n: u32, kind: Option<WeightKind>, context: u32, op: Op) -> Self {
        let f32_rows = |name, dim, rows| BufSpec { name, dim, kind: BufKind::F32, rows };
        let buffers = vec![
            f32_rows("x", k, Rows::Tokens),
            BufSpec { kind: BufKind::Quant(ActQuant::PerToken), ..f32_rows("q", k, Rows::Tokens) },
            f32_rows("y", n, Rows::Tokens),
            f32_rows("logits", VOCAB, Rows::Outputs),
        ];
        let table = WeightKind::Matrix { n: VOCAB, k, dtype: MatrixType::F32 };
        let weights = [Some(table), kind].into_iter().flatten();
        let x = Slice { buf: BufId(0), at: 0, dim: k };
        let ops = vec![
            Op::Embed { table: WeightId(0), out: BufId(0) },
            Op::Quantize { x, out: BufId(1) },
            op,
        ];
        let plan = Plan {
            buffers,
            weights: weights.map(|kind| WeightSpec { name: "w".into(), kind }).collect(),
            labels: ops.iter().map(|op| op.stem().to_string()).collect(),
            ops,
            rope: RopeSpec { layout: RopeLayout::HalfSplit, inv_freq: vec![1.0; 64], mscale: 1.0 },
            kv: KvSpec { layers: 1, kv_heads: 5, head_dim: 128 },
            vocab: VOCAB,
            logits: BufId(3),
        };
        let mut cpu = Cpu::with_isa(Some(1), isa).expect("one thread, instructions that it has");
        block_on(synthetic::load(&mut cpu, &plan)).expect("memory for one weight");
        let options = RunOptions { context, kv_type: KvType::F16, max_tokens: context };
        block_on(cpu.prepare(&plan, options)).expect("a valid plan");
        Case { cpu, op: plan.ops.len() - 1 }
    }

    /// Time of `runs` runs over `tokens` tokens at `pos`.
    fn time(&mut self, runs: u64, tokens: usize, pos: u32) -> Duration {
        let ids: Vec<u32> = (0..tokens as u32).map(|i| i % VOCAB).collect();
        let step = Step { tokens: &ids, pos, outputs: Outputs::Last };
        let ns: f64 =
            (0..runs).map(|_| self.cpu.profile(&step, 1).expect("a valid step")[self.op].ns).sum();
        Duration::from_nanos(ns as u64)
    }
}

/// The instruction sets worth measuring: not the twins.
fn isas() -> impl Iterator<Item = Isa> {
    Isa::all().into_iter().filter(|&isa| isa != Isa::Plain)
}

fn out(dim: u32) -> Slice {
    Slice { buf: BufId(2), at: 0, dim }
}

/// What the memory gives to one thread: the bound of everything that decodes.
fn memory(c: &mut Criterion) {
    let words: Vec<u64> = (0..16 << 20).collect();
    let mut group = c.benchmark_group("memory");
    group.throughput(Throughput::Bytes(words.len() as u64 * 8));
    group.bench_function("read 128 MiB", |b| {
        b.iter(|| words.iter().fold(0u64, |sum, &w| sum.wrapping_add(w)));
    });
}

fn ternary_linear(c: &mut Criterion) {
    for (n, k) in [(3840, 2560), (2560, 2560), (13_824, 2560), (2560, 6912)] {
        let mut group = c.benchmark_group(format!("ternary_linear/decode/{n}x{k}"));
        let kind = WeightKind::Ternary { n, k, block: None };
        group.throughput(Throughput::Bytes(kind.bytes()));
        for isa in isas() {
            let op = Op::TernaryLinear { x: BufId(1), weight: WeightId(1), out: out(n) };
            let mut case = Case::new(isa, k, n, Some(kind), 1, op);
            group.bench_function(isa.name(), |b| b.iter_custom(|runs| case.time(runs, 1, 0)));
        }
    }
    let (n, k, tokens) = (2560u32, 2560u32, 64u32);
    let mut group = c.benchmark_group(format!("ternary_linear/prefill {tokens}/{n}x{k}"));
    group.throughput(Throughput::Elements(u64::from(n) * u64::from(k) * u64::from(tokens)));
    for isa in isas() {
        let op = Op::TernaryLinear { x: BufId(1), weight: WeightId(1), out: out(n) };
        let kind = WeightKind::Ternary { n, k, block: None };
        let mut case = Case::new(isa, k, n, Some(kind), tokens, op);
        group.bench_function(isa.name(), |b| {
            b.iter_custom(|runs| case.time(runs, tokens as usize, 0));
        });
    }
}

fn dense_linear(c: &mut Criterion) {
    // An eighth of the head: well past the second-level cache.
    let (n, k) = (16_032, 2560);
    for (name, dtype) in [("q8", MatrixType::Q8), ("f16", MatrixType::F16)] {
        let mut group = c.benchmark_group(format!("dense_linear/decode/{name} {n}x{k}"));
        let kind = WeightKind::Matrix { n, k, dtype };
        group.throughput(Throughput::Bytes(kind.bytes()));
        for isa in isas() {
            let op = Op::DenseLinear { x: BufId(0), weight: WeightId(1), out: out(n) };
            let mut case = Case::new(isa, k, n, Some(kind), 1, op);
            group.bench_function(isa.name(), |b| b.iter_custom(|runs| case.time(runs, 1, 0)));
        }
    }
}

fn attention(c: &mut Criterion) {
    for context in [256u32, 1024] {
        let mut group = c.benchmark_group(format!("attention/decode/context {context}"));
        group.throughput(Throughput::Bytes(u64::from(context) * 2 * 5 * 128 * 2));
        for isa in isas() {
            let q = Slice { buf: BufId(0), at: 0, dim: 2560 };
            let op = Op::Attention { q, layer: 0, heads: 20, scale: 0.09, out: out(2560) };
            let mut case = Case::new(isa, 2560, 2560, None, context, op);
            // Positions that nobody wrote hold zeros, which take as long as others.
            case.time(1, context as usize - 1, 0);
            group.bench_function(isa.name(), |b| {
                b.iter_custom(|runs| case.time(runs, 1, context - 1));
            });
        }
    }
}

fn elementwise(c: &mut Criterion) {
    let (k, half) = (6912, 3456);
    let part = |at, dim| Slice { buf: BufId(0), at, dim };
    let norm = Op::RmsNorm { x: part(0, k), weight: WeightId(1), out: out(k), eps: 1e-5 };
    let (gate, up) = (part(0, half), part(half, half));
    let gated = |act| Op::GatedAct { gate, up, act, out: out(half) };
    for (name, n, op) in [
        ("rms_norm/6912", k, norm),
        ("quantize/6912", k, Op::Quantize { x: part(0, k), out: BufId(1) }),
        ("gated_act/relu2 3456", half, gated(Activation::Relu2)),
        ("gated_act/silu 3456", half, gated(Activation::Silu)),
    ] {
        let mut group = c.benchmark_group(name);
        group.throughput(Throughput::Elements(u64::from(n)));
        for isa in isas() {
            let kind = WeightKind::Vector { len: k };
            let mut case = Case::new(isa, k, n, Some(kind), 1, op.clone());
            group.bench_function(isa.name(), |b| b.iter_custom(|runs| case.time(runs, 1, 0)));
        }
    }
}

criterion_group! {
    name = kernels;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = memory, ternary_linear, dense_linear, attention, elementwise
}
criterion_main!(kernels);
