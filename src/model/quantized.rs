//! Weights that are not plain f32: what they are, and how they stand in a folder.
//!
//! Two conventions: kiln's own, which holds every scheme and every family, and that of the compressed-tensors package, which others
//! load. Which one a folder has stands in `quantization_config` of its `config.json`.

use super::weights::expect_shape;
use super::{Config, Error, ParameterSpec, Result, Weights};
use crate::formats::compressed_tensors::{self, Activations as Read, Group, Packing};
use crate::formats::{
    Archive, Found as Coding, Layer, QUANTIZATION_KEY, Raw, own, quantized_by, read_coded, sparse,
};
use crate::ops::coded::{Activations, FixedScale};
use crate::ops::quantize_rows::Rule;
use crate::tensor::quant::{Coded, DoubleScales, Origin};
use crate::tensor::{DType, Shape, Tensor};
use rayon::prelude::*;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// A weight that is not held as plain f32.
#[derive(Clone, Debug, PartialEq)]
pub enum Stored {
    /// Codes.
    Codes(Quantized),
    /// Numbers rounded to f16 or bf16, held as f32.
    Halves(DType, Tensor),
}

/// A weight as codes.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantized {
    /// Sizes of the weight's own axes.
    pub shape: Shape,
    /// The codes; their columns are what a product sums over.
    pub coded: Coded,
    /// The scales as they are held in 8 bits, where they are.
    pub double: Option<DoubleScales>,
    /// The codes are those of the weight's transpose: it is stored as [in, out].
    pub turned: bool,
    /// What meets them in a product.
    pub activations: Activations,
}

impl Quantized {
    /// The weight as numbers.
    pub fn tensor(&self) -> Tensor {
        let (rows, cols, values) = (self.coded.rows, self.coded.cols, self.coded.decode());
        Tensor::f32(self.shape.clone(), if self.turned { turn(&values, rows, cols) } else { values })
    }
}

/// The transpose of a matrix [rows, cols].
pub fn turn(matrix: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    let mut turned = vec![0.0; matrix.len()];
    turned.par_chunks_mut(rows.max(1)).enumerate().for_each(|(column, out)| {
        out.iter_mut().enumerate().for_each(|(row, x)| *x = matrix[row * cols + column]);
    });
    turned
}

/// How weights are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Convention {
    /// kiln's own.
    Kiln,
    /// kiln's own, and zeros are left out wherever that takes fewer bytes.
    Sparse,
    /// That of the compressed-tensors package.
    CompressedTensors,
}

/// Name of what meets codes in a product.
fn activations_name(activations: Activations) -> &'static str {
    match activations {
        Activations::Numbers => "numbers",
        Activations::Rows(Rule::Narrow) => "rows-127",
        Activations::Rows(Rule::Wide) => "rows-127.5",
        Activations::Fixed(Rule::Narrow, _) => "fixed-127",
        Activations::Fixed(Rule::Wide, _) => "fixed-127.5",
    }
}

/// Weights of an archive that are codes, and the names of the rest.
pub(super) struct Found {
    coding: Coding,
    /// What `config.json` says of each, in kiln's own convention.
    said: Map<String, Value>,
    /// What meets all of them, where another convention says.
    activations: Option<Activations>,
    place: String,
}

/// Looks for codes in an archive.
pub(super) fn find(archive: &Archive, config: Option<&Config>) -> Result<Found> {
    let none = Map::new();
    let keys = config.map_or(&none, Config::keys);
    let coding = read_coded(archive, keys)?;
    let said = keys.get(QUANTIZATION_KEY).and_then(|q| q.get("weights")).and_then(Value::as_object);
    let place = config.map_or(String::new(), |config| config.place().to_string());
    let mut found = Found { coding, said: said.cloned().unwrap_or_default(), activations: None, place };
    if quantized_by(keys) == Some(compressed_tensors::METHOD) {
        let groups = compressed_tensors::Config::read(keys, archive.path())?.groups;
        let all = |wanted: Read| groups.iter().all(|group| group.activations == wanted);
        // Of no groups all are alike.
        found.activations = if all(Read::Floats) {
            Some(Activations::Numbers)
        } else if all(Read::PerToken) {
            Some(Activations::Rows(Rule::Wide))
        } else if all(Read::Measured) {
            Some(Activations::Fixed(Rule::Wide, FixedScale::default()))
        } else {
            return Err(found.refuse("activations of all layers alike"));
        };
    }
    Ok(found)
}

