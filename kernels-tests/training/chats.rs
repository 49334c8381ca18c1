//! Conversations in small: answers learnt, in parts of a batch, resumed, with adapters, gone wrong.

use super::*;
use kiln::data::chats::{Example, Laid};
use kiln::model::{Activation, Design, Extent, Family, ParameterSpec, Reading, Weights, build, initial};
use kiln::train::chats;
use kiln::train::recipe::{Dpo, Preferring};
use kiln::train::trainer::BuildLoss;
use serde_json::json;

/// A template of few letters, so that a conversation of characters is short.
const TEMPLATE: &str = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}\n{% endfor %}\
                        {% if add_generation_prompt %}a:{% endif %}";

/// A recipe over questions, one letter or several times the same, and answers: how often, in words.
pub(super) fn recipe_of(folder: &Path, device: &str, sets: &[&str]) -> Recipe {
    let root = folder.parent().unwrap();
    let (chats, template) = (root.join("chats.jsonl"), root.join("short.jinja"));
    if !chats.exists() {
        let line = |i: usize| {
            let asked = "abc"[i % 3..i % 3 + 1].repeat(1 + i % 4);
            let say = |role: &str, content: &str| json!({ "role": role, "content": content });
            let mut messages =
                vec![say("user", &asked), say("assistant", ["one", "two", "three", "four"][i % 4])];
            if i.is_multiple_of(5) {
                messages.extend([say("user", "z"), say("assistant", "end")]);
            }
            format!("{}\n", json!({ "messages": messages }))
        };
        std::fs::write(&chats, (0..40).map(line).collect::<String>()).unwrap();
        std::fs::write(&template, TEMPLATE).unwrap();
    }
    let base = format!(
        "[model]\nlayers = 1\nheads = 2\nwidth = 16\ncontext = 32\n\
         [data]\nchats = [{:?}]\ntemplate = {:?}\n[train]\nsteps = 12\nbatch = 4\ncontext = 32\nseed = 7\n\
         learning_rate = {{ curve = \"cosine\", peak = 1e-2, floor = 1e-3, warmup = 3, until = 12 }}\n\
         evaluate = {{ every = 6, batches = 2 }}\n[run]\ndevice = {device:?}\nfolder = {:?}\nsave = {{ every = 5, keep = 2 }}\n",
        chats.display().to_string(),
        template.display().to_string(),
        folder.display().to_string()
    );
    let sets: Vec<String> = sets.iter().map(|s| s.to_string()).collect();
    Recipe::from_text(&base, "test", &sets).unwrap()
}

#[test]
fn answers_are_learnt_and_a_run_that_goes_on_equals_one_that_never_stopped() {
    for device in devices() {
        let root = tempfile::tempdir().unwrap();
        let (whole, parts) = (root.path().join("whole"), root.path().join("parts"));
        let sets = ["model.dropout=0.1", "train.accumulate=2"];
        train(recipe_of(&whole, device, &sets), false).unwrap();
        train(recipe_of(&parts, device, &[&sets[..], &["train.steps=5"]].concat()), false).unwrap();
        train(recipe_of(&parts, device, &sets), true).unwrap();
        assert_eq!(losses(&whole), losses(&parts), "{device}");
        assert!(last_weights(&whole) == last_weights(&parts), "{device}: weights differ");
        let (first, last) = (losses(&whole)[0].1, losses(&whole)[11].1);
        assert!(last < 0.8 * first, "{device}: {first} to {last}");
        // Whoever opens the checkpoint writes conversations as they were learnt.
        let config =
            std::fs::read_to_string(whole.join("checkpoints/step-000012/tokenizer_config.json")).unwrap();
        let config: serde_json::Value = serde_json::from_str(&config).unwrap();
        assert_eq!(config["chat_template"], TEMPLATE);
    }
}

