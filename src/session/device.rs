//! [`Device`]: the machine a session runs on, chosen at run time.

use crate::backend::{Backend, BackendError, Caps, Decode, KernelFeatures, RunOptions, Step};
use crate::cpu::Cpu;
#[cfg(feature = "gpu")]
use crate::gpu::Gpu;
use crate::plan::{Plan, WeightId, WeightPart, WeightSpec};

/// Which machine is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// A GPU if there is a usable one, else the CPU.
    #[default]
    Auto,
    /// A GPU, or an error.
    Gpu,
    /// The CPU.
    Cpu,
}

/// How to open a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceOptions {
    /// Which one.
    pub choice: DeviceChoice,
    /// Part of the adapter's name; `None`: the best one (or `BITNET_ADAPTER`).
    pub adapter: Option<String>,
    /// CPU threads; `None`: as many as the machine has.
    pub threads: Option<usize>,
    /// What the kernels of a GPU use of what it has; `None`: all. (Which is fastest can be measured:
    /// `Gpu::measure_features`.)
    pub features: Option<KernelFeatures>,
    /// See `gpu::Options`.
    pub page_adds_subgroups: bool,
}

/// A machine that runs plans.
// One of these lives in a session: its size is of no concern.
#[allow(clippy::large_enum_variant)]
pub enum Device {
    /// The CPU.
    Cpu(Cpu),
    /// A GPU.
    #[cfg(feature = "gpu")]
    Gpu(Gpu),
}

impl Device {
    /// Opens the machine that `options` ask for. The second value says in one line why a wanted GPU
    /// is not used (only with [`DeviceChoice::Auto`]).
    ///
    /// # Errors
    /// [`BackendError::Unavailable`] when a GPU was asked for and none is usable.
    pub async fn open(options: &DeviceOptions) -> Result<(Device, Option<String>), BackendError> {
        let cpu = || Cpu::new(options.threads).map(Device::Cpu);
        if options.choice == DeviceChoice::Cpu {
            return Ok((cpu()?, None));
        }
        match Device::open_gpu(options).await {
            Ok(gpu) => Ok((gpu, None)),
            Err(e) if options.choice == DeviceChoice::Auto => Ok((cpu()?, Some(e.to_string()))),
            Err(e) => Err(e),
        }
    }

    #[cfg(feature = "gpu")]
    async fn open_gpu(options: &DeviceOptions) -> Result<Device, BackendError> {
        let options = crate::gpu::Options {
            adapter: options.adapter.clone(),
            features: options.features,
            page_adds_subgroups: options.page_adds_subgroups,
            ..Default::default()
        };
        Gpu::new(options).await.map(Device::Gpu)
    }

    #[cfg(not(feature = "gpu"))]
    async fn open_gpu(_: &DeviceOptions) -> Result<Device, BackendError> {
        Err(BackendError::Unavailable { reason: "built without GPU support".to_string() })
    }

    /// What the kernels of a GPU use of what it has.
    pub fn features(&self) -> Option<KernelFeatures> {
        match self {
            Device::Cpu(_) => None,
            #[cfg(feature = "gpu")]
            Device::Gpu(gpu) => Some(gpu.features()),
        }
    }

    /// Bytes read and written a second, in 10⁹, by a kernel on the device, where it can tell.
    ///
    /// # Errors
    /// Those of the device.
    #[cfg(not(target_arch = "wasm32"))]
    pub async fn copy_gb_s(&mut self) -> Result<Option<f64>, BackendError> {
        match self {
            Device::Cpu(_) => Ok(None),
            #[cfg(feature = "gpu")]
            Device::Gpu(gpu) => gpu.copy_gb_s().await,
        }
    }

    /// Times the operations of a step, median of `repeats` runs; nothing where a GPU has no
    /// timestamps.
    ///
    /// # Errors
    /// Those of the device.
    #[cfg(not(target_arch = "wasm32"))]
    pub async fn profile(
        &mut self,
        step: Step<'_>,
        repeats: usize,
    ) -> Result<Vec<crate::backend::OpTime>, BackendError> {
        match self {
            Device::Cpu(cpu) => cpu.profile(&step, repeats),
            #[cfg(feature = "gpu")]
            Device::Gpu(gpu) if !gpu.caps().timestamps => Ok(Vec::new()),
            #[cfg(feature = "gpu")]
            Device::Gpu(gpu) => gpu.profile(step, repeats).await,
        }
    }

    /// Most tokens of a prompt in a step. On matrices, 512 of a model of 2 B leave a third of a large
    /// GPU without work in the smaller products, and 768 take as long there.
    pub fn chunk_tokens(&self) -> u32 {
        match self {
            Device::Cpu(_) => 128,
            #[cfg(feature = "gpu")]
            Device::Gpu(gpu) if gpu.features().matrices => 768,
            #[cfg(feature = "gpu")]
            Device::Gpu(_) => 512,
        }
    }

    /// Whether calls return before the device has done what they ask for.
    pub fn runs_ahead(&self) -> bool {
        !matches!(self, Device::Cpu(_))
    }

    /// Most tokens to draw between two looks at the host.
    pub fn burst(&self) -> u32 {
        match self {
            Device::Cpu(_) => 1,
            #[cfg(feature = "gpu")]
            Device::Gpu(_) => 16,
        }
    }
}

macro_rules! each {
    ($self:ident, $d:ident => $e:expr) => {
        match $self {
            Device::Cpu($d) => $e,
            #[cfg(feature = "gpu")]
            Device::Gpu($d) => $e,
        }
    };
}

impl Backend for Device {
    fn caps(&self) -> &Caps {
        each!(self, d => d.caps())
    }

    async fn allocate(&mut self, weights: &[WeightSpec]) -> Result<(), BackendError> {
        each!(self, d => d.allocate(weights).await)
    }

    fn write_weight(
        &mut self,
        id: WeightId,
        part: WeightPart,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), BackendError> {
        each!(self, d => d.write_weight(id, part, offset, bytes))
    }

    async fn prepare(&mut self, plan: &Plan, options: RunOptions) -> Result<(), BackendError> {
        each!(self, d => d.prepare(plan, options).await)
    }

    async fn forward(&mut self, step: Step<'_>) -> Result<(), BackendError> {
        each!(self, d => d.forward(step).await)
    }

    async fn logits(&mut self) -> Result<Vec<f32>, BackendError> {
        each!(self, d => d.logits().await)
    }

    async fn cross_entropy(&mut self, targets: &[u32]) -> Result<Vec<f32>, BackendError> {
        each!(self, d => d.cross_entropy(targets).await)
    }

    async fn decode(&mut self, decode: Decode<'_>) -> Result<Vec<u32>, BackendError> {
        each!(self, d => d.decode(decode).await)
    }

    fn set_history(&mut self, tokens: &[u32]) {
        each!(self, d => d.set_history(tokens))
    }

    async fn trace(
        &mut self,
        step: Step<'_>,
        sink: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), BackendError> {
        each!(self, d => d.trace(step, sink).await)
    }

    fn allocated_bytes(&self) -> u64 {
        each!(self, d => d.allocated_bytes())
    }
}
