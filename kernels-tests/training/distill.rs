//! Whole runs with a teacher: resumed, with every term of the loss, and refused.

use super::{devices, last_weights, losses, recipe, train};
use kiln::data::windows::Batch;
use kiln::generate::{Sampling, Writer};
use kiln::train::distill::Author;
use kiln::train::job::Job;
use kiln::train::recipe::Recipe;
use kiln::train::trainer::Trainer;
use kiln::train::{Error, Target};
use std::path::{Path, PathBuf};

/// A run of the little text, whose last checkpoint becomes a teacher.
fn teacher(root: &Path, sets: &[&str]) -> PathBuf {
    let folder = root.join("teacher");
    let base =
        ["model.layers=4", "model.width=24", "model.dropout=0.0", "train.steps=30", "run.save.every=30"];
    train(recipe(&folder, "cpu", &[&base[..], sets].concat()), false).unwrap();
    folder.join("checkpoints/step-000030")
}

fn with_teacher(folder: &Path, device: &str, teacher: &Path, sets: &[&str]) -> Recipe {
    let teacher = format!("distill.teacher={}", teacher.display());
    recipe(folder, device, &[&[&teacher[..]], sets].concat())
}

const EVERY_TERM: [&str; 8] = [
    "distill.kl={ from = 1.0, to = 0.25, until = 8 }",
    "distill.reverse_kl=0.1",
    "distill.jsd=0.2",
    "distill.hidden=0.5",
    "distill.cosine=0.5",
    "distill.attention=0.3",
    "distill.values=0.3",
    "model.layers=2",
];

#[test]
fn a_run_with_a_teacher_is_resumed_bit_for_bit_whatever_is_learnt_of_it() {
    let root = tempfile::tempdir().unwrap();
    teacher(root.path(), &[]);
    let teacher = root.path().join("teacher");
    for device in devices() {
        for (case, sets) in [(0, &["distill.teacher_precision=int8"][..]), (1, &EVERY_TERM)] {
            let folder = |name: &str| root.path().join(format!("{device}-{case}-{name}"));
            let (whole, parts) = (folder("whole"), folder("parts"));
            train(with_teacher(&whole, device, &teacher, sets), false).unwrap();
            let fewer = [sets, &["train.steps=5"]].concat();
            train(with_teacher(&parts, device, &teacher, &fewer), false).unwrap();
            train(with_teacher(&parts, device, &teacher, sets), true).unwrap();
            assert_eq!(losses(&whole), losses(&parts), "{device} {case}");
            assert!(last_weights(&whole) == last_weights(&parts), "{device} {case}: weights differ");
            let all = losses(&whole);
            assert!(all[11].1 < all[0].1, "{device} {case}: nothing was learnt: {all:?}");
        }
    }
}

#[test]
fn what_is_learned_beside_the_student_is_in_no_model() {
    let root = tempfile::tempdir().unwrap();
    let teacher = teacher(root.path(), &[]);
    let folder = root.path().join("run");
    train(with_teacher(&folder, "cpu", &teacher, &EVERY_TERM), false).unwrap();
    let checkpoint = folder.join("checkpoints/step-000012");
    let names = |file: &str| {
        let bytes = std::fs::read(checkpoint.join(file)).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        tensors.names().into_iter().map(String::from).collect::<Vec<_>>()
    };
    assert!(names("model.safetensors").iter().all(|name| name.starts_with("transformer.")));
    let kept = names("optimizer.safetensors");
    assert!(kept.iter().any(|name| name == "distill.projection.0.weight"), "{kept:?}");
    assert!(!kept.iter().any(|name| name.starts_with("teacher.")), "{kept:?}");
}

