//! Windows of the token store as batches: shuffled or replayed for training, evenly spread for evaluation.
//!
//! An epoch cuts the training tokens into windows side by side, beginning at an offset of its own, and visits them
//! in a pseudo-random order. Offset and order follow from (seed, epoch) alone, so a [`Cursor`] of two numbers is
//! all that a checkpoint needs.

use serde::{Deserialize, Serialize};

use crate::data::mixture::Mixture;
use crate::data::random::{Permutation, Random};
use crate::data::replay::{self, Offsets};
use crate::data::store::Stretch;
use crate::data::stream::StreamCursor;
use crate::data::tokens::Tokens;
use crate::data::{Error, Result};

/// Target of a position that does not count.
pub const IGNORED: i32 = -1;

/// Where training stands in its data: before the window `position` of epoch `epoch`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// Passes over the training tokens that are complete.
    pub epoch: u64,
    /// Windows of this epoch that were used (of a mixture all windows, for replayed windows steps).
    pub position: u64,
    /// Of text that is streamed, where each stream stands.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub streams: Vec<StreamCursor>,
}

impl Cursor {
    /// Before a window of an epoch.
    pub fn at(epoch: u64, position: u64) -> Cursor {
        Cursor { epoch, position, streams: vec![] }
    }
}

/// One batch: `rows` windows of `context` tokens, row by row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// `[rows, context]` token ids.
    pub tokens: Vec<u32>,
    /// `[rows, context]`: the token after each, or [`IGNORED`].
    pub targets: Vec<i32>,
    /// Windows in the batch.
    pub rows: usize,
    /// Tokens in a window.
    pub context: usize,
}

impl Batch {
    /// The windows that begin at `starts`, each of which must have `context + 1` tokens from there.
    fn at(tokens: &Tokens, context: usize, starts: impl ExactSizeIterator<Item = usize>) -> Batch {
        let rows = starts.len();
        let mut batch = Batch {
            tokens: Vec::with_capacity(rows * context),
            targets: Vec::with_capacity(rows * context),
            rows,
            context,
        };
        for start in starts {
            let window = tokens.range(start..start + context + 1);
            batch.push(&window);
        }
        batch
    }

    /// Adds a window and the token after it.
    pub(super) fn push(&mut self, window: &[u32]) {
        self.tokens.extend_from_slice(&window[..self.context]);
        self.targets.extend(window[1..].iter().map(|&token| target(token)));
    }

    /// The batch in batches of `rows` windows; the last may have fewer.
    pub fn split(&self, rows: usize) -> impl Iterator<Item = Batch> {
        let size = rows * self.context;
        self.tokens.chunks(size).zip(self.targets.chunks(size)).map(|(tokens, targets)| Batch {
            tokens: tokens.to_vec(),
            targets: targets.to_vec(),
            rows: tokens.len() / self.context,
            context: self.context,
        })
    }

    /// How many targets count.
    pub fn counted(&self) -> usize {
        self.targets.iter().filter(|&&target| target != IGNORED).count()
    }
}

fn target(token: u32) -> i32 {
    i32::try_from(token).expect("token ids are far below 2^31")
}

/// Draws training batches, one after the other.
#[derive(Clone, Debug)]
pub struct Sampler {
    tokens: Tokens,
    context: usize,
    rows: usize,
    order: Order,
    cursor: Cursor,
}

#[derive(Clone, Debug)]
enum Order {
    Shuffled {
        seed: u64,
        epoch: Epoch,
    },
    /// Sources by weight.
    Mixed(Mixture),
    /// Starts of all rows of all steps.
    Replayed(Vec<usize>),
}

/// The windows of one epoch: `offset + context * permutation(position)`.
#[derive(Clone, Debug)]
pub(super) struct Epoch {
    pub(super) number: u64,
    offset: usize,
    pub(super) windows: u64,
    permutation: Permutation,
}

impl Epoch {
    pub(super) fn new(number: u64, seed: u64, tokens: usize, context: usize) -> Epoch {
        let mut random = Random::new(seed, number);
        // The largest offset that leaves at least one window.
        let offsets = context.min(tokens - context);
        let offset = random.below(offsets as u64) as usize;
        let windows = ((tokens - 1 - offset) / context) as u64;
        Epoch { number, offset, windows, permutation: Permutation::new(windows, &mut random) }
    }

    /// Where the window begins that is visited at a position.
    pub(super) fn start(&self, position: u64, context: usize) -> usize {
        self.offset + self.permutation.at(position) as usize * context
    }
}

