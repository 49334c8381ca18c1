//! Batches that go through the model in parts.

use super::*;
use kiln::train::Beside;
use kiln::train::micro::{need, settle};
use kiln::train::recipe::{Bytes, MicroBatch};

#[test]
fn the_largest_part_of_a_batch_that_fits_the_budget_is_chosen() {
    let root = tempfile::tempdir().unwrap();
    let base = ["train.batch=12", "train.micro_batch=auto", "train.context=16"];
    for device in devices() {
        let target = Target::open(device).unwrap();
        let recipe = recipe(&root.path().join("run"), device, &base);
        let family = family_of(&recipe, 30).unwrap();
        let needs = [1, 2, 3, 4, 6, 12].map(|rows| {
            let mut recipe = recipe.clone();
            recipe.train.micro_batch = MicroBatch::Rows(rows);
            (rows, need(&recipe, family.as_ref(), &Beside::default(), &target).unwrap().total())
        });
        let chosen = |budget: u64| {
            let mut recipe = recipe.clone();
            recipe.memory.budget = Some(Bytes(budget));
            let told = settle(&mut recipe, family.as_ref(), &Beside::default(), &target)?;
            Ok::<_, Error>((recipe.train.rows(), told.unwrap()))
        };
        for budget in needs.iter().flat_map(|&(_, need)| [need, need + 1, need - 1]) {
            let fitting = needs.iter().filter(|(_, need)| *need <= budget).map(|(rows, _)| *rows).max();
            match (fitting, chosen(budget)) {
                (Some(expected), Ok((rows, told))) => {
                    assert_eq!(rows, expected, "{device} {budget}: {needs:?}");
                    assert!(told.contains("memory.budget") && told.contains("of 12 sequences"), "{told}");
                }
                (None, Err(Error::OverBudget { rows: 1, need, budget: got, .. })) => {
                    assert_eq!((need, got), (Bytes(needs[0].1), Bytes(budget)));
                }
                (expected, got) => panic!("{device} {budget}: {expected:?}, {got:?}"),
            }
        }
        // Where the device tells what it has, the whole batch of so small a model fits.
        let mut free = recipe.clone();
        let told = settle(&mut free, family.as_ref(), &Beside::default(), &target).unwrap().unwrap();
        assert_eq!(free.train.rows(), 12, "{told}");
    }
}

#[test]
fn a_step_over_the_budget_is_refused_with_what_it_needs() {
    let root = tempfile::tempdir().unwrap();
    for micro_batch in ["train.micro_batch=auto", "train.micro_batch=2"] {
        let small = recipe(&root.path().join("run"), "cpu", &["memory.budget=20KiB", micro_batch]);
        let error = train(small, false).unwrap_err().to_string();
        for part in ["the budget is 20.00 KiB (memory.budget)", "training takes", "hint"] {
            assert!(error.contains(part), "{error}");
        }
    }
}

#[test]
fn a_batch_in_parts_gives_the_losses_of_the_whole() {
    for device in devices() {
        let root = tempfile::tempdir().unwrap();
        let run = |name: &str, sets: &[&str]| {
            let folder = root.path().join(name);
            let sets = [&["model.dropout=0", "train.accumulate=2"], sets].concat();
            train(recipe(&folder, device, &sets), false).unwrap();
            let evaluations: Vec<f64> = metrics::read(&folder)
                .unwrap()
                .iter()
                .filter_map(|line| if let Line::Evaluation(e) = line { Some(e.val_loss) } else { None })
                .collect();
            (losses(&folder), evaluations)
        };
        let (whole, seen) = run("whole", &[]);
        for parts in ["train.micro_batch=1", "train.micro_batch=2"] {
            let (split, seen_split) = run(parts, &[parts]);
            for (one, other) in whole.iter().zip(&split) {
                assert!((one.1 - other.1).abs() < 2e-5 * one.1, "{device} {parts}: {one:?} {other:?}");
                assert!((one.2 - other.2).abs() < 2e-3 * one.2, "{device} {parts}: {one:?} {other:?}");
            }
            let close = |(a, b): (&f64, &f64)| (a - b).abs() < 2e-5 * a;
            assert!(seen.len() == 3 && seen.iter().zip(&seen_split).all(close), "{seen:?} {seen_split:?}");
        }
    }
}

#[test]
fn a_run_that_chose_its_parts_keeps_them_when_it_is_resumed() {
    let root = tempfile::tempdir().unwrap();
    let (whole, parts) = (root.path().join("whole"), root.path().join("parts"));
    let base = recipe(&whole, "cpu", &["train.micro_batch=2"]);
    let family = family_of(&base, 30).unwrap();
    let budget = need(&base, family.as_ref(), &Beside::default(), &Target::Host).unwrap().total();
    let auto = ["train.micro_batch=auto", &format!("memory.budget={budget}")];
    train(recipe(&whole, "cpu", &auto), false).unwrap();
    train(recipe(&parts, "cpu", &[&auto[..], &["train.steps=5"]].concat()), false).unwrap();
    let written = std::fs::read_to_string(parts.join("recipe.toml")).unwrap();
    assert!(written.contains("micro_batch = 2\n"), "{written}");
    let mut raw = kiln::train::run::recipe_in(&parts).unwrap();
    raw.set("train.steps=12").unwrap();
    train(raw.resolve().unwrap(), true).unwrap();
    assert_eq!(losses(&whole), losses(&parts));
    assert!(last_weights(&whole) == last_weights(&parts), "weights differ");
}
