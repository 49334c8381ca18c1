//! The two sides of an encoder-decoder's pass: a text that is read, and one that is written in view of it.

use super::course::Course;
use super::layers::{Layers, located};
use super::{Extent, Mode, Reading, Result};
use crate::graph::Graph;
use crate::ops::Value;
use crate::ops::attention::{Attention, AttentionEmit};
use crate::ops::attention_weights::AttentionWeightsEmit;
use crate::ops::dropout::DropoutEmit;
use crate::ops::matmul::{Form, MatmulEmit};
use crate::ops::reshape::ReshapeEmit;
use crate::ops::transpose::TransposeEmit;
use crate::tensor::{DType, Type};

/// One text of a batch: its size, its input, and how a pass stands in it.
pub(super) struct Side {
    /// Sequences, and tokens in each.
    pub extent: Extent,
    /// Where the pass stands.
    pub course: Course,
    input: &'static str,
}

impl Side {
    /// What the encoder reads. Declares the mask where a reading has one.
    pub fn source(graph: &mut Graph, reading: &Reading) -> Side {
        let course = Course::Whole(mask(graph, "mask", reading.extent, reading.padded));
        Side { extent: reading.extent, course, input: "tokens" }
    }

    /// What the decoder reads: the text that is written, one place later. Declares what the mode asks for, but for the tokens.
    pub fn target(graph: &mut Graph, reading: &Reading) -> Side {
        let extent = Extent { context: reading.target, ..reading.extent };
        let course = match reading.mode {
            Mode::Continue { .. } => Course::declare(graph, &Reading { extent, ..*reading }),
            _ => Course::Whole(mask(graph, "target_mask", extent, reading.padded)),
        };
        Side { extent, course, input: "target_tokens" }
    }

    /// Rows [B, T, C] of the module's table by the side's tokens.
    pub fn look_up(&self, graph: &mut Graph, layers: &Layers, module: &str, mode: Mode) -> Result<Value> {
        let Extent { batch, context } = self.extent;
        layers.rows_by(graph, module, self.input, [batch, context], mode)
    }

    /// Keys that a query may see.
    pub fn keys(&self) -> usize {
        self.course.positions(self.extent)
    }

    /// A projection [N, H D] as heads [B, T, H, D].
    pub fn heads(&self, graph: &mut Graph, module: &str, heads: usize, x: Value) -> Result<Value> {
        let size = graph.kind(x).shape.last() / heads;
        let shape = [self.extent.batch, self.extent.context, heads, size];
        located(graph, module, |g| g.reshape(x, shape.into()))
    }

    /// Attention of the side to itself, [N, H D] from heads.
    pub fn attend(
        &self,
        graph: &mut Graph,
        layers: &mut Layers,
        module: &str,
        how: &Attention,
        sources: [Value; 3],
        dropout: f32,
    ) -> Result<Value> {
        let draw = layers.draw(dropout);
        let how = dropping(how, dropout, draw);
        located(graph, module, |g| {
            let mixed = self.course.attend(g, module, &how, sources, draw.map(|(rng, _)| rng))?;
            self.rows(g, mixed)
        })
    }

    /// The same with unscaled scores and a bias [R, H] by distance, as
    /// [`AttentionWeights`](crate::ops::attention_weights::AttentionWeights) has it.
    pub fn attend_biased(
        &self,
        graph: &mut Graph,
        layers: &mut Layers,
        module: &str,
        causal: bool,
        [q, k, v]: [Value; 3],
        (bias, dropout): (Value, f32),
    ) -> Result<Value> {
        let draw = layers.draw(dropout);
        located(graph, module, |g| {
            let ([k, v], position) = self.course.held(g, module, [k, v])?;
            let [q, k, v] = [heads_first(g, q)?, heads_first(g, k)?, heads_first(g, v)?];
            let scores = g.matmul_form(Form::Nt, q, k)?;
            let mut weights =
                g.attention_weights(causal, scores, Some(bias), self.course.mask(), position)?;
            if let Some((rng, salt)) = draw {
                weights = g.dropout(weights, rng, dropout, salt)?;
            }
            let mixed = g.matmul(weights, v)?;
            let mixed = heads_first(g, mixed)?;
            self.rows(g, mixed)
        })
    }

    fn rows(&self, graph: &mut Graph, mixed: Value) -> crate::ops::Result<Value> {
        let width = graph.kind(mixed).shape[2..].iter().product();
        graph.reshape(mixed, [self.extent.positions(), width].into())
    }
}

/// What the decoder sees of the source.
pub(super) struct Memory<'a> {
    side: &'a Side,
    /// The encoder's last state [N, C]; absent where keys and values of it are held from an earlier pass.
    state: Option<Value>,
}

impl<'a> Memory<'a> {
    /// What the encoder gives in this pass.
    pub fn of(side: &'a Side, state: Value) -> Self {
        Memory { side, state: Some(state) }
    }

    /// What an earlier pass has left in the states `module.keys` and `module.values` F32 [B, S, H, D].
    pub fn held(side: &'a Side) -> Self {
        Memory { side, state: None }
    }

    /// Keys and values of a module in heads, from its projections `names` of the encoder's state, or as they are held.
    pub fn sources(
        &self,
        graph: &mut Graph,
        layers: &Layers,
        module: &str,
        names: [&str; 2],
        [heads, size]: [usize; 2],
    ) -> Result<[Value; 2]> {
        let Extent { batch, context } = self.side.extent;
        let Some(state) = self.state else {
            let kind = Type::f32([batch, context, heads, size]);
            return Ok(["keys", "values"].map(|name| graph.state(format!("{module}.{name}"), kind.clone())));
        };
        let mut project = |name: &str| {
            let module = format!("{module}.{name}");
            let y = layers.linear(graph, &module, Form::Nt, state)?;
            self.side.heads(graph, &module, heads, y)
        };
        Ok([project(names[0])?, project(names[1])?])
    }

    /// Attention of the target's queries [B, T, H, D] over these, [N, H D].
    pub fn attend(
        &self,
        graph: &mut Graph,
        layers: &mut Layers,
        module: &str,
        how: &Attention,
        sources: [Value; 3],
        dropout: f32,
    ) -> Result<Value> {
        let draw = layers.draw(dropout);
        let how = dropping(how, dropout, draw);
        located(graph, module, |g| {
            let mixed = g.attention(&how, sources, self.side.course.mask(), draw.map(|(rng, _)| rng))?;
            let shape = g.kind(mixed).shape.clone();
            g.reshape(mixed, [shape[0] * shape[1], shape[2] * shape[3]].into())
        })
    }
}

fn mask(graph: &mut Graph, name: &str, extent: Extent, padded: bool) -> Option<Value> {
    let kind = Type::new(DType::U32, [extent.batch, extent.context]);
    padded.then(|| graph.input(name, kind))
}

fn dropping(how: &Attention, dropout: f32, draw: Option<(Value, u32)>) -> Attention {
    match draw {
        Some((_, salt)) => how.clone().dropout(dropout, salt),
        None => how.clone(),
    }
}

/// [B, T, H, D] to [B, H, T, D], or back.
fn heads_first(graph: &mut Graph, x: Value) -> crate::ops::Result<Value> {
    graph.transpose(x, &[0, 2, 1, 3])
}
