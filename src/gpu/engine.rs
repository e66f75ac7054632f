//! A prepared plan: buffers, bind groups made once, and the replay of its dispatches.

use super::device::Device;
use super::fusion::{self, Rules};
use super::kernels::Access;
use super::launch::{Bind, Extent, Launch, Plane, When};
use super::lower::{Lowering, in_halves, stride};
use super::params;
use super::pipelines::{Pipeline, Pipelines};
use super::weights::Weights;
use crate::backend::{BackendError, KvType, Outputs, RunOptions};
use crate::plan::{BufId, BufKind, BufSpec, Op, Plan, RopeSpec, Rows, WeightPart};
use std::collections::{HashMap, HashSet};
use wgpu::BufferUsages;

/// Multiply-adds of ternary and dense products that one submit may hold. A small GPU does some
/// 10¹¹ a second; a submit then takes a third of a second at most, and no desktop freezes.
const WORK_PER_SUBMIT: u64 = 30_000_000_000;
/// Positions that a split of the context aims at.
const SPLIT_TOKENS: u32 = 64;
/// Most splits of the context.
const SPLITS_MAX: u32 = 64;
/// What guard rows are filled with.
pub const GUARD: u8 = 0xa5;
/// Offset of a `Params` in the common buffer: the largest alignment that WebGPU may ask for.
const PARAMS_ALIGN: u64 = 256;

/// The planes of an activation buffer.
struct Planes {
    values: wgpu::Buffer,
    scales: Option<wgpu::Buffer>,
    sums: Option<wgpu::Buffer>,
}

/// A dispatch with everything bound.
pub struct Ready {
    pub pipeline: Pipeline,
    group: wgpu::BindGroup,
    pub launch: Launch,
}

/// A list of dispatches for one kind of step.
#[derive(Default)]
pub struct Program {
    pub ready: Vec<Ready>,
}

/// The numbers of a step that decide which dispatches run and how large they are.
#[derive(Clone, Copy, Debug)]
pub struct StepShape {
    pub tokens: u32,
    pub outputs: u32,
    pub splits: u32,
}

/// A plan made ready to run.
pub struct Engine {
    pub plan: Plan,
    pub options: RunOptions,
    pub decode: Program,
    pub prefill: Program,
    pub step: wgpu::Buffer,
    pub tokens: wgpu::Buffer,
    pub bytes: u64,
    output_rows: u32,
    /// Which buffers are f16 in steps of many tokens.
    pub halves: Vec<bool>,
    /// Rows of each buffer; none of those that only a trace sees.
    rows: Vec<u64>,
    buffers: Vec<Planes>,
    keys: Vec<wgpu::Buffer>,
    values: Vec<wgpu::Buffer>,
    rope: wgpu::Buffer,
    partial: wgpu::Buffer,
}

/// Bytes of a position in the device's cache. Q8 keeps its scales as f32.
fn kv_row_bytes(kv_type: KvType, dim: u32) -> u64 {
    let dim = u64::from(dim);
    match kv_type {
        KvType::F32 => dim * 4,
        KvType::F16 => dim * 2,
        KvType::Q8 => dim + dim.div_ceil(32) * 4,
    }
}

/// Bytes a row takes in a plane of a buffer; `halves`: its quantised values may be f16.
fn plane_row_bytes(spec: &BufSpec, plane: Plane, halves: bool) -> u64 {
    let padded = u64::from(stride(spec.dim));
    match (spec.kind, plane) {
        (BufKind::F32, Plane::Values) => padded * 4,
        (BufKind::Quant(_), Plane::Values) => padded * if halves { 2 } else { 1 },
        (BufKind::Quant(rule), Plane::Scales) => u64::from(rule.groups(spec.dim)) * 4,
        (BufKind::Quant(_), Plane::Sums) => (padded / 32 + 1) * 4,
        _ => 0,
    }
}

