//! GPT-2: a decoder with learned positions, norms before attention and feed-forward part, and by default a tied head.
//!
//! ```text
//! h = dropout(wte[tokens] + wpe[0..T])
//! h = h + dropout(c_proj(attention(c_attn(ln_1(h)))))      for each block
//! h = h + dropout(c_proj(activation(c_fc(ln_2(h)))))
//! logits = ln_f(h) wte^T                                   or lm_head, untied
//! logits = score(ln_f(h)[last])                            to classify a text, by its last token
//! ```
//! Linear weights are stored as [in, out] (the checkpoints' "Conv1D"), the head as [V, C]. A model from which heads or channels
//! were pruned says the size of its heads in a key of our own, `head_dim`; without it the heads share the width.

mod forward;
#[cfg(test)]
mod tests;

use super::config::{head_size, shared_width, shortest};
use super::{
    Activation, Config, Design, Error, Family, Forward, Init, Interface, ParameterSpec, Reading, Result,
    Score, Task, count_elements, score,
};
use crate::graph::Graph;
use serde_json::{Map, Value as Json, json};

/// Keys that [`Gpt2`] reads and writes; all others are kept as they came.
const OWN_KEYS: &[&str] = &[
    "model_type",
    "architectures",
    "vocab_size",
    "n_positions",
    "max_position_embeddings",
    "n_ctx",
    "n_embd",
    "hidden_size",
    "n_layer",
    "num_hidden_layers",
    "n_head",
    "num_attention_heads",
    "head_dim",
    "n_inner",
    "activation_function",
    "layer_norm_epsilon",
    "embd_pdrop",
    "attn_pdrop",
    "resid_pdrop",
    "tie_word_embeddings",
    "scale_attn_weights",
    "scale_attn_by_inverse_layer_idx",
    "initializer_range",
    "bias",
    "dtype",
    "torch_dtype",
];

/// Shares of elements zeroed in training.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Dropouts {
    /// Of the sum of token and position embeddings.
    pub embedding: f32,
    /// Of the attention probabilities.
    pub attention: f32,
    /// Of what each half of a block adds.
    pub residual: f32,
}

/// A GPT-2 of any size.
#[derive(Clone, Debug, PartialEq)]
pub struct Gpt2 {
    /// Tokens it knows, V.
    pub vocabulary: usize,
    /// Most tokens in one sequence.
    pub context: usize,
    /// Channels of the residual stream, C.
    pub width: usize,
    /// Blocks.
    pub layers: usize,
    /// Attention heads in each block, H.
    pub heads: usize,
    /// Channels of a head, D.
    pub head_size: usize,
    /// Width inside the feed-forward part.
    pub hidden: usize,
    /// Activation of the feed-forward part.
    pub activation: Activation,
    /// Added to the variance in every norm.
    pub norm_epsilon: f32,
    /// Dropout in training.
    pub dropout: Dropouts,
    /// Linear layers and norms have biases.
    pub bias: bool,
    /// The head is the token embedding.
    pub tie: bool,
    /// Scores are divided by the root of the head size.
    pub scale_scores: bool,
    /// Scores are divided by the number of the block, counted from one, as well.
    pub scale_by_layer: bool,
    /// Standard deviation of initial weights.
    pub deviation: f64,
    /// Judges whole texts, in the place of scores of tokens.
    pub score: Option<Score>,
    /// Keys of `config.json` that change nothing here, such as token ids, kept for saving.
    pub kept: Map<String, Json>,
}

