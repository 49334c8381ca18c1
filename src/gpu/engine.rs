//! Replays plans on a device.
//!
//! All buffers, bind groups and parameters are made when the engine is built. A run copies its feeds from a ring of
//! staging buffers, dispatches, and copies its results into a ring that the host maps later: nothing is allocated and
//! the host waits only when a ring is full.

use super::bytes::unpack;
use super::clock::{Clock, STAMP_BYTES};
use super::ready::{Maker, Ready, pack_float, shared_slots};
use super::transfer::Exchange;
use super::{Gpu, Pipelines};
use crate::plan::{ALIGNMENT, Arena, Engine, Error, Plan, Result, Span, Ticket, padded_bytes};
use crate::tensor::{Tensor, Type};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Runs that may be under way before the host waits.
const DEPTH: usize = 3;
/// Runs whose device time is remembered.
const TIMES: usize = 256;
/// Bytes that pass between host and arenas at a time, outside of runs.
const DOOR_BYTES: u64 = 4 << 20;

/// Bytes of what lies between host and device for an engine that replays `plans`.
pub fn transfer_bytes(plans: &[Plan]) -> u64 {
    let most = |of: fn(&Plan) -> u64| plans.iter().map(of).max().unwrap_or(0);
    let feeds = most(|plan| plan.feed_bytes);
    let reads = most(|plan| plan.reads.iter().map(|r| padded_bytes(&r.kind).next_multiple_of(8)).sum());
    let dispatches: usize = plans.iter().map(|plan| plan.dispatches.len()).sum();
    DEPTH as u64 * (feeds + reads + STAMP_BYTES) + 2 * DOOR_BYTES + ALIGNMENT * dispatches as u64
}

/// Replays plans with compute shaders.
pub struct GpuEngine {
    pub(super) gpu: Arc<Gpu>,
    arenas: Vec<(wgpu::Buffer, Type)>,
    pub(super) plans: Vec<Ready>,
    uploads: VecDeque<Exchange>,
    free_readbacks: Vec<Exchange>,
    pending: VecDeque<Pending>,
    finished: HashMap<Ticket, Vec<Tensor>>,
    clock: Option<Clock>,
    /// Device seconds of the last runs that finished.
    times: VecDeque<(Ticket, f64)>,
    door_in: Exchange,
    door_out: Exchange,
    next_ticket: u64,
    held_bytes: u64,
    /// Time spent in `submit` without waiting for the device, and time waited.
    submitting: Duration,
    waiting: Duration,
}

/// A run whose results are on their way.
struct Pending {
    ticket: Ticket,
    plan: usize,
    back: Exchange,
}

impl GpuEngine {
    /// Allocates and compiles everything. Arenas start as zeros; plans share their slots, as runs never overlap.
    pub fn new(gpu: Arc<Gpu>, pipelines: &Pipelines, arenas: &[Arena], plans: Vec<Plan>) -> Result<Self> {
        let kernels: Vec<_> = plans.iter().flat_map(|p| &p.dispatches).map(|d| &d.kernel).collect();
        pipelines.compile(&gpu, &kernels)?;
        let shared = gpu.clone();
        let mut maker = Maker { gpu: &shared, bytes: 0 };
        let arenas = arenas
            .iter()
            .map(|a| Ok((maker.storage(&a.name, padded_bytes(&a.kind))?, a.kind.clone())))
            .collect::<Result<Vec<_>>>()?;
        let slots = shared_slots(&mut maker, &plans)?;
        let plans = plans
            .iter()
            .map(|plan| Ready::new(&mut maker, pipelines, &arenas, &slots, plan))
            .collect::<Result<Vec<_>>>()?;
        let most = |of: fn(&Ready) -> u64| plans.iter().map(of).max().unwrap_or(0);
        let (feed_bytes, read_bytes) = (most(|p| p.feed_bytes), most(|p| p.read_bytes) + STAMP_BYTES);
        let clock = Clock::new(&gpu)?;
        let mut uploads = VecDeque::new();
        let mut free_readbacks = vec![];
        for _ in 0..DEPTH {
            uploads.push_back(maker.count(Exchange::upload(&gpu, feed_bytes)?));
            free_readbacks.push(maker.count(Exchange::readback(&gpu, read_bytes)?));
        }
        let door_in = maker.count(Exchange::upload(&gpu, DOOR_BYTES)?);
        let door_out = maker.count(Exchange::readback(&gpu, DOOR_BYTES)?);
        let held_bytes = maker.bytes;
        Ok(GpuEngine {
            gpu,
            arenas,
            plans,
            uploads,
            free_readbacks,
            pending: VecDeque::new(),
            finished: HashMap::new(),
            clock,
            times: VecDeque::with_capacity(TIMES),
            door_in,
            door_out,
            next_ticket: 0,
            held_bytes,
            submitting: Duration::ZERO,
            waiting: Duration::ZERO,
        })
    }

