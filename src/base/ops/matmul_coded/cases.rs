//! Trials of the matmul by codes.

use super::{Layout, MatmulCoded};
use crate::ops::coded::{layouts, sample};
use crate::ops::pointwise::Pointwise;
use crate::ops::{Cases, Operator};

/// Every layout with one row and several; columns that end within a word, a group, a chunk; groups of 32, 64, 128, odd ones and one
/// for a row; few rows, many rows; both directions; bias and activation.
pub fn cases() -> Cases {
    let mut cases = Cases::new("matmul_coded");
    // Rows of X, rows of W, columns of W, columns of a group.
    for [m, n, k, group] in
        [[1, 1, 1, 1], [7, 13, 11, 3], [3, 5, 64, 32], [9, 33, 72, 24], [2, 17, 100, 64], [33, 24, 160, 128]]
    {
        for layout in layouts(k, group) {
            add_case(&mut cases, MatmulCoded::new(layout), &[], [m, n]);
            add_case(&mut cases, MatmulCoded::transposed(layout), &[], [m, n]);
        }
    }
    few_rows(&mut cases);
    // Larger than every tile, with tails.
    for layout in layouts(136, 32) {
        add_case(&mut cases, MatmulCoded::new(layout), &[], [70, 131]).no_gradient();
        add_case(&mut cases, MatmulCoded::transposed(layout), &[], [70, 131]).no_gradient();
    }
    for layout in layouts(40, 40) {
        add_case(&mut cases, MatmulCoded::new(layout).with_bias(), &[2, 3], [4, 20]);
        add_case(
            &mut cases,
            MatmulCoded { has_bias: true, ..MatmulCoded::transposed(layout) },
            &[2],
            [1, 20],
        );
        for (name, constant) in [("gelu_tanh", 0.0), ("relu", 0.0), ("scale", 0.5)] {
            let op = MatmulCoded::new(layout).with_bias().with_activation(Pointwise::single(name, constant));
            add_case(&mut cases, op, &[], [9, 24]).differentiable = name != "relu";
        }
    }
    cases
}

/// One to nine rows: one load, several turns, a ragged end, rows of W past the last team's.
fn few_rows(cases: &mut Cases) {
    for (m, sizes) in [
        (1, [8, 16, 16]),
        (1, [24, 576, 32]),
        (1, [70, 576, 64]),
        (1, [9, 1536, 128]),
        (2, [33, 192, 192]),
        (3, [100, 88, 8]),
        (4, [264, 128, 16]),
        (5, [17, 256, 256]),
        (6, [9, 96, 48]),
        (8, [40, 320, 64]),
        (9, [12, 64, 32]),
    ] {
        let [n, k, group] = sizes;
        for layout in layouts(k, group) {
            add_case(cases, MatmulCoded::new(layout), &[], [m, n]).no_gradient();
        }
    }
}

fn add_case<'a>(
    cases: &'a mut Cases,
    op: MatmulCoded,
    batch: &[usize],
    [m, n]: [usize; 2],
) -> &'a mut crate::ops::Case {
    let Layout { cols, .. } = op.layout;
    let [summed, columns] = if op.transposed { [n, cols] } else { [cols, n] };
    let mut inputs = vec![cases.normal([batch, &[m, summed]].concat())];
    inputs.extend(sample(cases, &op.layout, n));
    if op.has_bias {
        inputs.push(cases.statistic([columns]));
    }
    let label = format!("{} {batch:?} m{m} n{n}", op.settings());
    cases.add(label, op, inputs).sums(summed)
}
