//! Running a step op by op, to see every output or to time every dispatch.

use super::device::Device;
use super::engine::{Engine, GUARD, Program, Ready, StepShape};
use super::kernels::variant;
use super::launch::Plane;
use super::lower::stride;
use super::params;
use super::pipelines::Pipelines;
use super::weights::Weights;
use crate::backend::BackendError;
pub use crate::backend::OpTime;
use crate::plan::{ActQuant, BufId, BufKind, Op, Plan, Rows, Slice};
use half::f16;
use wgpu::BufferUsages;

/// The rows of a buffer as f32, quantised ones multiplied out.
pub async fn read_rows(
    device: &Device,
    engine: &Engine,
    id: BufId,
    shape: StepShape,
) -> Result<Vec<f32>, BackendError> {
    let spec = engine.plan.buffer(id).clone();
    let rows = match spec.rows {
        Rows::Tokens => shape.tokens,
        Rows::Outputs => shape.outputs,
    };
    if rows == 0 {
        return Ok(Vec::new());
    }
    let (dim, padded) = (spec.dim as usize, stride(spec.dim) as usize);
    let values = read_plane(device, engine, id, Plane::Values).await?;
    match spec.kind {
        BufKind::F32 => {
            let values: Vec<f32> = bytemuck::pod_collect_to_vec(&values);
            Ok(values.chunks(padded).take(rows as usize).flat_map(|r| &r[..dim]).copied().collect())
        }
        BufKind::Quant(rule) => {
            let scales = read_plane(device, engine, id, Plane::Scales).await?;
            let scales: Vec<f32> = bytemuck::pod_collect_to_vec(&scales);
            let groups = rule.groups(spec.dim) as usize;
            let group = group_len(rule, dim);
            let values: Vec<i8> = if engine.halves[id.0 as usize] && shape.tokens > 1 {
                let halves: Vec<f16> = bytemuck::pod_collect_to_vec(&values);
                // The middle two of each four are exchanged.
                halves.chunks(4).flat_map(|h| [h[0], h[2], h[1], h[3]]).map(whole).collect()
            } else {
                bytemuck::pod_collect_to_vec(&values)
            };
            Ok(values
                .chunks(padded)
                .zip(scales.chunks(groups))
                .take(rows as usize)
                .flat_map(|(q, d)| (0..dim).map(move |k| f32::from(q[k]) * d[k / group]))
                .collect())
        }
    }
}

fn whole(value: f16) -> i8 {
    value.to_f32() as i8
}

fn group_len(rule: ActQuant, dim: usize) -> usize {
    rule.group().map_or(dim.max(1), |g| g as usize)
}

async fn read_plane(
    device: &Device,
    engine: &Engine,
    id: BufId,
    plane: Plane,
) -> Result<Vec<u8>, BackendError> {
    read_buffer(device, engine.plane(id, plane)).await
}

/// What an operation writes; `None` for the cache.
fn written(plan: &Plan, op: &Op) -> Option<Slice> {
    match *op {
        Op::RmsNorm { out, .. }
        | Op::TernaryLinear { out, .. }
        | Op::DenseLinear { out, .. }
        | Op::Attention { out, .. }
        | Op::GatedAct { out, .. }
        | Op::Rope { x: out, .. } => Some(out),
        _ => op.output().map(|buf| plan.whole(buf)),
    }
}

/// All of a buffer.
pub async fn read_buffer(device: &Device, buffer: &wgpu::Buffer) -> Result<Vec<u8>, BackendError> {
    let bytes = buffer.size();
    let staging = device
        .guarded("a read-back", bytes, || {
            let usage = BufferUsages::MAP_READ | BufferUsages::COPY_DST;
            let staging = device.buffer("read back", bytes, usage);
            let mut encoder = device.raw.create_command_encoder(&Default::default());
            encoder.copy_buffer_to_buffer(buffer, 0, &staging, 0, bytes);
            device.queue.submit([encoder.finish()]);
            Ok(staging)
        })
        .await?;
    device.read(&staging, bytes).await
}

