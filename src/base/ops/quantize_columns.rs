//! Symmetric 8-bit quantisation by columns, turned: `q[c, r]` is the code of `x[r, c]`, and each column of x has a scale.
//!
//! What [`super::quantize_rows`] gives for the transpose of x, without that transpose ever being made: the operand that a product
//! of codes sums over the rows of x, such as a weight stored [in, out], or activations for the gradient of a weight.

use super::launch::{Bind, Caps, Kernel, Launch, Variant};
use super::quantize_rows::{QuantizeRows, Rule};
use super::{Cases, Cost, Emit, Error, Operator, Result, Site, Value, expect_float, expect_inputs, rows};
use crate::ops::fast::widest;
use crate::tensor::{DType, Data, Shape, Tensor, Type, View, ViewMut};
use rayon::prelude::*;
use std::sync::Arc;

/// Columns that a thread of the host turns at a time.
const COLUMNS: usize = 32;
/// Rows whose codes are turned while they are near.
const ROWS: usize = 64;
/// Rows of x that one invocation of the search for the largest magnitudes walks.
const PART: usize = 64;
/// Side of the square that a workgroup turns.
const TILE: usize = 32;

/// Codes and scales of the columns of a tensor. Input: x [.., C], of R rows; outputs: q [C, R] as i8 and s `[C]`.
#[derive(Clone, Debug)]
pub struct QuantizeColumns {
    /// Scale and codes.
    pub rule: Rule,
}

impl Operator for QuantizeColumns {
    fn name(&self) -> &'static str {
        "quantize_columns"
    }

    fn settings(&self) -> String {
        QuantizeRows { rule: self.rule }.settings()
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        let [x] = expect_inputs(self.name(), inputs)?;
        expect_float(self.name(), "x", x)?;
        rows::expect_rows(self.name(), "x", x)?;
        let (rows, cols) = (x.shape.rows(), x.shape.last());
        if rows == 0 {
            let expected = "at least one row".to_string();
            return Err(Error::Shape { op: self.name(), input: "x", expected, got: x.shape.clone() });
        }
        Ok(vec![Type::new(DType::I8, [cols, rows]), rows::statistic(x, [cols])])
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        let (rows, cols) = (inputs[0].shape.rows(), inputs[0].shape.last());
        let turned = match &inputs[0].data {
            Data::F64(x) => Data::F64(turn(x, rows, cols)),
            Data::F32(x) => Data::F32(turn(x, rows, cols)),
            other => panic!("the signature takes floats, not {}", other.dtype()),
        };
        let turned = Tensor { shape: Shape::from([cols, rows]), data: turned };
        QuantizeRows { rule: self.rule }.reference(&[&turned], outputs);
    }

    fn host(&self, inputs: &[View], outputs: &mut [ViewMut]) {
        let (rows, cols) = (inputs[0].shape.rows(), inputs[0].shape.last());
        let x = inputs[0].floats();
        let [q, s] = outputs else { unreachable!("codes and scales") };
        let pieces = q.as_i8().par_chunks_mut(COLUMNS * rows).zip(s.floats().par_chunks_mut(COLUMNS));
        pieces.enumerate().for_each(|(piece, (q, s))| {
            quantize(Columns { x, rows, cols, first: piece * COLUMNS }, q, s, self.rule);
        });
    }

    fn gradient(&self, _: &mut dyn Emit, _: &Site, _: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        let hint = "codes are whole numbers: train through a fake quantisation instead";
        Err(Error::NoGradient { op: self.name(), hint })
    }

    fn launch(&self, inputs: &[Type], _outputs: &[Type], caps: &Caps) -> Vec<Variant> {
        let device = OnDevice { rule: self.rule, x: &inputs[0] };
        if !device.rows().is_multiple_of(4) {
            return vec![device.apart(device.plain())];
        }
        let mut variants = vec![device.lane()];
        if caps.max_invocations as usize >= TILE * TILE / 4 {
            variants.push(device.apart(device.tile()));
        }
        if !caps.is_cpu {
            variants.reverse();
        }
        variants
    }

    fn cost(&self, inputs: &[Type], outputs: &[Type]) -> Cost {
        let bytes = inputs.iter().chain(outputs).map(|t| t.size_bytes() as f64).sum();
        Cost { flops: 4.0 * inputs[0].shape.count() as f64, bytes }
    }
}

