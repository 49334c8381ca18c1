use super::*;
use crate::graph::evaluate;
use crate::model::{
    Archive, CONFIG_FILE, Config, Extent, INDEX_FILE, Mode, Scaling, WEIGHTS_FILE, Weights, build,
    from_config, initial, usual,
};
use crate::tensor::{DType, Tensor};
use serde_json::json;

fn design(layers: usize, heads: usize, width: usize, context: usize, vocabulary: usize) -> Design {
    Design {
        layers,
        heads,
        kv_heads: None,
        head_size: None,
        width,
        hidden: None,
        context,
        vocabulary,
        activation: Activation::Silu,
        norm_epsilon: 1e-5,
        dropout: 0.0,
        bias: false,
        tie: true,
        rope_theta: None,
        window: None,
    }
}

/// Two keys' heads for four of queries.
fn tiny(dialect: Dialect) -> Llama {
    let design = Design { kv_heads: Some(2), hidden: Some(12), ..design(2, 4, 16, 8, 11) };
    Llama::from_design(dialect, &design).unwrap()
}

fn sizes() -> Map<String, Json> {
    let sizes = json!({
        "model_type": "llama", "vocab_size": 11, "max_position_embeddings": 8, "hidden_size": 16,
        "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    });
    sizes.as_object().unwrap().clone()
}

fn with(key: &str, value: Json) -> Result<Box<dyn Family>> {
    let mut keys = sizes();
    keys.insert(key.into(), value);
    from_config(&Config::new("config.json", keys))
}

fn logits(llama: &Llama, tokens: &[u32]) -> Vec<f32> {
    // Weights of ordinary size: with a deviation of 0.02 a tiny model hardly looks at its tokens.
    let weights = initial(&Llama { deviation: 0.3, ..llama.clone() }.parameters(), 7);
    let extent = Extent { batch: 1, context: tokens.len() };
    let mut graph = Graph::new();
    let forward = llama.forward(&mut graph, extent, Mode::Evaluate).unwrap();
    graph.output("logits", forward.logits);
    graph.verify().unwrap();
    let feeds = weights.feeds().with("tokens", Tensor::u32([1, tokens.len()], tokens.to_vec()));
    evaluate(&graph, &feeds, DType::F32).unwrap()["logits"].real::<f32>().to_vec()
}

#[test]
fn parameter_counts_are_the_published_ones() {
    // SmolLM2-135M has 134.5 million parameters, Llama 2 7B 6 738 million, Qwen2.5 0.5B 494 million.
    let smol = Design { kv_heads: Some(3), hidden: Some(1536), ..design(30, 9, 576, 8192, 49152) };
    let smol = Llama::from_design(Dialect::Llama, &smol).unwrap();
    assert_eq!(count_elements(&smol.parameters()), 134_515_008);
    let seven = Design { hidden: Some(11008), tie: false, ..design(32, 32, 4096, 4096, 32000) };
    let seven = Llama::from_design(Dialect::Llama, &seven).unwrap();
    assert_eq!(count_elements(&seven.parameters()), 6_738_415_616);
    let half = Design { kv_heads: Some(2), hidden: Some(4864), ..design(24, 14, 896, 32768, 151_936) };
    let half = Llama::from_design(Dialect::Qwen2, &half).unwrap();
    assert_eq!(count_elements(&half.parameters()), 494_032_768);
}

#[test]
fn a_gated_feed_forward_part_is_about_as_heavy_as_a_plain_one() {
    assert_eq!(gated_width(576), 1536);
    assert_eq!(gated_width(4096), 10944);
    assert_eq!((usual("llama").hidden)(128), 352);
}

#[test]
fn a_later_token_never_changes_earlier_logits_and_always_its_own() {
    for dialect in [Dialect::Llama, Dialect::Qwen2, Dialect::Qwen3] {
        let llama = tiny(dialect);
        let tokens = [1, 5, 2, 10, 0, 3];
        let before = logits(&llama, &tokens);
        for changed in 0..tokens.len() {
            let mut other = tokens;
            other[changed] = 7;
            let after = logits(&llama, &other);
            let (same, differ) = (changed * 11, (changed + 1) * 11);
            assert_eq!(before[..same], after[..same], "{dialect:?}, position {changed}");
            assert_ne!(before[same..differ], after[same..differ], "{dialect:?}, position {changed}");
        }
    }
}

#[test]
fn a_token_beyond_the_windows_of_all_blocks_is_forgotten() {
    // Each of the two blocks looks back two positions, so the last of six sees the second and not the first.
    let llama = Llama { windows: vec![Some(3); 2], ..tiny(Dialect::Mistral) };
    let last = |tokens: [u32; 6]| logits(&llama, &tokens)[5 * 11..].to_vec();
    assert_eq!(last([1, 5, 2, 10, 0, 3]), last([9, 5, 2, 10, 0, 3]));
    assert_ne!(last([1, 5, 2, 10, 0, 3]), last([1, 9, 2, 10, 0, 3]));
    let wide = Llama { windows: vec![None; 2], ..llama };
    let last = |tokens: [u32; 6]| logits(&wide, &tokens)[5 * 11..].to_vec();
    assert_ne!(last([1, 5, 2, 10, 0, 3]), last([9, 5, 2, 10, 0, 3]));
}

#[test]
fn a_saved_model_is_loaded_as_it_was_in_every_dialect() {
    for dialect in [Dialect::Llama, Dialect::Mistral, Dialect::Qwen2, Dialect::Qwen3] {
        let folder = tempfile::tempdir().unwrap();
        let scaling = Scaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 4 };
        let windows = if dialect == Dialect::Llama { [None; 2] } else { [Some(3); 2] };
        let llama = Llama {
            tie: false,
            dropout: 0.1,
            rope: Rope { theta: 5e5, share: 0.5, scaling },
            windows: windows.to_vec(),
            kept: json!({ "eos_token_id": 2, "max_window_layers": 0 }).as_object().unwrap().clone(),
            ..tiny(dialect)
        };
        let weights = initial(&llama.parameters(), 3);
        weights.save(folder.path(), &llama).unwrap();
        let config = Config::read(folder.path()).unwrap();
        assert_eq!(Llama::from_config(dialect, &config).unwrap(), llama);
        assert_eq!(Weights::read(folder.path(), &llama).unwrap(), weights);
    }
}

#[test]
fn shards_are_read_as_one_file_is() {
    let folder = tempfile::tempdir().unwrap();
    let llama = tiny(Dialect::Llama);
    let weights = initial(&llama.parameters(), 3);
    weights.save(folder.path(), &llama).unwrap();
    std::fs::remove_file(folder.path().join(WEIGHTS_FILE)).unwrap();
    let tensors: Vec<(&str, &Tensor)> = weights.iter().collect();
    let mut map = Map::new();
    for (number, part) in tensors.chunks(tensors.len().div_ceil(2)).enumerate() {
        let file = format!("model-{:05}-of-00002.safetensors", number + 1);
        Archive::write(&folder.path().join(&file), part).unwrap();
        map.extend(part.iter().map(|(name, _)| (name.to_string(), json!(file))));
    }
    std::fs::write(folder.path().join(INDEX_FILE), json!({ "weight_map": map }).to_string()).unwrap();
    assert!(folder.path().join(CONFIG_FILE).exists());
    let family = crate::model::open(folder.path()).unwrap();
    assert_eq!(Weights::read(folder.path(), &*family).unwrap(), weights);
}

#[test]
fn a_config_without_a_size_names_it() {
    for key in sizes().keys().filter(|key| !["model_type", "num_key_value_heads"].contains(&key.as_str())) {
        let mut keys = sizes();
        keys.remove(key);
        let error = from_config(&Config::new("config.json", keys)).unwrap_err();
        let named = matches!(&error, Error::Setting { key: k, got, .. } if k == key && got == "absent");
        assert!(named, "{key}: {error}");
    }
    let mut keys = sizes();
    keys.remove("num_key_value_heads");
    let llama = Llama::from_config(Dialect::Llama, &Config::new("config.json", keys.clone())).unwrap();
    assert_eq!(llama.kv_heads, 4);
    let mistral = Llama::from_config(Dialect::Mistral, &Config::new("config.json", keys));
    assert!(matches!(mistral, Err(Error::Setting { key, .. }) if key == "num_key_value_heads"));
}

#[test]
fn settings_that_cannot_be_are_refused_by_key() {
    for (key, value) in [
        ("num_key_value_heads", json!(3)),
        ("num_attention_heads", json!(5)),
        ("head_dim", json!(3)),
        ("hidden_act", json!("swoosh")),
        ("hidden_act", json!("prelu")),
        ("attention_dropout", json!(1.0)),
        ("num_hidden_layers", json!(1_000_000_000)),
        ("hidden_size", json!(u64::MAX)),
        ("vocab_size", json!(-1)),
        ("rope_theta", json!(0)),
        ("partial_rotary_factor", json!(1.5)),
        ("quantization_config", json!({ "bits": 4 })),
        ("rope_interleaved", json!(true)),
    ] {
        let error = with(key, value).unwrap_err();
        assert!(matches!(&error, Error::Setting { key: named, .. } if named == key), "{key}: {error}");
    }
}

#[test]
fn designs_that_cannot_be_are_refused_by_key() {
    let four = || design(2, 4, 16, 8, 11);
    for (family, key, design) in [
        ("llama", "kv_heads", Design { kv_heads: Some(3), ..four() }),
        ("llama", "heads", Design { heads: 3, ..four() }),
        ("llama", "head_size", Design { head_size: Some(5), ..four() }),
        ("llama", "window", Design { window: Some(4), ..four() }),
        ("mistral", "window", Design { window: Some(0), ..four() }),
        ("mistral", "bias", Design { bias: true, ..four() }),
        ("qwen3", "activation", Design { activation: Activation::Prelu, ..four() }),
        ("qwen2", "layers", Design { layers: 0, ..four() }),
        ("gpt2", "kv_heads", Design { kv_heads: Some(2), ..four() }),
        ("gpt2", "rope_theta", Design { rope_theta: Some(1e4), ..four() }),
        ("gpt_neox", "window", Design { window: Some(4), ..four() }),
    ] {
        let error = build(family, &design).unwrap_err();
        assert!(
            matches!(&error, Error::Setting { key: named, .. } if named == key),
            "{family} {key}: {error}"
        );
    }
}

#[test]
fn qwen_has_a_window_where_its_layers_say_so() {
    let read = |more: Json| {
        let mut keys = sizes();
        keys.extend(more.as_object().unwrap().clone());
        Llama::from_config(Dialect::Qwen2, &Config::new("config.json", keys)).map(|llama| llama.windows)
    };
    let off = json!({ "sliding_window": 4, "use_sliding_window": false, "max_window_layers": 0 });
    assert_eq!(read(off).unwrap(), [None, None]);
    let from_second = json!({ "sliding_window": 4, "use_sliding_window": true, "max_window_layers": 1 });
    assert_eq!(read(from_second).unwrap(), [None, Some(4)]);
    let types = json!({
        "sliding_window": 4, "use_sliding_window": true, "layer_types": ["sliding_attention", "full_attention"],
    });
    assert_eq!(read(types).unwrap(), [Some(4), None]);
    let short = json!({ "sliding_window": 4, "use_sliding_window": true, "layer_types": ["full_attention"] });
    assert!(matches!(read(short), Err(Error::Setting { key, .. }) if key == "layer_types"));
    let no_size = json!({ "use_sliding_window": true });
    assert!(matches!(read(no_size), Err(Error::Setting { key, .. }) if key == "sliding_window"));
}

#[test]
fn weights_of_another_model_are_refused_by_name_or_shape() {
    let folder = tempfile::tempdir().unwrap();
    let llama = tiny(Dialect::Llama);
    initial(&llama.parameters(), 3).save(folder.path(), &llama).unwrap();
    let normed = Llama { dialect: Dialect::Qwen3, ..llama.clone() };
    let error = Weights::read(folder.path(), &normed).unwrap_err();
    let missing = matches!(&error, Error::Names { missing, .. } if missing[0] == "model.layers.0.self_attn.k_norm.weight");
    assert!(missing, "{error}");
    let error = Weights::read(folder.path(), &Llama { kv_heads: 4, ..llama }).unwrap_err();
    assert!(
        matches!(&error, Error::Shape { name, .. } if name.ends_with("k_proj.weight") || name.ends_with("v_proj.weight")),
        "{error}"
    );
}

#[test]
fn other_spellings_of_names_are_understood() {
    let llama = tiny(Dialect::Llama);
    assert_eq!(llama.canonical_name("norm.weight").unwrap(), "model.norm.weight");
    for left_out in ["lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"] {
        assert_eq!(llama.canonical_name(left_out), None, "{left_out}");
    }
    assert!(Llama { tie: false, ..llama }.canonical_name("lm_head.weight").is_some());
}
