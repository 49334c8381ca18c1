//! A model's weights on the host, by name.

use super::archive::{Archive, WEIGHTS_FILE, write_whole};
use super::config::{CONFIG_FILE, Config};
use super::head::{Renewed, module_of};
use super::quantized::{self, Convention, Stored};
use super::{Error, Family, ParameterSpec, Result};
use crate::formats::QUANTIZATION_KEY;
use crate::graph::Feeds;
use crate::tensor::{Shape, Tensor};
use rayon::prelude::*;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;

/// Tensors by name, in the order of their names. Tied weights are one tensor.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Weights {
    by_name: BTreeMap<String, Tensor>,
    stored: BTreeMap<String, Stored>,
}

impl FromIterator<(String, Tensor)> for Weights {
    fn from_iter<I: IntoIterator<Item = (String, Tensor)>>(tensors: I) -> Self {
        Weights { by_name: tensors.into_iter().collect(), stored: BTreeMap::new() }
    }
}

impl Weights {
    /// Reads the weights of `family` from a folder or a safetensors file, as f32, or as codes where `config.json` beside them says
    /// that they are.
    ///
    /// Every parameter must be there with its shape, and nothing that the family neither has nor knows to leave out.
    pub fn read(path: &Path, family: &dyn Family) -> Result<Self> {
        let archive = Archive::open(path)?;
        Weights::read_from(path, &archive, family, &family.parameters(), |_| false)
    }

    /// The same where parameters of the head may be missing, or have another shape: those are drawn from the seed.
    pub(super) fn read_renewed(path: &Path, family: &dyn Family, seed: u64, anew: bool) -> Result<Self> {
        let archive = Archive::open(path)?;
        let (drawn, kept) = drawn_and_kept(&archive, family, anew);
        let is_drawn = |name: &str| drawn.iter().any(|spec| spec.name == name);
        let own = family.parameters();
        let passed = |name: &str| is_drawn(name) || is_of_other_head(family, &own, name);
        let mut weights = Weights::read_from(path, &archive, family, &kept, passed)?;
        weights.extend(super::initial(&drawn, seed));
        Ok(weights)
    }

    /// Reads these parameters; stored ones for which `drawn` holds are passed over.
    fn read_from(
        path: &Path,
        archive: &Archive,
        family: &dyn Family,
        parameters: &[ParameterSpec],
        drawn: impl Fn(&str) -> bool,
    ) -> Result<Self> {
        let config =
            if path.is_dir() && path.join(CONFIG_FILE).exists() { Some(Config::read(path)?) } else { None };
        let mut found = quantized::find(archive, config.as_ref())?;
        let stored = match_names(archive, found.names(), family, parameters, drawn)?;
        let mut weights = Weights::default();
        let mut plain = vec![];
        for spec in parameters {
            if !stored.contains_key(&spec.name) {
                let init = family.absent(&spec.name).expect("a name that is missing was refused");
                let elements = init.draw(&spec.name, spec.shape.count(), 0);
                weights.set(spec.name.clone(), Tensor::f32(spec.shape.clone(), elements));
                continue;
            }
            match found.take(&stored[&spec.name], spec)? {
                Some(quantized) => weights.store(spec.name.clone(), Stored::Codes(quantized)),
                None => match found.take_sparse(&stored[&spec.name]) {
                    Some(tensor) => {
                        expect_shape(spec, &tensor.shape)?;
                        weights.set(spec.name.clone(), tensor);
                    }
                    None => {
                        let shape = archive.shape(&stored[&spec.name]).expect("names come from the archive");
                        expect_shape(spec, shape)?;
                        plain.push(spec);
                    }
                },
            }
        }
        let read = |spec: &&ParameterSpec| Ok((spec.name.clone(), archive.tensor(&stored[&spec.name])?));
        weights.by_name.extend(plain.par_iter().map(read).collect::<Result<Vec<_>>>()?);
        Ok(weights)
    }

    /// Writes `config.json` and `model.safetensors` into a folder, which is made if absent.
    ///
    /// The two files each appear whole or not at all; a folder that must change at once is for the caller to rename.
    pub fn save(&self, folder: &Path, family: &dyn Family) -> Result<()> {
        self.save_as(folder, family, Convention::Kiln)
    }

