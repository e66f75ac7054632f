//! Which of the kernels for one job: measured on the device at hand.
//!
//! Two layers of a model of common size are run with every sensible set of [`KernelFeatures`]: a prompt,
//! and tokens decoded after it without coming back to the host between them. What gives other results
//! than the plainest kernels is out of the question; of the others the fastest set is taken.

use super::Gpu;
use crate::backend::*;
use crate::plan::*;
use crate::sampling::{Sampling, threefry2x32};
use web_time::Instant;

const HIDDEN: u32 = 2048;
const HEAD_DIM: u32 = 128;
const KV_HEADS: u32 = 4;
const FFN: u32 = 6144;
const VOCAB: u32 = 64;
const LAYERS: u32 = 2;
/// Tokens of a prompt, tokens decoded after it: enough that the device works longer than it takes to
/// give it work and to hear from it.
const WORK: (u32, u32) = (512, 64);
/// A slower device is not measured: it uses all that it has.
const TRIAL_SECONDS: f64 = 0.2;
/// Timed runs, of which the fastest counts.
const RUNS: usize = 3;
/// What another set must gain to be taken instead: less is noise.
const GAIN: f64 = 0.97;
/// Normalised mean square difference of results that are the same but for roundings.
const SAME: f64 = 1e-3;

/// A set of features, measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trial {
    /// The set.
    pub features: KernelFeatures,
    /// Milliseconds of a prompt.
    pub prefill_ms: f64,
    /// Milliseconds of a decoded token.
    pub decode_ms: f64,
    /// Normalised mean square difference of the logits from those of the plainest kernels.
    pub nmse: f64,
}

impl Trial {
    /// What counts: each time by its ratio.
    fn cost(&self) -> f64 {
        self.prefill_ms * self.decode_ms
    }
}

/// What was measured, the plainest set first; empty where the device is too slow to be measured in a
/// moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Tuning {
    /// The fastest set.
    pub best: KernelFeatures,
    /// All sets that ran.
    pub trials: Vec<Trial>,
}

/// Measures `gpu`, and leaves it without weights.
pub async fn measure(gpu: &mut Gpu) -> Result<Tuning, BackendError> {
    let outcome = measure_with(gpu, WORK, TRIAL_SECONDS).await;
    // Also after an error: nothing half-way stays.
    gpu.forget();
    outcome
}

async fn measure_with(
    gpu: &mut Gpu,
    work: (u32, u32),
    most_seconds: f64,
) -> Result<Tuning, BackendError> {
    let all = gpu.available_features();
    let plan = plan();
    load(gpu, &plan).await?;
    prepare(gpu, &plan, work, all).await?;
    // Compiles, and wakes the device up.
    once(gpu, &plan, (16, 2)).await?;
    let (prefill, decode, _) = once(gpu, &plan, (16, 2)).await?;
    if prefill + decode > most_seconds * 18.0 / f64::from(work.0 + work.1) {
        return Ok(Tuning { best: all, trials: Vec::new() });
    }
    let (plain, expected) = run(gpu, &plan, work, KernelFeatures::NONE).await?;
    let mut best = plain;
    let mut trials = vec![plain];
    for candidate in candidates(all) {
        // A set that the driver refuses is no candidate; a lost device is the end.
        let (mut trial, logits) = match run(gpu, &plan, work, candidate).await {
            Ok(result) => result,
            Err(e @ BackendError::DeviceLost { .. }) => return Err(e),
            Err(_) => continue,
        };
        trial.nmse = nmse(&expected, &logits);
        trials.push(trial);
        if trial.nmse <= SAME && trial.cost() < best.cost() * GAIN {
            best = trial;
        }
    }
    Ok(Tuning { best: best.features, trials })
}

/// Sets to try, from the plain one up: more than one is seldom slower than one of them.
fn candidates(all: KernelFeatures) -> Vec<KernelFeatures> {
    let mut sets = Vec::new();
    for wanted in [
        KernelFeatures { dot4: true, ..KernelFeatures::NONE },
        KernelFeatures { subgroups: true, ..KernelFeatures::NONE },
        KernelFeatures { subgroups: true, dot4: true, matrices: false },
        KernelFeatures::ALL,
    ] {
        let set = wanted.and(all);
        if set != KernelFeatures::NONE && !sets.contains(&set) {
            sets.push(set);
        }
    }
    sets
}

async fn prepare(
    gpu: &mut Gpu,
    plan: &Plan,
    (prompt, tokens): (u32, u32),
    features: KernelFeatures,
) -> Result<(), BackendError> {
    gpu.use_features(features);
    let context = (prompt + tokens).max(64);
    let options = RunOptions { context, kv_type: KvType::F16, max_tokens: prompt.max(16) };
    gpu.prepare(plan, options).await
}

