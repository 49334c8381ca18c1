//! All documents of some sources in memory, and cut into what is trained on and what is held back.

use std::ops::Range;

use rayon::prelude::*;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::rows::{Bad, Manner, Mark, Rows};
use super::{File, Format, Source, find};
use crate::data::sequel::paragraphs;
use crate::data::store::{Part, Store, Stretch, shift, split};
use crate::data::text::{Document, Text};
use crate::data::tokenizer::Tokenizer;
use crate::data::{Error, Result};

/// Tokens that end a text, in the order they are looked for.
const ENDS: [&str; 6] = ["<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|end▁of▁sentence|>", "[SEP]"];

/// What stands behind each document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Separator {
    /// Nothing.
    None,
    /// A line end, where the document has none.
    Newline,
    /// The tokenizer's end-of-text token.
    Token,
}

/// How sources are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// What stands behind each document. Absent: the end-of-text token, or else a line end; between plain text files a line end.
    pub separator: Option<Separator>,
    /// Rows that cannot be read are counted and passed over.
    pub skip_bad: bool,
}

/// The documents of all sources.
#[derive(Debug)]
pub struct Gathered {
    whole: Whole,
    sources: Vec<Documents>,
    separator: Option<Separator>,
    /// Plain text files alone are one text, with nothing between them.
    separated: bool,
    /// Rows that were passed over.
    pub bad: Bad,
}

#[derive(Debug)]
enum Whole {
    Mapped(Document),
    Held(String),
}

/// The documents of one source as ranges of the whole.
#[derive(Debug)]
struct Documents {
    name: String,
    weight: Option<f64>,
    ranges: Vec<Range<usize>>,
    /// A single text may be cut anywhere, a row nowhere.
    is_text: bool,
}

/// The token that ends a text, if the tokenizer has one.
pub fn end_of_text(tokenizer: &Tokenizer) -> Option<u32> {
    ENDS.iter().find_map(|name| tokenizer.token_id(name))
}

/// Reads all documents of the sources.
pub fn gather(sources: &[Source], settings: Settings) -> Result<Gathered> {
    if sources.is_empty() {
        return Err(Error::NoText);
    }
    let files = sources.iter().map(find).collect::<Result<Vec<_>>>()?;
    let is_plain = |(source, files): (&Source, &Vec<File>)| {
        let of_text = files.iter().all(|file| file.format == Format::Text);
        source.is_whole() && source.weight.is_none() && of_text
    };
    let mut gathered = match settings.separator.is_none() && sources.iter().zip(&files).all(is_plain) {
        true => plain(&files)?,
        false => rows(sources, &files, settings)?,
    };
    gathered.separator = settings.separator;
    Ok(gathered)
}

fn plain(files: &[Vec<File>]) -> Result<Gathered> {
    let mut documents = Vec::new();
    for files in files {
        let before = documents.len();
        let mut first_empty = None;
        for file in files {
            match Document::open(&file.path) {
                Ok(document) => documents.push(document),
                Err(Error::Empty { path }) if file.among_others => first_empty = first_empty.or(Some(path)),
                Err(error) => return Err(error),
            }
        }
        if let (Some(path), true) = (first_empty, before == documents.len()) {
            return Err(Error::Empty { path });
        }
    }
    let whole = match documents.len() {
        1 => Whole::Mapped(documents.remove(0)),
        _ => Whole::Held(Text::of(documents).contents().into_owned()),
    };
    let all = 0..whole.text().len();
    let documents = Documents { name: "text".into(), weight: None, ranges: vec![all], is_text: true };
    Ok(Gathered { whole, sources: vec![documents], separator: None, separated: false, bad: Bad::default() })
}

fn rows(sources: &[Source], files: &[Vec<File>], settings: Settings) -> Result<Gathered> {
    let mut whole = String::new();
    let mut bad = Bad::new(settings.skip_bad);
    let mut all = Vec::new();
    let manner = Manner { skip_bad: settings.skip_bad, ..Manner::default() };
    for (source, files) in sources.iter().zip(files) {
        let mut ranges = Vec::new();
        for file in files {
            let mut rows = Rows::open(file, source, manner, Mark::default())?;
            while let Some(row) = rows.next_row()? {
                let start = whole.len();
                whole.push_str(&row.text);
                ranges.push(start..whole.len());
                // The tokenizer learns line ends from here; the range leaves it out.
                if !whole.ends_with('\n') {
                    whole.push('\n');
                }
            }
            bad.add(&rows.bad);
        }
        if ranges.is_empty() {
            return Err(Error::Empty { path: source.path.clone() });
        }
        let is_text = source.is_whole() && files.iter().all(|file| file.format == Format::Text);
        all.push(Documents {
            name: source.path.display().to_string(),
            weight: source.weight,
            ranges,
            is_text,
        });
    }
    Ok(Gathered { whole: Whole::Held(whole), sources: all, separator: None, separated: true, bad })
}

