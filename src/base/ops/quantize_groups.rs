//! Weights to codes on the device: what the host's `encode` makes of a matrix, up to one step where rounding errors decide.
//!
//! `q = clamp(round(x / s) + z)` by groups of columns, or the number of the nearest normal float, packed as a [`Layout`] says; scales
//! and zeros come from [`LineScales`]. Kernels multiply by `1 / s`. A group with the scale 0 has codes of zeros, and so has one whose
//! scale is no number, as of a weight with NaN.

use super::coded::{Layout, Packing};
use super::fake_quantize::Sharing;
use super::fake_quantize::scales::{LineScales, Rule};
use super::launch::{Bind, Caps, Kernel, Launch, Variant, spread};
use super::matmul_coded::CodedMatrix;
use super::reshape::ReshapeEmit;
use super::{Cases, Cost, Emit, Error, Operator, Result, Site, Value, expect_shape, in_precision};
use crate::tensor::quant::{Grid, NORMAL_FLOAT, Rounding, Scale, Scheme, Share};
use crate::tensor::{Data, Real, Tensor, Type};
use std::fmt::Write;
use std::sync::Arc;

/// Codes of x [N, K] under scales and zeros [N, groups]. Inputs: x in f32, scales and, where the layout has offsets, zeros;
/// outputs: codes, and the offsets `-z * s`.
#[derive(Clone, Copy, Debug)]
pub struct QuantizeGroups {
    /// How the codes lie in memory.
    pub layout: Layout,
    /// The lowest and the highest code.
    pub codes: [i32; 2],
}

impl QuantizeGroups {
    /// The layout and the range of a scheme's codes for rows of so many columns. Refuses what the device has no kernel for.
    pub fn of(scheme: &Scheme, cols: usize) -> Result<Self> {
        let refuse = |setting, expected: &str, got: String| {
            Err(Error::Setting { op: "quantize_groups", setting, expected: expected.into(), got })
        };
        let wrong = |error: crate::tensor::quant::Error| Error::Setting {
            op: "quantize_groups",
            setting: "scheme",
            expected: "settings that fit together".into(),
            got: error.to_string(),
        };
        scheme.check().map_err(wrong)?;
        if scheme.share == Share::Tensor {
            return refuse("share", "rows or groups", "the whole tensor".into());
        }
        if scheme.double {
            return refuse(
                "scales",
                "scales of 32 bits: doubled ones are made on the host",
                "doubled".into(),
            );
        }
        if scheme.rounding != Rounding::Even {
            return refuse("rounding", "half to even", "half away from zero".into());
        }
        let within = |lowest: i32| scheme.lowest >= lowest && scheme.highest < lowest + 16;
        let (packing, lowest) = match [0, -8].into_iter().find(|&lowest| within(lowest)) {
            Some(lowest) => (Packing::Nibbles, lowest),
            None => (Packing::Bytes, i32::from(i8::MIN)),
        };
        let (grid, group, has_offsets) = (scheme.grid, scheme.group(cols), !scheme.is_symmetric());
        let layout = Layout { packing, grid, lowest, cols, group, has_offsets };
        Ok(QuantizeGroups { layout, codes: [scheme.lowest, scheme.highest] })
    }

    fn inputs(&self) -> usize {
        self.layout.inputs()
    }

    /// The code of a quotient.
    fn code(&self, quotient: f64, zero: f64, usable: bool) -> i32 {
        match self.layout.grid {
            Grid::NormalFloat if !usable => 7,
            Grid::NormalFloat => between().iter().filter(|&&x| quotient > f64::from(x)).count() as i32,
            Grid::Integers if !usable => zero as i32,
            Grid::Integers => {
                let [lowest, highest] = self.codes.map(f64::from);
                (quotient.round_ties_even() + zero).clamp(lowest, highest) as i32
            }
        }
    }

