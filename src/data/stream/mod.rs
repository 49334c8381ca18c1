//! Training windows of text that is larger than memory: documents are read as they are needed, shuffled in a buffer, and packed one
//! behind the other into windows.
//!
//! A window takes `context` tokens and the one after them; what a document has left over begins the next window. A checkpoint holds no
//! text but places in files: those of the buffer, and those of the documents whose tokens are not used up.

mod documents;

use std::collections::VecDeque;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use self::documents::Library;
use self::documents::{Documents, Place, Stand};
use crate::data::mixture::{bounds, choose};
use crate::data::random::mix;
use crate::data::sources::{Behind, Row, Separator, behind};
use crate::data::store::Part;
use crate::data::tokenizer::Tokenizer;
use crate::data::windows::{Batch, Cursor};
use crate::data::{Error, Result};

/// Where a stream stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Standing {
    /// Of names and sizes of the files.
    files: String,
    reader: Stand,
    /// Documents that are packed and not used up, in their order.
    packed: Vec<Place>,
    /// Tokens of the first of them that are used.
    used: usize,
}

/// Where a stream stands, cheap to copy with every batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamCursor(Arc<Standing>);

impl Serialize for StreamCursor {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for StreamCursor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<StreamCursor, D::Error> {
        Standing::deserialize(deserializer).map(|standing| StreamCursor(Arc::new(standing)))
    }
}

/// What is streamed, and how.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What stands behind each document.
    pub separator: Option<Separator>,
    /// Documents in the buffer of each stream.
    pub buffer: usize,
    /// Tokens in a window.
    pub context: usize,
    /// Windows in a batch.
    pub rows: usize,
    /// Where all order comes from.
    pub seed: u64,
}

/// Batches of windows of one or, by weight, several streams.
#[derive(Debug)]
pub struct Streamed {
    streams: Vec<Stream>,
    /// Up to here a random number falls to each, of `0.0..1.0`.
    until: Vec<f64>,
    context: usize,
    rows: usize,
    seed: u64,
    drawn: u64,
}

impl Streamed {
    /// Streams of libraries, each with its share of the windows.
    pub fn new(
        libraries: &[(Arc<Library>, f64)],
        tokenizer: &Tokenizer,
        settings: &Settings,
    ) -> Result<Streamed> {
        let Settings { separator, buffer, context, rows, seed } = *settings;
        if rows == 0 || context == 0 {
            return Err(Error::EmptyBatch { rows, context });
        }
        let behind = behind(separator, tokenizer)?;
        let tokenizer = Arc::new(tokenizer.clone());
        let stream = |(number, (library, _)): (u64, &(Arc<Library>, f64))| Stream {
            documents: Documents::new(library.clone(), buffer, seed ^ mix(number)),
            files: library.hash.clone(),
            tokenizer: tokenizer.clone(),
            behind,
            context,
            pending: vec![],
            first: 0,
            packed: VecDeque::new(),
        };
        let until = bounds(&libraries.iter().map(|(_, share)| *share).collect::<Vec<_>>());
        let streams = (0..).zip(libraries).map(stream).collect();
        Ok(Streamed { streams, until, context, rows, seed, drawn: 0 })
    }

    /// Windows in a batch.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Where the next batch begins.
    pub fn cursor(&self) -> Cursor {
        let streams = self.streams.iter().map(Stream::cursor).collect();
        Cursor { epoch: 0, position: self.drawn, streams }
    }

    /// Goes to a saved place: from there on the batches are those that would have come.
    pub fn seek(&mut self, cursor: &Cursor) -> Result<()> {
        if *cursor == Cursor::default() {
            return Ok(());
        }
        if cursor.streams.len() != self.streams.len() {
            let files = self.streams.len();
            return Err(Error::StreamChanged { files });
        }
        for (stream, StreamCursor(standing)) in self.streams.iter_mut().zip(&cursor.streams) {
            stream.go_to(standing)?;
        }
        self.drawn = cursor.position;
        Ok(())
    }

    /// The next batch.
    pub fn next_batch(&mut self) -> Result<Batch> {
        let (rows, context) = (self.rows, self.context);
        let mut batch = Batch { tokens: vec![], targets: vec![], rows, context };
        for _ in 0..rows {
            let chosen = choose(self.seed, self.drawn, &self.until);
            self.drawn += 1;
            self.streams[chosen].next_window(|window| batch.push(window))?;
        }
        Ok(batch)
    }
}

