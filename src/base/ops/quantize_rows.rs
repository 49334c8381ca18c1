//! Symmetric 8-bit quantisation by rows: codes and one scale for each row of the last axis.
//!
//! `s[r] = max over k of |x[r, k]| / divisor`, `q[r, k] = clamp(round(x[r, k] / s[r]))`, rounded half to even. Kernels multiply by
//! `1 / s`, so that where `x / s` lies within rounding errors of the middle between two codes, either may come out.
//!
//! A row whose scale would not be a normal f32, a row of zeros above all, has the scale 0 and codes of 0. A row that holds
//! NaN or an infinity has the scale NaN and codes of 0, so that what is computed from it is NaN and does not pass for a number.

mod wide;

use super::launch::{Bind, Caps, Kernel, Launch, Variant};
use super::{
    Cases, Cost, Emit, Error, Operator, Result, Site, Value, expect_float, expect_inputs, in_precision, rows,
};
use crate::ops::fast::{rows_of_piece, widest};
use crate::tensor::{DType, Real, Shape, Tensor, Type, View, ViewMut};
use rayon::prelude::*;
use std::sync::Arc;

/// How a row's scale follows from its largest magnitude, and which codes there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// Largest magnitude over 127, codes -127..=127: as GGUF's Q8_0 and int8 training.
    Narrow,
    /// Largest magnitude over 127.5, codes -128..=127: as compressed-tensors.
    Wide,
}

impl Rule {
    /// What the largest magnitude is divided by.
    pub fn divisor(self) -> f32 {
        match self {
            Rule::Narrow => 127.0,
            Rule::Wide => 127.5,
        }
    }

    /// Lowest and highest code.
    pub fn bounds(self) -> [f32; 2] {
        match self {
            Rule::Narrow => [-127.0, 127.0],
            Rule::Wide => [-128.0, 127.0],
        }
    }

    pub(in crate::ops) fn name(self) -> &'static str {
        match self {
            Rule::Narrow => "narrow",
            Rule::Wide => "wide",
        }
    }
}

/// Codes and scales of the rows of a tensor. Input: x [.., K]; outputs: q [.., K] as i8 and s [..].
#[derive(Clone, Debug)]
pub struct QuantizeRows {
    /// Scale and codes.
    pub rule: Rule,
}

impl QuantizeRows {
    fn compute<R: Real>(&self, x: &Tensor, outputs: &mut [Tensor]) {
        let cols = x.shape.last();
        let [low, high] = self.rule.bounds().map(f64::from);
        let (q, s) = outputs.split_at_mut(1);
        let rows =
            x.real::<R>().chunks(cols).zip(q[0].as_i8_mut().chunks_mut(cols)).zip(s[0].real_mut::<R>());
        for ((x, q), s) in rows {
            let largest = rows::largest_of(&x.iter().map(|x| R::of(x.wide().abs())).collect::<Vec<_>>());
            let scale = (largest / R::of(self.rule.divisor().into())).wide();
            let scale = if largest.wide().is_finite() { scale } else { f64::NAN };
            let usable = scale >= f32::MIN_POSITIVE.into();
            *s = R::of(if usable || scale.is_nan() { scale } else { 0.0 });
            for (q, x) in q.iter_mut().zip(x) {
                let exact = if usable { x.wide() / s.wide() } else { 0.0 };
                *q = exact.round_ties_even().clamp(low, high) as i8;
            }
        }
    }
}

