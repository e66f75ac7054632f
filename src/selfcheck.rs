//! [`Case`]: every kernel of a device against the plain twins, on data made here.
//!
//! A case is a small plan around one operation (or the draw). It is run on the device, operation by
//! operation and as a whole, and on [`Cpu`] with [`Isa::Plain`]; the outputs are compared. So a browser, a
//! driver or a processor can be judged where it is, with no model at hand.
//!
//! May import: floors 0 to 2.

use crate::backend::{Backend, BackendError, Decode, KvType, Outputs, RunOptions, Step, nmse};
use crate::cpu::{Cpu, Isa};
use crate::plan::*;
use crate::probe::{Builder, contents, noise};
use crate::sampling::Sampling;
use half::f16;

/// `V` of the embedding that feeds the operation under test: rows of it are the random inputs.
const VOCAB: u32 = 67;
/// Numbers of tokens a step: decoding, ragged short prompts, more than one tile of a prefill, and
/// decoding with all of that in the cache.
const STEPS: [usize; 4] = [1, 5, MOST, 1];
const MOST: usize = 66;
const CONTEXT: u32 = 160;

/// One thing to compare.
pub struct Case {
    /// The kernel's stem, or `draw`.
    pub kernel: &'static str,
    /// Types and shape.
    pub variant: String,
    plan: Plan,
    kv_type: KvType,
    /// Largest normalised mean square error.
    tolerance: f64,
    /// All activations are whole multiples of about this and all scales are 1, so that integers which
    /// differ show as a difference of one unit: the outputs are compared by that.
    unit: Option<f64>,
    compared: Compared,
}

/// What is looked at.
enum Compared {
    /// The outputs of all operations.
    Outputs,
    /// What is drawn from the logits.
    Draw(Sampling),
    /// How well the logits predict.
    CrossEntropy,
}

/// Every case, in the order of the forward pass.
pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    embed(&mut all);
    norms(&mut all);
    linears(&mut all);
    integers(&mut all);
    attention(&mut all);
    elementwise(&mut all);
    fused(&mut all);
    draws(&mut all);
    cross_entropy(&mut all);
    all
}

/// A case of each kernel that decoding needs: tells in a moment whether a device can be trusted.
pub fn quick() -> Vec<Case> {
    let mut seen = std::collections::HashSet::new();
    let decodes = |case: &Case| !matches!(case.compared, Compared::CrossEntropy);
    cases().into_iter().filter(|case| decodes(case) && seen.insert(case.kernel)).collect()
}

impl Case {
    /// Compares `device` with the twins.
    ///
    /// # Errors
    /// Says what differs, or what the device refused.
    pub async fn run(&self, device: &mut impl Backend) -> Result<(), String> {
        let mut twin = Cpu::with_isa(Some(1), Isa::Plain).map_err(|e| e.to_string())?;
        self.load(&mut twin).await.map_err(|e| format!("twin: {e}"))?;
        self.load(device).await.map_err(|e| e.to_string())?;
        match &self.compared {
            Compared::Outputs => self.steps(&mut twin, device).await,
            Compared::Draw(sampling) => self.draw(&mut twin, device, sampling).await,
            Compared::CrossEntropy => self.cross_entropy(&mut twin, device).await,
        }
    }

    async fn load(&self, backend: &mut impl Backend) -> Result<(), BackendError> {
        backend.allocate(&self.plan.weights).await?;
        for (i, spec) in self.plan.weights.iter().enumerate() {
            let id = WeightId(i as u32);
            for part in WeightPart::ALL {
                let bytes = match self.unit {
                    None => contents(spec.kind, part, spec.kind.shape().0, i as u32),
                    Some(unit) => whole_contents(spec.kind, part, i as u32, unit),
                };
                if !bytes.is_empty() {
                    backend.write_weight(id, part, 0, &bytes)?;
                }
            }
        }
        let max_tokens = MOST as u32;
        let options = RunOptions { context: CONTEXT, kv_type: self.kv_type, max_tokens };
        backend.prepare(&self.plan, options).await
    }

