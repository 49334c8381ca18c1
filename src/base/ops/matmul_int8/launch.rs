//! Which kernels a matmul of codes may use on an adapter, with their tiles.

use super::{MatmulInt8, Sizes, register, tile, vector};
use crate::ops::launch::{Bind, Caps, Kernel, Launch, Variant};
use crate::ops::pointwise;
use std::fmt::Write;

/// Invocations per workgroup of the register kernels: what a CPU driver runs side by side in one vector.
const GROUP: usize = 8;
/// Workgroups from which the larger tile keeps a GPU busy.
const BUSY: usize = 256;
/// Tiles below which rows are cut finer, so that every core gets some.
const FEW_TILES: usize = 8;
/// Codes to whose multiple rows are brought that begin within a word.
const ROW_UNIT: usize = 16;

pub(super) fn variants(op: &MatmulInt8, sizes: Sizes, caps: &Caps) -> Vec<Variant> {
    let whole = sizes.k.is_multiple_of(4);
    if let Some(group) = op.group {
        return by_groups(op, sizes, group, caps);
    }
    let k = if whole { sizes.k } else { sizes.k.next_multiple_of(ROW_UNIT) };
    let plan = Plan { op, sizes: Sizes { k, ..sizes } };
    let broadcast = (caps.subgroup && [4, 8].contains(&caps.subgroup_size))
        .then(|| plan.register(register::Sum::Fma, caps.subgroup_size as usize, "matmul_int8_broadcast"));
    let alone = [
        plan.register(register::Sum::Fma, 1, "matmul_int8_register"),
        plan.register(register::Sum::Dot, 1, "matmul_int8_dot"),
    ];
    let registers = broadcast.into_iter().chain(alone);
    let tiles = if caps.max_invocations as usize >= tile::GROUP { plan.tiles() } else { vec![] };
    let mut variants: Vec<Variant> = if caps.is_cpu {
        registers.chain(tiles).collect()
    } else {
        tiles.into_iter().chain(registers).collect()
    };
    variants.splice(0..0, plan.vectors(caps));
    if !whole {
        variants.iter_mut().for_each(|variant| bring_to_words(variant, sizes, k));
    }
    variants.push(Plan { op, sizes }.plain());
    variants
}

/// Kernels for groups of columns with scales: those that hold their loads whole.
fn by_groups(op: &MatmulInt8, sizes: Sizes, group: usize, caps: &Caps) -> Vec<Variant> {
    let plan = Plan { op, sizes };
    let mut variants = vec![];
    if sizes.k.is_multiple_of(4) && group.is_multiple_of(4) {
        variants.extend(plan.vectors(caps));
        if caps.is_cpu && group <= register::RUN {
            let broadcast = caps.subgroup && [4, 8].contains(&caps.subgroup_size);
            let lanes = caps.subgroup_size as usize;
            variants
                .extend(broadcast.then(|| plan.register(register::Sum::Fma, lanes, "matmul_int8_broadcast")));
            variants.push(plan.register(register::Sum::Fma, 1, "matmul_int8_register"));
        } else if caps.max_invocations as usize >= tile::GROUP && group.is_multiple_of(tile::STAGE) {
            variants.extend(plan.tiles());
        }
    }
    variants.push(plan.plain());
    variants
}

/// Lets a variant work on copies of A and B whose rows begin with a word.
fn bring_to_words(variant: &mut Variant, sizes: Sizes, padded: usize) {
    let words = padded / 4;
    let copies = [sizes.m, sizes.n].into_iter().enumerate().map(|(operand, rows)| {
        let bindings = [Bind::Input(operand), Bind::Scratch(operand)];
        let launch = Launch::new(Kernel::new("matmul_int8_pad"), bindings, (rows * words).div_ceil(64));
        launch.param("count", rows * words).param("words", words).param("cols", sizes.k)
    });
    for bind in variant.launches.iter_mut().flat_map(|launch| &mut launch.bindings) {
        if let Bind::Input(operand @ (0 | 1)) = *bind {
            *bind = Bind::Scratch(operand);
        }
    }
    variant.launches.splice(0..0, copies);
    variant.scratch = [sizes.m, sizes.n].map(|rows| (rows * padded) as u64).into();
}

struct Plan<'a> {
    op: &'a MatmulInt8,
    /// K as the kernel sees it.
    sizes: Sizes,
}

