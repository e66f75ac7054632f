//! The GPU as a [`Backend`]: WGSL kernels through wgpu (Vulkan, Metal, DX12, WebGPU).
//!
//! ```text
//! Plan ─fusion→ Nodes ─lower→ Launches ─engine→ pipelines + bind groups ─replay→ the queue
//! ```
//! `kernels` is the one table of what can run; `lower` chooses from it by what the device can do.
//! A step writes one small struct and replays dispatches that were bound once; a decoding device
//! draws its own tokens (`decode`) and needs the host only to read them.
//!
//! Not here: what the kernels compute (see the twins in [`crate::cpu`]), models, files.
//! May import: `backend`, `plan`, `probe`, `sampling`, and `shaders/`.

mod cross_entropy;
mod decode;
mod device;
mod engine;
mod fusion;
#[doc(hidden)]
pub mod harness;
#[doc(hidden)]
pub mod kernels;
mod launch;
mod lower;
#[doc(hidden)]
pub mod params;
mod pipelines;
mod trace;
mod tune;
mod weights;
mod wgsl;

pub use device::adapters;
pub use trace::OpTime;
pub use tune::{Trial, Tuning};

use crate::backend::*;
use crate::plan::{Plan, WeightId, WeightPart, WeightSpec};
use decode::Sampler;
use device::Device;
use engine::{Engine, StepShape};
use pipelines::Pipelines;
use weights::Weights;

/// What to open, and what to leave unused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Part of the adapter's name, API or kind; otherwise the environment variable
    /// `BITNET_ADAPTER`, otherwise the best hardware adapter.
    pub adapter: Option<String>,
    /// What kernels use of what the device has. `None`: all, but no subgroups of less than 8, such as
    /// SwiftShader's, with which nothing was timed.
    pub features: Option<KernelFeatures>,
    /// Ask for no more than WebGPU promises everywhere: 256 invocations and 16 KiB of memory a
    /// workgroup, bindings of 128 MiB.
    pub minimum: bool,
    /// Put a row of a known pattern behind every buffer that kernels write, for
    /// [`Gpu::check_guards`].
    pub guards: bool,
    /// In a browser: whoever calls adds `subgroups` to what the device is asked for, which wgpu 30
    /// cannot. Without effect elsewhere.
    pub page_adds_subgroups: bool,
}

/// A GPU that runs plans.
pub struct Gpu {
    device: Device,
    pipelines: Pipelines,
    weights: Weights,
    prepared: Option<Prepared>,
}

struct Prepared {
    engine: Engine,
    sampler: Sampler,
    /// Shape and end of the last forward; gone once something else ran.
    last: Option<(StepShape, u32)>,
    /// Rows of logits of the last step.
    rows: u32,
    /// Positions in the cache.
    cached: u32,
}

impl Prepared {
    /// A step may start where the cache ends, or before.
    fn check_pos(&self, pos: u32) -> Result<(), BackendError> {
        if pos > self.cached {
            return Err(invalid(format!("position {pos} after {} in the cache", self.cached)));
        }
        Ok(())
    }
}

fn invalid(reason: impl Into<String>) -> BackendError {
    BackendError::InvalidCall { reason: reason.into() }
}

impl Gpu {
    /// Opens an adapter.
    ///
    /// # Errors
    /// [`BackendError::Unavailable`] when there is none, or none of that name.
    pub async fn new(options: Options) -> Result<Gpu, BackendError> {
        Ok(Gpu {
            device: Device::open(&options).await?,
            pipelines: Pipelines::default(),
            weights: Weights::default(),
            prepared: None,
        })
    }

    fn prepared(&mut self) -> Result<&mut Prepared, BackendError> {
        self.device.check()?;
        self.prepared.as_mut().ok_or_else(|| invalid("no plan is prepared"))
    }

    /// Refuses when the logits are not those of the last call any more.
    fn with_logits(&mut self) -> Result<(), BackendError> {
        match self.prepared()?.sampler.is_ahead() {
            true => Err(invalid("the device has gone on: these logits are gone")),
            false => Ok(()),
        }
    }

    /// Checks a step against the contract.
    fn check_step(&mut self, step: &Step<'_>) -> Result<(), BackendError> {
        let prepared = self.prepared()?;
        let engine = &prepared.engine;
        let (tokens, options) = (step.tokens, engine.options);
        if tokens.is_empty() || tokens.len() > options.max_tokens as usize {
            let max = options.max_tokens;
            return Err(invalid(format!("{} tokens in a step of 1 to {max}", tokens.len())));
        }
        let end = u64::from(step.pos) + tokens.len() as u64;
        if end > u64::from(options.context) {
            let context = options.context;
            return Err(invalid(format!("position {} of a context of {context}", end - 1)));
        }
        check_ids(tokens, engine.plan.vocab)?;
        prepared.check_pos(step.pos)
    }

