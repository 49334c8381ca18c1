//! Operators and losses against PyTorch: outputs and gradients, through the graph in f32, on the host and on a device.
//!
//! Cases stand in `dev/ops` and `dev/loss` of the golden folder; a row of the tables below says how to build one here.

mod golden;
#[path = "golden_ops/relations.rs"]
mod relations;

use golden::Tensors;
use kiln::graph::{Feeds, Graph, evaluate, gradient};
use kiln::ops::attention::{Attention, AttentionEmit};
use kiln::ops::concat::ConcatEmit;
use kiln::ops::cross_entropy::{CrossEntropy, CrossEntropyEmit};
use kiln::ops::distillation::{DistillationEmit, Divergence};
use kiln::ops::embedding::{EmbeddingEmit, sort_positions};
use kiln::ops::layer_norm::LayerNormEmit;
use kiln::ops::losses::{LossEmit, Reduction};
use kiln::ops::pointwise::PointwiseEmit;
use kiln::ops::reduce::{Kind, ReduceEmit};
use kiln::ops::reshape::ReshapeEmit;
use kiln::ops::rms_norm::RmsNormEmit;
use kiln::ops::slice::SliceEmit;
use kiln::ops::softmax::SoftmaxEmit;
use kiln::ops::transpose::TransposeEmit;
use kiln::ops::{self, Value};
use kiln::tensor::{DType, Tensor};
use libtest_mimic::{Arguments, Failed, Trial};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

/// Outputs of single operators and losses: relative to the largest element beyond one.
const OUTPUT: f64 = 1e-5;
/// Gradients, as the golden folder states: this much, plus this share of the largest element.
const GRADIENT: (f64, f64) = (1e-5, 1e-3);

/// The case's inputs by name, as values of the graph.
type Inputs = BTreeMap<String, Value>;

/// Builds what the case computes.
type Build = fn(&mut Graph, &Inputs) -> ops::Result<Value>;

/// Single operators: `out` and the gradients of the sum of `out * dout`.
const OPERATORS: &[(&str, Build)] = &[
    ("softmax_lastdim", |g, of| g.softmax(of["x"])),
    ("log_softmax_big", |g, of| g.log_softmax(of["x"])),
    ("logsumexp", |g, of| g.log_sum_exp(of["x"])),
    ("layer_norm", |g, of| g.layer_norm(of["x"], Some(of["w"]), Some(of["b_"]), 1e-5)),
    ("layer_norm_eps12", |g, of| g.layer_norm(of["x"], Some(of["w"]), Some(of["b_"]), 1e-12)),
    ("rms_norm", |g, of| g.rms_norm(of["x"], of["w"], 1e-6)),
    ("gelu", |g, of| g.pointwise("gelu", &[of["x"]], 0.0)),
    ("gelu_tanh", |g, of| g.pointwise("gelu_tanh", &[of["x"]], 0.0)),
    ("silu", |g, of| g.pointwise("silu", &[of["x"]], 0.0)),
    ("relu", |g, of| g.pointwise("relu", &[of["x"]], 0.0)),
    ("tanh", |g, of| g.pointwise("tanh", &[of["x"]], 0.0)),
    ("sigmoid", |g, of| g.pointwise("sigmoid", &[of["x"]], 0.0)),
    ("softplus", |g, of| g.pointwise("softplus", &[of["x"]], 0.0)),
    ("leaky_relu", |g, of| g.pointwise("leaky_relu", &[of["x"]], 0.01)),
    ("erf", |g, of| g.pointwise("erf", &[of["x"]], 0.0)),
    ("exp", |g, of| g.pointwise("exp", &[of["x"]], 0.0)),
    ("glu_swiglu", |g, of| {
        let (left, right) = (g.slice(of["x"], 1, 0, 12)?, g.slice(of["x"], 1, 12, 24)?);
        let gate = g.pointwise("silu", &[left], 0.0)?;
        g.mul(gate, right)
    }),
    ("prod_bcast_add", |g, of| {
        let product = g.mul(of["x"], of["y"])?;
        g.add(product, of["y"])
    }),
    ("embedding_dup", |g, of| g.embedding_trained(of["w"], of["tokens"], of["order"], of["starts"])),
    ("sum_dim", |g, of| {
        let kept = g.reduce(Kind::Sum, of["x"], 1)?;
        g.reshape(kept, [3, 4].into())
    }),
    ("mean_all", |g, of| g.mean_all(of["x"])),
    ("max_dim", |g, of| {
        let kept = g.reduce(Kind::Maximum, of["x"], 1)?;
        g.reshape(kept, [5].into())
    }),
    ("permute_copy", |g, of| g.transpose(of["x"], &[2, 0, 1])),
    ("cat_slice", |g, of| {
        let joined = g.concat(&[of["x"], of["y"]], 1)?;
        g.slice(joined, 1, 2, 9)
    }),
    ("sdpa_causal", |g, of| attention(g, of, Attention::causal())),
    ("sdpa_mask", |g, of| attention(g, of, Attention::full())),
    ("sdpa_gqa", |g, of| attention(g, of, Attention::causal())),
    ("sdpa_cross_long", |g, of| attention(g, of, Attention::full())),
];

