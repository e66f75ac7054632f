//! How well the logits on the device predict given tokens: one number a row comes back, not `V`.

use super::device::Device;
use super::engine::Engine;
use super::kernels::variant;
use super::launch::Plane;
use super::lower::stride;
use super::params;
use super::pipelines::Pipelines;
use super::trace::read_buffer;
use crate::backend::BackendError;
use wgpu::BufferUsages;

/// [`crate::backend::Backend::cross_entropy`], arguments checked: one target for each row of logits.
pub async fn cross_entropy(
    device: &Device,
    pipelines: &mut Pipelines,
    engine: &Engine,
    targets: &[u32],
) -> Result<Vec<f32>, BackendError> {
    if targets.is_empty() {
        return Ok(Vec::new());
    }
    let vocab = engine.plan.vocab;
    let bytes = targets.len() as u64 * 4;
    let nats = device
        .guarded("cross-entropy", 2 * bytes, || {
            let names = [device.reduce()];
            let variant = variant("cross_entropy", &names).ok_or_else(|| {
                let reason = format!("there is no kernel cross_entropy {names:?}");
                BackendError::Unsupported { reason }
            })?;
            let overrides = device.reduction(device.workgroup(256, 16, 0));
            let pipeline = pipelines.get(device, variant, &overrides);
            let filled = |label, contents: &[u8], usage| {
                let usage = usage | BufferUsages::COPY_DST;
                let buffer = device.buffer(label, contents.len() as u64, usage);
                device.queue.write_buffer(&buffer, 0, contents);
                buffer
            };
            let params = params::CrossEntropy { vocab, stride: stride(vocab) };
            let params = filled("params", bytemuck::bytes_of(&params), BufferUsages::UNIFORM);
            let target = filled("target", bytemuck::cast_slice(targets), BufferUsages::STORAGE);
            let usage = BufferUsages::STORAGE | BufferUsages::COPY_SRC;
            let nats = device.buffer("nats", bytes, usage);
            let logits = engine.plane(engine.plan.logits, Plane::Values);
            let entries = [(1, &params), (2, logits), (3, &target), (4, &nats)].map(
                |(binding, buffer): (u32, &wgpu::Buffer)| wgpu::BindGroupEntry {
                    binding,
                    resource: buffer.as_entire_binding(),
                },
            );
            let group = device.raw.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some("cross_entropy"),
                layout: &pipeline.layout,
                entries: &entries,
            });
            let mut encoder = device.raw.create_command_encoder(&Default::default());
            {
                let mut pass = encoder.begin_compute_pass(&Default::default());
                pass.set_pipeline(&pipeline.raw);
                pass.set_bind_group(0, &group, &[]);
                pass.dispatch_workgroups(targets.len() as u32, 1, 1);
            }
            device.queue.submit([encoder.finish()]);
            Ok(nats)
        })
        .await?;
    Ok(bytemuck::pod_collect_to_vec(&read_buffer(device, &nats).await?))
}
