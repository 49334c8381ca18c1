//! Keys of `[distill]` on text that is written while training.

use serde::Serialize;

use super::distill::{Knob, knob};
use super::error::Error;
use super::read::Section;

/// The keys, which stand among those of `[distill]`.
pub(super) const KEYS: [&str; 4] = ["on_policy", "sequence", "prompt", "sampling_temperature"];

/// Windows that a model writes instead of reading them in the text.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Writing {
    /// Share of steps whose windows the student writes, for the teacher to say what it would have written (on-policy).
    pub on_policy: Knob,
    /// Share of steps whose windows the teacher writes, for the student to learn as if they were the text (sequence-level).
    pub sequence: Knob,
    /// Tokens of the text that a written window begins with. Absent: a quarter of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<usize>,
    /// What is written is drawn at this temperature; zero takes the likeliest token always.
    pub sampling_temperature: f64,
}

impl Writing {
    /// Tokens of the text that a window of so many begins with.
    pub fn prompt_of(&self, context: usize) -> usize {
        self.prompt.unwrap_or((context / 4).max(1))
    }
}

/// Reads the keys; none if nothing is written.
pub(super) fn writing(section: &Section) -> Result<Option<Writing>, Error> {
    let [on_policy, sequence] = [knob(section, "on_policy", 0.0)?, knob(section, "sequence", 0.0)?];
    if on_policy.is_zero() && sequence.is_zero() {
        let hint = "on_policy = 0.5 lets the student write every second window, sequence = 0.5 the teacher";
        let alone = KEYS[2..].iter().find(|key| section.has(key));
        return alone.map_or(Ok(None), |key| {
            Err(section.refuse(key, "absent where neither on_policy nor sequence is above zero", hint))
        });
    }
    // Both change in straight lines: the sum is largest where one of them begins or ends.
    let ends = [0, on_policy.until, sequence.until];
    if ends.iter().any(|&step| on_policy.at(step) + sequence.at(step) > 1.0) {
        let key = if sequence.is_zero() { "on_policy" } else { "sequence" };
        let hint = "they are shares of the steps; what is left of 1 reads the text";
        return Err(section.refuse(key, "at most 1 together with the other", hint));
    }
    let prompt = section.size("prompt")?.must(|&n| n > 0, "at least 1", "a text begins with something")?;
    let hint = "1 draws as the model deems likely, 0 takes the likeliest always";
    let temperature = section.number("sampling_temperature")?.must(|&t| t >= 0.0, "zero or more", hint)?;
    let (prompt, sampling_temperature) = (prompt.take(), temperature.or(1.0));
    Ok(Some(Writing { on_policy, sequence, prompt, sampling_temperature }))
}
