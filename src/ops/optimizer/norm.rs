//! The global norm of all gradients and what follows from it: the factor that clips them, and whether to go on.

use crate::ops::launch::{Bind, Caps, Kernel, Launch, Variant};
use crate::ops::{
    Cases, Cost, Emit, Error, Operator, Result, Site, Value, expect_dtype, expect_inputs, expect_shape,
    in_precision,
};
use crate::tensor::{DType, Real, Tensor, Type};
use rayon::prelude::*;
use std::sync::Arc;

/// Words of the control value: factor on the gradients, their norm, 1 while all norms so far were finite and 0 for ever
/// after, and a spare word.
pub const CONTROL: usize = 4;

/// The control value before the first step.
pub const START: [f32; CONTROL] = [1.0, 0.0, 1.0, 0.0];

/// Elements the host sums at a time.
const TAKE: usize = 4096;

/// gradients F32 \[N\], N a multiple of four, and control F32 \[4\] -> control, in place.
#[derive(Clone, Debug)]
pub struct GradientNorm {
    /// Norm above which gradients are scaled down to it, as PyTorch's `clip_grad_norm_` does.
    pub max_norm: Option<f32>,
}

impl GradientNorm {
    fn compute<R: Real>(&self, gradients: &[R], before: &[R], control: &mut [R]) {
        let squares: Vec<R> = gradients
            .par_chunks(TAKE)
            .map(|chunk| {
                let mut sums = [R::default(); 16];
                for lane in chunk.chunks(16) {
                    sums.iter_mut().zip(lane).for_each(|(s, &g)| *s += g * g);
                }
                sums.into_iter().sum()
            })
            .collect();
        let norm = squares.into_iter().sum::<R>().sqrt();
        let finite = norm.wide().is_finite() && before[2] != R::default();
        let factor = match self.max_norm {
            Some(most) if finite => R::of(most as f64) / (norm + R::of(1e-6)),
            _ => R::of(1.0),
        };
        let factor = if factor < R::of(1.0) { factor } else { R::of(1.0) };
        control.copy_from_slice(&[factor, norm, R::of(finite as u8 as f64), R::default()]);
    }
}

impl Operator for GradientNorm {
    fn name(&self) -> &'static str {
        "gradient_norm"
    }

    fn settings(&self) -> String {
        self.max_norm.map(|m| format!("max_norm={m}")).unwrap_or_default()
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        let op = "gradient_norm";
        let [gradients, control] = expect_inputs(op, inputs)?;
        expect_dtype(op, "gradients", gradients, DType::F32)?;
        let count = gradients.shape.count();
        if gradients.shape.len() != 1 || count == 0 || !count.is_multiple_of(4) {
            let expected = "[a multiple of 4]".to_string();
            return Err(Error::Shape { op, input: "gradients", expected, got: gradients.shape.clone() });
        }
        expect_dtype(op, "control", control, DType::F32)?;
        expect_shape(op, "control", control, &[CONTROL])?;
        if self.max_norm.is_some_and(|m| m.is_nan() || m <= 0.0) {
            let (expected, got) = ("above zero".to_string(), format!("{:?}", self.max_norm));
            return Err(Error::Setting { op, setting: "max_norm", expected, got });
        }
        Ok(vec![control.clone()])
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        in_precision!(
            inputs,
            outputs,
            R,
            self.compute::<R>(inputs[0].real(), inputs[1].real(), outputs[0].real_mut())
        );
    }

    fn gradient(&self, _: &mut dyn Emit, _: &Site, _: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        let hint = "the norm of the gradients stands behind the loss, not before it";
        Err(Error::NoGradient { op: "gradient_norm", hint })
    }

    /// Partial sums into scratch, then one workgroup joins them: one per workgroup, or one per invocation where workgroup
    /// memory is dear.
    fn launch(&self, inputs: &[Type], _outputs: &[Type], caps: &Caps) -> Vec<Variant> {
        let fours = inputs[0].shape.count() / 4;
        let variant = |name: &str, entry, lanes: usize, groups: usize, partials: usize| {
            let kernel = Kernel::new("gradient_norm").entry(entry).constant("LANES", lanes as u32);
            let sum = Launch::new(kernel, [Bind::Input(0), Bind::Scratch(0)], groups).param("count", fours);
            let finish = Kernel::new("gradient_norm_finish");
            let finish = Launch::new(finish, [Bind::Scratch(0), Bind::Output(0)], 1)
                .param("count", partials)
                .param("max_norm", self.max_norm.unwrap_or(f32::MAX));
            let scratch = vec![partials as u64 * 4];
            Variant { name: name.to_string(), launches: vec![sum, finish], scratch }
        };
        let groups = fours.div_ceil(256).clamp(1, 1024);
        let group = variant("gradient_norm_group", "group", 256, groups, groups);
        let groups = fours.div_ceil(64 * 16).clamp(1, 64);
        let lane = variant("gradient_norm_lane", "lane", 64, groups, groups * 64);
        if caps.is_cpu { vec![lane, group] } else { vec![group, lane] }
    }

    fn cost(&self, inputs: &[Type], _outputs: &[Type]) -> Cost {
        Cost { flops: 2.0 * inputs[0].shape.count() as f64, bytes: inputs[0].size_bytes() as f64 }
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 1)]
    }
}

