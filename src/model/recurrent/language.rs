//! Recurrent language models: an embedding, layers, a head.
//!
//! ```text
//! x = dropout(embed[tokens])
//! x = dropout(layer(x))                 for each layer, the state carried from step to step
//! logits = x out^T + bias
//! ```
//! Parameters have PyTorch's names: `embed.weight`, `rnn.weight_ih_l0` .., `out.weight`. Files in which the layers are called `lstm`
//! or `gru`, or the ends `encoder` and `decoder`, are read as well.

use super::super::layers::{Layers, located};
use super::super::{
    Activation, Config, Design, Error, Extent, Family, Forward, Init, Interface, Mode, ParameterSpec,
    Reading, Result, Task, count_elements, shortest,
};
use super::{RecurrentStack, Run};
use crate::graph::Graph;
use crate::ops::Value;
use crate::ops::embedding::EmbeddingEmit;
use crate::ops::matmul::{Form, MatmulEmit};
use crate::ops::recurrent::Cell;
use crate::ops::reshape::ReshapeEmit;
use crate::tensor::{DType, Type};
use serde_json::{Map, Value as Json, json};

/// Keys that are read and written; all others are kept as they came.
const OWN_KEYS: &[&str] = &[
    "model_type",
    "architectures",
    "vocab_size",
    "max_position_embeddings",
    "embedding_dim",
    "hidden_size",
    "num_layers",
    "proj_size",
    "nonlinearity",
    "bias",
    "dropout",
    "tie_word_embeddings",
    "torch_dtype",
    "dtype",
];

/// Largest initial weight of embedding and head.
const BOUND: f64 = 0.1;

/// A recurrent language model.
#[derive(Clone, Debug, PartialEq)]
pub struct RecurrentModel {
    /// Tokens it knows, V.
    pub vocabulary: usize,
    /// Tokens it is trained on at a time. It reads longer texts as well, piece by piece.
    pub context: usize,
    /// Its layers; what the first reads is the embedding's width.
    pub stack: RecurrentStack,
    /// Share zeroed in training: of the embedding, between layers and before the head.
    pub dropout: f32,
    /// The head is the token embedding.
    pub tie: bool,
    /// Keys of `config.json` that change nothing here, kept for saving.
    pub kept: Map<String, Json>,
}

/// Name of a family and of its architecture.
pub fn names_of(cell: Cell) -> [&'static str; 2] {
    match cell {
        Cell::Tanh | Cell::Relu => ["rnn", "RnnForCausalLM"],
        Cell::Lstm => ["lstm", "LstmForCausalLM"],
        Cell::Gru => ["gru", "GruForCausalLM"],
    }
}

impl RecurrentModel {
    /// From the keys of a `config.json`; `cell` is that of the family, for `rnn` either.
    pub fn from_config(cell: Cell, config: &Config) -> Result<Self> {
        config.refuse_set(&["bidirectional"])?;
        let cell = match (cell, config.word(&["nonlinearity"], "tanh")?) {
            (Cell::Tanh | Cell::Relu, "relu") => Cell::Relu,
            (Cell::Tanh | Cell::Relu, "tanh") => Cell::Tanh,
            (Cell::Lstm | Cell::Gru, "tanh") => cell,
            _ => return Err(config.refuse("nonlinearity", "tanh, or relu in the family rnn")),
        };
        let hidden = config.needed_count("hidden_size")?;
        let projected = config.number(&["proj_size"], 0.0)?;
        let projected = if projected > 0.0 { Some(config.count(&["proj_size"], hidden)?) } else { None };
        let model = RecurrentModel {
            vocabulary: config.needed_count("vocab_size")?,
            context: config.count(&["max_position_embeddings"], 1024)?,
            stack: RecurrentStack {
                cell,
                inputs: config.count(&["embedding_dim"], hidden)?,
                hidden,
                projected,
                layers: config.count(&["num_layers"], 1)?,
                bidirectional: false,
                bias: config.flag(&["bias"], true)?,
            },
            dropout: config.share(&["dropout"], 0.0)? as f32,
            tie: config.flag(&["tie_word_embeddings"], false)?,
            kept: config.except(&[OWN_KEYS]),
        };
        model.check(config.place())?;
        Ok(model)
    }

    /// A new one: `width` is that of the embedding, `hidden` the units of each layer.
    pub fn from_design(cell: Cell, design: &Design) -> Result<Self> {
        let [name, _] = names_of(cell);
        design.refuse_for(name, &["kv_heads", "head_size", "rope_theta", "window"])?;
        let cell = match (cell, design.activation) {
            (Cell::Tanh | Cell::Relu, Activation::Relu) => Cell::Relu,
            (_, Activation::Tanh) => cell,
            (_, other) => {
                let expected = "tanh, or relu in the family rnn".into();
                return Err(refuse("the recipe", "activation", expected, other.name().into()));
            }
        };
        let model = RecurrentModel {
            vocabulary: design.vocabulary,
            context: design.context,
            stack: RecurrentStack {
                cell,
                inputs: design.width,
                hidden: design.hidden.unwrap_or(design.width),
                projected: None,
                layers: design.layers,
                bidirectional: false,
                bias: design.bias,
            },
            dropout: design.dropout,
            tie: design.tie,
            kept: Map::new(),
        };
        model.check("the recipe")?;
        Ok(model)
    }

