//! Preparing batches ahead, off the hot path.
//!
//! A thread draws batches, sorts their positions for the embedding gradient and waits when enough are ready. Every
//! batch comes with the cursor *behind* it: a checkpoint that saves the cursor of the last batch used forgets
//! the batches that were prepared and never used.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{self, JoinHandle};

use crate::data::groups::{Groups, sorted_positions};
use crate::data::stream::Streamed;
use crate::data::windows::{Batch, Cursor, Sampler};
use crate::data::{Error, Result};

/// What gives training batches one after the other, and goes on from where it stood.
pub trait Batches: Send {
    /// Rows of every batch.
    fn rows(&self) -> usize;
    /// Where the next batch begins.
    fn cursor(&self) -> Cursor;
    /// Goes to a saved place: from there on the batches are those that would have come.
    fn seek(&mut self, cursor: &Cursor) -> Result<()>;
    /// The next batch.
    fn next_batch(&mut self) -> Result<Batch>;
}

impl Batches for Sampler {
    fn rows(&self) -> usize {
        Sampler::rows(self)
    }

    fn cursor(&self) -> Cursor {
        Sampler::cursor(self)
    }

    fn seek(&mut self, cursor: &Cursor) -> Result<()> {
        Sampler::seek(self, cursor.clone())
    }

    fn next_batch(&mut self) -> Result<Batch> {
        Sampler::next_batch(self)
    }
}

impl Batches for Streamed {
    fn rows(&self) -> usize {
        Streamed::rows(self)
    }

    fn cursor(&self) -> Cursor {
        Streamed::cursor(self)
    }

    fn seek(&mut self, cursor: &Cursor) -> Result<()> {
        Streamed::seek(self, cursor)
    }

    fn next_batch(&mut self) -> Result<Batch> {
        Streamed::next_batch(self)
    }
}

impl From<Sampler> for Box<dyn Batches> {
    fn from(sampler: Sampler) -> Self {
        Box::new(sampler)
    }
}

/// A batch, ready to upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepared {
    /// The batch.
    pub batch: Batch,
    /// Its positions by token, for the deterministic embedding gradient.
    pub groups: Groups,
    /// Where training stands once this batch is used.
    pub cursor: Cursor,
}

/// Batches prepared ahead by a thread, which ends when this is dropped.
#[derive(Debug)]
pub struct Prefetch {
    /// Taken away on drop, which is how the thread learns of it.
    receiver: Option<Receiver<Result<Prepared>>>,
    thread: Option<JoinHandle<()>>,
}

impl Prefetch {
    /// Prepares up to `ahead` batches of `sampler`, from its cursor on. `vocabulary` is the size of the embedding.
    pub fn start(sampler: impl Into<Box<dyn Batches>>, vocabulary: usize, ahead: usize) -> Prefetch {
        let sampler = sampler.into();
        let rows = sampler.rows();
        Prefetch::start_split(sampler, vocabulary, ahead, rows)
    }

    /// The same with each batch in batches of `rows`, all of which come with the cursor behind the whole.
    pub fn start_split(
        sampler: impl Into<Box<dyn Batches>>,
        vocabulary: usize,
        ahead: usize,
        rows: usize,
    ) -> Prefetch {
        let mut sampler = sampler.into();
        let mut parts = VecDeque::new();
        Prefetch::start_with(ahead, move || {
            if parts.is_empty() {
                parts.extend(sampler.next_batch()?.split(rows));
            }
            let batch: Batch = parts.pop_front().expect("a batch has rows");
            let groups = sorted_positions(&batch.tokens, vocabulary);
            Ok(Prepared { batch, groups, cursor: sampler.cursor() })
        })
    }

