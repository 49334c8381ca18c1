//! The time a run takes on the device, by the device's clock: two timestamps at the ends of its passes.
//!
//! They come back with the results of the run, so that nothing waits for them.

use super::{Gpu, Result};

/// Bytes of both timestamps.
pub(super) const STAMP_BYTES: u64 = 16;

/// Two timestamps of the run under way.
pub(super) struct Clock {
    queries: wgpu::QuerySet,
    stamps: wgpu::Buffer,
    tick_seconds: f64,
}

impl Clock {
    /// None where the adapter has no timestamps.
    pub(super) fn new(gpu: &Gpu) -> Result<Option<Clock>> {
        if !gpu.listing.timestamps {
            return Ok(None);
        }
        gpu.guarded(|| {
            let queries = gpu.device.create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("run"),
                ty: wgpu::QueryType::Timestamp,
                count: 2,
            });
            let stamps = gpu.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("run"),
                size: STAMP_BYTES,
                usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: false,
            });
            let tick_seconds = gpu.queue.get_timestamp_period() as f64 / 1e9;
            Some(Clock { queries, stamps, tick_seconds })
        })
    }

    /// What a pass writes that is the first of its run, the last, or both; nothing for others.
    pub(super) fn writes(
        &self,
        is_first: bool,
        is_last: bool,
    ) -> Option<wgpu::ComputePassTimestampWrites<'_>> {
        (is_first || is_last).then_some(wgpu::ComputePassTimestampWrites {
            query_set: &self.queries,
            beginning_of_pass_write_index: is_first.then_some(0),
            end_of_pass_write_index: is_last.then_some(1),
        })
    }

    /// Brings both to `offset` of a buffer.
    pub(super) fn resolve(&self, encoder: &mut wgpu::CommandEncoder, to: &wgpu::Buffer, offset: u64) {
        encoder.resolve_query_set(&self.queries, 0..2, &self.stamps, 0);
        encoder.copy_buffer_to_buffer(&self.stamps, 0, to, offset, STAMP_BYTES);
    }

    /// Seconds between the two; none if the clock was set back on the way.
    pub(super) fn seconds(&self, stamps: &[u8]) -> Option<f64> {
        let ticks: Vec<u64> = bytemuck::pod_collect_to_vec(stamps);
        let passed = ticks[1].checked_sub(ticks[0])?;
        (passed > 0).then_some(passed as f64 * self.tick_seconds)
    }
}
