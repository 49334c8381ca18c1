//! Windows of a text to calibrate with.

use super::{Error, Result};
use crate::data::store::Part;
use crate::data::text::Text;
use crate::data::tokenizer::Tokenizer;
use crate::data::windows::{Batch, evaluation};
use std::path::PathBuf;

/// `count` windows of `context` tokens, spread evenly over a text, one a batch.
pub fn calibration_windows(
    text: &[PathBuf],
    tokenizer: &Tokenizer,
    context: usize,
    count: usize,
) -> Result<Vec<Batch>> {
    let text = Text::open(text)?;
    let tokens = Part::of(&text.contents(), tokenizer)?.tokens;
    if tokens.len() <= context {
        return Err(Error::ShortCalibration { expected: context + 1, got: tokens.len() });
    }
    // A text with fewer windows than that is taken whole, rather than the same windows again and again.
    let count = count.clamp(1, tokens.len() / context);
    Ok(evaluation("calibration", &tokens, context, 1, count)?)
}
