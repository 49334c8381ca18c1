//! Recurrent layers on the host, slow and obvious: row by row, step by step.

use super::{Cell, Recurrent, RecurrentGradient};
use crate::tensor::{Real, Tensor};

fn sigmoid<R: Real>(x: R) -> R {
    R::of(1.0) / (R::of(1.0) + (-x).exp())
}

/// Sum of products of a row of a matrix with a vector.
fn dot<R: Real>(row: &[R], x: &[R]) -> R {
    row.iter().zip(x).map(|(&w, &x)| w * x).sum()
}

/// Sum over rows i of `x[i] * matrix[i, column]`.
fn dot_down<R: Real>(matrix: &[R], columns: usize, column: usize, x: &[R]) -> R {
    x.iter().enumerate().map(|(i, &x)| x * matrix[i * columns + column]).sum()
}

/// Whether a step of a row counts.
fn is_live(steps: Option<&Tensor>, row: usize, t: usize) -> bool {
    steps.is_none_or(|steps| match steps.shape[..] {
        [_] => t < steps.as_u32()[row] as usize,
        _ => steps.as_u32()[row * steps.shape[1] + t] != 0,
    })
}

/// Steps of time in the order in which they are walked.
fn walk(reverse: bool, time: usize) -> Vec<usize> {
    if reverse { (0..time).rev().collect() } else { (0..time).collect() }
}

pub(super) fn forward<R: Real>(op: &Recurrent, inputs: &[&Tensor], outputs: &mut [Tensor]) {
    let extent = op.extent_of(&inputs[0].shape, &inputs[1].shape);
    let (hidden, state) = (extent.hidden, extent.state);
    let (x, weight) = (inputs[0].real::<R>(), inputs[1].real::<R>());
    let bias = op.bias_at().map(|at| inputs[at].real::<R>());
    let projection = op.projection_at().map(|at| inputs[at].real::<R>());
    let steps = op.steps_at().map(|at| inputs[at]);
    let fresh = op.position_at().is_some_and(|at| inputs[at].as_u32()[0] == 0);
    let initial = inputs[op.initial_at()].real::<R>();
    let [y, last, saved] = outputs else { unreachable!("a recurrent layer has three outputs") };
    for row in 0..extent.batch {
        let mut now = initial[row * extent.whole..][..extent.whole].to_vec();
        if fresh {
            now.fill(R::default());
        }
        for t in walk(op.reverse, extent.time) {
            let at = row * extent.time + t;
            let x = &x[at * extent.inputs..][..extent.inputs];
            let (h, c) = now.split_at(state);
            let product =
                |i: usize| dot(&weight[i * state..][..state], h) + bias.map_or(R::default(), |bias| bias[i]);
            let a: Vec<R> = (0..extent.inputs).map(product).collect();
            let (kept, made, cells) = step(op.cell, hidden, x, &a, h, c);
            let (projected, read) = match projection {
                Some(p) => ((0..state).map(|k| dot(&p[k * hidden..][..hidden], &made)).collect(), made),
                None => (made, vec![]),
            };
            let row_saved = [&kept[..], &read, h].concat();
            saved.real_mut::<R>()[at * extent.saved..][..extent.saved].copy_from_slice(&row_saved);
            let y = &mut y.real_mut::<R>()[at * state..][..state];
            match is_live(steps, row, t) {
                true => {
                    y.copy_from_slice(&projected);
                    now = [projected, cells].concat();
                }
                false => y.fill(R::default()),
            }
        }
        last.real_mut::<R>()[row * extent.whole..][..extent.whole].copy_from_slice(&now);
    }
}

/// What is saved of a step, what the cell gives, and the new cells of an LSTM.
fn step<R: Real>(cell: Cell, hidden: usize, x: &[R], a: &[R], h: &[R], c: &[R]) -> (Vec<R>, Vec<R>, Vec<R>) {
    let each = |f: &dyn Fn(usize) -> R| (0..hidden).map(f).collect::<Vec<R>>();
    let sum = |gate: usize, j: usize| x[gate * hidden + j] + a[gate * hidden + j];
    match cell {
        Cell::Tanh | Cell::Relu => {
            let made = each(&|j| match cell {
                Cell::Tanh => sum(0, j).tanh(),
                _ => sum(0, j).maximum(R::default()),
            });
            (made.clone(), made, vec![])
        }
        Cell::Lstm => {
            let [i, f, o] = [0, 1, 3].map(|gate| each(&|j| sigmoid(sum(gate, j))));
            let g = each(&|j| sum(2, j).tanh());
            let cells = each(&|j| f[j] * c[j] + i[j] * g[j]);
            let made = each(&|j| o[j] * cells[j].tanh());
            ([&i[..], &f, &g, &o, c].concat(), made, cells)
        }
        Cell::Gru => {
            let [r, z] = [0, 1].map(|gate| each(&|j| sigmoid(sum(gate, j))));
            let q = &a[2 * hidden..];
            let n = each(&|j| (x[2 * hidden + j] + r[j] * q[j]).tanh());
            let made = each(&|j| n[j] + z[j] * (h[j] - n[j]));
            ([&r[..], &z, &n, q].concat(), made, vec![])
        }
    }
}

