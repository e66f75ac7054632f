//! Decoding on the device: a drawn token is where the next step's embed reads it, so that several
//! tokens run without the host. Ids come back in batches, and the device goes on meanwhile, also
//! between two calls: what it did ahead of a text that ends otherwise is dropped.

use super::device::Device;
use super::engine::{Engine, StepShape};
use super::kernels::required;
use super::launch::Plane;
use super::lower::stride;
use super::params;
use super::pipelines::{Pipeline, Pipelines};
use crate::backend::{BackendError, Decode, Outputs};
use crate::sampling::Sampling;
use futures_channel::oneshot;
use std::collections::VecDeque;
use wgpu::BufferUsages;

/// Most tokens drawn in one submit.
const BATCH: u32 = 16;
/// As many where the device has nothing to do: it soon has, and goes on while the next are encoded.
const FIRST_BATCH: u32 = 2;
/// Batches on their way: one that is waited for, and one that the device goes on with.
const FLYING: usize = 2;
/// Workgroups that share the vocabulary in a greedy draw.
const SHARES: u32 = 64;

/// Draws tokens, and knows what the device draws ahead.
pub struct Sampler {
    draw: Draw,
    chain: Option<Chain>,
}

/// Pipelines and buffers of the draw.
struct Draw {
    argmax: (Pipeline, wgpu::BindGroup),
    greedy: (Pipeline, wgpu::BindGroup),
    sampled: (Pipeline, wgpu::BindGroup),
    params: wgpu::Buffer,
    drawn: wgpu::Buffer,
    staging: [wgpu::Buffer; FLYING],
}

/// A text that the device writes, and how far it has come.
struct Chain {
    sampling: Sampling,
    /// The last token that was handed out, and its position, where it is fed.
    last: Option<(u32, u32)>,
    /// Drawn and read back, but not handed out.
    ready: VecDeque<u32>,
    flying: VecDeque<Batch>,
    /// Whether the next token is drawn from logits that are there.
    first: bool,
    /// Position of the next token that is fed.
    pos: u32,
}

impl Chain {
    /// Tokens that were submitted and not handed out.
    fn ahead(&self) -> u32 {
        self.ready.len() as u32 + self.flying.iter().map(|b| b.count).sum::<u32>()
    }
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
        let make = || Draw::make(device, pipelines, engine, vocab);
        Ok(Sampler { draw: device.guarded("the sampler", bytes, make).await?, chain: None })
    }

    /// Whether the device has drawn, or is about to draw, what nobody has asked for yet.
    pub fn is_ahead(&self) -> bool {
        self.chain.as_ref().is_some_and(|c| c.ahead() > 0)
    }

    /// Drops what was drawn ahead: something else comes next.
    pub fn cancel(&mut self) {
        for batch in self.chain.take().into_iter().flat_map(|c| c.flying) {
            self.draw.staging[batch.staging].unmap();
        }
    }

    /// [`crate::backend::Backend::decode`], arguments checked.
    pub async fn decode(
        &mut self,
        device: &Device,
        engine: &Engine,
        decode: Decode<'_>,
    ) -> Result<Vec<u32>, BackendError> {
        let fed = decode.feed.map(|id| (id, decode.pos));
        let sampling = *decode.sampling;
        let goes_on = |c: &Chain| fed.is_some() && c.last == fed && c.sampling == sampling;
        if !self.chain.as_ref().is_some_and(goes_on) {
            self.cancel();
            if let Some((id, pos)) = fed {
                engine.write_step(device, pos, &[id], engine.shape(pos, 1, Outputs::Last));
            }
            self.draw.write_params(device, engine, &sampling);
        }
        let chain = self.chain.get_or_insert_with(|| Chain {
            sampling,
            last: None,
            ready: VecDeque::new(),
            flying: VecDeque::new(),
            first: fed.is_none(),
            pos: decode.pos,
        });
        // Should this fail, or never come to its end, the next call starts anew.
        chain.last = None;
        let mut out = Vec::new();
        loop {
            while out.len() < decode.count as usize {
                let Some(id) = chain.ready.pop_front() else { break };
                out.push(id);
                if decode.stop.contains(&id) {
                    self.cancel();
                    return Ok(out);
                }
            }
            let missing = decode.count - out.len() as u32;
            while chain.flying.len() < FLYING {
                let most = if chain.flying.is_empty() { FIRST_BATCH } else { BATCH };
                let left = (missing + decode.ahead).saturating_sub(chain.ahead());
                let size = left.min(decode.count).min(most);
                if size == 0 {
                    break;
                }
                let used = chain.flying.front().map(|b| b.staging);
                let staging = usize::from(used == Some(0));
                let batch = self.draw.submit(device, engine, chain, staging, size);
                chain.flying.push_back(batch);
            }
            if missing == 0 {
                break;
            }
            let Some(batch) = chain.flying.front_mut() else { break };
            let ids = read(device, &self.draw.staging[batch.staging], batch).await?;
            chain.flying.pop_front();
            chain.ready.extend(ids);
        }
        if let Some(&id) = out.last() {
            let in_cache = out.len() as u32 - u32::from(fed.is_none());
            chain.last = Some((id, decode.pos + in_cache));
        }
        Ok(out)
    }
}