    async fn begin(&mut self, step: &Step<'_>) -> Result<StepShape, BackendError> {
        self.check_step(step)?;
        let Gpu { device, pipelines, weights, prepared } = self;
        let Some(prepared) = prepared else { return Err(invalid("no plan is prepared")) };
        let shape = prepared.engine.shape(step.pos, step.tokens.len() as u32, step.outputs);
        prepared.last = None;
        prepared.sampler.cancel();
        if shape.outputs > prepared.engine.output_rows() {
            prepared.engine.reserve_outputs(device, pipelines, weights, shape.outputs).await?;
            prepared.sampler = Sampler::prepare(device, pipelines, &prepared.engine).await?;
        }
        prepared.engine.write_step(device, step.pos, step.tokens, shape);
        prepared.rows = shape.outputs;
        prepared.cached = step.pos + shape.tokens;
        Ok(shape)
    }

    /// Looks for traces of kernels that wrote where they must not: behind the last row of a buffer
    /// ([`Options::guards`]), or between the end of a row and the start of the next.
    ///
    /// # Errors
    /// [`BackendError::Rejected`] names the buffer; device errors.
    pub async fn check_guards(&mut self) -> Result<(), BackendError> {
        self.prepared()?;
        let Gpu { device, prepared, .. } = self;
        let Some(prepared) = prepared else { return Err(invalid("no plan is prepared")) };
        trace::check_guards(device, &prepared.engine).await
    }

    /// The [`KernelFeatures`] that the device has and its options allow.
    pub fn available_features(&self) -> KernelFeatures {
        self.device.available
    }

    /// Those in use.
    pub fn features(&self) -> KernelFeatures {
        self.device.features
    }

    /// From the next [`Backend::prepare`] on, kernels use `features`, as far as they are available.
    pub fn use_features(&mut self, features: KernelFeatures) {
        self.prepared = None;
        self.device.features = features.and(self.device.available);
    }

    /// Finds the features that are fastest here, by running kernels of common sizes with and without
    /// them, and uses those. Takes some tenths of a second, most of them for compilation, and leaves
    /// the device without weights. The answer is worth remembering by [`Gpu::identity`].
    ///
    /// # Errors
    /// Those of the device; the features in use are then what they were.
    pub async fn measure_features(&mut self) -> Result<Tuning, BackendError> {
        let before = self.device.features;
        let tuning = tune::measure(self).await;
        self.device.features = tuning.as_ref().map_or(before, |t| t.best);
        tuning
    }

    /// Adapter, driver and version of this library: what a measured choice holds for.
    pub fn identity(&self) -> &str {
        &self.device.identity
    }

    /// Whether the adapter is a program on the CPU.
    pub fn is_software(&self) -> bool {
        self.device.is_software
    }

    /// Weights and plan go.
    fn forget(&mut self) {
        self.prepared = None;
        self.weights = Weights::default();
    }

    /// Names of all kernel variants that were compiled so far.
    pub fn kernels_used(&self) -> std::collections::BTreeSet<String> {
        self.pipelines.names()
    }

    /// Gives the device's memory back at once, without waiting for what still runs on it. Every later
    /// call is [`BackendError::DeviceLost`], as after a real loss.
    pub fn destroy(&self) {
        self.device.destroy();
    }

    /// Bytes read and written a second, in 10⁹, by a kernel that adds one buffer to another: what the
    /// kernels of a decoded token are measured by. (A copy command may be slower than any kernel.) Takes 512 MiB for a moment; `None` without timestamps.
    ///
    /// # Errors
    /// Those of the device.
    pub async fn copy_gb_s(&mut self) -> Result<Option<f64>, BackendError> {
        trace::copy_gb_s(&self.device, &mut self.pipelines).await
    }

    /// Times every dispatch of a step: those that do the same in every layer run one behind the other,
    /// again and again, between two timestamps, and each is said to take its share; medians of
    /// `repeats`. What they leave in buffers and cache is not what a step leaves there.
    ///
    /// # Errors
    /// As for [`Backend::forward`]; [`BackendError::Unsupported`] without timestamps.
    pub async fn profile(
        &mut self,
        step: Step<'_>,
        repeats: usize,
    ) -> Result<Vec<OpTime>, BackendError> {
        let shape = self.begin(&step).await?;
        let Gpu { device, weights, prepared, .. } = self;
        let Some(prepared) = prepared else { return Err(invalid("no plan is prepared")) };
        trace::profile(device, &prepared.engine, weights, shape, repeats).await
    }
}

fn check_ids(ids: &[u32], vocab: u32) -> Result<(), BackendError> {
    match ids.iter().find(|&&id| id >= vocab) {
        Some(id) => Err(invalid(format!("token {id} of a vocabulary of {vocab}"))),
        None => Ok(()),
    }
}

impl Backend for Gpu {
    fn caps(&self) -> &Caps {
        &self.device.caps
    }

    async fn allocate(&mut self, weights: &[WeightSpec]) -> Result<(), BackendError> {
        // What was there goes first: the new weights may need its room.
        self.forget();
        self.weights = Weights::allocate(&self.device, weights).await?;
        Ok(())
    }

