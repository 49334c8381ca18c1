//! A model as a folder that transformers loads: `config.json`, weights in one file or in shards, and what goes with them.

use super::{Result, Source, is_gguf};
use crate::data::tokenizer::Tokenizer;
use crate::formats::{Element, Error, Raw, write_shards, write_whole};
use crate::model::CONFIG_FILE;
use crate::tensor::DType;
use serde_json::{Map, Value as Json, json};
use std::collections::BTreeMap;
use std::path::Path;

/// Settings of generation that belong to a model.
const GENERATION_FILE: &str = "generation_config.json";
/// What a tokenizer is called and which of its tokens have a part to play.
const TOKENIZER_FILE: &str = "tokenizer_config.json";
/// Both spellings of the type of the weights in `config.json`.
const DTYPE_KEYS: [&str; 2] = ["dtype", "torch_dtype"];
/// Tokens with a part to play, by the names of their keys without `_token_id`.
const ROLES: [&str; 3] = ["bos", "eos", "pad"];

/// How a folder is to be written.
#[derive(Clone, Copy, Debug)]
pub struct FolderOptions {
    /// Type of every float; as it is stored if absent.
    pub dtype: Option<DType>,
    /// Most bytes of a file with weights.
    pub shard_bytes: u64,
}

impl Default for FolderOptions {
    fn default() -> Self {
        FolderOptions { dtype: None, shard_bytes: 5_000_000_000 }
    }
}

/// What was written.
#[derive(Clone, Debug, Default)]
pub struct WrittenFolder {
    /// Names of the files with weights.
    pub files: Vec<String>,
    /// Tensors of each type.
    pub types: BTreeMap<String, usize>,
    /// What is not as one might expect.
    pub notes: Vec<String>,
}

impl Source {
    /// Writes `config.json` and the weights into a folder that is there; of a GGUF file also what it says of generation and of its
    /// tokenizer. Other files that go with a model folder are for the caller to copy.
    pub fn write_folder(&self, folder: &Path, options: &FolderOptions) -> Result<WrittenFolder> {
        let mut written = WrittenFolder::default();
        let raws = self.raws(options.dtype, &mut written.notes)?;
        for (_, raw) in &raws {
            *written.types.entry(raw.element.to_string()).or_default() += 1;
        }
        let shared: Vec<(&str, Raw)> = raws.iter().map(|(name, raw)| (name.as_str(), raw.clone())).collect();
        written.files = write_shards(folder, &shared, &BTreeMap::new(), options.shard_bytes)?;
        self.write_config(folder, options, &raws)?;
        if is_gguf(self.base()) {
            self.write_roles(folder)?;
        }
        Ok(written)
    }

    fn write_config(&self, folder: &Path, options: &FolderOptions, raws: &[(String, Raw)]) -> Result<()> {
        let path = folder.join(CONFIG_FILE);
        let mut config = self.config().clone();
        match self.config_file().filter(|_| options.dtype.is_none()) {
            // Not a key has changed, so not a byte does.
            Some(file) => {
                let copied = std::fs::copy(&file, &path);
                return Ok(copied.map(|_| ()).map_err(|source| Error::of_file(&file, source))?);
            }
            None => name_type(&mut config, raws),
        }
        if self.coded() {
            config.remove(crate::formats::QUANTIZATION_KEY);
        }
        write_json(&path, &Json::Object(config))
    }

    /// Says what the tokenizer of a folder is where nothing there does: others would take it for that of the family's first model.
    pub fn complete_tokenizer(&self, folder: &Path) -> Result<()> {
        let file = folder.join(TOKENIZER_FILE);
        let Some(tokenizer) = self.opened.tokenizer.as_ref().filter(|_| !file.exists()) else {
            return Ok(());
        };
        let settings = settings_of(tokenizer, &self.ids_of_roles(), self.opened.family.context());
        write_json(&file, &Json::Object(settings))
    }

    fn ids_of_roles(&self) -> [(&'static str, Option<u64>); 3] {
        let config = self.config();
        ROLES.map(|role| (role, config.get(&format!("{role}_token_id")).and_then(Json::as_u64)))
    }

    fn write_roles(&self, folder: &Path) -> Result<()> {
        let ids = self.ids_of_roles();
        let mut generation = Map::from_iter([("_from_model_config".to_string(), json!(true))]);
        for (role, id) in ids {
            generation.extend(id.map(|id| (format!("{role}_token_id"), json!(id))));
        }
        write_json(&folder.join(GENERATION_FILE), &Json::Object(generation))?;
        let Some(tokenizer) = &self.opened.tokenizer else { return Ok(()) };
        let mut settings = settings_of(tokenizer, &ids, self.opened.family.context());
        settings.extend(self.chat_template()?.map(|text| ("chat_template".to_string(), json!(text))));
        write_json(&folder.join(TOKENIZER_FILE), &Json::Object(settings))
    }
}

fn settings_of(tokenizer: &Tokenizer, ids: &[(&str, Option<u64>)], context: usize) -> Map<String, Json> {
    let mut settings = Map::from_iter([
        ("tokenizer_class".to_string(), json!("PreTrainedTokenizerFast")),
        ("model_max_length".to_string(), json!(context)),
        ("clean_up_tokenization_spaces".to_string(), json!(false)),
    ]);
    for (role, id) in ids {
        let token = id.and_then(|id| tokenizer.token_name(u32::try_from(id).ok()?));
        settings.extend(token.map(|token| (format!("{role}_token"), json!(token))));
    }
    settings
}

/// Says in a configuration of which type most numbers are.
fn name_type(config: &mut Map<String, Json>, raws: &[(String, Raw)]) {
    let mut elements: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, raw) in raws {
        let name = match raw.element {
            Element::F16 => "float16",
            Element::BF16 => "bfloat16",
            Element::F32 => "float32",
            Element::F64 => "float64",
            _ => continue,
        };
        *elements.entry(name).or_default() += raw.shape.count();
    }
    let Some((name, _)) = elements.into_iter().max_by_key(|(_, count)| *count) else { return };
    let known: Vec<&str> = DTYPE_KEYS.into_iter().filter(|key| config.contains_key(*key)).collect();
    let keys = if known.is_empty() { vec![DTYPE_KEYS[1]] } else { known };
    keys.into_iter().for_each(|key| drop(config.insert(key.to_string(), json!(name))));
}

fn write_json(path: &Path, value: &Json) -> Result<()> {
    let written = write_whole(path, |out| {
        serde_json::to_writer_pretty(&mut *out, value)?;
        out.write_all(b"\n")
    });
    Ok(written.map_err(|source| Error::of_file(path, source))?)
}