    /// The same with codes written by a convention, if there are any.
    pub fn save_as(&self, folder: &Path, family: &dyn Family, convention: Convention) -> Result<()> {
        let parameters = family.parameters();
        self.check(&parameters)?;
        let (raws, notes, settings) = quantized::parts(self, &parameters, convention)?;
        std::fs::create_dir_all(folder)
            .map_err(|source| Error::File { path: folder.to_path_buf(), source })?;
        let raws: Vec<_> = raws.iter().map(|(name, raw)| (name.as_str(), raw.clone())).collect();
        Archive::write_raw(&folder.join(WEIGHTS_FILE), &raws, &notes)?;
        let mut config = family.config();
        config.remove(QUANTIZATION_KEY);
        config.extend(settings.map(|settings| (QUANTIZATION_KEY.to_string(), settings)));
        write_whole(&folder.join(CONFIG_FILE), |out| {
            serde_json::to_writer_pretty(&mut *out, &config)?;
            out.write_all(b"\n")
        })
    }

    /// Checks that exactly these parameters are there, with their shapes.
    pub fn check(&self, parameters: &[ParameterSpec]) -> Result<()> {
        for spec in parameters {
            match self.stored.get(&spec.name) {
                Some(Stored::Codes(quantized)) => expect_shape(spec, &quantized.shape)?,
                Some(Stored::Halves(_, tensor)) => expect_shape(spec, &tensor.shape)?,
                None => expect_shape(spec, &self.get(&spec.name)?.shape)?,
            }
        }
        let known: HashSet<&String> = parameters.iter().map(|spec| &spec.name).collect();
        let all = self.by_name.keys().chain(self.stored.keys());
        let extra: Vec<String> = all.filter(|name| !known.contains(name)).cloned().collect();
        if extra.is_empty() {
            return Ok(());
        }
        Err(Error::Names { path: "weights in memory".into(), missing: vec![], extra })
    }

    /// The tensor of that name, which must be held as plain f32.
    pub fn get(&self, name: &str) -> Result<&Tensor> {
        if self.stored.contains_key(name) {
            return Err(Error::Quantised { name: name.to_string() });
        }
        self.by_name.get(name).ok_or_else(|| Error::NoWeight { name: name.to_string() })
    }

    /// Sets a tensor and gives back the one before.
    pub fn set(&mut self, name: impl Into<String>, tensor: Tensor) -> Option<Tensor> {
        let name = name.into();
        self.stored.remove(&name);
        self.by_name.insert(name, tensor)
    }

    /// Holds a weight in another way from now on.
    pub fn store(&mut self, name: impl Into<String>, stored: Stored) {
        let name = name.into();
        self.by_name.remove(&name);
        self.stored.insert(name, stored);
    }

    /// A checksum of all names and numbers, however they are held.
    pub fn checksum(&self) -> u32 {
        let mut hash = crc32fast::Hasher::new();
        let mut floats = |name: &str, numbers: &[f32]| {
            hash.update(name.as_bytes());
            hash.update(bytemuck::cast_slice(numbers));
        };
        self.by_name.iter().for_each(|(name, tensor)| floats(name, tensor.real()));
        for (name, stored) in &self.stored {
            match stored {
                Stored::Halves(_, tensor) => floats(name, tensor.real()),
                Stored::Codes(quantized) => floats(name, &quantized.coded.scales),
            }
        }
        for stored in self.stored.values() {
            if let Stored::Codes(quantized) = stored {
                hash.update(bytemuck::cast_slice(&quantized.coded.codes));
            }
        }
        hash.finalize()
    }

    /// Takes over all of another; what both have is the other's.
    pub fn extend(&mut self, other: Weights) {
        for (name, tensor) in other.by_name {
            self.set(name, tensor);
        }
        for (name, stored) in other.stored {
            self.store(name, stored);
        }
    }

    /// All but those that are meant.
    pub fn without(mut self, meant: impl Fn(&str) -> bool) -> Weights {
        self.by_name.retain(|name, _| !meant(name));
        self.stored.retain(|name, _| !meant(name));
        self
    }

    /// The weights that are not held as plain f32, in the order of their names.
    pub fn stored(&self) -> impl Iterator<Item = (&str, &Stored)> {
        self.stored.iter().map(|(name, stored)| (name.as_str(), stored))
    }

