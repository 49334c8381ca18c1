//! Windows of several sources by weight.
//!
//! Window `n` of a run comes from the source that a random number of (seed, n) falls to, in proportion to the weights. Each source has
//! epochs of its own: it gives every window once before it gives one again. Both follow from `n` alone, so that a checkpoint needs no more.

use crate::data::random::{Random, mix};
use crate::data::store::Stretch;
use crate::data::windows::Epoch;
use crate::data::{Error, Result};

/// Keeps the choice of sources apart from the other draws of a seed.
const CHOICES: u64 = 0x006d_6978_7475_7265;

/// Sources to draw windows from.
#[derive(Clone, Debug)]
pub(super) struct Mixture {
    lots: Vec<Lot>,
    /// Up to here a random number falls to each, of `0.0..1.0`.
    until: Vec<f64>,
    context: usize,
    seed: u64,
}

/// One source.
#[derive(Clone, Debug)]
struct Lot {
    /// Its first token among all.
    start: usize,
    tokens: usize,
    seed: u64,
    epoch: Epoch,
    position: u64,
}

/// Shares of the windows that each source gives: by weight where any has one (and one for those without), else by tokens.
pub fn shares(stretches: &[Stretch]) -> Vec<f64> {
    let weighs = stretches.iter().any(|stretch| stretch.weight.is_some());
    let of = |stretch: &Stretch| match weighs {
        true => stretch.weight.unwrap_or(1.0),
        false => stretch.tokens.len() as f64,
    };
    let sum: f64 = stretches.iter().map(of).sum();
    stretches.iter().map(|stretch| of(stretch) / sum.max(f64::MIN_POSITIVE)).collect()
}

/// Where the part of each of some shares ends in `0.0..1.0`.
pub(super) fn bounds(shares: &[f64]) -> Vec<f64> {
    let mut sum = 0.0;
    let mut until: Vec<f64> = shares
        .iter()
        .map(|share| {
            sum += share;
            sum
        })
        .collect();
    if let Some(last) = until.last_mut() {
        // Whatever rounding has left over.
        *last = 1.0;
    }
    until
}

/// Which source window `number` of a seed comes from.
pub(super) fn choose(seed: u64, number: u64, until: &[f64]) -> usize {
    let drawn = Random::new(seed ^ CHOICES, number).share();
    until.iter().position(|&until| drawn < until).expect("the last one reaches to one")
}

impl Mixture {
    /// The mixture of sources with weights. Each must have a window.
    pub(super) fn new(stretches: &[Stretch], context: usize, seed: u64) -> Result<Mixture> {
        let lot = |(number, stretch): (u64, &Stretch)| {
            let (tokens, needed) = (stretch.tokens.len(), context + 1);
            if tokens < needed {
                return Err(Error::SourceTooShort { name: stretch.name.clone(), tokens, needed });
            }
            let seed = mix(seed ^ mix(CHOICES + 1 + number));
            let epoch = Epoch::new(0, seed, tokens, context);
            Ok(Lot { start: stretch.tokens.start, tokens, seed, epoch, position: 0 })
        };
        let lots = (0..).zip(stretches).map(lot).collect::<Result<_>>()?;
        Ok(Mixture { lots, until: bounds(&shares(stretches)), context, seed })
    }

    /// Where window `number` begins; windows are asked for one after the other.
    pub(super) fn next_start(&mut self, number: u64) -> usize {
        let chosen = choose(self.seed, number, &self.until);
        let (context, lot) = (self.context, &mut self.lots[chosen]);
        if lot.position == lot.epoch.windows {
            lot.go_on(context);
        }
        lot.position += 1;
        lot.start + lot.epoch.start(lot.position - 1, context)
    }

    /// Goes to where so many windows are drawn.
    pub(super) fn seek(&mut self, drawn: u64) {
        let mut counts = vec![0; self.lots.len()];
        (0..drawn).for_each(|number| counts[choose(self.seed, number, &self.until)] += 1);
        for (lot, mut count) in self.lots.iter_mut().zip(counts) {
            lot.epoch = Epoch::new(0, lot.seed, lot.tokens, self.context);
            while count > lot.epoch.windows {
                count -= lot.epoch.windows;
                lot.go_on(self.context);
            }
            lot.position = count;
        }
    }
}