    fn check(&self, place: &str) -> Result<()> {
        let RecurrentStack { cell, inputs, hidden, layers, projected, .. } = self.stack;
        let sizes = [("width", inputs), ("hidden", hidden), ("layers", layers), ("context", self.context)];
        if let Some((key, size)) = sizes.into_iter().find(|(_, size)| *size == 0) {
            return Err(refuse(place, key, "above zero".into(), size.to_string()));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(refuse(place, "dropout", "a number in 0.0..1.0".into(), self.dropout.to_string()));
        }
        if let Some(size) = projected.filter(|&size| cell != Cell::Lstm || size >= hidden) {
            let expected = format!("absent, or of an LSTM below hidden_size = {hidden}");
            return Err(refuse(place, "proj_size", expected, size.to_string()));
        }
        if self.tie && self.stack.outputs() != inputs {
            let expected = format!(
                "false, as the head reads {} channels and the embedding has {inputs}",
                self.stack.outputs()
            );
            return Err(refuse(place, "tie", expected, "true".into()));
        }
        Ok(())
    }

    fn write(&self, graph: &mut Graph, reading: &Reading) -> Result<Forward> {
        let Extent { batch, context } = reading.extent;
        let count = reading.extent.positions();
        let mut layers = Layers::declare(graph, &self.parameters(), reading.mode, self.dropout > 0.0);
        let x = layers.look_up(graph, "embed", reading)?;
        let mut numbers = |name: &str, size: usize| graph.input(name, Type::new(DType::U32, [size]));
        let carried = matches!(reading.mode, Mode::Continue { .. });
        let position = carried.then(|| numbers("position", 1));
        // Tokens that only fill up a pass must not enter the state.
        let several = carried && context > 1;
        let mask = reading.padded && !carried;
        let mask = mask.then(|| graph.input("mask", Type::new(DType::U32, [batch, context])));
        let mut numbers = |name: &str, size: usize| graph.input(name, Type::new(DType::U32, [size]));
        let [live, scored] = ["live", "scored"].map(|name| several.then(|| numbers(name, batch)));
        let flat = |graph: &mut Graph, x: Value| {
            let width = graph.kind(x).shape.last();
            located(graph, "rnn", |graph| graph.reshape(x, [count, width].into()))
        };
        let mut hidden = vec![flat(graph, x)?];
        let x = layers.dropout(graph, "embed", self.dropout, x)?;
        // Layers number what they drop, and are read at the same time.
        let draws: Vec<_> = (1..self.stack.layers).map(|_| layers.draw(self.dropout)).collect();
        let mut draws = draws.into_iter();
        let mut between = |graph: &mut Graph, x: Value| {
            use crate::ops::dropout::DropoutEmit;
            match draws.next().flatten() {
                Some((rng, salt)) => located(graph, "rnn", |graph| graph.dropout(x, rng, self.dropout, salt)),
                None => Ok(x),
            }
        };
        let find = |name: &str| layers.find("rnn", name);
        let mut run = Run {
            find: &find,
            initial: &[],
            steps: live.or(mask),
            between: &mut between,
            carried: carried.then_some(("rnn.state", position)),
        };
        let (x, _) = self.stack.write(graph, x, &mut run)?;
        let x = flat(graph, x)?;
        hidden.push(x);
        let x = layers.dropout(graph, "out", self.dropout, x)?;
        let x = match scored {
            Some(rows) => located(graph, "out", |graph| graph.embedding(x, rows))?,
            None => x,
        };
        let head = layers.weight(if self.tie { "embed" } else { "out" });
        let bias = layers.find("out", "bias");
        let logits = located(graph, "out", |graph| graph.linear(Form::Nt, x, head, bias))?;
        Ok(Forward::new(logits, hidden))
    }
}

fn refuse(place: &str, key: &str, expected: String, got: String) -> Error {
    Error::Setting { place: place.into(), key: key.into(), expected, got }
}

