//! From raw to resolved: defaults filled in, every value checked against what can work.

use std::path::PathBuf;

use toml::Value;

use super::error::Error;
use super::preset::PRESETS;
use super::rate;
use super::raw::RawRecipe;
use super::read::{Given, Section, describe, nearest};
use super::{
    Adapter, Data, Evaluate, HeadKind, Held, Log, MicroBatch, Model, Precision, Quantize, Recipe, Rule, Run,
    Save, Shape, States, Storage, Task, Tokenizer, Train, Validation,
};
use super::{
    adapter, chats, distill, dpo, examples, memory, objective, optimizer, precision, prune, quantize,
    sources, task,
};
use crate::data::masking::Masking;
use crate::model::usual;

impl RawRecipe {
    /// Fills in the defaults and checks every value.
    pub fn resolve(&self) -> Result<Recipe, Error> {
        let section = Section::open(self, "train")?;
        let steps = at_least_one(&section, "steps", "every run takes a step")?.or(2000);
        let context = size(&section, "context", "a sequence holds a token")?;
        let model = model(&Section::open(self, "model")?, context.get().copied())?;
        let context = match &model {
            Model::Load { .. } => context.take(),
            Model::Build(shape) => {
                let expected = format!("at most model.context = {}", shape.context);
                let hint = "raise model.context too, or lower this";
                Some(context.must(|&n| n <= shape.context, expected, hint)?.or(shape.context))
            }
        };
        let precision = precision::precision(&Section::open(self, "precision")?)?;
        let train = train(&section, steps, context)?;
        let quantize = quantize(&Section::open(self, "quantize")?, &precision)?;
        refuse_held(self, &precision, &train, quantize.is_some())?;
        let adapters = adapter::adapters(&Section::open_all(self, "adapter")?)?;
        refuse_beside_adapters(self, &adapters, &precision, quantize.is_some())?;
        let data = data(&Section::open(self, "data")?, &model)?;
        refuse_teacher_of_chats(self, &data)?;
        let sections = Section::open_all(self, "task")?;
        let tasks = task::tasks(&sections, &Section::open(self, "data")?, &model, &train, &data.validation)?;
        refuse_beside_tasks(self, &tasks)?;
        let adapts = !adapters.is_empty();
        Ok(Recipe {
            train,
            quantize,
            adapters,
            tasks,
            dpo: dpo::dpo(
                &Section::open(self, "dpo")?,
                data.chats.as_ref().is_some_and(|chats| !chats.preferences.is_empty()),
            )?,
            distill: distill::distill(&Section::open(self, "distill")?)?,
            prune: prune::prune(&Section::open(self, "prune")?, steps, &precision, adapts)?,
            data,
            precision,
            memory: memory::memory(&Section::open(self, "memory")?)?,
            run: run(&Section::open(self, "run")?)?,
            model,
        })
    }
}

fn model(section: &Section, train_context: Option<usize>) -> Result<Model, Error> {
    let load = section.text("load")?;
    let hint = "dropout = 0.1 is common, and 0.0 turns it off";
    let dropout = section.number("dropout")?.must(|p| (0.0..1.0).contains(p), "from 0 to below 1", hint)?;
    if let Some(folder) = load.get() {
        // The folder's own config.json gives the shape: a second opinion here would be ignored or wrong.
        section.only(
            &["load", "keep_layers", "dropout", "head", "labels", "problem_type"],
            "`load` takes the shape from the folder's config.json",
        )?;
        let some = |layers: &Vec<u64>| !layers.is_empty();
        let hint = "layers count from zero; leave the key out to keep all";
        let kept = section.counts("keep_layers")?.must(some, "at least one layer", hint)?.take();
        let keep_layers = kept.map(|layers| layers.into_iter().map(|layer| layer as usize).collect());
        let (folder, dropout) = (PathBuf::from(folder), dropout.take());
        return Ok(Model::Load { folder, keep_layers, dropout, head: examples::head(section)? });
    }
    if section.has("keep_layers") {
        let hint = "layers are kept of a model that is loaded: load = \"runs/large\"";
        return Err(section.refuse("keep_layers", "absent without `load`", hint));
    }
    let presets: Vec<_> = PRESETS.iter().map(|preset| (preset.name, preset)).collect();
    let preset = section.word("preset", &presets)?;
    if preset.get().is_some() && section.has("family") {
        let why = "write either a preset or a family; layers, heads, width and the others may change either";
        return Err(section.refuse("family", "absent beside `preset`", why));
    }
    let family = section.text("family")?;
    let base = match family.get() {
        None => preset.or(&PRESETS[0]).shape(),
        Some(family) => written_base(section, family, train_context)?,
    };
    let shape = shape(section, base)?;
    Ok(Model::Build(Shape { dropout: dropout.or(0.0), ..shape }))
}

