//! Optimisers: one operator, and one dispatch, updates every parameter of the model.
//!
//! Parameters, gradients and moments are arenas of one layout, `F32 [N]`: tensors one after the other, each padded with zeros to
//! a multiple of [`BLOCK`] elements; the pads stay zero. Inputs in order:
//!
//! | input | type | what |
//! |---|---|---|
//! | parameters | F32 \[N\] | overwritten |
//! | gradients | F32 \[N\] | read |
//! | moments | F32 \[N\] each | as many as [`Kind::moments`] says, overwritten |
//! | segments | U32 \[N / BLOCK\] | tensor of each block, ascending |
//! | decay | F32 \[tensors\] | weight decay of each tensor, zero for groups without |
//! | scalars | F32 \[8\] | what changes from step to step, made by [`Optimizer::scalars`] |
//! | control | F32 \[8\] | made by [`norm::GradientNorm`]: the factor on the gradients, their norm, 1 if the update is to be made |
//!
//! Outputs are the parameters and the moments, in place. Where the control value says that a gradient was not finite, all stay
//! as they are.

pub mod accumulate;
pub mod bytes;
mod fast;
mod host;
mod lower;
pub mod masked;
pub mod movement;
pub mod norm;
pub mod rounding;
pub mod shrink;

use super::launch::{Caps, Variant};
use super::{
    Cases, Cost, Emit, Error, Operator, Result, Site, Value, expect_dtype, expect_shape, in_precision,
};
use crate::tensor::{DType, Real, Tensor, Type, View, ViewMut};
use std::sync::Arc;

/// Elements to whose multiples tensors are padded in an arena.
pub const BLOCK: usize = 64;

/// Elements of the `scalars` input: learning rate; 1 / (1 - beta1^t); 1 / sqrt(1 - beta2^t); 1 on the first step, else 0; the
/// step t, counted from one; ln beta1; ln beta2; the threshold of [`shrink`], zero here. Where the control value tells of skipped steps, t counts without
/// them.
pub const SCALARS: usize = 8;

/// The rule of the update; g is the gradient after clipping, d the tensor's decay, r the learning rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// p -= r (g + d p)
    GradientDescent,
    /// b = momentum b + (1 - dampening) (g + d p), on the first step b = g + d p; p -= r b, or with Nesterov r (g + d p + momentum b).
    /// Decoupled (SGDW, Loshchilov and Hutter 2019) the decay stays out of b: p *= 1 - r d instead.
    Sgd {
        /// Share of the buffer kept.
        momentum: f64,
        /// Share of the gradient withheld from the buffer.
        dampening: f64,
        /// Look ahead along the buffer.
        nesterov: bool,
        /// The decay acts on the parameter itself.
        decoupled: bool,
    },
    /// Adam (Kingma and Ba 2015) with the decay in the gradient: g + d p.
    Adam {
        /// Shares of the two moments kept.
        betas: [f64; 2],
        /// Added to the root of the second moment.
        epsilon: f64,
    },
    /// AdamW (Loshchilov and Hutter 2019): the decay acts on the parameter itself, p *= 1 - r d.
    AdamW {
        /// Shares of the two moments kept.
        betas: [f64; 2],
        /// Added to the root of the second moment.
        epsilon: f64,
    },
    /// LAMB (You et al. 2019, algorithm 2): with u = Adam's step + d p for a tensor, p -= r |p| / |u| u; the ratio is one where a
    /// norm is zero.
    Lamb {
        /// Shares of the two moments kept.
        betas: [f64; 2],
        /// Added to the root of the second moment.
        epsilon: f64,
    },
}

impl Kind {
    /// Arenas of state beside the parameters.
    pub fn moments(&self) -> usize {
        match self {
            Kind::GradientDescent => 0,
            Kind::Sgd { .. } => 1,
            Kind::Adam { .. } | Kind::AdamW { .. } | Kind::Lamb { .. } => 2,
        }
    }