fn turn<T: Copy>(x: &[T], rows: usize, cols: usize) -> Vec<T> {
    (0..cols).flat_map(|c| (0..rows).map(move |r| x[r * cols + c])).collect()
}

/// Kernels for one x.
struct OnDevice<'a> {
    rule: Rule,
    x: &'a Type,
}

impl OnDevice<'_> {
    fn rows(&self) -> usize {
        self.x.shape.rows()
    }

    fn cols(&self) -> usize {
        self.x.shape.last()
    }

    fn launch(&self, kernel: Kernel, bindings: impl Into<Vec<Bind>>, groups: usize) -> Launch {
        let kernel = kernel.retype("Elem", self.x.dtype);
        Launch::new(kernel, bindings, groups).param("rows", self.rows()).param("cols", self.cols())
    }

    fn bounded(&self, launch: Launch) -> Launch {
        let [lowest, highest] = self.rule.bounds();
        launch.param("lowest", lowest).param("highest", highest)
    }

    /// One invocation for each column, scale and codes in one dispatch.
    fn lane(&self) -> Variant {
        let bindings = [Bind::Input(0), Bind::Output(0), Bind::Output(1)];
        let launch = self.launch(Kernel::new("quantize_columns"), bindings, self.cols().div_ceil(8));
        let launch = self.bounded(launch).param("divisor", self.rule.divisor());
        Variant::single("quantize_columns_lane", launch)
    }

    /// The largest magnitudes of parts of the columns first, then scales, then codes.
    fn apart(&self, (name, codes): (&str, Launch)) -> Variant {
        let (cols, parts) = (self.cols(), self.rows().div_ceil(PART));
        let bindings = [Bind::Input(0), Bind::Scratch(0)];
        let largest = self.launch(Kernel::new("column_largest"), bindings, parts * cols.div_ceil(64));
        let bindings = [Bind::Scratch(0), Bind::Output(1)];
        let scales = Launch::new(Kernel::new("column_scales"), bindings, cols.div_ceil(64));
        let scales = scales.param("cols", cols).param("parts", parts).param("divisor", self.rule.divisor());
        let scratch = vec![(parts * cols * 4) as u64];
        Variant { name: name.into(), launches: vec![largest.param("part", PART), scales, codes], scratch }
    }

    fn tile(&self) -> (&'static str, Launch) {
        let tiles = self.cols().div_ceil(TILE) * self.rows().div_ceil(TILE);
        let bindings = [Bind::Input(0), Bind::Output(1), Bind::Output(0)];
        let launch = self.launch(Kernel::new("column_codes").entry("tile"), bindings, tiles);
        ("quantize_columns_tile", self.bounded(launch))
    }

    fn plain(&self) -> (&'static str, Launch) {
        let words = (self.rows() * self.cols()).div_ceil(4);
        let bindings = [Bind::Input(0), Bind::Output(1), Bind::Output(0)];
        let launch = self.launch(Kernel::new("column_codes").entry("word"), bindings, words.div_ceil(64));
        ("quantize_columns_word", self.bounded(launch))
    }
}

/// Some neighbouring columns of x.
#[derive(Clone, Copy)]
struct Columns<'a> {
    x: &'a [f32],
    rows: usize,
    cols: usize,
    first: usize,
}

impl<'a> Columns<'a> {
    /// Their elements of each row.
    fn of_rows(self, count: usize) -> impl Iterator<Item = &'a [f32]> {
        self.x.chunks(self.cols).map(move |row| &row[self.first..self.first + count])
    }
}

