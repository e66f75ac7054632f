//! The backend as a whole, on a small random model of one layer.

use super::*;
use crate::backend::KvType;
use crate::plan::*;
use crate::sampling::{Sampling, threefry2x32};
use pollster::block_on;

const VOCAB: u32 = 96;
const DIM: u32 = 128;
const HEAD_DIM: u32 = 32;

/// x → norm → quantise → qkv → rope → cache → attention → + → norm → head.
fn plan(rule: ActQuant, block: Option<u32>) -> Plan {
    let f32_rows = |name, dim, rows| BufSpec { name, dim, kind: BufKind::F32, rows };
    let tokens = |name, dim| f32_rows(name, dim, Rows::Tokens);
    let quant = BufSpec { name: "q", dim: DIM, kind: BufKind::Quant(rule), rows: Rows::Tokens };
    let buffers = vec![
        tokens("x", DIM),
        tokens("normed", DIM),
        quant,
        tokens("qkv", 2 * DIM),
        tokens("attn", DIM),
        f32_rows("last", DIM, Rows::Outputs),
        f32_rows("logits", VOCAB, Rows::Outputs),
    ];
    let weight = |name: &str, kind| WeightSpec { name: name.into(), kind };
    let weights = vec![
        weight("embd", WeightKind::Matrix { n: VOCAB, k: DIM, dtype: MatrixType::F16 }),
        weight("norm", WeightKind::Vector { len: DIM }),
        weight("qkv", WeightKind::Ternary { n: 2 * DIM, k: DIM, block }),
        weight("head", WeightKind::Matrix { n: VOCAB, k: DIM, dtype: MatrixType::Q8 }),
    ];
    let (b, w) = (BufId, WeightId);
    let whole = |id: u32| Slice { buf: b(id), at: 0, dim: DIM };
    let part = |at, dim| Slice { buf: b(3), at, dim };
    let ops = vec![
        Op::Embed { table: w(0), out: b(0) },
        Op::RmsNorm { x: whole(0), weight: w(1), out: whole(1), eps: 1e-5 },
        Op::Quantize { x: whole(1), out: b(2) },
        Op::TernaryLinear { x: b(2), weight: w(2), out: part(0, 2 * DIM) },
        Op::Rope { x: part(0, DIM + DIM / 2), head_dim: HEAD_DIM },
        Op::KvAppend { k: part(DIM, DIM / 2), v: part(DIM + DIM / 2, DIM / 2), layer: 0 },
        Op::Attention { q: part(0, DIM), layer: 0, heads: 4, scale: 0.2, out: whole(4) },
        Op::Add { x: b(0), y: b(4) },
        Op::TakeOutputs { x: b(0), out: b(5) },
        Op::RmsNorm { x: whole(5), weight: w(1), out: whole(5), eps: 1e-5 },
        Op::DenseLinear { x: b(5), weight: w(3), out: Slice { buf: b(6), at: 0, dim: VOCAB } },
    ];
    Plan {
        labels: ops.iter().map(|op| op.stem().to_string()).collect(),
        rope: RopeSpec {
            layout: RopeLayout::HalfSplit,
            inv_freq: (0..16).map(|i| 0.5f32.powi(i)).collect(),
            mscale: 1.0,
        },
        kv: KvSpec { layers: 1, kv_heads: 2, head_dim: HEAD_DIM },
        vocab: VOCAB,
        logits: b(6),
        buffers,
        weights,
        ops,
    }
}

fn random(key: u32, i: usize) -> u32 {
    threefry2x32([key, 5], [i as u32, 0])[0]
}

fn bits(key: u32, n: usize, value: impl Fn(f32) -> u16) -> Vec<u8> {
    (0..n).flat_map(|i| value(random(key, i) as f32 / u32::MAX as f32).to_le_bytes()).collect()
}

fn cpu(rule: ActQuant, block: Option<u32>, isa: Isa, kv_type: KvType, context: u32) -> Cpu {
    load(Cpu::with_isa(Some(2), isa).unwrap(), rule, block, kv_type, context)
}