impl Gpt2 {
    /// From the keys of a `config.json`, in either spelling; absent keys are as in GPT-2 124M.
    pub fn from_config(config: &Config) -> Result<Self> {
        config.refuse_set(&["add_cross_attention"])?;
        let width = config.count(&["n_embd", "hidden_size"], 768)?;
        let heads = config.count(&["n_head", "num_attention_heads"], 12)?;
        let vocabulary = config.count(&["vocab_size"], 50257)?;
        let gpt = Gpt2 {
            vocabulary,
            context: config.count(&["n_positions", "max_position_embeddings"], 1024)?,
            width,
            layers: config.count(&["n_layer", "num_hidden_layers"], 12)?,
            heads,
            head_size: head_size(config, "n_head", width, heads)?,
            hidden: config.count(&["n_inner"], 4 * width)?,
            activation: config.activation("activation_function", "gelu_new")?,
            norm_epsilon: config.number(&["layer_norm_epsilon"], 1e-5)? as f32,
            dropout: Dropouts {
                embedding: config.share(&["embd_pdrop"], 0.1)? as f32,
                attention: config.share(&["attn_pdrop"], 0.1)? as f32,
                residual: config.share(&["resid_pdrop"], 0.1)? as f32,
            },
            bias: config.flag(&["bias"], true)?,
            tie: config.flag(&["tie_word_embeddings"], true)?,
            scale_scores: config.flag(&["scale_attn_weights"], true)?,
            scale_by_layer: config.flag(&["scale_attn_by_inverse_layer_idx"], false)?,
            deviation: config.number(&["initializer_range"], 0.02)?,
            score: Score::read(config, "GPT2", vocabulary)?,
            kept: config.except(&[OWN_KEYS]),
        };
        gpt.check(config.place())?;
        Ok(gpt)
    }

    /// A new one.
    pub fn from_design(design: &Design) -> Result<Self> {
        design.refuse_for("gpt2", &["kv_heads", "head_size", "rope_theta", "window"])?;
        let Design { dropout, .. } = *design;
        let gpt = Gpt2 {
            vocabulary: design.vocabulary,
            context: design.context,
            width: design.width,
            layers: design.layers,
            heads: design.heads,
            head_size: shared_width("the recipe", "heads", design.width, design.heads)?,
            hidden: design.hidden.unwrap_or(4 * design.width),
            activation: design.activation,
            norm_epsilon: design.norm_epsilon,
            dropout: Dropouts { embedding: dropout, attention: dropout, residual: dropout },
            bias: design.bias,
            tie: design.tie,
            scale_scores: true,
            scale_by_layer: false,
            deviation: 0.02,
            score: None,
            kept: Map::new(),
        };
        gpt.check("the recipe")?;
        Ok(gpt)
    }

    fn check(&self, place: &str) -> Result<()> {
        let refuse = |key: &str, expected: &str, got: String| {
            Err(Error::Setting { place: place.into(), key: key.into(), expected: expected.into(), got })
        };
        let sizes = [
            ("vocabulary", self.vocabulary),
            ("context", self.context),
            ("width", self.width),
            ("layers", self.layers),
            ("heads", self.heads),
            ("hidden", self.hidden),
        ];
        if let Some((key, size)) = sizes.iter().find(|(_, size)| *size == 0) {
            return refuse(key, "above zero", size.to_string());
        }
        if self.activation == Activation::Prelu {
            return refuse("activation", "one without a learned slope", "prelu".into());
        }
        let Dropouts { embedding, attention, residual } = self.dropout;
        match [embedding, attention, residual].iter().find(|share| !(0.0..1.0).contains(*share)) {
            Some(share) => refuse("dropout", "a number in 0.0..1.0", share.to_string()),
            None => Ok(()),
        }
    }

    /// Channels of all heads together.
    fn inner(&self) -> usize {
        self.heads * self.head_size
    }

    fn block_parameters(&self, layer: usize, list: &mut Vec<ParameterSpec>) {
        let (c, heads, hidden) = (self.width, self.inner(), self.hidden);
        let normal = Init::Normal { deviation: self.deviation };
        // Each block adds twice to the residual stream: scaled so, its variance does not grow with depth.
        let residual = Init::Normal { deviation: self.deviation / (2.0 * self.layers as f64).sqrt() };
        let module = |name: &str| format!("transformer.h.{layer}.{name}");
        self.norm_parameters(&module("ln_1"), list);
        self.linear_parameters(&module("attn.c_attn"), [c, 3 * heads], normal, list);
        self.linear_parameters(&module("attn.c_proj"), [heads, c], residual, list);
        self.norm_parameters(&module("ln_2"), list);
        self.linear_parameters(&module("mlp.c_fc"), [c, hidden], normal, list);
        self.linear_parameters(&module("mlp.c_proj"), [hidden, c], residual, list);
    }

    fn norm_parameters(&self, module: &str, list: &mut Vec<ParameterSpec>) {
        list.push(ParameterSpec::new(format!("{module}.weight"), [self.width], Init::Ones));
        if self.bias {
            list.push(ParameterSpec::new(format!("{module}.bias"), [self.width], Init::Zeros));
        }
    }

