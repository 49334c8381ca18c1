//! What is known of an adapter's kernels: which variant is fastest for an operator and its shapes, and which computes wrongly.
//!
//! One file for all adapters of a user. What was learnt with another driver stands under another name and is left alone;
//! what another version of kiln learnt is forgotten, since its kernels were others. A file that cannot be read counts as
//! empty, and [`Ledger::problem`] says so.

use super::device::Listing;
use super::loader::SHADERS;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Name of the variant by operator, settings and types.
pub type Choices = BTreeMap<String, String>;

/// The file as it is written.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Book {
    /// Version of kiln with a sum over its shaders.
    kiln: String,
    /// By adapter and driver.
    adapters: BTreeMap<String, Page>,
}

/// What is known of one adapter with one driver.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Page {
    fastest: Choices,
    /// What was wrong, by variant and storage.
    wrong: BTreeMap<String, String>,
}

/// What is known of the kernels on one adapter.
pub struct Ledger {
    file: Option<PathBuf>,
    adapter: String,
    book: Book,
    problem: Option<String>,
    changed: bool,
}

impl Ledger {
    /// Reads what `file` knows of an adapter; without a file it begins empty and is not kept.
    pub fn open(file: Option<PathBuf>, listing: &Listing) -> Ledger {
        let (book, problem) = match file.as_deref().map(read) {
            None | Some(Ok(None)) => (Book::default(), None),
            Some(Ok(Some(book))) => (book, None),
            Some(Err(problem)) => (Book::default(), Some(problem)),
        };
        let (book, problem) = match book {
            book if book.kiln == version() => (book, problem),
            _ => (Book { kiln: version(), adapters: BTreeMap::new() }, problem),
        };
        let adapter = format!("{} | {} | {}", listing.name, listing.backend, listing.driver);
        Ledger { file, adapter, book, problem, changed: false }
    }

    /// Why the file was not believed, if it was not.
    pub fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    /// Where it is kept.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// The fastest variant for a key, if it was measured.
    pub fn fastest(&self, key: &str) -> Option<&String> {
        self.page()?.fastest.get(key)
    }

    /// Operators measured on this adapter.
    pub fn known(&self) -> usize {
        self.page().map_or(0, |page| page.fastest.len())
    }

    /// Remembers a measurement.
    pub fn remember(&mut self, key: &str, variant: &str) {
        self.changed = true;
        self.page_mut().fastest.insert(key.into(), variant.into());
    }

    /// Forgets all measurements, not the verdicts.
    pub fn forget(&mut self) {
        self.changed = true;
        self.page_mut().fastest.clear();
    }

    /// Why a variant (with its storage, such as `matmul_tile f16`) must not be used here.
    pub fn wrong(&self, variant: &str) -> Option<&String> {
        self.page()?.wrong.get(variant)
    }

    /// All variants that must not be used here, with the reason.
    pub fn verdicts(&self) -> impl Iterator<Item = (&String, &String)> {
        self.page().into_iter().flat_map(|page| &page.wrong)
    }

    /// A variant computed wrongly: it is not used on this driver any more.
    pub fn condemn(&mut self, variant: &str, reason: &str) {
        self.changed = true;
        let page = self.page_mut();
        page.wrong.insert(variant.into(), reason.into());
        let name = variant.split(' ').next().unwrap_or(variant);
        page.fastest.retain(|_, fastest| fastest != name);
    }

    /// A variant passed every trial there is.
    pub fn absolve(&mut self, variant: &str) {
        if self.page_mut().wrong.remove(variant).is_some() {
            self.changed = true;
        }
    }

    /// Writes what changed; through a temporary name, so that a reader never sees half a file.
    pub fn save(&mut self) -> std::io::Result<()> {
        let Some(file) = self.file.as_deref().filter(|_| self.changed) else { return Ok(()) };
        if let Some(folder) = file.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let partial = file.with_extension(format!("{}.partial", std::process::id()));
        std::fs::write(&partial, serde_json::to_string_pretty(&self.book)?)?;
        std::fs::rename(&partial, file)?;
        self.changed = false;
        Ok(())
    }

