//! Llama and its relatives: decoders with rotary positions, RMS norms, grouped heads and a gated feed-forward part.
//!
//! ```text
//! h = embed_tokens[tokens]
//! h = h + o_proj(attention(turn(q_proj(n)), turn(k_proj(n)), v_proj(n)))    n = input_layernorm(h), for each block
//! h = h + down_proj(act(gate_proj(n)) * up_proj(n))                         n = post_attention_layernorm(h)
//! logits = norm(h) lm_head^T                                                or embed_tokens, tied
//! logits = score(norm(h)[last])                                             to classify a text, by its last token
//! ```
//! Linear weights are stored as [out, in]. What the dialects change: Mistral sees a window of keys, Qwen2 has biases on
//! queries, keys and values, Qwen3 norms each head of queries and keys before they turn.

mod configuration;
mod forward;
#[cfg(test)]
mod tests;

use super::config::MOST_LAYERS;
use super::rope::Rope;
use super::{
    Activation, Design, Error, Family, Forward, Init, Interface, ParameterSpec, Reading, Result, Score, Task,
    count_elements, score,
};
use crate::graph::Graph;
use serde_json::{Map, Value as Json};

/// A relative of Llama, by the names of its checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Llama 2 and 3, SmolLM2 and others in their layout.
    Llama,
    /// A window of keys.
    Mistral,
    /// Biases on queries, keys and values.
    Qwen2,
    /// Norms on the heads of queries and keys.
    Qwen3,
}

impl Dialect {
    /// `model_type` in `config.json`.
    pub fn name(self) -> &'static str {
        match self {
            Dialect::Llama => "llama",
            Dialect::Mistral => "mistral",
            Dialect::Qwen2 => "qwen2",
            Dialect::Qwen3 => "qwen3",
        }
    }

    /// What the classes of transformers begin with.
    pub(super) fn class(self) -> &'static str {
        match self {
            Dialect::Llama => "Llama",
            Dialect::Mistral => "Mistral",
            Dialect::Qwen2 => "Qwen2",
            Dialect::Qwen3 => "Qwen3",
        }
    }

    /// Base of the rotary positions where nothing is said.
    fn usual_theta(self) -> f64 {
        if matches!(self, Dialect::Qwen2 | Dialect::Qwen3) { 1e6 } else { 1e4 }
    }

    /// Some linear layers may have biases, or not.
    fn may_have_bias(self) -> bool {
        matches!(self, Dialect::Llama | Dialect::Qwen3)
    }
}

/// A Llama of any size and dialect.
#[derive(Clone, Debug, PartialEq)]
pub struct Llama {
    /// Which relative.
    pub dialect: Dialect,
    /// Tokens it knows, V.
    pub vocabulary: usize,
    /// Most tokens in one sequence.
    pub context: usize,
    /// Channels of the residual stream, C.
    pub width: usize,
    /// Blocks.
    pub layers: usize,
    /// Heads of the queries in each block, H.
    pub heads: usize,
    /// Heads of the keys and values, G; each serves H / G queries.
    pub kv_heads: usize,
    /// Channels of a head, D.
    pub head_size: usize,
    /// Width inside the feed-forward part.
    pub hidden: usize,
    /// Activation of the gate.
    pub activation: Activation,
    /// Added to the mean of squares in every norm.
    pub norm_epsilon: f32,
    /// Share of attention probabilities zeroed in training.
    pub dropout: f32,
    /// The projections of attention have biases (Qwen2 always has those of queries, keys and values).
    pub attention_bias: bool,
    /// The projections of the feed-forward part have biases.
    pub feed_bias: bool,
    /// The head is the token embedding.
    pub tie: bool,
    /// By block: only this many keys are seen, the query's own among them.
    pub windows: Vec<Option<usize>>,
    /// Positions.
    pub rope: Rope,
    /// Standard deviation of initial weights.
    pub deviation: f64,
    /// Judges whole texts, in the place of scores of tokens.
    pub score: Option<Score>,
    /// Keys of `config.json` that change nothing here, such as token ids, kept for saving.
    pub kept: Map<String, Json>,
}