/// The windows of one library.
#[derive(Debug)]
struct Stream {
    documents: Documents,
    files: String,
    tokenizer: Arc<Tokenizer>,
    behind: Behind,
    context: usize,
    /// Tokens that are packed, from `first` on.
    pending: Vec<u32>,
    first: usize,
    /// Of each document in them the tokens it has, and those that are used.
    packed: VecDeque<(Place, usize, usize)>,
}

impl Stream {
    fn cursor(&self) -> StreamCursor {
        StreamCursor(Arc::new(Standing {
            files: self.files.clone(),
            reader: self.documents.stand(),
            packed: self.packed.iter().map(|(place, _, _)| *place).collect(),
            used: self.packed.front().map_or(0, |(_, _, used)| *used),
        }))
    }

    fn go_to(&mut self, standing: &Standing) -> Result<()> {
        if standing.files != self.files {
            return Err(Error::StreamChanged { files: self.documents.library().files() });
        }
        self.documents.go_to(&standing.reader)?;
        (self.pending, self.first) = (vec![], 0);
        self.packed.clear();
        let rows = self.documents.library().fetch(&standing.packed)?;
        for (place, row) in standing.packed.iter().zip(&rows) {
            self.pack(*place, row)?;
        }
        self.forget(standing.used);
        Ok(())
    }

    /// Gives the next window and the token after it.
    fn next_window(&mut self, give: impl FnOnce(&[u32])) -> Result<()> {
        while self.pending.len() - self.first <= self.context {
            let (place, row) = self.documents.next_document()?;
            self.pack(place, &row)?;
        }
        give(&self.pending[self.first..=self.first + self.context]);
        self.forget(self.context);
        Ok(())
    }

    fn pack(&mut self, place: Place, row: &Row) -> Result<()> {
        let before = self.pending.len();
        encode(&self.tokenizer, self.behind, row, &mut self.pending)?;
        if self.pending.len() > before {
            self.packed.push_back((place, self.pending.len() - before, 0));
        }
        Ok(())
    }

    /// Drops tokens from the front.
    fn forget(&mut self, count: usize) {
        self.first += count;
        let mut left = count;
        while let Some((_, all, used)) = self.packed.front_mut() {
            let here = left.min(*all - *used);
            *used += here;
            left -= here;
            if used < all {
                break;
            }
            self.packed.pop_front();
        }
        if self.first > self.pending.len() / 2 {
            self.pending.drain(..self.first);
            self.first = 0;
        }
    }
}

fn encode(tokenizer: &Tokenizer, behind: Behind, row: &Row, tokens: &mut Vec<u32>) -> Result<()> {
    tokens.extend(match behind {
        Behind::Newline if row.ends && !row.text.ends_with('\n') => {
            tokenizer.encode(&format!("{}\n", row.text))?
        }
        _ => tokenizer.encode(&row.text)?,
    });
    if let (Behind::Token(id), true) = (behind, row.ends) {
        tokens.push(id);
    }
    Ok(())
}

