//! Pipelines by kernel: each is assembled and compiled once.

use super::loader::assemble;
use super::reflect::Reflection;
use super::{Error, Gpu, Result};
use crate::ops::launch::{Kernel, Scalar};
use rayon::prelude::*;
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// A compiled kernel with its interface.
pub struct Pipeline {
    /// Stem of the shader, for messages.
    pub shader: &'static str,
    /// What the shader says of itself.
    pub reflection: Reflection,
    pub(super) compute: wgpu::ComputePipeline,
    /// Group 0: the buffers.
    pub(super) buffers: wgpu::BindGroupLayout,
}

impl Pipeline {
    /// The bind group of these buffer ranges, in the order of the shader's bindings.
    pub(super) fn bind(&self, gpu: &Gpu, ranges: &[wgpu::BufferBinding<'_>]) -> Result<wgpu::BindGroup> {
        let expected = self.reflection.written.len();
        if ranges.len() != expected {
            return Err(Error::Bindings { shader: self.shader, expected, got: ranges.len() });
        }
        let entries: Vec<_> = (0..)
            .zip(ranges)
            .map(|(binding, range)| wgpu::BindGroupEntry {
                binding,
                resource: wgpu::BindingResource::Buffer(range.clone()),
            })
            .collect();
        let described =
            wgpu::BindGroupDescriptor { label: Some(self.shader), layout: &self.buffers, entries: &entries };
        gpu.guarded(|| gpu.device.create_bind_group(&described))
    }
}

/// All pipelines of a device.
pub struct Pipelines {
    /// Group 1 of every pipeline: one uniform block at a dynamic offset.
    pub(super) params: wgpu::BindGroupLayout,
    made: Mutex<HashMap<Kernel, Arc<Pipeline>>>,
}

impl Pipelines {
    /// None yet.
    pub fn new(gpu: &Gpu) -> Self {
        let uniform = wgpu::BindingType::Buffer {
            ty: wgpu::BufferBindingType::Uniform,
            has_dynamic_offset: true,
            min_binding_size: None,
        };
        let params = layout(gpu, &[uniform]);
        Pipelines { params, made: Mutex::new(HashMap::new()) }
    }

    /// The pipeline of a kernel, compiled if this is the first time.
    pub fn get(&self, gpu: &Gpu, kernel: &Kernel) -> Result<Arc<Pipeline>> {
        if let Some(pipeline) = self.lock().get(kernel) {
            return Ok(pipeline.clone());
        }
        let pipeline = Arc::new(self.make(gpu, kernel)?);
        self.lock().insert(kernel.clone(), pipeline.clone());
        Ok(pipeline)
    }

    /// Compiles what is not compiled yet, on all threads.
    pub fn compile(&self, gpu: &Gpu, kernels: &[&Kernel]) -> Result<()> {
        let distinct: std::collections::BTreeSet<&Kernel> = kernels.iter().copied().collect();
        distinct.into_par_iter().try_for_each(|kernel| self.get(gpu, kernel).map(|_| ()))
    }

    /// Number of distinct kernels compiled so far.
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Kernel, Arc<Pipeline>>> {
        self.made.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn make(&self, gpu: &Gpu, kernel: &Kernel) -> Result<Pipeline> {
        let assembled = assemble(kernel)?;
        let reflection = assembled.reflection.clone();
        fits(gpu, kernel, &reflection)?;
        let (buffers, compute) = gpu.guarded(|| {
            let kinds: Vec<_> = reflection.written.iter().map(|&written| storage(written)).collect();
            let buffers = layout(gpu, &kinds);
            let groups = [Some(&buffers), Some(&self.params)];
            let layout = gpu.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                label: Some(kernel.shader),
                bind_group_layouts: &groups,
                immediate_size: 0,
            });
            let source = wgpu::ShaderModuleDescriptor {
                label: Some(kernel.shader),
                // The module, not its text, which would be parsed a second time.
                source: wgpu::ShaderSource::Naga(Cow::Owned(assembled.module.clone())),
            };
            // SAFETY: kernels are part of this program, take their sizes from the planner and are run with guard words
            // around every buffer by the conformance harness; their loops end and their divisors are not zero.
            let module = unsafe {
                gpu.device.create_shader_module_trusted(source, wgpu::ShaderRuntimeChecks::unchecked())
            };
            let compute = gpu.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(kernel.shader),
                layout: Some(&layout),
                module: &module,
                entry_point: Some(kernel.entry),
                compilation_options: wgpu::PipelineCompilationOptions {
                    // Kernels write workgroup memory before they read it.
                    zero_initialize_workgroup_memory: false,
                    ..Default::default()
                },
                cache: None,
            });
            (buffers, compute)
        })?;
        Ok(Pipeline { shader: kernel.shader, reflection, compute, buffers })
    }
}

