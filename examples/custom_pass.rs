//! A pass of one's own, twice: over the graph of a model before anything is uploaded, and as a step of a recipe over its weights.
//!
//! The graph pass puts ReLU in the place of GELU ("ReLU strikes back", Mirzadeh et al. 2023): half of what flows into the second
//! feed-forward product is then zero. The recipe pass clips outliers of weights. Neither needs a line in kiln itself.

use kiln::compress::{
    Needs, Order, Promise as Promised, Report, Setting, Stage, Statistics, Subject, checked,
};
use kiln::graph::{self, Graph, Rewriter, evaluate};
use kiln::model::{self, Config, Extent, Mode, initial};
use kiln::ops::pointwise::PointwiseEmit;
use kiln::passes::{self, Pass, Promise, Tidy};
use kiln::tensor::{DType, Tensor};
use kiln::train::Target;
use std::sync::atomic::AtomicBool;

/// ReLU where there was GELU.
#[derive(Debug)]
struct Relufy;

impl Pass for Relufy {
    fn name(&self) -> &'static str {
        "relufy"
    }

    fn promise(&self) -> Promise {
        Promise::Lossy
    }

    fn rewrite(&self, graph: &Graph) -> graph::Result<Graph> {
        let mut rewriter = Rewriter::new(graph);
        for node in graph.nodes() {
            if !node.op.name().starts_with("gelu") {
                rewriter.copy(node)?;
                continue;
            }
            let x = rewriter.get(node.inputs[0]);
            let y = rewriter.emit_in(&node.scope, |graph| graph.pointwise("relu", &[x], 0.0))?;
            rewriter.set(node.outputs[0], y);
        }
        Ok(rewriter.finish())
    }
}

/// Weights beyond some standard deviations become that far.
#[derive(Debug)]
struct Clip {
    deviations: f32,
}

impl Stage for Clip {
    fn kind(&self) -> &'static str {
        "clip"
    }

    fn check(&self) -> kiln::compress::Result<()> {
        Ok(())
    }

    fn order(&self) -> Order {
        Order::Weights
    }

    fn promise(&self) -> Promised {
        Promised::Lossy
    }

    fn needs(&self) -> Needs {
        Needs::default()
    }

    fn apply(&self, subject: &mut Subject, _: &Setting) -> kiln::compress::Result<Report> {
        let mut clipped = 0;
        for spec in subject.family.parameters().iter().filter(|spec| spec.shape.len() == 2) {
            let mut weight = subject.weights.get(&spec.name)?.clone();
            let values = weight.real_mut::<f32>();
            let mean_square = values.iter().map(|w| w * w).sum::<f32>() / values.len() as f32;
            let most = self.deviations * mean_square.sqrt();
            clipped += values.iter().filter(|w| w.abs() > most).count();
            values.iter_mut().for_each(|w| *w = w.clamp(-most, most));
            subject.weights.set(spec.name.clone(), weight);
        }
        Ok(Report::new(format!("clipped {clipped} weights beyond {} deviations", self.deviations)))
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let config = r#"{ "model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 16, "vocab_size": 50 }"#;
    let family = model::from_config(&Config::new("this example", serde_json::from_str(config)?))?;
    let weights = initial(&family.parameters(), 1);

    let mut graph = Graph::new();
    let forward = family.forward(&mut graph, Extent { batch: 1, context: 16 }, Mode::Evaluate)?;
    graph.output("logits", forward.logits);
    let (after, reports) = passes::run(&[&Tidy, &Relufy], graph.clone())?;
    reports
        .iter()
        .for_each(|r| println!("{:<8} {} operators, then {}", r.pass, r.nodes_before, r.nodes_after));
    let tokens = Tensor::u32([1, 16], (0..16).map(|i| i * 7 % 50).collect());
    let feeds = weights.feeds().with("tokens", tokens);
    let scores = |graph: &Graph| evaluate(graph, &feeds, DType::F32).map(|mut all| all.remove("logits"));
    let (before, now) = (scores(&graph)?.expect("named"), scores(&after)?.expect("named"));
    let off =
        before.real::<f32>().iter().zip(now.real::<f32>()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    println!("scores differ by at most {off:.4}");
    assert!(off > 0.0 && !after.to_string().contains("gelu"));

    let (stop, known, data) = (AtomicBool::new(false), Statistics::default(), Default::default());
    let setting = Setting::new(&Target::Host, "cpu", &known, &data, &stop);
    let mut subject = Subject::new(family, weights, None);
    println!("clip     {}", checked(&Clip { deviations: 2.5 }, &mut subject, &setting)?.summary);
    Ok(())
}
