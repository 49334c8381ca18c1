//! A teacher that runs ahead of the student: what it says of every training window lies in a folder, for any number of runs.
//!
//! ```text
//! FOLDER/cache.json           what it was made of and for
//! FOLDER/000000.safetensors   the first batches of the run: columns [b, rows, T, K], logs [b, rows, T, K + 1],
//! FOLDER/000001.safetensors   check [b, rows]: checksums of the tokens of each window
//! ```
//! Files appear whole or not at all, so that a run ahead that was interrupted goes on behind the last one. A longer run of the same
//! student adds to it.

use super::{Teacher, Top, held};
use crate::data::windows::{Batch, Sampler};
use crate::graph::{Graph, Source};
use crate::model::{Extent, Family, Mode, Weights};
use crate::passes::{self, Fuse, Pieces, Residual, Tidy};
use crate::plan::{Engine, Residents};
use crate::tensor::Tensor;
use crate::train::checkpoint::{Stored, read_tensors, write_bytes, write_tensors};
use crate::train::frozen::{self, Frozen};
use crate::train::run::Watch;
use crate::train::{Error, Result, Target};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::Ordering;

/// The file that says what a cache is of.
const KEY_FILE: &str = "cache.json";

/// Bytes of one file of batches, about.
const PIECE_BYTES: usize = 16 << 20;

/// What a cache was made of and for: one that differs in any of it is of no use to a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Key {
    /// Hash of the teacher's config and weights.
    pub teacher: String,
    /// How its weights were held.
    pub precision: String,
    /// Hash of the training tokens.
    pub tokens: String,
    /// How windows are chosen of them.
    pub windows: String,
    /// Windows in a batch.
    pub batch: usize,
    /// Tokens in a window.
    pub context: usize,
    /// Both sides' logits are divided by it.
    pub temperature: f64,
    /// Tokens kept of each position.
    pub top_k: usize,
}

/// Such a folder.
#[derive(Debug)]
pub struct Cache {
    folder: PathBuf,
    key: Key,
    /// The file that was read last: batches come in order.
    held: Mutex<Option<Piece>>,
}

#[derive(Debug)]
struct Piece {
    number: usize,
    check: Vec<u32>,
    columns: Vec<u32>,
    logs: Vec<f32>,
}

/// Hash of a model: its config and its weights, wherever and in whatever files they lie.
pub fn hash_of(folder: &Path, family: &dyn Family) -> Result<String> {
    let weights = Weights::read(folder, family)?;
    let mut hash = Sha256::new();
    hash.update(serde_json::to_string(&family.config()).expect("a configuration is JSON"));
    for spec in family.parameters() {
        hash.update(&spec.name);
        hash.update(bytemuck::cast_slice::<f32, u8>(weights.numbers(&spec.name)?.real::<f32>()));
    }
    Ok(hex(hash))
}

