//! The folder of checkpoints: saving, pruning, and finding the newest that is whole.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::durable::{self, Create};
use super::manifest::{self, Manifest};
use super::{Error, Loaded, Rejected, Saved, Snapshot, tensors};

const MODEL: &str = "model.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const BEST: &str = "best.json";

/// Being written, not yet complete.
const WRITING: &str = ".writing-";
/// The old checkpoint of a step that is being saved again.
const REPLACED: &str = ".replaced-";
/// Being deleted.
const REMOVING: &str = ".removing-";

/// The checkpoints of a run.
pub struct Store {
    folder: PathBuf,
    keep: usize,
    create: Create,
}

impl Store {
    /// Opens `checkpoints/` in a run folder, making it if need be, and sweeps up what a killed run left half done. The
    /// newest `keep` checkpoints will stay, and the best besides.
    pub fn open(run_folder: &Path, keep: usize) -> Result<Store, Error> {
        Store::open_on(durable::real_disk(), run_folder, keep)
    }

    /// The checkpoints of a run folder to read from, even while the run goes on: nothing is made, swept up or pruned.
    pub fn look(run_folder: &Path) -> Store {
        Store { folder: run_folder.join("checkpoints"), keep: usize::MAX, create: durable::real_disk() }
    }

    pub(super) fn open_on(create: Create, run_folder: &Path, keep: usize) -> Result<Store, Error> {
        let folder = run_folder.join("checkpoints");
        fs::create_dir_all(&folder).map_err(|source| Error::Folder { path: folder.clone(), source })?;
        let store = Store { folder, keep: keep.max(1), create };
        store.sweep().map_err(|source| store.folder_error(source))?;
        Ok(store)
    }

    /// The steps of which there is a checkpoint, oldest first, whole or not.
    pub fn steps(&self) -> Result<Vec<u64>, Error> {
        let names = self.names().map_err(|source| self.folder_error(source))?;
        let mut steps: Vec<u64> = names.iter().filter_map(|name| step_of(name)).collect();
        steps.sort_unstable();
        Ok(steps)
    }

    /// Writes a checkpoint; when this returns it is on the disk. Only then are older ones pruned.
    ///
    /// Checkpoints of later steps are pruned as well: the run went back before them, so they belong to a course that was
    /// left, or are damaged.
    pub fn save(&self, snapshot: &Snapshot) -> Result<Saved, Error> {
        let name = name_of(snapshot.step);
        let temporary = self.folder.join(format!("{WRITING}{name}"));
        let folder = self.folder.join(&name);
        let written = self.write(&temporary, snapshot).and_then(|()| {
            let published = self.publish(&temporary, &name);
            published.map_err(|source| Error::Write { path: folder.clone(), source })
        });
        if written.is_err() {
            let _ = fs::remove_dir_all(&temporary);
        }
        written?;

        let mut warnings = Vec::new();
        let is_best = self.mark_best(snapshot, &name).unwrap_or_else(|error| {
            warnings.push(format!("{BEST}: {error}"));
            false
        });
        if let Err(error) = self.prune(snapshot.step) {
            warnings.push(format!("old checkpoints stay: {error}"));
        }
        Ok(Saved { folder, is_best, warnings })
    }

    /// The newest checkpoint that is whole, or nothing where there is none at all.
    pub fn load_latest(&self) -> Result<Option<Loaded>, Error> {
        let mut rejected = Vec::new();
        for step in self.steps()?.into_iter().rev() {
            match read(&self.folder.join(name_of(step))) {
                Ok(loaded) => return Ok(Some(Loaded { rejected, ..loaded })),
                Err(reason) => rejected.push(reason),
            }
        }
        if rejected.is_empty() { Ok(None) } else { Err(Error::NoneUsable { rejected }) }
    }