#[test]
fn a_student_that_is_its_teacher_has_nothing_to_learn_of_it() {
    let root = tempfile::tempdir().unwrap();
    let teacher = teacher(root.path(), &[]);
    let text = root.path().join("text.txt").display().to_string();
    let sets = [
        format!("data.text={text}"),
        format!("model.load={}", teacher.display()),
        format!("distill.teacher={}", teacher.display()),
    ];
    for term in ["kl", "reverse_kl", "jsd", "hidden", "cosine", "attention", "values"] {
        let base = format!("[train]\nbatch = 2\ncontext = 16\n[distill]\nce = 0.0\n{term} = 1.0\n");
        let recipe = Recipe::from_text(&base, "test", &sets).unwrap();
        let mut job = kiln::train::job::Job::prepare(recipe, None).unwrap();
        job.recipe.run.folder = root.path().join(term);
        std::fs::create_dir_all(&job.recipe.run.folder).unwrap();
        let mut trainer: Trainer = job.trainer(&Target::Host).unwrap();
        let sampler = job.sampler().unwrap();
        let mut batches = kiln::data::prefetch::Prefetch::start_split(sampler, job.family.vocabulary(), 1, 2);
        let feeds = job.training_feeds(batches.next_batch().unwrap(), 0, 0).unwrap();
        let loss = trainer.differentiate(feeds).unwrap();
        assert!(loss.abs() < 1e-5, "{term}: {loss}");
        for (name, gradient) in trainer.gradients().unwrap() {
            assert!(gradient.to_f64().iter().all(|x| x.abs() < 1e-4), "{term}: {name}");
        }
    }
}

#[test]
fn heads_that_differ_are_cut_alike_and_shared_keys_are_repeated() {
    let root = tempfile::tempdir().unwrap();
    let teacher =
        teacher(root.path(), &["model.family=llama", "model.heads=6", "model.kv_heads=2", "model.hidden=32"]);
    let folder = root.path().join("run");
    let sets = ["model.heads=4", "distill.ce=0.0", "distill.attention=1.0", "distill.values=1.0"];
    train(with_teacher(&folder, "cpu", &teacher, &sets), false).unwrap();
    let all = losses(&folder);
    assert!(all[11].1 < 0.9 * all[0].1, "{all:?}");
    let odd = [&sets[..], &["distill.relation_heads=5"]].concat();
    let error = train(with_teacher(&root.path().join("odd"), "cpu", &teacher, &odd), false).unwrap_err();
    assert!(matches!(&error, Error::Teacher { hint, .. } if hint.starts_with('2')), "{error}");
}

#[test]
fn a_teacher_that_does_not_fit_is_refused_with_what_would() {
    let root = tempfile::tempdir().unwrap();
    let teacher = teacher(root.path(), &[]);
    let refused = |teacher: &Path, sets: &[&str]| {
        let error = train(with_teacher(&root.path().join("run"), "cpu", teacher, sets), false).unwrap_err();
        assert!(matches!(error, Error::Teacher { .. }), "{error}");
        error.to_string()
    };
    let text = refused(&root.path().join("nowhere"), &[]);
    assert!(text.contains("no such folder") && text.contains("hint"), "{text}");
    let text = refused(&teacher, &["model.vocabulary=77"]);
    assert!(text.contains("77") && text.contains("same tokenizer"), "{text}");
    let text = refused(&teacher, &["model.context=20", "train.context=20"]);
    assert!(text.contains("train.context = 16"), "{text}");
    let text = refused(&teacher, &["distill.layers=[[1, 9]]"]);
    assert!(text.contains("layer 9"), "{text}");
    // As many tokens, but others, in a folder that is no checkpoint: a manifest would tell that the file has changed.
    std::fs::remove_file(teacher.join("manifest.json")).unwrap();
    let path = teacher.join("tokenizer.json");
    let other = std::fs::read_to_string(&path).unwrap().replace("\"j\"", "\"%\"");
    std::fs::write(&path, other).unwrap();
    let text = refused(&teacher, &[]);
    assert!(text.contains("\"%\"") && text.contains("\"j\""), "{text}");
}

/// A recipe in which the teacher runs ahead.
const AHEAD: [&str; 5] =
    ["distill.kl=0.9", "distill.ce=0.1", "train.accumulate=2", "train.micro_batch=2", "model.layers=2"];

