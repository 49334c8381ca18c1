//! Text from a trained model: the next token again and again.

pub mod beams;
mod contrastive;
mod dola;
pub mod draw;
mod grammar;
pub mod processors;
mod reader;
mod rows;
mod session;
mod settings;
mod stops;
#[cfg(test)]
mod tests;
mod translator;

pub use crate::data::sampling::{Sampling, sample};
pub use beams::{Beams, EarlyStopping, Hypothesis, Sought, search};
pub use contrastive::{Contrastive, contrast};
pub use dola::EarlyLayers;
pub use grammar::{Grammar, Spelling};
pub use reader::{Pace, Work};
pub use rows::{
    Agreed, CausalRows, Outcome, PairedRows, Room, Rows, Shown, SinglePairs, SingleRows, Source,
    SpeculativeRows, State, Text, open_rows,
};
pub use session::{Event, Finish, Request, Session, Ticket, Told};
pub use settings::{Contrast, Overflow, Settings, end_tokens};
pub use stops::before_stop;
pub use translator::{Lengths, Translator};

use crate::data::sampling::Unfit;
use crate::data::{self, tokenizer::Tokenizer};
use crate::deploy::{self, Deployment};
use crate::exchange::{self, Opened};
use crate::model::{self, Family, Weights};
use crate::tensor::random::Stream;
use crate::train::{self, Target};
use reader::Reader;
use std::path::Path;

/// What can go wrong while generating.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model, the device or the run.
    #[error(transparent)]
    Run(#[from] train::Error),
    /// The tokenizer.
    #[error(transparent)]
    Data(#[from] data::Error),
    /// The folder's model.
    #[error(transparent)]
    Model(#[from] model::Error),
    /// The model on its device.
    #[error(transparent)]
    Deploy(#[from] deploy::Error),
    /// The model's file.
    #[error(transparent)]
    Exchange(#[from] exchange::Error),
    /// A prompt that gives no token to start from.
    #[error(
        "the prompt is empty\n  hint: give at least one token; for stories a line break will do: --prompt $'\\n'"
    )]
    EmptyPrompt,
    /// A prompt as text for a model whose folder has no tokenizer.
    #[error("the model's folder has no tokenizer.json\n  hint: give the prompt as token ids: --ids 1,2,3")]
    NoTokenizer,
    /// A token the model does not know.
    #[error("token {token} is beyond the model's vocabulary of {vocabulary}")]
    UnknownToken {
        /// The token.
        token: u32,
        /// Tokens the model knows.
        vocabulary: usize,
    },
    /// A text with more tokens than there is room for.
    #[error(
        "the text has {tokens} tokens, and there is room for {capacity}\n  hint: shorten it, or let its beginning be forgotten: --overflow slide"
    )]
    TooLong {
        /// Tokens it has.
        tokens: usize,
        /// Tokens there is room for.
        capacity: usize,
    },
    /// A row that is not there, or is named twice.
    #[error("row {row} of {rows} is not there, or is taken already")]
    Row {
        /// The row.
        row: usize,
        /// Rows there are.
        rows: usize,
    },
    /// A text to be written in view of a source that was not read.
    #[error("row {row} has no source\n  hint: let the encoder read one first")]
    NoSource {
        /// The row.
        row: usize,
    },
    /// A source without something that the encoder reads.
    #[error("the source has no `{input}`, which the model's encoder reads")]
    Source {
        /// The input that is not there.
        input: String,
    },
    /// An expression that is none, or that nothing can be written by.
    #[error("the expression {pattern:?} cannot be used: {reason}")]
    Pattern {
        /// The expression.
        pattern: String,
        /// What is wrong.
        reason: String,
    },
    /// A JSON schema that is none, that nothing is valid by, or that cannot be kept to.
    #[error("the JSON schema cannot be used: {reason}")]
    Schema {
        /// What is wrong.
        reason: String,
    },
    /// A JSON schema in a build without what reads them.
    #[error("this kiln was built without JSON schemas\n  hint: build it with --features schema")]
    NoSchemas,
    /// Contrastive search over rows that do not show hidden states.
    #[error("these rows do not show the hidden states of what they hold, which contrastive search compares")]
    NoStates,
    /// A draft that knows other tokens than its model.
    #[error(
        "the draft knows {got} tokens, its model {vocabulary}\n  hint: both need the same tokenizer; a pruned or distilled copy of the model has it"
    )]
    Draft {
        /// Tokens of the model.
        vocabulary: usize,
        /// Tokens of the draft.
        got: usize,
    },
    /// A sampling setting out of range.
    #[error(transparent)]
    Setting(#[from] Unfit),
}

