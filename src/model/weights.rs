//! A model's weights on the host, by name.

use super::archive::{Archive, WEIGHTS_FILE, write_whole};
use super::config::CONFIG_FILE;
use super::{Error, Family, ParameterSpec, Result};
use crate::graph::Feeds;
use crate::tensor::{Shape, Tensor};
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;

/// Tensors by name, in the order of their names. Tied weights are one tensor.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Weights {
    by_name: BTreeMap<String, Tensor>,
}

impl FromIterator<(String, Tensor)> for Weights {
    fn from_iter<I: IntoIterator<Item = (String, Tensor)>>(tensors: I) -> Self {
        Weights { by_name: tensors.into_iter().collect() }
    }
}

impl Weights {
    /// Reads the weights of `family` from a folder or a safetensors file, as f32.
    ///
    /// Every parameter must be there with its shape, and nothing that the family neither has nor knows to leave out.
    pub fn read(path: &Path, family: &dyn Family) -> Result<Self> {
        let archive = Archive::open(path)?;
        let stored = match_names(&archive, family)?;
        let parameters = family.parameters();
        for spec in &parameters {
            let shape = archive.shape(stored[&spec.name]).expect("names come from the archive");
            expect_shape(spec, shape)?;
        }
        let read = |spec: &ParameterSpec| Ok((spec.name.clone(), archive.tensor(stored[&spec.name])?));
        Ok(parameters.par_iter().map(read).collect::<Result<Vec<_>>>()?.into_iter().collect())
    }

    /// Writes `config.json` and `model.safetensors` into a folder, which is made if absent.
    ///
    /// The two files each appear whole or not at all; a folder that must change at once is for the caller to rename.
    pub fn save(&self, folder: &Path, family: &dyn Family) -> Result<()> {
        let parameters = family.parameters();
        self.check(&parameters)?;
        std::fs::create_dir_all(folder)
            .map_err(|source| Error::File { path: folder.to_path_buf(), source })?;
        let tensors: Vec<_> =
            parameters.iter().map(|spec| (spec.name.as_str(), &self.by_name[&spec.name])).collect();
        Archive::write(&folder.join(WEIGHTS_FILE), &tensors)?;
        write_whole(&folder.join(CONFIG_FILE), |out| {
            serde_json::to_writer_pretty(&mut *out, &family.config())?;
            out.write_all(b"\n")
        })
    }

    /// Checks that exactly these parameters are there, with their shapes.
    pub fn check(&self, parameters: &[ParameterSpec]) -> Result<()> {
        for spec in parameters {
            let tensor = self.get(&spec.name)?;
            expect_shape(spec, &tensor.shape)?;
        }
        let known: HashSet<&String> = parameters.iter().map(|spec| &spec.name).collect();
        let extra: Vec<String> = self.by_name.keys().filter(|name| !known.contains(name)).cloned().collect();
        if extra.is_empty() {
            return Ok(());
        }
        Err(Error::Names { path: "weights in memory".into(), missing: vec![], extra })
    }

    /// The tensor of that name.
    pub fn get(&self, name: &str) -> Result<&Tensor> {
        self.by_name.get(name).ok_or_else(|| Error::NoWeight { name: name.to_string() })
    }

    /// Sets a tensor and gives back the one before.
    pub fn set(&mut self, name: impl Into<String>, tensor: Tensor) -> Option<Tensor> {
        self.by_name.insert(name.into(), tensor)
    }

    /// Names and tensors, in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.by_name.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// Number of elements in all tensors.
    pub fn count_elements(&self) -> usize {
        self.by_name.values().map(|tensor| tensor.shape.count()).sum()
    }

    /// Copies for the host interpreter.
    pub fn feeds(&self) -> Feeds {
        self.iter().fold(Feeds::new(), |feeds, (name, tensor)| feeds.with(name, tensor.clone()))
    }
}

/// For each parameter the name under which the archive has it.
fn match_names<'a>(archive: &'a Archive, family: &dyn Family) -> Result<HashMap<String, &'a str>> {
    let mut stored: HashMap<String, &str> = HashMap::new();
    for name in archive.names() {
        if let Some(parameter) = family.canonical_name(name) {
            stored.insert(parameter, name);
        }
    }
    let names: BTreeSet<String> = family.parameters().into_iter().map(|spec| spec.name).collect();
    let missing: Vec<String> = names.iter().filter(|name| !stored.contains_key(*name)).cloned().collect();
    let unknown = stored.iter().filter(|(name, _)| !names.contains(*name));
    let mut extra: Vec<String> = unknown.map(|(_, stored)| stored.to_string()).collect();
    extra.sort();
    if missing.is_empty() && extra.is_empty() {
        return Ok(stored);
    }
    Err(Error::Names { path: archive.path().to_path_buf(), missing, extra })
}

fn expect_shape(spec: &ParameterSpec, got: &Shape) -> Result<()> {
    if *got == spec.shape {
        return Ok(());
    }
    Err(Error::Shape { name: spec.name.clone(), expected: spec.shape.clone(), got: got.clone() })
}