/// Losses, with the input whose gradient is given.
const LOSSES: &[(&str, &str, Build)] = &[
    ("ce", "z", |g, of| g.cross_entropy(of["z"], of["y"], CrossEntropy::default())),
    ("ce_sum", "z", |g, of| {
        g.cross_entropy(of["z"], of["y"], CrossEntropy { reduction: Reduction::Sum, ..Default::default() })
    }),
    ("ce_smooth", "z", |g, of| {
        g.cross_entropy(of["z"], of["y"], CrossEntropy { label_smoothing: 0.1, ..Default::default() })
    }),
    ("kd_T1", "z", |g, of| g.divergence(of["z2"], of["z"], 1.0)),
    ("kd_T2", "z", |g, of| g.divergence(of["z2"], of["z"], 2.0)),
    ("kd_T4", "z", |g, of| of_rows(g, of, Divergence::Forward, 4.0)),
    ("kd_mix", "z", |g, of| {
        let hard = g.cross_entropy(of["z"], of["y"], CrossEntropy::default())?;
        let soft = g.divergence(of["z2"], of["z"], 2.0)?;
        let (hard, soft) = (g.scale(hard, 0.3)?, g.scale(soft, 0.7)?);
        g.add(hard, soft)
    }),
    ("kd_reverse", "z", |g, of| of_rows(g, of, Divergence::Reverse, 1.0)),
    ("jsd", "z", |g, of| of_rows(g, of, Divergence::Between { beta: 0.5 }, 1.0)),
    ("kl_logits_hidden", "z", |g, of| {
        let hard = g.cross_entropy(of["z"], of["y"], CrossEntropy::default())?;
        let soft = g.divergence(of["z2"], of["z"], 2.0)?;
        let cosine = g.row_cosine(of["z"], of["z2"])?;
        let cosine = g.scale(cosine, -1.0)?;
        let cosine = g.shift(cosine, 1.0)?;
        let cosine = g.shared_mean(cosine, None)?;
        let (hard, soft) = (g.scale(hard, 2.0)?, g.scale(soft, 5.0)?);
        let both = g.add(hard, soft)?;
        g.add(both, cosine)
    }),
    // Rows whose sign is one are to agree, the others to be further apart than a margin of 0.1.
    ("cos_embed", "a", |g, of| {
        let cosine = g.row_cosine(of["a"], of["b"])?;
        let apart = g.scale(cosine, -1.0)?;
        let apart = g.shift(apart, 1.0)?;
        let near = g.shift(cosine, -0.1)?;
        let near = g.pointwise("relu", &[near], 0.0)?;
        let agree = g.pointwise("relu", &[of["sgn"]], 0.0)?;
        let differ = g.scale(of["sgn"], -1.0)?;
        let differ = g.pointwise("relu", &[differ], 0.0)?;
        let (apart, near) = (g.mul(agree, apart)?, g.mul(differ, near)?);
        let each = g.add(apart, near)?;
        g.mean_all(each)
    }),
    ("mse", "a", |g, of| {
        let each = g.row_squared_error(of["a"], of["b"])?;
        g.shared_mean(each, None)
    }),
    ("l1", "a", |g, of| g.absolute_error(of["a"], of["b"], Reduction::Mean)),
    ("huber", "a", |g, of| g.huber(of["a"], of["b"], 0.7, Reduction::Mean)),
    ("smooth_l1", "a", |g, of| g.smooth_absolute_error(of["a"], of["b"], 0.5, Reduction::Mean)),
    ("bce_logits", "z", |g, of| g.binary_cross_entropy(of["z"], of["yb"], Some(of["w"]), Reduction::Mean)),
];

/// Computes a graph: on the host, or on a device if there is one.
type Evaluate = Arc<dyn Fn(&Graph, &Feeds) -> Result<HashMap<String, Tensor>, Failed> + Send + Sync>;

/// The mean divergence of a student's logits `z` from a teacher's, `z2`.
fn of_rows(g: &mut Graph, of: &Inputs, how: Divergence, temperature: f32) -> ops::Result<Value> {
    let each = g.row_divergence(of["z2"], of["z"], how, temperature)?;
    g.shared_mean(each, None)
}

