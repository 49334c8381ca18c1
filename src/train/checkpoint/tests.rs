//! The store as a whole: nothing is lost, whatever fails.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::durable::{Create, Sink};
use super::*;
use crate::tensor::Tensor;

type Named = Vec<(String, Stored<'static>)>;

/// Weights that differ from step to step.
fn named(step: u64, names: &[&str]) -> Named {
    let tensor =
        |index: usize| Tensor::f32([3, 5], (0..15).map(|x| (x + index) as f32 / (step + 3) as f32).collect());
    let owned = |stored: Stored| Stored { bytes: stored.bytes.into_owned().into(), ..stored };
    let list = names.iter().enumerate();
    list.map(|(index, name)| (name.to_string(), owned(Stored::of(&tensor(index))))).collect()
}

fn state(step: u64) -> Value {
    json!({ "cursor": step * 12, "seed": u64::MAX, "schedule": { "rate": 1.0 / 3.0 } })
}

fn save(store: &Store, step: u64, validation_loss: Option<f64>) -> Result<Saved, Error> {
    let (model, optimizer) = (named(step, &["wte.weight", "h.0.bias"]), named(step + 1, &["m.wte.weight"]));
    let extra = [("config.json".to_string(), b"{}".to_vec())];
    let state = state(step);
    store.save(&Snapshot {
        step,
        model: &model,
        optimizer: &optimizer,
        extra: &extra,
        state: &state,
        validation_loss,
    })
}

fn assert_is(loaded: &Loaded, step: u64) {
    let sorted = |mut list: Named| {
        list.sort_by(|(a, _), (b, _)| a.cmp(b));
        list
    };
    assert_eq!(loaded.step, step);
    assert_eq!(loaded.model, sorted(named(step, &["wte.weight", "h.0.bias"])));
    assert_eq!(loaded.optimizer, sorted(named(step + 1, &["m.wte.weight"])));
    assert_eq!(loaded.state, state(step));
    assert_eq!(fs::read(loaded.folder.join("config.json")).unwrap(), b"{}");
}

fn entries(run: &Path) -> Vec<String> {
    let entries = fs::read_dir(run.join("checkpoints")).unwrap();
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn opened(keep: usize) -> (TempDir, Store) {
    let run = tempfile::tempdir().unwrap();
    let store = Store::open(run.path(), keep).unwrap();
    (run, store)
}

fn file(run: &TempDir, step: u64, name: &str) -> PathBuf {
    run.path().join(format!("checkpoints/step-{step:06}")).join(name)
}

#[test]
fn what_is_saved_is_what_is_loaded() {
    let (_run, store) = opened(3);
    assert!(store.load_latest().unwrap().is_none());
    save(&store, 250, None).unwrap();
    let loaded = store.load_latest().unwrap().unwrap();
    assert_is(&loaded, 250);
    assert!(loaded.rejected.is_empty());
}

#[test]
fn the_newest_few_and_the_best_stay() {
    let (run, store) = opened(2);
    for (step, loss) in [(1, Some(3.0)), (2, Some(1.5)), (3, Some(2.0)), (4, Some(f64::NAN)), (5, None)] {
        let saved = save(&store, step, loss).unwrap();
        assert_eq!(saved.is_best, step <= 2);
        assert!(saved.warnings.is_empty());
    }
    assert_eq!(entries(run.path()), ["best.json", "step-000002", "step-000004", "step-000005"]);
    assert_is(&store.load_best().unwrap().unwrap(), 2);
    assert_eq!(store.load_best().unwrap().unwrap().validation_loss, Some(1.5));
}

#[test]
fn the_same_step_may_be_saved_again() {
    let (run, store) = opened(3);
    save(&store, 7, Some(1.0)).unwrap();
    assert!(save(&store, 7, Some(2.0)).unwrap().is_best);
    assert_is(&store.load_latest().unwrap().unwrap(), 7);
    assert_eq!(entries(run.path()), ["best.json", "step-000007"]);
}

#[test]
fn every_kind_of_damage_is_noticed_and_the_one_before_is_used() {
    let truncate = |path: &Path| fs::OpenOptions::new().write(true).open(path).unwrap().set_len(40).unwrap();
    let flip = |path: &Path| {
        let mut bytes = fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(path, bytes).unwrap();
    };
    let edit = |path: &Path| {
        let text = fs::read_to_string(path).unwrap().replace("\"cursor\": 6000", "\"cursor\": 6001");
        fs::write(path, text).unwrap();
    };
    let newer = |path: &Path| {
        let text = fs::read_to_string(path).unwrap().replace("\"format\": 1", "\"format\": 2");
        fs::write(path, text).unwrap();
    };
    let remove = |path: &Path| fs::remove_file(path).unwrap();
    type Damage<'a> = (&'a str, &'a dyn Fn(&Path), &'a str);
    let damages: [Damage; 8] = [
        ("model.safetensors", &truncate, "model.safetensors has 40 bytes"),
        ("model.safetensors", &flip, "model.safetensors has changed"),
        ("optimizer.safetensors", &flip, "optimizer.safetensors has changed"),
        ("config.json", &remove, "config.json: "),
        ("manifest.json", &remove, "manifest.json: "),
        ("manifest.json", &truncate, "manifest.json: "),
        ("manifest.json", &edit, "manifest.json: it has changed"),
        ("manifest.json", &newer, "manifest.json: format 2 is not the 1"),
    ];
    for (name, damage, reason) in damages {
        let (run, store) = opened(3);
        save(&store, 250, None).unwrap();
        save(&store, 500, None).unwrap();
        damage(&file(&run, 500, name));
        let loaded = store.load_latest().unwrap().unwrap();
        assert_is(&loaded, 250);
        assert_eq!(loaded.rejected.len(), 1);
        assert!(loaded.rejected[0].reason.starts_with(reason), "{name}: {}", loaded.rejected[0]);

        damage(&file(&run, 250, name));
        let error = store.load_latest();
        // The edit above fits step 500 only; all others damage both.
        if !reason.contains("it has changed") {
            assert!(matches!(error, Err(Error::NoneUsable { rejected }) if rejected.len() == 2), "{name}");
        }
    }
}

#[test]
fn a_run_that_went_back_past_a_damaged_checkpoint_does_not_meet_it_again() {
    let (run, store) = opened(1);
    save(&store, 250, Some(1.0)).unwrap();
    save(&store, 500, None).unwrap();
    fs::remove_file(file(&run, 500, "manifest.json")).unwrap();
    assert_is(&store.load_latest().unwrap().unwrap(), 250);
    save(&store, 300, None).unwrap();
    let loaded = store.load_latest().unwrap().unwrap();
    assert_is(&loaded, 300);
    assert!(loaded.rejected.is_empty());
    assert_eq!(entries(run.path()), ["best.json", "step-000250", "step-000300"]);
}

#[test]
fn opening_sweeps_up_what_a_killed_run_left() {
    let (run, store) = opened(3);
    save(&store, 250, None).unwrap();
    save(&store, 500, None).unwrap();
    let folder = run.path().join("checkpoints");
    // Killed while writing, while deleting, and between the two renames of saving 500 again.
    for name in [".writing-step-000750", ".removing-step-000100", ".replaced-step-000250"] {
        fs::create_dir(folder.join(name)).unwrap();
        fs::write(folder.join(name).join("model.safetensors"), b"half").unwrap();
    }
    fs::rename(folder.join("step-000500"), folder.join(".replaced-step-000500")).unwrap();
    fs::create_dir(folder.join("step-000250-mine")).unwrap();

    let store = Store::open(run.path(), 3).unwrap();
    assert_eq!(entries(run.path()), ["step-000250", "step-000250-mine", "step-000500"]);
    assert_eq!(store.steps().unwrap(), [250, 500]);
    assert_is(&store.load_latest().unwrap().unwrap(), 500);
}

/// A disk with room for so many bytes and no more.
struct Filling {
    left_bytes: Arc<AtomicI64>,
    file: fs::File,
}

impl Write for Filling {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.left_bytes.fetch_sub(bytes.len() as i64, Ordering::SeqCst) < bytes.len() as i64 {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Sink for Filling {
    fn sync(&mut self) -> io::Result<()> {
        self.file.sync()
    }
}

fn filling_disk(left_bytes: i64) -> Create {
    let left_bytes = Arc::new(AtomicI64::new(left_bytes));
    Box::new(move |path| {
        let file = fs::File::create(path)?;
        Ok(Box::new(Filling { left_bytes: left_bytes.clone(), file }))
    })
}

#[test]
fn a_disk_that_fills_up_anywhere_in_a_save_loses_nothing() {
    let (run, store) = opened(1);
    save(&store, 250, Some(2.0)).unwrap();
    let (before, mut failures) = (entries(run.path()), 0);
    for left_bytes in (0..).step_by(50) {
        let full = Store::open_on(filling_disk(left_bytes), run.path(), 1).unwrap();
        let Err(error) = save(&full, 500, None) else { break };
        let message = error.to_string();
        assert!(message.starts_with("checkpoint: cannot write ") && message.contains("hint: "), "{message}");
        assert_eq!(entries(run.path()), before);
        assert_is(&store.load_latest().unwrap().unwrap(), 250);
        failures += 1;
    }
    // The files come to more than 500 bytes, so the sweep met each of them.
    assert!(failures > 10, "{failures}");
    assert_is(&store.load_latest().unwrap().unwrap(), 500);
}

#[cfg(target_os = "linux")]
#[test]
fn the_system_s_own_full_device_is_an_error_that_names_the_file() {
    let (run, store) = opened(3);
    save(&store, 250, None).unwrap();
    let full: Create = Box::new(|path| {
        let target = if path.ends_with("optimizer.safetensors") { Path::new("/dev/full") } else { path };
        Ok(Box::new(fs::OpenOptions::new().create(true).write(true).truncate(true).open(target)?))
    });
    let broken = Store::open_on(full, run.path(), 3).unwrap();
    let message = save(&broken, 500, None).unwrap_err().to_string();
    assert!(message.contains("optimizer.safetensors: No space left on device"), "{message}");
    assert_eq!(entries(run.path()), ["step-000250"]);
}

#[test]
fn an_extra_file_may_not_take_a_name_that_is_in_use_or_leave_the_folder() {
    let (run, store) = opened(3);
    for name in
        ["model.safetensors", "manifest.json", "../escaped.json", "/tmp/a.json", "a/b/../c.json", "a/..", ""]
    {
        let extra = [(name.to_string(), Vec::new())];
        let snapshot = Snapshot {
            step: 1,
            model: &[],
            optimizer: &[],
            extra: &extra,
            state: &Value::Null,
            validation_loss: None,
        };
        assert!(store.save(&snapshot).is_err(), "{name}");
    }
    assert!(entries(run.path()).is_empty());
}

#[test]
fn files_within_a_folder_take_the_place_of_weights_and_are_checked_as_those_are() {
    let (run, store) = opened(3);
    let extra = [("style/adapter.json".to_string(), b"{}".to_vec())];
    let state = Value::Null;
    let snapshot =
        Snapshot { step: 1, model: &[], optimizer: &[], extra: &extra, state: &state, validation_loss: None };
    let folder = store.save(&snapshot).unwrap().folder;
    assert!(!folder.join("model.safetensors").exists());
    let loaded = store.load_latest().unwrap().unwrap();
    assert!(loaded.model.is_empty() && loaded.rejected.is_empty());
    std::fs::write(folder.join("style/adapter.json"), b"[]").unwrap();
    assert!(matches!(store.load_latest(), Err(Error::NoneUsable { .. })));
    drop(run);
}
