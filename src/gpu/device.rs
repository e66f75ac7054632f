//! The adapter and the device: choice, facts, and errors that never abort.

use super::pipelines::Overrides;
use super::{Options, kernels::Need};
use crate::backend::{BackendError, Caps, KernelFeatures};
use futures_channel::oneshot::Canceled;
use std::sync::{Arc, Mutex, PoisonError};

/// A device with its queue and what is known about it.
pub struct Device {
    pub raw: wgpu::Device,
    pub queue: wgpu::Queue,
    pub caps: Caps,
    pub limits: wgpu::Limits,
    /// What kernels may use, and what they use of it.
    pub available: KernelFeatures,
    pub features: KernelFeatures,
    /// Adapter, driver and version of this library.
    pub identity: String,
    /// A program on the CPU.
    pub is_software: bool,
    /// Put a guard row behind every buffer that kernels write.
    pub guards: bool,
    fault: Arc<Mutex<Option<BackendError>>>,
}

/// Whether a WebGPU or native graphics API can be asked at all. Must come before any wgpu call:
/// in a browser without WebGPU (or outside a page or worker) creating an instance panics.
#[cfg(target_arch = "wasm32")]
fn api_exists() -> bool {
    let global = js_sys::global();
    let has = |name: &str| js_sys::Reflect::has(&global, &name.into()).unwrap_or(false);
    let get = |object: &wasm_bindgen::JsValue, name: &str| {
        js_sys::Reflect::get(object, &name.into()).ok().filter(|v| !v.is_falsy())
    };
    (has("Window") || has("WorkerGlobalScope"))
        && get(&global, "navigator").and_then(|n| get(&n, "gpu")).is_some()
}

#[cfg(not(target_arch = "wasm32"))]
fn api_exists() -> bool {
    true
}

fn unavailable(reason: impl Into<String>) -> BackendError {
    BackendError::Unavailable { reason: reason.into() }
}

fn instance() -> Result<wgpu::Instance, BackendError> {
    if !api_exists() {
        return Err(unavailable("there is no WebGPU here"));
    }
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    // Validation layers only on request: they cost time and print to stderr.
    descriptor.flags = wgpu::InstanceFlags::empty().with_env();
    Ok(wgpu::Instance::new(descriptor))
}

/// Name, API and kind of every adapter, for `--adapter`.
pub async fn adapters() -> Vec<String> {
    let Ok(instance) = instance() else { return Vec::new() };
    let all = instance.enumerate_adapters(wgpu::Backends::all()).await;
    all.iter().map(|a| describe(&a.get_info())).collect()
}

fn describe(info: &wgpu::AdapterInfo) -> String {
    format!("{} ({:?}, {:?})", info.name, info.backend, info.device_type)
}

/// Rank of an adapter when none is named; software ones are only taken by name, because the CPU
/// backend is faster than a GPU played by the CPU.
fn rank(info: &wgpu::AdapterInfo) -> Option<u32> {
    match info.device_type {
        wgpu::DeviceType::DiscreteGpu => Some(0),
        wgpu::DeviceType::IntegratedGpu => Some(1),
        wgpu::DeviceType::VirtualGpu => Some(2),
        wgpu::DeviceType::Other => Some(3),
        wgpu::DeviceType::Cpu => None,
    }
}

async fn choose(
    instance: &wgpu::Instance,
    named: Option<&str>,
) -> Result<wgpu::Adapter, BackendError> {
    if cfg!(target_arch = "wasm32") {
        let options = wgpu::RequestAdapterOptions {
            power_preference: wgpu::PowerPreference::HighPerformance,
            ..Default::default()
        };
        return instance.request_adapter(&options).await.map_err(|e| unavailable(e.to_string()));
    }
    let all = instance.enumerate_adapters(wgpu::Backends::all()).await;
    let names: Vec<String> = all.iter().map(|a| describe(&a.get_info())).collect();
    let chosen = match named {
        Some(part) => {
            let part = part.to_lowercase();
            all.into_iter().zip(&names).find(|(_, n)| n.to_lowercase().contains(&part))
        }
        None => all
            .into_iter()
            .zip(&names)
            .filter(|(a, _)| rank(&a.get_info()).is_some())
            .min_by_key(|(a, _)| rank(&a.get_info())),
    };
    chosen.map(|c| c.0).ok_or_else(|| {
        let found = if names.is_empty() { "none".into() } else { names.join(", ") };
        match named {
            Some(part) => unavailable(format!("no adapter is called \"{part}\"; found: {found}")),
            None => unavailable(format!("no hardware adapter; found: {found}")),
        }
    })
}

