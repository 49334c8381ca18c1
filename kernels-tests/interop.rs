//! Files written here and read by other people's packages.
//!
//! `KILN_PYTHON` names a Python with `gguf` and `openai` (`scripts/interop` makes one, `.ci/run` uses it), `KILN_PYTHON_TORCH` one that has
//! torch, transformers, `peft`, `gguf` and `compressed-tensors` too, which are too large to be fetched on every run. Where a variable is
//! not set its trials are counted as ignored.

mod golden;
#[cfg(feature = "serve")]
#[path = "interop/serving.rs"]
mod serving;

use kiln::adapt::{self, Adapter, Kind, Layers};
use kiln::compress::{MEMORY_BYTES, Selection, prune};
use kiln::data::tokenizer::Tokenizer;
use kiln::deploy::{Deployment, forward};
use kiln::exchange::{self, FolderOptions, Opened, Options, Source, export_gguf};
use kiln::formats::compressed_tensors::{Activations, Config, Group, Packing, write};
use kiln::formats::gguf::{self, Array, Metadata, Part, Value};
use kiln::formats::{Archive, Layer, Raw};
use kiln::model::{Convention, Extent, Inputs, Mode, Quantized, Stored, Weights, open};
use kiln::ops::coded::Activations as Operand;
use kiln::ops::quantize_rows::Rule;
use kiln::tensor::quant::blocks::Block;
use kiln::tensor::quant::{Scheme, Share, encode};
use kiln::tensor::random::Stream;
use kiln::tensor::sparse::{Scope, Sparsity};
use kiln::tensor::{DType, Tensor};
use kiln::train::Target;
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::json;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/kernels-tests/interop");
const MODELS: &[&str] = &["gpt2", "llama-gqa", "llama-rope-scaled", "mistral-swa", "qwen2", "qwen3"];

type Check = fn(&str, &Path) -> Result<(), Failed>;

/// Name, variable with the Python, whether golden files are needed, the check.
const CHECKS: &[(&str, &str, bool, Check)] = &[
    ("gguf_decodes_our_blocks_to_our_floats_and_writes_our_file_again", "KILN_PYTHON", false, blocks),
    ("gguf_finds_the_weights_of_models_under_its_names", "KILN_PYTHON", true, models),
    ("transformers_runs_our_gguf_models", "KILN_PYTHON_TORCH", true, transformers),
    ("transformers_runs_our_folders", "KILN_PYTHON_TORCH", true, folders),
    ("transformers_runs_our_compressed_models", "KILN_PYTHON_TORCH", true, compressed_models),
    ("peft_runs_our_adapters", "KILN_PYTHON_TORCH", true, our_adapters),
    ("we_run_adapters_of_peft", "KILN_PYTHON_TORCH", true, their_adapters),
    ("compressed_tensors_decompresses_our_codes_to_our_values", "KILN_PYTHON_TORCH", false, compressed),
    ("compressed_tensors_unpacks_our_masks_of_zeros", "KILN_PYTHON_TORCH", true, masked),
    #[cfg(feature = "serve")]
    ("the_client_of_openai_understands_our_server", "KILN_PYTHON", false, serving::asked_by_openai),
];

fn main() {
    let arguments = Arguments::from_args();
    let golden = golden::folder().join("dev");
    let absent = golden::is_absent(&golden);
    let trial = |&(name, variable, needs_golden, check): &(&'static str, &'static str, bool, Check)| {
        let (python, golden) = (std::env::var(variable), golden.clone());
        let ignored = python.is_err() || (needs_golden && absent);
        Trial::test(name, move || check(&python?, &golden)).with_ignored_flag(ignored)
    };
    libtest_mimic::run(&arguments, CHECKS.iter().map(trial).collect()).exit();
}

/// Runs one of the scripts; it ends with a message and a status of its own where something is not as it should be.
fn run(python: &str, script: &str, arguments: &[&Path]) -> Result<(), Failed> {
    let output = Command::new(python).arg(Path::new(SCRIPTS).join(script)).args(arguments).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = [&output.stdout[..], &output.stderr].concat();
    Err(format!("{script}: {}\n{}", output.status, String::from_utf8_lossy(&said)).into())
}

