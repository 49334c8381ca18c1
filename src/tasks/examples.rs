//! Rows of a task as questions: prompts with solved examples before them, choices, answers.

use super::file::{Columns, Kind, TaskFile};
use super::{Error, Result};
use crate::data::records::{self, Record};
use crate::data::text::{Document, ending};
use crate::retrieve::Hit;
use crate::tensor::random::Stream;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value};
use minijinja::{Environment, UndefinedBehavior};
use serde_json::Value as Json;

/// Rows that are asked.
pub struct Examples {
    /// Rows, in order.
    pub rows: Vec<Asked>,
}

/// A row that is asked.
#[derive(Clone, Debug)]
pub struct Asked {
    /// What stands before the answer, examples and all.
    pub prompt: String,
    /// multiple-choice, and classification by labels: what may follow.
    pub choices: Vec<String>,
    /// Which of them is right.
    pub right: usize,
    /// Else what should follow: each of these is right.
    pub answers: Vec<String>,
    /// Where the question begins in the prompt, behind the examples, in bytes.
    pub begins: usize,
    /// qa: what may be cited.
    pub sources: Vec<String>,
    /// qa with passages: what is looked up.
    pub query: String,
    /// qa with passages: what was found, the best first.
    pub hits: Vec<Hit>,
    /// Its record; of plain text there is none.
    pub record: Option<Record>,
}

impl Examples {
    /// Reads the rows of a task.
    pub fn read(task: &TaskFile) -> Result<Examples> {
        let is_plain = !matches!(ending(&task.data).as_str(), "jsonl" | "ndjson" | "csv" | "tsv");
        if task.kind == Kind::Perplexity && is_plain {
            let text = Document::open(&task.data)?.contents().to_string();
            return Ok(Examples { rows: vec![Asked::of_text(text, None)] });
        }
        let records = records::read(&task.data)?;
        let limit = task.limit.unwrap_or(usize::MAX);
        if task.kind == Kind::Perplexity {
            let column = task.text.as_deref().unwrap_or("text");
            let of =
                |record: &Record| Ok(Asked::of_text(text_of(record, column, "text")?, Some(record.clone())));
            return Ok(Examples { rows: records.iter().take(limit).map(of).collect::<Result<_>>()? });
        }
        let asker = Asker::new(task)?;
        let solved = match &task.examples {
            Some(path) => asker.all(&records::read(path)?)?,
            None => asker.all(&records)?,
        };
        if task.shots > 0 && solved.len() < task.shots + usize::from(task.examples.is_none()) {
            let (setting, got) = ("shots", task.shots.to_string());
            return Err(Error::Setting {
                setting,
                expected: format!("fewer than the {} rows to take them from", solved.len()),
                got,
            });
        }
        let mut rows = match &task.examples {
            Some(_) => asker.all(&records[..records.len().min(limit)])?,
            None => solved[..solved.len().min(limit)].to_vec(),
        };
        if task.shots > 0 {
            for (number, row) in rows.iter_mut().enumerate() {
                let own = task.examples.is_none().then_some(number);
                let before: String = drawn(task, number, solved.len(), own)
                    .into_iter()
                    .map(|at| solved[at].solved(task) + &task.separator)
                    .collect();
                row.prompt.insert_str(0, &before);
                row.begins = before.len();
            }
        }
        Ok(Examples { rows })
    }
}

/// Which examples stand before a question: others than itself, by the seed.
fn drawn(task: &TaskFile, number: usize, count: usize, own: Option<usize>) -> Vec<usize> {
    let mut random = Stream::new(&[task.seed as u32, (task.seed >> 32) as u32, number as u32, 0x5407]);
    let mut left: Vec<usize> = (0..count).filter(|at| Some(*at) != own).collect();
    (0..task.shots).map(|_| left.swap_remove(random.below(left.len() as u64) as usize)).collect()
}

impl Asked {
    fn of_text(text: String, record: Option<Record>) -> Asked {
        let (choices, answers, sources, hits) = (vec![], vec![], vec![], vec![]);
        let query = String::new();
        Asked { prompt: text, choices, right: 0, answers, begins: 0, sources, query, hits, record }
    }

    /// The question with its answer.
    fn solved(&self, task: &TaskFile) -> String {
        let answer = self.choices.get(self.right).or(self.answers.first());
        format!("{}{}{}", self.prompt, task.delimiter, answer.map_or("", String::as_str))
    }

    /// File and line, for messages.
    pub fn place(&self, task: &TaskFile) -> (std::path::PathBuf, usize) {
        match &self.record {
            Some(record) => (record.place().0.to_path_buf(), record.place().1),
            None => (task.data.clone(), 1),
        }
    }
}

/// Makes questions of records.
struct Asker<'a> {
    task: &'a TaskFile,
    environment: Environment<'a>,
}

