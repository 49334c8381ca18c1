//! A GGUF file as a model.

use super::names::Architecture;
use super::{Result, export, keys, rows, vocabulary};
use crate::data::tokenizer::Tokenizer;
use crate::formats;
use crate::formats::gguf::{Gguf, Stored as Entry};
use crate::model::{self, Config, Family, ParameterSpec, Quantized, Stored, Weights, from_config, turn};
use crate::ops::coded::Activations;
use crate::tensor::quant::blocks::Block;
use crate::tensor::{DType, Shape, Tensor};
use rayon::prelude::*;
use std::collections::HashSet;
use std::path::Path;

/// A model out of a file.
#[derive(Debug)]
pub struct Imported {
    /// The family, configured.
    pub family: Box<dyn Family>,
    /// Its weights: blocks as codes, 16-bit floats as such, all else as f32.
    pub weights: Weights,
    /// Its tokenizer, where the file has one that is read here.
    pub tokenizer: Option<Tokenizer>,
    /// What was left out, and why.
    pub notes: Vec<String>,
}

/// Reads a GGUF file of any maker. Every tensor of the model must be there with its shape, and none besides.
pub fn import_gguf(path: &Path) -> Result<Imported> {
    let file = Gguf::open(path)?;
    let architecture = Architecture::named(file.metadata().text("general.architecture")?)?;
    let config = keys::read(&file, &architecture)?;
    let family = from_config(&Config::new(path.display().to_string(), config))?;
    let parameters = family.parameters();
    let reader = Reader { file: &file, architecture, family: family.as_ref() };
    reader.check_names(&parameters)?;
    let read = parameters.par_iter().map(|spec| Ok((spec.name.clone(), reader.read(spec)?)));
    let mut weights = Weights::default();
    for (name, weight) in read.collect::<Result<Vec<_>>>()? {
        match weight {
            Weight::Plain(tensor) => drop(weights.set(name, tensor)),
            Weight::Stored(stored) => weights.store(name, stored),
        }
    }
    let (tokenizer, notes) = vocabulary::read(&file)?;
    Ok(Imported { family, weights, tokenizer, notes })
}

enum Weight {
    Plain(Tensor),
    Stored(Stored),
}

struct Reader<'a> {
    file: &'a Gguf,
    architecture: Architecture,
    family: &'a dyn Family,
}

impl Reader<'_> {
    fn name(&self, spec: &ParameterSpec) -> String {
        self.architecture.stored_name(&spec.name).expect("every parameter of these families has a name")
    }

    fn check_names(&self, parameters: &[ParameterSpec]) -> Result<()> {
        let wanted: HashSet<String> = parameters.iter().map(|spec| self.name(spec)).collect();
        let names = self.file.tensors().iter().map(|tensor| tensor.name.as_str());
        // A head that repeats the embedding is left out, and the rates of positions are among the settings.
        let spare = |name: &&str| !wanted.contains(*name) && !["output.weight", keys::RATES].contains(name);
        let extra: Vec<String> = names.filter(spare).map(String::from).collect();
        let mut missing: Vec<String> =
            wanted.into_iter().filter(|name| self.file.find(name).is_none()).collect();
        missing.sort();
        if missing.is_empty() && extra.is_empty() {
            return Ok(());
        }
        Err(model::Error::Names { path: self.file.path().to_path_buf(), missing, extra }.into())
    }

    fn read(&self, spec: &ParameterSpec) -> Result<Weight> {
        let name = self.name(spec);
        let entry = self.file.find(&name).expect("names were checked");
        let turned = self.architecture.is_turned(&spec.name);
        let expected: Shape = match turned {
            true => spec.shape.iter().rev().copied().collect::<Vec<_>>().as_slice().into(),
            false => spec.shape.clone(),
        };
        if entry.shape != expected {
            return Err(model::Error::Shape { name, expected, got: entry.shape.clone() }.into());
        }
        let order = match self.architecture.turning(&spec.name) {
            None => None,
            Some(turning) => Some(rows::here(turning, spec.shape[0], export::heads(self.family, turning)?)),
        };
        let block = self.file.block(entry)?;
        if !block.is_float() && spec.shape.len() == 2 {
            return self.codes(spec, entry, block, order.as_deref());
        }
        let mut values = self.file.tensor(entry)?.real::<f32>().to_vec();
        if let Some(at) = values.iter().position(|x| !x.is_finite()) {
            let source =
                crate::tensor::quant::blocks::Error::NotFinite { block: block.name(), at, got: values[at] };
            return Err(formats::Error::Blocks { name, source }.into());
        }
        if let Some(order) = order {
            values = rows::reorder(&values, &order);
        }
        if turned {
            values = turn(&values, expected[0], expected[1]);
        }
        let tensor = Tensor::f32(spec.shape.clone(), values);
        Ok(match block {
            Block::F16 if spec.shape.len() == 2 => Weight::Stored(Stored::Halves(DType::F16, tensor)),
            Block::BF16 if spec.shape.len() == 2 => Weight::Stored(Stored::Halves(DType::BF16, tensor)),
            _ => Weight::Plain(tensor),
        })
    }

    fn codes(
        &self,
        spec: &ParameterSpec,
        entry: &Entry,
        block: Block,
        order: Option<&[usize]>,
    ) -> Result<Weight> {
        let coded = block.unpack(self.file.bytes(entry), entry.shape.last());
        let mut coded =
            coded.map_err(|source| formats::Error::Blocks { name: entry.name.clone(), source })?;
        if let Some(order) = order {
            coded = rows::reorder_coded(&coded, order);
        }
        let turned = self.architecture.is_turned(&spec.name);
        let activations = Activations::Numbers;
        Ok(Weight::Stored(Stored::Codes(Quantized {
            shape: spec.shape.clone(),
            coded,
            double: None,
            turned,
            activations,
        })))
    }
}