/// Puts the model on `cpu`.
pub(super) fn load(
    mut cpu: Cpu,
    rule: ActQuant,
    block: Option<u32>,
    kv_type: KvType,
    context: u32,
) -> Cpu {
    let plan = plan(rule, block);
    block_on(cpu.allocate(&plan.weights)).unwrap();
    for (id, spec) in (0..).map(WeightId).zip(&plan.weights) {
        for part in WeightPart::ALL {
            let n = spec.kind.part_bytes(part) as usize;
            let bytes = match (spec.kind, part) {
                (_, WeightPart::BlockScales) => {
                    bits(9, n / 2, |u| half::f16::from_f32(u * 0.01 + 0.01).to_bits())
                }
                (WeightKind::Matrix { dtype: MatrixType::F16, .. }, _) => {
                    bits(8, n / 2, |u| half::f16::from_f32(u - 0.5).to_bits())
                }
                (WeightKind::Vector { .. }, _) | (_, WeightPart::RowScales) => {
                    (0..n / 4).flat_map(|i| (1.0 + i as f32 / 100.0).to_le_bytes()).collect()
                }
                _ => (0..n).map(|i| (random(id.0, i) % 81) as u8).collect::<Vec<_>>(),
            };
            cpu.write_weight(id, part, 0, &bytes).unwrap();
        }
    }
    block_on(cpu.prepare(&plan, RunOptions { context, kv_type, max_tokens: 8 })).unwrap();
    cpu
}

fn default_cpu() -> Cpu {
    cpu(ActQuant::PerToken, None, Isa::detect(), KvType::F32, 64)
}

pub(super) fn forward(cpu: &mut Cpu, tokens: &[u32], pos: u32, outputs: Outputs) -> Vec<f32> {
    block_on(cpu.forward(Step { tokens, pos, outputs })).unwrap();
    block_on(cpu.logits()).unwrap()
}

fn nmse(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |v: f64| v * v;
    let error: f64 = a.iter().zip(b).map(|(&a, &b)| square(f64::from(a) - f64::from(b))).sum();
    error / b.iter().map(|&b| square(f64::from(b))).sum::<f64>()
}

pub(super) const IDS: [u32; 8] = [3, 14, 15, 92, 65, 35, 89, 7];

#[test]
fn chunks_and_single_tokens_give_the_same_logits() {
    let mut cpu = default_cpu();
    let all = forward(&mut cpu, &IDS, 0, Outputs::All);
    assert_eq!(all.len(), 8 * VOCAB as usize);
    let mut apart = forward(&mut cpu, &IDS[..3], 0, Outputs::All);
    for (pos, &id) in IDS.iter().enumerate().skip(3) {
        apart.extend(forward(&mut cpu, &[id], pos as u32, Outputs::Last));
    }
    assert!(nmse(&apart, &all) < 1e-10, "{}", nmse(&apart, &all));
    assert!(forward(&mut cpu, &IDS[..2], 0, Outputs::None).is_empty());
    assert_eq!(forward(&mut cpu, &IDS[2..], 2, Outputs::Last).len(), VOCAB as usize);
}

#[test]
fn cache_types_stay_close() {
    let run = |kv_type| {
        let mut cpu = cpu(ActQuant::PerToken, None, Isa::Plain, kv_type, 64);
        forward(&mut cpu, &IDS, 0, Outputs::All)
    };
    let exact = run(KvType::F32);
    let (f16, q8) = (nmse(&run(KvType::F16), &exact), nmse(&run(KvType::Q8), &exact));
    assert!(f16 > 0.0 && f16 < 1e-6, "{f16}");
    assert!(q8 > f16 && q8 < 1e-3, "{q8}");
}

#[test]
fn fast_kernels_follow_the_twins() {
    for rule in [ActQuant::PerToken, ActQuant::Block256, ActQuant::Block32] {
        for block in [None, Some(64), Some(128), Some(256)] {
            for kv_type in [KvType::F32, KvType::F16, KvType::Q8] {
                let run =
                    |isa| forward(&mut cpu(rule, block, isa, kv_type, 8), &IDS, 0, Outputs::All);
                let plain = run(Isa::Plain);
                for isa in Isa::all() {
                    let error = nmse(&run(isa), &plain);
                    assert!(error < 1e-4, "{isa:?} {rule:?} {block:?} {kv_type:?}: {error}");
                }
            }
        }
    }
}

