//! Which of the kernels for one job: measured on the device at hand.
//!
//! Two layers of a model of common size are run with every sensible set of [`KernelFeatures`]: a prompt,
//! and tokens decoded after it without coming back to the host between them. What gives other results
//! than the plainest kernels is out of the question; of the others the fastest set is taken, and of those
//! about as fast the one that uses most of the device.

use super::Gpu;
use crate::backend::*;
use crate::plan::*;
use crate::probe::{Builder, contents};
use crate::sampling::Sampling;
use web_time::Instant;

const HIDDEN: u32 = 2048;
const HEAD_DIM: u32 = 128;
const KV_HEADS: u32 = 4;
const FFN: u32 = 6144;
const VOCAB: u32 = 64;
const LAYERS: u32 = 2;
/// Different rows of a weight: an odd number, so that they stand elsewhere in each tile of a kernel.
const ROWS: u32 = 37;
/// Tokens of a prompt, tokens decoded after it: enough that the device works longer than it takes to
/// give it work and to hear from it. In a browser slow devices are common, and have less to do.
const WORK: &[(u32, u32)] =
    if cfg!(target_arch = "wasm32") { &[(512, 64), (128, 16)] } else { &[(512, 64)] };
/// A device that needs longer for the least work is not measured: it uses all that it has.
const TRIAL_SECONDS: f64 = 0.2;
/// Timed runs, of which the fastest counts.
const RUNS: usize = 3;
/// What a set must gain to be taken instead of one that uses more of the device. Less is noise; and
/// where giving a device work takes as long as doing it, as in browsers, sets look alike that are not
/// with larger models.
const GAIN: f64 = 0.9;
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
    /// The set to use.
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
    works: &[(u32, u32)],
    most_seconds: f64,
) -> Result<Tuning, BackendError> {
    let all = gpu.available_features();
    let plan = plan();
    load(gpu, &plan).await?;
    prepare(gpu, &plan, works[0], all).await?;
    // Compiles, and wakes the device up.
    once(gpu, &plan, (16, 2)).await?;
    let (prefill, decode, _) = once(gpu, &plan, (16, 2)).await?;
    let fits =
        |work: &(u32, u32)| prefill + decode <= most_seconds * 18.0 / f64::from(work.0 + work.1);
    let Some(&work) = works.iter().find(|work| fits(work)) else {
        return Ok(Tuning { best: all, trials: Vec::new() });
    };
    let (plain, expected) = run(gpu, &plan, work, KernelFeatures::NONE).await?;
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
    }
    Ok(Tuning { best: choose(&trials), trials })
}

/// The set to use, of trials from the plainest set up.
fn choose(trials: &[Trial]) -> KernelFeatures {
    let right = || trials.iter().filter(|trial| trial.nmse <= SAME);
    let least = right().map(Trial::cost).fold(f64::INFINITY, f64::min);
    let best = right().rfind(|trial| trial.cost() * GAIN <= least);
    best.map_or(KernelFeatures::NONE, |trial| trial.features)
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
    let mut b = Builder::new(VOCAB);
    b.plan.kv = KvSpec { layers: LAYERS, kv_heads: KV_HEADS, head_dim: HEAD_DIM };
    b.plan.rope.inv_freq = (0..HEAD_DIM / 2).map(|i| 0.8f32.powi(i as i32)).collect();
    let x = b.input("x", HIDDEN);
    let linear = |b: &mut Builder, x, n| b.product(x, ActQuant::PerToken, n, None);
    for layer in 0..LAYERS {
        let normed = b.norm(x, 1e-5);
        let qkv = linear(&mut b, normed, HIDDEN + 2 * KV_HEADS * HEAD_DIM);
        let attended = b.attention(b.heads(qkv), layer);
        let y = linear(&mut b, attended, HIDDEN);
        b.op(Op::Add { x: x.buf, y: y.buf });
        let normed = b.norm(x, 1e-5);
        let both = linear(&mut b, normed, 2 * FFN);
        let gated = b.gated(both, Activation::Silu);
        let y = linear(&mut b, gated, HIDDEN);
        b.op(Op::Add { x: x.buf, y: y.buf });
    }
    let normed = b.norm(x, 1e-5);
    let logits = linear(&mut b, normed, VOCAB);
    b.finish(logits)
}

/// Random weights, whose rows repeat: making them all would take longer than the measurement.
async fn load(gpu: &mut Gpu, plan: &Plan) -> Result<(), BackendError> {
    gpu.allocate(&plan.weights).await?;
    for (i, spec) in plan.weights.iter().enumerate() {
        let i = i as u32;
        for part in WeightPart::ALL {
            let some = contents(spec.kind, part, ROWS.min(spec.kind.shape().0), i);
            let bytes = spec.kind.part_bytes(part);
            for at in (0..bytes).step_by(some.len().max(1)) {
                let left = usize::try_from(bytes - at).unwrap_or(usize::MAX);
                gpu.write_weight(WeightId(i), part, at, &some[..left.min(some.len())])?;
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
        let tuning = pollster::block_on(measure_with(&mut gpu, &[(24, 3)], f64::INFINITY)).unwrap();
        assert_eq!(tuning.trials.len(), 1 + candidates(all).len());
        for trial in &tuning.trials {
            assert!(trial.nmse <= SAME, "{trial:?}");
            assert!(trial.cost() > 0.0, "{trial:?}");
        }
    }

    #[test]
    fn the_fullest_set_that_is_fast_and_right_is_taken() {
        let all = candidates(KernelFeatures::ALL);
        let trials = |times: [(f64, f64); 5]| {
            let features = [KernelFeatures::NONE].into_iter().chain(all.iter().copied());
            let trial = |(features, (decode_ms, nmse))| Trial {
                features,
                prefill_ms: 2.0,
                decode_ms,
                nmse,
            };
            features.zip(times).map(trial).collect::<Vec<_>>()
        };
        let alike = trials([(1.0, 0.0), (0.98, 0.0), (1.01, 0.0), (0.99, 0.0), (1.05, 0.0)]);
        assert_eq!(choose(&alike), all[3]);
        let slower = trials([(1.0, 0.0), (0.5, 0.0), (1.0, 0.0), (0.4, 0.0), (0.6, 0.0)]);
        assert_eq!(choose(&slower), all[2]);
        let wrong = trials([(1.0, 0.0), (0.5, 1.0), (0.5, f64::NAN), (0.5, 1.0), (0.1, 1.0)]);
        assert_eq!(choose(&wrong), KernelFeatures::NONE);
    }

    #[test]
    fn a_wrong_result_differs() {
        assert_eq!(nmse(&[1.0, -2.0], &[1.0, -2.0]), 0.0);
        assert!(nmse(&[1.0, -2.0], &[1.0, 2.0]) > SAME);
        assert!(nmse(&[1.0, -2.0], &[1.0, f32::NAN]).is_nan(), "not <= anything");
    }
}
