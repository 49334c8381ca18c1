//! Low-rank adapters beside linear layers.
//!
//! LoRA (Hu et al. 2021): `y = x W + scale B(A(dropout(x)))`. DoRA (Liu et al. 2024) gives each output a magnitude of its own: with
//! `V = W + scale B A` it is `y = x V m / ||V||`, norms by output, and no gradient flows through the norms, as in PEFT.
//!
//! `A` is [rank, in] and `B` [out, rank], whichever way the weight is stored. They are parameters named after the layer and the
//! adapter, `MODULE.lora_A.NAME.weight` and `MODULE.lora_B.NAME.weight`. The pass leaves the weight a parameter: who trains the
//! adapters alone freezes it.

use super::layers::{Layer, choose};
use super::{Pass, Promise};
use crate::graph::{self, Graph, Node, Rewriter, without_dead_nodes};
use crate::ops::dropout::DropoutEmit;
use crate::ops::matmul::{Form, MatmulEmit};
use crate::ops::pointwise::PointwiseEmit;
use crate::ops::reduce::{Kind, ReduceEmit};
use crate::ops::reshape::ReshapeEmit;
use crate::ops::transpose::TransposeEmit;
use crate::ops::{self, Emit, Value};
use crate::tensor::{DType, Shape, Tensor, Type};
use std::collections::{BTreeMap, HashMap};

/// Where the streams of the adapters' dropout begin, far from those that models count up from zero.
const FIRST_SALT: u32 = 0x6c6f_7261;
/// Streams set aside for the layers of one adapter.
const SALTS: u32 = 1 << 16;

/// Squares below this count as none: a row of zeros has no direction, and its magnitude is zero.
const LEAST_SQUARE: f32 = 1e-30;

/// How an adapter stands beside one layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Low {
    /// Numbers between `A` and `B`.
    pub rank: usize,
    /// What `B(A(x))` is multiplied by.
    pub scale: f32,
}

/// Adds an adapter to linear layers.
#[derive(Clone, Debug, PartialEq)]
pub struct LowRank {
    /// Its name, which is part of its parameters' names.
    pub name: String,
    /// Its number among the adapters of a model, which keeps their dropout apart.
    pub number: u32,
    /// The layers, by the names of their weights.
    pub layers: BTreeMap<String, Low>,
    /// Whether outputs have magnitudes (DoRA).
    pub magnitude: bool,
    /// Share of the adapter's inputs that is zeroed in training.
    pub dropout: f32,
    /// Whether this is the loss that is trained: nothing is dropped elsewhere.
    pub trains: bool,
}

/// Parameters of an adapter beside one weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Factor {
    /// `A`, [rank, in].
    Down,
    /// `B`, [out, rank].
    Up,
    /// The magnitudes of outputs, \[out\].
    Magnitude,
}

impl Factor {
    /// Name of the parameter of the adapter `name` beside a weight.
    pub fn name(self, weight: &str, name: &str) -> String {
        let module = module_of(weight);
        match self {
            Factor::Down => format!("{module}.lora_A.{name}.weight"),
            Factor::Up => format!("{module}.lora_B.{name}.weight"),
            Factor::Magnitude => format!("{module}.lora_magnitude_vector.{name}.weight"),
        }
    }
}

/// The module that a weight belongs to.
pub fn module_of(weight: &str) -> &str {
    weight.strip_suffix(".weight").unwrap_or(weight)
}

/// Name of the parameter, \[out\], that holds the sums of squares of a weight by output: a fact of the weight, not to be trained.
pub fn squares_name(weight: &str) -> String {
    format!("{weight}.squares")
}

/// A layer as it is written anew.
struct Site {
    x: Value,
    weight: Value,
    bias: Option<Value>,
    form: Form,
    name: String,
    low: Low,
    salt: u32,
}

impl Site {
    fn outputs(&self, graph: &Graph) -> usize {
        let shape = &graph.kind(self.weight).shape;
        if self.form == Form::Nn { shape[1] } else { shape[0] }
    }
}

impl LowRank {
    fn chosen(&self, graph: &Graph) -> graph::Result<HashMap<usize, Layer>> {
        let refuse = |setting, expected: &str, got: String| {
            let expected = expected.to_string();
            Err(graph::Error::from(ops::Error::Setting { op: "low_rank", setting, expected, got }))
        };
        for low in self.layers.values() {
            if low.rank == 0 {
                return refuse("rank", "one or more", low.rank.to_string());
            }
            if !low.scale.is_finite() {
                return refuse("scale", "a finite number", low.scale.to_string());
            }
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return refuse("dropout", "a number in 0.0..1.0", self.dropout.to_string());
        }
        choose(graph, &self.layers.keys().cloned().collect::<Vec<_>>(), &[])
    }

    fn factor(&self, graph: &mut Graph, factor: Factor, site: &Site) -> Value {
        let shape = &graph.kind(site.weight).shape;
        let [first, second] = [shape[0], shape[1]];
        let [inputs, outputs] = if site.form == Form::Nn { [first, second] } else { [second, first] };
        let shape: Shape = match factor {
            Factor::Down => [site.low.rank, inputs].into(),
            Factor::Up => [outputs, site.low.rank].into(),
            Factor::Magnitude => [outputs].into(),
        };
        let name = factor.name(&site.name, &self.name);
        graph.named(&name).unwrap_or_else(|| graph.parameter(name, Type::f32(shape)))
    }

    fn drops(&self) -> bool {
        self.trains && self.dropout > 0.0
    }

