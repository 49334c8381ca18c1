//! TER (Snover et al. 2006): edits that turn a text into its reference, per word of the reference, where moving a run of words is one.

use super::edits::edits;
use super::tokenize::tercom;
use super::words::words;
use super::{SACREBLEU, TextMetric, count_of};

/// Translation edit rate in percent; by default sacrebleu's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ter {
    /// Punctuation stands apart from words.
    pub normalized: bool,
    /// Punctuation is left out.
    pub no_punctuation: bool,
    /// Capital letters are other letters.
    pub case_sensitive: bool,
}

impl TextMetric for Ter {
    fn name(&self) -> String {
        "ter".into()
    }

    /// Edits to the nearest reference, and the mean length of all.
    fn statistics(&self, hypothesis: &str, references: &[&str]) -> Vec<f64> {
        let cut =
            |text: &str| tercom(text.trim_end(), self.normalized, self.no_punctuation, self.case_sensitive);
        let written = cut(hypothesis);
        let written = words(&written);
        let (mut fewest, mut length) = (usize::MAX, 0);
        for reference in references {
            let wanted = cut(reference);
            let wanted = words(&wanted);
            fewest = fewest.min(edits(&written, &wanted));
            length += wanted.len();
        }
        vec![fewest as f64, length as f64 / references.len() as f64]
    }

    fn score(&self, sums: &[f64]) -> f64 {
        match (sums[0] > 0.0, sums[1] > 0.0) {
            (_, true) => 100.0 * sums[0] / sums[1],
            (true, false) => 100.0,
            (false, false) => 0.0,
        }
    }

    fn signature(&self, references: Option<usize>) -> String {
        let yes = |is: bool| if is { "yes" } else { "no" };
        format!(
            "nrefs:{}|case:{}|tok:tercom|norm:{}|punct:{}|asian:no|version:{SACREBLEU}",
            count_of(references),
            if self.case_sensitive { "mixed" } else { "lc" },
            yes(self.normalized),
            yes(!self.no_punctuation),
        )
    }

    fn is_error(&self) -> bool {
        true
    }
}
