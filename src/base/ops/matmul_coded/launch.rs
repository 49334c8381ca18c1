//! Which kernels a matmul by codes may use on an adapter.

use super::{MatmulCoded, Sizes, vector};
use crate::ops::launch::{Bind, Caps, Kernel, Launch, Variant};
use crate::ops::matmul::Form;
use crate::ops::matmul::access::{Access, four};
use crate::ops::matmul::geometry::Geometry;
use crate::ops::matmul::launch::{BUSY, TILE_GROUP, TILES, Tile};
use crate::ops::matmul::{register, tile};
use crate::ops::pointwise;
use crate::tensor::{DType, Shape};
use std::fmt::Write;

/// Codes that the register kernels read together.
const CHUNK: usize = 8;

pub(super) fn variants(op: &MatmulCoded, sizes: Sizes, caps: &Caps) -> Vec<Variant> {
    let plan = Plan { op, sizes };
    let mut variants = if op.transposed { vec![] } else { plan.vectors(caps) };
    if caps.is_cpu {
        let broadcast = caps.subgroup && [2, 4, 8].contains(&caps.subgroup_size);
        variants.extend(
            broadcast
                .then(|| plan.register(caps.subgroup_size as usize, caps, "matmul_coded_broadcast"))
                .flatten(),
        );
        variants.extend(plan.register(1, caps, "matmul_coded_register"));
    } else if caps.max_invocations >= TILE_GROUP {
        variants.extend(plan.tiles(caps));
    }
    variants.push(plan.plain());
    variants
}

struct Plan<'a> {
    op: &'a MatmulCoded,
    sizes: Sizes,
}