/// `[context, pairs]` of (cos, sin), times `mscale`. The angle is rounded to f32 first, as the
/// reference programs do.
fn rope_table(rope: &RopeSpec, context: u32) -> Vec<f32> {
    (0..context)
        .flat_map(|pos| {
            rope.inv_freq.iter().flat_map(move |&step| {
                let angle = pos as f32 * step;
                [angle.cos() * rope.mscale, angle.sin() * rope.mscale]
            })
        })
        .collect()
}

impl Engine {
    /// Allocates, compiles and binds everything that `plan` needs.
    pub async fn prepare(
        device: &Device,
        pipelines: &mut Pipelines,
        weights: &Weights,
        plan: &Plan,
        options: RunOptions,
    ) -> Result<Engine, BackendError> {
        let mut bytes = 0u64;
        let mut sizes: Vec<(String, u64)> = Vec::new();
        let kv = plan.kv;
        let kv_bytes =
            kv_row_bytes(options.kv_type, kv.kv_heads * kv.head_dim) * u64::from(options.context);
        let heads = plan.ops.iter().filter_map(|op| match op {
            Op::Attention { heads, .. } => Some(*heads),
            _ => None,
        });
        let partial_bytes = u64::from(heads.max().unwrap_or(0))
            * u64::from(SPLITS_MAX)
            * (u64::from(kv.head_dim) + 2)
            * 4;
        let rope_bytes = plan.rope.inv_freq.len() as u64 * 8 * u64::from(options.context);
        let mut used = HashSet::from([plan.logits]);
        for decode in [true, false] {
            let launches = launches(device, weights, plan, options.kv_type, decode, true)?;
            used.extend(launches.iter().flat_map(|l| &l.binds).filter_map(
                |&(_, bind)| match bind {
                    Bind::Buf(id, _) => Some(id),
                    _ => None,
                },
            ));
        }
        let rows: Vec<u64> = (0u32..)
            .zip(&plan.buffers)
            .map(|(i, spec)| match spec.rows {
                _ if !used.contains(&BufId(i)) => 0,
                Rows::Tokens => u64::from(options.max_tokens),
                Rows::Outputs => 1,
            })
            .collect();
        let halves: Vec<bool> =
            (0..plan.buffers.len()).map(|i| in_halves(device, plan, BufId(i as u32))).collect();
        for ((spec, &halves), rows) in plan.buffers.iter().zip(&halves).zip(&rows) {
            for plane in [Plane::Values, Plane::Scales, Plane::Sums] {
                sizes.push((spec.name.into(), rows * plane_row_bytes(spec, plane, halves)));
            }
        }
        for layer in 0..kv.layers {
            sizes.push((format!("keys of layer {layer}"), kv_bytes));
            sizes.push((format!("values of layer {layer}"), kv_bytes));
        }
        sizes.push(("rope".into(), rope_bytes));
        sizes.push(("split attention".into(), partial_bytes));
        for (what, size) in &sizes {
            fits(device, what, *size)?;
            bytes += size;
        }

        let storage = BufferUsages::STORAGE;
        let io = storage | BufferUsages::COPY_DST | BufferUsages::COPY_SRC;
        let table = rope_table(&plan.rope, options.context);
        let mut engine = device
            .guarded("the plan's buffers", bytes, || {
                let layer_buffers = |name: &str| -> Vec<_> {
                    let row_bytes = kv_bytes / u64::from(options.context);
                    let make =
                        |_| guarded_rows(device, name, u64::from(options.context), row_bytes);
                    (0..kv.layers).map(make).collect()
                };
                let rope = device.buffer("rope", rope_bytes, storage | BufferUsages::COPY_DST);
                device.queue.write_buffer(&rope, 0, bytemuck::cast_slice(&table));
                Ok(Engine {
                    plan: plan.clone(),
                    options,
                    decode: Program::default(),
                    prefill: Program::default(),
                    step: device.buffer(
                        "step",
                        size_of::<params::Step>() as u64,
                        io | BufferUsages::UNIFORM,
                    ),
                    tokens: device.buffer("tokens", u64::from(options.context) * 4 + 4, io),
                    bytes,
                    output_rows: 1,
                    buffers: plan
                        .buffers
                        .iter()
                        .zip(&halves)
                        .zip(&rows)
                        .map(|((spec, &halves), &rows)| planes(device, spec, rows, halves))
                        .collect(),
                    halves,
                    rows,
                    keys: layer_buffers("keys"),
                    values: layer_buffers("values"),
                    rope,
                    partial: device.buffer("split attention", partial_bytes, storage),
                })
            })
            .await?;
        engine.bind(device, pipelines, weights).await?;
        Ok(engine)
    }

