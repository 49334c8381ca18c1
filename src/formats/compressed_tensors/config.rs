//! `quantization_config`: which modules are quantised, and how.

use super::METHOD;
use crate::formats::sparse::SPARSITY_KEY;
use crate::formats::{Error, QUANTIZATION_KEY, Result};
use serde_json::{Map, Value, json};
use std::path::Path;

/// How codes lie in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// A byte each: "int-quantized".
    Bytes,
    /// Packed into words of 32 bits: "pack-quantized".
    Words,
}

/// How the inputs of a layer are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activations {
    /// As they are.
    Floats,
    /// As 8-bit codes with a scale for each token.
    PerToken,
    /// As 8-bit codes with one scale that stands in the file, `M.input_scale`.
    Measured,
}

/// Modules that are quantised alike.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// Names, `re:` patterns or classes (`Linear`) of modules.
    pub targets: Vec<String>,
    /// Bits of a code.
    pub bits: u32,
    /// Code zero is zero.
    pub symmetric: bool,
    /// Columns that share a scale; `None` for one a row.
    pub group: Option<usize>,
    /// What becomes of inputs.
    pub activations: Activations,
    /// How codes lie in the file.
    pub packing: Packing,
}

/// How a model is quantised.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Modules that are quantised alike.
    pub groups: Vec<Group>,
    /// Modules left out, though they are among the targets.
    pub ignore: Vec<String>,
}

impl Packing {
    fn name(self) -> &'static str {
        match self {
            Packing::Bytes => "int-quantized",
            Packing::Words => "pack-quantized",
        }
    }

    fn named(name: &str) -> Option<Packing> {
        match name {
            "int-quantized" | "naive-quantized" => Some(Packing::Bytes),
            "pack-quantized" => Some(Packing::Words),
            _ => None,
        }
    }
}

impl Config {
    /// The value of `quantization_config`.
    pub fn to_json(&self) -> Value {
        let first = self.groups.first().map_or(Packing::Words, |group| group.packing);
        let same = self.groups.iter().all(|group| group.packing == first);
        let groups = self.groups.iter().enumerate().map(|(i, group)| (format!("group_{i}"), group.to_json()));
        json!({
            "quant_method": METHOD,
            "format": if same { first.name() } else { "mixed-precision" },
            "quantization_status": "compressed",
            "config_groups": groups.collect::<Map<String, Value>>(),
            "ignore": self.ignore,
            "kv_cache_scheme": null,
            "global_compression_ratio": null,
        })
    }

    /// Reads a model's `config.json`; `path` is named in errors.
    pub fn read(config: &Map<String, Value>, path: &Path) -> Result<Config> {
        let place = format!("{} of {}", QUANTIZATION_KEY, path.display());
        let settings = config.get(QUANTIZATION_KEY).or_else(|| config.get("compression_config"));
        let settings = settings.unwrap_or(&Value::Null);
        let read = Reader { place: &place };
        if !settings["kv_cache_scheme"].is_null() {
            return Err(read.refuse("kv_cache_scheme", "absent: quantised caches are not read", settings));
        }
        let format = settings["format"].as_str();
        // A model may be sparse and not quantised at all.
        let (none, sparse) =
            (Map::new(), settings["config_groups"].is_null() && settings[SPARSITY_KEY].is_object());
        let groups = if sparse { Some(&none) } else { settings["config_groups"].as_object() };
        let groups = groups.ok_or_else(|| read.refuse("config_groups", "a table", settings))?;
        let groups = groups.values().map(|group| read.group(group, format)).collect::<Result<Vec<_>>>()?;
        let ignore = match &settings["ignore"] {
            Value::Null => vec![],
            list => read.words(list).ok_or_else(|| read.refuse("ignore", "a list of words", settings))?,
        };
        Ok(Config { groups, ignore })
    }
}

impl Group {
    fn to_json(&self) -> Value {
        let (strategy, size) = match self.group {
            None => ("channel", Value::Null),
            Some(size) => ("group", size.into()),
        };
        let weights = json!({
            "num_bits": self.bits, "type": "int", "symmetric": self.symmetric, "strategy": strategy,
            "group_size": size, "dynamic": false,
        });
        let (strategy, dynamic) = match self.activations {
            Activations::Floats => (None, false),
            Activations::PerToken => (Some("token"), true),
            Activations::Measured => (Some("tensor"), false),
        };
        let activations = strategy.map(|strategy| {
            json!({
                "num_bits": 8, "type": "int", "symmetric": true, "strategy": strategy, "group_size": null,
                "dynamic": dynamic,
            })
        });
        json!({
            "targets": self.targets, "weights": weights, "input_activations": activations,
            "output_activations": null, "format": self.packing.name(),
        })
    }
}

struct Reader<'a> {
    place: &'a str,
}