    /// Each step operation by operation, then as a whole.
    async fn steps(&self, twin: &mut Cpu, device: &mut impl Backend) -> Result<(), String> {
        let mut pos = 0;
        for tokens in STEPS {
            let ids: Vec<u32> = (0..tokens as u32).map(|t| (t * 31 + pos) % VOCAB).collect();
            let step = Step { tokens: &ids, pos, outputs: Outputs::All };
            let mut expected = Vec::new();
            let mut got = Vec::new();
            let note = |all: &mut Vec<(usize, Vec<f32>)>, op, values: &[f32]| {
                all.push((op, values.to_vec()));
            };
            twin.trace(step, &mut |op, values| note(&mut expected, op, values))
                .await
                .map_err(|e| format!("twin: {e}"))?;
            device
                .trace(step, &mut |op, values| note(&mut got, op, values))
                .await
                .map_err(|e| e.to_string())?;
            if got.len() != expected.len() {
                return Err(format!("{} outputs instead of {}", got.len(), expected.len()));
            }
            for ((op, expected), (_, got)) in expected.iter().zip(&got) {
                // The CPU's integer kernels promise the bits of their twins, floats and all.
                let exact = device.caps().backend == "cpu" && self.is_integer(*op);
                self.compare(expected, got, if exact { 0.0 } else { self.tolerance })
                    .map_err(|e| format!("{} of {tokens} tokens: {e}", self.plan.labels[*op]))?;
            }
            // The same from the start again, as the engine runs it: fused, replayed.
            device.forward(step).await.map_err(|e| e.to_string())?;
            let got = device.logits().await.map_err(|e| e.to_string())?;
            let expected = expected.last().map(|(_, values)| values.as_slice()).unwrap_or_default();
            self.compare(expected, &got, self.tolerance)
                .map_err(|e| format!("fused, {tokens} tokens: {e}"))?;
            pos += tokens as u32;
        }
        Ok(())
    }

    fn compare(&self, expected: &[f32], got: &[f32], tolerance: f64) -> Result<(), String> {
        compare(expected, got, tolerance)?;
        match self.unit {
            Some(unit) => compare_units(expected, got, unit),
            None => Ok(()),
        }
    }

    /// Whether operation `op` computes in integers, on inputs that are the twin's to the bit.
    fn is_integer(&self, op: usize) -> bool {
        let floats_before = self.plan.ops.iter().any(|op| matches!(op, Op::RmsNorm { .. }));
        if self.kernel != "ternary_linear" || floats_before {
            return false;
        }
        match self.plan.ops[op] {
            Op::Quantize { .. } => true,
            Op::TernaryLinear { x, .. } => self.plan.buffer(x).kind != BufKind::F32,
            _ => false,
        }
    }

    async fn draw(
        &self,
        twin: &mut Cpu,
        device: &mut impl Backend,
        sampling: &Sampling,
    ) -> Result<(), String> {
        let prompt = [3, 1, 4, 1, 5];
        let step = Step { tokens: &prompt, pos: 0, outputs: Outputs::Last };
        let decode = Decode { feed: None, pos: 5, count: 64, ahead: 0, sampling, stop: &[] };
        twin.forward(step).await.map_err(|e| format!("twin: {e}"))?;
        let expected = twin.decode(decode).await.map_err(|e| format!("twin: {e}"))?;
        device.forward(step).await.map_err(|e| e.to_string())?;
        let got = device.decode(decode).await.map_err(|e| e.to_string())?;
        match expected.iter().zip(&got).position(|(a, b)| a != b) {
            None if expected.len() == got.len() => Ok(()),
            at => Err(format!("token {at:?} differs: {got:?} instead of {expected:?}")),
        }
    }

