use super::*;
use crate::compress::MEMORY_BYTES;
use crate::data::windows::Batch;
use crate::graph::{Rewriter, evaluate};
use crate::model::{self, initial};
use crate::ops::pointwise::PointwiseEmit;
use crate::ops::reduce::{Kind, ReduceEmit};
use crate::tensor::random::Stream;
use crate::tensor::{DType, Tensor};
use serde_json::{Value as Json, json};

/// Small models of two blocks; those of Llama's kind have two queries to a head of the keys.
fn models() -> Vec<Box<dyn Family>> {
    let llama = |name: &str, architecture: &str| {
        json!({
            "model_type": name, "architectures": [architecture], "hidden_size": 24, "num_attention_heads": 6,
            "num_key_value_heads": 3, "head_dim": 4, "intermediate_size": 40, "num_hidden_layers": 2,
            "vocab_size": 13, "max_position_embeddings": 12, "tie_word_embeddings": name == "qwen3",
        })
    };
    let all = [
        json!({
            "model_type": "gpt2", "n_embd": 24, "n_head": 3, "n_layer": 2, "n_inner": 40, "vocab_size": 13,
            "n_positions": 12,
        }),
        llama("llama", "LlamaForCausalLM"),
        llama("qwen2", "Qwen2ForCausalLM"),
        llama("qwen3", "Qwen3ForCausalLM"),
        json!({
            "model_type": "gpt_neox", "hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 2,
            "intermediate_size": 40, "vocab_size": 13, "max_position_embeddings": 12,
        }),
    ];
    all.into_iter().map(family).collect()
}

fn family(keys: Json) -> Box<dyn Family> {
    model::from_config(&model::Config::new("a test", keys.as_object().unwrap().clone())).unwrap()
}

/// Weights of which none is zero or one: biases and gains would hide what is wrong with them.
fn weights(family: &dyn Family) -> Weights {
    let mut stream = Stream::new(&[11]);
    let mut weights = initial(&family.parameters(), 5);
    for spec in family.parameters() {
        let elements = (0..spec.shape.count()).map(|_| stream.normal() as f32 * 0.3).collect();
        weights.set(spec.name, Tensor::f32(spec.shape, elements));
    }
    weights
}

fn batches() -> Vec<Batch> {
    let mut stream = Stream::new(&[3]);
    let mut tokens = || (0..10).map(|_| stream.below(13) as u32).collect::<Vec<_>>();
    let batch = |tokens: Vec<u32>, targets: Vec<u32>| Batch {
        rows: 1,
        context: 10,
        tokens,
        targets: targets.into_iter().map(|token| token as i32).collect(),
    };
    (0..2).map(|_| batch(tokens(), tokens())).collect()
}

fn forward(family: &dyn Family) -> Graph {
    let mut graph = Graph::new();
    let extent = Extent { batch: 1, context: 10 };
    let forward = family.forward(&mut graph, extent, Mode::Evaluate).unwrap();
    graph.output("logits", forward.logits);
    graph
}

fn logits_of(graph: &Graph, weights: &Weights, precision: DType) -> Vec<f64> {
    let tokens = Tensor::u32([1, 10], batches()[0].tokens.clone());
    let feeds = weights.feeds().with("tokens", tokens);
    evaluate(graph, &feeds, precision).unwrap()["logits"].to_f64()
}

fn logits(family: &dyn Family, weights: &Weights) -> Vec<f64> {
    logits_of(&forward(family), weights, DType::F32)
}

fn expect_close(a: &[f64], b: &[f64], what: &str) {
    let off = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(a.len() == b.len() && off < 1e-5, "{what}: {off}");
}

fn shrunk(family: &dyn Family, weights: &Weights, part: Part, score: Score, amount: Amount) -> Shrunk {
    let batches = batches();
    let calibration = Calibration {
        family,
        weights,
        target: &Target::Host,
        batches: &batches,
        known: None,
        memory_bytes: MEMORY_BYTES,
    };
    shrink(&calibration, part, score, amount, 1).unwrap()
}