    fn compute<R: Real>(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        let Layout { cols, group, lowest, packing, .. } = self.layout;
        let (x, scales, groups) = (inputs[0].real::<R>(), inputs[1].real::<R>(), self.layout.groups());
        let zeros = self.layout.has_offsets.then(|| inputs[2].real::<R>());
        let zero = |place: usize| zeros.map_or(0.0, |zeros| zeros[place].wide());
        let code = |row: usize, at: usize| {
            let place = row * groups + at / group;
            let scale = scales[place];
            let usable = scale.wide() >= f32::MIN_POSITIVE.into() && scale.wide().is_finite();
            self.code((x[row * cols + at] / scale).wide(), zero(place), usable)
        };
        let (codes, offsets) = outputs.split_at_mut(1);
        match (&mut codes[0].data, packing) {
            (Data::I8(codes), Packing::Bytes) => {
                codes.iter_mut().enumerate().for_each(|(i, q)| *q = code(i / cols, i % cols) as i8);
            }
            (Data::U32(words), Packing::Nibbles) => {
                let stored = self.layout.stored_cols();
                for (i, word) in words.iter_mut().enumerate() {
                    let (row, first) = (i / stored, i % stored * 8);
                    *word = (first..cols.min(first + 8)).fold(0, |word, at| {
                        let e = at - first;
                        word | ((code(row, at) - lowest) as u32 & 15) << (e % 4 * 8 + e / 4 * 4)
                    });
                }
            }
            _ => unreachable!("the signature gives the codes their type"),
        }
        if let Some(offsets) = offsets.first_mut() {
            let each = offsets.real_mut::<R>().iter_mut().enumerate();
            each.for_each(|(i, offset)| *offset = R::of(-zero(i)) * scales[i]);
        }
    }
}

/// What lies in the middle between neighbouring normal floats.
fn between() -> [f32; 15] {
    std::array::from_fn(|i| (NORMAL_FLOAT[i] + NORMAL_FLOAT[i + 1]) / 2.0)
}

impl Operator for QuantizeGroups {
    fn name(&self) -> &'static str {
        "quantize_groups"
    }

    fn settings(&self) -> String {
        format!("{} codes={}..={}", self.layout.describe(), self.codes[0], self.codes[1])
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        let op = self.name();
        if inputs.len() != self.inputs() {
            return Err(Error::InputCount { op, expected: self.inputs(), got: inputs.len() });
        }
        let x = &inputs[0];
        if x.shape.len() != 2 || x.shape[0] == 0 || x.shape[1] != self.layout.cols {
            let expected = format!("[rows, {}]", self.layout.cols);
            return Err(Error::Shape { op, input: "x", expected, got: x.shape.clone() });
        }
        super::dequantize_rows::expect_scales(op, "x", x, &x.shape)?;
        let mut outputs = self.layout.types(x.shape[0]);
        self.layout.expect(op, &outputs)?;
        let scales = inputs[1].with_shape([x.shape[0], self.layout.groups()]);
        for (name, got) in ["scales", "zeros"].into_iter().zip(&inputs[1..]) {
            super::dequantize_rows::expect_scales(op, name, got, &scales.shape)?;
            expect_shape(op, name, got, &scales.shape)?;
        }
        outputs.remove(1);
        outputs[1..].iter_mut().for_each(|offsets| *offsets = scales.clone());
        Ok(outputs)
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        in_precision!(inputs, outputs, R, self.compute::<R>(inputs, outputs));
    }

    fn gradient(&self, _: &mut dyn Emit, _: &Site, _: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        let hint = "codes are whole numbers: train through a fake quantisation instead";
        Err(Error::NoGradient { op: self.name(), hint })
    }

    fn launch(&self, inputs: &[Type], outputs: &[Type], _caps: &Caps) -> Vec<Variant> {
        let words = outputs[0].size_bytes().div_ceil(4) as usize;
        let groups = inputs[1].shape.count();
        let mut bindings: Vec<Bind> = (0..self.inputs()).map(Bind::Input).collect();
        bindings.extend((0..outputs.len()).map(Bind::Output));
        let kernel = Kernel::new("quantize_groups").paste("CODES", self.text());
        let launch = Launch::new(kernel, bindings, spread(words.max(groups)))
            .param("words", words)
            .param("count", inputs[0].shape.count())
            .param("cols", self.layout.cols)
            .param("groups", groups);
        vec![Variant::single(self.name(), launch)]
    }

    fn cost(&self, inputs: &[Type], outputs: &[Type]) -> Cost {
        let bytes = inputs.iter().chain(outputs).map(|t| t.size_bytes() as f64).sum();
        Cost { flops: 3.0 * inputs[0].shape.count() as f64, bytes }
    }
}