    fn check(&self, op: &'static str) -> Result<()> {
        let within = |setting, value: f64, range: std::ops::Range<f64>| match range.contains(&value) {
            true => Ok(()),
            false => {
                let expected = format!("in {range:?}");
                Err(Error::Setting { op, setting, expected, got: value.to_string() })
            }
        };
        match *self {
            Kind::GradientDescent => Ok(()),
            Kind::Sgd { momentum, dampening, nesterov, .. } => {
                within("momentum", momentum, 0.0..1.0)?;
                within("dampening", dampening, 0.0..1.0)?;
                if nesterov && dampening != 0.0 {
                    let (expected, got) = ("0 with nesterov".to_string(), dampening.to_string());
                    return Err(Error::Setting { op, setting: "dampening", expected, got });
                }
                Ok(())
            }
            Kind::Adam { betas, epsilon }
            | Kind::AdamW { betas, epsilon }
            | Kind::Lamb { betas, epsilon } => {
                within("beta1", betas[0], 0.0..1.0)?;
                within("beta2", betas[1], 0.0..1.0)?;
                within("epsilon", epsilon, f64::MIN_POSITIVE..1.0)
            }
        }
    }
}

/// One update of all parameters.
#[derive(Clone, Debug)]
pub struct Optimizer {
    /// The rule.
    pub kind: Kind,
    /// Gradients are clamped to plus and minus this, after the norm's factor.
    pub clip_value: Option<f32>,
    /// Parameters become numbers of bf16, stochastically rounded with this key; they may then be stored as such. Adam and AdamW.
    pub rounding: Option<u32>,
}

impl Optimizer {
    /// The `scalars` input for a step, counted from one.
    pub fn scalars(&self, learning_rate: f64, step: u64) -> [f32; SCALARS] {
        let power = |beta: f64| 1.0 - beta.powf(step as f64);
        // Of a beta of zero nothing is left after a step, and 1 - exp(-100) is one.
        let log = |beta: f64| beta.ln().max(-100.0);
        let [bias1, bias2, log1, log2] = match self.kind {
            Kind::GradientDescent | Kind::Sgd { .. } => [1.0, 1.0, 0.0, 0.0],
            Kind::Adam { betas, .. } | Kind::AdamW { betas, .. } | Kind::Lamb { betas, .. } => {
                [1.0 / power(betas[0]), 1.0 / power(betas[1]).sqrt(), log(betas[0]), log(betas[1])]
            }
        };
        let first = (step == 1) as u8 as f64;
        [learning_rate, bias1, bias2, first, step as f64, log1, log2, 0.0].map(|scalar| scalar as f32)
    }

    /// Rate, both corrections and whether this is the first update, where `control` may tell of skipped steps.
    fn effective<R: Real>(&self, scalars: &[R], control: &[R]) -> (R, [R; 2], bool) {
        let skipped = control[5].wide();
        if skipped == 0.0 {
            return (scalars[0], [scalars[1], scalars[2]], scalars[3] != R::default());
        }
        let made = self.scalars(0.0, (scalars[4].wide() - skipped) as u64);
        (scalars[0], [1, 2].map(|i| R::of(made[i] as f64)), made[3] != 0.0)
    }
}

