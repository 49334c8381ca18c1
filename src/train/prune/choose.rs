//! The masks of some layers from the scores of their weights.

use crate::tensor::mask::Mask;
use crate::tensor::sparse::{
    Error, Pattern, Scope, count_of, expect_some_left, lowest_across, lowest_of_layer, lowest_of_pattern,
    lowest_of_rows,
};

/// What is known of a layer's weights, as a matrix [out, in].
#[derive(Clone, Debug)]
pub struct Scored {
    /// Inputs.
    pub cols: usize,
    /// The lowest go first.
    pub scores: Vec<f32>,
    /// What is gone for good.
    pub gone: Mask,
}

/// Masks that remove a share of the layers' weights; what is gone is gone, and counts.
///
/// A pattern is what is to be reached: of each of its groups only those go that would go in the end, so that a share below its own
/// leaves groups from which nothing has gone. An error comes with the layer's number.
pub fn choose(
    layers: &[Scored],
    share: f64,
    pattern: Option<Pattern>,
    scope: Scope,
) -> Result<Vec<Mask>, (usize, Error)> {
    let is_last = pattern.is_some_and(|pattern| share >= pattern.sparsity());
    let mut masks = vec![];
    let mut scores = vec![];
    for (number, layer) in layers.iter().enumerate() {
        let mut of_layer = with_gone(layer).map_err(|error| (number, error))?;
        if let Some(pattern) = pattern {
            let last = lowest_of_pattern(&of_layer, layer.cols, pattern).map_err(|error| (number, error))?;
            let stays = |at: usize| !last.is_removed(at);
            (0..of_layer.len()).filter(|&at| stays(at)).for_each(|at| of_layer[at] = f32::INFINITY);
            masks.push(last);
        }
        scores.push(of_layer);
    }
    if !is_last {
        masks = lowest(layers, &scores, share, scope);
    }
    let joined = masks.into_iter().zip(layers).map(|(mask, layer)| mask.joined(&layer.gone));
    joined.enumerate().map(|(number, mask)| expect_some_left(mask).map_err(|e| (number, e))).collect()
}

/// The scores, with those of what is gone below all others.
fn with_gone(layer: &Scored) -> Result<Vec<f32>, Error> {
    crate::tensor::sparse::expect_finite(&layer.scores, layer.cols)?;
    let of = |(at, &score): (usize, &f32)| if layer.gone.is_removed(at) { f32::NEG_INFINITY } else { score };
    Ok(layer.scores.iter().enumerate().map(of).collect())
}

fn lowest(layers: &[Scored], scores: &[Vec<f32>], share: f64, scope: Scope) -> Vec<Mask> {
    let each = layers.iter().zip(scores);
    match scope {
        Scope::Row => each.map(|(l, s)| lowest_of_rows(s, l.cols, count_of(share, l.cols))).collect(),
        Scope::Layer => each.map(|(l, s)| lowest_of_layer(s, l.cols, count_of(share, s.len()))).collect(),
        Scope::Global => {
            let list: Vec<(&[f32], usize)> = each.map(|(layer, s)| (&s[..], layer.cols)).collect();
            lowest_across(&list, count_of(share, scores.iter().map(Vec::len).sum()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::random::Stream;

    fn layer(rows: usize, cols: usize, scale: f32) -> Scored {
        let mut stream = Stream::new(&[rows as u32, cols as u32]);
        let scores = (0..rows * cols).map(|_| scale * (stream.normal() as f32).abs()).collect();
        Scored { cols, scores, gone: Mask::none(rows, cols) }
    }

    #[test]
    fn masks_that_follow_each_other_only_grow_whatever_the_weights_do_meanwhile() {
        let pattern = "2:4".parse().unwrap();
        for scope in Scope::ALL {
            for pattern in [None, Some(pattern)] {
                let mut layers = vec![layer(6, 16, 1.0), layer(8, 12, 1.5)];
                for (number, share) in [0.1, 0.3, 0.45, 0.5].into_iter().enumerate() {
                    let masks = choose(&layers, share, pattern, scope).unwrap();
                    for (layer, mask) in layers.iter_mut().zip(masks) {
                        assert!(mask.covers(&layer.gone), "{scope:?} {pattern:?} at {share}");
                        layer.gone = mask;
                        let mut stream = Stream::new(&[number as u32]);
                        layer.scores.iter_mut().for_each(|s| *s = (*s + stream.normal() as f32).abs());
                    }
                }
                let (gone, all) = layers.iter().fold((0, 0), |(gone, all), layer| {
                    (gone + layer.gone.count_removed(), all + layer.scores.len())
                });
                assert_eq!(gone, all / 2, "{scope:?} {pattern:?}");
                let fits = layers.iter().all(|layer| layer.gone.is_pattern(2, 4));
                assert!(fits || pattern.is_none(), "{scope:?}");
            }
        }
    }

    #[test]
    fn what_is_gone_counts_and_stays_where_the_share_is_below_it() {
        let mut one = layer(4, 8, 1.0);
        one.gone = Mask::of(4, 8, |at| at % 4 == 3);
        let masks = choose(std::slice::from_ref(&one), 0.125, None, Scope::Layer).unwrap();
        assert_eq!(masks[0], one.gone);
        let masks = choose(std::slice::from_ref(&one), 0.5, None, Scope::Row).unwrap();
        assert!(masks[0].covers(&one.gone) && masks[0].count_removed() == 16);
    }

    #[test]
    fn a_layer_of_which_nothing_would_be_left_is_named() {
        let layers = [layer(4, 8, 100.0), layer(1, 8, 1e-3)];
        let (number, error) = choose(&layers, 0.3, None, Scope::Global).unwrap_err();
        assert_eq!((number, error), (1, Error::Nothing { count: 8 }));
    }
}