fn random(count: usize, seed: u32) -> Vec<f32> {
    let mut stream = Stream::new(&[seed]);
    (0..count).map(|i| stream.normal() as f32 * [1.0, 30.0, 1e-3][i / 512 % 3]).collect()
}

fn save(path: &Path, tensors: &[(String, Tensor)]) -> Result<(), Failed> {
    let named: Vec<(&str, &Tensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    Ok(Archive::write(path, &named)?)
}

fn blocks(python: &str, _: &Path) -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let (mut parts, mut floats) =
        (vec![], vec![("x".to_string(), Tensor::f32([6, 512], random(6 * 512, 1)))]);
    for block in Block::ALL.into_iter().filter(|block| block.can_encode()) {
        let bytes = block.encode(floats[0].1.real(), 512)?;
        floats.push((block.name().to_string(), Tensor::f32([6, 512], block.decode(&bytes, 512)?)));
        let (name, bytes) = (block.name().to_string(), Cow::Owned(bytes));
        parts.push(Part { name, shape: [6, 512].into(), kind: block.into(), bytes });
    }
    let mut keys = Metadata::new("test");
    keys.set("general.architecture", "llama");
    keys.set("test.u8", 255u8);
    keys.set("test.i8", -128i8);
    keys.set("test.u16", 65535u16);
    keys.set("test.i16", -32768i16);
    keys.set("test.u32", u32::MAX);
    keys.set("test.i32", i32::MIN);
    keys.set("test.f32", 0.1f32);
    keys.set("test.bool", true);
    keys.set("test.text", "Zürich ✓");
    keys.set("test.u64", u64::MAX);
    keys.set("test.i64", i64::MIN);
    keys.set("test.f64", std::f64::consts::PI);
    keys.set("test.texts", vec!["a".to_string(), String::new(), "日本".to_string()]);
    keys.set("test.numbers", vec![1, -2, 3]);
    keys.set("test.floats", Value::Array(Array::F32(vec![0.5, -1.5])));
    keys.set("test.bools", Value::Array(Array::Bool(vec![true, false])));
    gguf::write(&folder.path().join("blocks.gguf"), &keys, &parts)?;
    save(&folder.path().join("floats.safetensors"), &floats)?;
    run(python, "gguf_blocks.py", &[folder.path()])
}

fn models(python: &str, golden: &Path) -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    for name in MODELS.iter().chain(&["gpt-neox-parallel"]) {
        let place = golden.join("models").join(name);
        let family = open(&place)?;
        let weights = Weights::read(&place, family.as_ref())?;
        for matrices in [Block::F32, Block::Q8_0, Block::Q4_0] {
            let path = folder.path().join(format!("{name}.{matrices}.gguf"));
            let options = Options { matrices, name: name.to_string(), ..Options::default() };
            export_gguf(&path, family.as_ref(), &weights, None, &options)?;
        }
    }
    run(python, "gguf_models.py", &[folder.path(), &golden.join("models")])
}

fn transformers(python: &str, golden: &Path) -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    for (name, place) in MODELS.iter().map(|name| (*name, golden.join("models").join(name))) {
        let family = open(&place)?;
        let weights = Weights::read(&place, family.as_ref())?;
        // Readers want a tokenizer, and these models have none: as many characters as they have tokens.
        let letters: String = ('\u{4e00}'..).take(family.vocabulary()).collect();
        let options = Options { name: name.to_string(), ..Options::default() };
        let path = folder.path().join(format!("{name}.gguf"));
        export_gguf(&path, family.as_ref(), &weights, Some(&Tokenizer::characters(&letters)), &options)?;
    }
    for (name, place) in [("text", golden.join("e2e/gpt2")), ("stories", golden.join("real/stories260K"))] {
        let family = open(&place)?;
        let (weights, tokenizer) = (Weights::read(&place, family.as_ref())?, Tokenizer::load(&place)?);
        let path = folder.path().join(format!("{name}.gguf"));
        export_gguf(&path, family.as_ref(), &weights, Some(&tokenizer), &Options::default())?;
    }
    run(python, "transformers_gguf.py", &[folder.path(), golden])
}

