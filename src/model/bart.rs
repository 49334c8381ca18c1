//! BART and Marian: the encoder and decoder of the first Transformer, with a norm after each part instead of before it
//! (Vaswani et al. 2017; Lewis et al. 2020; Junczys-Dowmunt et al. 2018).
//!
//! ```text
//! h = dropout(norm(scale * shared[tokens] + positions))
//! h = norm(h + dropout(out_proj(attention(q_proj(h), k_proj(h), v_proj(h)))))    for each block
//! h = norm(h + dropout(out_proj(attention over the encoder's last state)))       of the decoder
//! h = norm(h + dropout(fc2(dropout(activation(fc1(h))))))
//! logits = h shared^T + final_logits_bias
//! ```
//! BART learns its positions, of which the first two rows of the table are unused, and norms the embedding. Marian has the
//! sinusoids of the first Transformer and no such norm: it is that Transformer under names that transformers knows.

mod configuration;
mod forward;
#[cfg(test)]
mod tests;

use super::config::shared_width;
use super::families::{end_before_last, last_token};
use super::{
    Activation, Design, Error, Family, Forward, Init, Interface, ParameterSpec, Reading, Result, Task,
    count_elements,
};
use crate::graph::Graph;
use crate::ops::Value;
use serde_json::{Map, Value as Json};

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Positions {
    /// BART: learned, and the embedding is normed.
    Learned,
    /// Marian: sines in the first half of the channels, cosines in the second.
    Sinusoidal,
}

impl Positions {
    fn family(self) -> &'static str {
        if self == Positions::Learned { "bart" } else { "marian" }
    }
}

/// Rows of BART's table of positions before that of the first position.
const UNUSED_ROWS: usize = 2;

/// What is added to the scores of all tokens.
const BIAS: &str = "final_logits_bias";

/// Added to the variance in every norm.
const NORM_EPSILON: f32 = 1e-5;

/// Sizes of one of the halves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stack {
    /// Blocks.
    pub layers: usize,
    /// Attention heads in each block; they divide the width.
    pub heads: usize,
    /// Width inside the feed-forward part.
    pub hidden: usize,
}

/// Tokens with a meaning of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    /// Before the first token that the decoder writes.
    pub start: u32,
    /// Fills up short sequences.
    pub padding: u32,
}

/// A BART or a Marian of any size.
#[derive(Clone, Debug, PartialEq)]
pub struct Bart {
    /// Which of the two.
    pub positions: Positions,
    /// Tokens it knows, V.
    pub vocabulary: usize,
    /// Most tokens in one sequence.
    pub context: usize,
    /// Channels of the residual stream, C.
    pub width: usize,
    /// The encoder.
    pub encoder: Stack,
    /// The decoder.
    pub decoder: Stack,
    /// Activation of the feed-forward part.
    pub activation: Activation,
    /// Share of elements zeroed in training: of embeddings, and of what each part of a block adds.
    pub dropout: f32,
    /// The same of the attention probabilities.
    pub attention_dropout: f32,
    /// The same inside the feed-forward part.
    pub activation_dropout: f32,
    /// Embeddings are multiplied by the root of the width.
    pub scale_embedding: bool,
    /// The head is the token embedding.
    pub tie: bool,
    /// Standard deviation of initial weights.
    pub deviation: f64,
    /// Tokens with a meaning of their own.
    pub marks: Marks,
    /// Keys of `config.json` that change nothing here, kept for saving.
    pub kept: Map<String, Json>,
}