impl Plan<'_> {
    /// The sizes as the matmul's own kernels see them: W as numbers.
    fn geometry(&self) -> Geometry {
        let Sizes { m, n, k } = self.sizes;
        let x = [m, if self.op.transposed { n } else { k }];
        Geometry::of(self.op.plain().form, &Shape::from(x), &Shape::from([n, k]))
            .expect("the signature has accepted these operands")
    }

    /// Columns of W in the shader's terms.
    fn cols(&self) -> &'static str {
        if self.op.transposed { "params.n" } else { "params.k" }
    }

    fn plain(&self) -> Variant {
        let mut input = "@group(0) @binding(0) var<storage, read> a: array<f32>;\n".to_string();
        input += "fn read_a(at: u32) -> f32 { return a[at]; }\n";
        input += &self.op.layout.declare(1, self.cols());
        let cols = self.cols();
        let _ =
            writeln!(input, "fn read_b(at: u32) -> f32 {{ return weight_at(at / {cols}, at % {cols}); }}");
        let kernel =
            Kernel::new("matmul_plain").constant("FORM", self.op.plain().form as u32).paste("INPUT", input);
        let geometry = self.geometry();
        let count = geometry.m * geometry.n;
        let launch = self.launch(kernel, "array<f32>", count.div_ceil(64)).param("count", count);
        Variant::single("matmul_coded_plain", launch)
    }

    /// The matmul's register kernel with codes for B, where chunks of eight suit them.
    fn register(&self, lanes: usize, caps: &Caps, name: &'static str) -> Option<Variant> {
        let (geometry, layout) = (self.geometry(), self.op.layout);
        let one_group = layout.groups() == 1 || layout.group.is_multiple_of(CHUNK);
        if !layout.cols.is_multiple_of(CHUNK) || !one_group {
            return None;
        }
        let access = |axis| Access::widest(DType::F32, axis, CHUNK, caps.int64 && lanes > 1);
        let mut template = register::Template {
            form: self.op.plain().form,
            chunk: CHUNK,
            lanes,
            rows: 8,
            columns: 8,
            a: access(geometry.k),
            b: Access::Fours,
            c: Access::widest_output(DType::F32, geometry.n, CHUNK, caps.int64 && lanes > 1),
            ragged_k: !geometry.k.is_multiple_of(CHUNK),
            codes: Some(layout),
        };
        let tiles = template.fit_rows(&geometry);
        let launch = self.launch(template.kernel(), &template.output(), template.groups(tiles));
        Some(Variant::single(name, launch.param("tiles", tiles)))
    }

    /// The matmul's tiled kernel in each size, with codes for B.
    fn tiles(&self, caps: &Caps) -> Vec<Variant> {
        let geometry = self.geometry();
        let fits = |tile: &&Tile| self.tile(tile).workgroup_bytes() <= caps.max_workgroup_bytes as usize;
        let variant = |tile: &Tile| {
            let template = self.tile(tile);
            let tiles = template.tiles(&geometry);
            let kernel = template.kernel(self.tile_input(&template));
            let launch = self.launch(kernel, template.output(), tiles);
            let launch = launch.param("tiles", tiles).param("parts", 1usize);
            let launch = launch.param("depth", geometry.k.next_multiple_of(template.step()));
            let launch = launch.param("outputs", geometry.m * geometry.n);
            Variant::single(format!("matmul_coded_{}", tile.name), launch)
        };
        let mut variants: Vec<Variant> = TILES.iter().filter(fits).map(variant).collect();
        if self.tile(&TILES[0]).tiles(&geometry) < BUSY {
            variants.reverse();
        }
        variants
    }

    fn tile(&self, tile: &Tile) -> tile::Template {
        let geometry = self.geometry();
        let form = self.op.plain().form;
        tile::Template {
            form,
            operands: [DType::F32; 2],
            row_quads: tile.quads[0],
            column_quads: tile.quads[1],
            buffers: tile.buffers,
            a_fours: geometry.k.is_multiple_of(4),
            b_fours: true,
            c_fours: form != Form::Nt && geometry.n.is_multiple_of(4),
        }
    }

    /// X, the matrix of codes, and how four elements of each are staged.
    fn tile_input(&self, template: &tile::Template) -> String {
        let mut text = four(0, "a", DType::F32, ["m", "k"], template.a_fours);
        text += &self.op.layout.declare(1, self.cols());
        text += "fn read_b(base: u32, line: u32, at: u32, first: u32, k0: u32) -> vec4<f32> {\n";
        let (row, row_end, col) = match self.op.transposed {
            false => ("first", "params.n", "k0"),
            true => ("k0", "params.k", "first"),
        };
        let cols = self.cols();
        let _ = writeln!(text, "    let row = {row} + line;\n    let col = {col} + at;");
        let _ = writeln!(text, "    if row >= {row_end} || col >= {cols} {{ return vec4<f32>(); }}");
        text + "    return weights_at(row, col);\n}\n"
    }

    /// Kernels for a few rows of X, where reading W is all the work.
    fn vectors(&self, caps: &Caps) -> Vec<Variant> {
        let Sizes { m, n, .. } = self.sizes;
        let variant = |template: vector::Template| {
            let tiles = n.div_ceil(template.tile(1));
            let mut body = String::new();
            let store = "c[row * params.n0 + column] = finish(y0, bias_at(column));";
            template.over_tiles(&mut body, |text| template.dot(text, &[0], "params.n0", "tile", store));
            let kernel = Kernel::new("matmul_coded_vector")
                .constant("GROUP", template.group() as u32)
                .constant("LANES", template.lanes() as u32)
                .paste("INPUT", template.declare_x() + &template.declare(0, 1) + &template.shared(1))
                .paste("OUTPUT", self.output("array<f32>"))
                .paste("BEGIN", "")
                .paste("BODY", body);
            let launch = Launch::new(kernel, self.bindings(), template.groups(tiles));
            Variant::single(template.name(), vector::with_params(launch, &[n], &[tiles]))
        };
        vector::Template::fitting(self.op.layout, m, caps).into_iter().map(variant).collect()
    }

    fn bindings(&self) -> Vec<Bind> {
        (0..self.op.inputs()).map(Bind::Input).chain([Bind::Output(0)]).collect()
    }

    /// Completes a launch with what all kernels share.
    fn launch(&self, kernel: Kernel, output: &str, groups: usize) -> Launch {
        let kernel = kernel.paste("OUTPUT", self.output(output));
        self.geometry().params(Launch::new(kernel, self.bindings(), groups))
    }

    /// The bias and the output's binding, and what finishes a sum.
    fn output(&self, array: &str) -> String {
        let mut text = String::new();
        let last = self.op.inputs();
        let mut bias = "return 0.0;";
        if self.op.has_bias {
            let binding = last - 1;
            let _ = writeln!(text, "@group(0) @binding({binding}) var<storage, read> bias: array<f32>;");
            bias = "return bias[column];";
        }
        let _ = writeln!(text, "@group(0) @binding({last}) var<storage, read_write> c: {array};");
        let _ = writeln!(text, "fn bias_at(column: u32) -> f32 {{ {bias} }}");
        let _ = writeln!(text, "fn finish(sum: f32, bias: f32) -> f32 {{\n    let x0 = sum + bias;");
        text + &pointwise::ending(self.op.activation.as_ref())
    }
}