/// What a set costs, and what came out.
async fn run(
    gpu: &mut Gpu,
    plan: &Plan,
    work: (u32, u32),
    features: KernelFeatures,
) -> Result<(Trial, Vec<f32>), BackendError> {
    prepare(gpu, plan, work, features).await?;
    let (_, _, logits) = once(gpu, plan, work).await?;
    let (mut prefill, mut decode) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..RUNS {
        let (p, d, _) = once(gpu, plan, work).await?;
        (prefill, decode) = (prefill.min(p), decode.min(d));
    }
    let decode_ms = decode * 1e3 / f64::from(work.1);
    Ok((Trial { features, prefill_ms: prefill * 1e3, decode_ms, nmse: 0.0 }, logits))
}

/// Seconds of a prompt, seconds of decoding, and the logits after both. What is decoded is the same
/// text for every set as long as it draws the same: the logits are those of a token that is given.
async fn once(
    gpu: &mut Gpu,
    plan: &Plan,
    (prompt, tokens): (u32, u32),
) -> Result<(f64, f64, Vec<f32>), BackendError> {
    let ids: Vec<u32> = (0..prompt).map(|i| i % plan.vocab).collect();
    let started = Instant::now();
    gpu.forward(Step { tokens: &ids, pos: 0, outputs: Outputs::Last }).await?;
    let mut logits = gpu.logits().await?;
    let prefilled = Instant::now();
    let sampling = &Sampling::greedy();
    let decode =
        Decode { feed: Some(7), pos: prompt, count: tokens, ahead: 0, sampling, stop: &[] };
    gpu.decode(decode).await?;
    let seconds = ((prefilled - started).as_secs_f64(), prefilled.elapsed().as_secs_f64());
    gpu.forward(Step { tokens: &[7], pos: prompt, outputs: Outputs::Last }).await?;
    logits.extend(gpu.logits().await?);
    Ok((seconds.0, seconds.1, logits))
}

fn plan() -> Plan {
    let buffer = |name, dim, kind| BufSpec { name, dim, kind, rows: Rows::Tokens };
    let quant = BufKind::Quant(ActQuant::PerToken);
    let kv_dim = KV_HEADS * HEAD_DIM;
    let qkv_dim = HIDDEN + 2 * kv_dim;
    let mut plan = Plan {
        buffers: vec![
            buffer("x", HIDDEN, BufKind::F32),
            buffer("normed", HIDDEN, BufKind::F32),
            buffer("q", HIDDEN, quant),
            buffer("qkv", qkv_dim, BufKind::F32),
            buffer("h", 2 * FFN, BufKind::F32),
            buffer("act", FFN, BufKind::F32),
            buffer("hq", FFN, quant),
            buffer("y", HIDDEN, BufKind::F32),
            buffer("mixed", VOCAB, BufKind::F32),
            BufSpec { name: "logits", dim: VOCAB, kind: BufKind::F32, rows: Rows::Outputs },
        ],
        weights: Vec::new(),
        ops: Vec::new(),
        labels: Vec::new(),
        rope: RopeSpec {
            layout: RopeLayout::HalfSplit,
            inv_freq: (0..HEAD_DIM / 2).map(|i| 0.8f32.powi(i as i32)).collect(),
            mscale: 1.0,
        },
        kv: KvSpec { layers: LAYERS, kv_heads: KV_HEADS, head_dim: HEAD_DIM },
        vocab: VOCAB,
        logits: BufId(9),
    };
    let mut weight = |kind| {
        plan.weights.push(WeightSpec { name: format!("w{}", plan.weights.len()), kind });
        WeightId(plan.weights.len() as u32 - 1)
    };
    let ternary = |n, k| WeightKind::Ternary { n, k, block: None };
    let slice = |buf, at, dim| Slice { buf: BufId(buf), at, dim };
    let whole = |buf, dim| slice(buf, 0, dim);
    let table = WeightKind::Matrix { n: VOCAB, k: HIDDEN, dtype: MatrixType::F32 };
    let mut ops = vec![Op::Embed { table: weight(table), out: BufId(0) }];
    let norm = weight(WeightKind::Vector { len: HIDDEN });
    let normed =
        Op::RmsNorm { x: whole(0, HIDDEN), weight: norm, out: whole(1, HIDDEN), eps: 1e-5 };
    let quantized = |from, dim, to| Op::Quantize { x: whole(from, dim), out: BufId(to) };
    for layer in 0..LAYERS {
        let (qkv, out) = (weight(ternary(qkv_dim, HIDDEN)), weight(ternary(HIDDEN, HIDDEN)));
        let (up, down) = (weight(ternary(2 * FFN, HIDDEN)), weight(ternary(HIDDEN, FFN)));
        let (q, k) = (slice(3, 0, HIDDEN), slice(3, HIDDEN, kv_dim));
        let v = slice(3, HIDDEN + kv_dim, kv_dim);
        ops.extend([
            normed.clone(),
            quantized(1, HIDDEN, 2),
            Op::TernaryLinear { x: BufId(2), weight: qkv, out: whole(3, qkv_dim) },
            Op::Rope { x: q, head_dim: HEAD_DIM },
            Op::Rope { x: k, head_dim: HEAD_DIM },
            Op::KvAppend { k, v, layer },
            Op::Attention {
                q,
                layer,
                out: whole(7, HIDDEN),
                heads: HIDDEN / HEAD_DIM,
                scale: (HEAD_DIM as f32).sqrt().recip(),
            },
            quantized(7, HIDDEN, 2),
            Op::TernaryLinear { x: BufId(2), weight: out, out: whole(7, HIDDEN) },
            Op::Add { x: BufId(0), y: BufId(7) },
            normed.clone(),
            quantized(1, HIDDEN, 2),
            Op::TernaryLinear { x: BufId(2), weight: up, out: whole(4, 2 * FFN) },
            Op::GatedAct {
                gate: slice(4, 0, FFN),
                up: slice(4, FFN, FFN),
                out: whole(5, FFN),
                act: Activation::Silu,
            },
            quantized(5, FFN, 6),
            Op::TernaryLinear { x: BufId(6), weight: down, out: whole(7, HIDDEN) },
            Op::Add { x: BufId(0), y: BufId(7) },
        ]);
    }
    let head = weight(ternary(VOCAB, HIDDEN));
    ops.extend([
        normed,
        quantized(1, HIDDEN, 2),
        Op::TernaryLinear { x: BufId(2), weight: head, out: whole(8, VOCAB) },
        Op::TakeOutputs { x: BufId(8), out: BufId(9) },
    ]);
    plan.labels = ops.iter().map(|op| op.stem().to_string()).collect();
    plan.ops = ops;
    plan
}

