//! T5: an encoder and a decoder whose attention knows positions by a learned bias for each distance alone (Raffel et al. 2020).
//!
//! ```text
//! h = dropout(shared[tokens])
//! h = h + dropout(o(attention(q(n), k(n), v(n)) + bias by distance)), n = layer_norm(h)      for each block of the encoder
//! h = h + dropout(wo(dropout(activation(wi(n)))))                                            gated: activation(wi_0(n)) * wi_1(n)
//! ```
//! The decoder's blocks see no later tokens, and between these two parts attend to the encoder's last state. Norms are by root mean
//! square, without bias; scores are not divided; the first block of either stack holds the table of biases for all of them. The head
//! is the embedding, then the last state is multiplied by `d_model^-0.5` before it, or a table of its own.

mod configuration;
mod forward;
#[cfg(test)]
mod tests;

use super::config::shared_width;
use super::families::{end_before_last, last_token};
use super::{
    Activation, Design, Error, Family, Forward, Init, Interface, Mode, ParameterSpec, Reading, Result, Task,
    count_elements,
};
use crate::graph::Graph;
use crate::ops::Value;
use crate::ops::positions::Buckets;
use serde_json::{Map, Value as Json};

/// A T5 of any size.
#[derive(Clone, Debug, PartialEq)]
pub struct T5 {
    /// The encoder alone, which gives its states.
    pub encoder_only: bool,
    /// Tokens it knows, V.
    pub vocabulary: usize,
    /// Tokens in a sequence as it was trained; longer ones are read as well, since distances have no end.
    pub context: usize,
    /// Channels of the residual stream, C.
    pub width: usize,
    /// Blocks of the encoder.
    pub layers: usize,
    /// Blocks of the decoder.
    pub decoder_layers: usize,
    /// Attention heads in each block, H.
    pub heads: usize,
    /// Channels of a head, D.
    pub head_size: usize,
    /// Width inside the feed-forward part.
    pub hidden: usize,
    /// Activation of the feed-forward part.
    pub activation: Activation,
    /// The feed-forward part multiplies two projections, one of them activated.
    pub gated: bool,
    /// Biases of each table.
    pub buckets: usize,
    /// Distance from which on all share the last bias.
    pub farthest: usize,
    /// Added to the mean square in every norm.
    pub norm_epsilon: f32,
    /// Share of elements zeroed in training, everywhere.
    pub dropout: f32,
    /// The head is the token embedding.
    pub tie: bool,
    /// The last state is multiplied by `C^-0.5` before the head.
    pub scale_output: bool,
    /// Factor on the standard deviations of initial weights.
    pub factor: f64,
    /// The token before the first one that the decoder writes.
    pub start: u32,
    /// The token that fills up short sequences.
    pub padding: u32,
    /// Keys of `config.json` that change nothing here, kept for saving.
    pub kept: Map<String, Json>,
}

impl T5 {
    /// A new one, gated as T5 1.1 unless the activation is a rectifier. The last token of the vocabulary is start and padding, the
    /// one before it the end.
    pub fn from_design(design: &Design) -> Result<Self> {
        design.refuse_for("t5", &["kv_heads", "rope_theta", "window"])?;
        if design.bias {
            let expected = "false: the family t5 has no biases in its layers".to_string();
            let (place, key) = ("the recipe".into(), "bias".into());
            return Err(Error::Setting { place, key, expected, got: "true".into() });
        }
        let head_size = match design.head_size {
            Some(size) => size,
            None => shared_width("the recipe", "heads", design.width, design.heads)?,
        };
        let t5 = T5 {
            encoder_only: false,
            vocabulary: design.vocabulary,
            context: design.context,
            width: design.width,
            layers: design.layers,
            decoder_layers: design.layers,
            heads: design.heads,
            head_size,
            hidden: design.hidden.unwrap_or(4 * design.width),
            activation: design.activation,
            gated: design.activation != Activation::Relu,
            buckets: 32,
            farthest: 128,
            norm_epsilon: design.norm_epsilon,
            dropout: design.dropout,
            tie: design.tie,
            scale_output: design.tie,
            factor: 1.0,
            start: last_token(design),
            padding: last_token(design),
            kept: end_before_last(design),
        };
        t5.check("the recipe", |key| key)?;
        Ok(t5)
    }

