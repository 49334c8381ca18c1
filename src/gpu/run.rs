//! Runs one variant of an operator by itself, with guard words around every buffer: for trials and qualification.
//!
//! Each buffer is `guard, elements, guard`; all guards, outputs and scratch are filled with ones, which is NaN in every
//! float type. The bound range reaches over the guard behind the elements, so that a driver's bounds check does not hide
//! a kernel that reads or writes too far.

use super::bytes::{WORD, pack, stored_bytes, unpack};
use super::pipeline::{Pipeline, params, window};
use super::{Gpu, Pipelines, Result};
use crate::ops::launch::{Bind, Variant};
use crate::tensor::{Tensor, Type};
use std::sync::Arc;

/// Bytes before and behind the elements: a multiple of every adapter's offset alignment.
const GUARD: u64 = 256;
/// What guards, outputs and scratch hold beforehand.
const FILL: u8 = 0xff;

/// What a variant did.
pub struct Outcome {
    /// The outputs, 16-bit floats widened to f32.
    pub outputs: Vec<Tensor>,
    /// The outputs bit by bit.
    pub bits: Vec<Vec<u8>>,
    /// Elements per output that still hold the fill pattern; zero for outputs that overwrite an input.
    pub unwritten: Vec<usize>,
    /// Guards and inputs that changed, in words.
    pub damage: Vec<String>,
}

/// One buffer of the trial.
struct Region {
    name: String,
    /// Contents before the run, whole words.
    before: Vec<u8>,
    /// Bytes that belong to elements; behind them the guard begins. An output's padding to a whole word is its own.
    used: usize,
    buffer: wgpu::Buffer,
}

impl Region {
    /// From the first element to the end of the guard behind the last.
    fn range(&self) -> wgpu::BufferBinding<'_> {
        wgpu::BufferBinding { buffer: &self.buffer, offset: GUARD, size: None }
    }
}

/// A variant with its buffers, ready to run any number of times.
pub struct Bench<'a> {
    gpu: &'a Gpu,
    regions: Vec<Region>,
    /// Region of each input, output.
    inputs: Vec<usize>,
    outputs: Vec<(usize, Type)>,
    in_place: &'static [(usize, usize)],
    steps: Vec<(Arc<Pipeline>, wgpu::BindGroup, [u32; 3])>,
    params: wgpu::BindGroup,
}

impl<'a> Bench<'a> {
    /// Compiles the variant and allocates its buffers. `in_place` is the operator's (output, input) pairs.
    pub fn new(
        gpu: &'a Gpu,
        pipelines: &Pipelines,
        variant: &Variant,
        inputs: &[(Tensor, Type)],
        outputs: &[Type],
        in_place: &'static [(usize, usize)],
    ) -> Result<Self> {
        let mut regions = vec![];
        let mut input_regions = vec![];
        for (i, (tensor, kind)) in inputs.iter().enumerate() {
            let name = format!("input {i}");
            let bytes = pack(&name, tensor, kind)?;
            input_regions.push(regions.len());
            regions.push(region(gpu, name, bytes, used_bytes(kind))?);
        }
        let mut output_regions = vec![];
        for (o, kind) in outputs.iter().enumerate() {
            let at = match in_place.iter().find(|(output, _)| *output == o) {
                Some((_, input)) => input_regions[*input],
                None => {
                    let bytes = vec![FILL; stored_bytes(kind) as usize];
                    regions.push(region(gpu, format!("output {o}"), bytes, used_bytes(kind))?);
                    regions.len() - 1
                }
            };
            output_regions.push((at, kind.clone()));
        }
        let first_scratch = regions.len();
        for (s, &size) in variant.scratch.iter().enumerate() {
            let bytes = vec![FILL; size.next_multiple_of(WORD) as usize];
            regions.push(region(gpu, format!("scratch {s}"), bytes, size as usize)?);
        }
        let of = |bind: &Bind| match *bind {
            Bind::Input(i) => &regions[input_regions[i]],
            Bind::Output(o) => &regions[output_regions[o].0],
            Bind::Scratch(s) => &regions[first_scratch + s],
        };
        let made: Vec<_> =
            variant.launches.iter().map(|l| pipelines.get(gpu, &l.kernel)).collect::<Result<_>>()?;
        let mut steps = vec![];
        for (launch, pipeline) in variant.launches.iter().zip(&made) {
            let ranges: Vec<_> = launch.bindings.iter().map(|b| of(b).range()).collect();
            steps.push((pipeline.clone(), pipeline.bind(gpu, &ranges)?, launch.groups));
        }
        let given: Vec<_> = made.iter().zip(&variant.launches).map(|(p, l)| (&**p, &l.params[..])).collect();
        let params = params(gpu, pipelines, &given)?;
        Ok(Bench { gpu, regions, inputs: input_regions, outputs: output_regions, in_place, steps, params })
    }

    /// Fills the buffers anew: inputs with their elements, all else with ones.
    pub fn fill(&self) {
        for region in &self.regions {
            self.gpu.queue.write_buffer(&region.buffer, 0, &framed(&region.before));
        }
    }

