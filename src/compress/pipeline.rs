//! Runs the passes of a recipe one after another, and leaves behind what is needed to go on from any of them.
//!
//! Beside the output lies a working folder: the model as it came in, and for each finished pass the model it gave, with a record of
//! all that was done so far. A pass is finished when its folder has its name; until then it works in a folder of its own. A
//! second run finds the longest run of passes that were done with the same model, the same texts and the same keys, and goes on behind it.

use super::calibrate::{Calibration, Statistics, gram_bytes, layers_of};
use super::method::{expect_same, probe};
use super::prune::masks_hold;
use super::recipe::{Measure, Recipe, Text, names};
use super::stage::{Needs, Order, Promise, Report, Setting, Stage, Statistic, Subject};
use super::{Error, Linear, Result};
use crate::data::windows::Batch;
use crate::exchange::{self, Opened};
use crate::formats::write_whole_folder;
use crate::model::{Extent, Family, Weights};
use crate::tensor::random::Stream;
use crate::train::Target;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// The file in a compressed model's folder that tells how it came about.
pub const RECORD_FILE: &str = "compression.json";

/// The key of a GGUF file that holds the same.
pub const RECORD_KEY: &str = "kiln.compression";

/// In the folder in which a pass works: hash of all that its result depends on.
const KEY_FILE: &str = "key";

/// How a model came about, in its folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Version of kiln.
    pub kiln: String,
    /// The recipe with every default filled in.
    pub recipe: Recipe,
    /// Hash of its text.
    pub recipe_sha256: String,
    /// Hash of config and weights of the model that came in.
    pub model_sha256: String,
    /// Hash of the tokens that were measured with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calibration_sha256: Option<String>,
    /// What each pass did.
    pub passes: Vec<Done>,
    /// The record of the model that came in, where it was compressed before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Box<Record>>,
}

/// A pass that was done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Done {
    /// Its kind.
    pub pass: String,
    /// Hash of everything that it depends on: model, texts, seed and the passes up to this one.
    pub key: String,
    /// What it promised.
    pub promise: Promise,
    /// Elements of all weights behind it.
    pub parameters: usize,
    /// What it says.
    #[serde(flatten)]
    pub report: Report,
}

/// A recipe about to be applied.
pub struct Pipeline<'a> {
    /// The recipe.
    pub recipe: &'a Recipe,
    /// Where texts are run.
    pub target: &'a Target,
    /// How that device is named.
    pub device: &'a str,
    /// Windows of the calibration text.
    pub batches: &'a [Batch],
    /// The working folder.
    pub folder: &'a Path,
    /// When it turns true the pass under way stops.
    pub stop: &'a AtomicBool,
    /// Gets what a person should read.
    pub say: &'a dyn Fn(&str),
}

