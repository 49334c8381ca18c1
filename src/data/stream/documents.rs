//! Documents of many files through a shuffle buffer, without ever holding more than the buffer.
//!
//! Each epoch takes the files in an order of its own, reads them from front to back, and gives documents from random places of a
//! buffer that is filled up again behind each; at the end of an epoch the buffer runs empty, so that every document comes once. What a
//! checkpoint needs is the place of the reader, the places of the documents in the buffer, and how many were drawn.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::data::random::{Permutation, Random, mix};
use crate::data::sources::{Bad, File, Manner, Mark, Row, Rows, Source, find};
use crate::data::text::is_packed;
use crate::data::{Error, Result};

/// Keep the order of files, the picks from the buffer and the held-back documents apart from the other draws of a seed.
const ORDER: u64 = 0x6f72_6465_7200;
const PICKS: u64 = 0x7069_636b_7300;
const HELD: u64 = 0x6865_6c64_0000;

/// Documents farther apart in a file than this are sought rather than read up to.
const NEAR_BYTES: u64 = 1 << 20;

/// A document: the number of its file, and its mark there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place(pub u32, pub u64, pub u64);

impl Place {
    fn mark(self) -> Mark {
        Mark { at: self.1, line: self.2 }
    }
}

/// Files to stream, in the order of the sources.
#[derive(Debug)]
pub struct Library {
    sources: Vec<Source>,
    files: Vec<(usize, File)>,
    manner: Manner,
    /// Share of the documents that is held back for validation.
    held: f64,
    /// A hash of names and sizes: places belong to these files.
    pub hash: String,
    /// Rows of each file that could not be read and were passed over, as far as it was read.
    passed: Mutex<BTreeMap<u32, Bad>>,
}

impl Library {
    /// Finds the files of some sources.
    pub fn open(sources: &[Source], skip_bad: bool, held: f64) -> Result<Library> {
        let mut files = vec![];
        for (number, source) in sources.iter().enumerate() {
            files.extend(find(source)?.into_iter().map(|file| (number, file)));
        }
        let mut hash = Sha256::new();
        for (_, file) in &files {
            let unreadable = |source| Error::Unreadable { path: file.path.clone(), source };
            let size = std::fs::metadata(&file.path).map_err(unreadable)?.len();
            hash.update(format!("{} {size}\n", file.path.display()));
        }
        let hash = hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        let manner = Manner { skip_bad, in_pieces: true, ..Manner::default() };
        Ok(Library { sources: sources.to_vec(), files, manner, held, hash, passed: Mutex::default() })
    }

    /// How many files there are.
    pub fn files(&self) -> usize {
        self.files.len()
    }

    fn rows(&self, file: u32, mark: Mark) -> Result<Rows> {
        let (source, file) = &self.files[file as usize];
        Rows::open(file, &self.sources[*source], self.manner, mark)
    }

    /// Rows that could not be read and were passed over, of all files that documents were drawn from.
    pub fn passed_over(&self) -> Bad {
        let mut all = Bad::new(self.manner.skip_bad);
        let passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
        passed.values().for_each(|bad| all.add(bad));
        all
    }

    /// Remembers those of a file. Each epoch meets the same ones again.
    fn pass_over(&self, file: u32, bad: &Bad) {
        let mut passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
        let known = passed.entry(file).or_default();
        if bad.count > known.count {
            known.clone_from(bad);
        }
    }

    /// Whether a document is held back: the same ones in every run, whatever its seed.
    fn is_held(&self, place: Place) -> bool {
        Random::new(HELD ^ mix(u64::from(place.0)), place.1).share() < self.held
    }

    /// Reads documents in their order, of those held back or of the others, until `take` has enough.
    pub fn read(&self, held: bool, take: &mut dyn FnMut(&Row) -> Result<bool>) -> Result<Bad> {
        let mut bad = Bad::new(self.manner.skip_bad);
        for file in 0..self.files.len() as u32 {
            let mut rows = self.rows(file, Mark::default())?;
            while let Some(row) = rows.next_row()? {
                let place = Place(file, row.mark.at, row.mark.line);
                if self.is_held(place) == held && !take(&row)? {
                    return Ok(bad);
                }
            }
            bad.add(&rows.bad);
        }
        Ok(bad)
    }

