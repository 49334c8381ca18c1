//! Weights that others trained: g2p-en says how English words are spoken, a GRU that reads letters and one that writes phonemes.
//!
//! Its weights are not part of the golden folder, but of the package of that name: `KILN_PYTHON` names a Python that has it
//! (`scripts/interop` makes one).

use super::{Ready, Tensors, compare, golden};
use kiln::graph::{Feeds, Graph};
use kiln::model::{RecurrentStack, Run};
use kiln::ops::Value;
use kiln::ops::embedding::EmbeddingEmit;
use kiln::ops::matmul::{Form, MatmulEmit};
use kiln::ops::recurrent::Cell;
use kiln::ops::reshape::ReshapeEmit;
use kiln::tensor::{DType, Tensor, Type};
use kiln::train::Target;
use libtest_mimic::Failed;
use serde_json::Value as Json;
use std::path::Path;
use std::process::Command;

/// Units of both nets, and channels of what they read.
const UNITS: usize = 256;
/// Before the first phoneme, behind the last one, and how many are written at most.
const START: u32 = 2;
const END: u32 = 3;
const MOST: usize = 20;
/// States, and scores up to 19: sums of 256 products in another order.
const STATE: f64 = 1e-5;
const SCORES: f64 = 1e-4;

/// What is known of a word.
struct Word {
    letters: Vec<u32>,
    phonemes: Vec<u32>,
    state: Vec<f32>,
    scores: Vec<f32>,
}

/// All words at once, each as long as it is: what the first net makes of it, and what the second one writes.
pub fn check(folder: &Path, python: &str, device: &str) -> Result<(), Failed> {
    let target = Target::open(device)?;
    let weights = weights(python)?;
    let words = words(&folder.join("case.json"))?;
    if words.len() != 15 {
        return Err(format!("{} words", words.len()).into());
    }
    let longest = words.iter().map(|word| word.letters.len()).max().unwrap_or(0);
    let mut state = reader(&weights, &target, &words, longest)?;
    for (word, got) in words.iter().zip(state.real::<f32>().chunks(UNITS)) {
        let first = |all: &[f32]| Tensor::f32([8], all[..8].to_vec());
        compare("state", &first(got), &first(&word.state), STATE, 0.0)?;
    }
    let mut step = Network::new(&weights);
    let token = step.graph.input("token", Type::new(DType::U32, [words.len(), 1]));
    let before = step.graph.input("state", Type::f32([words.len(), UNITS]));
    let (_, after) = step.gru("dec", token, &[before], None)?;
    let (head, bias) = (step.weight("fc_w")?, step.weight("fc_b")?);
    let scores = step.graph.linear(Form::Nt, after, head, Some(bias))?;
    step.graph.output("scores", scores);
    step.graph.output("after", after);
    let mut ready = Ready::new(&step.graph, &target, &|name| weights.get(name).cloned())?;
    let (mut last, mut written) = (vec![START; words.len()], vec![vec![]; words.len()]);
    for place in 0..MOST {
        let feeds = Feeds::new().with("token", Tensor::u32([words.len(), 1], last)).with("state", state);
        let mut results = ready.run(&feeds)?;
        let scores = results.remove("scores").ok_or("no scores")?;
        state = results.remove("after").ok_or("no state")?;
        let rows = scores.real::<f32>().chunks(scores.shape.last());
        last = rows.clone().map(|row| largest(row) as u32).collect();
        for (number, row) in rows.enumerate() {
            if place == 0 {
                let expected = Tensor::f32([row.len()], words[number].scores.clone());
                compare("scores", &Tensor::f32([row.len()], row.to_vec()), &expected, SCORES, 0.0)?;
            }
            written[number].push(last[number]);
        }
    }
    for (word, written) in words.iter().zip(&written) {
        let end = written.iter().position(|&phoneme| phoneme == END).unwrap_or(MOST);
        if written[..end] != word.phonemes {
            return Err(format!("{written:?}, expected {:?}", word.phonemes).into());
        }
    }
    Ok(())
}

