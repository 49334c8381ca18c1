//! How often each run of tokens occurs in a text: a tree of sorted tables.

use rayon::prelude::*;
use std::ops::Range;

/// Runs of one length, sorted by their tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Level {
    /// The last token of each run.
    pub tokens: Vec<u32>,
    /// How often it occurs; under Kneser-Ney, of all lengths but the longest, behind how many different tokens.
    pub counts: Vec<u32>,
    /// Where the runs that are one token longer begin in the next level, and where the last ones end; none in the last level.
    pub first: Vec<u32>,
}

/// All runs of one token up to some number of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trie {
    /// By length, the single tokens first.
    pub levels: Vec<Level>,
}

impl Trie {
    /// Counts the runs of up to `order` tokens.
    pub fn count(tokens: &[u32], order: usize) -> Trie {
        let run = |start: u32| &tokens[start as usize..tokens.len().min(start as usize + order)];
        let mut starts: Vec<u32> = (0..tokens.len() as u32).collect();
        starts.par_sort_unstable_by(|&a, &b| run(a).cmp(run(b)));
        let mut levels = vec![Level::default(); order];
        let mut before: &[u32] = &[];
        for start in starts {
            let run = run(start);
            let shared = run.iter().zip(before).take_while(|(a, b)| a == b).count();
            for depth in 0..run.len() {
                if depth >= shared {
                    let children = levels.get(depth + 1).map_or(0, |next| next.tokens.len() as u32);
                    let level = &mut levels[depth];
                    level.tokens.push(run[depth]);
                    level.counts.push(0);
                    if depth + 1 < order {
                        level.first.push(children);
                    }
                }
                *levels[depth].counts.last_mut().expect("a run has a place on each level") += 1;
            }
            before = run;
        }
        for depth in 1..order {
            let end = levels[depth].tokens.len() as u32;
            levels[depth - 1].first.push(end);
        }
        Trie { levels }
    }

    /// The longest runs.
    pub fn order(&self) -> usize {
        self.levels.len()
    }

    /// Bytes of the tables.
    pub fn size_bytes(&self) -> usize {
        let words = |level: &Level| level.tokens.len() + level.counts.len() + level.first.len();
        self.levels.iter().map(words).sum::<usize>() * size_of::<u32>()
    }

    /// The runs of level `depth` that begin with a run of the level before; all of level 0 for none.
    pub fn children(&self, depth: usize, node: Option<usize>) -> Range<usize> {
        match node {
            None => 0..self.levels[0].tokens.len(),
            Some(node) => {
                let first = &self.levels[depth - 1].first;
                first[node] as usize..first[node + 1] as usize
            }
        }
    }

    /// The run among some of a level that ends in a token.
    pub fn find(&self, depth: usize, among: Range<usize>, token: u32) -> Option<usize> {
        let found = self.levels[depth].tokens[among.clone()].binary_search(&token);
        found.ok().map(|at| among.start + at)
    }

    /// The runs that continue a context by one token; none where the context does not occur before another token.
    pub fn behind(&self, context: &[u32]) -> Option<(Option<usize>, Range<usize>)> {
        let mut node = None;
        for (depth, &token) in context.iter().enumerate() {
            node = Some(self.find(depth, self.children(depth, node), token)?);
        }
        Some((node, self.children(context.len(), node)))
    }

    /// Replaces counts of all but the longest runs by the number of different tokens before them.
    ///
    /// The run at the very beginning of the text has nothing before it; if it stands nowhere else its number is zero, and
    /// whoever reads these counts must take it for a run that was never seen.
    pub fn count_what_stands_before(&mut self) {
        // Of each run, the same without its first token.
        let mut shorter: Vec<Option<usize>> = vec![None; self.levels[0].tokens.len()];
        for depth in 1..self.order() {
            let mut counts = vec![0u32; self.levels[depth - 1].tokens.len()];
            let mut next = Vec::with_capacity(self.levels[depth].tokens.len());
            for (parent, without) in shorter.iter().enumerate() {
                for node in self.children(depth, Some(parent)) {
                    let among = self.children(depth - 1, *without);
                    let found = self.find(depth - 1, among, self.levels[depth].tokens[node]);
                    counts[found.expect("a run without its first token occurs as well")] += 1;
                    next.push(found);
                }
            }
            self.levels[depth - 1].counts = counts;
            shorter = next;
        }
    }

