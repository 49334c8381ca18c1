//! Cleaning: exact duplicates, near duplicates and texts that break rules go, the others stay in their order.
//!
//! Documents pass through in chunks: what a text weighs does not matter, what is remembered of each that stays does (16 bytes of a
//! fingerprint; for near duplicates four bytes for each permutation and about twenty for each band).

pub mod minhash;
pub mod quality;
mod words;

use std::collections::HashMap;
use std::path::PathBuf;

use rayon::prelude::*;
use serde::Serialize;

use self::minhash::{Index, MinHash, Shingle, Signature};
use self::quality::Limits;
use self::words::{Ready, fingerprint, normalised};
use crate::data::sources::{Bad, Manner, Mark, Row, Rows, Source, find};
use crate::data::{Error, Result};

/// A chunk ends at so many documents or bytes of text.
const CHUNK: (usize, usize) = (1024, 16 << 20);

/// Examples of each reason in a report.
const EXAMPLES: usize = 3;

/// Characters of a text in an example.
const SHOWN: usize = 160;

/// What is to go.
#[derive(Clone, Debug)]
pub struct Request {
    /// Where documents come from.
    pub sources: Vec<Source>,
    /// Those that have the words of an earlier one go.
    pub exact: bool,
    /// Those that are near an earlier one go.
    pub near: Option<Near>,
    /// Those that break one of these rules go.
    pub limits: Limits,
    /// Rows that cannot be read are counted and passed over.
    pub skip_bad: bool,
}

/// When two documents are near duplicates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Near {
    /// From this estimated Jaccard similarity of their shingles on.
    pub threshold: f64,
    /// How many permutations estimate it.
    pub permutations: usize,
    /// What a shingle is.
    pub shingle: Shingle,
}

/// A document that stays.
#[derive(Debug)]
pub struct Kept<'a> {
    /// Its row.
    pub row: &'a Row,
    /// The text file it came from has a document on each line.
    pub is_line: bool,
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// Documents that were read.
    pub documents: u64,
    /// Bytes of their texts.
    pub bytes: u64,
    /// Documents that stayed.
    pub kept: u64,
    /// Bytes of their texts.
    pub kept_bytes: u64,
    /// Those that went, by reason.
    pub removed: Vec<Removed>,
    /// Rows that could not be read.
    pub bad_rows: u64,
    /// What was wrong with the first of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_bad_row: Option<String>,
}

/// Documents that went for one reason.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Removed {
    /// `exact`, `near`, or the name of a rule.
    pub reason: &'static str,
    /// How many.
    pub documents: u64,
    /// Bytes of their texts.
    pub bytes: u64,
    /// The first of them.
    pub examples: Vec<Example>,
}

/// A document that went.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Example {
    /// Its file.
    pub file: PathBuf,
    /// Where it begins, from one.
    pub line: u64,
    /// How its text begins.
    pub text: String,
    /// The figure that broke a rule, or the likeness to another document.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub figure: Option<f64>,
    /// The document it repeats, among all that were read, from one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub of: Option<u64>,
}

