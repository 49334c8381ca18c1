//! A Hugging Face `config.json`, read with errors that name the key.

use super::{Activation, Error, Result};
use crate::formats::{QUANTIZATION_KEY, compressed_tensors, own, quantized_by};
use serde_json::{Map, Value};
use std::path::Path;

/// Name of the file in a model's folder.
pub const CONFIG_FILE: &str = "config.json";

/// Most blocks a model may have.
pub(super) const MOST_LAYERS: usize = 4096;

/// Why a folder without a configuration has none, if it holds the heads of several tasks.
fn several_heads(config: &Path) -> Option<Error> {
    let folder = config.parent()?;
    match super::names_of_tasks(folder) {
        Ok(tasks) => Some(Error::SeveralHeads { path: folder.to_path_buf(), tasks: tasks? }),
        Err(error) => Some(error),
    }
}

/// The keys of a configuration. Each getter takes several names, as the spelling of some keys changed over time.
#[derive(Clone, Debug)]
pub struct Config {
    place: String,
    keys: Map<String, Value>,
}

impl Config {
    /// Reads a file, or `config.json` of a folder.
    pub fn read(path: &Path) -> Result<Self> {
        let path = if path.is_dir() { path.join(CONFIG_FILE) } else { path.to_path_buf() };
        let text = std::fs::read(&path).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => {
                if let Some(error) = several_heads(&path) {
                    return error;
                }
                let hint = "a model folder holds config.json and model.safetensors";
                Error::Absent { path: path.clone(), hint }
            }
            _ => Error::File { path: path.clone(), source },
        })?;
        let keys: Map<String, Value> = serde_json::from_slice(&text)
            .map_err(|e| Error::Damaged { path: path.clone(), reason: e.to_string() })?;
        Ok(Config { place: path.display().to_string(), keys })
    }

    /// Keys that are already at hand; errors call them `place`.
    pub fn new(place: impl Into<String>, keys: Map<String, Value>) -> Self {
        Config { place: place.into(), keys }
    }

    /// Where the keys come from, for errors.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// All keys.
    pub fn keys(&self) -> &Map<String, Value> {
        &self.keys
    }

    /// An error about a key as it stands here.
    pub fn refuse(&self, key: &str, expected: impl Into<String>) -> Error {
        let got = self.keys.get(key).map_or("absent".to_string(), Value::to_string);
        Error::Setting { place: self.place.clone(), key: key.to_string(), expected: expected.into(), got }
    }

    /// The first of the names that is there and not null.
    fn find(&self, names: &[&'static str]) -> Option<(&'static str, &Value)> {
        names.iter().find_map(|name| Some((*name, self.keys.get(*name).filter(|v| !v.is_null())?)))
    }

    /// A table inside; errors name it with the place.
    pub fn inner(&self, name: &'static str) -> Result<Option<Config>> {
        let Some((key, value)) = self.find(&[name]) else { return Ok(None) };
        let keys = value.as_object().ok_or_else(|| self.refuse(key, "a table"))?;
        Ok(Some(Config::new(format!("{}: {key}", self.place), keys.clone())))
    }

    /// A whole number above zero that must be there.
    pub fn needed_count(&self, name: &'static str) -> Result<usize> {
        self.need(name, "a whole number above zero")?;
        self.count(&[name], 1)
    }

    /// A number, zero or more, that must be there.
    pub fn needed_number(&self, name: &'static str) -> Result<f64> {
        self.need(name, "a number, zero or more")?;
        self.number(&[name], 0.0)
    }

    fn need(&self, name: &'static str, expected: &str) -> Result<()> {
        self.find(&[name]).map(|_| ()).ok_or_else(|| self.refuse(name, expected))
    }

    /// Refuses a setting that stands here as anything but absent, null or false, and codes of a convention that is not read here.
    pub fn refuse_set(&self, keys: &[&str]) -> Result<()> {
        let read = [own::METHOD, compressed_tensors::METHOD];
        if quantized_by(&self.keys).is_some_and(|method| !read.contains(&method)) {
            let expected = format!("absent, or of quant_method {}", read.join(" or "));
            return Err(self.refuse(QUANTIZATION_KEY, expected));
        }
        let is_set =
            |key: &&&str| !matches!(self.keys.get(**key), None | Some(Value::Null | Value::Bool(false)));
        match keys.iter().find(is_set) {
            Some(key) => Err(self.refuse(key, "absent or false: this is not supported")),
            None => Ok(()),
        }
    }

    /// An activation without a learned slope.
    pub fn activation(&self, name: &'static str, default: &'static str) -> Result<Activation> {
        let activation = Activation::named(self.word(&[name], default)?);
        let activation = activation.filter(|a| *a != Activation::Prelu);
        activation.ok_or_else(|| self.refuse(name, format!("one of {}", Activation::names())))
    }

    /// All keys but these: what a family keeps for saving.
    pub fn except(&self, known: &[&[&str]]) -> Map<String, Value> {
        let unknown = |key: &str| !known.iter().any(|keys| keys.contains(&key));
        self.keys.iter().filter(|(key, _)| unknown(key)).map(|(k, v)| (k.clone(), v.clone())).collect()
    }

    /// A whole number above zero.
    pub fn count(&self, names: &[&'static str], default: usize) -> Result<usize> {
        let Some((key, value)) = self.find(names) else { return Ok(default) };
        // The limit keeps products of two sizes within 64 bits.
        let count = value.as_u64().filter(|&n| n > 0 && n <= u64::from(u32::MAX));
        count.map(|n| n as usize).ok_or_else(|| self.refuse(key, "a whole number above zero"))
    }

    /// The number of a token.
    pub fn token(&self, name: &'static str, default: u32) -> Result<u32> {
        let Some((key, value)) = self.find(&[name]) else { return Ok(default) };
        let token = value.as_u64().and_then(|token| u32::try_from(token).ok());
        token.ok_or_else(|| self.refuse(key, "the number of a token"))
    }

    /// A number that is not negative.
    pub fn number(&self, names: &[&'static str], default: f64) -> Result<f64> {
        let Some((key, value)) = self.find(names) else { return Ok(default) };
        let number = value.as_f64().filter(|n| *n >= 0.0);
        number.ok_or_else(|| self.refuse(key, "a number, zero or more"))
    }

    /// A share of elements to drop.
    pub fn share(&self, names: &[&'static str], default: f64) -> Result<f64> {
        let Some((key, value)) = self.find(names) else { return Ok(default) };
        let share = value.as_f64().filter(|n| (0.0..1.0).contains(n));
        share.ok_or_else(|| self.refuse(key, "a number in 0.0..1.0"))
    }

    /// True or false.
    pub fn flag(&self, names: &[&'static str], default: bool) -> Result<bool> {
        let Some((key, value)) = self.find(names) else { return Ok(default) };
        value.as_bool().ok_or_else(|| self.refuse(key, "true or false"))
    }

    /// A word.
    pub fn word(&self, names: &[&'static str], default: &'static str) -> Result<&str> {
        let Some((key, value)) = self.find(names) else { return Ok(default) };
        value.as_str().ok_or_else(|| self.refuse(key, "a word"))
    }

    /// `model_type`, empty if absent.
    pub fn model_type(&self) -> Result<&str> {
        self.word(&["model_type"], "")
    }

    /// `architectures`, empty if absent.
    pub fn architectures(&self) -> Result<Vec<&str>> {
        let Some((key, value)) = self.find(&["architectures"]) else { return Ok(vec![]) };
        let words = value.as_array().and_then(|list| list.iter().map(Value::as_str).collect());
        words.ok_or_else(|| self.refuse(key, "a list of words"))
    }
}

/// Channels of a head: `head_dim` where it is given, and else the width shared among the heads.
pub(super) fn head_size(config: &Config, key: &'static str, width: usize, heads: usize) -> Result<usize> {
    match config.find(&["head_dim"]) {
        Some(_) => config.count(&["head_dim"], 1),
        None => shared_width(config.place(), key, width, heads),
    }
}

/// The width shared among heads, which must divide it; an error calls their number `key`.
pub(super) fn shared_width(place: &str, key: &str, width: usize, heads: usize) -> Result<usize> {
    if heads > 0 && width > 0 && width.is_multiple_of(heads) {
        return Ok(width / heads);
    }
    let expected = format!("a divisor of the width, {width}");
    Err(Error::Setting { place: place.into(), key: key.into(), expected, got: heads.to_string() })
}

/// An f32 as the shortest decimal that gives it back: 0.1, not 0.10000000149.
pub fn shortest(x: f32) -> f64 {
    x.to_string().parse().expect("a float prints as a float")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: Value) -> Config {
        Config::new("config.json", json.as_object().unwrap().clone())
    }

    #[test]
    fn the_first_name_that_is_there_and_not_null_counts() {
        let config = config(serde_json::json!({ "n_inner": null, "hidden": 12 }));
        assert_eq!(config.count(&["n_inner", "hidden"], 4).unwrap(), 12);
        assert_eq!(config.count(&["n_inner"], 4).unwrap(), 4);
    }

    #[test]
    fn a_wrong_value_is_named_with_its_key() {
        let config = config(serde_json::json!({
            "count": 0, "share": 1.0, "number": -1, "flag": 1, "word": [], "architectures": [1],
        }));
        let errors = [
            config.count(&["count"], 1).unwrap_err(),
            config.share(&["share"], 0.0).unwrap_err(),
            config.number(&["number"], 0.0).unwrap_err(),
            config.flag(&["flag"], true).unwrap_err(),
            config.word(&["word"], "").unwrap_err(),
            config.architectures().unwrap_err(),
        ];
        for (error, name) in errors.iter().zip(["count", "share", "number", "flag", "word", "architectures"])
        {
            assert!(matches!(error, Error::Setting { key, .. } if key == name), "{error}");
        }
    }

    #[test]
    fn a_file_that_is_no_object_is_damaged_and_an_absent_one_is_absent() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(Config::read(&folder.path().join("none")), Err(Error::Absent { .. })));
        assert!(matches!(Config::read(folder.path()), Err(Error::Absent { .. })));
        for text in ["", "[1]", "{\"a\": 1"] {
            std::fs::write(folder.path().join(CONFIG_FILE), text).unwrap();
            assert!(matches!(Config::read(folder.path()), Err(Error::Damaged { .. })), "{text}");
        }
    }
}
