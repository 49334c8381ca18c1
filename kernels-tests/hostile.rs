//! Files from anywhere: each reader meets thousands of damaged ones and answers with a model or a typed error, never with a panic, and
//! never with memory by a size that a file merely claims.

use kiln::data::tokenizer::Tokenizer;
use kiln::exchange::{self, Options, Source, export_gguf, import_gguf};
use kiln::formats::gguf::Gguf;
use kiln::formats::{Archive, Error as FormatError, INDEX_FILE, WEIGHTS_FILE, write_shards};
use kiln::model::{CONFIG_FILE, Config, Design, Error, Family, Weights, build, from_config, initial, open};
use kiln::tensor::random::Stream;
use serde_json::{Value, json};
use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use tempfile::TempDir;

/// The largest piece of memory that anybody asked for.
struct Watched;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is handed to the system's allocator as it came.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        unsafe { System.dealloc(place, layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        LARGEST.fetch_max(size, Ordering::Relaxed);
        unsafe { System.realloc(place, layout, size) }
    }
}

#[global_allocator]
static MEMORY: Watched = Watched;

/// No file here is larger than some ten thousand bytes, and no reader needs a thousand times as much in one piece.
const MOST_BYTES: usize = 64 << 20;

fn expect_modest(what: &str) {
    let largest = LARGEST.load(Ordering::Relaxed);
    assert!(largest < MOST_BYTES, "{what}: {largest} bytes were asked for at once");
}

fn small(family: &str) -> (Box<dyn Family>, Weights) {
    let design = Design {
        layers: 1,
        heads: 2,
        kv_heads: None,
        head_size: None,
        width: 16,
        hidden: Some(12),
        context: 8,
        vocabulary: 14,
        activation: kiln::model::Activation::named(kiln::model::usual(family).activation).unwrap(),
        norm_epsilon: kiln::model::usual(family).norm_epsilon as f32,
        dropout: 0.0,
        bias: kiln::model::usual(family).bias,
        tie: kiln::model::usual(family).tie,
        rope_theta: None,
        window: None,
    };
    let family = build(family, &design).unwrap();
    let weights = initial(&family.parameters(), 1);
    (family, weights)
}

/// A whole folder: configuration, weights, tokenizer.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let (family, weights) = small("gpt2");
    weights.save(folder.path(), family.as_ref()).unwrap();
    Tokenizer::train_byte_pair("the cat sat on the mat, the rat sat on the cat", 270)
        .unwrap()
        .save(folder.path())
        .unwrap();
    folder
}

/// A damaged copy: cut short, a bit or a byte changed, some bytes gone or repeated, or a number in its text made huge.
fn damaged(whole: &[u8], round: usize, random: &mut Stream) -> Vec<u8> {
    let mut bytes = whole.to_vec();
    let mut at = |most: usize| ((random.uniform() * most as f64) as usize).min(most.saturating_sub(1));
    let place = at(bytes.len());
    match round % 6 {
        0 => bytes.truncate(place),
        1 => bytes[place] ^= 1 << (round / 6 % 8),
        2 => bytes[place] = [0x00, 0xff, 0x7f, 0x80, b'"', b'9', b'-', b'{'][round / 6 % 8],
        3 => drop(bytes.drain(place..bytes.len().min(place + 9))),
        4 => {
            let again = bytes[place..bytes.len().min(place + 17)].to_vec();
            bytes.splice(place..place, again);
        }
        _ => {
            // The next digit becomes a number that no computer has room for, or none at all.
            let huge: &[u8] = [&b"18446744073709551615"[..], b"1e308", b"-1", b"4294967296"][round / 6 % 4];
            match (place..bytes.len()).find(|&at| bytes[at].is_ascii_digit()) {
                Some(digit) => drop(bytes.splice(digit..digit + 1, huge.iter().copied())),
                None => bytes[place] ^= 0xff,
            }
        }
    }
    bytes
}