impl Operator for Optimizer {
    fn name(&self) -> &'static str {
        match self.kind {
            Kind::GradientDescent => "gradient_descent",
            Kind::Sgd { .. } => "sgd",
            Kind::Adam { .. } => "adam",
            Kind::AdamW { .. } => "adamw",
            Kind::Lamb { .. } => "lamb",
        }
    }

    fn settings(&self) -> String {
        let mut text = match self.kind {
            Kind::GradientDescent => vec![],
            Kind::Sgd { momentum, dampening, nesterov, decoupled } => {
                vec![format!(
                    "momentum={momentum} dampening={dampening} nesterov={nesterov} decoupled={decoupled}"
                )]
            }
            Kind::Adam { betas, epsilon }
            | Kind::AdamW { betas, epsilon }
            | Kind::Lamb { betas, epsilon } => {
                vec![format!("betas={betas:?} epsilon={epsilon:e}")]
            }
        };
        text.extend(self.clip_value.map(|c| format!("clip_value={c}")));
        text.extend(self.rounding.map(|key| format!("rounding={key}")));
        text.join(" ")
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        let op = self.name();
        self.kind.check(op)?;
        if self.clip_value.is_some_and(|c| c.is_nan() || c <= 0.0) {
            let (expected, got) = ("above zero".to_string(), format!("{:?}", self.clip_value));
            return Err(Error::Setting { op, setting: "clip_value", expected, got });
        }
        let moments = self.kind.moments();
        if inputs.len() != moments + 6 {
            return Err(Error::InputCount { op, expected: moments + 6, got: inputs.len() });
        }
        let parameters = &inputs[0];
        let count = parameters.shape.count();
        if parameters.shape.len() != 1 || count == 0 || !count.is_multiple_of(BLOCK) {
            let expected = format!("[a multiple of {BLOCK}]");
            let got = parameters.shape.clone();
            return Err(Error::Shape { op, input: "parameters", expected, got });
        }
        let has_moments = matches!(self.kind, Kind::Adam { .. } | Kind::AdamW { .. });
        if self.rounding.is_some() && !has_moments {
            let (expected, got) = ("none beside this rule".to_string(), "a key".to_string());
            return Err(Error::Setting { op, setting: "rounding", expected, got });
        }
        if self.rounding.is_none() || parameters.dtype != DType::BF16 {
            expect_dtype(op, "parameters", parameters, DType::F32)?;
        }
        for (name, arena) in ["gradients", "moment", "moment"].into_iter().zip(&inputs[1..moments + 2]) {
            expect_dtype(op, name, arena, DType::F32)?;
            expect_shape(op, name, arena, &[count])?;
        }
        let [segments, decay, scalars, control] = &inputs[moments + 2..] else { unreachable!() };
        expect_dtype(op, "segments", segments, DType::U32)?;
        expect_shape(op, "segments", segments, &[count / BLOCK])?;
        expect_dtype(op, "decay", decay, DType::F32)?;
        if decay.shape.len() != 1 || decay.shape[0] == 0 {
            let expected = "[tensors]".to_string();
            return Err(Error::Shape { op, input: "decay", expected, got: decay.shape.clone() });
        }
        expect_dtype(op, "scalars", scalars, DType::F32)?;
        expect_shape(op, "scalars", scalars, &[SCALARS])?;
        expect_dtype(op, "control", control, DType::F32)?;
        expect_shape(op, "control", control, &[norm::CONTROL])?;
        let whole = vec![inputs[1].clone(); moments];
        Ok([std::slice::from_ref(parameters), &whole[..]].concat())
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        in_precision!(inputs, outputs, R, host::update::<R>(self, inputs, outputs));
    }

    fn host(&self, inputs: &[View], outputs: &mut [ViewMut]) {
        if !fast::update(self, inputs, outputs) {
            super::host_by_reference(self, inputs, outputs);
        }
    }

    fn gradient(&self, _: &mut dyn Emit, _: &Site, _: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        Err(Error::NoGradient { op: self.name(), hint: "an update stands behind the loss, not before it" })
    }

    fn launch(&self, inputs: &[Type], _outputs: &[Type], _caps: &Caps) -> Vec<Variant> {
        lower::variants(self, inputs)
    }

    fn cost(&self, inputs: &[Type], outputs: &[Type]) -> Cost {
        let bytes = inputs.iter().chain(outputs).map(|t| t.size_bytes() as f64).sum();
        Cost { flops: inputs[0].shape.count() as f64 * (4 + 5 * self.kind.moments()) as f64, bytes }
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0), (1, 2), (2, 3)][..self.kind.moments() + 1]
    }
}