impl Sampler {
    /// Shuffled windows: every epoch visits each of its windows once. Batches run on over the end of an epoch.
    pub fn shuffled(tokens: impl Into<Tokens>, context: usize, rows: usize, seed: u64) -> Result<Sampler> {
        let tokens = tokens.into();
        check("training", tokens.len(), context, rows)?;
        let epoch = Epoch::new(0, seed, tokens.len(), context);
        Ok(Sampler {
            tokens,
            context,
            rows,
            order: Order::Shuffled { seed, epoch },
            cursor: Cursor::default(),
        })
    }

    /// Windows of several sources, drawn by their weights.
    pub fn mixed(
        tokens: impl Into<Tokens>,
        stretches: &[Stretch],
        context: usize,
        rows: usize,
        seed: u64,
    ) -> Result<Sampler> {
        let tokens = tokens.into();
        check("training", tokens.len(), context, rows)?;
        let order = Order::Mixed(Mixture::new(stretches, context, seed)?);
        Ok(Sampler { tokens, context, rows, order, cursor: Cursor::default() })
    }

    /// Windows given one by one, for exact replay: batch `n` is row `n` of `offsets`.
    pub fn replayed(tokens: impl Into<Tokens>, context: usize, offsets: &Offsets) -> Result<Sampler> {
        let tokens = tokens.into();
        let rows = offsets.rows();
        check("training", tokens.len(), context, rows)?;
        let starts = offsets.within(replay::TRAINING, "training", tokens.len(), context)?;
        Ok(Sampler { tokens, context, rows, order: Order::Replayed(starts), cursor: Cursor::default() })
    }

    /// Where the next batch begins.
    pub fn cursor(&self) -> Cursor {
        self.cursor.clone()
    }

    /// Goes to a saved place: from there on the batches are those that would have come.
    pub fn seek(&mut self, cursor: Cursor) -> Result<()> {
        let windows = match &mut self.order {
            Order::Shuffled { seed, epoch } => {
                *epoch = Epoch::new(cursor.epoch, *seed, self.tokens.len(), self.context);
                epoch.windows
            }
            Order::Mixed(_) if cursor.epoch > 0 => 0,
            Order::Mixed(mixture) => {
                mixture.seek(cursor.position);
                u64::MAX
            }
            Order::Replayed(_) if cursor.epoch > 0 => 0,
            Order::Replayed(starts) => (starts.len() / self.rows) as u64,
        };
        let Cursor { epoch, position, .. } = cursor;
        if position > windows || (windows == 0 && epoch > 0) {
            return Err(Error::CursorOutside { epoch, position, windows });
        }
        self.cursor = cursor;
        Ok(())
    }

    /// The next batch; the cursor moves behind it.
    pub fn next_batch(&mut self) -> Result<Batch> {
        let starts: Vec<usize> = match &mut self.order {
            Order::Replayed(starts) => {
                let mut steps = starts.chunks(self.rows);
                let (step, count) = (self.cursor.position, steps.len() as u64);
                let Some(starts) = steps.nth(step as usize) else {
                    return Err(Error::WindowsEnded { step, steps: count });
                };
                self.cursor.position += 1;
                starts.to_vec()
            }
            Order::Mixed(mixture) => {
                let cursor = &mut self.cursor;
                let mut next_start = || {
                    cursor.position += 1;
                    mixture.next_start(cursor.position - 1)
                };
                (0..self.rows).map(|_| next_start()).collect()
            }
            Order::Shuffled { seed, epoch } => {
                let (seed, tokens, context) = (*seed, self.tokens.len(), self.context);
                let cursor = &mut self.cursor;
                let mut next_start = || {
                    if cursor.position == epoch.windows {
                        *cursor = Cursor::at(cursor.epoch + 1, 0);
                        *epoch = Epoch::new(cursor.epoch, seed, tokens, context);
                    }
                    debug_assert_eq!(epoch.number, cursor.epoch);
                    cursor.position += 1;
                    epoch.start(cursor.position - 1, context)
                };
                (0..self.rows).map(|_| next_start()).collect()
            }
        };
        Ok(Batch::at(&self.tokens, self.context, starts.into_iter()))
    }

    /// Rows of every batch.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Tokens in every row.
    pub fn context(&self) -> usize {
        self.context
    }
}

/// `batches` batches of windows spread evenly over `tokens`: the same at every evaluation, whatever training did.
///
/// Short texts give overlapping or equal windows rather than smaller batches, so that every mean is over as many.
pub fn evaluation(
    part: &'static str,
    tokens: &Tokens,
    context: usize,
    rows: usize,
    batches: usize,
) -> Result<Vec<Batch>> {
    check(part, tokens.len(), context, rows)?;
    let last_start = tokens.len() - context - 1;
    let count = rows * batches;
    let start = |window: usize| match last_start / count {
        0 => window * (last_start + 1) / count,
        stride => window * stride,
    };
    let batch = |batch| Batch::at(tokens, context, (batch * rows..(batch + 1) * rows).map(start));
    Ok((0..batches).map(batch).collect())
}