impl Found {
    fn refuse(&self, expected: &str) -> Error {
        Error::Setting {
            place: self.place.clone(),
            key: QUANTIZATION_KEY.into(),
            expected: expected.into(),
            got: "something else".into(),
        }
    }

    /// Names of all weights as they have them as floats.
    pub fn names(&self) -> impl Iterator<Item = String> {
        self.coding.coded.keys().chain(self.coding.sparse.keys()).chain(&self.coding.plain).cloned()
    }

    /// The weight of that name, if it is stored without its zeros.
    pub fn take_sparse(&mut self, name: &str) -> Option<Tensor> {
        self.coding.sparse.remove(name)
    }

    /// The weight of that name, if it is codes.
    pub fn take(&mut self, name: &str, spec: &ParameterSpec) -> Result<Option<Quantized>> {
        let Some(layer) = self.coding.coded.remove(name) else { return Ok(None) };
        let (turned, activations) = match self.activations {
            Some(activations) => (false, activations),
            None => {
                let said = self.said.get(name);
                let turned = said.and_then(|said| said["turned"].as_bool());
                let word = said.and_then(|said| said["activations"].as_str());
                let fixed = FixedScale::default();
                let all = [
                    Activations::Numbers,
                    Activations::Rows(Rule::Narrow),
                    Activations::Rows(Rule::Wide),
                    Activations::Fixed(Rule::Narrow, fixed),
                    Activations::Fixed(Rule::Wide, fixed),
                ];
                let activations = all.into_iter().find(|a| word == Some(activations_name(*a)));
                let both = turned.zip(activations);
                both.ok_or_else(|| self.refuse(&format!("`weights.{name}` with `turned` and `activations`")))?
            }
        };
        let activations = match (activations, layer.input_scale) {
            (Activations::Fixed(rule, _), Some(scale)) => Activations::Fixed(rule, FixedScale::of(scale)),
            (Activations::Fixed(..), None) => {
                return Err(self.refuse(&format!("a scale `{name}.input_scale` that was measured")));
            }
            (_, Some(_)) => return Err(self.refuse("activations that are coded by the scale that is there")),
            (activations, None) => activations,
        };
        let [rows, cols] = [layer.coded.rows, layer.coded.cols];
        expect_shape(spec, &if turned { [cols, rows].into() } else { [rows, cols].into() })?;
        let by_row = layer.coded.group == cols && layer.coded.origin == Origin::Centred;
        if activations != Activations::Numbers && !by_row {
            return Err(
                self.refuse(&format!("codes of `{name}` with one scale a row, as its activations are coded"))
            );
        }
        let Layer { coded, double, .. } = layer;
        Ok(Some(Quantized { shape: spec.shape.clone(), coded, double, turned, activations }))
    }
}

