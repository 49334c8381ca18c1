//! What is taken from runs that were seen for those that were not.

use super::trie::Trie;
use super::{Error, Result};
use serde::{Deserialize, Serialize};

/// The largest count that Katz's way discounts.
const KATZ: usize = 5;

/// How probabilities come of counts. V is the number of tokens, h the context, c a count.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Smoothing {
    /// `(c(h w) + k) / (c(h) + k V)`, of the longest context alone (Lidstone; Laplace with k = 1).
    AddK {
        /// What is added to each count.
        k: f64,
    },
    /// Interpolated Kneser-Ney: of every count a discount is taken, and shared out by the next shorter context, whose counts are
    /// of different tokens before a run; at the end evenly.
    KneserNey {
        /// Of each length; by the shares of runs that occur once and twice if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        discount: Option<f64>,
    },
    /// The same with discounts of their own for counts of one, of two, and of three and more (Chen and Goodman 1998).
    ModifiedKneserNey,
    /// Back-off (Katz 1987): `d(c) c(h w) / c(h)` where the run was seen, with Good and Turing's discounts of counts up to 5, and else
    /// what the next shorter context says, times what makes the sum one.
    Katz,
    /// `c(h w) / c(h)` where the run was seen, and else `factor` times what the next shorter context says (Brants et al. 2007).
    /// These scores do not sum to one.
    StupidBackoff {
        /// Of each step back.
        factor: f64,
    },
}

impl Smoothing {
    /// Counts of shorter runs are of what stands before them.
    pub fn counts_what_stands_before(&self) -> bool {
        matches!(self, Smoothing::KneserNey { .. } | Smoothing::ModifiedKneserNey)
    }

    /// Scores are probabilities.
    pub fn sums_to_one(&self) -> bool {
        !matches!(self, Smoothing::StupidBackoff { .. })
    }

    /// Name with its settings.
    pub fn describe(&self) -> String {
        match self {
            Smoothing::AddK { k } => format!("add-k, k = {k}"),
            Smoothing::KneserNey { discount: None } => "Kneser-Ney".into(),
            Smoothing::KneserNey { discount: Some(discount) } => format!("Kneser-Ney, discount {discount}"),
            Smoothing::ModifiedKneserNey => "modified Kneser-Ney".into(),
            Smoothing::Katz => "Katz back-off".into(),
            Smoothing::StupidBackoff { factor } => format!("stupid back-off, factor {factor}"),
        }
    }

    /// Refuses settings out of range.
    pub fn check(&self) -> Result<()> {
        let (setting, got, good, expected) = match *self {
            Smoothing::AddK { k } => ("k", k, k.is_finite() && k > 0.0, "above zero"),
            Smoothing::KneserNey { discount: Some(d) } => {
                ("discount", d, d > 0.0 && d <= 1.0, "above 0 and at most 1")
            }
            Smoothing::StupidBackoff { factor } => {
                ("factor", factor, factor > 0.0 && factor <= 1.0, "above 0 and at most 1")
            }
            Smoothing::KneserNey { discount: None } | Smoothing::ModifiedKneserNey | Smoothing::Katz => {
                return Ok(());
            }
        };
        if good { Ok(()) } else { Err(Error::Setting { setting, expected, got: got.to_string() }) }
    }

    /// Different counts that have discounts of their own.
    pub(super) fn discounted(&self) -> usize {
        if *self == Smoothing::Katz { KATZ + 1 } else { 3 }
    }

    /// What is taken of counts of one, of two .., the last also of all that are larger, for each length of runs.
    pub(super) fn discounts(&self, trie: &Trie) -> Vec<Vec<f64>> {
        let of_level = |level: &super::trie::Level| {
            // How many runs have counts of one to six.
            let mut seen = [0f64; KATZ + 1];
            for &count in level.counts.iter().filter(|&&count| (1..=KATZ as u32 + 1).contains(&count)) {
                seen[count as usize - 1] += 1.0;
            }
            match self {
                Smoothing::KneserNey { discount } => vec![discount.unwrap_or_else(|| plain(&seen)); 3],
                Smoothing::ModifiedKneserNey => modified(&seen).to_vec(),
                Smoothing::Katz => good_turing(&seen),
                Smoothing::AddK { .. } | Smoothing::StupidBackoff { .. } => vec![0.0; 3],
            }
        };
        trie.levels.iter().map(of_level).collect()
    }
}

/// n1 / (n1 + 2 n2); a half where no run occurs once or twice, so that something is left for what was not seen.
fn plain(n: &[f64]) -> f64 {
    let (n1, n2) = (n[0], n[1]);
    if n1 > 0.0 && n2 > 0.0 { n1 / (n1 + 2.0 * n2) } else { 0.5 }
}