/// The evaluation windows of a windows file, `rows` in a batch; the last batch may have fewer.
pub fn evaluation_replayed(
    name: &'static str,
    part: &'static str,
    tokens: &Tokens,
    context: usize,
    rows: usize,
    offsets: &Offsets,
) -> Result<Vec<Batch>> {
    check(part, tokens.len(), context, rows)?;
    let starts = offsets.within(name, part, tokens.len(), context)?;
    Ok(starts.chunks(rows).map(|starts| Batch::at(tokens, context, starts.iter().copied())).collect())
}

/// Batches that go over all of `tokens` once, windows side by side: every token but the first is a target once.
/// What is missing in the last batch is filled with token 0 and targets that do not count.
pub fn sweep(tokens: &[u32], context: usize, rows: usize) -> Result<impl Iterator<Item = Batch>> {
    if tokens.len() < 2 {
        let (needed, hint) = (2, "there is nothing to predict in so short a text");
        return Err(Error::TooShort { part: "evaluation", tokens: tokens.len(), needed, context, hint });
    }
    check("evaluation", context + 1, context, rows)?;
    let size = rows * context;
    Ok((0..tokens.len() - 1).step_by(size).map(move |start| {
        let end = (start + size).min(tokens.len() - 1);
        let mut batch = Batch {
            tokens: tokens[start..end].to_vec(),
            targets: tokens[start + 1..end + 1].iter().map(|&token| target(token)).collect(),
            rows,
            context,
        };
        batch.tokens.resize(size, 0);
        batch.targets.resize(size, IGNORED);
        batch
    }))
}