/// Says what the kernel needs beyond the adapter, before wgpu does in its own words.
fn fits(gpu: &Gpu, kernel: &Kernel, reflection: &Reflection) -> Result<()> {
    let caps = gpu.caps();
    let invocations: u32 = reflection.workgroup.iter().product();
    let buffers = reflection.written.len();
    let (need, have) = if invocations > caps.max_invocations {
        (format!("{invocations} invocations in a workgroup"), caps.max_invocations.to_string())
    } else if buffers > caps.max_storage_buffers as usize {
        (format!("{buffers} storage buffers"), caps.max_storage_buffers.to_string())
    } else if kernel.needs_f16() && !caps.f16 {
        ("16-bit floats (SHADER_F16)".into(), "none".into())
    } else if kernel.needs_cooperative() && caps.cooperative.is_empty() {
        ("cooperative matrices".into(), "none".into())
    } else {
        return Ok(());
    };
    Err(Error::Unsupported { shader: kernel.shader, need, adapter: gpu.listing.name.clone(), have })
}

fn storage(written: bool) -> wgpu::BindingType {
    wgpu::BindingType::Buffer {
        ty: wgpu::BufferBindingType::Storage { read_only: !written },
        has_dynamic_offset: false,
        min_binding_size: None,
    }
}

fn layout(gpu: &Gpu, kinds: &[wgpu::BindingType]) -> wgpu::BindGroupLayout {
    let entries: Vec<_> = (0..)
        .zip(kinds)
        .map(|(binding, &ty)| wgpu::BindGroupLayoutEntry {
            binding,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty,
            count: None,
        })
        .collect();
    gpu.device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: None, entries: &entries })
}

/// Bytes between the parameter blocks of consecutive launches: a multiple of every adapter's uniform alignment.
pub(super) fn window<'p>(pipelines: impl Iterator<Item = &'p Pipeline>) -> u64 {
    let largest = pipelines.map(|p| p.reflection.params_bytes as u64).max().unwrap_or(0);
    largest.max(1).next_multiple_of(256)
}

/// One uniform buffer with the parameters of all launches, bound with a dynamic offset.
pub(super) fn params(
    gpu: &Gpu,
    pipelines: &Pipelines,
    given: &[(&Pipeline, &[(String, Scalar)])],
) -> Result<wgpu::BindGroup> {
    let window = window(given.iter().map(|(pipeline, _)| *pipeline));
    let mut bytes = vec![0; window as usize * given.len().max(1)];
    for (number, (pipeline, params)) in given.iter().enumerate() {
        let own = pipeline.reflection.pack(pipeline.shader, params)?;
        bytes[number * window as usize..][..own.len()].copy_from_slice(&own);
    }
    gpu.guarded(|| {
        let buffer = gpu.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("parameters"),
            size: bytes.len() as u64,
            usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        gpu.queue.write_buffer(&buffer, 0, &bytes);
        let size = std::num::NonZeroU64::new(window);
        let resource =
            wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer: &buffer, offset: 0, size });
        gpu.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some("parameters"),
            layout: &pipelines.params,
            entries: &[wgpu::BindGroupEntry { binding: 0, resource }],
        })
    })
}
