//! A head on a decoder that judges whole texts, by the state of each text's last token.
//!
//! ```text
//! logits[b] = score(h[b, last[b]])       last[b] = the last token of the text that is not padding
//! ```
//! What is padding is told by the token's number alone, on either side of the text, as transformers has it: a text of nothing else
//! is judged by its first token. Why the rows are chosen before the product and not after: the product is over B rows, not B T.

use super::layers::{Layers, located};
use super::{Config, Extent, Init, Interface, Labels, Mode, ParameterSpec, Reading, Result, Task};
use crate::graph::Graph;
use crate::ops::Value;
use crate::ops::embedding::EmbeddingEmit;
use crate::ops::matmul::Form;
use crate::tensor::{DType, Type};
use serde_json::Value as Json;

/// Module of the head, in every family.
const MODULE: &str = "score";
/// Its only parameter.
pub(super) const WEIGHT: &str = "score.weight";
/// What the classes of transformers end in.
pub(super) const CLASS: &str = "ForSequenceClassification";
/// Rows `[B]` of the residual stream that are judged.
pub(super) const LASTS: &str = "lasts";

/// Scores of classes for whole texts, in the place of scores of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Score {
    /// Classes, K.
    pub classes: usize,
    /// What labels mean.
    pub labels: Labels,
    /// The token that fills up short texts; without it texts come one at a time.
    pub padding: Option<u32>,
}

impl Score {
    /// As a configuration of `own`, such as `GPT2`, says; none where its architecture is another one.
    pub(super) fn read(config: &Config, own: &str, vocabulary: usize) -> Result<Option<Score>> {
        if !config.architectures()?.contains(&format!("{own}{CLASS}").as_str()) {
            return Ok(None);
        }
        let classes = classes_of(config)?;
        let labels = labels_of(config, classes)?;
        let key = "pad_token_id";
        // A number below zero is a row counted from the end for PyTorch, and here no token at all.
        let padding = match config.keys().get(key) {
            None | Some(Json::Null) => None,
            Some(_) => Some(config.token(key, 0)?),
        };
        if padding.is_some_and(|padding| padding as usize >= vocabulary) {
            return Err(config.refuse(key, format!("below the vocabulary, {vocabulary}")));
        }
        Ok(Some(Score { classes, labels, padding }))
    }

    /// Its parameter, on a stream of so many channels.
    pub(super) fn parameter(&self, width: usize, deviation: f64) -> ParameterSpec {
        ParameterSpec::new(WEIGHT, [self.classes, width], Init::Normal { deviation })
    }

    /// What is to be known of a model with this head. `silences` says whether the row of the embedding for padding is not trained.
    pub(super) fn interface(&self, silences: bool) -> Interface {
        let task = Task::SequenceClass { classes: self.classes, labels: self.labels };
        Interface { silent: self.padding.filter(|_| silences), padding: self.padding, ..Interface::of(task) }
    }

    /// Refuses what there is no judgement of: a part of a text, and texts side by side.
    pub(super) fn check(&self, reading: &Reading, context: usize) -> Result<()> {
        if let Mode::Continue { .. } = reading.mode {
            self.interface(false).expect_causal()?;
        }
        reading.check(context)
    }

    /// Scores [B, K] from the stream [N, C].
    pub(super) fn write(
        &self,
        graph: &mut Graph,
        layers: &Layers,
        reading: &Reading,
        x: Value,
    ) -> Result<Value> {
        let Extent { batch, .. } = reading.extent;
        let lasts = graph.input(LASTS, Type::new(DType::U32, [batch]));
        let rows = graph.kind(x).shape[0];
        let x = match reading.mode {
            Mode::Train => {
                let [order, starts] = super::layers::sorting(LASTS);
                let order = graph.input(order, Type::new(DType::U32, [batch]));
                let starts = graph.input(starts, Type::new(DType::U32, [rows + 1]));
                located(graph, MODULE, |g| g.embedding_trained(x, lasts, order, starts))?
            }
            _ => located(graph, MODULE, |g| g.embedding(x, lasts))?,
        };
        layers.linear(graph, MODULE, Form::Nt, x)
    }
}

/// The class of transformers whose name begins so, for causal families that call theirs alike.
pub(super) fn class(own: &str, score: Option<&Score>) -> String {
    format!("{own}{}", if score.is_some() { CLASS } else { "ForCausalLM" })
}

/// What stands on the stream, in words.
pub(super) fn describe(score: Option<&Score>, tied: bool) -> String {
    match score {
        Some(score) => format!("a score for {} classes", score.classes),
        None if tied => "tied head".into(),
        None => "separate head".into(),
    }
}

/// As many classes as have names; two where nothing is said.
pub(super) fn classes_of(config: &Config) -> Result<usize> {
    match config.keys().get("id2label") {
        None | Some(Json::Null) => config.count(&["num_labels"], 2),
        Some(Json::Object(names)) if !names.is_empty() => Ok(names.len()),
        Some(_) => Err(config.refuse("id2label", "a table of names by class")),
    }
}

/// What labels mean: by the configuration's word, or numbers where there is one class alone.
pub(super) fn labels_of(config: &Config, classes: usize) -> Result<Labels> {
    match config.word(&["problem_type"], "")? {
        "" if classes == 1 => Ok(Labels::Numbers),
        "" | "single_label_classification" => Ok(Labels::One),
        "multi_label_classification" => Ok(Labels::Any),
        "regression" => Ok(Labels::Numbers),
        _ => {
            let expected = "regression, single_label_classification or multi_label_classification";
            Err(config.refuse("problem_type", expected))
        }
    }
}

/// The row of each text's last token that is not padding, in texts of so many tokens one after the other.
pub(super) fn lasts(tokens: &[u32], context: usize, padding: Option<u32>) -> Vec<u32> {
    let last = |text: &[u32]| match padding {
        Some(padding) => text.iter().rposition(|&token| token != padding).unwrap_or(0),
        None => context - 1,
    };
    tokens.chunks(context).zip(0..).map(|(text, number)| (number * context + last(text)) as u32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_token_that_is_no_padding_counts_on_either_side() {
        let texts = [3, 1, 4, 9, 9, 9, 3, 1, 9, 9, 9, 9, 9, 9, 9];
        assert_eq!(lasts(&texts[..12], 4, Some(9)), [2, 7, 8]);
        assert_eq!(lasts(&texts[..4], 4, None), [3]);
        assert_eq!(lasts(&[1, 9, 2, 9], 4, Some(9)), [2], "padding within a text is passed over");
    }
}
