//! The global norm of all gradients and what follows from it: the factor that clips them, and whether to go on.

use crate::ops::launch::{Bind, Caps, Kernel, Launch, Variant};
use crate::ops::{
    Cases, Cost, Emit, Error, Operator, Result, Site, Value, expect_dtype, expect_shape, in_precision,
};
use crate::tensor::{DType, Real, Tensor, Type, View, ViewMut};
use rayon::prelude::*;
use std::sync::Arc;

/// Words of the control value, in this order: the factor on the gradients (clipping over loss scale); their norm; 1 if the
/// update is to be made; the scale of the next loss; steps since the scale last changed; steps skipped so far; 1 once the run
/// has halted, for ever after; a spare word.
pub const CONTROL: usize = 8;

/// The control value before the first step, with the scale of its loss.
pub fn start(scale: f32) -> [f32; CONTROL] {
    [1.0, 0.0, 1.0, scale, 0.0, 0.0, 0.0, 0.0]
}

/// How the loss scale follows overflow, as in mixed precision training (Micikevicius et al. 2018; PyTorch's `GradScaler`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scaling {
    /// Factor on the scale after `interval` steps without overflow.
    pub growth: f32,
    /// Factor on the scale after an overflow, whose step is skipped. A scale that falls below one halts the run.
    pub backoff: f32,
    /// Steps between growths.
    pub interval: u32,
}

/// Elements the host sums at a time.
const TAKE: usize = 4096;

/// control F32 \[4\] and one or more arenas of gradients, each F32 \[N\] with N a multiple of four -> control, in place.
#[derive(Clone, Debug)]
pub struct GradientNorm {
    /// Arenas of gradients.
    pub arenas: usize,
    /// Norm above which gradients are scaled down to it, as PyTorch's `clip_grad_norm_` does.
    pub max_norm: Option<f32>,
    /// Absent: the loss scale stays, and the first overflow halts the run.
    pub scaling: Option<Scaling>,
}

impl GradientNorm {
    fn compute<R: Real>(&self, inputs: &[&Tensor], control: &mut [R]) {
        let before = inputs[0].real::<R>();
        let squares = |chunk: &[R]| {
            let mut sums = [R::default(); 16];
            for lane in chunk.chunks(16) {
                sums.iter_mut().zip(lane).for_each(|(s, &g)| *s += g * g);
            }
            sums.into_iter().sum::<R>()
        };
        let mut total = R::default();
        for gradients in &inputs[1..] {
            let parts: Vec<R> = gradients.real::<R>().par_chunks(TAKE).map(squares).collect();
            total += parts.into_iter().sum::<R>();
        }
        self.decide(total, before, control);
    }

    /// The control value from the sum of all squares and the value before.
    fn decide<R: Real>(&self, total: R, before: &[R], control: &mut [R]) {
        let (zero, one) = (R::default(), R::of(1.0));
        let scale = before[3];
        let norm = total.sqrt() / scale;
        let halted = before[6] != zero;
        let goes = norm.wide().is_finite() && !halted;
        let mut factor = one;
        if let (Some(most), true) = (self.max_norm, goes) {
            let clip = R::of(most as f64) / (norm + R::of(1e-6));
            factor = if clip < one { clip } else { one };
        }
        let (mut next, mut since, mut skipped, mut halts) = (scale, before[4], before[5], halted);
        match self.scaling {
            Some(Scaling { growth, interval, .. }) if goes => {
                since += one;
                if since.wide() >= interval as f64 {
                    (next, since) = (scale * R::of(growth as f64), zero);
                }
            }
            Some(Scaling { backoff, .. }) if !halted => {
                (next, since, skipped) = (scale * R::of(backoff as f64), zero, skipped + one);
                halts = next < one;
            }
            _ => halts = !goes,
        }
        let flag = |set: bool| if set { one } else { zero };
        control.copy_from_slice(&[factor / scale, norm, flag(goes), next, since, skipped, flag(halts), zero]);
    }
}

