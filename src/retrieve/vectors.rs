//! Passages sought by what they mean: the cosine between an encoder's vectors of question and passage.

use super::{Error, Result};
use crate::embed::{self, Embedder};
use crate::exchange;
use crate::model::Task;
use crate::tensor::Tensor;
use crate::train::Target;
use crate::train::places;
use std::path::{Path, PathBuf};

/// Passages in one batch of the encoder.
const BATCH: usize = 16;

/// Tokens that encoders put around a text.
const AROUND: usize = 2;

/// An encoder, and what tells it from others.
pub struct Encoder {
    embedder: Embedder,
    /// Path, sizes and times of its files.
    pub identity: String,
}

impl Encoder {
    /// Opens the model in a folder; of a run its newest checkpoint.
    pub fn open(given: &Path, target: &mut dyn FnMut() -> Result<Target>) -> Result<Encoder> {
        let refuse = |got: &str, hint| Error::NoEncoder { path: given.into(), got: got.into(), hint };
        if !given.exists() {
            return Err(refuse("not there", "name a folder with config.json, weights and tokenizer.json"));
        }
        if crate::ngram::is_ngram(given) {
            return Err(refuse("a model of counted runs", "leave it out to seek by words"));
        }
        let folder = places::find(given, false)?.folder;
        let task = exchange::open(&folder).map_err(embed::Error::from)?.family.interface().task;
        if matches!(task, Task::NextToken | Task::SecondText | Task::Transcript) {
            return Err(refuse(task.describe(), "leave it out to seek by words"));
        }
        let settings = embed::Settings::beside(&folder)?;
        let embedder = Embedder::open(&folder, settings, target()?, BATCH)?;
        Ok(Encoder { embedder, identity: identity(&folder) })
    }

    /// Tokens of a text that it reads.
    pub fn most_tokens(&self) -> usize {
        self.embedder.most_tokens().saturating_sub(AROUND).max(1)
    }

    /// Tokens of a text.
    pub fn count(&self, text: &str) -> Result<usize> {
        Ok(self.embedder.tokenizer().encode(text).map_err(embed::Error::from)?.len())
    }

    /// A vector of length one for each text.
    pub fn embed(&mut self, texts: &[&str]) -> Result<Vec<Vec<f32>>> {
        let mut vectors = self.embedder.embed(texts)?;
        vectors.iter_mut().for_each(|vector| to_length_one(vector));
        Ok(vectors)
    }
}

/// What changes when the encoder does.
fn identity(folder: &Path) -> String {
    let place = folder.canonicalize().unwrap_or_else(|_| folder.to_path_buf());
    let mut files: Vec<PathBuf> = match std::fs::read_dir(&place) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()).collect(),
        Err(_) => vec![place.clone()],
    };
    files.sort_unstable();
    let of = |path: &PathBuf| {
        let metadata = std::fs::metadata(path).ok();
        let time = metadata.as_ref().and_then(|metadata| metadata.modified().ok());
        format!("{}|{:?}|{time:?}", path.display(), metadata.map(|metadata| metadata.len()))
    };
    files.iter().map(of).collect::<Vec<_>>().join("\n")
}

fn to_length_one(vector: &mut [f32]) {
    let length = vector.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt().max(1e-12);
    vector.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
}

/// Vectors [passages, channels], each of length one.
pub struct Vectors {
    /// One after the other.
    pub all: Tensor,
}

impl Vectors {
    /// Of passages, each of the same width.
    pub fn new(vectors: &[Vec<f32>]) -> Vectors {
        let width = vectors.first().map_or(0, Vec::len);
        Vectors { all: Tensor::f32([vectors.len(), width], vectors.concat()) }
    }

    /// One passage's.
    pub fn row(&self, number: usize) -> &[f32] {
        let width = self.all.shape.last();
        &self.all.real::<f32>()[number * width..][..width]
    }

    /// Numbers and cosines of the `top` passages that are nearest, the nearest first; what points away is not near.
    pub fn find(&self, question: &[f32], top: usize) -> Vec<(usize, f32)> {
        let cosine = |row: &[f32]| row.iter().zip(question).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
        let count = self.all.shape.rows();
        let mut found: Vec<(usize, f64)> = (0..count)
            .map(|number| (number, cosine(self.row(number))))
            .filter(|(_, near)| *near > 0.0)
            .collect();
        found.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        found.into_iter().take(top).map(|(number, near)| (number, near as f32)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_come_first_and_what_points_away_does_not_come() {
        let vectors = Vectors::new(&[vec![1.0, 0.0], vec![0.6, 0.8], vec![-1.0, 0.0], vec![0.6, 0.8]]);
        let found = vectors.find(&[0.8, 0.6], 4);
        assert_eq!(found.iter().map(|(number, _)| *number).collect::<Vec<_>>(), [1, 3, 0]);
        assert!((found[0].1 - 0.96).abs() < 1e-6 && (found[2].1 - 0.8).abs() < 1e-6);
        assert_eq!(vectors.find(&[0.8, 0.6], 1).len(), 1);
    }
}