    /// Makes the programs over the buffers as they are now.
    async fn bind(
        &mut self,
        device: &Device,
        pipelines: &mut Pipelines,
        weights: &Weights,
    ) -> Result<(), BackendError> {
        self.decode = self.program(device, pipelines, weights, true, true).await?;
        self.prefill = self.program(device, pipelines, weights, false, true).await?;
        Ok(())
    }

    /// The dispatches for steps of one token (`decode`) or many, fused or op by op.
    pub async fn program(
        &self,
        device: &Device,
        pipelines: &mut Pipelines,
        weights: &Weights,
        decode: bool,
        fused: bool,
    ) -> Result<Program, BackendError> {
        let launches = launches(device, weights, &self.plan, self.options.kv_type, decode, fused)?;
        device
            .guarded("the plan's pipelines", 0, || {
                Ok(self.instantiate(device, pipelines, weights, launches))
            })
            .await
    }

    fn instantiate(
        &self,
        device: &Device,
        pipelines: &mut Pipelines,
        weights: &Weights,
        launches: Vec<Launch>,
    ) -> Program {
        // Equal parameters share a place.
        let mut places: HashMap<Vec<u8>, u64> = HashMap::new();
        let mut data = Vec::new();
        for launch in &launches {
            places.entry(launch.params.clone()).or_insert_with(|| {
                let at = data.len() as u64;
                data.extend_from_slice(&launch.params);
                data.resize(data.len().next_multiple_of(PARAMS_ALIGN as usize), 0);
                at
            });
        }
        let params = device.filled("params", &data, BufferUsages::UNIFORM);
        let ready = launches
            .into_iter()
            .map(|launch| {
                let pipeline = pipelines.get(device, launch.variant, &launch.overrides);
                let place = wgpu::BufferBinding {
                    buffer: &params,
                    offset: places[&launch.params],
                    size: wgpu::BufferSize::new(launch.params.len() as u64),
                };
                let mut entries = vec![wgpu::BindGroupEntry {
                    binding: 1,
                    resource: wgpu::BindingResource::Buffer(place),
                }];
                entries.extend(launch.binds.iter().map(|&(binding, bind)| wgpu::BindGroupEntry {
                    binding,
                    resource: self.buffer(weights, bind).as_entire_binding(),
                }));
                let group = device.raw.create_bind_group(&wgpu::BindGroupDescriptor {
                    label: Some(&self.plan.labels[launch.op]),
                    layout: &pipeline.layout,
                    entries: &entries,
                });
                Ready { pipeline, group, launch }
            })
            .collect();
        Program { ready }
    }