/// Rows of a whole buffer of f32.
fn rows_ref(x: &[f32], dim: usize) -> rows::RowsRef<'_> {
    let slice = Slice { buf: BufId(0), at: 0, dim: dim as u32 };
    rows::RowsRef::new(x, dim, slice, x.len() / dim)
}

fn rows_mut(x: &mut [f32], dim: usize) -> rows::RowsMut<'_> {
    let (slice, n) = (Slice { buf: BufId(0), at: 0, dim: dim as u32 }, x.len() / dim);
    rows::RowsMut::new(x, dim, slice, n)
}

fn floats(key: u32, n: usize) -> Vec<f32> {
    (0..n).map(|i| random(key, i) as f32 / u32::MAX as f32 * 4.0 - 2.0).collect()
}

#[test]
fn instructions_are_found_by_name() {
    for isa in Isa::all() {
        assert_eq!(Isa::named(isa.name()), Ok(isa));
    }
    let error = Isa::named("mmx").unwrap_err().to_string();
    assert!(error.contains("\"mmx\"; there are plain, portable"), "{error}");
}

#[test]
fn ternary_linear_is_bit_for_bit_the_twin() {
    let threads = Threads::new(Some(2)).unwrap();
    let shapes = [
        (1, 32, 1),
        (5, 96, 2),
        (17, 320, 3),
        (4, 256, 6),
        (66, 2560, 13),
        (3, 8640, 7),
        (20, 192, 37),
        (68, 576, 1),
    ];
    for (key, (n, k, tokens)) in (0..).zip(shapes) {
        let codes: Vec<u8> =
            (0..n * crate::ternary::row_bytes(k)).map(|i| random(key, i) as u8).collect();
        let row_scales = floats(key + 50, n);
        for block in [None, Some(64), Some(128), Some(256)] {
            let scales: Vec<u16> = floats(key + 60, n * k.div_ceil(block.unwrap_or(k)))
                .into_iter()
                .map(|v| half::f16::from_f32(v).to_bits())
                .collect();
            let blocks = block.map(|len| (len, scales.as_slice()));
            let w = matrix::Ternary { n, k, codes: &codes, row_scales: &row_scales, blocks };
            for rule in [ActQuant::PerToken, ActQuant::Block256, ActQuant::Block32] {
                let mut x = quantize::QuantRows::new(rule, k);
                x.resize(tokens).unwrap();
                x.quantize(Isa::Plain, &threads, rows_ref(&floats(key + 70, tokens * k), k));
                x.q[0] = -128;
                let run = |isa| {
                    let mut out = vec![f32::NAN; tokens * n];
                    kernels::ternary_linear(isa, &threads, &x, w, &rows_mut(&mut out, n));
                    out.iter().map(|v| v.to_bits()).collect::<Vec<_>>()
                };
                let twin = run(Isa::Plain);
                for isa in Isa::all() {
                    assert_eq!(run(isa), twin, "{isa:?} {rule:?} {block:?} [{n}, {k}] × {tokens}");
                }
            }
        }
    }
}

#[test]
fn narrow_sums_do_not_overflow() {
    let threads = Threads::new(Some(1)).unwrap();
    let (n, k) = (4, 65_536);
    let codes = vec![0xff; n * crate::ternary::row_bytes(k)];
    let w = matrix::Ternary { n, k, codes: &codes, row_scales: &[1.0; 4], blocks: None };
    for value in [-128i8, 127] {
        for tokens in [1, 5] {
            let mut x = quantize::QuantRows::new(ActQuant::PerToken, k);
            x.resize(tokens).unwrap();
            x.q.fill(value);
            x.d.fill(1.0);
            for isa in Isa::all() {
                let mut out = vec![0.0; tokens * n];
                kernels::ternary_linear(isa, &threads, &x, w, &rows_mut(&mut out, n));
                let expected = f32::from(value) * 2.0 * k as f32;
                assert_eq!(out, vec![expected; tokens * n], "{isa:?} {tokens}");
            }
        }
    }
}