impl Operator for QuantizeRows {
    fn name(&self) -> &'static str {
        "quantize_rows"
    }

    fn settings(&self) -> String {
        format!("rule={}", self.rule.name())
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        let [x] = expect_inputs(self.name(), inputs)?;
        expect_float(self.name(), "x", x)?;
        rows::expect_rows(self.name(), "x", x)?;
        let scales = Shape::from(&x.shape[..x.shape.len() - 1]);
        Ok(vec![Type::new(DType::I8, x.shape.clone()), rows::statistic(x, scales)])
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        in_precision!(inputs, outputs, R, self.compute::<R>(inputs[0], outputs));
    }

    fn host(&self, inputs: &[View], outputs: &mut [ViewMut]) {
        let (x, cols) = (inputs[0].floats(), inputs[0].shape.last());
        let [q, s] = outputs else { unreachable!("codes and scales") };
        let (q, s) = (q.as_i8(), s.floats());
        let each = rows_of_piece(s.len(), cols);
        let pieces = q.par_chunks_mut(each * cols).zip(s.par_chunks_mut(each)).zip(x.par_chunks(each * cols));
        pieces.for_each(|((q, s), x)| quantize(x, q, s, cols, self.rule));
    }

    fn gradient(&self, _: &mut dyn Emit, _: &Site, _: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        let hint = "codes are whole numbers: train through a fake quantisation instead";
        Err(Error::NoGradient { op: self.name(), hint })
    }

    fn codes_rows(&self) -> Option<(Rule, bool)> {
        Some((self.rule, false))
    }

    fn launch(&self, inputs: &[Type], _outputs: &[Type], caps: &Caps) -> Vec<Variant> {
        let (shape, dtype) = (&inputs[0].shape, inputs[0].dtype);
        let [lowest, highest] = self.rule.bounds();
        let whole = rows::width(shape.last()) == 4;
        let codes = if whole { WRITES_FOUR } else { WRITES_NOTHING };
        let kernel = Kernel::new("quantize_rows").retype("Elem", dtype).paste("CODES", codes);
        let bindings = [Bind::Input(0), Bind::Output(0), Bind::Output(1)];
        let complete = |launch: Launch| {
            let launch = launch.param("divisor", self.rule.divisor());
            launch.param("lowest", lowest).param("highest", highest)
        };
        let mut variants = rows::variants(self.name(), kernel, &bindings, shape, caps, complete);
        if !whole {
            let count = shape.count();
            let kernel = Kernel::new("quantize_codes").retype("Elem", dtype);
            let bindings = [Bind::Input(0), Bind::Output(1), Bind::Output(0)];
            let codes = Launch::new(kernel, bindings, count.div_ceil(4 * 64)).param("count", count);
            let codes = codes.param("cols", shape.last()).param("lowest", lowest).param("highest", highest);
            variants.iter_mut().for_each(|v| v.launches.push(codes.clone()));
        }
        variants.splice(0..0, wide::variant(self, &inputs[0], caps));
        variants
    }

    fn cost(&self, inputs: &[Type], outputs: &[Type]) -> Cost {
        let bytes = inputs.iter().chain(outputs).map(|t| t.size_bytes() as f64).sum();
        Cost { flops: 4.0 * inputs[0].shape.count() as f64, bytes }
    }
}

const WRITES_FOUR: &str = "\
fn largest_magnitude(v: V) -> u32 {
    return max(max(magnitude(v.x), magnitude(v.y)), max(magnitude(v.z), magnitude(v.w)));
}
fn code_of(x: f32, factor: f32) -> i32 { return code(x, factor, params.lowest, params.highest); }
fn write_codes(at: u32, v: V, factor: f32) {
    q[at] = pack4xI8(vec4<i32>(code_of(v.x, factor), code_of(v.y, factor), code_of(v.z, factor), code_of(v.w, factor)));
}";

const WRITES_NOTHING: &str = "\
fn largest_magnitude(v: V) -> u32 { return magnitude(v); }
fn write_codes(at: u32, v: V, factor: f32) {}";

/// Rows on this thread.
pub(in crate::ops) fn quantize(x: &[f32], q: &mut [i8], s: &mut [f32], cols: usize, rule: Rule) {
    for ((x, q), s) in x.chunks(cols).zip(q.chunks_mut(cols)).zip(s) {
        let largest = largest_magnitude(x);
        if !largest.is_finite() {
            (*s, _) = (f32::NAN, q.fill(0));
            continue;
        }
        let scale = largest / rule.divisor();
        if scale < f32::MIN_POSITIVE {
            (*s, _) = (0.0, q.fill(0));
            continue;
        }
        *s = scale;
        round_to_codes(x, q, 1.0 / scale, rule.bounds());
    }
}

widest! {
    /// The largest |x|; infinite or NaN if one is.
    fn largest_magnitude(x: &[f32]) -> f32 {
        // Bits of magnitudes grow with them, and what is not finite is the largest.
        let largest = x.iter().fold(0, |largest: u32, x| largest.max(x.to_bits() & 0x7fff_ffff));
        f32::from_bits(largest)
    }
}

/// Added to a small number, it leaves no room for a fraction: the sum is rounded half to even, and its lowest byte is the code.
const WHOLE: f32 = 12_582_912.0;

widest! {
    /// q = x * factor, clamped and rounded.
    fn round_to_codes(x: &[f32], q: &mut [i8], factor: f32, bounds: [f32; 2]) {
        for (q, x) in q.iter_mut().zip(x) {
            *q = ((x * factor).max(bounds[0]).min(bounds[1]) + WHOLE).to_bits() as i8;
        }
    }
}