impl Operator for GradientNorm {
    fn name(&self) -> &'static str {
        "gradient_norm"
    }

    fn settings(&self) -> String {
        let mut text: Vec<String> = self.max_norm.map(|m| format!("max_norm={m}")).into_iter().collect();
        text.extend(
            self.scaling
                .map(|s| format!("growth={} backoff={} interval={}", s.growth, s.backoff, s.interval)),
        );
        text.join(" ")
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        let op = "gradient_norm";
        let [control, pages @ ..] = inputs else {
            return Err(Error::InputCount { op, expected: 1 + self.arenas, got: 0 });
        };
        if pages.len() != self.arenas || pages.is_empty() {
            return Err(Error::InputCount { op, expected: 1 + self.arenas.max(1), got: inputs.len() });
        }
        for gradients in pages {
            expect_dtype(op, "gradients", gradients, DType::F32)?;
            let count = gradients.shape.count();
            if gradients.shape.len() != 1 || count == 0 || !count.is_multiple_of(4) {
                let expected = "[a multiple of 4]".to_string();
                return Err(Error::Shape { op, input: "gradients", expected, got: gradients.shape.clone() });
            }
        }
        expect_dtype(op, "control", control, DType::F32)?;
        expect_shape(op, "control", control, &[CONTROL])?;
        if self.max_norm.is_some_and(|m| m.is_nan() || m <= 0.0) {
            let (expected, got) = ("above zero".to_string(), format!("{:?}", self.max_norm));
            return Err(Error::Setting { op, setting: "max_norm", expected, got });
        }
        if let Some(scaling) = self.scaling {
            let sound = scaling.growth >= 1.0
                && scaling.growth.is_finite()
                && (0.0..1.0).contains(&scaling.backoff)
                && scaling.interval > 0;
            if !sound {
                let expected =
                    "growth from 1, backoff from 0 to below 1, an interval of at least 1".to_string();
                return Err(Error::Setting { op, setting: "scaling", expected, got: self.settings() });
            }
        }
        Ok(vec![control.clone()])
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        in_precision!(inputs, outputs, R, self.compute::<R>(inputs, outputs[0].real_mut()));
    }

    fn host(&self, inputs: &[View], outputs: &mut [ViewMut]) {
        let sum = |gradients: &View| {
            let parts: Vec<f32> = gradients.floats().par_chunks(4 * TAKE).map(super::fast::squares).collect();
            parts.into_iter().sum::<f32>()
        };
        let total = inputs[1..].iter().map(sum).sum();
        let control = outputs[0].floats();
        let before = control.to_vec();
        self.decide(total, &before, control);
    }

    fn gradient(&self, _: &mut dyn Emit, _: &Site, _: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        let hint = "the norm of the gradients stands behind the loss, not before it";
        Err(Error::NoGradient { op: "gradient_norm", hint })
    }

    /// Partial sums into scratch, arena after arena, then one workgroup joins them: one per workgroup, or one per invocation
    /// where workgroup memory is dear.
    fn launch(&self, inputs: &[Type], _outputs: &[Type], caps: &Caps) -> Vec<Variant> {
        let variant = |name: &str, entry, lanes: usize, groups_of: &dyn Fn(usize) -> usize, left: usize| {
            let mut partials = 0;
            let mut launches = vec![];
            for (page, gradients) in inputs[1..].iter().enumerate() {
                let fours = gradients.shape.count() / 4;
                let groups = groups_of(fours);
                let kernel = Kernel::new("gradient_norm").entry(entry).constant("LANES", lanes as u32);
                let sum = Launch::new(kernel, [Bind::Input(page + 1), Bind::Scratch(0)], groups);
                launches.push(sum.param("count", fours).param("first", partials));
                partials += groups * left;
            }
            let finish = Kernel::new("gradient_norm_finish");
            let finish = Launch::new(finish, [Bind::Scratch(0), Bind::Output(0)], 1)
                .param("count", partials)
                .param("max_norm", self.max_norm.unwrap_or(f32::MAX))
                .param("growth", self.scaling.map_or(1.0, |s| s.growth))
                .param("backoff", self.scaling.map_or(0.0, |s| s.backoff))
                .param("interval", self.scaling.map_or(0, |s| s.interval as usize));
            launches.push(finish);
            Variant { name: name.to_string(), launches, scratch: vec![partials as u64 * 4] }
        };
        let group = variant("gradient_norm_group", "group", 256, &|n| n.div_ceil(256).clamp(1, 1024), 1);
        let lane = variant("gradient_norm_lane", "lane", 64, &|n| n.div_ceil(64 * 16).clamp(1, 64), 64);
        if caps.is_cpu { vec![lane, group] } else { vec![group, lane] }
    }

    fn cost(&self, inputs: &[Type], _outputs: &[Type]) -> Cost {
        let count: usize = inputs[1..].iter().map(|t| t.shape.count()).sum();
        Cost { flops: 2.0 * count as f64, bytes: 4.0 * count as f64 }
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0)]
    }
}

/// Builder of [`GradientNorm`].
pub trait GradientNormEmit {
    /// The control value after seeing the gradients.
    fn gradient_norm(&mut self, op: GradientNorm, gradients: &[Value], control: Value) -> Result<Value>;
}

impl<E: Emit + ?Sized> GradientNormEmit for E {
    fn gradient_norm(&mut self, op: GradientNorm, gradients: &[Value], control: Value) -> Result<Value> {
        self.apply_one(Arc::new(op), &[&[control], gradients].concat())
    }
}

