//! Targets of examples as the loss reads them.

use super::classes::Target;
use crate::model::IGNORED;
use crate::tensor::Tensor;

/// Targets of `batch` texts of `length` tokens: of classes I32 [B] or [B T], with rows that are missing ignored; else F32 [B, K], the
/// last one repeated.
pub fn targets(given: &[&Target], [batch, length]: [usize; 2]) -> Tensor {
    let last = given.len() - 1;
    let (mut floats, mut whole) = (vec![], vec![]);
    for number in 0..batch {
        let counts = number <= last;
        match given[number.min(last)] {
            Target::Class(right) => whole.push(if counts { *right as i32 } else { IGNORED }),
            Target::Tags(tags) => {
                let tag = |at: usize| tags.get(at).copied().flatten().filter(|_| counts);
                whole.extend((0..length).map(|at| tag(at).map_or(IGNORED, |tag| tag as i32)));
            }
            Target::Numbers(right) => floats.extend(right),
            // The text that is like the first one of a row stands in the same row.
            Target::Alike => whole.push(if counts { number as i32 } else { IGNORED }),
        }
    }
    match floats.len() {
        0 => Tensor::i32([whole.len()], whole),
        all => Tensor::f32([batch, all / batch], floats),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_are_missing_do_not_count() {
        let [a, b] = [Target::Class(2), Target::Tags(vec![None, Some(1)])];
        assert_eq!(targets(&[&a], [2, 3]).as_i32(), [2, IGNORED]);
        assert_eq!(targets(&[&b], [2, 3]).as_i32(), [IGNORED, 1, IGNORED, IGNORED, IGNORED, IGNORED]);
        let numbers = Target::Numbers(vec![0.5, 1.0]);
        assert_eq!(targets(&[&numbers], [2, 3]), Tensor::f32([2, 2], vec![0.5, 1.0, 0.5, 1.0]));
    }
}