#[test]
fn answers_of_all_parts_of_a_batch_count_alike() {
    for device in devices() {
        let root = tempfile::tempdir().unwrap();
        let run = |name: &str, sets: &[&str]| {
            let folder = root.path().join(name);
            train(recipe_of(&folder, device, sets), false).unwrap();
            losses(&folder)
        };
        let whole = run("whole", &[]);
        for parts in ["train.micro_batch=1", "train.micro_batch=2"] {
            for (one, other) in whole.iter().zip(&run(parts, &[parts])) {
                assert!((one.1 - other.1).abs() < 2e-5 * one.1, "{device} {parts}: {one:?} {other:?}");
                assert!((one.2 - other.2).abs() < 2e-3 * one.2, "{device} {parts}: {one:?} {other:?}");
            }
        }
        assert_ne!(whole, run("all", &["data.learn=all"]), "{device}: prompts count where they are to");
    }
}

#[test]
fn adapters_learn_answers_beside_a_base_of_any_kind() {
    for base in ["f32", "nf4"] {
        let root = tempfile::tempdir().unwrap();
        let whole = root.path().join("whole");
        train(recipe_of(&whole, "cpu", &["train.steps=1"]), false).unwrap();
        let checkpoint = whole.join("checkpoints/step-000001").display().to_string();
        let folder = root.path().join("adapted");
        let sets = [
            "model={}",
            &format!("model.load={checkpoint}"),
            "adapter.rank=4",
            &format!("adapter.base={base}"),
            "train.steps=30",
            "train.learning_rate=2e-2",
        ];
        train(recipe_of(&folder, "cpu", &sets), false).unwrap();
        let losses = losses(&folder);
        assert!(losses[29].1 < 0.97 * losses[0].1, "{base}: {} to {}", losses[0].1, losses[29].1);
        let saved = folder.join("checkpoints/step-000030");
        assert!(
            saved.join("adapter_model.safetensors").is_file()
                && saved.join("tokenizer_config.json").is_file()
        );
    }
}

#[test]
fn what_is_too_long_or_bad_is_counted_and_told() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("run");
    let mut recipe = recipe_of(&folder, "cpu", &["train.steps=1", "train.context=12", "data.skip_bad=true"]);
    let path = root.path().join("mixed.jsonl");
    let lines = [
        r#"{"prompt": "a", "completion": "b"}"#,
        "no",
        r#"{"prompt": "a long prompt, and no place", "completion": "b"}"#,
        r#"{"prompt": "a", "completion": "a long answer to it"}"#,
        r#"{"prompt": "b", "completion": "a"}"#,
    ];
    std::fs::write(&path, lines.join("\n")).unwrap();
    let chats = recipe.data.chats.as_mut().unwrap();
    chats.chats = vec![path];
    let mut told = String::new();
    run(recipe, false, &AtomicBool::new(false), &mut |line| told += &format!("{line}\n")).unwrap();
    assert!(told.contains("3 training and 0 validation examples (1 cut to 12 tokens, 1 left out)"), "{told}");
    assert!(told.contains("warning: a line was passed over") && told.contains("line 2, column 2"), "{told}");
}

#[test]
fn a_model_without_a_template_and_one_that_does_not_go_on_are_refused_with_a_hint() {
    let root = tempfile::tempdir().unwrap();
    let told = |sets: &[&str]| {
        let folder = root.path().join("run");
        let mut recipe = recipe_of(&folder, "cpu", sets);
        recipe.data.chats.as_mut().unwrap().template = None;
        train(recipe, false).unwrap_err().to_string()
    };
    let error = told(&[]);
    assert!(error.contains("no chat template") && error.contains("data.template = \"chatml\""), "{error}");
    let folder = root.path().join("other");
    let error = train(recipe_of(&folder, "cpu", &["model.family=bert"]), false).unwrap_err().to_string();
    assert!(
        error.contains("a causal language model") && error.contains("a masked language model"),
        "{error}"
    );
}

/// Loss and gradients of one pass over feeds.
fn differentiated_by(
    family: &dyn Family,
    first: &Weights,
    feeds: &Feeds,
    device: &str,
    build: &BuildLoss,
) -> (f64, Vec<(String, Tensor)>) {
    let weight = |spec: ParameterSpec| Weight { name: spec.name, shape: spec.shape, decays: false };
    let weights: Vec<Weight> = family.parameters().into_iter().map(weight).collect();
    let decay = Decay { weight_decay: 0.0, decoupled: false, no_decay: vec![] };
    let settings = Settings::new(Optimizer { rule: Rule::GradientDescent, decay });
    let mut trainer = Trainer::new(&Target::open(device).unwrap(), &weights, build, settings).unwrap();
    trainer.set_weights(|name, _| Ok(first.get(name).unwrap().clone())).unwrap();
    let loss = trainer.differentiate(feeds.clone()).unwrap();
    (loss, trainer.gradients().unwrap())
}