    /// Documents by their places, in the order of the places.
    pub fn fetch(&self, places: &[Place]) -> Result<Vec<Row>> {
        let mut found: BTreeMap<Place, Row> = BTreeMap::new();
        let mut wanted: Vec<Place> = places.to_vec();
        wanted.sort_unstable();
        wanted.dedup();
        let mut open: Option<(Place, Rows)> = None;
        for place in wanted {
            // In a packed file seeking is reading from its beginning.
            let is_packed = is_packed(&self.files[place.0 as usize].1.path);
            let near =
                |at: &Place| at.0 == place.0 && (is_packed || place.1.saturating_sub(at.1) < NEAR_BYTES);
            let mut rows = match open.take().filter(|(at, _)| near(at)) {
                Some((_, rows)) => rows,
                None => self.rows(place.0, place.mark())?,
            };
            loop {
                match rows.next_row() {
                    Ok(Some(row)) if row.mark == place.mark() => {
                        found.insert(place, row);
                        break;
                    }
                    Ok(Some(row)) if row.mark.at < place.1 => {}
                    // A row that was read once and cannot be read now is of another file.
                    Ok(_) | Err(Error::Row { .. } | Error::NotUtf8 { .. }) => {
                        return Err(Error::StreamChanged { files: self.files.len() });
                    }
                    Err(error) => return Err(error),
                }
            }
            open = Some((place, rows));
        }
        Ok(places.iter().map(|place| found[place].clone()).collect())
    }
}

/// Where a reader stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stand {
    /// Passes over all files that are complete.
    pub epoch: u64,
    /// Files of this epoch that are read.
    pub file: u32,
    /// The next row of the one after them.
    pub mark: Mark,
    /// Documents given in this epoch.
    pub drawn: u64,
    /// Documents that wait in the buffer.
    pub buffer: Vec<Place>,
}

/// The documents of a library, shuffled, for ever.
#[derive(Debug)]
pub struct Documents {
    library: Arc<Library>,
    seed: u64,
    capacity: usize,
    epoch: u64,
    order: Permutation,
    file: u32,
    mark: Mark,
    rows: Option<Rows>,
    drawn: u64,
    buffer: Vec<(Place, Row)>,
}

impl Documents {
    /// From the first epoch on, with a buffer of so many.
    pub fn new(library: Arc<Library>, capacity: usize, seed: u64) -> Documents {
        let order = order_of(&library, seed, 0);
        let (file, mark, buffer) = (0, Mark::default(), vec![]);
        let capacity = capacity.max(1);
        Documents { library, seed, capacity, epoch: 0, order, file, mark, rows: None, drawn: 0, buffer }
    }

    /// Its files.
    pub fn library(&self) -> &Library {
        &self.library
    }

    /// What to save.
    pub fn stand(&self) -> Stand {
        let buffer = self.buffer.iter().map(|(place, _)| *place).collect();
        Stand { epoch: self.epoch, file: self.file, mark: self.mark, drawn: self.drawn, buffer }
    }

    /// Goes to where another stood.
    pub fn go_to(&mut self, stand: &Stand) -> Result<()> {
        let files = self.library.files.len();
        if stand.file as usize > files || stand.buffer.iter().any(|place| place.0 as usize >= files) {
            return Err(Error::StreamChanged { files });
        }
        let rows = self.library.fetch(&stand.buffer)?;
        self.buffer = stand.buffer.iter().copied().zip(rows).collect();
        self.order = order_of(&self.library, self.seed, stand.epoch);
        (self.epoch, self.file, self.mark) = (stand.epoch, stand.file, stand.mark);
        (self.rows, self.drawn) = (None, stand.drawn);
        Ok(())
    }

    /// The next document with its place.
    pub fn next_document(&mut self) -> Result<(Place, Row)> {
        loop {
            while self.buffer.len() < self.capacity {
                let Some(document) = self.read()? else { break };
                self.buffer.push(document);
            }
            if !self.buffer.is_empty() {
                let mut random = Random::new(self.seed ^ PICKS ^ mix(self.epoch), self.drawn);
                self.drawn += 1;
                return Ok(self.buffer.swap_remove(random.below(self.buffer.len() as u64) as usize));
            }
            if self.drawn == 0 {
                return Err(Error::NothingToStream { files: self.library.files.len() });
            }
            self.epoch += 1;
            self.order = order_of(&self.library, self.seed, self.epoch);
            (self.file, self.mark, self.drawn) = (0, Mark::default(), 0);
        }
    }

    /// The next document of this epoch's files that is trained on.
    fn read(&mut self) -> Result<Option<(Place, Row)>> {
        while (self.file as usize) < self.library.files.len() {
            let file = self.order.at(u64::from(self.file)) as u32;
            let rows = match &mut self.rows {
                Some(rows) => rows,
                None => self.rows.insert(self.library.rows(file, self.mark)?),
            };
            let before = rows.bad.count;
            let row = rows.next_row()?;
            if rows.bad.count > before {
                self.library.pass_over(file, &rows.bad);
            }
            match row {
                None => (self.file, self.mark, self.rows) = (self.file + 1, Mark::default(), None),
                Some(row) => {
                    self.mark = row.next;
                    let place = Place(file, row.mark.at, row.mark.line);
                    if !self.library.is_held(place) {
                        return Ok(Some((place, row)));
                    }
                }
            }
        }
        Ok(None)
    }
}