/// Folders written by kiln, in shards, and some that were GGUF files in between, beside inputs and the logits that kiln computes.
fn folders(python: &str, golden: &Path) -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let direct = [
        "gpt2",
        "llama-gqa",
        "qwen3",
        "gpt-neox-parallel",
        "bert-mlm",
        "roberta-mlm",
        "t5-relu",
        "bart",
        "gpt2-score",
        "mistral-score",
        "gpt-neox-score",
        "whisper",
    ];
    let through = ["gpt2", "llama-gqa", "qwen2", "qwen3", "gpt-neox-parallel"];
    let cases: Vec<(&str, bool)> =
        direct.iter().map(|name| (*name, false)).chain(through.iter().map(|name| (*name, true))).collect();
    let file = |name: String| folder.path().join(name);
    for &(model, turned) in &cases {
        let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels-tests/golden");
        let root = if own.join("models").join(model).is_dir() { own.as_path() } else { golden };
        let place = root.join("models").join(model);
        let name = if turned { format!("{model}-gguf") } else { model.to_string() };
        let mut source = Source::open(&place, &[])?;
        if turned {
            let path = file(format!("{name}.gguf"));
            export_gguf(
                &path,
                source.opened.family.as_ref(),
                &source.as_stored()?,
                None,
                &Options::default(),
            )?;
            source = Source::open(&path, &[])?;
        }
        std::fs::create_dir(file(name.clone()))?;
        source.write_folder(&file(name.clone()), &FolderOptions { dtype: None, shard_bytes: 20_000 })?;
        let Opened { family, weights, .. } = exchange::open(&file(name.clone()))?;
        let given = Archive::open(&place.join("inputs.safetensors"))?;
        let inputs = Inputs::read(&given, "eval.", family.as_ref())?;
        let outcome = forward(family.as_ref(), &weights, &inputs, &Target::Host, DType::F32, false)?;
        let logits = outcome.results.into_iter().find(|(name, _)| name == "logits").ok_or("no logits")?.1;
        save(&file(format!("{name}.logits.safetensors")), &[("logits".into(), logits)])?;
        let raws: Vec<(&str, Raw)> = given
            .names()
            .filter_map(|name| Some((name.strip_prefix("eval.")?, given.raw(name).expect("it is there"))))
            .collect();
        Archive::write_raw(&file(format!("{name}.inputs.safetensors")), &raws, &BTreeMap::new())?;
    }
    run(python, "transformers_folders.py", &[folder.path(), Path::new(&cases.len().to_string())])
}

fn compressed(python: &str, _: &Path) -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let x = random(24 * 192, 2);
    for (share, group) in [(Share::Row, None), (Share::Group(64), Some(64))] {
        for bits in [2, 3, 4, 8] {
            for scheme in [Scheme::wide(bits, share), Scheme::asymmetric(bits, share)] {
                for packing in [Packing::Words, Packing::Bytes] {
                    let symmetric = scheme.is_symmetric();
                    let name = format!("{bits}-{group:?}-{symmetric}-{packing:?}");
                    let place = folder.path().join(name);
                    std::fs::create_dir(&place)?;
                    let layer: Layer = encode(&x, 24, 192, &scheme)?.into();
                    let parts = write("layer", &layer, packing)?;
                    let raws: Vec<(&str, Raw)> =
                        parts.iter().map(|(n, raw)| (n.as_str(), raw.clone())).collect();
                    Archive::write_raw(&place.join("model.safetensors"), &raws, &BTreeMap::new())?;
                    let activations =
                        if packing == Packing::Bytes { Activations::PerToken } else { Activations::Floats };
                    let targets = vec!["Linear".to_string()];
                    let group = Group { targets, bits, symmetric, group, activations, packing };
                    let config = Config { groups: vec![group], ignore: vec!["lm_head".into()] };
                    let config = json!({ "quantization_config": config.to_json() });
                    std::fs::write(place.join("config.json"), config.to_string())?;
                    let values = Tensor::f32([24, 192], layer.coded.decode());
                    save(&place.join("floats.safetensors"), &[("weight".to_string(), values)])?;
                }
            }
        }
    }
    run(python, "decompress.py", &[folder.path()])
}