/// A family says nothing about sizes: they must be written.
fn written_base(section: &Section, family: &str, train_context: Option<usize>) -> Result<Shape, Error> {
    let hint = "with `family`, give layers, heads, width and context; or write preset = \"gpt-nano\"";
    let need = |key| size(section, key, "a model has at least one of each")?.need(hint);
    if usual(family).reads_rows {
        let hint = "with family = \"mlp\", give layers and hidden, the neurons of each";
        let need = |key| size(section, key, "a model has at least one of each")?.need(hint);
        let (layers, hidden) = (need("layers")?, need("hidden")?);
        // It has no stream and reads no tokens: what is written of these is what a resolved recipe says.
        return Ok(Shape { layers, hidden, heads: 1, width: hidden, context: 1, ..Shape::usual(family) });
    }
    let layers = need("layers")?;
    let heads = match usual(family).attends {
        true => need("heads")?,
        false => {
            let hint = "leave it out: this family has no attention";
            size(section, "heads", "a model has at least one of each")?
                .must(|&n| n == 1, "absent", hint)?
                .or(1)
        }
    };
    let width = need("width")?;
    let context = match train_context {
        Some(context) => context,
        None => need("context")?,
    };
    Ok(Shape { layers, heads, width, context, ..Shape::usual(family) })
}

fn shape(section: &Section, base: Shape) -> Result<Shape, Error> {
    let least = "a model has at least one of each";
    let (heads, width) = heads_and_width(section, &base)?;
    let kv_heads = size(section, "kv_heads", least)?;
    let fits = |kv_heads: &usize| heads.is_multiple_of(*kv_heads);
    let kv_heads = kv_heads.must(fits, format!("a divisor of model.heads = {heads}"), "1 is the smallest")?;
    // What belongs to a preset's width or heads does not outlive another width or number of heads.
    let usual_kv_heads = base.kv_heads.filter(|_| heads == base.heads);
    let usual_hidden = match width == base.width && base.hidden > 0 {
        true => base.hidden,
        false => (usual(&base.family).hidden)(width),
    };
    let epsilon = section.number("norm_epsilon")?;
    let theta = section.number("rope_theta")?;
    let theta = theta.must(|&theta| theta > 0.0, "above zero", "Llama 2 has 10000")?;
    Ok(Shape {
        layers: size(section, "layers", least)?.or(base.layers),
        heads,
        kv_heads: kv_heads.take().or(usual_kv_heads),
        head_size: size(section, "head_size", least)?.take(),
        width,
        hidden: size(section, "hidden", least)?.or(usual_hidden),
        context: size(section, "context", least)?.or(base.context),
        vocabulary: size(section, "vocabulary", least)?.take().or(base.vocabulary),
        activation: section.text("activation")?.or(base.activation),
        norm_epsilon: epsilon
            .must(|&e| e > 0.0, "above zero", "the usual value is 1e-5")?
            .or(base.norm_epsilon),
        rope_theta: theta.take().or(base.rope_theta),
        window: size(section, "window", "leave it out to see every key")?.take(),
        bias: section.flag("bias")?.or(base.bias),
        tie: section.flag("tie")?.or(base.tie),
        head: examples::head_or(section, usual(&base.family).reads_rows.then_some(HeadKind::Sequence))?,
        family: base.family,
        dropout: base.dropout,
    })
}