/// PyTorch's attention has heads before time.
fn attention(g: &mut Graph, of: &Inputs, how: Attention) -> ops::Result<Value> {
    let mut turned = |name| g.transpose(of[name], &[0, 2, 1, 3]);
    let sources = [turned("q")?, turned("k")?, turned("v")?];
    let out = g.attention(&how, sources, of.get("mask").copied(), None)?;
    g.transpose(out, &[0, 2, 1, 3])
}

/// A mask added to the scores, [B, 1, T, S], as one that opens keys, u32 [B, S]: it must treat all queries alike.
fn open_keys(mask: &Tensor) -> Result<Tensor, Failed> {
    let &[batch, 1, queries, keys] = &mask.shape[..] else { return Err("the mask has other axes".into()) };
    let added = mask.to_f64();
    let mut open = vec![];
    for rows in added.chunks(queries * keys) {
        if rows.iter().any(|&x| x != 0.0 && x != f64::NEG_INFINITY)
            || rows.chunks(keys).any(|r| r != &rows[..keys])
        {
            return Err("the mask is no padding of keys".into());
        }
        open.extend(rows[..keys].iter().map(|&x| u32::from(x == 0.0)));
    }
    Ok(Tensor::u32([batch, keys], open))
}

fn main() {
    let arguments = Arguments::from_args();
    let mut trials = vec![];
    for (place, evaluate) in [("host", Some(on_host())), ("gpu", on_device())] {
        trials.extend(OPERATORS.iter().map(|&(name, build)| {
            let check = move |folder: &Path, e: &Evaluate| check_operator(folder, name, build, e);
            trial(format!("{place}/operator_{name}"), "ops", evaluate.clone(), check)
        }));
        trials.extend(LOSSES.iter().map(|&(name, wrt, build)| {
            let check = move |folder: &Path, e: &Evaluate| check_loss(folder, name, wrt, build, e);
            trial(format!("{place}/loss_{name}"), "loss", evaluate.clone(), check)
        }));
        trials.extend(relations::CHECKS.iter().map(|&(name, check)| {
            let evaluate = evaluate.clone();
            let absent = evaluate.is_none() && !requires_gpu();
            let run = move || check(&evaluate.ok_or("no adapter")?);
            Trial::test(format!("{place}/{name}"), run).with_ignored_flag(absent)
        }));
    }
    libtest_mimic::run(&arguments, trials).exit();
}

fn on_host() -> Evaluate {
    Arc::new(|graph, feeds| Ok(evaluate(graph, feeds, DType::F32)?))
}

#[cfg(feature = "gpu")]
fn on_device() -> Option<Evaluate> {
    // SAFETY: nothing else runs yet.
    unsafe { kiln::gpu::device::skip_window_layers() };
    let wanted = std::env::var("KILN_DEVICE").unwrap_or_else(|_| "gpu".into());
    let gpu = Arc::new(kiln::gpu::Gpu::open(&wanted).ok()?);
    let pipelines = kiln::gpu::Pipelines::new(&gpu);
    Some(Arc::new(move |graph, feeds| Ok(kiln::gpu::evaluate(&gpu, &pipelines, graph, feeds)?)))
}

#[cfg(not(feature = "gpu"))]
fn on_device() -> Option<Evaluate> {
    None
}

fn requires_gpu() -> bool {
    std::env::var("KILN_REQUIRE_GPU").is_ok_and(|v| v == "1")
}

fn trial(
    name: String,
    kind: &str,
    evaluate: Option<Evaluate>,
    check: impl FnOnce(&Path, &Evaluate) -> Result<(), Failed> + Send + 'static,
) -> Trial {
    let folder = golden::folder().join("dev").join(kind);
    let absent = golden::is_absent(&folder);
    let ignored = absent || (evaluate.is_none() && !requires_gpu());
    let run = move || check(&folder, &evaluate.ok_or("no adapter")?);
    Trial::test(name, run).with_ignored_flag(ignored)
}

