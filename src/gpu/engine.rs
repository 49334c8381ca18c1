//! Replays plans on a device.
//!
//! All buffers, bind groups and parameters are made when the engine is built. A run copies its feeds from a ring of
//! staging buffers, dispatches, and copies its results into a ring that the host maps later: nothing is allocated and
//! the host waits only when a ring is full.

use super::bytes::{pack, unpack};
use super::pipeline::Pipeline;
use super::run::{params, window};
use super::transfer::Exchange;
use super::{Gpu, Pipelines};
use crate::plan::{Arena, Binding, Engine, Error, Feed, Place, Plan, Result, Span, Ticket, padded_bytes};
use crate::tensor::{DType, Tensor, Type};
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Runs that may be under way before the host waits.
const DEPTH: usize = 3;
/// Bytes that pass between host and arenas at a time, outside of runs.
const DOOR_BYTES: u64 = 4 << 20;

/// Replays plans with compute shaders.
pub struct GpuEngine {
    gpu: Arc<Gpu>,
    arenas: Vec<(wgpu::Buffer, Type)>,
    plans: Vec<Ready>,
    uploads: VecDeque<Exchange>,
    free_readbacks: Vec<Exchange>,
    pending: VecDeque<Pending>,
    finished: HashMap<Ticket, Vec<Tensor>>,
    door_in: Exchange,
    door_out: Exchange,
    next_ticket: u64,
    held_bytes: u64,
}

/// A plan with everything it needs to run.
struct Ready {
    feeds: Vec<Feed>,
    /// Where feeds go, if there are any.
    inputs: Option<wgpu::Buffer>,
    feed_bytes: u64,
    steps: Vec<Step>,
    params: wgpu::BindGroup,
    reads: Vec<Readback>,
    /// Kept alive by the bind groups as well; named here because copies read from them.
    read_bytes: u64,
}

struct Step {
    pipeline: Arc<Pipeline>,
    buffers: wgpu::BindGroup,
    params_offset: u32,
    groups: [u32; 3],
}

/// One result: where it is on the device and in the readback buffer.
struct Readback {
    kind: Type,
    buffer: wgpu::Buffer,
    offset: u64,
    at: u64,
}

/// A run whose results are on their way.
struct Pending {
    ticket: Ticket,
    plan: usize,
    back: Exchange,
}

/// Makes buffers and counts their bytes.
struct Maker<'a> {
    gpu: &'a Gpu,
    bytes: u64,
}

impl Maker<'_> {
    fn storage(&mut self, label: &str, bytes: u64) -> super::Result<wgpu::Buffer> {
        let size = bytes.max(4).next_multiple_of(4);
        self.bytes += size;
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let described = wgpu::BufferDescriptor { label: Some(label), size, usage, mapped_at_creation: false };
        self.gpu.guarded(|| self.gpu.device.create_buffer(&described))
    }

    fn count(&mut self, exchange: Exchange) -> Exchange {
        self.bytes += exchange.bytes();
        exchange
    }
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
        let (feed_bytes, read_bytes) = (most(|p| p.feed_bytes), most(|p| p.read_bytes));
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
            door_in,
            door_out,
            next_ticket: 0,
            held_bytes,
        })
    }

    /// Bytes of device memory that the driver's allocator has handed out, if it tells.
    pub fn allocated_bytes(&self) -> Option<u64> {
        self.gpu.device.generate_allocator_report().map(|report| report.total_allocated_bytes)
    }

    /// Waits until nothing is under way.
    pub fn wait(&self) -> Result<()> {
        Ok(self.gpu.wait()?)
    }

    fn ready(&self, number: usize) -> &Ready {
        &self.plans[number]
    }

    /// Moves the oldest pending run to the finished ones.
    fn finish_oldest(&mut self) -> Result<()> {
        let Some(Pending { ticket, plan, mut back }) = self.pending.pop_front() else { return Ok(()) };
        back.wait(&self.gpu)?;
        let mut results = vec![];
        for read in &self.plans[plan].reads {
            results.push(unpack(&back.get(&self.gpu, read.at, padded_bytes(&read.kind))?, &read.kind)?);
        }
        back.release();
        self.free_readbacks.push(back);
        self.finished.insert(ticket, results);
        Ok(())
    }

    /// Puts the feeds into a staging buffer that the host has, and hands it to the device.
    fn stage(&mut self, number: usize, feeds: &[&Tensor]) -> Result<Exchange> {
        self.ready(number).check_feeds(feeds)?;
        self.uploads.front().expect("the ring is never empty between runs").wait(&self.gpu)?;
        let mut staging = self.uploads.pop_front().expect("looked at just now");
        for (feed, tensor) in self.ready(number).feeds.iter().zip(feeds) {
            staging.put(&self.gpu, feed.offset_bytes, &pack_float(&feed.name, tensor, &feed.kind)?)?;
        }
        staging.release();
        Ok(staging)
    }
}

/// One buffer per slot number, as large as the largest plan needs.
fn shared_slots(maker: &mut Maker, plans: &[Plan]) -> Result<Vec<wgpu::Buffer>> {
    let count = plans.iter().map(|p| p.slots.len()).max().unwrap_or(0);
    let size = |i: usize| plans.iter().filter_map(|p| p.slots.get(i)).max().copied().unwrap_or(0);
    (0..count).map(|i| Ok(maker.storage(&format!("slot {i}"), size(i))?)).collect()
}

/// Packs a tensor whose floats may be held in any precision.
fn pack_float(name: &str, tensor: &Tensor, kind: &Type) -> Result<Vec<u8>> {
    match (tensor.data.dtype(), kind.dtype) {
        (DType::F64, DType::F32 | DType::F16) => Ok(pack(name, &tensor.to_precision(DType::F32), kind)?),
        _ => Ok(pack(name, tensor, kind)?),
    }
}