/// The state [B, 256] behind the last letter of each word.
fn reader(weights: &Tensors, target: &Target, words: &[Word], longest: usize) -> Result<Tensor, Failed> {
    let mut network = Network::new(weights);
    let letters = network.graph.input("letters", Type::new(DType::U32, [words.len(), longest]));
    let steps = network.graph.input("steps", Type::new(DType::U32, [words.len()]));
    let (_, state) = network.gru("enc", letters, &[], Some(steps))?;
    network.graph.output("state", state);
    let filled = |word: &Word| {
        let mut letters = word.letters.clone();
        letters.resize(longest, 0);
        letters
    };
    let letters = words.iter().flat_map(filled).collect();
    let steps = words.iter().map(|word| word.letters.len() as u32).collect();
    let feeds = Feeds::new()
        .with("letters", Tensor::u32([words.len(), longest], letters))
        .with("steps", Tensor::u32([words.len()], steps));
    let mut ready = Ready::new(&network.graph, target, &|name| weights.get(name).cloned())?;
    Ok(ready.run(&feeds)?.remove("state").ok_or("no state")?)
}

/// A graph over the package's weights.
struct Network<'a> {
    graph: Graph,
    weights: &'a Tensors,
}

impl<'a> Network<'a> {
    fn new(weights: &'a Tensors) -> Self {
        Network { graph: Graph::new(), weights }
    }

    fn weight(&mut self, name: &str) -> Result<Value, Failed> {
        let tensor = self.weights.get(name).ok_or_else(|| format!("{name} is missing"))?;
        Ok(self.graph.parameter(name, Type::f32(tensor.shape.clone())))
    }

    /// One layer over rows of the table of a net's tokens: outputs, and the states at the end.
    fn gru(
        &mut self,
        net: &str,
        tokens: Value,
        initial: &[Value],
        steps: Option<Value>,
    ) -> Result<(Value, Value), Failed> {
        let table = self.weight(&format!("{net}_emb"))?;
        let x = self.graph.embedding(table, tokens)?;
        let mut values = vec![];
        for (ours, theirs) in
            [("weight_ih", "w_ih"), ("weight_hh", "w_hh"), ("bias_ih", "b_ih"), ("bias_hh", "b_hh")]
        {
            values.push((format!("{ours}_l0"), self.weight(&format!("{net}_{theirs}"))?));
        }
        let stack = RecurrentStack {
            cell: Cell::Gru,
            inputs: UNITS,
            hidden: UNITS,
            projected: None,
            layers: 1,
            bidirectional: false,
            bias: true,
        };
        let find = |name: &str| values.iter().find(|(known, _)| known == name).map(|(_, value)| *value);
        let mut between = |_: &mut Graph, x| Ok(x);
        let mut run = Run { find: &find, initial, steps, between: &mut between, carried: None };
        let (y, states) = stack.write(&mut self.graph, x, &mut run)?;
        let batch = self.graph.kind(y).shape[0];
        Ok((y, self.graph.reshape(states[0], [batch, UNITS].into())?))
    }
}

/// The package's weights, under the names that it has for them.
fn weights(python: &str) -> Result<Tensors, Failed> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("g2p.safetensors");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels-tests/interop/g2p_weights.py");
    let done = Command::new(python).arg(script).arg(&path).output()?;
    if !done.status.success() {
        return Err(String::from_utf8_lossy(&done.stderr).into_owned().into());
    }
    golden::tensors(&path, "")
}

fn words(path: &Path) -> Result<Vec<Word>, Failed> {
    let case: Json = serde_json::from_slice(&std::fs::read(path)?)?;
    let word = |case: &Json| -> Result<Word, Failed> {
        Ok(Word {
            letters: serde_json::from_value(case["input_ids"].clone())?,
            phonemes: serde_json::from_value(case["output_ids"].clone())?,
            state: serde_json::from_value(case["encoder_final_first8"].clone())?,
            scores: serde_json::from_value(case["first_logits"].clone())?,
        })
    };
    case["cases"].as_array().ok_or("no words")?.iter().map(word).collect()
}

fn largest(row: &[f32]) -> usize {
    (0..row.len()).fold(0, |best, at| if row[at] > row[best] { at } else { best })
}
