//! GPT-NeoX, as in Pythia: layer norms, rotary positions on a part of each head, and both halves of a block side by side.
//!
//! ```text
//! h = embed_in[tokens]
//! h = h + dense(attention(query_key_value(input_layernorm(h)))) + mlp(post_attention_layernorm(h))    for each block
//! logits = final_layer_norm(h) embed_out^T
//! logits = score(final_layer_norm(h)[last])                  to classify a text, by its last token
//! ```
//! Without `use_parallel_residual` the feed-forward part reads what attention has added. Linear weights are stored as
//! [out, in]; the joint projection holds query, key and value of the first head, then of the second, and so on. A model from which
//! heads or channels were pruned says the size of its heads in a key of our own, `head_dim`.

mod forward;
#[cfg(test)]
mod tests;

use super::config::{MOST_LAYERS, head_size, shared_width, shortest};
use super::rope::{ROPE_KEYS, Rope, Scaling, Spelling};
use super::{
    Activation, Config, Design, Dropouts, Error, Family, Forward, Init, Interface, ParameterSpec, Reading,
    Result, Score, Task, count_elements, score,
};
use crate::graph::Graph;
use serde_json::{Map, Value as Json, json};

/// Keys that [`GptNeoX`] reads and writes besides those of the positions; all others are kept as they came.
const OWN_KEYS: &[&str] = &[
    "model_type",
    "architectures",
    "vocab_size",
    "max_position_embeddings",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "head_dim",
    "hidden_act",
    "layer_norm_eps",
    "attention_dropout",
    "hidden_dropout",
    "attention_bias",
    "use_parallel_residual",
    "tie_word_embeddings",
    "initializer_range",
    "rotary_pct",
    "rotary_emb_base",
    "dtype",
    "torch_dtype",
];

/// Its positions are those of GPT-NeoX-20B where nothing is said: a quarter of each head turns.
const SPELLING: Spelling = Spelling {
    theta: &["rotary_emb_base", "rope_theta"],
    share: &["rotary_pct", "partial_rotary_factor"],
    usual: Rope { theta: 10_000.0, share: 0.25, scaling: Scaling::None },
};

/// Weights of an untied head.
const HEAD: &str = "embed_out.weight";

/// A GPT-NeoX of any size.
#[derive(Clone, Debug, PartialEq)]
pub struct GptNeoX {
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
    /// Dropout in training; `embedding` and `residual` are one setting in its files.
    pub dropout: Dropouts,
    /// The projections of attention have biases.
    pub attention_bias: bool,
    /// Both halves of a block read the same stream.
    pub parallel: bool,
    /// The head is the token embedding.
    pub tie: bool,
    /// Positions.
    pub rope: Rope,
    /// Standard deviation of initial weights.
    pub deviation: f64,
    /// Judges whole texts, in the place of scores of tokens.
    pub score: Option<Score>,
    /// Keys of `config.json` that change nothing here, such as token ids, kept for saving.
    pub kept: Map<String, Json>,
}

impl GptNeoX {
    /// From the keys of a `config.json`, in either spelling. The sizes must be there; other absent keys are as in transformers.
    pub fn from_config(config: &Config) -> Result<Self> {
        config.refuse_set(&["add_cross_attention"])?;
        let dropout = config.share(&["hidden_dropout"], 0.0)? as f32;
        let attention = config.share(&["attention_dropout"], 0.0)? as f32;
        let width = config.needed_count("hidden_size")?;
        let heads = config.needed_count("num_attention_heads")?;
        let vocabulary = config.needed_count("vocab_size")?;
        let neox = GptNeoX {
            vocabulary,
            context: config.needed_count("max_position_embeddings")?,
            width,
            layers: config.needed_count("num_hidden_layers")?,
            heads,
            head_size: head_size(config, "num_attention_heads", width, heads)?,
            hidden: config.needed_count("intermediate_size")?,
            activation: config.activation("hidden_act", "gelu")?,
            norm_epsilon: config.number(&["layer_norm_eps"], 1e-5)? as f32,
            dropout: Dropouts { embedding: dropout, attention, residual: dropout },
            attention_bias: config.flag(&["attention_bias"], true)?,
            parallel: config.flag(&["use_parallel_residual"], true)?,
            tie: config.flag(&["tie_word_embeddings"], false)?,
            rope: Rope::read(config, &SPELLING)?,
            deviation: config.number(&["initializer_range"], 0.02)?,
            score: Score::read(config, "GPTNeoX", vocabulary)?,
            kept: config.except(&[OWN_KEYS, ROPE_KEYS]),
        };
        neox.check(config.place(), |key| match key {
            "heads" => "num_attention_heads",
            "layers" => "num_hidden_layers",
            other => other,
        })?;
        Ok(neox)
    }

    /// A new one, with parallel halves.
    pub fn from_design(design: &Design) -> Result<Self> {
        design.refuse_for("gpt_neox", &["kv_heads", "head_size", "window"])?;
        let Design { dropout, .. } = *design;
        let theta = design.rope_theta.unwrap_or(SPELLING.usual.theta);
        let neox = GptNeoX {
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
            attention_bias: design.bias,
            parallel: true,
            tie: design.tie,
            rope: Rope { theta, ..SPELLING.usual },
            deviation: 0.02,
            score: None,
            kept: Map::new(),
        };
        neox.check("the recipe", |key| key)?;
        Ok(neox)
    }

    /// Channels of all heads together.
    fn inner(&self) -> usize {
        self.heads * self.head_size
    }