    /// Bytes of device memory that the driver's allocator has handed out, if it tells.
    pub fn allocated_bytes(&self) -> Option<u64> {
        self.gpu.device.generate_allocator_report().map(|report| report.total_allocated_bytes)
    }

    /// Changes the time that one submission may take, as far as it can be foreseen: a watchdog resets a GPU that is busy for
    /// too long. At the start it is a quarter of a second on a GPU and without limit on a driver that runs on the CPU.
    pub fn limit_submissions(&mut self, budget: Duration) {
        self.plans.iter_mut().for_each(|plan| plan.pace.allow(budget));
    }

    /// Submissions that a run of plan `number` is cut into, as things stand.
    pub fn submissions(&self, number: usize) -> usize {
        self.plans[number].pace.parts().len()
    }

    /// Waits until nothing is under way.
    pub fn wait(&self) -> Result<()> {
        Ok(self.gpu.wait()?)
    }

    /// Moves the oldest pending run to the finished ones.
    fn finish_oldest(&mut self) -> Result<()> {
        let Some(Pending { ticket, plan, mut back }) = self.pending.pop_front() else { return Ok(()) };
        let start = Instant::now();
        back.wait(&self.gpu)?;
        self.waiting += start.elapsed();
        let mut results = vec![];
        for read in &self.plans[plan].reads {
            results.push(unpack(&back.get(&self.gpu, read.at, padded_bytes(&read.kind))?, &read.kind)?);
        }
        if let Some(clock) = &self.clock {
            let at = self.plans[plan].read_bytes;
            if let Some(seconds) = clock.seconds(&back.get(&self.gpu, at, STAMP_BYTES)?) {
                self.times.truncate(TIMES - 1);
                self.times.push_front((ticket, seconds));
                self.plans[plan].pace.learn(seconds);
            }
        }
        back.release();
        self.free_readbacks.push(back);
        self.finished.insert(ticket, results);
        Ok(())
    }

    /// Puts the feeds into a staging buffer that the host has, and hands it to the device.
    fn stage(&mut self, number: usize, feeds: &[&Tensor]) -> Result<Exchange> {
        let packed = self.plans[number].pack_feeds(feeds)?;
        let start = Instant::now();
        self.uploads.front().expect("the ring is never empty between runs").wait(&self.gpu)?;
        self.waiting += start.elapsed();
        let mut staging = self.uploads.pop_front().expect("looked at just now");
        let outcome = packed.iter().try_for_each(|(at, bytes)| staging.put(&self.gpu, *at, bytes));
        if let Err(error) = outcome {
            self.uploads.push_front(staging);
            return Err(error.into());
        }
        staging.release();
        Ok(staging)
    }
}

impl Engine for GpuEngine {
    fn describe(&self) -> String {
        self.gpu.listing.to_string()
    }

    fn write(&mut self, span: Span, tensor: &Tensor) -> Result<()> {
        let (buffer, whole) = &self.arenas[span.arena];
        let bytes = pack_float("arena", tensor, &Type::new(whole.dtype, tensor.shape.clone()))?;
        check_span(whole, span, bytes.len() as u64)?;
        for (chunk, bytes) in bytes.chunks(DOOR_BYTES as usize).enumerate() {
            let offset = span.offset_bytes + chunk as u64 * DOOR_BYTES;
            self.door_in.wait(&self.gpu)?;
            self.door_in.put(&self.gpu, 0, bytes)?;
            self.door_in.release();
            let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
            encoder.copy_buffer_to_buffer(&self.door_in.buffer, 0, buffer, offset, bytes.len() as u64);
            let submission = self.gpu.queue.submit([encoder.finish()]);
            self.door_in.recall(submission);
        }
        Ok(self.gpu.check()?)
    }

