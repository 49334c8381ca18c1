//! Passages of the user's own files for a question.
//!
//! ```text
//! folder -> gather: files as text -> cut: passages --+-- words: BM25, with the feature `retrieve`
//!                                                    +-- vectors: cosines of an encoder's vectors
//! question -> the best passages -> form: [1], [2] .. before the prompt, as many as there is room for
//! ```
//!
//! What is made of a folder is kept under the user's cache and made anew for files that change.

mod cut;
mod error;
pub mod form;
pub mod gather;
mod store;
mod vectors;
#[cfg(feature = "retrieve")]
mod words;

pub use cut::{Count, Lengths, cut, words as count_words};
pub use error::{Error, Result};
pub use vectors::{Encoder, Vectors};
#[cfg(feature = "retrieve")]
pub use words::Words;

use crate::formats::Archive;
use crate::train::Target;
use gather::{Content, Skipped};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use store::{Known, Stored};

/// A stretch of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passage {
    /// The file, from the folder.
    pub path: String,
    /// Its first line, counted from one.
    pub first_line: usize,
    /// Its last line.
    pub last_line: usize,
    /// What it says.
    pub text: String,
}

impl Passage {
    /// Path and lines: `notes/sea.md:3-9`.
    pub fn place(&self) -> String {
        match self.first_line == self.last_line {
            true => format!("{}:{}", self.path, self.first_line),
            false => format!("{}:{}-{}", self.path, self.first_line, self.last_line),
        }
    }
}

/// A passage that was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Hit {
    /// The passage.
    pub passage: Passage,
    /// BM25, or a cosine.
    pub score: f32,
}

/// How a folder is cut, and how passages are sought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How long passages are: in words or, beside an encoder, in its tokens and no longer than what it reads.
    pub lengths: Lengths,
    /// Seek by this encoder's vectors; absent: by words.
    pub encoder: Option<PathBuf>,
    /// What names an encoder, for messages.
    pub encoder_flag: &'static str,
}

/// Passages of 128 tokens, of which 32 may be those of the one before.
pub const USUAL: Lengths = Lengths { size: 128, overlap: 32 };

/// Passages that are taken unless told otherwise.
pub const USUAL_TOP: usize = 3;

impl Settings {
    fn check(&self) -> Result<()> {
        let Lengths { size, overlap } = self.lengths;
        let refuse = |setting, expected: String, got: usize| {
            Err(Error::Setting { setting, expected, got: got.to_string() })
        };
        if size == 0 {
            return refuse("the size of passages", "1 or more".into(), size);
        }
        if overlap > size / 2 {
            let expected = format!("at most half of the size, {}", size / 2);
            return refuse("the overlap of passages", expected, overlap);
        }
        Ok(())
    }
}

/// What opening an index came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Files with text.
    pub files: usize,
    /// Passages of all files.
    pub passages: usize,
    /// Files that are not read.
    pub skipped: Skipped,
    /// Files that were read now: changed, new, or all.
    pub read: usize,
    /// Why an index that was there was not used at all.
    pub broken: Option<String>,
    /// Why the index could not be kept.
    pub unkept: Option<String>,
}

impl Report {
    /// In words, a line for each thing to know.
    pub fn told(&self) -> Vec<String> {
        let Report { files, passages, skipped, read, .. } = self;
        let skipped = skipped.told();
        let skipped = if skipped.is_empty() { skipped } else { format!("; passed over: {skipped}") };
        let made = match *read {
            0 => "as they were kept".to_string(),
            read => format!("{read} read now"),
        };
        let mut lines = vec![format!("retrieve {passages} passages of {files} files, {made}{skipped}")];
        lines.extend(
            self.broken
                .iter()
                .map(|why| format!("retrieve the index kept before is broken and was made anew: {why}")),
        );
        lines.extend(self.unkept.iter().map(|why| format!("retrieve the index could not be kept: {why}")));
        lines
    }
}

/// How passages are sought.
enum Way {
    #[cfg(feature = "retrieve")]
    Words(Words),
    Vectors(Box<Encoder>, Vectors),
}

/// Finds passages of a folder.
pub struct Finder {
    passages: Vec<Passage>,
    way: Way,
    report: Report,
}

const VECTORS: &str = "vectors.safetensors";

