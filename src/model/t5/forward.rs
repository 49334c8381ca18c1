//! The forward pass of T5.

use super::super::layers::{Layers, located};
use super::super::sides::{Memory, Side};
use super::super::{Family, Forward, Mode, Reading, Result};
use super::{Stack, T5};
use crate::graph::Graph;
use crate::ops::attention::Attention;
use crate::ops::embedding::{EmbeddingEmit, sort_positions};
use crate::ops::matmul::{Form, MatmulEmit};
use crate::ops::pointwise::PointwiseEmit;
use crate::ops::reshape::ReshapeEmit;
use crate::ops::{Emit, Value};
use crate::tensor::Tensor;

impl T5 {
    pub(super) fn write(&self, graph: &mut Graph, reading: &Reading) -> Result<Forward> {
        let mut layers = Layers::declare(graph, &self.parameters(), reading.mode, self.dropout > 0.0);
        let (source, target) = (Side::source(graph, reading), Side::target(graph, reading));
        let (memory, encoded) = match reading.mode {
            Mode::Continue { .. } => (Memory::held(&source), vec![]),
            mode => {
                let encoded = self.encode(graph, &mut layers, mode, &source)?;
                (Memory::of(&source, encoded[encoded.len() - 1]), encoded)
            }
        };
        let hidden = self.decode(graph, &mut layers, reading.mode, &target, &memory)?;
        let logits = self.score(graph, &layers, &target, hidden[hidden.len() - 1])?;
        Ok(Forward { encoded, ..Forward::new(logits, hidden) })
    }

    /// The encoder alone.
    pub(super) fn write_states(&self, graph: &mut Graph, reading: &Reading) -> Result<Forward> {
        let mut layers = Layers::declare(graph, &self.parameters(), reading.mode, self.dropout > 0.0);
        let source = Side::source(graph, reading);
        let encoded = self.encode(graph, &mut layers, reading.mode, &source)?;
        Ok(Forward::new(encoded[encoded.len() - 1], encoded))
    }

    /// The encoder alone, and what each block of the decoder keeps of its last state.
    pub(super) fn write_memory(&self, graph: &mut Graph, reading: &Reading) -> Result<Vec<(String, Value)>> {
        let mut layers = Layers::declare(graph, &self.parameters(), Mode::Evaluate, false);
        let source = Side::source(graph, reading);
        let encoded = self.encode(graph, &mut layers, Mode::Evaluate, &source)?;
        let memory = Memory::of(&source, encoded[encoded.len() - 1]);
        let mut kept = vec![];
        for layer in 0..self.decoder_layers {
            let module = format!("decoder.block.{layer}.layer.1.EncDecAttention");
            let both = memory.sources(graph, &layers, &module, ["k", "v"], [self.heads, self.head_size])?;
            kept.extend(["keys", "values"].into_iter().zip(both).map(|(n, v)| (format!("{module}.{n}"), v)));
        }
        Ok(kept)
    }

    fn encode(&self, graph: &mut Graph, layers: &mut Layers, mode: Mode, side: &Side) -> Result<Vec<Value>> {
        let mut x = self.embed(graph, layers, mode, side, "encoder")?;
        let bias = self.biases(graph, layers, mode, side, Stack::Encoder)?;
        let mut hidden = vec![];
        for layer in 0..self.layers {
            hidden.push(x);
            x = self.attend(graph, layers, side, (Stack::Encoder, layer), x, bias)?;
            x = self.feed_forward(graph, layers, (Stack::Encoder, layer), x)?;
        }
        hidden.push(self.finish(graph, layers, "encoder", x)?);
        Ok(hidden)
    }

    fn decode(
        &self,
        graph: &mut Graph,
        layers: &mut Layers,
        mode: Mode,
        side: &Side,
        memory: &Memory,
    ) -> Result<Vec<Value>> {
        let mut x = self.embed(graph, layers, mode, side, "decoder")?;
        let bias = self.biases(graph, layers, mode, side, Stack::Decoder)?;
        let mut hidden = vec![];
        for layer in 0..self.decoder_layers {
            hidden.push(x);
            x = self.attend(graph, layers, side, (Stack::Decoder, layer), x, bias)?;
            x = self.recall(graph, layers, side, layer, x, memory)?;
            x = self.feed_forward(graph, layers, (Stack::Decoder, layer), x)?;
        }
        hidden.push(self.finish(graph, layers, "decoder", x)?);
        Ok(hidden)
    }

    /// [N, C] from the tokens' rows.
    fn embed(
        &self,
        graph: &mut Graph,
        layers: &mut Layers,
        mode: Mode,
        side: &Side,
        stack: &str,
    ) -> Result<Value> {
        let rows = side.look_up(graph, layers, "shared", mode)?;
        let x = located(graph, "shared", |g| g.reshape(rows, [side.extent.positions(), self.width].into()))?;
        layers.dropout(graph, &format!("{stack}.dropout"), self.dropout, x)
    }

    fn finish(&self, graph: &mut Graph, layers: &mut Layers, stack: &str, x: Value) -> Result<Value> {
        let x = layers.rms_norm(graph, &format!("{stack}.final_layer_norm"), x, self.norm_epsilon)?;
        layers.dropout(graph, &format!("{stack}.dropout"), self.dropout, x)
    }

