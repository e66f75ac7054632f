//! What a machine that runs plans must do: [`Backend`], implemented by `cpu` and `gpu`.
//!
//! Life of a backend: [`Backend::allocate`] the plan's weights → [`Backend::write_weight`] them as
//! they stream in → [`Backend::prepare`] the plan → any number of [`Backend::forward`] and
//! [`Backend::decode`]. Methods that may wait for a device are `async`; they make no assumption
//! about an executor (natively `pollster` will do, in a browser the event loop).
//!
//! May import: `plan`, `sampling`.

use crate::plan::{Plan, WeightId, WeightPart, WeightSpec};
use crate::sampling::Sampling;

/// Element type of the KV cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum KvType {
    /// Exact; for comparisons.
    F32,
    /// Half the memory; the default.
    #[default]
    F16,
    /// int8 with one f16 scale a 32 values.
    Q8,
}

impl KvType {
    /// Bytes that `elems` cached values take.
    pub fn bytes(self, elems: u64) -> u64 {
        match self {
            KvType::F32 => elems * 4,
            KvType::F16 => elems * 2,
            KvType::Q8 => elems + elems.div_ceil(32) * 2,
        }
    }
}

/// How a plan is to be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunOptions {
    /// Positions the KV cache has room for.
    pub context: u32,
    /// Element type of the KV cache.
    pub kv_type: KvType,
    /// Most tokens a call of [`Backend::forward`] may bring; longer prompts come in chunks.
    pub max_tokens: u32,
}

/// Rows whose logits are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outputs {
    /// None: only the KV cache is filled.
    None,
    /// The last token's.
    Last,
    /// Every token's.
    All,
}

impl Outputs {
    /// `R` for a step of `tokens` tokens.
    pub fn rows(self, tokens: usize) -> usize {
        match self {
            Outputs::None => 0,
            Outputs::Last => tokens.min(1),
            Outputs::All => tokens,
        }
    }
}

/// Time that one operation of a plan took.
#[derive(Clone, Debug, PartialEq)]
pub struct OpTime {
    /// Label of the operation in the plan.
    pub label: String,
    /// What ran: a kernel variant of a GPU, the operation's stem on a processor.
    pub kernel: String,
    /// Nanoseconds.
    pub ns: f64,
    /// Bytes of weights that it reads.
    pub weight_bytes: u64,
}

/// Tokens to run through the model.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// 1 to `max_tokens` ids below `V`.
    pub tokens: &'a [u32],
    /// Position of the first of them. The cache must hold all positions below; entries at and past
    /// it are overwritten (this is how a sequence is rewound).
    pub pos: u32,
    /// Rows whose logits are wanted.
    pub outputs: Outputs,
}

/// Device-resident decoding: feed a token, draw the next, repeat.
#[derive(Clone, Copy, Debug)]
pub struct Decode<'a> {
    /// Token to feed first, at `pos`. `None`: draw the first token from the logits of the last
    /// [`Backend::forward`] (whose [`Outputs`] were not `None`), and feed from then on.
    pub feed: Option<u32>,
    /// Position of the first token that is fed: the number of tokens in the cache.
    pub pos: u32,
    /// How many tokens to draw at most, at least 1. No position at or past the context may be fed.
    pub count: u32,
    /// How many more will be asked for by calls that go on with the same sampling, should none of
    /// `stop` be drawn: a device may draw them before, and drops them if something else comes. They
    /// count for the context.
    pub ahead: u32,
    /// How to draw. The token that will take position `p` is drawn with noise of `(seed, p, id)`.
    pub sampling: &'a Sampling,
    /// Ids that end the text: the backend stops soon after it draws one (a device may run on for a
    /// few tokens, which it then drops).
    pub stop: &'a [u32],
}

impl Decode<'_> {
    /// Positions that may be fed.
    pub(crate) fn most_fed(&self) -> u64 {
        u64::from(self.count) + u64::from(self.ahead) - u64::from(self.feed.is_none())
    }
}