/// Result of generating.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A model ready to continue texts.
pub struct Writer {
    reader: Reader,
    vocabulary: usize,
    tokenizer: Option<Tokenizer>,
    device: String,
}

impl Writer {
    /// Opens a checkpoint or Hugging Face folder, with its tokenizer if it has one.
    ///
    /// `longest` is the most tokens that prompt and continuation will have: a short text needs no whole context.
    pub fn open(folder: &Path, target: &Target, longest: usize) -> Result<Writer> {
        Writer::with(exchange::open_to_run(folder, &[])?, target, longest)
    }

    /// A writer for a model that is open.
    pub fn with(model: Opened, target: &Target, longest: usize) -> Result<Writer> {
        Writer::new(model.family.as_ref(), &model.weights, model.tokenizer, target, longest)
    }

    /// A writer for a model and its tokenizer.
    pub fn new(
        family: &dyn Family,
        weights: &Weights,
        tokenizer: Option<Tokenizer>,
        target: &Target,
        longest: usize,
    ) -> Result<Writer> {
        Writer::over(family, &Deployment::new(weights).within(target), tokenizer, target, longest)
    }

    /// The same for a model made ready in a way of one's own, such as with a cache of codes.
    pub fn over(
        family: &dyn Family,
        deployment: &Deployment,
        tokenizer: Option<Tokenizer>,
        target: &Target,
        longest: usize,
    ) -> Result<Writer> {
        let reader = Reader::new(family, deployment, target, longest.clamp(1, family.context()))?;
        Ok(Writer { reader, vocabulary: family.vocabulary(), tokenizer, device: target.describe() })
    }

    /// Device and driver in words.
    pub fn describe(&self) -> &str {
        &self.device
    }

    /// The tokenizer, if the folder had one.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_ref()
    }

    /// Tokens seen at once: of a longer prompt the last ones.
    pub fn context(&self) -> usize {
        self.reader.capacity
    }

    /// How fast it has read and written so far.
    pub fn pace(&self) -> Pace {
        self.reader.pace
    }

    /// Bytes of device memory it holds: weights, caches and what a pass needs.
    pub fn memory_bytes(&self) -> u64 {
        self.reader.memory_bytes()
    }

    /// What a pass does, by its operators' own account: over as many tokens as it reads at once, and over a single one.
    pub fn passes(&self) -> [Work; 2] {
        self.reader.passes()
    }

    /// Whether a text can be continued: it has tokens, and the model knows them all.
    pub fn check(&self, ids: &[u32]) -> Result<()> {
        if ids.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        match ids.iter().find(|&&token| token as usize >= self.vocabulary) {
            Some(&token) => Err(Error::UnknownToken { token, vocabulary: self.vocabulary }),
            None => Ok(()),
        }
    }

    /// Scores of the token after `ids`, of which the last `context` count.
    pub fn logits(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        let ids = &ids[ids.len().saturating_sub(self.context())..];
        self.check(ids)?;
        self.reader.scores(ids)
    }

    /// `count` tokens after `ids`; `see` gets each as it comes and may stop the writing by returning false.
    ///
    /// Of `ids` the last `context` tokens count. Each time the text has filled the context, the older half is forgotten and the
    /// rest read anew.
    pub fn continue_ids(
        &mut self,
        ids: &[u32],
        count: usize,
        sampling: &Sampling,
        see: &mut dyn FnMut(u32) -> bool,
    ) -> Result<Vec<u32>> {
        sampling.check()?;
        let mut all = ids.to_vec();
        let mut start = ids.len().saturating_sub(self.context());
        let mut random = Stream::new(&[sampling.seed as u32, (sampling.seed >> 32) as u32, 0x5a3]);
        for _ in 0..count {
            if all.len() - start > self.context() {
                start = all.len() - self.context().div_ceil(2);
            }
            let logits = self.logits(&all[start..])?;
            let token = sample(&logits, sampling, &mut random);
            all.push(token);
            if !see(token) {
                break;
            }
        }
        Ok(all.split_off(ids.len()))
    }

    /// The continuation of a prompt as text, without the prompt.
    pub fn write(&mut self, prompt: &str, count: usize, sampling: &Sampling) -> Result<String> {
        let tokenizer = self.tokenizer.clone().ok_or(Error::NoTokenizer)?;
        let ids = tokenizer.encode_with_special(prompt)?;
        let written = self.continue_ids(&ids, count, sampling, &mut |_| true)?;
        Ok(tokenizer.decode(&written)?)
    }
}