/// Runs the dispatches of `program` one operation at a time.
pub async fn trace(
    device: &Device,
    engine: &Engine,
    program: &Program,
    shape: StepShape,
    sink: &mut dyn FnMut(usize, &[f32]),
) -> Result<(), BackendError> {
    let mut ready = program.ready.iter().peekable();
    for (i, op) in engine.plan.ops.iter().enumerate() {
        let mut encoder = device.raw.create_command_encoder(&Default::default());
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            while let Some(next) = ready.next_if(|r| r.launch.op == i) {
                next.encode(&mut pass, shape);
            }
        }
        device.queue.submit([encoder.finish()]);
        if let Some(out) = written(&engine.plan, op) {
            let dim = engine.plan.buffer(out.buf).dim as usize;
            let rows = read_rows(device, engine, out.buf, shape).await?;
            let (at, len) = (out.at as usize, out.dim as usize);
            let slice: Vec<f32> =
                rows.chunks(dim).flat_map(|r| &r[at..at + len]).copied().collect();
            sink(i, &slice);
        }
    }
    device.check()
}

/// Timestamps on the device, and where they are read.
struct Stamps {
    set: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    count: u32,
}

impl Stamps {
    fn new(device: &Device, count: u32) -> Stamps {
        let set = device.raw.create_query_set(&wgpu::QuerySetDescriptor {
            label: None,
            ty: wgpu::QueryType::Timestamp,
            count,
        });
        let usage = BufferUsages::QUERY_RESOLVE | BufferUsages::COPY_SRC;
        let resolved = device.buffer("timestamps", u64::from(count) * 8, usage);
        Stamps { set, resolved, count }
    }

    /// Runs what was encoded, the stamps last.
    fn submit(&self, device: &Device, mut encoder: wgpu::CommandEncoder) {
        encoder.resolve_query_set(&self.set, 0..self.count, &self.resolved, 0);
        device.queue.submit([encoder.finish()]);
    }

    /// Nanoseconds from each stamp to the next.
    async fn gaps_ns(&self, device: &Device) -> Result<Vec<f64>, BackendError> {
        let stamps: Vec<u64> =
            bytemuck::pod_collect_to_vec(&read_buffer(device, &self.resolved).await?);
        let period = f64::from(device.queue.get_timestamp_period());
        Ok(stamps.windows(2).map(|w| w[1].saturating_sub(w[0]) as f64 * period).collect())
    }
}

/// See [`super::Gpu::profile`].
pub async fn profile(
    device: &Device,
    engine: &Engine,
    weights: &Weights,
    shape: StepShape,
    repeats: usize,
) -> Result<Vec<OpTime>, BackendError> {
    /// Dispatches between two timestamps, so that what these add is little in each.
    const LEAST: usize = 64;
    if !device.caps.timestamps {
        let reason = "this device has no timestamps".into();
        return Err(BackendError::Unsupported { reason });
    }
    let program = if shape.tokens == 1 { &engine.decode } else { &engine.prefill };
    let mut groups: Vec<Vec<&Ready>> = Vec::new();
    for ready in program.ready.iter().filter(|r| r.grid(shape).is_some()) {
        match groups.iter_mut().find(|g| ready.is_like(g[0])) {
            Some(group) => group.push(ready),
            None => groups.push(vec![ready]),
        }
    }
    let mut times = Vec::new();
    for group in groups {
        // Dispatches of many tokens are long by themselves.
        let rounds = if shape.tokens == 1 { LEAST.div_ceil(group.len()) } else { 1 };
        let mut ns = Vec::with_capacity(repeats);
        for _ in 0..repeats {
            let stamps = Stamps::new(device, 2);
            let mut encoder = device.raw.create_command_encoder(&Default::default());
            {
                let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                    label: None,
                    timestamp_writes: Some(wgpu::ComputePassTimestampWrites {
                        query_set: &stamps.set,
                        beginning_of_pass_write_index: Some(0),
                        end_of_pass_write_index: Some(1),
                    }),
                });
                for ready in std::iter::repeat_n(&group, rounds).flatten() {
                    ready.encode(&mut pass, shape);
                }
            }
            stamps.submit(device, encoder);
            ns.extend(stamps.gaps_ns(device).await?);
        }
        ns.sort_by(f64::total_cmp);
        let ns = ns[ns.len() / 2] / (rounds * group.len()) as f64;
        times.extend(group.iter().map(|ready| OpTime {
            label: engine.plan.labels[ready.launch.op].clone(),
            kernel: ready.pipeline.name.clone(),
            ns,
            weight_bytes: ready.weight_bytes(weights),
        }));
    }
    Ok(times)
}