impl Plan<'_> {
    fn plain(&self) -> Variant {
        let count = self.sizes.m * self.sizes.n;
        let launch = self.launch(Kernel::new("matmul_int8_plain"), "array<f32>", count.div_ceil(64));
        let launch = launch.param("group", self.op.group.unwrap_or(self.sizes.k));
        let launch = launch.param("groups", self.op.groups(self.sizes.k));
        Variant::single("matmul_int8_plain", launch)
    }

    fn register(&self, sum: register::Sum, lanes: usize, name: &'static str) -> Variant {
        let Sizes { m, n, k } = self.sizes;
        let (rows, columns) =
            if sum == register::Sum::Dot { (8, 8) } else { (8, if lanes == 1 { 16 } else { 8 }) };
        let mut template = register::Template {
            sum,
            lanes,
            rows,
            columns,
            chunk: if k.is_multiple_of(8) && self.op.group.is_none_or(|g| g.is_multiple_of(8)) {
                8
            } else {
                4
            },
            in_runs: self.op.group.is_some() || sum == register::Sum::Fma && k > register::RUN,
            group: self.op.group,
            fours: n.is_multiple_of(4),
        };
        let tile_n = columns * lanes;
        let tiles = |rows: usize| m.div_ceil(rows) * n.div_ceil(tile_n);
        if lanes > 1 {
            let fits = |&rows: &usize| m > rows / 2 && tiles(rows) >= FEW_TILES;
            template.rows = [32, 16].into_iter().find(fits).unwrap_or(8);
        }
        let tiles = tiles(template.rows);
        let kernel = Kernel::new("matmul_int8_register")
            .constant("GROUP", GROUP.max(lanes) as u32)
            .constant("LANES", lanes as u32)
            .constant("TILE_M", template.rows as u32)
            .constant("TILE_N", tile_n as u32)
            .paste("INPUT", template.input())
            .paste("BODY", template.body());
        let groups = (tiles * lanes).div_ceil(GROUP.max(lanes));
        Variant::single(name, self.launch(kernel, template.output(), groups).param("tiles", tiles))
    }

    /// For many outputs the larger tile first, which reads less for each sum; then the same with the other form of the product.
    fn tiles(&self) -> Vec<Variant> {
        let tile =
            |side, packed, name| self.tile(tile::Template { side, packed, group: self.op.group }, name);
        let small = tile(4, true, "matmul_int8_tile");
        let large = tile(8, true, "matmul_int8_tile_large");
        let unpacked = tile(4, false, "matmul_int8_tile_unpack");
        let groups = large.launches[0].groups.iter().map(|&g| g as usize).product::<usize>();
        if groups >= BUSY { vec![large, small, unpacked] } else { vec![small, large, unpacked] }
    }

    fn tile(&self, template: tile::Template, name: &'static str) -> Variant {
        let side = template.side * tile::SIDE;
        let tiles = self.sizes.m.div_ceil(side) * self.sizes.n.div_ceil(side);
        let kernel = Kernel::new("matmul_int8_tile")
            .constant("TILE", side as u32)
            .paste("SUMS", template.sums())
            .paste("MULTIPLY", template.multiply())
            .paste("END_GROUP", template.end_group())
            .paste("STORE", template.store());
        Variant::single(name, self.launch(kernel, "array<f32>", tiles).param("tiles", tiles))
    }

    /// Kernels for a few rows of A, where reading B is all the work.
    fn vectors(&self, caps: &Caps) -> Vec<Variant> {
        let Sizes { m, n, k } = self.sizes;
        let variant = |template: vector::Template| {
            let tiles = n.div_ceil(template.tile_n());
            let kernel = Kernel::new("matmul_int8_vector")
                .constant("GROUP", template.group() as u32)
                .constant("LANES", template.lanes() as u32)
                .paste("INPUT", template.input())
                .paste("BODY", template.body());
            let launch = self.launch(kernel, "array<f32>", template.groups(tiles)).param("tiles", tiles);
            Variant::single(template.name(), launch)
        };
        vector::Template::fitting(m, k, self.op.group, caps).into_iter().map(variant).collect()
    }

    /// Completes a launch with what all kernels share.
    fn launch(&self, kernel: Kernel, output: &str, groups: usize) -> Launch {
        let mut bindings: Vec<Bind> = (0..4 + self.op.has_bias as usize).map(Bind::Input).collect();
        bindings.push(Bind::Output(0));
        let Sizes { m, n, k } = self.sizes;
        let launch = Launch::new(kernel.paste("OUTPUT", self.output(output)), bindings, groups);
        launch.param("m", m).param("n", n).param("k", k)
    }

    /// The output's binding, scales, the bias and what finishes a sum.
    fn output(&self, array: &str) -> String {
        let mut text = String::from(
            "@group(0) @binding(2) var<storage, read> a_scale: array<f32>;   // [M]\n\
             @group(0) @binding(3) var<storage, read> b_scale: array<f32>;   // [N] or [N, groups]\n",
        );
        let (mut binding, mut bias) = (4, "return 0.0;");
        if self.op.has_bias {
            text += "@group(0) @binding(4) var<storage, read> bias: array<f32>;   // [N]\n";
            (binding, bias) = (5, "return bias[column];");
        }
        let _ = writeln!(text, "@group(0) @binding({binding}) var<storage, read_write> c: {array};");
        let _ = writeln!(text, "fn bias_at(column: u32) -> f32 {{ {bias} }}");
        let _ = writeln!(text, "fn finish(sum: f32, row_scale: f32, column_scale: f32, bias: f32) -> f32 {{");
        let _ = writeln!(text, "    let x0 = sum * row_scale * column_scale + bias;");
        text + &pointwise::ending(self.op.activation.as_ref())
    }
}
