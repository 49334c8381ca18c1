//! Whether an adapter has an instruction that multiplies four packed bytes by four and sums up, or puts it together from others.

/// What is known of the product of packed bytes on an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PackedDot {
    /// The driver says that it is an instruction of the device.
    Native,
    /// It is put together from shifts, products and sums.
    Assembled,
    /// Nobody tells (DX12, where it is an instruction from shader model 6.4 on).
    Unknown,
}

impl PackedDot {
    /// As a word, for reports.
    pub fn name(self) -> &'static str {
        match self {
            PackedDot::Native => "native",
            PackedDot::Assembled => "assembled",
            PackedDot::Unknown => "unknown",
        }
    }
}

/// Asks an adapter.
#[cfg(not(target_vendor = "apple"))]
pub(super) fn of(adapter: &wgpu::Adapter) -> PackedDot {
    use ash::vk;
    let info = adapter.get_info();
    if info.backend != wgpu::Backend::Vulkan {
        return PackedDot::Unknown;
    }
    // SAFETY: the handles are only read, and not kept beyond the adapter.
    unsafe {
        let Some(adapter) = adapter.as_hal::<wgpu::hal::api::Vulkan>() else { return PackedDot::Unknown };
        let (shared, physical) = (adapter.shared_instance(), adapter.raw_physical_device());
        let instance = shared.raw_instance();
        let version = instance.get_physical_device_properties(physical).api_version;
        // Below, the question itself does not exist, and naga puts the product together.
        if version.min(shared.instance_api_version()) < vk::API_VERSION_1_1 {
            return PackedDot::Assembled;
        }
        let mut dot = vk::PhysicalDeviceShaderIntegerDotProductProperties::default();
        let mut all = vk::PhysicalDeviceProperties2::default().push_next(&mut dot);
        instance.get_physical_device_properties2(physical, &mut all);
        match dot.integer_dot_product4x8_bit_packed_signed_accelerated {
            0 => PackedDot::Assembled,
            _ => PackedDot::Native,
        }
    }
}

/// Metal's language has none.
#[cfg(target_vendor = "apple")]
pub(super) fn of(_: &wgpu::Adapter) -> PackedDot {
    PackedDot::Assembled
}
