//! `kiln classify`: what a model says of texts.

use super::folder::{Beside, Head, ModelFolder};
use super::{Usage, count};
use crate::data::labelled::{self, Columns, Labelled};
use crate::data::tagged;
use crate::data::text::Text;
use crate::evaluate::{Classifier, RowClassifier, probabilities};
use crate::exchange::Opened;
use crate::model::{Labels, Task};
use crate::train::Target;
use crate::train::lesson::Classes;
use crate::train::lesson::scores::largest;
use crate::train::lesson::spans::spans;
use clap::Args;
use serde_json::{Map, Value as Json, json};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Endings of files whose rows are read by their columns.
const TABLES: [&str; 3] = ["tsv", "csv", "jsonl"];

/// Tag of a word that stands behind all that is read.
const NOT_READ: &str = "_";

/// Share above which one of several labels counts.
const LIKELY: f64 = 0.5;

/// Say which class texts are of, with a probability for each class.
///
/// A line for each text, in their order: the class and the probabilities, with a tab between them. Where several labels may be right
/// those above one half are named, with bars between them; where the label is a number it is printed. A model that tags words gives a
/// line for each word, with its tag behind a tab, and an empty line behind each sentence; words beyond what it reads have the tag `_`.
/// A model of rows reads the columns it was trained on, by their names.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  kiln classify runs/reviews --text \"A fine film.\"\n  kiln classify runs/reviews --data unseen.tsv --json\n  kiln classify runs/names --text \"Rome was not built by Caesar\" --json\n  kiln classify runs/pairs --text \"It rains.\" --second \"The street is wet.\"\n  kiln classify runs/flowers --data unseen.csv"
)]
pub struct Classify {
    #[command(flatten)]
    folder: ModelFolder,
    #[command(flatten)]
    beside: Beside,
    #[command(flatten)]
    head: Head,
    /// A text. May be given again.
    #[arg(long, value_name = "TEXT")]
    text: Vec<String>,
    /// The second text beside each --text, for models of pairs.
    #[arg(long, value_name = "TEXT", requires = "text")]
    second: Vec<String>,
    /// A .tsv, .csv or .jsonl file with columns as in training, labels or not; of others each line is a text. For models that tag
    /// words: a word on each line, tagged or not, or .jsonl with lists of words. May be given again.
    #[arg(long, value_name = "FILE")]
    data: Vec<PathBuf>,
    #[command(flatten)]
    columns: ColumnNames,
    /// Print an object a line: {"label", "probabilities"}, {"labels", "probabilities"}, {"numbers"}, or {"words", "tags", "spans"}.
    #[arg(long)]
    json: bool,
    /// Texts in one batch.
    #[arg(long, default_value_t = 16, value_parser = count)]
    batch: usize,
    /// Tokens of a text that are read at most.
    #[arg(long, value_name = "TOKENS", value_parser = count)]
    most: Option<usize>,
    /// gpu, cpu, an adapter's number, or part of its name.
    #[arg(long, default_value = "gpu")]
    device: String,
}

/// What columns of tables are called, where not as usual.
#[derive(Args)]
pub(super) struct ColumnNames {
    /// Column of the text. Absent: text, sentence, sentence1 or premise.
    #[arg(long, value_name = "NAME")]
    text_column: Option<String>,
    /// Column of a second text. Absent: second, text2, sentence2 or hypothesis, where there is one.
    #[arg(long, value_name = "NAME")]
    second_column: Option<String>,
    /// Column of the label. Absent: as a model of rows has it, else label or labels.
    #[arg(long, value_name = "NAME")]
    label_column: Option<String>,
}

impl ColumnNames {
    pub fn columns(&self) -> Columns {
        let ColumnNames { text_column, second_column, label_column } = self;
        Columns {
            text: text_column.clone(),
            second: second_column.clone(),
            label: label_column.clone(),
            ..Columns::default()
        }
    }
}