/// Heads divide the width, unless the size of a head is written.
fn heads_and_width(section: &Section, base: &Shape) -> Result<(usize, usize), Error> {
    let least = "a model has at least one of each";
    let heads_given = size(section, "heads", least)?;
    let width_given = size(section, "width", least)?;
    let heads = heads_given.get().copied().unwrap_or(base.heads);
    let width = width_given.get().copied().unwrap_or(base.width);
    if width.is_multiple_of(heads) || section.has("head_size") {
        return Ok((heads, width));
    }
    let hint = format!("width {} or {} divide evenly", width / heads * heads, (width / heads + 1) * heads);
    // Blame the key that was written; the width if both were.
    Err(if width_given.get().is_some() || heads_given.get().is_none() {
        width_given.impossible(format!("a multiple of model.heads = {heads}"), hint)
    } else {
        heads_given.impossible(format!("a divisor of model.width = {width}"), hint)
    })
}

fn data(section: &Section, model: &Model) -> Result<Data, Error> {
    let named = |names: &Vec<String>| !names.is_empty() && names.iter().all(|name| !name.is_empty());
    let hint = "name a file with two columns, or a .jsonl file";
    let pairs = section.texts("pairs")?.must(named, "at least one path", hint)?;
    if pairs.get().is_some() {
        for key in ["text", "objective", "windows"] {
            if section.has(key) {
                return Err(section.refuse(key, "absent beside `pairs`", "pairs are read as they are"));
            }
        }
    }
    let examples = examples::examples(section)?;
    let held_out = examples.as_ref().is_some_and(|examples| !examples.held_out.is_empty());
    Ok(Data {
        chats: chats::chats(section)?,
        pairs: pairs.or(Vec::new()).into_iter().map(PathBuf::from).collect(),
        examples,
        objective: objective::objective(section)?,
        text: sources::sources(section)?,
        separator: sources::separator(section)?,
        skip_bad: section.flag("skip_bad")?.or(false),
        cache: sources::cache(section)?,
        streaming: sources::streaming(section)?,
        tokenizer: tokenizer(section, model)?,
        validation: if held_out { Validation::Share(0.0) } else { sources::validation(section)? },
        windows: section.text("windows")?.take().map(PathBuf::from),
        masking: masking(section)?,
    })
}

pub(super) fn masking(section: &Section) -> Result<Option<Masking>, Error> {
    if !section.has("masking") {
        return Ok(None);
    }
    let table = section.inner("masking", &["share", "hidden", "random", "whole_words"])?;
    let usual = Masking::default();
    let share = |key, usual| -> Result<f64, Error> {
        let fits = |share: &f64| (0.0..=1.0).contains(share);
        Ok(table
            .number(key)?
            .must(fits, "from 0 to 1", "BERT has share = 0.15, hidden = 0.8, random = 0.1")?
            .or(usual))
    };
    let hidden = share("hidden", usual.hidden)?;
    let random = share("random", usual.random.min(1.0 - hidden))?;
    if hidden + random > 1.0 + 1e-9 {
        let hint =
            "both are shares of the tokens that are to be guessed; what is left of them stays as it is";
        return Err(table.refuse("random", "at most 1 together with `hidden`", hint));
    }
    let share = share("share", usual.share)?;
    Ok(Some(Masking { share, hidden, random, whole_words: table.flag("whole_words")?.or(false) }))
}

fn tokenizer(section: &Section, model: &Model) -> Result<Tokenizer, Error> {
    let loads = matches!(model, Model::Load { .. });
    let given = section.text("tokenizer")?;
    let Some(text) = given.get() else {
        return Ok(if loads { Tokenizer::Model } else { Tokenizer::Char });
    };
    let bytes = 256;
    match text.split_once(':') {
        None if text == "char" => return Ok(Tokenizer::Char),
        None if text == "model" && loads => return Ok(Tokenizer::Model),
        Some(("bpe", vocabulary)) => {
            if let Some(vocabulary) = vocabulary.parse().ok().filter(|&size| size > bytes) {
                return Ok(Tokenizer::Bpe(vocabulary));
            }
            let expected = format!("\"bpe:N\" with N above the {bytes} bytes");
            return Err(given.impossible(expected, "\"bpe:4096\" suits a few megabytes".to_string()));
        }
        _ if text.ends_with(".json") => return Ok(Tokenizer::File(PathBuf::from(text))),
        _ => {}
    }
    let hint = match nearest(text, &["char", "bpe:4096"]) {
        Some(name) => format!("did you mean \"{name}\"?"),
        None if text == "model" => "\"model\" needs model.load".to_string(),
        None => "a tokenizer file ends in .json".to_string(),
    };
    let expected = "\"char\", \"bpe:4096\" or the path of a tokenizer.json";
    Err(given.impossible(expected.to_string(), hint))
}

