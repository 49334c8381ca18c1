//! A recurrent encoder-decoder with attention (Luong et al. 2015, by products).
//!
//! ```text
//! h, states = enc(src[tokens])                       over the source
//! d = dec(tgt[target tokens]), begun with these states
//! a = softmax(d h^T) h                               over the source's tokens that count
//! logits = tanh(comb [a, d]) out^T + bias
//! ```
//! Parameters have the names above: `src.weight`, `enc.weight_ih_l0`, `comb.weight` and so on.

use super::super::layers::{Layers, located};
use super::super::sides::{Memory, Side};
use super::super::{
    Activation, Config, Design, Error, Extent, Family, Forward, Init, Interface, Mode, ParameterSpec,
    Reading, Result, Task, count_elements, families, shortest,
};
use super::{RecurrentStack, Run};
use crate::graph::Graph;
use crate::ops::Value;
use crate::ops::attention::Attention;
use crate::ops::concat::ConcatEmit;
use crate::ops::dropout::DropoutEmit;
use crate::ops::matmul::Form;
use crate::ops::pointwise::PointwiseEmit;
use crate::ops::recurrent::Cell;
use crate::ops::reshape::ReshapeEmit;
use crate::tensor::Type;
use serde_json::{Map, Value as Json, json};

const ARCHITECTURE: &str = "RecurrentForConditionalGeneration";
const OWN_KEYS: &[&str] = &[
    "model_type",
    "architectures",
    "cell",
    "vocab_size",
    "max_position_embeddings",
    "embedding_dim",
    "hidden_size",
    "num_layers",
    "bias",
    "dropout",
    "pack_padded",
    "decoder_start_token_id",
    "pad_token_id",
    "torch_dtype",
    "dtype",
];
/// Largest initial weight of the tables and the head.
const BOUND: f64 = 0.1;
/// Name of the states of what was read, and of the decoder's.
const MEMORY: &str = "memory";
const DECODER: &str = "dec.state";

/// A recurrent encoder-decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct RecurrentTranslator {
    /// Tokens of both languages, V.
    pub vocabulary: usize,
    /// Most tokens in either text.
    pub context: usize,
    /// Layers of either side.
    pub stack: RecurrentStack,
    /// Share zeroed in training: of embeddings, between layers and before the head.
    pub dropout: f32,
    /// The encoder leaves padding out; else it reads it like any other token, as PyTorch does without packing.
    pub packs: bool,
    /// The token before what is written, and the one that fills up texts.
    pub marks: [u32; 2],
    /// Keys of `config.json` that change nothing here, kept for saving.
    pub kept: Map<String, Json>,
}

impl RecurrentTranslator {
    /// From the keys of a `config.json`.
    pub fn from_config(config: &Config) -> Result<Self> {
        config.refuse_set(&["bidirectional", "tie_word_embeddings"])?;
        let hidden = config.needed_count("hidden_size")?;
        let cell = Cell::named(config.word(&["cell"], "gru")?);
        let vocabulary = config.needed_count("vocab_size")?;
        let padding = config.token("pad_token_id", 0)?;
        let model = RecurrentTranslator {
            vocabulary,
            context: config.count(&["max_position_embeddings"], 1024)?,
            stack: RecurrentStack {
                cell: cell.ok_or_else(|| config.refuse("cell", "one of rnn_tanh, rnn_relu, lstm, gru"))?,
                inputs: config.count(&["embedding_dim"], hidden)?,
                hidden,
                projected: None,
                layers: config.count(&["num_layers"], 1)?,
                bidirectional: false,
                bias: config.flag(&["bias"], true)?,
            },
            dropout: config.share(&["dropout"], 0.0)? as f32,
            packs: config.flag(&["pack_padded"], true)?,
            marks: [config.token("decoder_start_token_id", padding)?, padding],
            kept: config.except(&[OWN_KEYS]),
        };
        model.check(config.place())?;
        Ok(model)
    }

    /// A new one with GRUs: `width` is that of the embeddings, `hidden` the units of each layer.
    pub fn from_design(design: &Design) -> Result<Self> {
        design.refuse_for("seq2seq", &["kv_heads", "head_size", "rope_theta", "window"])?;
        let refuse = |key: &str, expected: &str, got: String| {
            Err(Error::Setting {
                place: "the recipe".into(),
                key: key.into(),
                expected: expected.into(),
                got,
            })
        };
        if design.activation != Activation::Tanh {
            return refuse("activation", "tanh", design.activation.name().into());
        }
        if design.tie {
            return refuse("tie", "false: the head has a width of its own", "true".into());
        }
        let last = families::last_token(design);
        let model = RecurrentTranslator {
            vocabulary: design.vocabulary,
            context: design.context,
            stack: RecurrentStack {
                cell: Cell::Gru,
                inputs: design.width,
                hidden: design.hidden.unwrap_or(design.width),
                projected: None,
                layers: design.layers,
                bidirectional: false,
                bias: design.bias,
            },
            dropout: design.dropout,
            packs: true,
            marks: [last, last],
            kept: families::end_before_last(design),
        };
        model.check("the recipe")?;
        Ok(model)
    }

