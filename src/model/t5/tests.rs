use super::*;
use crate::formats::Raw;
use crate::graph::evaluate;
use crate::model::{Config, Extent, Inputs, Weights, from_config, initial};
use crate::tensor::{DType, Tensor};
use serde_json::json;

fn small() -> Map<String, Json> {
    // The configuration of T5-small.
    let keys = json!({
        "architectures": ["T5ForConditionalGeneration"], "d_ff": 2048, "d_kv": 64, "d_model": 512,
        "decoder_start_token_id": 0, "dropout_rate": 0.1, "eos_token_id": 1, "initializer_factor": 1.0,
        "is_encoder_decoder": true, "layer_norm_epsilon": 1e-6, "model_type": "t5", "n_positions": 512,
        "num_heads": 8, "num_layers": 6, "pad_token_id": 0, "relative_attention_num_buckets": 32,
        "vocab_size": 32128,
    });
    keys.as_object().unwrap().clone()
}

fn with(changes: &[(&str, Json)]) -> Map<String, Json> {
    let mut keys = small();
    keys.extend(changes.iter().map(|(key, value)| (key.to_string(), value.clone())));
    keys
}

fn read(keys: Map<String, Json>) -> Result<T5> {
    T5::from_config(&Config::new("config.json", keys))
}

#[test]
fn the_parameter_counts_of_both_kinds_are_the_published_ones() {
    assert_eq!(count_elements(&read(small()).unwrap().parameters()), 60_506_624);
    let later = with(&[
        ("d_ff", json!(1024)),
        ("num_heads", json!(6)),
        ("num_layers", json!(8)),
        ("feed_forward_proj", json!("gated-gelu")),
        ("tie_word_embeddings", json!(false)),
    ]);
    let later = read(later).unwrap();
    assert_eq!(count_elements(&later.parameters()), 76_961_152);
    assert!(later.gated && later.activation == Activation::GeluTanh && !later.scale_output);
}

#[test]
fn a_saved_model_is_loaded_as_it_was() {
    let tiny = with(&[
        ("d_model", json!(16)),
        ("d_kv", json!(4)),
        ("d_ff", json!(12)),
        ("num_heads", json!(2)),
        ("num_layers", json!(2)),
        ("num_decoder_layers", json!(1)),
        ("vocab_size", json!(11)),
    ]);
    for feeding in ["relu", "gated-gelu", "gated-silu", "gelu"] {
        let mut keys = tiny.clone();
        keys.insert("feed_forward_proj".into(), json!(feeding));
        let t5 = read(keys).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let weights = initial(&t5.parameters(), 3);
        weights.save(folder.path(), &t5).unwrap();
        assert_eq!(T5::from_config(&Config::read(folder.path()).unwrap()).unwrap(), t5, "{feeding}");
        assert_eq!(Weights::read(folder.path(), &t5).unwrap(), weights);
    }
}

#[test]
fn a_config_that_cannot_be_is_refused_by_key() {
    for (key, value) in [
        ("vocab_size", json!(0)),
        ("feed_forward_proj", json!("gated-swoosh")),
        ("relative_attention_num_buckets", json!(30)),
        ("relative_attention_max_distance", json!(16)),
        ("decoder_start_token_id", json!(32128)),
        ("pad_token_id", json!(-1)),
        ("dropout_rate", json!(1.0)),
    ] {
        let error = from_config(&Config::new("config.json", with(&[(key, value)]))).unwrap_err();
        assert!(matches!(&error, Error::Setting { key: named, .. } if named == key), "{key}: {error}");
    }
}

#[test]
fn copies_of_the_embedding_and_a_table_that_nothing_reads_are_left_out() {
    let t5 = read(small()).unwrap();
    for left_out in [
        "encoder.embed_tokens.weight",
        "decoder.embed_tokens.weight",
        "lm_head.weight",
        "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
    ] {
        assert_eq!(t5.canonical_name(left_out), None);
    }
    let kept = "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight";
    assert_eq!(t5.canonical_name(kept).unwrap(), kept);
}