    async fn cross_entropy(&self, twin: &mut Cpu, device: &mut impl Backend) -> Result<(), String> {
        let ids = [3, 1, 4, 1, 5];
        let targets = [0, 255, 256, 3, self.plan.vocab - 1];
        let step = Step { tokens: &ids, pos: 0, outputs: Outputs::All };
        twin.forward(step).await.map_err(|e| format!("twin: {e}"))?;
        let expected = twin.cross_entropy(&targets).await.map_err(|e| format!("twin: {e}"))?;
        device.forward(step).await.map_err(|e| e.to_string())?;
        let got = device.cross_entropy(&targets).await.map_err(|e| e.to_string())?;
        self.compare(&expected, &got, self.tolerance)
    }
}

/// That no value is off by as much as a quarter of `unit`.
fn compare_units(expected: &[f32], got: &[f32], unit: f64) -> Result<(), String> {
    let off = |(e, g): (&f32, &f32)| (f64::from(*e) - f64::from(*g)).abs() > unit / 4.0;
    match expected.iter().zip(got).position(off) {
        None => Ok(()),
        Some(at) => {
            Err(format!("value {at} is {} instead of {}: another integer", got[at], expected[at]))
        }
    }
}

/// NMSE of `got`, which must have the length of `expected` and be finite.
fn compare(expected: &[f32], got: &[f32], tolerance: f64) -> Result<(), String> {
    if expected.len() != got.len() {
        return Err(format!("{} values instead of {}", got.len(), expected.len()));
    }
    let error = nmse(expected, got);
    // Not `error > tolerance`: that is false for a NaN.
    if error <= tolerance {
        return Ok(());
    }
    let at =
        expected.iter().zip(got).position(|(e, g)| (e - g).abs() > 1e-3 * e.abs()).unwrap_or(0);
    Err(format!(
        "error {error:.1e}, allowed {tolerance:.0e}; value {at} is {} instead of {}",
        got.get(at).copied().unwrap_or(f32::NAN),
        expected.get(at).copied().unwrap_or(f32::NAN),
    ))
}

// ---- the data ----

/// Magnitudes of each 32 values of a row, in units: odd ones, of which every rule finds the largest.
fn whole_magnitude(i: usize) -> u32 {
    4 * (i as u32 % 32) + 3
}

/// The unit in which rows of [`whole_magnitude`]s have a mean square of 1, so that a norm keeps them.
fn whole_unit() -> f64 {
    let squares: u32 = (0..32).map(|i| whole_magnitude(i).pow(2)).sum();
    (32.0 / f64::from(squares)).sqrt()
}

/// As [`contents`]: rows of whole multiples of `unit`, scales and norms of 1.
fn whole_contents(kind: WeightKind, part: WeightPart, stream: u32, unit: f64) -> Vec<u8> {
    let bytes = kind.part_bytes(part) as usize;
    match (kind, part) {
        (WeightKind::Matrix { dtype: MatrixType::F32, k, .. }, _) => (0..bytes / 4)
            .flat_map(|i| {
                let (row, at) = (i / k as usize, i % k as usize);
                // An odd factor permutes the 32 of a run.
                let shuffled = (at % 32) * (2 * row + 1) + 7 * row + 3 * (at / 32);
                let sign = noise(stream, i).signum();
                (sign * (f64::from(whole_magnitude(shuffled)) * unit) as f32).to_le_bytes()
            })
            .collect(),
        (WeightKind::Vector { .. }, _) | (_, WeightPart::RowScales) => {
            (0..bytes / 4).flat_map(|_| 1f32.to_le_bytes()).collect()
        }
        (_, WeightPart::BlockScales) => {
            (0..bytes / 2).flat_map(|_| f16::ONE.to_le_bytes()).collect()
        }
        _ => contents(kind, part, kind.shape().0, stream),
    }
}

// ---- the plans ----

impl Builder {
    /// Logits that depend on all of `out`, so that a run as a whole shows what it was.
    fn mixed(mut self, out: Slice, kernel: &'static str, variant: String, tolerance: f64) -> Case {
        let (n, k) = (VOCAB, out.dim);
        let weight = self.weight(WeightKind::Matrix { n, k, dtype: MatrixType::F32 });
        let y = self.floats("mixed", VOCAB);
        self.op(Op::DenseLinear { x: out.buf, weight, out: y });
        self.case(y, kernel, variant, tolerance)
    }

