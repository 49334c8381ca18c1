//! How well a model classifies: loss, accuracy, F1, Matthews' coefficient, correlations, as scikit-learn and SciPy count them.

use super::classes::{Classes, Target};
use super::spans::SpanCount;
use crate::metrics::classes::{accuracy, f1, macro_f1, matthews};
use crate::metrics::correlation::{pearson, spearman};
use crate::model::Labels;

/// What was measured over some examples.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scores {
    /// Mean loss: of examples, or of tags that count.
    pub loss: f64,
    /// Examples.
    pub examples: usize,
    /// Other figures by their names.
    pub figures: Vec<(&'static str, f64)>,
}

impl Scores {
    /// The figure of that name.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.figures.iter().find(|(own, _)| *own == name).map(|(_, figure)| *figure)
    }

    /// The figures in words, behind a loss.
    pub fn describe(&self) -> String {
        self.figures
            .iter()
            .map(|(name, figure)| format!(", {} {figure:.4}", name.replace('_', " ")))
            .collect()
    }
}

/// Gathers what a model said of examples.
#[derive(Clone, Debug)]
pub struct Tally<'a> {
    classes: &'a Classes,
    examples: usize,
    loss: f64,
    counted: usize,
    /// Right and guessed classes, of texts or of tags.
    pairs: Vec<[usize; 2]>,
    /// For labels that are sets: right and guessed, class by class.
    sets: Vec<(Vec<bool>, Vec<bool>)>,
    /// Of a regression: right and guessed numbers.
    numbers: Vec<[f64; 2]>,
    spans: Option<SpanCount>,
}

