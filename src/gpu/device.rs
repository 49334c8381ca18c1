//! Adapters of this machine and the opened device.
//!
//! Errors that the driver reports later, and the loss of the device, are kept here until [`Gpu::check`] asks for them:
//! nothing in this floor panics because a driver did.

use super::dot::{self, PackedDot};
use super::quiet::unless_it_panics;
use super::{Error, Result};
use crate::ops::launch::{Caps, Cooperative};
use crate::tensor::DType;
use std::sync::{Arc, Mutex};

/// What there is to know about an adapter before it is opened.
#[derive(Clone, Debug)]
pub struct Listing {
    /// Position in the list, best first: discrete, integrated, virtual, then drivers on the CPU.
    pub index: usize,
    /// Name as the driver gives it.
    pub name: String,
    /// `vulkan`, `metal` or `dx12`.
    pub backend: String,
    /// Driver and its version.
    pub driver: String,
    /// `discrete`, `integrated`, `virtual`, `cpu` or `other`.
    pub kind: &'static str,
    /// What operators may use.
    pub caps: Caps,
    /// Bytes of the largest buffer.
    pub max_buffer_bytes: u64,
    /// Bytes of the device's own memory, where the driver tells (Vulkan).
    pub memory_bytes: Option<u64>,
    /// Dispatches can be timed on the device.
    pub timestamps: bool,
    /// Smallest and largest subgroup.
    pub subgroup_sizes: [u32; 2],
    /// Products of packed bytes.
    pub packed_dot: PackedDot,
}

impl std::fmt::Display for Listing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} ({}, {}, {})", self.index, self.name, self.backend, self.kind, self.driver)
    }
}

/// An opened device with its queue.
pub struct Gpu {
    /// The adapter it runs on.
    pub listing: Listing,
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    failure: Arc<Mutex<Option<Error>>>,
}

/// Features that are used where they exist and missed nowhere.
fn welcome_features() -> wgpu::Features {
    wgpu::Features::SHADER_F16
        | wgpu::Features::SHADER_INT64
        | wgpu::Features::SUBGROUP
        | wgpu::Features::TIMESTAMP_QUERY
        | wgpu::Features::TIMESTAMP_QUERY_INSIDE_ENCODERS
        | wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES
        | wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX
}

/// Leave to use what wgpu calls experimental, where it is used.
fn experimental(features: wgpu::Features) -> wgpu::ExperimentalFeatures {
    if !features.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX) {
        return wgpu::ExperimentalFeatures::disabled();
    }
    // SAFETY: the kernels that need it are judged on this adapter, against others that do not, before they are used.
    unsafe { wgpu::ExperimentalFeatures::enabled() }
}

/// Keeps Mesa's layer for choosing a device from complaining on stderr where there is no desktop.
///
/// The layer looks for a Wayland display and, without `XDG_RUNTIME_DIR`, prints an error for each adapter list. It is of
/// no use here: adapters are chosen by name.
///
/// # Safety
/// Call it first in `main`: the environment must not change while other threads run.
pub unsafe fn skip_window_layers() {
    let set = |name: &str| std::env::var_os(name).is_some();
    if cfg!(target_os = "linux") && !set("XDG_RUNTIME_DIR") && !set("NODEVICE_SELECT") {
        // SAFETY: the caller has no other threads yet.
        unsafe { std::env::set_var("NODEVICE_SELECT", "1") };
    }
}

/// All adapters, best first.
pub fn list() -> Vec<Listing> {
    adapters().into_iter().map(|(listing, _)| listing).collect()
}

impl Gpu {
    /// Opens an adapter: `gpu` takes the best, otherwise a number from [`list`] or part of a name, whatever the case.
    pub fn open(wanted: &str) -> Result<Gpu> {
        let mut found = adapters();
        if found.is_empty() {
            return Err(Error::NoAdapter { hint: hint() });
        }
        let names: Vec<_> = found.iter().map(|(listing, _)| listing.name.clone()).collect();
        let Some(chosen) = choose(&names, wanted) else {
            let existing: Vec<_> = found.iter().map(|(listing, _)| listing.to_string()).collect();
            return Err(Error::NotFound { wanted: wanted.into(), existing: existing.join("; ") });
        };
        Self::open_adapter(found.swap_remove(chosen))
    }

    /// Opens the adapter of this listing anew, after its device was lost. No other adapter is taken in its place.
    pub fn open_again(listing: &Listing) -> Result<Gpu> {
        let mut found = adapters();
        let same = |other: &Listing| {
            (&other.name, &other.backend, &other.driver) == (&listing.name, &listing.backend, &listing.driver)
        };
        found.retain(|(other, _)| same(other));
        let at = found.iter().position(|(other, _)| other.index == listing.index).unwrap_or(0);
        if found.is_empty() {
            let existing: Vec<_> = list().iter().map(Listing::to_string).collect();
            return Err(Error::NotFound { wanted: listing.name.clone(), existing: existing.join("; ") });
        }
        Self::open_adapter(found.swap_remove(at))
    }

