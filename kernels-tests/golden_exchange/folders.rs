//! Hugging Face folders through kiln and back: every byte of every tensor, and every key.

use kiln::exchange::{FolderOptions, Options, Source, export_gguf};
use kiln::formats::{Archive, Raw, write_shards};
use kiln::model::{Weights, open};
use kiln::tensor::DType;
use libtest_mimic::Failed;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::Path;

/// Models of every family, with and without a tokenizer.
pub const ALL: &[&str] = &[
    "models/bart",
    "models/bert-cls",
    "models/bert-mlm",
    "models/distilbert-cls",
    "models/distilbert-mlm",
    "models/gpt-neox-parallel",
    "models/gpt2",
    "models/gpt2-untied-gelu",
    "models/llama-gqa",
    "models/llama-rope-scaled",
    "models/mistral-swa",
    "models/qwen2",
    "models/qwen3",
    "models/roberta-mlm",
    "models/t5-gated-gelu",
    "models/t5-relu",
    "e2e/bert",
    "e2e/gpt2",
    "e2e/llama",
    "e2e/t5",
    "real/stories260K",
];

type Raws = BTreeMap<String, Raw<'static>>;

fn raws(folder: &Path) -> Result<Raws, Failed> {
    let archive = Archive::open(folder)?;
    let owned = |name: &str| {
        let raw = archive.raw(name)?;
        Ok((name.to_string(), Raw::owned(raw.element, raw.shape.clone(), raw.bytes.into_owned())))
    };
    archive.names().map(owned).collect()
}

fn keys(folder: &Path) -> Result<Map<String, Value>, Failed> {
    Ok(serde_json::from_slice(&std::fs::read(folder.join("config.json"))?)?)
}

fn same(given: &Raws, got: &Raws, what: &str) -> Result<(), Failed> {
    if given.keys().ne(got.keys()) {
        return Err(format!("{what}: tensors {:?}, expected {:?}", got.keys(), given.keys()).into());
    }
    match given.iter().find(|(name, raw)| got[*name] != **raw) {
        Some((name, _)) => Err(format!("{what}: `{name}` has changed").into()),
        None => Ok(()),
    }
}

/// The folder with floats of 16 bits, a key that nobody knows, and a tensor that every family but those of T5 leaves out.
fn stranger(folder: &Path, into: &Path, dtype: DType) -> Result<Raws, Failed> {
    let mut config = keys(folder)?;
    let known = config.get("model_type").and_then(Value::as_str).unwrap_or_default().to_string();
    config.insert("somebody's key".into(), serde_json::json!({ "deep": [1e-5, null, 12345678901234567u64] }));
    std::fs::write(into.join("config.json"), serde_json::to_vec_pretty(&config)?)?;
    let mut list: Vec<(String, Raw)> = vec![];
    for (name, raw) in raws(folder)? {
        let floats = raw.floats().ok_or("all are floats")?;
        list.push(match dtype {
            DType::F16 => (name, Raw::f16(raw.shape, &floats)),
            _ => (name, Raw::bf16(raw.shape, &floats)),
        });
    }
    let unread = match known.as_str() {
        "gpt2" => Some("transformer.h.0.attn.bias"),
        "llama" | "mistral" | "qwen2" | "qwen3" => Some("model.layers.0.self_attn.rotary_emb.inv_freq"),
        "gpt_neox" => Some("gpt_neox.layers.0.attention.masked_bias"),
        "bert" => Some("bert.embeddings.position_ids"),
        "roberta" => Some("roberta.embeddings.position_ids"),
        "distilbert" => Some("distilbert.embeddings.position_ids"),
        "bart" => Some("model.encoder.version"),
        _ => None,
    };
    list.extend(unread.map(|name| (name.to_string(), Raw::i64([1, 3], &[0, 1, -2]))));
    let shared: Vec<(&str, Raw)> = list.iter().map(|(name, raw)| (name.as_str(), raw.clone())).collect();
    write_shards(into, &shared, &BTreeMap::new(), u64::MAX)?;
    raws(into)
}