#[test]
fn a_packed_window_has_the_loss_and_the_gradients_of_its_examples_run_apart() {
    const CONTEXT: usize = 24;
    let example = |length: usize, step: usize| {
        let tokens: Vec<u32> = (0..length).map(|i| ((i * i + step * i + step) % 11) as u32).collect();
        Example { learnt: (0..length).map(|i| !(i + step).is_multiple_of(3)).collect(), tokens }
    };
    let examples = [example(9, 1), example(4, 2), example(10, 3), example(2, 4), example(20, 5)];
    let all: Vec<&Example> = examples.iter().collect();
    let packed = Laid::of([all[..4].to_vec(), all[4..].to_vec()], CONTEXT);
    let padded = Laid::of(all.iter().map(|example| vec![*example]), CONTEXT);
    assert_eq!(packed.counted(), padded.counted());
    for name in ["gpt2", "llama", "mistral", "gpt_neox"] {
        let design = Design {
            layers: 2,
            heads: if name == "gpt_neox" { 2 } else { 4 },
            kv_heads: (!name.starts_with("gpt")).then_some(2),
            head_size: None,
            width: 16,
            hidden: Some(24),
            context: CONTEXT,
            vocabulary: 11,
            activation: Activation::Silu,
            norm_epsilon: 1e-5,
            dropout: 0.0,
            bias: name.starts_with("gpt"),
            tie: true,
            rope_theta: None,
            window: (name == "mistral").then_some(4),
        };
        let family = build(name, &design).unwrap();
        // A deviation of 0.02 would hide what attention does.
        let mut first = initial(&family.parameters(), 5);
        for spec in family.parameters().iter().filter(|spec| spec.shape.len() == 2) {
            let mut weight = first.get(&spec.name).unwrap().clone();
            weight.real_mut::<f32>().iter_mut().for_each(|x| *x *= 12.0);
            first.set(spec.name.clone(), weight);
        }
        for device in devices() {
            let run = |laid: &Laid, packed: bool| {
                let extent = Extent { batch: laid.rows, context: CONTEXT };
                let reading = Reading { packed, ..Reading::new(extent, Mode::Train) };
                let feeds = chats::feeds_of(laid, laid.rows, 11, packed.then_some(CONTEXT));
                differentiated_by(family.as_ref(), &first, &feeds, device, &|graph, mode| {
                    chats::loss(family.as_ref(), graph, &Reading { mode, ..reading }, 0.0, None)
                })
            };
            let ((loss, gradients), (apart_loss, apart)) = (run(&packed, true), run(&padded, false));
            assert!((loss - apart_loss).abs() < 1e-5 * apart_loss, "{name} {device}: {loss} {apart_loss}");
            for ((name_of, together), (_, apart)) in gradients.iter().zip(&apart) {
                let (together, apart) = (together.real::<f32>(), apart.real::<f32>());
                let most = apart.iter().fold(0.0f32, |most, x| most.max(x.abs()));
                let off = together.iter().zip(apart).fold(0.0f32, |most, (x, y)| most.max((x - y).abs()));
                assert!(off <= 1e-5 * most.max(1.0), "{name} {device}: {name_of} is off by {off} of {most}");
            }
            if device == "gpu" {
                continue;
            }
            // With one number for all texts, it would be another loss.
            let mut mixed = packed.clone();
            mixed.segments.iter_mut().for_each(|segment| *segment = u32::from(*segment > 0));
            let (mixed_loss, _) = run(&mixed, true);
            assert!((mixed_loss - apart_loss).abs() > 1e-4 * apart_loss, "{name}: attention hardly matters");
        }
    }
}

