//! Whole models through the passes: inputs that never vary, and little memory to measure in.

use super::*;
use crate::data::windows::Batch;
use crate::model::{Config, Weights, from_config, initial};
use crate::tensor::Tensor;
use crate::tensor::random::Stream;
use crate::train::Target;
use std::collections::HashSet;
use std::sync::atomic::AtomicBool;

fn subject() -> Subject {
    let config = serde_json::json!({
        "model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 16, "n_inner": 24, "n_positions": 8,
        "vocab_size": 11,
    });
    let keys = config.as_object().unwrap().clone();
    let family = from_config(&Config::new("a test", keys)).unwrap();
    let mut stream = Stream::new(&[2]);
    let mut weights = initial(&family.parameters(), 3);
    for spec in family.parameters() {
        let elements = (0..spec.shape.count()).map(|_| stream.normal() as f32 * 0.3).collect();
        weights.set(spec.name, Tensor::f32(spec.shape, elements));
    }
    Subject::new(family, weights, None)
}

/// The third input of each product of the first block is always zero, or always the same for all tokens.
fn with_dead_inputs(mut subject: Subject, value: f32) -> Subject {
    let mut set = |name: &str, elements: &mut dyn Iterator<Item = usize>, value: f32| {
        let name = format!("transformer.h.0.{name}");
        let mut tensor = subject.weights.get(&name).unwrap().clone();
        elements.for_each(|at| tensor.real_mut::<f32>()[at] = value);
        subject.weights.set(name, tensor);
    };
    for norm in ["ln_1", "ln_2"] {
        set(&format!("{norm}.weight"), &mut [2].into_iter(), 0.0);
        set(&format!("{norm}.bias"), &mut [2].into_iter(), value);
    }
    // Weights are [in, out]: a column is an output. The value of head 0 is what c_proj reads third.
    set("attn.c_attn.weight", &mut (0..16).map(|row| row * 48 + 34), 0.0);
    set("attn.c_attn.bias", &mut [34].into_iter(), value);
    set("mlp.c_fc.weight", &mut (0..16).map(|row| row * 24 + 2), 0.0);
    set("mlp.c_fc.bias", &mut [2].into_iter(), value);
    subject
}

fn batches() -> Vec<Batch> {
    let mut stream = Stream::new(&[3]);
    let mut batch = || {
        let tokens: Vec<u32> = (0..8).map(|_| stream.below(11) as u32).collect();
        let targets = tokens.iter().map(|&token| token as i32).collect();
        Batch { rows: 1, context: 8, tokens, targets }
    };
    (0..4).map(|_| batch()).collect()
}

/// Applies one pass, written as in a recipe, within a budget of bytes.
fn apply(pass: &str, subject: &mut Subject, memory_bytes: u64) -> Result<Report> {
    let recipe = Recipe::parse("a test", &format!("[[pass]]\n{pass}\n")).unwrap();
    let (stop, data, known) = (AtomicBool::new(false), toml::Table::new(), Statistics::default());
    let (batches, plain) = (batches(), Setting::new(&Target::Host, "cpu", &known, &data, &stop));
    let setting = Setting { batches: &batches, memory_bytes, ..plain };
    let stage = recipe.stages().next().unwrap();
    checked(stage, subject, &setting)
}

fn expect_finite(weights: &Weights, what: &str) {
    for (name, tensor) in weights.widened().iter() {
        assert!(tensor.real::<f32>().iter().all(|x| x.is_finite()), "{what}: {name}");
    }
}

/// Every pass that measures, as it stands in a recipe.
const MEASURING: &[&str] = &[
    "kind = \"prune\"\nmethod = \"wanda\"\nsparsity = 0.5",
    "kind = \"prune\"\nmethod = \"wanda\"\npattern = \"2:4\"",
    "kind = \"prune\"\nmethod = \"sparsegpt\"\nsparsity = 0.5",
    "kind = \"prune\"\nmethod = \"sparsegpt\"\npattern = \"2:4\"\nscheme = \"int4-g32-asym\"",
    "kind = \"smoothquant\"",
    "kind = \"awq\"\nscheme = \"int4-g32\"",
    "kind = \"quantize\"\nmethod = \"gptq\"\nscheme = \"int4-g32\"",
    "kind = \"quantize\"\nmethod = \"gptq\"\nscheme = \"int8\"\nact_order = true\ncorrect_bias = true",
    "kind = \"quantize\"\nscheme = \"W8A8-static\"",
    "kind = \"assign_bits\"\nbudget = 6.5\nchoices = [\"int8\", \"int4-g32\"]",
    "kind = \"prune_structured\"\nscore = \"activation\"\nheads = 1\nneurons = 0.25",
    "kind = \"prune_structured\"\nscore = \"taylor\"\nneurons = 0.25\nwidth = 8",
    "kind = \"drop_layers\"\ncount = 1",
];

#[test]
fn inputs_that_are_always_zero_or_never_vary_make_no_pass_give_what_is_no_number() {
    for value in [0.0, 1.5] {
        for pass in MEASURING {
            let mut subject = with_dead_inputs(subject(), value);
            let report = apply(pass, &mut subject, MEMORY_BYTES).unwrap_or_else(|e| panic!("{pass}: {e}"));
            expect_finite(&subject.weights, pass);
            // JSON has no place for what is no number: it would be null.
            let numbers = report.layers.iter().chain(report.numbers.values()).map(|layer| layer.to_string());
            let lost = numbers.filter(|text| text.contains("error\":null") || text == "null");
            assert_eq!(lost.collect::<Vec<_>>(), Vec::<String>::new(), "{pass}");
        }
    }
}

#[test]
fn what_is_measured_in_portions_is_what_is_measured_at_once() {
    // The widest layer has 24 inputs: 16 bytes each for 24 x 24 products. That much lets in one input at a time.
    let least = 16 * 24 * 24;
    for pass in MEASURING.iter().filter(|pass| !pass.contains("assign_bits")) {
        let (mut whole, mut little) = (subject(), subject());
        apply(pass, &mut whole, MEMORY_BYTES).unwrap();
        apply(pass, &mut little, least).unwrap();
        assert_eq!(whole.weights, little.weights, "{pass}");
    }
    for pass in [
        "kind = \"prune\"\nmethod = \"wanda\"\nsparsity = 0.5",
        "kind = \"quantize\"\nmethod = \"gptq\"\nscheme = \"int8\"",
    ] {
        let error = apply(pass, &mut subject(), least - 1).unwrap_err();
        assert!(matches!(&error, Error::Memory { need_bytes, .. } if *need_bytes == least), "{error}");
        assert!(error.to_string().contains("[calibration] memory"), "{error}");
    }
}

#[test]
fn portions_follow_each_other_and_none_takes_more_than_the_budget() {
    let subject = subject();
    let extent = method::extent_of(subject.family.as_ref(), &batches());
    let (_, all) = calibrate::layers_of(subject.family.as_ref(), extent).unwrap();
    let layers: Vec<&Linear> = all.iter().filter(|linear| !linear.is_head).collect();
    let mut counts = HashSet::new();
    for memory_bytes in [16 * 24 * 24, 20_000, 40_000, 1 << 20] {
        let portions = calibrate::portions(&layers, memory_bytes).unwrap();
        assert!(portions.iter().all(|portion| calibrate::gram_bytes(portion) <= memory_bytes));
        assert_eq!(portions.concat(), layers);
        counts.insert(portions.len());
    }
    assert!(counts.len() > 2 && counts.contains(&1), "{counts:?}");
}
