//! Pipelines, made once for every (variant, overrides) that a plan needs.

use super::device::Device;
use super::kernels::{Access, Variant};
use std::collections::HashMap;

/// Values of overrides.
pub type Overrides = Vec<(&'static str, u32)>;

/// A compiled variant; cheap to clone.
#[derive(Clone)]
pub struct Pipeline {
    pub raw: wgpu::ComputePipeline,
    pub layout: wgpu::BindGroupLayout,
    pub name: String,
}

impl Pipeline {
    /// Whole buffers at their bindings.
    pub fn bind(&self, device: &Device, buffers: &[(u32, &wgpu::Buffer)]) -> wgpu::BindGroup {
        let entries: Vec<_> = buffers
            .iter()
            .map(|&(binding, buffer)| wgpu::BindGroupEntry {
                binding,
                resource: buffer.as_entire_binding(),
            })
            .collect();
        device.raw.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(&self.name),
            layout: &self.layout,
            entries: &entries,
        })
    }

    /// Submits one dispatch.
    pub fn run(&self, device: &Device, group: &wgpu::BindGroup, grid: [u32; 3]) {
        let mut encoder = device.raw.create_command_encoder(&Default::default());
        {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            pass.set_pipeline(&self.raw);
            pass.set_bind_group(0, group, &[]);
            pass.dispatch_workgroups(grid[0], grid[1], grid[2]);
        }
        device.queue.submit([encoder.finish()]);
    }
}

/// The pipelines of a device.
#[derive(Default)]
pub struct Pipelines {
    modules: HashMap<Variant, (wgpu::ShaderModule, wgpu::BindGroupLayout)>,
    made: HashMap<(Variant, Overrides), Pipeline>,
}

impl Pipelines {
    /// Names of the variants compiled so far.
    pub fn names(&self) -> std::collections::BTreeSet<String> {
        self.made.keys().map(|(variant, _)| variant.name()).collect()
    }

    /// The pipeline, compiled at the first call. Errors go to the device's error scopes.
    pub fn get(&mut self, device: &Device, variant: Variant, overrides: &Overrides) -> Pipeline {
        if let Some(made) = self.made.get(&(variant, overrides.clone())) {
            return made.clone();
        }
        let name = variant.name();
        let (module, layout) = self
            .modules
            .entry(variant)
            .or_insert_with(|| (module(device, &variant), layout(device, &variant)));
        let pipeline_layout = device.raw.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(&name),
            bind_group_layouts: &[Some(layout)],
            immediate_size: 0,
        });
        let constants: Vec<(&str, f64)> =
            overrides.iter().map(|&(name, value)| (name, f64::from(value))).collect();
        let raw = device.raw.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(&name),
            layout: Some(&pipeline_layout),
            module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &constants,
                // Every kernel writes its workgroup memory before it reads it.
                zero_initialize_workgroup_memory: false,
            },
            cache: None,
        });
        let made = Pipeline { raw, layout: layout.clone(), name };
        self.made.insert((variant, overrides.clone()), made.clone());
        made
    }
}

fn module(device: &Device, variant: &Variant) -> wgpu::ShaderModule {
    let name = variant.name();
    let descriptor = wgpu::ShaderModuleDescriptor {
        label: Some(&name),
        source: wgpu::ShaderSource::Wgsl(variant.source(cfg!(target_arch = "wasm32")).into()),
    };
    let checks = wgpu::ShaderRuntimeChecks { force_loop_bounding: false, ..Default::default() };
    // SAFETY: the sources are those of the kernel table, no user text goes in, and every loop in
    // them counts up to a bound that it does not change. All other run-time checks stay on. (Loop
    // bounding adds a 64-bit counter to every loop.)
    unsafe { device.raw.create_shader_module_trusted(descriptor, checks) }
}

fn layout(device: &Device, variant: &Variant) -> wgpu::BindGroupLayout {
    let entries: Vec<_> = variant
        .bindings()
        .into_iter()
        .map(|(binding, access)| wgpu::BindGroupLayoutEntry {
            binding,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty: match access {
                    Access::Uniform => wgpu::BufferBindingType::Uniform,
                    Access::Read => wgpu::BufferBindingType::Storage { read_only: true },
                    Access::Write => wgpu::BufferBindingType::Storage { read_only: false },
                },
                has_dynamic_offset: false,
                min_binding_size: None,
            },
            count: None,
        })
        .collect();
    device.raw.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
        label: Some(&variant.name()),
        entries: &entries,
    })
}
