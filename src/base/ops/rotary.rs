//! Rotary position embedding: pairs of elements turn by an angle that grows with the position.
//!
//! For pair (a, b) number i of a head at position p: `a' = a cos - b sin`, `b' = b cos + a sin`, with the angle
//! `p * base^(-2i / R)`. The angles come as tables made on the host in f64: in-kernel powers and sines lose digits at
//! large positions, and scaled forms of the embedding need no other kernel.

use super::launch::{Bind, Caps, Kernel, Launch, Variant, spread};
use super::ties::{Port, Tie, same};
use super::{
    Cases, Cost, Emit, Error, Operator, Result, Site, Value, expect_dtype, expect_float, expect_shape,
    in_precision,
};
use crate::tensor::{DType, Real, Tensor, Type};
use rayon::prelude::*;
use std::sync::Arc;

/// Which elements of a head turn together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairing {
    /// Element i with i + R/2, as in Llama and GPT-NeoX.
    Half,
    /// Element 2i with 2i + 1, as in GPT-J.
    Interleaved,
}

/// Where the positions come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Positions {
    /// Time t has position t + offset.
    From(usize),
    /// An input U32 [B, T]; positions past the table read its last row.
    Given,
}

/// Turns x [B, T, H, D] by tables cos and sin F32 [P, R/2]; elements past R in each head, and heads past `heads`, stay.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotary {
    /// How elements pair.
    pub pairing: Pairing,
    /// Heads that turn, from the first: of a packed projection those of queries and keys.
    pub heads: usize,
    /// Where the positions come from.
    pub positions: Positions,
    /// Turn back: the gradient.
    pub backwards: bool,
}

/// Tables of cos and sin, F32 [positions, R/2], for angles `position * base^(-2i / R)`.
pub fn tables(positions: usize, rotated: usize, base: f64) -> [Tensor; 2] {
    let pairs = rotated / 2;
    let rate = |i: usize| base.powf(-2.0 * i as f64 / rotated as f64);
    let rates: Vec<f64> = (0..pairs).map(rate).collect();
    tables_of(positions, &rates)
}

/// Tables for given angles per position, one per pair: for scaled embeddings.
pub fn tables_of(positions: usize, rates: &[f64]) -> [Tensor; 2] {
    let angles: Vec<f64> = (0..positions).flat_map(|p| rates.iter().map(move |r| p as f64 * r)).collect();
    let table = |f: fn(f64) -> f64| {
        Tensor::f32([positions, rates.len()], angles.iter().map(|&a| f(a) as f32).collect())
    };
    [table(f64::cos), table(f64::sin)]
}

impl Rotary {
    /// Turns every head by time.
    pub fn new(pairing: Pairing, heads: usize) -> Self {
        Rotary { pairing, heads, positions: Positions::From(0), backwards: false }
    }

    /// For pair `i` of `pairs`: its two elements.
    fn pair(&self, i: usize, pairs: usize) -> (usize, usize) {
        match self.pairing {
            Pairing::Half => (i, i + pairs),
            Pairing::Interleaved => (2 * i, 2 * i + 1),
        }
    }

    fn compute<R: Real>(&self, inputs: &[&Tensor], y: &mut Tensor) {
        let (x, cos, sin) = (inputs[0], inputs[1], inputs[2]);
        let [_, time, heads, size] = x.shape[..] else { unreachable!("the signature was checked") };
        let (rows, pairs) = (cos.shape[0], cos.shape[1]);
        let (x, cos, sin) = (x.real::<R>(), cos.real::<R>(), sin.real::<R>());
        let sign = R::of(if self.backwards { -1.0 } else { 1.0 });
        y.real_mut::<R>().par_chunks_mut(heads * size).zip(x.par_chunks(heads * size)).enumerate().for_each(
            |(at, (y, x))| {
                let position = match self.positions {
                    Positions::From(offset) => at % time + offset,
                    Positions::Given => inputs[3].as_u32()[at] as usize,
                };
                let row = position.min(rows - 1) * pairs;
                y.copy_from_slice(x);
                for head in y.chunks_mut(size).take(self.heads) {
                    for i in 0..pairs {
                        let (a, b) = self.pair(i, pairs);
                        let (c, s) = (cos[row + i], sin[row + i] * sign);
                        (head[a], head[b]) = (head[a] * c - head[b] * s, head[b] * c + head[a] * s);
                    }
                }
            },
        );
    }
}