impl Draw {
    fn make(
        device: &Device,
        pipelines: &mut Pipelines,
        engine: &Engine,
        vocab: u64,
    ) -> Result<Draw, BackendError> {
        let storage = BufferUsages::STORAGE;
        let uniform = BufferUsages::UNIFORM | BufferUsages::COPY_DST;
        let params = device.buffer("draw", size_of::<params::Draw>() as u64, uniform);
        let argmax = params::Argmax { vocab: engine.plan.vocab, stride: stride(engine.plan.vocab) };
        let argmax_params =
            device.filled("argmax", bytemuck::bytes_of(&argmax), BufferUsages::UNIFORM);
        let best = device.buffer("best", u64::from(SHARES) * 8, storage);
        let scores = device.buffer("scores", vocab * 4, storage);
        let counts = device.buffer("counts", vocab * 4, storage);
        let drawn = device.buffer("drawn", u64::from(BATCH) * 4, storage | BufferUsages::COPY_SRC);
        let logits = engine.plane(engine.plan.logits, Plane::Values);

        let reduce = device.reduce();
        let wg = device.workgroup(1024, 24, 2048);
        let mut bound =
            |stem: &str, names: &[&str], wg: Option<u32>, binds: &[(u32, &wgpu::Buffer)]| {
                let variant = required(stem, names)?;
                let overrides = wg.map_or_else(Vec::new, |wg| device.reduction(wg));
                let pipeline = pipelines.get(device, variant, &overrides);
                let group = pipeline.bind(device, binds);
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
        let usage = BufferUsages::MAP_READ | BufferUsages::COPY_DST;
        let staging =
            std::array::from_fn(|_| device.buffer("drawn, read back", u64::from(BATCH) * 4, usage));
        Ok(Draw { argmax, greedy, sampled, params, drawn, staging })
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

    fn encode(&self, pass: &mut wgpu::ComputePass<'_>, greedy: bool) {
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

    /// Has `count` more tokens of `chain` drawn.
    fn submit(
        &self,
        device: &Device,
        engine: &Engine,
        chain: &mut Chain,
        staging: usize,
        count: u32,
    ) -> Batch {
        let greedy = chain.sampling.temperature == 0.0 && !chain.sampling.has_penalties();
        let last = (chain.pos + count).saturating_sub(1);
        let shape = StepShape { outputs: 1, ..engine.shape(last, 1, Outputs::Last) };
        // Words 4 and 5 of the step: tokens drawn in this batch, splits of the context.
        device.queue.write_buffer(&engine.step, 16, bytemuck::cast_slice(&[0, shape.splits]));
        let mut encoder = device.raw.create_command_encoder(&Default::default());
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            for _ in 0..count {
                if !std::mem::take(&mut chain.first) {
                    engine.decode.encode(&mut pass, 0, shape, u64::MAX);
                    chain.pos += 1;
                }
                self.encode(&mut pass, greedy);
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
}

/// The ids of a batch, once they are there. Only of this one: the next goes on meanwhile.
async fn read(
    device: &Device,
    staging: &wgpu::Buffer,
    batch: &mut Batch,
) -> Result<Vec<u32>, BackendError> {
    let submission_index = Some(batch.submission.clone());
    let _ = device.raw.poll(wgpu::PollType::Wait { submission_index, timeout: None });
    let data = device.take(staging, u64::from(batch.count) * 4, &mut batch.receiver).await?;
    Ok(bytemuck::pod_collect_to_vec(&data))
}