impl<'a> Asker<'a> {
    fn new(task: &'a TaskFile) -> Result<Asker<'a>> {
        let mut environment = Environment::new();
        let mut syntax = SyntaxConfig::builder();
        // A prompt may end in a line end.
        syntax.keep_trailing_newline(true);
        environment.set_syntax(syntax.build().expect("the usual tags of Jinja"));
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        if let Some(prompt) = &task.prompt {
            environment.add_template("prompt", prompt).map_err(|error| Error::Task {
                path: task.path.clone(),
                reason: format!("the prompt is no template: {error}"),
            })?;
        }
        Ok(Asker { task, environment })
    }

    fn all(&self, records: &[Record]) -> Result<Vec<Asked>> {
        records.iter().map(|record| self.ask(record)).collect()
    }

    fn ask(&self, record: &Record) -> Result<Asked> {
        let task = self.task;
        let prompt = match &task.prompt {
            None => text_of(record, task.text.as_deref().unwrap_or("text"), "text")?,
            Some(_) => {
                let template = self.environment.get_template("prompt").expect("it was added");
                let known = record.names().collect::<Vec<_>>().join(", ");
                template.render(Value::from(Serde(record.fields()))).map_err(|error| {
                    refuse(
                        record,
                        format!("the prompt cannot be written: {error}; the row has {known}"),
                        "prompt",
                    )
                })?
            }
        };
        let mut asked = Asked::of_text(prompt, Some(record.clone()));
        let answer = task.answer();
        match (task.kind, &task.labels) {
            (Kind::MultipleChoice, _) => {
                let choices = task.choices.as_ref().expect("it was checked");
                asked.choices = texts_of(record, choices, "choices")?;
                asked.right = right_of(record, &answer, &asked.choices, true)?;
            }
            (Kind::Classification, Some(labels)) => {
                asked.choices.clone_from(labels);
                asked.right = right_of(record, &answer, labels, false)?;
            }
            _ => asked.answers = texts_of(record, &answer, "answer")?,
        }
        if let Some(sources) = &task.sources {
            asked.sources = texts_of(record, sources, "sources")?;
        }
        if task.retrieve.is_some() {
            asked.query = match &task.query {
                Some(column) => text_of(record, column, "query")?,
                None if record.find(&["question"]).is_some() => text_of(record, "question", "query")?,
                None => asked.prompt.clone(),
            };
        }
        Ok(asked)
    }
}

fn refuse(record: &Record, reason: String, hint: &'static str) -> Error {
    let (path, line) = record.place();
    Error::Row { path: path.into(), line, reason, hint }
}

fn value_of<'a>(record: &'a Record, column: &'a str, key: &'static str) -> Result<&'a Json> {
    record.find(&[column]).map(|(_, value)| value).ok_or_else(|| {
        let known = record.names().collect::<Vec<_>>().join(", ");
        refuse(record, format!("there is no `{column}`, only {known}"), key)
    })
}

fn plain(value: &Json) -> Option<String> {
    match value {
        Json::String(text) => Some(text.clone()),
        Json::Number(number) => Some(number.to_string()),
        Json::Bool(is) => Some(is.to_string()),
        _ => None,
    }
}

fn text_of(record: &Record, column: &str, key: &'static str) -> Result<String> {
    let value = value_of(record, column, key)?;
    plain(value).ok_or_else(|| refuse(record, format!("expected text for `{column}`, got {value}"), key))
}

/// The texts of a list, or of several columns; a text alone is a list of one.
fn texts_of(record: &Record, columns: &Columns, key: &'static str) -> Result<Vec<String>> {
    let texts = match columns {
        Columns::Several(columns) => {
            columns.iter().map(|column| text_of(record, column, key)).collect::<Result<Vec<_>>>()?
        }
        Columns::One(column) => match value_of(record, column, key)? {
            Json::Array(list) => list
                .iter()
                .map(plain)
                .collect::<Option<Vec<_>>>()
                .ok_or_else(|| refuse(record, format!("expected a list of texts for `{column}`"), key))?,
            _ => vec![text_of(record, column, key)?],
        },
    };
    match texts.is_empty() {
        true => Err(refuse(record, format!("the list of {key} is empty"), key)),
        false => Ok(texts),
    }
}

/// Which choice the answer names: by its text, by its number from zero, or by a letter. With `counted` a number of JSON's is no
/// text: choices may be numbers themselves.
fn right_of(record: &Record, column: &Columns, choices: &[String], counted: bool) -> Result<usize> {
    let Columns::One(column) = column else {
        return Err(refuse(record, "the answer is one column".into(), "answer"));
    };
    let got = text_of(record, column, "answer")?;
    let place = value_of(record, column, "answer")?.as_u64().filter(|_| counted);
    if let Some(place) = place.and_then(|place| usize::try_from(place).ok()).filter(|at| *at < choices.len())
    {
        return Ok(place);
    }
    if let Some(at) = choices.iter().position(|choice| *choice == got) {
        return Ok(at);
    }
    let number = got.trim().parse::<usize>().ok();
    let letter = match got.trim().as_bytes() {
        [letter @ b'A'..=b'Z'] => Some(usize::from(letter - b'A')),
        [letter @ b'a'..=b'z'] => Some(usize::from(letter - b'a')),
        _ => None,
    };
    number.or(letter).filter(|at| *at < choices.len()).ok_or_else(|| {
        let (path, line) = record.place();
        Error::Answer { path: path.into(), line, got, choices: choices.len() }
    })
}
