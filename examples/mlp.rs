//! A multi-layer perceptron learns to tell two interleaved spirals apart.
//!
//! Points of the plane in, two hidden layers, two classes out, cross-entropy, AdamW. No straight line does better than
//! chance on this set; the network is asked for at least 95 % on points it has not seen.
//! Run it with `cargo run --example mlp`, or `-- cpu` for the host.

use kiln::data::spirals::Spirals;
use kiln::graph::{Feeds, Graph, evaluate};
use kiln::model::{Activation, Mlp, initial};
use kiln::ops::cross_entropy::{CrossEntropy, CrossEntropyEmit};
use kiln::tensor::{DType, Tensor, Type};
use kiln::train::Target;
use kiln::train::recipe::{Clip, Decay, Optimizer, Rule};
use kiln::train::trainer::{Settings, Trainer, Weight};

const STEPS: usize = 400;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let device = std::env::args().nth(1).unwrap_or("gpu".into());
    let target = Target::open(&device)?;
    println!("device {}", target.describe());

    let spirals = Spirals { arms: 2, points: 150, turns: 1.0, noise: 0.02 };
    let (points, classes) = spirals.draw(1);
    let (unseen, answers) = spirals.draw(2);
    let count = points.shape[0];
    let mlp = Mlp::new(&[2, 32, 32, 2], Activation::Tanh)?;
    let parameters = mlp.parameters();

    let loss = |graph: &mut Graph, _| {
        let x = graph.input("points", Type::f32([count, 2]));
        let scores = mlp.forward(graph, x)?;
        let targets = graph.input("classes", Type::new(DType::I32, [count]));
        Ok(graph.cross_entropy(scores, targets, CrossEntropy::default())?)
    };
    let weights: Vec<Weight> = parameters
        .iter()
        .map(|p| Weight { name: p.name.clone(), shape: p.shape.clone(), decays: p.decay })
        .collect();
    let rule = Rule::Adamw { betas: [0.9, 0.99], eps: 1e-8 };
    let decay = Decay { weight_decay: 1e-3, decoupled: true, no_decay: vec![] };
    let settings = Settings { clip: Clip::Norm(1.0), ..Settings::new(Optimizer { rule, decay }) };
    let mut trainer = Trainer::new(&target, &weights, &loss, settings)?;
    let first = initial(&parameters, 7);
    trainer.set_weights(|name, _| Ok(first.get(name)?.clone()))?;
    for step in 0..STEPS {
        let batch = Feeds::new().with("points", points.clone()).with("classes", classes.clone());
        trainer.submit(vec![batch], 1e-2)?;
        let outcome = trainer.collect(true)?.expect("one step is under way");
        if step % 50 == 0 || step + 1 == STEPS {
            println!("step {step:>3}  loss {:.4}", outcome.loss);
        }
    }

    let mut graph = Graph::new();
    let x = graph.input("points", Type::f32([count, 2]));
    let scores = mlp.forward(&mut graph, x)?;
    graph.output("scores", scores);
    let mut feeds = Feeds::new().with("points", unseen);
    trainer.weights()?.into_iter().for_each(|(name, tensor)| feeds.set(name, tensor));
    let scores = evaluate(&graph, &feeds, DType::F32)?.remove("scores").expect("just named");
    let share = accuracy(&scores, answers.as_i32());
    println!("{:.1} % of {count} unseen points are right", 100.0 * share);
    assert!(share >= 0.95, "the spirals were not learned");
    Ok(())
}

/// Share of rows whose largest score is that of the right class.
fn accuracy(scores: &Tensor, answers: &[i32]) -> f64 {
    let rows = scores.real::<f32>().chunks(2);
    let right = rows.zip(answers).filter(|(row, answer)| i32::from(row[1] > row[0]) == **answer).count();
    right as f64 / answers.len() as f64
}