impl Finder {
    /// Reads a folder, or a single file, as far as it has changed since it was last read. `cache` is the folder of all caches, if there
    /// is one; `target` opens the device of an encoder.
    pub fn open(
        root: &Path,
        settings: &Settings,
        cache: Option<&Path>,
        target: &mut dyn FnMut() -> Result<Target>,
    ) -> Result<Finder> {
        settings.check()?;
        if cfg!(not(feature = "retrieve")) && settings.encoder.is_none() {
            return Err(Error::NoWords { flag: settings.encoder_flag });
        }
        let listed = gather::list(root)?;
        let encoder = match &settings.encoder {
            Some(folder) => Some(Encoder::open(folder, target)?),
            None => None,
        };
        let mut lengths = settings.lengths;
        if let Some(encoder) = &encoder {
            lengths.size = lengths.size.min(encoder.most_tokens());
            lengths.overlap = lengths.overlap.min(lengths.size / 2);
        }
        let way = encoder.as_ref().map_or("words", |encoder| &encoder.identity);
        let place = cache.map(|cache| store::place(cache, root, lengths, way));
        let (old, mut broken) = match place.as_deref().map_or(Ok(None), store::load) {
            Ok(old) => (old, None),
            Err(why) => (None, Some(why)),
        };
        let count = |text: &str| match &encoder {
            Some(encoder) => encoder.count(text),
            None => Ok(count_words(text)),
        };
        let (mut stored, read, same) = look(root, &listed, old.as_ref(), lengths, &count)?;
        let mut way = None;
        if same && let Some(place) = &place {
            // The passages are those that lie there, with whatever lies beside them.
            stored = old.clone().expect("it is the same").seen_again(stored);
            match kept(place, encoder.is_some(), stored.passages.len()) {
                Ok(found) => way = Some(found),
                Err(error) => broken = Some(error),
            }
            if way.is_some() && old.as_ref() != Some(&stored) {
                // Times have changed, bytes have not: should this fail, they are compared again next time.
                let _ = store::rewrite(place, &stored);
            }
        }
        let mut unkept = None;
        let way = match way {
            Some(Kept::Vectors(vectors)) => {
                Way::Vectors(Box::new(encoder.expect("they are its own")), vectors)
            }
            #[cfg(feature = "retrieve")]
            Some(Kept::Words(words)) => Way::Words(words),
            None => {
                let before = place.as_deref().filter(|_| broken.is_none()).zip(old.as_ref());
                make(encoder, before, place.as_deref(), &mut stored, &mut unkept)?
            }
        };
        let files = stored.files.iter().filter(|file| file.hash.is_some()).count();
        let read = if broken.is_some() { files } else { read };
        let (passages, skipped) = (stored.passages.len(), stored.skipped);
        let report = Report { files, passages, skipped, read, broken, unkept };
        Ok(Finder { passages: stored.passages, way, report })
    }

    /// What opening came to.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// The `top` best passages for a question, the best first; none where none has any of its words.
    pub fn find(&mut self, question: &str, top: usize) -> Result<Vec<Hit>> {
        let found = match &mut self.way {
            #[cfg(feature = "retrieve")]
            Way::Words(words) => words.find(question, top)?,
            Way::Vectors(encoder, vectors) => vectors.find(&encoder.embed(&[question])?[0], top),
        };
        let hit = |(number, score): (usize, f32)| Hit { passage: self.passages[number].clone(), score };
        Ok(found.into_iter().map(hit).collect())
    }
}