    fn start_with(ahead: usize, mut prepare: impl FnMut() -> Result<Prepared> + Send + 'static) -> Prefetch {
        let (sender, receiver) = sync_channel(ahead.max(1));
        let work = move || {
            loop {
                let prepared = prepare();
                let last = prepared.is_err();
                // Nobody listens any more, or there is nothing more to say.
                if sender.send(prepared).is_err() || last {
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("kiln batches".into()).spawn(work);
        let thread = thread.expect("the system can start one more thread");
        Prefetch { receiver: Some(receiver), thread: Some(thread) }
    }

    /// The next batch, waiting if it is not ready. After an error every further call says that the thread has ended.
    pub fn next_batch(&mut self) -> Result<Prepared> {
        let receiver = self.receiver.as_ref().expect("taken away on drop only");
        receiver.recv().unwrap_or(Err(Error::PrefetchEnded))
    }
}

impl Drop for Prefetch {
    fn drop(&mut self) {
        drop(self.receiver.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was told to whoever asked for the next batch.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn sampler() -> Sampler {
        Sampler::shuffled((0..200).map(|token| token % 17).collect::<Vec<_>>(), 8, 3, 4).unwrap()
    }

    #[test]
    fn prefetched_batches_are_those_of_the_sampler_with_the_cursor_behind_each() {
        let (mut plain, mut prefetch) = (sampler(), Prefetch::start(sampler(), 17, 4));
        for _ in 0..50 {
            let prepared = prefetch.next_batch().unwrap();
            assert_eq!(prepared.batch, plain.next_batch().unwrap());
            assert_eq!(prepared.cursor, plain.cursor());
            assert_eq!(prepared.groups, sorted_positions(&prepared.batch.tokens, 17));
        }
    }

    #[test]
    fn a_split_batch_is_the_batch_in_pieces_and_its_cursor_is_behind_the_whole() {
        let (mut plain, mut split) = (sampler(), Prefetch::start_split(sampler(), 17, 4, 2));
        for _ in 0..5 {
            let whole = plain.next_batch().unwrap();
            let parts = [split.next_batch().unwrap(), split.next_batch().unwrap()];
            assert_eq!(parts.each_ref().map(|part| part.batch.rows), [2, 1]);
            assert_eq!(parts.each_ref().map(|part| part.batch.tokens.clone()).concat(), whole.tokens);
            assert_eq!(parts.each_ref().map(|part| part.batch.targets.clone()).concat(), whole.targets);
            assert!(parts.iter().all(|part| part.cursor == plain.cursor()));
        }
    }

    #[test]
    fn resuming_from_the_last_cursor_used_equals_never_stopping() {
        let mut straight = Prefetch::start(sampler(), 17, 2);
        let mut stopped = Prefetch::start(sampler(), 17, 5);
        let mut cursor = Cursor::default();
        for _ in 0..20 {
            straight.next_batch().unwrap();
            cursor = stopped.next_batch().unwrap().cursor;
        }
        drop(stopped);
        let mut resumed = sampler();
        resumed.seek(cursor).unwrap();
        let mut resumed = Prefetch::start(resumed, 17, 1);
        for _ in 0..20 {
            assert_eq!(resumed.next_batch().unwrap(), straight.next_batch().unwrap());
        }
    }

    #[test]
    fn an_error_arrives_after_the_batches_before_it() {
        let mut plain = sampler();
        let mut left = 3;
        let mut prefetch = Prefetch::start_with(8, move || {
            if left == 0 {
                return Err(Error::WindowsEnded { step: 3, steps: 3 });
            }
            left -= 1;
            let batch = plain.next_batch()?;
            Ok(Prepared { groups: sorted_positions(&batch.tokens, 17), batch, cursor: plain.cursor() })
        });
        assert!((0..3).all(|_| prefetch.next_batch().is_ok()));
        assert!(matches!(prefetch.next_batch(), Err(Error::WindowsEnded { .. })));
        assert!(matches!(prefetch.next_batch(), Err(Error::PrefetchEnded)));
    }

    #[test]
    fn dropping_ends_the_thread_even_while_it_waits_for_room() {
        let made = Arc::new(AtomicUsize::new(0));
        let (counter, mut plain) = (made.clone(), sampler());
        let mut prefetch = Prefetch::start_with(2, move || {
            counter.fetch_add(1, Ordering::SeqCst);
            let batch = plain.next_batch()?;
            Ok(Prepared { groups: sorted_positions(&batch.tokens, 17), batch, cursor: plain.cursor() })
        });
        prefetch.next_batch().unwrap();
        drop(prefetch);
        let after = made.load(Ordering::SeqCst);
        assert!(after <= 5, "one used, two ready, one in hand, one begun: {after}");
        assert_eq!(Arc::strong_count(&made), 1, "the thread is gone");
    }
}