/// What an update reads beside its arenas.
#[derive(Clone, Copy, Debug)]
pub struct Steering {
    /// Tensor of each block.
    pub segments: Value,
    /// Weight decay of each tensor.
    pub decay: Value,
    /// [`Optimizer::scalars`] of the step.
    pub scalars: Value,
    /// Words of the gradient norm.
    pub control: Value,
}

/// Builder of [`Optimizer`].
pub trait OptimizerEmit {
    /// Updates the parameters; returns them and the moments as they are after it.
    fn optimize(
        &mut self,
        op: &Optimizer,
        parameters: Value,
        gradients: Value,
        moments: &[Value],
        steering: Steering,
    ) -> Result<Vec<Value>>;
}

impl<E: Emit + ?Sized> OptimizerEmit for E {
    fn optimize(
        &mut self,
        op: &Optimizer,
        parameters: Value,
        gradients: Value,
        moments: &[Value],
        steering: Steering,
    ) -> Result<Vec<Value>> {
        let Steering { segments, decay, scalars, control } = steering;
        let rest = [segments, decay, scalars, control];
        let inputs = [&[parameters, gradients], moments, &rest].concat();
        self.apply(Arc::new(op.clone()), &inputs)
    }
}

/// Every rule on one block, on tensors of several blocks with and without decay, clipped, on the first and a later step, after
/// skipped ones, and halted.
pub fn cases() -> Cases {
    let mut cases = Cases::new("optimizer");
    let adam = ([0.9, 0.99], 1e-6);
    let kinds = [
        Kind::GradientDescent,
        Kind::Sgd { momentum: 0.8, dampening: 0.1, nesterov: false, decoupled: false },
        Kind::Sgd { momentum: 0.9, dampening: 0.0, nesterov: true, decoupled: false },
        Kind::Sgd { momentum: 0.9, dampening: 0.0, nesterov: true, decoupled: true },
        Kind::Adam { betas: adam.0, epsilon: adam.1 },
        Kind::AdamW { betas: adam.0, epsilon: adam.1 },
        Kind::Lamb { betas: adam.0, epsilon: adam.1 },
    ];
    for kind in kinds {
        for (blocks, step, factor, halted, skipped) in [
            (&[1][..], 1, 1.0, false, 0),
            (&[1, 3, 1, 17, 2], 4, 0.5, false, 0),
            (&[2, 1], 2, 1.0, true, 0),
            (&[1, 2], 9, 1.0, false, 8),
            (&[3], 90, 1.0, false, 3),
        ] {
            let op = Optimizer { kind, clip_value: (step == 4).then_some(0.7), rounding: None };
            let count = blocks.iter().sum::<usize>() * BLOCK;
            let segments = blocks.iter().enumerate().flat_map(|(t, &n)| vec![t as u32; n]).collect();
            let decay = (0..blocks.len()).map(|t| 0.1 * (t % 2) as f32).collect();
            let mut inputs = vec![cases.statistic([count]), cases.statistic([count])];
            if kind.moments() > 0 {
                inputs.push(cases.statistic([count]));
            }
            if kind.moments() > 1 {
                inputs.push(cases.uniform([count], 0.1, 1.0).to_precision(DType::F32));
            }
            inputs.push(Tensor::u32([count / BLOCK], segments));
            inputs.push(Tensor::f32([blocks.len()], decay));
            inputs.push(Tensor::f32([SCALARS], op.scalars(0.05, step).to_vec()));
            inputs.push(Tensor::f32(
                [norm::CONTROL],
                vec![factor, 1.0, !halted as u8 as f32, 0.0, 0.0, skipped as f32, 0.0, 0.0],
            ));
            let way = if matches!(kind, Kind::Sgd { decoupled: true, .. }) { " decoupled" } else { "" };
            let halted = if halted { " halted" } else { "" };
            let skipped = if skipped > 0 { format!(" skipped {skipped}") } else { String::new() };
            let label = format!("{}{way} blocks{blocks:?} step {step}{halted}{skipped}", op.name());
            let length = if matches!(kind, Kind::Lamb { .. }) { count } else { 1 };
            cases.add(label, op, inputs).no_gradient().sums(length);
        }
    }
    for kind in
        [Kind::Adam { betas: adam.0, epsilon: adam.1 }, Kind::AdamW { betas: adam.0, epsilon: adam.1 }]
    {
        let op = Optimizer { kind, clip_value: None, rounding: Some(7) };
        let count = 3 * BLOCK;
        let [first, gradients] = [0, 1].map(|_| cases.statistic([count]));
        let inputs = vec![
            cases.normal([count]),
            gradients,
            first,
            cases.uniform([count], 0.1, 1.0).to_precision(DType::F32),
            Tensor::u32([3], vec![0, 0, 1]),
            Tensor::f32([2], vec![0.0, 0.1]),
            Tensor::f32([SCALARS], op.scalars(0.05, 3).to_vec()),
            Tensor::f32([norm::CONTROL], vec![1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]),
        ];
        cases.add(format!("{} rounded", op.name()), op, inputs).no_gradient();
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs(count: usize, tensors: usize) -> Vec<Type> {
        let arena = Type::f32([count]);
        let mut inputs = vec![arena; 4];
        inputs.push(Type::new(DType::U32, [count / BLOCK]));
        inputs.extend([Type::f32([tensors]), Type::f32([SCALARS]), Type::f32([norm::CONTROL])]);
        inputs
    }

    #[test]
    fn an_arena_that_is_no_whole_number_of_blocks_is_refused() {
        let op = Optimizer {
            kind: Kind::AdamW { betas: [0.9, 0.99], epsilon: 1e-8 },
            clip_value: None,
            rounding: None,
        };
        assert_eq!(op.signature(&inputs(128, 2)), Ok(vec![Type::f32([128]); 3]));
        assert!(op.signature(&inputs(130, 2)).is_err());
        assert!(op.signature(&inputs(128, 2)[1..]).is_err());
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        let refused = |kind, clip_value| {
            let count = Kind::moments(&kind);
            let mut types = inputs(128, 2);
            types.drain(2 + count..4);
            Optimizer { kind, clip_value, rounding: None }.signature(&types).is_err()
        };
        assert!(refused(Kind::AdamW { betas: [1.0, 0.99], epsilon: 1e-8 }, None));
        assert!(refused(Kind::Adam { betas: [0.9, 0.99], epsilon: 0.0 }, None));
        let sgd = Kind::Sgd { momentum: 0.9, dampening: 0.1, nesterov: true, decoupled: false };
        assert!(refused(sgd, None));
        assert!(refused(Kind::GradientDescent, Some(0.0)));
        assert!(!refused(Kind::GradientDescent, Some(1.0)));
    }

    #[test]
    fn pads_stay_zero_and_a_halted_update_changes_nothing() {
        for case in cases().list {
            let held: Vec<Tensor> = case.inputs.iter().map(|t| t.to_precision(DType::F32)).collect();
            let (mut inputs, moments) = (held.clone(), case.op.in_place().len() - 1);
            let pad = inputs[0].data.len() - 5;
            for arena in &mut inputs[..moments + 2] {
                arena.real_mut::<f32>()[pad..].fill(0.0);
            }
            let mut outputs = vec![inputs[0].clone(); moments + 1];
            case.op.reference(&inputs.iter().collect::<Vec<_>>(), &mut outputs);
            let halted = inputs.last().unwrap().real::<f32>()[2] == 0.0;
            for (output, input) in case.op.in_place() {
                let (after, before) = (outputs[*output].real::<f32>(), inputs[*input].real::<f32>());
                assert!(after[pad..].iter().all(|&x| x == 0.0), "{}", case.label);
                assert_eq!(halted, after == before, "{}", case.label);
            }
        }
    }
}