    /// Fills the buffers anew, runs once and reads everything back.
    pub fn run(&self) -> Result<Outcome> {
        let device = &self.gpu.device;
        self.fill();
        let total: u64 = self.regions.iter().map(|r| r.buffer.size()).sum();
        let back = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("trial readback"),
            size: total,
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        self.gpu.guarded(|| {
            let mut encoder = device.create_command_encoder(&Default::default());
            self.encode(&mut encoder);
            let mut at = 0;
            for region in &self.regions {
                encoder.copy_buffer_to_buffer(&region.buffer, 0, &back, at, region.buffer.size());
                at += region.buffer.size();
            }
            self.gpu.queue.submit([encoder.finish()]);
        })?;
        back.map_async(wgpu::MapMode::Read, .., |_| {});
        self.gpu.wait()?;
        let view = back.get_mapped_range(..).map_err(|e| self.gpu.cause_of(e))?;
        let mut rest = &view[..];
        let mut after = vec![];
        for region in &self.regions {
            let (own, others) = rest.split_at(region.buffer.size() as usize);
            after.push(own);
            rest = others;
        }
        self.judge(&after)
    }

    /// Runs `times` times without reading back and returns the elapsed seconds of one. Buffers hold zeros until [`Bench::fill`].
    pub fn time(&self, times: u32) -> Result<f64> {
        let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
        (0..times).for_each(|_| self.encode(&mut encoder));
        let commands = encoder.finish();
        self.gpu.wait()?;
        let start = std::time::Instant::now();
        self.gpu.queue.submit([commands]);
        self.gpu.wait()?;
        Ok(start.elapsed().as_secs_f64() / times as f64)
    }

    fn encode(&self, encoder: &mut wgpu::CommandEncoder) {
        let mut pass = encoder.begin_compute_pass(&Default::default());
        for (number, (pipeline, buffers, groups)) in self.steps.iter().enumerate() {
            pass.set_pipeline(&pipeline.compute);
            pass.set_bind_group(0, buffers, &[]);
            pass.set_bind_group(1, &self.params, &[number as u32 * self.window()]);
            pass.dispatch_workgroups(groups[0], groups[1], groups[2]);
        }
    }

    fn window(&self) -> u32 {
        window(self.steps.iter().map(|(pipeline, ..)| &**pipeline)) as u32
    }

    fn judge(&self, after: &[&[u8]]) -> Result<Outcome> {
        let mut damage = vec![];
        for (region, &after) in self.regions.iter().zip(after) {
            let (front, back) = (GUARD as usize, GUARD as usize + region.used);
            if let Some(at) = after[..front].iter().position(|&b| b != FILL) {
                damage.push(format!("{} bytes before {}", front - at, region.name));
            }
            // The padding of an input is zero, as uploaded; behind it the guard begins.
            let before = framed(&region.before);
            if let Some(at) = (back..after.len()).find(|&at| after[at] != before[at]) {
                damage.push(format!("{} bytes past the end of {}", at - back, region.name));
            }
        }
        for (i, &at) in self.inputs.iter().enumerate() {
            let overwritten = self.in_place.iter().any(|(_, input)| *input == i);
            let (region, elements) = (&self.regions[at], elements(after[at]));
            if !overwritten && elements[..region.used] != region.before[..region.used] {
                damage.push(format!("{} was changed", region.name));
            }
        }
        let mut outcome = Outcome { outputs: vec![], bits: vec![], unwritten: vec![], damage };
        for (o, (at, kind)) in self.outputs.iter().enumerate() {
            let bytes = &elements(after[*at])[..kind.size_bytes() as usize];
            let fresh = !self.in_place.iter().any(|(output, _)| *output == o);
            let untouched = |e: &&[u8]| e.iter().all(|&b| b == FILL);
            let unwritten = bytes.chunks(kind.dtype.size_bytes()).filter(untouched).count();
            outcome.unwritten.push(if fresh { unwritten } else { 0 });
            outcome.outputs.push(unpack(bytes, kind)?);
            outcome.bits.push(bytes.to_vec());
        }
        Ok(outcome)
    }
}

/// Bytes a kernel may write: packed integers and halves are stored as whole words.
fn used_bytes(kind: &Type) -> usize {
    stored_bytes(kind) as usize
}

fn region(gpu: &Gpu, name: String, before: Vec<u8>, used: usize) -> Result<Region> {
    let buffer = gpu.guarded(|| {
        gpu.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(&name),
            size: before.len() as u64 + 2 * GUARD,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        })
    })?;
    Ok(Region { name, before, used, buffer })
}

fn framed(contents: &[u8]) -> Vec<u8> {
    let guard = [FILL; GUARD as usize];
    [&guard, contents, &guard].concat()
}

fn elements(framed: &[u8]) -> &[u8] {
    &framed[GUARD as usize..framed.len() - GUARD as usize]
}