#[test]
fn heads_of_int8_take_any_activation() {
    let threads = Threads::new(Some(1)).unwrap();
    let (n, k) = (5, 64);
    let (q, d) = (vec![-128i8; n * k], vec![half::f16::ONE.to_bits(); n * k / 32]);
    let w = matrix::Dense { n, k, values: matrix::Values::Q8(&q, &d) };
    for isa in Isa::all() {
        let run = |x: &[f32]| {
            let mut out = vec![f32::NAN; n];
            kernels::dense_linear(isa, &threads, rows_ref(x, k), w, &rows_mut(&mut out, n));
            out
        };
        // The largest sums, of either sign; nothing; what int16 cannot scale.
        for value in [1.0f32, -1.0, 0.0, 1e30, 1e-41] {
            let (out, exact) = (run(&vec![value; k]), f64::from(value) * -128.0 * k as f64);
            let near = |&y: &f32| (f64::from(y) - exact).abs() <= 1e-4 * exact.abs() + 1e-36;
            assert!(out.iter().all(near), "{isa:?} {value}: {out:?}");
        }
        for bad in [f32::NAN, f32::INFINITY] {
            let mut x = vec![1.0; k];
            x[k - 1] = bad;
            assert!(run(&x).iter().all(|y| !y.is_finite()), "{isa:?} {bad}");
        }
    }
}

#[test]
fn quantize_is_bit_for_bit_the_twin() {
    for rule in [ActQuant::PerToken, ActQuant::Block256, ActQuant::Block32] {
        for k in [1, 31, 64, 300, 2560] {
            let mut x = floats(k as u32, k);
            x[k / 2] = [0.0, -2.0, f32::NAN][k % 3];
            let run = |isa| {
                let mut q = vec![9i8; k.next_multiple_of(64)];
                let mut d = vec![0.0f32; rule.groups(k as u32) as usize];
                kernels::quantize(isa, rule, &x, &mut q, &mut d);
                (q, d)
            };
            for isa in Isa::all() {
                assert_eq!(run(isa), run(Isa::Plain), "{isa:?} {rule:?} {k}");
            }
        }
    }
}

#[test]
fn float_kernels_are_close_to_their_twins() {
    let threads = Threads::new(Some(2)).unwrap();
    for (n, k, tokens) in [(1, 32, 1), (7, 96, 5), (33, 320, 3), (5, 100, 2)] {
        let (x, values) = (floats(1, tokens * k), floats(2, n * k));
        let halves: Vec<u16> = values.iter().map(|&v| half::f16::from_f32(v).to_bits()).collect();
        let bytes: Vec<i8> = values.iter().map(|&v| (v * 60.0) as i8).collect();
        let mut kinds = vec![matrix::Values::F32(&values), matrix::Values::F16(&halves)];
        if k % 32 == 0 {
            kinds.push(matrix::Values::Q8(&bytes, &halves[..n * k / 32]));
        }
        let codes: Vec<u8> =
            (0..n * crate::ternary::row_bytes(k)).map(|i| random(3, i) as u8).collect();
        let w = matrix::Ternary { n, k, codes: &codes, row_scales: &values[..n], blocks: None };
        for isa in Isa::all() {
            for &values in &kinds {
                let run = |isa| {
                    let mut out = vec![f32::NAN; tokens * n];
                    let w = matrix::Dense { n, k, values };
                    let out_rows = rows_mut(&mut out, n);
                    kernels::dense_linear(isa, &threads, rows_ref(&x, k), w, &out_rows);
                    out
                };
                let error = nmse(&run(isa), &run(Isa::Plain));
                // Activations that int8 weights meet are int16.
                let most = if matches!(values, matrix::Values::Q8(..)) { 5e-9 } else { 1e-11 };
                assert!(error < most, "{isa:?} [{n}, {k}]: {error}");
            }
            let ternary = |isa| {
                let mut out = vec![f32::NAN; tokens * n];
                let out_rows = rows_mut(&mut out, n);
                kernels::ternary_linear_f32(isa, &threads, rows_ref(&x, k), w, &out_rows);
                out
            };
            assert!(nmse(&ternary(isa), &ternary(Isa::Plain)) < 1e-11, "{isa:?} [{n}, {k}]");
            for act in [Activation::Silu, Activation::Relu2] {
                let run = |isa| {
                    let mut out = vec![f32::NAN; x.len()];
                    kernels::gated_act(isa, act, &x, &x, &mut out);
                    out
                };
                assert!(nmse(&run(isa), &run(Isa::Plain)) < 1e-12, "{isa:?} {act:?}");
            }
            let norm = |isa| {
                let mut out = vec![f32::NAN; k];
                kernels::rms_norm(isa, &x[..k], &x[..k], 1e-5, &mut out);
                out
            };
            assert!(nmse(&norm(isa), &norm(Isa::Plain)) < 1e-12, "{isa:?} {k}");
        }
    }
}

