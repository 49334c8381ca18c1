//! What a model writes for each prompt, beside what it should.

use super::grounds::{self, Posed, pose};
use super::{Error, Kind, Measured, Outcome, Result, Task};
use crate::deploy::Deployment;
use crate::evaluate;
use crate::exchange::Opened;
use crate::generate::{Lengths, Overflow, Request, Room, Session, Settings, end_tokens, open_rows};
use crate::metrics::qa::{self, ExactMatch, WordF1};
use crate::metrics::{Bleu, Chrf, Rouge, Ter, TextMetric, statistics};
use crate::train::Target;
use std::collections::HashMap;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

/// generation and qa: the best token each time.
pub fn measure(task: &Task, opened: Opened, path: &Path, target: &Target, batch: usize) -> Result<Outcome> {
    if task.file.retrieve.is_some() && !task.looked_up {
        let reason = "its passages have not been looked up".to_string();
        return Err(Error::Task { path: task.file.path.clone(), reason });
    }
    let metrics = metrics(task)?;
    let (written, told) = write(task, opened, path, target, batch)?;
    let rows = &task.examples.rows;
    let references: Vec<Vec<&str>> =
        rows.iter().map(|row| row.answers.iter().map(String::as_str).collect()).collect();
    let cites = task.file.sources.is_some() || task.looked_up;
    let plain = |answer: &Answer| match cites {
        true => qa::without_citations(&answer.text),
        false => answer.text.clone(),
    };
    let plain: Vec<String> = written.iter().map(plain).collect();
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
    if cites {
        let lent =
            written.iter().zip(rows).map(|(one, row)| (&one.text[..], &one.sources[..], &row.answers[..]));
        measured.extend(grounds::measure(&lent.collect::<Vec<_>>(), task.looked_up));
    }
    Ok(Outcome { measured, segments: "questions".into(), told })
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

/// What a model wrote for a question, and what it could cite.
pub(super) struct Answer {
    pub(super) text: String,
    sources: Vec<String>,
}

/// The answer to each prompt, without white space around it: side by side, each the text that it is alone.
pub(super) fn write(
    task: &Task,
    opened: Opened,
    path: &Path,
    target: &Target,
    batch: usize,
) -> Result<(Vec<Answer>, Option<String>)> {
    let tokenizer = opened.tokenizer.clone();
    let tokenizer = tokenizer.ok_or_else(|| evaluate::Error::NoTokenizer { model: path.into() })?;
    let family = opened.family.as_ref();
    let ends = end_tokens(&family.config(), Some(path));
    let pair = family.interface().start.is_some();
    let count = task.file.max_new_tokens;
    // Of an encoder-decoder only the token that ends what it reads may be added.
    let answer = if pair { 1 } else { count };
    let rows = &task.examples.rows;
    let mut posed = rows
        .iter()
        .map(|row| pose(row, &tokenizer, family.context(), answer))
        .collect::<Result<Vec<Posed>>>()?;
    let dropped: usize = posed.iter().map(|posed| posed.dropped).sum();
    let told = (dropped > 0).then(|| {
        format!("retrieve {dropped} passages dropped: no room for them in the context of {}", path.display())
    });
    if let Some(&end) = ends.first().filter(|_| pair) {
        let open = posed.iter_mut().filter(|posed| posed.ids.last() != Some(&end));
        open.for_each(|posed| posed.ids.push(end));
    }
    let longest = posed.iter().map(|posed| posed.ids.len()).max().unwrap_or(1);
    let deployment = Deployment::new(&opened.weights).within(target);
    let room = Room { rows: batch.clamp(1, posed.len().max(1)), tokens: longest.saturating_add(count) };
    let lengths = Lengths { source: longest, target: if pair { count.min(family.context()) } else { 1 } };
    let written = open_rows(family, &deployment, target, room, lengths)?;
    let mut session = Session::new(written, Some(Arc::new(tokenizer.clone())));
    let start = session.rows().start();
    let stop = task.file.stop.clone();
    // The older half of what is longer than the context is forgotten.
    let overflow = Overflow::Slide;
    let settings =
        Settings { ends: ends.clone(), stop, overflow, ..Settings::greedy(lengths.target.max(answer)) };
    let mut places = HashMap::new();
    for (at, posed) in posed.iter().enumerate() {
        let source = if pair { Some(session.rows().source_of(&posed.ids)?) } else { None };
        let prompt = start.map_or_else(|| posed.ids.clone(), |start| vec![start]);
        let request = Request { source, ..Request::new(prompt, settings.clone()) };
        places.insert(session.admit(request)?, at);
    }
    let mut tokens = vec![vec![]; posed.len()];
    while !session.is_idle() {
        for event in session.step()?.into_iter().filter(|event| !ends.contains(&event.token)) {
            tokens[places[&event.ticket]].push(event.token);
        }
    }
    let text = |ids: &Vec<u32>| -> Result<String> {
        let mut text = tokenizer.decode(ids)?;
        // What a token brings may go on behind the text that stops.
        if let Some(at) = task.file.stop.iter().filter_map(|stop| text.find(stop.as_str())).min() {
            text.truncate(at);
        }
        Ok(text.trim().to_string())
    };
    let answer = |(ids, posed): (&Vec<u32>, Posed)| Ok(Answer { text: text(ids)?, sources: posed.sources });
    Ok((tokens.iter().zip(posed).map(answer).collect::<Result<_>>()?, told))
}
