//! Decoding on the device: a drawn token is where the next step's embed reads it, so that several
//! tokens run without the host. Ids come back in batches, one batch behind the device.

use super::device::Device;
use super::engine::{Engine, StepShape};
use super::kernels::variant;
use super::launch::Plane;
use super::lower::stride;
use super::params;
use super::pipelines::{Pipeline, Pipelines};
use crate::backend::{BackendError, Decode};
use crate::sampling::Sampling;
use futures_channel::oneshot;
use std::collections::VecDeque;
use wgpu::BufferUsages;

/// Tokens drawn in one submit. A stop is noticed at most two batches late.
const BATCH: u32 = 8;
/// Workgroups that share the vocabulary in a greedy draw.
const SHARES: u32 = 64;

/// Pipelines and buffers of the draw.
pub struct Sampler {
    argmax: (Pipeline, wgpu::BindGroup),
    greedy: (Pipeline, wgpu::BindGroup),
    sampled: (Pipeline, wgpu::BindGroup),
    params: wgpu::Buffer,
    drawn: wgpu::Buffer,
    staging: Vec<wgpu::Buffer>,
}

/// A batch on its way back.
struct Batch {
    staging: usize,
    count: u32,
    submission: wgpu::SubmissionIndex,
    receiver: oneshot::Receiver<Result<(), wgpu::BufferAsyncError>>,
}

impl Sampler {
    /// Compiles and binds the draw from the engine's logits.
    pub async fn prepare(
        device: &Device,
        pipelines: &mut Pipelines,
        engine: &Engine,
    ) -> Result<Sampler, BackendError> {
        let vocab = u64::from(engine.plan.vocab);
        let bytes = vocab * 8 + 8 * u64::from(SHARES) + 1024;
        device
            .guarded("the sampler", bytes, || Sampler::make(device, pipelines, engine, vocab))
            .await
    }

    fn make(
        device: &Device,
        pipelines: &mut Pipelines,
        engine: &Engine,
        vocab: u64,
    ) -> Result<Sampler, BackendError> {
        let storage = BufferUsages::STORAGE;
        let uniform = BufferUsages::UNIFORM | BufferUsages::COPY_DST;
        let params = device.buffer("draw", size_of::<params::Draw>() as u64, uniform);
        let argmax_params = device.buffer("argmax", size_of::<params::Argmax>() as u64, uniform);
        let argmax = params::Argmax { vocab: engine.plan.vocab, stride: stride(engine.plan.vocab) };
        device.queue.write_buffer(&argmax_params, 0, bytemuck::bytes_of(&argmax));
        let best = device.buffer("best", u64::from(SHARES) * 8, storage);
        let scores = device.buffer("scores", vocab * 4, storage);
        let counts = device.buffer("counts", vocab * 4, storage);
        let drawn = device.buffer("drawn", u64::from(BATCH) * 4, storage | BufferUsages::COPY_SRC);
        let logits = engine.plane(engine.plan.logits, Plane::Values);

        let reduce = device.reduce();
        let wg = device.workgroup(1024, 24, 2048);
        let mut bound =
            |stem: &str, names: &[&str], wg: Option<u32>, binds: &[(u32, &wgpu::Buffer)]| {
                let variant = variant(stem, names).ok_or_else(|| BackendError::Unsupported {
                    reason: format!("there is no kernel {stem} {names:?}"),
                })?;
                let overrides = wg.map_or_else(Vec::new, |wg| device.reduction(wg));
                let pipeline = pipelines.get(device, variant, &overrides);
                let entries: Vec<_> = binds
                    .iter()
                    .map(|&(binding, buffer)| wgpu::BindGroupEntry {
                        binding,
                        resource: buffer.as_entire_binding(),
                    })
                    .collect();
                let group = device.raw.create_bind_group(&wgpu::BindGroupDescriptor {
                    label: Some(stem),
                    layout: &pipeline.layout,
                    entries: &entries,
                });
                Ok::<_, BackendError>((pipeline, group))
            };
        let (step, tokens) = (&engine.step, &engine.tokens);
        let argmax =
            bound("argmax", &[], None, &[(0, step), (1, &argmax_params), (2, logits), (3, &best)])?;
        let greedy = bound(
            "draw",
            &[reduce, "greedy"],
            Some(256),
            &[(0, step), (1, &params), (2, &best), (3, tokens), (4, &drawn)],
        )?;
        let sampled = bound(
            "draw",
            &[reduce, "sampled"],
            Some(wg),
            &[
                (0, step),
                (1, &params),
                (2, logits),
                (3, tokens),
                (4, &drawn),
                (5, &scores),
                (6, &counts),
            ],
        )?;
        let staging = (0..3)
            .map(|_| {
                let usage = BufferUsages::MAP_READ | BufferUsages::COPY_DST;
                device.buffer("drawn, read back", u64::from(BATCH) * 4, usage)
            })
            .collect();
        Ok(Sampler { argmax, greedy, sampled, params, drawn, staging })
    }