fn order_of(library: &Library, seed: u64, epoch: u64) -> Permutation {
    Permutation::new(library.files.len() as u64, &mut Random::new(seed ^ ORDER, epoch))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three files of 7, 40 and 25 documents, one of them a packed table.
    pub(in crate::data::stream) fn library(held: f64) -> (tempfile::TempDir, Arc<Library>) {
        let folder = tempfile::tempdir().unwrap();
        let object = |name: &str, n: usize| format!("{{\"text\": \"{name}{n} {}\"}}\n", "x".repeat(n % 5));
        let file = |name: &str, count: usize| (0..count).map(|n| object(name, n)).collect::<String>();
        std::fs::write(folder.path().join("a.jsonl"), file("a", 7)).unwrap();
        std::fs::write(folder.path().join("b.jsonl"), file("b", 20) + "\nbroken\n" + &file("c", 20)).unwrap();
        let rows: String = (0..25).map(|n| format!("{n},\"d{n}\n\"\n")).collect();
        let packed = std::fs::File::create(folder.path().join("d.csv.gz")).unwrap();
        let mut packing = flate2::write::GzEncoder::new(packed, Default::default());
        std::io::Write::write_all(&mut packing, format!("id,text\n{rows}").as_bytes()).unwrap();
        packing.finish().unwrap();
        let sources = ["*.jsonl", "d.csv.gz"].map(|name| Source::of(folder.path().join(name)));
        let library = Library::open(&sources, true, held).unwrap();
        (folder, Arc::new(library))
    }

    fn take(documents: &mut Documents, count: usize) -> Vec<String> {
        (0..count).map(|_| documents.next_document().unwrap().1.text).collect()
    }

    #[test]
    fn every_epoch_gives_each_document_once_in_an_order_of_its_own() {
        let (_folder, library) = library(0.0);
        assert_eq!(library.files(), 3);
        for capacity in [1, 10, 1000] {
            let mut documents = Documents::new(library.clone(), capacity, 4);
            let epochs: Vec<Vec<String>> = (0..3).map(|_| take(&mut documents, 72)).collect();
            let sorted = |epoch: &[String]| {
                let mut epoch = epoch.to_vec();
                epoch.sort_unstable();
                epoch
            };
            assert!(epochs.iter().all(|epoch| sorted(epoch) == sorted(&epochs[0])));
            let distinct: std::collections::BTreeSet<_> = epochs[0].iter().collect();
            assert_eq!(distinct.len(), 72);
            assert_ne!(epochs[0], epochs[1]);
            assert_eq!(take(&mut Documents::new(library.clone(), capacity, 4), 72), epochs[0]);
            assert_ne!(take(&mut Documents::new(library.clone(), capacity, 5), 72), epochs[0]);
        }
    }

    #[test]
    fn held_back_documents_are_never_given_and_no_others_are_missing() {
        let (_folder, library) = library(0.25);
        let read = |held| {
            let mut texts = std::collections::BTreeSet::new();
            library.read(held, &mut |row| Ok(texts.insert(row.text.clone()))).unwrap();
            texts
        };
        let (given, held) = (read(false), read(true));
        assert!(given.len() + held.len() == 72 && given.is_disjoint(&held));
        assert!((8..30).contains(&held.len()), "{}", held.len());
        let mut documents = Documents::new(library, 9, 1);
        assert_eq!(
            take(&mut documents, given.len()).into_iter().collect::<std::collections::BTreeSet<_>>(),
            given
        );
    }

    #[test]
    fn going_on_from_any_stand_equals_never_stopping() {
        let (_folder, library) = library(0.1);
        for capacity in [1, 6, 50] {
            let mut straight = Documents::new(library.clone(), capacity, 2);
            let mut run = vec![];
            for _ in 0..150 {
                run.push((straight.stand(), straight.next_document().unwrap()));
            }
            for (from, (stand, _)) in run.iter().enumerate().step_by(7) {
                let saved = serde_json::to_string(stand).unwrap();
                let mut resumed = Documents::new(library.clone(), capacity, 2);
                resumed.go_to(&serde_json::from_str(&saved).unwrap()).unwrap();
                for (_, document) in run[from..].iter().take(90) {
                    assert_eq!(&resumed.next_document().unwrap(), document);
                }
            }
        }
    }

    #[test]
    fn files_without_a_document_and_places_of_other_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        std::fs::write(&path, "{\"text\": \"\"}\n").unwrap();
        let library = Arc::new(Library::open(&[Source::of(&path)], false, 0.0).unwrap());
        let mut documents = Documents::new(library, 3, 0);
        assert!(matches!(documents.next_document(), Err(Error::NothingToStream { .. })));
        let foreign = Stand { buffer: vec![Place(0, 5, 0)], ..Stand::default() };
        assert!(matches!(documents.go_to(&foreign), Err(Error::StreamChanged { .. })));
        let foreign = Stand { buffer: vec![Place(7, 0, 0)], ..Stand::default() };
        assert!(matches!(documents.go_to(&foreign), Err(Error::StreamChanged { .. })));
    }
}