/// Facts about a device, for choosing kernels and for showing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Caps {
    /// `cpu` or `gpu`.
    pub backend: &'static str,
    /// Adapter or processor name.
    pub adapter: String,
    /// Graphics API or instruction set in use, such as `Vulkan`, `BrowserWebGpu` or `avx2`.
    pub api: String,
    /// Smallest and largest subgroup; `None` without subgroup operations in shaders.
    pub subgroup: Option<(u32, u32)>,
    /// f16 arithmetic in shaders.
    pub shader_f16: bool,
    /// Integer dot product of packed bytes is a language feature.
    pub dot4: bool,
    /// Timestamps on the device.
    pub timestamps: bool,
    /// Largest storage binding in bytes.
    pub max_binding_bytes: u64,
    /// Largest buffer in bytes.
    pub max_buffer_bytes: u64,
    /// Threads (CPU).
    pub threads: u32,
}

/// `Σ (got − expected)² / Σ expected²`: the normalised mean square error of outputs that should be the
/// same but for roundings. NaN if any of them is.
pub fn nmse(expected: &[f32], got: &[f32]) -> f64 {
    let sum = |f: &dyn Fn(f64, f64) -> f64| -> f64 {
        expected.iter().zip(got).map(|(&e, &g)| f(f64::from(e), f64::from(g))).sum()
    };
    sum(&|e, g| (e - g) * (e - g)) / sum(&|e, _| e * e).max(f64::MIN_POSITIVE)
}

/// What the kernels of a GPU use of what the device has. Written as `subgroups+dot4+matrices`, `none`
/// or `all`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelFeatures {
    /// Subgroup operations.
    pub subgroups: bool,
    /// `dot4I8Packed`.
    pub dot4: bool,
    /// Cooperative matrices (tensor cores), for prefill.
    pub matrices: bool,
}

impl KernelFeatures {
    /// What runs everywhere.
    pub const NONE: Self = KernelFeatures { subgroups: false, dot4: false, matrices: false };
    /// Everything.
    pub const ALL: Self = KernelFeatures { subgroups: true, dot4: true, matrices: true };

    /// What both have.
    pub fn and(self, other: Self) -> Self {
        KernelFeatures {
            subgroups: self.subgroups && other.subgroups,
            dot4: self.dot4 && other.dot4,
            matrices: self.matrices && other.matrices,
        }
    }
}

impl std::fmt::Display for KernelFeatures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if *self == KernelFeatures::NONE {
            return f.write_str("none");
        }
        let named =
            [("subgroups", self.subgroups), ("dot4", self.dot4), ("matrices", self.matrices)];
        let names: Vec<_> = named.iter().filter(|n| n.1).map(|n| n.0).collect();
        f.write_str(&names.join("+"))
    }
}

impl std::str::FromStr for KernelFeatures {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut features = KernelFeatures::NONE;
        match text {
            "none" => return Ok(features),
            "all" => return Ok(KernelFeatures::ALL),
            _ => {}
        }
        for name in text.split('+') {
            match name {
                "subgroups" => features.subgroups = true,
                "dot4" => features.dot4 = true,
                "matrices" => features.matrices = true,
                _ => {
                    return Err(format!(
                        "\"{name}\" is none of subgroups, dot4, matrices (joined by +), all, none"
                    ));
                }
            }
        }
        Ok(features)
    }
}

/// Why a backend could not do what it was asked.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// No adapter, or none that will do.
    #[error("no usable GPU: {reason}")]
    Unavailable {
        /// Why, in words.
        reason: String,
    },
    /// The device refused an allocation.
    #[error("out of memory: {what} needs {bytes} bytes")]
    OutOfMemory {
        /// What was to be allocated.
        what: String,
        /// Its size.
        bytes: u64,
    },
    /// The device is gone (driver reset, unplugged, tab in the background for too long).
    #[error("the GPU device was lost: {reason}")]
    DeviceLost {
        /// What the driver said.
        reason: String,
    },
    /// A worker that computes a part of everything is gone, or does not answer.
    #[error("a worker of the CPU was lost: {reason}")]
    WorkerLost {
        /// What is known about it.
        reason: String,
    },
    /// The device rejected a command: a bug of this crate or of the driver.
    #[error("{what} was rejected by the device: {reason}")]
    Rejected {
        /// Shader, pipeline or pass.
        what: String,
        /// What the driver said.
        reason: String,
    },
    /// The plan needs something this backend cannot do.
    #[error("this device cannot run the model: {reason}")]
    Unsupported {
        /// What it is.
        reason: String,
    },
    /// A call with arguments outside the contract above, or in the wrong order.
    #[error("invalid call: {reason}")]
    InvalidCall {
        /// What is wrong.
        reason: String,
    },
}