    /// The biases of a stack by distance, [R, H], from its first block's table by bucket.
    fn biases(
        &self,
        graph: &mut Graph,
        layers: &Layers,
        mode: Mode,
        side: &Side,
        stack: Stack,
    ) -> Result<Value> {
        let both = stack == Stack::Encoder;
        let keys = side.keys() as i64;
        let after = if both { keys } else { 1 };
        let buckets = self.distances(both);
        let numbers: Vec<u32> = (1 - keys..after).map(|distance| buckets.of(distance)).collect();
        let module = format!("{}.block.0.layer.0.SelfAttention.relative_attention_bias", stack.name());
        let table = layers.weight(&module);
        located(graph, &module, |g| {
            let constant =
                |g: &mut Graph, numbers: Vec<u32>| g.constant(Tensor::u32([numbers.len()], numbers));
            let rows = constant(g, numbers.clone());
            if mode != Mode::Train {
                return g.embedding(table, rows);
            }
            let (order, starts) = sort_positions(&numbers, self.buckets)?;
            let (order, starts) = (constant(g, order), constant(g, starts));
            g.embedding_trained(table, rows, order, starts)
        })
    }

    /// The stream with what a stack's attention to itself adds to it.
    fn attend(
        &self,
        graph: &mut Graph,
        layers: &mut Layers,
        side: &Side,
        (stack, layer): (Stack, usize),
        stream: Value,
        bias: Value,
    ) -> Result<Value> {
        let part = format!("{}.block.{layer}.layer.0", stack.name());
        let module = format!("{part}.SelfAttention");
        let x = layers.rms_norm(graph, &format!("{part}.layer_norm"), stream, self.norm_epsilon)?;
        let mut heads = |name: &str| self.project(graph, layers, side, &format!("{module}.{name}"), x);
        let sources = [heads("q")?, heads("k")?, heads("v")?];
        let causal = stack == Stack::Decoder;
        let mixed = side.attend_biased(graph, layers, &module, causal, sources, (bias, self.dropout))?;
        self.add_mixed(graph, layers, (&module, &part), mixed, stream)
    }

    /// The stream with what the decoder's attention to the encoder's last state adds to it.
    fn recall(
        &self,
        graph: &mut Graph,
        layers: &mut Layers,
        side: &Side,
        layer: usize,
        stream: Value,
        memory: &Memory,
    ) -> Result<Value> {
        let part = format!("decoder.block.{layer}.layer.1");
        let module = format!("{part}.EncDecAttention");
        let x = layers.rms_norm(graph, &format!("{part}.layer_norm"), stream, self.norm_epsilon)?;
        let q = self.project(graph, layers, side, &format!("{module}.q"), x)?;
        let [k, v] = memory.sources(graph, layers, &module, ["k", "v"], [self.heads, self.head_size])?;
        let how = Attention::full().scale(1.0);
        let mixed = memory.attend(graph, layers, &module, &how, [q, k, v], self.dropout)?;
        self.add_mixed(graph, layers, (&module, &part), mixed, stream)
    }

    /// A projection as [B, T, H, D].
    fn project(
        &self,
        graph: &mut Graph,
        layers: &Layers,
        side: &Side,
        module: &str,
        x: Value,
    ) -> Result<Value> {
        let y = layers.linear(graph, module, Form::Nt, x)?;
        side.heads(graph, module, self.heads, y)
    }

    fn add_mixed(
        &self,
        graph: &mut Graph,
        layers: &mut Layers,
        (module, part): (&str, &str),
        mixed: Value,
        stream: Value,
    ) -> Result<Value> {
        let y = layers.linear(graph, &format!("{module}.o"), Form::Nt, mixed)?;
        let y = layers.dropout(graph, &format!("{part}.dropout"), self.dropout, y)?;
        located(graph, part, |g| g.add(stream, y))
    }

    /// The stream with what the feed-forward part adds to it.
    fn feed_forward(
        &self,
        graph: &mut Graph,
        layers: &mut Layers,
        (stack, layer): (Stack, usize),
        stream: Value,
    ) -> Result<Value> {
        let part = format!("{}.block.{layer}.layer.{}", stack.name(), stack.feeding());
        let dense = |name: &str| format!("{part}.DenseReluDense.{name}");
        let x = layers.rms_norm(graph, &format!("{part}.layer_norm"), stream, self.norm_epsilon)?;
        let first = if self.gated { "wi_0" } else { "wi" };
        let mut y = layers.linear(graph, &dense(first), Form::Nt, x)?;
        y = layers.activate(graph, &dense("act"), self.activation, y)?;
        if self.gated {
            let up = layers.linear(graph, &dense("wi_1"), Form::Nt, x)?;
            y = located(graph, &part, |g| g.mul(y, up))?;
        }
        let y = layers.dropout(graph, &dense("dropout"), self.dropout, y)?;
        let y = layers.linear(graph, &dense("wo"), Form::Nt, y)?;
        let y = layers.dropout(graph, &format!("{part}.dropout"), self.dropout, y)?;
        located(graph, &part, |g| g.add(stream, y))
    }

    fn score(&self, graph: &mut Graph, layers: &Layers, side: &Side, x: Value) -> Result<Value> {
        let x = side.course.scored(graph, "lm_head", x)?;
        let head = layers.weight(if self.tie { "shared" } else { "lm_head" });
        located(graph, "lm_head", |g| {
            let x = if self.scale_output { g.scale(x, (self.width as f32).powf(-0.5))? } else { x };
            g.matmul_form(Form::Nt, x, head)
        })
    }
}