    fn linear_parameters(&self, module: &str, size: [usize; 2], init: Init, list: &mut Vec<ParameterSpec>) {
        list.push(ParameterSpec::new(format!("{module}.weight"), size, init));
        if self.bias {
            list.push(ParameterSpec::new(format!("{module}.bias"), [size[1]], Init::Zeros));
        }
    }
}

impl Family for Gpt2 {
    fn name(&self) -> &'static str {
        "gpt2"
    }

    fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    fn context(&self) -> usize {
        self.context
    }

    fn parameters(&self) -> Vec<ParameterSpec> {
        let normal = Init::Normal { deviation: self.deviation };
        let mut list = vec![
            ParameterSpec::new("transformer.wte.weight", [self.vocabulary, self.width], normal),
            ParameterSpec::new("transformer.wpe.weight", [self.context, self.width], normal),
        ];
        (0..self.layers).for_each(|layer| self.block_parameters(layer, &mut list));
        self.norm_parameters("transformer.ln_f", &mut list);
        match &self.score {
            Some(score) => list.push(score.parameter(self.width, self.deviation)),
            None if self.tie => {}
            None => list.push(ParameterSpec::new("lm_head.weight", [self.vocabulary, self.width], normal)),
        }
        list
    }

    fn interface(&self) -> Interface {
        match &self.score {
            Some(score) => score.interface(false),
            None => Interface { packs: true, ..Interface::of(Task::NextToken) },
        }
    }

    fn read(&self, graph: &mut Graph, reading: &Reading) -> Result<Forward> {
        match &self.score {
            Some(score) => score.check(reading, self.context)?,
            None => reading.check_length(self.context)?,
        }
        self.write(graph, reading)
    }

    /// Checkpoints of the bare transformer lack the prefix; older ones hold causal masks as well.
    fn canonical_name(&self, stored: &str) -> Option<String> {
        let mask = stored.ends_with(".attn.bias") || stored.ends_with(".attn.masked_bias");
        let other_head = (self.tie || self.score.is_some()) && stored == "lm_head.weight";
        if mask || other_head {
            return None;
        }
        let full = ["transformer.", "lm_head.", "score."].iter().any(|start| stored.starts_with(start));
        Some(if full { stored.to_string() } else { format!("transformer.{stored}") })
    }

    fn is_of_head(&self, parameter: &str) -> bool {
        parameter == score::WEIGHT || parameter == "lm_head.weight"
    }

    fn config(&self) -> Map<String, Json> {
        let keys = json!({
            "architectures": [if self.score.is_some() { "GPT2ForSequenceClassification" } else { "GPT2LMHeadModel" }],
            "model_type": "gpt2",
            "vocab_size": self.vocabulary,
            "n_positions": self.context,
            "n_embd": self.width,
            "n_layer": self.layers,
            "n_head": self.heads,
            "n_inner": self.hidden,
            "activation_function": self.activation.name(),
            "layer_norm_epsilon": shortest(self.norm_epsilon),
            "embd_pdrop": shortest(self.dropout.embedding),
            "attn_pdrop": shortest(self.dropout.attention),
            "resid_pdrop": shortest(self.dropout.residual),
            "initializer_range": self.deviation,
            "scale_attn_weights": self.scale_scores,
            "scale_attn_by_inverse_layer_idx": self.scale_by_layer,
            "tie_word_embeddings": self.tie,
            "torch_dtype": "float32",
        });
        let Json::Object(mut keys) = keys else { unreachable!("the literal above is an object") };
        if !self.bias {
            keys.insert("bias".into(), json!(false));
        }
        if self.inner() != self.width {
            keys.insert("head_dim".into(), json!(self.head_size));
        }
        keys.extend(self.kept.clone());
        keys
    }

    fn set_dropout(&mut self, share: f32) {
        self.dropout = Dropouts { embedding: share, attention: share, residual: share };
    }

    fn describe(&self) -> String {
        let Gpt2 { layers, heads, width, context, vocabulary, .. } = self;
        let head = score::describe(self.score.as_ref(), self.tie);
        let count = count_elements(&self.parameters());
        format!(
            "gpt2: {layers} layers, {heads} heads, width {width}, context {context}, vocabulary {vocabulary}, {head}, {count} parameters"
        )
    }
}