#[test]
fn packed_windows_go_on_as_if_never_stopped_and_hold_what_padded_ones_hold() {
    for device in devices() {
        let root = tempfile::tempdir().unwrap();
        let told = |name: &str, sets: &[&str], resume: bool| {
            let folder = root.path().join(name);
            let mut told = String::new();
            let recipe = recipe_of(&folder, device, sets);
            run(recipe, resume, &AtomicBool::new(false), &mut |line| told += &format!("{line}\n")).unwrap();
            told
        };
        let packed = told("whole", &[], false);
        assert!(packed.contains("36 training and 4 validation examples"), "{packed}");
        told("parts", &["train.steps=5"], false);
        told("parts", &[], true);
        let of = |name: &str| losses(&root.path().join(name));
        assert_eq!(of("whole"), of("parts"), "{device}");
        let padded = told("padded", &["data.packing=false"], false);
        assert!(
            padded.contains("in 36 windows of 32") && !packed.contains("in 36 windows"),
            "{padded}{packed}"
        );
        assert_ne!(of("whole"), of("padded"));
    }
}

#[test]
fn preferences_cost_what_they_cost_in_pytorch_and_so_do_their_gradients() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels-tests/golden");
    let told = std::fs::read_to_string(folder.join("chats/dpo.json")).unwrap();
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    let numbers = |value: &serde_json::Value| -> Vec<u32> {
        value.as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as u32).collect()
    };
    let example = |prompt: &serde_json::Value, answer: &serde_json::Value| {
        let (prompt, answer) = (numbers(prompt), numbers(answer));
        let learnt = prompt.iter().map(|_| false).chain(answer.iter().map(|_| true)).collect();
        Example { tokens: [prompt, answer].concat(), learnt }
    };
    let pairs = told["pairs"].as_array().unwrap();
    let examples: Vec<Example> =
        pairs.iter().flat_map(|pair| [example(&pair[0], &pair[1]), example(&pair[0], &pair[2])]).collect();
    let context = told["context"].as_u64().unwrap() as usize;
    let laid = Laid::of(examples.iter().map(|example| vec![example]), context);
    let init = folder.join("gpt/init");
    let family = kiln::model::open(&init).unwrap();
    let mut first = Weights::read(&init, family.as_ref()).unwrap();
    let scale = told["scale"].as_f64().unwrap() as f32;
    for spec in family.parameters().iter().filter(|spec| spec.shape.len() == 2) {
        let mut weight = first.get(&spec.name).unwrap().clone();
        weight.real_mut::<f32>().iter_mut().for_each(|x| *x *= scale);
        first.set(spec.name.clone(), weight);
    }
    let reading = Reading::new(Extent { batch: laid.rows, context }, Mode::Train);
    for case in told["cases"].as_array().unwrap() {
        let dpo = Dpo {
            beta: case["beta"].as_f64().unwrap(),
            loss: match case["loss"].as_str().unwrap() {
                "sigmoid" => Preferring::Sigmoid,
                "ipo" => Preferring::Ipo,
                _ => Preferring::Hinge,
            },
            label_smoothing: case["label_smoothing"].as_f64().unwrap(),
            reference_free: case["reference_free"] == true,
        };
        let mut feeds = chats::feeds_of(&laid, laid.rows, family.vocabulary(), None);
        chats::preferences::feed(&mut feeds, &laid, laid.rows, &dpo);
        let ratio = case["ratio"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32);
        feeds.set("reference", Tensor::f32([pairs.len()], ratio.collect()));
        for device in devices() {
            let (value, gradients) =
                differentiated_by(family.as_ref(), &first, &feeds, device, &|graph, mode| {
                    chats::loss(family.as_ref(), graph, &Reading { mode, ..reading }, 0.0, Some(&dpo))
                });
            let expected = case["value"].as_f64().unwrap();
            assert!(
                (value - expected).abs() < 1e-5 * expected,
                "{device} {dpo:?}: {value}, expected {expected}"
            );
            for (name, gradient) in &gradients {
                let ours = gradient.real::<f32>();
                let norm = ours.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
                let expected = case["norms"][name].as_f64().unwrap();
                assert!(
                    (norm - expected).abs() < 2e-5 * expected.max(1e-2),
                    "{device} {dpo:?} {name}: {norm} {expected}"
                );
                let Some(theirs) = case["gradients"][name].as_array() else { continue };
                for (ours, theirs) in ours.iter().zip(theirs) {
                    let off = (f64::from(*ours) - theirs.as_f64().unwrap()).abs();
                    assert!(
                        off < 2e-5 * expected.max(1e-2),
                        "{device} {dpo:?} {name}: off by {off} of {expected}"
                    );
                }
            }
        }
    }
}

