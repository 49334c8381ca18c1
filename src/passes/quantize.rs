//! Weights as codes or in 16 bits: operators read what is stored, and the weight in 32 bits is never uploaded.
//!
//! Products with a weight become products with its codes, in numbers or, where activations are coded too, in whole numbers;
//! embeddings look rows of codes up. Whatever else reads such a weight reads it decoded.

use super::{Pass, Promise};
use crate::graph::{self, Graph, Node, Rewriter, Source};
use crate::ops::cast::CastEmit;
pub use crate::ops::coded::Activations;
use crate::ops::dequantize_coded::DequantizeCodedEmit;
use crate::ops::matmul_coded::{CodedMatrix, Layout};
use crate::ops::quantize_fixed::QuantizeFixedEmit;
use crate::ops::quantize_rows::QuantizeRowsEmit;
use crate::ops::reshape::ReshapeEmit;
use crate::ops::transpose::TransposeEmit;
use crate::ops::{Emit, Value};
use crate::tensor::{DType, Tensor, Type};
use std::collections::{BTreeMap, HashMap};

/// A weight as codes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CodedWeight {
    /// The codes' rows.
    pub rows: usize,
    /// How they lie.
    pub layout: Layout,
    /// The codes are those of the weight's transpose: it is stored as [in, out].
    pub turned: bool,
    /// What meets them in a product.
    pub activations: Activations,
}

/// How a weight is held on a device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum StoredWeight {
    /// As codes, in parameters of their own.
    Codes(CodedWeight),
    /// In f16 or bf16, under its own name.
    Halves(DType),
}

/// What stands in a graph for a coded weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The codes.
    Codes,
    /// Their scales.
    Scales,
    /// Their offsets.
    Offsets,
}

impl Part {
    /// The parts in the order in which operators read them.
    pub const ALL: [Part; 3] = [Part::Codes, Part::Scales, Part::Offsets];

    /// Name of the parameter that holds a part of a weight.
    pub fn name(self, weight: &str) -> String {
        let part = match self {
            Part::Codes => "codes",
            Part::Scales => "scales",
            Part::Offsets => "offsets",
        };
        format!("{weight}.{part}")
    }
}

impl CodedWeight {
    /// Types of the parts. Scales that whole sums are multiplied with have one axis.
    pub fn types(&self) -> Vec<Type> {
        let mut types = self.layout.types(self.rows);
        if self.activations != Activations::Numbers {
            types[1] = Type::f32([self.rows]);
        }
        types
    }
}

/// Reads weights as they are stored.
#[derive(Clone, Debug, Default)]
pub struct Quantize {
    /// Those that are not stored as f32, by name.
    pub weights: BTreeMap<String, StoredWeight>,
}

/// What stands in the new graph for a weight.
struct Held {
    weight: StoredWeight,
    parts: Vec<Value>,
    /// The weight as numbers, once something has asked for it.
    decoded: Option<Value>,
}

impl Pass for Quantize {
    fn name(&self) -> &'static str {
        "quantize"
    }

    fn promise(&self) -> Promise {
        if self.weights.is_empty() { Promise::Exact } else { Promise::Lossy }
    }

    fn rewrite(&self, graph: &Graph) -> graph::Result<Graph> {
        if let Some(name) = self.weights.keys().find(|name| graph.named(name).is_none()) {
            return Err(graph::Error::Missing { name: name.clone() });
        }
        let stored = |name: &Option<String>| name.as_ref().and_then(|name| self.weights.get(name));
        let mut rewriter = Rewriter::without(graph, |info| {
            matches!(info.source, Source::Parameter) && stored(&info.name).is_some()
        });
        let mut work = Work { held: HashMap::new(), quantised: HashMap::new() };
        for (name, old) in graph.parameters() {
            let Some(&weight) = self.weights.get(name) else { continue };
            let parts = match weight {
                StoredWeight::Codes(coded) => {
                    let parts = Part::ALL.into_iter().zip(coded.types());
                    parts.map(|(part, kind)| rewriter.new.parameter(part.name(name), kind)).collect()
                }
                StoredWeight::Halves(dtype) => {
                    let kind = Type::new(dtype, graph.kind(old).shape.clone());
                    vec![rewriter.new.parameter(name, kind)]
                }
            };
            work.held.insert(old, Held { weight, parts, decoded: None });
        }
        for node in graph.nodes() {
            let stored: Vec<usize> =
                (0..node.inputs.len()).filter(|&at| work.held.contains_key(&node.inputs[at])).collect();
            let done = match stored[..] {
                [] => false,
                [at] => work.on_codes(&mut rewriter, node, at)? || work.reading(&mut rewriter, node, at)?,
                _ => false,
            };
            if !done {
                work.decode(&mut rewriter, graph, node)?;
            }
        }
        Ok(rewriter.finish())
    }
}