impl Whole {
    fn text(&self) -> &str {
        match self {
            Whole::Mapped(document) => document.contents(),
            Whole::Held(text) => text,
        }
    }
}

/// A stretch of the whole, and whether a document ends with it.
type Piece = (Range<usize>, bool);

impl Gathered {
    /// A text that is at hand, as one document.
    pub fn of_text(text: String) -> Gathered {
        let all = 0..text.len();
        let documents = Documents { name: "text".into(), weight: None, ranges: vec![all], is_text: true };
        let (whole, bad) = (Whole::Held(text), Bad::default());
        Gathered { whole, sources: vec![documents], separator: None, separated: false, bad }
    }

    /// All documents one after the other, with line ends between them: what a tokenizer is made from.
    pub fn text(&self) -> &str {
        self.whole.text()
    }

    /// Each document; of plain texts what stands between empty lines.
    pub fn texts(&self) -> Vec<&str> {
        let whole = self.text();
        let of = |source: &Documents| -> Vec<&str> {
            let texts = source.ranges.iter().map(|range| &whole[range.clone()]);
            match source.is_text {
                true => texts.flat_map(paragraphs).collect(),
                false => texts.collect(),
            }
        };
        self.sources.iter().flat_map(of).collect()
    }

    /// How many documents there are.
    pub fn documents(&self) -> usize {
        self.sources.iter().map(|source| source.ranges.len()).sum()
    }

    /// A hash of all that its tokens depend on beside the tokenizer and the share.
    pub fn hash(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(format!("{:?} {}", self.separator, self.separated));
        for source in &self.sources {
            hash.update(format!("{:?} {:?} {} ", source.name, source.weight, source.is_text));
            source.ranges.iter().for_each(|range| hash.update((range.end as u64).to_le_bytes()));
        }
        hash.update(self.text());
        hash.finalize().into()
    }

    /// Cuts each source and tokenises both parts. The last `share` of its documents are for validation; a source that is a
    /// single text is cut at a character instead.
    pub fn store(&self, tokenizer: &Tokenizer, share: f64) -> Result<Store> {
        let cut = |source: &Documents| self.cut(source, share);
        let parts = self.sources.iter().map(cut).collect::<Result<Vec<_>>>()?;
        let (training, validation): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
        let (training, stretches) = self.part(tokenizer, &training)?;
        Ok(Store { training, validation: self.part(tokenizer, &validation)?.0, stretches })
    }

    /// Tokenises all of these documents for training, and all of `validation` for that.
    pub fn store_beside(&self, tokenizer: &Tokenizer, validation: &Gathered) -> Result<Store> {
        let mut store = self.store(tokenizer, 0.0)?;
        store.validation = validation.store(tokenizer, 0.0)?.training;
        Ok(store)
    }

    fn cut(&self, source: &Documents, share: f64) -> Result<(Vec<Piece>, Vec<Piece>)> {
        let text = self.text();
        let whole = |range: &Range<usize>| (range.clone(), true);
        if let ([range], true) = (&source.ranges[..], source.is_text) {
            let (training, _) = split(&text[range.clone()], share)?;
            let middle = range.start + training.len();
            let validation = (middle..range.end, true);
            let is_all = middle == range.end;
            return Ok((vec![(range.start..middle, is_all)], if is_all { vec![] } else { vec![validation] }));
        }
        // Refuses a share that cannot be.
        split("", share)?;
        if share == 0.0 {
            return Ok((source.ranges.iter().map(whole).collect(), vec![]));
        }
        let documents = source.ranges.len();
        if documents < 2 {
            return Err(Error::TooFewDocuments { name: source.name.clone(), documents, share });
        }
        let lengths: Vec<usize> =
            source.ranges.iter().map(|range| text[range.clone()].chars().count()).collect();
        let least = (lengths.iter().sum::<usize>() as f64 * (1.0 - share)) as usize;
        let mut sum = 0;
        let reached = lengths.iter().position(|length| {
            sum += length;
            sum >= least
        });
        // Either part has a document.
        let training = (reached.unwrap_or(documents) + 1).min(documents - 1);
        let (training, validation) = source.ranges.split_at(training);
        Ok((training.iter().map(whole).collect(), validation.iter().map(whole).collect()))
    }