impl Llama {
    /// A new one.
    pub fn from_design(dialect: Dialect, design: &Design) -> Result<Self> {
        let place = "the recipe";
        if design.bias && !dialect.may_have_bias() {
            let expected = format!("false: which biases a {} has is fixed", dialect.name());
            return Err(setting(place, "bias", &expected, "true".into()));
        }
        let heads = design.heads.max(1);
        if design.head_size.is_none() && !design.width.is_multiple_of(heads) {
            let expected = format!("a divisor of the width, {}, or head_size beside it", design.width);
            return Err(setting(place, "heads", &expected, heads.to_string()));
        }
        check_layers(place, "layers", design.layers)?;
        let llama = Llama {
            dialect,
            vocabulary: design.vocabulary,
            context: design.context,
            width: design.width,
            layers: design.layers,
            heads: design.heads,
            kv_heads: design.kv_heads.unwrap_or(design.heads),
            head_size: design.head_size.unwrap_or(design.width / heads),
            hidden: design.hidden.unwrap_or(gated_width(design.width)),
            activation: design.activation,
            norm_epsilon: design.norm_epsilon,
            dropout: design.dropout,
            attention_bias: design.bias,
            feed_bias: design.bias && dialect == Dialect::Llama,
            tie: design.tie,
            windows: vec![design.window; design.layers],
            rope: Rope::plain(design.rope_theta.unwrap_or(dialect.usual_theta())),
            deviation: 0.02,
            score: None,
            kept: Map::new(),
        };
        llama.check(place, |key| key)?;
        Ok(llama)
    }

    /// Refuses what cannot be built; `key_of` gives the place's name for a field.
    fn check(&self, place: &str, key_of: impl Fn(&'static str) -> &'static str) -> Result<()> {
        let refuse = |key, expected: &str, got: String| Err(setting(place, key_of(key), expected, got));
        let sizes = [
            ("vocabulary", self.vocabulary),
            ("context", self.context),
            ("width", self.width),
            ("heads", self.heads),
            ("kv_heads", self.kv_heads),
            ("head_size", self.head_size),
            ("hidden", self.hidden),
        ];
        if let Some((key, size)) = sizes.iter().find(|(_, size)| *size == 0) {
            return refuse(key, "above zero", size.to_string());
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            let expected = format!("a divisor of the {} heads of the queries", self.heads);
            return refuse("kv_heads", &expected, self.kv_heads.to_string());
        }
        self.rope.check(place, key_of("head_size"), self.head_size)?;
        if self.activation == Activation::Prelu {
            return refuse("activation", "one without a learned slope", "prelu".into());
        }
        if self.windows.contains(&Some(0)) {
            return refuse("window", "above zero", "0".into());
        }
        if self.windows.iter().any(Option::is_some) && self.dialect == Dialect::Llama {
            return refuse("window", "absent: the families mistral, qwen2 and qwen3 have one", "set".into());
        }
        match (0.0..1.0).contains(&self.dropout) {
            true => Ok(()),
            false => refuse("dropout", "a number in 0.0..1.0", self.dropout.to_string()),
        }
    }

    /// Queries, keys and values have biases; the output projection may still have none.
    fn has_source_bias(&self) -> bool {
        self.attention_bias || self.dialect == Dialect::Qwen2
    }

    fn block_parameters(&self, layer: usize, list: &mut Vec<ParameterSpec>) {
        let (c, inner) = (self.width, self.hidden);
        let (queries, keys) = (self.heads * self.head_size, self.kv_heads * self.head_size);
        let normal = Init::Normal { deviation: self.deviation };
        // Each block adds twice to the residual stream: scaled so, its variance does not grow with depth.
        let residual = Init::Normal { deviation: self.deviation / (2.0 * self.layers as f64).sqrt() };
        let module = |name: &str| format!("model.layers.{layer}.{name}");
        let mut linear = |name: &str, size: [usize; 2], init, bias: bool| {
            list.push(ParameterSpec::new(format!("{}.weight", module(name)), size, init));
            if bias {
                list.push(ParameterSpec::new(format!("{}.bias", module(name)), [size[0]], Init::Zeros));
            }
        };
        let source_bias = self.has_source_bias();
        linear("self_attn.q_proj", [queries, c], normal, source_bias);
        linear("self_attn.k_proj", [keys, c], normal, source_bias);
        linear("self_attn.v_proj", [keys, c], normal, source_bias);
        linear("self_attn.o_proj", [c, queries], residual, self.attention_bias);
        linear("mlp.gate_proj", [inner, c], normal, self.feed_bias);
        linear("mlp.up_proj", [inner, c], normal, self.feed_bias);
        linear("mlp.down_proj", [c, inner], residual, self.feed_bias);
        let mut norm = |name: &str, size: usize| {
            list.push(ParameterSpec::new(format!("{}.weight", module(name)), [size], Init::Ones));
        };
        norm("input_layernorm", c);
        norm("post_attention_layernorm", c);
        if self.dialect == Dialect::Qwen3 {
            norm("self_attn.q_norm", self.head_size);
            norm("self_attn.k_norm", self.head_size);
        }
    }
}

impl Family for Llama {
    fn name(&self) -> &'static str {
        self.dialect.name()
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
        let mut list = vec![ParameterSpec::new("model.embed_tokens.weight", table, normal)];
        (0..self.layers).for_each(|layer| self.block_parameters(layer, &mut list));
        list.push(ParameterSpec::new("model.norm.weight", [self.width], Init::Ones));
        match &self.score {
            Some(score) => list.push(score.parameter(self.width, self.deviation)),
            None if self.tie => {}
            None => list.push(ParameterSpec::new("lm_head.weight", table, normal)),
        }
        list
    }

