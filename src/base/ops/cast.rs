//! The same numbers in another float storage.

use super::launch::{Bind, Caps, Kernel, Launch, Variant, spread};
use super::slice::wide;
use super::{Cases, Emit, Error, Operator, Result, Site, Value, expect_any_float, expect_inputs, in_type};
use crate::tensor::{DType, Data, Tensor, Type};
use std::sync::Arc;

/// Stores floats as another float type, rounded to nearest.
#[derive(Clone, Debug)]
pub struct Cast {
    /// Storage of the output.
    pub dtype: DType,
}

impl Operator for Cast {
    fn name(&self) -> &'static str {
        "cast"
    }

    fn settings(&self) -> String {
        format!("dtype={}", self.dtype)
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        let [x] = expect_inputs("cast", inputs)?;
        expect_any_float("cast", "x", x)?;
        if !self.dtype.is_float() {
            let (expected, got) = ("a float type".to_string(), self.dtype.to_string());
            return Err(Error::Setting { op: "cast", setting: "dtype", expected, got });
        }
        Ok(vec![Type::new(self.dtype, x.shape.clone())])
    }

    /// Both sides are held in the host's precision; storing as f16 or bf16 rounds, unless the referee computes in f64.
    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        in_type!(inputs[0], outputs[0], |x, y| y.copy_from_slice(x));
        if let Data::F32(y) = &mut outputs[0].data {
            y.iter_mut().for_each(|y| *y = self.dtype.round(*y));
        }
    }

    /// dx = up in the storage of x
    fn gradient(&self, emit: &mut dyn Emit, site: &Site, up: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        let Some(up) = up[0] else { return Ok(vec![None]) };
        let dtype = emit.type_of(site.input(0)).dtype;
        Ok(vec![Some(emit.cast(up, dtype)?)])
    }

    fn launch(&self, inputs: &[Type], outputs: &[Type], caps: &Caps) -> Vec<Variant> {
        let types = [inputs[0].dtype, outputs[0].dtype];
        let count = inputs[0].shape.count();
        let named = types.iter().all(|&t| t == DType::F32 || (t == DType::F16 && caps.f16));
        let halves = types.iter().any(|t| t.is_half());
        let own = named.then(|| elements(types, count));
        own.into_iter().chain(halves.then(|| words(types, count))).collect()
    }

    fn with_storage(&self, dtype: DType) -> Option<Arc<dyn Operator>> {
        Some(Arc::new(Cast { dtype }))
    }
}

/// The kernel for types that WGSL can name here.
fn elements([from, to]: [DType; 2], count: usize) -> Variant {
    let width = wide(&[count]);
    let turns = count / width;
    let types = match width {
        4 => "alias PackIn = vec4<In>;\nalias PackOut = vec4<Out>;",
        _ => "alias PackIn = In;\nalias PackOut = Out;",
    };
    let kernel = Kernel::new("cast").retype("In", from).retype("Out", to).paste("WIDTH", types);
    let launch = Launch::new(kernel, [Bind::Input(0), Bind::Output(0)], spread(turns)).param("count", turns);
    Variant::single(if width == 4 { "cast_wide" } else { "cast" }, launch)
}

/// The kernel that moves halves as 32-bit words: it needs no 16-bit arithmetic and rounds alike everywhere.
fn words([from, to]: [DType; 2], count: usize) -> Variant {
    let width = if count.is_multiple_of(8) { 8 } else { 2 };
    let turns = count.div_ceil(width);
    let kernel = Kernel::new("cast_packed")
        .paste("BINDINGS", bindings([from, to], width))
        .paste("MOVE", load(from, width) + &store(to, width));
    let launch = Launch::new(kernel, [Bind::Input(0), Bind::Output(0)], spread(turns));
    let launch = launch.param("count", turns).param("elements", count);
    Variant::single(if width == 8 { "cast_packed_wide" } else { "cast_packed" }, launch)
}

/// Declarations of `x` and `y`, a turn's elements in vectors where there are eight.
fn bindings(types: [DType; 2], width: usize) -> String {
    let array = |dtype: DType| match (dtype.is_half(), width) {
        (true, 8) => "array<vec4<u32>>",
        (true, _) => "array<u32>",
        (false, 8) => "array<vec4<f32>>",
        (false, _) => "array<f32>",
    };
    let [x, y] = types.map(array);
    format!(
        "@group(0) @binding(0) var<storage, read> x: {x};\n@group(0) @binding(1) var<storage, read_write> y: {y};\n"
    )
}