impl Bart {
    /// A new one. The last token of the vocabulary is start and padding, the one before it the end.
    pub fn from_design(positions: Positions, design: &Design) -> Result<Self> {
        let family = positions.family();
        design.refuse_for(family, &["kv_heads", "head_size", "rope_theta", "window"])?;
        let fixed = |key: &str, expected: String, got: String| {
            let expected = format!("{expected}: the family {family} has no other");
            Err(Error::Setting { place: "the recipe".into(), key: key.into(), expected, got })
        };
        if !design.bias {
            return fixed("bias", "true".into(), "false".into());
        }
        if design.norm_epsilon != NORM_EPSILON {
            return fixed("norm_epsilon", NORM_EPSILON.to_string(), design.norm_epsilon.to_string());
        }
        let hidden = design.hidden.unwrap_or(4 * design.width);
        let stack = Stack { layers: design.layers, heads: design.heads, hidden };
        let bart = Bart {
            positions,
            vocabulary: design.vocabulary,
            context: design.context,
            width: design.width,
            encoder: stack,
            decoder: stack,
            activation: design.activation,
            dropout: design.dropout,
            attention_dropout: design.dropout,
            activation_dropout: design.dropout,
            // Vaswani et al. 2017, section 3.4.
            scale_embedding: positions == Positions::Sinusoidal,
            tie: design.tie,
            deviation: 0.02,
            marks: Marks { start: last_token(design), padding: last_token(design) },
            kept: end_before_last(design),
        };
        bart.check("the recipe", |key| match key {
            "encoder_attention_heads" | "decoder_attention_heads" => "heads",
            "encoder_layers" | "decoder_layers" => "layers",
            "encoder_ffn_dim" | "decoder_ffn_dim" => "hidden",
            "d_model" => "width",
            "vocab_size" => "vocabulary",
            "max_position_embeddings" => "context",
            other => other,
        })?;
        Ok(bart)
    }

    /// Refuses what cannot be; keys are those of `config.json`, or what `name` makes of them.
    fn check(&self, place: &str, name: fn(&'static str) -> &'static str) -> Result<()> {
        let refuse = |key: &'static str, expected: String, got: String| {
            Err(Error::Setting { place: place.into(), key: name(key).into(), expected, got })
        };
        let sizes = [
            ("vocab_size", self.vocabulary),
            ("max_position_embeddings", self.context),
            ("d_model", self.width),
            ("encoder_layers", self.encoder.layers),
            ("decoder_layers", self.decoder.layers),
            ("encoder_ffn_dim", self.encoder.hidden),
            ("decoder_ffn_dim", self.decoder.hidden),
        ];
        if let Some((key, size)) = sizes.iter().find(|(_, size)| *size == 0) {
            return refuse(key, "above zero".into(), size.to_string());
        }
        shared_width(place, name("encoder_attention_heads"), self.width, self.encoder.heads)?;
        shared_width(place, name("decoder_attention_heads"), self.width, self.decoder.heads)?;
        if self.positions == Positions::Sinusoidal && !self.width.is_multiple_of(2) {
            return refuse(
                "d_model",
                "even: sines and cosines share the channels".into(),
                self.width.to_string(),
            );
        }
        if self.activation == Activation::Prelu {
            let expected = "one without a learned slope".into();
            return refuse("activation_function", expected, "prelu".into());
        }
        for (key, token) in
            [("decoder_start_token_id", self.marks.start), ("pad_token_id", self.marks.padding)]
        {
            if token as usize >= self.vocabulary {
                return refuse(key, format!("a token below {}", self.vocabulary), token.to_string());
            }
        }
        let shares = [self.dropout, self.attention_dropout, self.activation_dropout];
        match shares.iter().find(|share| !(0.0..1.0).contains(*share)) {
            Some(share) => refuse("dropout", "a number in 0.0..1.0".into(), share.to_string()),
            None => Ok(()),
        }
    }

    fn stack_parameters(&self, name: &str, stack: Stack, list: &mut Vec<ParameterSpec>) {
        let normal = Init::Normal { deviation: self.deviation };
        if self.positions == Positions::Learned {
            let rows = self.context + UNUSED_ROWS;
            let table = format!("model.{name}.embed_positions.weight");
            list.push(ParameterSpec::new(table, [rows, self.width], normal));
            self.norm_parameters(&format!("model.{name}.layernorm_embedding"), list);
        }
        for layer in 0..stack.layers {
            let module = |part: &str| format!("model.{name}.layers.{layer}.{part}");
            let attentions: &[&str] =
                if name == "decoder" { &["self_attn", "encoder_attn"] } else { &["self_attn"] };
            for attention in attentions {
                for projection in ["q_proj", "k_proj", "v_proj", "out_proj"] {
                    let name = module(&format!("{attention}.{projection}"));
                    self.linear_parameters(&name, [self.width, self.width], list);
                }
                self.norm_parameters(&module(&format!("{attention}_layer_norm")), list);
            }
            self.linear_parameters(&module("fc1"), [stack.hidden, self.width], list);
            self.linear_parameters(&module("fc2"), [self.width, stack.hidden], list);
            self.norm_parameters(&module("final_layer_norm"), list);
        }
    }