/// Three models with half of their weights removed, with and without their zeros.
fn masked(python: &str, golden: &Path) -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    for (name, sparsity) in [
        ("gpt2", Sparsity::Share(0.5)),
        ("llama-gqa", Sparsity::Share(0.7)),
        ("qwen3", Sparsity::Pattern("2:4".parse()?)),
    ] {
        let place = golden.join("models").join(name);
        let family = open(&place)?;
        let request = prune::Request {
            method: prune::Method::Magnitude(Scope::Layer),
            sparsity,
            each: BTreeMap::new(),
            scheme: None,
            selection: Selection::default(),
            batches: &[],
            known: None,
            memory_bytes: MEMORY_BYTES,
        };
        let weights = Weights::read(&place, family.as_ref())?;
        let made = prune::prune(family.as_ref(), &weights, &Target::Host, &request)?.weights;
        let place = folder.path().join(name);
        made.save(&place.join("whole"), family.as_ref())?;
        made.save_as(&place.join("sparse"), family.as_ref(), Convention::Sparse)?;
    }
    run(python, "bitmask.py", &[folder.path()])
}

/// Linear weights of three models as codes, in two ways. Not asymmetric: compressed-tensors 0.20 packs zero points, and makes room for
/// them unpacked when transformers loads a model, so that no such checkpoint loads.
fn compressed_models(python: &str, golden: &Path) -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let schemes = [
        ("W8A8", Scheme::wide(8, Share::Row), Operand::Rows(Rule::Wide)),
        ("int4", Scheme::wide(4, Share::Group(8)), Operand::Numbers),
    ];
    for name in ["llama-gqa", "qwen2", "qwen3"] {
        let place = golden.join("models").join(name);
        let family = open(&place)?;
        let floats = Weights::read(&place, family.as_ref())?;
        for (kind, scheme, activations) in schemes {
            let mut weights = floats.clone();
            for spec in family.parameters().iter().filter(|spec| spec.name.ends_with("_proj.weight")) {
                let [rows, cols] = [spec.shape[0], spec.shape[1]];
                let coded = encode(floats.get(&spec.name)?.real(), rows, cols, &scheme)?;
                let shape = spec.shape.clone();
                let quantized = Quantized { shape, coded, double: None, turned: false, activations };
                weights.store(spec.name.clone(), Stored::Codes(quantized));
            }
            let place = folder.path().join(format!("{name}-{kind}"));
            weights.save_as(&place, family.as_ref(), Convention::CompressedTensors)?;
            weights.widened().save(&folder.path().join(format!("{name}-{kind}.floats")), family.as_ref())?;
        }
    }
    run(python, "transformers_compressed.py", &[folder.path()])
}

/// Scores of the text that the scripts take too, on the host.
fn scores(model: &Opened) -> Result<Tensor, Failed> {
    let family = model.family.as_ref();
    let tokens = (3..3 + 16).map(|i| i % family.vocabulary() as u32).collect();
    let deployment = Deployment::new(&model.weights);
    let graph =
        deployment.graph(family, Extent { batch: 1, context: 16 }, Mode::Evaluate, |graph, forward| {
            graph.output("logits", forward.logits);
            Ok(())
        })?;
    let (mut engine, _) = deployment.engine(&Target::Host, &[graph])?;
    Ok(engine.run(0, &[&Tensor::u32([1, 16], tokens)])?.remove(0))
}

/// Kind, ends of names of layers, modules that are trained whole, and whether the scale is that of rsLoRA.
type Case = (Kind, &'static [&'static str], &'static [&'static str], bool);

