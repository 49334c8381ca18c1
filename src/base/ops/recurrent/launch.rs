//! Kernels of recurrent layers: one walk over time in one dispatch.
//!
//! `recurrent_row` gives each row of the batch to one invocation, as a driver on the CPU likes it; `recurrent_group` to one
//! workgroup, whose lanes share the units and meet after each step. Both keep the state in what is saved for the derivative, so
//! that no size is too large, and time may be cut into several dispatches where a driver stops long loops. Forward, weights are turned first, so that neighbouring lanes read neighbouring elements.

use super::{Cell, Extent, Recurrent, RecurrentGradient};
use crate::ops::Operator;
use crate::ops::launch::{Bind, Caps, Kernel, Launch, Variant};
use crate::ops::transpose::Transpose;
use crate::tensor::{DType, Type};
use std::fmt::Write;

/// Bindings of a kernel as they are declared, each with a function that reads what may be absent.
#[derive(Default)]
struct Bindings {
    text: String,
    list: Vec<Bind>,
}

impl Bindings {
    fn add(&mut self, bind: Bind, name: &str, element: &str, written: bool) {
        let (number, access) = (self.list.len(), if written { "read_write" } else { "read" });
        let _ = writeln!(
            self.text,
            "@group(0) @binding({number}) var<storage, {access}> {name}: array<{element}>;"
        );
        self.list.push(bind);
    }

    fn function(&mut self, text: &str) {
        self.text.push_str(text);
        self.text.push('\n');
    }
}

/// `a0 += x * w` for a pack of x and the rows of a matrix from `w` on, `stride` packs apart, and so for all gates.
fn accumulate(width: usize, gates: usize) -> String {
    let mut text = String::new();
    for (element, part) in [".x", ".y", ".z", ".w"].into_iter().take(width).enumerate() {
        let part = if width == 1 { "" } else { part };
        for gate in 0..gates {
            let _ = writeln!(
                text,
                "a{gate} += factor{part} * V(matrix[at + {element}u * stride + {gate}u * apart]);"
            );
        }
    }
    text
}

/// A product of a vector with a matrix, all gates at once, as text: vectors lie in `from`.
fn sums(name: &str, matrix: &str, from: &str, width: usize, gates: usize) -> String {
    let body = accumulate(width, gates).replace("matrix[", &format!("{matrix}["));
    let zeros: String = (0..gates).map(|gate| format!("var a{gate} = V();\n")).collect();
    let all: Vec<String> =
        (0..4).map(|gate| if gate < gates { format!("a{gate}") } else { "V()".into() }).collect();
    format!(
        "// packs of the vector from `first` on; row k of the matrix begins at `column + k * stride`, gates stand `apart`\n\
         fn {name}(first: u32, packs: u32, column: u32, stride: u32, apart: u32) -> Gates {{\n{zeros}\
         var at = column;\nfor (var k = 0u; k < packs; k++) {{\nlet factor = V({from}[first + k]);\n{body}\
         at += WIDTH * stride;\n}}\nreturn Gates({});\n}}",
        all.join(", ")
    )
}

const ONE: &str = "const WIDTH = 1u;\nalias V = f32;\nalias Pack = Elem;";
const FOUR: &str = "const WIDTH = 4u;\nalias V = vec4<f32>;\nalias Pack = vec4<Elem>;";

/// A kernel for packs of `width`, and bindings that follow.
fn kernel(shader: &'static str, of: &Recurrent, width: usize, storage: DType) -> Kernel {
    let cell = match of.cell {
        Cell::Tanh => 0,
        Cell::Relu => 1,
        Cell::Lstm => 2,
        Cell::Gru => 3,
    };
    Kernel::new(shader)
        .retype("Elem", storage)
        .constant("CELL", cell)
        .constant("GATES", of.cell.gates() as u32)
        .constant("REVERSE", of.reverse as u32)
        .constant("PROJECTS", of.projection as u32)
        .paste("WIDTH", if width == 4 { FOUR } else { ONE })
}

/// Elements that are read together: what units and states can be cut into.
fn widest(extent: &Extent) -> usize {
    if extent.hidden.is_multiple_of(4) && extent.state.is_multiple_of(4) { 4 } else { 1 }
}

/// Iterations of all its loops after which an invocation is ended by lavapipe (65 535), with room for those outside of time.
const MOST_ITERATIONS: usize = 60_000;

