//! Which kernels a matmul may use on an adapter, with their tiles.

use super::access::{Access, single};
use super::geometry::{Form, Geometry};
use super::{Matmul, register, tile, vector};
use crate::ops::launch::{Bind, Caps, Kernel, Launch, Variant};
use crate::ops::pointwise;
use crate::tensor::DType;
use std::fmt::Write;

/// Invocations per workgroup of the register kernels: what a CPU driver runs side by side in one vector.
const GROUP: usize = 8;
/// Invocations per workgroup of the tiled kernel.
const TILE_GROUP: u32 = 256;
/// Workgroups from which the larger tile keeps a GPU busy.
const BUSY: usize = 256;
/// Tiles below which rows are cut finer, so that every core gets some.
const FEW_TILES: usize = 8;

/// `types` are the storage of A, of B and of the output.
pub(super) fn variants(op: &Matmul, sizes: Geometry, types: [DType; 3], caps: &Caps) -> Vec<Variant> {
    let [a, b, c] = types;
    let plan = Plan { op, sizes, operands: [a, b], c };
    let shared = [plan.register(1, false, "matmul_register")];
    let broadcast = (caps.subgroup && [2, 4, 8].contains(&caps.subgroup_size))
        .then(|| plan.register(caps.subgroup_size as usize, caps.int64, "matmul_broadcast"));
    let tiles = if caps.max_invocations >= TILE_GROUP { plan.tiles() } else { vec![] };
    let registers = broadcast.into_iter().chain(shared);
    let mut variants: Vec<Variant> = if caps.is_cpu {
        registers.chain(tiles).collect()
    } else {
        tiles.into_iter().chain(registers).collect()
    };
    variants.push(plan.plain());
    let vectors = plan.vectors(caps);
    variants.splice(0..0, vectors);
    variants
}

struct Plan<'a> {
    op: &'a Matmul,
    sizes: Geometry,
    /// Storage of A and of B.
    operands: [DType; 2],
    /// Storage of the output and of the bias.
    c: DType,
}

