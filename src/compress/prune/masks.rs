//! The masks of a model's weights, and whether they still hold.

use crate::compress::calibrate::layers_of;
use crate::compress::method::extent_of;
use crate::compress::{Error, Linear, Result, Selection};
use crate::model::{Family, Weights, turn};
use crate::tensor::Tensor;
use crate::tensor::mask::Mask;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// A layer's weight as [out, in], however it is held.
pub(super) fn matrix_of<'a>(weights: &'a Weights, linear: &Linear) -> Result<Cow<'a, [f32]>> {
    let numbers = weights.numbers(&linear.weight)?;
    Ok(match (linear.turned, numbers) {
        (true, numbers) => Cow::Owned(turn(numbers.real(), linear.cols, linear.rows)),
        (false, Cow::Borrowed(tensor)) => Cow::Borrowed(tensor.real()),
        (false, Cow::Owned(tensor)) => Cow::Owned(tensor.real().to_vec()),
    })
}

/// The exact zeros of those chosen layers that have any.
pub fn masks_of_zeros(
    family: &dyn Family,
    weights: &Weights,
    selection: &Selection,
) -> Result<BTreeMap<String, Mask>> {
    let (_, all) = layers_of(family, extent_of(family, &[]))?;
    let mut masks = BTreeMap::new();
    for linear in selection.of(&all)? {
        let mask = Mask::of_zeros(&matrix_of(weights, linear)?, linear.cols);
        if mask.count_removed() > 0 {
            masks.insert(linear.weight.clone(), mask);
        }
    }
    Ok(masks)
}

/// Weights with what masks of their layers remove at zero.
pub(in crate::compress) fn lay_masks(
    family: &dyn Family,
    mut weights: Weights,
    masks: &BTreeMap<String, Mask>,
) -> Result<Weights> {
    let (_, all) = layers_of(family, extent_of(family, &[]))?;
    for linear in all.iter().filter(|linear| masks.contains_key(&linear.weight)) {
        let mask = &masks[&linear.weight];
        let tensor = weights.get(&linear.weight)?;
        let mut numbers = tensor.real::<f32>().to_vec();
        if linear.turned {
            mask.turned().apply(&mut numbers)
        } else {
            mask.apply(&mut numbers)
        }
        let tensor = Tensor::f32(tensor.shape.clone(), numbers);
        weights.set(linear.weight.clone(), tensor);
    }
    Ok(weights)
}

/// Checks that everything a pass removed is still exactly zero, in codes as well.
pub fn masks_hold(family: &dyn Family, weights: &Weights, masks: &BTreeMap<String, Mask>) -> Result<()> {
    if masks.is_empty() {
        return Ok(());
    }
    let (_, all) = layers_of(family, extent_of(family, &[]))?;
    let mut names = vec![];
    for (name, mask) in masks {
        let Some(linear) = all.iter().find(|linear| linear.weight == *name) else {
            names.push(format!("{name} (no longer a linear layer)"));
            continue;
        };
        if (linear.rows, linear.cols) != (mask.rows(), mask.cols()) {
            let (was, is) = ([mask.rows(), mask.cols()], [linear.rows, linear.cols]);
            names.push(format!("{name} ({is:?} where the mask is of {was:?})"));
        } else if let Some(at) = mask.violated_by(&matrix_of(weights, linear)?) {
            names.push(format!("{name} (row {}, column {})", at / linear.cols, at % linear.cols));
        }
    }
    if names.is_empty() { Ok(()) } else { Err(Error::CameBack { names }) }
}