impl Pipeline<'_> {
    /// Applies all passes; those that were finished in the working folder already, by the same keys on the same model, are not done
    /// again.
    pub fn run(&self, subject: Subject) -> Result<(Subject, Record)> {
        let mut record = self.begin(&subject)?;
        let keys = self.keys(&record);
        if self.recipe.looks_back() && !self.original().exists() {
            self.keep_original(&subject)?;
        }
        let came_pruned = !subject.masks.is_empty();
        let mut subject = match self.finished(&keys)? {
            Some((done, mut reached)) => {
                (self.say)(&format!("passes 1 to {} are done already", done.passes.len()));
                record = done;
                if came_pruned || self.recipe.stages().take(record.passes.len()).any(Stage::prunes) {
                    reached.hold_zeros()?;
                }
                reached
            }
            None => subject,
        };
        let mut known = Statistics::default();
        let count = self.recipe.passes.len();
        for (at, stage) in self.recipe.stages().enumerate().skip(record.passes.len()) {
            (self.say)(&format!("pass {} of {count}  {}", at + 1, stage.kind()));
            let work = self.work(at, stage, &keys[at])?;
            let done = self.one(at, stage, &mut subject, &mut known).map_err(|source| {
                self.leave_nothing_empty(&work);
                let (number, stage, before) = (at + 1, stage.kind(), names(self.recipe.stages().take(at)));
                Error::Stage { number, stage, before, source: Box::new(source) }
            })?;
            (self.say)(&format!("         {}", done.summary));
            done.notes.iter().for_each(|note| (self.say)(&format!("         {note}")));
            record.passes.push(Done {
                pass: stage.kind().to_string(),
                key: keys[at].clone(),
                promise: stage.promise(),
                parameters: subject.weights.count_elements(),
                report: done,
            });
            self.keep(at, stage, &subject, &record)?;
        }
        Ok((subject, record))
    }

    /// The passes of a recipe that are finished in the working folder.
    pub fn done(&self, subject: &Subject) -> Result<usize> {
        let keys = self.keys(&self.begin(subject)?);
        Ok(self.finished(&keys)?.map_or(0, |(record, _)| record.passes.len()))
    }

    /// Hash of everything that the result depends on.
    pub fn key(&self, subject: &Subject) -> Result<String> {
        let keys = self.keys(&self.begin(subject)?);
        Ok(keys.last().cloned().unwrap_or_default())
    }

    fn begin(&self, subject: &Subject) -> Result<Record> {
        let mut tokens = Sha256::new();
        for batch in self.batches {
            tokens.update(bytemuck::cast_slice::<u32, u8>(&batch.tokens));
        }
        Ok(Record {
            kiln: env!("CARGO_PKG_VERSION").to_string(),
            recipe: self.recipe.clone(),
            recipe_sha256: hex(Sha256::digest(self.recipe.to_toml())),
            model_sha256: hash_of(subject.family.as_ref(), &subject.weights)?,
            calibration_sha256: (!self.batches.is_empty()).then(|| hex(tokens.finalize())),
            passes: vec![],
            before: None,
        })
    }

    /// For each pass the hash of all that its result depends on.
    fn keys(&self, record: &Record) -> Vec<String> {
        let of = |count: usize| {
            let passes = self.recipe.passes[..count].to_vec();
            // Where the text lies does not matter, its tokens do; nor in how many pieces it is measured.
            let mut recipe = Recipe { passes, ..self.recipe.clone() };
            recipe.calibration.text.clear();
            recipe.calibration.memory = Text::default().memory;
            let calibration = record.calibration_sha256.as_deref().unwrap_or_default();
            let text = [&record.kiln, &record.model_sha256, calibration, &recipe.to_toml()].join("\n");
            hex(Sha256::digest(text))
        };
        (1..=self.recipe.passes.len()).map(of).collect()
    }

    /// The folder in which a pass works: what it was about with another model, text or recipe is taken away.
    fn work(&self, at: usize, stage: &dyn Stage, key: &str) -> Result<PathBuf> {
        let work = work_of(&self.place(at, stage));
        let wrong = |source| Error::File { path: work.display().to_string(), source };
        let file = work.join(KEY_FILE);
        if work.exists() && std::fs::read_to_string(&file).ok().as_deref() != Some(key) {
            std::fs::remove_dir_all(&work).map_err(wrong)?;
        }
        std::fs::create_dir_all(&work).map_err(wrong)?;
        std::fs::write(&file, key).map_err(wrong)?;
        Ok(work)
    }

    /// Takes away the folder of a pass that failed before it wrote anything, so that the same command may be tried anew.
    fn leave_nothing_empty(&self, work: &Path) {
        let only_key =
            |mut all: std::fs::ReadDir| all.all(|one| one.is_ok_and(|one| one.file_name() == KEY_FILE));
        if std::fs::read_dir(work).is_ok_and(only_key) {
            // A folder that holds finished passes refuses to go, and so it should.
            let _ = std::fs::remove_dir_all(work).and_then(|()| std::fs::remove_dir(self.folder));
        }
    }

    fn place(&self, at: usize, stage: &dyn Stage) -> PathBuf {
        self.folder.join(format!("{:02}-{}", at + 1, stage.kind()))
    }

    /// The longest run of passes that are done, with the model behind it.
    fn finished(&self, keys: &[String]) -> Result<Option<(Record, Subject)>> {
        let all: Vec<&dyn Stage> = self.recipe.stages().collect();
        for (at, stage) in all.into_iter().enumerate().rev() {
            let place = self.place(at, stage);
            let Ok(text) = std::fs::read_to_string(place.join(RECORD_FILE)) else { continue };
            let Ok(mut record) = serde_json::from_str::<Record>(&text) else { continue };
            if record.passes.last().is_some_and(|done| done.key == keys[at]) {
                let Opened { family, weights, tokenizer } = exchange::open(&place)?;
                record.recipe = self.recipe.clone();
                record.recipe_sha256 = hex(Sha256::digest(self.recipe.to_toml()));
                return Ok(Some((record, Subject::new(family, weights, tokenizer))));
            }
        }
        Ok(None)
    }

    fn keep(&self, at: usize, stage: &dyn Stage, subject: &Subject, record: &Record) -> Result<()> {
        let place = self.place(at, stage);
        let wrong = |source| Error::File { path: place.display().to_string(), source };
        if place.exists() {
            std::fs::remove_dir_all(&place).map_err(wrong)?;
        }
        write_whole_folder(&place, |new| save(subject, record, new), wrong)?;
        let work = work_of(&place);
        if work.exists() {
            std::fs::remove_dir_all(&work).map_err(wrong)?;
        }
        Ok(())
    }

    fn one(
        &self,
        at: usize,
        stage: &dyn Stage,
        subject: &mut Subject,
        known: &mut Statistics,
    ) -> Result<Report> {
        let work = work_of(&self.place(at, stage));
        let start = self.recipe.calibration.measure == Measure::Start;
        if !start {
            *known = Statistics::default();
        }
        let asked = match start {
            true => self.recipe.stages().skip(at).take_while(|s| s.order() != Order::Shape).collect(),
            false => vec![stage],
        };
        if *known == Statistics::default() {
            *known = self.measure(subject, &asked)?;
        }
        let original = self.original();
        let behind = self.recipe.stages().enumerate().take(at).map(|(at, stage)| self.place(at, stage));
        let earlier: Vec<PathBuf> = [original.clone()].into_iter().chain(behind).collect();
        let setting = Setting {
            target: self.target,
            device: self.device,
            batches: self.batches,
            known,
            memory_bytes: self.recipe.calibration.memory.0,
            seed: self.recipe.seed,
            data: &self.recipe.data,
            original: &original,
            earlier: &earlier,
            folder: &work,
            stop: self.stop,
            say: self.say,
        };
        let report = checked(stage, subject, &setting)?;
        if stage.order() == Order::Shape {
            *known = Statistics::default();
        }
        // A mask of another shape says nothing; what is zero is still to stay so.
        let anew = stage.prunes() || stage.order() == Order::Shape && !subject.masks.is_empty();
        if stage.order() != Order::Shape {
            masks_hold(subject.family.as_ref(), &subject.weights, &subject.masks)?;
        }
        if anew {
            subject.hold_zeros()?;
        }
        Ok(report)
    }

    fn original(&self) -> PathBuf {
        self.folder.join("original")
    }

    /// Keeps the model as it came in, for teachers.
    fn keep_original(&self, subject: &Subject) -> Result<()> {
        let place = self.original();
        let wrong = |source| Error::File { path: place.display().to_string(), source };
        write_whole_folder(&place, |new| save_model(subject, new), wrong)
    }

    /// What some passes will want to know of the model, in one sweep over the text as far as it fits.
    fn measure(&self, subject: &Subject, stages: &[&dyn Stage]) -> Result<Statistics> {
        let needs: Vec<Needs> = stages.iter().map(|stage| stage.needs()).collect();
        let wanted = needs.iter().flat_map(|needs| &needs.statistics);
        let Some(first) = self.batches.first() else { return Ok(Statistics::default()) };
        let extent = Extent { batch: first.rows, context: first.context };
        let (_, all) = layers_of(subject.family.as_ref(), extent)?;
        let (mut grams, mut channels): (HashSet<&str>, HashSet<&str>) = Default::default();
        for (what, selection) in wanted {
            let of = match what {
                Statistic::Gram => &mut grams,
                Statistic::Channels => &mut channels,
            };
            of.extend(selection.of(&all)?.into_iter().map(|linear| linear.weight.as_str()));
        }
        let list = |names: &HashSet<&str>| -> Vec<&Linear> {
            all.iter().filter(|linear| names.contains(linear.weight.as_str())).collect()
        };
        let mut grams = list(&grams);
        let memory_bytes = self.recipe.calibration.memory.0;
        // What does not fit is measured by each pass, piece by piece.
        if gram_bytes(&grams) > memory_bytes {
            grams.clear();
        }
        let (family, weights) = (subject.family.as_ref(), &subject.weights);
        let (target, batches) = (self.target, self.batches);
        let stored = weights.stored().map(|(name, _)| name.to_string()).collect::<HashSet<_>>();
        grams.retain(|linear| !stored.contains(&linear.weight));
        let calibration = Calibration { family, weights, target, batches, known: None, memory_bytes };
        calibration.measure(&grams, &list(&channels))
    }
}

