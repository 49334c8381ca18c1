//! Recurrent layers on the host as an engine runs them: rows of the batch over threads, each thread with its rows through all of time.
//!
//! Weights are packed once for all steps; a row's sums have one order however many rows a thread has.

use super::{Cell, Extent, Recurrent, RecurrentGradient};
use crate::ops::fast::math::{exp, tanh};
use crate::ops::fast::product::{Matrix, Panels};
use crate::ops::fast::widest;
use crate::tensor::{View, ViewMut};
use rayon::prelude::*;

/// Multiply-adds below which a layer stays on its thread.
const FEW: usize = 1 << 15;

/// A matrix [k, n], packed once for the products of all steps.
struct Packed {
    panels: Panels,
    sizes: [usize; 2],
}

impl Packed {
    fn of(matrix: Matrix, sizes: [usize; 2]) -> Packed {
        let mut panels = Panels::default();
        panels.pack(matrix, sizes);
        Packed { panels, sizes }
    }

    /// `y = x M` for rows of x that follow each other.
    fn times(&self, x: &[f32], y: &mut [f32]) {
        let [steps, columns] = self.sizes;
        let rows = x.len() / steps;
        self.panels.product([rows, columns], 0..steps, Matrix::new(x, steps), y, columns, false);
    }
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Rows of the batch that go to a thread.
fn rows_of_piece(extent: &Extent) -> usize {
    if extent.batch * extent.time * extent.inputs * extent.state < FEW {
        return extent.batch;
    }
    extent.batch.div_ceil(rayon::current_num_threads())
}

/// Whether a step of a row counts.
fn is_live(steps: &Option<View>, row: usize, t: usize) -> bool {
    steps.is_none_or(|steps| match steps.shape[..] {
        [_] => t < steps.as_u32()[row] as usize,
        _ => steps.as_u32()[row * steps.shape[1] + t] != 0,
    })
}

/// Time of step `number` of a walk.
fn time_of(reverse: bool, time: usize, number: usize) -> usize {
    if reverse { time - 1 - number } else { number }
}

pub(super) fn forward(op: &Recurrent, inputs: &[View], outputs: &mut [ViewMut]) {
    let extent = op.extent_of(inputs[0].shape, inputs[1].shape);
    let Extent { time, hidden, state, inputs: width, whole, .. } = extent;
    let weight = Packed::of(Matrix::new(inputs[1].floats(), state).transposed(), [state, width]);
    let projection = op
        .projection_at()
        .map(|at| Packed::of(Matrix::new(inputs[at].floats(), hidden).transposed(), [hidden, state]));
    let walk = Forward {
        op,
        extent,
        weight,
        projection,
        bias: op.bias_at().map(|at| inputs[at].floats()),
        steps: op.steps_at().map(|at| inputs[at]),
    };
    let [y, last, saved] = outputs else { unreachable!("a recurrent layer has three outputs") };
    let (y, last, saved) = (y.floats(), last.floats(), saved.floats());
    if !op.carried {
        last.copy_from_slice(inputs[op.initial_at()].floats());
    }
    if op.position_at().is_some_and(|at| inputs[at].as_u32()[0] == 0) {
        last.fill(0.0);
    }
    let each = rows_of_piece(&extent);
    let steps = each * time;
    let outputs = y.par_chunks_mut(steps * state).zip(saved.par_chunks_mut(steps * extent.saved));
    let pieces = inputs[0].floats().par_chunks(steps * width).zip(last.par_chunks_mut(each * whole));
    pieces.zip(outputs).enumerate().for_each(|(piece, ((x, now), (y, saved)))| {
        walk.run(piece * each, x, now, y, saved);
    });
}

/// What all rows of a walk have in common.
struct Forward<'a> {
    op: &'a Recurrent,
    extent: Extent,
    weight: Packed,
    projection: Option<Packed>,
    bias: Option<&'a [f32]>,
    steps: Option<View<'a>>,
}