    fn check(&self, place: &str, name: fn(&'static str) -> &'static str) -> Result<()> {
        let refuse = |key: &'static str, expected: String, got: String| {
            Err(Error::Setting { place: place.into(), key: name(key).into(), expected, got })
        };
        let sizes = [
            ("vocabulary", self.vocabulary),
            ("width", self.width),
            ("layers", self.layers),
            ("decoder_layers", self.decoder_layers),
            ("heads", self.heads),
            ("head_size", self.head_size),
            ("hidden", self.hidden),
        ];
        if let Some((key, size)) = sizes.iter().find(|(_, size)| *size == 0) {
            return refuse(key, "above zero".into(), size.to_string());
        }
        if self.activation == Activation::Prelu {
            return refuse("activation", "one without a learned slope".into(), "prelu".into());
        }
        if self.gated && self.activation == Activation::Gelu {
            return refuse("activation", "gelu_new where it is gated, as T5 has it".into(), "gelu".into());
        }
        // The encoder halves its buckets by direction, and half of those must be left for single distances.
        if self.buckets < 4 || !self.buckets.is_multiple_of(4) {
            return refuse("buckets", "a multiple of 4".into(), self.buckets.to_string());
        }
        if self.farthest <= self.buckets / 2 {
            let expected = format!("above half the buckets, {}", self.buckets / 2);
            return refuse("farthest", expected, self.farthest.to_string());
        }
        for (key, token) in [("start", self.start), ("padding", self.padding)] {
            if token as usize >= self.vocabulary {
                return refuse(key, format!("a token below {}", self.vocabulary), token.to_string());
            }
        }
        match (0.0..1.0).contains(&self.dropout) {
            true => Ok(()),
            false => refuse("dropout", "a number in 0.0..1.0".into(), self.dropout.to_string()),
        }
    }

    /// Channels of all heads together.
    fn inner(&self) -> usize {
        self.heads * self.head_size
    }

    /// How distances share biases in the encoder, or in the decoder.
    fn distances(&self, both: bool) -> Buckets {
        Buckets { count: self.buckets, farthest: self.farthest, both }
    }

    fn stack_parameters(&self, stack: Stack, list: &mut Vec<ParameterSpec>) {
        for layer in 0..self.depth(stack) {
            let module = |part: usize| format!("{}.block.{layer}.layer.{part}", stack.name());
            self.attention_parameters(&format!("{}.SelfAttention", module(0)), layer == 0, list);
            self.norm_parameters(&format!("{}.layer_norm", module(0)), list);
            if stack == Stack::Decoder {
                self.attention_parameters(&format!("{}.EncDecAttention", module(1)), false, list);
                self.norm_parameters(&format!("{}.layer_norm", module(1)), list);
            }
            self.feed_parameters(&module(stack.feeding()), list);
        }
        self.norm_parameters(&format!("{}.final_layer_norm", stack.name()), list);
    }

    /// Deviations are those of transformers, after the authors' own code: what comes in has unit variance.
    fn attention_parameters(&self, module: &str, with_table: bool, list: &mut Vec<ParameterSpec>) {
        let (c, inner) = (self.width as f64, self.inner());
        for (name, size, inputs) in [
            ("q", [inner, self.width], c * self.head_size as f64),
            ("k", [inner, self.width], c),
            ("v", [inner, self.width], c),
            ("o", [self.width, inner], inner as f64),
        ] {
            list.push(self.weight(format!("{module}.{name}.weight"), size, inputs));
        }
        if with_table {
            let name = format!("{module}.relative_attention_bias.weight");
            list.push(self.weight(name, [self.buckets, self.heads], c));
        }
    }

