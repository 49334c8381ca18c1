//! Matmul of codes on the host as an engine runs it.

use super::{MatmulInt8, Sizes};
use crate::ops::fast::codes::{Operands, product};
use crate::ops::fast::{rows_of_piece, widest};
use crate::tensor::View;
use rayon::prelude::*;

pub(super) fn compute(op: &MatmulInt8, inputs: &[View], c: &mut [f32]) {
    if let Some(group) = op.group {
        return by_groups(op, group, inputs, c);
    }
    let Sizes { n, k, .. } = Sizes::of(inputs[0].shape, inputs[1].shape);
    let (a_scale, b_scale) = (inputs[2].floats(), inputs[3].floats());
    let bias = inputs.get(4).map(|bias| bias.floats());
    let finish = |row: usize, first: usize, sums: &[i32], c: &mut [f32]| {
        scale(sums, a_scale[row], &b_scale[first..], c);
        if let Some(bias) = bias {
            add(&bias[first..], c);
        }
        if let Some(activation) = &op.activation {
            activation.overwrite(c);
        }
    };
    product(Operands { a: inputs[0].as_i8(), b: inputs[1].as_i8(), k }, c, n, &finish);
}

/// Sums of each group by themselves, rows of C over threads, or its columns where it has one row.
fn by_groups(op: &MatmulInt8, group: usize, inputs: &[View], c: &mut [f32]) {
    let Sizes { n, k, .. } = Sizes::of(inputs[0].shape, inputs[1].shape);
    let (a, b) = (inputs[0].as_i8(), inputs[1].as_i8());
    let (a_scale, b_scale, groups) = (inputs[2].floats(), inputs[3].floats(), op.groups(k));
    let bias = inputs.get(4).map(|bias| bias.floats());
    let each = rows_of_piece(n, k);
    c.par_chunks_mut(n).enumerate().for_each(|(row, c)| {
        let a = &a[row * k..][..k];
        c.par_chunks_mut(each).enumerate().for_each(|(piece, c)| {
            let first = piece * each;
            for (j, c) in c.iter_mut().enumerate() {
                let (b, scales) = (&b[(first + j) * k..][..k], &b_scale[(first + j) * groups..][..groups]);
                *c = dot_by_groups(a, b, group, scales) * a_scale[row];
            }
            if let Some(bias) = bias {
                add(&bias[first..], c);
            }
            if let Some(activation) = &op.activation {
                activation.overwrite(c);
            }
        });
    });
}

widest! {
    fn dot_by_groups(a: &[i8], b: &[i8], group: usize, scales: &[f32]) -> f32 {
        let mut total = 0.0;
        for ((a, b), scale) in a.chunks(group).zip(b.chunks(group)).zip(scales) {
            let mut sum = 0;
            for (&a, &b) in a.iter().zip(b) {
                sum += i32::from(a) * i32::from(b);
            }
            total += sum as f32 * scale;
        }
        total
    }
}

widest! {
    fn scale(sums: &[i32], row_scale: f32, column_scales: &[f32], c: &mut [f32]) {
        for ((c, &sum), &column_scale) in c.iter_mut().zip(sums).zip(column_scales) {
            *c = sum as f32 * row_scale * column_scale;
        }
    }
}

widest! {
    fn add(bias: &[f32], c: &mut [f32]) {
        c.iter_mut().zip(bias).for_each(|(c, bias)| *c += bias);
    }
}
