//! One adapter out of its folder, matched with the layers of a model.

use super::config::{ADAPTER_CONFIG, ADAPTER_WEIGHTS, Said};
use super::layers::parent;
use super::{Adapter, Error, Kind, Layer, Layers, Linear, Result};
use crate::formats::Archive;
use crate::model::{Family, ParameterSpec};
use crate::passes::{Factor, module_of};
use crate::tensor::Tensor;
use std::collections::BTreeMap;
use std::path::Path;

/// What PEFT puts before the names of a model's modules.
pub(super) const PREFIX: &str = "base_model.model.";

/// An adapter's description and tensors, by the names of its parameters.
pub(super) type Read = (Adapter, Vec<(String, Tensor)>);

/// Reads the adapter of a folder under a name of its own.
pub(super) fn read(folder: &Path, name: &str, family: &dyn Family, layers: &Layers) -> Result<Read> {
    expect_files(folder)?;
    let said = Said::read(folder)?;
    let archive = Archive::open(&folder.join(ADAPTER_WEIGHTS))?;
    let mut adapter = Adapter {
        name: name.to_string(),
        kind: said.kind,
        rank: said.rank,
        alpha: said.alpha,
        rank_stabilized: said.rank_stabilized,
        dropout: said.dropout,
        layers: vec![],
        whole: vec![],
    };
    let mut matching = Matching::of(&archive, family, layers);
    for linear in &layers.linear {
        adapter.layers.extend(matching.layer(&adapter, linear, &said));
    }
    adapter.whole = matching.whole(family);
    matching.check(&adapter);
    let Matching { wanted, problems, .. } = matching;
    if !problems.is_empty() {
        return Err(Error::Foreign { folder: folder.to_path_buf(), problems });
    }
    layers.expect_own(&adapter.whole)?;
    let is_listed = |name: &str| said.whole.iter().any(|end| parent(name).ends_with(end.as_str()));
    if let Some(spec) = adapter.whole.iter().find(|spec| !is_listed(&spec.name)) {
        let problem = format!("it holds `{}`, which modules_to_save does not name", spec.name);
        let hint = "a whole module belongs to an adapter only where its config says so";
        return Err(Error::Folder { folder: folder.to_path_buf(), problem, hint });
    }
    let tensors = wanted.into_iter().map(|(spec, stored)| Ok((spec.name, archive.tensor(stored)?)));
    Ok((adapter, tensors.collect::<Result<_>>()?))
}

/// Refuses a folder that lacks one of an adapter's two files.
pub(super) fn expect_files(folder: &Path) -> Result<()> {
    let missing = [ADAPTER_CONFIG, ADAPTER_WEIGHTS].into_iter().find(|name| !folder.join(name).is_file());
    let Some(missing) = missing else { return Ok(()) };
    let problem = match folder.is_dir() {
        true => format!("it has no {missing}"),
        false => "there is no such folder".to_string(),
    };
    let hint = match folder.join("adapter_model.bin").is_file() {
        true => "pickled adapters are not read: save it anew with PEFT, which writes safetensors",
        false => "an adapter is a folder with adapter_config.json and adapter_model.safetensors",
    };
    Err(Error::Folder { folder: folder.to_path_buf(), problem, hint })
}

/// The tensors of a file as they find their places in a model.
struct Matching<'a> {
    archive: &'a Archive,
    /// By weight and factor, the names in the file.
    factors: BTreeMap<(String, Factor), &'a str>,
    /// By parameter.
    whole: BTreeMap<String, &'a str>,
    /// Parameters of the adapter with the names in the file.
    wanted: Vec<(ParameterSpec, &'a str)>,
    problems: Vec<String>,
}

/// What a tensor of a file is.
enum Part {
    Factor(String, Factor),
    Whole(String),
}

impl<'a> Matching<'a> {
    fn of(archive: &'a Archive, family: &dyn Family, layers: &Layers) -> Matching<'a> {
        let (factors, whole) = (BTreeMap::new(), BTreeMap::new());
        let mut matching = Matching { archive, factors, whole, wanted: vec![], problems: vec![] };
        for stored in archive.names() {
            match part_of(stored, family) {
                Some(Part::Factor(weight, factor)) if layers.find(&weight).is_some() => {
                    matching.factors.insert((weight, factor), stored);
                }
                Some(Part::Whole(parameter)) => {
                    matching.whole.insert(parameter, stored);
                }
                _ => matching.problems.push(format!("there is no layer for `{stored}`")),
            }
        }
        matching
    }

    /// What stands beside a layer, if anything does.
    fn layer(&mut self, adapter: &Adapter, linear: &Linear, said: &Said) -> Option<Layer> {
        let own = |factor| self.factors.get(&(linear.weight.clone(), factor)).copied();
        let [down, up, magnitude] = [Factor::Down, Factor::Up, Factor::Magnitude].map(own);
        if [down, up, magnitude].iter().all(Option::is_none) {
            return None;
        }
        let module = module_of(&linear.weight);
        let shape = down.and_then(|stored| self.archive.shape(stored));
        let rank = shape.and_then(|shape| shape.first()).copied().unwrap_or_default();
        if rank == 0 && down.is_some() {
            self.problems.push(format!("`{module}` has an adapter of rank 0"));
        }
        if adapter.kind == Kind::Lora && magnitude.is_some() {
            self.problems.push(format!("`{module}` has magnitudes, and use_dora is false"));
        }
        let layer = Layer { linear: linear.clone(), rank, alpha: said.alpha_of(module) };
        for &factor in adapter.factors() {
            let (stored, word) = match factor {
                Factor::Down => (down, "lora_A"),
                Factor::Up => (up, "lora_B"),
                Factor::Magnitude => (magnitude, "lora_magnitude_vector"),
            };
            match stored {
                Some(stored) => self.wanted.push((adapter.parameter(&layer, factor), stored)),
                None => self.problems.push(format!("`{module}` has no {word}")),
            }
        }
        Some(layer)
    }

    /// What was trained whole.
    fn whole(&mut self, family: &dyn Family) -> Vec<ParameterSpec> {
        let mut found = vec![];
        for spec in family.parameters() {
            let Some(stored) = self.whole.remove(&spec.name) else { continue };
            self.wanted.push((spec.clone(), stored));
            found.push(spec);
        }
        found
    }

    /// Adds what is still wrong.
    fn check(&mut self, adapter: &Adapter) {
        let left = self.whole.values().map(|stored| format!("there is no weight for `{stored}`"));
        self.problems.extend(left);
        for (spec, stored) in &self.wanted {
            let got = self.archive.shape(stored).expect("names come from the archive");
            if *got != spec.shape {
                self.problems.push(format!("`{stored}` has shape {got}, expected {}", spec.shape));
            }
        }
        if adapter.layers.is_empty() && self.problems.is_empty() {
            self.problems.push("it holds no adapter of any layer".into());
        }
    }
}

fn part_of(stored: &str, family: &dyn Family) -> Option<Part> {
    let rest = stored.strip_prefix(PREFIX)?;
    let ends = [
        (".lora_A.weight", Factor::Down),
        (".lora_B.weight", Factor::Up),
        (".lora_magnitude_vector", Factor::Magnitude),
        (".lora_magnitude_vector.weight", Factor::Magnitude),
    ];
    match ends.iter().find_map(|(end, factor)| Some((rest.strip_suffix(end)?, *factor))) {
        Some((module, factor)) => {
            Some(Part::Factor(family.canonical_name(&format!("{module}.weight"))?, factor))
        }
        None => Some(Part::Whole(family.canonical_name(&rest.replace(".modules_to_save.", "."))?)),
    }
}