/// Checks the arguments of [`Backend::cross_entropy`] against the last step's rows.
pub(crate) fn check_targets(targets: &[u32], rows: usize, vocab: u32) -> Result<(), BackendError> {
    let invalid = |reason: String| Err(BackendError::InvalidCall { reason });
    if targets.len() != rows {
        return invalid(format!("{} targets for {rows} rows of logits", targets.len()));
    }
    match targets.iter().find(|&&id| id >= vocab) {
        Some(id) => invalid(format!("target {id} of a vocabulary of {vocab}")),
        None => Ok(()),
    }
}

/// A machine that runs plans.
#[allow(async_fn_in_trait)] // Used with static dispatch inside this crate; no Send bound is wanted on the web.
pub trait Backend {
    /// What the device can do.
    fn caps(&self) -> &Caps;

    /// Makes room for the weights, zeroed. Drops all that was there before.
    ///
    /// # Errors
    /// [`BackendError::OutOfMemory`]; nothing stays allocated then.
    async fn allocate(&mut self, weights: &[WeightSpec]) -> Result<(), BackendError>;

    /// Writes `bytes` of a part of a weight, starting `offset` bytes into the part.
    /// Offsets and lengths are multiples of 4, but for the end of a part.
    ///
    /// # Errors
    /// [`BackendError::InvalidCall`] when the range is outside the part.
    fn write_weight(
        &mut self,
        id: WeightId,
        part: WeightPart,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), BackendError>;

    /// Readies the plan for replay: KV cache, buffers, pipelines, bindings. The plan's weights are
    /// those that were allocated.
    ///
    /// # Errors
    /// Out of memory, unsupported operations, rejected shaders.
    async fn prepare(&mut self, plan: &Plan, options: RunOptions) -> Result<(), BackendError>;

    /// Runs a step. Afterwards the last wanted row of logits is what [`Backend::decode`] draws from.
    ///
    /// # Errors
    /// [`BackendError::InvalidCall`] for ids, positions or lengths outside the contract; device errors.
    async fn forward(&mut self, step: Step<'_>) -> Result<(), BackendError>;

    /// The logits of the last step, `[R, V]` row after row.
    ///
    /// # Errors
    /// Device errors.
    async fn logits(&mut self) -> Result<Vec<f32>, BackendError>;

    /// `−ln softmax(logits[r])[targets[r]]` of each row of the logits of the last step, in nats: what
    /// it lacks in certainty about its target. The rows stay where they are.
    ///
    /// # Shapes
    /// `targets [R]` of ids below `V` → `[R]`.
    ///
    /// # Errors
    /// [`BackendError::InvalidCall`] for another number of targets, and for ids outside the vocabulary;
    /// device errors.
    async fn cross_entropy(&mut self, targets: &[u32]) -> Result<Vec<f32>, BackendError>;

    /// Draws up to `count` tokens and returns them, ending with the first stop id if one was drawn.
    /// Afterwards all returned tokens but the last are in the cache; feed the last one with the
    /// next call to go on.
    ///
    /// # Errors
    /// As for [`Backend::forward`].
    async fn decode(&mut self, decode: Decode<'_>) -> Result<Vec<u32>, BackendError>;

    /// Sets the token history that penalties look at: the tokens at positions `0..tokens.len()`.
    /// `forward` and `decode` record the tokens they feed by themselves; this is for restoring.
    fn set_history(&mut self, tokens: &[u32]);

    /// Runs a step operation by operation without fusion and shows each one's output
    /// (index in [`Plan::ops`], values as f32, quantised ones multiplied out) to `sink`.
    /// An output is the slice or buffer that the operation writes, row after row without gaps;
    /// operations that write the cache are not shown.
    ///
    /// # Errors
    /// As for [`Backend::forward`].
    async fn trace(
        &mut self,
        step: Step<'_>,
        sink: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), BackendError>;

    /// Bytes allocated on the device: weights, cache, buffers.
    fn allocated_bytes(&self) -> u64;
}
