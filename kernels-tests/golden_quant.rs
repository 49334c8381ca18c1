//! Quantised operators against PyTorch's numbers: codes, scales and products, on the host and on a device.
//!
//! Cases stand in `dev/quant` of the golden folder. Codes must be equal but where the exact quotient lies within 1e-5 of the
//! middle between two of them: there either may come out.

mod golden;

use kiln::graph::{Feeds, Graph, Source, evaluate, gradient};
use kiln::ops::dequantize_rows::DequantizeRowsEmit;
use kiln::ops::fake_quantize::scales::{self, LineScalesEmit};
use kiln::ops::fake_quantize::{FakeQuantizeEmit, Sharing, Steps};
use kiln::ops::launch::Caps;
use kiln::ops::matmul::{Form, MatmulEmit};
use kiln::ops::matmul_int8::{Codes, MatmulInt8Emit};
use kiln::ops::pointwise::PointwiseEmit;
use kiln::ops::quantize_rows::{QuantizeRowsEmit, Rule};
use kiln::ops::reduce::ReduceEmit;
use kiln::ops::{Emit, Value};
use kiln::passes::{Deployed, Pass, QuantizationAware};
use kiln::plan::{Engine, HostEngine, Residents, first_variant, plan};
use kiln::tensor::quant::{Scheme, Share, encode};
use kiln::tensor::{DType, Tensor, Type};
use libtest_mimic::{Arguments, Failed, Trial};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

/// Relative to the largest element.
const FLOATS: f64 = 1e-6;
/// Distance from the middle between two codes up to which either is right.
const MIDDLE: f64 = 1e-5;

/// Computes a graph somewhere.
type Evaluate = Arc<dyn Fn(&Graph, &Feeds) -> Result<HashMap<String, Tensor>, Failed> + Send + Sync>;
type Check = fn(&Path, &Evaluate) -> Result<(), Failed>;

const CHECKS: &[(&str, Check)] = &[
    ("rows_of_weights_have_the_codes_and_scales", rows_of_weights),
    ("a_whole_tensor_as_one_row_has_the_codes_and_the_scale", whole_tensor),
    ("weights_and_activations_in_codes_have_the_exact_sums_and_the_product", products),
    ("fake_quantised_weights_and_their_gradients_are_pytorchs", fake_quantised),
    ("the_loss_in_training_is_of_the_very_product_that_is_deployed", deployed),
    ("fake_quantised_groups_and_spans_are_what_their_codes_give_back", fake_groups),
];

fn main() {
    let arguments = Arguments::from_args();
    let places: [(&str, Option<Evaluate>); 3] = [
        ("reference", Some(Arc::new(|graph, feeds| Ok(evaluate(graph, feeds, DType::F32)?)))),
        ("host", Some(Arc::new(on_host))),
        ("device", on_device()),
    ];
    let required = std::env::var("KILN_REQUIRE_GPU").is_ok_and(|v| v == "1");
    let folder = golden::folder().join("dev/quant");
    let absent = golden::is_absent(&folder);
    let mut trials = vec![];
    for (place, evaluate) in places {
        for &(name, check) in CHECKS {
            let ignored = absent || (evaluate.is_none() && !required);
            let (folder, evaluate) = (folder.clone(), evaluate.clone());
            let run = move || check(&folder.join("int_quant.safetensors"), &evaluate.ok_or("no adapter")?);
            trials.push(Trial::test(format!("{place}/{name}"), run).with_ignored_flag(ignored));
        }
    }
    libtest_mimic::run(&arguments, trials).exit();
}

