//! A model as a GGUF file.

use super::names::{Architecture, Turning};
use super::{Error, Result, keys, names, rows, vocabulary};
use crate::data::tokenizer::Tokenizer;
use crate::formats;
use crate::formats::gguf::{Metadata, Part, write};
use crate::model::{Config, Family, ParameterSpec, Stored, Task, Weights, turn};
use crate::tensor::quant::Coded;
use crate::tensor::quant::blocks::Block;
use crate::tensor::{DType, Shape, Tensor};
use rayon::prelude::*;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

/// What a file is to hold besides the weights as they are.
#[derive(Clone, Debug)]
pub struct Options {
    /// Name of the model.
    pub name: String,
    /// How matrices of plain floats are stored; vectors stay F32. Rows that are no whole blocks become the
    /// nearest that they are, as [`Block::fitting`] says.
    pub matrices: Block,
    /// Further keys and their texts, such as where the model comes from. Programs pass over keys they do not know.
    pub texts: Vec<(String, String)>,
}

impl Default for Options {
    fn default() -> Self {
        Options { name: "model".into(), matrices: Block::F32, texts: vec![] }
    }
}

/// What was written.
#[derive(Clone, Debug, Default)]
pub struct Exported {
    /// How each tensor is stored, by its name in the file.
    pub tensors: BTreeMap<String, Block>,
    /// What other programs may do differently.
    pub notes: Vec<String>,
}

/// Writes a model as a GGUF file, whole or not at all. Codes must fit a block of the format; they are stored without loss.
pub fn export_gguf(
    path: &Path,
    family: &dyn Family,
    weights: &Weights,
    tokenizer: Option<&Tokenizer>,
    options: &Options,
) -> Result<Exported> {
    let architecture = Architecture::of_family(family.name())?;
    let task = family.interface().task;
    if task != Task::NextToken {
        return Err(names::unknown(task.describe().into()));
    }
    let parameters = family.parameters();
    weights.check(&parameters)?;
    let described = keys::describe(family, &architecture)?;
    let mut exported = Exported { tensors: BTreeMap::new(), notes: described.notes };
    let writer = Writer { family, architecture, weights, options };
    let mut parts = parameters.par_iter().map(|spec| writer.part(spec)).collect::<Result<Vec<_>>>()?;
    parts.extend(writer.absent_biases(&parameters));
    if let Some(rates) = described.rates {
        parts.push((keys::RATES.to_string(), [rates.len()].into(), Block::F32, floats(&rates)));
    }
    exported.tensors = parts.iter().map(|(name, _, block, _)| (name.clone(), *block)).collect();

    let mut metadata = Metadata::new(path.display().to_string());
    metadata.set("general.architecture", architecture.name);
    metadata.set("general.type", "model");
    metadata.set("general.name", options.name.as_str());
    metadata.set("general.file_type", file_type(&parts));
    // Version 2 of the blocks is the only one in use since 2023.
    metadata.set("general.quantization_version", 2u32);
    described.keys.into_iter().for_each(|(key, value)| metadata.set(key, value));
    options.texts.iter().for_each(|(key, text)| metadata.set(key.as_str(), text.as_str()));
    match tokenizer {
        None => {
            exported.notes.push("the file has no tokenizer, and most programs do not load such files".into())
        }
        Some(tokenizer) => {
            let (keys, notes) = vocabulary::write(tokenizer, family.vocabulary(), &family.config())?;
            keys.into_iter().for_each(|(key, value)| metadata.set(key, value));
            exported.notes.extend(notes);
        }
    }
    let part = |(name, shape, block, bytes): Encoded| Part {
        name,
        shape,
        kind: block.into(),
        bytes: Cow::Owned(bytes),
    };
    write(path, &metadata, &parts.into_iter().map(part).collect::<Vec<_>>())?;
    Ok(exported)
}

/// Name in the file, shape, format, bytes.
type Encoded = (String, Shape, Block, Vec<u8>);

struct Writer<'a> {
    family: &'a dyn Family,
    architecture: Architecture,
    weights: &'a Weights,
    options: &'a Options,
}