    /// Logits that are the values of `rows`.
    fn case(self, rows: Slice, kernel: &'static str, variant: String, tolerance: f64) -> Case {
        let plan = self.finish(rows);
        let (kv_type, unit, compared) = (KvType::F32, None, Compared::Outputs);
        Case { kernel, variant, plan, kv_type, tolerance, unit, compared }
    }
}

/// Normalised mean square error of float kernels: sums in another order than the twin's.
const FLOAT: f64 = 1e-7;
/// Where the device may compute in f16.
const HALF: f64 = 1e-6;

fn embed(all: &mut Vec<Case>) {
    let dtypes = [MatrixType::F32, MatrixType::F16, MatrixType::Q8];
    let kinds = dtypes
        .map(|dtype| (WeightKind::Matrix { n: VOCAB, k: 96, dtype }, format!("{dtype:?}, K = 96")))
        .into_iter()
        .chain([None, Some(64)].map(|block| {
            let kind = WeightKind::Ternary { n: VOCAB, k: 192, block };
            (kind, format!("ternary, block {block:?}, K = 192"))
        }));
    for (kind, variant) in kinds {
        let mut b = Builder::new(VOCAB);
        let table = b.weight(kind);
        let out = b.floats("x", kind.shape().1);
        b.op(Op::Embed { table, out: out.buf });
        all.push(b.mixed(out, "embed", variant, FLOAT));
    }
}

fn norms(all: &mut Vec<Case>) {
    for (dim, len) in [(67, 67), (2560, 2560), (256, 64)] {
        let mut b = Builder::new(VOCAB);
        let x = b.input("x", dim);
        let weight = b.weight(WeightKind::Vector { len });
        let out = b.floats("normed", dim);
        b.op(Op::RmsNorm { x, weight, out, eps: 1e-5 });
        all.push(b.mixed(out, "rms_norm", format!("{dim} values, groups of {len}"), FLOAT));
    }
    let mut b = Builder::new(VOCAB);
    let x = b.input("x", 320);
    let part = Slice { at: 64, dim: 192, ..x };
    let weight = b.weight(WeightKind::Vector { len: 32 });
    b.op(Op::RmsNorm { x: part, weight, out: part, eps: 1e-6 });
    all.push(b.mixed(x, "rms_norm", "heads of 32, in place".to_string(), FLOAT));
}

const RULES: [ActQuant; 3] = [ActQuant::PerToken, ActQuant::Block256, ActQuant::Block32];

fn linears(all: &mut Vec<Case>) {
    for rule in RULES {
        for (n, block) in
            [(VOCAB, None), (VOCAB, Some(64)), (1, None), (320, Some(256)), (4100, None)]
        {
            for k in [256, 768] {
                // Many rows only once: the twin takes its time.
                if n > 1000 && (k, rule) != (256, ActQuant::PerToken) {
                    continue;
                }
                let mut b = Builder::new(VOCAB);
                let x = b.input("x", k);
                let out = b.product(x, rule, n, block);
                let variant = format!("{rule:?}, block {block:?}, N = {n}, K = {k}");
                // One value that rounds the other way: a step of 1/127 in one of thousands.
                all.push(b.mixed(out, "ternary_linear", variant, HALF));
            }
        }
    }
    for (n, k, block) in [(VOCAB, 256, None), (1, 64, None), (VOCAB, 192, Some(64))] {
        let mut b = Builder::new(VOCAB);
        let x = b.input("x", k);
        let weight = b.weight(WeightKind::Ternary { n, k, block });
        let out = b.floats("y", n);
        b.op(Op::TernaryLinear { x: x.buf, weight, out });
        let variant = format!("f32, block {block:?}, N = {n}, K = {k}");
        all.push(b.mixed(out, "ternary_linear", variant, FLOAT));
    }
    for dtype in [MatrixType::F32, MatrixType::F16, MatrixType::Q8] {
        for (n, k) in [(VOCAB, 256), (1, 64), (1000, 96)] {
            let mut b = Builder::new(VOCAB);
            let x = b.input("x", k);
            let weight = b.weight(WeightKind::Matrix { n, k, dtype });
            let out = b.floats("y", n);
            b.op(Op::DenseLinear { x: x.buf, weight, out });
            all.push(b.mixed(out, "dense_linear", format!("{dtype:?}, N = {n}, K = {k}"), HALF));
        }
    }
    // Rows of f16 that start in the middle of a word.
    let mut b = Builder::new(VOCAB);
    let x = b.input("x", 67);
    let weight = b.weight(WeightKind::Matrix { n: VOCAB, k: 67, dtype: MatrixType::F16 });
    let out = b.floats("y", VOCAB);
    b.op(Op::DenseLinear { x: x.buf, weight, out });
    all.push(b.mixed(out, "dense_linear", "F16, K = 67".to_string(), HALF));
}

