//! Folders of adapters: those of PEFT, and those that a run leaves behind, which also say how the base was held.

use super::config::{ADAPTER_CONFIG, ADAPTER_WEIGHTS, Said};
use super::read::{PREFIX, expect_files, read};
use super::{Adapter, DEFAULT_NAME, Error, Hold, Layers, Result, check_together};
use crate::formats::{self, Archive};
use crate::model::{self, Family, ParameterSpec, Weights};
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub use super::config::config_of;

/// Name of the file in which a run says what its adapters stand beside.
pub const RECORD_FILE: &str = "adapters.json";

/// What the adapters of a run stand beside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Folder of the base model.
    pub base: PathBuf,
    /// How its weights were held.
    pub hold: Hold,
    /// Of its weights before they were held so, to know the very model again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checksum: Option<u32>,
    /// Names of the adapters; `default` lies in the folder itself, others in folders within.
    pub adapters: Vec<String>,
}

impl Record {
    /// What a folder says, or else what PEFT's config says of the single adapter in it.
    pub fn of(folder: &Path) -> Result<Record> {
        let path = folder.join(RECORD_FILE);
        if path.is_file() {
            let damaged =
                |e: serde_json::Error| formats::Error::Damaged { path: path.clone(), reason: e.to_string() };
            let text = std::fs::read(&path).map_err(|source| formats::Error::of_file(&path, source))?;
            let record: Record = serde_json::from_slice(&text).map_err(damaged)?;
            // A name is one of a folder inside; anything else would let a file name others elsewhere.
            let inside =
                |name: &String| Path::new(name).file_name().is_some_and(|only| only == name.as_str());
            return match record.adapters.iter().find(|name| !inside(name)) {
                None => Ok(record),
                Some(name) => {
                    let reason = format!("`{name}` is no adapter beside it");
                    Err(formats::Error::Damaged { path, reason }.into())
                }
            };
        }
        expect_files(folder)?;
        let Some(base) = Said::read(folder)?.base else {
            let problem = format!("{ADAPTER_CONFIG} does not name the base model");
            let hint = "name the base model and give this folder as --adapter";
            return Err(Error::Folder { folder: folder.to_path_buf(), problem, hint });
        };
        Ok(Record {
            base: base.into(),
            hold: Hold::F32,
            checksum: None,
            adapters: vec![DEFAULT_NAME.to_string()],
        })
    }

    /// The base, if it is there, or where a run that was moved has it.
    pub fn base_of(&self, folder: &Path) -> Result<PathBuf> {
        let moved = self.base.file_name().map(|name| folder.join("../..").join(name));
        let places = [Some(self.base.clone()), moved];
        match places.into_iter().flatten().find(|place| place.exists()) {
            Some(place) => Ok(place),
            None => Err(Error::NoBase { folder: folder.to_path_buf(), base: self.base.clone() }),
        }
    }

    /// Refuses a base that is not the one the adapters were trained beside.
    pub fn expect(&self, folder: &Path, base: &Weights) -> Result<()> {
        match self.checksum.is_none_or(|checksum| checksum == base.checksum()) {
            true => Ok(()),
            false => Err(Error::OtherBase { folder: folder.to_path_buf(), base: self.base.clone() }),
        }
    }
}

/// True for a folder with adapters and no whole model.
pub fn is_adapter(folder: &Path) -> bool {
    let has = |name: &str| folder.join(name).is_file();
    has(RECORD_FILE) || has(ADAPTER_CONFIG) && !has(model::CONFIG_FILE)
}

/// The folder of one adapter among others.
pub(super) fn place_of(folder: &Path, name: &str) -> PathBuf {
    if name == DEFAULT_NAME { folder.to_path_buf() } else { folder.join(name) }
}

/// Adapters with their numbers, by the names of their parameters.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// The adapters.
    pub adapters: Vec<Adapter>,
    /// The numbers of all.
    pub factors: Weights,
}

