//! The file that says what a task is.

use super::{Error, Result};
use crate::metrics::bootstrap::USUAL;
use crate::retrieve::{self, USUAL_TOP};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::path::{Path, PathBuf};

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// How well texts are predicted, in windows that overlap.
    Perplexity,
    /// Which of some continuations is the likeliest.
    MultipleChoice,
    /// What is written, beside references.
    Generation,
    /// Which class a text is of.
    Classification,
    /// Answers to questions, and whether what they cite has the answer.
    Qa,
}

/// One column, or several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Columns {
    /// A column, which may hold a list.
    One(String),
    /// Columns that each hold one.
    Several(Vec<String>),
}

/// A task, as its file says. Paths are from the file's folder.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskFile {
    /// What is asked.
    pub kind: Kind,
    /// Rows: `.jsonl`, `.tsv` or `.csv`, perhaps `.gz`; for perplexity also plain text.
    pub data: PathBuf,
    /// The question, in Jinja, with the row's fields.
    #[serde(default)]
    pub prompt: Option<String>,
    /// Column of the text, for perplexity and for models that classify; `text` if absent.
    #[serde(default)]
    pub text: Option<String>,
    /// multiple-choice: the column that lists the choices, or a column for each.
    #[serde(default)]
    pub choices: Option<Columns>,
    /// classification by a model that predicts text: what it may say for each class, in order.
    #[serde(default)]
    pub labels: Option<Vec<String>>,
    /// Column of the answer: of multiple-choice its number from 0, letter or text; of classification the label; else a text or a list
    /// of texts. `answer`, `label` or `reference` if absent, by kind.
    #[serde(default)]
    pub answer: Option<Columns>,
    /// Between a prompt and what follows.
    #[serde(default = "space")]
    pub delimiter: String,
    /// Solved examples before each question.
    #[serde(default)]
    pub shots: usize,
    /// Rows that examples are taken from; others of the data if absent.
    #[serde(default)]
    pub examples: Option<PathBuf>,
    /// Between examples.
    #[serde(default = "blank_line")]
    pub separator: String,
    /// Rows that are asked at most.
    #[serde(default)]
    pub limit: Option<usize>,
    /// Of examples and draws.
    #[serde(default)]
    pub seed: u64,
    /// generation, qa: bleu, chrf, chrf++, ter, rouge1, rougeL .., exact_match, f1.
    #[serde(default)]
    pub metrics: Option<Vec<String>>,
    /// generation, qa: tokens of an answer at most.
    #[serde(default = "some")]
    pub max_new_tokens: usize,
    /// generation, qa: an answer ends before the first of these.
    #[serde(default)]
    pub stop: Vec<String>,
    /// qa: the column that lists passages, which answers cite as `[1]`.
    #[serde(default)]
    pub sources: Option<Columns>,
    /// qa: a folder of files, or a file, whose passages stand before each question, for answers to cite.
    #[serde(default)]
    pub retrieve: Option<PathBuf>,
    /// Passages for a question at most.
    #[serde(default = "usual_top")]
    pub retrieve_top: usize,
    /// Longest passage, in words or in the encoder's tokens.
    #[serde(default = "usual_size")]
    pub retrieve_size: usize,
    /// What a passage repeats of the one before it where a paragraph is cut; a quarter of the size if absent.
    #[serde(default)]
    pub retrieve_overlap: Option<usize>,
    /// Seek by the vectors of this encoder; by words if absent.
    #[serde(default)]
    pub retrieve_encoder: Option<PathBuf>,
    /// With `retrieve`: the column of what is looked up; `question` if absent, or the prompt of rows that have none.
    #[serde(default)]
    pub query: Option<String>,
    /// perplexity: tokens seen at once; the model's context if absent.
    #[serde(default)]
    pub window: Option<usize>,
    /// perplexity: tokens from one window to the next; the window if absent.
    #[serde(default)]
    pub stride: Option<usize>,
    /// Sets drawn for errors and differences.
    #[serde(default = "usual")]
    pub resamples: usize,
    /// Where it was read.
    #[serde(skip)]
    pub path: PathBuf,
}

fn space() -> String {
    " ".into()
}

fn blank_line() -> String {
    "\n\n".into()
}

fn some() -> usize {
    64
}

fn usual() -> usize {
    USUAL
}

fn usual_top() -> usize {
    USUAL_TOP
}

fn usual_size() -> usize {
    retrieve::USUAL.size
}

impl TaskFile {
    /// Reads and checks a file.
    pub fn read(path: &Path) -> Result<TaskFile> {
        let text =
            std::fs::read_to_string(path).map_err(|source| Error::File { path: path.into(), source })?;
        let refuse = |reason: String| Error::Task { path: path.into(), reason };
        let mut file: TaskFile = toml::from_str(&text).map_err(|error| refuse(error.to_string()))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        file.data = folder.join(&file.data);
        file.examples = file.examples.map(|examples| folder.join(examples));
        file.retrieve = file.retrieve.map(|root| folder.join(root));
        file.retrieve_encoder = file.retrieve_encoder.map(|encoder| folder.join(encoder));
        file.path = path.into();
        file.check().map_err(refuse)?;
        Ok(file)
    }

    fn check(&self) -> Result<(), String> {
        let needs = |key: &str, there: bool| match there {
            true => Ok(()),
            false => Err(format!("`{key}` is missing, which kind = {} needs", json!(self.kind))),
        };
        match self.kind {
            Kind::Perplexity | Kind::Classification => {}
            Kind::MultipleChoice => {
                needs("prompt", self.prompt.is_some())?;
                needs("choices", self.choices.is_some())?;
            }
            Kind::Generation | Kind::Qa => needs("prompt", self.prompt.is_some())?,
        }
        if self.retrieve.is_some() && self.kind != Kind::Qa {
            return Err("`retrieve` is for kind qa".into());
        }
        if self.retrieve.is_some() && self.sources.is_some() {
            return Err("`retrieve` and `sources` both say what may be cited: leave one of them out".into());
        }
        if self.retrieve.is_none() {
            let only =
                [("retrieve_encoder", self.retrieve_encoder.is_some()), ("query", self.query.is_some())];
            if let Some((key, _)) = only.iter().find(|(_, given)| *given) {
                return Err(format!("`{key}` is of `retrieve`, which is missing"));
            }
        }
        let numbers = [
            ("retrieve_top", self.retrieve_top, 1),
            ("window", self.window.unwrap_or(2), 2),
            ("stride", self.stride.unwrap_or(1), 1),
            ("max_new_tokens", self.max_new_tokens, 1),
            ("limit", self.limit.unwrap_or(1), 1),
        ];
        for (key, got, least) in numbers {
            if got < least {
                return Err(format!("{key} is {got}, expected {least} or more"));
            }
        }
        if let (Some(window), Some(stride)) = (self.window, self.stride)
            && stride > window
        {
            return Err(format!(
                "stride is {stride}, expected at most the window of {window}: else tokens are left out"
            ));
        }
        if self.labels.as_ref().is_some_and(|labels| labels.len() < 2) {
            return Err("labels has fewer than two".into());
        }
        Ok(())
    }

    /// The column of the answer.
    pub fn answer(&self) -> Columns {
        let usual = match self.kind {
            Kind::Classification => "label",
            Kind::Generation => "reference",
            _ => "answer",
        };
        self.answer.clone().unwrap_or_else(|| Columns::One(usual.into()))
    }
}