    /// The checkpoint with the lowest validation loss, or nothing where none was measured.
    pub fn load_best(&self) -> Result<Option<Loaded>, Error> {
        match self.best() {
            Some((name, _)) => read(&self.folder.join(name)).map(Some).map_err(Error::Damaged),
            None => Ok(None),
        }
    }

    /// Reads one checkpoint folder, wherever it lies.
    pub fn load_folder(folder: &Path) -> Result<Loaded, Error> {
        read(folder).map_err(Error::Damaged)
    }

    /// The folder and validation loss of the best checkpoint.
    pub fn best(&self) -> Option<(String, f64)> {
        let text = fs::read(self.folder.join(BEST)).ok()?;
        let pointer: Value = serde_json::from_slice(&text).ok()?;
        let name = pointer["folder"].as_str()?.to_string();
        let exists = step_of(&name).is_some() && self.folder.join(&name).is_dir();
        pointer["validation_loss"].as_f64().filter(|_| exists).map(|loss| (name, loss))
    }

    fn write(&self, temporary: &Path, snapshot: &Snapshot) -> Result<(), Error> {
        let at = |path: &Path, source| Error::Write { path: path.to_path_buf(), source };
        if temporary.exists() {
            fs::remove_dir_all(temporary).map_err(|source| at(temporary, source))?;
        }
        fs::create_dir_all(temporary).map_err(|source| at(temporary, source))?;

        let mut files = BTreeMap::new();
        let lists = [(MODEL, snapshot.model), (OPTIMIZER, snapshot.optimizer)];
        for (name, list) in lists.into_iter().filter(|(name, list)| *name != MODEL || !list.is_empty()) {
            let path = temporary.join(name);
            let record = durable::write_file(&self.create, &path, |out| tensors::write(out, list));
            files.insert(name.to_string(), record.map_err(|source| at(&path, source))?);
        }
        for (name, bytes) in snapshot.extra {
            let path = temporary.join(name);
            let ours = [MODEL, OPTIMIZER, manifest::FILE_NAME].contains(&name.as_str());
            if ours || files.contains_key(name) || !is_inside(name) {
                let source = io::Error::new(io::ErrorKind::InvalidInput, "not a free plain file name");
                return Err(at(&path, source));
            }
            let within = path.parent().expect("it is joined to a folder");
            let record = fs::create_dir_all(within)
                .and_then(|()| durable::write_file(&self.create, &path, |out| out.write_all(bytes)));
            files.insert(name.clone(), record.map_err(|source| at(&path, source))?);
            for folder in within.ancestors().take_while(|folder| folder.starts_with(temporary)) {
                durable::sync_folder(folder).map_err(|source| at(folder, source))?;
            }
        }
        let path = temporary.join(manifest::FILE_NAME);
        let manifest = Manifest::new(snapshot.step, snapshot.validation_loss, files, snapshot.state.clone());
        let text = manifest.to_json().map_err(|source| at(&path, source))?;
        durable::write_file(&self.create, &path, |out| out.write_all(&text))
            .and_then(|_| durable::sync_folder(temporary))
            .map_err(|source| at(&path, source))
    }

    /// Gives a complete checkpoint its name. One of the same step steps aside, and comes back if this fails.
    fn publish(&self, temporary: &Path, name: &str) -> io::Result<()> {
        let folder = self.folder.join(name);
        let replaced = self.folder.join(format!("{REPLACED}{name}"));
        let aside = folder.exists();
        if aside {
            fs::rename(&folder, &replaced)?;
        }
        if let Err(error) = fs::rename(temporary, &folder) {
            if aside {
                fs::rename(&replaced, &folder)?;
            }
            return Err(error);
        }
        durable::sync_folder(&self.folder)?;
        if aside {
            // Left behind it does no harm: the next `open` sweeps it up.
            let _ = fs::remove_dir_all(&replaced);
        }
        Ok(())
    }