/// Tensors, notes of the file, and `quantization_config` if there are codes.
type Parts = (Vec<(String, Raw<'static>)>, BTreeMap<String, String>, Option<Value>);

/// All weights as they are written.
pub(super) fn parts(
    weights: &Weights,
    parameters: &[ParameterSpec],
    convention: Convention,
) -> Result<Parts> {
    let stored: BTreeMap<&str, &Stored> = weights.stored().collect();
    let mut raws = vec![];
    let mut coded: Vec<(&str, &Quantized)> = vec![];
    for spec in parameters {
        let name = spec.name.as_str();
        let shape = spec.shape.clone();
        match stored.get(name) {
            Some(Stored::Codes(quantized)) => coded.push((name, quantized)),
            Some(Stored::Halves(DType::F16, tensor)) => {
                raws.push((name.to_string(), Raw::f16(shape, tensor.real())));
            }
            Some(Stored::Halves(_, tensor)) => raws.push((name.to_string(), Raw::bf16(shape, tensor.real()))),
            None => raws.push((name.to_string(), Raw::f32(shape, weights.get(name)?.real()))),
        }
    }
    // Readers of Hugging Face refuse a file that does not say which framework's layout it has.
    let mut notes = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    let (mut raws, sparsity) = match convention {
        Convention::Sparse => sparse::write_all(raws),
        Convention::Kiln | Convention::CompressedTensors => (raws, None),
    };
    if coded.is_empty() {
        // The convention that has this form for plain weights.
        let method = |sparsity| {
            json!({
                "quant_method": compressed_tensors::METHOD, "format": "dense",
                "quantization_status": "compressed", sparse::SPARSITY_KEY: sparsity,
            })
        };
        return Ok((raws, notes, sparsity.map(method)));
    }
    let mut settings = match convention {
        Convention::Kiln | Convention::Sparse => {
            let layers: Vec<(&str, Layer)> =
                coded.iter().map(|(name, quantized)| (*name, layer(quantized))).collect();
            let list: Vec<(&str, &Layer)> = layers.iter().map(|(name, layer)| (*name, layer)).collect();
            let zeros = if convention == Convention::Sparse { own::Zeros::LeftOut } else { own::Zeros::Held };
            let (parts, note) = own::write_all(&list, zeros)?;
            raws.extend(parts);
            notes.insert(own::NOTE.into(), note);
            let said = coded.iter().map(|(name, quantized)| {
                let activations = activations_name(quantized.activations);
                (name.to_string(), json!({ "turned": quantized.turned, "activations": activations }))
            });
            json!({ "quant_method": own::METHOD, "weights": said.collect::<Map<_, _>>() })
        }
        Convention::CompressedTensors => compressed(&coded, parameters, &mut raws)?,
    };
    if let Some(sparsity) = sparsity {
        settings[sparse::SPARSITY_KEY] = sparsity;
    }
    Ok((raws, notes, Some(settings)))
}

fn layer(quantized: &Quantized) -> Layer {
    let input_scale = match quantized.activations {
        Activations::Fixed(_, scale) => Some(scale.value()),
        Activations::Numbers | Activations::Rows(_) => None,
    };
    Layer { coded: quantized.coded.clone(), input_scale, double: quantized.double.clone() }
}

/// Adds codes as compressed-tensors has them; gives its settings.
fn compressed(
    coded: &[(&str, &Quantized)],
    parameters: &[ParameterSpec],
    raws: &mut Vec<(String, Raw<'static>)>,
) -> Result<Value> {
    let mut groups: Vec<Group> = vec![];
    for (name, quantized) in coded {
        let refuse = |reason: &str| Error::Convention { name: name.to_string(), reason: reason.to_string() };
        let module = name.strip_suffix(".weight").ok_or_else(|| refuse("it is no `weight` of a module"))?;
        if quantized.turned {
            return Err(refuse("it is stored as [in, out], and compressed-tensors knows linear layers only"));
        }
        let Coded { cols, group, .. } = quantized.coded;
        let bits = quantized.coded.bits();
        let packing = if bits == 8 { Packing::Bytes } else { Packing::Words };
        raws.extend(compressed_tensors::write(module, &layer(quantized), packing)?);
        let one = Group {
            targets: vec![],
            bits,
            symmetric: quantized.coded.origin == Origin::Centred,
            group: (group < cols).then_some(group),
            activations: match quantized.activations {
                Activations::Numbers => Read::Floats,
                Activations::Rows(_) => Read::PerToken,
                Activations::Fixed(..) => Read::Measured,
            },
            packing,
        };
        let alike = groups.iter_mut().find(|other| Group { targets: vec![], ..(*other).clone() } == one);
        match alike {
            Some(group) => group.targets.push(module.to_string()),
            None => groups.push(Group { targets: vec![module.to_string()], ..one }),
        }
    }
    let is_coded = |name: &str| coded.iter().any(|(coded, _)| *coded == name);
    let others = parameters.iter().filter(|spec| spec.shape.len() == 2 && !is_coded(&spec.name));
    let ignore = others.filter_map(|spec| Some(spec.name.strip_suffix(".weight")?.to_string())).collect();
    Ok(compressed_tensors::Config { groups, ignore }.to_json())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{CONFIG_FILE, Family, build, initial};
    use crate::tensor::quant::{Scheme, Share, encode, encode_double};

    fn model(family: &str) -> (Box<dyn Family>, Weights) {
        let design = crate::model::Design {
            layers: 1,
            heads: 2,
            kv_heads: None,
            head_size: None,
            width: 16,
            hidden: Some(24),
            context: 8,
            vocabulary: 11,
            activation: crate::model::Activation::named("gelu").unwrap(),
            norm_epsilon: 1e-5,
            dropout: 0.0,
            bias: family == "gpt2",
            tie: false,
            rope_theta: None,
            window: None,
        };
        let family = build(family, &design).unwrap();
        let weights = initial(&family.parameters(), 1);
        (family, weights)
    }

    fn code(weights: &mut Weights, name: &str, scheme: &Scheme, turned: bool, activations: Activations) {
        let tensor = weights.get(name).unwrap().clone();
        let [a, b] = [tensor.shape[0], tensor.shape[1]];
        let [rows, cols] = if turned { [b, a] } else { [a, b] };
        let matrix = if turned { turn(tensor.real(), cols, rows) } else { tensor.real().to_vec() };
        let (coded, double) = match scheme.double {
            true => encode_double(&matrix, rows, cols, scheme)
                .map(|(coded, double)| (coded, Some(double)))
                .unwrap(),
            false => (encode(&matrix, rows, cols, scheme).unwrap(), None),
        };
        weights.store(
            name,
            Stored::Codes(Quantized { shape: tensor.shape, coded, double, turned, activations }),
        );
    }

    #[test]
    fn quantised_weights_are_read_back_as_they_were() {
        let (family, mut weights) = model("gpt2");
        code(
            &mut weights,
            "transformer.h.0.attn.c_attn.weight",
            &Scheme::symmetric(8, Share::Row),
            true,
            Activations::Rows(Rule::Narrow),
        );
        code(
            &mut weights,
            "transformer.h.0.attn.c_proj.weight",
            &Scheme::normal_float(8, true),
            true,
            Activations::Numbers,
        );
        let fixed = Activations::Fixed(Rule::Wide, FixedScale::of(0.125));
        code(&mut weights, "transformer.h.0.mlp.c_proj.weight", &Scheme::wide(8, Share::Row), true, fixed);
        code(
            &mut weights,
            "transformer.h.0.mlp.c_fc.weight",
            &Scheme::asymmetric(3, Share::Group(8)),
            true,
            Activations::Numbers,
        );
        let half = weights.get("transformer.wte.weight").unwrap().to_precision(DType::F16);
        let folder = tempfile::tempdir().unwrap();
        weights.save(folder.path(), family.as_ref()).unwrap();
        assert_eq!(Weights::read(folder.path(), family.as_ref()).unwrap(), weights);
        // Halves come back as the numbers they are.
        let mut halved = weights.clone();
        halved.store("transformer.wte.weight", Stored::Halves(DType::F16, half.clone()));
        halved.save(folder.path(), family.as_ref()).unwrap();
        assert_eq!(
            Weights::read(folder.path(), family.as_ref()).unwrap().get("transformer.wte.weight").unwrap(),
            &half
        );
        assert!(matches!(
            weights.save_as(folder.path(), family.as_ref(), Convention::CompressedTensors),
            Err(Error::Convention { .. })
        ));
    }

    #[test]
    fn the_convention_of_compressed_tensors_comes_back_too() {
        let (family, mut weights) = model("llama");
        let names: Vec<String> = weights.iter().map(|(name, _)| name.to_string()).collect();
        for name in names.iter().filter(|name| name.contains("proj")) {
            let scheme = Scheme::wide(4, Share::Group(8));
            code(&mut weights, name, &scheme, false, Activations::Numbers);
        }
        let folder = tempfile::tempdir().unwrap();
        weights.save_as(folder.path(), family.as_ref(), Convention::CompressedTensors).unwrap();
        let read = Weights::read(folder.path(), family.as_ref()).unwrap();
        assert_eq!(read.widened(), weights.widened());
        assert_eq!(read.stored().count(), 7);
    }

    #[test]
    fn what_config_does_not_say_of_codes_is_an_error() {
        let (family, mut weights) = model("gpt2");
        code(
            &mut weights,
            "transformer.h.0.attn.c_attn.weight",
            &Scheme::symmetric(8, Share::Row),
            true,
            Activations::Numbers,
        );
        let folder = tempfile::tempdir().unwrap();
        weights.save(folder.path(), family.as_ref()).unwrap();
        let path = folder.path().join(CONFIG_FILE);
        let text = std::fs::read_to_string(&path).unwrap();
        for (from, to) in
            [("turned", "turn"), ("\"numbers\"", "\"else\""), ("true", "false"), ("kiln", "gptq")]
        {
            assert!(text.contains(from));
            std::fs::write(&path, text.replace(from, to)).unwrap();
            assert!(Weights::read(folder.path(), family.as_ref()).is_err(), "{from}");
        }
    }
}