    fn page(&self) -> Option<&Page> {
        self.book.adapters.get(&self.adapter)
    }

    fn page_mut(&mut self) -> &mut Page {
        self.book.adapters.entry(self.adapter.clone()).or_default()
    }
}

fn read(file: &Path) -> Result<Option<Book>, String> {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("{}: {error}", file.display())),
    };
    serde_json::from_str(&text).map(Some).map_err(|error| format!("{}: {error}", file.display()))
}

/// The version with a sum over the shaders, so that a changed kernel is measured and judged anew.
fn version() -> String {
    let mut sum = crc32fast::Hasher::new();
    SHADERS.iter().for_each(|(_, text)| sum.update(text.as_bytes()));
    format!("{} {:08x}", env!("CARGO_PKG_VERSION"), sum.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::launch::Caps;

    fn listing(driver: &str) -> Listing {
        Listing {
            index: 0,
            name: "Card".into(),
            backend: "vulkan".into(),
            driver: driver.into(),
            kind: "discrete",
            caps: Caps::portable(),
            max_buffer_bytes: 1 << 30,
            memory_bytes: None,
            timestamps: false,
            subgroup_sizes: [32, 32],
            packed_dot: crate::gpu::dot::PackedDot::Unknown,
        }
    }

    #[test]
    fn what_is_learnt_with_one_driver_is_neither_used_nor_lost_with_another() {
        let folder = tempfile::tempdir().unwrap();
        let file = Some(folder.path().join("deep/kernels.json"));
        let mut old = Ledger::open(file.clone(), &listing("1.0"));
        old.remember("matmul f32[4, 4]", "matmul_tile");
        old.condemn("matmul_broadcast f16", "element 3 is off");
        old.save().unwrap();
        let mut new = Ledger::open(file.clone(), &listing("2.0"));
        assert_eq!((new.fastest("matmul f32[4, 4]"), new.wrong("matmul_broadcast f16")), (None, None));
        new.remember("matmul f32[4, 4]", "matmul_register");
        new.save().unwrap();
        let again = Ledger::open(file, &listing("1.0"));
        assert_eq!(again.fastest("matmul f32[4, 4]").unwrap(), "matmul_tile");
        assert_eq!(again.wrong("matmul_broadcast f16").unwrap(), "element 3 is off");
    }

    #[test]
    fn a_variant_found_wrong_is_no_longer_the_fastest_until_it_passes_everything() {
        let mut ledger = Ledger::open(None, &listing("1.0"));
        ledger.remember("a", "matmul_tile");
        ledger.remember("b", "matmul_plain");
        ledger.condemn("matmul_tile f32", "off");
        assert_eq!((ledger.fastest("a"), ledger.known()), (None, 1));
        ledger.absolve("matmul_tile f32");
        assert_eq!(ledger.verdicts().count(), 0);
    }

    #[test]
    fn a_file_cut_short_edited_or_of_another_version_counts_as_empty() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("kernels.json");
        let mut ledger = Ledger::open(Some(file.clone()), &listing("1.0"));
        ledger.remember("a", "matmul_tile");
        ledger.save().unwrap();
        let whole = std::fs::read_to_string(&file).unwrap();
        let edited = [
            (&whole[..whole.len() / 2], true),
            (&whole.replace("\"matmul_tile\"", "7"), true),
            (&whole.replace("fastest", "slowest"), true),
            (&whole.replace(&version(), "0.0.1 00000000"), false),
            ("", true),
        ]
        .map(|(text, told)| (text.to_string(), told));
        for (text, told) in edited {
            std::fs::write(&file, &text).unwrap();
            let ledger = Ledger::open(Some(file.clone()), &listing("1.0"));
            assert_eq!(ledger.known(), 0, "{text}");
            assert_eq!(ledger.problem().is_some(), told, "{text}");
        }
    }
}
