//! Text that was damaged, and what is to be made of it again: how encoder-decoders learn from text alone.
//!
//! Both ways are pure functions of the tokens and a stream of random numbers.

use crate::data::pairs::Example;
use crate::data::random::Random;

/// Spans are left out, each in favour of a token of its own, and the target tells what they were (Raffel et al. 2020, section 3.1.4).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spans {
    /// Share of the tokens that is left out.
    pub share: f64,
    /// Tokens in a span, on the mean.
    pub mean: f64,
    /// Token that stands for the first span; those of the others are numbered downwards from it.
    pub first_sentinel: u32,
    /// How many such tokens there are: no more spans are left out.
    pub sentinels: usize,
}

impl Spans {
    /// Tokens left out of `length`, at least one and not all, and the spans they make.
    pub fn counts(&self, length: usize) -> [usize; 2] {
        if length < 2 {
            return [0, 0];
        }
        let lost = ((length as f64 * self.share).round() as usize).clamp(1, length - 1);
        let spans = ((lost as f64 / self.mean).round() as usize).max(1);
        [lost, spans.min(lost).min(length - lost).min(self.sentinels)]
    }

    /// Tokens of the source and of the target for texts of `length`, without marks at their ends.
    pub fn lengths(&self, length: usize) -> [usize; 2] {
        let [lost, spans] = self.counts(length);
        [length - lost + spans, lost + spans]
    }

    /// Damages a text, which begins with a token that stays and ends with a span that is left out.
    pub fn damage(&self, tokens: &[u32], random: &mut Random) -> Example {
        let [lost, spans] = self.counts(tokens.len());
        if spans == 0 {
            return Example { source: tokens.to_vec(), target: vec![] };
        }
        let gone = parts(lost, spans, random);
        let kept = parts(tokens.len() - lost, spans, random);
        let mut example = Example::default();
        let mut rest = tokens;
        for (number, (kept, gone)) in kept.into_iter().zip(gone).enumerate() {
            let sentinel = self.first_sentinel - number as u32;
            let (stays, behind) = rest.split_at(kept);
            let (goes, behind) = behind.split_at(gone);
            example.source.extend_from_slice(stays);
            example.source.push(sentinel);
            example.target.push(sentinel);
            example.target.extend_from_slice(goes);
            rest = behind;
        }
        example
    }
}

/// Cuts `count` into `parts` numbers above zero, each way of doing so as likely as any other.
fn parts(count: usize, parts: usize, random: &mut Random) -> Vec<usize> {
    // Places of the cuts among `count - 1`, without repetition (Floyd's way).
    let mut cuts = std::collections::BTreeSet::new();
    for last in count - parts..count - 1 {
        let place = random.below(last as u64 + 1) as usize;
        if !cuts.insert(place) {
            cuts.insert(last);
        }
    }
    let ends = cuts.into_iter().map(|place| place + 1).chain([count]);
    let mut before = 0;
    ends.map(|end| end - std::mem::replace(&mut before, end)).collect()
}

/// Spans are replaced by a single token each, even empty ones, and sentences are shuffled; the target is the text as it was
/// (Lewis et al. 2020, section 2.2).
#[derive(Clone, Debug, PartialEq)]
pub struct Infilling {
    /// Share of the tokens that is replaced.
    pub share: f64,
    /// Tokens in a span, on the mean of a Poisson distribution.
    pub mean: f64,
    /// The token in place of each span.
    pub mask: u32,
    /// Sentences are put in a random order.
    pub shuffle: bool,
    /// For each token of the vocabulary, whether a sentence ends with it.
    pub ends: Vec<bool>,
}

impl Infilling {
    /// Damages a text.
    pub fn damage(&self, tokens: &[u32], random: &mut Random) -> Example {
        let shuffled = if self.shuffle { self.shuffled(tokens, random) } else { tokens.to_vec() };
        Example { source: self.infilled(&shuffled, random), target: tokens.to_vec() }
    }

    fn shuffled(&self, tokens: &[u32], random: &mut Random) -> Vec<u32> {
        let is_end = |token: &u32| self.ends.get(*token as usize).copied().unwrap_or(false);
        let mut sentences: Vec<&[u32]> = tokens.split_inclusive(is_end).collect();
        for last in (1..sentences.len()).rev() {
            sentences.swap(last, random.below(last as u64 + 1) as usize);
        }
        sentences.concat()
    }