/// Both mappings of rows to a device, the better one first. `iterations` tells how many an invocation takes for a step over packs of
/// a width in so many lanes; `give` makes the dispatches over these ranges of steps.
fn variants(
    name: &str,
    extent: &Extent,
    caps: &Caps,
    iterations: impl Fn(usize, usize) -> usize,
    give: impl Fn(usize, Mapping) -> (Vec<Launch>, Vec<u64>),
) -> Vec<Variant> {
    let lanes = (extent.hidden.next_power_of_two() as u32).clamp(32, caps.max_invocations.clamp(32, 256));
    let row_lanes = if caps.is_cpu { 8 } else { 32 };
    let group = Mapping {
        entry: "group_per_row",
        lanes: ("LANES", lanes),
        sync: "storageBarrier();\nworkgroupBarrier();",
        groups: extent.batch,
        steps: 0,
    };
    let row = Mapping {
        entry: "lane_per_row",
        lanes: ("ROW_LANES", row_lanes),
        sync: "",
        groups: extent.batch.div_ceil(row_lanes as usize),
        steps: 0,
    };
    let one = |suffix: &str, width: usize, mapping: Mapping, iterations: usize| {
        // Elsewhere as well: a dispatch more costs little beside so many iterations, and watchdogs dislike long ones.
        let steps = (MOST_ITERATIONS / iterations).min(extent.time);
        (steps > 0).then(|| {
            let (launches, scratch) = give(width, Mapping { steps, ..mapping });
            Variant { name: format!("{name}_{suffix}"), launches, scratch }
        })
    };
    let width = widest(extent);
    let group = one("group", 1, group, iterations(1, lanes as usize));
    let row = one("row", width, row, iterations(width, 1));
    let both = if caps.is_cpu { [row, group] } else { [group, row] };
    both.into_iter().flatten().collect()
}

