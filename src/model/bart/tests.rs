use super::*;
use crate::graph::{Feeds, Graph, evaluate};
use crate::model::{Config, Extent, Mode, Weights, from_config, initial};
use crate::tensor::{DType, Tensor};
use serde_json::json;

fn base() -> Map<String, Json> {
    // The configuration of BART-base, but for the head.
    let keys = json!({
        "architectures": ["BartForConditionalGeneration"], "activation_function": "gelu", "bos_token_id": 0,
        "d_model": 768, "decoder_attention_heads": 12, "decoder_ffn_dim": 3072, "decoder_layerdrop": 0.0,
        "decoder_layers": 6, "decoder_start_token_id": 2, "encoder_attention_heads": 12,
        "encoder_ffn_dim": 3072, "encoder_layerdrop": 0.0, "encoder_layers": 6, "eos_token_id": 2,
        "max_position_embeddings": 1024, "model_type": "bart", "normalize_before": false,
        "num_hidden_layers": 6, "pad_token_id": 1, "scale_embedding": false, "vocab_size": 50265,
    });
    keys.as_object().unwrap().clone()
}

fn with(changes: &[(&str, Json)]) -> Map<String, Json> {
    let mut keys = base();
    keys.extend(changes.iter().map(|(key, value)| (key.to_string(), value.clone())));
    keys
}

fn tiny(positions: Positions) -> Bart {
    let mut changes: Vec<(&str, Json)> =
        ["d_model", "encoder_ffn_dim", "decoder_ffn_dim", "vocab_size", "max_position_embeddings"]
            .into_iter()
            .zip([16, 12, 20, 11, 9])
            .map(|(key, size)| (key, json!(size)))
            .collect();
    for key in ["encoder_layers", "encoder_attention_heads", "decoder_layers", "decoder_attention_heads"] {
        changes.push((key, json!(2)));
    }
    Bart::from_config(positions, &Config::new("config.json", with(&changes))).unwrap()
}

#[test]
fn the_parameter_count_of_bart_base_is_the_published_one() {
    let bart = Bart::from_config(Positions::Learned, &Config::new("config.json", base())).unwrap();
    // The bias of the scores is stored, but no parameter in transformers.
    assert_eq!(count_elements(&bart.parameters()), 139_420_416 + 50_265);
}

#[test]
fn a_saved_model_is_loaded_as_it_was() {
    for positions in [Positions::Learned, Positions::Sinusoidal] {
        let bart = tiny(positions);
        let folder = tempfile::tempdir().unwrap();
        let weights = initial(&bart.parameters(), 3);
        weights.save(folder.path(), &bart).unwrap();
        let again = from_config(&Config::read(folder.path()).unwrap()).unwrap();
        assert_eq!(again.config(), bart.config());
        assert_eq!(Weights::read(folder.path(), &*again).unwrap(), weights);
    }
}

#[test]
fn a_config_that_cannot_be_is_refused_by_key() {
    for (key, value) in [
        ("d_model", json!(770)),
        ("decoder_attention_heads", json!(7)),
        ("normalize_before", json!(true)),
        ("encoder_layerdrop", json!(0.1)),
        ("share_encoder_decoder_embeddings", json!(false)),
        ("pad_token_id", json!(50265)),
        ("dropout", json!(-0.1)),
    ] {
        let error = from_config(&Config::new("config.json", with(&[(key, value)]))).unwrap_err();
        let blamed = if key == "d_model" { "encoder_attention_heads" } else { key };
        assert!(matches!(&error, Error::Setting { key: named, .. } if named == blamed), "{key}: {error}");
    }
}

#[test]
fn names_of_the_bare_model_and_copies_are_understood() {
    let bart = tiny(Positions::Sinusoidal);
    for left_out in [
        "model.encoder.embed_tokens.weight",
        "lm_head.weight",
        "model.decoder.embed_positions.weight",
        "model.encoder.version",
    ] {
        assert_eq!(bart.canonical_name(left_out), None);
    }
    assert_eq!(bart.canonical_name("shared.weight").unwrap(), "model.shared.weight");
    assert_eq!(bart.canonical_name("final_logits_bias").unwrap(), "final_logits_bias");
    let learned = "model.encoder.embed_positions.weight";
    assert_eq!(tiny(Positions::Learned).canonical_name(learned).unwrap(), learned);
}

#[test]
fn the_stored_bias_moves_the_scores_and_takes_no_gradient() {
    let bart = tiny(Positions::Learned);
    let mut graph = Graph::new();
    let extent = Extent { batch: 1, context: 3 };
    let reading = Reading { target: 2, ..Reading::new(extent, Mode::Evaluate) };
    let forward = bart.read(&mut graph, &reading).unwrap();
    graph.output("logits", forward.logits);
    let total = crate::ops::reduce::ReduceEmit::sum_all(&mut graph, forward.logits).unwrap();
    let bias = graph.named("final_logits_bias").unwrap();
    assert_eq!(crate::graph::gradient(&mut graph, total, &[bias]).unwrap(), [None]);

    let logits = |weights: &Weights| -> Vec<f64> {
        let feeds: Feeds = weights
            .feeds()
            .with("tokens", Tensor::u32([1, 3], vec![4, 5, 6]))
            .with("target_tokens", Tensor::u32([1, 2], vec![2, 7]));
        evaluate(&graph, &feeds, DType::F64).unwrap()["logits"].to_f64()
    };
    let mut weights = initial(&bart.parameters(), 5);
    let before = logits(&weights);
    weights.set("final_logits_bias", Tensor::f32([1, 11], vec![0.5; 11]));
    let after = logits(&weights);
    assert!(before.iter().zip(&after).all(|(before, after)| (after - before - 0.5).abs() < 1e-9));
}

#[test]
fn more_tokens_than_there_are_positions_are_refused_on_either_side() {
    let bart = tiny(Positions::Learned);
    for (context, target) in [(10, 3), (3, 10)] {
        let reading = Reading { target, ..Reading::new(Extent { batch: 1, context }, Mode::Evaluate) };
        let refused = bart.read(&mut Graph::new(), &reading);
        assert!(matches!(refused, Err(Error::Context { limit: 9, got: 10 })));
    }
}

#[test]
fn the_bare_model_is_read_without_the_bias_of_the_scores_and_without_its_prefix() {
    let bart = tiny(Positions::Learned);
    let weights = initial(&bart.parameters(), 3);
    let folder = tempfile::tempdir().unwrap();
    weights.save(folder.path(), &bart).unwrap();
    let mut config = bart.config();
    config.insert("architectures".into(), json!(["BartModel"]));
    std::fs::write(folder.path().join("config.json"), serde_json::to_vec(&config).unwrap()).unwrap();
    let bare: Vec<(&str, &Tensor)> =
        weights.iter().filter_map(|(name, tensor)| Some((name.strip_prefix("model.")?, tensor))).collect();
    crate::model::Archive::write(&folder.path().join("model.safetensors"), &bare).unwrap();
    let family = crate::model::open(folder.path()).unwrap();
    // New weights have a bias of zero as well.
    assert_eq!(Weights::read(folder.path(), family.as_ref()).unwrap(), weights);
    let fewer: Vec<(&str, &Tensor)> = bare.into_iter().filter(|(name, _)| *name != "shared.weight").collect();
    crate::model::Archive::write(&folder.path().join("model.safetensors"), &fewer).unwrap();
    let error = Weights::read(folder.path(), family.as_ref()).unwrap_err();
    assert!(matches!(&error, Error::Names { missing, .. } if *missing == ["model.shared.weight"]), "{error}");
}
