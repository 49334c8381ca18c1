//! Which kernels a matmul may use on an adapter, with their tiles.

use super::access::{Access, single};
use super::geometry::{Form, Geometry};
use super::{Matmul, cooperative, register, tile, vector};
use crate::ops::launch::{Bind, Caps, Kernel, Launch, Variant, spread};
use crate::ops::pointwise;
use crate::tensor::DType;
use std::fmt::Write;

/// Invocations per workgroup of the tiled kernel.
pub(in crate::ops) const TILE_GROUP: u32 = 256;
/// Workgroups from which the larger tile keeps a GPU busy.
pub(in crate::ops) const BUSY: usize = 256;
/// Steps that a part of K is worth at least.
const LEAST_STEPS: usize = 4;
/// Parts of K at most: adding them up must not cost what they save.
const MOST_PARTS: usize = 16;

/// `types` are the storage of A, of B and of the output.
///
/// A driver on the CPU is offered registers alone: there workgroup memory is storage, and trying it costs more than it can win.
pub(super) fn variants(op: &Matmul, sizes: Geometry, types: [DType; 3], caps: &Caps) -> Vec<Variant> {
    let [a, b, c] = types;
    let plan = Plan { op, sizes, operands: [a, b], c };
    let shared = || plan.register(1, false, "matmul_register");
    let mut variants = plan.vectors(caps);
    if caps.is_cpu {
        let broadcast = caps.subgroup && [2, 4, 8].contains(&caps.subgroup_size);
        variants.extend(
            broadcast.then(|| plan.register(caps.subgroup_size as usize, caps.int64, "matmul_broadcast")),
        );
        variants.push(shared());
    } else if caps.max_invocations >= TILE_GROUP {
        variants.extend(plan.cooperatives(caps));
        variants.extend(plan.split(caps));
        variants.extend(plan.tiles(caps));
    } else {
        variants.push(shared());
    }
    variants.push(plan.plain());
    variants
}

/// A size of the tile of the tiled kernel.
pub(in crate::ops) struct Tile {
    /// Name of the variant, after `matmul_`.
    pub name: &'static str,
    /// Quads of rows and of columns that each invocation owns.
    pub quads: [usize; 2],
    /// Buffers staged in turn.
    pub buffers: usize,
}