/// A rewriting under way.
struct Work {
    held: HashMap<Value, Held>,
    /// Activations that are codes already: they are coded once however many products read them.
    quantised: HashMap<(Value, Activations), [Value; 2]>,
}

impl Work {
    /// Writes a product of codes with codes, if the node's input `at` is a weight that meets coded activations there.
    fn on_codes(&mut self, rewriter: &mut Rewriter, node: &Node, at: usize) -> graph::Result<bool> {
        let Held { weight: StoredWeight::Codes(weight), parts, .. } = &self.held[&node.inputs[at]] else {
            return Ok(false);
        };
        if weight.activations == Activations::Numbers {
            return Ok(false);
        }
        let Some(op) = node.op.on_codes(weight.turned).filter(|_| at == 1) else { return Ok(false) };
        let (x, activations) = (rewriter.get(node.inputs[0]), weight.activations);
        let [codes, scales] = match self.quantised.get(&(x, activations)) {
            Some(&done) => done,
            None => {
                let done = rewriter.emit_in(&node.scope, |graph| match activations {
                    Activations::Fixed(rule, scale) => {
                        let scale = graph.constant(Tensor::f32([1], vec![scale.value()]));
                        graph.quantize_fixed(x, scale, rule)
                    }
                    Activations::Rows(rule) => graph.quantize_rows(x, rule),
                    Activations::Numbers => unreachable!("those were left out above"),
                })?;
                self.quantised.insert((x, activations), done);
                done
            }
        };
        let mut inputs = vec![codes, parts[0], scales, parts[1]];
        inputs.extend(node.inputs[2..].iter().map(|&value| rewriter.get(value)));
        rewriter.replace(node, op, &inputs)?;
        Ok(true)
    }

    /// Writes the node as it reads its input `at` the way it is stored, if it can.
    fn reading(&self, rewriter: &mut Rewriter, node: &Node, at: usize) -> graph::Result<bool> {
        let held = &self.held[&node.inputs[at]];
        let op = match held.weight {
            StoredWeight::Codes(coded) => node.op.reading_codes(at, coded.layout, coded.turned),
            StoredWeight::Halves(_) => {
                node.op.reading_halves().filter(|(_, positions)| positions.contains(&at)).map(|(op, _)| op)
            }
        };
        let Some(op) = op else { return Ok(false) };
        let parts = rewriter.emit_in(&node.scope, |graph| held.parts(graph))?;
        let inputs: Vec<Value> = (0..node.inputs.len())
            .flat_map(|n| if n == at { parts.clone() } else { vec![rewriter.get(node.inputs[n])] })
            .collect();
        rewriter.replace(node, op, &inputs)?;
        Ok(true)
    }

    /// Copies a node that reads weights as numbers.
    fn decode(&mut self, rewriter: &mut Rewriter, graph: &Graph, node: &Node) -> graph::Result<()> {
        for &value in &node.inputs {
            let Some(held) = self.held.get_mut(&value) else { continue };
            let decoded = match held.decoded {
                Some(decoded) => decoded,
                None => rewriter.emit_in(&node.scope, |new| held.decode(new, graph.kind(value)))?,
            };
            held.decoded = Some(decoded);
            rewriter.set(value, decoded);
        }
        rewriter.copy(node)
    }
}

impl Held {
    /// The parts as operators read them that take the codes for numbers: scales have two axes.
    fn parts(&self, new: &mut Graph) -> graph::Result<Vec<Value>> {
        let mut parts = self.parts.clone();
        if let StoredWeight::Codes(CodedWeight { rows, activations, .. }) = self.weight
            && activations != Activations::Numbers
        {
            parts[1] = new.reshape(parts[1], [rows, 1].into())?;
        }
        Ok(parts)
    }

