//! Matmul of codes on the host as an engine runs it.

use super::{MatmulInt8, Sizes};
use crate::ops::fast::codes::{Operands, product};
use crate::ops::fast::widest;
use crate::tensor::View;

pub(super) fn compute(op: &MatmulInt8, inputs: &[View], c: &mut [f32]) {
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