#[test]
fn attention_is_close_to_its_twin() {
    let threads = Threads::new(Some(2)).unwrap();
    for kv_type in [KvType::F32, KvType::F16, KvType::Q8] {
        for (heads, kv_heads, dim, pos, tokens) in
            [(4, 2, 32, 0, 1), (6, 2, 128, 150, 11), (3, 3, 100, 63, 9), (8, 1, 96, 64, 1)]
        {
            let row = kv_heads * dim;
            let [mut keys, mut values] = [(); 2].map(|()| kv_append::KvRows::new(kv_type, row));
            for (key, cache) in [(5, &mut keys), (6, &mut values)] {
                cache.grow(pos + tokens, pos + tokens).unwrap();
                for p in 0..pos + tokens {
                    kv_append::kv_append(cache, p, &floats(key + 10 * p as u32, row));
                }
            }
            let q = floats(9, tokens * heads * dim);
            let run = |isa| {
                let mut out = vec![f32::NAN; q.len()];
                let cache = kernels::Cache { keys: &keys, values: &values, pos };
                let (q, width) = (rows_ref(&q, heads * dim), heads * dim);
                let out_rows = rows_mut(&mut out, width);
                kernels::attention(isa, &threads, q, cache, heads, 0.3, &out_rows);
                out
            };
            for isa in Isa::all() {
                let error = nmse(&run(isa), &run(Isa::Plain));
                assert!(error < 1e-11, "{isa:?} {kv_type:?} {heads}/{kv_heads} × {dim}: {error}");
            }
        }
    }
}

#[test]
fn a_huge_context_costs_nothing_until_used() {
    let mut cpu = cpu(ActQuant::PerToken, None, Isa::Plain, KvType::F16, u32::MAX);
    forward(&mut cpu, &IDS, 0, Outputs::Last);
    assert!(cpu.allocated_bytes() < 1 << 20, "{}", cpu.allocated_bytes());
    let before = cpu.allocated_bytes();
    for pos in (8..512).step_by(8) {
        forward(&mut cpu, &IDS, pos, Outputs::None);
    }
    assert_eq!(cpu.allocated_bytes() - before, KvType::F16.bytes(256 * 128));
}

