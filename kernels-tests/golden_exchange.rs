//! Models of every family through GGUF and back: weights, settings and tokenizers.
//!
//! The models stand in `dev/models` and `dev/e2e` of the golden folder, tokenizers in `dev/tokenizers`.

#[path = "golden_exchange/folders.rs"]
mod folders;
mod golden;

use kiln::data::tokenizer::Tokenizer;
use kiln::exchange::{Error, Options, export_gguf, import_gguf};
use kiln::formats::gguf::{Gguf, Metadata, Part, Stored, write};
use kiln::model::{Design, Family, Weights, build, initial, open};
use kiln::tensor::quant::blocks::Block;
use libtest_mimic::{Arguments, Failed, Trial};
use std::borrow::Cow;
use std::path::Path;

const MODELS: &[&str] = &[
    "models/gpt2",
    "models/gpt2-untied-gelu",
    "models/llama-gqa",
    "models/llama-rope-scaled",
    "models/mistral-swa",
    "models/qwen2",
    "models/qwen3",
    "models/gpt-neox-parallel",
    "e2e/gpt2",
];
const TOKENIZERS: &[&str] = &["bytebpe-gpt2", "bytebpe-llama3"];

fn main() {
    let arguments = Arguments::from_args();
    let folder = golden::folder().join("dev");
    let absent = golden::is_absent(&folder);
    let mut trials = vec![];
    let mut add = |name: String, check: Box<dyn FnOnce() -> Result<(), Failed> + Send>| {
        trials.push(Trial::test(name, check).with_ignored_flag(absent));
    };
    for &model in MODELS {
        let place = folder.join(model);
        let name = model.replace('/', "_");
        let (plain, blocks) = (place.clone(), place.clone());
        add(format!("{name}_comes_back"), Box::new(move || comes_back(&plain)));
        add(format!("{name}_in_blocks_comes_back_as_codes"), Box::new(move || in_blocks(&blocks)));
        add(format!("{name}_with_damaged_keys_is_refused_or_read"), Box::new(move || damaged(&place)));
    }
    for &name in TOKENIZERS {
        let place = folder.join("tokenizers").join(name);
        add(format!("tokenizer_{name}_comes_back"), Box::new(move || tokenizer(&place)));
    }
    for &model in folders::ALL {
        let place = folder.join(model);
        add(
            format!("{}_is_handed_back", model.replace('/', "_")),
            Box::new(move || folders::handed_back(&place)),
        );
    }
    for &model in MODELS {
        let place = folder.join(model);
        let name = model.replace('/', "_");
        add(format!("{name}_is_a_folder_again"), Box::new(move || folders::through_gguf(&place)));
    }
    let place = folder.clone();
    let real = folder.join("real/stories260K");
    add("tokenizer_of_pieces_comes_back".into(), Box::new(move || pieces(&real)));
    add("characters_come_back".into(), Box::new(characters));
    add("what_others_compute_differently_is_refused".into(), Box::new(move || refused(&place)));
    libtest_mimic::run(&arguments, trials).exit();
}

fn model(folder: &Path) -> Result<(Box<dyn Family>, Weights), Failed> {
    let family = open(folder)?;
    let weights = Weights::read(folder, family.as_ref())?;
    Ok((family, weights))
}

fn comes_back(folder: &Path) -> Result<(), Failed> {
    let (family, weights) = model(folder)?;
    let target = tempfile::tempdir()?;
    let path = target.path().join("model.gguf");
    export_gguf(&path, family.as_ref(), &weights, None, &Options::default())?;
    let back = import_gguf(&path)?;
    if back.weights != weights {
        return Err("the weights are not the same".into());
    }
    let (file, tables) = (Gguf::open(&path)?, golden::tensors(&folder.join("model.safetensors"), "")?);
    let embedding = file.tensor(file.find("token_embd.weight").ok_or("no embedding")?)?;
    let is_embedding = |name: &str| {
        ["wte.weight", "embed_tokens.weight", "embed_in.weight"].iter().any(|end| name.ends_with(end))
    };
    if tables.iter().find(|(name, _)| is_embedding(name)).map(|(_, table)| table) != Some(&embedding) {
        return Err("the embedding in the file is another one".into());
    }
    // A file says nothing of dropout and initial weights; all that a forward pass reads must be the same.
    let (mut given, mut got) = (family.config(), back.family.config());
    for key in ["attention_dropout", "embd_pdrop", "attn_pdrop", "resid_pdrop", "initializer_range"] {
        [&mut given, &mut got].into_iter().for_each(|keys| drop(keys.remove(key)));
    }
    for (key, value) in &got {
        if given.get(key).is_some_and(|known| known != value) {
            return Err(format!("{key} is {value}, expected {}", given[key]).into());
        }
    }
    match back.family.name() == family.name() && back.family.describe() == family.describe() {
        true => Ok(()),
        false => Err(back.family.describe().into()),
    }
}

