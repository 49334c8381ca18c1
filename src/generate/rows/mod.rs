//! Texts side by side, each in a row of caches of its own, that are read on and scored together.
//!
//! A row is what a model has read of one text. Rows know nothing of each other: each stands at its own position, so that texts of
//! different lengths need no padding, come and go, and have the scores that they have alone.

mod causal;
mod paired;
#[cfg(test)]
mod tests;

pub use causal::{CausalRows, Room};
pub(super) use paired::start_of;
pub use paired::{PairedRows, Source};

use super::{Error, Result};
use crate::model::{self, Task};

/// A row with the text that stands in it, or is to stand in it.
pub type Text<'a> = (usize, &'a [u32]);

/// A model that holds texts in rows.
pub trait Rows {
    /// How many rows there are.
    fn count(&self) -> usize;

    /// Tokens for which a row has room.
    fn capacity(&self) -> usize;

    /// Tokens that the model knows, V.
    fn vocabulary(&self) -> usize;

    /// Tokens that a row holds.
    fn held(&self, row: usize) -> &[u32];

    /// Scores `[V]` of the token after each of these texts, every one in another row. What a row holds of the beginning of its text is
    /// not read again, and the rest of what it holds is forgotten.
    fn scores(&mut self, texts: &[Text]) -> Result<Vec<Vec<f32>>>;

    /// Gives each row what row `from[row]` has read. Of an encoder-decoder the sources stay.
    fn order(&mut self, from: &[usize]) -> Result<()>;

    /// The same with the sources.
    fn share(&mut self, from: &[usize]) -> Result<()> {
        self.order(from)
    }

    /// Lets the encoder of an encoder-decoder read what a row's text is written in view of. Other models have none.
    fn begin(&mut self, row: usize, source: &Source) -> Result<()> {
        let _ = (row, source);
        let got = Task::NextToken.describe();
        Err(model::Error::Task { expected: Task::SecondText.describe().into(), got }.into())
    }

    /// Bytes of device memory held.
    fn memory_bytes(&self) -> u64;
}

/// Refuses texts that cannot be read: none, too long, with unknown tokens, in a row that is not there or is taken.
fn check(rows: &dyn Rows, texts: &[Text]) -> Result<()> {
    let mut taken = vec![false; rows.count()];
    for &(row, text) in texts {
        match taken.get_mut(row) {
            Some(taken) if !*taken => *taken = true,
            _ => return Err(Error::Row { row, rows: rows.count() }),
        }
        check_text(text, rows.vocabulary(), rows.capacity())?;
    }
    Ok(())
}

/// Refuses a text without tokens, with more than there is room for, or with one that the model does not know.
pub(super) fn check_text(text: &[u32], vocabulary: usize, capacity: usize) -> Result<()> {
    if text.is_empty() {
        return Err(Error::EmptyPrompt);
    }
    if text.len() > capacity {
        return Err(Error::TooLong { tokens: text.len(), capacity });
    }
    match text.iter().find(|&&token| token as usize >= vocabulary) {
        Some(&token) => Err(Error::UnknownToken { token, vocabulary }),
        None => Ok(()),
    }
}

/// Tokens that both have from the first on, but not all of `text`: its last token must be read for its scores.
fn shared(held: &[u32], text: &[u32]) -> usize {
    held.iter().zip(&text[..text.len() - 1]).take_while(|(held, token)| held == token).count()
}

/// What rows hold once each has taken over what row `from[row]` holds.
fn ordered(held: &[Vec<u32>], from: &[usize]) -> Result<Vec<Vec<u32>>> {
    let rows = held.len();
    if from.len() != rows {
        return Err(Error::Row { row: from.len(), rows });
    }
    let of = |&row: &usize| held.get(row).cloned().ok_or(Error::Row { row, rows });
    from.iter().map(of).collect()
}