/// For many outputs the first ones first, which read less for each sum; for few the last ones, which keep more cores busy.
pub(in crate::ops) const TILES: [Tile; 5] = [
    Tile { name: "tile_large_double", quads: [2, 2], buffers: 2 },
    Tile { name: "tile_large", quads: [2, 2], buffers: 1 },
    Tile { name: "tile_wide_double", quads: [1, 2], buffers: 2 },
    Tile { name: "tile", quads: [1, 1], buffers: 1 },
    Tile { name: "tile_double", quads: [1, 1], buffers: 2 },
];

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
            codes: None,
        };
        let tiles = template.fit_rows(&self.sizes);
        let launch = self.launch(template.kernel(), &template.output(), template.groups(tiles));
        Variant::single(name, launch.param("tiles", tiles))
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

    /// The tiled kernel in each size.
    fn tiles(&self, caps: &Caps) -> Vec<Variant> {
        let fits = |tile: &&Tile| self.tile(tile).workgroup_bytes() <= caps.max_workgroup_bytes as usize;
        let variant =
            |tile: &Tile| Variant::single(format!("matmul_{}", tile.name), self.tiled(self.tile(tile), 1));
        let mut variants: Vec<Variant> = TILES.iter().filter(fits).map(variant).collect();
        if self.tile(&TILES[0]).tiles(&self.sizes) < BUSY {
            variants.reverse();
        }
        variants
    }

    /// Few outputs with long sums: K is shared out as well, and what each part gives is added up in order.
    fn split(&self, caps: &Caps) -> Option<Variant> {
        let double = self.tile(&TILES[4]);
        let fits = double.workgroup_bytes() <= caps.max_workgroup_bytes as usize;
        let template = if fits { double } else { self.tile(&TILES[3]) };
        let most = self.sizes.k / (LEAST_STEPS * template.step());
        let parts = (BUSY / template.tiles(&self.sizes)).min(most).min(MOST_PARTS);
        if parts < 2 {
            return None;
        }
        let count = self.sizes.matrices() * self.sizes.m * self.sizes.n;
        let bare = Matmul::new(self.op.form);
        let plan = Plan { op: &bare, c: DType::F32, sizes: self.sizes, operands: self.operands };
        let mut partial = plan.tiled(template, parts);
        *partial.bindings.last_mut().expect("a matmul binds its output") = Bind::Scratch(0);
        let mut bindings = vec![Bind::Scratch(0)];
        bindings.extend(self.op.has_bias.then_some(Bind::Input(2)));
        bindings.push(Bind::Output(0));
        let kernel =
            Kernel::new("matmul_sum").retype("Elem", self.c).paste("OUTPUT", self.output("array<Elem>", 1));
        let sum = Launch::new(kernel, bindings, spread(count))
            .param("count", count)
            .param("n", self.sizes.n)
            .param("parts", parts_of(self.sizes.k, parts, template.step()).0);
        let scratch = vec![4 * (parts * count) as u64];
        Some(Variant { name: "matmul_tile_split".into(), launches: vec![partial, sum], scratch })
    }

    fn tile(&self, tile: &Tile) -> tile::Template {
        let Geometry { m, n, k, .. } = self.sizes;
        let form = self.op.form;
        tile::Template {
            form,
            operands: self.operands,
            row_quads: tile.quads[0],
            column_quads: tile.quads[1],
            buffers: tile.buffers,
            a_fours: if form == Form::Tn { m } else { k }.is_multiple_of(4),
            b_fours: if form == Form::Nt { k } else { n }.is_multiple_of(4),
            c_fours: form != Form::Nt && n.is_multiple_of(4),
        }
    }

    /// The tiled kernel with K in so many parts.
    fn tiled(&self, template: tile::Template, parts: usize) -> Launch {
        let tiles = template.tiles(&self.sizes);
        let (parts, depth) = parts_of(self.sizes.k, parts, template.step());
        self.launch(template.kernel(template.input()), template.output(), tiles * parts)
            .param("tiles", tiles)
            .param("parts", parts)
            .param("depth", depth)
            .param("outputs", self.sizes.matrices() * self.sizes.m * self.sizes.n)
    }

    /// Kernels by cooperative matrices, where both operands have their storage.
    fn cooperatives(&self, caps: &Caps) -> Vec<Variant> {
        let Geometry { m, n, k, .. } = self.sizes;
        let templates = cooperative::Template::fitting(self.op.form, self.operands, [m, n, k], caps);
        let tiles_of = |template: &cooperative::Template| {
            let [tile_m, tile_n] = template.tile();
            self.sizes.matrices() * m.div_ceil(tile_m) * n.div_ceil(tile_n)
        };
        let variant = |template: &cooperative::Template| {
            let tiles = tiles_of(template);
            let mut kernel = Kernel::new("matmul_cooperative")
                .retype("Operand", template.operand())
                .paste("INPUT", template.input())
                .paste("STAGING", template.staging())
                .paste("BEGIN", template.begin())
                .paste("STAGE", template.stage())
                .paste("AHEAD", template.ahead())
                .paste("MULTIPLY", template.multiply())
                .paste("TURN", template.turn())
                .paste("STORE", template.store());
            for (name, value) in template.constants() {
                kernel = kernel.constant(name, value as u32);
            }
            Variant::single(template.name(), self.launch(kernel, "array<Elem>", tiles).param("tiles", tiles))
        };
        let mut variants: Vec<Variant> = templates.iter().map(variant).collect();
        if templates.first().is_some_and(|large| tiles_of(large) < BUSY / 2) {
            variants.reverse();
        }
        variants
    }

    /// Completes a launch with what all kernels share.
    fn launch(&self, kernel: Kernel, output: &str, groups: usize) -> Launch {
        let kernel = kernel.retype("Elem", self.c).paste("OUTPUT", self.output(output, 2));
        let mut bindings = vec![Bind::Input(0), Bind::Input(1)];
        if self.op.has_bias {
            bindings.push(Bind::Input(2));
        }
        bindings.push(Bind::Output(0));
        self.sizes.params(Launch::new(kernel, bindings, groups))
    }

    /// The bias and the output's binding, from `binding` on, and what finishes a sum.
    fn output(&self, array: &str, mut binding: usize) -> String {
        let mut text = String::new();
        let mut bias = "return 0.0;";
        if self.op.has_bias {
            let _ = writeln!(
                text,
                "@group(0) @binding({binding}) var<storage, read> bias: array<Elem>;   // [N]"
            );
            binding += 1;
            bias = "return f32(bias[column]);";
        }
        let _ = writeln!(text, "@group(0) @binding({binding}) var<storage, read_write> c: {array};");
        let _ = writeln!(text, "fn bias_at(column: u32) -> f32 {{ {bias} }}");
        let _ = writeln!(text, "fn finish(sum: f32, bias: f32) -> f32 {{\n    let x0 = sum + bias;");
        text + &pointwise::ending(self.op.activation.as_ref())
    }
}

/// How many parts K really falls into, and the length of each, a multiple of the step.
fn parts_of(k: usize, parts: usize, step: usize) -> (usize, usize) {
    let depth = k.div_ceil(parts).next_multiple_of(step);
    (k.div_ceil(depth), depth)
}
