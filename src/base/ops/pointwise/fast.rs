//! Programs on the host as an engine runs them: a block at a time through all steps, in memory that stays in the first cache.

use super::{Arg, Pointwise};
use crate::ops::fast::rows_of_piece;
use crate::tensor::{Shape, View, ViewMut};
use rayon::prelude::*;

/// Elements of a block.
const BLOCK: usize = 1024;

/// All outputs, pieces over threads.
pub(super) fn compute(op: &Pointwise, inputs: &[View], outputs: &mut [ViewMut]) {
    let Some(first) = outputs.first() else { return };
    let shape = first.shape;
    let count = shape.count();
    let sources: Vec<Source> = inputs.iter().map(|x| Source::new(x, shape)).collect();
    let piece = rows_of_piece(count.div_ceil(BLOCK), BLOCK) * BLOCK;
    if count <= piece {
        let mut outputs: Vec<&mut [f32]> = outputs.iter_mut().map(|y| y.floats()).collect();
        return op.piece(&sources, 0, &mut outputs);
    }
    let mut work: Vec<Vec<&mut [f32]>> = (0..count.div_ceil(piece)).map(|_| vec![]).collect();
    for output in outputs {
        for (work, part) in work.iter_mut().zip(output.floats().chunks_mut(piece)) {
            work.push(part);
        }
    }
    work.into_par_iter().enumerate().for_each(|(number, mut y)| op.piece(&sources, number * piece, &mut y));
}

impl Pointwise {
    /// Elements of all outputs from position `start` on.
    fn piece(&self, sources: &[Source], start: usize, outputs: &mut [&mut [f32]]) {
        let count = outputs[0].len();
        let mut gathered = vec![0.0; sources.iter().filter(|s| !s.is_full).count() * BLOCK];
        let mut results = vec![0.0; if self.is_direct() { 0 } else { self.steps.len() * BLOCK }];
        for at in (0..count).step_by(BLOCK) {
            let length = BLOCK.min(count - at);
            let mut rest = &mut gathered[..];
            let inputs: Vec<&[f32]> = sources
                .iter()
                .map(|source| match source.is_full {
                    true => &source.x[start + at..][..length],
                    false => {
                        let (mine, others) = std::mem::take(&mut rest).split_at_mut(BLOCK);
                        rest = others;
                        source.gather(start + at, &mut mine[..length]);
                        &*mine
                    }
                })
                .collect();
            if self.is_direct() {
                self.step(0, &inputs, &[], &mut outputs[0][at..at + length]);
                continue;
            }
            self.steps_of_block(&inputs, length, &mut results);
            for (output, &step) in outputs.iter_mut().zip(&self.outputs) {
                output[at..at + length].copy_from_slice(&results[step * BLOCK..][..length]);
            }
        }
    }

    /// One step whose result is the one output.
    fn is_direct(&self) -> bool {
        self.steps.len() == 1 && self.outputs.len() == 1
    }

    fn steps_of_block(&self, inputs: &[&[f32]], length: usize, results: &mut [f32]) {
        for number in 0..self.steps.len() {
            let (before, y) = results.split_at_mut(number * BLOCK);
            self.step(number, inputs, before, &mut y[..length]);
        }
    }

    fn step(&self, number: usize, inputs: &[&[f32]], before: &[f32], y: &mut [f32]) {
        let step = &self.steps[number];
        let argument = |&arg: &Arg| match arg {
            Arg::Input(i) => &inputs[i][..y.len()],
            Arg::Step(s) => &before[s * BLOCK..][..y.len()],
        };
        match &step.args[..] {
            [a] => (step.function.fast)(&[argument(a)], step.constant, y),
            [a, b] => (step.function.fast)(&[argument(a), argument(b)], step.constant, y),
            more => {
                let arguments: Vec<&[f32]> = more.iter().map(argument).collect();
                (step.function.fast)(&arguments, step.constant, y);
            }
        }
    }

    /// Applies a program of one input and one output to elements where they are.
    pub(in crate::ops) fn overwrite(&self, y: &mut [f32]) {
        let mut results = [0.0; BLOCK];
        let mut more = vec![0.0; if self.is_direct() { 0 } else { self.steps.len() * BLOCK }];
        for y in y.chunks_mut(BLOCK) {
            let results = &mut results[..y.len()];
            if self.is_direct() {
                self.step(0, &[y], &[], results);
                y.copy_from_slice(results);
            } else {
                self.steps_of_block(&[y], y.len(), &mut more);
                y.copy_from_slice(&more[self.outputs[0] * BLOCK..][..y.len()]);
            }
        }
    }
}

/// An input, read with broadcast strides unless it has every element.
struct Source<'a> {
    x: &'a [f32],
    is_full: bool,
    /// Size and stride of each axis, the last first; neighbours that are walked alike are merged.
    axes: Vec<[usize; 2]>,
}

impl<'a> Source<'a> {
    fn new(x: &View<'a>, shape: &Shape) -> Self {
        let mut axes: Vec<[usize; 2]> = vec![];
        let strides = x.shape.broadcast_strides(shape);
        for (&size, &stride) in shape.iter().zip(&strides).rev().filter(|(size, _)| **size != 1) {
            match axes.last_mut() {
                Some([last, step]) if stride == *step * *last => *last *= size,
                _ => axes.push([size, stride]),
            }
        }
        Source { x: x.floats(), is_full: x.shape.count() == shape.count(), axes }
    }

    /// Elements from position `start` of the output's shape on, in runs along the last axis.
    fn gather(&self, start: usize, y: &mut [f32]) {
        let Some(&[length, stride]) = self.axes.first() else { return y.fill(self.x[0]) };
        let mut done = 0;
        while done < y.len() {
            let at = start + done;
            let mut rest = at / length;
            let mut offset = 0;
            for [size, stride] in &self.axes[1..] {
                offset += rest % size * stride;
                rest /= size;
            }
            let first = at % length;
            let run = (length - first).min(y.len() - done);
            let part = &mut y[done..done + run];
            match stride {
                0 => part.fill(self.x[offset]),
                1 => part.copy_from_slice(&self.x[offset + first..][..run]),
                _ => {
                    let line = self.x[offset + first * stride..].iter().step_by(stride);
                    part.iter_mut().zip(line).for_each(|(y, &x)| *y = x);
                }
            }
            done += run;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Tensor;

    #[test]
    fn gather_reads_broadcast_axes_again() {
        let shape = Shape::from([2, 3, 2]);
        let x = Tensor::f32([3, 1], vec![10.0, 20.0, 30.0]);
        let mut y = [0.0; 8];
        Source::new(&View::of_tensor(&x), &shape).gather(1, &mut y);
        assert_eq!(y, [10.0, 20.0, 20.0, 30.0, 30.0, 10.0, 10.0, 20.0]);
    }

    #[test]
    fn a_program_overwrites_past_a_block() {
        let mut y: Vec<f32> = (0..2500).map(|i| i as f32).collect();
        Pointwise::single("scale", 2.0).overwrite(&mut y);
        assert!(y.iter().enumerate().all(|(i, &y)| y == 2.0 * i as f32));
    }
}
