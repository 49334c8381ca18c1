//! The table of scalar functions: one row each, with shader text, host closures and derivative.
//!
//! Shader text is written over the type `V`, which stands for `f32` or `vec4<f32>`; `$a $b $c` are the arguments, `$k` the
//! row's constant. Host text is written once and instantiated for f32 and f64.

use super::super::{Emit, Result, Value};
use super::PointwiseEmit;
use crate::ops::fast::{math, widest};
use crate::tensor::Real;

/// What a derivative sees: the arguments, the output, the upstream gradient and the row's constant.
pub struct Slope<'a> {
    /// Arguments of the function.
    pub x: &'a [Value],
    /// Its output.
    pub y: Value,
    /// Gradient of the output.
    pub up: Value,
    /// The row's constant.
    pub k: f32,
}

type Derivative = fn(&mut dyn Emit, &Slope, usize) -> Result<Option<Value>>;

/// A row: one scalar function.
pub struct Function {
    /// Name as in the text form.
    pub name: &'static str,
    /// Number of arguments.
    pub arity: usize,
    /// True if the row takes a constant.
    pub has_constant: bool,
    /// Shader expression.
    pub wgsl: &'static str,
    pub(super) single: fn(&[&[f32]], f32, &mut [f32]),
    pub(super) double: fn(&[&[f64]], f32, &mut [f64]),
    /// As `single`, in vector instructions and with the fast functions.
    pub(super) fast: fn(&[&[f32]], f32, &mut [f32]),
    /// Gradient with respect to argument `i`, or `None` for the whole row where it has no derivative to offer.
    pub derivative: Option<Derivative>,
}

impl std::fmt::Debug for Function {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// The row of that name. Names are ours, so a missing one is a bug.
pub fn function(name: &str) -> &'static Function {
    FUNCTIONS.iter().find(|f| f.name == name).unwrap_or_else(|| panic!("no pointwise function `{name}`"))
}

macro_rules! host {
    ($real:ident, 1, |$a:ident, $k:ident| $body:expr) => {
        |x: &[&[$real]], k: f32, y: &mut [$real]| {
            let $k = k as $real;
            for (y, &$a) in y.iter_mut().zip(x[0]) {
                *y = $body;
            }
            let _ = $k;
        }
    };
    ($real:ident, 2, |$a:ident, $b:ident, $k:ident| $body:expr) => {
        |x: &[&[$real]], k: f32, y: &mut [$real]| {
            let $k = k as $real;
            for ((y, &$a), &$b) in y.iter_mut().zip(x[0]).zip(x[1]) {
                *y = $body;
            }
            let _ = $k;
        }
    };
    ($real:ident, 3, |$a:ident, $b:ident, $c:ident, $k:ident| $body:expr) => {
        |x: &[&[$real]], k: f32, y: &mut [$real]| {
            let $k = k as $real;
            for (((y, &$a), &$b), &$c) in y.iter_mut().zip(x[0]).zip(x[1]).zip(x[2]) {
                *y = $body;
            }
            let _ = $k;
        }
    };
}

macro_rules! fast {
    (1, |$a:ident, $k:ident| $body:expr) => {{
        widest! {
            fn apply(x: &[&[f32]], k: f32, y: &mut [f32]) {
                let $k = k;
                for (y, &$a) in y.iter_mut().zip(x[0]) {
                    *y = $body;
                }
                let _ = $k;
            }
        }
        apply
    }};
    (2, |$a:ident, $b:ident, $k:ident| $body:expr) => {{
        widest! {
            fn apply(x: &[&[f32]], k: f32, y: &mut [f32]) {
                let $k = k;
                for ((y, &$a), &$b) in y.iter_mut().zip(x[0]).zip(x[1]) {
                    *y = $body;
                }
                let _ = $k;
            }
        }
        apply
    }};
    (3, |$a:ident, $b:ident, $c:ident, $k:ident| $body:expr) => {{
        widest! {
            fn apply(x: &[&[f32]], k: f32, y: &mut [f32]) {
                let $k = k;
                for (((y, &$a), &$b), &$c) in y.iter_mut().zip(x[0]).zip(x[1]).zip(x[2]) {
                    *y = $body;
                }
                let _ = $k;
            }
        }
        apply
    }};
}