/// Products whose integers are compared as such; with a norm in front, which fusion takes in.
fn integers(all: &mut Vec<Case>) {
    for rule in RULES {
        for (block, k, with_norm) in
            [(None, 256, false), (None, 768, true), (Some(64), 768, false), (Some(256), 256, true)]
        {
            let mut b = Builder::new(VOCAB);
            let mut x = b.input("x", k);
            if with_norm {
                x = b.norm(x, 1e-6);
            }
            let out = b.product(x, rule, VOCAB, block);
            let norm = if with_norm { ", normalised" } else { "" };
            let variant = format!("integers, {rule:?}, block {block:?}, K = {k}{norm}");
            let case = b.case(out, "ternary_linear", variant, HALF);
            all.push(Case { unit: Some(whole_unit()), ..case });
        }
    }
}

fn attention(all: &mut Vec<Case>) {
    // Queries, keys and values in one row may run as one dispatch, elsewhere not.
    for (heads, kv_heads, head_dim, layout, one_row, with_norms) in [
        (4, 2, 64, RopeLayout::HalfSplit, true, false),
        (5, 1, 128, RopeLayout::Interleaved, true, false),
        (3, 3, 32, RopeLayout::HalfSplit, false, false),
        (4, 2, 64, RopeLayout::HalfSplit, true, true),
        (2, 1, 256, RopeLayout::Interleaved, true, true),
    ] {
        for kv_type in [KvType::F32, KvType::F16, KvType::Q8] {
            let mut b = Builder::new(VOCAB);
            b.plan.kv = KvSpec { layers: 1, kv_heads, head_dim };
            let inv_freq = (0..head_dim / 2).map(|i| 0.7f32.powi(i as i32)).collect();
            b.plan.rope = RopeSpec { layout, inv_freq, mscale: 1.0 };
            let (q_dim, kv_dim) = (heads * head_dim, kv_heads * head_dim);
            let [q, k, v] = if one_row {
                let row = b.input("qkv", q_dim + 2 * kv_dim);
                b.heads(row)
            } else {
                [("q", q_dim), ("k", kv_dim), ("v", kv_dim)].map(|(name, dim)| b.input(name, dim))
            };
            if with_norms {
                for x in [q, k] {
                    let weight = b.weight(WeightKind::Vector { len: head_dim });
                    b.op(Op::RmsNorm { x, weight, out: x, eps: 1e-6 });
                }
            }
            let out = b.attention([q, k, v], 0);
            let normed = if with_norms { ", normalised" } else { "" };
            let variant =
                format!("{heads}/{kv_heads} heads of {head_dim}{normed}, {layout:?}, {kv_type:?}");
            all.push(Case { kv_type, ..b.mixed(out, "attention", variant, HALF) });
        }
    }
}

fn elementwise(all: &mut Vec<Case>) {
    for (act, name) in [(Activation::Silu, "silu"), (Activation::Relu2, "relu2")] {
        let mut b = Builder::new(VOCAB);
        let both = b.input("gate_up", 200);
        let out = b.gated(both, act);
        all.push(b.mixed(out, "gated_act", name.to_string(), FLOAT));
    }
    let mut b = Builder::new(VOCAB);
    let x = b.input("x", VOCAB);
    let y = b.input("y", VOCAB);
    b.op(Op::Add { x: x.buf, y: y.buf });
    all.push(b.mixed(x, "add", format!("{VOCAB} values"), FLOAT));
}