fn in_blocks(folder: &Path) -> Result<(), Failed> {
    let (family, weights) = model(folder)?;
    let target = tempfile::tempdir()?;
    let (path, again) = (target.path().join("model.gguf"), target.path().join("again.gguf"));
    for block in [Block::Q8_0, Block::Q4_0, Block::Q4_1, Block::Q5_0, Block::Q5_1, Block::BF16] {
        let options = Options { matrices: block, ..Options::default() };
        let written = export_gguf(&path, family.as_ref(), &weights, None, &options)?;
        let back = import_gguf(&path)?;
        let (first, mut blocks) = (Gguf::open(&path)?, 0);
        for tensor in first.tensors().iter().filter(|tensor| tensor.shape.len() == 2 && block != Block::BF16)
        {
            let fits = tensor.shape.last() % block.elements() == 0;
            blocks += usize::from(fits);
            if tensor.kind != if fits { block } else { Block::F16 }.into() {
                return Err(format!("`{}` is {}", tensor.name, tensor.kind).into());
            }
        }
        let codes =
            back.weights.stored().filter(|(_, stored)| matches!(stored, kiln::model::Stored::Codes(_)));
        if codes.count() != blocks || written.tensors.len() != first.tensors().len() {
            return Err(format!("{blocks} weights are not codes of {block}").into());
        }
        // Codes go into the same blocks again, bit for bit, through every change of layout.
        export_gguf(&again, back.family.as_ref(), &back.weights, None, &Options::default())?;
        let second = Gguf::open(&again)?;
        for tensor in first.tensors() {
            let other = second.find(&tensor.name).ok_or_else(|| format!("no `{}`", tensor.name))?;
            if (tensor.kind, &tensor.shape, first.bytes(tensor))
                != (other.kind, &other.shape, second.bytes(other))
            {
                return Err(format!("{block}: `{}` has changed", tensor.name).into());
            }
        }
    }
    Ok(())
}

/// The same file with other keys.
fn rewrite(file: &Gguf, path: &Path, change: impl Fn(&str) -> bool) -> Result<(), Failed> {
    let mut keys = Metadata::new("test");
    for (key, value) in file.metadata().entries().iter().filter(|(key, _)| !change(key)) {
        keys.set(key.as_str(), value.clone());
    }
    let part = |stored: &Stored| Part {
        name: stored.name.clone(),
        shape: stored.shape.clone(),
        kind: stored.kind,
        bytes: Cow::Borrowed(file.bytes(stored)),
    };
    Ok(write(path, &keys, &file.tensors().iter().map(part).collect::<Vec<_>>())?)
}

fn damaged(folder: &Path) -> Result<(), Failed> {
    let (family, weights) = model(folder)?;
    let target = tempfile::tempdir()?;
    let (path, other) = (target.path().join("model.gguf"), target.path().join("other.gguf"));
    export_gguf(&path, family.as_ref(), &weights, None, &Options::default())?;
    let file = Gguf::open(&path)?;
    // Without a key the file is read or refused, and every number flipped in any bit likewise: nothing else may happen.
    let mut refused = 0;
    for (gone, _) in file.metadata().entries() {
        rewrite(&file, &other, |key| key == gone)?;
        refused += usize::from(import_gguf(&other).is_err());
    }
    let whole = std::fs::read(&path)?;
    let needle = b".block_count";
    let keys_end = whole.windows(needle.len()).position(|window| window == needle).ok_or("no blocks")? + 400;
    for at in 24..keys_end.min(whole.len()) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0xff;
        std::fs::write(&other, &bytes)?;
        refused += usize::from(import_gguf(&other).is_err());
    }
    if refused < 100 { Err(format!("only {refused} were refused").into()) } else { Ok(()) }
}

/// A small model of any vocabulary.
fn small(vocabulary: usize) -> Result<(Box<dyn Family>, Weights), Failed> {
    small_with(vocabulary, kiln::model::Activation::GeluTanh)
}

