//! How far raters agree, beyond what chance would give.

use std::collections::BTreeMap;

/// Cohen's kappa of two raters (Cohen 1960, "A coefficient of agreement for nominal scales"): `(o - e) / (1 - e)`, where `o` is the share
/// of items with the same label and `e = sum over labels of the product of both raters' shares`. None without items, or where both
/// gave one and the same label throughout.
pub fn cohen_kappa(labels: &[(usize, usize)]) -> Option<f64> {
    let count = labels.len() as f64;
    let observed = labels.iter().filter(|(a, b)| a == b).count() as f64 / count;
    let mut shares: BTreeMap<usize, [f64; 2]> = BTreeMap::new();
    for (a, b) in labels {
        shares.entry(*a).or_default()[0] += 1.0 / count;
        shares.entry(*b).or_default()[1] += 1.0 / count;
    }
    let expected: f64 = shares.values().map(|[a, b]| a * b).sum();
    (!labels.is_empty() && expected < 1.0 - 1e-12).then(|| (observed - expected) / (1.0 - expected))
}

/// Krippendorff's alpha for labels without order (Krippendorff 2011, "Computing Krippendorff's alpha-reliability"): each item has the labels
/// that raters gave it, however many. `1 - observed / expected disagreement`, where a pair of labels of an item with `m` of them
/// counts `1 / (m - 1)`. Items with fewer than two labels do not count. None where there is no disagreement to be expected.
pub fn krippendorff_alpha(items: &[Vec<usize>]) -> Option<f64> {
    let mut totals: BTreeMap<usize, f64> = BTreeMap::new();
    let (mut apart, mut count) = (0.0, 0.0);
    for labels in items.iter().filter(|labels| labels.len() >= 2) {
        let weight = 1.0 / (labels.len() - 1) as f64;
        for a in labels {
            *totals.entry(*a).or_default() += 1.0;
            count += 1.0;
            apart += weight * labels.iter().filter(|b| *b != a).count() as f64;
        }
    }
    let expected: f64 = totals.values().map(|total| total * (count - total)).sum();
    (expected > 0.0).then(|| 1.0 - (count - 1.0) * apart / expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn near(got: Option<f64>, expected: f64) {
        let got = got.expect("there is a number");
        assert!((got - expected).abs() < 1e-12, "{got}, expected {expected}");
    }

    const ANNA: [usize; 10] = [0, 0, 1, 2, 3, 0, 1, 1, 2, 0];
    const BERT: [usize; 10] = [0, 1, 1, 2, 0, 0, 1, 2, 2, 0];

    #[test]
    fn kappa_is_that_of_scikit_learn() {
        let both: Vec<_> = ANNA.into_iter().zip(BERT).collect();
        near(cohen_kappa(&both), 0.565_217_391_304_347_8);
        assert_eq!(cohen_kappa(&[]), None);
        assert_eq!(cohen_kappa(&[(1, 1), (1, 1)]), None, "nothing to disagree about");
        near(cohen_kappa(&[(0, 1), (1, 0)]), -1.0);
    }

    #[test]
    fn alpha_is_that_of_krippendorffs_own_example() {
        // Three raters, with holes; the package `krippendorff` says 0.691358 as well.
        let a = [0, 0, 0, 0, 0, 3, 4, 1, 2, 1, 1, 3, 3, 0, 3];
        let b = [1, 0, 2, 1, 3, 3, 4, 3, 0, 0, 0, 0, 0, 0, 0];
        let c = [0, 0, 2, 1, 3, 4, 4, 0, 2, 1, 1, 3, 3, 0, 4];
        let item = |at: usize| [a[at], b[at], c[at]].into_iter().filter(|label| *label > 0).collect();
        near(krippendorff_alpha(&(0..15).map(item).collect::<Vec<_>>()), 0.691_358_024_691_358);
        let both: Vec<_> = ANNA.into_iter().zip(BERT).map(|(a, b)| vec![a, b]).collect();
        near(krippendorff_alpha(&both), 0.583_941_605_839_416);
        assert_eq!(krippendorff_alpha(&[vec![1, 1], vec![2]]), None);
    }
}
