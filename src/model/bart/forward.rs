//! The forward pass of BART and Marian.

use super::super::layers::{Layers, located};
use super::super::sides::{Memory, Side};
use super::super::{Family, Forward, Mode, Reading, Result};
use super::{Bart, NORM_EPSILON, Positions, Stack, UNUSED_ROWS};
use crate::graph::Graph;
use crate::ops::attention::Attention;
use crate::ops::embedding::EmbeddingEmit;
use crate::ops::matmul::{Form, MatmulEmit};
use crate::ops::pointwise::PointwiseEmit;
use crate::ops::positions::sinusoidal_halves;
use crate::ops::reshape::ReshapeEmit;
use crate::ops::slice::SliceEmit;
use crate::ops::{self, Emit, Value};

impl Bart {
    pub(super) fn write(&self, graph: &mut Graph, reading: &Reading) -> Result<Forward> {
        let drops = [self.dropout, self.attention_dropout, self.activation_dropout];
        let drops = drops.iter().any(|share| *share > 0.0);
        let mut layers = Layers::declare(graph, &self.parameters(), reading.mode, drops);
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

    /// The encoder alone, and what each block of the decoder keeps of its last state.
    pub(super) fn write_memory(&self, graph: &mut Graph, reading: &Reading) -> Result<Vec<(String, Value)>> {
        let mut layers = Layers::declare(graph, &self.parameters(), Mode::Evaluate, false);
        let source = Side::source(graph, reading);
        let encoded = self.encode(graph, &mut layers, Mode::Evaluate, &source)?;
        let memory = Memory::of(&source, encoded[encoded.len() - 1]);
        let mut kept = vec![];
        for layer in 0..self.decoder.layers {
            let module = format!("model.decoder.layers.{layer}.encoder_attn");
            let both = memory.sources(graph, &layers, &module, ["k_proj", "v_proj"], self.memory_heads())?;
            kept.extend(["keys", "values"].into_iter().zip(both).map(|(n, v)| (format!("{module}.{n}"), v)));
        }
        Ok(kept)
    }

    fn encode(&self, graph: &mut Graph, layers: &mut Layers, mode: Mode, side: &Side) -> Result<Vec<Value>> {
        let mut hidden = vec![self.embed(graph, layers, mode, side, "encoder")?];
        for layer in 0..self.encoder.layers {
            let block = format!("model.encoder.layers.{layer}");
            let x = hidden[layer];
            let x = self.attend(graph, layers, side, (&block, self.encoder), &Attention::full(), x)?;
            hidden.push(self.feed_forward(graph, layers, &block, x)?);
        }
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
        let mut hidden = vec![self.embed(graph, layers, mode, side, "decoder")?];
        for layer in 0..self.decoder.layers {
            let block = format!("model.decoder.layers.{layer}");
            let x = hidden[layer];
            let x = self.attend(graph, layers, side, (&block, self.decoder), &Attention::causal(), x)?;
            let x = self.recall(graph, layers, side, &block, x, memory)?;
            hidden.push(self.feed_forward(graph, layers, &block, x)?);
        }
        Ok(hidden)
    }

    /// [N, C] from the tokens' rows and their positions.
    fn embed(
        &self,
        graph: &mut Graph,
        layers: &mut Layers,
        mode: Mode,
        side: &Side,
        stack: &str,
    ) -> Result<Value> {
        let module = |name: &str| format!("model.{stack}.{name}");
        let rows = side.look_up(graph, layers, "model.shared", mode)?;
        let places = self.places(graph, layers, side, &module("embed_positions"))?;
        let mut x = located(graph, &module("embed_positions"), |g| {
            let root = (self.width as f32).sqrt();
            let rows = if self.scale_embedding { g.scale(rows, root)? } else { rows };
            let sum = g.add(rows, places)?;
            g.reshape(sum, [side.extent.positions(), self.width].into())
        })?;
        if self.positions == Positions::Learned {
            x = layers.layer_norm(graph, &module("layernorm_embedding"), x, NORM_EPSILON)?;
        }
        layers.dropout(graph, &module("dropout"), self.dropout, x)
    }

    /// Rows of the positions, [T, C] or [B, T, C].
    fn places(&self, graph: &mut Graph, layers: &Layers, side: &Side, module: &str) -> Result<Value> {
        let count = side.keys();
        let table = match self.positions {
            Positions::Learned => {
                let table = layers.weight(module);
                located(graph, module, |g| g.slice(table, 0, UNUSED_ROWS, UNUSED_ROWS + count))?
            }
            Positions::Sinusoidal => graph.constant(sinusoidal_halves(count, self.width)?),
        };
        match side.course.given() {
            None => Ok(table),
            Some(places) => located(graph, module, |g| g.embedding(table, places)),
        }
    }

    /// What comes behind a stack's attention to itself.
    fn attend(
        &self,
        graph: &mut Graph,
        layers: &mut Layers,
        side: &Side,
        (block, stack): (&str, Stack),
        how: &Attention,
        stream: Value,
    ) -> Result<Value> {
        let module = format!("{block}.self_attn");
        let mut heads = |name: &str| {
            let module = format!("{module}.{name}");
            let y = layers.linear(graph, &module, Form::Nt, stream)?;
            side.heads(graph, &module, stack.heads, y)
        };
        let sources = [heads("q_proj")?, heads("k_proj")?, heads("v_proj")?];
        let mixed = side.attend(graph, layers, &module, how, sources, self.attention_dropout)?;
        let y = layers.linear(graph, &format!("{module}.out_proj"), Form::Nt, mixed)?;
        self.add_and_norm(graph, layers, (block, "self_attn_layer_norm"), y, stream)
    }

    /// What comes behind the decoder's attention to the encoder's last state.
    fn recall(
        &self,
        graph: &mut Graph,
        layers: &mut Layers,
        side: &Side,
        block: &str,
        stream: Value,
        memory: &Memory,
    ) -> Result<Value> {
        let module = format!("{block}.encoder_attn");
        let (heads, query) = (self.decoder.heads, format!("{module}.q_proj"));
        let q = layers.linear(graph, &query, Form::Nt, stream)?;
        let q = side.heads(graph, &query, heads, q)?;
        let [k, v] = memory.sources(graph, layers, &module, ["k_proj", "v_proj"], self.memory_heads())?;
        let how = Attention::full();
        let mixed = memory.attend(graph, layers, &module, &how, [q, k, v], self.attention_dropout)?;
        let y = layers.linear(graph, &format!("{module}.out_proj"), Form::Nt, mixed)?;
        self.add_and_norm(graph, layers, (block, "encoder_attn_layer_norm"), y, stream)
    }

    /// Heads of the decoder, and channels of each.
    fn memory_heads(&self) -> [usize; 2] {
        [self.decoder.heads, self.width / self.decoder.heads]
    }

    fn feed_forward(
        &self,
        graph: &mut Graph,
        layers: &mut Layers,
        block: &str,
        stream: Value,
    ) -> Result<Value> {
        let module = |name: &str| format!("{block}.{name}");
        let y = layers.linear(graph, &module("fc1"), Form::Nt, stream)?;
        let y = layers.activate(graph, &module("activation_fn"), self.activation, y)?;
        let y = layers.dropout(graph, &module("activation_dropout"), self.activation_dropout, y)?;
        let y = layers.linear(graph, &module("fc2"), Form::Nt, y)?;
        self.add_and_norm(graph, layers, (block, "final_layer_norm"), y, stream)
    }

    /// norm(stream + dropout(y)).
    fn add_and_norm(
        &self,
        graph: &mut Graph,
        layers: &mut Layers,
        (block, norm): (&str, &str),
        y: Value,
        stream: Value,
    ) -> Result<Value> {
        let y = layers.dropout(graph, &format!("{block}.dropout"), self.dropout, y)?;
        let sum = located(graph, block, |g| g.add(stream, y))?;
        layers.layer_norm(graph, &format!("{block}.{norm}"), sum, NORM_EPSILON)
    }

    fn score(&self, graph: &mut Graph, layers: &Layers, side: &Side, x: Value) -> Result<Value> {
        let x = side.course.scored(graph, "lm_head", x)?;
        let head = layers.weight(if self.tie { "model.shared" } else { "lm_head" });
        let bias = layers.named("final_logits_bias");
        located(graph, "lm_head", |g| -> ops::Result<Value> {
            let scores = g.matmul_form(Form::Nt, x, head)?;
            let bias = g.pointwise("held", &[bias], 0.0)?;
            g.add(scores, bias)
        })
    }
}