fn train(section: &Section, steps: u64, context: Option<usize>) -> Result<Train, Error> {
    let share = |value: &f64| (0.0..1.0).contains(value);
    let smoothing = section.number("label_smoothing")?;
    let smoothing = smoothing.must(share, "from 0 to below 1", "the usual value is 0.1")?;
    let evaluate = section.inner("evaluate", &["every", "batches"])?;
    let never = "to evaluate never, set data.validation = 0";
    let batch = size(section, "batch", "a batch holds a sequence")?.or(12);
    Ok(Train {
        steps,
        batch,
        micro_batch: micro_batch(section, batch)?,
        context,
        target: size(section, "target", "something is written of each pair")?.take(),
        accumulate: size(section, "accumulate", "1 means none")?.or(1),
        label_smoothing: smoothing.or(0.0),
        seed: section.count("seed")?.or(1337),
        clip: optimizer::clip(section)?,
        evaluate: Evaluate {
            every: at_least_one(&evaluate, "every", never)?.or(250),
            batches: size(&evaluate, "batches", never)?.or(20),
        },
        optimizer: optimizer::optimizer(section)?,
        learning_rate: rate::learning_rate(section, steps)?,
    })
}

fn micro_batch(section: &Section, batch: usize) -> Result<MicroBatch, Error> {
    match section.value("micro_batch") {
        None => Ok(MicroBatch::Whole),
        Some(Value::String(word)) if word == "auto" => Ok(MicroBatch::Auto),
        Some(Value::Integer(_)) => {
            let rows = size(section, "micro_batch", "a pass takes a sequence")?;
            let fits = |rows: &usize| batch.is_multiple_of(*rows);
            let rows = rows.must(fits, format!("a divisor of train.batch = {batch}"), "1 is the smallest")?;
            Ok(MicroBatch::Rows(rows.or(batch)))
        }
        Some(other) => {
            let hint = format!("it is {}", describe(other));
            Err(section.refuse("micro_batch", "a number of sequences or \"auto\"", &hint))
        }
    }
}

/// What is held in fewer bits is updated by rules that have two moments, and weights in bf16 are read as they are held.
fn refuse_held(raw: &RawRecipe, precision: &Precision, train: &Train, quantizes: bool) -> Result<(), Error> {
    let section = Section::open(raw, "precision")?;
    let fits = matches!(train.optimizer.rule, Rule::Adam { .. } | Rule::Adamw { .. });
    let hint = "choose kind = \"adamw\" or \"adam\" in train.optimizer, or leave this out";
    if !fits && precision.states != States::F32 {
        return Err(section.refuse("states", "\"f32\" beside this optimizer", hint));
    }
    if !fits && precision.weights == Held::Bf16 {
        return Err(section.refuse("weights", "\"f32\" beside this optimizer", hint));
    }
    let reads_otherwise = quantizes
        || !precision.int8.is_empty()
        || precision.storage == Storage::F16
        || precision.storage != Storage::F32 && precision.weights == Held::Int8;
    if reads_otherwise && precision.weights != Held::F32 {
        let hint = "codes and f16 are made from weights in f32";
        return Err(section.refuse("weights", "\"f32\" beside [quantize], int8 or such a storage", hint));
    }
    Ok(())
}

/// The quantised model trained for; beside 16-bit activations and products in int8 it would not be the deployed one.
fn quantize(section: &Section, precision: &Precision) -> Result<Option<Quantize>, Error> {
    let found = quantize::quantize(section)?;
    if found.is_some() && (precision.storage != Storage::F32 || !precision.int8.is_empty()) {
        let hint =
            "leave precision.storage and precision.int8 out: the loss must be that of the deployed model";
        return Err(section.refuse("scheme", "absent beside other storage and products than f32", hint));
    }
    Ok(found)
}