pub(super) fn backward<R: Real>(op: &RecurrentGradient, inputs: &[&Tensor], outputs: &mut [Tensor]) {
    let extent = op.extent(&inputs[1].shape, &inputs[0].shape);
    let (hidden, state) = (extent.hidden, extent.state);
    let (weight, saved) = (inputs[0].real::<R>(), inputs[1].real::<R>());
    let projection = op.projection_at().map(|at| inputs[at].real::<R>());
    let steps = op.steps_at().map(|at| inputs[at]);
    let [up, up_last] = op.flows_at().map(|at| at.map(|at| inputs[at].real::<R>()));
    let width = outputs[0].shape.last();
    for row in 0..extent.batch {
        let mut now = match up_last {
            Some(up) => up[row * extent.whole..][..extent.whole].to_vec(),
            None => vec![R::default(); extent.whole],
        };
        for t in walk(!op.of.reverse, extent.time) {
            let at = row * extent.time + t;
            let mut flows = [vec![R::default(); extent.inputs], vec![R::default(); extent.inputs]];
            let mut total = vec![R::default(); state];
            if is_live(steps, row, t) {
                let saved = &saved[at * extent.saved..][..extent.saved];
                total.iter_mut().enumerate().for_each(|(k, total)| {
                    *total = now[k] + up.map_or(R::default(), |up| up[at * state + k]);
                });
                let made: Vec<R> = match projection {
                    Some(p) => (0..hidden).map(|j| dot_down(p, hidden, j, &total)).collect(),
                    None => total.clone(),
                };
                let (h, c) = now.split_at_mut(state);
                h.fill(R::default());
                let h_before = &saved[extent.saved - state..];
                step_back(op.of.cell, hidden, saved, h_before, &made, &mut flows, [h, c]);
                let products = &flows[usize::from(op.of.cell == Cell::Gru)];
                h.iter_mut().enumerate().for_each(|(k, h)| *h += dot_down(weight, state, k, products));
            }
            let dx = &mut outputs[0].real_mut::<R>()[at * width..][..width];
            dx[..extent.inputs].copy_from_slice(&flows[0]);
            if projection.is_some() {
                dx[extent.inputs..].copy_from_slice(&total);
            }
            if op.of.cell == Cell::Gru {
                outputs[2].real_mut::<R>()[at * extent.inputs..][..extent.inputs].copy_from_slice(&flows[1]);
            }
        }
        outputs[1].real_mut::<R>()[row * extent.whole..][..extent.whole].copy_from_slice(&now);
    }
}

/// What flows to x and, of a GRU, to the products; c becomes what flows to the cells before, h what flows past the products.
fn step_back<R: Real>(
    cell: Cell,
    hidden: usize,
    saved: &[R],
    h_before: &[R],
    made: &[R],
    [dx, products]: &mut [Vec<R>; 2],
    [h, c]: [&mut [R]; 2],
) {
    let one = R::of(1.0);
    for (j, &up) in made.iter().enumerate() {
        let s = |block: usize| saved[block * hidden + j];
        match cell {
            Cell::Tanh => dx[j] = up * (one - s(0) * s(0)),
            Cell::Relu => dx[j] = if s(0) > R::default() { up } else { R::default() },
            Cell::Lstm => {
                let [i, f, g, o, before] = [s(0), s(1), s(2), s(3), s(4)];
                let bent = (f * before + i * g).tanh();
                let dc = c[j] + up * o * (one - bent * bent);
                dx[j] = dc * g * i * (one - i);
                dx[hidden + j] = dc * before * f * (one - f);
                dx[2 * hidden + j] = dc * i * (one - g * g);
                dx[3 * hidden + j] = up * bent * o * (one - o);
                c[j] = dc * f;
            }
            Cell::Gru => {
                let [r, z, n, q] = [s(0), s(1), s(2), s(3)];
                let dn = up * (one - z) * (one - n * n);
                dx[j] = dn * q * r * (one - r);
                dx[hidden + j] = up * (h_before[j] - n) * z * (one - z);
                dx[2 * hidden + j] = dn;
                products[j] = dx[j];
                products[hidden + j] = dx[hidden + j];
                products[2 * hidden + j] = dn * r;
                h[j] = up * z;
            }
        }
    }
}
