//! Weights that others trained: textgenrnn writes, Silero's detector of voices listens.

use super::{FORWARD, Ready, Tensors, compare, golden};
use kiln::graph::{Feeds, Graph};
use kiln::model::{RecurrentStack, Run};
use kiln::ops::Value;
use kiln::ops::concat::ConcatEmit;
use kiln::ops::embedding::EmbeddingEmit;
use kiln::ops::matmul::{Form, MatmulEmit};
use kiln::ops::pointwise::PointwiseEmit;
use kiln::ops::recurrent::Cell;
use kiln::ops::reshape::ReshapeEmit;
use kiln::ops::slice::SliceEmit;
use kiln::ops::softmax::SoftmaxEmit;
use kiln::tensor::{DType, Tensor, Type};
use kiln::train::Target;
use libtest_mimic::Failed;
use serde_json::Value as Json;
use std::path::Path;

/// Characters that textgenrnn sees.
const CONTEXT: usize = 40;

/// A graph over a model's weights.
struct Network<'a> {
    graph: Graph,
    weights: &'a Tensors,
}

impl Network<'_> {
    fn weight(&mut self, name: &str) -> Result<Value, Failed> {
        let tensor = self.weights.get(name).ok_or_else(|| format!("{name} is missing"))?;
        Ok(self.graph.parameter(name, Type::f32(tensor.shape.clone())))
    }

    /// One LSTM layer of 128 units whose parameters end in `end`: outputs, and the state at the end.
    fn lstm(&mut self, module: &str, end: &str, x: Value) -> Result<(Value, Value), Failed> {
        let names = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"];
        let mut values = vec![];
        for name in names {
            values.push((format!("{name}_l0"), self.weight(&format!("{module}.{name}{end}"))?));
        }
        let inputs = self.graph.kind(x).shape.last();
        let stack = RecurrentStack {
            cell: Cell::Lstm,
            inputs,
            hidden: 128,
            projected: None,
            layers: 1,
            bidirectional: false,
            bias: true,
        };
        let find = |name: &str| values.iter().find(|(known, _)| known == name).map(|(_, value)| *value);
        let mut between = |_: &mut Graph, x| Ok(x);
        let mut run = Run { find: &find, initial: &[], steps: None, between: &mut between, carried: None };
        let (y, states) = stack.write(&mut self.graph, x, &mut run)?;
        Ok((y, states[0]))
    }
}

/// Scores of texts, and texts continued greedily.
pub fn check_textgenrnn(folder: &Path, device: &str) -> Result<(), Failed> {
    let target = Target::open(device)?;
    let weights = golden::tensors(&folder.join("model.safetensors"), "")?;
    let expected = golden::tensors(&folder.join("expected.safetensors"), "")?;
    let ids: Vec<u32> = expected["ids"].as_i32().iter().map(|&id| id as u32).collect();
    let mut scores = writer(&weights, &target, ids.len() / CONTEXT)?;
    // Scores reach 71, and PyTorch's own are up to 1.8e-3 from those computed in f64.
    compare("logits", &scores(ids)?, &expected["logits"], 0.0, 1e-4)?;

    let json = |name: &str| -> Result<Json, Failed> {
        Ok(serde_json::from_slice(&std::fs::read(folder.join(name))?)?)
    };
    let (case, known) = (json("case.json")?, json("vocab.json")?);
    let id =
        |text: &str| known[text].as_u64().map(|id| id as u32).ok_or_else(|| format!("{text:?} is not known"));
    let texts = known.as_object().ok_or("no vocabulary")?;
    let mut scores = writer(&weights, &target, 1)?;
    let cases = case["generate"].as_array().filter(|cases| cases.len() == 3).ok_or("not three texts")?;
    for case in cases {
        let [prefix, wanted] = ["prefix", "greedy"].map(|key| case[key].as_str().unwrap_or_default());
        let mut text = prefix.to_string();
        let mut ids = vec![id("<s>")?];
        for letter in prefix.chars() {
            ids.push(id(&letter.to_string())?);
        }
        while text.chars().count() < wanted.chars().count() {
            let mut seen = vec![0; CONTEXT.saturating_sub(ids.len())];
            seen.extend(&ids[ids.len().saturating_sub(CONTEXT)..]);
            let logits = scores(seen)?;
            let logits = logits.real::<f32>();
            let best =
                (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).ok_or("no scores")? as u32;
            ids.push(best);
            let letter =
                texts.iter().find(|(_, id)| id.as_u64() == Some(best.into())).ok_or("an unknown letter")?;
            text.push_str(letter.0);
        }
        if text != wanted {
            return Err(format!("{prefix:?}: {text:?}, expected {wanted:?}").into());
        }
    }
    Ok(())
}

