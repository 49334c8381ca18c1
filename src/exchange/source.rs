//! A model beside the tensors as they lie in its files.

use super::{Error, Opened, Result, adapted, any, is_gguf};
use crate::adapt::{Record, is_adapter};
use crate::formats::gguf::{Gguf, Value};
use crate::formats::{Archive, Element, QUANTIZATION_KEY, Raw, compressed_tensors, quantized_by, sparse};
use crate::model::{CONFIG_FILE, Config, Stored, Weights};
use crate::tensor::DType;
use serde_json::{Map, Value as Json};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// A model, and the files that it was read from.
pub struct Source {
    /// Family, weights and tokenizer, with adapters merged.
    pub opened: Opened,
    /// The folder or file of the weights that are not an adapter's.
    base: PathBuf,
    /// The files of a folder whose tensors are plain, or codes that others read as well.
    archive: Option<Archive>,
    /// Keys of its `config.json`.
    config: Map<String, Json>,
    /// Adapters were merged, so weights may differ from the files.
    merged: bool,
    /// Tensors are codes of the compressed-tensors package.
    coded: bool,
}

impl Source {
    /// Opens a folder, a GGUF file, an adapter's run, or a model with adapters.
    pub fn open(path: &Path, adapters: &[PathBuf]) -> Result<Source> {
        let parts = adapted::parts(path, adapters)?;
        let merged = parts.is_some();
        let base = if is_adapter(path) { Record::of(path)?.base_of(path)? } else { path.to_path_buf() };
        let opened = match parts {
            Some(parts) => parts.merged()?.0,
            None => any::open_plain(path)?,
        };
        if is_gguf(&base) {
            let config = opened.family.config();
            return Ok(Source { opened, base, archive: None, config, merged, coded: false });
        }
        let mut config = Config::read(&base)?.keys().clone();
        let by = quantized_by(&config).map(str::to_string);
        let settings = config.get(QUANTIZATION_KEY).filter(|settings| !settings.is_null()).cloned();
        let sparse = settings.as_ref().is_some_and(|s| s.get(sparse::SPARSITY_KEY).is_some());
        let coded = by.as_deref() == Some(compressed_tensors::METHOD) && !sparse && !merged;
        let readable = settings.is_none() || coded;
        let archive = if readable { Some(Archive::open(&base)?) } else { None };
        if !readable {
            config.remove(QUANTIZATION_KEY);
        }
        Ok(Source { opened, base, archive, config, merged, coded })
    }

    /// The model of one of several tasks that a folder has heads for.
    pub fn of_task(path: &Path, task: &str) -> Result<Source> {
        let opened = any::open_of_task(path, task)?;
        let (base, config) = (path.to_path_buf(), opened.family.config());
        Ok(Source { opened, base, archive: None, config, merged: false, coded: false })
    }

    /// The folder or file with the weights that are not an adapter's.
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// Keys of `config.json`, as they were there.
    pub(super) fn config(&self) -> &Map<String, Json> {
        &self.config
    }

    /// The file with these keys, if they are unchanged.
    pub(super) fn config_file(&self) -> Option<PathBuf> {
        self.archive.as_ref().map(|_| self.base.join(CONFIG_FILE))
    }

    /// The weights are codes that a type of floats has no room for.
    pub(super) fn coded(&self) -> bool {
        self.coded
    }

    /// The template by which a chat becomes a text, where the model's files have one.
    pub fn chat_template(&self) -> Result<Option<String>> {
        if is_gguf(&self.base) {
            let file = Gguf::open(&self.base)?;
            return Ok(match file.metadata().get(super::keys::TEMPLATE) {
                Some(Value::Text(text)) => Some(text.clone()),
                _ => None,
            });
        }
        let (own, shared) = (self.base.join("chat_template.jinja"), self.base.join("tokenizer_config.json"));
        let read = |path: &Path| {
            std::fs::read_to_string(path).map_err(|source| crate::formats::Error::of_file(path, source))
        };
        if own.is_file() {
            return Ok(Some(read(&own)?));
        }
        if !shared.is_file() {
            return Ok(None);
        }
        let keys: Json = serde_json::from_str(&read(&shared)?).map_err(|error| {
            crate::formats::Error::Damaged { path: shared.clone(), reason: error.to_string() }
        })?;
        Ok(keys["chat_template"].as_str().map(str::to_string))
    }

    /// Every tensor as it is to stand in a folder: in the bytes of its file where nothing was changed and no type is asked for.
    pub(super) fn raws(
        &self,
        dtype: Option<DType>,
        notes: &mut Vec<String>,
    ) -> Result<Vec<(String, Raw<'_>)>> {
        match &self.archive {
            Some(archive) if !(self.coded && dtype.is_some()) => self.archived(archive, dtype, notes),
            _ => self.decoded(dtype),
        }
    }