impl Reader<'_> {
    fn refuse(&self, key: &str, expected: &str, within: &Value) -> Error {
        let got = within.get(key).map_or_else(|| "absent".to_string(), Value::to_string);
        let (place, key) = (self.place.to_string(), key.to_string());
        Error::Key { place, key, expected: expected.to_string(), got }
    }

    fn words(&self, list: &Value) -> Option<Vec<String>> {
        list.as_array()?.iter().map(|word| word.as_str().map(String::from)).collect()
    }

    fn group(&self, group: &Value, format: Option<&str>) -> Result<Group> {
        let targets = self.words(&group["targets"]);
        let targets = targets.ok_or_else(|| self.refuse("targets", "a list of words", group))?;
        let format = group["format"].as_str().or(format).unwrap_or_default();
        let packing = Packing::named(format).ok_or_else(|| {
            self.refuse("format", "`int-quantized` or `pack-quantized`", &json!({ "format": format }))
        })?;
        let weights = &group["weights"];
        if weights.get("type").is_some_and(|kind| kind != "int") {
            return Err(self.refuse("type", "`int`", weights));
        }
        let bits = weights["num_bits"].as_u64().filter(|bits| (1..=8).contains(bits));
        let bits = bits.ok_or_else(|| self.refuse("num_bits", "1 to 8", weights))? as u32;
        let symmetric = weights.get("symmetric").is_none_or(|flag| flag != false);
        let size = weights["group_size"].as_u64().filter(|&size| size > 0).map(|size| size as usize);
        let group_size = match weights["strategy"].as_str() {
            Some("channel" | "tensor") => None,
            None | Some("group") if size.is_some() => size,
            None => None,
            _ => return Err(self.refuse("strategy", "`tensor`, `channel`, or `group` with a size", weights)),
        };
        if !group["output_activations"].is_null() {
            return Err(self.refuse("output_activations", "absent: quantised outputs are not read", group));
        }
        Ok(Group {
            targets,
            bits,
            symmetric,
            group: group_size,
            activations: self.activations(&group["input_activations"])?,
            packing,
        })
    }

    fn activations(&self, inputs: &Value) -> Result<Activations> {
        if inputs.is_null() {
            return Ok(Activations::Floats);
        }
        let bits = inputs["num_bits"].as_u64().unwrap_or(8);
        let symmetric = inputs.get("symmetric").is_none_or(|flag| flag != false);
        if bits != 8 || !symmetric || inputs.get("type").is_some_and(|kind| kind != "int") {
            let expected = "symmetric codes of 8 bits";
            return Err(self.refuse("input_activations", expected, &json!({ "input_activations": inputs })));
        }
        match (inputs["strategy"].as_str().unwrap_or("tensor"), inputs["dynamic"].as_bool().unwrap_or(false))
        {
            ("token", true) => Ok(Activations::PerToken),
            ("tensor", false) => Ok(Activations::Measured),
            _ => Err(self.refuse("strategy", "`token` with `dynamic`, or `tensor` without", inputs)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(packing: Packing, activations: Activations, group: Option<usize>) -> Group {
        Group { targets: vec!["Linear".into()], bits: 4, symmetric: false, group, activations, packing }
    }

    fn read(settings: Value) -> Result<Config> {
        let config = json!({ "quantization_config": settings });
        Config::read(config.as_object().unwrap(), Path::new("model"))
    }

    #[test]
    fn what_is_written_is_read_back() {
        let one = group(Packing::Words, Activations::Floats, Some(32));
        let two = group(Packing::Bytes, Activations::PerToken, None);
        let three = group(Packing::Bytes, Activations::Measured, None);
        for groups in [vec![one.clone()], vec![two.clone()], vec![one, two, three]] {
            let config = Config { groups, ignore: vec!["lm_head".into()] };
            assert_eq!(read(config.to_json()).unwrap(), config);
        }
    }

    #[test]
    fn a_config_as_llm_compressor_writes_it_is_read() {
        let config = read(json!({
            "config_groups": { "group_0": {
                "input_activations": { "actorder": null, "block_structure": null, "dynamic": true, "group_size": null,
                    "num_bits": 8, "observer": "memoryless", "observer_kwargs": {}, "strategy": "token",
                    "symmetric": true, "type": "int" },
                "output_activations": null, "targets": ["Linear"],
                "weights": { "actorder": null, "block_structure": null, "dynamic": false, "group_size": null,
                    "num_bits": 8, "observer": "minmax", "observer_kwargs": {}, "strategy": "channel",
                    "symmetric": true, "type": "int" } } },
            "format": "int-quantized", "global_compression_ratio": 1.46, "ignore": ["lm_head"],
            "kv_cache_scheme": null, "quant_method": "compressed-tensors", "quantization_status": "compressed",
        }))
        .unwrap();
        let expected =
            Group { bits: 8, symmetric: true, ..group(Packing::Bytes, Activations::PerToken, None) };
        assert_eq!(config, Config { groups: vec![expected], ignore: vec!["lm_head".into()] });
    }

    #[test]
    fn what_is_not_read_is_named() {
        let sound =
            Config { groups: vec![group(Packing::Words, Activations::PerToken, None)], ignore: vec![] };
        let changed = |path: &str, value: Value| {
            let mut json = sound.to_json();
            *json.pointer_mut(path).unwrap() = value;
            match read(json) {
                Err(Error::Key { key, .. }) => key,
                other => panic!("{path}: {other:?}"),
            }
        };
        assert_eq!(changed("/config_groups", json!([])), "config_groups");
        assert_eq!(changed("/config_groups/group_0/format", json!("nvfp4-pack-quantized")), "format");
        assert_eq!(changed("/config_groups/group_0/weights/type", json!("float")), "type");
        assert_eq!(changed("/config_groups/group_0/weights/num_bits", json!(16)), "num_bits");
        assert_eq!(changed("/config_groups/group_0/weights/strategy", json!("block")), "strategy");
        assert_eq!(
            changed("/config_groups/group_0/input_activations/num_bits", json!(4)),
            "input_activations"
        );
        assert_eq!(changed("/config_groups/group_0/input_activations/dynamic", json!(false)), "strategy");
        assert_eq!(changed("/kv_cache_scheme", json!({ "num_bits": 8 })), "kv_cache_scheme");
        assert_eq!(changed("/ignore", json!([1])), "ignore");
        assert!(read(Value::Null).is_err());
    }
}
