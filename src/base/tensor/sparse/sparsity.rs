//! How much is removed: a share, or so many of each few consecutive inputs.

use super::Error;
use std::fmt;
use std::str::FromStr;

/// So many of each few consecutive inputs stay: 2:4 keeps 2 of each 4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// Weights that stay.
    pub keep: usize,
    /// Weights of a group.
    pub of: usize,
}

impl FromStr for Pattern {
    type Err = Error;

    fn from_str(text: &str) -> Result<Pattern, Error> {
        let wrong = || Error::Pattern { got: text.to_string() };
        let (keep, of) = text.split_once(':').ok_or_else(wrong)?;
        let number = |text: &str| text.trim().parse::<usize>().map_err(|_| wrong());
        let pattern = Pattern { keep: number(keep)?, of: number(of)? };
        if pattern.keep == 0 || pattern.keep >= pattern.of { Err(wrong()) } else { Ok(pattern) }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}:{}", self.keep, self.of)
    }
}

impl Pattern {
    /// Share that is removed.
    pub fn sparsity(self) -> f64 {
        1.0 - self.keep as f64 / self.of as f64
    }

    /// Refuses inputs that are no whole groups.
    pub fn expect_fit(self, inputs: usize) -> Result<(), Error> {
        match inputs.is_multiple_of(self.of) {
            true => Ok(()),
            false => Err(Error::Indivisible { inputs, pattern: self }),
        }
    }
}

/// How much of a layer is removed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sparsity {
    /// This share of the weights.
    Share(f64),
    /// All but so many of each few consecutive inputs.
    Pattern(Pattern),
}

impl Sparsity {
    /// Refuses a share out of 0..1.
    pub fn check(self) -> Result<(), Error> {
        match self {
            Sparsity::Share(got) if !(0.0..1.0).contains(&got) => Err(Error::Sparsity { got }),
            _ => Ok(()),
        }
    }

    /// Share that is removed.
    pub fn share(self) -> f64 {
        match self {
            Sparsity::Share(share) => share,
            Sparsity::Pattern(pattern) => pattern.sparsity(),
        }
    }
}

/// Weights that a share of `count` is, rounded down.
pub fn count_of(share: f64, count: usize) -> usize {
    (share * count as f64) as usize
}

impl fmt::Display for Sparsity {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Sparsity::Share(share) => write!(f, "{share}"),
            Sparsity::Pattern(pattern) => pattern.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_read_and_written() {
        for (text, sparsity) in [("2:4", 0.5), ("4:8", 0.5), ("1:4", 0.75)] {
            let pattern: Pattern = text.parse().unwrap();
            assert_eq!((pattern.to_string().as_str(), pattern.sparsity()), (text, sparsity));
        }
        for wrong in ["", "2", "4:2", "0:4", "4:4", "2:-4", "a:b", "2:4:8"] {
            assert_eq!(wrong.parse::<Pattern>(), Err(Error::Pattern { got: wrong.to_string() }));
        }
    }

    #[test]
    fn shares_out_of_range_are_refused() {
        assert!(Sparsity::Share(0.0).check().is_ok());
        for wrong in [1.0, -0.1, 50.0, f64::NAN] {
            assert!(Sparsity::Share(wrong).check().is_err(), "{wrong}");
        }
    }
}