impl Classify {
    /// Prints a line for each text.
    pub fn run(self) -> anyhow::Result<()> {
        let model = self.folder.resolve()?;
        let opened = self.head.open(&model, &self.beside.resolve()?)?;
        let tags = matches!(opened.family.interface().task, Task::TokenClass { .. });
        if RowClassifier::is_for(&opened) {
            return self.rows(opened);
        }
        let texts = if tags { vec![] } else { self.texts()? };
        let target = Target::open_or_host(&self.device, &mut |line| eprintln!("{line}"))?;
        eprintln!("device   {}", target.describe());
        let mut classifier = Classifier::new(opened, &model, target, self.batch, self.most)?;
        if tags {
            return self.tag(&mut classifier);
        }
        let list: Vec<_> = texts.iter().map(|(text, second)| (text.as_str(), second.as_deref())).collect();
        let all = classifier.classify(&list)?;
        classifier.target().told().iter().for_each(|report| eprintln!("kernels  {report}"));
        self.print(&classifier.classes, &all)
    }

    /// Prints a line for each row of tables.
    fn rows(&self, opened: Opened) -> anyhow::Result<()> {
        if !self.text.is_empty() || self.most.is_some() {
            let text = "--text and --most are for models of texts, this one reads rows of numbers\n  hint: --data FILE";
            return Err(Usage(text.into()).into());
        }
        if self.data.is_empty() {
            return Err(Usage("there is no row\n  hint: --data FILE".into()).into());
        }
        let target = Target::open_or_host(&self.device, &mut |line| eprintln!("{line}"))?;
        eprintln!("device   {}", target.describe());
        let mut classifier = RowClassifier::new(opened, target, self.batch)?;
        let rows = classifier.read(&self.data, &self.columns.columns(), false)?;
        let all = classifier.classify(&rows)?;
        classifier.target().told().iter().for_each(|report| eprintln!("kernels  {report}"));
        self.print(&classifier.classes, &all)
    }

    fn print(&self, classes: &Classes, all: &[Vec<f32>]) -> anyhow::Result<()> {
        let (names, labels) = (&classes.names, classes.labels);
        let mut out = std::io::stdout().lock();
        for scores in all {
            match self.json {
                true => writeln!(out, "{}", object(names, labels, scores))?,
                false => writeln!(out, "{}", line(names, labels, scores))?,
            }
        }
        Ok(())
    }

    /// Prints a tag for each word.
    fn tag(&self, classifier: &mut Classifier) -> anyhow::Result<()> {
        if !self.second.is_empty() {
            return Err(Usage("--second is for models of pairs, this one tags words".into()).into());
        }
        let split = |text: &String| text.split_whitespace().map(String::from).collect::<Vec<_>>();
        let mut sentences: Vec<Vec<String>> = self.text.iter().map(split).collect();
        sentences.extend(tagged::read(&self.data, false)?.into_iter().map(|row| row.words));
        sentences.retain(|words| !words.is_empty());
        if sentences.is_empty() {
            return Err(Usage("there is no text\n  hint: --text \"..\", or --data FILE".into()).into());
        }
        let all: Vec<&[String]> = sentences.iter().map(|words| &words[..]).collect();
        let found = classifier.tag(&all)?;
        classifier.target().told().iter().for_each(|report| eprintln!("kernels  {report}"));
        let names = &classifier.classes.names;
        let mut out = std::io::stdout().lock();
        for (words, found) in sentences.iter().zip(&found) {
            let tags: Vec<&str> = found.iter().map(|tag| tag.map_or(NOT_READ, |tag| &names[tag])).collect();
            if self.json {
                writeln!(out, "{}", tagged_object(words, &tags))?;
                continue;
            }
            for (word, tag) in words.iter().zip(&tags) {
                writeln!(out, "{word}\t{tag}")?;
            }
            writeln!(out)?;
        }
        Ok(())
    }

