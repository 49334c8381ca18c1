//! BERT and its relatives RoBERTa and DistilBERT: encoders, in which every token sees the whole text.
//!
//! ```text
//! h = dropout(norm(words[tokens] + positions + kinds))
//! h = norm(h + dropout(output(attention(query(h), key(h), value(h)))))     for each block
//! h = norm(h + dropout(narrow(activation(widen(h)))))
//! logits = norm(activation(transform(h))) words^T + bias                   to guess hidden tokens
//! logits = classifier(tanh(pooler(h[0])))                                  to classify a text, by its first token
//! logits = classifier(h)                                                   to classify each token
//! ```
//! Linear weights are stored as [out, in]. RoBERTa counts positions from behind the number of its padding token, over tokens that
//! are not padding; its head for texts is a layer more and no pooler. DistilBERT knows one kind of token.

mod configuration;
mod forward;
mod heads;
mod names;
#[cfg(test)]
mod tests;

use super::config::{MOST_LAYERS, shared_width};
use super::families::last_token;
use super::{
    Activation, Design, Error, Family, Forward, Init, Interface, ParameterSpec, Reading, Result, Task,
    count_elements,
};
use crate::graph::Graph;
use serde_json::{Map, Value as Json};

pub use names::Encoder;

/// Shares of elements zeroed in training.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct EncoderDropouts {
    /// Of the embedding and of what each half of a block adds.
    pub hidden: f32,
    /// Of the attention probabilities.
    pub attention: f32,
    /// Of what a classifier reads.
    pub classifier: f32,
}

/// A BERT of any size and dialect, with a head.
#[derive(Clone, Debug, PartialEq)]
pub struct Bert {
    /// Which relative.
    pub dialect: Encoder,
    /// What it gives.
    pub task: Task,
    /// Tokens it knows, V.
    pub vocabulary: usize,
    /// Rows of the table of positions; RoBERTa leaves the first ones out.
    pub positions: usize,
    /// Kinds of token.
    pub kinds: usize,
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
    pub dropout: EncoderDropouts,
    /// The head that guesses tokens shares the embedding's weights.
    pub tie: bool,
    /// An encoder without a head makes a vector of its first token, where its family does.
    pub pools: bool,
    /// The token that fills up short texts. Its row of the embedding is not trained.
    pub padding: Option<u32>,
    /// Standard deviation of initial weights.
    pub deviation: f64,
    /// Keys of `config.json` that change nothing here, such as names of classes, kept for saving.
    pub kept: Map<String, Json>,
}

impl Bert {
    /// A new one, to guess hidden tokens. The last token of a RoBERTa's vocabulary is padding, and its table of positions has as many
    /// unused rows as there are tokens.
    pub fn from_design(dialect: Encoder, design: &Design) -> Result<Self> {
        let place = "the recipe";
        design.refuse_for(dialect.name(), &["kv_heads", "head_size", "rope_theta", "window"])?;
        if !design.bias {
            let (expected, got) = (format!("true: a {} has biases", dialect.name()), "false".to_string());
            return Err(Error::Setting { place: place.into(), key: "bias".into(), expected, got });
        }
        // Positions of a RoBERTa are counted over what is not padding, from behind its number: no text may have that token.
        let padding = dialect.counts_places().then(|| last_token(design));
        let unused = padding.map_or(0, |padding| dialect.first_place(Some(padding)));
        let bert = Bert {
            dialect,
            task: Task::HiddenToken,
            vocabulary: design.vocabulary,
            positions: design.context.saturating_add(unused),
            kinds: dialect.usual_kinds(),
            width: design.width,
            layers: design.layers,
            heads: design.heads,
            head_size: shared_width(place, "heads", design.width, design.heads)?,
            hidden: design.hidden.unwrap_or(4 * design.width),
            activation: design.activation,
            norm_epsilon: design.norm_epsilon,
            dropout: EncoderDropouts {
                hidden: design.dropout,
                attention: design.dropout,
                classifier: design.dropout,
            },
            tie: design.tie,
            pools: true,
            padding,
            deviation: 0.02,
            kept: Map::new(),
        };
        bert.check(place, |key| key)?;
        Ok(bert)
    }