impl Family for RecurrentModel {
    fn name(&self) -> &'static str {
        names_of(self.stack.cell)[0]
    }

    fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    fn context(&self) -> usize {
        self.context
    }

    fn parameters(&self) -> Vec<ParameterSpec> {
        let uniform = Init::Uniform { bound: BOUND };
        let mut list =
            vec![ParameterSpec::new("embed.weight", [self.vocabulary, self.stack.inputs], uniform)];
        list.extend(self.stack.parameters("rnn."));
        if !self.tie {
            list.push(ParameterSpec::new("out.weight", [self.vocabulary, self.stack.outputs()], uniform));
        }
        if self.stack.bias {
            list.push(ParameterSpec::new("out.bias", [self.vocabulary], Init::Zeros));
        }
        list
    }

    fn interface(&self) -> Interface {
        Interface { sums_up: true, ..Interface::of(Task::NextToken) }
    }

    fn read(&self, graph: &mut Graph, reading: &Reading) -> Result<Forward> {
        reading.check(self.context)?;
        self.write(graph, reading)
    }

    fn canonical_name(&self, stored: &str) -> Option<String> {
        if self.tie && ["out.weight", "decoder.weight"].contains(&stored) {
            return None;
        }
        let (module, leaf) = stored.split_once('.').unwrap_or((stored, ""));
        let module = match module {
            "lstm" | "gru" => "rnn",
            "encoder" | "embedding" => "embed",
            "decoder" => "out",
            other => other,
        };
        Some(format!("{module}.{leaf}"))
    }

    fn config(&self) -> Map<String, Json> {
        let RecurrentStack { cell, inputs, hidden, layers, projected, bias, .. } = self.stack;
        let [name, architecture] = names_of(cell);
        let keys = json!({
            "architectures": [architecture],
            "model_type": name,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": self.context,
            "embedding_dim": inputs,
            "hidden_size": hidden,
            "num_layers": layers,
            "bias": bias,
            "dropout": shortest(self.dropout),
            "tie_word_embeddings": self.tie,
            "torch_dtype": "float32",
        });
        let Json::Object(mut keys) = keys else { unreachable!("the literal above is an object") };
        if let Some(projected) = projected {
            keys.insert("proj_size".into(), json!(projected));
        }
        if cell == Cell::Relu {
            keys.insert("nonlinearity".into(), json!("relu"));
        }
        keys.extend(self.kept.clone());
        keys
    }

    fn set_dropout(&mut self, share: f32) {
        self.dropout = share;
    }

    fn describe(&self) -> String {
        let RecurrentStack { inputs, hidden, layers, projected, .. } = self.stack;
        let projected = projected.map_or(String::new(), |size| format!(", projected to {size}"));
        let head = if self.tie { "tied" } else { "separate" };
        let count = count_elements(&self.parameters());
        format!(
            "{}: {layers} layers of {hidden} units{projected}, width {inputs}, context {}, vocabulary {}, {head} head, {count} parameters",
            self.name(),
            self.context,
            self.vocabulary
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{build, from_config};

    fn design() -> Design {
        Design {
            layers: 2,
            heads: 1,
            kv_heads: None,
            head_size: None,
            width: 6,
            hidden: Some(8),
            context: 5,
            vocabulary: 11,
            activation: Activation::Tanh,
            norm_epsilon: 1e-5,
            dropout: 0.25,
            bias: true,
            tie: false,
            rope_theta: None,
            window: None,
        }
    }

    #[test]
    fn what_is_written_of_a_model_makes_it_again() {
        let relu = build("rnn", &Design { activation: Activation::Relu, ..design() }).unwrap();
        let tied = build("gru", &Design { hidden: Some(6), tie: true, bias: false, ..design() }).unwrap();
        for family in [build("lstm", &design()).unwrap(), relu, tied] {
            let again = from_config(&Config::new("config.json", family.config())).unwrap();
            assert_eq!(again.config(), family.config());
            assert_eq!(again.parameters(), family.parameters());
            assert_eq!(again.describe(), family.describe());
        }
    }

    #[test]
    fn names_of_other_files_are_understood() {
        let lstm = build("lstm", &design()).unwrap();
        for (stored, own) in [
            ("lstm.weight_ih_l0", "rnn.weight_ih_l0"),
            ("encoder.weight", "embed.weight"),
            ("decoder.bias", "out.bias"),
            ("rnn.bias_hh_l1", "rnn.bias_hh_l1"),
        ] {
            assert_eq!(lstm.canonical_name(stored).unwrap(), own);
        }
    }

    #[test]
    fn what_makes_no_model_is_refused() {
        for (family, design) in [
            ("lstm", Design { tie: true, ..design() }),
            ("gru", Design { activation: Activation::Relu, ..design() }),
            ("lstm", Design { window: Some(3), ..design() }),
            ("rnn", Design { hidden: Some(0), ..design() }),
        ] {
            assert!(matches!(build(family, &design), Err(Error::Setting { .. })), "{family}: {design:?}");
        }
        let mut keys = build("gru", &design()).unwrap().config();
        keys.insert("proj_size".into(), json!(4));
        assert!(from_config(&Config::new("config.json", keys)).is_err());
    }
}