#[test]
fn calls_outside_the_contract_are_typed_errors() {
    let mut cpu = default_cpu();
    let mut refused = |tokens: &[u32], pos| {
        let step = Step { tokens, pos, outputs: Outputs::Last };
        matches!(block_on(cpu.forward(step)), Err(BackendError::InvalidCall { .. }))
    };
    assert!(refused(&[], 0));
    assert!(refused(&[VOCAB], 0));
    assert!(refused(&[0; 9], 0));
    assert!(refused(&[0], 1), "a hole in the cache");
    assert!(!refused(&[0; 8], 0));
    assert!(refused(&[0], u32::MAX));
    for targets in [&[][..], &[1, 2], &[VOCAB]] {
        let outcome = block_on(cpu.cross_entropy(targets));
        assert!(matches!(outcome, Err(BackendError::InvalidCall { .. })), "{outcome:?}");
    }
    assert_eq!(block_on(cpu.cross_entropy(&[VOCAB - 1])).unwrap().len(), 1);
    let write = cpu.write_weight(WeightId(1), WeightPart::Data, 4, &[0; 512]);
    assert!(matches!(write, Err(BackendError::InvalidCall { .. })));
    assert!(cpu.write_weight(WeightId(9), WeightPart::Data, 0, &[]).is_err());
    let sampling = Sampling::greedy();
    let decode =
        Decode { feed: Some(1), pos: 8, count: 57, ahead: 0, sampling: &sampling, stop: &[] };
    assert!(block_on(cpu.decode(decode)).is_err(), "past the context");
    assert!(block_on(cpu.decode(Decode { count: 0, ..decode })).is_err());

    let mut wrong = plan(ActQuant::PerToken, None);
    let options = RunOptions { context: 8, kv_type: KvType::F32, max_tokens: 8 };
    wrong.ops[6] = Op::Attention {
        q: Slice { buf: BufId(3), at: 200, dim: DIM },
        layer: 0,
        heads: 4,
        scale: 1.0,
        out: wrong.whole(BufId(4)),
    };
    let error = block_on(cpu.prepare(&wrong, options)).unwrap_err().to_string();
    assert!(
        error.contains("operation 6 (attention): 128 values at 200 of a row of 256"),
        "{error}"
    );
    let step = Step { tokens: &[0], pos: 0, outputs: Outputs::Last };
    assert!(block_on(cpu.forward(step)).is_err(), "nothing is prepared now");
}

#[test]
fn decode_feeds_what_it_draws() {
    let mut cpu = default_cpu();
    let greedy = Sampling::greedy();
    let logits = forward(&mut cpu, &IDS, 0, Outputs::Last);
    let mut expected = vec![sample(&logits, &IDS, 8, &greedy)];
    for pos in 8..12 {
        let logits = forward(&mut cpu, &[expected[pos - 8]], pos as u32, Outputs::Last);
        expected.push(sample(&logits, &[], 0, &greedy));
    }
    forward(&mut cpu, &IDS, 0, Outputs::Last);
    let decode = Decode { feed: None, pos: 8, count: 3, ahead: 0, sampling: &greedy, stop: &[] };
    let first = block_on(cpu.decode(decode)).unwrap();
    assert_eq!(first, expected[..3]);
    let rest = Decode { feed: Some(first[2]), pos: 10, count: 2, ..decode };
    assert_eq!(block_on(cpu.decode(rest)).unwrap(), expected[3..]);
    let stop = [expected[4]];
    forward(&mut cpu, &IDS, 0, Outputs::Last);
    let stopped = Decode { count: 20, stop: &stop, ..decode };
    let until = expected.iter().position(|id| *id == stop[0]).unwrap();
    assert_eq!(block_on(cpu.decode(stopped)).unwrap(), expected[..=until]);
}

#[test]
fn penalties_see_what_was_fed() {
    let mut cpu = default_cpu();
    let sampling = Sampling { presence_penalty: 100.0, ..Sampling::greedy() };
    forward(&mut cpu, &IDS, 0, Outputs::Last);
    let decode = Decode { feed: None, pos: 8, count: 20, ahead: 0, sampling: &sampling, stop: &[] };
    let mut drawn = block_on(cpu.decode(decode)).unwrap();
    drawn.extend(IDS);
    drawn.sort_unstable();
    drawn.dedup();
    assert_eq!(drawn.len(), 28, "no token twice");
}

#[test]
fn trace_shows_every_output_once() {
    let mut cpu = default_cpu();
    let mut lens = Vec::new();
    let step = Step { tokens: &IDS[..2], pos: 0, outputs: Outputs::Last };
    let mut last = Vec::new();
    block_on(cpu.trace(step, &mut |i, values| {
        lens.push((i, values.len()));
        last = values.to_vec();
    }))
    .unwrap();
    let (two, one) = (2 * DIM as usize, DIM as usize);
    let expected = [two, two, two, 2 * two, two + two / 2, 0, two, two, one, one, VOCAB as usize];
    let expected: Vec<_> = expected.into_iter().enumerate().filter(|e| e.1 > 0).collect();
    assert_eq!(lens, expected);
    assert_eq!(last, block_on(cpu.logits()).unwrap());
}