/// See [`super::Gpu::copy_gb_s`].
pub async fn copy_gb_s(
    device: &Device,
    pipelines: &mut Pipelines,
) -> Result<Option<f64>, BackendError> {
    const RUNS: u32 = 9;
    const ROW: u32 = 1 << 20;
    let features =
        wgpu::Features::TIMESTAMP_QUERY | wgpu::Features::TIMESTAMP_QUERY_INSIDE_ENCODERS;
    let Some(add) = variant("add", &[]).filter(|_| device.raw.features().contains(features)) else {
        return Ok(None);
    };
    // More than any cache holds.
    let most = device.caps.max_buffer_bytes.min(device.caps.max_binding_bytes).min(256 << 20);
    let rows = (most / 4 / u64::from(ROW)).max(1) as u32;
    let bytes = u64::from(rows) * u64::from(ROW) * 4;
    let stamps = device
        .guarded("two buffers to add", 2 * bytes, || {
            let pipeline = pipelines.get(device, add, &Vec::new());
            let [x, y] = ["x", "y"].map(|label| device.buffer(label, bytes, BufferUsages::STORAGE));
            let step = params::Step { tokens: rows, ..Default::default() };
            let step = device.filled("step", bytemuck::bytes_of(&step), BufferUsages::UNIFORM);
            let shape = params::Add { dim: ROW, x_stride: ROW, y_stride: ROW };
            let shape = device.filled("params", bytemuck::bytes_of(&shape), BufferUsages::UNIFORM);
            let group = pipeline.bind(device, &[(0, &step), (1, &shape), (2, &y), (3, &x)]);
            let stamps = Stamps::new(device, RUNS + 1);
            let mut encoder = device.raw.create_command_encoder(&Default::default());
            // The first one finds the memory cold; each waits for the one before.
            for i in 0..RUNS + 2 {
                if i > 0 {
                    encoder.write_timestamp(&stamps.set, i - 1);
                }
                let mut pass = encoder.begin_compute_pass(&Default::default());
                pass.set_pipeline(&pipeline.raw);
                pass.set_bind_group(0, &group, &[]);
                pass.dispatch_workgroups(ROW / 256, rows, 1);
            }
            stamps.submit(device, encoder);
            Ok(stamps)
        })
        .await?;
    let mut ns = stamps.gaps_ns(device).await?;
    ns.sort_by(f64::total_cmp);
    let ns = ns[ns.len() / 2];
    Ok((ns > 0.0).then(|| 3.0 * bytes as f64 / ns))
}

/// See [`super::Gpu::check_guards`].
pub async fn check_guards(device: &Device, engine: &Engine) -> Result<(), BackendError> {
    for (name, buffer, row_bytes, used) in engine.written() {
        let data = read_buffer(device, buffer).await?;
        let damaged = |what: &str| {
            let what = format!("{what} of {name}");
            Err(BackendError::Rejected { what, reason: "a kernel wrote there".into() })
        };
        let rows = data.len() as u64 / row_bytes.max(1) - u64::from(device.guards);
        let (rows, guard) = data.split_at((rows * row_bytes) as usize);
        if device.guards && guard.iter().any(|&b| b != GUARD) {
            return damaged("the row behind the last");
        }
        let used = used as usize;
        if rows.chunks(row_bytes.max(1) as usize).any(|r| r[used..].iter().any(|&b| b != 0)) {
            return damaged("the padding of a row");
        }
    }
    Ok(())
}
