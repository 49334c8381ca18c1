//! Places that name a model: a folder with config and weights, or a run, which stands for one of its checkpoints.

use super::checkpoint::Store;
use super::recipe::{Design, FILE_NAME, Model, Recipe};
use super::{Error, Result};
use std::path::{Path, PathBuf};

/// What a place stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The folder with config and weights.
    pub folder: PathBuf,
    /// Of a run: which of its checkpoints it is, in a word.
    pub which: Option<&'static str>,
    /// Checkpoints that were passed over, in words.
    pub damaged: Vec<String>,
}

impl Place {
    /// What a person should know of it, where it is called `what`.
    pub fn told(&self, what: &str) -> Vec<String> {
        let damaged =
            self.damaged.iter().map(|one| format!("warning: damaged checkpoint passed over: {one}"));
        let found =
            self.which.map(|which| format!("{what:<8} {} ({which} of the run)", self.folder.display()));
        damaged.chain(found).collect()
    }
}

/// The model that a folder holds; of a run its newest whole checkpoint, or that with the lowest validation loss.
///
/// Where there are checksums the files are compared with them.
pub fn find(given: &Path, best: bool) -> Result<Place> {
    if !is_run(given) {
        if given.join("manifest.json").is_file() {
            Store::load_folder(given)?;
        }
        return Ok(Place { folder: given.to_path_buf(), which: None, damaged: vec![] });
    }
    let store = Store::look(given);
    let which = if best { "best" } else { "newest" };
    let loaded = match best {
        _ if !given.join("checkpoints").is_dir() => None,
        true => store.load_best()?,
        false => store.load_latest()?,
    };
    let loaded = loaded.ok_or_else(|| Error::Folder {
        path: given.display().to_string(),
        problem: format!("holds no {which} checkpoint yet"),
        hint: "train on: a checkpoint is written each run.save.every steps and at the end; the best one needs an evaluation",
    })?;
    let damaged = loaded.rejected.iter().map(ToString::to_string).collect();
    Ok(Place { folder: loaded.folder, which: Some(which), damaged })
}

/// True for what a training run leaves behind.
fn is_run(folder: &Path) -> bool {
    folder.join("checkpoints").is_dir() || folder.join(FILE_NAME).is_file()
}

impl Recipe {
    /// Puts a checkpoint in the place of each run that the recipe names as a model, a teacher or an adapter, so that it means the
    /// same weights for good. Gives what a person should know.
    pub fn find_places(&mut self) -> Result<Vec<String>> {
        let model = match &mut self.model {
            Model::Load { folder, .. } => Some(("model", folder)),
            Model::Build(_) => None,
        };
        let teacher = self.distill.as_mut().map(|distill| ("teacher", &mut distill.teacher));
        let adapters = self.adapters.iter_mut().filter_map(|adapter| match &mut adapter.design {
            Design::Load { load } => Some(("adapter", load)),
            Design::New(_) => None,
        });
        let mut told = vec![];
        for (what, folder) in model.into_iter().chain(teacher).chain(adapters) {
            let place = find(folder, false)?;
            told.extend(place.told(what));
            *folder = place.folder;
        }
        Ok(told)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_folder_stands_for_itself_and_a_run_without_checkpoints_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let plain = find(root.path(), false).unwrap();
        assert_eq!(plain, Place { folder: root.path().to_path_buf(), which: None, damaged: vec![] });
        assert!(plain.told("model").is_empty());
        std::fs::write(root.path().join(FILE_NAME), "").unwrap();
        let error = find(root.path(), false).unwrap_err().to_string();
        assert!(error.contains("holds no newest checkpoint yet"), "{error}");
        let text = format!("[model]\nload = {:?}\n", root.path());
        let error = Recipe::from_text(&text, "r.toml", &[]).unwrap().find_places().unwrap_err().to_string();
        assert!(error.contains("holds no newest checkpoint yet"), "{error}");
    }
}