    fn write_weight(
        &mut self,
        id: WeightId,
        part: WeightPart,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), BackendError> {
        self.weights.write(&self.device, id, part, offset, bytes)
    }

    async fn prepare(&mut self, plan: &Plan, options: RunOptions) -> Result<(), BackendError> {
        self.prepared = None;
        let same = plan.weights.len() == self.weights.all.len()
            && plan.weights.iter().zip(&self.weights.all).all(|(a, b)| *a == b.spec);
        if !same {
            return Err(invalid("the plan's weights are not those that were allocated"));
        }
        if options.context == 0 || options.max_tokens == 0 {
            return Err(invalid("a context or a step of no tokens"));
        }
        let options = RunOptions { max_tokens: options.max_tokens.min(options.context), ..options };
        let Gpu { device, pipelines, weights, .. } = self;
        weights.flush(device);
        let engine = Engine::prepare(device, pipelines, weights, plan, options).await?;
        let sampler = Sampler::prepare(device, pipelines, &engine).await?;
        self.prepared = Some(Prepared { engine, sampler, last: None, rows: 0, cached: 0 });
        Ok(())
    }

    async fn forward(&mut self, step: Step<'_>) -> Result<(), BackendError> {
        let shape = self.begin(&step).await?;
        let device = &self.device;
        if let Some(prepared) = &mut self.prepared {
            prepared.engine.replay(device, shape);
            prepared.last = Some((shape, step.pos + shape.tokens));
        }
        device.check()
    }

    async fn logits(&mut self) -> Result<Vec<f32>, BackendError> {
        self.with_logits()?;
        let Gpu { device, prepared, .. } = self;
        let Some(prepared) = prepared else { return Err(invalid("no plan is prepared")) };
        let shape = StepShape { tokens: 0, outputs: prepared.rows, splits: 1 };
        trace::read_rows(device, &prepared.engine, prepared.engine.plan.logits, shape).await
    }

    async fn cross_entropy(&mut self, targets: &[u32]) -> Result<Vec<f32>, BackendError> {
        self.with_logits()?;
        let Gpu { device, pipelines, prepared, .. } = self;
        let Some(Prepared { engine, rows, .. }) = prepared else {
            return Err(invalid("no plan is prepared"));
        };
        check_targets(targets, *rows as usize, engine.plan.vocab)?;
        cross_entropy::cross_entropy(device, pipelines, engine, targets).await
    }

    async fn decode(&mut self, decode: Decode<'_>) -> Result<Vec<u32>, BackendError> {
        let prepared = self.prepared()?;
        let engine = &prepared.engine;
        decode.sampling.validate().map_err(|e| invalid(e.to_string()))?;
        if decode.count == 0 {
            return Err(invalid("a decode of no tokens"));
        }
        let fed = decode.most_fed();
        if u64::from(decode.pos) + fed > u64::from(engine.options.context) {
            let (pos, context) = (decode.pos, engine.options.context);
            return Err(invalid(format!("{fed} tokens from {pos} in a context of {context}")));
        }
        match decode.feed {
            Some(id) => check_ids(&[id], engine.plan.vocab)?,
            None => match prepared.last {
                Some((shape, end)) if shape.outputs > 0 && end == decode.pos => {}
                _ => return Err(invalid("there are no logits of the position before")),
            },
        }
        prepared.check_pos(decode.pos)?;
        prepared.last = None;
        prepared.rows = 1;
        // Should reading back fail, nothing past this is promised.
        prepared.cached = decode.pos;
        let Gpu { device, prepared, .. } = self;
        let Some(Prepared { engine, sampler, cached, .. }) = prepared else {
            return Err(invalid("no plan is prepared"));
        };
        let drawn = sampler.decode(device, engine, decode).await?;
        let fed = drawn.len() - usize::from(decode.feed.is_none());
        *cached = decode.pos + fed as u32;
        Ok(drawn)
    }

    fn set_history(&mut self, tokens: &[u32]) {
        if let Some(prepared) = &mut self.prepared {
            prepared.sampler.cancel();
            let engine = &prepared.engine;
            let count = tokens.len().min(engine.options.context as usize);
            let bytes = bytemuck::cast_slice(&tokens[..count]);
            self.device.queue.write_buffer(&engine.tokens, 0, bytes);
        }
    }

    async fn trace(
        &mut self,
        step: Step<'_>,
        sink: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), BackendError> {
        let shape = self.begin(&step).await?;
        let Gpu { device, pipelines, weights, prepared } = self;
        let Some(prepared) = prepared else { return Err(invalid("no plan is prepared")) };
        prepared.engine.reserve_all(device, pipelines, weights).await?;
        let engine = &prepared.engine;
        let program = engine.program(device, pipelines, weights, shape.tokens == 1, false).await?;
        trace::trace(device, engine, &program, shape, sink).await?;
        prepared.last = Some((shape, step.pos + shape.tokens));
        Ok(())
    }

    fn allocated_bytes(&self) -> u64 {
        self.weights.bytes + self.prepared.as_ref().map_or(0, |p| p.engine.bytes)
    }
}
