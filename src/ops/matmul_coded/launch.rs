//! Which kernels a matmul by codes may use on an adapter.

use super::{MatmulCoded, Sizes, vector};
use crate::ops::launch::{Bind, Caps, Kernel, Launch, Variant};
use crate::ops::matmul::geometry::Geometry;
use crate::ops::pointwise;
use crate::tensor::Shape;
use std::fmt::Write;

pub(super) fn variants(op: &MatmulCoded, sizes: Sizes, caps: &Caps) -> Vec<Variant> {
    let plan = Plan { op, sizes };
    let mut variants = if op.transposed { vec![] } else { plan.vectors(caps) };
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
