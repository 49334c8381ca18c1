//! Shader text for a pointwise program: axes are merged, four elements go at a time where the innermost axis allows it.

use super::{Arg, Pointwise};
use crate::ops::launch::{Bind, Caps, Kernel, Launch, Variant};
use crate::tensor::Type;
use std::fmt::Write;

/// Invocations per workgroup.
const LANES: u32 = 128;
/// Workgroups beyond which invocations loop instead: a launch has a price on every driver.
const MOST_GROUPS: usize = 4096;

/// How one input is read.
struct Access {
    /// Element strides of the merged axes, innermost first.
    strides: Vec<usize>,
    /// Read straight through, with the flat position.
    is_full: bool,
    /// Read four at a time.
    is_wide: bool,
}

pub(super) fn variants(op: &Pointwise, inputs: &[Type], outputs: &[Type], _caps: &Caps) -> Vec<Variant> {
    let (sizes, strides) = merge_axes(inputs, &outputs[0]);
    let wide = sizes[0].is_multiple_of(4)
        && strides.iter().all(|s| {
            let others = s[1..].iter().all(|&x| x.is_multiple_of(4));
            s[0] == 0 || (s[0] == 1 && others)
        });
    let access: Vec<Access> = strides
        .into_iter()
        .map(|strides| {
            let is_full = is_row_major(&sizes, &strides);
            let is_wide = wide && strides[0] == 1;
            Access { strides, is_full, is_wide }
        })
        .collect();
    let width = if wide { 4 } else { 1 };
    let count = outputs[0].shape.count() / width;
    let kernel = Kernel::new("pointwise")
        .constant("LANES", LANES)
        .retype("Elem", outputs[0].dtype)
        .paste("DECLARATIONS", declarations(&access, outputs.len(), sizes.len(), wide))
        .paste("BODY", body(op, &access, sizes.len()));
    let bindings: Vec<Bind> =
        (0..inputs.len()).map(Bind::Input).chain((0..outputs.len()).map(Bind::Output)).collect();
    let groups = count.div_ceil(LANES as usize).clamp(1, MOST_GROUPS);
    let mut launch = Launch::new(kernel, bindings, groups).param("count", count);
    for (axis, &size) in sizes.iter().enumerate() {
        launch = launch.param(format!("size{axis}"), if axis == 0 { size / width } else { size });
    }
    for (i, input) in access.iter().enumerate().filter(|(_, a)| !a.is_full) {
        for (axis, &stride) in input.strides.iter().enumerate() {
            let units = if input.is_wide && axis > 0 { stride / 4 } else { stride };
            launch = launch.param(format!("in{i}_stride{axis}"), units);
        }
    }
    vec![Variant::single(if wide { "pointwise_wide" } else { "pointwise" }, launch)]
}

/// Sizes and per-input strides of the fewest axes that describe the access, innermost first, at least one.
fn merge_axes(inputs: &[Type], output: &Type) -> (Vec<usize>, Vec<Vec<usize>>) {
    let full: Vec<Vec<usize>> = inputs.iter().map(|t| t.shape.broadcast_strides(&output.shape)).collect();
    let mut sizes: Vec<usize> = vec![];
    let mut strides: Vec<Vec<usize>> = vec![vec![]; inputs.len()];
    for axis in (0..output.shape.len()).rev().filter(|&axis| output.shape[axis] != 1) {
        let continues = sizes.last().is_some_and(|&inner| {
            strides.iter().zip(&full).all(|(kept, f)| kept.last().is_some_and(|s| f[axis] == s * inner))
        });
        if continues {
            *sizes.last_mut().expect("there is an inner axis to continue") *= output.shape[axis];
        } else {
            sizes.push(output.shape[axis]);
            strides.iter_mut().zip(&full).for_each(|(kept, f)| kept.push(f[axis]));
        }
    }
    if sizes.is_empty() {
        sizes.push(1);
        strides.iter_mut().for_each(|s| s.push(0));
    }
    (sizes, strides)
}

fn is_row_major(sizes: &[usize], strides: &[usize]) -> bool {
    let mut expected = 1;
    sizes.iter().zip(strides).all(|(&size, &stride)| {
        let fits = stride == expected;
        expected *= size;
        fits
    })
}

