//! A plan as text: memory first, then one line a dispatch.

use super::{Place, Plan};
use std::fmt::{self, Display};

impl Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Slot(slot) => write!(f, "s{slot}"),
            Place::Input(offset) => write!(f, "in+{offset}"),
            Place::Constant(offset) => write!(f, "const+{offset}"),
            Place::Arena(span) => write!(f, "a{}+{}", span.arena, span.offset_bytes),
        }
    }
}

impl Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "slots {:?} = {} bytes", self.slots, self.slot_bytes())?;
        writeln!(f, "inputs {} bytes, constants {} bytes", self.feed_bytes, self.known_bytes)?;
        for dispatch in &self.dispatches {
            let places: Vec<_> = dispatch.bindings.iter().map(|b| b.place.to_string()).collect();
            let [x, y, z] = dispatch.groups;
            let op = &self.graph.nodes()[dispatch.node].op;
            let node = format!("{:>4} {} [{}]", dispatch.node, op.name(), dispatch.variant);
            writeln!(f, "{node} ({}) x {x},{y},{z}", places.join(", "))?;
        }
        for read in &self.reads {
            writeln!(f, "read `{}` at {} : {}", read.name, read.place, read.kind)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Residents, Span, first_variant, plan};
    use crate::graph::{Graph, gradient};
    use crate::ops::launch::Caps;
    use crate::ops::pointwise::PointwiseEmit;
    use crate::ops::reduce::ReduceEmit;
    use crate::tensor::Type;

    #[test]
    fn the_plan_of_a_small_step_reads_as_expected() {
        // loss = mean((x * w)^2); the gradient of w goes to an arena, the loss is read back.
        let mut graph = Graph::new();
        let x = graph.input("x", Type::f32([3, 8]));
        let w = graph.parameter("w", Type::f32([8]));
        let y = graph.mul(x, w).unwrap();
        let square = graph.pointwise("square", &[y], 0.0).unwrap();
        let loss = graph.mean_all(square).unwrap();
        let dw = gradient(&mut graph, loss, &[w]).unwrap()[0].unwrap();
        graph.output("loss", loss);
        graph.output("dw", dw);
        let residents = Residents {
            places: [("w".to_string(), Span { arena: 0, offset_bytes: 512 })].into(),
            results: [("dw".to_string(), Span { arena: 1, offset_bytes: 512 })].into(),
            ..Residents::default()
        };
        let plan = plan(&graph, &residents, &Caps::portable(), &mut first_variant).unwrap();
        assert_eq!(plan.to_string(), GOLDEN);
    }

    const GOLDEN: &str = "\
slots [96, 96, 96, 4] = 292 bytes
inputs 256 bytes, constants 256 bytes
   0 mul [pointwise_wide] (in+0, a0+512, s0) x 1,1,1
   1 square [pointwise_wide] (s0, s1) x 1,1,1
   3 mean [reduce_row] (s1, s3) x 1,1,1
   6 scale [pointwise] (const+0, s2) x 1,1,1
   7 expand [pointwise_wide] (s2, s1) x 1,1,1
   9 scale [pointwise_wide] (s0, s2) x 1,1,1
  10 mul [pointwise_wide] (s1, s2, s0) x 1,1,1
  11 mul [pointwise_wide] (s0, in+0, s1) x 1,1,1
  12 sum [reduce_lane] (s1, a1+512) x 1,1,1
read `loss` at s3 : f32[]
";
}