fn small_with(
    vocabulary: usize,
    activation: kiln::model::Activation,
) -> Result<(Box<dyn Family>, Weights), Failed> {
    let design = Design {
        layers: 1,
        heads: 2,
        kv_heads: None,
        head_size: None,
        width: 8,
        hidden: None,
        context: 16,
        vocabulary,
        activation,
        norm_epsilon: 1e-5,
        dropout: 0.0,
        bias: false,
        tie: true,
        rope_theta: None,
        window: None,
    };
    let family = build("gpt2", &design)?;
    let weights = initial(&family.parameters(), 1);
    Ok((family, weights))
}

/// Through the whole file, and through the keys alone, as other programs write them.
fn same_ids(tokenizer: &Tokenizer, texts: &[String]) -> Result<(), Failed> {
    let (family, weights) = small(tokenizer.vocabulary_size() + 3)?;
    let target = tempfile::tempdir()?;
    let (path, bare) = (target.path().join("model.gguf"), target.path().join("bare.gguf"));
    export_gguf(&path, family.as_ref(), &weights, Some(tokenizer), &Options::default())?;
    rewrite(&Gguf::open(&path)?, &bare, |key| key == "tokenizer.huggingface.json")?;
    for path in [&path, &bare] {
        let back = import_gguf(path)?.tokenizer.ok_or("no tokenizer")?;
        for text in texts {
            let (got, expected) = (back.encode(text)?, tokenizer.encode(text)?);
            if got != expected || back.decode(&got)? != tokenizer.decode(&expected)? {
                return Err(format!("{text:?}: {got:?}, expected {expected:?}").into());
            }
        }
    }
    Ok(())
}

fn tokenizer(folder: &Path) -> Result<(), Failed> {
    let cases: serde_json::Value = serde_json::from_slice(&std::fs::read(folder.join("cases.json"))?)?;
    let texts = cases["cases"].as_array().ok_or("no cases")?.iter().filter_map(|case| case["text"].as_str());
    same_ids(&Tokenizer::load(folder)?, &texts.map(String::from).collect::<Vec<_>>())
}

/// A tokenizer of SentencePiece's, with `<s>` before every text.
fn pieces(folder: &Path) -> Result<(), Failed> {
    let (family, weights) = model(folder)?;
    let (tokenizer, texts) =
        (Tokenizer::load(folder)?, ["Once upon a time, ", "", " naïve  日本\n\n<s> it's", "🙂<0x0A>"]);
    same_ids(&tokenizer, &texts.map(String::from))?;
    let target = tempfile::tempdir()?;
    let (path, bare) = (target.path().join("model.gguf"), target.path().join("bare.gguf"));
    let written = export_gguf(&path, family.as_ref(), &weights, Some(&tokenizer), &Options::default())?;
    rewrite(&Gguf::open(&path)?, &bare, |key| key == "tokenizer.huggingface.json")?;
    let back = import_gguf(&bare)?.tokenizer.ok_or("no tokenizer")?;
    for text in texts {
        if back.encode_with_special(text)? != tokenizer.encode_with_special(text)? {
            return Err(format!("{text:?} has other tokens around it").into());
        }
    }
    if written.notes.is_empty() { Ok(()) } else { Err(written.notes.concat().into()) }
}

fn characters() -> Result<(), Failed> {
    let text = "Thou art — naïve, 日本語!\n\tYes; 123 'tis, é à ü 🙂\n";
    let reversed: String = text.chars().rev().collect();
    same_ids(&Tokenizer::characters(text), &[text.into(), reversed, text.replace(' ', "  ")])
}

fn refused(folder: &Path) -> Result<(), Failed> {
    let target = tempfile::tempdir()?;
    let path = target.path().join("model.gguf");
    let (family, weights) = small_with(8, kiln::model::Activation::Relu)?;
    let setting = export_gguf(&path, family.as_ref(), &weights, None, &Options::default());
    let (family, weights) = model(&folder.join("models/bert-mlm"))?;
    let unknown = export_gguf(&path, family.as_ref(), &weights, None, &Options::default());
    let (family, weights) = small(600)?;
    let unigram = Tokenizer::load(&folder.join("tokenizers/unigram-t5"))?;
    let vocabulary = export_gguf(&path, family.as_ref(), &weights, Some(&unigram), &Options::default());
    let large = Tokenizer::characters("abc");
    let (family, weights) = small(2)?;
    let too_many = export_gguf(&path, family.as_ref(), &weights, Some(&large), &Options::default());
    match (&setting, &unknown, &vocabulary, &too_many) {
        (
            Err(Error::Setting { key, .. }),
            Err(Error::Family { .. }),
            Err(Error::Vocabulary { .. }),
            Err(Error::Vocabulary { .. }),
        ) if key == "activation_function" && !path.exists() => Ok(()),
        other => Err(format!("{other:?}").into()),
    }
}
