use super::*;
use crate::graph::{Feeds, evaluate, gradient};
use crate::model::{Extent, IGNORED, Mode, Weights, build, from_config, initial, loss};
use crate::ops::embedding::sort_positions;
use crate::tensor::{DType, Tensor};

fn design(layers: usize, heads: usize, width: usize, context: usize, vocabulary: usize) -> Design {
    let activation = Activation::Gelu;
    Design {
        layers,
        heads,
        width,
        context,
        vocabulary,
        activation,
        hidden: None,
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

fn tiny() -> Gpt2 {
    Gpt2::from_design(&design(2, 2, 8, 6, 11)).unwrap()
}

/// Weights of ordinary size: with a deviation of 0.02 a tiny model hardly looks at its tokens.
fn lively(gpt: &Gpt2) -> Weights {
    let lively = Gpt2 { deviation: 0.3, ..gpt.clone() };
    initial(&lively.parameters(), 7)
}

fn config(json: Json) -> Config {
    Config::new("config.json", json.as_object().unwrap().clone())
}

fn logits(gpt: &Gpt2, weights: &Weights, batch: usize, tokens: &[u32]) -> Vec<f32> {
    let extent = Extent { batch, context: tokens.len() / batch };
    let mut graph = Graph::new();
    let forward = gpt.forward(&mut graph, extent, Mode::Evaluate).unwrap();
    graph.output("logits", forward.logits);
    graph.verify().unwrap();
    let shape = [extent.batch, extent.context];
    let feeds = weights.feeds().with("tokens", Tensor::u32(shape, tokens.to_vec()));
    evaluate(&graph, &feeds, DType::F32).unwrap()["logits"].real::<f32>().to_vec()
}

/// Loss in training, and its gradient by every parameter if asked for.
fn train_loss(gpt: &Gpt2, feeds: &Feeds, extent: Extent, with_gradients: bool) -> (f32, Vec<Tensor>) {
    let mut graph = Graph::new();
    let forward = gpt.forward(&mut graph, extent, Mode::Train).unwrap();
    let loss = loss(&mut graph, forward.logits, 0.0).unwrap();
    graph.output("loss", loss);
    let parameters: Vec<(String, _)> = graph.parameters().map(|(n, v)| (n.to_string(), v)).collect();
    if with_gradients {
        let values: Vec<_> = parameters.iter().map(|(_, v)| *v).collect();
        for ((name, _), value) in parameters.iter().zip(gradient(&mut graph, loss, &values).unwrap()) {
            graph.output(name.clone(), value.expect("every parameter takes part in the loss"));
        }
    }
    graph.verify().unwrap();
    let mut results = evaluate(&graph, feeds, DType::F32).unwrap();
    let loss = results["loss"].real::<f32>()[0];
    (loss, parameters.iter().filter_map(|(name, _)| results.remove(name)).collect())
}

fn training_feeds(gpt: &Gpt2, extent: Extent, tokens: &[u32], targets: &[i32]) -> Feeds {
    let count = tokens.len();
    let (order, starts) = sort_positions(tokens, gpt.vocabulary).unwrap();
    lively(gpt)
        .feeds()
        .with("tokens", Tensor::u32([extent.batch, extent.context], tokens.to_vec()))
        .with("order", Tensor::u32([count], order))
        .with("starts", Tensor::u32([gpt.vocabulary + 1], starts))
        .with("targets", Tensor::i32([count], targets.to_vec()))
}

#[test]
fn parameter_counts_are_the_published_ones() {
    // GPT-2 124M (OpenAI's smallest checkpoint), and nanoGPT's small character model with biases.
    let small = Gpt2::from_config(&config(json!({}))).unwrap();
    assert_eq!(count_elements(&small.parameters()), 124_439_808);
    let nano = Gpt2::from_design(&design(4, 4, 128, 64, 65)).unwrap();
    assert_eq!(count_elements(&nano.parameters()), 809_856);
    let untied = Gpt2 { tie: false, ..nano.clone() };
    assert_eq!(count_elements(&untied.parameters()), 809_856 + 65 * 128);
    let unbiased = Gpt2 { bias: false, ..nano };
    // By block: two norms of 128, and linear layers with 3 * 128, 128, 512 and 128 outputs; then the last norm.
    assert_eq!(count_elements(&unbiased.parameters()), 809_856 - 4 * (256 + 384 + 128 + 512 + 128) - 128);
}

#[test]
fn decay_spares_biases_and_gains() {
    for spec in tiny().parameters() {
        let spared = spec.name.ends_with(".bias") || spec.name.contains("ln_");
        assert_eq!(spec.decay, !spared, "{}", spec.name);
    }
}

#[test]
fn projections_into_the_residual_stream_start_smaller_with_depth() {
    let deviation = |layers: usize, name: &str| {
        let list = Gpt2::from_design(&design(layers, 2, 8, 6, 11)).unwrap().parameters();
        match list.iter().find(|spec| spec.name.ends_with(name)).unwrap().init {
            Init::Normal { deviation } => deviation,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(deviation(2, "attn.c_proj.weight"), 0.01);
    assert_eq!(deviation(8, "mlp.c_proj.weight"), 0.005);
    assert_eq!(deviation(8, "mlp.c_fc.weight"), 0.02);
}

#[test]
fn a_later_token_never_changes_earlier_logits_and_always_its_own() {
    let gpt = tiny();
    let weights = lively(&gpt);
    let tokens = [1, 5, 2, 10, 0, 3];
    let before = logits(&gpt, &weights, 1, &tokens);
    for changed in 0..tokens.len() {
        let mut other = tokens;
        other[changed] = 7;
        let after = logits(&gpt, &weights, 1, &other);
        let (same, differ) = (changed * 11, (changed + 1) * 11);
        assert_eq!(before[..same], after[..same], "position {changed}");
        assert_ne!(before[same..differ], after[same..differ], "position {changed}");
    }
}

#[test]
fn rows_of_a_batch_do_not_see_each_other() {
    let gpt = tiny();
    let weights = lively(&gpt);
    let both = logits(&gpt, &weights, 2, &[1, 2, 3, 4, 5, 6]);
    assert_eq!(both[..33], logits(&gpt, &weights, 1, &[1, 2, 3]));
    assert_eq!(both[33..], logits(&gpt, &weights, 1, &[4, 5, 6]));
}

#[test]
fn the_order_of_tokens_matters() {
    // Without positions a causal model would still tell "a b" from "b a", but not the third of "a a a" from the second.
    let gpt = tiny();
    let y = logits(&gpt, &lively(&gpt), 1, &[4, 4, 4]);
    assert_ne!(y[11..22], y[22..33]);
}

#[test]
fn padding_changes_neither_loss_nor_gradients() {
    let gpt = tiny();
    let extent = Extent { batch: 1, context: 3 };
    let feeds = training_feeds(&gpt, extent, &[1, 2, 3], &[2, 3, 4]);
    let (loss, gradients) = train_loss(&gpt, &feeds, extent, true);
    let padded = Extent { batch: 2, context: 5 };
    let (tokens, ignored) = ([1, 2, 3, 0, 0, 9, 9, 9, 9, 9], IGNORED);
    let targets = [2, 3, 4, ignored, ignored, ignored, ignored, ignored, ignored, ignored];
    let feeds = training_feeds(&gpt, padded, &tokens, &targets);
    let (padded_loss, padded_gradients) = train_loss(&gpt, &feeds, padded, true);
    assert!((loss - padded_loss).abs() < 1e-6, "{loss} {padded_loss}");
    assert_eq!(gradients.len(), gpt.parameters().len());
    for ((one, other), spec) in gradients.iter().zip(&padded_gradients).zip(gpt.parameters()) {
        for (a, b) in one.real::<f32>().iter().zip(other.real::<f32>()) {
            assert!((a - b).abs() < 1e-6, "{}: {a} {b}", spec.name);
        }
    }
}

#[test]
fn training_and_evaluation_agree_without_dropout() {
    let gpt = tiny();
    let extent = Extent { batch: 1, context: 3 };
    let feeds = training_feeds(&gpt, extent, &[1, 2, 3], &[2, 3, 4]);
    let (trained, _) = train_loss(&gpt, &feeds, extent, false);
    let scores = logits(&gpt, &lively(&gpt), 1, &[1, 2, 3]);
    let cost = |(row, target): (&[f32], &usize)| {
        let total: f64 = row.iter().map(|&x| (x as f64).exp()).sum();
        total.ln() - row[*target] as f64
    };
    let mean = scores.chunks(11).zip(&[2, 3, 4]).map(cost).sum::<f64>() / 3.0;
    assert!((trained as f64 - mean).abs() < 1e-5, "{trained} {mean}");
}

#[test]
fn dropout_depends_on_the_counter_alone() {
    let gpt = Gpt2::from_design(&Design { dropout: 0.3, ..design(2, 2, 8, 6, 11) }).unwrap();
    let extent = Extent { batch: 1, context: 3 };
    let feeds = training_feeds(&gpt, extent, &[1, 2, 3], &[2, 3, 4]);
    let at = |key: u32, step: u32| {
        let feeds = feeds.clone().with("rng", Tensor::u32([2], vec![key, step]));
        train_loss(&gpt, &feeds, extent, false).0
    };
    assert_eq!(at(1, 0), at(1, 0));
    assert_ne!(at(1, 0), at(1, 1));
    assert_ne!(at(1, 0), at(2, 0));
    // The embedding draws, and in each block the probabilities, the projection and the feed-forward part.
    let mut graph = Graph::new();
    gpt.forward(&mut graph, extent, Mode::Train).unwrap();
    let drawing = graph.nodes().iter().filter(|n| n.inputs.contains(&graph.named("rng").unwrap()));
    let salts: std::collections::HashSet<String> =
        drawing.map(|n| n.op.settings().split("salt=").nth(1).expect("it draws").to_string()).collect();
    assert_eq!(salts.len(), 1 + 2 * 3);
}

#[test]
fn a_context_beyond_the_positions_is_refused() {
    let mut graph = Graph::new();
    let extent = Extent { batch: 1, context: 7 };
    let result = tiny().forward(&mut graph, extent, Mode::Evaluate);
    assert!(matches!(result, Err(Error::Context { limit: 6, got: 7 })));
}

#[test]
fn scores_are_scaled_as_the_configuration_says() {
    let gpt = tiny();
    assert_eq!(gpt.score_scale(1), None);
    let by_layer = Gpt2 { scale_by_layer: true, ..gpt.clone() };
    assert_eq!((by_layer.score_scale(0), by_layer.score_scale(1)), (Some(0.5), Some(0.25)));
    assert_eq!(Gpt2 { scale_scores: false, ..gpt }.score_scale(1), Some(1.0));
}

#[test]
fn a_saved_model_is_loaded_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let kept = json!({ "eos_token_id": 2 }).as_object().unwrap().clone();
    let gpt = Gpt2 {
        tie: false,
        bias: false,
        kept,
        dropout: Dropouts { residual: 0.1, ..Dropouts::default() },
        ..tiny()
    };
    let weights = initial(&gpt.parameters(), 3);
    weights.save(folder.path(), &gpt).unwrap();
    let config = Config::read(folder.path()).unwrap();
    assert_eq!(Gpt2::from_config(&config).unwrap(), gpt);
    assert_eq!(Weights::read(folder.path(), &gpt).unwrap(), weights);
}

#[test]
fn other_spellings_of_names_are_understood() {
    let gpt = tiny();
    assert_eq!(gpt.canonical_name("h.0.attn.c_attn.bias").unwrap(), "transformer.h.0.attn.c_attn.bias");
    assert_eq!(gpt.canonical_name("transformer.wte.weight").unwrap(), "transformer.wte.weight");
    for left_out in ["h.0.attn.bias", "transformer.h.1.attn.masked_bias", "lm_head.weight"] {
        assert_eq!(gpt.canonical_name(left_out), None, "{left_out}");
    }
    assert!(Gpt2 { tie: false, ..gpt }.canonical_name("lm_head.weight").is_some());
}

#[test]
fn weights_of_another_model_are_refused_by_name_or_shape() {
    let folder = tempfile::tempdir().unwrap();
    let gpt = tiny();
    initial(&gpt.parameters(), 3).save(folder.path(), &gpt).unwrap();
    let deeper = Gpt2 { layers: 3, ..gpt.clone() };
    let error = Weights::read(folder.path(), &deeper).unwrap_err();
    let Error::Names { missing, extra, .. } = &error else { panic!("{error}") };
    assert!(missing.iter().all(|name| name.starts_with("transformer.h.2.")) && extra.is_empty(), "{error}");
    let shallower = Gpt2 { layers: 1, ..gpt.clone() };
    let error = Weights::read(folder.path(), &shallower).unwrap_err();
    assert!(matches!(&error, Error::Names { missing, extra, .. } if missing.is_empty() && extra.len() == 12));
    let longer = Gpt2 { context: 9, ..gpt.clone() };
    let error = Weights::read(folder.path(), &longer).unwrap_err();
    assert!(matches!(&error, Error::Shape { name, .. } if name == "transformer.wpe.weight"), "{error}");
    let mut weights = initial(&gpt.parameters(), 3);
    weights.set("stray", Tensor::scalar(1.0));
    assert!(
        matches!(weights.save(folder.path(), &gpt), Err(Error::Names { extra, .. }) if extra == ["stray"])
    );
}

#[test]
fn settings_that_would_change_the_outcome_are_refused_by_key() {
    for (key, value) in [
        ("add_cross_attention", json!(true)),
        ("quantization_config", json!({ "bits": 4 })),
        ("activation_function", json!("swoosh")),
        ("n_head", json!(7)),
        ("vocab_size", json!(-1)),
        ("resid_pdrop", json!(1.0)),
    ] {
        let mut keys = Map::new();
        keys.insert("model_type".into(), json!("gpt2"));
        keys.insert(key.into(), value);
        let error = from_config(&Config::new("config.json", keys)).unwrap_err();
        assert!(matches!(&error, Error::Setting { key: named, .. } if named == key), "{error}");
    }
    let odd = build("gpt2", &design(2, 3, 8, 6, 11)).unwrap_err();
    assert!(matches!(&odd, Error::Setting { key, .. } if key == "heads"), "{odd}");
}
