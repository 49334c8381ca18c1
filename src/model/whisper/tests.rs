use super::*;
use crate::formats::Raw;
use crate::model::{Config, Inputs, Weights, from_config, initial};
use serde_json::json;
use std::collections::BTreeMap;

/// The configuration of openai/whisper-tiny, as far as it differs from what is usual.
fn tiny() -> Map<String, Json> {
    let keys = json!({
        "architectures": ["WhisperForConditionalGeneration"], "activation_function": "gelu", "bos_token_id": 50257,
        "d_model": 384, "decoder_attention_heads": 6, "decoder_ffn_dim": 1536, "decoder_layers": 4,
        "decoder_start_token_id": 50258, "encoder_attention_heads": 6, "encoder_ffn_dim": 1536, "encoder_layers": 4,
        "eos_token_id": 50257, "forced_decoder_ids": [[1, 50259], [2, 50359], [3, 50363]], "max_length": 448,
        "max_source_positions": 1500, "max_target_positions": 448, "model_type": "whisper", "num_mel_bins": 80,
        "pad_token_id": 50257, "scale_embedding": false, "torch_dtype": "float32", "vocab_size": 51865,
    });
    keys.as_object().unwrap().clone()
}

fn small(more: &[(&str, Json)]) -> Map<String, Json> {
    let mut keys = tiny();
    let sizes = ["d_model", "encoder_ffn_dim", "decoder_ffn_dim", "vocab_size", "num_mel_bins"]
        .into_iter()
        .zip([8, 12, 10, 11, 3]);
    let more_sizes = [
        "max_source_positions",
        "max_target_positions",
        "encoder_layers",
        "decoder_layers",
        "encoder_attention_heads",
    ]
    .into_iter()
    .zip([4, 6, 1, 2, 2]);
    for (key, size) in sizes.chain(more_sizes).chain([
        ("decoder_attention_heads", 2),
        ("pad_token_id", 10),
        ("decoder_start_token_id", 0),
    ]) {
        keys.insert(key.into(), json!(size));
    }
    keys.extend(more.iter().map(|(key, value)| (key.to_string(), value.clone())));
    keys
}

fn opened(keys: Map<String, Json>) -> Result<Box<dyn Family>> {
    from_config(&Config::new("config.json", keys))
}

#[test]
fn the_parameter_count_of_whisper_tiny_is_the_published_one() {
    assert_eq!(count_elements(&opened(tiny()).unwrap().parameters()), 37_760_640);
}

#[test]
fn a_saved_model_is_loaded_as_it_was_and_names_of_the_bare_one_are_understood() {
    let whisper = opened(small(&[])).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let weights = initial(&whisper.parameters(), 3);
    weights.save(folder.path(), whisper.as_ref()).unwrap();
    let again = from_config(&Config::read(folder.path()).unwrap()).unwrap();
    assert_eq!(again.config(), whisper.config());
    assert_eq!(again.config()["forced_decoder_ids"][0], json!([1, 50259]));
    assert_eq!(Weights::read(folder.path(), &*again).unwrap(), weights);
    assert_eq!(whisper.canonical_name("proj_out.weight"), None);
    assert_eq!(whisper.canonical_name("encoder.conv1.bias").unwrap(), "model.encoder.conv1.bias");
    let apart = opened(small(&[("tie_word_embeddings", json!(false))])).unwrap();
    assert_eq!(apart.canonical_name("proj_out.weight").unwrap(), "proj_out.weight");
    assert!(apart.parameters().iter().any(|spec| spec.name == "proj_out.weight"));
}

#[test]
fn what_cannot_be_is_refused_by_its_key() {
    for (key, value) in [
        ("d_model", json!(9)),
        ("decoder_attention_heads", json!(3)),
        ("encoder_layerdrop", json!(0.1)),
        ("pad_token_id", json!(11)),
        ("max_source_positions", json!(0)),
        ("dropout", json!(1.5)),
    ] {
        let error = opened(small(&[(key, value)])).unwrap_err();
        let blamed = if key == "d_model" { "encoder_attention_heads" } else { key };
        assert!(matches!(&error, Error::Setting { key: named, .. } if named == blamed), "{key}: {error}");
    }
    let whisper = opened(small(&[])).unwrap();
    let refused = |list: &[(&str, Raw<'static>)], blamed: &str| {
        let given: BTreeMap<_, _> = list.iter().map(|(name, raw)| (name.to_string(), raw.clone())).collect();
        match Inputs::new(&given, whisper.as_ref()) {
            Err(Error::Input { name, .. }) => assert_eq!(name, blamed),
            other => panic!("{blamed}: {other:?}"),
        }
    };
    let sound = ("input_features", Raw::f32([1, 3, 8], &[0.0; 24]));
    let labels = ("labels", Raw::i64([1, 2], &[1, 2]));
    refused(std::slice::from_ref(&labels), "input_features");
    refused(&[("input_features", Raw::f32([1, 3, 6], &[0.0; 18])), labels.clone()], "input_features");
    refused(&[("input_features", Raw::i64([1, 2], &[0, 0])), labels.clone()], "input_features");
    refused(std::slice::from_ref(&sound), "labels");
    refused(&[sound, labels, ("input_ids", Raw::i64([1, 2], &[1, 2]))], "input_ids");
}