fn check_operator(folder: &Path, name: &str, build: Build, evaluate: &Evaluate) -> Result<(), Failed> {
    let prefix = format!("{name}.");
    let mut given = golden::tensors(&folder.join("inputs.safetensors"), &prefix)?;
    let expected = golden::tensors(&folder.join("expected.safetensors"), &prefix)?;
    let up = given.remove("dout").ok_or("the case has no upstream gradient")?;
    if let Some(ids) = given.remove("ids") {
        sort_tokens(&ids, given["w"].shape[0], &mut given)?;
    }
    if let Some(mask) = given.get_mut("mask") {
        *mask = open_keys(mask)?;
    }

    let mut graph = Graph::new();
    let (inputs, mut feeds) = declare(&mut graph, &given);
    let out = build(&mut graph, &inputs)?;
    graph.output("out", out);
    let up_value = graph.input("up", up.host_type());
    feeds.set("up", up);
    let product = graph.mul(out, up_value)?;
    let total = graph.sum_all(product)?;
    let wrt: Vec<&String> = given.keys().filter(|arg| expected.contains_key(&format!("d_{arg}"))).collect();
    let results = differentiate(graph, total, &wrt, &inputs, &feeds, evaluate)?;
    compare("out", &results, &expected, OUTPUT, OUTPUT)?;
    wrt.iter().try_for_each(|arg| compare(&format!("d_{arg}"), &results, &expected, GRADIENT.0, GRADIENT.1))
}

fn check_loss(folder: &Path, name: &str, wrt: &str, build: Build, evaluate: &Evaluate) -> Result<(), Failed> {
    let given = golden::tensors(&folder.join("inputs.safetensors"), "")?;
    let mut expected = golden::tensors(&folder.join("expected.safetensors"), &format!("{name}."))?;
    let slope = expected.remove("grad").ok_or("the case has no gradient")?;
    expected.insert(format!("d_{wrt}"), slope);

    let mut graph = Graph::new();
    let (inputs, feeds) = declare(&mut graph, &given);
    let loss = build(&mut graph, &inputs)?;
    graph.output("loss", loss);
    let results = differentiate(graph, loss, &[&wrt.to_string()], &inputs, &feeds, evaluate)?;
    compare("loss", &results, &expected, OUTPUT, OUTPUT)?;
    compare(&format!("d_{wrt}"), &results, &expected, GRADIENT.0, GRADIENT.1)
}

/// Token ids as the embedding takes them.
fn sort_tokens(ids: &Tensor, vocabulary: usize, given: &mut Tensors) -> Result<(), Failed> {
    let tokens = ids.as_i32().iter().map(|&id| u32::try_from(id)).collect::<Result<Vec<_>, _>>()?;
    let (order, starts) = sort_positions(&tokens, vocabulary)?;
    given.insert("order".into(), Tensor::u32([tokens.len()], order));
    given.insert("starts".into(), Tensor::u32([vocabulary + 1], starts));
    given.insert("tokens".into(), Tensor::u32(ids.shape.clone(), tokens));
    Ok(())
}

fn declare(graph: &mut Graph, given: &Tensors) -> (Inputs, Feeds) {
    let mut feeds = Feeds::new();
    let mut inputs = Inputs::new();
    for (name, tensor) in given {
        inputs.insert(name.clone(), graph.input(name.clone(), tensor.host_type()));
        feeds.set(name.clone(), tensor.clone());
    }
    (inputs, feeds)
}

/// Results of the graph, with the gradient of `total` as `d_NAME` for each of `wrt`.
fn differentiate(
    mut graph: Graph,
    total: Value,
    wrt: &[&String],
    inputs: &Inputs,
    feeds: &Feeds,
    evaluate: &Evaluate,
) -> Result<HashMap<String, Tensor>, Failed> {
    let values: Vec<Value> = wrt.iter().map(|&name| inputs[name]).collect();
    let gradients = gradient(&mut graph, total, &values)?;
    for (name, slope) in wrt.iter().zip(gradients) {
        graph.output(format!("d_{name}"), slope.ok_or(format!("{name} gets no gradient"))?);
    }
    graph.verify()?;
    evaluate(&graph, feeds)
}

fn compare(
    name: &str,
    results: &HashMap<String, Tensor>,
    expected: &Tensors,
    absolute: f64,
    relative: f64,
) -> Result<(), Failed> {
    let expected = expected.get(name).ok_or(format!("the case has no `{name}`"))?.to_f64();
    let got = results[name].to_f64();
    if got.len() != expected.len() {
        return Err(format!("{name}: {} elements, expected {}", got.len(), expected.len()).into());
    }
    let largest = expected.iter().fold(0.0f64, |most, e| most.max(e.abs()));
    let allowed = absolute + relative * largest;
    let error = |i: usize| (got[i] - expected[i]).abs();
    // In the total order NaN is the largest.
    let worst = (0..got.len()).max_by(|&a, &b| error(a).total_cmp(&error(b)));
    let Some(at) = worst else { return Err(format!("{name} is empty").into()) };
    if error(at) <= allowed {
        return Ok(());
    }
    Err(format!("{name}[{at}] is {:e}, expected {:e}; allowed difference {allowed:e}", got[at], expected[at])
        .into())
}
