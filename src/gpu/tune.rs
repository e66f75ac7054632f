//! Which of the kernels for one job: measured on the device at hand.
//!
//! Two layers of a feed-forward network of common size are run with every sensible set of
//! [`KernelFeatures`], one token and many at a time. What gives other results than the plainest kernels
//! is out of the question; of the others the fastest set is taken.

use super::Gpu;
use crate::backend::*;
use crate::plan::*;
use crate::sampling::threefry2x32;
use web_time::Instant;

const HIDDEN: u32 = 2048;
const FFN: u32 = 8192;
const OUTPUTS: u32 = 64;
const LAYERS: usize = 2;
/// Tokens of a prompt, tokens decoded after it.
const WORK: (u32, u32) = (256, 24);
/// The same to see whether a device is fast enough to be measured in a moment; all features otherwise.
const TRIAL: (u32, u32) = (16, 1);
const TRIAL_SECONDS: f64 = 0.1;
/// Timed runs, of which the fastest counts.
const RUNS: usize = 4;
/// What another set must gain to be taken instead: less is noise.
const GAIN: f64 = 0.95;
/// Normalised mean square difference of results that are the same but for roundings.
const SAME: f64 = 1e-3;

/// The best set of the features that `gpu` has. Leaves it without weights.
pub async fn measure(gpu: &mut Gpu) -> Result<KernelFeatures, BackendError> {
    let outcome = measure_with(gpu, gpu.available_features()).await;
    // Also after an error: nothing half-way stays.
    gpu.forget();
    outcome
}

async fn measure_with(gpu: &mut Gpu, all: KernelFeatures) -> Result<KernelFeatures, BackendError> {
    let plan = plan();
    load(gpu, &plan).await?;
    prepare(gpu, &plan, all).await?;
    once(gpu, &plan, TRIAL).await?; // Wakes the device up.
    let (prefill, decode, _) = once(gpu, &plan, TRIAL).await?;
    if prefill + decode > TRIAL_SECONDS {
        return Ok(all);
    }
    let (mut least, expected) = run(gpu, &plan, KernelFeatures::NONE).await?;
    let mut best = KernelFeatures::NONE;
    for candidate in candidates(all) {
        // A set that the driver refuses is no candidate; a lost device is the end.
        let (seconds, logits) = match run(gpu, &plan, candidate).await {
            Ok(result) => result,
            Err(e @ BackendError::DeviceLost { .. }) => return Err(e),
            Err(_) => continue,
        };
        if nmse(&expected, &logits) <= SAME && seconds < least * GAIN {
            (best, least) = (candidate, seconds);
        }
    }
    Ok(best)
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

async fn prepare(gpu: &mut Gpu, plan: &Plan, features: KernelFeatures) -> Result<(), BackendError> {
    gpu.use_features(features);
    let options = RunOptions { context: WORK.0 + WORK.1, kv_type: KvType::F16, max_tokens: WORK.0 };
    gpu.prepare(plan, options).await
}

/// What it costs (seconds of a prompt by seconds of decoding: each counts by its ratio), and what came
/// out.
async fn run(
    gpu: &mut Gpu,
    plan: &Plan,
    features: KernelFeatures,
) -> Result<(f64, Vec<f32>), BackendError> {
    prepare(gpu, plan, features).await?;
    let (_, _, logits) = once(gpu, plan, WORK).await?;
    let (mut prefill, mut decode) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..RUNS {
        let (p, d, _) = once(gpu, plan, WORK).await?;
        (prefill, decode) = (prefill.min(p), decode.min(d));
    }
    Ok((prefill * decode, logits))
}

/// Seconds of a prompt, seconds of decoding, and the logits after both.
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
    for pos in prompt..prompt + tokens {
        gpu.forward(Step { tokens: &[7], pos, outputs: Outputs::Last }).await?;
    }
    logits.extend(gpu.logits().await?);
    Ok(((prefilled - started).as_secs_f64(), prefilled.elapsed().as_secs_f64(), logits))
}

fn plan() -> Plan {
    let buffer = |name, dim, kind| BufSpec { name, dim, kind, rows: Rows::Tokens };
    let quant = BufKind::Quant(ActQuant::PerToken);
    let mut plan = Plan {
        buffers: vec![
            buffer("x", HIDDEN, BufKind::F32),
            buffer("normed", HIDDEN, BufKind::F32),
            buffer("q", HIDDEN, quant),
            buffer("h", FFN, BufKind::F32),
            buffer("hq", FFN, quant),
            buffer("y", HIDDEN, BufKind::F32),
            buffer("mixed", OUTPUTS, BufKind::F32),
            BufSpec { name: "logits", dim: OUTPUTS, kind: BufKind::F32, rows: Rows::Outputs },
        ],
        weights: Vec::new(),
        ops: Vec::new(),
        labels: Vec::new(),
        rope: RopeSpec { layout: RopeLayout::HalfSplit, inv_freq: vec![1.0], mscale: 1.0 },
        kv: KvSpec { layers: 1, kv_heads: 1, head_dim: 2 },
        vocab: OUTPUTS,
        logits: BufId(7),
    };
    let mut weight = |kind| {
        plan.weights.push(WeightSpec { name: format!("w{}", plan.weights.len()), kind });
        WeightId(plan.weights.len() as u32 - 1)
    };
    let ternary = |n, k| WeightKind::Ternary { n, k, block: None };
    let table = WeightKind::Matrix { n: OUTPUTS, k: HIDDEN, dtype: MatrixType::F32 };
    let whole = |buf, dim| Slice { buf: BufId(buf), at: 0, dim };
    let mut ops = vec![Op::Embed { table: weight(table), out: BufId(0) }];
    let norm = weight(WeightKind::Vector { len: HIDDEN });
    let normed =
        Op::RmsNorm { x: whole(0, HIDDEN), weight: norm, out: whole(1, HIDDEN), eps: 1e-5 };
    let quantized = Op::Quantize { x: whole(1, HIDDEN), out: BufId(2) };
    for _ in 0..LAYERS {
        let (up, down) = (weight(ternary(FFN, HIDDEN)), weight(ternary(HIDDEN, FFN)));
        ops.extend([
            normed.clone(),
            quantized.clone(),
            Op::TernaryLinear { x: BufId(2), weight: up, out: whole(3, FFN) },
            Op::Quantize { x: whole(3, FFN), out: BufId(4) },
            Op::TernaryLinear { x: BufId(4), weight: down, out: whole(5, HIDDEN) },
            Op::Add { x: BufId(0), y: BufId(5) },
        ]);
    }
    let head = weight(ternary(OUTPUTS, HIDDEN));
    ops.extend([
        normed,
        quantized,
        Op::TernaryLinear { x: BufId(2), weight: head, out: whole(6, OUTPUTS) },
        Op::TakeOutputs { x: BufId(6), out: BufId(7) },
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
    fn a_wrong_result_differs() {
        assert_eq!(nmse(&[1.0, -2.0], &[1.0, -2.0]), 0.0);
        assert!(nmse(&[1.0, -2.0], &[1.0, 2.0]) > SAME);
        assert!(nmse(&[1.0, -2.0], &[1.0, f32::NAN]).is_nan(), "not <= anything");
    }
}