    fn mark_best(&self, snapshot: &Snapshot, name: &str) -> io::Result<bool> {
        let Some(loss) = snapshot.validation_loss.filter(|loss| loss.is_finite()) else {
            return Ok(false);
        };
        // The same step saved again is no rival of itself.
        if self.best().is_some_and(|(best, lowest)| best != name && loss >= lowest) {
            return Ok(false);
        }
        let pointer = json!({ "folder": name, "validation_loss": loss });
        durable::replace_file(&self.create, &self.folder.join(BEST), pointer.to_string().as_bytes())?;
        Ok(true)
    }

    fn prune(&self, newest: u64) -> io::Result<()> {
        let best = self.best().map(|(name, _)| name);
        let mut steps: Vec<u64> = self.names()?.iter().filter_map(|name| step_of(name)).collect();
        steps.sort_unstable_by(|a, b| b.cmp(a));
        let (later, kept): (Vec<u64>, Vec<u64>) = steps.into_iter().partition(|&step| step > newest);
        for step in later.into_iter().chain(kept.into_iter().skip(self.keep)) {
            let name = name_of(step);
            if best.as_deref() != Some(name.as_str()) {
                self.remove(&name)?;
            }
        }
        Ok(())
    }

    /// Renamed first, so that a half deleted checkpoint is never taken for a whole one.
    fn remove(&self, name: &str) -> io::Result<()> {
        let removing = self.folder.join(format!("{REMOVING}{name}"));
        fs::rename(self.folder.join(name), &removing)?;
        fs::remove_dir_all(&removing)
    }

    fn sweep(&self) -> io::Result<()> {
        for name in self.names()? {
            let path = self.folder.join(&name);
            let original = name.strip_prefix(REPLACED).map(|name| self.folder.join(name));
            if let Some(original) = original.filter(|original| !original.exists()) {
                // Killed between the two renames of `publish`.
                fs::rename(&path, original)?;
            } else if [WRITING, REPLACED, REMOVING].iter().any(|prefix| name.starts_with(prefix)) {
                fs::remove_dir_all(&path)?;
            } else if name == format!("{BEST}.tmp") {
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let entries = fs::read_dir(&self.folder)?;
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    fn folder_error(&self, source: io::Error) -> Error {
        Error::Folder { path: self.folder.clone(), source }
    }
}

/// A file's name, or that of folders and of a file in them.
fn is_inside(name: &str) -> bool {
    let parts: Vec<_> = Path::new(name).components().collect();
    !parts.is_empty() && parts.iter().all(|part| matches!(part, std::path::Component::Normal(_)))
}

fn name_of(step: u64) -> String {
    format!("step-{step:06}")
}

/// Only the exact name counts: a copy such as `step-000250-old` is the user's own.
fn step_of(name: &str) -> Option<u64> {
    let step = name.strip_prefix("step-")?.parse().ok()?;
    (name_of(step) == name).then_some(step)
}

fn read(folder: &Path) -> Result<Loaded, Rejected> {
    let rejected = |reason| Rejected { folder: folder.to_path_buf(), reason };
    let body = Manifest::read(folder).map_err(rejected)?;
    let mut lists = BTreeMap::new();
    for (name, record) in &body.files {
        let bytes = record.read(&folder.join(name)).map_err(rejected)?;
        if [MODEL, OPTIMIZER].contains(&name.as_str()) {
            let list = tensors::read(&bytes).map_err(|reason| rejected(format!("{name}: {reason}")))?;
            lists.insert(name.as_str(), list);
        }
    }
    let mut take =
        |name| lists.remove(name).ok_or_else(|| rejected(format!("{name} is not in the manifest")));
    Ok(Loaded {
        // Where adapters are trained, their files are among the others.
        model: take(MODEL).unwrap_or_default(),
        optimizer: take(OPTIMIZER)?,
        folder: folder.to_path_buf(),
        step: body.step,
        state: body.state,
        validation_loss: body.validation_loss,
        rejected: Vec::new(),
    })
}
