//! How long the dispatches of a plan take: each in its place by the device's clock, or alone by the host's.
//!
//! For reports and marks only: both allocate and wait, which a run never does.

use super::GpuEngine;
use super::transfer::Exchange;
use crate::plan::{Engine, Error, Result};
use crate::tensor::Tensor;
use std::time::Instant;

/// Dispatches timed with one query set; WebGPU allows 4096 queries in one.
const PER_SET: usize = 4000;

impl GpuEngine {
    /// Milliseconds of each dispatch of a plan within one run, by the device's clock.
    ///
    /// An error if the adapter cannot write timestamps between dispatches.
    pub fn profile(&mut self, number: usize, feeds: &[&Tensor]) -> Result<Vec<f64>> {
        if !self.gpu.listing.timestamps {
            let reason = format!("{} cannot time dispatches (no timestamps inside passes)", self.gpu.listing);
            return Err(Error::Device { reason });
        }
        // The run proper uploads the feeds and compiles what the driver compiles late.
        self.run(number, feeds)?;
        let plan = &self.plans[number];
        let mut times = Vec::with_capacity(plan.steps.len());
        for steps in plan.steps.chunks(PER_SET) {
            let stamps = steps.len() as u64 + 1;
            let queries = self.gpu.device.create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("profile"),
                ty: wgpu::QueryType::Timestamp,
                count: stamps as u32,
            });
            let resolved = self.gpu.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("profile"),
                size: 8 * stamps,
                usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: false,
            });
            let mut back = Exchange::readback(&self.gpu, 8 * stamps)?;
            let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
            {
                let mut pass = encoder.begin_compute_pass(&Default::default());
                pass.write_timestamp(&queries, 0);
                for (at, step) in (1..).zip(steps) {
                    pass.set_pipeline(&step.pipeline.compute);
                    plan.dispatch(&mut pass, step);
                    pass.write_timestamp(&queries, at);
                }
            }
            encoder.resolve_query_set(&queries, 0..stamps as u32, &resolved, 0);
            encoder.copy_buffer_to_buffer(&resolved, 0, &back.buffer, 0, 8 * stamps);
            let submission = self.gpu.queue.submit([encoder.finish()]);
            back.recall(submission);
            back.wait(&self.gpu)?;
            let ticks: Vec<u64> = bytemuck::pod_collect_to_vec(&back.get(&self.gpu, 0, 8 * stamps)?);
            let tick_ms = self.gpu.queue.get_timestamp_period() as f64 / 1e6;
            times.extend(ticks.windows(2).map(|t| t[1].saturating_sub(t[0]) as f64 * tick_ms));
        }
        Ok(times)
    }

    /// Milliseconds of each dispatch of a plan when it runs alone, `repeats` times in one submission.
    ///
    /// Values are overwritten over and over, so arenas must be written again before training goes on.
    pub fn time_alone(&mut self, number: usize, repeats: u32) -> Result<Vec<f64>> {
        let plan = &self.plans[number];
        let mut times = Vec::with_capacity(plan.steps.len());
        for step in &plan.steps {
            let submit = |repeats: u32| {
                let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
                {
                    let mut pass = encoder.begin_compute_pass(&Default::default());
                    pass.set_pipeline(&step.pipeline.compute);
                    (0..repeats).for_each(|_| plan.dispatch(&mut pass, step));
                }
                self.gpu.queue.submit([encoder.finish()]);
                self.gpu.wait()
            };
            submit(1)?;
            let start = Instant::now();
            submit(repeats)?;
            times.push(start.elapsed().as_secs_f64() * 1e3 / repeats.max(1) as f64);
        }
        Ok(times)
    }
}
