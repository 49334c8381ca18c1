//! Kernels of the optimisers.

use super::{BLOCK, Kind, Optimizer, rounding};
use crate::ops::launch::{Bind, Kernel, Launch, Variant, spread};
use crate::tensor::Type;

pub(super) fn variants(op: &Optimizer, inputs: &[Type]) -> Vec<Variant> {
    let moments = op.kind.moments();
    let fours = inputs[0].shape.count() / 4;
    let tensors = inputs[moments + 3].shape[0];
    // What is overwritten is bound once, as the output.
    let mut bindings: Vec<Bind> = (0..moments + 1).map(Bind::Output).collect();
    bindings.push(Bind::Input(1));
    bindings.extend((moments + 2..moments + 6).map(Bind::Input));
    let launch = |kernel: Kernel, groups: usize| {
        Launch::new(kernel, bindings.clone(), groups)
            .param("count", fours)
            .param("tensors", tensors)
            .param("limit", op.clip_value.unwrap_or(f32::MAX))
    };
    let adam = |decoupled| {
        let text = rounding::text(inputs[0].dtype, op.rounding.is_some());
        Kernel::new("adam").constant("DECOUPLED", decoupled).paste("PARAMETERS", text)
    };
    let (name, launch) = match op.kind {
        Kind::GradientDescent => ("gradient_descent", launch(Kernel::new("gradient_descent"), spread(fours))),
        Kind::Sgd { momentum, dampening, nesterov, decoupled } => {
            let kernel = Kernel::new("sgd").constant("NESTEROV", nesterov as u32);
            let kernel = kernel.constant("DECOUPLED", decoupled as u32);
            let launch = launch(kernel, spread(fours))
                .param("momentum", momentum as f32)
                .param("fresh", (1.0 - dampening) as f32);
            ("sgd", launch)
        }
        Kind::Adam { betas, epsilon } => {
            let kernel = adam(0);
            ("adam", rounding::keyed(moments_of(launch(kernel, spread(fours)), betas, epsilon), op.rounding))
        }
        Kind::AdamW { betas, epsilon } => {
            let kernel = adam(1);
            ("adamw", rounding::keyed(moments_of(launch(kernel, spread(fours)), betas, epsilon), op.rounding))
        }
        Kind::Lamb { betas, epsilon } => {
            let launch =
                launch(Kernel::new("lamb"), tensors).param("blocks", inputs[0].shape.count() / BLOCK);
            ("lamb", moments_of(launch, betas, epsilon))
        }
    };
    vec![Variant::single(name, launch)]
}

/// Gives what Adam's moments need.
pub(super) fn moments_of(launch: Launch, betas: [f64; 2], epsilon: f64) -> Launch {
    launch
        .param("beta1", betas[0] as f32)
        .param("fresh1", (1.0 - betas[0]) as f32)
        .param("beta2", betas[1] as f32)
        .param("fresh2", (1.0 - betas[1]) as f32)
        .param("epsilon", epsilon as f32)
}
