//! What a model writes for each prompt, beside what it should.

use super::{Error, Kind, Measured, Outcome, Result, Task};
use crate::evaluate;
use crate::exchange::Opened;
use crate::generate::{Lengths, Sampling, Translator, Writer, end_tokens};
use crate::metrics::qa::{self, ExactMatch, WordF1};
use crate::metrics::{Bleu, Chrf, Rouge, Ter, TextMetric, statistics};
use crate::train::Target;
use std::path::Path;
use std::rc::Rc;

/// Sees a token, and says whether more are wanted.
type See<'a> = &'a mut dyn FnMut(u32) -> bool;

/// Continues a prompt.
type Write<'a> = dyn FnMut(&[u32], See) -> Result<()> + 'a;

/// generation and qa: the best token each time.
pub fn measure(task: &Task, opened: Opened, path: &Path, target: Target) -> Result<Outcome> {
    let metrics = metrics(task)?;
    let written = write(task, opened, path, &target)?;
    let rows = &task.examples.rows;
    let references: Vec<Vec<&str>> =
        rows.iter().map(|row| row.answers.iter().map(String::as_str).collect()).collect();
    let plain: Vec<String> = match task.file.sources {
        Some(_) => written.iter().map(|text| qa::without_citations(text)).collect(),
        None => written.clone(),
    };
    let mut measured = vec![];
    for metric in metrics {
        let metric: Rc<dyn TextMetric> = Rc::from(metric);
        let segments = statistics(metric.as_ref(), &plain, &references)?;
        let (name, is_error) = (metric.name(), metric.is_error());
        let each = references[0].len();
        let signature =
            metric.signature(Some(each).filter(|each| references.iter().all(|list| list.len() == *each)));
        let score = move |sums: &[f64]| metric.score(sums);
        let one = Measured::new(name, segments, score);
        measured.push(Measured { is_error, signature: Some(signature), ..one });
    }
    if task.file.sources.is_some() {
        measured.extend(cited(task, &written));
    }
    Ok(Outcome { measured, segments: "questions".into() })
}

/// Share of what is cited that has the answer, and share of answers that cite such a source.
fn cited(task: &Task, written: &[String]) -> [Measured; 2] {
    let of = |(row, text): (&super::examples::Asked, &String)| {
        let texts = |list: &[String]| list.to_vec();
        let (sources, answers) = (texts(&row.sources), texts(&row.answers));
        let sources: Vec<&str> = sources.iter().map(String::as_str).collect();
        let answers: Vec<&str> = answers.iter().map(String::as_str).collect();
        let found = qa::citations(text, &sources, &answers);
        (found.cited.len() as f64, found.supported as f64)
    };
    let found: Vec<(f64, f64)> = task.examples.rows.iter().zip(written).map(of).collect();
    let precision = found.iter().map(|(cited, supported)| vec![*supported, *cited]).collect();
    // Without a citation none is wrong, and none is right.
    let share = |sums: &[f64]| if sums[1] > 0.0 { sums[0] / sums[1] } else { 0.0 };
    [
        Measured::new("citation_precision", precision, share),
        Measured::mean(
            "citation_support",
            found.iter().map(|(_, supported)| f64::from(u8::from(*supported > 0.0))),
        ),
    ]
}

fn metrics(task: &Task) -> Result<Vec<Box<dyn TextMetric>>> {
    let usual: &[&str] = match task.file.kind {
        Kind::Qa => &["exact_match", "f1"],
        _ => &["bleu", "chrf", "rougeL", "exact_match"],
    };
    let named = task.file.metrics.clone();
    let names = named.unwrap_or_else(|| usual.iter().map(|name| name.to_string()).collect());
    let of = |name: &String| -> Result<Box<dyn TextMetric>> {
        Ok(match name.as_str() {
            "bleu" => Box::new(Bleu::default()),
            "chrf" => Box::new(Chrf::default()),
            "chrf++" => Box::new(Chrf::plus_plus()),
            "ter" => Box::new(Ter::default()),
            "exact_match" => Box::new(ExactMatch),
            "f1" => Box::new(WordF1),
            other => match Rouge::named(other, false) {
                Some(rouge) => Box::new(rouge),
                None => {
                    let expected =
                        "bleu, chrf, chrf++, ter, rouge1 to rouge9, rougeL, rougeLsum, exact_match or f1";
                    return Err(Error::Setting {
                        setting: "metrics",
                        expected: expected.into(),
                        got: other.into(),
                    });
                }
            },
        })
    };
    names.iter().map(of).collect()
}

/// The answer to each prompt, without white space around it.
fn write(task: &Task, opened: Opened, path: &Path, target: &Target) -> Result<Vec<String>> {
    let tokenizer = opened.tokenizer.clone();
    let tokenizer = tokenizer.ok_or_else(|| evaluate::Error::NoTokenizer { model: path.into() })?;
    let ends = end_tokens(&opened.family.config(), Some(path));
    let encode = |prompt: &str| tokenizer.encode_with_special(prompt);
    let mut prompts =
        task.examples.rows.iter().map(|row| encode(&row.prompt)).collect::<Result<Vec<_>, _>>()?;
    let (count, greedy) = (task.file.max_new_tokens, Sampling::greedy());
    let longest = |prompts: &[Vec<u32>]| prompts.iter().map(Vec::len).max().unwrap_or(1);
    // Answers one after the other, each until it ends or has a text that stops it.
    let finish = |write: &mut Write<'_>, prompt: &[u32]| {
        let (mut ids, mut failed, mut answer) = (vec![], None, String::new());
        write(prompt, &mut |token| {
            if ends.contains(&token) {
                return false;
            }
            ids.push(token);
            match tokenizer.decode(&ids) {
                Ok(text) => answer = text,
                Err(error) => failed = Some(error),
            }
            let stop = task.file.stop.iter().filter_map(|stop| answer.find(stop.as_str())).min();
            if let Some(at) = stop {
                answer.truncate(at);
            }
            stop.is_none() && failed.is_none()
        })?;
        match failed {
            Some(error) => Err(Error::from(error)),
            None => Ok(answer.trim().to_string()),
        }
    };
    if opened.family.interface().start.is_some() {
        if let Some(&end) = ends.first() {
            prompts.iter_mut().filter(|ids| ids.last() != Some(&end)).for_each(|ids| ids.push(end));
        }
        let count = count.min(opened.family.context());
        let lengths = Lengths { source: longest(&prompts), target: count };
        let mut translator = Translator::with(opened, target, lengths)?;
        let mut write = |prompt: &[u32], see: See| -> Result<()> {
            translator.write_ids(prompt, count, &greedy, see)?;
            Ok(())
        };
        return prompts.iter().map(|prompt| finish(&mut write, prompt)).collect();
    }
    let most = longest(&prompts).saturating_add(count);
    let mut writer = Writer::new(opened.family.as_ref(), &opened.weights, None, target, most)?;
    let mut write = |prompt: &[u32], see: See| -> Result<()> {
        writer.check(prompt)?;
        writer.continue_ids(prompt, count, &greedy, see)?;
        Ok(())
    };
    prompts.iter().map(|prompt| finish(&mut write, prompt)).collect()
}