#[test]
fn a_teacher_that_ran_ahead_and_kept_everything_teaches_as_one_in_the_step() {
    let root = tempfile::tempdir().unwrap();
    let teacher = teacher(root.path(), &[]);
    for device in devices() {
        let folder = |name: &str| root.path().join(format!("{device}-{name}"));
        let cache = format!("distill.cache={}", folder("said").display());
        train(with_teacher(&folder("step"), device, &teacher, &AHEAD), false).unwrap();
        let sets = [&AHEAD[..], &[&cache, "distill.top_k=10000"]].concat();
        train(with_teacher(&folder("ahead"), device, &teacher, &sets), false).unwrap();
        for ((step, a, _), (_, b, _)) in losses(&folder("step")).iter().zip(&losses(&folder("ahead"))) {
            assert!((a - b).abs() < 1e-3, "{device}, step {step}: {a} {b}");
        }
    }
}

#[test]
fn what_a_teacher_said_serves_runs_that_are_stopped_go_on_and_come_again() {
    let root = tempfile::tempdir().unwrap();
    let teacher = teacher(root.path(), &[]);
    let folder = |name: &str| root.path().join(name);
    let run = |name: &str, cache: &str, steps: &str, resume: bool| {
        let cache = format!("distill.cache={}", folder(cache).display());
        let steps = format!("train.steps={steps}");
        let sets = [&AHEAD[..], &[&cache, "distill.top_k=4", &steps]].concat();
        train(with_teacher(&folder(name), "cpu", &teacher, &sets), resume)
    };
    run("whole", "one", "12", false).unwrap();
    // A shorter run first, to which the longer one adds.
    run("parts", "two", "5", false).unwrap();
    run("parts", "two", "12", true).unwrap();
    assert_eq!(losses(&folder("whole")), losses(&folder("parts")));
    assert!(last_weights(&folder("whole")) == last_weights(&folder("parts")));
    let bytes = |cache: &str| std::fs::read(folder(cache).join("000000.safetensors")).unwrap();
    assert_eq!(bytes("one"), bytes("two"));
    // What is damaged is said again.
    let piece = folder("two").join("000000.safetensors");
    std::fs::write(&piece, &bytes("one")[..50]).unwrap();
    run("again", "two", "12", false).unwrap();
    assert_eq!(losses(&folder("whole")), losses(&folder("again")));
    assert_eq!(bytes("one"), bytes("two"));
}

#[test]
fn a_cache_that_was_made_for_something_else_is_refused_with_what_differs() {
    let root = tempfile::tempdir().unwrap();
    let teacher = teacher(root.path(), &[]);
    let cache = format!("distill.cache={}", root.path().join("said").display());
    let mut count = 0;
    let mut run = |sets: &[&str]| {
        count += 1;
        let sets = [&AHEAD[..], &[&cache], sets].concat();
        train(with_teacher(&root.path().join(format!("run-{count}")), "cpu", &teacher, &sets), false)
    };
    run(&["distill.top_k=4"]).unwrap();
    for (set, name) in [
        ("distill.top_k=5", "top_k 4, this run has 5"),
        ("distill.temperature=3", "temperature"),
        ("train.seed=5", "windows"),
        ("train.context=8", "context"),
        ("distill.teacher_precision=f16", "precision"),
    ] {
        let error = run(&["distill.top_k=4", set]).unwrap_err();
        assert!(matches!(error, Error::Cache { .. }), "{error}");
        assert!(error.to_string().contains(name), "{error}");
    }
    let path = teacher.join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let error = run(&["distill.top_k=4"]).unwrap_err().to_string();
    assert!(error.contains("teacher"), "{error}");
    let error =
        Recipe::from_text("[distill]\nteacher = \"t\"\ncache = \"c\"\njsd = 1.0", "test", &[]).unwrap_err();
    assert!(error.to_string().contains("distill.jsd"), "{error}");
}