/// Applies a pass, and holds it to its promise: what is to be exact is compared on the host, on a batch of tokens.
pub fn checked(stage: &dyn Stage, subject: &mut Subject, setting: &Setting) -> Result<Report> {
    let needs = stage.needs();
    if needs.calibration && setting.batches.is_empty() {
        return Err(Error::NoCalibration { method: stage.kind() });
    }
    if needs.training && !setting.data.contains_key("text") {
        return Err(Error::NoTraining { stage: stage.kind() });
    }
    if stage.promise() != Promise::Exact {
        return stage.apply(subject, setting);
    }
    let batch = probe_batch(subject.family.as_ref(), setting.seed);
    let scores = |subject: &Subject| probe(subject.family.as_ref(), &subject.weights, &Target::Host, &batch);
    let before = scores(subject)?;
    let report = stage.apply(subject, setting)?;
    expect_same(stage.kind(), &before, &scores(subject)?)?;
    Ok(report)
}

/// Some tokens to try a model with.
pub(super) fn probe_batch(family: &dyn Family, seed: u64) -> Batch {
    let context = family.context().min(32);
    let mut random = Stream::new(&[seed as u32, (seed >> 32) as u32, 0x7072_6f62]);
    let tokens = (0..context).map(|_| random.below(family.vocabulary() as u64) as u32).collect();
    Batch { rows: 1, context, tokens, targets: vec![0; context] }
}