/// A recipe over prompts to which one answer is better than the other.
fn preferences(folder: &Path, device: &str, sets: &[&str]) -> Recipe {
    let mut recipe = recipe_of(folder, device, &[&["data.packing=false"], sets].concat());
    let path = folder.parent().unwrap().join("preferences.jsonl");
    let line = |i: usize| {
        let say = |role: &str, content: &str| json!([{ "role": role, "content": content }]);
        let prompt = say("user", &"abc"[i % 3..i % 3 + 1].repeat(1 + i % 4));
        let line = json!({ "prompt": prompt, "chosen": say("assistant", "one two"), "rejected": say("assistant", "end") });
        format!("{line}\n")
    };
    std::fs::write(&path, (0..30).map(line).collect::<String>()).unwrap();
    let mut text = recipe.to_toml().parse::<toml::Table>().unwrap();
    let data = text["data"].as_table_mut().unwrap();
    for key in ["chats", "learn", "packing"] {
        data.remove(key);
    }
    data.insert("preferences".into(), toml::Value::Array(vec![path.display().to_string().into()]));
    data.insert("tokenizer".into(), "bpe:300".into());
    recipe = Recipe::from_text(&text.to_string(), "test", &[]).unwrap();
    recipe
}

/// A figure of each evaluation.
fn figures(folder: &Path, name: &str) -> Vec<f64> {
    let of = |line: &Line| match line {
        Line::Evaluation(evaluation) => evaluation.scores[name],
        _ => None,
    };
    metrics::read(folder).unwrap().iter().filter_map(of).collect()
}

#[test]
fn preferences_are_learnt_from_a_reference_that_is_where_the_run_began() {
    for device in devices() {
        let root = tempfile::tempdir().unwrap();
        let (whole, parts) = (root.path().join("whole"), root.path().join("parts"));
        train(preferences(&whole, device, &[]), false).unwrap();
        train(preferences(&parts, device, &["train.steps=5"]), false).unwrap();
        train(preferences(&parts, device, &[]), true).unwrap();
        assert_eq!(losses(&whole), losses(&parts), "{device}");
        assert!(last_weights(&whole) == last_weights(&parts), "{device}: weights differ");
        let (losses, margins) = (losses(&whole), figures(&whole, "reward_margin"));
        assert!(
            (losses[0].1 - std::f64::consts::LN_2).abs() < 1e-6,
            "no margin in the beginning: {losses:?}"
        );
        assert!(losses[11].1 < 0.65, "{losses:?}");
        assert!(margins[0].abs() < 1e-6 && margins[2] > 0.1, "{margins:?}");
        assert_eq!(figures(&whole, "reward_accuracy")[2], 1.0);
    }
}

#[test]
fn adapters_learn_preferences_and_their_base_is_the_reference() {
    let root = tempfile::tempdir().unwrap();
    let whole = root.path().join("whole");
    train(preferences(&whole, "cpu", &["train.steps=1"]), false).unwrap();
    let checkpoint = whole.join("checkpoints/step-000001").display().to_string();
    let folder = root.path().join("adapted");
    let mut text = preferences(&folder, "cpu", &[]).to_toml().parse::<toml::Table>().unwrap();
    text.insert("model".into(), toml::Table::from_iter([("load".to_string(), checkpoint.into())]).into());
    text.insert(
        "adapter".into(),
        toml::toml! {
            rank = 4
            base = "nf4"
        }
        .into(),
    );
    let recipe = Recipe::from_text(&text.to_string(), "test", &["data.tokenizer=model".into()]).unwrap();
    train(recipe, false).unwrap();
    let losses = losses(&folder);
    assert!((losses[0].1 - std::f64::consts::LN_2).abs() < 1e-6, "{losses:?}");
    assert!(losses[11].1 < 0.69, "{losses:?}");
}