impl Operator for Rotary {
    fn name(&self) -> &'static str {
        "rotary"
    }

    fn settings(&self) -> String {
        let pairing = if self.pairing == Pairing::Half { "half" } else { "interleaved" };
        let positions = match self.positions {
            Positions::From(offset) => format!("offset={offset}"),
            Positions::Given => "positions".into(),
        };
        let way = if self.backwards { ";backwards" } else { "" };
        format!("{pairing};heads={};{positions}{way}", self.heads)
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        let op = self.name();
        let expected = if self.positions == Positions::Given { 4 } else { 3 };
        if inputs.len() != expected {
            return Err(Error::InputCount { op, expected, got: inputs.len() });
        }
        let (x, cos, sin) = (&inputs[0], &inputs[1], &inputs[2]);
        expect_float(op, "x", x)?;
        let wrong = |input, expected: String, got: &Type| {
            Err(Error::Shape { op, input, expected, got: got.shape.clone() })
        };
        let &[batch, time, heads, size] = &x.shape[..] else {
            return wrong("x", "[batch, time, heads, head size]".into(), x);
        };
        for (name, table) in [("cos", cos), ("sin", sin)] {
            if table.dtype != DType::F64 {
                expect_dtype(op, name, table, DType::F32)?;
            }
        }
        let needed = match self.positions {
            Positions::From(offset) => offset + time,
            Positions::Given => 1,
        };
        match cos.shape[..] {
            [rows, pairs] if rows >= needed && pairs > 0 && 2 * pairs <= size => {}
            _ => return wrong("cos", format!("[at least {needed}, 1 to {}]", size / 2), cos),
        }
        expect_shape(op, "sin", sin, &cos.shape)?;
        if self.heads > heads {
            let (expected, got) = (format!("at most the {heads} heads of x"), self.heads.to_string());
            return Err(Error::Setting { op, setting: "heads", expected, got });
        }
        if self.positions == Positions::Given {
            expect_dtype(op, "positions", &inputs[3], DType::U32)?;
            expect_shape(op, "positions", &inputs[3], &[batch, time])?;
        }
        Ok(vec![x.clone()])
    }

    /// The tables: halves would lose the slow pairs at large positions.
    fn keeps_single(&self, input: usize) -> bool {
        input == 1 || input == 2
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        in_precision!(inputs, outputs, R, self.compute::<R>(inputs, &mut outputs[0]));
    }

    /// dx = up turned back; the tables are constants.
    fn gradient(&self, emit: &mut dyn Emit, site: &Site, up: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        let mut gradients = vec![None; site.inputs.len()];
        if let (Some(up), true) = (up[0], site.needs(0)) {
            let back = Rotary { backwards: !self.backwards, ..self.clone() };
            let inputs = [&[up], &site.inputs[1..]].concat();
            gradients[0] = Some(emit.apply_one(Arc::new(back), &inputs)?);
        }
        Ok(gradients)
    }

    /// Which channels of a head turn together is a matter of their number: none can go. Of heads that are not all turned, neither.
    fn ties(&self, inputs: &[Type], _outputs: &[Type]) -> Vec<Tie> {
        let shape = &inputs[0].shape;
        let axes = if shape[2] == self.heads { 0..3 } else { 0..2 };
        axes.map(|axis| same((Port::Input(0), axis), (Port::Output(0), axis), shape[axis])).collect()
    }

    fn launch(&self, inputs: &[Type], outputs: &[Type], _caps: &Caps) -> Vec<Variant> {
        let [_, time, heads, size] = inputs[0].shape[..] else { return vec![] };
        let (rows, pairs) = (inputs[1].shape[0], inputs[1].shape[1]);
        let given = self.positions == Positions::Given;
        // Parts of four elements must hold whole pairs, or lie on one side of the middle, or beyond the pairs.
        let four =
            size % 4 == 0 && if self.pairing == Pairing::Half { pairs % 4 == 0 } else { pairs % 2 == 0 };
        let position = if given {
            "@group(0) @binding(3) var<storage, read> positions: array<u32>; // [B, T]\n\
             fn position_of(at: u32) -> u32 { return positions[at]; }"
        } else {
            "fn position_of(at: u32) -> u32 { return at % params.time + params.offset; }"
        };
        let last = inputs.len();
        let bound =
            format!("@group(0) @binding({last}) var<storage, read_write> y: array<Word>; // [B, T, H, D]");
        let kernel = Kernel::new(if four { "rotary_four" } else { "rotary" })
            .retype("Elem", inputs[0].dtype)
            .constant("INTERLEAVED", u32::from(self.pairing == Pairing::Interleaved))
            .paste("POSITIONS", position)
            .paste("OUTPUT", bound);
        let offset = if let Positions::From(offset) = self.positions { offset } else { 0 };
        let mut bindings: Vec<Bind> = (0..last).map(Bind::Input).collect();
        bindings.push(Bind::Output(0));
        let count = outputs[0].shape.count() / if four { 4 } else { 1 };
        let launch = Launch::new(kernel, bindings, spread(count))
            .param("count", count)
            .param("time", time)
            .param("heads", heads)
            .param("size", size)
            .param("turning", self.heads)
            .param("pairs", pairs)
            .param("rows", rows)
            .param("offset", offset)
            .param("sign", if self.backwards { -1.0f32 } else { 1.0 });
        vec![Variant::single(if four { "rotary_four" } else { "rotary" }, launch)]
    }

    fn cost(&self, inputs: &[Type], outputs: &[Type]) -> Cost {
        let bytes = inputs.iter().chain(outputs).map(|t| t.size_bytes() as f64).sum();
        Cost { flops: 3.0 * outputs[0].shape.count() as f64, bytes }
    }
}