fn work_of(place: &Path) -> PathBuf {
    let name = place.file_name().map_or(String::new(), |name| name.to_string_lossy().into_owned());
    place.with_file_name(format!("{name}.work"))
}

fn save(subject: &Subject, record: &Record, folder: &Path) -> Result<()> {
    save_model(subject, folder)?;
    record.write(folder)
}

fn save_model(subject: &Subject, folder: &Path) -> Result<()> {
    subject.weights.save(folder, subject.family.as_ref())?;
    match &subject.tokenizer {
        Some(tokenizer) => Ok(tokenizer.save(folder)?),
        None => Ok(()),
    }
}

impl Record {
    /// Whether a pass of it, or of what came before, removed weights that are to stay so.
    pub fn prunes(&self) -> bool {
        let before = self.before.as_ref().is_some_and(|before| before.prunes());
        before || self.recipe.stages().take(self.passes.len()).any(Stage::prunes)
    }

    /// Its text.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a record is plain data") + "\n"
    }

    /// Writes it into a model's folder.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join(RECORD_FILE);
        std::fs::write(&path, self.to_json())
            .map_err(|source| Error::File { path: path.display().to_string(), source })
    }

    /// The record in a model's folder; none where there is none that this version reads.
    pub fn of_folder(folder: &Path) -> Option<Record> {
        serde_json::from_slice(&std::fs::read(folder.join(RECORD_FILE)).ok()?).ok()
    }
}

/// Hash of a model: its configuration, and names, shapes and bytes of its weights.
fn hash_of(family: &dyn Family, weights: &Weights) -> Result<String> {
    let mut hash = Sha256::new();
    hash.update(serde_json::to_string(&family.config()).expect("a configuration is JSON"));
    for spec in family.parameters() {
        hash.update(&spec.name);
        let tensor = weights.numbers(&spec.name)?;
        hash.update(bytemuck::cast_slice::<f32, u8>(tensor.real::<f32>()));
    }
    Ok(hex(hash.finalize()))
}