/// Hash of tokens.
pub fn hash_of_tokens(tokens: &[u32]) -> String {
    hex(Sha256::new_with_prefix(bytemuck::cast_slice::<u32, u8>(tokens)))
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn refused(folder: &Path, problem: String, hint: &str) -> Error {
    Error::Cache { folder: folder.display().to_string(), problem, hint: hint.to_string() }
}

impl Cache {
    /// The cache in a folder, which is made where it is not there; one that was made for something else is refused.
    pub fn open(folder: &Path, key: Key) -> Result<Cache> {
        let wrong = |source| refused(folder, format!("{source}"), "distill.cache is a folder of its own");
        let path = folder.join(KEY_FILE);
        if path.exists() {
            let bytes = std::fs::read(&path).map_err(wrong)?;
            let found: Key = serde_json::from_slice(&bytes).map_err(|e| wrong(e.into()))?;
            if let Some((name, theirs, ours)) = difference(&found, &key) {
                let problem = format!("it was made with {name} {theirs}, this run has {ours}");
                return Err(refused(
                    folder,
                    problem,
                    "name another folder as distill.cache, or remove this one",
                ));
            }
        } else {
            std::fs::create_dir_all(folder).map_err(wrong)?;
            if std::fs::read_dir(folder).map_err(wrong)?.next().is_some() {
                let problem = "there are files in it, and none of them says what for".to_string();
                return Err(refused(folder, problem, "name a new folder as distill.cache"));
            }
            let text = serde_json::to_string_pretty(&key).expect("a key is plain data") + "\n";
            write_bytes(&path, text.as_bytes()).map_err(wrong)?;
        }
        Ok(Cache { folder: folder.to_path_buf(), key, held: Mutex::default() })
    }

    /// Batches in a file.
    fn each(&self) -> usize {
        let bytes = self.key.batch * self.key.context * (8 * self.key.top_k + 4);
        (PIECE_BYTES / bytes).max(1)
    }

    fn place(&self, piece: usize) -> PathBuf {
        self.folder.join(format!("{piece:06}.safetensors"))
    }

    /// Lets the teacher say what is missing of the first `batches` batches of a sampler, `rows` windows at a time. Stops in between where it is told to.
    pub fn fill(
        &self,
        teacher: &Teacher,
        mut sampler: Sampler,
        batches: usize,
        rows: usize,
        target: &Target,
        watch: &mut Watch,
    ) -> Result<()> {
        let each = self.each();
        let wanted = |piece: usize| each.min(batches - piece * each);
        let pieces = batches.div_ceil(each);
        let is_there = |piece: usize| batches_in(&self.place(piece)) >= wanted(piece);
        let missing: usize = (0..pieces).filter(|&piece| !is_there(piece)).map(wanted).sum();
        if missing == 0 {
            (watch.say)(&format!("teacher  has said all there is to say in {}", self.folder.display()));
            return Ok(());
        }
        (watch.say)(&format!("teacher  runs ahead over {missing} batches, into {}", self.folder.display()));
        let mut voice = Voice::new(teacher, target, Extent { batch: rows, context: self.key.context })?;
        for piece in 0..pieces {
            if is_there(piece) {
                (0..wanted(piece)).try_for_each(|_| sampler.next_batch().map(drop))?;
                continue;
            }
            let (mut check, mut top) = (vec![], Top::default());
            for _ in 0..wanted(piece) {
                if watch.stop.load(Ordering::Relaxed) {
                    return Ok(());
                }
                let batch = sampler.next_batch()?;
                check.extend(checks(&batch));
                for part in batch.split(rows) {
                    let logits = voice.logits(part)?;
                    let cols = logits.shape.last();
                    let said = Top::of(logits.real(), cols, self.key.top_k, self.key.temperature);
                    top.columns.extend(said.columns);
                    top.logs.extend(said.logs);
                }
            }
            self.write(piece, check, top)?;
        }
        Ok(())
    }

    fn write(&self, piece: usize, check: Vec<u32>, top: Top) -> Result<()> {
        let Key { batch, context, top_k, .. } = self.key;
        let count = check.len() / batch;
        let tensors = [
            ("check", Tensor::u32([count, batch], check)),
            ("columns", Tensor::u32([count, batch, context, top_k], top.columns)),
            ("logs", Tensor::f32([count, batch, context, top_k + 1], top.logs)),
        ];
        let tensors = tensors.each_ref().map(|(name, tensor)| (name.to_string(), Stored::of(tensor)));
        write_tensors(&self.place(piece), &tensors).map_err(|source| {
            let hint = "what was written before is kept: free some space and start again";
            refused(&self.folder, format!("cannot be written: {source}"), hint)
        })
    }

    /// What the teacher says of some windows of a batch, from row `row` on: columns [N, K] and logarithms [N, K + 1].
    pub fn read(&self, number: usize, row: usize, batch: &Batch) -> Result<[Tensor; 2]> {
        let (piece, at) = (number / self.each(), number % self.each());
        let mut held = self.held.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if held.as_ref().is_none_or(|held| held.number != piece) {
            *held = Some(self.load(piece)?);
        }
        let held = held.as_ref().expect("just loaded");
        let first = at * self.key.batch + row;
        let windows = first..first + batch.rows;
        if held.check.get(windows.clone()) != Some(&checks(batch)[..]) {
            let problem = format!("it has nothing of the windows of batch {number}");
            return Err(refused(&self.folder, problem, "remove it, so that the teacher runs ahead anew"));
        }
        let (positions, top_k) = (batch.rows * self.key.context, self.key.top_k);
        let part =
            |each: usize| windows.start * self.key.context * each..windows.end * self.key.context * each;
        Ok([
            Tensor::u32([positions, top_k], held.columns[part(top_k)].to_vec()),
            Tensor::f32([positions, top_k + 1], held.logs[part(top_k + 1)].to_vec()),
        ])
    }

    fn load(&self, number: usize) -> Result<Piece> {
        let path = self.place(number);
        let wrong = |problem: String| {
            let hint = "remove that file, so that the teacher says it again";
            refused(&self.folder, format!("{}: {problem}", path.display()), hint)
        };
        let tensors = read_tensors(&path).map_err(wrong)?;
        let find = |name: &str| {
            let found =
                tensors.iter().find(|(other, _)| other == name).and_then(|(_, stored)| stored.to_tensor());
            found.ok_or_else(|| wrong(format!("`{name}` is missing")))
        };
        let (check, columns, logs) = (find("check")?, find("columns")?, find("logs")?);
        let Key { context, top_k, .. } = self.key;
        let windows = check.shape.count();
        let sizes = [columns.shape.count(), logs.shape.count()];
        if sizes != [windows * context * top_k, windows * context * (top_k + 1)] {
            return Err(wrong(format!("shapes {} and {} do not fit", columns.shape, logs.shape)));
        }
        let (check, columns) = (check.as_u32().to_vec(), columns.as_u32().to_vec());
        Ok(Piece { number, check, columns, logs: logs.real::<f32>().to_vec() })
    }
}

/// The first key in which two differ, with both values.
fn difference(found: &Key, wanted: &Key) -> Option<(String, String, String)> {
    let fields = |key: &Key| match serde_json::to_value(key) {
        Ok(serde_json::Value::Object(fields)) => fields,
        _ => unreachable!("a key is a JSON object"),
    };
    let (found, wanted) = (fields(found), fields(wanted));
    let (name, theirs) = found.iter().find(|(name, value)| wanted[*name] != **value)?;
    Some((name.clone(), theirs.to_string(), wanted[name].to_string()))
}

/// A checksum of the tokens of each window.
fn checks(batch: &Batch) -> Vec<u32> {
    let windows = batch.tokens.chunks(batch.context);
    windows.map(|tokens| crc32fast::hash(bytemuck::cast_slice(tokens))).collect()
}

/// Batches in a file, by its header; none where it is not there or cannot be read.
fn batches_in(path: &Path) -> usize {
    let header = || -> Option<serde_json::Value> {
        let mut file = File::open(path).ok()?;
        let mut length = [0; 8];
        file.read_exact(&mut length).ok()?;
        let mut text = vec![];
        file.take(u64::from_le_bytes(length)).read_to_end(&mut text).ok()?;
        serde_json::from_slice(&text).ok()
    };
    header().and_then(|h| h["check"]["shape"][0].as_u64()).unwrap_or(0) as usize
}

/// A teacher on a device, saying what it deems likely.
struct Voice {
    engine: Box<dyn Engine>,
    extent: Extent,
}

impl Voice {
    fn new(teacher: &Teacher, target: &Target, extent: Extent) -> Result<Voice> {
        let weights = Frozen::of(&held(&teacher.recipe, teacher.family.as_ref())?, "");
        let mut graph = Graph::new();
        let forward = teacher.family.forward(&mut graph, extent, Mode::Evaluate)?;
        graph.output("logits", forward.logits);
        let most_bytes = target.caps().max_binding_bytes;
        let (graph, _) = passes::run(&[&Pieces { whole: weights.coded(), ..Pieces::of(most_bytes) }], graph)?;
        let (graph, _) = passes::run(&[&weights.quantize_in(&graph), &Tidy, &Residual, &Fuse], graph)?;
        let mut residents = Residents::default();
        let kept = graph.values().iter().filter(|info| matches!(info.source, Source::Parameter));
        frozen::place(kept, most_bytes, &mut residents);
        let plans = target.plans(&[&graph], &residents, None)?;
        let mut engine = target.engine(&residents.arenas, plans)?;
        for (name, &span) in &residents.places {
            if let Some(tensor) = weights.tensor(name) {
                engine.write(span, &tensor)?;
            }
        }
        Ok(Voice { engine, extent })
    }

    /// Logits [N, V] of some windows.
    fn logits(&mut self, batch: Batch) -> Result<Tensor> {
        let tokens = Tensor::u32([self.extent.batch, self.extent.context], batch.tokens);
        Ok(self.engine.run(0, &[&tokens])?.swap_remove(0))
    }
}
