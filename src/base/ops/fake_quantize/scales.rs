//! Scales of lines from their elements: what a fake quantisation uses that does not learn its scales.
//!
//! Symmetric: `s = max |x| / divisor`. From a span: `s = (highest x - lowest x) / steps`, with a whole zero point
//! `z = lowest code - round(lowest x / s)`, so that the lowest element has the lowest code.
//!
//! As with [`crate::ops::quantize_rows`], a line whose scale would not be a normal f32 has the scale 0, and one that holds NaN
//! or an infinity the scale NaN.

use super::fast;
use super::lines::{Lines, Sharing};
use crate::ops::launch::{Bind, Caps, Kernel, Variant};
use crate::ops::{Cases, Emit, Error, Operator, Result, Site, Value, expect_inputs, in_precision, rows};
use crate::tensor::{Real, Tensor, Type, View, ViewMut};
use rayon::prelude::*;
use std::sync::Arc;

/// How the scale of a line follows from its elements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// The largest magnitude over a divisor.
    Largest {
        /// What it is divided by.
        divisor: f32,
    },
    /// The distance from the lowest to the highest element over so many steps.
    Span {
        /// Highest code less the lowest.
        steps: f32,
        /// The lowest code.
        lowest: f32,
        /// Zero counts as an element, so that it is met exactly.
        with_zero: bool,
    },
}

impl Rule {
    /// Outputs: scales, and zero points where there are any.
    fn outputs(self) -> usize {
        match self {
            Rule::Largest { .. } => 1,
            Rule::Span { .. } => 2,
        }
    }

    /// Scale and zero point of a line from its lowest and highest element.
    fn of<R: Real>(self, [lowest, highest]: [R; 2]) -> [R; 2] {
        let (range, divisor) = match self {
            Rule::Largest { divisor } => (if -lowest > highest { -lowest } else { highest }, divisor),
            Rule::Span { steps, .. } => (highest - lowest, steps),
        };
        // The lowest and the highest may both be there and their distance not.
        if !range.wide().is_finite() || !lowest.wide().is_finite() || !highest.wide().is_finite() {
            return [R::of(f64::NAN); 2];
        }
        let scale = range / R::of(divisor.into());
        let usable = scale.wide() >= f32::MIN_POSITIVE.into();
        let zero = match self {
            Rule::Span { lowest: code, .. } if usable => {
                R::of(code.into()) - R::of((lowest / scale).wide().round_ties_even())
            }
            _ => R::default(),
        };
        [if usable { scale } else { R::default() }, zero]
    }

    /// What the search for the lowest and highest element begins with, if not with the elements.
    fn with_zero(self) -> bool {
        matches!(self, Rule::Largest { .. } | Rule::Span { with_zero: true, .. })
    }
}

/// Scales of the lines of x, and their zero points. Input: x in f32; outputs: s `[lines]` and, from a span, z `[lines]`.
#[derive(Clone, Copy, Debug)]
pub struct LineScales {
    /// Which elements make a line.
    pub sharing: Sharing,
    /// How a scale follows from them.
    pub rule: Rule,
}

impl LineScales {
    fn compute<R: Real>(&self, x: &Tensor, outputs: &mut [Tensor]) {
        let lines = Lines::of(&x.shape, self.sharing);
        let found = self.scales(lines, x.real::<R>());
        for (o, output) in outputs.iter_mut().enumerate() {
            output.real_mut::<R>().iter_mut().zip(&found).for_each(|(y, found)| *y = found[o]);
        }
    }

    fn scales<R: Real>(&self, lines: Lines, x: &[R]) -> Vec<[R; 2]> {
        let of_line = |line: usize| {
            let start = if self.rule.with_zero() {
                Some(R::default())
            } else {
                lines.elements(line).next().map(|first| x[first])
            };
            let start = [start.unwrap_or_default(); 2];
            let ends = lines.elements(line).fold(start, |[lowest, highest], at| {
                [-R::maximum(-x[at], -lowest), R::maximum(x[at], highest)]
            });
            self.rule.of(ends)
        };
        (0..lines.count()).into_par_iter().map(of_line).collect()
    }
}