fn hex(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compress::Entry;
    use crate::compress::stages::Quantize;
    use crate::model::{self, initial};
    use std::cell::RefCell;

    fn subject() -> Subject {
        let config = serde_json::json!({
            "model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 8, "vocab_size": 11,
        });
        let keys = config.as_object().unwrap().clone();
        let family = model::from_config(&model::Config::new("a test", keys)).unwrap();
        let weights = initial(&family.parameters(), 3);
        Subject::new(family, weights, None)
    }

    fn int8(target: &str) -> Entry {
        Quantize { targets: Some(vec![target.to_string()]), ..Quantize::to("int8") }.into()
    }

    /// Runs a recipe in a folder; gives the model, its record, and what was said.
    fn run(recipe: &Recipe, folder: &Path) -> (Subject, Record, String) {
        let said = RefCell::new(String::new());
        let (subject, record) = {
            let say = |line: &str| said.borrow_mut().push_str(line);
            let (stop, target) = (AtomicBool::new(false), Target::Host);
            let pipeline = Pipeline {
                recipe,
                target: &target,
                device: "cpu",
                batches: &[],
                folder,
                stop: &stop,
                say: &say,
            };
            pipeline.run(subject()).unwrap()
        };
        (subject, record, said.into_inner())
    }

    #[test]
    fn a_second_run_goes_on_behind_the_passes_that_are_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let both = Recipe::of([int8("*c_fc*"), int8("*mlp.c_proj*")]);
        let (first, record, said) = run(&both, folder.path());
        assert_eq!(record.passes.len(), 2);
        assert!(!said.contains("done already"), "{said}");
        let (again, same, said) = run(&both, folder.path());
        assert!(said.contains("passes 1 to 2 are done already"), "{said}");
        assert_eq!((&again.weights, same), (&first.weights, record.clone()));
        let changed = Recipe::of([int8("*c_fc*"), int8("*c_attn*")]);
        let (other, record_of_other, said) = run(&changed, folder.path());
        assert!(said.contains("passes 1 to 1 are done already"), "{said}");
        assert_eq!(record_of_other.passes[0], record.passes[0]);
        assert_ne!(other.weights, first.weights);
    }

    #[test]
    fn the_same_recipe_writes_the_same_bytes() {
        let recipe = Recipe::of([int8("*c_fc*")]);
        let files = || {
            let folder = tempfile::tempdir().unwrap();
            run(&recipe, folder.path());
            let place = folder.path().join("01-quantize");
            ["model.safetensors", "config.json", RECORD_FILE]
                .map(|name| std::fs::read(place.join(name)).unwrap())
        };
        assert_eq!(files(), files());
    }

    /// Says it changes nothing, and moves one weight.
    #[derive(Debug)]
    struct Broken;
    impl Stage for Broken {
        fn kind(&self) -> &'static str {
            "broken"
        }
        fn check(&self) -> Result<()> {
            Ok(())
        }
        fn order(&self) -> Order {
            Order::Weights
        }
        fn promise(&self) -> Promise {
            Promise::Exact
        }
        fn needs(&self) -> Needs {
            Needs::default()
        }
        fn apply(&self, subject: &mut Subject, _: &Setting) -> Result<Report> {
            let name = "transformer.h.0.mlp.c_fc.weight";
            let mut weight = subject.weights.get(name)?.clone();
            weight.real_mut::<f32>()[5] += 3.0;
            subject.weights.set(name, weight);
            Ok(Report::new("nothing changed"))
        }
    }

    #[test]
    fn a_pass_that_breaks_its_promise_is_caught_on_the_probe_batch() {
        let (stop, data, known) = (AtomicBool::new(false), toml::Table::new(), Statistics::default());
        let setting = Setting::new(&Target::Host, "cpu", &known, &data, &stop);
        let error = checked(&Broken, &mut subject(), &setting).unwrap_err();
        assert!(matches!(error, Error::NotExact { method: "broken", .. }), "{error}");
    }
}
