//! What BERT and its relatives call their parts.

use super::{Bert, Task};

/// A relative of BERT: one design, which parts it has, and what they are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoder {
    /// BERT.
    Bert,
    /// RoBERTa.
    Roberta,
    /// DistilBERT.
    DistilBert,
}

/// Names of the modules of a block.
pub(super) struct Block {
    pub query: &'static str,
    pub key: &'static str,
    pub value: &'static str,
    /// After attention.
    pub mixed: &'static str,
    pub mixed_norm: &'static str,
    pub widen: &'static str,
    pub narrow: &'static str,
    /// After the feed-forward part.
    pub fed_norm: &'static str,
}

const BERT: Block = Block {
    query: "attention.self.query",
    key: "attention.self.key",
    value: "attention.self.value",
    mixed: "attention.output.dense",
    mixed_norm: "attention.output.LayerNorm",
    widen: "intermediate.dense",
    narrow: "output.dense",
    fed_norm: "output.LayerNorm",
};
const DISTILBERT: Block = Block {
    query: "attention.q_lin",
    key: "attention.k_lin",
    value: "attention.v_lin",
    mixed: "attention.out_lin",
    mixed_norm: "sa_layer_norm",
    widen: "ffn.lin1",
    narrow: "ffn.lin2",
    fed_norm: "output_layer_norm",
};

/// Names of the head that guesses tokens.
pub(super) struct Guess {
    pub transform: &'static str,
    pub norm: &'static str,
    /// The matrix onto the vocabulary, where it is not the embedding.
    pub decoder: &'static str,
    pub bias: &'static str,
    /// A second name of the bias.
    pub bias_again: &'static str,
}

impl Encoder {
    /// `model_type` in `config.json`.
    pub fn name(self) -> &'static str {
        match self {
            Encoder::Bert => "bert",
            Encoder::Roberta => "roberta",
            Encoder::DistilBert => "distilbert",
        }
    }

    /// What the classes of transformers begin with.
    pub(super) fn class(self) -> &'static str {
        match self {
            Encoder::Bert => "Bert",
            Encoder::Roberta => "Roberta",
            Encoder::DistilBert => "DistilBert",
        }
    }

    pub(super) fn block(self) -> Block {
        if self == Encoder::DistilBert { DISTILBERT } else { BERT }
    }

    /// Where the blocks are.
    pub(super) fn blocks(self) -> &'static str {
        if self == Encoder::DistilBert { "transformer.layer" } else { "encoder.layer" }
    }

    pub(super) fn guess(self) -> Guess {
        match self {
            Encoder::Bert => Guess {
                transform: "cls.predictions.transform.dense",
                norm: "cls.predictions.transform.LayerNorm",
                decoder: "cls.predictions.decoder",
                bias: "cls.predictions.bias",
                bias_again: "cls.predictions.decoder.bias",
            },
            Encoder::Roberta => Guess {
                transform: "lm_head.dense",
                norm: "lm_head.layer_norm",
                decoder: "lm_head.decoder",
                bias: "lm_head.bias",
                bias_again: "lm_head.decoder.bias",
            },
            Encoder::DistilBert => Guess {
                transform: "vocab_transform",
                norm: "vocab_layer_norm",
                decoder: "vocab_projector",
                bias: "vocab_projector.bias",
                bias_again: "vocab_projector.bias",
            },
        }
    }

    /// The two layers of the head that classifies texts, of which the first may belong to the encoder.
    pub(super) fn text_head(self) -> [&'static str; 2] {
        match self {
            Encoder::Bert => ["bert.pooler.dense", "classifier"],
            Encoder::Roberta => ["classifier.dense", "classifier.out_proj"],
            Encoder::DistilBert => ["pre_classifier", "classifier"],
        }
    }

    /// Token types have a table.
    pub(super) fn has_kinds(self) -> bool {
        self != Encoder::DistilBert
    }

    /// An encoder without a head makes a vector of its first token.
    pub(super) fn has_pooler(self) -> bool {
        self != Encoder::DistilBert
    }

    /// Dropout meets what attention gives as well.
    pub(super) fn drops_mixed(self) -> bool {
        self != Encoder::DistilBert
    }

    /// Positions are counted over what is not padding.
    pub(super) fn counts_places(self) -> bool {
        self == Encoder::Roberta
    }

    /// Row of the table of positions for the first token.
    pub(super) fn first_place(self, padding: Option<u32>) -> usize {
        padding.filter(|_| self.counts_places()).map_or(0, |padding| padding as usize + 1)
    }

    /// The token that fills up short texts where nothing is said.
    pub(super) fn usual_padding(self) -> u32 {
        u32::from(self == Encoder::Roberta)
    }

    /// Kinds of token of a new model.
    pub(super) fn usual_kinds(self) -> usize {
        if self == Encoder::Bert { 2 } else { 1 }
    }
}

impl Bert {
    /// What stands before the names of the encoder's own parameters: nothing where there is no head.
    pub(super) fn prefix(&self) -> String {
        if self.task == Task::States { String::new() } else { format!("{}.", self.dialect.name()) }
    }

    /// The parameter that a stored tensor is. Checkpoints of the bare encoder lack the prefix, others have it; old ones call gains
    /// `gamma` and offsets `beta`. Left out are the numbers of the positions, second copies of what is tied, and other heads than
    /// the one that is wanted.
    pub(super) fn name_of(&self, stored: &str) -> Option<String> {
        let own = format!("{}.", self.dialect.name());
        let stored = match stored.rsplit_once('.') {
            Some((module, "gamma")) => format!("{module}.weight"),
            Some((module, "beta")) => format!("{module}.bias"),
            _ => stored.to_string(),
        };
        let bare = stored.strip_prefix(&own).unwrap_or(&stored);
        if bare == "embeddings.position_ids" {
            return None;
        }
        let of_encoder =
            ["embeddings.", "pooler.", "encoder.", "transformer."].iter().any(|s| bare.starts_with(s));
        if !of_encoder {
            return self.name_in_head(stored);
        }
        let pools = self.pooler().is_some();
        let kept = !bare.starts_with("pooler.") || pools;
        kept.then(|| format!("{}{bare}", self.prefix()))
    }

    fn name_in_head(&self, stored: String) -> Option<String> {
        let guess = self.dialect.guess();
        let is_tied = self.tie && stored == format!("{}.weight", guess.decoder);
        let is_again = stored == guess.bias_again && guess.bias != guess.bias_again;
        let heads = ["cls.", "lm_head.", "vocab_", "classifier.", "pre_classifier.", "qa_outputs."];
        let is_head = heads.iter().any(|start| stored.starts_with(start));
        let has = self.head_modules().iter().any(|module| stored.starts_with(&format!("{module}.")));
        let is_bias = self.guesses() && stored == guess.bias;
        // An unknown name is handed on, so that it is listed as one that the model does not have.
        let left_out = is_head && !has && !is_bias;
        (!is_tied && !is_again && !left_out).then_some(stored)
    }
}
