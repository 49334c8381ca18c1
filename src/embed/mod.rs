//! Texts as vectors: what an encoder makes of a text, pooled as sentence-transformers does.
//!
//! Which pooling a model was trained for stands in the files that sentence-transformers leaves beside it: `1_Pooling/config.json`,
//! `modules.json` (whether vectors are brought to length one) and `sentence_bert_config.json` (how many tokens are read).

mod alike;
mod settings;

pub use settings::{Pooling, Settings};

use crate::data;
use crate::data::tokenizer::{Encoded, Tokenizer};
use crate::deploy::{self, Deployment};
use crate::exchange::{self, Opened};
use crate::graph::Graph;
use crate::model::{self, Extent, Inputs, Mode, Reading, Row, Task};
use crate::plan::Engine;
use crate::tensor::Tensor;
use crate::train::{self, Target};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What can go wrong while texts are embedded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The device or the run.
    #[error(transparent)]
    Run(#[from] train::Error),
    /// The texts or the tokenizer.
    #[error(transparent)]
    Data(#[from] data::Error),
    /// The model.
    #[error(transparent)]
    Model(#[from] model::Error),
    /// The model on its device.
    #[error(transparent)]
    Deploy(#[from] deploy::Error),
    /// The model's file.
    #[error(transparent)]
    Exchange(#[from] exchange::Error),
    /// The model has no tokenizer.
    #[error("{} has no tokenizer.json\n  hint: the tokenizer that the model was trained with belongs into its folder", model.display())]
    NoTokenizer {
        /// Folder or file.
        model: PathBuf,
    },
    /// A file beside the model is not what sentence-transformers writes.
    #[error("{}: `{key}` is {got}, expected {expected}", path.display())]
    Setting {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What it may be.
        expected: String,
        /// What it is.
        got: String,
    },
    /// The model makes no vector of a text by itself.
    #[error(
        "this model has no pooler\n  hint: take the mean over the text, or its first token: --pool mean or --pool first"
    )]
    NoPooler,
}

/// Result of embedding.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Lengths are rounded up to a multiple of this, so that few plans serve all texts.
const STEP: usize = 16;

/// Least length of a vector that is divided by, as in PyTorch.
const LEAST_NORM: f64 = 1e-12;

/// A text, or its tokens as the model is to read them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Text, around which the model's tokenizer puts what the model learned with.
    Text(String),
    /// Tokens, as they are.
    Ids(Vec<u32>),
}

/// A model that makes vectors of texts.
pub struct Embedder {
    opened: Opened,
    tokenizer: Tokenizer,
    settings: Settings,
    target: Target,
    batch: usize,
    /// Engines by the padded length of their texts.
    engines: BTreeMap<usize, Ready>,
}

/// An engine for batches of one size.
struct Ready {
    engine: Box<dyn Engine>,
    graph: Graph,
    feeds: Vec<String>,
}

impl Embedder {
    /// Opens a model on a device, for batches of so many texts; `settings` are usually those of [`Settings::beside`].
    pub fn open(path: &Path, settings: Settings, target: Target, batch: usize) -> Result<Embedder> {
        let mut opened = exchange::open(path)?;
        let tokenizer = opened.tokenizer.take();
        let tokenizer = tokenizer.ok_or_else(|| Error::NoTokenizer { model: path.to_path_buf() })?;
        let task = opened.family.interface().task;
        if matches!(task, Task::SecondText | Task::Transcript) {
            let expected = "one that reads a single text".to_string();
            return Err(model::Error::Task { expected, got: task.describe() }.into());
        }
        Ok(Embedder { opened, tokenizer, settings, target, batch: batch.max(1), engines: BTreeMap::new() })
    }

    /// Most tokens of a text that are read.
    pub fn most_tokens(&self) -> usize {
        self.settings.most_tokens.min(self.opened.family.context())
    }

    /// How many tokens a text has, those around it included, whether they are all read or not.
    pub fn count(&self, input: &Input) -> Result<usize> {
        match input {
            Input::Text(text) => Ok(self.tokenizer.encode_input(text, None, usize::MAX)?.ids.len()),
            Input::Ids(ids) => Ok(ids.len()),
        }
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The device in use.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// One vector for each text, in the order of the texts.
    pub fn embed(&mut self, texts: &[&str]) -> Result<Vec<Vec<f32>>> {
        let most = self.most_tokens();
        let encoded = texts.iter().map(|text| self.tokenizer.encode_input(text, None, most));
        let encoded = encoded.collect::<Result<Vec<_>, _>>()?;
        self.embed_encoded(&encoded)
    }

    /// One vector for each text or list of tokens, of which the first [`Embedder::most_tokens`] are read.
    pub fn embed_inputs(&mut self, inputs: &[Input]) -> Result<Vec<Vec<f32>>> {
        let (most, vocabulary) = (self.most_tokens(), self.opened.family.vocabulary());
        let encoded = inputs.iter().map(|input| match input {
            Input::Text(text) => Ok(self.tokenizer.encode_input(text, None, most)?),
            Input::Ids(ids) => match ids.iter().find(|&&id| id as usize >= vocabulary) {
                Some(&id) => Err(data::Error::UnknownToken { id, vocabulary }.into()),
                None => {
                    let ids = ids[..ids.len().min(most)].to_vec();
                    Ok(Encoded { kinds: vec![0; ids.len()], ids })
                }
            },
        });
        let encoded = encoded.collect::<Result<Vec<_>>>()?;
        self.embed_encoded(&encoded)
    }

    fn embed_encoded(&mut self, encoded: &[Encoded]) -> Result<Vec<Vec<f32>>> {
        let most = self.most_tokens();
        // Texts of like length share a batch, so that little is computed for padding.
        let mut order: Vec<usize> = (0..encoded.len()).collect();
        order.sort_by_key(|&number| encoded[number].ids.len());
        let mut vectors = vec![vec![]; encoded.len()];
        for numbers in order.chunks(self.batch) {
            let longest = numbers.last().map_or(1, |&number| encoded[number].ids.len());
            let length = longest.next_multiple_of(STEP).clamp(1, most.max(longest));
            let rows: Vec<&Encoded> = numbers.iter().map(|&number| &encoded[number]).collect();
            for (&number, vector) in numbers.iter().zip(self.run(&rows, length)?) {
                vectors[number] = vector;
            }
        }
        Ok(vectors)
    }

    /// Vectors of one batch of texts, each filled up to `length`.
    fn run(&mut self, rows: &[&Encoded], length: usize) -> Result<Vec<Vec<f32>>> {
        let inputs = self.inputs(rows, length)?;
        if !self.engines.contains_key(&length) {
            let ready = self.ready(&inputs)?;
            self.engines.insert(length, ready);
        }
        let ready = self.engines.get_mut(&length).expect("it was just made");
        let feeds = inputs.feeds(&ready.graph)?;
        let list: Vec<&Tensor> =
            ready.feeds.iter().map(|name| feeds.get(name).expect("every input is fed")).collect();
        let result = ready.engine.run(0, &list).map_err(train::Error::from)?.swap_remove(0);
        let width = result.shape.last();
        let all = result.real::<f32>();
        let vector = |(number, row): (usize, &&Encoded)| {
            let mut vector = match self.settings.pooling {
                Pooling::Pooler => all[number * width..][..width].to_vec(),
                Pooling::First => all[number * length * width..][..width].to_vec(),
                Pooling::Mean => mean(&all[number * length * width..][..row.ids.len() * width], width),
            };
            if self.settings.normalize {
                normalize(&mut vector);
            }
            vector
        };
        Ok(rows.iter().enumerate().map(vector).collect())
    }

    /// A batch as the model reads it: rows that are missing repeat the last one.
    fn inputs(&self, rows: &[&Encoded], length: usize) -> Result<Inputs> {
        let rows: Vec<Row> = rows.iter().map(|row| Row { ids: &row.ids, kinds: &row.kinds }).collect();
        let extent = Extent { batch: self.batch, context: length };
        Ok(Inputs::of_rows(self.opened.family.as_ref(), &rows, extent)?)
    }

    fn ready(&self, inputs: &Inputs) -> Result<Ready> {
        let deployment = Deployment::new(&self.opened.weights).within(&self.target);
        let kinds = self.opened.family.interface().kinds > 1;
        let reading = Reading { padded: true, kinds, ..inputs.reading(Mode::Evaluate) };
        let pooler = self.settings.pooling == Pooling::Pooler;
        let mut found = true;
        let graph = deployment.graph_of(self.opened.family.as_ref(), &reading, |graph, forward| {
            let stream = *forward.hidden.last().expect("a model has a stream");
            let wanted = if pooler { forward.pooled } else { Some(stream) };
            found = wanted.is_some();
            graph.output("vectors", wanted.unwrap_or(stream));
            Ok(())
        })?;
        if !found {
            return Err(Error::NoPooler);
        }
        let (engine, plans) = deployment.engine(&self.target, std::slice::from_ref(&graph))?;
        let feeds = plans[0].feeds.iter().map(|feed| feed.name.clone()).collect();
        Ok(Ready { engine, graph, feeds })
    }
}

/// The mean of rows.
fn mean(rows: &[f32], width: usize) -> Vec<f32> {
    let count = (rows.len() / width).max(1) as f64;
    let sum = |column: usize| rows.iter().skip(column).step_by(width).map(|&x| f64::from(x)).sum::<f64>();
    (0..width).map(|column| (sum(column) / count) as f32).collect()
}

/// Brings a vector to length one.
fn normalize(vector: &mut [f32]) {
    let norm = vector.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt().max(LEAST_NORM);
    vector.iter_mut().for_each(|x| *x = (f64::from(*x) / norm) as f32);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mean_is_taken_over_rows_and_a_vector_of_zeros_stays() {
        assert_eq!(mean(&[1.0, 2.0, 3.0, 6.0], 2), [2.0, 4.0]);
        let mut vector = vec![3.0, 4.0];
        normalize(&mut vector);
        assert_eq!(vector, [0.6, 0.8]);
        let mut zero = vec![0.0, 0.0];
        normalize(&mut zero);
        assert_eq!(zero, [0.0, 0.0]);
    }
}
