//! Buffers that host and device hand to each other: mapped while the host has them, unmapped while the device does.
//!
//! They are made once. Mapping one again is asked for right after the submission that uses it and happens by itself.

use super::bytes::WORD;
use super::{Gpu, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

const WITH_DEVICE: u8 = 0;
const WITH_HOST: u8 = 1;
const FAILED: u8 = 2;

/// Longest time between the end of a submission and the news of it.
const NEWS: Duration = Duration::from_secs(5);

/// One such buffer.
pub(super) struct Exchange {
    pub(super) buffer: wgpu::Buffer,
    mode: wgpu::MapMode,
    state: Arc<AtomicU8>,
    /// The last submission that uses it.
    used_by: Option<wgpu::SubmissionIndex>,
}

impl Exchange {
    /// For values on their way to the device; the host has it first.
    pub(super) fn upload(gpu: &Gpu, bytes: u64) -> Result<Self> {
        let usage = wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC;
        Self::new(gpu, "upload", wgpu::MapMode::Write, usage, bytes)
    }

    /// For values on their way back; the device has it first.
    pub(super) fn readback(gpu: &Gpu, bytes: u64) -> Result<Self> {
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        Self::new(gpu, "readback", wgpu::MapMode::Read, usage, bytes)
    }

    fn new(
        gpu: &Gpu,
        label: &str,
        mode: wgpu::MapMode,
        usage: wgpu::BufferUsages,
        bytes: u64,
    ) -> Result<Self> {
        let mapped_at_creation = mode == wgpu::MapMode::Write;
        let size = bytes.max(WORD).next_multiple_of(2 * WORD);
        let described = wgpu::BufferDescriptor { label: Some(label), size, usage, mapped_at_creation };
        let buffer = gpu.guarded(|| gpu.device.create_buffer(&described))?;
        let state = if mapped_at_creation { WITH_HOST } else { WITH_DEVICE };
        Ok(Exchange { buffer, mode, state: Arc::new(AtomicU8::new(state)), used_by: None })
    }

    /// Bytes it holds.
    pub(super) fn bytes(&self) -> u64 {
        self.buffer.size()
    }

    /// Asks for it back once `submission` is done.
    pub(super) fn recall(&mut self, submission: wgpu::SubmissionIndex) {
        let state = self.state.clone();
        self.buffer.map_async(self.mode, .., move |outcome| {
            state.store(if outcome.is_ok() { WITH_HOST } else { FAILED }, Ordering::Release);
        });
        self.used_by = Some(submission);
    }

    /// True once the host has it, or will never have it.
    pub(super) fn is_back(&self) -> bool {
        self.state.load(Ordering::Acquire) != WITH_DEVICE
    }

    /// Waits until the host has it.
    ///
    /// Another thread that waits on the same device may have taken the news of this buffer from the driver, and then
    /// passes it on a moment after this thread's own wait has returned.
    pub(super) fn wait(&self, gpu: &Gpu) -> Result<()> {
        if !self.is_back() {
            gpu.wait_for(self.used_by.clone())?;
        }
        let start = Instant::now();
        while !self.is_back() && start.elapsed() < NEWS {
            std::thread::yield_now();
            gpu.check()?;
        }
        match self.state.load(Ordering::Acquire) {
            WITH_HOST => Ok(()),
            _ => Err(gpu.cause_of("a buffer could not be mapped")),
        }
    }

    /// Gives it to the device.
    pub(super) fn release(&mut self) {
        self.state.store(WITH_DEVICE, Ordering::Release);
        self.buffer.unmap();
    }

    /// Writes into it at an offset of whole words; the host must have it.
    pub(super) fn put(&self, gpu: &Gpu, offset: u64, bytes: &[u8]) -> Result<()> {
        let range = offset..offset + bytes.len() as u64;
        let mut view = self.buffer.get_mapped_range_mut(range).map_err(|e| gpu.cause_of(e))?;
        view.copy_from_slice(bytes);
        Ok(())
    }

    /// Reads from it at an offset of whole words; the host must have it.
    pub(super) fn get(&self, gpu: &Gpu, offset: u64, bytes: u64) -> Result<Vec<u8>> {
        let view = self.buffer.get_mapped_range(offset..offset + bytes).map_err(|e| gpu.cause_of(e))?;
        Ok(view.to_vec())
    }
}