    fn buffer<'a>(&'a self, weights: &'a Weights, bind: Bind) -> &'a wgpu::Buffer {
        match bind {
            Bind::Buf(id, plane) => {
                let planes = &self.buffers[id.0 as usize];
                let other = match plane {
                    Plane::Values => None,
                    Plane::Scales => planes.scales.as_ref(),
                    Plane::Sums => planes.sums.as_ref(),
                };
                other.unwrap_or(&planes.values)
            }
            Bind::Weight(id, shard, part) => {
                let shard = &weights.all[id.0 as usize].shards[shard];
                let other = match part {
                    WeightPart::Data => None,
                    WeightPart::RowScales => shard.row_scales.as_ref(),
                    WeightPart::BlockScales => shard.block_scales.as_ref(),
                };
                other.unwrap_or(&shard.data)
            }
            Bind::Keys(layer) => &self.keys[layer as usize],
            Bind::Values(layer) => &self.values[layer as usize],
            Bind::Step => &self.step,
            Bind::Tokens => &self.tokens,
            Bind::Rope => &self.rope,
            Bind::Partial => &self.partial,
        }
    }

    /// Every buffer that kernels write row by row: name, buffer, bytes of a row, and the bytes of it
    /// that have a meaning.
    pub fn written(&self) -> Vec<(&'static str, &wgpu::Buffer, u64, u64)> {
        let mut all = Vec::new();
        let buffers = self.plan.buffers.iter().zip(&self.buffers).zip(&self.halves);
        for ((spec, planes), &halves) in buffers {
            let row = |plane| plane_row_bytes(spec, plane, halves);
            let used = match spec.kind {
                BufKind::F32 => u64::from(spec.dim) * 4,
                // Of f16, two of four are exchanged.
                BufKind::Quant(_) if halves => u64::from(spec.dim.next_multiple_of(4)) * 2,
                BufKind::Quant(_) => u64::from(spec.dim),
            };
            all.push((spec.name, &planes.values, row(Plane::Values), used));
            for (plane, buffer) in [(Plane::Scales, &planes.scales), (Plane::Sums, &planes.sums)] {
                all.extend(buffer.iter().map(|b| (spec.name, b, row(plane), row(plane))));
            }
        }
        let kv = self.plan.kv;
        let row = kv_row_bytes(self.options.kv_type, kv.kv_heads * kv.head_dim);
        all.extend(self.keys.iter().map(|b| ("keys", b, row, row)));
        all.extend(self.values.iter().map(|b| ("values", b, row, row)));
        all
    }

    /// A plane of an activation buffer.
    pub fn plane(&self, id: BufId, plane: Plane) -> &wgpu::Buffer {
        let planes = &self.buffers[id.0 as usize];
        match plane {
            Plane::Values => &planes.values,
            Plane::Scales => planes.scales.as_ref().unwrap_or(&planes.values),
            Plane::Sums => planes.sums.as_ref().unwrap_or(&planes.values),
        }
    }

    /// Wanted outputs that there is room for.
    pub fn output_rows(&self) -> u32 {
        self.output_rows
    }

    /// Makes room for `rows` wanted outputs.
    pub async fn reserve_outputs(
        &mut self,
        device: &Device,
        pipelines: &mut Pipelines,
        weights: &Weights,
        rows: u32,
    ) -> Result<(), BackendError> {
        if rows <= self.output_rows {
            return Ok(());
        }
        let is_output = |spec: &BufSpec, old| spec.rows == Rows::Outputs && old > 0;
        self.resize(device, pipelines, weights, rows, is_output).await
    }

    /// Makes room for what only a trace sees: between operations that otherwise run as one.
    pub async fn reserve_all(
        &mut self,
        device: &Device,
        pipelines: &mut Pipelines,
        weights: &Weights,
    ) -> Result<(), BackendError> {
        match self.rows.contains(&0) {
            true => {
                let outputs = self.output_rows;
                self.resize(device, pipelines, weights, outputs, |_, old| old == 0).await
            }
            false => Ok(()),
        }
    }

