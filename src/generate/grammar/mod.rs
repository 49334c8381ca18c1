//! Text that must have a form, a regular expression's or a JSON schema's: tokens after which it could not any more are never chosen.
//!
//! A token may end within a character, and within any part of the form; what counts is that some text goes on from there. A text that
//! ends by itself has the form as a whole; one that is cut off, because it has as many tokens as it may have, need not.

mod expression;
#[cfg(feature = "schema")]
mod schema;
mod spelling;
#[cfg(all(test, feature = "schema"))]
mod tests;

pub use spelling::Spelling;

use super::{Error, Result};
use expression::Expression;
use serde_json::{Value as Json, json};
use std::sync::Arc;

/// What a text must match as a whole.
pub struct Grammar {
    /// The expression, or the schema, as it was given.
    source: String,
    form: Form,
    spelling: Arc<Spelling>,
    warnings: Vec<String>,
}

enum Form {
    Expression(Box<Expression>),
    #[cfg(feature = "schema")]
    Schema(Box<schema::Schema>),
}

/// What may follow a text.
#[derive(Clone, Debug, PartialEq)]
struct Open {
    /// Of each token whether it may.
    tokens: Vec<bool>,
    /// True where nothing needs to.
    complete: bool,
}

impl std::fmt::Debug for Grammar {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("Grammar").field("source", &self.source).finish()
    }
}

impl PartialEq for Grammar {
    fn eq(&self, other: &Grammar) -> bool {
        self.is_schema() == other.is_schema()
            && self.source == other.source
            && self.spelling.tokens() == other.spelling.tokens()
    }
}

impl Grammar {
    /// A regular expression, as the crate `regex` reads it; it stands for the whole text, without anchors.
    pub fn regex(pattern: &str, spelling: &Arc<Spelling>) -> Result<Grammar> {
        let form = Form::Expression(Box::new(Expression::new(pattern)?));
        Ok(Grammar { source: pattern.to_string(), form, spelling: spelling.clone(), warnings: vec![] })
    }

    /// A JSON schema: what is written is JSON that is valid by it. White space between its parts is at most a blank, or a line
    /// break and 40 of them, unless the schema has a key `x-guidance` that says otherwise. Refused is what is no schema, what nothing can be valid by,
    /// and what cannot be kept to while a text is written.
    #[cfg(feature = "schema")]
    pub fn schema(schema: &Json, spelling: &Arc<Spelling>) -> Result<Grammar> {
        let (form, warnings) = schema::Schema::new(schema, spelling)?;
        let form = Form::Schema(Box::new(form));
        Ok(Grammar { source: schema.to_string(), form, spelling: spelling.clone(), warnings })
    }

    /// JSON schemas are not part of this build.
    #[cfg(not(feature = "schema"))]
    pub fn schema(_: &Json, _: &Arc<Spelling>) -> Result<Grammar> {
        Err(Error::NoSchemas)
    }

    /// Any JSON object.
    pub fn json_object(spelling: &Arc<Spelling>) -> Result<Grammar> {
        Grammar::schema(&json!({ "type": "object" }), spelling)
    }

    /// What of a schema is taken in another sense than it may have been meant.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The error for a grammar that nothing can be written by.
    pub(super) fn refused(&self, reason: &str) -> Error {
        match self.is_schema() {
            true => Error::Schema { reason: reason.to_string() },
            false => Error::Pattern { pattern: self.source.clone(), reason: reason.to_string() },
        }
    }

    /// Bans every token after which what was written could not match any more. Tokens of `ends` are for whole matches. False where
    /// nothing is left to choose: the text is complete, or there are no tokens for what must come.
    pub fn restrict(&self, scores: &mut [f32], written: &[u32], ends: &[u32]) -> bool {
        let open = self.open(written);
        let mut left = false;
        for (token, score) in scores.iter_mut().enumerate() {
            let may = match ends.contains(&(token as u32)) {
                true => open.complete,
                false => open.tokens.get(token).copied().unwrap_or(false),
            };
            if !may {
                *score = f32::NEG_INFINITY;
            }
            left |= *score > f32::NEG_INFINITY;
        }
        left
    }

    /// True if something may follow what was written: a token, or one of `ends` behind a whole match.
    pub fn is_open(&self, written: &[u32], ends: &[u32]) -> bool {
        let most = ends.iter().map(|end| *end as usize + 1).max().unwrap_or(0);
        self.restrict(&mut vec![0.0; self.spelling.tokens().len().max(most)], written, ends)
    }

    /// True if the text of these tokens matches.
    pub fn matches(&self, written: &[u32]) -> bool {
        self.open(written).complete
    }

    fn open(&self, written: &[u32]) -> Open {
        match &self.form {
            Form::Expression(expression) => expression.open(written, self.spelling.tokens()),
            #[cfg(feature = "schema")]
            Form::Schema(schema) => schema.open(written, self.spelling.tokens()),
        }
    }

    fn is_schema(&self) -> bool {
        !matches!(self.form, Form::Expression(_))
    }
}
