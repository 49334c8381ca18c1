//! Conversations to learn from: read from JSONL, written out by a model's chat template, cut into what is read and what is learnt.
//!
//! ```text
//! chats.jsonl -- read --> dialogues -- template --> text with its answers -- tokenizer --> examples -- pack --> windows
//! ```

mod clock;
mod example;
mod marks;
mod pack;
mod python;
mod read;
mod template;
#[cfg(test)]
mod tests;

pub use clock::Date;
pub use example::{Example, TooLong, example_of, shorten};
pub use pack::{Laid, first_fit};
pub use read::{Dialogue, Found, Preference, read_dialogues, read_preferences};
pub use template::{CHATML, Rendered, Template};

/// What of a conversation the model learns to write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Learn {
    /// What the assistant says.
    #[default]
    Answers,
    /// All of it.
    All,
}
