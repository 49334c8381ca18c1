use super::*;
use crate::graph::{Graph, evaluate};
use crate::model::{Activation, Design, Extent, Mode, build, initial};
use crate::tensor::{DType, Tensor};

/// Small models of every family, by name.
pub(super) fn families(context: usize) -> Vec<(&'static str, Box<dyn Family>)> {
    let plain = design(context, 23);
    let grouped = Design { kv_heads: Some(2), bias: false, ..plain.clone() };
    let windowed = Design { window: Some(5), ..grouped.clone() };
    let designs = [
        ("gpt2", plain.clone()),
        ("llama", grouped.clone()),
        ("mistral", windowed),
        ("qwen2", grouped.clone()),
        ("qwen3", Design { head_size: Some(8), ..grouped }),
        ("gpt_neox", Design { heads: 2, ..plain }),
    ];
    designs.map(|(name, design)| (name, build(name, &design).unwrap())).into()
}

/// A small model of a family.
pub(super) fn small(name: &str, context: usize) -> Box<dyn Family> {
    build(name, &Design { bias: name != "t5", ..design(context, 23) }).unwrap()
}

/// A small GPT-2 that knows so many tokens.
pub(super) fn with_vocabulary(context: usize, vocabulary: usize) -> Box<dyn Family> {
    build("gpt2", &design(context, vocabulary)).unwrap()
}

fn design(context: usize, vocabulary: usize) -> Design {
    Design {
        layers: 2,
        heads: 4,
        width: 16,
        context,
        vocabulary,
        activation: Activation::Silu,
        hidden: Some(24),
        norm_epsilon: 1e-5,
        dropout: 0.0,
        bias: true,
        tie: true,
        kv_heads: None,
        head_size: None,
        rope_theta: None,
        window: None,
    }
}

/// Weights far from those of a new model, which hardly looks at its tokens.
pub(super) fn lively(family: &dyn Family) -> Weights {
    let mut specs = family.parameters();
    for spec in specs.iter_mut().filter(|spec| spec.shape.len() > 1) {
        spec.init = crate::model::Init::Normal { deviation: 0.3 };
    }
    initial(&specs, 5)
}

pub(super) fn text(count: usize) -> Vec<u32> {
    (0..count).map(|i| (i * i * 7 + i * 3 + 1) as u32 % 23).collect()
}

/// Scores after each token of a text that is read as a whole, without caches.
pub(super) fn whole(family: &dyn Family, weights: &Weights, text: &[u32]) -> Vec<Vec<f32>> {
    let mut graph = Graph::new();
    let extent = Extent { batch: 1, context: text.len() };
    let forward = family.forward(&mut graph, extent, Mode::Evaluate).unwrap();
    graph.output("logits", forward.logits);
    let feeds = weights.feeds().with("tokens", Tensor::u32([1, text.len()], text.to_vec()));
    let logits = evaluate(&graph, &feeds, DType::F32).unwrap().remove("logits").unwrap();
    logits.real::<f32>().chunks(family.vocabulary()).map(<[f32]>::to_vec).collect()
}

pub(super) fn assert_close(name: &str, got: &[f32], expected: &[f32]) {
    for (got, expected) in got.iter().zip(expected) {
        assert!(
            (got - expected).abs() <= 1e-5 * expected.abs().max(1.0),
            "{name}: {got}, expected {expected}"
        );
    }
    assert_eq!(got.len(), expected.len());
}

fn writer(family: &dyn Family, weights: &Weights, longest: usize) -> Writer {
    Writer::new(family, weights, None, &Target::Host, longest).unwrap()
}

#[test]
fn a_text_read_token_by_token_gives_the_scores_of_the_whole() {
    for (name, family) in families(24) {
        let weights = lively(&*family);
        let text = text(24);
        let mut writer = writer(&*family, &weights, 24);
        for (at, expected) in whole(&*family, &weights, &text).iter().enumerate() {
            assert_close(name, &writer.logits(&text[..=at]).unwrap(), expected);
        }
        assert_eq!((writer.pace().read, writer.pace().steps), (0, 24), "{name}");
    }
}

#[test]
fn a_prompt_read_in_chunks_gives_the_scores_of_the_whole() {
    // Less than a chunk; a chunk; one with a short rest, and with a long one that passes the end of the cache.
    for (name, family) in families(200) {
        let weights = lively(&*family);
        let text = text(200);
        let expected = whole(&*family, &weights, &text);
        for count in [9, 128, 131, 200] {
            let mut writer = writer(&*family, &weights, 200);
            assert_close(name, &writer.logits(&text[..count]).unwrap(), &expected[count - 1]);
            assert_eq!((writer.pace().read, writer.pace().steps), (count, 0), "{name}");
        }
    }
}

#[test]
fn a_cache_of_codes_gives_almost_the_same_scores() {
    for (name, family) in families(40) {
        let weights = lively(&*family);
        let text = text(40);
        let expected = whole(&*family, &weights, &text);
        let deployment = Deployment::new(&weights).with_coded_cache();
        let mut writer = Writer::over(&*family, &deployment, None, &Target::Host, 40).unwrap();
        // A chunk, then token by token.
        let (mut differs, mut squares, mut errors) = (false, 0.0, 0.0);
        for (at, expected) in expected.iter().enumerate().skip(30) {
            let got = writer.logits(&text[..=at]).unwrap();
            differs |= got != *expected;
            for (got, expected) in got.iter().zip(expected) {
                squares += expected * expected;
                errors += (got - expected) * (got - expected);
            }
        }
        assert!(differs && errors.sqrt() < 0.03 * squares.sqrt(), "{name}: {errors} of {squares}");
    }
}

#[test]
fn what_two_texts_begin_with_is_read_once() {
    let (name, family) = families(32).remove(1);
    let weights = lively(&*family);
    let mut writer = writer(&*family, &weights, 32);
    let (mut one, mut other) = (text(20), text(20));
    one[17] = 3;
    other[17] = 4;
    for text in [&one, &other, &other, &one] {
        let expected = whole(&*family, &weights, text);
        assert_close(name, &writer.logits(text).unwrap(), &expected[19]);
    }
    // The second text shares 17 tokens with the first; of the same text again only the last is read.
    assert_eq!((writer.pace().read, writer.pace().steps), (20 + 3 + 3, 1));
}

#[test]
fn greedy_text_is_that_of_a_model_without_caches_and_a_full_context_is_halved() {
    for (name, family) in families(16) {
        let weights = lively(&*family);
        let prompt = text(21);
        let mut seen = prompt[5..].to_vec();
        let mut expected = vec![];
        for _ in 0..30 {
            if seen.len() > 16 {
                seen.drain(..seen.len() - 8);
            }
            let scores = whole(&*family, &weights, &seen).pop().unwrap();
            let best = sample(&scores, &Sampling::greedy(), &mut Stream::new(&[0]));
            expected.push(best);
            seen.push(best);
        }
        let mut writer = writer(&*family, &weights, 1000);
        let got = writer.continue_ids(&prompt, 30, &Sampling::greedy(), &mut |_| true).unwrap();
        assert_eq!(got, expected, "{name}");
    }
}
