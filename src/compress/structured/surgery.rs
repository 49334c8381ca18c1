//! Weights without some units, or with zeros in their place.

use super::super::Result;
use crate::graph::{Coupling, Member};
use crate::model::Weights;
use crate::tensor::Tensor;

/// Couplings with the units that go of each.
pub type Removed<'a> = [(&'a Coupling, Vec<u32>)];

/// The weights with what belongs to the units taken out.
pub fn without(weights: &Weights, removed: &Removed) -> Result<Weights> {
    edited(weights, removed, |tensor, member, goes| {
        let mut shape = tensor.shape.to_vec();
        shape[member.axis] = goes.iter().filter(|goes| !**goes).count();
        let mut left = Vec::with_capacity(shape.iter().product());
        let inner = inner(tensor, member.axis);
        for (run, goes) in tensor.real::<f32>().chunks(inner).zip(goes.iter().cycle()) {
            if !goes {
                left.extend_from_slice(run);
            }
        }
        Tensor::f32(shape, left)
    })
}

/// The weights with zeros for what belongs to the units.
pub fn masked(weights: &Weights, removed: &Removed) -> Result<Weights> {
    edited(weights, removed, |tensor, member, goes| {
        let (mut tensor, inner) = (tensor.clone(), inner(tensor, member.axis));
        for (run, goes) in tensor.real_mut::<f32>().chunks_mut(inner).zip(goes.iter().cycle()) {
            if *goes {
                run.fill(0.0);
            }
        }
        tensor
    })
}

/// Elements from one position of an axis to the next.
fn inner(tensor: &Tensor, axis: usize) -> usize {
    tensor.shape[axis + 1..].iter().product()
}

fn edited(
    weights: &Weights,
    removed: &Removed,
    edit: impl Fn(&Tensor, &Member, &[bool]) -> Tensor,
) -> Result<Weights> {
    let mut weights = weights.clone();
    for (coupling, removed) in removed {
        for member in &coupling.members {
            let goes: Vec<bool> =
                member.units.iter().map(|unit| unit.is_some_and(|unit| removed.contains(&unit))).collect();
            let tensor = edit(weights.get(&member.name)?, member, &goes);
            weights.set(member.name.clone(), tensor);
        }
    }
    Ok(weights)
}
