//! Operations → dispatches: which variant, with what parameters, over which buffers.

use super::device::Device;
use super::fusion::{Input, Node, Then, reads};
use super::kernels::{Need, Variant, required};
use super::launch::{Bind, Extent, Launch, Plane, When};
use super::params::{self, Params};
use super::pipelines::Overrides;
use super::weights::Weights;
use crate::backend::{BackendError, KvType};
use crate::plan::*;

/// Everything that decides how an operation is run.
pub struct Lowering<'a> {
    pub device: &'a Device,
    pub plan: &'a Plan,
    pub weights: &'a Weights,
    pub kv_type: KvType,
    /// One token a step.
    pub decode: bool,
}

/// Elements from one row of an f32 buffer to the next: padded with zeros, so that kernels may read
/// four at a time and whole blocks of 64.
pub fn stride(dim: u32) -> u32 {
    dim.next_multiple_of(64)
}

fn unsupported<T>(reason: impl Into<String>) -> Result<T, BackendError> {
    Err(BackendError::Unsupported { reason: reason.into() })
}

const VALUES: Plane = Plane::Values;
const ONE: Extent = Extent::Of(1);

/// Whether the rows of `buf` are kept as f16 in steps of many tokens: all that reads them are products
/// on cooperative matrices.
pub fn in_halves(device: &Device, plan: &Plan, buf: BufId) -> bool {
    let spec = plan.buffer(buf);
    let on_matrices = |op: &Op| match *op {
        Op::TernaryLinear { weight, .. } => {
            matches!(plan.weight(weight).kind, WeightKind::Ternary { block: None, .. })
        }
        _ => false,
    };
    device.has(Need::Matrices)
        && (spec.kind, spec.rows) == (BufKind::Quant(ActQuant::PerToken), Rows::Tokens)
        && plan.ops.iter().filter(|op| reads(op).any(|r| r == buf)).all(on_matrices)
}

/// Workgroups of 256 over the features of a row.
fn per_256(dim: u32) -> Extent {
    Extent::Of(dim.div_ceil(256))
}

/// Invocations that share a score of one token's attention.
pub fn attention_lanes(head_dim: u32) -> u32 {
    (head_dim / 64).next_power_of_two().max(4)
}