/// Columns of the weights that read the units, set to zero by hand.
fn blinded(family: &dyn Family, weights: &Weights, part: Part, outcomes: &[Outcome]) -> Weights {
    let mut weights = weights.clone();
    for (layer, outcome) in outcomes.iter().enumerate() {
        let (name, turned) = match (family.name(), part) {
            ("gpt2", Part::Neurons) => (format!("transformer.h.{layer}.mlp.c_proj.weight"), true),
            ("gpt2", _) => (format!("transformer.h.{layer}.attn.c_proj.weight"), true),
            ("gpt_neox", Part::Neurons) => {
                (format!("gpt_neox.layers.{layer}.mlp.dense_4h_to_h.weight"), false)
            }
            ("gpt_neox", _) => (format!("gpt_neox.layers.{layer}.attention.dense.weight"), false),
            (_, Part::Neurons) => (format!("model.layers.{layer}.mlp.down_proj.weight"), false),
            _ => (format!("model.layers.{layer}.self_attn.o_proj.weight"), false),
        };
        let mut weight = weights.get(&name).unwrap().clone();
        let cols = weight.shape[if turned { 0 } else { 1 }];
        let inner = weight.shape[1];
        let unit = cols / outcome.before;
        for (at, x) in weight.real_mut::<f32>().iter_mut().enumerate() {
            let col = if turned { at / inner } else { at % inner };
            if outcome.removed.contains(&((col / unit) as u32)) {
                *x = 0.0;
            }
        }
        weights.set(name, weight);
    }
    weights
}

#[test]
fn the_smaller_model_gives_the_scores_of_the_masked_one() {
    for family in models() {
        let (family, weights) = (family.as_ref(), weights(family.as_ref()));
        let whole = logits(family, &weights);
        for part in [Part::Heads, Part::KeyHeads, Part::Neurons] {
            if part == Part::KeyHeads && ["gpt2", "gpt_neox"].contains(&family.name()) {
                continue;
            }
            for score in Score::ALL {
                let what = format!("{} {} {}", family.name(), part.name(), score.name());
                let made = shrunk(family, &weights, part, score, Amount::Share(0.4));
                let small = logits(made.family.as_ref(), &made.weights);
                let blinded = blinded(family, &weights, part, &made.outcomes);
                expect_close(&small, &logits(family, &blinded), &what);
                assert!(made.weights.count_elements() < weights.count_elements(), "{what}");
                let off = small.iter().zip(&whole).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                assert!(off > 1e-3, "{what} changed nothing");
            }
        }
    }
}

#[test]
fn what_is_left_is_read_back_from_its_folder() {
    for family in models() {
        let (family, weights) = (family.as_ref(), weights(family.as_ref()));
        let made = shrunk(family, &weights, Part::Heads, Score::Magnitude, Amount::Share(0.4));
        let folder = tempfile::tempdir().unwrap();
        made.weights.save(folder.path(), made.family.as_ref()).unwrap();
        let read = model::open(folder.path()).unwrap();
        assert_eq!(Weights::read(folder.path(), read.as_ref()).unwrap(), made.weights, "{}", family.name());
        assert_eq!(read.config(), made.family.config());
    }
}

/// The graph of the whole model with norms that see the kept channels alone; the others are zero before each norm and behind it.
fn with_narrow_norms(graph: &Graph, keep: &[f32], eps: f32) -> Graph {
    let kept = keep.iter().sum::<f32>();
    let mut writer = Rewriter::new(graph);
    for node in graph.nodes() {
        let name = node.op.name();
        // The norms of single heads, as Qwen3 has them, see no channels of the stream.
        let is_of_stream = graph.kind(node.inputs[0]).shape.last() == keep.len();
        if !is_of_stream || !["layer_norm", "rms_norm"].contains(&name) {
            writer.copy(node).unwrap();
            continue;
        }
        let inputs: Vec<Value> = node.inputs.iter().map(|&value| writer.get(value)).collect();
        let g = &mut writer.new;
        let mask = g.constant_of(keep);
        let mut x = inputs[0];
        if name == "layer_norm" {
            let sum = g.reduce(Kind::Sum, x, 1).unwrap();
            let mean = g.scale(sum, 1.0 / kept).unwrap();
            let centred = g.sub(x, mean).unwrap();
            x = g.mul(centred, mask).unwrap();
        }
        let square = g.mul(x, x).unwrap();
        let sum = g.reduce(Kind::Sum, square, 1).unwrap();
        let variance = g.scale(sum, 1.0 / kept).unwrap();
        let shifted = g.pointwise("shift", &[variance], eps).unwrap();
        let root = g.pointwise("sqrt", &[shifted], 0.0).unwrap();
        let normed = g.pointwise("div", &[x, root], 0.0).unwrap();
        let mut y = g.mul(normed, inputs[1]).unwrap();
        if name == "layer_norm" {
            y = g.add(y, inputs[2]).unwrap();
        }
        writer.set(node.outputs[0], y);
    }
    writer.finish()
}

