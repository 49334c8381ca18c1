//! What operators along the last axis share: sums the compiler can vectorise, and the two ways to map rows to a device.

use super::launch::{Bind, Caps, Kernel, Launch, Variant};
use super::{Error, Result};
use crate::tensor::{DType, Real, Shape, Tensor, Type};
use std::borrow::Cow;

/// Sums kept side by side on the host: a fixed order that still fills a vector register.
const SUMS: usize = 16;

/// Rows from which one invocation per row keeps every core of a CPU driver busy.
const ROWS_FOR_LANES: usize = 16;
/// Columns up to which a CPU driver is done with a row sooner than it brings a workgroup together.
const COLUMNS_FOR_LANES: usize = 2048;

/// Sum of `term` over a row.
pub(crate) fn sum_of<R: Real>(x: &[R], term: impl Fn(R) -> R) -> R {
    let mut sums = [R::default(); SUMS];
    let parts = x.chunks_exact(SUMS);
    let tail: R = parts.remainder().iter().map(|&x| term(x)).sum();
    for part in parts {
        for (sum, &x) in sums.iter_mut().zip(part) {
            *sum += term(x);
        }
    }
    sums.into_iter().sum::<R>() + tail
}

/// Sum of `term` over two rows read together.
pub(crate) fn sum_of_pairs<R: Real>(x: &[R], y: &[R], term: impl Fn(R, R) -> R) -> R {
    let mut sums = [R::default(); SUMS];
    let (xs, ys) = (x.chunks_exact(SUMS), y.chunks_exact(SUMS));
    let tail: R = xs.remainder().iter().zip(ys.remainder()).map(|(&x, &y)| term(x, y)).sum();
    for (x, y) in xs.zip(ys) {
        for ((sum, &x), &y) in sums.iter_mut().zip(x).zip(y) {
            *sum += term(x, y);
        }
    }
    sums.into_iter().sum::<R>() + tail
}

/// Largest element of a row; NaN if one is NaN.
pub(crate) fn largest_of<R: Real>(x: &[R]) -> R {
    x.iter().fold(
        R::of(f64::NEG_INFINITY),
        |largest, &x| if x > largest || x.wide().is_nan() { x } else { largest },
    )
}

/// Storage of a saved statistic: f32 whatever the input's storage, except in the f64 referee.
pub(crate) fn statistic(input: &Type, shape: impl Into<Shape>) -> Type {
    let dtype = if input.dtype == DType::F64 { DType::F64 } else { DType::F32 };
    Type::new(dtype, shape)
}

/// Checks that a value has rows to work on: at least one axis, the last with elements.
pub(crate) fn expect_rows(op: &'static str, input: &'static str, got: &Type) -> Result<()> {
    if !got.shape.is_empty() && got.shape.last() > 0 {
        return Ok(());
    }
    let expected = "a last axis with elements".to_string();
    Err(Error::Shape { op, input, expected, got: got.shape.clone() })
}

/// Checks the input after the first `own` ones: there if and only if something is added, and of x's type.
pub(crate) fn expect_addend(op: &'static str, rest: &[Type], adds: bool, own: usize, x: &Type) -> Result<()> {
    if rest.len() != adds as usize {
        return Err(Error::InputCount { op, expected: own + adds as usize, got: own + rest.len() });
    }
    for addend in rest {
        super::expect_shape(op, "addend", addend, &x.shape)?;
        super::expect_dtype(op, "addend", addend, x.dtype)?;
    }
    Ok(())
}

/// The first input; with a residual, its sum with the last one, which becomes the last output.
pub(crate) fn summed<'a, R: Real>(
    inputs: &[&'a Tensor],
    outputs: &mut [Tensor],
    residual: bool,
) -> Cow<'a, [R]> {
    let x = inputs[0].real::<R>();
    let (Some(residual), true) = (inputs.last(), residual) else { return Cow::Borrowed(x) };
    let sum: Vec<R> = x.iter().zip(residual.real::<R>()).map(|(&x, &r)| x + r).collect();
    let output = outputs.last_mut().expect("the sum is the last output");
    output.real_mut::<R>().copy_from_slice(&sum);
    Cow::Owned(sum)
}

/// Checks that an input is stored as another one is.
pub(crate) fn expect_same_dtype(
    op: &'static str,
    input: &'static str,
    got: &Type,
    like: &Type,
) -> Result<()> {
    super::expect_dtype(op, input, got, like.dtype)
}

/// Elements of a row that are loaded together.
pub(crate) fn width(cols: usize) -> usize {
    if cols.is_multiple_of(4) { 4 } else { 1 }
}

/// The kernel with the types of `width` elements: `Pack` as stored, `V` in f32, `Number` for their positions.
pub(crate) fn with_width(kernel: Kernel, width: usize) -> Kernel {
    let text = if width == 4 { FOUR } else { ONE };
    kernel.paste("WIDTH", text)
}

/// Text of a row kernel's input: `first` reads an element on the first walk over a row, `again` on the later ones.
///
/// With a residual (its binding and that of the sum), x is the sum of two inputs: stored on the first walk, read on the later
/// ones by the very lane that stored it.
pub(crate) fn input_text(residual: Option<[usize; 2]>) -> String {
    let x = "@group(0) @binding(0) var<storage, read> x: array<Pack>; // [rows, cols]\n";
    let text = match residual {
        None => {
            "fn first(at: u32) -> V { return V(x[at]); }\nfn again(at: u32) -> V { return V(x[at]); }".into()
        }
        Some([residual, sum]) => format!(
            "@group(0) @binding({residual}) var<storage, read> residual: array<Pack>; // [rows, cols]
@group(0) @binding({sum}) var<storage, read_write> sum: array<Pack>; // [rows, cols]
fn first(at: u32) -> V {{
    let value = Pack(V(x[at]) + V(residual[at]));
    sum[at] = value;
    return V(value);
}}
fn again(at: u32) -> V {{ return V(sum[at]); }}"
        ),
    };
    x.to_string() + &text
}