impl QuantizeGroups {
    /// Bindings and how a word of codes is made.
    fn text(&self) -> String {
        let Layout { packing, grid, lowest, cols, group, has_offsets } = self.layout;
        let mut text = String::new();
        let mut declare = |binding: usize, access: &str, name: &str, element: &str| {
            let _ = writeln!(
                text,
                "@group(0) @binding({binding}) var<storage, {access}> {name}: array<{element}>;"
            );
        };
        declare(0, "read", "x", "f32");
        declare(1, "read", "scales", "f32");
        let codes = self.inputs();
        if has_offsets {
            declare(2, "read", "zeros", "f32");
            declare(codes + 1, "read_write", "offsets", "f32");
        }
        declare(codes, "read_write", "codes", "u32");
        let (zero, offset) = match has_offsets {
            true => ("zeros[place]", "offsets[i] = -zeros[i] * scales[i];"),
            false => ("0.0", ""),
        };
        let [low, high] = self.codes.map(|code| format!("{code}.0"));
        let rule = match grid {
            Grid::Integers => format!(
                "    if factor == 0.0 {{ return i32({zero}); }}\n    \
                 return i32(clamp(round(x[at] * factor) + {zero}, {low}, {high}));"
            ),
            Grid::NormalFloat => {
                let mut rule =
                    "    if factor == 0.0 { return 7; }\n    let y = x[at] * factor;\n    return 0"
                        .to_string();
                for x in between() {
                    let _ = write!(rule, "\n        + select(0, 1, y > {x:?})");
                }
                rule + ";"
            }
        };
        let groups = self.layout.groups();
        let (of_word, word) = match packing {
            // Rows may begin within a word: elements are counted through all of them.
            Packing::Bytes => (
                4,
                "word |= (u32(code_at(at / params.cols, at % params.cols)) & 255u) << (8u * e);".to_string(),
            ),
            Packing::Nibbles => {
                let words = cols.div_ceil(8);
                let code = format!("code_at(i / {words}u, i % {words}u * 8u + e)");
                (8, format!("word |= (u32({code} - {lowest}) & 15u) << (e % 4u * 8u + e / 4u * 4u);"))
            }
        };
        let live = match packing {
            Packing::Bytes => "at < params.count".to_string(),
            Packing::Nibbles => format!("i % {}u * 8u + e < params.cols", cols.div_ceil(8)),
        };
        let _ = writeln!(
            text,
            "fn code_at(row: u32, column: u32) -> i32 {{
    let place = row * {groups}u + column / {group}u;
    let at = row * params.cols + column;
    let factor = factor_of(scales[place]);
{rule}
}}
fn word_at(i: u32) -> u32 {{
    var word = 0u;
    for (var e = 0u; e < {of_word}u; e += 1u) {{
        let at = i * {of_word}u + e;
        if {live} {{ {word} }}
    }}
    return word;
}}
fn end_group(i: u32) {{ {offset} }}"
        );
        text
    }
}

/// Builder of a matrix of codes on the device.
pub trait QuantizeGroupsEmit {
    /// Codes of `x` [N, K] by a scheme with a scale for each row or group.
    fn quantize_groups(&mut self, x: Value, scheme: &Scheme) -> Result<CodedMatrix>;
}

impl<E: Emit + ?Sized> QuantizeGroupsEmit for E {
    fn quantize_groups(&mut self, x: Value, scheme: &Scheme) -> Result<CodedMatrix> {
        let shape = self.type_of(x).shape;
        let op = QuantizeGroups::of(scheme, shape.last())?;
        let layout = op.layout;
        let sharing = if layout.groups() == 1 { Sharing::Rows } else { Sharing::RowGroups(layout.group) };
        let rule = match scheme.scale {
            Scale::Largest { divisor } => Rule::Largest { divisor },
            Scale::Span => {
                let steps = (scheme.highest - scheme.lowest) as f32;
                Rule::Span { steps, lowest: scheme.lowest as f32, with_zero: true }
            }
        };
        let mut inputs = vec![x];
        for found in self.apply(Arc::new(LineScales { sharing, rule }), &[x])? {
            inputs.push(self.reshape(found, [shape[0], layout.groups()].into())?);
        }
        let scales = inputs[1];
        let made = self.apply(Arc::new(op), &inputs)?;
        Ok(CodedMatrix { layout, codes: made[0], scales, offsets: made.get(1).copied() })
    }
}