    fn archived<'a>(
        &'a self,
        archive: &'a Archive,
        dtype: Option<DType>,
        notes: &mut Vec<String>,
    ) -> Result<Vec<(String, Raw<'a>)>> {
        let family = self.opened.family.as_ref();
        let (mut raws, mut changed, mut carried) = (vec![], vec![], vec![]);
        for name in archive.names() {
            let raw = archive.raw(name)?;
            let parameter = family.canonical_name(name);
            let now = match (&parameter, self.coded) {
                (Some(parameter), false) if self.merged => {
                    let now = self.opened.weights.numbers(parameter)?;
                    let was = raw.floats().unwrap_or_default();
                    let same =
                        now.real::<f32>().iter().map(|x| x.to_bits()).eq(was.iter().map(|x| x.to_bits()));
                    (!same).then_some(now)
                }
                _ => None,
            };
            if parameter.is_none() && !self.coded {
                carried.push(name.to_string());
            }
            let kept = match now {
                Some(now) => {
                    changed.push(archive.raw(name)?);
                    stored(name, dtype.map_or(raw.element, element_of), &raw, now.real())?
                }
                None => converted(name, raw, dtype)?,
            };
            raws.push((name.to_string(), kept));
        }
        // A second copy of what an adapter changed would bring back the old numbers.
        let stale = |name: &String| changed.iter().any(|was| archive.raw(name).is_ok_and(|raw| raw == *was));
        let (old, carried): (Vec<String>, Vec<String>) = carried.into_iter().partition(stale);
        raws.retain(|(name, _)| !old.contains(name));
        if !old.is_empty() {
            notes.push(format!("left out, as copies of weights that adapters changed: {}", listed(&old)));
        }
        if !carried.is_empty() {
            notes.push(format!("carried as they are, though kiln does not read them: {}", listed(&carried)));
        }
        Ok(raws)
    }

    fn decoded(&self, dtype: Option<DType>) -> Result<Vec<(String, Raw<'_>)>> {
        let halves: HashMap<&str, DType> = halves(&self.opened.weights);
        let raw = |spec: crate::model::ParameterSpec| {
            let held = halves.get(spec.name.as_str()).copied().unwrap_or(DType::F32);
            let now = self.opened.weights.numbers(&spec.name)?;
            let like = Raw::owned(Element::F32, spec.shape.clone(), vec![]);
            let raw = stored(&spec.name, element_of(dtype.unwrap_or(held)), &like, now.real())?;
            Ok((spec.name, raw))
        };
        self.opened.family.parameters().into_iter().map(raw).collect()
    }

    /// The weights, matrices in the 16 bits in which the files have them: f32 numbers alone do not tell.
    pub fn as_stored(&self) -> Result<Weights> {
        let mut weights = self.opened.weights.clone();
        let Some(archive) = self.archive.as_ref().filter(|_| !self.coded) else { return Ok(weights) };
        for name in archive.names() {
            let half = match archive.element(name) {
                Some(Element::F16) => DType::F16,
                Some(Element::BF16) => DType::BF16,
                _ => continue,
            };
            let Some(parameter) = self.opened.family.canonical_name(name) else { continue };
            let tensor = weights.numbers(&parameter)?.into_owned();
            if tensor.shape.len() == 2 && tensor.real::<f32>().iter().all(|&x| half.round(x) == x) {
                weights.store(parameter, Stored::Halves(half, tensor));
            }
        }
        Ok(weights)
    }
}

fn halves(weights: &Weights) -> HashMap<&str, DType> {
    let half = |(name, stored)| match stored {
        &Stored::Halves(dtype, _) => Some((name, dtype)),
        Stored::Codes(_) => None,
    };
    weights.stored().filter_map(half).collect()
}

pub(super) fn element_of(dtype: DType) -> Element {
    match dtype {
        DType::F16 => Element::F16,
        DType::BF16 => Element::BF16,
        _ => Element::F32,
    }
}

/// Floats in another type, whole numbers and bytes as they are.
fn converted<'a>(name: &str, raw: Raw<'a>, dtype: Option<DType>) -> Result<Raw<'a>> {
    let Some(element) = dtype.map(element_of).filter(|element| *element != raw.element) else {
        return Ok(raw);
    };
    match raw.floats() {
        Some(floats) => stored(name, element, &raw, &floats),
        None => Ok(raw),
    }
}

fn stored(name: &str, element: Element, like: &Raw, values: &[f32]) -> Result<Raw<'static>> {
    let raw = Raw::of_floats(element, like.shape.clone(), values);
    let raw = raw.ok_or_else(|| crate::formats::Error::Element {
        name: name.to_string(),
        expected: "F32, F16, BF16 or F64",
        got: element.to_string(),
    })?;
    if element == Element::F32 || element == Element::F64 {
        return Ok(raw);
    }
    let rounded = raw.floats().expect("they were floats just now");
    match values.iter().zip(rounded).find(|(x, rounded)| x.is_finite() && !rounded.is_finite()) {
        Some((&got, _)) => Err(Error::Range { name: name.to_string(), dtype: element.to_string(), got }),
        None => Ok(raw),
    }
}

/// Some names of many.
fn listed(names: &[String]) -> String {
    const SHOWN: usize = 6;
    let shown = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    match names.len() {
        count if count > SHOWN => format!("{shown} and {} more", count - SHOWN),
        _ => shown,
    }
}