/// Random codes and rows; norms and scales of 1 over the root of K.
async fn load(gpu: &mut Gpu, plan: &Plan) -> Result<(), BackendError> {
    gpu.allocate(&plan.weights).await?;
    let random: Vec<u32> = (0..1 << 14).flat_map(|i| threefry2x32([0x7a9e, 1], [i, 0])).collect();
    // Two bits of 0, 1 or 2: never both.
    let codes: Vec<u32> = random.iter().map(|r| r & !((r & 0x5555_5555) << 1)).collect();
    let rows: Vec<f32> = random.iter().map(|&r| r as f32 / u32::MAX as f32 - 0.5).collect();
    for (i, spec) in plan.weights.iter().enumerate() {
        let (_, k) = spec.kind.shape();
        let ones = vec![(k as f32).sqrt().recip(); 1 << 14];
        for part in [WeightPart::Data, WeightPart::RowScales] {
            let source: &[u8] = match (spec.kind, part) {
                (WeightKind::Ternary { .. }, WeightPart::Data) => bytemuck::cast_slice(&codes),
                (WeightKind::Matrix { .. }, WeightPart::Data) => bytemuck::cast_slice(&rows),
                _ => bytemuck::cast_slice(&ones),
            };
            let bytes = spec.kind.part_bytes(part);
            let mut at = 0;
            while at < bytes {
                let some = (bytes - at).min(source.len() as u64);
                gpu.write_weight(WeightId(i as u32), part, at, &source[..some as usize])?;
                at += some;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_are_what_the_device_has() {
        let none = KernelFeatures::NONE;
        assert_eq!(candidates(none), []);
        assert_eq!(candidates(KernelFeatures { dot4: true, ..none }).len(), 1);
        let all = candidates(KernelFeatures::ALL);
        assert_eq!(all.len(), 4);
        assert_eq!(all.last(), Some(&KernelFeatures::ALL));
    }

    #[test]
    fn every_set_gives_the_same() {
        // As everywhere: BITNET_ADAPTER names a software adapter, where there is no other.
        let opened = pollster::block_on(Gpu::new(crate::gpu::Options::default()));
        let Ok(mut gpu) = opened else {
            assert!(std::env::var_os("REQUIRE_GPU").is_none(), "no GPU");
            eprintln!("no GPU: nothing was measured");
            return;
        };
        let all = gpu.available_features();
        let tuning = pollster::block_on(measure_with(&mut gpu, (24, 3), f64::INFINITY)).unwrap();
        assert_eq!(tuning.trials.len(), 1 + candidates(all).len());
        for trial in &tuning.trials {
            assert!(trial.nmse <= SAME, "{trial:?}");
            assert!(trial.cost() > 0.0, "{trial:?}");
        }
    }

    #[test]
    fn a_wrong_result_differs() {
        assert_eq!(nmse(&[1.0, -2.0], &[1.0, -2.0]), 0.0);
        assert!(nmse(&[1.0, -2.0], &[1.0, 2.0]) > SAME);
        assert!(nmse(&[1.0, -2.0], &[1.0, f32::NAN]).is_nan(), "not <= anything");
    }
}