impl Forward<'_> {
    /// Rows from `first` on; `now` holds their initial states, and their final ones in the end.
    fn run(&self, first: usize, x: &[f32], now: &mut [f32], y: &mut [f32], saved: &mut [f32]) {
        let Extent { time, hidden, state, inputs, whole, saved: width, .. } = self.extent;
        let rows = now.len() / whole;
        let mut h = vec![0.0; rows * state];
        now.chunks_exact(whole)
            .zip(h.chunks_exact_mut(state))
            .for_each(|(now, h)| h.copy_from_slice(&now[..state]));
        let (mut a, mut made) = (vec![0.0; rows * inputs], vec![0.0; rows * hidden]);
        let mut projected = vec![0.0; if self.projection.is_some() { rows * state } else { 0 }];
        for number in 0..time {
            let t = time_of(self.op.reverse, time, number);
            let is_live = |row: usize| is_live(&self.steps, first + row, t);
            self.weight.times(&h, &mut a);
            for row in 0..rows {
                let at = row * time + t;
                let saved = &mut saved[at * width..][..width];
                saved[width - state..].copy_from_slice(&h[row * state..][..state]);
                let a = &mut a[row * inputs..][..inputs];
                if let Some(bias) = self.bias {
                    a.iter_mut().zip(bias).for_each(|(a, &b)| *a += b);
                }
                let c = &mut now[row * whole + state..(row + 1) * whole];
                let made = &mut made[row * hidden..][..hidden];
                let x = &x[at * inputs..][..inputs];
                match self.op.cell {
                    Cell::Tanh => plain(x, a, made, false),
                    Cell::Relu => plain(x, a, made, true),
                    Cell::Lstm => lstm(x, a, c, saved, made, is_live(row)),
                    Cell::Gru => gru(x, a, &h[row * state..][..state], saved, made),
                }
                if self.op.cell.gates() == 1 {
                    saved[..hidden].copy_from_slice(made);
                } else if self.projection.is_some() {
                    saved[width - state - hidden..width - state].copy_from_slice(made);
                }
            }
            let made = match &self.projection {
                Some(projection) => {
                    projection.times(&made, &mut projected);
                    &projected
                }
                None => &made,
            };
            for row in 0..rows {
                let y = &mut y[(row * time + t) * state..][..state];
                if is_live(row) {
                    let made = &made[row * state..][..state];
                    y.copy_from_slice(made);
                    h[row * state..][..state].copy_from_slice(made);
                } else {
                    y.fill(0.0);
                }
            }
        }
        now.chunks_exact_mut(whole)
            .zip(h.chunks_exact(state))
            .for_each(|(now, h)| now[..state].copy_from_slice(h));
    }
}

widest! {
    fn plain(x: &[f32], a: &[f32], made: &mut [f32], relu: bool) {
        for ((made, &x), &a) in made.iter_mut().zip(x).zip(a) {
            let sum = x + a;
            // A NaN comes through.
            *made = if !relu { tanh(sum) } else if sum < 0.0 { 0.0 } else { sum };
        }
    }
}

widest! {
    fn lstm(x: &[f32], a: &[f32], c: &mut [f32], saved: &mut [f32], made: &mut [f32], live: bool) {
        let hidden = made.len();
        let (x, a) = (&x[..4 * hidden], &a[..4 * hidden]);
        let [i, f, g, o, before] = blocks(saved, hidden);
        for j in 0..hidden {
            i[j] = sigmoid(x[j] + a[j]);
            f[j] = sigmoid(x[hidden + j] + a[hidden + j]);
            g[j] = tanh(x[2 * hidden + j] + a[2 * hidden + j]);
            o[j] = sigmoid(x[3 * hidden + j] + a[3 * hidden + j]);
        }
        let c = &mut c[..hidden];
        before.copy_from_slice(c);
        for j in 0..hidden {
            let new = f[j] * before[j] + i[j] * g[j];
            made[j] = o[j] * tanh(new);
            c[j] = if live { new } else { before[j] };
        }
    }
}