/// Files as they are now and their passages, how many were read, and whether no passage can have changed.
fn look(
    root: &Path,
    listed: &[(PathBuf, gather::Seen)],
    old: Option<&Stored>,
    lengths: Lengths,
    count: Count,
) -> Result<(Stored, usize, bool)> {
    let mut before: HashMap<&str, (&Known, &[Passage])> = HashMap::new();
    let mut at = 0;
    for known in old.map_or(&[][..], |old| &old.files) {
        let passages = old.and_then(|old| old.passages.get(at..at + known.passages)).unwrap_or_default();
        before.insert(&known.seen.path, (known, passages));
        at += known.passages;
    }
    let (mut files, mut passages, mut skipped) = (vec![], vec![], Skipped::default());
    let (mut read, mut same) = (0, old.is_some_and(|old| old.files.len() == listed.len()));
    for (path, seen) in listed {
        let known = before.get(seen.path.as_str());
        if let Some((known, kept)) = known
            && known.seen == *seen
            && known.hash.is_some()
        {
            files.push((*known).clone());
            passages.extend_from_slice(kept);
            continue;
        }
        let content = gather::read(path);
        skipped.add(&content);
        let Content::Text(sections, hash) = content else {
            same &= known.is_some_and(|(known, _)| known.hash.is_none());
            files.push(Known { seen: seen.clone(), hash: None, passages: 0 });
            continue;
        };
        let hash = Some(hash);
        if let Some((known, kept)) = known
            && known.hash == hash
        {
            files.push(Known { seen: seen.clone(), ..(*known).clone() });
            passages.extend_from_slice(kept);
            continue;
        }
        (read, same) = (read + 1, false);
        let first = passages.len();
        for section in &sections {
            passages.extend(cut(&seen.path, section, lengths, count)?);
        }
        files.push(Known { seen: seen.clone(), hash, passages: passages.len() - first });
    }
    if passages.is_empty() {
        let said = if skipped.told().is_empty() { "none with text".into() } else { skipped.told() };
        return Err(Error::NoText { path: root.into(), files: listed.len(), said });
    }
    Ok((Stored::new(files, skipped, passages), read, same))
}

/// What lies beside passages.
enum Kept {
    #[cfg(feature = "retrieve")]
    Words(Words),
    Vectors(Vectors),
}

fn kept(place: &Path, by_vectors: bool, count: usize) -> Result<Kept, String> {
    if by_vectors {
        let vectors = Archive::open(&place.join(VECTORS)).and_then(|archive| archive.tensor("vectors"));
        let all = vectors.map_err(|error| error.to_string())?;
        return match all.shape.rows() == count {
            true => Ok(Kept::Vectors(Vectors { all })),
            false => Err(format!("{VECTORS} has not {count} vectors")),
        };
    }
    #[cfg(feature = "retrieve")]
    return Words::open(&place.join("words"), count).map(Kept::Words).map_err(|error| error.to_string());
    #[cfg(not(feature = "retrieve"))]
    unreachable!("without words there is an encoder")
}

/// Indexes passages, keeps the index where that can be done, and tells why where it cannot.
fn make(
    encoder: Option<Encoder>,
    before: Option<(&Path, &Stored)>,
    place: Option<&Path>,
    stored: &mut Stored,
    unkept: &mut Option<String>,
) -> Result<Way> {
    // What cannot be written is no reason to find nothing.
    let keep = |stored: &mut Stored, unkept: &mut Option<String>, fill: &dyn Fn(&Path) -> io::Result<()>| {
        *unkept = match place {
            None => Some("there is no folder for caches; KILN_CACHE names one".into()),
            Some(place) => {
                let kept = store::save(place, stored, fill);
                kept.err().map(|error| format!("{}: {error}", place.display()))
            }
        };
    };
    if let Some(mut encoder) = encoder {
        let vectors = embed(&mut encoder, before, &stored.passages)?;
        let write = |folder: &Path| {
            Archive::write(&folder.join(VECTORS), &[("vectors", &vectors.all)])
                .map_err(|error| io::Error::other(error.to_string()))
        };
        keep(stored, unkept, &write);
        return Ok(Way::Vectors(Box::new(encoder), vectors));
    }
    #[cfg(feature = "retrieve")]
    {
        let texts: Vec<String> = stored.passages.iter().map(|passage| passage.text.clone()).collect();
        let texts = || texts.iter().map(String::as_str);
        let write = |folder: &Path| {
            let words = folder.join("words");
            std::fs::create_dir(&words)?;
            Words::build(Some(&words), texts())
                .map(|_| ())
                .map_err(|error| io::Error::other(error.to_string()))
        };
        keep(stored, unkept, &write);
        // What went to disk is read back from there: an index that cannot be is made in memory.
        let on_disk = match (place, &*unkept) {
            (Some(place), None) => Words::open(&place.join("words"), stored.passages.len()).map(Some),
            _ => Ok(None),
        };
        let words = match on_disk {
            Ok(Some(words)) => words,
            Ok(None) => Words::build(None, texts())?,
            Err(error) => {
                *unkept = Some(error.to_string());
                Words::build(None, texts())?
            }
        };
        Ok(Way::Words(words))
    }
    #[cfg(not(feature = "retrieve"))]
    unreachable!("without words there is an encoder")
}