impl Lowering<'_> {
    /// The dispatches of `nodes`, in order.
    pub fn lower(&self, nodes: &[Node]) -> Result<Vec<Launch>, BackendError> {
        let mut launches = Vec::new();
        for &node in nodes {
            match node {
                Node::Op(i) => self.op(i, &mut launches)?,
                Node::AppendAttention { norms, append, attention } => {
                    self.attention(attention, Some(append), norms, &mut launches)?;
                }
                Node::NormQuantize { norm, quantize } => {
                    launches.push(self.quantize(Some(norm), quantize)?);
                }
                Node::Linear { input, linear, then } => {
                    self.ternary(input, linear, then, &mut launches)?;
                }
            }
        }
        for launch in &launches {
            self.check(launch)?;
        }
        Ok(launches)
    }

    /// WebGPU forbids a buffer that one dispatch both writes and binds a second time.
    fn check(&self, launch: &Launch) -> Result<(), BackendError> {
        let label = &self.plan.labels[launch.op];
        let accesses = launch.variant.bindings();
        for (i, (binding, bind)) in launch.binds.iter().enumerate() {
            let twice = launch.binds[..i].iter().any(|(_, other)| other == bind);
            let writes = |b: u32| accesses.contains(&(b, super::kernels::Access::Write));
            if twice && launch.binds.iter().any(|(b, other)| other == bind && writes(*b)) {
                return unsupported(format!("{label} (binding {binding}) reads what it writes"));
            }
        }
        let listed = accesses.iter().map(|a| a.0).filter(|&b| b != 1);
        debug_assert!(
            listed.eq({
                let mut bound: Vec<_> = launch.binds.iter().map(|b| b.0).collect();
                bound.sort_unstable();
                bound
            }),
            "{label}: bindings of {}",
            launch.variant.name()
        );
        Ok(())
    }

    fn dot4(&self) -> &'static str {
        if self.device.has(Need::Dot4) { "builtin" } else { "emulated" }
    }

    fn kv(&self) -> &'static str {
        match self.kv_type {
            KvType::F32 => "f32",
            KvType::F16 => "f16",
            KvType::Q8 => "q8",
        }
    }

    /// Rows of a buffer as an extent.
    fn rows(&self, buf: BufId, tile: u32) -> Extent {
        Extent::Rows { outputs: self.outputs(buf), tile }
    }

    fn outputs(&self, buf: BufId) -> bool {
        self.plan.buffer(buf).rows == Rows::Outputs
    }

    fn stride(&self, buf: BufId) -> u32 {
        stride(self.plan.buffer(buf).dim)
    }

    fn is_f32(&self, buf: BufId) -> bool {
        self.plan.buffer(buf).kind == BufKind::F32
    }

    /// Matrix-vector (true) or matrix-matrix form of a product over the rows of `x`, and when.
    fn forms(&self, x: BufId) -> impl Iterator<Item = (bool, When)> + use<> {
        let forms: &[_] = match (self.decode, self.outputs(x)) {
            (true, _) => &[(true, When::Always)],
            (false, false) => &[(false, When::Always)],
            (false, true) => &[(true, When::OneOutput), (false, When::ManyOutputs)],
        };
        forms.iter().copied()
    }

    fn launch<P: Params>(
        &self,
        op: usize,
        (variant, overrides): (Variant, Overrides),
        params: P,
        binds: &[(u32, Bind)],
        grid: [Extent; 3],
    ) -> Launch {
        let mut binds = binds.to_vec();
        if variant.bindings().iter().any(|b| b.0 == 0) {
            binds.push((0, Bind::Step));
        }
        Launch {
            variant,
            overrides,
            params: bytemuck::bytes_of(&params).to_vec(),
            binds,
            grid,
            when: When::Always,
            op,
            work: 0,
        }
    }

    fn op(&self, i: usize, launches: &mut Vec<Launch>) -> Result<(), BackendError> {
        match self.plan.ops[i] {
            Op::Embed { table, out } => self.embed(i, table, out, launches)?,
            Op::RmsNorm { x, weight, out, eps } => {
                let (_, len) = self.plan.weight(weight).kind.shape();
                let inplace = x.buf == out.buf;
                if inplace && x != out {
                    return unsupported(format!("{} moves values", self.plan.labels[i]));
                }
                let io = if inplace { "inplace" } else { "separate" };
                let mut binds = vec![
                    (2, Bind::Weight(weight, 0, WeightPart::Data)),
                    (3, Bind::Buf(x.buf, VALUES)),
                ];
                if !inplace {
                    binds.push((4, Bind::Buf(out.buf, VALUES)));
                }
                let params = params::RmsNorm {
                    len,
                    x_stride: self.stride(x.buf),
                    x_at: x.at,
                    out_stride: self.stride(out.buf),
                    out_at: out.at,
                    eps,
                };
                let wg = match len {
                    0..=128 => 32,
                    _ => self.device.workgroup(32 * self.device.run(), 16, 1024),
                };
                let variant = required("rms_norm", &[self.device.reduce(), io])?;
                let grid = [Extent::Of(x.dim / len), self.rows(x.buf, 1), ONE];
                launches.push(self.launch(
                    i,
                    (variant, self.device.reduction(wg)),
                    params,
                    &binds,
                    grid,
                ));
            }
            Op::Quantize { .. } => launches.push(self.quantize(None, i)?),
            Op::TernaryLinear { x, weight, out } => {
                if self.is_f32(x) {
                    self.dense(i, x, weight, out, launches)?;
                } else {
                    self.ternary(None, i, Then::Store, launches)?;
                }
            }
            Op::DenseLinear { x, weight, out } => self.dense(i, x, weight, out, launches)?,
            Op::Rope { x, head_dim } => {
                let pairs = self.plan.rope.inv_freq.len() as u32;
                let params = params::Rope {
                    head_dim,
                    pairs,
                    total: x.dim / head_dim * pairs,
                    interleaved: u32::from(self.plan.rope.layout == RopeLayout::Interleaved),
                    x_stride: self.stride(x.buf),
                    x_at: x.at,
                };
                let binds = [(2, Bind::Rope), (3, Bind::Buf(x.buf, VALUES))];
                let grid = [Extent::Of(params.total.div_ceil(64)), self.rows(x.buf, 1), ONE];
                let variant = required("rope", &[])?;
                launches.push(self.launch(i, (variant, vec![]), params, &binds, grid));
            }
            Op::KvAppend { .. } => launches.push(self.kv_append(i)?),
            Op::Attention { .. } => self.attention(i, None, None, launches)?,
            Op::GatedAct { gate, up, act, out } => {
                let params = params::GatedAct {
                    dim: gate.dim,
                    act: act_code(act) - 2,
                    gate_stride: self.stride(gate.buf),
                    gate_at: gate.at,
                    up_stride: self.stride(up.buf),
                    up_at: up.at,
                    out_stride: self.stride(out.buf),
                    out_at: out.at,
                };
                let binds = [
                    (2, Bind::Buf(gate.buf, VALUES)),
                    (3, Bind::Buf(up.buf, VALUES)),
                    (4, Bind::Buf(out.buf, VALUES)),
                ];
                let grid = [per_256(gate.dim), self.rows(gate.buf, 1), ONE];
                let variant = required("gated_act", &[])?;
                launches.push(self.launch(i, (variant, vec![]), params, &binds, grid));
            }
            Op::Add { x, y } => {
                let dim = self.plan.buffer(x).dim;
                let params =
                    params::Add { dim, x_stride: self.stride(x), y_stride: self.stride(y) };
                let binds = [(2, Bind::Buf(y, VALUES)), (3, Bind::Buf(x, VALUES))];
                let grid = [per_256(dim), self.rows(x, 1), ONE];
                let variant = required("add", &[])?;
                launches.push(self.launch(i, (variant, vec![]), params, &binds, grid));
            }
            Op::TakeOutputs { x, out } => {
                let dim = self.plan.buffer(x).dim;
                let params = params::TakeOutputs {
                    dim,
                    x_stride: self.stride(x),
                    out_stride: self.stride(out),
                };
                let binds = [(2, Bind::Buf(x, VALUES)), (3, Bind::Buf(out, VALUES))];
                let grid = [per_256(dim), self.rows(out, 1), ONE];
                let variant = required("take_outputs", &[])?;
                launches.push(self.launch(i, (variant, vec![]), params, &binds, grid));
            }
        }
        Ok(())
    }

    fn embed(
        &self,
        i: usize,
        table: WeightId,
        out: BufId,
        launches: &mut Vec<Launch>,
    ) -> Result<(), BackendError> {
        let weight = &self.weights.all[table.0 as usize];
        let (name, block, parts) = storage(weight.spec.kind)?;
        let variant = required("embed", &[name])?;
        for (s, shard) in weight.shards.iter().enumerate() {
            let params = params::Embed {
                dim: self.plan.buffer(out).dim,
                out_stride: self.stride(out),
                row_first: shard.row_first,
                rows: shard.rows,
                block,
            };
            let mut binds = vec![(2, Bind::Tokens), (3, Bind::Buf(out, VALUES))];
            binds.extend((4..).zip(parts).map(|(b, &part)| (b, Bind::Weight(table, s, part))));
            let grid = [per_256(params.dim), self.rows(out, 1), Extent::Of(1)];
            launches.push(self.launch(i, (variant, vec![]), params, &binds, grid));
        }
        Ok(())
    }

    fn quantize(&self, norm: Option<usize>, i: usize) -> Result<Launch, BackendError> {
        let Op::Quantize { mut x, out } = self.plan.ops[i] else {
            return unsupported("fusion of something else than a quantize");
        };
        let BufKind::Quant(rule) = self.plan.buffer(out).kind else {
            return unsupported(format!("{} writes floats", self.plan.labels[i]));
        };
        let mut eps_used = 0.0;
        let mut binds = Vec::new();
        if let Some(Op::RmsNorm { x: source, weight, eps, .. }) = norm.map(|n| &self.plan.ops[n]) {
            (x, eps_used) = (*source, *eps);
            binds.push((6, Bind::Weight(*weight, 0, WeightPart::Data)));
        }
        let dim = x.dim;
        if !x.at.is_multiple_of(4) {
            return unsupported(format!("{} starts at feature {}", self.plan.labels[i], x.at));
        }
        let params = params::Quantize {
            dim,
            x_stride: self.stride(x.buf),
            x_at: x.at,
            groups: rule.groups(dim),
            runs: stride(dim) / 32,
            eps: eps_used,
        };
        binds.extend([
            (2, Bind::Buf(x.buf, VALUES)),
            (3, Bind::Buf(out, VALUES)),
            (4, Bind::Buf(out, Plane::Scales)),
            (5, Bind::Buf(out, Plane::Sums)),
        ]);
        let source = if norm.is_some() { "norm" } else { "plain" };
        let variant = required("quantize", &[self.device.reduce(), source])?;
        let code = match rule {
            ActQuant::PerToken => 0,
            ActQuant::Block256 => 1,
            ActQuant::Block32 => 2,
        };
        let grid = [self.rows(x.buf, 1), Extent::Of(1), Extent::Of(1)];
        let mut overrides = self.device.reduction(128);
        let halves = !self.decode && in_halves(self.device, self.plan, out);
        overrides.extend([("RULE", code), ("HALVES", u32::from(halves))]);
        Ok(self.launch(i, (variant, overrides), params, &binds, grid))
    }

    fn ternary(
        &self,
        input: Option<Input>,
        i: usize,
        then: Then,
        launches: &mut Vec<Launch>,
    ) -> Result<(), BackendError> {
        let Op::TernaryLinear { x, weight, mut out } = self.plan.ops[i] else {
            return unsupported("fusion of something else than a ternary product");
        };
        let BufKind::Quant(rule) = self.plan.buffer(x).kind else {
            // A product of floats that a residual follows.
            self.dense(i, x, weight, out, launches)?;
            return match then {
                Then::Store => Ok(()),
                Then::Add(j) | Then::Gated(j) => self.op(j, launches),
            };
        };
        let WeightKind::Ternary { k, block, .. } = self.plan.weight(weight).kind else {
            return unsupported(format!("{} has a dense weight", self.plan.labels[i]));
        };
        let mut epilogue = 0;
        let mut half = 0;
        match then {
            Then::Store => {}
            Then::Add(j) => {
                if let Op::Add { x: to, .. } = self.plan.ops[j] {
                    (epilogue, out) = (1, self.plan.whole(to));
                }
            }
            Then::Gated(j) => {
                if let Op::GatedAct { gate, act, out: to, .. } = self.plan.ops[j] {
                    (epilogue, half, out) = (act_code(act), gate.dim, to);
                }
            }
        }
        let sum = match (rule, block) {
            (ActQuant::PerToken, None) => "row",
            (_, None) => "group",
            (_, Some(_)) => "block",
        };
        let act_shift = rule.group().map_or(31, u32::ilog2);
        let mut overrides = vec![("BLOCKS", k.div_ceil(64)), ("EPILOGUE", epilogue)];
        if sum != "row" {
            overrides.push(("ACT_SHIFT", act_shift));
        }
        if let Some(b) = block {
            if !b.is_power_of_two() || !(64..=256).contains(&b) {
                return unsupported(format!("{}: blocks of {b}", self.plan.labels[i]));
            }
            overrides.push(("BLOCK_SHIFT", b.ilog2() - 6));
        }
        let groups = rule.groups(k);
        let shards = self.weights.all[weight.0 as usize].shards.iter().enumerate();
        for ((s, shard), (gemv, when)) in shards.flat_map(|s| self.forms(x).map(move |f| (s, f))) {
            let mut binds = vec![
                (2, Bind::Weight(weight, s, WeightPart::Data)),
                (3, Bind::Weight(weight, s, WeightPart::RowScales)),
                (8, Bind::Buf(out.buf, VALUES)),
            ];
            if block.is_some() {
                binds.push((7, Bind::Weight(weight, s, WeightPart::BlockScales)));
            }
            let out_at = out.at + shard.row_first;
            let out_stride = self.stride(out.buf);
            let launch = if !gemv && in_halves(self.device, self.plan, x) {
                binds.push((4, Bind::Buf(x, Plane::Values)));
                binds.push((5, Bind::Buf(x, Plane::Scales)));
                let params =
                    params::TernaryGemmMatrix { rows: shard.rows, half, out_stride, out_at };
                let grid = [Extent::Of(shard.rows.div_ceil(128)), self.rows(x, 128), ONE];
                let variant = required("ternary_gemm_matrix", &["f16"])?;
                self.launch(i, (variant, overrides.clone()), params, &binds, grid)
            } else if !gemv {
                binds.extend(quantised(x));
                let params = params::TernaryGemm {
                    rows: shard.rows,
                    k,
                    groups,
                    out_stride,
                    out_at,
                    by_outputs: u32::from(self.outputs(x)),
                };
                let variant = required("ternary_gemm", &[self.dot4(), sum])?;
                let grid = [Extent::Of(shard.rows.div_ceil(64)), self.rows(x, 64), ONE];
                self.launch(i, (variant, overrides.clone()), params, &binds, grid)
            } else {
                let (mut x_stride, mut eps_used) = (0, 0.0);
                let own = input.map(|input| &self.plan.ops[input.norm.unwrap_or(input.quantize)]);
                let acts = match own {
                    Some(Op::RmsNorm { x: source, weight: norm, eps, .. }) => {
                        (x_stride, eps_used) = (self.stride(source.buf), *eps);
                        binds.push((4, Bind::Buf(source.buf, VALUES)));
                        binds.push((5, Bind::Weight(*norm, 0, WeightPart::Data)));
                        if sum == "row" { "norm_row" } else { "norm_group" }
                    }
                    Some(Op::Quantize { x: source, .. }) => {
                        x_stride = self.stride(source.buf);
                        binds.push((4, Bind::Buf(source.buf, VALUES)));
                        if sum == "row" { "own_row" } else { "own_group" }
                    }
                    _ => {
                        binds.extend(quantised(x));
                        "i8"
                    }
                };
                let units = if half > 0 { half } else { shard.rows };
                let rows_each = if half > 0 { 2 } else { 1 };
                let loads = k.div_ceil(64);
                let shape = self.gemv_shape(loads, sum == "row");
                // Twelve loads in flight a lane at most, and none that nothing needs.
                let ahead = loads.div_ceil(shape.lanes).min(12 / rows_each);
                let mut overrides = overrides.clone();
                overrides.extend(self.device.reduction(shape.wg));
                overrides.extend([("LANES", shape.lanes), ("ROWS", rows_each), ("AHEAD", ahead)]);
                let params = params::TernaryGemv {
                    rows: shard.rows,
                    half,
                    k,
                    groups,
                    x_stride,
                    out_stride,
                    out_at,
                    eps: eps_used,
                };
                let grid = [
                    Extent::Of(units.div_ceil(shape.wg / shape.lanes)),
                    self.rows(x, 1),
                    Extent::Of(1),
                ];
                let names = [self.device.reduce(), self.dot4(), acts, sum];
                let variant = required("ternary_gemv", &names)?;
                self.launch(i, (variant, overrides), params, &binds, grid)
            };
            let work = u64::from(shard.rows) * u64::from(k);
            launches.push(Launch { work, when, ..launch });
        }
        Ok(())
    }

    /// A product with f32 activations: dense, or ternary.
    fn dense(
        &self,
        i: usize,
        x: BufId,
        weight: WeightId,
        out: Slice,
        launches: &mut Vec<Launch>,
    ) -> Result<(), BackendError> {
        let kind = self.plan.weight(weight).kind;
        let (name, block, parts) = storage(kind)?;
        let (_, k) = kind.shape();
        // Rows that do not start at whole 16-byte loads are read one by one.
        let name = match name {
            "f32" if !k.is_multiple_of(4) => "f32_any",
            "f16" if !k.is_multiple_of(8) => "f16_any",
            name => name,
        };
        let shards = self.weights.all[weight.0 as usize].shards.iter().enumerate();
        for ((s, shard), (gemv, when)) in shards.flat_map(|s| self.forms(x).map(move |f| (s, f))) {
            let mut binds = vec![(2, Bind::Buf(x, VALUES)), (3, Bind::Buf(out.buf, VALUES))];
            binds.extend((4..).zip(parts).map(|(b, &part)| (b, Bind::Weight(weight, s, part))));
            let (x_stride, out_stride) = (self.stride(x), self.stride(out.buf));
            let out_at = out.at + shard.row_first;
            let rows = shard.rows;
            let launch = if gemv {
                let shape = self.gemv_shape(k.div_ceil(16), false);
                let params = params::DenseGemv { rows, k, block, x_stride, out_stride, out_at };
                let rows_each = if rows >= 1 << 15 { 4 } else { 1 };
                let per_group = shape.wg / shape.lanes * rows_each;
                let grid = [Extent::Of(rows.div_ceil(per_group)), self.rows(x, 1), Extent::Of(1)];
                let mut overrides = self.device.reduction(shape.wg);
                overrides.extend([("LANES", shape.lanes), ("ROWS", rows_each)]);
                let variant = required("dense_gemv", &[self.device.reduce(), name])?;
                self.launch(i, (variant, overrides), params, &binds, grid)
            } else {
                let by_outputs = u32::from(self.outputs(x));
                let params =
                    params::DenseGemm { rows, k, block, x_stride, out_stride, out_at, by_outputs };
                let grid = [Extent::Of(rows.div_ceil(64)), self.rows(x, 64), Extent::Of(1)];
                let variant = required("dense_gemm", &[name])?;
                self.launch(i, (variant, vec![]), params, &binds, grid)
            };
            let work = u64::from(rows) * u64::from(k);
            launches.push(Launch { work, when, ..launch });
        }
        Ok(())
    }

    fn kv_append(&self, i: usize) -> Result<Launch, BackendError> {
        let Op::KvAppend { k, v, layer } = self.plan.ops[i] else {
            return unsupported("fusion of something else than an append");
        };
        let kv_quads = self.kv_quads()?;
        let params = params::KvAppend {
            kv_quads,
            k_stride: self.stride(k.buf),
            k_at: k.at,
            v_stride: self.stride(v.buf),
            v_at: v.at,
        };
        let binds = [
            (2, Bind::Buf(k.buf, VALUES)),
            (3, Bind::Buf(v.buf, VALUES)),
            (4, Bind::Keys(layer)),
            (5, Bind::Values(layer)),
        ];
        let grid = [Extent::Of(kv_quads.div_ceil(64)), self.rows(k.buf, 1), Extent::Of(1)];
        let variant = required("kv_append", &[self.kv()])?;
        Ok(self.launch(i, (variant, vec![]), params, &binds, grid))
    }

    /// `append`: the new position is not in the cache yet, and goes there on the way; its heads are
    /// normalised first by `norms`.
    fn attention(
        &self,
        i: usize,
        append: Option<usize>,
        norms: Option<(usize, usize)>,
        launches: &mut Vec<Launch>,
    ) -> Result<(), BackendError> {
        let Op::Attention { q, layer, heads, scale, out } = self.plan.ops[i] else {
            return unsupported("fusion of something else than attention");
        };
        let kv = self.plan.kv;
        let kv_quads = self.kv_quads()?;
        let quads = kv.head_dim / 4;
        let group = heads / kv.kv_heads.max(1);
        let (q_stride, out_stride) = (self.stride(q.buf), self.stride(out.buf));
        let mut cache = vec![(4, Bind::Keys(layer)), (5, Bind::Values(layer))];
        if !self.decode && quads <= 64 && q.at.is_multiple_of(4) && out.at.is_multiple_of(4) {
            let params = params::AttentionPrefill {
                group,
                kv_quads,
                q_stride,
                q_at: q.at,
                out_stride,
                out_at: out.at,
                scale,
            };
            let mut binds = vec![(2, Bind::Buf(q.buf, VALUES)), (3, Bind::Buf(out.buf, VALUES))];
            binds.extend(cache);
            let grid = [Extent::Of(heads), self.rows(q.buf, 64), Extent::Of(1)];
            let matrices = self.device.has(Need::Matrices)
                && self.kv_type == KvType::F16
                && quads <= 32
                && quads.is_multiple_of(8);
            let variant = match matrices {
                true => required("attention_prefill_matrix", &["f16"])?,
                false => required("attention_prefill", &[self.kv()])?,
            };
            let made = (variant, vec![("QUADS", quads)]);
            launches.push(self.launch(i, made, params, &binds, grid));
            return Ok(());
        }
        let wg = self.device.attention_wg();
        let lanes = attention_lanes(kv.head_dim);
        if quads > wg || lanes > self.device.run() || !q.at.is_multiple_of(4) {
            return unsupported(format!("heads of {} features from {}", kv.head_dim, q.at));
        }
        let mut overrides = self.device.reduction(wg);
        overrides.extend([("QUADS", quads), ("LANES", lanes)]);
        let (mut k_at, mut v_at, mut norm_eps) = (0, 0, 0.0);
        let query = match append.map(|a| &self.plan.ops[a]) {
            Some(Op::KvAppend { k, v, .. }) => {
                (k_at, v_at) = (k.at, v.at);
                cache.push((6, Bind::Rope));
                let interleaved = self.plan.rope.layout == RopeLayout::Interleaved;
                overrides.push(("PAIRS", self.plan.rope.inv_freq.len() as u32));
                overrides.push(("INTERLEAVED", u32::from(interleaved)));
                let norm = |n: usize| match self.plan.ops[n] {
                    Op::RmsNorm { weight, eps, .. } => Some((weight, eps)),
                    _ => None,
                };
                match norms.and_then(|(a, b)| norm(a).zip(norm(b))) {
                    Some(((query, eps), (key, _))) => {
                        norm_eps = eps;
                        cache.push((7, Bind::Weight(query, 0, WeightPart::Data)));
                        cache.push((8, Bind::Weight(key, 0, WeightPart::Data)));
                        "norm_append"
                    }
                    None => "append",
                }
            }
            _ => "plain",
        };
        let params = params::AttentionDecode {
            group,
            kv_quads,
            q_stride,
            q_at: q.at,
            k_at,
            v_at,
            out_stride,
            out_at: out.at,
            scale,
            eps: norm_eps,
        };
        let variant = required("attention_decode", &[self.device.reduce(), self.kv(), query])?;
        for when in [When::Whole, When::Split] {
            // Steps of many tokens are never split.
            if when == When::Split && !self.decode {
                continue;
            }
            let to = match when {
                When::Split => Bind::Partial,
                _ => Bind::Buf(out.buf, VALUES),
            };
            let mut binds = vec![(2, Bind::Buf(q.buf, VALUES)), (3, to)];
            binds.extend(cache.iter().copied());
            let grid = [Extent::Of(heads), Extent::Splits, self.rows(q.buf, 1)];
            let launch = self.launch(i, (variant, overrides.clone()), params, &binds, grid);
            launches.push(Launch { when, ..launch });
        }
        if self.decode {
            let params =
                params::AttentionCombine { head_dim: kv.head_dim, out_stride, out_at: out.at };
            let binds = [(2, Bind::Partial), (3, Bind::Buf(out.buf, VALUES))];
            let grid = [Extent::Of(heads), self.rows(q.buf, 1), Extent::Of(1)];
            let variant = required("attention_combine", &[])?;
            let launch = self.launch(i, (variant, vec![]), params, &binds, grid);
            launches.push(Launch { when: When::Split, ..launch });
        }
        Ok(())
    }

    fn kv_quads(&self) -> Result<u32, BackendError> {
        let kv = self.plan.kv;
        if !kv.head_dim.is_multiple_of(4) {
            return unsupported(format!("heads of {} features", kv.head_dim));
        }
        Ok(kv.kv_heads * kv.head_dim / 4)
    }

    /// How a product of one vector with rows of `loads` 16-byte loads each is spread: enough
    /// invocations to have every load of a matrix in flight at once, workgroups large enough that
    /// a fused norm, which each makes for itself, costs little. `by_row`: one scale a row and a token,
    /// so that less is done for each load, and smaller workgroups are up to a seventh faster.
    fn gemv_shape(&self, loads: u32, by_row: bool) -> GemvShape {
        let (wg, lanes) = match loads {
            0..=128 if by_row => (self.device.gemv_wg().min(256), 8),
            0..=64 => (self.device.gemv_wg(), 8),
            65..=128 => (self.device.gemv_wg(), 16),
            _ => (self.device.gemv_wg(), 32),
        };
        GemvShape { wg, lanes: lanes.min(self.device.run()) }
    }
}