    fn open_adapter((listing, adapter): (Listing, wgpu::Adapter)) -> Result<Gpu> {
        let required_features = adapter.features() & welcome_features();
        let request = wgpu::DeviceDescriptor {
            label: Some("kiln"),
            required_features,
            experimental_features: experimental(required_features),
            required_limits: adapter.limits(),
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            ..Default::default()
        };
        let (device, queue) = pollster::block_on(adapter.request_device(&request))
            .map_err(|e| Error::Open { adapter: listing.name.clone(), reason: e.to_string() })?;
        let failure = Arc::new(Mutex::new(None));
        watch(&device, &listing.name, &failure);
        Ok(Gpu { listing, device, queue, failure })
    }

    /// What operators may use.
    pub fn caps(&self) -> &Caps {
        &self.listing.caps
    }

    /// The first error that the driver reported since the device was opened, if any.
    pub fn check(&self) -> Result<()> {
        match &*self.failure.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }

    /// Waits until all submitted work is done.
    pub fn wait(&self) -> Result<()> {
        self.wait_for(None)
    }

    /// Waits until one submission is done; all of them without an index.
    pub(super) fn wait_for(&self, submission_index: Option<wgpu::SubmissionIndex>) -> Result<()> {
        self.ask(wgpu::PollType::Wait { submission_index, timeout: None })
    }

    /// Lets finished work report without waiting.
    pub(super) fn poll(&self) -> Result<()> {
        self.ask(wgpu::PollType::Poll)
    }

    /// Gives the device up: whatever is asked of it from now on fails as if the driver had lost it.
    pub fn destroy(&self) {
        self.device.destroy();
    }

    /// Asks the driver for news. Where the device is lost wgpu 30 panics in this call, after it has told the callback.
    fn ask(&self, how: wgpu::PollType) -> Result<()> {
        let outcome = unless_it_panics(|| self.device.poll(how));
        self.check()?;
        match outcome {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(self.cause_of(error)),
            Err(reason) => Err(Error::Lost { adapter: self.listing.name.clone(), reason }),
        }
    }

    /// The loss of the device if that is behind a complaint, else the complaint.
    pub(super) fn cause_of(&self, complaint: impl std::fmt::Display) -> Error {
        let refused = || Error::Refused { adapter: self.listing.name.clone(), reason: complaint.to_string() };
        self.loss().unwrap_or_else(refused)
    }

    /// The loss of the device, if it is lost: told by a poll, and only once nothing is under way any more.
    fn loss(&self) -> Option<Error> {
        let _ = unless_it_panics(|| self.device.poll(wgpu::PollType::wait_indefinitely()));
        self.check().err().filter(|error| matches!(error, Error::Lost { .. }))
    }

    /// Runs `make` and turns a complaint of wgpu's validation into an error.
    pub(super) fn guarded<T>(&self, make: impl FnOnce() -> T) -> Result<T> {
        let memory = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let validation = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let internal = self.device.push_error_scope(wgpu::ErrorFilter::Internal);
        let made = make();
        for scope in [internal, validation, memory] {
            if let Some(error) = pollster::block_on(scope.pop()) {
                return Err(self.loss().unwrap_or_else(|| typed(&self.listing.name, error)));
            }
        }
        self.check()?;
        Ok(made)
    }
}

/// Keeps the first uncaptured error and the loss of the device for [`Gpu::check`].
fn watch(device: &wgpu::Device, adapter: &str, failure: &Arc<Mutex<Option<Error>>>) {
    let keep = {
        let failure = failure.clone();
        move |error: Error| {
            let mut kept = failure.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            // The loss of the device explains the errors around it.
            if kept.is_none() || matches!(error, Error::Lost { .. }) {
                *kept = Some(error);
            }
        }
    };
    let (name, keep_error) = (adapter.to_string(), keep.clone());
    device.on_uncaptured_error(Arc::new(move |error| keep_error(typed(&name, error))));
    let name = adapter.to_string();
    device.set_device_lost_callback(move |reason, message| {
        let reason = match reason {
            wgpu::DeviceLostReason::Destroyed => "it was given up".to_string(),
            wgpu::DeviceLostReason::Unknown => message,
        };
        keep(Error::Lost { adapter: name.clone(), reason });
    });
}

fn typed(adapter: &str, error: wgpu::Error) -> Error {
    let adapter = adapter.to_string();
    match error {
        wgpu::Error::OutOfMemory { .. } => Error::OutOfMemory { adapter },
        wgpu::Error::Validation { description, .. } | wgpu::Error::Internal { description, .. } => {
            Error::Refused { adapter, reason: description }
        }
    }
}

fn adapters() -> Vec<(Listing, wgpu::Adapter)> {
    // No flags: a debug build would otherwise look for Vulkan's validation layers and complain.
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends: wgpu::Backends::PRIMARY,
        flags: wgpu::InstanceFlags::empty(),
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    });
    let mut found = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::PRIMARY));
    found.sort_by_key(|adapter| rank(adapter.get_info().device_type));
    found.into_iter().enumerate().map(|(index, adapter)| (describe(index, &adapter), adapter)).collect()
}

fn rank(kind: wgpu::DeviceType) -> u8 {
    match kind {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other => 3,
        wgpu::DeviceType::Cpu => 4,
    }
}