/// Builder of [`QuantizeRows`].
pub trait QuantizeRowsEmit {
    /// Codes and scales of the rows of `x`.
    fn quantize_rows(&mut self, x: Value, rule: Rule) -> Result<[Value; 2]>;
}

impl<E: Emit + ?Sized> QuantizeRowsEmit for E {
    fn quantize_rows(&mut self, x: Value, rule: Rule) -> Result<[Value; 2]> {
        let outputs = self.apply(Arc::new(QuantizeRows { rule }), &[x])?;
        Ok([outputs[0], outputs[1]])
    }
}

/// One element, primes, fours, long rows; exact ties; rows of zeros, of tiny numbers, and with NaN or an infinity.
pub fn cases() -> Cases {
    let mut cases = Cases::new("quantize_rows");
    for rule in [Rule::Narrow, Rule::Wide] {
        for shape in [
            &[1][..],
            &[7, 13],
            &[2, 3, 64],
            &[67, 5],
            &[3, 1],
            &[2, 1031],
            &[17, 256],
            &[3, 2052],
            &[5, 1000],
            &[300, 8],
            &[2, 2056],
        ] {
            let x = cases.normal(shape);
            add_case(&mut cases, format!("{}{shape:?}", rule.name()), rule, x);
        }
        let halves = (0..256).map(|i| (i as f64 - 127.0) * 0.5).chain([if rule == Rule::Narrow {
            127.0
        } else {
            127.5
        }]);
        let x = Tensor::new([257], crate::tensor::Data::F64(halves.collect()))
            .expect("a row and its scale of one");
        add_case(&mut cases, format!("{} halves", rule.name()), rule, x);
    }
    for cols in [5, 8] {
        let mut x = cases.normal([6, cols]);
        let rows = x.real_mut::<f64>();
        rows[..cols].fill(0.0);
        rows[cols..2 * cols].fill(1e-40);
        (rows[2 * cols + 1], rows[3 * cols], rows[4 * cols + 2]) =
            (f64::NAN, f64::INFINITY, f64::NEG_INFINITY);
        add_case(&mut cases, format!("odd rows of {cols}"), Rule::Narrow, x);
    }
    cases
}

fn add_case(cases: &mut Cases, label: String, rule: Rule, x: Tensor) {
    let ties = move |inputs: &[Tensor]| ties(&inputs[0], rule);
    cases.add(label, QuantizeRows { rule }, vec![x]).no_gradient().either_step_at(ties);
}

/// Rounding errors of `x / s` in f32 stay below this many steps.
const NEAR: f64 = 1e-4;

/// Which elements lie so near the middle between two codes that rounding errors decide.
pub(super) fn ties(x: &Tensor, rule: Rule) -> Vec<bool> {
    let divisor = rule.divisor() as f64;
    let row = |x: &[f64]| {
        let largest = rows::largest_of(&x.iter().map(|x| x.abs()).collect::<Vec<_>>());
        x.iter().map(|x| ((x / largest * divisor).abs().fract() - 0.5).abs() < NEAR).collect::<Vec<_>>()
    };
    x.to_f64().chunks(x.shape.last()).flat_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on_host(x: &[f32], rule: Rule) -> (Vec<i8>, f32) {
        let (mut q, mut s) = (vec![0; x.len()], [0.0]);
        quantize(x, &mut q, &mut s, x.len(), rule);
        (q, s[0])
    }

    #[test]
    fn halves_are_rounded_to_even() {
        let x = [127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5];
        let (q, s) = on_host(&x, Rule::Narrow);
        assert_eq!((s, q), (1.0, vec![127, 0, 2, 2, 0, -2, -2, 126]));
    }

    #[test]
    fn the_wide_rule_reaches_the_lowest_code_and_clamps_the_highest() {
        let (q, s) = on_host(&[-127.5, 127.5, 127.4, 1.0], Rule::Wide);
        assert_eq!((s, q), (1.0, vec![-128, 127, 127, 1]));
    }

    #[test]
    fn a_row_of_nothing_and_a_row_with_what_is_no_number_are_told_apart() {
        for x in [[0.0, -0.0], [1e-40, 0.0]] {
            assert_eq!(on_host(&x, Rule::Narrow), (vec![0, 0], 0.0));
        }
        for x in [[f32::NAN, 1.0], [1.0, f32::INFINITY], [f32::NEG_INFINITY, f32::NAN]] {
            let (q, s) = on_host(&x, Rule::Narrow);
            assert!(s.is_nan() && q == [0, 0]);
        }
    }
}