/// What trains the weights of layers in another way has nothing to work on where those stay as they are.
fn refuse_beside_adapters(
    raw: &RawRecipe,
    adapters: &[Adapter],
    precision: &Precision,
    quantizes: bool,
) -> Result<(), Error> {
    if adapters.is_empty() {
        return Ok(());
    }
    let refuse = |table: &str, key, hint| {
        Section::open(raw, table).map(|section| section.refuse(key, "absent beside [adapter]", hint))
    };
    if quantizes {
        let hint =
            "the base is not trained; to hold it in codes write base = \"nf4\" or \"int8\" in [adapter]";
        return Err(refuse("quantize", "scheme", hint)?);
    }
    if !precision.int8.is_empty() {
        let hint = "the products of the base are made as it is held: base = \"int8\" in [adapter]";
        return Err(refuse("precision", "int8", hint)?);
    }
    Ok(())
}

/// Several tasks train all weights of the model, in one pass of each over a whole batch.
fn refuse_beside_tasks(raw: &RawRecipe, tasks: &[Task]) -> Result<(), Error> {
    if tasks.is_empty() {
        return Ok(());
    }
    let expected = "absent beside [[task]]";
    for name in ["adapter", "distill", "dpo", "prune", "quantize"] {
        for section in Section::open_all(raw, name)? {
            if let Some(key) = section.first_key() {
                return Err(section.refuse(
                    key,
                    expected,
                    "tasks train the weights of a whole model as they are",
                ));
            }
        }
    }
    let model = Section::open(raw, "model")?;
    if let Some(key) = ["head", "labels", "problem_type"].into_iter().find(|key| model.has(key)) {
        return Err(model.refuse(key, expected, "each task has a head of its own: write it there"));
    }
    let train = Section::open(raw, "train")?;
    if train.has("micro_batch") {
        let hint = "each task has a batch of its own; train.accumulate takes several before an update";
        return Err(train.refuse("micro_batch", expected, hint));
    }
    if train.number("label_smoothing")?.or(0.0) > 0.0 {
        return Err(train.refuse("label_smoothing", expected, "each task has its own: write it there"));
    }
    Ok(())
}

/// A teacher reads whole windows of text.
fn refuse_teacher_of_chats(raw: &RawRecipe, data: &Data) -> Result<(), Error> {
    let section = Section::open(raw, "distill")?;
    match data.chats.is_some() && section.has("teacher") {
        true => Err(section.refuse(
            "teacher",
            "absent beside [data] chats",
            "a student learns from text: data.text",
        )),
        false => Ok(()),
    }
}

fn run(section: &Section) -> Result<Run, Error> {
    let save = section.inner("save", &["every", "keep"])?;
    let log = section.inner("log", &["every"])?;
    let device = match section.value("device") {
        Some(Value::Integer(_)) => section.count("device")?.map(|index| index.to_string()),
        _ => section.text("device")?,
    };
    let last = "a number above train.steps saves only at the end";
    Ok(Run {
        device: device.or("gpu".to_string()),
        profile: section.flag("profile")?.or(false),
        recover: section.flag("recover")?.or(false),
        folder: PathBuf::from(section.text("folder")?.or("runs/default".to_string())),
        save: Save {
            every: at_least_one(&save, "every", last)?.or(250),
            keep: size(&save, "keep", "the newest checkpoint always stays")?.or(3),
        },
        log: Log { every: at_least_one(&log, "every", "1 logs each step")?.or(1) },
    })
}

/// A count that cannot be zero.
pub(super) fn at_least_one(section: &Section, key: &str, hint: &str) -> Result<Given<u64>, Error> {
    section.count(key)?.must(|&n| n > 0, "at least 1", hint)
}

/// A size that cannot be zero.
pub(super) fn size(section: &Section, key: &str, hint: &str) -> Result<Given<usize>, Error> {
    section.size(key)?.must(|&n| n > 0, "at least 1", hint)
}