/// Damages one file in many ways; most must be refused, and what is read must be whole.
fn meets(file: &Path, rounds: usize, read: impl Fn() -> bool) {
    let whole = std::fs::read(file).unwrap();
    assert!(read(), "{file:?} is whole");
    let mut random = Stream::new(&[whole.len() as u32, rounds as u32]);
    let mut refused = 0;
    for round in 0..rounds {
        std::fs::write(file, damaged(&whole, round, &mut random)).unwrap();
        refused += usize::from(!read());
    }
    std::fs::write(file, whole).unwrap();
    assert!(refused > rounds / 10, "only {refused} of {rounds} were found in {file:?}");
    expect_modest(&file.display().to_string());
}

#[test]
fn weights_and_their_index() {
    let folder = folder();
    let place = folder.path();
    let read = || open(place).is_ok_and(|family| Weights::read(place, family.as_ref()).is_ok());
    meets(&place.join(WEIGHTS_FILE), 600, read);
    let archive = Archive::open(place).unwrap();
    let raws: Vec<_> = archive.names().map(|name| (name, archive.raw(name).unwrap())).collect();
    let shards = tempfile::tempdir().unwrap();
    let files = write_shards(shards.path(), &raws, &BTreeMap::new(), 1200).unwrap();
    std::fs::copy(place.join(CONFIG_FILE), shards.path().join(CONFIG_FILE)).unwrap();
    let place = shards.path();
    let read = || open(place).is_ok_and(|family| Weights::read(place, family.as_ref()).is_ok());
    meets(&place.join(INDEX_FILE), 300, read);
    meets(&place.join(&files[1]), 300, read);
}

#[test]
fn configurations_of_every_family() {
    for name in ["gpt2", "llama", "qwen3", "gpt_neox", "bert", "roberta", "distilbert", "t5", "bart"] {
        let folder = tempfile::tempdir().unwrap();
        let (family, weights) = small(name);
        weights.save(folder.path(), family.as_ref()).unwrap();
        let place = folder.path();
        let read = || open(place).is_ok_and(|family| Weights::read(place, family.as_ref()).is_ok());
        meets(&place.join(CONFIG_FILE), 240, read);
    }
}

#[test]
fn gguf_files() {
    for name in ["gpt2", "llama", "gpt_neox"] {
        let folder = tempfile::tempdir().unwrap();
        let (family, weights) = small(name);
        let tokenizer = Tokenizer::characters("the cat sat on");
        let file = folder.path().join("model.gguf");
        let tokenizer = (tokenizer.vocabulary_size() <= 14).then_some(&tokenizer);
        export_gguf(&file, family.as_ref(), &weights, tokenizer, &Options::default()).unwrap();
        meets(&file, 1500, || import_gguf(&file).is_ok());
        meets(&file, 300, || Gguf::open(&file).is_ok());
    }
}

#[test]
fn tokenizers_and_their_settings() {
    let folder = folder();
    let place = folder.path().join("tokenizer.json");
    meets(&place, 900, || Tokenizer::load(&place).and_then(|tokenizer| tokenizer.encode("the cat")).is_ok());
    let letters = tempfile::tempdir().unwrap();
    Tokenizer::characters("the cat").save(letters.path()).unwrap();
    let place = letters.path().join("tokenizer.json");
    meets(&place, 400, || Tokenizer::load(&place).and_then(|tokenizer| tokenizer.encode("the cat")).is_ok());
    let settings = folder.path().join("tokenizer_config.json");
    std::fs::write(&settings, json!({ "chat_template": "{{ x }}", "n": [1, 2] }).to_string()).unwrap();
    let source = Source::open(folder.path(), &[]).unwrap();
    meets(&settings, 120, || source.chat_template().is_ok());
}