/// Adapters of random numbers, as a run writes them, in a folder of each.
fn our_adapters(python: &str, golden: &Path) -> Result<(), Failed> {
    let out = tempfile::tempdir()?;
    let llama: &[Case] = &[
        (Kind::Lora, &["q_proj", "v_proj"], &[], false),
        (Kind::Lora, &["*"], &["*norm*"], true),
        (Kind::Dora, &["*.layers.0.*", "down_proj"], &[], false),
    ];
    let gpt2: &[Case] =
        &[(Kind::Lora, &["c_attn", "c_fc"], &["ln_f"], false), (Kind::Dora, &["*"], &[], false)];
    let neox: &[Case] = &[(Kind::Dora, &["query_key_value", "dense"], &[], false)];
    let cases =
        [("llama-gqa", llama), ("mistral-swa", &llama[..2]), ("gpt2", gpt2), ("gpt-neox-parallel", neox)];
    let mut count = 0;
    for (name, cases) in cases {
        let place = golden.join("models").join(name);
        let family = open(&place)?;
        let layers = Layers::of(family.as_ref())?;
        let texts = |list: &[&str]| list.iter().map(|text| text.to_string()).collect::<Vec<_>>();
        for &(kind, targets, whole, rank_stabilized) in cases {
            let chosen = layers.choose(&texts(targets), &texts(&["lm_head", "embed_out"]))?;
            let adapter = Adapter {
                name: "mine".into(),
                kind,
                rank: 4,
                alpha: 12.0,
                rank_stabilized,
                dropout: 0.1,
                layers: chosen
                    .into_iter()
                    .map(|linear| adapt::Layer { linear, rank: 4, alpha: 12.0 })
                    .collect(),
                whole: layers.whole(&texts(whole))?,
            };
            let number = |spec: kiln::model::ParameterSpec| {
                let size = spec.shape.count();
                // Gains and magnitudes lie about one, and all else about zero.
                let centre = if spec.shape.len() == 1 { 1.0 } else { 0.0 };
                let tensor =
                    random(size, count as u32).iter().map(|x| centre + 0.1 * x.clamp(-3.0, 3.0)).collect();
                (spec.name, Tensor::f32(spec.shape, tensor))
            };
            let factors: Weights = adapter.parameters().into_iter().map(number).collect();
            let folder = out.path().join(format!("{name}.{count}"));
            adapt::save(&folder, &adapter, &factors, family.as_ref(), &place)?;
            let model = exchange::open_to_run(&place, std::slice::from_ref(&folder))?;
            save(&folder.join("logits.safetensors"), &[("logits".to_string(), scores(&model)?)])?;
            count += 1;
        }
    }
    run(python, "peft_read.py", &[out.path(), Path::new(&count.to_string())])
}

/// Adapters that PEFT made, beside the weights and merged into them.
fn their_adapters(python: &str, golden: &Path) -> Result<(), Failed> {
    let (out, models) = (tempfile::tempdir()?, golden.join("models"));
    run(python, "peft_make.py", &[out.path(), &models])?;
    let mut count = 0;
    for entry in std::fs::read_dir(out.path())? {
        let folder = entry?.path();
        let name = folder.file_name().expect("a folder has a name").to_string_lossy().into_owned();
        let place = models.join(name.split_once('.').expect("named so by the script").0);
        let expected = Archive::open(&folder.join("logits.safetensors"))?.tensor("logits")?;
        let parts = || exchange::parts(&place, std::slice::from_ref(&folder));
        let merged = parts()?.expect("it has an adapter").merged()?.0;
        let adapt::Loaded { adapters, factors } = parts()?.expect("it has an adapter").loaded;
        let base = exchange::open(&place)?;
        let mut weights = adapt::with_squares(base.weights, &adapters)?;
        weights.extend(factors);
        let family = Box::new(adapt::Adapted::new(base.family, adapters));
        let beside = Opened { family, weights, tokenizer: None };
        for (how, model) in [("merged", merged), ("beside", beside)] {
            let got = scores(&model)?;
            let pairs = got.to_f64().into_iter().zip(expected.to_f64());
            let off = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            if got.shape.count() != expected.shape.count() || off.is_nan() || off > 1e-4 {
                return Err(format!("{name}, {how}: scores differ by {off}").into());
            }
        }
        count += 1;
    }
    if count == 9 { Ok(()) } else { Err(format!("{count} adapters were made, expected 9").into()) }
}