#[test]
fn a_new_model_has_marks_at_the_end_of_its_vocabulary() {
    let usual = crate::model::usual("t5");
    let design = Design {
        layers: 2,
        heads: 2,
        kv_heads: None,
        head_size: None,
        width: 16,
        hidden: None,
        context: 32,
        vocabulary: 40,
        activation: Activation::named(usual.activation).unwrap(),
        norm_epsilon: usual.norm_epsilon as f32,
        dropout: 0.0,
        bias: usual.bias,
        tie: usual.tie,
        rope_theta: None,
        window: None,
    };
    let t5 = T5::from_design(&design).unwrap();
    assert_eq!((t5.start, t5.padding, t5.keys()["eos_token_id"].clone()), (39, 39, json!(38)));
    assert!(t5.gated && t5.scale_output);
    assert_eq!(read(t5.keys()).unwrap(), t5);
    for wrong in [Design { bias: true, ..design.clone() }, Design { heads: 3, ..design.clone() }] {
        assert!(matches!(T5::from_design(&wrong), Err(Error::Setting { .. })));
    }
    let plain = T5::from_design(&Design { activation: Activation::Relu, ..design }).unwrap();
    assert!(!plain.gated);
}

#[test]
fn inputs_that_do_not_fit_an_encoder_decoder_are_refused_by_their_name() {
    let t5 = read(with(&[("vocab_size", json!(11))])).unwrap();
    let inputs = |given: &[(&str, [usize; 2], &[i64])]| {
        let raw = |&(name, shape, ids): &(&str, [usize; 2], &[i64])| (name.to_string(), Raw::i64(shape, ids));
        Inputs::new(&given.iter().map(raw).collect(), &t5)
    };
    let source = ("input_ids", [1, 3], &[4, 5, 1][..]);
    assert!(inputs(&[source, ("labels", [1, 2], &[7, -100])]).unwrap().has_labels());
    assert!(!inputs(&[source, ("decoder_input_ids", [1, 2], &[0, 7])]).unwrap().has_labels());
    for (given, blamed) in [
        (vec![source], "labels"),
        (vec![("labels", [1, 2], &[7, 1][..])], "input_ids"),
        (vec![source, ("labels", [1, 2], &[7, 11])], "labels"),
        (vec![source, ("labels", [2, 1], &[7, 1])], "labels"),
        (vec![source, ("decoder_input_ids", [1, 2], &[0, 11])], "decoder_input_ids"),
        (vec![source, ("decoder_input_ids", [1, 2], &[0, 7]), ("labels", [1, 3], &[7, 1, 1])], "labels"),
        (vec![("input_ids", [1, 3], &[4, 5, 11]), ("labels", [1, 2], &[7, 1])], "input_ids"),
    ] {
        let error = inputs(&given).unwrap_err();
        assert!(matches!(&error, Error::Input { name, .. } if name.starts_with(blamed)), "{blamed}: {error}");
    }
}

#[test]
fn an_encoder_alone_gives_the_states_of_the_whole() {
    let tiny = with(&[
        ("d_model", json!(16)),
        ("d_kv", json!(4)),
        ("d_ff", json!(12)),
        ("num_heads", json!(2)),
        ("num_layers", json!(2)),
        ("vocab_size", json!(11)),
    ]);
    let whole = read(tiny.clone()).unwrap();
    let mut keys = tiny;
    keys.insert("architectures".into(), json!(["T5EncoderModel"]));
    let encoder = from_config(&Config::new("config.json", keys)).unwrap();
    assert_eq!(encoder.config()["architectures"], json!(["T5EncoderModel"]));
    let weights = initial(&whole.parameters(), 4);
    let states = |family: &dyn Family, last: fn(&Forward) -> Value| {
        let mut graph = Graph::new();
        let extent = Extent { batch: 1, context: 4 };
        let forward = family.read(&mut graph, &Reading::new(extent, Mode::Evaluate)).unwrap();
        graph.output("states", last(&forward));
        let row = |ids: [u32; 4]| Tensor::u32([1, 4], ids.to_vec());
        let feeds =
            weights.feeds().with("tokens", row([3, 4, 5, 1])).with("target_tokens", row([0, 2, 2, 2]));
        evaluate(&graph, &feeds, DType::F32).unwrap().remove("states").unwrap()
    };
    let of_whole = states(&whole, |forward| *forward.encoded.last().unwrap());
    assert_eq!(states(&*encoder, |forward| forward.logits), of_whole);
    let going_on = Reading::new(Extent { batch: 1, context: 1 }, Mode::Continue { capacity: 4 });
    assert!(matches!(encoder.read(&mut Graph::new(), &going_on), Err(Error::Task { .. })));
}