    /// Tokens of the pieces of all sources, and which are whose.
    fn part(&self, tokenizer: &Tokenizer, sources: &[Vec<Piece>]) -> Result<(Part, Vec<Stretch>)> {
        let behind = match self.separated {
            true => behind(self.separator, tokenizer)?,
            false => Behind::Nothing,
        };
        let text = self.text();
        let range = |(range, ends): &Piece| match behind {
            Behind::Newline if *ends && !text[range.clone()].ends_with('\n') => range.start..range.end + 1,
            _ => range.clone(),
        };
        let encode = |piece: &Piece| -> Result<Vec<u32>> {
            let range = range(piece);
            let encoded = tokenizer.encode(&text[range.clone()]);
            let mut tokens = encoded.map_err(|error| shift(error, text[..range.start].chars().count()))?;
            if let (Behind::Token(id), true) = (behind, piece.1) {
                tokens.push(id);
            }
            Ok(tokens)
        };
        let (mut all, mut stretches) = (Vec::new(), Vec::new());
        let (mut characters, mut bytes) = (0, 0);
        for (source, pieces) in self.sources.iter().zip(sources) {
            let start = all.len();
            let tokens: Vec<Vec<u32>> = pieces.par_iter().map(encode).collect::<Result<_>>()?;
            match (start, &tokens[..]) {
                (0, [_]) => all = tokens.into_iter().next().expect("there is one"),
                _ => tokens.iter().for_each(|tokens| all.extend_from_slice(tokens)),
            }
            let covered = pieces.iter().map(range);
            bytes += covered.clone().map(|range| range.len()).sum::<usize>();
            characters += covered.map(|range| text[range].chars().count()).sum::<usize>();
            let (name, weight) = (source.name.clone(), source.weight);
            stretches.push(Stretch { name, weight, documents: pieces.len(), tokens: start..all.len() });
        }
        Ok((Part { tokens: all.into(), characters, bytes }, stretches))
    }
}

/// What stands behind each document, in the tokens of a tokenizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::data) enum Behind {
    Nothing,
    Newline,
    Token(u32),
}