/// Through a plan and the host's engine, as `--device cpu` runs.
fn on_host(graph: &Graph, feeds: &Feeds) -> Result<HashMap<String, Tensor>, Failed> {
    let plan = plan(graph, &Residents::default(), &Caps::portable(), &mut first_variant)?;
    let names: Vec<String> = plan.reads.iter().map(|read| read.name.clone()).collect();
    let given: Option<Vec<&Tensor>> = plan.feeds.iter().map(|feed| feeds.get(&feed.name)).collect();
    let results = HostEngine::new(&[], vec![plan]).run(0, &given.ok_or("an input is missing")?)?;
    Ok(names.into_iter().zip(results).collect())
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

/// The only tensor of that name.
fn one(file: &Path, name: &str) -> Result<Tensor, Failed> {
    golden::tensors(file, name)?.remove("").ok_or_else(|| format!("no tensor `{name}`").into())
}

fn rows_of_weights(file: &Path, evaluate: &Evaluate) -> Result<(), Failed> {
    let (weight, expected) = (one(file, "W")?, golden::tensors(file, "pc_sym.")?);
    let mut graph = Graph::new();
    let x = graph.input("x", weight.host_type());
    let [q, s] = graph.quantize_rows(x, Rule::Narrow)?;
    let y = graph.dequantize_rows(q, s)?;
    [("q", q), ("s", s), ("y", y)].into_iter().for_each(|(name, value)| graph.output(name, value));
    let got = evaluate(&graph, &Feeds::new().with("x", weight.clone()))?;
    same_codes(&got["q"], &expected["q"], &weight, &expected["scale"])?;
    close("scale", &got["s"], &expected["scale"])?;
    close("dequantised", &got["y"], &expected["dequant"])
}

fn whole_tensor(file: &Path, evaluate: &Evaluate) -> Result<(), Failed> {
    let (x, expected) = (one(file, "X")?, golden::tensors(file, "pt_sym.")?);
    let row = x.clone().reshaped([1, x.shape.count()])?;
    let mut graph = Graph::new();
    let value = graph.input("x", row.host_type());
    let [q, s] = graph.quantize_rows(value, Rule::Narrow)?;
    [("q", q), ("s", s)].into_iter().for_each(|(name, value)| graph.output(name, value));
    let got = evaluate(&graph, &Feeds::new().with("x", row.clone()))?;
    same_codes(&got["q"], &expected["x_q"], &row, &expected["x_scale"])?;
    close("scale", &got["s"], &expected["x_scale"])
}

/// The given codes of W and X: their sums must be exact, and with the scales they are the product.
fn products(file: &Path, evaluate: &Evaluate) -> Result<(), Failed> {
    let (weight, expected) = (golden::tensors(file, "pc_sym.")?, golden::tensors(file, "w8a8.")?);
    let (rows, columns) = (expected["x_q"].shape[0], weight["q"].shape[0]);
    let x_scale = expected["x_scale"].clone().reshaped([rows])?;
    let mut graph = Graph::new();
    let mut feeds = Feeds::new();
    let mut input = |graph: &mut Graph, name: &str, tensor: &Tensor| -> Value {
        feeds.set(name, tensor.clone());
        graph.input(name, tensor.host_type())
    };
    let ones = |count: usize| Tensor::f32([count], vec![1.0; count]);
    let (x, w) = (input(&mut graph, "x", &expected["x_q"]), input(&mut graph, "w", &weight["q"]));
    for (name, of_x, of_w) in [("sums", &ones(rows), &ones(columns)), ("product", &x_scale, &weight["scale"])]
    {
        let x = Codes { codes: x, scales: input(&mut graph, &format!("{name} x"), of_x) };
        let w = Codes { codes: w, scales: input(&mut graph, &format!("{name} w"), of_w) };
        let y = graph.linear_int8(x, w, None)?;
        graph.output(name, y);
    }
    let got = evaluate(&graph, &feeds)?;
    if got["sums"].to_f64() != expected["acc_i32"].to_f64() {
        return Err("a sum of codes is not exact".into());
    }
    close("product", &got["product"], &expected["out"])
}

/// Given scales, by row and for the whole tensor with a zero point: values, and gradients straight through.
fn fake_quantised(file: &Path, evaluate: &Evaluate) -> Result<(), Failed> {
    let weight = one(file, "W")?;
    let rows = one(file, "pc_sym.scale")?;
    let rows = Tensor::f32(rows.shape.clone(), rows.real::<f32>().iter().map(|s| 0.7 * s).collect());
    let whole = (Tensor::f32([1], vec![0.05]), Tensor::f32([1], vec![3.0]));
    for (case, sharing, lowest, scale, zero) in [
        ("fq_pc.", Sharing::Rows, -127, rows, None),
        ("fq_pt.", Sharing::Tensor, -128, whole.0, Some(whole.1)),
    ] {
        let expected = golden::tensors(file, case)?;
        let mut graph = Graph::new();
        let x = graph.input("x", weight.host_type());
        let scale = graph.constant(scale);
        let zero = zero.map(|zero| graph.constant(zero));
        let y = graph.fake_quantize(x, scale, zero, Steps::symmetric(lowest, 127, sharing))?;
        let up = graph.constant(expected["dout"].clone());
        let weighted = graph.mul(y, up)?;
        let loss = graph.sum_all(weighted)?;
        let dx = gradient(&mut graph, loss, &[x])?[0].ok_or("no gradient")?;
        [("y", y), ("dx", dx)].into_iter().for_each(|(name, value)| graph.output(name, value));
        let got = evaluate(&graph, &Feeds::new().with("x", weight.clone()))?;
        close("values", &got["y"], &expected["out"])?;
        close("gradient", &got["dx"], &expected["dW"])?;
    }
    Ok(())
}

/// Weights and activations in 8 bits: the training graph against codes made on the host, as a deployed model holds them.
fn deployed(file: &Path, evaluate: &Evaluate) -> Result<(), Failed> {
    let (x, rows) = (one(file, "X")?, one(file, "W")?);
    let [n, k] = [rows.shape[0], rows.shape[1]];
    let turned = (0..n * k).map(|i| rows.real::<f32>()[i % n * k + i / n]).collect();
    let bias = Tensor::f32([n], (0..n).map(|i| 0.3 * i as f32 - 2.0).collect());
    let coded = encode(rows.real::<f32>(), n, k, &Scheme::symmetric(8, Share::Row))?;
    for (form, weight) in [(Form::Nt, rows.clone()), (Form::Nn, Tensor::f32([k, n], turned))] {
        let mut graph = Graph::new();
        let input = graph.input("x", x.host_type());
        let w = graph.parameter("h.weight", weight.host_type());
        let b = graph.constant(bias.clone());
        let y = graph.linear(form, input, w, Some(b))?;
        graph.output("y", y);
        let pass = QuantizationAware {
            deployed: Deployed::Both,
            learned_step: false,
            targets: vec!["h.*".into()],
            ignore: vec![],
            trains: true,
        };
        // Weights are given as any other input here, since there is no arena.
        let graph = with_parameters_as_inputs(&pass.rewrite(&graph)?)?;
        let feeds = Feeds::new().with("x", x.clone()).with("h.weight", weight.clone());
        let trained = evaluate(&graph, &feeds)?.remove("y").ok_or("no result")?;

        let mut graph = Graph::new();
        let input = graph.input("x", x.host_type());
        let [codes, scales] = graph.quantize_rows(input, Rule::Narrow)?;
        let of_x = Codes { codes, scales };
        let codes = graph.constant(Tensor::i8([n, k], coded.codes.clone()));
        let scales = graph.constant(Tensor::f32([n], coded.scales.clone()));
        let b = graph.constant(bias.clone());
        let y = graph.linear_int8(of_x, Codes { codes, scales }, Some(b))?;
        graph.output("y", y);
        let expected =
            evaluate(&graph, &Feeds::new().with("x", x.clone()))?.remove("y").ok_or("no result")?;
        // One code that differed would move a sum by some percent; the roundings of the last scales do not.
        close("the product", &trained, &expected)?;
    }
    Ok(())
}

fn with_parameters_as_inputs(graph: &Graph) -> Result<Graph, Failed> {
    let mut new = Graph::new();
    let mut map: HashMap<Value, Value> = HashMap::new();
    for (at, info) in graph.values().iter().enumerate() {
        let old = Value(at as u32);
        match (&info.source, &info.name) {
            (Source::Constant(tensor), _) => map.insert(old, new.constant(tensor.as_ref().clone())),
            (Source::Node { .. }, _) => None,
            (_, name) => map.insert(old, new.input(name.clone().unwrap_or_default(), info.kind.clone())),
        };
    }
    for node in graph.nodes() {
        let inputs: Vec<Value> = node.inputs.iter().map(|v| map[v]).collect();
        let outputs = new.apply(node.op.clone(), &inputs)?;
        map.extend(node.outputs.iter().copied().zip(outputs));
    }
    graph.outputs().iter().for_each(|(name, value)| new.output(name.clone(), map[value]));
    Ok(new)
}

/// Scales and zero points from the elements themselves.
fn fake_groups(file: &Path, evaluate: &Evaluate) -> Result<(), Failed> {
    let weight = one(file, "W")?;
    let groups = Sharing::RowGroups(32);
    for (case, sharing, lowest, highest, rule) in [
        ("g4_sym.", groups, -8, 7, scales::Rule::Largest { divisor: 7.0 }),
        ("g4_asym.", groups, 0, 15, scales::Rule::Span { steps: 15.0, lowest: 0.0, with_zero: false }),
        (
            "pc_affine.",
            Sharing::Rows,
            0,
            255,
            scales::Rule::Span { steps: 255.0, lowest: 0.0, with_zero: true },
        ),
    ] {
        let (scale, values) = (one(file, &format!("{case}scale"))?, one(file, &format!("{case}dequant"))?);
        let mut graph = Graph::new();
        let x = graph.input("x", weight.host_type());
        let (s, z) = graph.line_scales(x, sharing, rule)?;
        let y = graph.fake_quantize(x, s, z, Steps::symmetric(lowest, highest, sharing))?;
        [("s", s), ("y", y)].into_iter().for_each(|(name, value)| graph.output(name, value));
        let got = evaluate(&graph, &Feeds::new().with("x", weight.clone()))?;
        close(&format!("{case}scale"), &got["s"], &scale)?;
        close(&format!("{case}values"), &got["y"], &values)?;
    }
    Ok(())
}

fn same_codes(got: &Tensor, expected: &Tensor, x: &Tensor, scales: &Tensor) -> Result<(), Failed> {
    let (x, scales) = (x.to_f64(), scales.to_f64());
    if got.data.len() != expected.data.len() || got.host_type().dtype != DType::I8 {
        let wanted = Type::new(DType::I8, expected.shape.clone());
        return Err(format!("{wanted} codes expected, got {}", got.host_type()).into());
    }
    for (i, (&q, e)) in got.as_i8().iter().zip(expected.as_i8()).enumerate() {
        let exact = x[i] / scales[i * scales.len() / x.len()];
        let either = (exact.abs().fract() - 0.5).abs() < MIDDLE;
        if q.abs_diff(*e) > u8::from(either) {
            return Err(format!("code {i} is {q}, expected {e} for {exact}").into());
        }
    }
    Ok(())
}

fn close(what: &str, got: &Tensor, expected: &Tensor) -> Result<(), Failed> {
    let (got, expected) = (got.to_f64(), expected.to_f64());
    let largest = expected.iter().fold(0.0f64, |most, e| most.max(e.abs()));
    let off = got.iter().zip(&expected).position(|(g, e)| (g - e).abs() > FLOATS * largest || g.is_nan());
    match off {
        _ if got.len() != expected.len() || got.is_empty() => {
            Err(format!("{what}: {} elements, expected {}", got.len(), expected.len()).into())
        }
        Some(at) => Err(format!("{what}[{at}] is {:e}, expected {:e}", got[at], expected[at]).into()),
        None => Ok(()),
    }
}