    fn interface(&self) -> Interface {
        match &self.score {
            Some(score) => score.interface(true),
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

    /// Checkpoints of the bare decoder lack the prefix; older ones hold the rates of the rotary positions as well.
    fn canonical_name(&self, stored: &str) -> Option<String> {
        let other_head = (self.tie || self.score.is_some()) && stored == "lm_head.weight";
        if other_head || stored.ends_with("rotary_emb.inv_freq") {
            return None;
        }
        let full = ["model.", "lm_head.", "score."].iter().any(|start| stored.starts_with(start));
        Some(if full { stored.to_string() } else { format!("model.{stored}") })
    }

    fn is_of_head(&self, parameter: &str) -> bool {
        parameter == score::WEIGHT || parameter == "lm_head.weight"
    }

    fn config(&self) -> Map<String, Json> {
        self.keys()
    }

    fn set_dropout(&mut self, share: f32) {
        self.dropout = share;
    }

    fn describe(&self) -> String {
        let Llama { layers, heads, kv_heads, width, hidden, context, vocabulary, .. } = self;
        let head = score::describe(self.score.as_ref(), self.tie);
        let count = count_elements(&self.parameters());
        format!(
            "{}: {layers} layers, {heads} heads over {kv_heads}, width {width}, hidden {hidden}, context {context}, vocabulary {vocabulary}, {head}, {count} parameters",
            self.name()
        )
    }
}

/// Usual width inside a gated feed-forward part: three matrices of 8/3 of the width weigh as much as two of four times.
pub(super) fn gated_width(width: usize) -> usize {
    (8 * width).div_ceil(3).next_multiple_of(32)
}

fn check_layers(place: &str, key: &str, layers: usize) -> Result<()> {
    if (1..=MOST_LAYERS).contains(&layers) {
        return Ok(());
    }
    Err(setting(place, key, &format!("from 1 to {MOST_LAYERS}"), layers.to_string()))
}

fn setting(place: &str, key: &str, expected: &str, got: String) -> Error {
    Error::Setting { place: place.into(), key: key.into(), expected: expected.into(), got }
}
