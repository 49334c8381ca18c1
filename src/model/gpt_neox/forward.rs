//! The forward pass of GPT-NeoX.

use super::super::course::Course;
use super::super::layers::{Layers, located};
use super::super::{Dropouts, Extent, Family, Forward, Reading, Result};
use super::GptNeoX;
use crate::graph::Graph;
use crate::ops::Value;
use crate::ops::attention::Attention;
use crate::ops::matmul::{Form, MatmulEmit};
use crate::ops::pointwise::PointwiseEmit;
use crate::ops::reshape::ReshapeEmit;
use crate::ops::rotary::{Pairing, Rotary, RotaryEmit};
use crate::ops::split::SplitEmit;

impl GptNeoX {
    pub(super) fn write(&self, graph: &mut Graph, reading: &Reading) -> Result<Forward> {
        let extent = reading.extent;
        let Dropouts { embedding, attention, residual } = self.dropout;
        let drops = embedding > 0.0 || attention > 0.0 || residual > 0.0;
        let mut layers = Layers::declare(graph, &self.parameters(), reading.mode, drops);
        let rows = layers.look_up(graph, "gpt_neox.embed_in", reading)?;
        let rows = located(graph, "gpt_neox.embed_in", |g| {
            g.reshape(rows, [extent.positions(), self.width].into())
        })?;
        let mut x = layers.dropout(graph, "gpt_neox.emb_dropout", embedding, rows)?;
        let course = Course::declare(graph, reading);
        let tables = self.rope.tables(graph, course.positions(extent), self.head_size);
        let mut hidden = vec![];
        for layer in 0..self.layers {
            hidden.push(x);
            let block = format!("gpt_neox.layers.{layer}");
            let attended = self.attend(graph, &mut layers, extent, layer, x, (&course, tables))?;
            let added = located(graph, &block, |g| g.add(x, attended))?;
            let fed = self.feed_forward(graph, &mut layers, layer, if self.parallel { x } else { added })?;
            x = located(graph, &block, |g| g.add(added, fed))?;
        }
        let x = layers.layer_norm(graph, "gpt_neox.final_layer_norm", x, self.norm_epsilon)?;
        hidden.push(x);
        if let Some(score) = &self.score {
            return Ok(Forward::new(score.write(graph, &layers, reading, x)?, hidden));
        }
        let x = course.scored(graph, "embed_out", x)?;
        let head = layers.weight(if self.tie { "gpt_neox.embed_in" } else { "embed_out" });
        let logits = located(graph, "embed_out", |g| g.matmul_form(Form::Nt, x, head))?;
        Ok(Forward::new(logits, hidden))
    }

    fn attend(
        &self,
        graph: &mut Graph,
        layers: &mut Layers,
        extent: Extent,
        layer: usize,
        x: Value,
        (course, tables): (&Course, [Value; 2]),
    ) -> Result<Value> {
        let module = |name: &str| format!("gpt_neox.layers.{layer}.{name}");
        let x = layers.layer_norm(graph, &module("input_layernorm"), x, self.norm_epsilon)?;
        let joint = layers.linear(graph, &module("attention.query_key_value"), Form::Nt, x)?;
        let draw = layers.draw(self.dropout.attention);
        let mut how = Attention::causal();
        if let Some((_, salt)) = draw {
            how = how.dropout(self.dropout.attention, salt);
        }
        let mixed = located(graph, &module("attention"), |g| {
            let (size, heads) = (self.head_size, self.heads);
            let joint = g.reshape(joint, [extent.positions() * heads, 3 * size].into())?;
            let pieces = g.split(joint, 1, &[size; 3])?;
            let mut source =
                |i: usize| g.reshape(pieces[i], [extent.batch, extent.context, heads, size].into());
            let (q, k, v) = (source(0)?, source(1)?, source(2)?);
            let turn = Rotary::new(Pairing::Half, heads);
            let [q, k] = [q, k].map(|x| g.rotary(&turn, x, tables, course.given()));
            let rng = draw.map(|(rng, _)| rng);
            let mixed = course.attend(g, &module("attention"), &how, [q?, k?, v], rng)?;
            g.reshape(mixed, [extent.positions(), self.inner()].into())
        })?;
        let y = layers.linear(graph, &module("attention.dense"), Form::Nt, mixed)?;
        layers.dropout(graph, &module("post_attention_dropout"), self.dropout.residual, y)
    }

    fn feed_forward(&self, graph: &mut Graph, layers: &mut Layers, layer: usize, x: Value) -> Result<Value> {
        let module = |name: &str| format!("gpt_neox.layers.{layer}.{name}");
        let x = layers.layer_norm(graph, &module("post_attention_layernorm"), x, self.norm_epsilon)?;
        let x = layers.linear(graph, &module("mlp.dense_h_to_4h"), Form::Nt, x)?;
        let x = layers.activate(graph, &module("mlp.act"), self.activation, x)?;
        let y = layers.linear(graph, &module("mlp.dense_4h_to_h"), Form::Nt, x)?;
        layers.dropout(graph, &module("post_mlp_dropout"), self.dropout.residual, y)
    }
}
