//! The smallest training run there is: minimise (theta - 3)^2 from 0 by gradient descent.
//!
//! The loss is written once; the gradient, the plan and the update come from the framework, as for a language model.
//! Run it with `cargo run --example gradient_descent`, or `-- cpu` for the host.

use kiln::graph::{Feeds, Graph};
use kiln::ops::pointwise::PointwiseEmit;
use kiln::tensor::{Tensor, Type};
use kiln::train::Target;
use kiln::train::recipe::{Decay, Optimizer, Rule};
use kiln::train::trainer::{Settings, Trainer, Weight};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let device = std::env::args().nth(1).unwrap_or("gpu".into());
    let target = Target::open(&device)?;
    println!("device {}", target.describe());

    let weights = [Weight { name: "theta".into(), shape: [].into(), decays: false }];
    let decay = Decay { weight_decay: 0.0, decoupled: false, no_decay: vec![] };
    let settings = Settings::new(Optimizer { rule: Rule::GradientDescent, decay });
    let loss = |graph: &mut Graph, _| {
        let theta = graph.parameter("theta", Type::f32([]));
        let difference = graph.shift(theta, -3.0)?;
        Ok(graph.pointwise("square", &[difference], 0.0)?)
    };
    let mut trainer = Trainer::new(&target, &weights, &loss, settings)?;
    trainer.set_weights(|_, _| Ok(Tensor::scalar(0.0)))?;

    println!("{:>9} {:>12} {:>12}", "iteration", "theta", "loss");
    for iteration in 1..=100 {
        trainer.submit(vec![Feeds::new()], 0.1)?;
        let outcome = trainer.collect(true)?.expect("one step is under way");
        if iteration % 10 == 0 {
            let theta = trainer.weights()?[0].1.to_f64()[0];
            println!("{iteration:>9} {theta:>12.8} {:>12.4e}", outcome.loss);
        }
    }
    let theta = trainer.weights()?[0].1.to_f64()[0];
    assert!((theta - 3.0).abs() < 1e-5, "theta should be at 3, it is at {theta}");
    Ok(())
}