/// Columns on this thread: q is [columns, rows].
fn quantize(columns: Columns, q: &mut [i8], s: &mut [f32], rule: Rule) {
    let (rows, count) = (columns.rows, s.len());
    let mut largest = [0u32; COLUMNS];
    columns.of_rows(count).for_each(|row| raise(&mut largest[..count], row));
    let mut factors = [0.0; COLUMNS];
    for ((s, factor), &bits) in s.iter_mut().zip(&mut factors).zip(&largest) {
        let largest = f32::from_bits(bits);
        let scale = largest / rule.divisor();
        *s = if !largest.is_finite() {
            f32::NAN
        } else if scale < f32::MIN_POSITIVE {
            0.0
        } else {
            *factor = 1.0 / scale;
            scale
        };
    }
    let mut square = [0i8; COLUMNS * ROWS];
    let mut all = columns.of_rows(count);
    for first in (0..rows).step_by(ROWS) {
        let height = ROWS.min(rows - first);
        for (row, codes) in all.by_ref().take(height).zip(square.chunks_mut(COLUMNS)) {
            round_to_codes(row, &factors[..count], &mut codes[..count], rule.bounds());
        }
        for (c, q) in q.chunks_mut(rows).enumerate() {
            q[first..first + height]
                .iter_mut()
                .zip(square[c..].iter().step_by(COLUMNS))
                .for_each(|(q, &code)| *q = code);
        }
    }
}

widest! {
    /// Bits of magnitudes grow with them, and what is not finite is the largest.
    fn raise(largest: &mut [u32], row: &[f32]) {
        largest.iter_mut().zip(row).for_each(|(largest, x)| *largest = (*largest).max(x.to_bits() & 0x7fff_ffff));
    }
}

/// Added to a small number, it leaves no room for a fraction: the sum is rounded half to even, and its lowest byte is the code.
const WHOLE: f32 = 12_582_912.0;

widest! {
    /// q = x * factor, clamped and rounded; zero for a factor of zero, whatever x.
    fn round_to_codes(x: &[f32], factors: &[f32], q: &mut [i8], bounds: [f32; 2]) {
        for ((q, x), &factor) in q.iter_mut().zip(x).zip(factors) {
            // What is not finite meets only a factor of zero, and their product would be NaN.
            let scaled = if factor == 0.0 { 0.0 } else { x * factor };
            *q = (scaled.max(bounds[0]).min(bounds[1]) + WHOLE).to_bits() as i8;
        }
    }
}

/// Builder of [`QuantizeColumns`].
pub trait QuantizeColumnsEmit {
    /// Codes, turned, and scales of the columns of `x`.
    fn quantize_columns(&mut self, x: Value, rule: Rule) -> Result<[Value; 2]>;
}

impl<E: Emit + ?Sized> QuantizeColumnsEmit for E {
    fn quantize_columns(&mut self, x: Value, rule: Rule) -> Result<[Value; 2]> {
        let outputs = self.apply(Arc::new(QuantizeColumns { rule }), &[x])?;
        Ok([outputs[0], outputs[1]])
    }
}

/// One element, primes, fours, one past the tile, several parts; columns of zeros, of tiny numbers, and with NaN or an infinity.
pub fn cases() -> Cases {
    let mut cases = Cases::new("quantize_columns");
    for rule in [Rule::Narrow, Rule::Wide] {
        for shape in
            [&[1, 1][..], &[13, 7], &[2, 4, 33], &[68, 5], &[64, 64], &[132, 40], &[1030, 2], &[33, 96], &[5]]
        {
            let x = cases.normal(shape);
            add_case(&mut cases, format!("{rule:?} {shape:?}"), rule, x);
        }
    }
    for rows in [5, 8] {
        let mut x = cases.normal([rows, 6]);
        for row in x.real_mut::<f64>().chunks_mut(6) {
            (row[0], row[1]) = (0.0, 1e-40);
        }
        let elements = x.real_mut::<f64>();
        (elements[6 + 2], elements[3], elements[12 + 4]) = (f64::NAN, f64::INFINITY, f64::NEG_INFINITY);
        add_case(&mut cases, format!("odd columns of {rows}"), Rule::Narrow, x);
    }
    cases
}

fn add_case(cases: &mut Cases, label: String, rule: Rule, x: Tensor) {
    let ties = move |inputs: &[Tensor]| {
        let (rows, cols) = (inputs[0].shape.rows(), inputs[0].shape.last());
        let turned =
            Tensor { shape: [cols, rows].into(), data: Data::F64(turn(&inputs[0].to_f64(), rows, cols)) };
        super::quantize_rows::ties(&turned, rule)
    };
    cases.add(label, QuantizeColumns { rule }, vec![x]).no_gradient().either_step_at(ties);
}