/// A recipe in which both write and the text is read as well.
const WRITTEN: [&str; 7] = [
    "distill.jsd=1.0",
    "distill.on_policy={ from = 0.6, to = 0.2, until = 10 }",
    "distill.sequence=0.4",
    "distill.prompt=5",
    "train.accumulate=2",
    "train.micro_batch=2",
    "model.layers=2",
];

#[test]
fn a_run_whose_windows_are_written_is_resumed_bit_for_bit() {
    let root = tempfile::tempdir().unwrap();
    let teacher = teacher(root.path(), &[]);
    for device in devices() {
        for precision in ["distill.teacher_precision=int8", "precision.weights=bf16"] {
            let folder = |name: &str| root.path().join(format!("{device}-{precision}-{name}"));
            let (whole, parts) = (folder("whole"), folder("parts"));
            let sets = [&WRITTEN[..], &[precision, "distill.ce=0.5"]].concat();
            train(with_teacher(&whole, device, &teacher, &sets), false).unwrap();
            let fewer = [&sets[..], &["train.steps=5"]].concat();
            train(with_teacher(&parts, device, &teacher, &fewer), false).unwrap();
            train(with_teacher(&parts, device, &teacher, &sets), true).unwrap();
            assert_eq!(losses(&whole), losses(&parts), "{device} {precision}");
            assert!(last_weights(&whole) == last_weights(&parts), "{device} {precision}: weights differ");
        }
    }
}

/// A job and its trainer, with a batch of the text.
fn at_work(recipe: Recipe, target: &Target) -> (Job, Trainer, Batch) {
    let mut job = Job::prepare(recipe, None).unwrap();
    job.recipe.run.folder = job.recipe.run.folder.with_extension("job");
    std::fs::create_dir_all(&job.recipe.run.folder).unwrap();
    let trainer = job.trainer(target).unwrap();
    let batch = job.sampler().unwrap().next_batch().unwrap();
    (job, trainer, batch)
}

#[test]
fn what_is_written_is_what_the_author_would_have_written_elsewhere() {
    let root = tempfile::tempdir().unwrap();
    let folder = teacher(root.path(), &[]);
    for device in devices() {
        let target = Target::open(device).unwrap();
        let sets = ["distill.on_policy=0.5", "distill.sequence=0.5", "distill.sampling_temperature=0"];
        let sets = [&sets[..], &["distill.prompt=5", "model.layers=2"]].concat();
        let (job, mut trainer, batch) =
            at_work(with_teacher(&root.path().join(device), device, &folder, &sets), &target);
        let teacher = job.beside.teacher.as_ref().unwrap();
        let student = job.first_weights().unwrap();
        let tokenizer = job.tokenizer.clone();
        for author in [Author::Student, Author::Teacher] {
            let written = teacher.write(&mut trainer, author, &batch, 7, [3, 0]).unwrap();
            let mut writer = match author {
                Author::Student => Writer::new(job.family.as_ref(), &student, tokenizer.clone(), &target, 16),
                Author::Teacher => Writer::open(&folder, &target, 16),
            }
            .unwrap();
            for (row, tokens) in written.tokens.chunks(16).enumerate() {
                let prompt = &batch.tokens[row * 16..row * 16 + 5];
                let expected = writer.continue_ids(prompt, 11, &Sampling::greedy(), &mut |_| true).unwrap();
                assert_eq!(tokens, [prompt, &expected].concat(), "{device} {author:?} row {row}");
                let targets = &written.targets[row * 16..(row + 1) * 16];
                match author {
                    Author::Student => {
                        assert_eq!(targets[..5], batch.targets[row * 16..row * 16 + 5]);
                        assert!(targets[5..].iter().all(|&target| target == -1), "{targets:?}");
                    }
                    Author::Teacher => {
                        assert!(targets.iter().zip(&tokens[1..]).all(|(&a, &b)| a == b as i32))
                    }
                }
            }
            // Every counted position has the same share, and together they are one.
            let share = teacher.written_share(author, job.extent()).to_f64();
            let counted = if author == Author::Student { 12 } else { 16 };
            assert_eq!(share.iter().filter(|&&x| x > 0.0).count(), 4 * counted);
            assert!((share.iter().sum::<f64>() - 1.0).abs() < 1e-6);
        }
    }
}