    fn norm_parameters(&self, module: &str, list: &mut Vec<ParameterSpec>) {
        list.push(ParameterSpec::new(format!("{module}.weight"), [self.width], Init::Ones));
        list.push(ParameterSpec::new(format!("{module}.bias"), [self.width], Init::Zeros));
    }

    fn linear_parameters(&self, module: &str, size: [usize; 2], list: &mut Vec<ParameterSpec>) {
        let normal = Init::Normal { deviation: self.deviation };
        list.push(ParameterSpec::new(format!("{module}.weight"), size, normal));
        list.push(ParameterSpec::new(format!("{module}.bias"), [size[0]], Init::Zeros));
    }
}

impl Family for Bart {
    fn name(&self) -> &'static str {
        self.positions.family()
    }

    fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    fn context(&self) -> usize {
        self.context
    }

    fn parameters(&self) -> Vec<ParameterSpec> {
        let normal = Init::Normal { deviation: self.deviation };
        let table = [self.vocabulary, self.width];
        let mut list = vec![ParameterSpec::new("model.shared.weight", table, normal)];
        self.stack_parameters("encoder", self.encoder, &mut list);
        self.stack_parameters("decoder", self.decoder, &mut list);
        if !self.tie {
            list.push(ParameterSpec::new("lm_head.weight", table, normal));
        }
        // Stored, and added, but never trained: weight decay has no business with it either.
        let bias = ParameterSpec::new(BIAS, [1, self.vocabulary], Init::Zeros);
        list.push(ParameterSpec { decay: false, ..bias });
        list
    }

    fn interface(&self) -> Interface {
        let Marks { start, padding } = self.marks;
        Interface { start: Some([start, padding]), silent: Some(padding), ..Interface::of(Task::SecondText) }
    }

    fn read(&self, graph: &mut Graph, reading: &Reading) -> Result<Forward> {
        reading.check(self.context)?;
        let written = match reading.mode {
            super::Mode::Continue { capacity } => capacity,
            _ => reading.target,
        };
        match written > self.context {
            true => Err(Error::Context { limit: self.context, got: written }),
            false => self.write(graph, reading),
        }
    }

    fn remember(&self, graph: &mut Graph, reading: &Reading) -> Result<Vec<(String, Value)>> {
        reading.check(self.context)?;
        self.write_memory(graph, reading)
    }

    /// Older checkpoints hold the shared embedding up to four times, a version, and sinusoids.
    fn canonical_name(&self, stored: &str) -> Option<String> {
        let copy = stored.ends_with("coder.embed_tokens.weight") || self.tie && stored == "lm_head.weight";
        let known = self.positions == Positions::Sinusoidal && stored.ends_with(".embed_positions.weight");
        if copy || known || stored.ends_with("coder.version") {
            return None;
        }
        let full = ["model.", "lm_head.", "final_logits_bias"].iter().any(|head| stored.starts_with(head));
        Some(if full { stored.to_string() } else { format!("model.{stored}") })
    }

    /// The bare model, as BART-base is published, has no bias of the scores.
    fn absent(&self, parameter: &str) -> Option<Init> {
        (parameter == BIAS).then_some(Init::Zeros)
    }

    fn config(&self) -> Map<String, Json> {
        self.keys()
    }

    fn set_dropout(&mut self, share: f32) {
        (self.dropout, self.attention_dropout, self.activation_dropout) = (share, share, share);
    }

    fn describe(&self) -> String {
        let Bart { encoder, decoder, width, context, vocabulary, .. } = self;
        let head = if self.tie { "tied" } else { "separate" };
        let count = count_elements(&self.parameters());
        format!(
            "{}: {} + {} layers, {} heads, width {width}, context {context}, vocabulary {vocabulary}, {head} head, {count} parameters",
            self.name(),
            encoder.layers,
            decoder.layers,
            encoder.heads,
        )
    }
}