/// A safetensors file with this header, and so many bytes behind it.
fn safetensors(length: u64, header: &str, data: usize) -> Vec<u8> {
    [&length.to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat()
}

#[test]
fn headers_that_claim_what_cannot_be() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(WEIGHTS_FILE);
    let tensor = |shape: Value, from: u64, to: u64| json!({ "dtype": "F32", "shape": shape, "data_offsets": [from, to] });
    let headers = [
        json!({ "a": tensor(json!([2]), 0, 8), "b": tensor(json!([2]), 4, 12) }),
        json!({ "a": tensor(json!([2]), 8, 0) }),
        json!({ "a": tensor(json!([2]), 0, u64::MAX) }),
        json!({ "a": tensor(json!([u64::MAX]), 0, 8) }),
        json!({ "a": tensor(json!([1u64 << 33, 1u64 << 33]), 0, 8) }),
        json!({ "a": tensor(json!([-1]), 0, 8) }),
        json!({ "a": tensor(json!(["NaN"]), 0, 8) }),
        json!({ "a": { "dtype": "F33", "shape": [2], "data_offsets": [0, 8] } }),
        json!({ "a": [] }),
        json!([1, 2]),
    ];
    let mut files: Vec<Vec<u8>> = headers
        .iter()
        .map(|header| safetensors(header.to_string().len() as u64, &header.to_string(), 12))
        .collect();
    files.push(safetensors(u64::MAX, "{}", 0));
    files.push(safetensors(1 << 40, "{}", 0));
    files.push(safetensors(2, "{}", 7));
    let deep = format!("{{\"a\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    files.push(safetensors(deep.len() as u64, &deep, 0));
    files.push(vec![0; 3]);
    for (number, bytes) in files.into_iter().enumerate() {
        std::fs::write(&file, bytes).unwrap();
        let error = Archive::open(folder.path()).err();
        assert!(matches!(error, Some(FormatError::Damaged { .. })), "{number}: {error:?}");
    }
    // Deep texts in every other file that is JSON.
    let nested = format!("{{\"model_type\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    for name in [CONFIG_FILE, INDEX_FILE, "tokenizer.json"] {
        std::fs::remove_file(&file).ok();
        std::fs::write(folder.path().join(name), &nested).unwrap();
    }
    assert!(matches!(Config::read(folder.path()), Err(Error::Damaged { .. })));
    assert!(matches!(Archive::open(folder.path()), Err(FormatError::Damaged { .. })));
    assert!(Tokenizer::load(folder.path()).is_err());
    // GGUF: counts of everything at their largest.
    let gguf = folder.path().join("model.gguf");
    for (tensors, keys) in [(u64::MAX, 0), (0, u64::MAX), (1 << 60, 1 << 60), (1, 1)] {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        [tensors, keys].iter().for_each(|count| bytes.extend(count.to_le_bytes()));
        bytes.extend([0xff; 64]);
        std::fs::write(&gguf, bytes).unwrap();
        assert!(matches!(Gguf::open(&gguf), Err(FormatError::Damaged { .. })));
    }
    expect_modest("claims");
}

#[test]
fn what_is_missing_or_too_much_is_named() {
    let folder = folder();
    let place = folder.path();
    let refused = || exchange::open(place).unwrap_err().to_string();
    let archive = Archive::open(place).unwrap();
    let mut raws: Vec<_> = archive.names().map(|name| (name, archive.raw(name).unwrap())).collect();
    let gone = raws.remove(0);
    raws.push(("transformer.h.0.stranger", gone.1.clone()));
    let other = tempfile::tempdir().unwrap();
    let files = write_shards(other.path(), &raws, &BTreeMap::new(), 1200).unwrap();
    for file in files.iter().map(String::as_str).chain([INDEX_FILE]) {
        std::fs::copy(other.path().join(file), place.join(file)).unwrap();
    }
    std::fs::remove_file(place.join(WEIGHTS_FILE)).unwrap();
    let message = refused();
    assert!(message.contains(gone.0) && message.contains("transformer.h.0.stranger"), "{message}");
    std::fs::remove_file(place.join(&files[1])).unwrap();
    let message = refused();
    assert!(message.contains(&files[1]) && message.contains("not there"), "{message}");
    let index = std::fs::read_to_string(place.join(INDEX_FILE)).unwrap();
    for (name, part) in
        [("elsewhere.safetensors", "elsewhere.safetensors"), ("../model.safetensors", "no file beside it")]
    {
        std::fs::write(place.join(INDEX_FILE), index.replace(&files[0], name)).unwrap();
        let message = refused();
        assert!(message.contains(part), "{message}");
    }
    let keys = json!({ "model_type": "mamba", "architectures": ["MambaForCausalLM"] });
    let error =
        from_config(&Config::new("config.json", keys.as_object().unwrap().clone())).unwrap_err().to_string();
    assert!(error.contains("MambaForCausalLM") && error.contains("LlamaForCausalLM"), "{error}");
}