/// As one file, as shards, in 16 bits with what nobody knows, and from 16 bits to 32.
pub fn handed_back(folder: &Path) -> Result<(), Failed> {
    let (given, target) = (raws(folder)?, tempfile::tempdir()?);
    let place = |name: &str| -> Result<_, Failed> {
        let path = target.path().join(name);
        std::fs::create_dir(&path)?;
        Ok(path)
    };
    let source = Source::open(folder, &[])?;
    for (name, shard_bytes) in [("whole", u64::MAX), ("shards", 6000)] {
        let path = place(name)?;
        let written = source.write_folder(&path, &FolderOptions { dtype: None, shard_bytes })?;
        if (written.files.len() > 1) != (name == "shards") {
            return Err(format!("{name}: {:?}", written.files).into());
        }
        same(&given, &raws(&path)?, name)?;
        if std::fs::read(folder.join("config.json"))? != std::fs::read(path.join("config.json"))? {
            return Err(format!("{name}: config.json has changed").into());
        }
        let family = open(&path)?;
        if Weights::read(&path, family.as_ref())? != source.opened.weights {
            return Err(format!("{name}: it is read as another model").into());
        }
    }
    for dtype in [DType::F16, DType::BF16] {
        let (from, to, wide) = (
            place(&format!("{dtype:?}"))?,
            place(&format!("{dtype:?} again"))?,
            place(&format!("{dtype:?} wide"))?,
        );
        let given = stranger(folder, &from, dtype)?;
        let source = Source::open(&from, &[])?;
        source.write_folder(&to, &FolderOptions::default())?;
        same(&given, &raws(&to)?, "16 bits")?;
        if keys(&from)? != keys(&to)? {
            return Err("a key has changed".into());
        }
        let options = FolderOptions { dtype: Some(DType::F32), ..FolderOptions::default() };
        source.write_folder(&wide, &options)?;
        let (wide_keys, wide) = (keys(&wide)?, raws(&wide)?);
        for (name, raw) in &given {
            if wide[name].floats().or_else(|| raw.floats()) != raw.floats() {
                return Err(format!("`{name}` has other numbers in 32 bits").into());
            }
        }
        if wide_keys["dtype"] != "float32" || wide_keys["somebody's key"] != keys(&from)?["somebody's key"] {
            return Err(format!("{wide_keys:?}").into());
        }
    }
    Ok(())
}

/// Folder, GGUF file, folder: the same bits in f32, bf16 and f16.
pub fn through_gguf(folder: &Path) -> Result<(), Failed> {
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        let target = tempfile::tempdir()?;
        let (half, back) = (target.path().join("half"), target.path().join("back"));
        [&half, &back].into_iter().try_for_each(std::fs::create_dir)?;
        let options = FolderOptions { dtype: Some(dtype), ..FolderOptions::default() };
        Source::open(folder, &[])?.write_folder(&half, &options)?;
        let source = Source::open(&half, &[])?;
        let file = target.path().join("model.gguf");
        let family = source.opened.family.as_ref();
        export_gguf(&file, family, &source.as_stored()?, None, &Options::default())?;
        let imported = Source::open(&file, &[])?;
        imported.write_folder(&back, &options)?;
        let (mut given, got) = (raws(&half)?, raws(&back)?);
        // A folder may hold what is tied twice, and lack prefixes; what comes back has each once, by its full name.
        given =
            given.into_iter().filter_map(|(name, raw)| Some((family.canonical_name(&name)?, raw))).collect();
        let zeros = |raw: &Raw| raw.bytes.iter().all(|byte| *byte == 0);
        let got = got.into_iter().filter(|(name, raw)| given.contains_key(name) || !zeros(raw)).collect();
        same(&given, &got, &format!("{dtype:?}"))?;
        let names = [("float32", DType::F32), ("bfloat16", DType::BF16), ("float16", DType::F16)];
        let name = names.iter().find(|(_, known)| *known == dtype).map(|(name, _)| *name);
        if keys(&back)?["torch_dtype"].as_str() != name {
            return Err(format!("{:?}", keys(&back)?).into());
        }
    }
    Ok(())
}