    fn texts(&self) -> anyhow::Result<Vec<(String, Option<String>)>> {
        if !self.second.is_empty() && self.second.len() != self.text.len() {
            let text =
                format!("{} of --second stand beside {} of --text", self.second.len(), self.text.len());
            return Err(Usage(format!("{text}\n  hint: give one for each, or none")).into());
        }
        let mut texts: Vec<_> = self
            .text
            .iter()
            .enumerate()
            .map(|(at, text)| (text.clone(), self.second.get(at).cloned()))
            .collect();
        for path in &self.data {
            if is_table(path) {
                let rows = labelled::read(std::slice::from_ref(path), &self.columns.columns(), false)?;
                texts.extend(rows.into_iter().map(|Labelled { text, second, .. }| (text, second)));
            } else {
                let text = Text::open(std::slice::from_ref(path))?;
                let lines = text.contents();
                let filled = lines.lines().filter(|line| !line.trim().is_empty());
                texts.extend(filled.map(|line| (line.to_string(), None)));
            }
        }
        match texts.is_empty() {
            true => Err(Usage("there is no text\n  hint: --text \"..\", or --data FILE".into()).into()),
            false => Ok(texts),
        }
    }
}

fn is_table(path: &Path) -> bool {
    path.extension().is_some_and(|ending| TABLES.iter().any(|table| ending.eq_ignore_ascii_case(table)))
}

/// Words, tags, and the spans that these mark.
fn tagged_object(words: &[String], tags: &[&str]) -> Json {
    let span = |(kind, from, to): (&str, usize, usize)| json!({ "kind": kind, "from": from, "to": to, "text": words[from..to].join(" ") });
    let spans: Vec<Json> = spans(tags).into_iter().map(span).collect();
    json!({ "words": words, "tags": tags, "spans": spans })
}

/// The class or classes, and the share of each.
fn line(names: &[String], labels: Labels, scores: &[f32]) -> String {
    let shares = probabilities(labels, scores);
    if labels == Labels::Numbers {
        return shares.iter().map(|number| format!("{number:.6}")).collect::<Vec<_>>().join("\t");
    }
    let each = names.iter().zip(&shares).map(|(name, share)| format!("{name}={share:.4}"));
    format!("{}\t{}", chosen(names, labels, scores).join("|"), each.collect::<Vec<_>>().join(" "))
}

fn object(names: &[String], labels: Labels, scores: &[f32]) -> Json {
    let shares = probabilities(labels, scores);
    let each: Map<_, _> =
        names.iter().zip(&shares).map(|(name, share)| (name.clone(), json!(share))).collect();
    match labels {
        Labels::One => json!({ "label": chosen(names, labels, scores)[0], "probabilities": each }),
        Labels::Any => json!({ "labels": chosen(names, labels, scores), "probabilities": each }),
        Labels::Numbers => json!({ "numbers": shares }),
    }
}

fn chosen<'a>(names: &'a [String], labels: Labels, scores: &[f32]) -> Vec<&'a str> {
    match labels {
        Labels::Any => {
            let likely = probabilities(labels, scores).into_iter().map(|share| share > LIKELY);
            names.iter().zip(likely).filter(|(_, likely)| *likely).map(|(name, _)| name.as_str()).collect()
        }
        _ => vec![&names[largest(scores)]],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_the_class_and_an_object_has_all_shares() {
        let names = ["bad".to_string(), "good".to_string()];
        assert_eq!(line(&names, Labels::One, &[0.0, 0.0]), "bad\tbad=0.5000 good=0.5000");
        assert_eq!(line(&names, Labels::Any, &[-9.0, 9.0]), "good\tbad=0.0001 good=0.9999");
        assert_eq!(line(&names[..1], Labels::Numbers, &[2.5]), "2.500000");
        let one = object(&names, Labels::One, &[1.0, 1.0]);
        assert_eq!(one.to_string(), r#"{"label":"bad","probabilities":{"bad":0.5,"good":0.5}}"#);
        assert_eq!(object(&names, Labels::Any, &[-1.0, -1.0])["labels"], json!([]));
    }
}