    /// Makes those buffers anew, for steps that want `outputs` rows of logits, of which and of whose
    /// rows `wanted` says so.
    async fn resize(
        &mut self,
        device: &Device,
        pipelines: &mut Pipelines,
        weights: &Weights,
        outputs: u32,
        wanted: impl Fn(&BufSpec, u64) -> bool,
    ) -> Result<(), BackendError> {
        let mut grown = 0;
        let mut sizes = Vec::new();
        for (i, spec) in self.plan.buffers.iter().enumerate() {
            if !wanted(spec, self.rows[i]) {
                continue;
            }
            let rows = match spec.rows {
                Rows::Tokens => u64::from(self.options.max_tokens),
                Rows::Outputs => u64::from(outputs),
            };
            for plane in [Plane::Values, Plane::Scales, Plane::Sums] {
                let row_bytes = plane_row_bytes(spec, plane, self.halves[i]);
                fits(device, &format!("{} of {rows} rows", spec.name), row_bytes * rows)?;
                grown += row_bytes * (rows - self.rows[i]);
            }
            sizes.push((i, rows));
        }
        let make =
            |&(i, rows): &(usize, u64)| planes(device, &self.plan.buffers[i], rows, self.halves[i]);
        let fresh: Vec<_> = device
            .guarded("rows of buffers", grown, || Ok(sizes.iter().map(make).collect()))
            .await?;
        for ((i, rows), planes) in sizes.into_iter().zip(fresh) {
            (self.rows[i], self.buffers[i]) = (rows, planes);
        }
        self.output_rows = outputs;
        self.bytes += grown;
        self.bind(device, pipelines, weights).await
    }

    /// The shape of a step.
    pub fn shape(&self, pos: u32, tokens: u32, outputs: Outputs) -> StepShape {
        let positions = pos + tokens;
        // A few more positions cost less than the dispatch that joins two splits.
        let splits = match tokens {
            1 if positions > 2 * SPLIT_TOKENS => positions.div_ceil(SPLIT_TOKENS).min(SPLITS_MAX),
            _ => 1,
        };
        StepShape { tokens, outputs: outputs.rows(tokens as usize) as u32, splits }
    }

    /// Writes the step and its tokens to the device.
    pub fn write_step(&self, device: &Device, pos: u32, tokens: &[u32], shape: StepShape) {
        let step = params::Step {
            pos,
            tokens: shape.tokens,
            out_first: shape.tokens - shape.outputs.min(shape.tokens),
            out_rows: shape.outputs,
            splits: shape.splits,
            ..Default::default()
        };
        device.queue.write_buffer(&self.step, 0, bytemuck::bytes_of(&step));
        let at = u64::from(pos) * 4;
        device.queue.write_buffer(&self.tokens, at, bytemuck::cast_slice(tokens));
    }

    /// Runs a step, in as many submits as its work asks for.
    pub fn replay(&self, device: &Device, shape: StepShape) {
        let program = if shape.tokens == 1 { &self.decode } else { &self.prefill };
        let mut from = 0;
        while from < program.ready.len() {
            let mut encoder = device.raw.create_command_encoder(&Default::default());
            from = {
                let mut pass = encoder.begin_compute_pass(&Default::default());
                program.encode(&mut pass, from, shape, WORK_PER_SUBMIT)
            };
            device.queue.submit([encoder.finish()]);
        }
    }
}

impl Program {
    /// Encodes dispatches from `from` on until their work reaches `work`; returns where it stopped.
    pub fn encode(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        from: usize,
        shape: StepShape,
        work: u64,
    ) -> usize {
        let mut done = 0;
        for (i, ready) in self.ready.iter().enumerate().skip(from) {
            if done >= work {
                return i;
            }
            ready.encode(pass, shape);
            done += ready.launch.work * u64::from(shape.tokens);
        }
        self.ready.len()
    }
}

impl Ready {
    /// The workgroups of a step of this shape; `None` when it has none.
    pub fn grid(&self, shape: StepShape) -> Option<[u32; 3]> {
        let runs = match self.launch.when {
            When::Always => true,
            When::Whole => shape.splits == 1,
            When::Split => shape.splits > 1,
            When::OneOutput => shape.outputs == 1,
            When::ManyOutputs => shape.outputs > 1,
        };
        let grid = self.launch.grid.map(|extent| match extent {
            Extent::Of(n) => n,
            Extent::Rows { outputs, tile } => {
                (if outputs { shape.outputs } else { shape.tokens }).div_ceil(tile)
            }
            Extent::Splits => shape.splits,
        });
        (runs && !grid.contains(&0)).then_some(grid)
    }