pub(in crate::data) fn behind(separator: Option<Separator>, tokenizer: &Tokenizer) -> Result<Behind> {
    Ok(match (separator, end_of_text(tokenizer)) {
        (None | Some(Separator::Token), Some(id)) => Behind::Token(id),
        (None | Some(Separator::Newline), _) => Behind::Newline,
        (Some(Separator::None), _) => Behind::Nothing,
        (Some(Separator::Token), None) => return Err(Error::NoSeparator { names: ENDS.join(", ") }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::sources::SampleBy;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        files.iter().for_each(|(name, text)| std::fs::write(folder.path().join(name), text).unwrap());
        folder
    }

    fn object(text: &str) -> String {
        serde_json::json!({ "text": text }).to_string() + "\n"
    }

    fn of(folder: &tempfile::TempDir, names: &[&str], settings: Settings) -> Gathered {
        let sources: Vec<Source> = names.iter().map(|name| Source::of(folder.path().join(name))).collect();
        gather(&sources, settings).unwrap()
    }

    #[test]
    fn plain_files_are_read_cut_and_tokenised_as_one_text() {
        let folder = folder(&[("a.txt", "one two\nthree"), ("b.txt", "four\n"), ("c.txt", "five")]);
        for names in [&["a.txt"][..], &["a.txt", "b.txt", "c.txt"], &["*.txt"]] {
            let gathered = of(&folder, names, Settings::default());
            let paths: Vec<_> = match names {
                ["*.txt"] => ["a.txt", "b.txt", "c.txt"].map(|name| folder.path().join(name)).to_vec(),
                names => names.iter().map(|name| folder.path().join(name)).collect(),
            };
            let text = Text::open(&paths).unwrap();
            assert_eq!(gathered.text(), text.contents());
            let tokenizer = Tokenizer::characters(gathered.text());
            let (store, known) = (
                gathered.store(&tokenizer, 0.3).unwrap(),
                Store::build(&text.contents(), &tokenizer, 0.3).unwrap(),
            );
            assert_eq!(store.training.tokens.all(), known.training.tokens.all());
            assert_eq!(store.validation.tokens.all(), known.validation.tokens.all());
            assert_eq!(store.validation.characters, known.validation.characters);
        }
    }

    #[test]
    fn a_separator_stands_behind_each_document_as_the_key_says() {
        let folder = folder(&[("a.jsonl", &[object("ab"), object("c\n"), object("d")].concat())]);
        let tokens = |separator, tokenizer: &Tokenizer| {
            let gathered = of(&folder, &["a.jsonl"], Settings { separator, skip_bad: false });
            gathered.store(tokenizer, 0.0).map(|store| store.training)
        };
        let characters = Tokenizer::characters("\nabcd");
        let text = |separator, tokenizer: &Tokenizer| {
            let part = tokens(separator, tokenizer).unwrap();
            let text = tokenizer.decode_with_special(&part.tokens.all()).unwrap();
            (text, part.characters, part.bytes)
        };
        assert_eq!(text(None, &characters), ("ab\nc\nd\n".into(), 7, 7));
        assert_eq!(text(Some(Separator::None), &characters), ("abc\nd".into(), 5, 5));
        let refused = tokens(Some(Separator::Token), &characters);
        assert!(matches!(refused, Err(Error::NoSeparator { .. })), "{refused:?}");
        let pairs = Tokenizer::train_byte_pair("abcd abcd", 260).unwrap();
        assert_eq!(text(None, &pairs).0, "ab<|endoftext|>c\n<|endoftext|>d<|endoftext|>");
        assert_eq!(text(Some(Separator::Newline), &pairs).0, "ab\nc\nd\n");
    }

    #[test]
    fn documents_are_never_cut_and_each_source_gives_its_last_ones_for_validation() {
        let rows: String = (0..10).map(|number| object(&number.to_string().repeat(20))).collect();
        let folder = folder(&[("a.jsonl", &rows), ("b.txt", &"x".repeat(100)), ("c.jsonl", &object("y"))]);
        let tokenizer = Tokenizer::characters("\n0123456789xy");
        let text = |part: &Part| tokenizer.decode(&part.tokens.all()).unwrap();
        for share in [0.01, 0.1, 0.25, 0.5, 0.99] {
            let gathered = of(&folder, &["a.jsonl", "b.txt"], Settings::default());
            let store = gathered.store(&tokenizer, share).unwrap();
            let (training, validation) = (text(&store.training), text(&store.validation));
            let documents = |text: &str| text.lines().filter(|line| line.len() == 20).count();
            let held = documents(&validation);
            assert_eq!(held, ((10.0 * share) as usize).clamp(1, 9), "{share}: {validation}");
            assert_eq!(documents(&training) + held, 10);
            assert_eq!(training.matches('x').count(), (100.0 * (1.0 - share)) as usize);
        }
        let one = of(&folder, &["c.jsonl"], Settings::default());
        assert!(matches!(one.store(&tokenizer, 0.1), Err(Error::TooFewDocuments { documents: 1, .. })));
        assert!(matches!(one.store(&tokenizer, 1.0), Err(Error::ValidationShare { .. })));
        let beside = of(&folder, &["b.txt"], Settings::default()).store_beside(&tokenizer, &one).unwrap();
        assert_eq!((text(&beside.validation), beside.training.characters), ("y\n".to_string(), 100));
    }

    #[test]
    fn what_has_no_document_at_all_is_refused_and_bad_rows_are_counted() {
        let folder = folder(&[("a.jsonl", "{\"text\": \"\"}\n"), ("b.jsonl", "{}\n{\"text\": \"x\"}\n")]);
        let skips = Settings { skip_bad: true, ..Settings::default() };
        let refused = gather(&[Source::of(folder.path().join("a.jsonl"))], skips);
        assert!(matches!(refused, Err(Error::Empty { .. })), "{refused:?}");
        let gathered = of(&folder, &["b.jsonl"], skips);
        assert_eq!((gathered.documents(), gathered.bad.count), (1, 1));
        assert!(matches!(gather(&[], skips), Err(Error::NoText)));
    }

    #[test]
    fn an_unknown_character_is_placed_in_the_whole_text() {
        let folder = folder(&[("a.txt", "ab\nac")]);
        let path = folder.path().join("a.txt");
        let lines = Source { sample_by: Some(SampleBy::Line), ..Source::of(path) };
        let gathered = gather(&[lines], Settings::default()).unwrap();
        let error = gathered.store(&Tokenizer::characters("ab\n"), 0.0).unwrap_err();
        assert!(
            matches!(error, Error::UnknownCharacter { character: 'c', offset_characters: 4, .. }),
            "{error}"
        );
    }
}