impl Operator for LineScales {
    fn name(&self) -> &'static str {
        "line_scales"
    }

    fn settings(&self) -> String {
        let rule = match self.rule {
            Rule::Largest { divisor } => format!("largest/{divisor}"),
            Rule::Span { steps, lowest, with_zero } => {
                format!("span/{steps} from {lowest}{}", if with_zero { " with zero" } else { "" })
            }
        };
        format!("sharing={},rule={rule}", self.sharing.describe())
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        let [x] = expect_inputs(self.name(), inputs)?;
        super::expect_single(self.name(), "x", x)?;
        Lines::check(self.name(), x, self.sharing)?;
        let (Rule::Largest { divisor: over } | Rule::Span { steps: over, .. }) = self.rule;
        if !(over.is_finite() && over > 0.0) {
            let (expected, got) = ("a divisor above zero".to_string(), over.to_string());
            return Err(Error::Setting { op: self.name(), setting: "rule", expected, got });
        }
        let scales = rows::statistic(x, [Lines::of(&x.shape, self.sharing).count()]);
        Ok(vec![scales; self.rule.outputs()])
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        in_precision!(inputs, outputs, R, self.compute::<R>(inputs[0], outputs));
    }

    fn host(&self, inputs: &[View], outputs: &mut [ViewMut]) {
        let (lines, x) = (Lines::of(inputs[0].shape, self.sharing), inputs[0].floats());
        if let (Rule::Largest { .. }, [s]) = (self.rule, &mut *outputs) {
            let s = s.floats();
            match lines.inner {
                1 => s
                    .par_iter_mut()
                    .enumerate()
                    .for_each(|(line, s)| *s = fast::largest(&x[lines.range(line)])),
                _ => fast::column_largest(lines, x, s),
            }
            s.iter_mut().for_each(|s| *s = self.rule.of([-*s, *s])[0]);
            return;
        }
        let found = self.scales(lines, x);
        for (o, output) in outputs.iter_mut().enumerate() {
            output.floats().iter_mut().zip(&found).for_each(|(y, found)| *y = found[o]);
        }
    }

    /// Scales that follow from the elements are taken as given: nothing flows back through them.
    fn gradient(&self, _: &mut dyn Emit, _: &Site, _: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        Ok(vec![None])
    }

    fn launch(&self, inputs: &[Type], _outputs: &[Type], caps: &Caps) -> Vec<Variant> {
        let lines = Lines::of(&inputs[0].shape, self.sharing);
        let mut bindings = vec![Bind::Input(0), Bind::Output(0)];
        let (text, over, lowest) = match self.rule {
            Rule::Largest { divisor } => (LARGEST, divisor, 0.0),
            Rule::Span { steps, lowest, .. } => (SPAN, steps, lowest),
        };
        if self.rule.outputs() == 2 {
            bindings.push(Bind::Output(1));
        }
        let kernel = Kernel::new("line_scales")
            .constant("WITH_ZERO", self.rule.with_zero() as u32)
            .paste("RULE", text);
        lines.variants(self.name(), kernel, &bindings, caps, |launch| {
            launch.param("over", over).param("lowest", lowest)
        })
    }
}

const LARGEST: &str = "\
fn store(line: u32, ends: vec2<f32>, finite: bool) {
    s[line] = select(nan(), usable(max(-ends.x, ends.y) / params.over), finite);
}";

const SPAN: &str = "\
@group(0) @binding(2) var<storage, read_write> z: array<f32>;   // [lines]
fn store(line: u32, ends: vec2<f32>, finite: bool) {
    let range = ends.y - ends.x;
    let whole = finite && (bitcast<u32>(range) & 0x7fffffffu) < 0x7f800000u;
    let scale = usable(range / params.over);
    s[line] = select(nan(), scale, whole);
    let zero = select(0.0, params.lowest - round(ends.x / scale), scale > 0.0);
    z[line] = select(nan(), zero, whole);
}";

/// Builder of [`LineScales`].
pub trait LineScalesEmit {
    /// Scales of the lines of `x`, and zero points where the rule gives any.
    fn line_scales(&mut self, x: Value, sharing: Sharing, rule: Rule) -> Result<(Value, Option<Value>)>;
}

impl<E: Emit + ?Sized> LineScalesEmit for E {
    fn line_scales(&mut self, x: Value, sharing: Sharing, rule: Rule) -> Result<(Value, Option<Value>)> {
        let outputs = self.apply(Arc::new(LineScales { sharing, rule }), &[x])?;
        Ok((outputs[0], outputs.get(1).copied()))
    }
}

/// Every way to share, ragged groups, one element; lines of zeros, of one sign, and with NaN or an infinity.
pub fn cases() -> Cases {
    let mut cases = Cases::new("line_scales");
    let rules = [
        Rule::Largest { divisor: 7.0 },
        Rule::Span { steps: 15.0, lowest: 0.0, with_zero: false },
        Rule::Span { steps: 255.0, lowest: -128.0, with_zero: true },
    ];
    for rule in rules {
        for (shape, sharing) in super::shapes() {
            let x = cases.statistic(shape);
            let op = LineScales { sharing, rule };
            let label = format!("{} {shape:?}", op.settings());
            cases.add(label, op, vec![x]).no_gradient();
        }
        let mut x = cases.statistic([6, 5]);
        let rows = x.real_mut::<f32>();
        rows[..5].fill(0.0);
        rows[5..10].fill(1e-40);
        rows[25..].iter_mut().for_each(|x| *x = x.abs() + 1.0);
        (rows[11], rows[15], rows[22]) = (f32::NAN, f32::INFINITY, f32::NEG_INFINITY);
        let op = LineScales { sharing: Sharing::Rows, rule };
        cases.add(format!("{} odd rows", op.settings()), op, vec![x]).no_gradient();
    }
    cases
}