/// What gives the scores of the letter behind rows of letters.
fn writer<'a>(
    weights: &'a Tensors,
    target: &'a Target,
    rows: usize,
) -> Result<impl FnMut(Vec<u32>) -> Result<Tensor, Failed> + 'a, Failed> {
    let mut network = Network { graph: Graph::new(), weights };
    let ids = network.graph.input("ids", Type::new(DType::U32, [rows, CONTEXT]));
    let table = network.weight("embedding.weight")?;
    let read = network.graph.embedding(table, ids)?;
    let (first, _) = network.lstm("rnn1", "_l0", read)?;
    let (second, _) = network.lstm("rnn2", "_l0", first)?;
    let [attention, head, bias] =
        ["attention.weight", "output.weight", "output.bias"].map(|name| network.weight(name));
    let (attention, head, bias) = (attention?, head?, bias?);
    let graph = &mut network.graph;
    let all = graph.concat(&[read, first, second], 2)?;
    // One weight for each letter seen: a softmax over time.
    let shares = graph.matmul(all, attention)?;
    let shares = graph.reshape(shares, [rows, CONTEXT].into())?;
    let shares = graph.softmax(shares)?;
    let shares = graph.reshape(shares, [rows, 1, CONTEXT].into())?;
    let mixed = graph.matmul(shares, all)?;
    let width = graph.kind(mixed).shape.last();
    let mixed = graph.reshape(mixed, [rows, width].into())?;
    let logits = graph.linear(Form::Nt, mixed, head, Some(bias))?;
    graph.output("logits", logits);
    let mut ready = Ready::new(&network.graph, target, &|name| weights.get(name).cloned())?;
    Ok(move |ids| {
        let feeds = Feeds::new().with("ids", Tensor::u32([rows, CONTEXT], ids));
        Ok(ready.run(&feeds)?.remove("logits").ok_or("no logits")?)
    })
}

/// A state after 120 windows of sound, and how likely there is a voice in each.
pub fn check_silero(folder: &Path, device: &str) -> Result<(), Failed> {
    let target = Target::open(device)?;
    let weights = golden::tensors(&folder.join("model.safetensors"), "")?;
    let known = |name: &str| -> Result<Tensor, Failed> {
        Ok(golden::tensors(&folder.join("expected.safetensors"), name)?.remove("").ok_or("not there")?)
    };
    let sound = known("lstm_in")?;
    let (windows, width) = (sound.shape[0], sound.shape[1]);
    let mut network = Network { graph: Graph::new(), weights: &weights };
    let x = network.graph.input("x", Type::f32([1, windows, width]));
    let (y, state) = network.lstm("lstm_cell", "", x)?;
    let (head, bias) = (network.weight("final_conv.weight")?, network.weight("final_conv.bias")?);
    let graph = &mut network.graph;
    let y = graph.reshape(y, [windows, 128].into())?;
    let y = graph.pointwise("relu", &[y], 0.0)?;
    let head = graph.reshape(head, [1, 128].into())?;
    let y = graph.linear(Form::Nt, y, head, Some(bias))?;
    let y = graph.pointwise("sigmoid", &[y], 0.0)?;
    let y = graph.reshape(y, [windows].into())?;
    graph.output("prob", y);
    for (name, start) in [("h_last", 0), ("c_last", 128)] {
        let part = graph.slice(state, 1, start, start + 128)?;
        graph.output(name, part);
    }
    let mut ready = Ready::new(&network.graph, &target, &|name| weights.get(name).cloned())?;
    let results = ready.run(&Feeds::new().with("x", sound.reshaped([1, windows, width])?))?;
    ["prob", "h_last", "c_last"]
        .into_iter()
        .try_for_each(|name| compare(name, &results[name], &known(name)?, FORWARD, 0.0))
}