/// Text of what a row kernel adds to its result: an input at that binding, or nothing.
pub(crate) fn addend_text(binding: Option<usize>) -> String {
    match binding {
        None => "fn addend_at(at: u32) -> V { return V(); }".into(),
        Some(binding) => format!(
            "@group(0) @binding({binding}) var<storage, read> addend: array<Pack>; // [rows, cols]
fn addend_at(at: u32) -> V {{ return V(addend[at]); }}"
        ),
    }
}

const ONE: &str = "\
const WIDTH = 1u;
alias V = f32;
alias Pack = Elem;
alias Number = u32;
const OFFSETS = 0u;
fn total_of(v: V) -> f32 { return v; }
fn largest_in(v: V) -> f32 { return v; }
fn pick(v: V, at: u32) -> f32 { return v; }";

const FOUR: &str = "\
const WIDTH = 4u;
alias V = vec4<f32>;
alias Pack = vec4<Elem>;
alias Number = vec4<u32>;
const OFFSETS = vec4<u32>(0u, 1u, 2u, 3u);
fn total_of(v: V) -> f32 { return (v.x + v.y) + (v.z + v.w); }
fn largest_in(v: V) -> f32 { return max(max(v.x, v.y), max(v.z, v.w)); }
fn pick(v: V, at: u32) -> f32 { return select(select(v.x, v.y, at == 1u), select(v.z, v.w, at == 3u), at > 1u); }";

/// Two variants of a row kernel: `{name}_row`, one invocation per row (entry `lane_per_row`), and `{name}_group`, one
/// workgroup per row (entry `group_per_row`, `LANES` a power of two).
///
/// A CPU driver has no use for workgroup memory and prefers the first, as long as there are rows for all its cores.
pub(crate) fn variants(
    name: &str,
    kernel: Kernel,
    bindings: &[Bind],
    shape: &Shape,
    caps: &Caps,
    complete: impl Fn(Launch) -> Launch,
) -> Vec<Variant> {
    let (rows, cols) = (shape.rows(), shape.last());
    let packs = cols / width(cols);
    let give = |kernel: Kernel, groups: usize| {
        let launch = Launch::new(kernel, bindings, groups);
        complete(launch.param("rows", rows).param("cols", cols).param("packs", packs))
    };
    pair(name, with_width(kernel, width(cols)), [rows, cols], caps, give)
}

/// The same of a kernel whose width is pasted; `give` makes a dispatch of so many workgroups.
pub(crate) fn pair(
    name: &str,
    kernel: Kernel,
    [rows, cols]: [usize; 2],
    caps: &Caps,
    give: impl Fn(Kernel, usize) -> Launch,
) -> Vec<Variant> {
    let row_lanes = if caps.is_cpu { 8 } else { 64 };
    let row = give(
        kernel.clone().entry("lane_per_row").constant("ROW_LANES", row_lanes),
        rows.div_ceil(row_lanes as usize),
    );
    let lanes = lanes_for(cols / width(cols), caps);
    let group = give(kernel.entry("group_per_row").constant("LANES", lanes), rows);
    let mut variants =
        vec![Variant::single(format!("{name}_group"), group), Variant::single(format!("{name}_row"), row)];
    if caps.is_cpu && (rows >= ROWS_FOR_LANES || cols <= COLUMNS_FOR_LANES) {
        variants.reverse();
    }
    variants
}

/// Lanes of a workgroup that shares one row: about two loads each, within what every adapter grants.
fn lanes_for(packs: usize, caps: &Caps) -> u32 {
    let most = caps.max_invocations.min(256);
    (packs.div_ceil(2).next_power_of_two() as u32).clamp(32, most.max(32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_reach_the_tail() {
        for count in [0, 1, 15, 16, 17, 37] {
            let x: Vec<f64> = (0..count).map(f64::from).collect();
            let expected: f64 = x.iter().sum();
            assert_eq!(sum_of(&x, |x| x), expected);
            assert_eq!(sum_of_pairs(&x, &x, |x, y| x + y), 2.0 * expected);
        }
    }

    #[test]
    fn the_largest_is_nan_if_one_is() {
        assert_eq!(largest_of(&[-3.0f32, -1.0, -2.0]), -1.0);
        assert!(largest_of(&[1.0f32, f32::NAN, 2.0]).is_nan());
    }

    #[test]
    fn a_cpu_driver_gets_one_invocation_per_row_first() {
        let caps = Caps { is_cpu: true, ..Caps::portable() };
        let names = |shape: [usize; 2], caps: &Caps| {
            let found = variants("x", Kernel::new("x"), &[], &Shape::from(shape), caps, |l| l);
            found.into_iter().map(|v| v.name).collect::<Vec<_>>()
        };
        assert_eq!(names([768, 65], &caps), ["x_row", "x_group"]);
        assert_eq!(names([2, 65], &caps), ["x_row", "x_group"]);
        assert_eq!(names([2, 50_000], &caps), ["x_group", "x_row"]);
        assert_eq!(names([768, 65], &Caps::portable()), ["x_group", "x_row"]);
    }
}
