//! What handlers know of the model that the engine runs.

use super::engine::Facts;
use super::prompts::Truncate;
use super::refusal::Refusal;
use crate::data::chats::Template;
use crate::data::tokenizer::Tokenizer;
use crate::generate::Spelling;
use std::sync::{Arc, OnceLock};

/// A model that writes texts.
pub struct Model {
    /// What is known of its rows.
    pub facts: Facts,
    /// For prompts that are texts, and for what is written.
    pub tokenizer: Option<Arc<Tokenizer>>,
    /// For chats.
    pub template: Option<Template>,
    /// What stands behind an answer in a chat, where that is text.
    pub end_of_answer: Option<String>,
    /// Tokens that end texts.
    pub ends: Vec<u32>,
    /// What becomes of prompts that are too long.
    pub truncate: Truncate,
    /// How tokens are spelled, once a text was to match something.
    pub spelling: OnceLock<Arc<Spelling>>,
}

impl Model {
    /// The tokenizer, or why it is missed.
    pub fn tokenizer(&self) -> Result<&Tokenizer, Refusal> {
        let missing = || Refusal::from(crate::generate::Error::NoTokenizer);
        self.tokenizer.as_deref().ok_or_else(missing)
    }

    /// How tokens are spelled.
    pub fn spelling(&self) -> Result<Arc<Spelling>, Refusal> {
        if let Some(spelling) = self.spelling.get() {
            return Ok(spelling.clone());
        }
        // Two that come at once both find it, and one is kept.
        let found = Spelling::of(self.tokenizer()?)?;
        Ok(self.spelling.get_or_init(|| found).clone())
    }
}