/// Builder of [`GradientNorm`].
pub trait GradientNormEmit {
    /// The control value after seeing the gradients.
    fn gradient_norm(&mut self, gradients: Value, control: Value, max_norm: Option<f32>) -> Result<Value>;
}

impl<E: Emit + ?Sized> GradientNormEmit for E {
    fn gradient_norm(&mut self, gradients: Value, control: Value, max_norm: Option<f32>) -> Result<Value> {
        self.apply_one(Arc::new(GradientNorm { max_norm }), &[gradients, control])
    }
}

/// One four, past a workgroup, past the largest grid; clipped, not clipped, without a limit; halted before.
pub fn cases() -> Cases {
    let mut cases = Cases::new("gradient_norm");
    for (count, max_norm, going) in [
        (4, Some(0.5), 1.0),
        (64, None, 1.0),
        (64 * 17, Some(1e4), 1.0),
        (64 * 17, Some(1.0), 0.0),
        (1_048_576 + 64, Some(1.0), 1.0),
    ] {
        let gradients = cases.statistic([count]);
        let control = Tensor::f32([CONTROL], vec![0.25, 3.0, going, 0.0]);
        let label = format!("gradient_norm[{count}] max {max_norm:?} going {going}");
        cases.add(label, GradientNorm { max_norm }, vec![gradients, control]).no_gradient().sums(count);
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(gradients: Vec<f32>, max_norm: Option<f32>, before: [f32; 4]) -> Vec<f32> {
        let mut control = [Tensor::f32([4], vec![9.0; 4])];
        let gradients = Tensor::f32([gradients.len()], gradients);
        let before = Tensor::f32([4], before.to_vec());
        GradientNorm { max_norm }.reference(&[&gradients, &before], &mut control);
        control[0].real::<f32>().to_vec()
    }

    #[test]
    fn the_norm_of_three_and_four_is_five() {
        assert_eq!(after(vec![3.0, 0.0, -4.0, 0.0], None, START), [1.0, 5.0, 1.0, 0.0]);
        assert_eq!(after(vec![3.0, 0.0, -4.0, 0.0], Some(10.0), START), [1.0, 5.0, 1.0, 0.0]);
        let clipped = after(vec![3.0, 0.0, -4.0, 0.0], Some(1.0), START);
        assert!((clipped[0] - 0.2).abs() < 1e-6);
    }

    #[test]
    fn once_halted_it_stays_halted() {
        let halted = after(vec![f32::NAN, 0.0, 0.0, 0.0], Some(1.0), START);
        assert_eq!((halted[0], halted[2]), (1.0, 0.0));
        let later = after(vec![1.0, 0.0, 0.0, 0.0], Some(1.0), [1.0, 1.0, 0.0, 0.0]);
        assert_eq!(later[2], 0.0);
    }
}