trait ConstantOf {
    fn constant_of(&mut self, row: &[f32]) -> Value;
}

impl ConstantOf for Graph {
    fn constant_of(&mut self, row: &[f32]) -> Value {
        use crate::ops::Emit;
        self.constant(Tensor::f32([row.len()], row.to_vec()))
    }
}

#[test]
fn a_narrower_stream_gives_the_scores_of_the_masked_one_with_norms_over_what_is_left() {
    for family in models() {
        let (family, weights) = (family.as_ref(), weights(family.as_ref()));
        for score in Score::ALL {
            let what = format!("{} {}", family.name(), score.name());
            let made = shrunk(family, &weights, Part::Width, score, Amount::Count(7));
            let units = Units::find(family, Part::Width, Extent { batch: 1, context: 2 }).unwrap();
            let removed = made.outcomes[0].removed.clone();
            let keep: Vec<f32> = (0..24).map(|at| if removed.contains(&at) { 0.0 } else { 1.0 }).collect();
            let masked = masked(&weights, &[(&units.groups[0].coupling, removed)]).unwrap();
            let keys = family.config();
            let eps = ["layer_norm_epsilon", "layer_norm_eps", "rms_norm_eps"];
            let eps = eps.iter().find_map(|key| keys.get(*key)?.as_f64()).unwrap();
            let narrow = with_narrow_norms(&forward(family), &keep, eps as f32);
            let small = logits(made.family.as_ref(), &made.weights);
            expect_close(&small, &logits_of(&narrow, &masked, DType::F32), &what);
        }
    }
}

#[test]
fn coupled_weights_of_a_head_are_those_of_the_architecture() {
    let names = |family: &dyn Family, part| {
        let units = Units::find(family, part, Extent { batch: 1, context: 2 }).unwrap();
        assert_eq!(units.groups.len(), if part == Part::Width { 1 } else { 2 });
        let members = &units.groups[0].coupling.members;
        let mut list: Vec<String> = members.iter().map(|m| format!("{} {}", m.name, m.axis)).collect();
        list.sort();
        (list, units)
    };
    let models = models();
    let (gpt2, llama) = (models[0].as_ref(), models[1].as_ref());
    let (list, units) = names(gpt2, Part::Heads);
    assert_eq!(
        list,
        ["attn.c_attn.bias 0", "attn.c_attn.weight 1", "attn.c_proj.weight 0"]
            .map(|end| format!("transformer.h.0.{end}"))
    );
    // Head 1 of three heads of 8 channels has its rows among the queries, the keys and the values.
    let bias = &units.groups[0].coupling.members.iter().find(|m| m.name.ends_with("c_attn.bias")).unwrap();
    let of_one: Vec<usize> = (0..72).filter(|&at| bias.units[at] == Some(1)).collect();
    assert_eq!(of_one, [8..16, 32..40, 56..64].into_iter().flatten().collect::<Vec<_>>());
    let (list, _) = names(gpt2, Part::Neurons);
    assert_eq!(
        list,
        ["mlp.c_fc.bias 0", "mlp.c_fc.weight 1", "mlp.c_proj.weight 0"]
            .map(|end| format!("transformer.h.0.{end}"))
    );
    let (list, units) = names(llama, Part::Heads);
    assert_eq!(
        list,
        ["o_proj.weight 1", "q_proj.weight 0"].map(|end| format!("model.layers.0.self_attn.{end}"))
    );
    assert_eq!(units.groups[0].coupling.even, [[0, 1], [2, 3], [4, 5]]);
    let (list, _) = names(llama, Part::KeyHeads);
    let all = ["k_proj.weight 0", "o_proj.weight 1", "q_proj.weight 0", "v_proj.weight 0"];
    assert_eq!(list, all.map(|end| format!("model.layers.0.self_attn.{end}")));
    let (list, _) = names(llama, Part::Neurons);
    let all = ["down_proj.weight 1", "gate_proj.weight 0", "up_proj.weight 0"];
    assert_eq!(list, all.map(|end| format!("model.layers.0.mlp.{end}")));
    let (list, _) = names(llama, Part::Width);
    assert_eq!(list.len(), 2 * 9 + 3);
    assert!(
        list.contains(&"lm_head.weight 1".into()) && list.contains(&"model.embed_tokens.weight 1".into())
    );
}

