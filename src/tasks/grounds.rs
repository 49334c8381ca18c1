//! qa: what answers stand on. An answer is one statement, and a passage supports it where it holds one of the wanted answers, as whole words
//! in the form in which answers are compared.
//!
//! | figure | share |
//! |---|---|
//! | `retrieved` | of questions, those for which a passage was given that supports; only with `retrieve` |
//! | `support` | of questions, those where what the answer cites supports or, where it cites nothing, the first passage |
//! | `citation_recall` | of answers, those that cite a passage that supports: ALCE's recall of one statement |
//! | `citation_precision` | of all citations, those of a passage that supports; numbers of no passage do not |
//!
//! ALCE (Gao et al. 2023) asks a model whether a passage supports a statement; here the wanted answer must stand in it.

use super::examples::Asked;
use super::{Error, Measured, Result, Task};
use crate::data::tokenizer::Tokenizer;
use crate::metrics::qa;
use crate::retrieve::{self, Finder, Lengths, Settings, form};
use crate::train::Target;
use std::path::Path;

impl Task {
    /// Looks up passages for the questions, where the task's file names a folder of them. `cache` is the folder of all caches, `target` opens
    /// the device of an encoder. Gives what a person should know.
    pub fn look_up(
        &mut self,
        cache: Option<&Path>,
        target: &mut dyn FnMut() -> retrieve::Result<Target>,
    ) -> Result<Vec<String>> {
        let Some(root) = &self.file.retrieve else { return Ok(vec![]) };
        let size = self.file.retrieve_size;
        let lengths = Lengths { size, overlap: self.file.retrieve_overlap.unwrap_or(size / 4) };
        let encoder = self.file.retrieve_encoder.clone();
        let settings = Settings { lengths, encoder, encoder_flag: "retrieve_encoder =" };
        let mut finder = Finder::open(root, &settings, cache, target)?;
        let mut none = 0;
        for row in &mut self.examples.rows {
            row.hits = finder.find(&row.query, self.file.retrieve_top)?;
            none += usize::from(row.hits.is_empty());
        }
        self.looked_up = true;
        let mut told = finder.report().told();
        if none > 0 {
            told.push(format!("retrieve no passage matches {none} of {} questions", self.count()));
        }
        Ok(told)
    }
}

/// A question as a model reads it.
pub struct Posed {
    /// Tokens of passages and prompt.
    pub ids: Vec<u32>,
    /// What may be cited.
    pub sources: Vec<String>,
    /// Passages for which there was no room.
    pub dropped: usize,
}

/// Puts passages before a question, behind the examples: as many as leave room for an answer.
pub fn pose(row: &Asked, tokenizer: &Tokenizer, context: usize, answer: usize) -> Result<Posed> {
    let encode = |hits: &[retrieve::Hit]| {
        let (examples, question) = row.prompt.split_at(row.begins);
        tokenizer.encode_with_special(&format!("{examples}{}", form::plain(hits, question)))
    };
    if row.hits.is_empty() {
        return Ok(Posed { ids: encode(&[])?, sources: row.sources.clone(), dropped: 0 });
    }
    let mut length = |hits: &[retrieve::Hit]| encode(hits).ok().map(|ids| ids.len());
    let fitted = form::fit(row.hits.clone(), context, answer, &mut length)?;
    let ids = encode(&fitted.kept)?;
    let dropped = fitted.too_long + fitted.unreadable;
    Ok(Posed { ids, sources: fitted.kept.into_iter().map(|hit| hit.passage.text).collect(), dropped })
}

/// Figures of what answers cite. `retrieved`: passages were looked up, so that these are measured as well.
pub fn measure(answers: &[(&str, &[String], &[String])], retrieved: bool) -> Vec<Measured> {
    let mut parts = vec![];
    for (written, sources, wanted) in answers {
        let sources: Vec<&str> = sources.iter().map(String::as_str).collect();
        let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
        let holds: Vec<bool> = sources.iter().map(|source| qa::holds(source, &wanted)).collect();
        let found = qa::citations(written, &sources, &wanted);
        let (cited, supported) = (found.cited.len() as f64, found.supported as f64);
        let stands = match found.cited.is_empty() {
            true => holds.first() == Some(&true),
            false => found.supported > 0,
        };
        parts.push((holds.contains(&true), stands, cited, supported));
    }
    let share = |is: bool| f64::from(u8::from(is));
    let mut measured = vec![];
    if retrieved {
        measured.push(Measured::mean("retrieved", parts.iter().map(|part| share(part.0))));
    }
    // Without a citation none is wrong, and none is right.
    let of_cited = |sums: &[f64]| if sums[1] > 0.0 { sums[0] / sums[1] } else { 0.0 };
    let precision = parts.iter().map(|part| vec![part.3, part.2]).collect();
    measured.extend([
        Measured::mean("support", parts.iter().map(|part| share(part.1))),
        Measured::new("citation_precision", precision, of_cited),
        Measured::mean("citation_recall", parts.iter().map(|part| share(part.3 > 0.0))),
    ]);
    measured
}

impl From<retrieve::Error> for Error {
    fn from(error: retrieve::Error) -> Error {
        Error::Retrieve(Box::new(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::sums;

    #[test]
    fn support_and_citations_are_counted_as_they_are_defined() {
        let texts = |list: &[&str]| list.iter().map(|text| text.to_string()).collect::<Vec<_>>();
        let sources = texts(&["Lyon is a town.", "Paris is the capital.", "It rains in Paris."]);
        let (wanted, other) = (texts(&["paris"]), texts(&["Rome"]));
        let answers: [(&str, &[String], &[String]); 5] = [
            // Two of three citations support; a number of no passage does not.
            ("Paris [2, 3][9]", &sources, &wanted),
            // Cites what does not support.
            ("Paris [1]", &sources, &wanted),
            // Cites nothing: the first passage counts, which does not support.
            ("Paris", &sources, &wanted),
            // The same where it does.
            ("Paris", &sources[1..], &wanted),
            // Nothing supports.
            ("Rome [1]", &sources, &other),
        ];
        let all = measure(&answers, true);
        let got: Vec<(&str, f64)> =
            all.iter().map(|one| (one.name.as_str(), (one.score)(&sums(&one.segments)))).collect();
        let expected = [
            ("retrieved", 0.8),
            ("support", 0.4),
            ("citation_precision", 2.0 / 5.0),
            ("citation_recall", 0.2),
        ];
        for ((name, got), (wanted, expected)) in got.iter().zip(expected) {
            assert_eq!(*name, wanted);
            assert!((got - expected).abs() < 1e-12, "{name}: {got}, expected {expected}");
        }
        assert_eq!(measure(&answers, false).len(), 3);
    }
}