impl<'a> Tally<'a> {
    /// Nothing yet.
    pub fn new(classes: &'a Classes) -> Tally<'a> {
        Tally {
            classes,
            examples: 0,
            loss: 0.0,
            counted: 0,
            pairs: vec![],
            sets: vec![],
            numbers: vec![],
            spans: None,
        }
    }

    /// Adds an example: the model's scores of it, one for each class, or as many for each token, and what is right.
    pub fn add(&mut self, scores: &[f32], target: &Target) {
        self.examples += 1;
        match target {
            Target::Class(right) => self.add_class(scores, *right),
            // That is counted elsewhere, over whole batches.
            Target::Alike => {}
            Target::Tags(tags) => {
                let width = self.classes.names.len();
                let (mut right, mut guessed) = (vec![], vec![]);
                for (row, tag) in scores.chunks(width).zip(tags) {
                    if let Some(tag) = *tag {
                        self.add_class(row, tag);
                        right.push(self.classes.names[tag].as_str());
                        guessed.push(self.classes.names[largest(row)].as_str());
                    }
                }
                self.spans.get_or_insert_default().add(&right, &guessed);
            }
            Target::Numbers(right) => {
                let all = scores.iter().zip(right).map(|(&x, &y)| (f64::from(x), f64::from(y)));
                if self.classes.labels == Labels::Any {
                    let loss = |(x, y): (f64, f64)| x.max(0.0) - x * y + (-x.abs()).exp().ln_1p();
                    self.loss += all.map(loss).sum::<f64>();
                    let set = |list: &[f32], over: f32| list.iter().map(|&x| x > over).collect::<Vec<_>>();
                    self.sets.push((set(right, 0.5), set(scores, 0.0)));
                } else {
                    self.loss += all.clone().map(|(x, y)| (x - y).powi(2)).sum::<f64>();
                    self.numbers.extend(all.map(|(x, y)| [y, x]));
                }
                self.counted += right.len();
            }
        }
    }

    fn add_class(&mut self, scores: &[f32], right: usize) {
        let most = scores.iter().fold(f32::NEG_INFINITY, |most, &x| most.max(x));
        let sum: f64 = scores.iter().map(|&x| f64::from(x - most).exp()).sum();
        self.loss += sum.ln() - f64::from(scores[right] - most);
        self.counted += 1;
        self.pairs.push([right, largest(scores)]);
    }

    /// All figures.
    pub fn finish(self) -> Scores {
        let classes = self.classes.names.len();
        let mut figures = vec![];
        if let Some(spans) = &self.spans {
            figures.extend(spans.figures());
            figures.push(("accuracy", accuracy(&self.pairs)));
        } else if !self.pairs.is_empty() {
            figures.push(("accuracy", accuracy(&self.pairs)));
            figures.push(("macro_f1", macro_f1(&self.pairs, classes)));
            figures.push(("matthews", matthews(&self.pairs, classes)));
        }
        if !self.sets.is_empty() {
            figures.extend(of_sets(&self.sets, classes));
        }
        if !self.numbers.is_empty() {
            figures.push(("mean_squared_error", self.loss / self.counted as f64));
            if classes == 1 {
                figures.push(("pearson", pearson(&self.numbers)));
                figures.push(("spearman", spearman(&self.numbers)));
            }
        }
        Scores { loss: self.loss / self.counted as f64, examples: self.examples, figures }
    }
}

/// The first of the largest.
pub fn largest(scores: &[f32]) -> usize {
    let better = |best: usize, at: usize| if scores[at] > scores[best] { at } else { best };
    (0..scores.len()).fold(0, better)
}

fn of_sets(sets: &[(Vec<bool>, Vec<bool>)], classes: usize) -> [(&'static str, f64); 3] {
    let mut counts = vec![[0usize; 3]; classes];
    for (right, guessed) in sets {
        for (count, (&right, &guessed)) in counts.iter_mut().zip(right.iter().zip(guessed)) {
            count[0] += usize::from(right && guessed);
            count[1] += usize::from(right);
            count[2] += usize::from(guessed);
        }
    }
    let all = counts.iter().fold([0; 3], |sum, count| [0, 1, 2].map(|at| sum[at] + count[at]));
    let whole = sets.iter().filter(|(right, guessed)| right == guessed).count() as f64;
    let macro_f1 = counts.iter().map(f1).sum::<f64>() / classes as f64;
    [("accuracy", whole / sets.len() as f64), ("micro_f1", f1(&all)), ("macro_f1", macro_f1)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(got: f64, expected: f64) {
        assert!((got - expected).abs() < 1e-12, "{got}, expected {expected}");
    }

    #[test]
    fn figures_of_classes_are_those_of_scikit_learn() {
        // y = [0, 1, 2, 2, 1, 0, 1], p = [0, 2, 2, 1, 1, 0, 0]: recall and precision by hand.
        let pairs = [[0, 0], [1, 2], [2, 2], [2, 1], [1, 1], [0, 0], [1, 0]];
        near(accuracy(&pairs), 4.0 / 7.0);
        near(macro_f1(&pairs, 5), (0.8 + 0.4 + 0.5) / 3.0);
        // Covariance 4 * 7 - (2 * 3 + 3 * 2 + 2 * 2) = 12; spreads 49 - 17 on both sides.
        near(matthews(&pairs, 3), 12.0 / 32.0);
        near(matthews(&[[0, 0], [1, 0]], 2), 0.0);
    }

    #[test]
    fn loss_of_a_tally_is_the_mean_cross_entropy() {
        let classes = Classes { names: vec!["a".into(), "b".into()], labels: Labels::One };
        let mut tally = Tally::new(&classes);
        tally.add(&[0.0, 0.0], &Target::Class(1));
        tally.add(&[1.0, 3.0], &Target::Class(1));
        let scores = tally.finish();
        near(scores.loss, (2f64.ln() + (-2f64).exp().ln_1p()) / 2.0);
        assert_eq!((scores.examples, scores.get("accuracy")), (2, Some(0.5)));
    }

    #[test]
    fn sets_count_whole_and_by_class() {
        let classes = Classes { names: vec!["a".into(), "b".into(), "c".into()], labels: Labels::Any };
        let mut tally = Tally::new(&classes);
        tally.add(&[1.0, -1.0, -1.0], &Target::Numbers(vec![1.0, 0.0, 0.0]));
        tally.add(&[1.0, 1.0, -1.0], &Target::Numbers(vec![1.0, 0.0, 0.0]));
        let scores = tally.finish();
        assert_eq!(scores.get("accuracy"), Some(0.5));
        near(scores.get("micro_f1").unwrap(), 4.0 / 5.0);
        near(scores.get("macro_f1").unwrap(), 1.0 / 3.0);
        near(scores.loss, (5.0 * (-1f64).exp().ln_1p() + (1.0 + (-1f64).exp().ln_1p())) / 6.0);
    }

    #[test]
    fn correlations_are_those_of_numbers_and_of_ranks() {
        let pairs = [[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]];
        near(pearson(&pairs), 1.0);
        let pairs = [[1.0, 10.0], [2.0, 10.0], [3.0, 5.0], [4.0, 100.0]];
        // Ranks 0 1 2 3 and 1.5 1.5 0 3.
        near(spearman(&pairs), 1.5 / (5.0f64 * 4.5).sqrt());
    }

    /// Figures of scikit-learn, SciPy and seqeval over what was dealt at random.
    const GOLDEN: &str = include_str!("../../../kernels-tests/golden/lesson/metrics.json");

    #[test]
    fn every_figure_is_that_of_scikit_learn_scipy_and_seqeval() {
        let golden: serde_json::Value = serde_json::from_str(GOLDEN).unwrap();
        let is = |name: &str, got: f64| near(got, golden[name].as_f64().unwrap());
        let whole = |name: &str| serde_json::from_value::<Vec<usize>>(golden[name].clone()).unwrap();
        let pairs: Vec<_> = whole("y").into_iter().zip(whole("p")).map(|(y, p)| [y, p]).collect();
        is("accuracy", accuracy(&pairs));
        is("macro_f1", macro_f1(&pairs, 6));
        is("matthews", matthews(&pairs, 6));
        let rows = |name: &str| {
            let all: Vec<Vec<u8>> = serde_json::from_value(golden[name].clone()).unwrap();
            all.into_iter().map(|row| row.into_iter().map(|x| x > 0).collect::<Vec<bool>>())
        };
        let sets: Vec<_> = rows("right").zip(rows("guessed")).collect();
        let [whole, micro, macro_f1] = of_sets(&sets, 5).map(|(_, figure)| figure);
        is("set_accuracy", whole);
        is("set_micro_f1", micro);
        is("set_macro_f1", macro_f1);
        let floats = |name: &str| serde_json::from_value::<Vec<f64>>(golden[name].clone()).unwrap();
        let pairs: Vec<_> = floats("xs").into_iter().zip(floats("ys")).map(|(x, y)| [x, y]).collect();
        is("pearson", pearson(&pairs));
        is("spearman", spearman(&pairs));
        let tags = |name: &str| serde_json::from_value::<Vec<Vec<String>>>(golden[name].clone()).unwrap();
        let mut spans = SpanCount::default();
        for (right, guessed) in tags("tags").iter().zip(&tags("guessed_tags")) {
            let [right, guessed]: [Vec<&str>; 2] =
                [right, guessed].map(|tags| tags.iter().map(String::as_str).collect());
            spans.add(&right, &guessed);
        }
        let [precision, recall, f1] = spans.figures().map(|(_, figure)| figure);
        is("span_precision", precision);
        is("span_recall", recall);
        is("span_f1", f1);
    }
}