widest! {
    fn gru(x: &[f32], a: &[f32], h: &[f32], saved: &mut [f32], made: &mut [f32]) {
        let hidden = made.len();
        let (x, a, h) = (&x[..3 * hidden], &a[..3 * hidden], &h[..hidden]);
        let [r, z, n, q] = blocks(saved, hidden);
        for j in 0..hidden {
            r[j] = sigmoid(x[j] + a[j]);
            z[j] = sigmoid(x[hidden + j] + a[hidden + j]);
            q[j] = a[2 * hidden + j];
            n[j] = tanh(x[2 * hidden + j] + r[j] * q[j]);
            made[j] = n[j] + z[j] * (h[j] - n[j]);
        }
    }
}

/// The first blocks of `size` elements.
#[inline(always)]
fn blocks<const N: usize>(elements: &mut [f32], size: usize) -> [&mut [f32]; N] {
    let mut rest = elements;
    std::array::from_fn(|_| {
        let (block, behind) = std::mem::take(&mut rest).split_at_mut(size);
        rest = behind;
        block
    })
}

pub(super) fn backward(op: &RecurrentGradient, inputs: &[View], outputs: &mut [ViewMut]) {
    let extent = op.extent(inputs[1].shape, inputs[0].shape);
    let Extent { time, hidden, state, inputs: width, whole, .. } = extent;
    let [up, up_last] = op.flows_at().map(|at| at.map(|at| inputs[at].floats()));
    let walk = Backward {
        op,
        extent,
        weight: Packed::of(Matrix::new(inputs[0].floats(), state), [width, state]),
        projection: op
            .projection_at()
            .map(|at| Packed::of(Matrix::new(inputs[at].floats(), hidden), [state, hidden])),
        saved: inputs[1].floats(),
        up,
        steps: op.steps_at().map(|at| inputs[at]),
    };
    let row = outputs[0].shape.last();
    let (own, products) = outputs.split_at_mut(2);
    let [dx, now] = own else { unreachable!("the walk back has at least two outputs") };
    let now = now.floats();
    match up_last {
        Some(up) => now.copy_from_slice(up),
        None => now.fill(0.0),
    }
    let each = rows_of_piece(&extent);
    let pieces = dx.floats().par_chunks_mut(each * time * row).zip(now.par_chunks_mut(each * whole));
    let Some(products) = products.first_mut() else {
        return pieces.enumerate().for_each(|(piece, (dx, now))| walk.run(piece * each, dx, now, None));
    };
    let products = products.floats().par_chunks_mut(each * time * width);
    pieces.zip(products).enumerate().for_each(|(piece, ((dx, now), products))| {
        walk.run(piece * each, dx, now, Some(products));
    });
}

struct Backward<'a> {
    op: &'a RecurrentGradient,
    extent: Extent,
    weight: Packed,
    projection: Option<Packed>,
    saved: &'a [f32],
    up: Option<&'a [f32]>,
    steps: Option<View<'a>>,
}

