//! Adapters merged into weights, and taken out again.
//!
//! LoRA: `W + s B A`. DoRA: each output's row of that sum, over its norm, times its magnitude. Sums are taken in double precision
//! and rounded once, so that merging and taking out again gives every weight back up to its last bits.

use super::{Adapter, Error, Kind, Layer, Result};
use crate::model::{Weights, turn};
use crate::passes::Factor;
use crate::tensor::Tensor;
use rayon::prelude::*;

/// Writes an adapter, whose numbers are among `factors`, into a model's weights. What it changes is held as f32 from then on.
pub fn merge(weights: &mut Weights, adapter: &Adapter, factors: &Weights) -> Result<()> {
    for layer in &adapter.layers {
        let (mut rows, change) = (rows_of(weights, layer)?, change(adapter, layer, factors)?);
        rows.iter_mut().zip(&change).for_each(|(weight, change)| *weight += change);
        if adapter.kind == Kind::Dora {
            let name = Factor::Magnitude.name(&layer.linear.weight, &adapter.name);
            let magnitudes = factors.get(&name)?.real::<f32>();
            for (row, &magnitude) in rows.chunks_mut(layer.linear.inputs).zip(magnitudes) {
                let norm = row.iter().map(|w| w * w).sum::<f64>().sqrt();
                let ratio = if norm > 0.0 { f64::from(magnitude) / norm } else { 0.0 };
                row.iter_mut().for_each(|weight| *weight *= ratio);
            }
        }
        set_rows(weights, layer, &rows);
    }
    for spec in &adapter.whole {
        weights.set(spec.name.clone(), factors.get(&spec.name)?.clone());
    }
    Ok(())
}

/// Takes an adapter out of weights that it was merged into.
pub fn unmerge(weights: &mut Weights, adapter: &Adapter, factors: &Weights) -> Result<()> {
    let lost = |problem| Err(Error::Lost { name: adapter.name.clone(), problem });
    if adapter.kind == Kind::Dora {
        return lost("rows were brought to their magnitudes, and how long they were is not in its files");
    }
    if !adapter.whole.is_empty() {
        return lost("it holds modules that were trained whole, and what they were is not in its files");
    }
    for layer in &adapter.layers {
        if weights.stored().any(|(name, _)| name == layer.linear.weight) {
            return lost("the weights were quantised after the merge");
        }
        let (mut rows, change) = (rows_of(weights, layer)?, change(adapter, layer, factors)?);
        rows.iter_mut().zip(&change).for_each(|(weight, change)| *weight -= change);
        set_rows(weights, layer, &rows);
    }
    Ok(())
}

/// A layer's weight as rows [out, in].
fn rows_of(weights: &Weights, layer: &Layer) -> Result<Vec<f64>> {
    let tensor = weights.numbers(&layer.linear.weight)?;
    let (real, [first, second]) = (tensor.real::<f32>(), [tensor.shape[0], tensor.shape[1]]);
    let wide = |numbers: &[f32]| numbers.iter().map(|&w| f64::from(w)).collect();
    Ok(if layer.linear.turned { wide(&turn(real, first, second)) } else { wide(real) })
}

fn set_rows(weights: &mut Weights, layer: &Layer, rows: &[f64]) {
    let linear = &layer.linear;
    let narrow: Vec<f32> = rows.iter().map(|&w| w as f32).collect();
    let tensor = match linear.turned {
        true => Tensor::f32([linear.inputs, linear.outputs], turn(&narrow, linear.outputs, linear.inputs)),
        false => Tensor::f32([linear.outputs, linear.inputs], narrow),
    };
    weights.set(linear.weight.clone(), tensor);
}

/// `s B A` as rows [out, in].
fn change(adapter: &Adapter, layer: &Layer, factors: &Weights) -> Result<Vec<f64>> {
    let (rank, inputs) = (layer.rank, layer.linear.inputs);
    let get =
        |factor: Factor| Ok::<_, Error>(factors.get(&factor.name(&layer.linear.weight, &adapter.name))?);
    let (down, up) = (get(Factor::Down)?.real::<f32>(), get(Factor::Up)?.real::<f32>());
    let scale = f64::from(adapter.scale(layer));
    let mut change = vec![0.0; layer.linear.outputs * inputs];
    change.par_chunks_mut(inputs).zip(up.par_chunks(rank)).for_each(|(row, up)| {
        for (down, &up) in down.chunks(inputs).zip(up) {
            let factor = scale * f64::from(up);
            row.iter_mut().zip(down).for_each(|(sum, &down)| *sum += factor * f64::from(down));
        }
    });
    Ok(change)
}
