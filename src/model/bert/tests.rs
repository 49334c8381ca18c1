use super::*;
use crate::formats::Raw;
use crate::graph::{Feeds, evaluate, gradient};
use crate::model::Config;
use crate::model::{Extent, Inputs, Mode, Weights, from_config, initial};
use crate::tensor::{DType, Tensor};
use std::collections::BTreeMap;

fn keys(dialect: Encoder, class: &str) -> Json {
    let mut keys = serde_json::json!({
        "architectures": [format!("{}{class}", dialect.class())], "vocab_size": 11, "max_position_embeddings": 9,
        "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.3,
        "id2label": { "0": "a", "1": "b", "2": "c" },
    });
    if dialect == Encoder::DistilBert {
        let more = serde_json::json!({
            "dim": 8, "n_layers": 2, "n_heads": 2, "hidden_dim": 12, "dropout": 0.0, "attention_dropout": 0.0,
            "seq_classif_dropout": 0.0,
        });
        keys.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    }
    keys
}

fn read(keys: Json) -> Result<Box<dyn Family>> {
    from_config(&Config::new("config.json", keys.as_object().unwrap().clone()))
}

fn model(dialect: Encoder, class: &str) -> Box<dyn Family> {
    read(keys(dialect, class)).unwrap()
}

const ALL: [Encoder; 3] = [Encoder::Bert, Encoder::Roberta, Encoder::DistilBert];
const CLASSES: [&str; 4] = ["ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "Model"];

/// A batch of two texts, the second shorter by `padding` tokens of that number.
fn inputs(family: &dyn Family, padding: usize, token: i64) -> Inputs {
    let mut ids = vec![5, 3, 7, 2, 6, 9, 4, 8];
    let mut mask = vec![1; 8];
    for at in 8 - padding..8 {
        (ids[at], mask[at]) = (token, 0);
    }
    let given = [("input_ids", ids), ("attention_mask", mask)];
    let given = given.map(|(name, all)| (name.to_string(), Raw::i64([2, 4], &all)));
    Inputs::new(&BTreeMap::from(given), family).unwrap()
}

/// Results by name.
fn results(family: &dyn Family, weights: &Weights, inputs: &Inputs) -> BTreeMap<String, Tensor> {
    let reading = inputs.reading(Mode::Evaluate);
    let mut graph = Graph::new();
    let forward = family.read(&mut graph, &reading).unwrap();
    let named = forward.named(&graph, family.interface().task, &reading);
    named.iter().for_each(|(name, value, _)| graph.output(name, *value));
    graph.verify().unwrap();
    let feeds = fed(weights, inputs.feeds(&graph).unwrap(), &graph);
    evaluate(&graph, &feeds, DType::F32).unwrap().into_iter().collect()
}

fn fed(weights: &Weights, feeds: Feeds, graph: &Graph) -> Feeds {
    graph.inputs().fold(weights.feeds(), |all, (name, _)| all.with(name, feeds.get(name).unwrap().clone()))
}

#[test]
fn what_is_written_is_read_back_and_is_the_same_model() {
    for dialect in ALL {
        for class in CLASSES {
            let family = model(dialect, class);
            let again = read(Json::Object(family.config())).unwrap();
            assert_eq!(again.parameters(), family.parameters(), "{dialect:?}{class}");
            assert_eq!(again.config(), family.config());
            assert_eq!(again.interface(), family.interface());
            for spec in family.parameters() {
                assert_eq!(family.canonical_name(&spec.name), Some(spec.name.clone()));
            }
        }
    }
}

#[test]
fn padding_changes_nothing_before_it_whatever_it_is() {
    for dialect in ALL {
        for class in CLASSES {
            let family = model(dialect, class);
            let weights = initial(&family.parameters(), 3);
            let padding = i64::from(family.interface().silent.unwrap());
            let long = results(family.as_ref(), &weights, &inputs(family.as_ref(), 0, 0));
            let [short, other] = [padding, 10]
                .map(|token| results(family.as_ref(), &weights, &inputs(family.as_ref(), 2, token)));
            for (name, tensor) in &long {
                // The first text is whole in all, and the first two tokens of the second one are text in the shorter ones.
                let half = tensor.shape.count() / 2;
                let first = |tensor: &Tensor| tensor.real::<f32>()[..half].to_vec();
                assert_eq!(first(tensor), first(&short[name]), "{dialect:?}{class}: {name}");
                let text = if tensor.shape.count() < 40 { half } else { half + half / 2 };
                let real = |tensor: &Tensor| tensor.real::<f32>()[..text].to_vec();
                let apart =
                    real(&short[name]).iter().zip(real(&other[name])).any(|(a, b)| (a - b).abs() > 1e-6);
                assert!(!apart, "{dialect:?}{class}: {name}");
            }
            assert_ne!(long, short);
        }
    }
}

#[test]
fn a_roberta_counts_positions_over_the_text_and_a_bert_by_place() {
    let ids = Raw::i64([1, 4], &[1, 1, 5, 6]);
    let mask = Raw::i64([1, 4], &[0, 0, 1, 1]);
    let given = BTreeMap::from([("input_ids".to_string(), ids), ("attention_mask".to_string(), mask)]);
    for (dialect, places) in [(Encoder::Roberta, Some(vec![1, 1, 2, 3])), (Encoder::Bert, None)] {
        let family = model(dialect, "Model");
        let inputs = Inputs::new(&given, family.as_ref()).unwrap();
        let mut graph = Graph::new();
        family.read(&mut graph, &inputs.reading(Mode::Evaluate)).unwrap();
        let feeds = inputs.feeds(&graph).unwrap();
        assert_eq!(feeds.get("places").map(|tensor| tensor.as_u32().to_vec()), places);
    }
    // Two of its nine positions are left out.
    assert_eq!((model(Encoder::Roberta, "Model").context(), model(Encoder::Bert, "Model").context()), (7, 9));
}

#[test]
fn the_row_of_padding_is_not_trained_and_every_other_that_is_read_is() {
    let family = model(Encoder::Bert, "ForSequenceClassification");
    let weights = initial(&family.parameters(), 3);
    let given = [("input_ids", vec![5, 0, 7, 0]), ("labels", vec![2, 1])];
    let given = given.map(|(name, all)| (name.to_string(), Raw::i64(vec![2; 4 / (4 - all.len() / 2)], &all)));
    let given: BTreeMap<_, _> = given.into_iter().collect();
    let inputs = Inputs::new(&given, family.as_ref()).unwrap();
    let mut graph = Graph::new();
    let forward = family.read(&mut graph, &inputs.reading(Mode::Train)).unwrap();
    let loss = family.interface().task.loss(&mut graph, forward.logits, 0.0).unwrap();
    let table = graph.named("bert.embeddings.word_embeddings.weight").unwrap();
    let slope = gradient(&mut graph, loss, &[table]).unwrap()[0].unwrap();
    graph.output("slope", slope);
    let feeds = fed(&weights, inputs.feeds(&graph).unwrap(), &graph);
    let slope = evaluate(&graph, &feeds, DType::F32).unwrap().remove("slope").unwrap();
    let moved: Vec<usize> = slope
        .real::<f32>()
        .chunks(8)
        .enumerate()
        .filter(|(_, row)| row.iter().any(|x| *x != 0.0))
        .map(|(i, _)| i)
        .collect();
    assert_eq!(moved, [5, 7]);
}

#[test]
fn checkpoints_of_other_heads_and_old_names_are_understood() {
    let of = |dialect, class, stored: &str| model(dialect, class).canonical_name(stored);
    let table = "bert.embeddings.word_embeddings.weight";
    assert_eq!(of(Encoder::Bert, "ForMaskedLM", "embeddings.word_embeddings.weight").unwrap(), table);
    assert_eq!(of(Encoder::Bert, "Model", table).unwrap(), "embeddings.word_embeddings.weight");
    let old = "bert.embeddings.LayerNorm.gamma";
    assert_eq!(of(Encoder::Bert, "ForMaskedLM", old).unwrap(), "bert.embeddings.LayerNorm.weight");
    for (dialect, class, left_out) in [
        (Encoder::Bert, "ForMaskedLM", "cls.seq_relationship.weight"),
        (Encoder::Bert, "ForMaskedLM", "cls.predictions.decoder.weight"),
        (Encoder::Bert, "ForMaskedLM", "bert.pooler.dense.weight"),
        (Encoder::Bert, "Model", "cls.predictions.bias"),
        (Encoder::Bert, "Model", "embeddings.position_ids"),
        (Encoder::Roberta, "ForSequenceClassification", "lm_head.dense.weight"),
        (Encoder::Roberta, "ForMaskedLM", "lm_head.decoder.bias"),
        (Encoder::DistilBert, "ForTokenClassification", "vocab_projector.bias"),
    ] {
        assert_eq!(of(dialect, class, left_out), None, "{left_out}");
    }
    // What nobody knows is handed on, to be listed.
    assert_eq!(of(Encoder::Bert, "Model", "adapter.weight").unwrap(), "adapter.weight");
}

#[test]
fn settings_that_compute_something_else_are_refused_by_key() {
    for (key, value) in [
        ("is_decoder", serde_json::json!(true)),
        ("position_embedding_type", serde_json::json!("relative_key")),
        ("pad_token_id", serde_json::json!(11)),
        ("pad_token_id", serde_json::json!(-1)),
        ("problem_type", serde_json::json!("ranking")),
        ("id2label", serde_json::json!([])),
        ("max_position_embeddings", serde_json::json!(0)),
        ("num_attention_heads", serde_json::json!(3)),
    ] {
        let mut keys = keys(Encoder::Bert, "ForSequenceClassification");
        keys[key] = value;
        let error = read(keys).unwrap_err();
        assert!(matches!(&error, Error::Setting { key: named, .. } if named == key), "{key}: {error}");
    }
}

#[test]
fn a_text_is_not_continued_by_an_encoder() {
    let mut graph = Graph::new();
    let extent = Extent { batch: 1, context: 2 };
    let error =
        model(Encoder::Bert, "ForMaskedLM").forward(&mut graph, extent, Mode::Continue { capacity: 4 });
    assert!(matches!(error, Err(Error::Task { .. })));
    assert!(model(Encoder::Bert, "Model").interface().expect_causal().is_err());
}

#[test]
fn an_encoder_whose_checkpoint_has_no_pooler_does_without_and_says_so_when_it_is_saved() {
    let whole = model(Encoder::Bert, "Model");
    let folder = tempfile::tempdir().unwrap();
    let weights = initial(&whole.parameters(), 3);
    weights.save(folder.path(), whole.as_ref()).unwrap();
    assert_eq!(crate::model::open(folder.path()).unwrap().describe(), whole.describe());
    let bare = weights.without(|name| name.starts_with("pooler."));
    let named: Vec<_> = bare.iter().collect();
    crate::model::Archive::write(&folder.path().join(crate::model::WEIGHTS_FILE), &named).unwrap();
    let family = crate::model::open(folder.path()).unwrap();
    assert_eq!(crate::model::Weights::read(folder.path(), family.as_ref()).unwrap(), bare);
    let mut graph = Graph::new();
    let extent = Extent { batch: 1, context: 2 };
    assert!(family.forward(&mut graph, extent, Mode::Evaluate).unwrap().pooled.is_none());
    let again = read(family.config().into()).unwrap();
    assert_eq!(again.parameters(), family.parameters());
    // A head that reads the pooler needs it as before.
    let classes = model(Encoder::Bert, "ForSequenceClassification");
    let error = crate::model::Weights::read(folder.path(), classes.as_ref()).unwrap_err();
    assert!(error.to_string().contains("pooler"), "{error}");
}

#[test]
fn a_new_roberta_has_its_padding_last_and_positions_behind_it() {
    let design = crate::model::Design {
        layers: 1,
        heads: 2,
        kv_heads: None,
        head_size: None,
        width: 8,
        hidden: None,
        context: 6,
        vocabulary: 11,
        activation: crate::model::Activation::Gelu,
        norm_epsilon: 1e-5,
        dropout: 0.0,
        bias: true,
        rope_theta: None,
        window: None,
        tie: true,
    };
    let roberta = Bert::from_design(Encoder::Roberta, &design).unwrap();
    assert_eq!((roberta.padding, roberta.context(), roberta.positions), (Some(10), 6, 17));
    let again = read(roberta.config().into()).unwrap();
    assert_eq!((again.parameters(), again.context()), (roberta.parameters(), 6));
}