fn check(part: &'static str, tokens: usize, context: usize, rows: usize) -> Result<()> {
    if rows == 0 || context == 0 {
        return Err(Error::EmptyBatch { rows, context });
    }
    let needed = context + 1;
    if tokens < needed {
        let hint = match part {
            "validation" => "give more text, a larger data.validation, or a smaller train.context",
            _ => "give more text, or a smaller train.context",
        };
        return Err(Error::TooShort { part, tokens, needed, context, hint });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Token `n` is `n`, so a window shows where it began.
    fn numbered(count: u32) -> Tokens {
        (0..count).collect::<Vec<_>>().into()
    }

    #[test]
    fn targets_are_the_next_tokens() {
        let mut sampler = Sampler::shuffled(numbered(100), 7, 3, 1).unwrap();
        let batch = sampler.next_batch().unwrap();
        assert_eq!((batch.tokens.len(), batch.rows, batch.context), (21, 3, 7));
        for (token, target) in batch.tokens.iter().zip(&batch.targets) {
            assert_eq!(*target, *token as i32 + 1);
        }
    }

    #[test]
    fn every_epoch_visits_each_of_its_windows_exactly_once_and_they_never_overlap() {
        for (tokens, context) in [(1000, 8), (65, 64), (66, 64), (127, 64), (130, 64), (17, 1), (500, 33)] {
            let mut sampler = Sampler::shuffled(numbered(tokens), context, 1, 5).unwrap();
            for epoch in 0..6 {
                let mut starts = Vec::new();
                loop {
                    starts.push(sampler.next_batch().unwrap().tokens[0]);
                    let mut ahead = sampler.clone();
                    ahead.next_batch().unwrap();
                    if ahead.cursor().epoch > epoch {
                        break;
                    }
                }
                let order = starts.clone();
                starts.sort_unstable();
                assert!(starts.windows(2).all(|pair| pair[1] - pair[0] == context as u32), "{starts:?}");
                assert!((starts[0] as usize) < context, "{tokens} {context}");
                let uncovered = tokens as usize - 1 - (*starts.last().unwrap() as usize + context);
                assert!(uncovered < context, "a window more would fit");
                assert!(starts.len() < 20 || order != starts, "shuffled");
            }
        }
    }

    #[test]
    fn windows_shift_from_epoch_to_epoch_so_that_every_start_comes_up() {
        let mut sampler = Sampler::shuffled(numbered(50), 8, 1, 0).unwrap();
        let starts: BTreeSet<u32> = (0..1000).map(|_| sampler.next_batch().unwrap().tokens[0]).collect();
        assert_eq!(starts, (0..=41).collect());
    }

    #[test]
    fn going_on_from_any_saved_cursor_equals_never_stopping() {
        let fresh = || Sampler::shuffled(numbered(300), 16, 4, 9).unwrap();
        let mut straight = fresh();
        let run: Vec<(Cursor, Batch)> =
            (0..40).map(|_| (straight.cursor(), straight.next_batch().unwrap())).collect();
        for (from, (cursor, _)) in run.iter().enumerate() {
            let saved = serde_json::to_string(cursor).unwrap();
            let mut resumed = fresh();
            resumed.seek(serde_json::from_str(&saved).unwrap()).unwrap();
            for (_, batch) in &run[from..] {
                assert_eq!(&resumed.next_batch().unwrap(), batch);
            }
        }
        assert!(run.last().unwrap().0.epoch > 3, "the run went over several epochs");
    }

    #[test]
    fn seeds_differ_and_a_foreign_cursor_is_refused() {
        let batch = |seed| Sampler::shuffled(numbered(300), 16, 4, seed).unwrap().next_batch().unwrap();
        assert_ne!(batch(1), batch(2));
        let mut sampler = Sampler::shuffled(numbered(300), 16, 4, 9).unwrap();
        let refused = sampler.seek(Cursor::at(2, 400));
        assert!(matches!(refused, Err(Error::CursorOutside { position: 400, .. })));
    }

    #[test]
    fn replayed_windows_come_in_their_order_and_end_with_an_error() {
        let offsets = Offsets::new(vec![3, 0, 5, 2, 1, 4], 2);
        let mut sampler = Sampler::replayed(numbered(10), 4, &offsets).unwrap();
        sampler.seek(Cursor::at(0, 1)).unwrap();
        assert_eq!(sampler.next_batch().unwrap().tokens, [5, 6, 7, 8, 2, 3, 4, 5]);
        assert_eq!(sampler.next_batch().unwrap().targets, [2, 3, 4, 5, 5, 6, 7, 8]);
        assert!(matches!(sampler.next_batch(), Err(Error::WindowsEnded { step: 3, steps: 3 })));
        assert!(sampler.seek(Cursor::at(1, 0)).is_err());
    }

    #[test]
    fn a_replayed_window_outside_the_text_is_refused_before_training() {
        for outside in [6, -1] {
            let refused = Sampler::replayed(numbered(10), 4, &Offsets::new(vec![0, outside], 2)).unwrap_err();
            let Error::WindowOutside { index: 1, offset, needed: 5, tokens: 10, .. } = refused else {
                panic!("{refused}");
            };
            assert_eq!(offset, outside);
        }
    }

    #[test]
    fn text_shorter_than_a_window_is_an_error_with_a_hint() {
        let error = Sampler::shuffled(numbered(64), 64, 1, 0).unwrap_err();
        assert!(matches!(error, Error::TooShort { tokens: 64, needed: 65, .. }), "{error}");
        let error = evaluation("validation", &numbered(10), 64, 1, 1).unwrap_err().to_string();
        assert!(error.contains("validation") && error.contains("data.validation"), "{error}");
        assert!(matches!(Sampler::shuffled(numbered(64), 8, 0, 0), Err(Error::EmptyBatch { .. })));
        assert!(matches!(sweep(&[1], 8, 1).err(), Some(Error::TooShort { .. })));
    }

    #[test]
    fn evaluation_windows_are_evenly_spread_and_always_complete() {
        let batches = evaluation("validation", &numbered(1000), 10, 4, 5).unwrap();
        let starts: Vec<u32> =
            batches.iter().flat_map(|batch| batch.tokens.chunks(10).map(|row| row[0])).collect();
        assert_eq!(starts, (0..20).map(|window| window * 49).collect::<Vec<_>>());

        let short = evaluation("validation", &numbered(14), 10, 4, 5).unwrap();
        assert!(short.len() == 5 && short.iter().all(|batch| batch.counted() == 40));
        let starts: BTreeSet<u32> =
            short.iter().flat_map(|batch| batch.tokens.chunks(10).map(|row| row[0])).collect();
        assert_eq!(starts, (0..=3).collect());
    }

    #[test]
    fn a_sweep_has_every_token_but_the_first_as_a_target_once() {
        for count in [2, 9, 12, 13, 14, 100] {
            let targets: Vec<i32> = sweep(&numbered(count).all(), 4, 3)
                .unwrap()
                .inspect(|batch| assert_eq!(batch.tokens.len(), 12))
                .flat_map(|batch| batch.targets)
                .filter(|&target| target != IGNORED)
                .collect();
            assert_eq!(targets, (1..count as i32).collect::<Vec<_>>());
        }
    }
}