    /// Draws spans until they hold their share of the tokens; no two of them touch, so that each mask stands for one.
    fn infilled(&self, tokens: &[u32], random: &mut Random) -> Vec<u32> {
        let mut due = (tokens.len() as f64 * self.share).round() as usize;
        let mut fate = vec![Fate::Stays; tokens.len()];
        let mut insertions = vec![false; tokens.len() + 1];
        // A crowded text may have no room left for a span: then another place is drawn, but not for ever.
        for _ in 0..8 * tokens.len() {
            if due == 0 {
                break;
            }
            let length = poisson(self.mean, random).min(due).min(tokens.len());
            let start = random.below((tokens.len() - length + 1) as u64) as usize;
            let around = start.saturating_sub(1)..(start + length + 1).min(tokens.len());
            if fate[around].iter().any(|fate| *fate != Fate::Stays) {
                continue;
            }
            if length == 0 {
                insertions[start] = true;
                continue;
            }
            fate[start] = Fate::Begins;
            fate[start + 1..start + length].fill(Fate::Goes);
            due -= length;
        }
        let mut source = vec![];
        for (at, &token) in tokens.iter().enumerate() {
            if insertions[at] && fate[at] == Fate::Stays {
                source.push(self.mask);
            }
            match fate[at] {
                Fate::Stays => source.push(token),
                Fate::Begins => source.push(self.mask),
                Fate::Goes => {}
            }
        }
        if insertions[tokens.len()] {
            source.push(self.mask);
        }
        source
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Stays,
    Begins,
    Goes,
}

/// A draw of a Poisson distribution, by multiplying uniform numbers (Knuth, volume 2, 3.4.1).
fn poisson(mean: f64, random: &mut Random) -> usize {
    let limit = (-mean).exp();
    let mut product = random.share();
    let mut count = 0;
    while product > limit {
        product *= random.share();
        count += 1;
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(count: u32) -> Vec<u32> {
        (0..count).collect()
    }

    #[test]
    fn spans_and_their_sentinels_put_together_are_the_text_again() {
        let spans = Spans { share: 0.15, mean: 3.0, first_sentinel: 999, sentinels: 100 };
        for (seed, length) in [(1, 2), (2, 3), (3, 20), (4, 114), (5, 512)] {
            let text = numbered(length);
            let example = spans.damage(&text, &mut Random::new(seed, 0));
            let [source, target] = spans.lengths(text.len());
            assert_eq!((example.source.len(), example.target.len()), (source, target));
            let mut again = vec![];
            for &token in &example.source {
                if token < 800 {
                    again.push(token);
                    continue;
                }
                let after = example.target.iter().skip_while(|&&t| t != token).skip(1);
                again.extend(after.take_while(|&&t| t < 800));
            }
            assert_eq!(again, text);
        }
    }

    #[test]
    fn as_much_is_left_out_as_the_paper_says() {
        // A text of 568 tokens fills a source of 512 and a target of 114, each with a mark at its end.
        let spans = Spans { share: 0.15, mean: 3.0, first_sentinel: 31_999, sentinels: 100 };
        assert_eq!(spans.counts(568), [85, 28]);
        assert_eq!(spans.lengths(568), [511, 113]);
        assert_eq!(spans.counts(1), [0, 0]);
        assert_eq!(spans.damage(&[7], &mut Random::new(1, 1)).source, [7]);
    }

    #[test]
    fn every_way_to_cut_comes_up_alike() {
        let mut random = Random::new(3, 0);
        let mut seen = std::collections::BTreeMap::new();
        for _ in 0..6000 {
            let cut = parts(5, 3, &mut random);
            assert_eq!(cut.iter().sum::<usize>(), 5);
            *seen.entry(cut).or_insert(0) += 1;
        }
        assert_eq!(seen.len(), 6);
        assert!(seen.values().all(|&count| (850..1150).contains(&count)), "{seen:?}");
    }

    #[test]
    fn masks_stand_for_about_their_share_of_the_text_and_the_target_is_whole() {
        let mut random = Random::new(7, 0);
        let mut ends = vec![false; 400];
        ends.iter_mut().step_by(10).for_each(|end| *end = true);
        let infilling = Infilling { share: 0.3, mean: 3.0, mask: 999, shuffle: false, ends };
        let text = numbered(400);
        let example = infilling.damage(&text, &mut random);
        assert_eq!(example.target, text);
        let kept: Vec<u32> = example.source.iter().copied().filter(|&token| token != 999).collect();
        assert_eq!(kept.len(), 280);
        assert!(kept.windows(2).all(|pair| pair[0] < pair[1]));
        let masks = example.source.len() - kept.len();
        assert!((25..70).contains(&masks), "{masks}");

        let shuffled = Infilling { share: 0.0, shuffle: true, ..infilling }.damage(&text, &mut random);
        let mut sorted = shuffled.source.clone();
        assert_ne!(sorted, text);
        sorted.sort_unstable();
        assert_eq!(sorted, text);
        // Sentences stay whole: 1 to 10, 11 to 20 and so on, and at last 391 to 399.
        let is_end = |token: u32| token.is_multiple_of(10) || token == 399;
        assert!(shuffled.source.windows(2).all(|pair| is_end(pair[0]) || pair[1] == pair[0] + 1));
    }

    #[test]
    fn a_poisson_draw_has_its_mean_and_variance() {
        let mut random = Random::new(11, 0);
        let draws: Vec<f64> = (0..20_000).map(|_| poisson(3.0, &mut random) as f64).collect();
        let mean = draws.iter().sum::<f64>() / 2e4;
        let variance = draws.iter().map(|x| x * x).sum::<f64>() / 2e4 - mean * mean;
        assert!((mean - 3.0).abs() < 0.05 && (variance - 3.0).abs() < 0.15, "{mean} {variance}");
    }
}
