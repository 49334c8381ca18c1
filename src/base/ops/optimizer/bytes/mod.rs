//! Adam and AdamW with moments in 8 bits (Dettmers et al., "8-bit optimizers via block-wise quantization", 2022).
//!
//! Moments are codes of the dynamic map, of both signs for the first and from zero on for the second, with the largest magnitude
//! of each block of [`GROUP`] elements as scale. A step reads them as numbers, computes in f32 and rounds what it leaves
//! behind; the parameter's own step is made with the moments as they are before that rounding.
//!
//! Inputs in order: parameters F32 \[N\], gradients F32 \[N\], codes I8 \[2N\], scales F32 \[2N / GROUP\], then segments, decay, scalars
//! and control as [`super`] has them. For each block there are first the codes of the first moment, then those of the
//! second, and likewise two scales. N is a multiple of [`GROUP`], and a block lies in one tensor. Codes and scales of zero are
//! moments of zero. Outputs, in place: codes, parameters, scales.

mod host;
mod map;

use super::norm::CONTROL;
use super::{BLOCK, Kind, Optimizer, SCALARS, Steering, lower, rounding};
use crate::ops::launch::{Bind, Caps, Kernel, Launch, Variant};
use crate::ops::{
    Cases, Cost, Emit, Error, Operator, Result, Site, Value, expect_dtype, expect_shape, in_precision,
};
use crate::tensor::{DType, Tensor, Type, View, ViewMut};
use std::sync::Arc;

/// Elements that share a scale.
pub const GROUP: usize = 256;
/// Words of the codes of one moment in a block.
const WORDS: usize = GROUP / 4;
/// Workgroups beyond which they walk on instead.
const MOST_GROUPS: usize = 4096;

/// One update of all parameters with moments in 8 bits.
#[derive(Clone, Debug)]
pub struct AdamBytes {
    /// The rule, [`Kind::Adam`] or [`Kind::AdamW`], and the clipping by value.
    pub rule: Optimizer,
}

impl Operator for AdamBytes {
    fn name(&self) -> &'static str {
        match self.rule.kind {
            Kind::AdamW { .. } => "adamw_bytes",
            _ => "adam_bytes",
        }
    }

    fn settings(&self) -> String {
        self.rule.settings()
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        let op = self.name();
        if !matches!(self.rule.kind, Kind::Adam { .. } | Kind::AdamW { .. }) {
            let (expected, got) = ("adam or adamw".to_string(), self.rule.name().to_string());
            return Err(Error::Setting { op, setting: "kind", expected, got });
        }
        let [parameters, gradients, codes, scales, steering @ ..] = inputs else {
            return Err(Error::InputCount { op, expected: 8, got: inputs.len() });
        };
        let count = parameters.shape.count();
        if parameters.shape.len() != 1 || count == 0 || !count.is_multiple_of(GROUP) {
            let expected = format!("[a multiple of {GROUP}]");
            let got = parameters.shape.clone();
            return Err(Error::Shape { op, input: "parameters", expected, got });
        }
        expect_dtype(op, "codes", codes, DType::I8)?;
        expect_shape(op, "codes", codes, &[2 * count])?;
        expect_dtype(op, "scales", scales, DType::F32)?;
        expect_shape(op, "scales", scales, &[2 * count / GROUP])?;
        // The rest is what an update with whole moments reads.
        let whole = [parameters, gradients, gradients, gradients].into_iter().cloned();
        let whole: Vec<Type> = whole.chain(steering.iter().cloned()).collect();
        self.rule.signature(&whole)?;
        Ok(vec![codes.clone(), parameters.clone(), scales.clone()])
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        in_precision!(inputs, outputs, R, host::update::<R>(&self.rule, inputs, outputs));
    }

    fn host(&self, inputs: &[View], outputs: &mut [ViewMut]) {
        host::update_fast(&self.rule, inputs, outputs);
    }

    fn gradient(&self, _: &mut dyn Emit, _: &Site, _: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        Err(Error::NoGradient { op: self.name(), hint: "an update stands behind the loss, not before it" })
    }

    fn launch(&self, inputs: &[Type], _outputs: &[Type], caps: &Caps) -> Vec<Variant> {
        let (Kind::Adam { betas, epsilon } | Kind::AdamW { betas, epsilon }) = self.rule.kind else {
            unreachable!("the signature takes no other rule")
        };
        let blocks = inputs[0].shape.count() / GROUP;
        let decoupled = matches!(self.rule.kind, Kind::AdamW { .. });
        // A GPU has a lane for each word of a block; a CPU driver fills one vector and goes round.
        let (name, lanes) = if caps.is_cpu { ("lanes", 8) } else { ("group", WORDS) };
        let kernel = Kernel::new("adam_bytes")
            .constant("DECOUPLED", decoupled as u32)
            .constant("LANES", lanes as u32)
            .paste("MAP", map::text())
            .paste("PARAMETERS", rounding::text(inputs[0].dtype, self.rule.rounding.is_some()));
        let bindings = [Bind::Output(1), Bind::Output(0), Bind::Output(2)].into_iter();
        let bindings: Vec<Bind> = bindings.chain([1, 4, 5, 6, 7].map(Bind::Input)).collect();
        let launch = Launch::new(kernel, bindings, blocks.min(MOST_GROUPS))
            .param("blocks", blocks)
            .param("tensors", inputs[5].shape[0])
            .param("limit", self.rule.clip_value.unwrap_or(f32::MAX));
        let launch = rounding::keyed(lower::moments_of(launch, betas, epsilon), self.rule.rounding);
        vec![Variant::single(format!("{}_{name}", self.name()), launch)]
    }

    fn cost(&self, inputs: &[Type], outputs: &[Type]) -> Cost {
        let bytes = inputs.iter().chain(outputs).map(|t| t.size_bytes() as f64).sum();
        Cost { flops: inputs[0].shape.count() as f64 * 40.0, bytes }
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 2), (1, 0), (2, 3)]
    }
}

