//! The forward pass of Llama and its relatives.

use super::super::course::Course;
use super::super::layers::{Layers, located};
use super::super::{Extent, Family, Forward, Reading, Result};
use super::{Dialect, Llama};
use crate::graph::Graph;
use crate::ops::Value;
use crate::ops::attention::Attention;
use crate::ops::matmul::{Form, MatmulEmit};
use crate::ops::pointwise::PointwiseEmit;
use crate::ops::reshape::ReshapeEmit;
use crate::ops::rotary::{Pairing, Rotary, RotaryEmit};

impl Llama {
    pub(super) fn write(&self, graph: &mut Graph, reading: &Reading) -> Result<Forward> {
        let extent = reading.extent;
        let mut layers = Layers::declare(graph, &self.parameters(), reading.mode, self.dropout > 0.0);
        let rows = layers.look_up(graph, "model.embed_tokens", reading)?;
        let mut x = located(graph, "model.embed_tokens", |g| {
            g.reshape(rows, [extent.positions(), self.width].into())
        })?;
        let course = Course::declare(graph, reading);
        let tables = self.rope.tables(graph, course.positions(extent), self.head_size);
        let mut hidden = vec![];
        for layer in 0..self.layers {
            hidden.push(x);
            x = self.attend(graph, &mut layers, extent, layer, x, (&course, tables))?;
            x = self.feed_forward(graph, &layers, layer, x)?;
        }
        let x = layers.rms_norm(graph, "model.norm", x, self.norm_epsilon)?;
        hidden.push(x);
        if let Some(score) = &self.score {
            return Ok(Forward::new(score.write(graph, &layers, reading, x)?, hidden));
        }
        let x = course.scored(graph, "lm_head", x)?;
        let head = layers.weight(if self.tie { "model.embed_tokens" } else { "lm_head" });
        let logits = located(graph, "lm_head", |g| g.matmul_form(Form::Nt, x, head))?;
        Ok(Forward::new(logits, hidden))
    }

    /// The stream with what attention adds to it.
    fn attend(
        &self,
        graph: &mut Graph,
        layers: &mut Layers,
        extent: Extent,
        layer: usize,
        stream: Value,
        (course, tables): (&Course, [Value; 2]),
    ) -> Result<Value> {
        let module = |name: &str| format!("model.layers.{layer}.{name}");
        let x = layers.rms_norm(graph, &module("input_layernorm"), stream, self.norm_epsilon)?;
        let q = self.heads_of(graph, layers, extent, &module("self_attn.q_"), self.heads, x)?;
        let k = self.heads_of(graph, layers, extent, &module("self_attn.k_"), self.kv_heads, x)?;
        let v = layers.linear(graph, &module("self_attn.v_proj"), Form::Nt, x)?;
        let draw = layers.draw(self.dropout);
        let mut how = Attention { window: self.windows[layer], ..Attention::causal() };
        if let Some((_, salt)) = draw {
            how = how.dropout(self.dropout, salt);
        }
        let mixed = located(graph, &module("self_attn"), |g| {
            let turn = |heads| Rotary::new(Pairing::Half, heads);
            let q = g.rotary(&turn(self.heads), q, tables, course.given())?;
            let k = g.rotary(&turn(self.kv_heads), k, tables, course.given())?;
            let v = g.reshape(v, self.head_shape(extent, self.kv_heads).into())?;
            let rng = draw.map(|(rng, _)| rng);
            let mixed = course.attend(g, &module("self_attn"), &how, [q, k, v], rng)?;
            g.reshape(mixed, [extent.positions(), self.heads * self.head_size].into())
        })?;
        layers.linear_onto(graph, &module("self_attn.o_proj"), Form::Nt, mixed, stream)
    }

    /// Queries or keys [B, T, heads, D], normed where the dialect does; `prefix` ends before `proj` or `norm`.
    fn heads_of(
        &self,
        graph: &mut Graph,
        layers: &Layers,
        extent: Extent,
        prefix: &str,
        heads: usize,
        x: Value,
    ) -> Result<Value> {
        let y = layers.linear(graph, &format!("{prefix}proj"), Form::Nt, x)?;
        let shape = self.head_shape(extent, heads);
        let y = located(graph, &format!("{prefix}proj"), |g| g.reshape(y, shape.into()))?;
        match self.dialect {
            Dialect::Qwen3 => layers.rms_norm(graph, &format!("{prefix}norm"), y, self.norm_epsilon),
            _ => Ok(y),
        }
    }

    fn head_shape(&self, extent: Extent, heads: usize) -> [usize; 4] {
        [extent.batch, extent.context, heads, self.head_size]
    }

    /// The stream with what the feed-forward part adds to it.
    fn feed_forward(&self, graph: &mut Graph, layers: &Layers, layer: usize, stream: Value) -> Result<Value> {
        let module = |name: &str| format!("model.layers.{layer}.{name}");
        let x = layers.rms_norm(graph, &module("post_attention_layernorm"), stream, self.norm_epsilon)?;
        let gate = layers.linear(graph, &module("mlp.gate_proj"), Form::Nt, x)?;
        let up = layers.linear(graph, &module("mlp.up_proj"), Form::Nt, x)?;
        let gate = layers.activate(graph, &module("mlp.act_fn"), self.activation, gate)?;
        let product = located(graph, &module("mlp"), |g| g.mul(gate, up))?;
        layers.linear_onto(graph, &module("mlp.down_proj"), Form::Nt, product, stream)
    }
}