impl Plan<'_> {
    fn plain(&self) -> Variant {
        let [a, b] = self.operands;
        let input = single(0, "a", a) + &single(1, "b", b);
        let kernel = Kernel::new("matmul_plain").constant("FORM", self.op.form as u32).paste("INPUT", input);
        let count = self.sizes.matrices() * self.sizes.m * self.sizes.n;
        let launch = self.launch(kernel, "array<Elem>", count.div_ceil(64)).param("count", count);
        Variant::single("matmul_plain", launch)
    }

    fn register(&self, lanes: usize, int64: bool, name: &'static str) -> Variant {
        let Geometry { m, n, k, .. } = self.sizes;
        let form = self.op.form;
        // Broadcasting makes up for the accumulators of a longer chunk; alone, 8 x 16 sums are what registers bear.
        let (chunk, columns) = if lanes == 1 { (4, 16) } else { (8, 8) };
        let access = |i: usize, axis| Access::widest(self.operands[i], axis, chunk, int64);
        let mut template = register::Template {
            form,
            chunk,
            lanes,
            rows: 8,
            columns,
            a: access(0, if form == Form::Tn { m } else { k }),
            b: access(1, if form == Form::Nt { k } else { n }),
            c: Access::widest_output(self.c, n, chunk, int64),
            ragged_k: !k.is_multiple_of(chunk),
        };
        let tile_n = template.tile_n();
        let tiles = |rows| self.sizes.matrices() * m.div_ceil(rows) * n.div_ceil(tile_n);
        if lanes > 1 {
            let fits = |&rows: &usize| m > rows / 2 && tiles(rows) >= FEW_TILES;
            // Guarded single stores and packing to f16 are most of a driver's compile: there fewer rows halve it.
            let most = if matches!(template.c, Access::Single | Access::Pairs(_)) { 16 } else { 32 };
            template.rows = [32, 16].into_iter().filter(|&rows| rows <= most).find(fits).unwrap_or(8);
        }
        let tiles = tiles(template.rows);
        let kernel = Kernel::new("matmul_register")
            .constant("GROUP", GROUP.max(lanes) as u32)
            .constant("LANES", lanes as u32)
            .constant("TILE_M", template.rows as u32)
            .constant("TILE_N", tile_n as u32)
            .paste("INPUT", template.input())
            .paste("BODY", template.body());
        let groups = (tiles * lanes).div_ceil(GROUP.max(lanes));
        Variant::single(name, self.launch(kernel, &template.output(), groups).param("tiles", tiles))
    }

    /// Kernels for a few rows of A, where reading B is all the work.
    fn vectors(&self, caps: &Caps) -> Vec<Variant> {
        let Geometry { m, n, k, .. } = self.sizes;
        let templates = vector::Template::fitting(self.op.form, self.operands, [m, n, k], caps);
        let alone = self.sizes.matrices() == 1 && self.op.form != Form::Tn;
        let variant = |template: vector::Template| {
            let tiles = n.div_ceil(template.tile_n());
            let kernel = Kernel::new("matmul_vector")
                .constant("GROUP", template.group() as u32)
                .constant("LANES", template.lanes() as u32)
                .paste("INPUT", template.input())
                .paste("BODY", template.body());
            let launch = self.launch(kernel, "array<Elem>", template.groups(tiles)).param("tiles", tiles);
            Variant::single(template.name(), launch)
        };
        templates.into_iter().filter(|_| alone).map(variant).collect()
    }

    /// The tiled kernel: for many outputs the larger tile first, which reads less for each sum.
    fn tiles(&self) -> Vec<Variant> {
        let small = self.tile(1, 1);
        let large = self.tile(2, 2);
        let keeps_busy =
            |v: &Variant| v.launches[0].groups.iter().map(|&g| g as usize).product::<usize>() >= BUSY;
        if keeps_busy(&large) { vec![large, small] } else { vec![small, large] }
    }

    fn tile(&self, row_quads: usize, column_quads: usize) -> Variant {
        let Geometry { m, n, k, .. } = self.sizes;
        let form = self.op.form;
        let template = tile::Template {
            form,
            operands: self.operands,
            row_quads,
            column_quads,
            a_fours: if form == Form::Tn { m } else { k }.is_multiple_of(4),
            b_fours: if form == Form::Nt { k } else { n }.is_multiple_of(4),
            c_fours: form != Form::Nt && n.is_multiple_of(4),
        };
        let [tile_m, tile_n] = template.tile();
        let [[a_line, a_lines], [b_line, b_lines]] = template.staging(template.step());
        let tiles = self.sizes.matrices() * m.div_ceil(tile_m) * n.div_ceil(tile_n);
        let kernel = Kernel::new("matmul_tile")
            .constant("TILE_M", tile_m as u32)
            .constant("TILE_N", tile_n as u32)
            .constant("STEP", template.step() as u32)
            .constant("A_LINE", a_line as u32)
            .constant("A_LINES", a_lines as u32)
            .constant("B_LINE", b_line as u32)
            .constant("B_LINES", b_lines as u32)
            .paste("INPUT", template.input())
            .paste("SUMS", template.sums())
            .paste("MULTIPLY", template.multiply())
            .paste("STORE", template.store());
        let name = if row_quads == 1 { "matmul_tile" } else { "matmul_tile_large" };
        Variant::single(name, self.launch(kernel, template.output(), tiles).param("tiles", tiles))
    }

    /// Completes a launch with what all kernels share.
    fn launch(&self, kernel: Kernel, output: &str, groups: usize) -> Launch {
        let kernel = kernel.retype("Elem", self.c).paste("OUTPUT", self.output(output));
        let mut bindings = vec![Bind::Input(0), Bind::Input(1)];
        if self.op.has_bias {
            bindings.push(Bind::Input(2));
        }
        bindings.push(Bind::Output(0));
        self.sizes.params(Launch::new(kernel, bindings, groups))
    }

    /// The output's binding, the bias and what finishes a sum.
    fn output(&self, array: &str) -> String {
        let mut text = String::new();
        let mut binding = 2;
        let mut bias = "return 0.0;";
        if self.op.has_bias {
            text.push_str("@group(0) @binding(2) var<storage, read> bias: array<Elem>;   // [N]\n");
            binding = 3;
            bias = "return f32(bias[column]);";
        }
        let _ = writeln!(text, "@group(0) @binding({binding}) var<storage, read_write> c: {array};");
        let _ = writeln!(text, "fn bias_at(column: u32) -> f32 {{ {bias} }}");
        let _ = writeln!(text, "fn finish(sum: f32, bias: f32) -> f32 {{\n    let x0 = sum + bias;");
        let mut result = "x0".to_string();
        if let Some(activation) = &self.op.activation {
            for (number, step) in activation.steps.iter().enumerate() {
                let _ = writeln!(text, "    let t{number} = {};", pointwise::expression(step));
            }
            result = format!("t{}", activation.outputs[0]);
        }
        let _ = writeln!(text, "    return {result};\n}}");
        text
    }
}