macro_rules! row {
    ($name:literal, $arity:tt, $constant:literal, $wgsl:literal, |$($arg:ident),*| $body:expr, $derivative:expr) => {
        Function {
            name: $name,
            arity: $arity,
            has_constant: $constant,
            wgsl: $wgsl,
            single: { type R = f32; #[allow(unused)] fn of(x: f64) -> R { R::of(x) } host!(f32, $arity, |$($arg),*| $body) },
            double: { type R = f64; #[allow(unused)] fn of(x: f64) -> R { R::of(x) } host!(f64, $arity, |$($arg),*| $body) },
            fast: {
                // Within this block `Real::exp` and its like are the fast ones.
                #[allow(unused)] use math as Real;
                #[allow(unused)] #[inline(always)] fn of(x: f64) -> f32 { x as f32 }
                fast!($arity, |$($arg),*| $body)
            },
            derivative: $derivative,
        }
    };
}

/// All rows.
pub static FUNCTIONS: &[Function] = &[
    row!("identity", 1, false, "$a", |a, k| a, Some(|_, s, _| Ok(Some(s.up)))),
    // The value, through which no gradient flows: for what is stored with a model and not trained.
    row!("held", 1, false, "$a", |a, k| a, Some(|_, _, _| Ok(None))),
    row!("add", 2, false, "$a + $b", |a, b, k| a + b, Some(|_, s, _| Ok(Some(s.up)))),
    row!(
        "sub",
        2,
        false,
        "$a - $b",
        |a, b, k| a - b,
        Some(|e, s, i| { Ok(Some(if i == 0 { s.up } else { e.scale(s.up, -1.0)? })) })
    ),
    row!("mul", 2, false, "$a * $b", |a, b, k| a * b, Some(|e, s, i| Ok(Some(e.mul(s.up, s.x[1 - i])?)))),
    row!(
        "div",
        2,
        false,
        "$a / $b",
        |a, b, k| a / b,
        Some(|e, s, i| {
            let by = e.div(s.up, s.x[1])?;
            if i == 0 {
                return Ok(Some(by));
            }
            let down = e.mul(by, s.y)?;
            Ok(Some(e.scale(down, -1.0)?))
        })
    ),
    row!(
        "maximum",
        2,
        false,
        "max($a, $b)",
        |a, b, k| if a > b { a } else { b },
        Some(|e, s, i| {
            let (mine, other) = (s.x[i], s.x[1 - i]);
            let chosen = e.pointwise("greater", &[mine, other], 0.0)?;
            Ok(Some(e.mul(s.up, chosen)?))
        })
    ),
    row!(
        "greater",
        2,
        false,
        "select(V(0.0), V(1.0), $a > $b)",
        |a, b, k| of((a > b) as u8 as f64),
        Some(|_, _, _| Ok(None))
    ),
    row!("scale", 1, true, "$a * $k", |a, k| a * k, Some(|e, s, _| Ok(Some(e.scale(s.up, s.k)?)))),
    row!("shift", 1, true, "$a + $k", |a, k| a + k, Some(|_, s, _| Ok(Some(s.up)))),
    row!("exp", 1, false, "exp($a)", |a, k| Real::exp(a), Some(|e, s, _| Ok(Some(e.mul(s.up, s.y)?)))),
    row!("log", 1, false, "log($a)", |a, k| Real::ln(a), Some(|e, s, _| Ok(Some(e.div(s.up, s.x[0])?)))),
    row!(
        "sqrt",
        1,
        false,
        "sqrt($a)",
        |a, k| Real::sqrt(a),
        Some(|e, s, _| {
            let half = e.scale(s.up, 0.5)?;
            Ok(Some(e.div(half, s.y)?))
        })
    ),
    row!(
        "square",
        1,
        false,
        "$a * $a",
        |a, k| a * a,
        Some(|e, s, _| {
            let double = e.scale(s.x[0], 2.0)?;
            Ok(Some(e.mul(s.up, double)?))
        })
    ),
    row!(
        "absolute",
        1,
        false,
        "abs($a)",
        |a, k| a.abs(),
        Some(|e, s, _| {
            let sign = e.pointwise("sign", &[s.x[0]], 0.0)?;
            Ok(Some(e.mul(s.up, sign)?))
        })
    ),
    row!(
        "sign",
        1,
        false,
        "sign($a)",
        |a, k| of((a > of(0.0)) as i8 as f64 - (a < of(0.0)) as i8 as f64),
        Some(|_, _, _| Ok(None))
    ),
    row!(
        "sigmoid",
        1,
        false,
        "V(1.0) / (V(1.0) + exp(-$a))",
        |a, k| of(1.0) / (of(1.0) + Real::exp(-a)),
        Some(|e, s, _| { Ok(Some(e.pointwise("sigmoid_gradient", &[s.y, s.up], 0.0)?)) })
    ),
    // Over the output y: dx = up * y * (1 - y).
    row!("sigmoid_gradient", 2, false, "$b * $a * (V(1.0) - $a)", |y, up, k| up * y * (of(1.0) - y), None),
    // Clamped because tanh of a large argument is computed by some drivers through an overflowing exp.
    row!(
        "tanh",
        1,
        false,
        "tanh(clamp($a, V(-15.0), V(15.0)))",
        |a, k| Real::tanh(a),
        Some(|e, s, _| { Ok(Some(e.pointwise("tanh_gradient", &[s.y, s.up], 0.0)?)) })
    ),
    row!("tanh_gradient", 2, false, "$b * (V(1.0) - $a * $a)", |y, up, k| up * (of(1.0) - y * y), None),
    row!(
        "relu",
        1,
        false,
        "max($a, V(0.0))",
        |a, k| if a > of(0.0) { a } else { of(0.0) },
        Some(|e, s, _| { Ok(Some(e.pointwise("leaky_relu_gradient", &[s.x[0], s.up], 0.0)?)) })
    ),
    // A kink at zero, where the derivative is taken for -1.
    row!(
        "abs",
        1,
        false,
        "abs($a)",
        |a, k| if a < of(0.0) { of(0.0) - a } else { a },
        Some(|e, s, _| { Ok(Some(e.pointwise("leaky_relu_gradient", &[s.x[0], s.up], -1.0)?)) })
    ),
    row!(
        "leaky_relu",
        1,
        true,
        "select($a * $k, $a, $a > V(0.0))",
        |a, k| if a > of(0.0) { a } else { a * k },
        Some(|e, s, _| { Ok(Some(e.pointwise("leaky_relu_gradient", &[s.x[0], s.up], s.k)?)) })
    ),
    row!(
        "leaky_relu_gradient",
        2,
        true,
        "select($b * $k, $b, $a > V(0.0))",
        |a, up, k| if a > of(0.0) { up } else { up * k },
        None
    ),
    // a: input, b: learned slope.
    row!(
        "prelu",
        2,
        false,
        "select($a * $b, $a, $a > V(0.0))",
        |a, b, k| if a > of(0.0) { a } else { a * b },
        Some(|e, s, i| {
            let name = if i == 0 { "prelu_gradient" } else { "prelu_slope_gradient" };
            Ok(Some(e.pointwise(name, &[s.x[0], s.x[1], s.up], 0.0)?))
        })
    ),
    row!(
        "prelu_gradient",
        3,
        false,
        "select($c * $b, $c, $a > V(0.0))",
        |a, b, up, k| if a > of(0.0) { up } else { up * b },
        None
    ),
    row!(
        "prelu_slope_gradient",
        3,
        false,
        "select($c * $a, V(0.0), $a > V(0.0)) + V(0.0) * $b",
        |a, b, up, k| if a > of(0.0) { of(0.0) * b } else { up * a },
        None
    ),
    // Exact: x * Phi(x).
    row!(
        "gelu",
        1,
        false,
        "$a * normal_below($a)",
        |a, k| of(0.5) * a * (of(1.0) + Real::erf(a * of(std::f64::consts::FRAC_1_SQRT_2))),
        Some(|e, s, _| { Ok(Some(e.pointwise("gelu_gradient", &[s.x[0], s.up], 0.0)?)) })
    ),
    row!(
        "gelu_gradient",
        2,
        false,
        "$b * (normal_below($a) + $a * 0.39894228 * exp(-0.5 * $a * $a))",
        |a, up, k| up
            * (of(0.5) * (of(1.0) + Real::erf(a * of(std::f64::consts::FRAC_1_SQRT_2)))
                + a * of(0.3989422804014327) * Real::exp(of(-0.5) * a * a)),
        None
    ),
    // tanh form (Hendrycks and Gimpel), written as x * sigmoid(2u): one exp instead of a tanh.
    row!(
        "gelu_tanh",
        1,
        false,
        "$a / (V(1.0) + exp(-1.5957691 * ($a + 0.044715 * $a * $a * $a)))",
        |a, k| a / (of(1.0) + Real::exp(of(-1.5957691216057308) * (a + of(0.044715) * a * a * a))),
        Some(|e, s, _| { Ok(Some(e.pointwise("gelu_tanh_gradient", &[s.x[0], s.up], 0.0)?)) })
    ),
    row!(
        "gelu_tanh_gradient",
        2,
        false,
        "gelu_tanh_gradient($a, $b)",
        |a, up, k| {
            let s = of(1.0) / (of(1.0) + Real::exp(of(-1.5957691216057308) * (a + of(0.044715) * a * a * a)));
            up * s * (of(1.0) + a * (of(1.0) - s) * of(1.5957691216057308) * (of(1.0) + of(0.134145) * a * a))
        },
        None
    ),
    row!(
        "silu",
        1,
        false,
        "$a / (V(1.0) + exp(-$a))",
        |a, k| a / (of(1.0) + Real::exp(-a)),
        Some(|e, s, _| { Ok(Some(e.pointwise("silu_gradient", &[s.x[0], s.up], 0.0)?)) })
    ),
    row!(
        "silu_gradient",
        2,
        false,
        "silu_gradient($a, $b)",
        |a, up, k| {
            let s = of(1.0) / (of(1.0) + Real::exp(-a));
            up * s * (of(1.0) + a * (of(1.0) - s))
        },
        None
    ),
    row!(
        "erf",
        1,
        false,
        "erf($a)",
        |a, k| Real::erf(a),
        Some(|e, s, _| {
            let square = e.pointwise("square", &[s.x[0]], 0.0)?;
            let down = e.scale(square, -1.0)?;
            let bell = e.pointwise("exp", &[down], 0.0)?;
            let slope = e.scale(bell, std::f32::consts::FRAC_2_SQRT_PI)?;
            Ok(Some(e.mul(s.up, slope)?))
        })
    ),
    // log(1 + e^x) without overflow; its derivative is the sigmoid.
    row!(
        "softplus",
        1,
        false,
        "max($a, V(0.0)) + log(V(1.0) + exp(-abs($a)))",
        |a, k| (if a > of(0.0) { a } else { of(0.0) }) + Real::ln(of(1.0) + Real::exp(-a.abs())),
        Some(|e, s, _| {
            let slope = e.pointwise("sigmoid", &[s.x[0]], 0.0)?;
            Ok(Some(e.mul(s.up, slope)?))
        })
    ),
];
