//! The forward pass of GPT-2.

use super::super::course::Course;
use super::super::layers::{Layers, located};
use super::super::{Extent, Family, Forward, Reading, Result};
use super::{Dropouts, Gpt2};
use crate::graph::Graph;
use crate::ops::Value;
use crate::ops::attention::{Attention, AttentionEmit};
use crate::ops::matmul::{Form, MatmulEmit};
use crate::ops::pointwise::PointwiseEmit;
use crate::ops::reshape::ReshapeEmit;
use crate::ops::split::SplitEmit;

impl Gpt2 {
    pub(super) fn write(&self, graph: &mut Graph, reading: &Reading) -> Result<Forward> {
        let extent = reading.extent;
        let Dropouts { embedding, attention, residual } = self.dropout;
        let drops = embedding > 0.0 || attention > 0.0 || residual > 0.0;
        let mut layers = Layers::declare(graph, &self.parameters(), reading.mode, drops);
        let rows = layers.look_up(graph, "transformer.wte", reading)?;
        let course = Course::declare(graph, reading);
        let mut x = self.embed(graph, &mut layers, extent, &course, rows)?;
        let mut hidden = vec![];
        for layer in 0..self.layers {
            hidden.push(x);
            let block = format!("transformer.h.{layer}");
            let attended = self.attend(graph, &mut layers, extent, layer, x, &course)?;
            x = located(graph, &block, |g| g.add(x, attended))?;
            let fed = self.feed_forward(graph, &mut layers, layer, x)?;
            x = located(graph, &block, |g| g.add(x, fed))?;
        }
        let x = layers.layer_norm(graph, "transformer.ln_f", x, self.norm_epsilon)?;
        hidden.push(x);
        if let Some(score) = &self.score {
            return Ok(Forward::new(score.write(graph, &layers, reading, x)?, hidden));
        }
        let x = course.scored(graph, "lm_head", x)?;
        let head = layers.weight(if self.tie { "transformer.wte" } else { "lm_head" });
        let logits = located(graph, "lm_head", |g| g.matmul_form(Form::Nt, x, head))?;
        Ok(Forward::new(logits, hidden))
    }

    /// [N, C] from the tokens' rows and their positions.
    fn embed(
        &self,
        graph: &mut Graph,
        layers: &mut Layers,
        extent: Extent,
        course: &Course,
        rows: Value,
    ) -> Result<Value> {
        let wpe = layers.weight("transformer.wpe");
        let sum = located(graph, "transformer.wpe", |g| {
            let places = course.places(g, wpe, extent)?;
            let sum = g.add(rows, places)?;
            g.reshape(sum, [extent.positions(), self.width].into())
        })?;
        layers.dropout(graph, "transformer.drop", self.dropout.embedding, sum)
    }

    fn attend(
        &self,
        graph: &mut Graph,
        layers: &mut Layers,
        extent: Extent,
        layer: usize,
        x: Value,
        course: &Course,
    ) -> Result<Value> {
        let module = |name: &str| format!("transformer.h.{layer}.{name}");
        let x = layers.layer_norm(graph, &module("ln_1"), x, self.norm_epsilon)?;
        let packed = layers.linear(graph, &module("attn.c_attn"), Form::Nn, x)?;
        let draw = layers.draw(self.dropout.attention);
        let mut how = Attention { scale: self.score_scale(layer), ..Attention::causal() };
        if let Some((_, salt)) = draw {
            how = how.dropout(self.dropout.attention, salt);
        }
        let mixed = located(graph, &module("attn"), |g| {
            let packed = g.reshape(packed, [extent.batch, extent.context, 3 * self.inner()].into())?;
            let mixed = match course {
                Course::Whole(_) | Course::Packed(_) => {
                    let (how, rng) = (course.how(&how), draw.map(|(rng, _)| rng));
                    g.attention_packed(&how, packed, [self.heads; 2], course.mask(), rng)?
                }
                Course::Behind(_) => {
                    let pieces = g.split(packed, 2, &[self.inner(); 3])?;
                    let heads = [extent.batch, extent.context, self.heads, self.head_size];
                    let mut source = |i: usize| g.reshape(pieces[i], heads.into());
                    let sources = [source(0)?, source(1)?, source(2)?];
                    course.attend(g, &module("attn"), &how, sources, None)?
                }
            };
            g.reshape(mixed, [extent.positions(), self.inner()].into())
        })?;
        let y = layers.linear(graph, &module("attn.c_proj"), Form::Nn, mixed)?;
        layers.dropout(graph, &module("attn.resid_dropout"), self.dropout.residual, y)
    }

    /// The factor on the scores of a block, where it is not the usual `1 / sqrt(D)`.
    pub(super) fn score_scale(&self, layer: usize) -> Option<f32> {
        if self.scale_scores && !self.scale_by_layer {
            return None;
        }
        let head = if self.scale_scores { (self.head_size as f64).sqrt() } else { 1.0 };
        let depth = if self.scale_by_layer { (layer + 1) as f64 } else { 1.0 };
        Some((1.0 / (head * depth)) as f32)
    }

    fn feed_forward(&self, graph: &mut Graph, layers: &mut Layers, layer: usize, x: Value) -> Result<Value> {
        let module = |name: &str| format!("transformer.h.{layer}.{name}");
        let x = layers.layer_norm(graph, &module("ln_2"), x, self.norm_epsilon)?;
        let x = layers.linear(graph, &module("mlp.c_fc"), Form::Nn, x)?;
        let x = layers.activate(graph, &module("mlp.act"), self.activation, x)?;
        let y = layers.linear(graph, &module("mlp.c_proj"), Form::Nn, x)?;
        layers.dropout(graph, &module("mlp.dropout"), self.dropout.residual, y)
    }
}