    /// The weight of that type as numbers.
    fn decode(&self, new: &mut Graph, kind: &Type) -> graph::Result<Value> {
        let parts = self.parts(new)?;
        let StoredWeight::Codes(CodedWeight { layout, turned, .. }) = self.weight else {
            return Ok(new.cast(parts[0], kind.dtype)?);
        };
        let (codes, scales, offsets) = (parts[0], parts[1], parts.get(2).copied());
        let y = new.dequantize_coded(&CodedMatrix { layout, codes, scales, offsets })?;
        let y = if turned { new.swap_last(y)? } else { y };
        Ok(new.reshape(y, kind.shape.clone())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Feeds, evaluate};
    use crate::ops::coded::FixedScale;
    use crate::ops::embedding::EmbeddingEmit;
    use crate::ops::matmul::{Form, MatmulEmit};
    use crate::ops::pointwise::PointwiseEmit;
    use crate::ops::quantize_rows::Rule;
    use crate::tensor::Shape;
    use crate::tensor::quant::{Coded, Scheme, Share, encode};
    use crate::tensor::random::Stream;

    fn normal(shape: impl Into<Shape>, seed: u32) -> Tensor {
        let (shape, mut random) = (shape.into(), Stream::new(&[seed]));
        Tensor::f32(shape.clone(), (0..shape.count()).map(|_| random.normal() as f32).collect())
    }

    fn turned(x: &Tensor) -> Tensor {
        let [rows, cols] = [x.shape[0], x.shape[1]];
        let y = (0..rows * cols).map(|at| x.real::<f32>()[at % rows * cols + at / rows]).collect();
        Tensor::f32([cols, rows], y)
    }

    /// A table that is looked up and multiplied with, a weight as [in, out] with a bias, one as [out, in], all read once more
    /// where only numbers will do.
    fn model() -> (Graph, Feeds) {
        let mut graph = Graph::new();
        let tokens = graph.input("tokens", Type::new(DType::U32, [3]));
        let table = graph.parameter("table", Type::f32([7, 16]));
        let up = graph.parameter("up", Type::f32([16, 24]));
        let down = graph.parameter("down", Type::f32([16, 24]));
        let bias = graph.parameter("bias", Type::f32([24]));
        let x = graph.embedding(table, tokens).unwrap();
        let h = graph.linear(Form::Nn, x, up, Some(bias)).unwrap();
        let y = graph.linear(Form::Nt, h, down, None).unwrap();
        let logits = graph.linear(Form::Nt, y, table, None).unwrap();
        graph.output("logits", logits);
        let twice = graph.scale(up, 2.0).unwrap();
        graph.output("twice", twice);
        let feeds = Feeds::new()
            .with("tokens", Tensor::u32([3], vec![6, 0, 3]))
            .with("table", normal([7, 16], 1))
            .with("up", normal([16, 24], 2))
            .with("down", normal([16, 24], 3))
            .with("bias", normal([24], 4));
        (graph, feeds)
    }

    /// The graph with three weights coded, feeds for it, and feeds of the weights decoded for the graph it was made from.
    fn coded(scheme: Scheme, activations: Activations) -> (Graph, Feeds, Feeds) {
        let (graph, mut plain) = model();
        let (mut pass, mut feeds) = (Quantize::default(), plain.clone());
        for (name, turn) in [("table", false), ("up", true), ("down", false)] {
            let weight = plain.get(name).unwrap().clone();
            let matrix = if turn { turned(&weight) } else { weight.clone() };
            let [rows, cols] = [matrix.shape[0], matrix.shape[1]];
            let coded: Coded = encode(matrix.real::<f32>(), rows, cols, &scheme).unwrap();
            let mut layout = Layout::of(&coded);
            let mut parts = layout.pack(&coded);
            if activations != Activations::Numbers {
                layout = layout.in_bytes();
                parts[1] = parts[1].clone().reshaped([rows]).unwrap();
            }
            Part::ALL.into_iter().zip(parts).for_each(|(part, t)| feeds.set(part.name(name), t));
            let decoded = Tensor::f32([rows, cols], coded.decode());
            plain.set(name, if turn { turned(&decoded) } else { decoded });
            let weight = CodedWeight { rows, layout, turned: turn, activations };
            pass.weights.insert(name.into(), StoredWeight::Codes(weight));
        }
        (pass.rewrite(&graph).unwrap(), feeds, plain)
    }

    fn worst(a: &Tensor, b: &Tensor) -> f64 {
        assert_eq!(a.shape, b.shape);
        a.to_f64().iter().zip(b.to_f64()).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
    }

    fn largest(x: &Tensor) -> f64 {
        x.to_f64().iter().fold(0.0, |most, x| most.max(x.abs()))
    }

    #[test]
    fn a_graph_of_codes_computes_with_the_numbers_that_they_stand_for() {
        for scheme in [
            Scheme::symmetric(8, Share::Row),
            Scheme::symmetric(4, Share::Group(8)),
            Scheme::asymmetric(4, Share::Row),
            Scheme::normal_float(8, false),
        ] {
            let (new, feeds, plain) = coded(scheme, Activations::Numbers);
            new.verify().unwrap();
            assert!(new.parameters().all(|(name, _)| name == "bias" || name.contains('.')));
            let names: Vec<_> = new.nodes().iter().map(|node| node.op.name()).collect();
            assert_eq!(names.iter().filter(|name| **name == "matmul_coded").count(), 3);
            assert_eq!(names.iter().filter(|name| **name == "dequantize_coded").count(), 1, "{names:?}");
            let got = evaluate(&new, &feeds, DType::F32).unwrap();
            let expected = evaluate(&model().0, &plain, DType::F32).unwrap();
            for name in ["logits", "twice"] {
                let error = worst(&got[name], &expected[name]);
                assert!(error < 1e-3, "{scheme:?} {name}: {error}");
            }
        }
    }

    #[test]
    fn coded_activations_make_whole_products_of_which_the_error_is_that_of_rounding() {
        let scheme = Scheme::symmetric(8, Share::Row);
        let (new, feeds, plain) = coded(scheme, Activations::Rows(Rule::Narrow));
        new.verify().unwrap();
        let count = |wanted| new.nodes().iter().filter(|node| node.op.name() == wanted).count();
        assert_eq!((count("matmul_int8"), count("quantize_rows"), count("embedding_coded")), (3, 3, 1));
        let got = evaluate(&new, &feeds, DType::F32).unwrap();
        let expected = evaluate(&model().0, &plain, DType::F32).unwrap();
        let error = worst(&got["logits"], &expected["logits"]);
        assert!(error > 0.0 && error < 0.03 * largest(&expected["logits"]), "{error}");
    }

    #[test]
    fn a_fixed_scale_codes_activations_as_well() {
        let scheme = Scheme::symmetric(8, Share::Row);
        let fixed = Activations::Fixed(Rule::Narrow, FixedScale::of(0.25));
        let (new, feeds, plain) = coded(scheme, fixed);
        new.verify().unwrap();
        assert_eq!(new.nodes().iter().filter(|node| node.op.name() == "quantize_fixed").count(), 3);
        let got = evaluate(&new, &feeds, DType::F32).unwrap();
        let expected = evaluate(&model().0, &plain, DType::F32).unwrap();
        assert!(worst(&got["logits"], &expected["logits"]) < 0.5 * largest(&expected["logits"]));
    }

    #[test]
    fn halves_are_read_by_products_and_widened_for_the_rest() {
        let (graph, feeds) = model();
        for dtype in [DType::F16, DType::BF16] {
            let weights = ["up", "down", "table"].map(|name| (name.into(), StoredWeight::Halves(dtype)));
            let new = Quantize { weights: weights.into() }.rewrite(&graph).unwrap();
            new.verify().unwrap();
            assert_eq!(new.nodes().iter().filter(|node| node.op.name() == "cast").count(), 2);
            let got = evaluate(&new, &feeds, DType::F32).unwrap();
            let expected = evaluate(&graph, &feeds, DType::F32).unwrap();
            let error = worst(&got["logits"], &expected["logits"]);
            assert!(error > 0.0 && error < 4.0 * dtype.epsilon() * largest(&expected["logits"]), "{error}");
        }
    }

    #[test]
    fn a_weight_that_is_not_there_is_an_error() {
        let weights = [("none".into(), StoredWeight::Halves(DType::F16))].into();
        let error = Quantize { weights }.rewrite(&model().0).unwrap_err();
        assert!(error.to_string().contains("`none`"));
    }
}