    fn check(&self, place: &str) -> Result<()> {
        let refuse = |key: &str, expected: String, got: String| {
            Err(Error::Setting { place: place.into(), key: key.into(), expected, got })
        };
        let RecurrentStack { inputs, hidden, layers, .. } = self.stack;
        let sizes = [("width", inputs), ("hidden", hidden), ("layers", layers), ("context", self.context)];
        if let Some((key, size)) = sizes.into_iter().find(|(_, size)| *size == 0) {
            return refuse(key, "above zero".into(), size.to_string());
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return refuse("dropout", "a number in 0.0..1.0".into(), self.dropout.to_string());
        }
        match self.marks.iter().find(|&&mark| mark as usize >= self.vocabulary) {
            Some(mark) => {
                let expected = format!("below the vocabulary of {}", self.vocabulary);
                refuse("decoder_start_token_id or pad_token_id", expected, mark.to_string())
            }
            None => Ok(()),
        }
    }

    fn write(&self, graph: &mut Graph, reading: &Reading) -> Result<Forward> {
        let mut layers = Layers::declare(graph, &self.parameters(), reading.mode, self.dropout > 0.0);
        let (source, target) = (Side::source(graph, reading), Side::target(graph, reading));
        let batch = reading.extent.batch;
        let hidden = self.stack.hidden;
        let (memory, states, encoded) = match reading.mode {
            Mode::Continue { .. } => {
                let kind = Type::f32([batch, reading.extent.context, 1, hidden]);
                (graph.state(format!("{MEMORY}.keys"), kind), None, vec![])
            }
            mode => {
                let (read, states) = self.encode(graph, &mut layers, mode, &source)?;
                let flat = self.rows(graph, &source, read)?;
                (self.heads(graph, &source, read)?, Some(states), vec![flat])
            }
        };
        let x = target.look_up(graph, &layers, "tgt", reading.mode)?;
        let carried = states.is_none().then_some((DECODER, None));
        let (d, _) = self.walk(graph, &mut layers, "dec", x, &states.unwrap_or_default(), None, carried)?;
        let queries = self.heads(graph, &target, d)?;
        let how = Attention::full().scale(1.0);
        let recalled =
            Memory::held(&source).attend(graph, &mut layers, "comb", &how, [queries, memory, memory], 0.0)?;
        let d = self.rows(graph, &target, d)?;
        let both = located(graph, "comb", |g| g.concat(&[recalled, d], 1))?;
        let mixed = layers.linear(graph, "comb", Form::Nt, both)?;
        let mixed = located(graph, "comb", |g| g.pointwise("tanh", &[mixed], 0.0))?;
        let dropped = layers.dropout(graph, "out", self.dropout, mixed)?;
        let scored = target.course.scored(graph, "out", dropped)?;
        let logits = layers.linear(graph, "out", Form::Nt, scored)?;
        Ok(Forward { encoded, ..Forward::new(logits, vec![d, mixed]) })
    }

    /// What the source's last layer gives [B, S, H], and the states after it.
    fn encode(
        &self,
        graph: &mut Graph,
        layers: &mut Layers,
        mode: Mode,
        source: &Side,
    ) -> Result<(Value, Vec<Value>)> {
        let x = source.look_up(graph, layers, "src", mode)?;
        let steps = source.course.mask().filter(|_| self.packs);
        self.walk(graph, layers, "enc", x, &[], steps, None)
    }

    #[allow(clippy::too_many_arguments)]
    fn walk(
        &self,
        graph: &mut Graph,
        layers: &mut Layers,
        module: &str,
        x: Value,
        initial: &[Value],
        steps: Option<Value>,
        carried: Option<(&str, Option<Value>)>,
    ) -> Result<(Value, Vec<Value>)> {
        let x = layers.dropout(graph, module, self.dropout, x)?;
        let draws: Vec<_> = (1..self.stack.layers).map(|_| layers.draw(self.dropout)).collect();
        let mut draws = draws.into_iter();
        let mut between = |graph: &mut Graph, x: Value| match draws.next().flatten() {
            Some((rng, salt)) => located(graph, module, |g| g.dropout(x, rng, self.dropout, salt)),
            None => Ok(x),
        };
        let find = |name: &str| layers.find(module, name);
        let mut run = Run { find: &find, initial, steps, between: &mut between, carried };
        graph.within(module, |graph| self.stack.write(graph, x, &mut run))
    }

    /// [B, T, H] as one head, [B, T, 1, H].
    fn heads(&self, graph: &mut Graph, side: &Side, x: Value) -> Result<Value> {
        let Extent { batch, context } = side.extent;
        located(graph, "comb", |g| g.reshape(x, [batch, context, 1, self.stack.hidden].into()))
    }

