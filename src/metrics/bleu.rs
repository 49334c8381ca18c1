//! BLEU (Papineni et al. 2002): how many runs of up to four words the references have as well, less what is too short.
//!
//! `100 min(1, exp(1 - r / c)) exp(mean of ln p(n))`, with c words written, r words of the reference nearest in length, and p(n) the
//! share of runs of n words that a reference has. All sums are over the texts; figures and settings are sacrebleu's.

use std::collections::HashMap;

use super::tokenize::Tokenization;
use super::words::{runs, words};
use super::{Error, Result, SACREBLEU, TextMetric, count_of};

/// Runs of up to so many words count.
const ORDER: usize = 4;

/// What becomes of a length of which no run is right (Chen and Cherry 2014).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Smoothing {
    /// The score is zero.
    None,
    /// So many are thought right.
    Floor(f64),
    /// So many are added to those right and to all, of two words and more.
    AddK(f64),
    /// A half for the first length without any, a quarter for the next ..
    #[default]
    Exp,
}

impl Smoothing {
    /// By its name in sacrebleu, with its usual value unless one is given.
    pub fn named(name: &str, value: Option<f64>) -> Result<Smoothing> {
        let smoothing = match name {
            "none" => Smoothing::None,
            "floor" => Smoothing::Floor(value.unwrap_or(0.1)),
            "add-k" => Smoothing::AddK(value.unwrap_or(1.0)),
            "exp" => Smoothing::Exp,
            _ => {
                let expected = "exp, floor, add-k or none";
                return Err(Error::Setting { setting: "smoothing", expected, got: name.into() });
            }
        };
        match (value, smoothing) {
            (Some(value), Smoothing::Floor(_) | Smoothing::AddK(_))
                if !(value.is_finite() && value >= 0.0) =>
            {
                Err(Error::Setting {
                    setting: "smoothing value",
                    expected: "zero or more",
                    got: value.to_string(),
                })
            }
            (Some(value), Smoothing::None | Smoothing::Exp) => Err(Error::Setting {
                setting: "smoothing value",
                expected: "none beside exp and none",
                got: value.to_string(),
            }),
            _ => Ok(smoothing),
        }
    }

    fn signature(self) -> String {
        match self {
            Smoothing::None => "none".into(),
            Smoothing::Floor(value) => format!("floor[{value:.2}]"),
            Smoothing::AddK(value) => format!("add-k[{value:.2}]"),
            Smoothing::Exp => "exp".into(),
        }
    }
}

/// BLEU with its settings; by default sacrebleu's.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Bleu {
    /// How words are made.
    pub tokenization: Tokenization,
    /// Where no run of a length is right.
    pub smoothing: Smoothing,
    /// All letters are small.
    pub lowercase: bool,
    /// Lengths that a text is too short for do not count: for single sentences.
    pub effective_order: bool,
}

impl Bleu {
    fn words_of(&self, text: &str) -> String {
        let text = text.trim_end();
        match self.lowercase {
            true => self.tokenization.apply(&text.to_lowercase()),
            false => self.tokenization.apply(text),
        }
    }

    /// Precisions in percent, and how many lengths count.
    fn precisions(&self, right: &[f64], all: &[f64]) -> ([f64; ORDER], usize) {
        let (mut precisions, mut order, mut halves) = ([0.0; ORDER], ORDER, 1.0);
        for n in 0..ORDER {
            let more = match self.smoothing {
                Smoothing::AddK(k) if n > 0 => k,
                _ => 0.0,
            };
            let (right, all) = (right[n] + more, all[n] + more);
            if all == 0.0 {
                break;
            }
            if self.effective_order {
                order = n + 1;
            }
            precisions[n] = match self.smoothing {
                _ if right > 0.0 => 100.0 * right / all,
                Smoothing::Exp => {
                    halves *= 2.0;
                    100.0 / (halves * all)
                }
                Smoothing::Floor(value) => 100.0 * value / all,
                Smoothing::None | Smoothing::AddK(_) => 0.0,
            };
        }
        (precisions, order)
    }

    /// Precisions in percent, the penalty for what is too short, and words written and wanted.
    pub fn parts(&self, sums: &[f64]) -> ([f64; ORDER], f64, [usize; 2]) {
        let (written, wanted) = (sums[0], sums[1]);
        let penalty = match written < wanted {
            true if written == 0.0 => 0.0,
            true => (1.0 - wanted / written).exp(),
            false => 1.0,
        };
        let right = &sums[2..2 + ORDER];
        let precisions = match right.iter().any(|right| *right > 0.0) {
            true => self.precisions(right, &sums[2 + ORDER..]).0,
            false => [0.0; ORDER],
        };
        (precisions, penalty, [written as usize, wanted as usize])
    }
}

impl TextMetric for Bleu {
    fn name(&self) -> String {
        "bleu".into()
    }

    /// Words written, words of the nearest reference, runs that are right of 1 to 4 words, and all runs.
    fn statistics(&self, hypothesis: &str, references: &[&str]) -> Vec<f64> {
        let text = self.words_of(hypothesis);
        let (written, texts) =
            (words(&text), references.iter().map(|text| self.words_of(text)).collect::<Vec<_>>());
        let references: Vec<Vec<&str>> = texts.iter().map(|text| words(text)).collect();
        let lengths = references.iter().map(Vec::len);
        // Of two as near the shorter.
        let nearest = lengths.min_by_key(|length| (length.abs_diff(written.len()), *length)).unwrap_or(0);
        let (mut right, mut all) = (vec![], vec![]);
        for n in 1..=ORDER {
            let mut most: HashMap<&[&str], usize> = HashMap::new();
            for (run, count) in references.iter().flat_map(|words| runs(words, n)) {
                let most = most.entry(run).or_insert(0);
                *most = count.max(*most);
            }
            let written = runs(&written, n);
            right.push(super::words::shared(&written, &most) as f64);
            all.push(written.values().sum::<usize>() as f64);
        }
        [vec![written.len() as f64, nearest as f64], right, all].concat()
    }

    fn score(&self, sums: &[f64]) -> f64 {
        let right = &sums[2..2 + ORDER];
        if !right.iter().any(|right| *right > 0.0) {
            return 0.0;
        }
        let (precisions, order) = self.precisions(right, &sums[2 + ORDER..]);
        let (_, penalty, _) = self.parts(sums);
        let logs: f64 = precisions[..order].iter().map(|precision| precision.ln()).sum();
        penalty * (logs / order as f64).exp()
    }

    fn details(&self, sums: &[f64]) -> Vec<(&'static str, Vec<f64>)> {
        let (precisions, penalty, lengths) = self.parts(sums);
        vec![
            ("precisions", precisions.to_vec()),
            ("brevity_penalty", vec![penalty]),
            ("lengths", lengths.map(|length| length as f64).to_vec()),
        ]
    }

    fn signature(&self, references: Option<usize>) -> String {
        format!(
            "nrefs:{}|case:{}|eff:{}|tok:{}|smooth:{}|version:{SACREBLEU}",
            count_of(references),
            if self.lowercase { "lc" } else { "mixed" },
            if self.effective_order { "yes" } else { "no" },
            self.tokenization.name(),
            self.smoothing.signature(),
        )
    }
}