    fn write_params(&self, device: &Device, engine: &Engine, sampling: &Sampling) {
        let vocab = engine.plan.vocab;
        let params = params::Draw {
            vocab,
            stride: stride(vocab),
            shares: SHARES,
            window: if sampling.has_penalties() { sampling.penalty_window } else { 0 },
            temperature: sampling.temperature,
            top_p: sampling.top_p,
            min_p: sampling.min_p,
            top_k: sampling.top_k,
            repetition: sampling.repetition_penalty,
            presence: sampling.presence_penalty,
            frequency: sampling.frequency_penalty,
            seed_low: sampling.seed as u32,
            seed_high: (sampling.seed >> 32) as u32,
        };
        device.queue.write_buffer(&self.params, 0, bytemuck::bytes_of(&params));
    }

    fn encode_draw(&self, pass: &mut wgpu::ComputePass<'_>, greedy: bool) {
        if greedy {
            pass.set_pipeline(&self.argmax.0.raw);
            pass.set_bind_group(0, &self.argmax.1, &[]);
            pass.dispatch_workgroups(SHARES, 1, 1);
        }
        let (pipeline, group) = if greedy { &self.greedy } else { &self.sampled };
        pass.set_pipeline(&pipeline.raw);
        pass.set_bind_group(0, group, &[]);
        pass.dispatch_workgroups(1, 1, 1);
    }

    /// [`crate::backend::Backend::decode`], arguments checked. `pos` is the number of tokens in the
    /// cache; a `feed` has been written to the device by the caller.
    pub async fn decode(
        &self,
        device: &Device,
        engine: &Engine,
        decode: Decode<'_>,
    ) -> Result<Vec<u32>, BackendError> {
        self.write_params(device, engine, decode.sampling);
        let greedy = decode.sampling.temperature == 0.0 && !decode.sampling.has_penalties();
        let mut out = Vec::new();
        let mut flying: VecDeque<Batch> = VecDeque::new();
        let mut drawn = 0;
        // Position of the next token to be fed.
        let mut pos = decode.pos;
        let mut first = decode.feed.is_none();
        let mut free: Vec<usize> = (0..self.staging.len()).collect();
        let mut stopped = false;
        while (drawn < decode.count && !stopped) || !flying.is_empty() {
            while drawn < decode.count && !stopped && flying.len() < 2 {
                let Some(staging) = free.pop() else { break };
                // Short first batches let the first tokens out early.
                let size = if drawn == 0 { 2 } else { BATCH };
                let count = size.min(decode.count - drawn);
                let batch =
                    self.submit(device, engine, greedy, count, staging, &mut pos, &mut first);
                flying.push_back(batch);
                drawn += count;
            }
            let Some(batch) = flying.pop_front() else { break };
            let staging = batch.staging;
            let ids = self.read(device, batch).await?;
            free.push(staging);
            if stopped {
                continue;
            }
            for id in ids {
                out.push(id);
                if decode.stop.contains(&id) {
                    stopped = true;
                    break;
                }
            }
        }
        Ok(out)
    }

    #[allow(clippy::too_many_arguments)] // The running state of one loop.
    fn submit(
        &self,
        device: &Device,
        engine: &Engine,
        greedy: bool,
        count: u32,
        staging: usize,
        pos: &mut u32,
        first: &mut bool,
    ) -> Batch {
        let last = *pos + count;
        let shape = StepShape {
            outputs: 1,
            ..engine.shape(last.saturating_sub(1), 1, crate::backend::Outputs::Last)
        };
        // Words 4 and 5 of the step: tokens drawn in this batch, splits of the context.
        device.queue.write_buffer(&engine.step, 16, bytemuck::cast_slice(&[0, shape.splits]));
        let mut encoder = device.raw.create_command_encoder(&Default::default());
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            for _ in 0..count {
                if !std::mem::take(first) {
                    engine.decode.encode(&mut pass, 0, shape, u64::MAX);
                    *pos += 1;
                }
                self.encode_draw(&mut pass, greedy);
            }
        }
        let bytes = u64::from(count) * 4;
        let to = &self.staging[staging];
        encoder.copy_buffer_to_buffer(&self.drawn, 0, to, 0, bytes);
        let submission = device.queue.submit([encoder.finish()]);
        let (sender, receiver) = oneshot::channel();
        to.map_async(wgpu::MapMode::Read, 0..bytes, move |result| {
            let _ = sender.send(result);
        });
        Batch { staging, count, submission, receiver }
    }

    async fn read(&self, device: &Device, batch: Batch) -> Result<Vec<u32>, BackendError> {
        // Only this batch: the next one goes on meanwhile.
        let _ = device
            .raw
            .poll(wgpu::PollType::Wait { submission_index: Some(batch.submission), timeout: None });
        let bytes = u64::from(batch.count) * 4;
        let data = device.take(&self.staging[batch.staging], bytes, batch.receiver).await?;
        Ok(bytemuck::pod_collect_to_vec(&data))
    }
}
