//! Windows given one by one in a safetensors file, so that another program's run can be replayed exactly.
//!
//! `train_offsets` `[steps, batch]` holds the start of every row of every training batch, counted in tokens of the
//! training part; `eval_train_offsets` and `eval_val_offsets` those of the evaluation, in either part.

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};

use crate::data::{Error, Result};

/// Window starts, a row for each step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offsets {
    starts: Vec<i64>,
    rows: usize,
}

impl Offsets {
    /// Starts of `starts.len() / rows` steps of `rows` windows each.
    ///
    /// # Panics
    /// If that does not divide.
    pub fn new(starts: Vec<i64>, rows: usize) -> Offsets {
        assert!(rows > 0 && starts.len().is_multiple_of(rows), "{} starts in rows of {rows}", starts.len());
        Offsets { starts, rows }
    }

    /// How many steps there are.
    pub fn steps(&self) -> usize {
        self.starts.len() / self.rows
    }

    /// Windows in each step.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// All starts, step after step, once it is sure that each window of `context` tokens, and the token after it,
    /// lies within the `tokens` of `part`. `name` is the tensor's, for the error.
    pub fn within(
        &self,
        name: &'static str,
        part: &'static str,
        tokens: usize,
        context: usize,
    ) -> Result<Vec<usize>> {
        let needed = context + 1;
        let checked = self.starts.iter().enumerate().map(|(index, &offset)| {
            let start = usize::try_from(offset).ok().filter(|&start| start + needed <= tokens);
            start.ok_or(Error::WindowOutside { name, index, offset, needed, part, tokens })
        });
        checked.collect()
    }
}

/// What a windows file holds. Each part is optional: an evaluation needs no training windows.
#[derive(Clone, Debug)]
pub struct Replay {
    path: PathBuf,
    training: Option<Offsets>,
    evaluation_training: Option<Offsets>,
    evaluation_validation: Option<Offsets>,
}

impl Replay {
    /// Reads a windows file.
    pub fn load(path: &Path) -> Result<Replay> {
        let bytes = fs::read(path).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => {
                Error::Missing { path: path.into(), hint: "check data.windows".into() }
            }
            _ => Error::Unreadable { path: path.into(), source },
        })?;
        let wrong = |reason| Error::WindowsFile { path: path.into(), reason };
        let file = SafeTensors::deserialize(&bytes).map_err(|error| wrong(error.to_string()))?;
        Ok(Replay {
            path: path.into(),
            training: offsets(&file, TRAINING, 2).map_err(wrong)?,
            evaluation_training: offsets(&file, EVALUATION_TRAINING, 1).map_err(wrong)?,
            evaluation_validation: offsets(&file, EVALUATION_VALIDATION, 1).map_err(wrong)?,
        })
    }

    /// Windows of the training steps.
    pub fn training(&self) -> Result<&Offsets> {
        self.present(&self.training, TRAINING)
    }

    /// Windows of the training part on which the training loss is estimated.
    pub fn evaluation_training(&self) -> Result<&Offsets> {
        self.present(&self.evaluation_training, EVALUATION_TRAINING)
    }

    /// Windows of the validation part.
    pub fn evaluation_validation(&self) -> Result<&Offsets> {
        self.present(&self.evaluation_validation, EVALUATION_VALIDATION)
    }

    fn present<'a>(&self, part: &'a Option<Offsets>, name: &'static str) -> Result<&'a Offsets> {
        let missing =
            || Error::WindowsFile { path: self.path.clone(), reason: format!("no tensor `{name}`") };
        part.as_ref().ok_or_else(missing)
    }
}

/// Name of the tensor of training windows.
pub const TRAINING: &str = "train_offsets";
/// Name of the tensor of evaluation windows in the training part.
pub const EVALUATION_TRAINING: &str = "eval_train_offsets";
/// Name of the tensor of evaluation windows in the validation part.
pub const EVALUATION_VALIDATION: &str = "eval_val_offsets";

/// A vector has one window in each row; a matrix, as many as it has columns.
fn offsets(file: &SafeTensors, name: &str, dimensions: usize) -> Result<Option<Offsets>, String> {
    let Ok(tensor) = file.tensor(name) else {
        return Ok(None);
    };
    let shape = tensor.shape();
    if shape.len() != dimensions || shape.contains(&0) {
        return Err(format!(
            "`{name}` has shape {shape:?}, expected {dimensions} dimensions, none of them zero"
        ));
    }
    let data = tensor.data();
    let starts = match tensor.dtype() {
        Dtype::I64 => data.as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect(),
        Dtype::I32 => data.as_chunks().0.iter().map(|bytes| i64::from(i32::from_le_bytes(*bytes))).collect(),
        other => {
            return Err(format!("`{name}` is of type {other:?}, expected I32 or I64"));
        }
    };
    Ok(Some(Offsets::new(starts, shape.get(1).copied().unwrap_or(1))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::tensor::TensorView;

    fn saved(tensors: &[(&str, Dtype, Vec<usize>, Vec<u8>)]) -> tempfile::NamedTempFile {
        let views = tensors
            .iter()
            .map(|(name, dtype, shape, data)| (*name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), safetensors::serialize(views, None).unwrap()).unwrap();
        file
    }

    fn words(values: &[i32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    fn long_words(values: &[i64]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    #[test]
    fn both_integer_types_are_read_and_absent_parts_are_named() {
        let file = saved(&[
            (TRAINING, Dtype::I32, vec![2, 3], words(&[1, 2, 3, 4, 5, 6])),
            (EVALUATION_VALIDATION, Dtype::I64, vec![2], long_words(&[7, 8])),
        ]);
        let replay = Replay::load(file.path()).unwrap();
        assert_eq!(replay.training().unwrap(), &Offsets::new(vec![1, 2, 3, 4, 5, 6], 3));
        assert_eq!(replay.evaluation_validation().unwrap().starts, [7, 8]);
        let error = replay.evaluation_training().unwrap_err().to_string();
        assert!(error.contains("eval_train_offsets"), "{error}");
    }

    #[test]
    fn wrong_types_shapes_and_files_are_refused() {
        let refused = |dtype, shape, data| {
            let file = saved(&[(TRAINING, dtype, shape, data)]);
            Replay::load(file.path()).unwrap_err().to_string()
        };
        assert!(refused(Dtype::F32, vec![1, 1], words(&[0])).contains("F32"));
        assert!(refused(Dtype::I32, vec![2], words(&[0, 1])).contains("shape [2]"));
        assert!(refused(Dtype::I32, vec![2, 0], Vec::new()).contains("shape [2, 0]"));
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "no tensors").unwrap();
        assert!(matches!(Replay::load(file.path()), Err(Error::WindowsFile { .. })));
        assert!(matches!(Replay::load(Path::new("not/there")), Err(Error::Missing { .. })));
    }
}