/// Reads the adapters of some folders for a model. Each keeps its name, or is given a number where that is taken.
pub fn load(folders: &[PathBuf], family: &dyn Family) -> Result<Loaded> {
    let layers = Layers::of(family)?;
    let (mut loaded, mut factors) = (vec![], BTreeMap::new());
    for folder in folders {
        let names = match folder.join(RECORD_FILE).is_file() {
            true => Record::of(folder)?.adapters,
            false => vec![DEFAULT_NAME.to_string()],
        };
        for name in names {
            let place = place_of(folder, &name);
            let taken = |name: &str| loaded.iter().any(|other: &Adapter| other.name == name);
            let name = if taken(&name) { format!("{name}-{}", loaded.len()) } else { name };
            let (adapter, tensors) = read(&place, &name, family, &layers)?;
            loaded.push(adapter);
            factors.extend(tensors);
        }
    }
    check_together(&loaded)?;
    Ok(Loaded { adapters: loaded, factors: factors.into_iter().collect() })
}

/// Reads the single adapter of a folder, under a name of its own.
pub fn load_one(folder: &Path, name: &str, family: &dyn Family) -> Result<(Adapter, Weights)> {
    let place = match folder.join(RECORD_FILE).is_file() {
        false => folder.to_path_buf(),
        true => match &Record::of(folder)?.adapters[..] {
            [only] => place_of(folder, only),
            several => {
                let problem = format!("it holds {} adapters: {}", several.len(), several.join(", "));
                let hint = "name the folder of one of them";
                return Err(Error::Folder { folder: folder.to_path_buf(), problem, hint });
            }
        },
    };
    let (adapter, tensors) = read(&place, name, family, &Layers::of(family)?)?;
    Ok((adapter, tensors.into_iter().collect()))
}

/// Name in an adapter's file of one of its parameters.
fn stored_name(adapter: &Adapter, parameter: &str) -> String {
    let inside = format!(".{}.weight", adapter.name);
    let short = match parameter.strip_suffix(&inside) {
        Some(module) if module.ends_with(".lora_magnitude_vector") => module.to_string(),
        Some(module) if module.ends_with(".lora_A") || module.ends_with(".lora_B") => {
            format!("{module}.weight")
        }
        _ => parameter.to_string(),
    };
    format!("{PREFIX}{short}")
}

/// The tensors of an adapter's file, by their names in it, out of the numbers of all parameters.
pub fn stored<'a>(
    adapter: &Adapter,
    numbers: impl Fn(&str) -> Option<&'a Tensor>,
) -> Result<Vec<(String, &'a Tensor)>> {
    let of = |spec: ParameterSpec| match numbers(&spec.name) {
        Some(tensor) => Ok((stored_name(adapter, &spec.name), tensor)),
        None => Err(model::Error::NoWeight { name: spec.name }.into()),
    };
    adapter.parameters().into_iter().map(of).collect()
}

/// Writes an adapter as PEFT has it into a folder, which is made if absent.
pub fn save(
    folder: &Path,
    adapter: &Adapter,
    factors: &Weights,
    family: &dyn Family,
    base: &Path,
) -> Result<()> {
    let failed = |path: &Path, source| formats::Error::of_file(path, source);
    std::fs::create_dir_all(folder).map_err(|source| failed(folder, source))?;
    let tensors = stored(adapter, |name| factors.get(name).ok())?;
    let named: Vec<(&str, &Tensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), *tensor)).collect();
    Archive::write(&folder.join(ADAPTER_WEIGHTS), &named)?;
    let (path, config) = (folder.join(ADAPTER_CONFIG), config_of(adapter, family, base)?);
    let written = formats::write_whole(&path, |out| Ok(serde_json::to_writer_pretty(out, &config)?));
    Ok(written.map_err(|source| failed(&path, source))?)
}

/// A file of one of several adapters, as a path within the folder of all.
pub fn file_in(adapter: &str, file: &str) -> String {
    if adapter == DEFAULT_NAME { file.to_string() } else { format!("{adapter}/{file}") }
}
