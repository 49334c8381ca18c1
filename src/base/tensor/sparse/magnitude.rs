//! Magnitude: the smallest weights go.

use super::{
    Error, Sparsity, count_of, expect_finite, expect_some_left, lowest_across, lowest_of_layer,
    lowest_of_pattern, lowest_of_rows,
};
use crate::tensor::mask::Mask;

/// Which weights are compared with each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// Those of one output.
    Row,
    /// Those of one layer.
    #[default]
    Layer,
    /// Those of all layers.
    Global,
}

impl Scope {
    /// All of them.
    pub const ALL: [Scope; 3] = [Scope::Row, Scope::Layer, Scope::Global];

    /// Name as in commands and recipes.
    pub fn name(self) -> &'static str {
        match self {
            Scope::Row => "row",
            Scope::Layer => "layer",
            Scope::Global => "global",
        }
    }
}

/// Magnitudes of the weights.
fn magnitudes(matrix: &[f32]) -> Vec<f32> {
    matrix.iter().map(|x| x.abs()).collect()
}

/// The smallest weights of a layer, or of each of its rows. A pattern compares its groups whatever the scope.
///
/// One layer alone is also all there are: [`Scope::Global`] is [`Scope::Layer`] here.
pub fn magnitude(matrix: &[f32], cols: usize, sparsity: Sparsity, scope: Scope) -> Result<Mask, Error> {
    sparsity.check()?;
    expect_finite(matrix, cols)?;
    let scores = magnitudes(matrix);
    expect_some_left(match (sparsity, scope) {
        (Sparsity::Pattern(pattern), _) => lowest_of_pattern(&scores, cols, pattern)?,
        (Sparsity::Share(share), Scope::Row) => lowest_of_rows(&scores, cols, count_of(share, cols)),
        (Sparsity::Share(share), _) => lowest_of_layer(&scores, cols, count_of(share, scores.len())),
    })
}

/// The smallest weights of several layers together; each is its matrix and its inputs. An error comes with the layer's number.
pub fn magnitude_across(layers: &[(&[f32], usize)], share: f64) -> Result<Vec<Mask>, (usize, Error)> {
    Sparsity::Share(share).check().map_err(|error| (0, error))?;
    for (number, (matrix, cols)) in layers.iter().enumerate() {
        expect_finite(matrix, *cols).map_err(|error| (number, error))?;
    }
    let scores: Vec<Vec<f32>> = layers.iter().map(|(matrix, _)| magnitudes(matrix)).collect();
    let list: Vec<(&[f32], usize)> =
        scores.iter().zip(layers).map(|(scores, (_, cols))| (&scores[..], *cols)).collect();
    let count = count_of(share, scores.iter().map(Vec::len).sum());
    let masks = lowest_across(&list, count).into_iter().enumerate();
    masks.map(|(number, mask)| expect_some_left(mask).map_err(|error| (number, error))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_threshold_over_layers_may_leave_nothing_of_one_and_says_so() {
        let error = magnitude_across(&[(&[5.0, 6.0, 7.0, 8.0], 2), (&[1.0, -1.0], 2)], 0.5).unwrap_err();
        assert_eq!(error, (1, Error::Nothing { count: 2 }));
        let masks = magnitude_across(&[(&[5.0, 0.5, 7.0, 8.0], 2), (&[1.0, -2.0], 2)], 0.4).unwrap();
        assert_eq!(masks.iter().map(Mask::count_removed).collect::<Vec<_>>(), [1, 1]);
    }

    #[test]
    fn what_is_no_number_is_named() {
        let matrix = [1.0, 2.0, 3.0, f32::INFINITY];
        let error = magnitude(&matrix, 2, Sparsity::Share(0.5), Scope::Layer).unwrap_err();
        assert_eq!(error, Error::NotFinite { row: 1, column: 1, got: f32::INFINITY });
    }

    #[test]
    fn shares_are_rounded_down() {
        for scope in Scope::ALL {
            let mask = magnitude(&[1.0, 2.0, 3.0, 4.0, 5.0], 5, Sparsity::Share(0.5), scope).unwrap();
            assert_eq!(mask.count_removed(), 2);
        }
    }
}