/// Moments in 8 bits.
#[derive(Clone, Copy, Debug)]
pub struct ByteMoments {
    /// Codes of both.
    pub codes: Value,
    /// Scales of their blocks.
    pub scales: Value,
}

/// Builder of [`AdamBytes`].
pub trait AdamBytesEmit {
    /// Updates the parameters and their moments, all in place; returns the parameters as they are after it.
    fn optimize_bytes(
        &mut self,
        rule: &Optimizer,
        parameters: Value,
        gradients: Value,
        moments: ByteMoments,
        steering: Steering,
    ) -> Result<Value>;
}

impl<E: Emit + ?Sized> AdamBytesEmit for E {
    fn optimize_bytes(
        &mut self,
        rule: &Optimizer,
        parameters: Value,
        gradients: Value,
        moments: ByteMoments,
        steering: Steering,
    ) -> Result<Value> {
        let ByteMoments { codes, scales } = moments;
        let Steering { segments, decay, scalars, control } = steering;
        let inputs = [parameters, gradients, codes, scales, segments, decay, scalars, control];
        Ok(self.apply(Arc::new(AdamBytes { rule: rule.clone() }), &inputs)?[1])
    }
}

/// Both rules: one block, several tensors with and without decay, clipped, from moments of zero, after skipped steps, and halted.
pub fn cases() -> Cases {
    let mut cases = Cases::new("adam_bytes");
    let (betas, epsilon) = ([0.9, 0.99], 1e-6);
    for kind in [Kind::Adam { betas, epsilon }, Kind::AdamW { betas, epsilon }] {
        for (blocks, step, halted, skipped, rounding) in [
            (&[1][..], 1, false, 0, None),
            (&[1, 3, 1, 9], 4, false, 0, None),
            (&[2, 1], 2, true, 0, None),
            (&[3], 90, false, 3, None),
            (&[2, 1], 3, false, 0, Some(11)),
        ] {
            let rule = Optimizer { kind, clip_value: (step == 4).then_some(0.7), rounding };
            let groups = blocks.iter().sum::<usize>();
            let count = groups * GROUP;
            let of = |(t, &n): (usize, &usize)| vec![t as u32; n * GROUP / BLOCK];
            let segments: Vec<u32> = blocks.iter().enumerate().flat_map(of).collect();
            let decay = (0..blocks.len()).map(|t| 0.1 * (t % 2) as f32).collect();
            let mut scales = cases.uniform([2 * groups], 0.1, 1.0).to_precision(DType::F32);
            let mut codes = cases.codes([2 * count]);
            if step == 1 {
                scales.real_mut::<f32>().fill(0.0);
                codes.as_i8_mut().fill(0);
            }
            let label = format!(
                "{:?} blocks step {step} skipped {skipped}{}",
                blocks,
                if halted { " halted" } else { "" }
            );
            let control = vec![0.5, 1.0, !halted as u8 as f32, 0.0, 0.0, skipped as f32, 0.0, 0.0];
            let scalars = rule.scalars(0.05, step).to_vec();
            let parameters =
                if rounding.is_some() { cases.normal([count]) } else { cases.statistic([count]) };
            let inputs = vec![
                parameters,
                cases.statistic([count]),
                codes,
                scales,
                Tensor::u32([count / BLOCK], segments),
                Tensor::f32([blocks.len()], decay),
                Tensor::f32([SCALARS], scalars),
                Tensor::f32([CONTROL], control),
            ];
            let op = AdamBytes { rule: rule.clone() };
            let ties = move |inputs: &[Tensor]| host::ties(&rule, inputs);
            cases.add(format!("{} {label}", op.name()), op, inputs).no_gradient().either_step_at(ties);
        }
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::random::Stream;

    /// Parameters after some updates towards zero, by the plain rule or with moments in 8 bits.
    fn after(steps: u64, bytes: bool) -> Vec<f64> {
        let rule = Optimizer {
            kind: Kind::AdamW { betas: [0.9, 0.99], epsilon: 1e-8 },
            clip_value: None,
            rounding: None,
        };
        let count = 2 * GROUP;
        let mut random = Stream::new(&[5]);
        let mut parameters = Tensor::f32([count], (0..count).map(|_| random.normal() as f32).collect());
        let mut codes = Tensor::i8([2 * count], vec![0; 2 * count]);
        let mut scales = Tensor::f32([4], vec![0.0; 4]);
        let mut moments = [0, 1].map(|_| Tensor::f32([count], vec![0.0; count]));
        let segments = Tensor::u32([count / BLOCK], vec![0; count / BLOCK]);
        let decay = Tensor::f32([1], vec![0.0]);
        let control = Tensor::f32([CONTROL], vec![1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
        for step in 1..=steps {
            let noise = (0..count).map(|_| 0.3 * random.normal() as f32);
            let gradients = parameters.real::<f32>().iter().zip(noise).map(|(p, noise)| p + noise).collect();
            let gradients = Tensor::f32([count], gradients);
            let scalars = Tensor::f32([SCALARS], rule.scalars(0.01, step).to_vec());
            if bytes {
                let mut outputs = [codes.clone(), parameters.clone(), scales.clone()];
                let inputs =
                    [&parameters, &gradients, &codes, &scales, &segments, &decay, &scalars, &control];
                AdamBytes { rule: rule.clone() }.reference(&inputs, &mut outputs);
                [codes, parameters, scales] = outputs;
            } else {
                let [first, second] = &moments;
                let mut outputs = [parameters.clone(), first.clone(), second.clone()];
                let inputs = [&parameters, &gradients, first, second, &segments, &decay, &scalars, &control];
                rule.reference(&inputs, &mut outputs);
                let [updated, first, second] = outputs;
                (parameters, moments) = (updated, [first, second]);
            }
        }
        parameters.to_f64()
    }

    #[test]
    fn moments_in_bytes_lead_where_whole_ones_lead() {
        let (whole, bytes) = (after(60, false), after(60, true));
        let square = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>();
        let moved = square(&mut whole.iter().zip(after(0, false)).map(|(a, b)| a - b));
        let off = square(&mut whole.iter().zip(&bytes).map(|(a, b)| a - b));
        assert!(off > 0.0 && off < 1e-3 * moved, "{off} of {moved}");
    }

    #[test]
    fn rules_without_two_moments_and_arenas_of_half_a_block_are_refused() {
        let types = |count: usize| {
            let mut types = vec![Type::f32([count]), Type::f32([count]), Type::new(DType::I8, [2 * count])];
            types.extend([Type::f32([2 * count / GROUP]), Type::new(DType::U32, [count / BLOCK])]);
            types.extend([Type::f32([1]), Type::f32([SCALARS]), Type::f32([CONTROL])]);
            types
        };
        let of = |kind| AdamBytes { rule: Optimizer { kind, clip_value: None, rounding: None } };
        let adam = of(Kind::Adam { betas: [0.9, 0.99], epsilon: 1e-8 });
        assert!(adam.signature(&types(GROUP)).is_ok());
        assert!(adam.signature(&types(GROUP + BLOCK)).is_err());
        assert!(of(Kind::GradientDescent).signature(&types(GROUP)).is_err());
        assert!(of(Kind::Lamb { betas: [0.9, 0.99], epsilon: 1e-8 }).signature(&types(GROUP)).is_err());
    }
}