/// Workgroup size and lanes a row.
struct GemvShape {
    wg: u32,
    lanes: u32,
}

/// The planes of a quantised buffer at their bindings.
fn quantised(x: BufId) -> [(u32, Bind); 3] {
    [
        (4, Bind::Buf(x, Plane::Values)),
        (5, Bind::Buf(x, Plane::Scales)),
        (6, Bind::Buf(x, Plane::Sums)),
    ]
}

/// `EPILOGUE` of a gated product; less 2, the code of `gated_act`.
fn act_code(act: Activation) -> u32 {
    match act {
        Activation::Relu2 => 2,
        Activation::Silu => 3,
    }
}

/// Name of a matrix's storage in the kernel table, its block length, and its parts.
fn storage(kind: WeightKind) -> Result<(&'static str, u32, &'static [WeightPart]), BackendError> {
    use WeightPart::*;
    Ok(match kind {
        WeightKind::Ternary { block: None, .. } => ("ternary", 0, &[Data, RowScales]),
        WeightKind::Ternary { block: Some(b), .. } => {
            ("ternary_block", b, &[Data, RowScales, BlockScales])
        }
        WeightKind::Matrix { dtype: MatrixType::F32, .. } => ("f32", 0, &[Data]),
        WeightKind::Matrix { dtype: MatrixType::F16, .. } => ("f16", 0, &[Data]),
        WeightKind::Matrix { dtype: MatrixType::Q8, .. } => ("q8", 0, &[Data, BlockScales]),
        WeightKind::Vector { .. } => return unsupported("a vector in place of a matrix"),
    })
}