fn describe(index: usize, adapter: &wgpu::Adapter) -> Listing {
    let (info, limits, features) = (adapter.get_info(), adapter.limits(), adapter.features());
    let caps = Caps {
        is_cpu: info.device_type == wgpu::DeviceType::Cpu,
        f16: features.contains(wgpu::Features::SHADER_F16),
        subgroup: features.contains(wgpu::Features::SUBGROUP),
        subgroup_size: if info.subgroup_min_size == info.subgroup_max_size {
            info.subgroup_max_size
        } else {
            0
        },
        subgroup_most: info.subgroup_max_size,
        cooperative: cooperative(adapter),
        int64: features.contains(wgpu::Features::SHADER_INT64),
        max_invocations: limits.max_compute_invocations_per_workgroup,
        max_workgroup_bytes: limits.max_compute_workgroup_storage_size,
        max_binding_bytes: limits.max_storage_buffer_binding_size,
        max_storage_buffers: limits.max_storage_buffers_per_shader_stage,
    };
    let kind = match info.device_type {
        wgpu::DeviceType::DiscreteGpu => "discrete",
        wgpu::DeviceType::IntegratedGpu => "integrated",
        wgpu::DeviceType::VirtualGpu => "virtual",
        wgpu::DeviceType::Cpu => "cpu",
        wgpu::DeviceType::Other => "other",
    };
    Listing {
        index,
        name: info.name,
        backend: info.backend.to_string(),
        driver: format!("{} {}", info.driver, info.driver_info).trim().to_string(),
        kind,
        caps,
        max_buffer_bytes: limits.max_buffer_size,
        memory_bytes: memory_bytes(adapter),
        timestamps: features.contains(wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES),
        subgroup_sizes: [info.subgroup_min_size, info.subgroup_max_size],
        packed_dot: dot::of(adapter),
    }
}

/// Cooperative matrices of the adapter, those that are square and of floats.
fn cooperative(adapter: &wgpu::Adapter) -> Vec<Cooperative> {
    if !adapter.features().contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX) {
        return vec![];
    }
    let float = |kind| match kind {
        wgpu::CooperativeScalarType::F16 => Some(DType::F16),
        wgpu::CooperativeScalarType::F32 => Some(DType::F32),
        _ => None,
    };
    let own = |p: wgpu::CooperativeMatrixProperties| {
        let square = p.m_size == p.n_size && p.m_size == p.k_size;
        let (operands, sums) = float(p.ab_type).zip(float(p.cr_type))?;
        square.then_some(Cooperative { side: p.m_size, operands, sums })
    };
    adapter.cooperative_matrix_properties().into_iter().filter_map(own).collect()
}

/// Bytes of the largest heap that is local to the device.
#[cfg(not(target_vendor = "apple"))]
fn memory_bytes(adapter: &wgpu::Adapter) -> Option<u64> {
    /// VK_MEMORY_HEAP_DEVICE_LOCAL_BIT.
    const DEVICE_LOCAL: u32 = 1;
    // SAFETY: the handles are only read, and not kept beyond the adapter.
    let memory = unsafe {
        let adapter = adapter.as_hal::<wgpu::hal::api::Vulkan>()?;
        let instance = adapter.shared_instance().raw_instance();
        instance.get_physical_device_memory_properties(adapter.raw_physical_device())
    };
    let heaps = &memory.memory_heaps[..memory.memory_heap_count as usize];
    heaps.iter().filter(|h| h.flags.as_raw() & DEVICE_LOCAL != 0).map(|h| h.size).max()
}

/// Metal does not tell through wgpu.
#[cfg(target_vendor = "apple")]
fn memory_bytes(_: &wgpu::Adapter) -> Option<u64> {
    None
}

/// Position in the list of what the user asked for.
fn choose(names: &[String], wanted: &str) -> Option<usize> {
    if wanted == "gpu" {
        return (!names.is_empty()).then_some(0);
    }
    if let Ok(index) = wanted.parse::<usize>() {
        return (index < names.len()).then_some(index);
    }
    let wanted = wanted.to_lowercase();
    names.iter().position(|name| name.to_lowercase().contains(&wanted))
}

fn hint() -> &'static str {
    if cfg!(target_os = "linux") {
        "install the vendor's Vulkan driver, or a driver on the CPU: apt-get install mesa-vulkan-drivers"
    } else if cfg!(windows) {
        "install the GPU vendor's current driver"
    } else {
        "kiln needs a system with Metal, Vulkan or DX12"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adapter_is_chosen_by_rank_number_or_part_of_its_name() {
        let names = ["NVIDIA GeForce RTX 4090".to_string(), "llvmpipe (LLVM 15)".to_string()];
        assert_eq!(choose(&names, "gpu"), Some(0));
        assert_eq!(choose(&names, "1"), Some(1));
        assert_eq!(choose(&names, "LLVMpipe"), Some(1));
        assert_eq!(choose(&names, "2"), None);
        assert_eq!(choose(&names, "radeon"), None);
        assert_eq!(choose(&[], "gpu"), None);
    }
}