/// i - (i + 1) Y n(i+1) / n(i), with Y the discount above; the fixed ones of KenLM where the counts of a small text give none.
fn modified(n: &[f64]) -> [f64; 3] {
    const FIXED: [f64; 3] = [0.5, 1.0, 1.5];
    if n[..4].contains(&0.0) {
        return FIXED;
    }
    let y = plain(n);
    let found = [1, 2, 3].map(|i| i as f64 - (i as f64 + 1.0) * y * n[i] / n[i - 1]);
    let good = found.iter().zip(1..).all(|(d, i)| *d > 0.0 && *d <= f64::from(i));
    if good { found } else { FIXED }
}

/// `c (1 - d(c))` with `d(c) = ((c + 1) n(c+1) / (c n(c)) - q) / (1 - q)` and `q = (k + 1) n(k+1) / n(1)`, and nothing of counts above
/// k. That is 5, or the largest below it whose next count occurs; a `d` out of range takes nothing, as SRILM has it.
fn good_turing(n: &[f64]) -> Vec<f64> {
    let mut taken = vec![0.0; n.len()];
    let Some(k) = (1..n.len()).rev().find(|&k| n[k] > 0.0).filter(|_| n[0] > 0.0) else { return taken };
    let q = (k + 1) as f64 * n[k] / n[0];
    for c in (1..=k).filter(|&c| n[c - 1] > 0.0) {
        let ratio = (c + 1) as f64 * n[c] / (c as f64 * n[c - 1]);
        let d = (ratio - q) / (1.0 - q);
        if ratio <= 1.0 && d > 0.0 && d <= 1.0 {
            taken[c - 1] = c as f64 * (1.0 - d);
        }
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn discounts_are_those_of_the_papers_and_fixed_where_counts_are_too_few() {
        // Y = 10 / 18; 1 - 2 Y 4/10, 2 - 3 Y 3/4, 3 - 4 Y 2/3.
        let got = modified(&[10.0, 4.0, 3.0, 2.0]);
        let expected = [0.5555555555555556, 0.75, 1.5185185185185186];
        got.iter().zip(expected).for_each(|(got, expected)| assert!((got - expected).abs() < 1e-12));
        assert_eq!(modified(&[10.0, 4.0, 0.0, 2.0]), [0.5, 1.0, 1.5]);
        assert_eq!((plain(&[3.0, 1.0, 0.0, 0.0]), plain(&[3.0, 0.0, 0.0, 0.0])), (0.6, 0.5));
    }

    #[test]
    fn good_and_turings_discounts_take_nothing_where_counts_of_counts_are_missing_or_absurd() {
        // q = 6 * 1/60 = 0.1; d(1) = (2 * 20/60 - q) / 0.9, d(2) = (3 * 10 / (2 * 20) - q) / 0.9 ..
        let got = good_turing(&[60.0, 20.0, 10.0, 6.0, 4.0, 1.0]);
        let d = [17.0 / 27.0, 13.0 / 18.0, 7.0 / 9.0, 11.0 / 15.0 / 0.9, 0.2 / 0.9];
        let expected =
            [1.0 - d[0], 2.0 - 2.0 * d[1], 3.0 - 3.0 * d[2], 4.0 - 4.0 * d[3], 5.0 - 5.0 * d[4], 0.0];
        got.iter()
            .zip(expected)
            .for_each(|(got, expected)| assert!((got - expected).abs() < 1e-12, "{got:?}"));
        assert_eq!(good_turing(&[0.0, 3.0, 1.0, 1.0, 1.0, 1.0]), [0.0; 6]);
        assert_eq!(good_turing(&[5.0, 0.0, 0.0, 0.0, 0.0, 0.0]), [0.0; 6]);
        // Nothing occurs four times and more: k = 2; there are as many twos as threes, so that twos would grow.
        let few = good_turing(&[10.0, 2.0, 2.0, 0.0, 0.0, 0.0]);
        assert!(few[0] == 0.0 && few[1..] == [0.0; 5], "{few:?}");
    }

    #[test]
    fn settings_out_of_range_are_refused_by_name() {
        for smoothing in [
            Smoothing::AddK { k: 0.0 },
            Smoothing::AddK { k: f64::NAN },
            Smoothing::KneserNey { discount: Some(1.5) },
            Smoothing::StupidBackoff { factor: -0.4 },
        ] {
            assert!(matches!(smoothing.check(), Err(Error::Setting { .. })), "{smoothing:?}");
        }
        assert!(Smoothing::ModifiedKneserNey.check().is_ok());
    }
}