impl Writer<'_> {
    fn part(&self, spec: &ParameterSpec) -> Result<Encoded> {
        let name =
            self.architecture.stored_name(&spec.name).expect("every parameter of these families has a name");
        let order = self.order(spec)?;
        let stored = self.weights.stored().find(|(stored, _)| *stored == spec.name).map(|(_, stored)| stored);
        let (shape, block, bytes) = match stored {
            Some(Stored::Codes(quantized)) => {
                let coded = match &order {
                    Some(order) => Cow::Owned(rows::reorder_coded(&quantized.coded, order)),
                    None => Cow::Borrowed(&quantized.coded),
                };
                let (block, bytes) = pack(&spec.name, &coded)?;
                ([coded.rows, coded.cols].into(), block, bytes)
            }
            Some(Stored::Halves(dtype, tensor)) => {
                let block = if *dtype == DType::BF16 { Block::BF16 } else { Block::F16 };
                self.floats(spec, tensor, order.as_deref(), block)?
            }
            None => {
                let tensor = self.weights.get(&spec.name)?;
                let block = if spec.shape.len() < 2 { Block::F32 } else { self.options.matrices };
                self.floats(spec, tensor, order.as_deref(), block)?
            }
        };
        Ok((name, shape, block, bytes))
    }

    fn floats(
        &self,
        spec: &ParameterSpec,
        tensor: &Tensor,
        order: Option<&[usize]>,
        block: Block,
    ) -> Result<(Shape, Block, Vec<u8>)> {
        let (mut shape, mut values) = (tensor.shape.clone(), Cow::Borrowed(tensor.real::<f32>()));
        if self.architecture.is_turned(&spec.name) {
            values = Cow::Owned(turn(&values, shape[0], shape[1]));
            shape = [shape[1], shape[0]].into();
        }
        if let Some(order) = order {
            values = Cow::Owned(rows::reorder(&values, order));
        }
        let block = block.fitting(shape.last());
        let bytes = block.encode(&values, shape.last());
        let bytes = bytes.map_err(|source| formats::Error::Blocks { name: spec.name.clone(), source })?;
        Ok((shape, block, bytes))
    }

    /// The order of rows in the file, where it is another one.
    fn order(&self, spec: &ParameterSpec) -> Result<Option<Vec<usize>>> {
        let Some(turning) = self.architecture.turning(&spec.name) else { return Ok(None) };
        let heads = heads(self.family, turning)?;
        Ok(Some(rows::there(turning, spec.shape[0], heads)))
    }

    /// Zeros for the biases that a GPT-2 may lack and other programs do not do without.
    fn absent_biases(&self, parameters: &[ParameterSpec]) -> Vec<Encoded> {
        let names: Vec<&str> = parameters.iter().map(|spec| spec.name.as_str()).collect();
        let missing = |spec: &ParameterSpec| {
            let module = spec.name.strip_suffix(".weight")?;
            let is_table = [".wte", ".wpe", "lm_head"].iter().any(|end| module.ends_with(end));
            let bias = format!("{module}.bias");
            if !self.architecture.turned || is_table || names.contains(&bias.as_str()) {
                return None;
            }
            let name = self.architecture.stored_name(&bias)?;
            Some((name, [spec.shape.last()].into(), Block::F32, floats(&vec![0.0; spec.shape.last()])))
        };
        parameters.iter().filter_map(missing).collect()
    }
}

/// Heads of queries or of keys.
pub(super) fn heads(family: &dyn Family, turning: Turning) -> Result<usize> {
    let config = Config::new(family.name(), family.config());
    let key = match turning {
        Turning::Queries | Turning::Braid => "num_attention_heads",
        Turning::Keys => "num_key_value_heads",
    };
    Ok(config.needed_count(key)?)
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// The smallest block that holds codes as they are.
fn pack(name: &str, coded: &Coded) -> Result<(Block, Vec<u8>)> {
    let mut candidates: Vec<Block> =
        Block::ALL.into_iter().filter(|block| block.can_encode() && !block.is_float()).collect();
    candidates.sort_by(|a, b| a.bits_per_weight().total_cmp(&b.bits_per_weight()));
    let mut reason = String::new();
    for block in candidates {
        match block.pack(coded) {
            Ok(bytes) => return Ok((block, bytes)),
            Err(error) => reason = error.to_string(),
        }
    }
    let reason = reason.lines().next().unwrap_or_default().to_string();
    Err(Error::Codes { name: name.to_string(), reason })
}

/// llama.cpp's number for the format that most elements have.
fn file_type(parts: &[Encoded]) -> u32 {
    let mut elements: BTreeMap<Block, usize> = BTreeMap::new();
    parts.iter().for_each(|(_, shape, block, _)| *elements.entry(*block).or_default() += shape.count());
    match elements.into_iter().max_by_key(|(_, count)| *count).map(|(block, _)| block) {
        Some(Block::F16) => 1,
        Some(Block::Q4_0) => 2,
        Some(Block::Q4_1) => 3,
        Some(Block::Q8_0) => 7,
        Some(Block::Q5_0) => 8,
        Some(Block::Q5_1) => 9,
        Some(Block::Q4K) => 14,
        Some(Block::Q6K) => 18,
        Some(Block::BF16) => 32,
        _ => 0,
    }
}
