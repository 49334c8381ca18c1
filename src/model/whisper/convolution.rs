//! Convolutions over time, made of what is there: neighbours side by side, and one product.
//!
//! ```text
//! y[t] = bias + sum over k of x[S t + k - 1] W[k]        k = 0, 1, 2; what lies outside is zero
//! ```
//! Why no operator of its own: laid side by side, the three frames are rows of a matrix product, and that is the most tuned kernel
//! there is, forwards and in both gradients, on every adapter. What is paid is one copy of 3 C numbers for each 3 C O
//! multiplications: of Whisper's smallest O is 384, of its largest 1280.

use super::super::Result;
use super::super::layers::{Layers, located};
use super::TAPS;
use crate::graph::Graph;
use crate::ops::concat::ConcatEmit;
use crate::ops::matmul::{Form, MatmulEmit};
use crate::ops::reshape::ReshapeEmit;
use crate::ops::slice::SliceEmit;
use crate::ops::transpose::TransposeEmit;
use crate::ops::{self, Emit, Value};
use crate::tensor::Tensor;

/// The module's convolution over x [B, T, C], of which T is a multiple of the stride: rows [B T / stride, O].
pub(super) fn convolve(
    graph: &mut Graph,
    layers: &Layers,
    module: &str,
    x: Value,
    stride: usize,
) -> Result<Value> {
    let (weight, bias) = (layers.weight(module), layers.find(module, "bias"));
    located(graph, module, |g| {
        let [outputs, inputs] = [g.kind(weight).shape[0], g.kind(weight).shape[1]];
        let rows = neighbours(g, x, stride)?;
        // Of the weight [O, C, 3] each tap is to be one piece: [O, 3 C].
        let weight = g.transpose(weight, &[0, 2, 1])?;
        let weight = g.reshape(weight, [outputs, TAPS * inputs].into())?;
        g.linear(Form::Nt, rows, weight, bias)
    })
}

/// Each frame that counts between the one before and the one behind it: [B T / stride, 3 C].
fn neighbours(graph: &mut Graph, x: Value, stride: usize) -> ops::Result<Value> {
    let shape = graph.kind(x).shape.clone();
    let (batch, steps, width) = (shape[0], shape[1], shape[2]);
    let nothing = |graph: &mut Graph, count: usize| {
        let shape = [batch, count, width];
        graph.constant(Tensor::f32(shape, vec![0.0; shape.iter().product()]))
    };
    // As many behind as make the whole a multiple of the stride.
    let (before, behind) = (nothing(graph, 1), nothing(graph, stride.max(2) - 1));
    let padded = graph.concat(&[before, x, behind], 1)?;
    let count = steps / stride;
    let mut taps = vec![];
    for tap in 0..TAPS {
        // Rows tap, tap + S, tap + 2 S ..: of groups of S frames one column.
        let (group, column) = (tap / stride, tap % stride);
        let all = graph.slice(padded, 1, group * stride, (group + count) * stride)?;
        let groups = graph.reshape(all, [batch, count, stride * width].into())?;
        taps.push(graph.slice(groups, 2, column * width, (column + 1) * width)?);
    }
    let rows = graph.concat(&taps, 2)?;
    graph.reshape(rows, [batch * count, TAPS * width].into())
}
