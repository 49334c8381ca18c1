//! The weights with the lowest scores. Of equal scores the one that comes first is removed first.

use super::{Error, Pattern};
use crate::tensor::mask::Mask;
use rayon::prelude::*;

/// Numbers of the `count` lowest scores, in no order.
fn lowest(scores: &[f32], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    if count < order.len() {
        order.select_nth_unstable_by(count, |&a, &b| scores[a].total_cmp(&scores[b]).then(a.cmp(&b)));
        order.truncate(count);
    }
    order
}

/// Of each row the `count` lowest.
pub fn lowest_of_rows(scores: &[f32], cols: usize, count: usize) -> Mask {
    lowest_of_runs(scores, cols, cols, count)
}

/// Of each group of a pattern all but the highest.
pub fn lowest_of_pattern(scores: &[f32], cols: usize, pattern: Pattern) -> Result<Mask, Error> {
    pattern.expect_fit(cols)?;
    Ok(lowest_of_runs(scores, cols, pattern.of, pattern.of - pattern.keep))
}

/// Of each run of scores the `count` lowest.
fn lowest_of_runs(scores: &[f32], cols: usize, run: usize, count: usize) -> Mask {
    let runs = scores.par_chunks(run.max(1)).enumerate();
    let chosen: Vec<usize> = runs
        .flat_map_iter(|(number, part)| lowest(part, count).into_iter().map(move |at| number * run + at))
        .collect();
    mask_of(scores.len(), cols, chosen)
}

/// Of a whole layer the `count` lowest.
pub fn lowest_of_layer(scores: &[f32], cols: usize, count: usize) -> Mask {
    mask_of(scores.len(), cols, lowest(scores, count))
}

/// Of several layers together the `count` lowest; each is its scores and its inputs.
pub fn lowest_across(layers: &[(&[f32], usize)], count: usize) -> Vec<Mask> {
    let all: Vec<f32> = layers.iter().flat_map(|(scores, _)| scores.iter().copied()).collect();
    let mut chosen = lowest(&all, count);
    chosen.sort_unstable();
    let (mut start, mut rest) = (0, &chosen[..]);
    let each = layers.iter().map(|&(scores, cols)| {
        let (here, later) = rest.split_at(rest.partition_point(|&at| at < start + scores.len()));
        let mask = mask_of(scores.len(), cols, here.iter().map(|at| at - start));
        (start, rest) = (start + scores.len(), later);
        mask
    });
    each.collect()
}

fn mask_of(count: usize, cols: usize, removed: impl IntoIterator<Item = usize>) -> Mask {
    let mut mask = Mask::none(count / cols.max(1), cols);
    removed.into_iter().for_each(|at| mask.remove(at));
    mask
}

#[cfg(test)]
mod tests {
    use super::*;

    fn removed(mask: &Mask) -> Vec<usize> {
        (0..mask.rows() * mask.cols()).filter(|&at| mask.is_removed(at)).collect()
    }

    #[test]
    fn of_equal_scores_the_first_goes_first() {
        let scores = [1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0];
        assert_eq!(removed(&lowest_of_layer(&scores, 4, 4)), [0, 1, 2, 7]);
        assert_eq!(removed(&lowest_of_rows(&scores, 4, 2)), [0, 1, 4, 7]);
        let pattern = Pattern { keep: 1, of: 2 };
        assert_eq!(removed(&lowest_of_pattern(&scores, 4, pattern).unwrap()), [1, 2, 4, 7]);
    }

    #[test]
    fn layers_together_have_one_threshold() {
        let masks = lowest_across(&[(&[5.0, 1.0, 6.0, 7.0], 2), (&[2.0, 3.0], 1)], 3);
        assert_eq!((removed(&masks[0]), removed(&masks[1])), (vec![1], vec![0, 1]));
        assert_eq!((masks[1].rows(), masks[1].cols()), (2, 1));
    }

    #[test]
    fn a_pattern_that_does_not_divide_the_inputs_is_refused() {
        let error = lowest_of_pattern(&[0.0; 6], 6, Pattern { keep: 2, of: 4 }).unwrap_err();
        assert!(error.to_string().contains("6 inputs are no whole groups of 2:4"), "{error}");
    }
}