    fn dropped(&self, graph: &mut Graph, site: &Site) -> graph::Result<Value> {
        if !self.drops() {
            return Ok(site.x);
        }
        let rng = graph.named("rng").unwrap_or_else(|| graph.input("rng", Type::new(DType::U32, [2])));
        Ok(graph.dropout(site.x, rng, self.dropout, site.salt)?)
    }

    /// The path through the adapter; the narrow side is scaled, which costs least.
    fn path(&self, graph: &mut Graph, x: Value, site: &Site) -> graph::Result<Value> {
        let (down, up) = (self.factor(graph, Factor::Down, site), self.factor(graph, Factor::Up, site));
        let low = graph.matmul_form(Form::Nt, x, down)?;
        let low = graph.scale(low, site.low.scale)?;
        Ok(graph.matmul_form(Form::Nt, low, up)?)
    }

    /// What each output is multiplied by, \[out\]: its magnitude over the norm of its row of `V = W + s B A`, which counts as a constant.
    ///
    /// `||V||^2 = ||W||^2 + sum over ranks of B (2 s A W^T + s^2 (A A^T) B^T)^T`: the wide matrix itself is never written.
    fn ratio(&self, graph: &mut Graph, site: &Site) -> graph::Result<Value> {
        let (down, up) = (self.factor(graph, Factor::Down, site), self.factor(graph, Factor::Up, site));
        let magnitude = self.factor(graph, Factor::Magnitude, site);
        let outputs = site.outputs(graph);
        let name = squares_name(&site.name);
        let squares = graph.named(&name).unwrap_or_else(|| graph.parameter(name, Type::f32([outputs])));
        let scale = site.low.scale;
        let with_weight = graph.matmul_form(site.form, down, site.weight)?;
        let with_weight = graph.swap_last(with_weight)?;
        let with_weight = graph.scale(with_weight, 2.0 * scale)?;
        let gram = graph.matmul_form(Form::Nt, down, down)?;
        let with_itself = graph.matmul(up, gram)?;
        let with_itself = graph.scale(with_itself, scale * scale)?;
        let both = graph.add(with_weight, with_itself)?;
        let each = graph.mul(up, both)?;
        let change = graph.reduce(Kind::Sum, each, 1)?;
        let change = graph.reshape(change, [outputs].into())?;
        let sum = graph.add(squares, change)?;
        let least = graph.constant(Tensor::f32([1], vec![LEAST_SQUARE]));
        let sum = graph.pointwise("maximum", &[sum, least], 0.0)?;
        let norm = graph.pointwise("sqrt", &[sum], 0.0)?;
        let norm = graph.pointwise("held", &[norm], 0.0)?;
        Ok(graph.div(magnitude, norm)?)
    }

    /// `y = ratio (x W + path) + b`; where inputs are dropped, `y = x W + (ratio - 1) x' W + ratio path + b`, as PEFT has it.
    fn with_magnitude(&self, graph: &mut Graph, site: &Site) -> graph::Result<Value> {
        let plain = graph.linear(site.form, site.x, site.weight, None)?;
        let x = self.dropped(graph, site)?;
        let path = self.path(graph, x, site)?;
        let ratio = self.ratio(graph, site)?;
        let y = match self.drops() {
            false => {
                let sum = graph.add(plain, path)?;
                graph.mul(sum, ratio)?
            }
            true => {
                let dropped = graph.linear(site.form, x, site.weight, None)?;
                let sum = graph.add(dropped, path)?;
                let sum = graph.mul(sum, ratio)?;
                let rest = graph.sub(plain, dropped)?;
                graph.add(sum, rest)?
            }
        };
        Ok(match site.bias {
            Some(bias) => graph.add(y, bias)?,
            None => y,
        })
    }

    fn write(&self, rewriter: &mut Rewriter, node: &Node, layer: Layer, salt: u32) -> graph::Result<()> {
        let inputs: Vec<Value> = node.inputs.iter().map(|&v| rewriter.get(v)).collect();
        let name = rewriter.new.info(inputs[1]).name.clone().expect("a parameter has a name");
        let site = Site {
            x: inputs[0],
            weight: inputs[1],
            bias: layer.has_bias.then(|| inputs[2]),
            form: layer.form,
            low: self.layers[&name],
            name,
            salt,
        };
        let scope = format!("{}.lora", node.scope);
        let y = if self.magnitude {
            rewriter.emit_in(&scope, |graph| self.with_magnitude(graph, &site))?
        } else {
            rewriter.copy(node)?;
            let plain = rewriter.get(node.outputs[0]);
            rewriter.emit_in(&scope, |graph| -> graph::Result<Value> {
                let x = self.dropped(graph, &site)?;
                let path = self.path(graph, x, &site)?;
                Ok(graph.add(plain, path)?)
            })?
        };
        rewriter.set(node.outputs[0], y);
        Ok(())
    }
}

impl Pass for LowRank {
    fn name(&self) -> &'static str {
        "low_rank"
    }

    fn promise(&self) -> Promise {
        Promise::Lossy
    }

    fn rewrite(&self, graph: &Graph) -> graph::Result<Graph> {
        let graph = without_dead_nodes(graph);
        let layers = self.chosen(&graph)?;
        let mut rewriter = Rewriter::new(&graph);
        let mut salt = FIRST_SALT.wrapping_add(self.number.wrapping_mul(SALTS));
        for (number, node) in graph.nodes().iter().enumerate() {
            match layers.get(&number) {
                Some(&layer) => {
                    self.write(&mut rewriter, node, layer, salt)?;
                    salt = salt.wrapping_add(1);
                }
                None => rewriter.copy(node)?,
            }
        }
        Ok(rewriter.finish())
    }
}
