//! Near duplicates by MinHash and locality-sensitive hashing (Broder 1997; Indyk and Motwani 1998).
//!
//! A text is the set of its shingles: every run of some words or characters. Of two sets, the share of permutations under which both
//! have the same least element estimates their Jaccard similarity, with a standard error of `sqrt(j (1 - j) / permutations)`.
//! Signatures are cut into bands; texts that agree in a whole band are compared, all others never are.

use std::collections::HashMap;

use super::words::{Ready, chain, hash};
use crate::data::random::Random;

/// Of what a text's shingles are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shingle {
    /// So many words in a row.
    Words(usize),
    /// So many characters in a row.
    Characters(usize),
}

impl Shingle {
    /// Hashes of the shingles of a normalised text, each once. A text shorter than one is a shingle itself.
    pub fn of(self, text: &str) -> Vec<u32> {
        let (units, length): (Vec<u64>, usize) = match self {
            Shingle::Words(length) => (text.split(' ').map(|word| hash(word.as_bytes())).collect(), length),
            Shingle::Characters(length) => {
                (text.chars().map(|c| hash(&u32::from(c).to_le_bytes())).collect(), length)
            }
        };
        let length = length.clamp(1, units.len().max(1));
        let mut all: Vec<u32> = units.windows(length).map(|run| (chain(run) >> 32) as u32).collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

/// The least hash of a set under each permutation.
pub type Signature = Box<[u32]>;

/// A family of permutations, the same in every run.
#[derive(Clone, Debug)]
pub struct MinHash {
    /// Multiplier and addend of each: `(a x + b) >> 32` is strongly universal for 32-bit `x` (Dietzfelbinger 1996).
    factors: Vec<[u64; 2]>,
}

impl MinHash {
    /// So many permutations.
    pub fn new(permutations: usize) -> MinHash {
        let mut random = Random::new(0x006d_696e_6861_7368, 0);
        MinHash { factors: (0..permutations).map(|_| [random.word(), random.word()]).collect() }
    }

    /// The signature of a set.
    pub fn signature(&self, set: &[u32]) -> Signature {
        let least = |&[a, b]: &[u64; 2]| {
            let image = |&x: &u32| (a.wrapping_mul(u64::from(x)).wrapping_add(b) >> 32) as u32;
            set.iter().map(image).min().unwrap_or(u32::MAX)
        };
        self.factors.iter().map(least).collect()
    }
}

/// The estimated Jaccard similarity of two sets.
pub fn likeness(a: &[u32], b: &[u32]) -> f64 {
    a.iter().zip(b).filter(|(a, b)| a == b).count() as f64 / a.len() as f64
}

/// Signatures that were kept, found again by their bands.
#[derive(Debug)]
pub struct Index {
    threshold: f64,
    rows: usize,
    /// For each band the newest signature of a hash.
    heads: Vec<HashMap<u64, u32, Ready>>,
    /// For each signature and band the one before with the same hash, or itself.
    before: Vec<u32>,
    signatures: Vec<Signature>,
}

impl Index {
    /// Empty, for signatures of so many permutations.
    pub fn new(threshold: f64, permutations: usize) -> Index {
        let (bands, rows) = bands_of(threshold, permutations);
        let heads = (0..bands).map(|_| HashMap::default()).collect();
        Index { threshold, rows, heads, before: vec![], signatures: vec![] }
    }

    /// Bands, and rows in each.
    pub fn bands(&self) -> (usize, usize) {
        (self.heads.len(), self.rows)
    }

    fn band(&self, signature: &[u32], band: usize) -> u64 {
        let rows = &signature[band * self.rows..(band + 1) * self.rows];
        rows.iter().fold(band as u64, |sum, &row| chain(&[sum, u64::from(row)]))
    }

    /// The first kept signature that is at least as near as the threshold, with the estimate.
    pub fn find(&self, signature: &[u32]) -> Option<(usize, f64)> {
        let mut found: Option<(usize, f64)> = None;
        for band in 0..self.heads.len() {
            let mut next = self.heads[band].get(&self.band(signature, band)).copied();
            while let Some(number) = next {
                let at = number as usize;
                let near = likeness(&self.signatures[at], signature);
                if near >= self.threshold && found.is_none_or(|(first, _)| at < first) {
                    found = Some((at, near));
                }
                next = Some(self.before[at * self.heads.len() + band]).filter(|&before| before != number);
            }
        }
        found
    }

    /// Keeps a signature under the next number.
    pub fn keep(&mut self, signature: Signature) {
        let number = u32::try_from(self.signatures.len()).expect("fewer than 2^32 documents");
        for band in 0..self.heads.len() {
            let key = self.band(&signature, band);
            self.before.push(self.heads[band].insert(key, number).unwrap_or(number));
        }
        self.signatures.push(signature);
    }
}

/// Bands and rows for a threshold: those with the least area of pairs that are missed above it, and, counted a tenth since they
/// only cost a comparison, of pairs that are compared in vain below it.
fn bands_of(threshold: f64, permutations: usize) -> (usize, usize) {
    let (mut best, mut least) = ((1, permutations), f64::INFINITY);
    for rows in 1..=permutations {
        let bands = permutations / rows;
        let meet = |likeness: f64| 1.0 - (1.0 - likeness.powi(rows as i32)).powi(bands as i32);
        let area = |from: f64, to: f64, of: &dyn Fn(f64) -> f64| -> f64 {
            let step = (to - from) / 100.0;
            (0..100).map(|i| of(from + (f64::from(i) + 0.5) * step) * step).sum()
        };
        let cost = area(threshold, 1.0, &|s| 1.0 - meet(s)) + 0.1 * area(0.0, threshold, &meet);
        if cost < least {
            (best, least) = ((bands, rows), cost);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two sets with `shared` elements in common and `own` of their own each.
    fn sets(random: &mut Random, shared: usize, own: usize) -> [Vec<u32>; 2] {
        let draw =
            |random: &mut Random, count| -> Vec<u32> { (0..count).map(|_| random.word() as u32).collect() };
        let common = draw(random, shared);
        [0, 1].map(|_| [common.clone(), draw(random, own)].concat())
    }

    #[test]
    fn the_estimate_is_the_true_likeness_within_its_standard_error() {
        let minhash = MinHash::new(128);
        let mut random = Random::new(3, 0);
        for (shared, own) in [(900, 50), (800, 100), (500, 250), (200, 400), (20, 1), (0, 500)] {
            let truth = shared as f64 / (shared + 2 * own) as f64;
            let rounds = 60;
            let (mut sum, mut squares) = (0.0, 0.0);
            for _ in 0..rounds {
                let [a, b] = sets(&mut random, shared, own);
                let off = likeness(&minhash.signature(&a), &minhash.signature(&b)) - truth;
                (sum, squares) = (sum + off, squares + off * off);
            }
            let expected = (truth * (1.0 - truth) / 128.0).sqrt();
            let (mean, spread) = (sum / f64::from(rounds), (squares / f64::from(rounds)).sqrt());
            let tolerance = 4.0 * expected / f64::from(rounds).sqrt() + 1e-9;
            assert!(mean.abs() <= tolerance, "{truth}: {mean} above {tolerance}");
            assert!(spread <= 1.5 * expected + 1e-9, "{truth}: {spread}, expected {expected}");
        }
    }

    #[test]
    fn pairs_above_the_threshold_meet_in_a_band_and_those_far_below_are_not_reported() {
        for (threshold, permutations) in [(0.8, 128), (0.5, 128), (0.9, 64)] {
            let minhash = MinHash::new(permutations);
            let mut random = Random::new(5, 0);
            let mut recall = |likeness: f64| {
                let shared = (1000.0 * likeness) as usize;
                let pairs: Vec<_> =
                    (0..200).map(|_| sets(&mut random, shared, (1000 - shared) / 2)).collect();
                let mut index = Index::new(threshold, permutations);
                pairs.iter().for_each(|[a, _]| index.keep(minhash.signature(a)));
                let found = |(number, pair): (usize, &[Vec<u32>; 2])| {
                    index.find(&minhash.signature(&pair[1])).is_some_and(|(at, _)| at == number)
                };
                pairs.iter().enumerate().filter(|(number, pair)| found((*number, *pair))).count()
            };
            let above = recall(threshold + (1.0 - threshold) * 0.6);
            let below = recall(threshold - 0.25);
            assert!(above >= 190 && below <= 2, "{threshold}: {above} above, {below} below of 200");
        }
    }

    #[test]
    fn shingles_are_runs_and_short_texts_are_their_own() {
        assert_eq!(Shingle::Words(2).of("a b c a b").len(), 3);
        assert_eq!(Shingle::Words(5).of("a b").len(), 1);
        assert_eq!(Shingle::Characters(3).of("abcabc").len(), 3);
        assert_eq!(Shingle::Characters(3).of("").len(), 0);
        assert_eq!(likeness(&MinHash::new(16).signature(&[]), &MinHash::new(16).signature(&[])), 1.0);
    }

    #[test]
    fn the_first_of_several_near_ones_is_found() {
        let minhash = MinHash::new(64);
        let mut index = Index::new(0.5, 64);
        let set: Vec<u32> = (0..100).map(|n| n * 7919).collect();
        for cut in [100, 90, 80] {
            index.keep(minhash.signature(&set[..cut]));
        }
        assert_eq!(index.find(&minhash.signature(&set[..85])).unwrap().0, 0);
        let (bands, rows) = index.bands();
        assert!(bands * rows <= 64 && bands > 1);
    }
}