/// What stands side by side in a layer, and may run as one: norm, rounding, product, residual or gate.
fn fused(all: &mut Vec<Case>) {
    for (rule, block) in [
        (ActQuant::PerToken, None),
        (ActQuant::Block256, Some(256)),
        (ActQuant::Block32, Some(128)),
    ] {
        for act in [Activation::Silu, Activation::Relu2] {
            let mut b = Builder::new(VOCAB);
            let x = b.input("x", 320);
            let normed = b.norm(x, 1e-5);
            let both = b.product(normed, rule, 2 * 404, block);
            let gated = b.gated(both, act);
            let normed = b.norm(gated, 1e-5);
            let y = b.product(normed, rule, 320, block);
            b.op(Op::Add { x: x.buf, y: y.buf });
            // Values that round the other way, twice over.
            let variant = format!("{rule:?}, block {block:?}, {act:?}");
            all.push(b.mixed(x, "feed_forward", variant, 1e-4));
        }
    }
}

/// The logits are a row of a table, the same bits everywhere: what is drawn must be the same.
fn draws(all: &mut Vec<Case>) {
    let plain = Sampling { temperature: 0.7, top_k: 0, seed: 11, ..Sampling::default() };
    for (variant, sampling) in [
        ("greedy", Sampling::greedy()),
        ("temperature", plain),
        ("top-k", Sampling { top_k: 7, ..plain }),
        ("top-p", Sampling { top_p: 0.6, ..plain }),
        ("min-p", Sampling { min_p: 0.4, ..plain }),
        (
            "penalties",
            Sampling {
                repetition_penalty: 1.3,
                presence_penalty: 0.2,
                frequency_penalty: 0.1,
                penalty_window: 16,
                top_k: 20,
                ..plain
            },
        ),
    ] {
        let mut b = Builder::new(VOCAB);
        let rows = b.input("rows", VOCAB);
        let case = b.case(rows, "draw", variant.to_string(), 0.0);
        all.push(Case { compared: Compared::Draw(sampling), ..case });
    }
}

/// The logits are a row of a table again, of more values than a workgroup has invocations.
fn cross_entropy(all: &mut Vec<Case>) {
    let mut b = Builder::new(VOCAB);
    let n = 700;
    b.plan.vocab = n;
    let table = b.weight(WeightKind::Matrix { n, k: n, dtype: MatrixType::F32 });
    let rows = b.floats("rows", n);
    b.op(Op::Embed { table, out: rows.buf });
    let case = b.case(rows, "cross_entropy", format!("{n} logits"), FLOAT);
    all.push(Case { compared: Compared::CrossEntropy, ..case });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(not(target_arch = "wasm32"))]
    #[test]
    fn the_fast_cpu_kernels_agree_with_their_twins() {
        for case in cases() {
            let mut cpu = Cpu::new(Some(2)).unwrap();
            let outcome = pollster::block_on(case.run(&mut cpu));
            assert_eq!(outcome, Ok(()), "{}, {}", case.kernel, case.variant);
        }
    }

    #[test]
    fn a_difference_is_seen() {
        assert!(compare(&[1.0, 2.0], &[1.0, 2.0], 0.0).is_ok());
        assert!(compare(&[1.0, 2.0], &[1.0, 2.01], 1e-7).is_err());
        assert!(compare(&[1.0, 2.0], &[1.0, f32::NAN], 1e-7).is_err());
        assert!(compare(&[1.0], &[1.0, 2.0], 1.0).is_err());
        assert!(compare(&[0.0], &[0.0], 0.0).is_ok());
        assert!(compare_units(&[7.0, -2.0], &[7.1, -2.1], 1.0).is_ok());
        assert!(compare_units(&[7.0, -2.0], &[7.0, -3.0], 1.0).is_err());
    }
}