/// Vectors of passages; those of texts that were there before are taken over.
fn embed(encoder: &mut Encoder, before: Option<(&Path, &Stored)>, passages: &[Passage]) -> Result<Vectors> {
    let mut known: HashMap<&str, Vec<f32>> = HashMap::new();
    if let Some((place, stored)) = before
        && let Ok(Kept::Vectors(vectors)) = kept(place, true, stored.passages.len())
    {
        let rows = stored.passages.iter().enumerate();
        known.extend(rows.map(|(at, passage)| (passage.text.as_str(), vectors.row(at).to_vec())));
    }
    let new: Vec<&str> = passages
        .iter()
        .map(|passage| passage.text.as_str())
        .filter(|text| !known.contains_key(text))
        .collect();
    let made = if new.is_empty() { vec![] } else { encoder.embed(&new)? };
    known.extend(new.into_iter().zip(made));
    let all: Vec<Vec<f32>> = passages.iter().map(|passage| known[passage.text.as_str()].clone()).collect();
    Ok(Vectors::new(&all))
}

#[cfg(all(test, feature = "retrieve"))]
mod tests {
    use super::*;

    fn open(root: &Path, cache: Option<&Path>) -> Result<Finder> {
        let settings = Settings { lengths: USUAL, encoder: None, encoder_flag: "--encoder" };
        Finder::open(root, &settings, cache, &mut || unreachable!("words need no device"))
    }

    fn best(finder: &mut Finder, question: &str) -> String {
        finder.find(question, 1).unwrap().first().map_or("none".into(), |hit| hit.passage.place())
    }

    #[test]
    fn an_index_is_kept_follows_its_files_and_is_made_anew_where_it_is_broken() {
        let folder = tempfile::tempdir().unwrap();
        let (root, cache) = (folder.path().join("notes"), folder.path().join("cache"));
        std::fs::create_dir(&root).unwrap();
        let write = |name: &str, text: &str| std::fs::write(root.join(name), text).unwrap();
        write("a.md", "# Sea\n\nThe sea is salt.\n");
        write("b.txt", "Fish swim.\n");
        let open = || open(&root, Some(&cache)).unwrap();
        let mut first = open();
        assert_eq!((first.report().files, first.report().read), (2, 2));
        assert_eq!(best(&mut first, "salt"), "a.md:1-3");
        assert_eq!((open().report().read, best(&mut open(), "salt")), (0, "a.md:1-3".into()));
        // The same bytes at another time are no change; others are.
        write("a.md", "# Sea\n\nThe sea is salt.\n");
        assert_eq!(open().report().read, 0);
        write("b.txt", "Fish swim in salt salt salt.\n");
        assert_eq!((open().report().read, best(&mut open(), "salt")), (1, "b.txt:1".into()));
        std::fs::remove_file(root.join("b.txt")).unwrap();
        assert_eq!(
            (best(&mut open(), "swim"), best(&mut open(), "salt")),
            ("none".into(), "a.md:1-3".into())
        );
        write("c.txt", "A new one about gulls.\n");
        assert_eq!((open().report().read, best(&mut open(), "gulls")), (1, "c.txt:1".into()));
        let kept = std::fs::read_dir(cache.join("retrieve")).unwrap().next().unwrap().unwrap().path();
        for name in ["passages.json", "words/meta.json"] {
            std::fs::write(kept.join(name), "{}").unwrap();
            let mut mended = open();
            assert!(mended.report().broken.is_some() && best(&mut mended, "gulls") == "c.txt:1", "{name}");
            assert!(open().report().broken.is_none());
        }
    }

    #[test]
    fn an_index_that_cannot_be_kept_is_told_and_finds_all_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("a.txt");
        std::fs::write(&root, "Fish swim.\n").unwrap();
        for cache in [None, Some(root.as_path())] {
            let mut finder = open(&root, cache).unwrap();
            assert!(finder.report().unkept.is_some() && finder.report().told().len() == 2);
            assert_eq!(best(&mut finder, "fish"), "a.txt:1");
        }
    }
}