/// What is known of a text before it is compared with others.
struct Traits {
    broken: Option<(&'static str, f64)>,
    fingerprint: u128,
    signature: Option<Signature>,
}

/// Why a document goes.
struct Reason {
    name: &'static str,
    figure: Option<f64>,
    of: Option<u64>,
}

/// Reads all documents in order and gives those that stay to `keep`. The same request on the same files gives the same, whatever
/// number of threads there is.
pub fn clean(request: &Request, keep: &mut dyn FnMut(Kept<'_>) -> Result<()>) -> Result<Report> {
    if request.sources.is_empty() {
        return Err(Error::NoText);
    }
    let mut sieve = Sieve::new(request);
    let mut bad = Bad::new(request.skip_bad);
    let manner = Manner { skip_bad: request.skip_bad, keep_lines: true, ..Manner::default() };
    for source in &request.sources {
        let is_line = source.sample_by == Some(crate::data::sources::SampleBy::Line);
        for file in find(source)? {
            let mut rows = Rows::open(&file, source, manner, Mark::default())?;
            loop {
                let chunk = chunk_of(&mut rows)?;
                if chunk.is_empty() {
                    break;
                }
                sieve.pass(&chunk, &file.path, &mut |row| keep(Kept { row, is_line }))?;
            }
            bad.add(&rows.bad);
        }
    }
    Ok(Report { bad_rows: bad.count, first_bad_row: bad.first, ..sieve.report })
}

fn chunk_of(rows: &mut Rows) -> Result<Vec<Row>> {
    let (mut chunk, mut bytes) = (vec![], 0);
    while chunk.len() < CHUNK.0 && bytes < CHUNK.1 {
        let Some(row) = rows.next_row()? else { break };
        bytes += row.text.len();
        chunk.push(row);
    }
    Ok(chunk)
}

struct Sieve<'a> {
    request: &'a Request,
    minhash: Option<MinHash>,
    /// Number of the first document with a fingerprint.
    seen: HashMap<u128, u64, Ready>,
    index: Option<Index>,
    /// Number of each document in the index.
    numbers: Vec<u64>,
    report: Report,
}

impl<'a> Sieve<'a> {
    fn new(request: &'a Request) -> Sieve<'a> {
        Sieve {
            request,
            minhash: request.near.map(|near| MinHash::new(near.permutations)),
            seen: HashMap::default(),
            index: request.near.map(|near| Index::new(near.threshold, near.permutations)),
            numbers: vec![],
            report: Report::default(),
        }
    }

    fn pass(
        &mut self,
        chunk: &[Row],
        file: &std::path::Path,
        keep: &mut dyn FnMut(&Row) -> Result<()>,
    ) -> Result<()> {
        let traits: Vec<Traits> = chunk.par_iter().map(|row| self.traits(&row.text)).collect();
        for (row, traits) in chunk.iter().zip(traits) {
            self.report.documents += 1;
            self.report.bytes += row.text.len() as u64;
            match self.judge(traits) {
                Some(reason) => self.remove(row, file, reason),
                None => {
                    self.report.kept += 1;
                    self.report.kept_bytes += row.text.len() as u64;
                    keep(row)?;
                }
            }
        }
        Ok(())
    }

    /// All that costs time and needs no other document.
    fn traits(&self, text: &str) -> Traits {
        let broken = self.request.limits.broken(text);
        if broken.is_some() || !(self.request.exact || self.minhash.is_some()) {
            return Traits { broken, fingerprint: 0, signature: None };
        }
        let words = normalised(text);
        let shingles = self.request.near.map(|near| near.shingle.of(&words));
        let signature = self.minhash.as_ref().zip(shingles).map(|(minhash, set)| minhash.signature(&set));
        Traits { broken, fingerprint: fingerprint(&words), signature }
    }

    fn judge(&mut self, traits: Traits) -> Option<Reason> {
        if let Some((name, figure)) = traits.broken {
            return Some(Reason { name, figure: Some(figure), of: None });
        }
        let number = self.report.documents;
        if self.request.exact {
            match self.seen.get(&traits.fingerprint) {
                Some(&first) => return Some(Reason { name: "exact", figure: None, of: Some(first) }),
                None => _ = self.seen.insert(traits.fingerprint, number),
            }
        }
        if let (Some(index), Some(signature)) = (&mut self.index, traits.signature) {
            if let Some((at, near)) = index.find(&signature) {
                return Some(Reason { name: "near", figure: Some(near), of: Some(self.numbers[at]) });
            }
            index.keep(signature);
            self.numbers.push(number);
        }
        None
    }

    fn remove(&mut self, row: &Row, file: &std::path::Path, reason: Reason) {
        let removed = &mut self.report.removed;
        let at = removed.iter().position(|known| known.reason == reason.name).unwrap_or_else(|| {
            removed.push(Removed { reason: reason.name, ..Removed::default() });
            removed.len() - 1
        });
        let entry = &mut removed[at];
        entry.documents += 1;
        entry.bytes += row.text.len() as u64;
        if entry.examples.len() < EXAMPLES {
            let mut text: String = row.text.chars().take(SHOWN).collect();
            if text.len() < row.text.len() {
                text.push('…');
            }
            let (line, figure, of) = (row.mark.line + 1, reason.figure, reason.of);
            entry.examples.push(Example { file: file.into(), line, text, figure, of });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::random::Random;

    fn request(path: PathBuf) -> Request {
        let near = Near { threshold: 0.8, permutations: 128, shingle: Shingle::Words(3) };
        let limits = Limits::new(&[], &[("least-words", 2.0)]);
        Request { sources: vec![Source::of(path)], exact: true, near: Some(near), limits, skip_bad: false }
    }

    fn run(request: &Request) -> (Vec<String>, Report) {
        let mut kept = vec![];
        let report = clean(request, &mut |document| {
            kept.push(document.row.text.clone());
            Ok(())
        });
        (kept, report.unwrap())
    }

    #[test]
    fn duplicates_and_what_breaks_a_rule_go_for_their_reason_and_the_others_stay_in_order() {
        let mut random = Random::new(1, 0);
        let long: Vec<String> = (0..200).map(|_| format!("w{}", random.below(5000))).collect();
        let mut altered = long.clone();
        altered[100] = "other".into();
        let texts = [
            long.join(" "),
            "The cat sat.".into(),
            "word".into(),
            "the CAT  sat".into(),
            altered.join(" "),
            "A dog ran.".into(),
        ];
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        let lines: Vec<String> =
            texts.iter().map(|text| serde_json::json!({ "text": text }).to_string()).collect();
        std::fs::write(&path, lines.join("\n")).unwrap();
        let (kept, report) = run(&request(path));
        assert_eq!(kept, [&texts[0], &texts[1], &texts[5]].map(String::as_str));
        assert_eq!((report.documents, report.kept), (6, 3));
        let of = |reason: &str| report.removed.iter().find(|removed| removed.reason == reason).unwrap();
        assert_eq!(of("least-words").examples[0].figure, Some(1.0));
        let exact = &of("exact").examples[0];
        assert_eq!((exact.of, exact.line, exact.text.as_str()), (Some(2), 4, "the CAT  sat"));
        let near = &of("near").examples[0];
        assert!(near.of == Some(1) && near.figure.unwrap() > 0.9 && near.text.ends_with('…'), "{near:?}");
        let gone: u64 = report.removed.iter().map(|removed| removed.bytes).sum();
        assert_eq!(report.kept_bytes + gone, report.bytes);
    }

    #[test]
    fn several_chunks_give_what_one_gives_every_time() {
        let mut random = Random::new(2, 0);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lines.txt");
        let line = |random: &mut Random| -> String {
            (0..6).map(|_| format!("w{} ", random.below(7))).collect::<String>() + "\n"
        };
        std::fs::write(&path, (0..CHUNK.0 * 2 + 300).map(|_| line(&mut random)).collect::<String>()).unwrap();
        let mut request = request(path);
        request.sources[0].sample_by = Some(crate::data::sources::SampleBy::Line);
        request.near = Some(Near { threshold: 0.7, permutations: 32, shingle: Shingle::Characters(4) });
        let (kept, report) = run(&request);
        assert!(report.removed.len() == 2 && report.kept > 100, "{report:?}");
        assert_eq!(run(&request), (kept.clone(), report));
        let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        assert_eq!(one.install(|| run(&request)).0, kept);
    }
}