#[test]
fn a_head_without_effect_is_the_first_to_go_by_any_score() {
    let family = &models()[0];
    let mut weights = weights(family.as_ref());
    for layer in 0..2 {
        // Three heads of 8 channels: queries, keys and values stand side by side in the columns of c_attn.
        for end in ["c_attn.weight", "c_attn.bias", "c_proj.weight"] {
            let name = format!("transformer.h.{layer}.attn.{end}");
            let mut tensor = weights.get(&name).unwrap().clone();
            let cols = tensor.shape.last();
            for (at, x) in tensor.real_mut::<f32>().iter_mut().enumerate() {
                let position = if end == "c_proj.weight" { at / cols } else { at % cols };
                if position % 24 / 8 == 1 {
                    *x *= 1e-3;
                }
            }
            weights.set(name, tensor);
        }
    }
    for score in Score::ALL {
        let made = shrunk(family.as_ref(), &weights, Part::Heads, score, Amount::Count(1));
        assert!(made.outcomes.iter().all(|outcome| outcome.removed == [1]), "{score:?} {:?}", made.outcomes);
    }
}

#[test]
fn amounts_that_leave_nothing_or_are_uneven_are_refused() {
    let models = models();
    let batches = batches();
    let refused = |family: &dyn Family, part, amount| {
        let weights = weights(family);
        let calibration = Calibration {
            family,
            weights: &weights,
            target: &Target::Host,
            batches: &batches,
            known: None,
            memory_bytes: MEMORY_BYTES,
        };
        shrink(&calibration, part, Score::Magnitude, amount, 1).unwrap_err().to_string()
    };
    let text = refused(models[0].as_ref(), Part::Heads, Amount::Count(3));
    assert!(text.contains("less than all 3"), "{text}");
    // Three heads of the keys: each must lose as many of its queries as the others.
    let text = refused(models[1].as_ref(), Part::Heads, Amount::Count(2));
    assert!(text.contains("a multiple of 3"), "{text}");
    let text = refused(models[0].as_ref(), Part::KeyHeads, Amount::Count(3));
    assert!(text.contains("less than all 3"), "{text}");
}

#[test]
fn blocks_that_change_nothing_have_no_influence() {
    for family in models() {
        let mut weights = weights(family.as_ref());
        let silent: Vec<String> = weights
            .iter()
            .map(|(name, _)| name.to_string())
            .filter(|name| name.contains(".1.") && !name.contains("norm") && !name.contains("ln_"))
            .collect();
        for name in silent {
            let shape = weights.get(&name).unwrap().shape.clone();
            weights.set(name, Tensor::f32(shape.clone(), vec![0.0; shape.count()]));
        }
        let batches = batches();
        let (target, weights) = (&Target::Host, &weights);
        let calibration = Calibration {
            family: family.as_ref(),
            weights,
            target,
            batches: &batches,
            known: None,
            memory_bytes: MEMORY_BYTES,
        };
        let scores = block_influence(&calibration).unwrap();
        assert!(scores.len() == 2 && scores[0] > 0.01 && scores[1].abs() < 1e-6, "{scores:?}");
    }
}