    fn feed_parameters(&self, module: &str, list: &mut Vec<ParameterSpec>) {
        let dense = |name: &str| format!("{module}.DenseReluDense.{name}.weight");
        let first: &[&str] = if self.gated { &["wi_0", "wi_1"] } else { &["wi"] };
        for name in first {
            list.push(self.weight(dense(name), [self.hidden, self.width], self.width as f64));
        }
        list.push(self.weight(dense("wo"), [self.width, self.hidden], self.hidden as f64));
        self.norm_parameters(&format!("{module}.layer_norm"), list);
    }

    fn norm_parameters(&self, module: &str, list: &mut Vec<ParameterSpec>) {
        list.push(ParameterSpec::new(format!("{module}.weight"), [self.width], Init::Ones));
    }

    /// A matrix whose elements have the variance `factor^2 / inputs`.
    fn weight(&self, name: String, size: [usize; 2], inputs: f64) -> ParameterSpec {
        ParameterSpec::new(name, size, Init::Normal { deviation: self.factor / inputs.sqrt() })
    }

    fn depth(&self, stack: Stack) -> usize {
        if stack == Stack::Encoder { self.layers } else { self.decoder_layers }
    }
}

/// One of the two halves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stack {
    Encoder,
    Decoder,
}

impl Stack {
    fn name(self) -> &'static str {
        if self == Stack::Encoder { "encoder" } else { "decoder" }
    }

    /// Number of the feed-forward part within a block.
    fn feeding(self) -> usize {
        if self == Stack::Encoder { 1 } else { 2 }
    }
}

impl Family for T5 {
    fn name(&self) -> &'static str {
        "t5"
    }

    fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    fn context(&self) -> usize {
        self.context
    }

    fn longest_source(&self) -> Option<usize> {
        None
    }

    fn parameters(&self) -> Vec<ParameterSpec> {
        let mut list = vec![self.weight("shared.weight".into(), [self.vocabulary, self.width], 1.0)];
        self.stack_parameters(Stack::Encoder, &mut list);
        if self.encoder_only {
            return list;
        }
        self.stack_parameters(Stack::Decoder, &mut list);
        if !self.tie {
            list.push(self.weight("lm_head.weight".into(), [self.vocabulary, self.width], 1.0));
        }
        list
    }

    fn interface(&self) -> Interface {
        if self.encoder_only {
            return Interface::of(Task::States);
        }
        Interface { start: Some([self.start, self.padding]), ..Interface::of(Task::SecondText) }
    }

    fn read(&self, graph: &mut Graph, reading: &Reading) -> Result<Forward> {
        match (self.encoder_only, reading.mode) {
            (true, Mode::Continue { .. }) => {
                let expected = Task::SecondText.describe().into();
                Err(Error::Task { expected, got: Task::States.describe() })
            }
            (true, _) => self.write_states(graph, reading),
            (false, _) => self.write(graph, reading),
        }
    }

    fn remember(&self, graph: &mut Graph, reading: &Reading) -> Result<Vec<(String, Value)>> {
        self.write_memory(graph, reading)
    }

    /// Older checkpoints hold the shared embedding up to three times, and a table of biases that nothing reads.
    fn canonical_name(&self, stored: &str) -> Option<String> {
        let copy = stored.ends_with("coder.embed_tokens.weight") || self.tie && stored == "lm_head.weight";
        let unread = stored.ends_with(".EncDecAttention.relative_attention_bias.weight");
        (!copy && !unread).then(|| stored.to_string())
    }

    fn config(&self) -> Map<String, Json> {
        self.keys()
    }

    fn set_dropout(&mut self, share: f32) {
        self.dropout = share;
    }

    fn describe(&self) -> String {
        let T5 { layers, decoder_layers, heads, width, vocabulary, .. } = self;
        let count = count_elements(&self.parameters());
        if self.encoder_only {
            return format!(
                "t5 encoder: {layers} layers, {heads} heads, width {width}, vocabulary {vocabulary}, {count} parameters"
            );
        }
        let head = if self.tie { "tied" } else { "separate" };
        format!(
            "t5: {layers} + {decoder_layers} layers, {heads} heads, width {width}, vocabulary {vocabulary}, {head} head, {count} parameters"
        )
    }
}