impl Backward<'_> {
    /// Rows from `first` on; `now` holds what flows to their final states, and in the end what flows to the initial ones.
    fn run(&self, first: usize, dx: &mut [f32], now: &mut [f32], mut products: Option<&mut [f32]>) {
        let Extent { time, hidden, state, inputs, whole, saved: width, .. } = self.extent;
        let rows = now.len() / whole;
        let row_width = inputs + if self.projection.is_some() { state } else { 0 };
        let (mut total, mut made) = (vec![0.0; rows * state], vec![0.0; rows * hidden]);
        let (mut flows, mut past) = (vec![0.0; rows * inputs], vec![0.0; rows * state]);
        for number in 0..time {
            let t = time_of(!self.op.of.reverse, time, number);
            let is_live = |row: usize| is_live(&self.steps, first + row, t);
            for row in 0..rows {
                let total = &mut total[row * state..][..state];
                total.copy_from_slice(&now[row * whole..][..state]);
                if let Some(up) = self.up {
                    let up = &up[((first + row) * time + t) * state..][..state];
                    total.iter_mut().zip(up).for_each(|(total, &up)| *total += up);
                }
            }
            let made = match &self.projection {
                Some(projection) => {
                    projection.times(&total, &mut made);
                    &made
                }
                None => &total,
            };
            for row in 0..rows {
                let at = row * time + t;
                let to = &mut dx[at * row_width..][..row_width];
                let flows = &mut flows[row * inputs..][..inputs];
                if !is_live(row) {
                    to.fill(0.0);
                    flows.fill(0.0);
                    if let Some(products) = &mut products {
                        products[at * inputs..][..inputs].fill(0.0);
                    }
                    continue;
                }
                let saved = &self.saved[((first + row) * time + t) * width..][..width];
                let made = &made[row * hidden..][..hidden];
                let c = &mut now[row * whole + state..(row + 1) * whole];
                match self.op.of.cell {
                    Cell::Tanh => plain_back(saved, made, to, false),
                    Cell::Relu => plain_back(saved, made, to, true),
                    Cell::Lstm => lstm_back(saved, made, to, c),
                    Cell::Gru => gru_back(saved, made, to, flows, &mut past[row * state..][..state]),
                }
                match &mut products {
                    Some(products) => products[at * inputs..][..inputs].copy_from_slice(flows),
                    None => flows.copy_from_slice(&to[..inputs]),
                }
                to[inputs..].copy_from_slice(&total[row * state..][..row_width - inputs]);
            }
            // What flows through the product; rows whose text has not begun yet keep what they have.
            self.weight.times(&flows, &mut total);
            for row in (0..rows).filter(|&row| is_live(row)) {
                let now = &mut now[row * whole..][..state];
                now.copy_from_slice(&total[row * state..][..state]);
                if self.op.of.cell == Cell::Gru {
                    now.iter_mut().zip(&past[row * state..]).for_each(|(now, &past)| *now += past);
                }
            }
        }
    }
}

widest! {
    fn plain_back(saved: &[f32], made: &[f32], dx: &mut [f32], relu: bool) {
        for ((dx, &up), &s) in dx.iter_mut().zip(made).zip(saved) {
            *dx = if !relu { up * (1.0 - s * s) } else if s > 0.0 { up } else { 0.0 };
        }
    }
}

widest! {
    fn lstm_back(saved: &[f32], made: &[f32], dx: &mut [f32], c: &mut [f32]) {
        let hidden = made.len();
        let (saved, c) = (&saved[..5 * hidden], &mut c[..hidden]);
        let [di, df, dg, to] = blocks(dx, hidden);
        for j in 0..hidden {
            let [i, f, g] = [saved[j], saved[hidden + j], saved[2 * hidden + j]];
            let [o, before] = [saved[3 * hidden + j], saved[4 * hidden + j]];
            let bent = tanh(f * before + i * g);
            let dc = c[j] + made[j] * o * (1.0 - bent * bent);
            di[j] = dc * g * i * (1.0 - i);
            df[j] = dc * before * f * (1.0 - f);
            dg[j] = dc * i * (1.0 - g * g);
            to[j] = made[j] * bent * o * (1.0 - o);
            c[j] = dc * f;
        }
    }
}

widest! {
    fn gru_back(saved: &[f32], made: &[f32], dx: &mut [f32], products: &mut [f32], past: &mut [f32]) {
        let hidden = made.len();
        let (saved, past) = (&saved[..5 * hidden], &mut past[..hidden]);
        let ([dr, dz, dn], [pr, pz, pn]) = (blocks(dx, hidden), blocks(products, hidden));
        for j in 0..hidden {
            let [r, z, n] = [saved[j], saved[hidden + j], saved[2 * hidden + j]];
            let [q, before] = [saved[3 * hidden + j], saved[4 * hidden + j]];
            let d = made[j] * (1.0 - z) * (1.0 - n * n);
            dr[j] = d * q * r * (1.0 - r);
            dz[j] = made[j] * (before - n) * z * (1.0 - z);
            dn[j] = d;
            (pr[j], pz[j], pn[j]) = (dr[j], dz[j], d * r);
            past[j] = made[j] * z;
        }
    }
}
