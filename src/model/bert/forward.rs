//! The forward pass of BERT and its relatives.

use super::super::layers::{Layers, located};
use super::super::{Extent, Family, Forward, Mode, Reading, Result, Task};
use super::Bert;
use crate::graph::Graph;
use crate::ops::Value;
use crate::ops::attention::{Attention, AttentionEmit};
use crate::ops::matmul::Form;
use crate::ops::pointwise::PointwiseEmit;
use crate::ops::reshape::ReshapeEmit;
use crate::ops::slice::SliceEmit;
use crate::tensor::{DType, Type};

impl Bert {
    pub(super) fn write(&self, graph: &mut Graph, reading: &Reading) -> Result<Forward> {
        if let Mode::Continue { .. } = reading.mode {
            self.interface().expect_causal()?;
        }
        let extent = reading.extent;
        let drops = [self.dropout.hidden, self.dropout.attention, self.dropout.classifier];
        let drops = drops.iter().any(|&share| share > 0.0);
        let mut layers = Layers::declare(graph, &self.parameters(), reading.mode, drops);
        let mut x = self.embed(graph, &mut layers, reading)?;
        let mask = || Type::new(DType::U32, [extent.batch, extent.context]);
        let mask = reading.padded.then(|| graph.input("mask", mask()));
        let mut hidden = vec![x];
        for layer in 0..self.layers {
            x = self.attend(graph, &mut layers, extent, layer, x, mask)?;
            x = self.feed_forward(graph, &mut layers, layer, x)?;
            hidden.push(x);
        }
        let (logits, pooled) = self.head(graph, &mut layers, extent, x)?;
        let follows = match self.task {
            Task::Pretraining => Some(self.follows(graph, &layers, extent, x)?),
            _ => None,
        };
        Ok(Forward { pooled, follows, ..Forward::new(logits, hidden) })
    }

    /// [N, C] from rows by token, position and kind.
    fn embed(&self, graph: &mut Graph, layers: &mut Layers, reading: &Reading) -> Result<Value> {
        let module = |name: &str| format!("{}embeddings.{name}", self.prefix());
        let Extent { batch, context } = reading.extent;
        let words = layers.look_up(graph, &module("word_embeddings"), reading)?;
        let positions = module("position_embeddings");
        let places = match reading.padded && self.dialect.counts_places() {
            true => layers.rows_by(graph, &positions, "places", [batch, context], reading.mode)?,
            false => {
                let (table, first) = (layers.weight(&positions), self.first_place());
                located(graph, &positions, |g| g.slice(table, 0, first, first + context))?
            }
        };
        let mut sum = located(graph, &positions, |g| g.add(words, places))?;
        let kinds = module("token_type_embeddings");
        if self.dialect.has_kinds() {
            let rows = match reading.kinds {
                true => layers.rows_by(graph, &kinds, "kinds", [batch, context], reading.mode)?,
                false => {
                    let table = layers.weight(&kinds);
                    located(graph, &kinds, |g| g.slice(table, 0, 0, 1))?
                }
            };
            sum = located(graph, &kinds, |g| g.add(sum, rows))?;
        }
        let sum = located(graph, &module("LayerNorm"), |g| {
            g.reshape(sum, [reading.extent.positions(), self.width].into())
        })?;
        let normed = layers.layer_norm(graph, &module("LayerNorm"), sum, self.norm_epsilon)?;
        layers.dropout(graph, &module("dropout"), self.dropout.hidden, normed)
    }

    /// The stream after attention, normed.
    fn attend(
        &self,
        graph: &mut Graph,
        layers: &mut Layers,
        extent: Extent,
        layer: usize,
        x: Value,
        mask: Option<Value>,
    ) -> Result<Value> {
        let names = self.dialect.block();
        let module = |name: &str| self.module(layer, name);
        let shape = [extent.batch, extent.context, self.heads, self.head_size];
        let mut sources = [x; 3];
        for (source, name) in sources.iter_mut().zip([names.query, names.key, names.value]) {
            let y = layers.linear(graph, &module(name), Form::Nt, x)?;
            *source = located(graph, &module(name), |g| g.reshape(y, shape.into()))?;
        }
        let draw = layers.draw(self.dropout.attention);
        let mut how = Attention::full();
        if let Some((_, salt)) = draw {
            how = how.dropout(self.dropout.attention, salt);
        }
        let mixed = located(graph, &module("attention"), |g| {
            let mixed = g.attention(&how, sources, mask, draw.map(|(rng, _)| rng))?;
            g.reshape(mixed, [extent.positions(), self.heads * self.head_size].into())
        })?;
        let y = layers.linear(graph, &module(names.mixed), Form::Nt, mixed)?;
        let share = if self.dialect.drops_mixed() { self.dropout.hidden } else { 0.0 };
        let y = layers.dropout(graph, &module(names.mixed), share, y)?;
        self.add_and_norm(graph, layers, &module(names.mixed_norm), x, y)
    }

    fn feed_forward(&self, graph: &mut Graph, layers: &mut Layers, layer: usize, x: Value) -> Result<Value> {
        let names = self.dialect.block();
        let module = |name: &str| self.module(layer, name);
        let wide = layers.linear(graph, &module(names.widen), Form::Nt, x)?;
        let wide = layers.activate(graph, &module(names.widen), self.activation, wide)?;
        let y = layers.linear(graph, &module(names.narrow), Form::Nt, wide)?;
        let y = layers.dropout(graph, &module(names.narrow), self.dropout.hidden, y)?;
        self.add_and_norm(graph, layers, &module(names.fed_norm), x, y)
    }

    fn add_and_norm(
        &self,
        graph: &mut Graph,
        layers: &Layers,
        norm: &str,
        x: Value,
        y: Value,
    ) -> Result<Value> {
        let sum = located(graph, norm, |g| g.add(x, y))?;
        layers.layer_norm(graph, norm, sum, self.norm_epsilon)
    }
}