#[test]
fn shares_of_steps_are_kept_and_both_kinds_of_writing_teach() {
    let root = tempfile::tempdir().unwrap();
    let folder = teacher(root.path(), &[]);
    let recipe = with_teacher(&root.path().join("run"), "cpu", &folder, &WRITTEN);
    let (job, ..) = at_work(recipe, &Target::Host);
    let teacher = job.beside.teacher.as_ref().unwrap();
    let mut counts = [0; 3];
    (1000..4000)
        .for_each(|step| counts[teacher.author(7, step).map_or(0, |author| 1 + author as usize)] += 1);
    let near = |count: usize, share: f64| (count as f64 / 3000.0 - share).abs() < 0.03;
    assert!(near(counts[0], 0.4) && near(counts[1], 0.2) && near(counts[2], 0.4), "{counts:?}");

    for (name, sets) in [
        ("on-policy", ["distill.on_policy=1.0", "distill.reverse_kl=1.0", "distill.ce=0.0"]),
        ("sequence", ["distill.sequence=1.0", "distill.kl=0.0", "distill.sampling_temperature=0"]),
    ] {
        let sets = [&sets[..], &["train.steps=40", "run.save.every=40", "model.dropout=0.0"]].concat();
        let run = root.path().join(name);
        train(with_teacher(&run, "cpu", &folder, &sets), false).unwrap();
        let all = losses(&run);
        let mean = |part: &[(u64, f64, f64)]| part.iter().map(|step| step.1).sum::<f64>() / part.len() as f64;
        assert!(mean(&all[30..]) < 0.85 * mean(&all[..5]), "{name}: {all:?}");
    }
}

#[test]
fn models_of_different_families_write_for_each_other() {
    let root = tempfile::tempdir().unwrap();
    let sets = ["model.family=llama", "model.heads=6", "model.kv_heads=2", "model.hidden=32"];
    let teacher = teacher(root.path(), &sets);
    for device in devices() {
        let folder = root.path().join(device);
        let sets = ["distill.jsd=1.0", "distill.ce=1.0", "distill.on_policy=0.4", "distill.sequence=0.4"];
        train(with_teacher(&folder, device, &teacher, &sets), false).unwrap();
        assert_eq!(losses(&folder).len(), 12);
    }
}

#[test]
fn writing_that_cannot_be_is_refused() {
    let read = |more: &str| {
        Recipe::from_text(&format!("[distill]\nteacher = \"t\"\n{more}"), "test", &[])
            .unwrap_err()
            .to_string()
    };
    for (text, part) in [
        ("on_policy = 0.7\nsequence = 0.4", "at most 1 together"),
        ("on_policy = 1.5", "distill.on_policy"),
        ("prompt = 3", "distill.prompt"),
        ("sequence = 0.5\nprompt = 0", "at least 1"),
        ("on_policy = 1.0\nkl = 0.0\nce = 1.0", "distill.kl"),
        ("on_policy = 0.5\nkl = 1.0\ncache = \"c\"", "absent beside `cache`"),
    ] {
        let error = read(text);
        assert!(error.contains(part), "{text}: {error}");
    }
    let root = tempfile::tempdir().unwrap();
    let teacher = teacher(root.path(), &[]);
    let sets = ["distill.sequence=0.5", "distill.prompt=16"];
    let error = train(with_teacher(&root.path().join("run"), "cpu", &teacher, &sets), false).unwrap_err();
    assert!(matches!(&error, Error::Teacher { hint, .. } if hint == "distill.prompt = 4"), "{error}");
}