/// At least `needed` tokens from the front of a library, if it has so many: of the documents held back, or of the others.
pub fn excerpt(
    library: &Library,
    held: bool,
    tokenizer: &Tokenizer,
    separator: Option<Separator>,
    needed: usize,
) -> Result<Part> {
    let behind = behind(separator, tokenizer)?;
    let (mut tokens, mut characters, mut bytes) = (vec![], 0, 0);
    library.read(held, &mut |row| {
        encode(tokenizer, behind, row, &mut tokens)?;
        characters += row.text.chars().count();
        bytes += row.text.len();
        Ok(tokens.len() < needed)
    })?;
    Ok(Part { tokens: tokens.into(), characters, bytes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::sources::Source;

    /// Files of short and long documents and of a plain text in pieces.
    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let object = |n: usize| {
            serde_json::json!({ "text": format!("{n} ").repeat(1 + n * n % 40) }).to_string() + "\n"
        };
        for (name, from) in [("a.jsonl", 0), ("b.jsonl", 100), ("c.jsonl", 200)] {
            std::fs::write(folder.path().join(name), (from..from + 30).map(object).collect::<String>())
                .unwrap();
        }
        std::fs::write(folder.path().join("d.txt"), "0123 line of text\n".repeat(9000)).unwrap();
        folder
    }

    fn libraries(folder: &tempfile::TempDir, names: &[(&str, f64)]) -> Vec<(Arc<Library>, f64)> {
        let library = |(name, share): &(&str, f64)| {
            let sources = [Source::of(folder.path().join(name))];
            (Arc::new(Library::open(&sources, false, 0.0).unwrap()), *share)
        };
        names.iter().map(library).collect()
    }

    fn settings(buffer: usize, rows: usize) -> Settings {
        Settings { separator: None, buffer, context: 16, rows, seed: 5 }
    }

    fn tokenizer() -> Tokenizer {
        Tokenizer::characters("0123456789 linetofx\n")
    }

    #[test]
    fn windows_are_the_documents_one_behind_the_other_and_targets_are_the_next_tokens() {
        let folder = folder();
        let libraries = libraries(&folder, &[("*.jsonl", 1.0)]);
        let mut streamed = Streamed::new(&libraries, &tokenizer(), &settings(20, 3)).unwrap();
        let (mut documents, mut expected) =
            (Documents::new(libraries[0].0.clone(), 20, 5 ^ mix(0)), String::new());
        while expected.len() < 9000 {
            expected.push_str(&documents.next_document().unwrap().1.text);
            expected.push('\n');
        }
        let mut ids = vec![];
        for _ in 0..150 {
            let batch = streamed.next_batch().unwrap();
            assert_eq!((batch.tokens.len(), batch.rows), (48, 3));
            for (row, targets) in batch.tokens.chunks(16).zip(batch.targets.chunks(16)) {
                assert!(row[1..].iter().zip(targets).all(|(token, target)| *token as i32 == *target));
            }
            ids.extend(batch.tokens);
        }
        assert_eq!(tokenizer().decode(&ids).unwrap(), expected[..ids.len()]);
    }

    #[test]
    fn going_on_from_any_cursor_equals_never_stopping_over_files_epochs_and_mixtures() {
        let folder = folder();
        for (names, buffer) in
            [(&[("*.jsonl", 1.0)][..], 7), (&[("a.jsonl", 0.3), ("[bc].jsonl", 0.3), ("d.txt", 0.4)], 25)]
        {
            let libraries = libraries(&folder, names);
            let fresh = || Streamed::new(&libraries, &tokenizer(), &settings(buffer, 4)).unwrap();
            let mut straight = fresh();
            let run: Vec<(Cursor, Batch)> =
                (0..260).map(|_| (straight.cursor(), straight.next_batch().unwrap())).collect();
            assert!(straight.streams[0].documents.stand().epoch >= 2, "the run went over several epochs");
            for (from, (cursor, _)) in run.iter().enumerate().step_by(13) {
                let saved = serde_json::to_string(cursor).unwrap();
                let mut resumed = fresh();
                resumed.seek(&serde_json::from_str(&saved).unwrap()).unwrap();
                assert_eq!(&resumed.cursor(), cursor);
                for (_, batch) in run[from..].iter().take(60) {
                    assert_eq!(&resumed.next_batch().unwrap(), batch);
                }
            }
        }
    }

    #[test]
    fn a_cursor_of_other_files_is_refused() {
        let folder = folder();
        let of =
            |name| Streamed::new(&libraries(&folder, &[(name, 1.0)]), &tokenizer(), &settings(9, 2)).unwrap();
        let mut first = of("a.jsonl");
        first.next_batch().unwrap();
        let refused = of("b.jsonl").seek(&first.cursor());
        assert!(matches!(refused, Err(Error::StreamChanged { .. })), "{refused:?}");
    }

    #[test]
    fn an_excerpt_has_what_is_needed_and_no_more_documents() {
        let folder = folder();
        let library = Library::open(&[Source::of(folder.path().join("*.jsonl"))], false, 0.2).unwrap();
        let part = |held, needed| excerpt(&library, held, &tokenizer(), None, needed).unwrap();
        let (some, all) = (part(false, 200), part(true, usize::MAX));
        assert!((200..400).contains(&some.tokens.len()) && !all.tokens.is_empty());
        assert!(part(false, usize::MAX).tokens.len() > 4 * all.tokens.len() / 2);
    }
}