    fn rows(&self, graph: &mut Graph, side: &Side, x: Value) -> Result<Value> {
        located(graph, "comb", |g| g.reshape(x, [side.extent.positions(), self.stack.hidden].into()))
    }
}

impl Family for RecurrentTranslator {
    fn name(&self) -> &'static str {
        "seq2seq"
    }

    fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    fn context(&self) -> usize {
        self.context
    }

    fn parameters(&self) -> Vec<ParameterSpec> {
        let uniform = Init::Uniform { bound: BOUND };
        let hidden = self.stack.hidden;
        let table = [self.vocabulary, self.stack.inputs];
        let mut list = vec![
            ParameterSpec::new("src.weight", table, uniform),
            ParameterSpec::new("tgt.weight", table, uniform),
        ];
        list.extend(self.stack.parameters("enc."));
        list.extend(self.stack.parameters("dec."));
        let bound = 1.0 / (2.0 * hidden as f64).sqrt();
        list.push(ParameterSpec::new("comb.weight", [hidden, 2 * hidden], Init::Uniform { bound }));
        list.push(ParameterSpec::new("out.weight", [self.vocabulary, hidden], uniform));
        list.push(ParameterSpec::new("out.bias", [self.vocabulary], Init::Zeros));
        list
    }

    fn interface(&self) -> Interface {
        let [_, padding] = self.marks;
        let start = Some(self.marks);
        Interface { start, silent: Some(padding), sums_up: true, ..Interface::of(Task::SecondText) }
    }

    fn read(&self, graph: &mut Graph, reading: &Reading) -> Result<Forward> {
        reading.check(self.context)?;
        match reading.target > self.context {
            true => Err(Error::Context { limit: self.context, got: reading.target }),
            false => self.write(graph, reading),
        }
    }

    fn remember(&self, graph: &mut Graph, reading: &Reading) -> Result<Vec<(String, Value)>> {
        reading.check(self.context)?;
        let mut layers = Layers::declare(graph, &self.parameters(), Mode::Evaluate, false);
        let source = Side::source(graph, reading);
        let (read, states) = self.encode(graph, &mut layers, Mode::Evaluate, &source)?;
        let mut kept = vec![(format!("{MEMORY}.keys"), self.heads(graph, &source, read)?)];
        kept.extend(states.into_iter().enumerate().map(|(at, state)| (format!("{DECODER}.{at}"), state)));
        Ok(kept)
    }

    fn canonical_name(&self, stored: &str) -> Option<String> {
        Some(stored.to_string())
    }

    fn config(&self) -> Map<String, Json> {
        let RecurrentStack { cell, inputs, hidden, layers, bias, .. } = self.stack;
        let keys = json!({
            "architectures": [ARCHITECTURE],
            "model_type": "seq2seq",
            "cell": cell.name(),
            "vocab_size": self.vocabulary,
            "max_position_embeddings": self.context,
            "embedding_dim": inputs,
            "hidden_size": hidden,
            "num_layers": layers,
            "bias": bias,
            "dropout": shortest(self.dropout),
            "pack_padded": self.packs,
            "decoder_start_token_id": self.marks[0],
            "pad_token_id": self.marks[1],
            "torch_dtype": "float32",
        });
        let Json::Object(mut keys) = keys else { unreachable!("the literal above is an object") };
        keys.extend(self.kept.clone());
        keys
    }

    fn set_dropout(&mut self, share: f32) {
        self.dropout = share;
    }

    fn describe(&self) -> String {
        let RecurrentStack { cell, inputs, hidden, layers, .. } = self.stack;
        let count = count_elements(&self.parameters());
        format!(
            "seq2seq: {layers} + {layers} layers of {hidden} units ({}), width {inputs}, context {}, vocabulary {}, {count} parameters",
            cell.name(),
            self.context,
            self.vocabulary
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::from_config;

    #[test]
    fn what_is_written_of_a_model_makes_it_again() {
        let keys = json!({
            "model_type": "seq2seq", "cell": "lstm", "vocab_size": 9, "hidden_size": 4, "embedding_dim": 3,
            "num_layers": 2, "pad_token_id": 8, "dropout": 0.25, "pack_padded": false,
        });
        let config = |keys: Map<String, Json>| Config::new("config.json", keys);
        let family = from_config(&config(keys.as_object().unwrap().clone())).unwrap();
        let again = from_config(&config(family.config())).unwrap();
        assert_eq!(again.config(), family.config());
        assert_eq!(again.parameters(), family.parameters());
        assert_eq!(again.interface().start, Some([8, 8]));
    }

    #[test]
    fn marks_beyond_the_vocabulary_are_refused() {
        let keys = json!({ "vocab_size": 9, "hidden_size": 4, "pad_token_id": 9 });
        let config = Config::new("config.json", keys.as_object().unwrap().clone());
        assert!(matches!(RecurrentTranslator::from_config(&config), Err(Error::Setting { .. })));
    }
}