    fn check(&self, place: &str, key_of: impl Fn(&'static str) -> &'static str) -> Result<()> {
        let refuse = |key, expected: &str, got: String| {
            let (place, key) = (place.to_string(), key_of(key).to_string());
            Err(Error::Setting { place, key, expected: expected.to_string(), got })
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
        if self.layers > MOST_LAYERS {
            return refuse("layers", &format!("at most {MOST_LAYERS}"), self.layers.to_string());
        }
        self.rope.check(place, key_of("heads"), self.head_size)?;
        if self.activation == Activation::Prelu {
            return refuse("activation", "one without a learned slope", "prelu".into());
        }
        let Dropouts { embedding, attention, residual } = self.dropout;
        match [embedding, attention, residual].iter().find(|share| !(0.0..1.0).contains(*share)) {
            Some(share) => refuse("dropout", "a number in 0.0..1.0", share.to_string()),
            None => Ok(()),
        }
    }

    fn block_parameters(&self, layer: usize, list: &mut Vec<ParameterSpec>) {
        let (c, heads, hidden) = (self.width, self.inner(), self.hidden);
        let normal = Init::Normal { deviation: self.deviation };
        // Each block adds twice to the residual stream: scaled so, its variance does not grow with depth.
        let residual = Init::Normal { deviation: self.deviation / (2.0 * self.layers as f64).sqrt() };
        let module = |name: &str| format!("gpt_neox.layers.{layer}.{name}");
        norm_parameters(&module("input_layernorm"), c, list);
        norm_parameters(&module("post_attention_layernorm"), c, list);
        let mut linear = |name: &str, size: [usize; 2], init, bias: bool| {
            list.push(ParameterSpec::new(format!("{}.weight", module(name)), size, init));
            if bias {
                list.push(ParameterSpec::new(format!("{}.bias", module(name)), [size[0]], Init::Zeros));
            }
        };
        linear("attention.query_key_value", [3 * heads, c], normal, self.attention_bias);
        linear("attention.dense", [c, heads], residual, self.attention_bias);
        linear("mlp.dense_h_to_4h", [hidden, c], normal, true);
        linear("mlp.dense_4h_to_h", [c, hidden], residual, true);
    }
}

fn norm_parameters(module: &str, size: usize, list: &mut Vec<ParameterSpec>) {
    list.push(ParameterSpec::new(format!("{module}.weight"), [size], Init::Ones));
    list.push(ParameterSpec::new(format!("{module}.bias"), [size], Init::Zeros));
}

impl Family for GptNeoX {
    fn name(&self) -> &'static str {
        "gpt_neox"
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
        let mut list = vec![ParameterSpec::new("gpt_neox.embed_in.weight", table, normal)];
        (0..self.layers).for_each(|layer| self.block_parameters(layer, &mut list));
        norm_parameters("gpt_neox.final_layer_norm", self.width, &mut list);
        match &self.score {
            Some(score) => list.push(score.parameter(self.width, self.deviation)),
            None if self.tie => {}
            None => list.push(ParameterSpec::new(HEAD, table, normal)),
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

    /// Checkpoints of the bare decoder lack the prefix; older ones hold causal masks and the rates of the positions as well.
    /// Transformers 5 calls the head `lm_head` in memory and still `embed_out` in files.
    fn canonical_name(&self, stored: &str) -> Option<String> {
        let stored = if stored == "lm_head.weight" { HEAD } else { stored };
        let left_out = [".attention.bias", ".attention.masked_bias", "rotary_emb.inv_freq"];
        let other_head = (self.tie || self.score.is_some()) && stored == HEAD;
        if other_head || left_out.iter().any(|end| stored.ends_with(end)) {
            return None;
        }
        let full = ["gpt_neox.", "embed_out.", "score."].iter().any(|start| stored.starts_with(start));
        Some(if full { stored.to_string() } else { format!("gpt_neox.{stored}") })
    }

    fn is_of_head(&self, parameter: &str) -> bool {
        parameter == score::WEIGHT || parameter == HEAD
    }

    fn name_in_memory(&self, parameter: &str) -> String {
        if parameter == HEAD { "lm_head.weight".into() } else { parameter.into() }
    }

    fn config(&self) -> Map<String, Json> {
        let keys = json!({
            "architectures": [score::class("GPTNeoX", self.score.as_ref())],
            "model_type": "gpt_neox",
            "vocab_size": self.vocabulary,
            "max_position_embeddings": self.context,
            "hidden_size": self.width,
            "intermediate_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "hidden_act": self.activation.name(),
            "layer_norm_eps": shortest(self.norm_epsilon),
            "attention_dropout": shortest(self.dropout.attention),
            "hidden_dropout": shortest(self.dropout.residual),
            "attention_bias": self.attention_bias,
            "use_parallel_residual": self.parallel,
            "initializer_range": self.deviation,
            "tie_word_embeddings": self.tie,
            "torch_dtype": "float32",
        });
        let Json::Object(mut keys) = keys else { unreachable!("the literal above is an object") };
        if self.inner() != self.width {
            keys.insert("head_dim".into(), json!(self.head_size));
        }
        self.rope.write(&mut keys, &SPELLING);
        keys.extend(self.kept.clone());
        keys
    }

    fn set_dropout(&mut self, share: f32) {
        self.dropout = Dropouts { embedding: share, attention: share, residual: share };
    }

    fn describe(&self) -> String {
        let GptNeoX { layers, heads, width, context, vocabulary, .. } = self;
        let head = score::describe(self.score.as_ref(), self.tie);
        let count = count_elements(&self.parameters());
        format!(
            "gpt_neox: {layers} layers, {heads} heads, width {width}, context {context}, vocabulary {vocabulary}, {head}, {count} parameters"
        )
    }
}