    /// A weight as numbers, however it is held.
    pub fn numbers(&self, name: &str) -> Result<Cow<'_, Tensor>> {
        match self.stored.get(name) {
            Some(Stored::Codes(quantized)) => Ok(Cow::Owned(quantized.tensor())),
            Some(Stored::Halves(_, tensor)) => Ok(Cow::Borrowed(tensor)),
            None => self.get(name).map(Cow::Borrowed),
        }
    }

    /// All weights as plain f32.
    pub fn widened(&self) -> Weights {
        let names = self.by_name.keys().chain(self.stored.keys());
        let wide =
            |name: &String| (name.clone(), self.numbers(name).expect("the name is there").into_owned());
        names.map(wide).collect()
    }

    /// Names and tensors of those held as plain f32, in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.by_name.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// Number of elements in all tensors.
    pub fn count_elements(&self) -> usize {
        let stored = self.stored.values().map(|stored| match stored {
            Stored::Codes(quantized) => quantized.shape.count(),
            Stored::Halves(_, tensor) => tensor.shape.count(),
        });
        self.by_name.values().map(|tensor| tensor.shape.count()).chain(stored).sum()
    }

    /// Copies for the host interpreter.
    pub fn feeds(&self) -> Feeds {
        self.iter().fold(Feeds::new(), |feeds, (name, tensor)| feeds.with(name, tensor.clone()))
    }
}

/// Parameters of the head that a folder lacks or has in another shape, and all others. With `anew` a head is drawn in any case, but
/// for a pooler, which the encoder was trained with.
fn drawn_and_kept(
    archive: &Archive,
    family: &dyn Family,
    anew: bool,
) -> (Vec<ParameterSpec>, Vec<ParameterSpec>) {
    let stored: HashMap<String, &str> =
        archive.names().filter_map(|name| Some((family.canonical_name(name)?, name))).collect();
    // Codes have tensors of other names and shapes; a head in codes is one that was there.
    let coded = |name: &str| {
        let within = format!("{}.", module_of(name));
        archive.names().any(|stored| stored.starts_with(&within))
    };
    let fits = |spec: &ParameterSpec| match stored.get(&spec.name) {
        Some(_) if anew && !spec.name.contains("pooler.") => false,
        Some(name) => archive.shape(name) == Some(&spec.shape),
        None => coded(&spec.name),
    };
    family.parameters().into_iter().partition(|spec| family.is_of_head(&spec.name) && !fits(spec))
}

/// Whether a stored parameter is of a head that the family knows and this model has not.
fn is_of_other_head(family: &dyn Family, own: &[ParameterSpec], name: &str) -> bool {
    family.is_of_head(name) && !own.iter().any(|spec| spec.name == name)
}

/// What would begin anew if the weights of a folder were read for this model, and what would be left out.
pub(super) fn renewed(path: &Path, family: &dyn Family, anew: bool) -> Result<Renewed> {
    let archive = Archive::open(path)?;
    let (drawn, _) = drawn_and_kept(&archive, family, anew);
    let modules = |names: &mut dyn Iterator<Item = &str>| names.map(module_of).collect::<BTreeSet<_>>();
    let own = family.parameters();
    let left = |name: &&str| match family.canonical_name(name) {
        Some(name) => is_of_other_head(family, &own, &name),
        None => !name.ends_with("position_ids"),
    };
    let mut dropped = modules(&mut archive.names().filter(left));
    // The second copy of a tied table is no head of its own.
    dropped.retain(|module| !module.ends_with("decoder") && !module.ends_with("projector"));
    let drawn = modules(&mut drawn.iter().map(|spec| spec.name.as_str())).into_iter().collect();
    Ok(Renewed { drawn, dropped: dropped.into_iter().collect() })
}

/// For each parameter the name under which the archive has it.
fn match_names(
    archive: &Archive,
    names: impl Iterator<Item = String>,
    family: &dyn Family,
    parameters: &[ParameterSpec],
    drawn: impl Fn(&str) -> bool,
) -> Result<HashMap<String, String>> {
    let named = names.filter_map(|name| Some((family.canonical_name(&name)?, name)));
    let stored: HashMap<String, String> = named.filter(|(name, _)| !drawn(name)).collect();
    let names: BTreeSet<String> = parameters.iter().map(|spec| spec.name.clone()).collect();
    let needed = |name: &&String| !stored.contains_key(*name) && family.absent(name).is_none();
    let missing: Vec<String> = names.iter().filter(needed).cloned().collect();
    let unknown = stored.iter().filter(|(name, _)| !names.contains(*name));
    let mut extra: Vec<String> = unknown.map(|(_, stored)| stored.to_string()).collect();
    extra.sort();
    if missing.is_empty() && extra.is_empty() {
        return Ok(stored);
    }
    Err(Error::Names { path: archive.path().to_path_buf(), missing, extra })
}

pub(super) fn expect_shape(spec: &ParameterSpec, got: &Shape) -> Result<()> {
    if *got == spec.shape {
        return Ok(());
    }
    Err(Error::Shape { name: spec.name.clone(), expected: spec.shape.clone(), got: got.clone() })
}