/// How rows of the batch are shared out.
struct Mapping {
    entry: &'static str,
    lanes: (&'static str, u32),
    /// Where the lanes of a row meet.
    sync: &'static str,
    groups: usize,
    /// Steps of one dispatch.
    steps: usize,
}

impl Mapping {
    /// One dispatch after the other, each with its steps.
    fn launches(&self, kernel: Kernel, bindings: Bindings, extent: &Extent, width: usize) -> Vec<Launch> {
        let kernel = kernel
            .entry(self.entry)
            .constant(self.lanes.0, self.lanes.1)
            .paste("SYNC", self.sync)
            .paste("BINDINGS", bindings.text);
        let walk = Launch::new(kernel, bindings.list, self.groups)
            .param("batch", extent.batch)
            .param("time", extent.time)
            .param("units", extent.hidden / width)
            .param("states", extent.state / width)
            .param("inputs", extent.inputs / width)
            .param("whole", extent.whole / width)
            .param("saved_row", extent.saved / width);
        let part = |begin: usize| {
            walk.clone().param("begin", begin).param("end", (begin + self.steps).min(extent.time))
        };
        (0..extent.time).step_by(self.steps).map(part).collect()
    }
}

/// Whether a step of a row counts: as lengths or marks say, or always.
fn live(bindings: &mut Bindings, steps: Option<(usize, &Type)>) {
    let Some((at, kind)) = steps else {
        return bindings.function("fn is_live(row: u32, t: u32) -> bool { return true; }");
    };
    bindings.add(Bind::Input(at), "steps", "u32", false);
    bindings.function(match kind.shape.len() {
        1 => "fn is_live(row: u32, t: u32) -> bool { return t < steps[row]; }",
        _ => "fn is_live(row: u32, t: u32) -> bool { return steps[row * params.time + t] != 0u; }",
    });
}

/// In place of [`sums`] where there is no such matrix.
fn no_sums(name: &str) -> String {
    format!(
        "fn {name}(first: u32, packs: u32, column: u32, stride: u32, apart: u32) -> Gates {{ return Gates(); }}"
    )
}

/// The dispatch that turns a matrix, input `from`, into scratch `to`.
fn turn(from: usize, to: usize, matrix: &Type, caps: &Caps) -> Launch {
    let turned = matrix.with_shape([matrix.shape[1], matrix.shape[0]]);
    let op = Transpose { order: vec![1, 0] };
    let mut variant = op.launch(std::slice::from_ref(matrix), &[turned], caps).swap_remove(0);
    let mut launch = variant.launches.swap_remove(0);
    launch.bindings = vec![Bind::Input(from), Bind::Scratch(to)];
    launch
}

pub(super) fn forward(op: &Recurrent, inputs: &[Type], _outputs: &[Type], caps: &Caps) -> Vec<Variant> {
    let extent = op.extent_of(&inputs[0].shape, &inputs[1].shape);
    let matrices = [Some(1), op.projection_at()].into_iter().flatten().enumerate();
    let (before, scratch): (Vec<Launch>, Vec<u64>) = matrices
        .map(|(to, from)| {
            (turn(from, to, &inputs[from], caps), inputs[from].size_bytes().next_multiple_of(16))
        })
        .unzip();
    let give = |width: usize, mapping: Mapping| {
        let mut b = Bindings::default();
        b.add(Bind::Input(0), "x", "Pack", false);
        b.add(Bind::Scratch(0), "weight", "Pack", false);
        match op.bias_at() {
            Some(at) => {
                b.add(Bind::Input(at), "bias", "Pack", false);
                b.function("fn bias_at(i: u32) -> V { return V(bias[i]); }");
            }
            None => b.function("fn bias_at(i: u32) -> V { return V(); }"),
        }
        b.function(&sums("from_state", "weight", "saved", width, op.cell.gates()));
        match op.projection {
            true => {
                b.add(Bind::Scratch(1), "projection", "Pack", false);
                b.function(&sums("projected", "projection", "saved", width, 1));
            }
            false => b.function(&no_sums("projected")),
        }
        // In place, the initial state lies where the last one will.
        let initial = if op.carried { "last" } else { "initial" };
        if !op.carried {
            b.add(Bind::Input(op.initial_at()), initial, "Pack", false);
        }
        match op.position_at() {
            Some(at) => {
                b.add(Bind::Input(at), "position", "u32", false);
                b.function(&format!(
                    "fn initial_at(i: u32) -> V {{ return select(V({initial}[i]), V(), position[0] == 0u); }}"
                ));
            }
            None => b.function(&format!("fn initial_at(i: u32) -> V {{ return V({initial}[i]); }}")),
        }
        live(&mut b, op.steps_at().map(|at| (at, &inputs[at])));
        b.add(Bind::Output(0), "y", "Pack", true);
        b.add(Bind::Output(1), "last", "Pack", true);
        b.add(Bind::Output(2), "saved", "V", true);
        let walk = mapping.launches(kernel("recurrent", op, width, inputs[0].dtype), b, &extent, width);
        (before.iter().cloned().chain(walk).collect(), scratch.clone())
    };
    let iterations = |width: usize, lanes: usize| {
        let [units, states] = [extent.hidden / width, extent.state / width];
        let projecting = if op.projection { states.div_ceil(lanes) * (1 + units) } else { 0 };
        1 + units.div_ceil(lanes) * (1 + states) + projecting
    };
    variants("recurrent", &extent, caps, iterations, give)
}

pub(super) fn backward(
    op: &RecurrentGradient,
    inputs: &[Type],
    outputs: &[Type],
    caps: &Caps,
) -> Vec<Variant> {
    let extent = op.extent(&inputs[1].shape, &inputs[0].shape);
    let gru = op.of.cell == Cell::Gru;
    let row = outputs[0].shape.last();
    let give = |width: usize, mapping: Mapping| {
        let mut b = Bindings::default();
        b.add(Bind::Input(0), "weight", "Pack", false);
        b.function(&sums("through_weight", "weight", if gru { "products" } else { "dx" }, width, 1));
        match op.projection_at() {
            Some(at) => {
                b.add(Bind::Input(at), "projection", "Pack", false);
                b.function(&sums("through_projection", "projection", "dx", width, 1));
            }
            None => b.function(&no_sums("through_projection")),
        }
        b.add(Bind::Input(1), "saved", "V", false);
        live(&mut b, op.steps_at().map(|at| (at, &inputs[at])));
        for (at, name) in op.flows_at().into_iter().zip(["up", "up_last"]) {
            match at {
                Some(at) => {
                    b.add(Bind::Input(at), name, "Pack", false);
                    b.function(&format!("fn {name}_at(i: u32) -> V {{ return V({name}[i]); }}"));
                }
                None => b.function(&format!("fn {name}_at(i: u32) -> V {{ return V(); }}")),
            }
        }
        b.add(Bind::Output(0), "dx", "V", true);
        b.add(Bind::Output(1), "now", "V", true);
        if gru {
            b.add(Bind::Output(2), "products", "V", true);
            b.function("fn set_products(i: u32, value: V) { products[i] = value; }");
        } else {
            b.function("fn set_products(i: u32, value: V) {}");
        }
        let kernel = kernel("recurrent_gradient", &op.of, width, inputs[0].dtype);
        let walk = mapping.launches(kernel, b, &extent, width).into_iter();
        (walk.map(|part| part.param("dx_row", row / width)).collect(), vec![])
    };
    let iterations = |width: usize, lanes: usize| {
        let [units, states] = [extent.hidden / width, extent.state / width];
        let [own_units, own_states] = [units, states].map(|count| count.div_ceil(lanes));
        let projecting = if op.of.projection { own_states + own_units * states } else { 0 };
        1 + own_units + own_states * (1 + extent.inputs / width) + projecting
    };
    variants("recurrent_gradient", &extent, caps, iterations, give)
}
