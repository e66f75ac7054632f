//! How well the logits on the device predict given tokens: one number a row comes back, not `V`.

use super::device::Device;
use super::engine::Engine;
use super::kernels::required;
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
            let variant = required("cross_entropy", &[device.reduce()])?;
            let overrides = device.reduction(device.workgroup(256, 16, 0));
            let pipeline = pipelines.get(device, variant, &overrides);
            let params = params::CrossEntropy { vocab, stride: stride(vocab) };
            let params =
                device.filled("params", bytemuck::bytes_of(&params), BufferUsages::UNIFORM);
            let target =
                device.filled("target", bytemuck::cast_slice(targets), BufferUsages::STORAGE);
            let usage = BufferUsages::STORAGE | BufferUsages::COPY_SRC;
            let nats = device.buffer("nats", bytes, usage);
            let logits = engine.plane(engine.plan.logits, Plane::Values);
            let group =
                pipeline.bind(device, &[(1, &params), (2, logits), (3, &target), (4, &nats)]);
            pipeline.run(device, &group, [targets.len() as u32, 1, 1]);
            Ok(nats)
        })
        .await?;
    Ok(bytemuck::pod_collect_to_vec(&read_buffer(device, &nats).await?))
}