/// Lines that read the elements of turn `i` as `e0`, `e1` ..
fn load(from: DType, width: usize) -> String {
    let word = |name: &str, low: usize| match from {
        DType::F16 => format!(
            "let p{low} = unpack2x16float({name});\nlet e{low} = p{low}.x;\nlet e{} = p{low}.y;\n",
            low + 1
        ),
        _ => format!(
            "let e{low} = bitcast<f32>({name} << 16u);\nlet e{} = bitcast<f32>({name} & 0xffff0000u);\n",
            low + 1
        ),
    };
    let parts = ["x", "y", "z", "w"];
    match (from.is_half(), width) {
        (true, 8) => {
            let words: String = (0..4).map(|i| word(&format!("four.{}", parts[i]), 2 * i)).collect();
            format!("let four = x[i];\n{words}")
        }
        (true, _) => format!("let pair = x[i];\n{}", word("pair", 0)),
        (false, 8) => {
            (0..8).map(|e| format!("let e{e} = x[i * 2u + {}u].{};\n", e / 4, parts[e % 4])).collect()
        }
        (false, _) => {
            "let e0 = x[i * 2u];\nvar e1 = 0.0;\nif i * 2u + 1u < params.elements { e1 = x[i * 2u + 1u]; }\n"
                .into()
        }
    }
}

/// Lines that write them.
fn store(to: DType, width: usize) -> String {
    let bits = if to == DType::F16 { "f16_bits" } else { "bf16_bits" };
    let word = |low: usize, high: &str| format!("{bits}(e{low}) | ({bits}({high}) << 16u)");
    match (to.is_half(), width) {
        (true, 8) => {
            let words: Vec<String> = (0..4).map(|i| word(2 * i, &format!("e{}", 2 * i + 1))).collect();
            format!("y[i] = vec4<u32>({});\n", words.join(", "))
        }
        (true, _) => {
            let high = "select(0.0, e1, i * 2u + 1u < params.elements)";
            format!("y[i] = {};\n", word(0, high))
        }
        (false, 8) => {
            "y[i * 2u] = vec4<f32>(e0, e1, e2, e3);\ny[i * 2u + 1u] = vec4<f32>(e4, e5, e6, e7);\n".into()
        }
        (false, _) => "y[i * 2u] = e0;\nif i * 2u + 1u < params.elements { y[i * 2u + 1u] = e1; }\n".into(),
    }
}

/// Builder of [`Cast`].
pub trait CastEmit {
    /// `x` in another float storage; nothing is recorded if it has it already.
    fn cast(&mut self, x: Value, dtype: DType) -> Result<Value>;
}

impl<E: Emit + ?Sized> CastEmit for E {
    fn cast(&mut self, x: Value, dtype: DType) -> Result<Value> {
        if self.type_of(x).dtype == dtype {
            return Ok(x);
        }
        self.apply_one(Arc::new(Cast { dtype }), &[x])
    }
}

/// One element, a prime, fours, eights; from the storage under test to each float.
pub fn cases() -> Cases {
    let mut cases = Cases::new("cast");
    for shape in [&[1][..], &[131], &[5, 16], &[3, 7], &[3, 4]] {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let x = cases.normal(shape);
            cases.add(format!("cast{shape:?} to {dtype}"), Cast { dtype }, vec![x]);
        }
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn storing_as_half_rounds_to_eleven_bits() {
        let x = Tensor::f32([3], vec![1.0 + 1.0 / 4096.0, 0.1, 70_000.0]);
        let mut y = [Tensor::zeros(&Type::f32([3]))];
        Cast { dtype: DType::F16 }.reference(&[&x], &mut y);
        assert_eq!(y[0].real::<f32>(), [1.0, 0.099_975_586, f32::INFINITY]);
    }

    #[test]
    fn whole_numbers_are_refused() {
        assert!(Cast { dtype: DType::F16 }.signature(&[Type::new(DType::U32, [2])]).is_err());
        assert!(Cast { dtype: DType::U32 }.signature(&[Type::f32([2])]).is_err());
    }
}