impl Ready {
    fn new(
        maker: &mut Maker,
        pipelines: &Pipelines,
        arenas: &[(wgpu::Buffer, Type)],
        slots: &[wgpu::Buffer],
        plan: &Plan,
    ) -> Result<Self> {
        let gpu = maker.gpu;
        let inputs = if plan.feed_bytes > 0 { Some(maker.storage("inputs", plan.feed_bytes)?) } else { None };
        let constants =
            if plan.known_bytes > 0 { Some(maker.storage("constants", plan.known_bytes)?) } else { None };
        for known in &plan.known {
            let buffer = constants.as_ref().expect("a plan with constants has bytes for them");
            let bytes = pack_float("constant", &known.tensor, &known.kind)?;
            gpu.queue.write_buffer(buffer, known.offset_bytes, &bytes);
        }
        let at = |place: Place| match place {
            Place::Slot(slot) => (&slots[slot], 0),
            Place::Input(offset) => (inputs.as_ref().expect("a plan with inputs has bytes for them"), offset),
            Place::Constant(offset) => {
                (constants.as_ref().expect("a plan with constants has bytes for them"), offset)
            }
            Place::Arena(span) => (&arenas[span.arena].0, span.offset_bytes),
        };
        let made: Vec<_> =
            plan.dispatches.iter().map(|d| pipelines.get(gpu, &d.kernel)).collect::<super::Result<_>>()?;
        let given: Vec<_> = made.iter().zip(&plan.dispatches).map(|(p, d)| (&**p, &d.params[..])).collect();
        let params = params(gpu, pipelines, &given)?;
        let window = window(made.iter().map(|p| &**p));
        maker.bytes += window * made.len() as u64;
        let mut steps = vec![];
        for (number, (dispatch, pipeline)) in plan.dispatches.iter().zip(made).enumerate() {
            let ranges: Vec<_> = dispatch.bindings.iter().map(|b| range(b, &at)).collect();
            let buffers = pipeline.bind(gpu, &ranges)?;
            let params_offset = (number as u64 * window) as u32;
            steps.push(Step { pipeline, buffers, params_offset, groups: dispatch.groups });
        }
        let (mut reads, mut read_bytes) = (vec![], 0);
        for read in &plan.reads {
            let (buffer, offset) = at(read.place);
            reads.push(Readback { kind: read.kind.clone(), buffer: buffer.clone(), offset, at: read_bytes });
            // Mapped ranges start at multiples of eight bytes.
            read_bytes += padded_bytes(&read.kind).next_multiple_of(8);
        }
        let (feeds, feed_bytes) = (plan.feeds.clone(), plan.feed_bytes);
        Ok(Ready { feeds, inputs, feed_bytes, steps, params, reads, read_bytes })
    }

    fn check_feeds(&self, feeds: &[&Tensor]) -> Result<()> {
        if feeds.len() == self.feeds.len() {
            return Ok(());
        }
        let names: Vec<_> = self.feeds.iter().map(|f| format!("{} {}", f.name, f.kind)).collect();
        Err(Error::Feed { expected: names.join(", "), got: format!("{} values", feeds.len()) })
    }

    fn encode(&self, encoder: &mut wgpu::CommandEncoder) {
        let mut pass = encoder.begin_compute_pass(&Default::default());
        let mut last: Option<&Arc<Pipeline>> = None;
        for step in &self.steps {
            if !last.is_some_and(|last| Arc::ptr_eq(last, &step.pipeline)) {
                pass.set_pipeline(&step.pipeline.compute);
                last = Some(&step.pipeline);
            }
            pass.set_bind_group(0, &step.buffers, &[]);
            pass.set_bind_group(1, &self.params, &[step.params_offset]);
            pass.dispatch_workgroups(step.groups[0], step.groups[1], step.groups[2]);
        }
    }
}

fn range<'b>(binding: &Binding, at: &impl Fn(Place) -> (&'b wgpu::Buffer, u64)) -> wgpu::BufferBinding<'b> {
    let (buffer, offset) = at(binding.place);
    // An empty value still binds one word.
    wgpu::BufferBinding { buffer, offset, size: std::num::NonZeroU64::new(binding.size_bytes.max(4)) }
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

    fn submit(&mut self, number: usize, feeds: &[&Tensor]) -> Result<Ticket> {
        self.gpu.check()?;
        let mut staging = self.stage(number, feeds)?;
        if self.free_readbacks.is_empty() {
            self.finish_oldest()?;
        }
        let mut back = self.free_readbacks.pop().expect("the oldest run gave its buffer back");
        let plan = self.ready(number);
        let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
        if let Some(inputs) = &plan.inputs {
            encoder.copy_buffer_to_buffer(&staging.buffer, 0, inputs, 0, plan.feed_bytes);
        }
        plan.encode(&mut encoder);
        for read in &plan.reads {
            let size = padded_bytes(&read.kind);
            encoder.copy_buffer_to_buffer(&read.buffer, read.offset, &back.buffer, read.at, size);
        }
        let submission = self.gpu.queue.submit([encoder.finish()]);
        staging.recall(submission.clone());
        back.recall(submission);
        self.uploads.push_back(staging);
        self.next_ticket += 1;
        let ticket = Ticket(self.next_ticket);
        self.pending.push_back(Pending { ticket, plan: number, back });
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
}

fn check_span(whole: &Type, span: Span, bytes: u64) -> Result<()> {
    let size = padded_bytes(whole);
    if span.offset_bytes + bytes <= size {
        return Ok(());
    }
    let got = format!("bytes {}..{}", span.offset_bytes, span.offset_bytes + bytes);
    Err(Error::Feed { expected: format!("at most {size} bytes"), got })
}
