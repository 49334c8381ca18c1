//! How a model's vectors are made, as the files beside it say.

use super::{Error, Result};
use serde_json::Value as Json;
use std::path::Path;

/// What becomes of the vectors of a text's tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean, padding left out.
    Mean,
    /// That of the first token.
    First,
    /// What the model's own pooler makes of the first.
    Pooler,
}

/// How vectors are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// From the tokens' vectors to one.
    pub pooling: Pooling,
    /// Vectors are brought to length one.
    pub normalize: bool,
    /// Tokens of a text that are read at most, those around it included.
    pub most_tokens: usize,
}

/// The mean, at length one, of all that the model has positions for.
impl Default for Settings {
    fn default() -> Self {
        Settings { pooling: Pooling::Mean, normalize: true, most_tokens: usize::MAX }
    }
}

const POOLING: &str = "1_Pooling/config.json";
const MODULES: &str = "modules.json";
const LENGTHS: &str = "sentence_bert_config.json";

impl Settings {
    /// What sentence-transformers wrote beside a model; the default where it wrote nothing.
    pub fn beside(folder: &Path) -> Result<Settings> {
        let mut settings = Settings::default();
        if let Some(modules) = read(folder, MODULES)? {
            let kinds: Option<Vec<&str>> = modules
                .as_array()
                .and_then(|list| list.iter().map(|module| module["type"].as_str()).collect());
            let kinds =
                kinds.ok_or_else(|| refuse(folder, MODULES, "type", "a word for each module", &modules))?;
            settings.normalize = kinds.iter().any(|kind| kind.ends_with(".Normalize"));
            if let Some(other) = kinds.iter().find(|kind| {
                ![".Transformer", ".Pooling", ".Normalize"].iter().any(|known| kind.ends_with(known))
            }) {
                let expected = "Transformer, Pooling or Normalize";
                return Err(refuse(folder, MODULES, "type", expected, &Json::from(*other)));
            }
        }
        if let Some(pooling) = read(folder, POOLING)? {
            settings.pooling = pooling_of(folder, &pooling)?;
        }
        if let Some(lengths) = read(folder, LENGTHS)? {
            match &lengths["max_seq_length"] {
                Json::Null => {}
                value => {
                    let most = value.as_u64().filter(|&most| most > 0);
                    let wrong =
                        || refuse(folder, LENGTHS, "max_seq_length", "a whole number above zero", value);
                    settings.most_tokens = most.ok_or_else(wrong)? as usize;
                }
            }
        }
        Ok(settings)
    }
}

fn pooling_of(folder: &Path, keys: &Json) -> Result<Pooling> {
    let chosen: Vec<&str> = keys
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(key, value)| key.starts_with("pooling_mode_") && value.as_bool() == Some(true))
        .map(|(key, _)| key.as_str())
        .collect();
    match chosen[..] {
        ["pooling_mode_mean_tokens"] => Ok(Pooling::Mean),
        ["pooling_mode_cls_token"] => Ok(Pooling::First),
        _ => {
            let expected = "pooling_mode_mean_tokens or pooling_mode_cls_token alone";
            Err(refuse(folder, POOLING, "pooling_mode", expected, &Json::from(chosen)))
        }
    }
}

fn read(folder: &Path, name: &str) -> Result<Option<Json>> {
    let path = folder.join(name);
    if !path.is_file() {
        return Ok(None);
    }
    let text = std::fs::read(&path)
        .map_err(|source| crate::data::Error::Unreadable { path: path.clone(), source })?;
    let json = serde_json::from_slice(&text);
    json.map(Some).map_err(|error| {
        let (key, expected) = ("the file".to_string(), "JSON".to_string());
        Error::Setting { path, key, expected, got: error.to_string() }
    })
}

fn refuse(folder: &Path, name: &str, key: &str, expected: &str, got: &Json) -> Error {
    let (path, key, expected) = (folder.join(name), key.to_string(), expected.to_string());
    Error::Setting { path, key, expected, got: got.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beside(files: &[(&str, &str)]) -> Result<Settings> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("1_Pooling")).unwrap();
        files.iter().for_each(|(name, text)| std::fs::write(folder.path().join(name), text).unwrap());
        Settings::beside(folder.path())
    }

    #[test]
    fn what_sentence_transformers_wrote_is_followed() {
        assert_eq!(beside(&[]).unwrap(), Settings::default());
        let files = [
            (POOLING, r#"{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}"#),
            (MODULES, r#"[{"type": "sentence_transformers.models.Transformer"}, {"type": "x.Pooling"}]"#),
            (LENGTHS, r#"{"max_seq_length": 128}"#),
        ];
        let expected = Settings { pooling: Pooling::First, normalize: false, most_tokens: 128 };
        assert_eq!(beside(&files).unwrap(), expected);
    }

    #[test]
    fn what_is_not_supported_is_refused_by_file_and_key() {
        for (name, text, key) in [
            (POOLING, r#"{"pooling_mode_max_tokens": true}"#, "pooling_mode"),
            (
                POOLING,
                r#"{"pooling_mode_max_tokens": true, "pooling_mode_mean_tokens": true}"#,
                "pooling_mode",
            ),
            (MODULES, r#"[{"type": "sentence_transformers.models.Dense"}]"#, "type"),
            (MODULES, r#"{"#, "the file"),
            (LENGTHS, r#"{"max_seq_length": 0}"#, "max_seq_length"),
        ] {
            let error = beside(&[(name, text)]).unwrap_err();
            assert!(matches!(&error, Error::Setting { key: named, .. } if named == key), "{error}");
        }
    }
}
