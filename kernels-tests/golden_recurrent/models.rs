//! Whole models: the LSTM language model and the encoder-decoder with attention.

use super::{Gradients, Ready, Tensors, adamw, check_gradients, compare_steps, golden};
use kiln::graph::{Feeds, Graph};
use kiln::model::{Config, Extent, Family, Mode, Reading, from_config, loss};
use kiln::ops::embedding::sort_positions;
use kiln::tensor::Tensor;
use kiln::train::{self, Target};
use libtest_mimic::Failed;
use serde_json::{Value as Json, json};
use std::path::Path;

/// Names of the parameters as the family has them.
fn named(family: &dyn Family, tensors: Tensors) -> Tensors {
    tensors.into_iter().filter_map(|(name, tensor)| Some((family.canonical_name(&name)?, tensor))).collect()
}

/// Logits, loss and gradients of the first batch; then ten steps.
pub fn check(folder: &Path, device: &str) -> Result<(), Failed> {
    let case: Json = serde_json::from_slice(&std::fs::read(folder.join("case.json"))?)?;
    let arguments = &case["args"];
    let keys = match case["model"].as_str() {
        Some("LSTMLM") => {
            json!({ "model_type": "lstm", "num_layers": arguments[3], "tie_word_embeddings": arguments[4] })
        }
        Some("Seq2Seq") => json!({ "model_type": "seq2seq", "pad_token_id": 0, "pack_padded": false }),
        other => return Err(format!("{other:?} is no model").into()),
    };
    let mut keys = keys.as_object().cloned().ok_or("no keys")?;
    for (name, value) in ["vocab_size", "embedding_dim", "hidden_size"].iter().zip([0, 1, 2]) {
        keys.insert((*name).into(), arguments[value].clone());
    }
    let family = from_config(&Config::new("case.json", keys))?;
    let family = family.as_ref();
    let target = Target::open(device)?;
    let inputs = golden::tensors(&folder.join("inputs.safetensors"), "")?;
    let weights = named(family, golden::tensors(&folder.join("model.safetensors"), "")?);

    let batch = Batch::of(&inputs, None)?;
    let reading = batch.reading();
    let mut graph = Graph::new();
    let forward = family.read(&mut graph, &reading)?;
    graph.output("logits", forward.logits);
    let value = loss(&mut graph, forward.logits, 0.0)?;
    let asked = Gradients::of(&mut graph, value)?;
    let mut ready = Ready::new(&graph, &target, &|name| weights.get(name).cloned())?;
    let mut results = ready.run(&batch.feeds(family)?)?;
    let expected = golden::tensors(&folder.join("expected.safetensors"), "")?;
    let logits = results.remove("logits").ok_or("no logits")?;
    results.insert("logits".into(), logits.reshaped(expected["logits"].shape.clone())?);
    let gradients = named(family, golden::tensors(&folder.join("grads.safetensors"), "")?);
    check_gradients(&asked, results, &expected, &gradients)?;

    let build = |graph: &mut Graph, mode: Mode| -> train::Result<_> {
        let forward = family.read(graph, &Reading { mode, ..reading })?;
        Ok(loss(graph, forward.logits, 0.0)?)
    };
    let trainer = adamw(&target, family.parameters(), &build, &weights)?;
    let after = named(family, golden::tensors(&folder.join("after10.safetensors"), "")?);
    compare_steps(trainer, &case, folder, &after, |step| Batch::of(&inputs, Some(step))?.feeds(family))
}

/// Tokens of one batch: of the text that is predicted, and of one in view of which it is.
struct Batch {
    ids: Rows,
    source: Option<Rows>,
}

/// Rows of numbers, and how many to a row.
struct Rows {
    width: usize,
    numbers: Vec<u32>,
}

impl Rows {
    fn of(inputs: &Tensors, name: &str, step: Option<usize>) -> Result<Option<Rows>, Failed> {
        let name = if step.is_some() { format!("train_{name}") } else { name.to_string() };
        let Some(tensor) = inputs.get(&name) else { return Ok(None) };
        let shape = &tensor.shape[usize::from(step.is_some())..];
        let count: usize = shape.iter().product();
        let part = &tensor.as_i32()[step.unwrap_or(0) * count..][..count];
        let numbers = part.iter().map(|&id| u32::try_from(id)).collect::<Result<_, _>>()?;
        Ok(Some(Rows { width: shape[1], numbers }))
    }
}

impl Batch {
    fn of(inputs: &Tensors, step: Option<usize>) -> Result<Batch, Failed> {
        let ids = Rows::of(inputs, "ids", step)?.ok_or("no ids")?;
        Ok(Batch { ids, source: Rows::of(inputs, "src", step)? })
    }

    fn rows(&self) -> usize {
        self.ids.numbers.len() / self.ids.width
    }

    fn reading(&self) -> Reading {
        let target = self.ids.width - 1;
        let context = self.source.as_ref().map_or(target, |source| source.width);
        let whole = Reading::new(Extent { batch: self.rows(), context }, Mode::Train);
        Reading { padded: self.source.is_some(), target, ..whole }
    }

    /// All tokens but the last of each row predict all but the first.
    fn feeds(&self, family: &dyn Family) -> Result<Feeds, Failed> {
        let split = |from: usize| -> Vec<u32> {
            self.ids
                .numbers
                .chunks(self.ids.width)
                .flat_map(|row| &row[from..][..self.ids.width - 1])
                .copied()
                .collect()
        };
        let (given, wanted) = (split(0), split(1));
        let targets = wanted.into_iter().map(i32::try_from).collect::<Result<Vec<i32>, _>>()?;
        let mut feeds = Feeds::new().with("targets", Tensor::i32([targets.len()], targets));
        let mut add = |name: &str, rows: &Rows, silent: bool| -> Result<(), Failed> {
            let prefix = if name == "tokens" { String::new() } else { format!("{name}.") };
            let (mut order, mut starts) = sort_positions(&rows.numbers, family.vocabulary())?;
            if silent {
                // Zero fills up the source, and its row of the table is not trained: its positions go to the end, to no token.
                let count = starts[1];
                order.rotate_left(count as usize);
                starts[1..].iter_mut().for_each(|start| *start -= count);
            }
            feeds.set(format!("{prefix}order"), Tensor::u32([order.len()], order));
            feeds.set(format!("{prefix}starts"), Tensor::u32([starts.len()], starts));
            let shape = [rows.numbers.len() / rows.width, rows.width];
            feeds.set(name, Tensor::u32(shape, rows.numbers.clone()));
            Ok(())
        };
        let own = Rows { width: self.ids.width - 1, numbers: given };
        let Some(source) = &self.source else {
            add("tokens", &own, false)?;
            return Ok(feeds);
        };
        add("target_tokens", &own, false)?;
        add("tokens", source, true)?;
        let mask: Vec<u32> = source.numbers.iter().map(|&id| u32::from(id != 0)).collect();
        feeds.set("mask", Tensor::u32([self.rows(), source.width], mask));
        feeds.set("target_mask", Tensor::u32([self.rows(), own.width], vec![1; own.numbers.len()]));
        Ok(feeds)
    }
}