    /// Whether the two do the same on different buffers: as an operation does in every layer.
    pub fn is_like(&self, other: &Ready) -> bool {
        let (a, b) = (&self.launch, &other.launch);
        (a.variant, &a.overrides, &a.params, a.grid, a.when)
            == (b.variant, &b.overrides, &b.params, b.grid, b.when)
    }

    /// Encodes the dispatch, if the step has one.
    pub fn encode(&self, pass: &mut wgpu::ComputePass<'_>, shape: StepShape) {
        if let Some([x, y, z]) = self.grid(shape) {
            pass.set_pipeline(&self.pipeline.raw);
            pass.set_bind_group(0, &self.group, &[]);
            pass.dispatch_workgroups(x, y, z);
        }
    }

    /// Bytes of weights, cache and rows that the dispatch must at least read or write: each bound
    /// buffer once.
    pub fn weight_bytes(&self, weights: &Weights) -> u64 {
        let accesses = self.launch.variant.bindings();
        self.launch
            .binds
            .iter()
            .filter(|(b, _)| accesses.contains(&(*b, Access::Read)))
            .map(|(_, bind)| match *bind {
                Bind::Weight(id, shard, part) => {
                    let weight = &weights.all[id.0 as usize];
                    u64::from(weight.shards[shard].rows) * weight.spec.kind.row_bytes(part)
                }
                _ => 0,
            })
            .sum()
    }
}

/// The dispatches for steps of one token (`decode`) or many, fused or op by op.
fn launches(
    device: &Device,
    weights: &Weights,
    plan: &Plan,
    kv_type: KvType,
    decode: bool,
    fused: bool,
) -> Result<Vec<Launch>, BackendError> {
    let nodes = if fused {
        let gates = |i: usize| match plan.ops[i] {
            Op::TernaryLinear { x, weight, .. } => {
                (decode || in_halves(device, plan, x))
                    && weights.all[weight.0 as usize].shards.len() == 1
            }
            _ => false,
        };
        fusion::fuse(plan, Rules { decode, row_max: device.row_max() }, gates)
    } else {
        fusion::unfused(plan)
    };
    Lowering { device, plan, weights, kv_type, decode }.lower(&nodes)
}

fn planes(device: &Device, spec: &BufSpec, rows: u64, halves: bool) -> Planes {
    let row_bytes = |plane| plane_row_bytes(spec, plane, halves);
    let make = |plane| guarded_rows(device, spec.name, rows, row_bytes(plane));
    let some = |plane| (row_bytes(plane) > 0).then(|| make(plane));
    Planes { values: make(Plane::Values), scales: some(Plane::Scales), sums: some(Plane::Sums) }
}

/// A buffer of rows that kernels write, with a guard row behind if the device is to have them.
fn guarded_rows(device: &Device, name: &str, rows: u64, row_bytes: u64) -> wgpu::Buffer {
    let usage = BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST;
    let guard = u64::from(device.guards);
    let buffer = device.buffer(name, (rows + guard) * row_bytes, usage);
    if device.guards {
        device.queue.write_buffer(&buffer, rows * row_bytes, &vec![GUARD; row_bytes as usize]);
    }
    buffer
}

fn fits(device: &Device, what: &str, bytes: u64) -> Result<(), BackendError> {
    let largest = device.caps.max_binding_bytes.min(device.caps.max_buffer_bytes);
    if bytes > largest {
        let reason = format!("{what} needs {bytes} bytes, the device binds at most {largest}");
        return Err(BackendError::Unsupported { reason });
    }
    Ok(())
}
