use super::*;
use crate::model::{Weights, from_config, initial};

fn pythia() -> Map<String, Json> {
    // The configuration of Pythia 70M.
    let keys = json!({
        "architectures": ["GPTNeoXForCausalLM"], "hidden_act": "gelu", "hidden_size": 512,
        "intermediate_size": 2048, "layer_norm_eps": 1e-5, "max_position_embeddings": 2048,
        "model_type": "gpt_neox", "num_attention_heads": 8, "num_hidden_layers": 6, "rotary_emb_base": 10000,
        "rotary_pct": 0.25, "tie_word_embeddings": false, "use_parallel_residual": true, "vocab_size": 50304,
    });
    keys.as_object().unwrap().clone()
}

#[test]
fn the_parameter_count_of_pythia_is_the_published_one() {
    let neox = GptNeoX::from_config(&Config::new("config.json", pythia())).unwrap();
    assert_eq!(count_elements(&neox.parameters()), 70_426_624);
    assert_eq!(neox.rope.rotated(neox.head_size), 16);
}

#[test]
fn a_saved_model_is_loaded_as_it_was() {
    let mut keys = pythia();
    for (key, size) in
        [("hidden_size", 16), ("num_attention_heads", 2), ("vocab_size", 11), ("intermediate_size", 12)]
    {
        keys.insert(key.into(), json!(size));
    }
    keys.insert("use_parallel_residual".into(), json!(false));
    keys.insert("eos_token_id".into(), json!(0));
    let neox = GptNeoX::from_config(&Config::new("config.json", keys)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let weights = initial(&neox.parameters(), 3);
    weights.save(folder.path(), &neox).unwrap();
    assert_eq!(GptNeoX::from_config(&Config::read(folder.path()).unwrap()).unwrap(), neox);
    assert_eq!(Weights::read(folder.path(), &neox).unwrap(), weights);
}

#[test]
fn a_config_that_cannot_be_is_refused_by_key() {
    for (key, value) in [
        ("hidden_size", Json::Null),
        ("num_attention_heads", json!(7)),
        ("rotary_pct", json!(0.01)),
        ("num_hidden_layers", json!(1_000_000)),
        ("hidden_dropout", json!(1.0)),
    ] {
        let mut keys = pythia();
        keys.insert(key.into(), value);
        let error = from_config(&Config::new("config.json", keys)).unwrap_err();
        // Heads of which nothing turns: the share and the head's size are told together.
        let blamed = if key == "rotary_pct" { "num_attention_heads" } else { key };
        assert!(matches!(&error, Error::Setting { key: named, .. } if named == blamed), "{key}: {error}");
    }
}

#[test]
fn masks_and_second_names_of_the_head_are_understood() {
    let neox = GptNeoX::from_config(&Config::new("config.json", pythia())).unwrap();
    assert_eq!(neox.canonical_name("gpt_neox.layers.0.attention.bias"), None);
    assert_eq!(neox.canonical_name("lm_head.weight").unwrap(), "embed_out.weight");
    let kept = "gpt_neox.layers.0.attention.dense.bias";
    assert_eq!(neox.canonical_name(kept).unwrap(), kept);
}