const MATRICES: wgpu::Features =
    wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX.union(wgpu::Features::SHADER_F16);

/// Whether the matrix kernels can run: f16 to f32, 16 × 16 × 16, on subgroups of exactly 32, with room
/// for their tiles.
fn has_matrices(adapter: &wgpu::Adapter, info: &wgpu::AdapterInfo, limits: &wgpu::Limits) -> bool {
    use wgpu::CooperativeScalarType::{F16, F32};
    adapter.features().contains(MATRICES | wgpu::Features::SUBGROUP)
        && (info.subgroup_min_size, info.subgroup_max_size) == (32, 32)
        && limits.max_compute_workgroup_storage_size >= 48 << 10
        && adapter
            .cooperative_matrix_properties()
            .iter()
            .any(|m| (m.m_size, m.n_size, m.k_size, m.ab_type, m.cr_type) == (16, 16, 16, F16, F32))
}

/// Sizes of subgroups. wgpu says "4 to 64" of every GPU under Metal; Apple's own, on which browsers rely
/// on the same, have 32.
fn subgroup_sizes(info: &wgpu::AdapterInfo) -> (u32, u32) {
    match info.backend {
        wgpu::Backend::Metal if info.name.starts_with("Apple") => (32, 32),
        _ => (info.subgroup_min_size, info.subgroup_max_size),
    }
}

impl Device {
    /// Opens the adapter that `options` (or `BITNET_ADAPTER`) names, or the best one.
    pub async fn open(options: &Options) -> Result<Device, BackendError> {
        let instance = instance()?;
        #[cfg(not(target_arch = "wasm32"))]
        let from_env = std::env::var("BITNET_ADAPTER").ok().filter(|v| !v.is_empty());
        #[cfg(target_arch = "wasm32")]
        let from_env: Option<String> = None;
        let named = options.adapter.clone().or(from_env);
        let adapter = choose(&instance, named.as_deref()).await?;
        let info = adapter.get_info();
        let mut limits = if options.minimum { wgpu::Limits::default() } else { adapter.limits() };
        if info.backend == wgpu::Backend::Metal {
            // A Metal pipeline that needs many registers takes smaller workgroups than the device's
            // largest unless it is told theirs when it is made, which wgpu 30 does not do.
            limits.max_compute_invocations_per_workgroup = 256;
        }
        let known = wgpu::Features::SUBGROUP
            | wgpu::Features::TIMESTAMP_QUERY
            | wgpu::Features::TIMESTAMP_QUERY_INSIDE_ENCODERS;
        let mut features = adapter.features() & known;
        let wanted = options.features.unwrap_or(KernelFeatures::ALL);
        let matrices = wanted.matrices && has_matrices(&adapter, &info, &limits);
        if matrices {
            features |= MATRICES;
        }
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("bitnet"),
            required_features: features,
            experimental_features: if matrices {
                // SAFETY: the only kernels that use cooperative matrices are those of the kernel table.
                unsafe { wgpu::ExperimentalFeatures::enabled() }
            } else {
                wgpu::ExperimentalFeatures::disabled()
            },
            required_limits: limits.clone(),
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            ..Default::default()
        };
        let (raw, queue) =
            adapter.request_device(&descriptor).await.map_err(|e| unavailable(e.to_string()))?;

