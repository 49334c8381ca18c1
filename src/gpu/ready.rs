//! A plan made ready for a device: its buffers bound, its parameters packed, its dispatches cut into submissions.

use super::bytes::pack;
use super::pace::Pace;
use super::pipeline::{Pipeline, params, window};
use super::transfer::Exchange;
use super::{Gpu, Pipelines};
use crate::plan::{Binding, Error, Feed, Place, Plan, Result, padded_bytes};
use crate::tensor::{DType, Tensor, Type};
use std::ops::Range;
use std::sync::Arc;

/// A plan with everything it needs to run.
pub(super) struct Ready {
    pub(super) feeds: Vec<Feed>,
    /// Where feeds go, if there are any.
    pub(super) inputs: Option<wgpu::Buffer>,
    pub(super) feed_bytes: u64,
    pub(super) steps: Vec<Step>,
    /// Steps of each submission.
    pub(super) pace: Pace,
    pub(super) params: wgpu::BindGroup,
    pub(super) reads: Vec<Readback>,
    pub(super) read_bytes: u64,
}

pub(super) struct Step {
    pub(super) pipeline: Arc<Pipeline>,
    pub(super) buffers: wgpu::BindGroup,
    pub(super) params_offset: u32,
    pub(super) groups: [u32; 3],
    /// Number of its node in the plan's graph.
    pub(super) node: usize,
}

/// One result: where it is on the device and in the readback buffer.
pub(super) struct Readback {
    pub(super) kind: Type,
    pub(super) buffer: wgpu::Buffer,
    pub(super) offset: u64,
    pub(super) at: u64,
}

/// Makes buffers and counts their bytes.
pub(super) struct Maker<'a> {
    pub(super) gpu: &'a Gpu,
    pub(super) bytes: u64,
}

impl Maker<'_> {
    pub(super) fn storage(&mut self, label: &str, bytes: u64) -> super::Result<wgpu::Buffer> {
        let size = bytes.max(4).next_multiple_of(4);
        self.bytes += size;
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let described = wgpu::BufferDescriptor { label: Some(label), size, usage, mapped_at_creation: false };
        self.gpu.guarded(|| self.gpu.device.create_buffer(&described))
    }

    pub(super) fn count(&mut self, exchange: Exchange) -> Exchange {
        self.bytes += exchange.bytes();
        exchange
    }
}

/// One buffer per slot number, as large as the largest plan needs.
pub(super) fn shared_slots(maker: &mut Maker, plans: &[Plan]) -> Result<Vec<wgpu::Buffer>> {
    let count = plans.iter().map(|p| p.slots.len()).max().unwrap_or(0);
    let size = |i: usize| plans.iter().filter_map(|p| p.slots.get(i)).max().copied().unwrap_or(0);
    (0..count).map(|i| Ok(maker.storage(&format!("slot {i}"), size(i))?)).collect()
}

/// Packs a tensor whose floats may be held in any precision.
pub(super) fn pack_float(name: &str, tensor: &Tensor, kind: &Type) -> Result<Vec<u8>> {
    match (tensor.data.dtype(), kind.dtype) {
        (DType::F64, DType::F32 | DType::F16 | DType::BF16) => {
            Ok(pack(name, &tensor.to_precision(DType::F32), kind)?)
        }
        _ => Ok(pack(name, tensor, kind)?),
    }
}

impl Ready {
    pub(super) fn new(
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
            steps.push(Step {
                pipeline,
                buffers,
                params_offset,
                groups: dispatch.groups,
                node: dispatch.node,
            });
        }
        let (mut reads, mut read_bytes) = (vec![], 0);
        for read in &plan.reads {
            let (buffer, offset) = at(read.place);
            reads.push(Readback { kind: read.kind.clone(), buffer: buffer.clone(), offset, at: read_bytes });
            // Mapped ranges start at multiples of eight bytes.
            read_bytes += padded_bytes(&read.kind).next_multiple_of(8);
        }
        let (feeds, feed_bytes) = (plan.feeds.clone(), plan.feed_bytes);
        let pace = Pace::new(plan, gpu.caps());
        Ok(Ready { feeds, inputs, feed_bytes, steps, pace, params, reads, read_bytes })
    }

    /// Offset and bytes of each feed, or which one does not fit.
    pub(super) fn pack_feeds(&self, feeds: &[&Tensor]) -> Result<Vec<(u64, Vec<u8>)>> {
        if feeds.len() != self.feeds.len() {
            let names: Vec<_> = self.feeds.iter().map(|f| format!("{} {}", f.name, f.kind)).collect();
            return Err(Error::Feed { expected: names.join(", "), got: format!("{} values", feeds.len()) });
        }
        let pack = |(feed, tensor): (&Feed, &&Tensor)| {
            Ok((feed.offset_bytes, pack_float(&feed.name, tensor, &feed.kind)?))
        };
        self.feeds.iter().zip(feeds).map(pack).collect()
    }

    pub(super) fn encode(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        part: Range<usize>,
        timestamp_writes: Option<wgpu::ComputePassTimestampWrites<'_>>,
    ) {
        let described = wgpu::ComputePassDescriptor { label: None, timestamp_writes };
        let mut pass = encoder.begin_compute_pass(&described);
        let mut last: Option<&Arc<Pipeline>> = None;
        for step in &self.steps[part] {
            if !last.is_some_and(|last| Arc::ptr_eq(last, &step.pipeline)) {
                pass.set_pipeline(&step.pipeline.compute);
                last = Some(&step.pipeline);
            }
            self.dispatch(&mut pass, step);
        }
    }

    /// Dispatches a step whose pipeline is set.
    pub(super) fn dispatch(&self, pass: &mut wgpu::ComputePass, step: &Step) {
        pass.set_bind_group(0, &step.buffers, &[]);
        pass.set_bind_group(1, &self.params, &[step.params_offset]);
        pass.dispatch_workgroups(step.groups[0], step.groups[1], step.groups[2]);
    }
}

fn range<'b>(binding: &Binding, at: &impl Fn(Place) -> (&'b wgpu::Buffer, u64)) -> wgpu::BufferBinding<'b> {
    let (buffer, offset) = at(binding.place);
    // An empty value still binds one word.
    wgpu::BufferBinding { buffer, offset, size: std::num::NonZeroU64::new(binding.size_bytes.max(4)) }
}
