//! One kernel over plain buffers: for the tests that hold every variant against its twin, and for
//! timing kernels alone. No part of the crate's interface.

use super::device::Device;
use super::kernels::{Access, Variant};
use super::pipelines::Pipelines;
use super::trace::read_buffer;
use super::{Gpu, Options};
use crate::backend::BackendError;
use wgpu::BufferUsages;

/// A device for single kernels.
pub struct Harness {
    device: Device,
    pipelines: Pipelines,
}

impl Harness {
    /// Opens an adapter.
    ///
    /// # Errors
    /// As for [`Gpu::new`].
    pub async fn new(options: Options) -> Result<Harness, BackendError> {
        let Gpu { device, pipelines, .. } = Gpu::new(options).await?;
        Ok(Harness { device, pipelines })
    }

    /// What was opened.
    pub fn caps(&self) -> &crate::backend::Caps {
        &self.device.caps
    }

    /// Whether the device can run the variant.
    pub fn can_run(&self, variant: &Variant) -> bool {
        variant.choices().all(|c| self.device.has(c.need))
    }

    /// Dispatches once; returns the buffers (bytes by binding) as they are afterwards.
    ///
    /// # Errors
    /// What the device says.
    pub async fn run(
        &mut self,
        variant: Variant,
        overrides: &[(&'static str, u32)],
        buffers: &[(u32, Vec<u8>)],
        grid: [u32; 3],
    ) -> Result<Vec<Vec<u8>>, BackendError> {
        let Harness { device, pipelines } = self;
        let accesses = variant.bindings();
        let made = device
            .guarded(&variant.name(), 0, || {
                let pipeline = pipelines.get(device, variant, &overrides.to_vec());
                let made: Vec<_> = buffers
                    .iter()
                    .map(|(binding, bytes)| {
                        let uniform = accesses.contains(&(*binding, Access::Uniform));
                        let kind =
                            if uniform { BufferUsages::UNIFORM } else { BufferUsages::STORAGE };
                        device.filled("harness", bytes, kind | BufferUsages::COPY_SRC)
                    })
                    .collect();
                let bound: Vec<_> = buffers.iter().map(|b| b.0).zip(&made).collect();
                let group = pipeline.bind(device, &bound);
                pipeline.run(device, &group, grid);
                Ok(made)
            })
            .await?;
        let mut out = Vec::new();
        for buffer in &made {
            out.push(read_buffer(device, buffer).await?);
        }
        Ok(out)
    }
}