fn declarations(access: &[Access], outputs: usize, rank: usize, wide: bool) -> String {
    let mut text = String::new();
    let (v, s) = if wide { ("vec4<f32>", "vec4<Elem>") } else { ("f32", "Elem") };
    let _ = writeln!(text, "alias V = {v};\nalias S = {s};\nstruct Params {{\n    count: u32,");
    for axis in 0..rank {
        let _ = writeln!(text, "    size{axis}: u32,");
    }
    for (i, _) in access.iter().enumerate().filter(|(_, a)| !a.is_full) {
        for axis in 0..rank {
            let _ = writeln!(text, "    in{i}_stride{axis}: u32,");
        }
    }
    text.push_str("}\n");
    for (i, a) in access.iter().enumerate() {
        let elem = if a.is_wide { "S" } else { "Elem" };
        let _ = writeln!(text, "@group(0) @binding({i}) var<storage, read> in{i}: array<{elem}>;");
    }
    for o in 0..outputs {
        let number = access.len() + o;
        let _ = writeln!(text, "@group(0) @binding({number}) var<storage, read_write> out{o}: array<S>;");
    }
    text
}

fn body(op: &Pointwise, access: &[Access], rank: usize) -> String {
    let mut text = String::new();
    if access.iter().any(|a| !a.is_full) {
        text.push_str("        var rest = i;\n");
        for axis in 0..rank {
            let _ = writeln!(text, "        let at{axis} = rest % params.size{axis};");
            let _ = writeln!(text, "        rest = rest / params.size{axis};");
        }
    }
    for (i, a) in access.iter().enumerate() {
        let index = if a.is_full {
            "i".to_string()
        } else {
            let terms: Vec<_> =
                (0..rank).map(|axis| format!("at{axis} * params.in{i}_stride{axis}")).collect();
            terms.join(" + ")
        };
        let value = if a.is_wide { format!("V(in{i}[{index}])") } else { format!("V(f32(in{i}[{index}]))") };
        let _ = writeln!(text, "        let x{i} = {value};");
    }
    for (number, step) in op.steps.iter().enumerate() {
        let _ = writeln!(text, "        let t{number} = {};", expression(step));
    }
    for (o, step) in op.outputs.iter().enumerate() {
        let _ = writeln!(text, "        out{o}[i] = S(t{step});");
    }
    text
}

/// Lines that end a shader function: a program of one output applied to the floats `x0`, `x1` .., or `x0` as it is.
pub(crate) fn ending(program: Option<&super::Pointwise>) -> String {
    let Some(program) = program else { return "    return x0;\n}\n".into() };
    let steps = program.steps.iter().enumerate();
    let lines: String =
        steps.map(|(number, step)| format!("    let t{number} = {};\n", expression(step))).collect();
    format!("{lines}    return t{};\n}}\n", program.outputs[0])
}

/// Shader text of a step whose arguments are `x0 ..` and whose earlier results are `t0 ..`.
fn expression(step: &super::Step) -> String {
    let mut text = step.function.wgsl.to_string();
    for (&arg, letter) in step.args.iter().zip(["$a", "$b", "$c"]) {
        let name = match arg {
            Arg::Input(i) => format!("x{i}"),
            Arg::Step(s) => format!("t{s}"),
        };
        text = text.replace(letter, &name);
    }
    text.replace("$k", &format!("V({:?})", step.constant))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::DType;

    #[test]
    fn axes_with_one_pattern_are_merged() {
        let out = Type::new(DType::F32, [2, 3, 4]);
        let row = Type::new(DType::F32, [4]);
        let (sizes, strides) = merge_axes(&[out.clone(), row], &out);
        assert_eq!(sizes, [4, 6]);
        assert_eq!(strides, [vec![1, 4], vec![1, 0]]);
        let (sizes, strides) = merge_axes(std::slice::from_ref(&out), &out);
        assert_eq!((sizes, strides), (vec![24], vec![vec![1]]));
    }

    #[test]
    fn only_a_whole_number_of_fours_goes_wide() {
        let of = |n: usize| {
            let t = Type::new(DType::F32, [3, n]);
            let op = Pointwise::single("mul", 0.0);
            variants(&op, &[t.clone(), Type::new(DType::F32, [n])], &[t], &Caps::portable())[0].name.clone()
        };
        assert_eq!((of(8).as_str(), of(7).as_str()), ("pointwise_wide", "pointwise"));
    }
}