    /// Refuses what cannot be built; `key_of` gives the place's name for a field.
    fn check(&self, place: &str, key_of: impl Fn(&'static str) -> &'static str) -> Result<()> {
        let refuse = |key, expected: &str, got: String| {
            let (place, key) = (place.to_string(), key_of(key).to_string());
            Err(Error::Setting { place, key, expected: expected.to_string(), got })
        };
        let sizes = [
            ("vocabulary", self.vocabulary),
            ("context", self.positions.saturating_sub(self.first_place())),
            ("width", self.width),
            ("layers", self.layers),
            ("heads", self.heads),
            ("hidden", self.hidden),
        ];
        if let Some((key, size)) = sizes.iter().find(|(_, size)| *size == 0) {
            return refuse(key, "above zero, apart from positions that are left out", size.to_string());
        }
        if self.layers > MOST_LAYERS {
            let expected = format!("at most {}", MOST_LAYERS);
            return refuse("layers", &expected, self.layers.to_string());
        }
        if let Some(padding) = self.padding.filter(|&padding| padding as usize >= self.vocabulary) {
            let expected = format!("below the vocabulary, {}", self.vocabulary);
            return refuse("padding", &expected, padding.to_string());
        }
        if self.activation == Activation::Prelu {
            return refuse("activation", "one without a learned slope", "prelu".into());
        }
        let EncoderDropouts { hidden, attention, classifier } = self.dropout;
        match [hidden, attention, classifier].iter().find(|share| !(0.0..1.0).contains(*share)) {
            Some(share) => refuse("dropout", "a number in 0.0..1.0", share.to_string()),
            None => Ok(()),
        }
    }

    /// Row of the table of positions for the first token of a text without padding.
    fn first_place(&self) -> usize {
        self.dialect.first_place(self.padding)
    }

    /// The full name of a block's module.
    fn module(&self, layer: usize, name: &str) -> String {
        format!("{}{}.{layer}.{name}", self.prefix(), self.dialect.blocks())
    }

    fn block_parameters(&self, layer: usize, list: &mut Vec<ParameterSpec>) {
        let (c, inner) = (self.width, self.heads * self.head_size);
        let names = self.dialect.block();
        let module = |name: &str| self.module(layer, name);
        let mut linear = |name: &str, size| self.linear_parameters(&module(name), size, list);
        linear(names.query, [inner, c]);
        linear(names.key, [inner, c]);
        linear(names.value, [inner, c]);
        linear(names.mixed, [c, inner]);
        linear(names.widen, [self.hidden, c]);
        linear(names.narrow, [c, self.hidden]);
        self.norm_parameters(&module(names.mixed_norm), list);
        self.norm_parameters(&module(names.fed_norm), list);
    }

    fn linear_parameters(&self, module: &str, size: [usize; 2], list: &mut Vec<ParameterSpec>) {
        let normal = Init::Normal { deviation: self.deviation };
        list.push(ParameterSpec::new(format!("{module}.weight"), size, normal));
        list.push(ParameterSpec::new(format!("{module}.bias"), [size[0]], Init::Zeros));
    }

    fn norm_parameters(&self, module: &str, list: &mut Vec<ParameterSpec>) {
        list.push(ParameterSpec::new(format!("{module}.weight"), [self.width], Init::Ones));
        list.push(ParameterSpec::new(format!("{module}.bias"), [self.width], Init::Zeros));
    }
}

impl Family for Bert {
    fn name(&self) -> &'static str {
        self.dialect.name()
    }

    fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    fn context(&self) -> usize {
        self.positions - self.first_place()
    }

    fn interface(&self) -> Interface {
        Interface {
            kinds: self.kinds,
            silent: self.padding,
            counted_from: self.padding.filter(|_| self.dialect.counts_places()),
            ..Interface::of(self.task)
        }
    }

    fn parameters(&self) -> Vec<ParameterSpec> {
        let normal = Init::Normal { deviation: self.deviation };
        let mut list = vec![];
        let tables = [
            ("word_embeddings", self.vocabulary),
            ("position_embeddings", self.positions),
            ("token_type_embeddings", self.kinds),
        ];
        for (name, rows) in tables {
            if name != "token_type_embeddings" || self.dialect.has_kinds() {
                let name = format!("{}embeddings.{name}.weight", self.prefix());
                list.push(ParameterSpec::new(name, [rows, self.width], normal));
            }
        }
        self.norm_parameters(&format!("{}embeddings.LayerNorm", self.prefix()), &mut list);
        (0..self.layers).for_each(|layer| self.block_parameters(layer, &mut list));
        self.head_parameters(&mut list);
        list
    }

    fn read(&self, graph: &mut Graph, reading: &Reading) -> Result<Forward> {
        reading.check(self.context())?;
        self.write(graph, reading)
    }

    fn canonical_name(&self, stored: &str) -> Option<String> {
        self.name_of(stored)
    }

    fn is_of_head(&self, parameter: &str) -> bool {
        self.has_in_head(parameter)
    }

    fn fit(&mut self, stored: &[&str]) {
        let own = format!("{}.", self.dialect.name());
        let of_pooler = |name: &&&str| name.strip_prefix(&own).unwrap_or(name).starts_with("pooler.");
        if self.task == Task::States && !stored.iter().any(|name| of_pooler(&name)) {
            self.pools = false;
        }
    }

    fn config(&self) -> Map<String, Json> {
        self.keys()
    }

    fn set_dropout(&mut self, share: f32) {
        self.dropout = EncoderDropouts { hidden: share, attention: share, classifier: share };
    }

    fn describe(&self) -> String {
        let Bert { layers, heads, width, hidden, vocabulary, .. } = self;
        let count = count_elements(&self.parameters());
        format!(
            "{}: {}, {layers} layers, {heads} heads, width {width}, hidden {hidden}, context {}, vocabulary {vocabulary}, {count} parameters",
            self.name(),
            self.task.describe(),
            self.context()
        )
    }
}