    /// Whether tables of unknown origin fit together, and know only tokens below `vocabulary`.
    pub fn is_sound(&self, vocabulary: usize) -> bool {
        let fits = |depth: usize, level: &Level| {
            let next = self.levels.get(depth + 1).map(|next| next.tokens.len());
            let ends = match next {
                None => level.first.is_empty(),
                Some(next) => {
                    level.first.len() == level.tokens.len() + 1
                        && level.first[0] == 0
                        && level.first.last().is_some_and(|&last| last as usize == next)
                        && level.first.is_sorted()
                }
            };
            level.counts.len() == level.tokens.len()
                && ends
                && level.tokens.iter().all(|&token| (token as usize) < vocabulary)
        };
        let sorted = |depth: usize| {
            let tokens = &self.levels[depth].tokens;
            let increasing = |among: Range<usize>| tokens[among].is_sorted_by(|a, b| a < b);
            match depth {
                0 => increasing(0..tokens.len()),
                _ => (0..self.levels[depth - 1].tokens.len())
                    .all(|node| increasing(self.children(depth, Some(node)))),
            }
        };
        !self.levels.is_empty()
            && self.levels.iter().enumerate().all(|(depth, level)| fits(depth, level))
            && (0..self.order()).all(sorted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: [u32; 8] = [0, 1, 0, 1, 2, 0, 1, 0];

    fn count(trie: &Trie, run: &[u32]) -> Option<u32> {
        let (last, context) = run.split_last().unwrap();
        let (_, among) = trie.behind(context)?;
        let node = trie.find(context.len(), among, *last)?;
        Some(trie.levels[context.len()].counts[node])
    }

    #[test]
    fn runs_are_counted_as_often_as_they_occur() {
        let trie = Trie::count(&TEXT, 3);
        assert!(trie.is_sound(3) && !trie.is_sound(2));
        for length in 1..=3 {
            for run in TEXT.windows(length) {
                let expected = TEXT.windows(length).filter(|other| *other == run).count() as u32;
                assert_eq!(count(&trie, run), Some(expected), "{run:?}");
            }
        }
        assert_eq!(count(&trie, &[2, 1]), None);
        assert_eq!(Trie::count(&TEXT[..2], 4).levels[3], Level::default());
    }

    #[test]
    fn what_stands_before_a_run_is_counted_once_for_each_token() {
        let mut trie = Trie::count(&TEXT, 3);
        trie.count_what_stands_before();
        // Before 0 stand 1 and 2; before `0 1` nothing, 1 and 2; before `1 2` only 0.
        assert_eq!(
            (count(&trie, &[0]), count(&trie, &[0, 1]), count(&trie, &[1, 2])),
            (Some(2), Some(2), Some(1))
        );
        assert_eq!(count(&trie, &[0, 1, 0]), Some(2), "the longest runs keep their counts");
        let mut once = Trie::count(&[5, 6], 2);
        once.count_what_stands_before();
        assert_eq!((count(&once, &[5]), count(&once, &[6])), (Some(0), Some(1)));
    }

    #[test]
    fn tables_that_do_not_fit_together_are_found_out() {
        let whole = Trie::count(&TEXT, 3);
        let changes: [fn(&mut Trie); 6] = [
            |trie| trie.levels[0].first[1] = 99,
            |trie| trie.levels[1].first[0] = 1,
            |trie| trie.levels[0].tokens.swap(0, 1),
            |trie| trie.levels[1].counts.push(1),
            |trie| trie.levels[2].first.push(0),
            |trie| trie.levels.clear(),
        ];
        for (number, change) in changes.iter().enumerate() {
            let mut trie = whole.clone();
            change(&mut trie);
            assert!(!trie.is_sound(3), "change {number}");
        }
    }
}