        let fault = Arc::new(Mutex::new(None));
        let keep = Arc::clone(&fault);
        raw.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            let mut slot = keep.lock().unwrap_or_else(PoisonError::into_inner);
            slot.get_or_insert(typed(error, "a command", 0));
        }));
        let keep = Arc::clone(&fault);
        raw.set_device_lost_callback(move |reason, message| {
            // Dropping the device is no loss.
            if reason != wgpu::DeviceLostReason::Destroyed {
                let mut slot = keep.lock().unwrap_or_else(PoisonError::into_inner);
                *slot = Some(BackendError::DeviceLost { reason: message });
            }
        });

        let subgroups = features.contains(wgpu::Features::SUBGROUP)
            || cfg!(target_arch = "wasm32") && options.page_adds_subgroups;
        let subgroup = subgroups.then(|| subgroup_sizes(&info));
        let dot4 = instance
            .wgsl_language_features()
            .contains(wgpu::WgslLanguageFeatures::Packed4x8IntegerDotProduct);
        let subgroups =
            subgroup.is_some_and(|(smallest, _)| smallest >= 8 || options.features.is_some());
        let available = wanted.and(KernelFeatures { subgroups, dot4, matrices });
        let identity = [
            info.name.as_str(),
            info.driver.as_str(),
            info.driver_info.as_str(),
            concat!("bitnet-rust ", env!("CARGO_PKG_VERSION")),
        ];
        let caps = Caps {
            backend: "gpu",
            adapter: info.name.clone(),
            api: format!("{:?}", info.backend),
            subgroup,
            shader_f16: adapter.features().contains(wgpu::Features::SHADER_F16),
            dot4,
            timestamps: features.contains(wgpu::Features::TIMESTAMP_QUERY),
            max_binding_bytes: limits.max_storage_buffer_binding_size,
            max_buffer_bytes: limits.max_buffer_size,
            threads: 0,
        };
        Ok(Device {
            raw,
            queue,
            caps,
            limits,
            available,
            features: available,
            identity: identity.join(", "),
            is_software: info.device_type == wgpu::DeviceType::Cpu,
            guards: options.guards,
            fault,
        })
    }

    /// Gives the device up: from now on everything is [`BackendError::DeviceLost`].
    pub fn destroy(&self) {
        let reason = "it was given up".into();
        let mut slot = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        slot.get_or_insert(BackendError::DeviceLost { reason });
        drop(slot);
        self.raw.destroy();
    }

    /// Whether kernels may use what a choice of the kernel table needs.
    pub fn has(&self, need: Need) -> bool {
        match need {
            Need::Nothing => true,
            Need::Subgroups => self.features.subgroups,
            Need::Dot4 => self.features.dot4,
            Need::Matrices => self.features.matrices,
        }
    }

    /// Invocations that certainly share a subgroup, as the reductions take them; 8 without subgroups.
    pub fn run(&self) -> u32 {
        match self.caps.subgroup {
            Some((min, _)) if self.has(Need::Subgroups) => (1 << min.ilog2()).min(32),
            _ => 8,
        }
    }

    /// How kernels reduce: the choice on that axis of the kernel table.
    pub fn reduce(&self) -> &'static str {
        if self.has(Need::Subgroups) { "subgroup" } else { "workgroup" }
    }

    /// The overrides of the reductions of a workgroup of `wg`.
    pub fn reduction(&self, wg: u32) -> Overrides {
        let mut overrides = vec![("WG", wg)];
        if self.has(Need::Subgroups) {
            overrides.push(("RUN", self.run()));
        }
        overrides
    }

    /// The largest workgroup of at most `wg` (a power of two) that the device allows, when each
    /// invocation needs `bytes` of workgroup memory and all together `common`.
    pub fn workgroup(&self, wg: u32, bytes: u32, common: u32) -> u32 {
        let limits = &self.limits;
        let memory =
            limits.max_compute_workgroup_storage_size.saturating_sub(common) / bytes.max(1);
        let most = limits
            .max_compute_invocations_per_workgroup
            .min(limits.max_compute_workgroup_size_x)
            .min(memory)
            .max(32);
        wg.min(1 << most.ilog2())
    }

    /// Workgroup size of one token's attention: a sum of 16 bytes, a weight and room to reduce each;
    /// the query, a key and a value in common. Reductions go over few runs.
    pub fn attention_wg(&self) -> u32 {
        self.workgroup((8 * self.run()).max(128), 16 + 4 + 16, 4096 + 2048)
    }

    /// Workgroup size of matrix-vector products: room to reduce each, and half of what WebGPU
    /// promises for the row.
    pub fn gemv_wg(&self) -> u32 {
        let wanted = if self.has(Need::Subgroups) { (16 * self.run()).max(128) } else { 256 };
        self.workgroup(wanted, 16, 8192)
    }

    /// Longest row of int8 that a matrix-vector product can keep in workgroup memory.
    pub fn row_max(&self) -> u32 {
        let memory = self.limits.max_compute_workgroup_storage_size;
        memory.saturating_sub(self.reduce_bytes(self.gemv_wg()))
    }

    /// Workgroup memory of all reductions in a workgroup of `wg`.
    fn reduce_bytes(&self, wg: u32) -> u32 {
        16 * if self.has(Need::Subgroups) { 128 } else { wg }
    }

    /// The error that the device has reported since the last call, if any. A lost device stays lost.
    pub fn check(&self) -> Result<(), BackendError> {
        let mut slot = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        match &*slot {
            None => Ok(()),
            Some(lost @ BackendError::DeviceLost { .. }) => Err(lost.clone()),
            Some(_) => slot.take().map_or(Ok(()), Err),
        }
    }

    /// Runs `work` and reports what the device says about it; `bytes` is what it allocates.
    pub async fn guarded<T>(
        &self,
        what: &str,
        bytes: u64,
        work: impl FnOnce() -> Result<T, BackendError>,
    ) -> Result<T, BackendError> {
        self.check()?;
        let validation = self.raw.push_error_scope(wgpu::ErrorFilter::Validation);
        let internal = self.raw.push_error_scope(wgpu::ErrorFilter::Internal);
        let memory = self.raw.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let result = work();
        // Scopes are popped innermost first.
        let errors = [memory.pop().await, internal.pop().await, validation.pop().await];
        self.check()?;
        match errors.into_iter().flatten().next() {
            Some(error) => Err(typed(error, what, bytes)),
            None => result,
        }
    }

    /// A zeroed buffer. Call inside [`Device::guarded`].
    pub fn buffer(&self, label: &str, bytes: u64, usage: wgpu::BufferUsages) -> wgpu::Buffer {
        self.raw.create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size: bytes.max(4).next_multiple_of(4),
            usage,
            mapped_at_creation: false,
        })
    }

    /// A buffer with `contents`.
    pub fn filled(&self, label: &str, contents: &[u8], usage: wgpu::BufferUsages) -> wgpu::Buffer {
        let usage = usage | wgpu::BufferUsages::COPY_DST;
        let buffer = self.buffer(label, contents.len() as u64, usage);
        self.queue.write_buffer(&buffer, 0, contents);
        buffer
    }

    /// The first `bytes` of a mappable buffer, once the copies into it are done.
    pub async fn read(&self, staging: &wgpu::Buffer, bytes: u64) -> Result<Vec<u8>, BackendError> {
        let (sender, receiver) = futures_channel::oneshot::channel();
        staging.map_async(wgpu::MapMode::Read, 0..bytes, move |result| {
            let _ = sender.send(result);
        });
        // Natively callbacks run inside poll; in a browser the event loop runs them.
        let _ = self.raw.poll(wgpu::PollType::wait_indefinitely());
        self.take(staging, bytes, receiver).await
    }

    /// Waits for a mapping under way and copies it out.
    pub async fn take(
        &self,
        staging: &wgpu::Buffer,
        bytes: u64,
        receiver: impl Future<Output = Result<Result<(), wgpu::BufferAsyncError>, Canceled>>,
    ) -> Result<Vec<u8>, BackendError> {
        let mapped = receiver.await;
        self.check()?;
        let lost = |reason: String| BackendError::DeviceLost { reason };
        match mapped {
            Ok(Ok(())) => {}
            Ok(Err(e)) => return Err(lost(e.to_string())),
            Err(_) => return Err(lost("a read-back was dropped".into())),
        }
        let view = staging.get_mapped_range(0..bytes).map_err(|e| lost(e.to_string()))?;
        let out = view.to_vec();
        drop(view);
        staging.unmap();
        Ok(out)
    }
}

fn typed(error: wgpu::Error, what: &str, bytes: u64) -> BackendError {
    match error {
        wgpu::Error::OutOfMemory { .. } => BackendError::OutOfMemory { what: what.into(), bytes },
        wgpu::Error::Validation { description, .. } | wgpu::Error::Internal { description, .. } => {
            BackendError::Rejected { what: what.into(), reason: description }
        }
    }
}