impl Lot {
    fn go_on(&mut self, context: usize) {
        self.epoch = Epoch::new(self.epoch.number + 1, self.seed, self.tokens, context);
        self.position = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::windows::{Cursor, Sampler};
    use std::collections::BTreeMap;

    fn stretches(sizes: &[(usize, Option<f64>)]) -> Vec<Stretch> {
        let mut start = 0;
        let stretch = |&(tokens, weight): &(usize, Option<f64>)| {
            start += tokens;
            Stretch { name: "source".into(), weight, documents: 1, tokens: start - tokens..start }
        };
        sizes.iter().map(stretch).collect()
    }

    /// Token `n` is `n`.
    fn sampler(sizes: &[(usize, Option<f64>)], context: usize) -> Sampler {
        let stretches = stretches(sizes);
        let all = stretches.last().unwrap().tokens.end as u32;
        Sampler::mixed((0..all).collect::<Vec<_>>(), &stretches, context, 4, 11).unwrap()
    }

    #[test]
    fn sources_are_drawn_in_proportion_to_their_weights_whatever_their_size() {
        let sizes = [(90, Some(3.0)), (4000, Some(1.0)), (500, None)];
        let mut sampler = sampler(&sizes, 8);
        let (mut counts, rounds) = ([0.0; 3], 3000);
        for _ in 0..rounds {
            for row in sampler.next_batch().unwrap().tokens.chunks(8) {
                let (first, last) = (row[0], row[7] + 1);
                let of = [first < 90, (90..4090).contains(&first), first >= 4090];
                // A window never leaves its source, nor does its last target.
                assert!(last < [90, 4090, 4590][of.iter().position(|is| *is).unwrap()]);
                of.iter().zip(&mut counts).for_each(|(is, count)| *count += f64::from(*is));
            }
        }
        let all = f64::from(4 * rounds);
        for (count, share) in counts.iter().zip([0.6, 0.2, 0.2]) {
            let sigma = (share * (1.0 - share) / all).sqrt();
            assert!((count / all - share).abs() < 4.0 * sigma, "{counts:?}");
        }
        assert_eq!(shares(&stretches(&sizes)), [0.6, 0.2, 0.2]);
        assert_eq!(shares(&stretches(&[(300, None), (100, None)])), [0.75, 0.25]);
    }

    #[test]
    fn a_source_gives_each_window_once_before_it_gives_one_again() {
        let mut sampler = sampler(&[(83, Some(1.0)), (400, Some(1.0))], 8);
        let mut seen: BTreeMap<u32, u32> = BTreeMap::new();
        let mut drawn = 0;
        while drawn < 9 {
            for row in sampler.next_batch().unwrap().tokens.chunks(8).filter(|row| row[0] < 83) {
                *seen.entry(row[0]).or_default() += 1;
                drawn += 1;
                assert!(drawn > 9 || seen.values().all(|count| *count == 1), "{seen:?}");
            }
        }
    }

    #[test]
    fn going_on_from_any_cursor_equals_never_stopping() {
        let fresh = || sampler(&[(60, Some(2.0)), (300, None)], 8);
        let mut straight = fresh();
        let run: Vec<_> = (0..60).map(|_| (straight.cursor(), straight.next_batch().unwrap())).collect();
        for (from, (cursor, _)) in run.iter().enumerate() {
            let mut resumed = fresh();
            resumed.seek(cursor.clone()).unwrap();
            for (_, batch) in run[from..].iter().take(9) {
                assert_eq!(&resumed.next_batch().unwrap(), batch);
            }
        }
        assert!(fresh().seek(Cursor::at(1, 0)).is_err());
    }

    #[test]
    fn a_source_without_a_window_is_refused_by_its_name() {
        let short = stretches(&[(100, Some(1.0)), (8, Some(1.0))]);
        let refused = Mixture::new(&short, 8, 0).unwrap_err();
        assert!(matches!(refused, Error::SourceTooShort { tokens: 8, needed: 9, .. }), "{refused}");
    }
}
