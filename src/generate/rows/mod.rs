//! Texts side by side, each in a row of caches of its own, that are read on and scored together.
//!
//! A row is what a model has read of one text. Rows know nothing of each other: each stands at its own position, so that texts of
//! different lengths need no padding, come and go, and have the scores that they have alone.

mod causal;
mod choice;
mod paired;
mod shown;
mod single;
mod speculative;
#[cfg(test)]
mod tests;

pub use causal::{CausalRows, Room};
pub use choice::Outcome;
pub(super) use paired::start_of;
pub use paired::{PairedRows, Source};
pub use shown::{Shown, State};
pub use single::{SinglePairs, SingleRows};
pub use speculative::{Agreed, SpeculativeRows};

use super::{Error, Lengths, Pace, Result};
use crate::deploy::Deployment;
use crate::model::{self, Family, Task};
use crate::ops::choose_token::{Choice, choose_of};
use crate::train::Target;

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

    /// The token after each of these texts, every one in another row: chosen as `how` says, or its scores where that says nothing. What
    /// a row holds of the beginning of its text is not read again, and the rest of what it holds is forgotten.
    fn next(&mut self, texts: &[Text], how: &[Option<Choice>]) -> Result<Vec<Outcome>>;

    /// Tokens of a text that are read together where many are new: reading so many of them, and the rest later, comes to the same as
    /// reading all.
    fn reads_at_once(&self) -> usize {
        usize::MAX
    }

    /// Scores `[V]` of the token after each of these texts.
    fn scores(&mut self, texts: &[Text]) -> Result<Vec<Vec<f32>>> {
        let all = self.next(texts, &vec![None; texts.len()])?;
        let scores = all.into_iter().map(|outcome| match outcome {
            Outcome::Scores(scores) => scores,
            Outcome::Chosen(..) => unreachable!("nothing was to be chosen"),
        });
        Ok(scores.collect())
    }

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

    /// Of an encoder-decoder the token that stands before all written ones.
    fn start(&self) -> Option<u32> {
        None
    }

    /// Tokens as a source; only encoder-decoders that read tokens have such.
    fn source_of(&self, tokens: &[u32]) -> Result<Source> {
        let _ = tokens;
        let got = Task::NextToken.describe();
        Err(model::Error::Task { expected: Task::SecondText.describe().into(), got }.into())
    }

    /// Hidden states of the tokens that a row holds, where they are shown.
    fn states(&self, row: usize) -> Option<&[State]> {
        let _ = row;
        None
    }

    /// How often a draft was right, where there is one.
    fn agreed(&self) -> Option<Agreed> {
        None
    }

    /// How fast it has read and written so far.
    fn pace(&self) -> Pace {
        Pace::default()
    }

    /// Bytes of device memory held.
    fn memory_bytes(&self) -> u64;
}

/// Rows for a model of any family that writes: `lengths` are those of an encoder-decoder, whose texts have as many tokens as its target.
/// A recurrent model has rows that are read one after the other.
pub fn open_rows(
    family: &dyn Family,
    deployment: &Deployment,
    target: &Target,
    room: Room,
    lengths: Lengths,
) -> Result<Box<dyn Rows>> {
    let interface = family.interface();
    let pair = interface.start.is_some();
    if !pair {
        interface.expect_causal()?;
    }
    Ok(match (pair, interface.sums_up) {
        (false, false) => Box::new(CausalRows::new(family, deployment, target, room)?),
        (false, true) => Box::new(SingleRows::new(family, deployment, target, room)?),
        (true, false) => Box::new(PairedRows::new(family, deployment, target, room.rows, lengths)?),
        (true, true) => Box::new(SinglePairs::new(family, deployment, target, room.rows, lengths)?),
    })
}

/// Scores, or the token chosen from them.
fn outcome(scores: Vec<f32>, how: &Option<Choice>) -> Outcome {
    match how {
        None => Outcome::Scores(scores),
        Some(how) => {
            let (token, told) = choose_of(&scores, how);
            Outcome::Chosen(token, told)
        }
    }
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
pub(super) fn shared(held: &[u32], text: &[u32]) -> usize {
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