/// One four, past a workgroup, past the largest grid, several arenas; clipped, not clipped, without a limit; halted before;
/// scaled, with the scale about to grow.
pub fn cases() -> Cases {
    let mut cases = Cases::new("gradient_norm");
    let scaling = Some(Scaling { growth: 2.0, backoff: 0.5, interval: 3 });
    for (pages, max_norm, halted, scaling) in [
        (&[4][..], Some(0.5), 0.0, None),
        (&[64], None, 0.0, None),
        (&[64 * 17], Some(1e4), 0.0, None),
        (&[64 * 17], Some(1.0), 1.0, None),
        (&[1_048_576 + 64], Some(1.0), 0.0, None),
        (&[64, 64 * 300, 128], Some(1.0), 0.0, None),
        (&[64], Some(1.0), 0.0, scaling),
        (&[64], Some(1.0), 1.0, scaling),
    ] {
        let since = if scaling.is_some() { 2.0 } else { 0.0 };
        let control = vec![0.25, 3.0, 1.0, 4.0, since, 5.0, halted, 0.0];
        let mut inputs = vec![Tensor::f32([CONTROL], control)];
        inputs.extend(pages.iter().map(|&count| cases.statistic([count])));
        let scaled = if scaling.is_some() { " scaled" } else { "" };
        let label = format!("gradient_norm{pages:?} max {max_norm:?} halted {halted}{scaled}");
        let count = pages.iter().sum();
        cases
            .add(label, GradientNorm { arenas: pages.len(), max_norm, scaling }, inputs)
            .no_gradient()
            .sums(count);
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(gradients: Vec<f32>, op: GradientNorm, before: [f32; CONTROL]) -> Vec<f32> {
        let mut control = [Tensor::f32([CONTROL], vec![9.0; CONTROL])];
        let gradients = Tensor::f32([gradients.len()], gradients);
        let before = Tensor::f32([CONTROL], before.to_vec());
        op.reference(&[&before, &gradients], &mut control);
        control[0].real::<f32>().to_vec()
    }

    fn clip(max_norm: Option<f32>) -> GradientNorm {
        GradientNorm { arenas: 1, max_norm, scaling: None }
    }

    #[test]
    fn the_norm_of_three_and_four_is_five() {
        let gradients = || vec![3.0, 0.0, -4.0, 0.0];
        assert_eq!(after(gradients(), clip(None), start(1.0))[..3], [1.0, 5.0, 1.0]);
        assert_eq!(after(gradients(), clip(Some(10.0)), start(1.0))[..3], [1.0, 5.0, 1.0]);
        assert!((after(gradients(), clip(Some(1.0)), start(1.0))[0] - 0.2).abs() < 1e-6);
        let scaled = after(gradients(), clip(Some(0.5)), start(4.0));
        assert_eq!(scaled[1], 1.25);
        assert!((scaled[0] - 0.5 / 1.25 / 4.0).abs() < 1e-6, "clipping and the scale share one factor");
    }

    #[test]
    fn once_halted_it_stays_halted() {
        let halted = after(vec![f32::NAN, 0.0, 0.0, 0.0], clip(Some(1.0)), start(1.0));
        assert_eq!((halted[2], halted[6]), (0.0, 1.0));
        let later = after(vec![1.0, 0.0, 0.0, 0.0], clip(Some(1.0)), halted.try_into().unwrap());
        assert_eq!((later[2], later[6]), (0.0, 1.0));
    }

    #[test]
    fn an_overflow_skips_its_step_and_halves_the_scale_until_nothing_is_left_of_it() {
        let scaling = Some(Scaling { growth: 2.0, backoff: 0.5, interval: 2 });
        let op = GradientNorm { arenas: 1, max_norm: None, scaling };
        let (good, bad) = (vec![1.0, 0.0, 0.0, 0.0], vec![f32::INFINITY, 0.0, 0.0, 0.0]);
        let step = |control: Vec<f32>, gradients: &Vec<f32>| {
            after(gradients.clone(), op.clone(), control.try_into().unwrap())
        };
        let mut control = step(start(4.0).to_vec(), &bad);
        assert_eq!(control[2..7], [0.0, 2.0, 0.0, 1.0, 0.0]);
        control = step(control, &good);
        assert_eq!(control[2..7], [1.0, 2.0, 1.0, 1.0, 0.0]);
        control = step(control, &good);
        assert_eq!(control[2..7], [1.0, 4.0, 0.0, 1.0, 0.0], "two good steps in a row double the scale");
        for _ in 0..3 {
            control = step(control, &bad);
        }
        assert_eq!(control[2..7], [0.0, 0.5, 0.0, 4.0, 1.0], "below one the run halts");
    }
}