/// Builder of [`Rotary`].
pub trait RotaryEmit {
    /// Turns the first `how.heads` heads of x [B, T, H, D] by `tables` of cos and sin; `positions` U32 [B, T] replace time.
    fn rotary(
        &mut self,
        how: &Rotary,
        x: Value,
        tables: [Value; 2],
        positions: Option<Value>,
    ) -> Result<Value>;
}

impl<E: Emit + ?Sized> RotaryEmit for E {
    fn rotary(
        &mut self,
        how: &Rotary,
        x: Value,
        [cos, sin]: [Value; 2],
        positions: Option<Value>,
    ) -> Result<Value> {
        let mut op = how.clone();
        let mut inputs = vec![x, cos, sin];
        if let Some(positions) = positions {
            op.positions = Positions::Given;
            inputs.push(positions);
        }
        self.apply_one(Arc::new(op), &inputs)
    }
}

/// Both pairings, whole and partial, odd sizes, offsets, given positions, packed heads.
pub fn cases() -> Cases {
    let mut cases = Cases::new("rotary");
    for pairing in [Pairing::Half, Pairing::Interleaved] {
        // B, T, H, D, rotated elements, heads that turn, offset.
        for (label, [b, t, h, d, rotated, heads, offset]) in [
            ("one pair", [1, 1, 1, 2, 2, 1, 0]),
            ("whole heads", [2, 5, 3, 8, 8, 3, 0]),
            ("partial, odd size", [1, 7, 2, 13, 6, 2, 3]),
            ("partial by fours", [2, 3, 2, 20, 8, 2, 0]),
            ("pairs across parts", [1, 5, 1, 12, 12, 1, 1]),
            ("packed, some heads stay", [1, 33, 5, 16, 16, 3, 9]),
        ] {
            let [cos, sin] = tables(t + offset + 1, rotated, 10_000.0);
            let inputs = vec![cases.normal([b, t, h, d]), cos, sin];
            let op = Rotary { positions: Positions::From(offset), ..Rotary::new(pairing, heads) };
            cases.add(format!("{pairing:?}: {label}"), op, inputs);
        }
        for size in [6, 8] {
            let [cos, sin] = tables(11, size, 500.0);
            let inputs = vec![cases.normal([3, 5, 2, size]), cos, sin, cases.indices([3, 5], 11)];
            let op = Rotary { positions: Positions::Given, ..Rotary::new(pairing, 2) };
            cases.add(format!("{pairing:?}: positions given, head size {size}"), op, inputs);
        }
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turned(op: &Rotary, inputs: &[&Tensor]) -> Tensor {
        let mut y = [Tensor::zeros(&inputs[0].host_type())];
        op.reference(inputs, &mut y);
        let [y] = y;
        y
    }

    #[test]
    fn turning_back_gives_the_input_again() {
        let [cos, sin] = tables(9, 6, 10_000.0);
        let x = Cases::new("rotary back").normal([2, 9, 3, 8]).to_precision(DType::F32);
        for pairing in [Pairing::Half, Pairing::Interleaved] {
            let op = Rotary::new(pairing, 2);
            let forth = turned(&op, &[&x, &cos, &sin]);
            let back = turned(&Rotary { backwards: true, ..op }, &[&forth, &cos, &sin]);
            let moved = |y: &Tensor| {
                let pairs = y.to_f64().into_iter().zip(x.to_f64());
                pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
            };
            assert!(moved(&forth) > 0.1 && moved(&back) < 1e-5, "{} {}", moved(&forth), moved(&back));
        }
    }

    #[test]
    fn scores_depend_on_the_distance_of_positions_alone() {
        let [cos, sin] = tables(40, 8, 10_000.0);
        let q = Tensor::f32([1, 1, 1, 8], vec![0.3, -1.0, 0.7, 0.2, 1.1, -0.4, 0.5, 0.9]);
        let k = Tensor::f32([1, 1, 1, 8], vec![-0.2, 0.6, 1.3, -0.8, 0.1, 0.4, -1.2, 0.7]);
        let score = |pairing, at_q, at_k| {
            let at = |offset, x: &Tensor| {
                let op = Rotary { positions: Positions::From(offset), ..Rotary::new(pairing, 1) };
                turned(&op, &[x, &cos, &sin]).to_f64()
            };
            at(at_q, &q).iter().zip(at(at_k, &k)).map(|(a, b)| a * b).sum::<f64>()
        };
        for pairing in [Pairing::Half, Pairing::Interleaved] {
            assert!((score(pairing, 7, 3) - score(pairing, 39, 35)).abs() < 1e-6);
            assert!((score(pairing, 7, 3) - score(pairing, 7, 7)).abs() > 1e-2);
        }
    }
}