    fn read(&mut self, span: Span, kind: &Type) -> Result<Tensor> {
        let (buffer, whole) = &self.arenas[span.arena];
        let total = padded_bytes(kind);
        check_span(whole, span, total)?;
        let mut bytes = Vec::with_capacity(total as usize);
        while (bytes.len() as u64) < total {
            let offset = span.offset_bytes + bytes.len() as u64;
            let size = (total - bytes.len() as u64).min(DOOR_BYTES);
            let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
            encoder.copy_buffer_to_buffer(buffer, offset, &self.door_out.buffer, 0, size);
            let submission = self.gpu.queue.submit([encoder.finish()]);
            self.door_out.recall(submission);
            self.door_out.wait(&self.gpu)?;
            bytes.extend(self.door_out.get(&self.gpu, 0, size)?);
            self.door_out.release();
        }
        Ok(unpack(&bytes, kind)?)
    }

    fn profile(&mut self, number: usize, feeds: &[&Tensor]) -> Result<Vec<(usize, f64)>> {
        let times = GpuEngine::profile(self, number, feeds)?;
        Ok(self.plans[number].steps.iter().map(|step| step.node).zip(times).collect())
    }

    fn submit(&mut self, number: usize, feeds: &[&Tensor]) -> Result<Ticket> {
        self.gpu.check()?;
        let (start, waited) = (Instant::now(), self.waiting);
        let mut staging = self.stage(number, feeds)?;
        if self.free_readbacks.is_empty() {
            self.finish_oldest()?;
        }
        let mut back = self.free_readbacks.pop().expect("the oldest run gave its buffer back");
        let plan = &self.plans[number];
        let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
        if let Some(inputs) = &plan.inputs {
            encoder.copy_buffer_to_buffer(&staging.buffer, 0, inputs, 0, plan.feed_bytes);
        }
        let parts = plan.pace.parts();
        for (number, part) in parts.iter().enumerate() {
            if number > 0 {
                self.gpu.queue.submit([encoder.finish()]);
                encoder = self.gpu.device.create_command_encoder(&Default::default());
            }
            let writes =
                self.clock.as_ref().and_then(|clock| clock.writes(number == 0, number + 1 == parts.len()));
            plan.encode(&mut encoder, part.clone(), writes);
        }
        for read in &plan.reads {
            let size = padded_bytes(&read.kind);
            encoder.copy_buffer_to_buffer(&read.buffer, read.offset, &back.buffer, read.at, size);
        }
        if let Some(clock) = &self.clock {
            clock.resolve(&mut encoder, &back.buffer, plan.read_bytes);
        }
        let submission = self.gpu.queue.submit([encoder.finish()]);
        staging.recall(submission.clone());
        back.recall(submission);
        self.uploads.push_back(staging);
        self.next_ticket += 1;
        let ticket = Ticket(self.next_ticket);
        self.pending.push_back(Pending { ticket, plan: number, back });
        self.submitting += start.elapsed();
        self.submitting = self.submitting.saturating_sub(self.waiting - waited);
        self.gpu.check()?;
        Ok(ticket)
    }

    fn collect(&mut self, ticket: Ticket, wait: bool) -> Result<Option<Vec<Tensor>>> {
        self.gpu.poll()?;
        while self.pending.front().is_some_and(|p| p.ticket <= ticket && (wait || p.back.is_back())) {
            self.finish_oldest()?;
        }
        Ok(self.finished.remove(&ticket))
    }

    fn memory_bytes(&self) -> u64 {
        self.held_bytes
    }

    fn device_seconds(&self, ticket: Ticket) -> Option<f64> {
        self.times.iter().find(|(of, _)| *of == ticket).map(|&(_, seconds)| seconds)
    }

    /// The driver's part included.
    fn host_seconds(&self) -> Option<f64> {
        Some(self.submitting.as_secs_f64())
    }
}

fn check_span(whole: &Type, span: Span, bytes: u64) -> Result<()> {
    let size = padded_bytes(whole);
    if span.offset_bytes + bytes <= size {
        return Ok(());
    }
    let got = format!("bytes {}..{}", span.offset_bytes, span.offset_bytes + bytes);
    Err(Error::Feed { expected: format!("at most {size} bytes"), got })
}