/// Both packings, whole numbers around zero and from a zero point, normal floats; columns that end within a word and a group; a scale
/// of zero.
pub fn cases() -> Cases {
    let mut cases = Cases::new("quantize_groups");
    for [rows, cols, group] in [[1, 1, 1], [3, 13, 4], [5, 64, 32], [7, 36, 36], [67, 24, 8]] {
        for scheme in [
            Scheme::symmetric(8, Share::Group(group)),
            Scheme::symmetric(4, Share::Group(group)),
            Scheme::symmetric(3, Share::Group(group)),
            Scheme::asymmetric(8, Share::Group(group)),
            Scheme::asymmetric(4, Share::Group(group)),
            Scheme::normal_float(group, false),
        ] {
            let op = QuantizeGroups::of(&scheme, cols).expect("a scheme for devices");
            let groups = op.layout.groups();
            // Scales of powers of two and elements a fourth of a step from a code: rounding errors decide nothing.
            let picks = cases.codes([rows, cols]);
            let scales: Vec<f32> = (0..rows * groups)
                .map(|i| if i % 7 == 6 { 0.0 } else { 0.5f32.powi(i as i32 % 5) })
                .collect();
            let spread = if scheme.bits() == 8 { 1.0 } else { 0.0625 };
            let number = |(i, &pick): (usize, &i8)| {
                let scale = scales[i / cols * groups + i % cols / op.layout.group];
                match op.layout.grid {
                    Grid::Integers => ((f32::from(pick) * spread).floor() + 0.25) * scale,
                    Grid::NormalFloat => NORMAL_FLOAT[pick as u8 as usize & 15] * 1.01 * scale,
                }
            };
            let x = picks.as_i8().iter().enumerate().map(number).collect();
            let mut inputs = vec![Tensor::f32([rows, cols], x), Tensor::f32([rows, groups], scales.clone())];
            if op.layout.has_offsets {
                let zeros = (0..rows * groups).map(|i| (scheme.lowest + i as i32 % 9) as f32).collect();
                inputs.push(Tensor::f32([rows, groups], zeros));
            }
            let label = format!("{} of {rows} rows", op.settings());
            cases.add(label, op, inputs).no_gradient();
        }
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::quant::encode;
    use crate::tensor::random::Stream;

    /// Computes what is written down, at once.
    struct Now(Vec<Tensor>);

    impl Emit for Now {
        fn apply(&mut self, op: Arc<dyn Operator>, inputs: &[Value]) -> Result<Vec<Value>> {
            let given: Vec<&Tensor> = inputs.iter().map(|v| &self.0[v.index()]).collect();
            let types: Vec<Type> = given.iter().map(|t| t.host_type()).collect();
            let mut outputs: Vec<Tensor> = op.signature(&types)?.iter().map(Tensor::zeros).collect();
            op.reference(&given, &mut outputs);
            let first = self.0.len() as u32;
            self.0.extend(outputs);
            Ok((first..self.0.len() as u32).map(Value).collect())
        }

        fn type_of(&self, value: Value) -> Type {
            self.0[value.index()].host_type()
        }

        fn constant(&mut self, tensor: Tensor) -> Value {
            self.0.push(tensor);
            Value(self.0.len() as u32 - 1)
        }
    }

    #[test]
    fn the_operators_give_the_codes_that_the_host_gives() {
        let (rows, cols) = (9, 70);
        let mut random = Stream::new(&[5]);
        let x: Vec<f32> = (0..rows * cols).map(|_| random.normal() as f32).collect();
        for scheme in [
            Scheme::symmetric(4, Share::Group(32)),
            Scheme::wide(4, Share::Row),
            Scheme::symmetric(8, Share::Row),
            Scheme::asymmetric(4, Share::Group(16)),
            Scheme::asymmetric(8, Share::Row),
            Scheme::normal_float(64, false),
        ] {
            let coded = encode(&x, rows, cols, &scheme).unwrap();
            let layout = Layout::of(&coded);
            let mut now = Now(vec![Tensor::f32([rows, cols], x.clone())]);
            let made = now.quantize_groups(Value(0), &scheme).unwrap();
            assert_eq!(made.layout, layout);
            for (value, expected) in made.values().into_iter().zip(layout.pack(&coded)) {
                assert_eq!(now.0[value.index()], expected, "{scheme:?}");
            }
        }
    }

    #[test]
    fn schemes_without_a_kernel_are_refused() {
        let plain = Scheme::symmetric(4, Share::Row);
        for scheme in [
            Scheme { share: Share::Tensor, ..plain },
            Scheme { double: true, ..plain },
            Scheme { rounding: Rounding::Away, ..plain },
            Scheme { share: Share::Group(0), ..plain },
        ] {
            assert!(QuantizeGroups::of(&scheme, 16).is_err());
        }
    }
}
