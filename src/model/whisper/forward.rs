//! The forward pass of Whisper.

use super::super::layers::{Layers, located};
use super::super::row_mlp::FEATURES;
use super::super::sides::{Memory, Side};
use super::super::{Activation, Extent, Family, Forward, Mode, Reading, Result};
use super::convolution::convolve;
use super::{FRAMES, NORM_EPSILON, Stack, Whisper};
use crate::graph::Graph;
use crate::ops::Value;
use crate::ops::attention::Attention;
use crate::ops::matmul::{Form, MatmulEmit};
use crate::ops::pointwise::PointwiseEmit;
use crate::ops::reshape::ReshapeEmit;
use crate::ops::transpose::TransposeEmit;
use crate::tensor::Type;

/// The table of tokens, which is the head as well.
const TOKENS: &str = "model.decoder.embed_tokens";

impl Whisper {
    pub(super) fn write(&self, graph: &mut Graph, reading: &Reading) -> Result<Forward> {
        let drops = [self.dropout, self.attention_dropout, self.activation_dropout];
        let drops = drops.iter().any(|share| *share > 0.0);
        let mut layers = Layers::declare(graph, &self.parameters(), reading.mode, drops);
        let (source, target) = (self.heard_side(graph, reading), Side::target(graph, reading));
        let (memory, encoded) = match reading.mode {
            Mode::Continue { .. } => (Memory::held(&source), vec![]),
            _ => {
                let encoded = self.encode(graph, &mut layers, &source)?;
                (Memory::of(&source, encoded[encoded.len() - 1]), encoded)
            }
        };
        let hidden = self.decode(graph, &mut layers, reading.mode, &target, &memory)?;
        let x = target.course.scored(graph, "proj_out", hidden[hidden.len() - 1])?;
        let head = layers.weight(if self.tie { TOKENS } else { "proj_out" });
        let logits = located(graph, "proj_out", |g| g.matmul_form(Form::Nt, x, head))?;
        Ok(Forward { encoded, ..Forward::new(logits, hidden) })
    }

    /// The encoder alone, and what each block of the decoder keeps of its last state.
    pub(super) fn write_memory(&self, graph: &mut Graph, reading: &Reading) -> Result<Vec<(String, Value)>> {
        let mut layers = Layers::declare(graph, &self.parameters(), Mode::Evaluate, false);
        let source = self.heard_side(graph, reading);
        let encoded = self.encode(graph, &mut layers, &source)?;
        let memory = Memory::of(&source, encoded[encoded.len() - 1]);
        let mut kept = vec![];
        for layer in 0..self.decoder.layers {
            let module = format!("model.decoder.layers.{layer}.encoder_attn");
            let both = memory.sources(graph, &layers, &module, ["k_proj", "v_proj"], self.memory_heads())?;
            kept.extend(["keys", "values"].into_iter().zip(both).map(|(n, v)| (format!("{module}.{n}"), v)));
        }
        Ok(kept)
    }

    /// The whole of a sound counts, silence at its end as well.
    fn heard_side(&self, graph: &mut Graph, reading: &Reading) -> Side {
        Side::source(graph, &Reading { padded: false, ..*reading })
    }

    fn encode(&self, graph: &mut Graph, layers: &mut Layers, side: &Side) -> Result<Vec<Value>> {
        let mut x = self.hear(graph, layers, side.extent)?;
        let mut hidden = vec![];
        for layer in 0..self.encoder.layers {
            hidden.push(x);
            let block = format!("model.encoder.layers.{layer}");
            x = self.attend(graph, layers, side, (&block, self.encoder), &Attention::full(), x)?;
            x = self.feed_forward(graph, layers, &block, x)?;
        }
        hidden.push(layers.layer_norm(graph, "model.encoder.layer_norm", x, NORM_EPSILON)?);
        Ok(hidden)
    }

    /// [N, C] from the bands of each frame.
    fn hear(&self, graph: &mut Graph, layers: &mut Layers, extent: Extent) -> Result<Value> {
        let Extent { batch, context } = extent;
        let frames = FRAMES * context;
        let features = graph.input(FEATURES, Type::f32([batch, self.bands, frames]));
        let (first, second) = ("model.encoder.conv1", "model.encoder.conv2");
        let x = located(graph, first, |g| g.transpose(features, &[0, 2, 1]))?;
        let x = convolve(graph, layers, first, x, 1)?;
        let x = layers.activate(graph, first, Activation::Gelu, x)?;
        let x = located(graph, second, |g| g.reshape(x, [batch, frames, self.width].into()))?;
        let x = convolve(graph, layers, second, x, FRAMES)?;
        let x = layers.activate(graph, second, Activation::Gelu, x)?;
        let module = "model.encoder.embed_positions";
        let places = layers.weight(module);
        let x = located(graph, module, |g| {
            let places = g.pointwise("held", &[places], 0.0)?;
            let x = g.reshape(x, [batch, context, self.width].into())?;
            let sum = g.add(x, places)?;
            g.reshape(sum, [extent.positions(), self.width].into())
        })?;
        layers.dropout(graph, "model.encoder.dropout", self.dropout, x)
    }

    fn decode(
        &self,
        graph: &mut Graph,
        layers: &mut Layers,
        mode: Mode,
        side: &Side,
        memory: &Memory,
    ) -> Result<Vec<Value>> {
        let rows = side.look_up(graph, layers, TOKENS, mode)?;
        let module = "model.decoder.embed_positions";
        let places = layers.weight(module);
        let x = located(graph, module, |g| {
            let places = side.course.places(g, places, side.extent)?;
            let sum = g.add(rows, places)?;
            g.reshape(sum, [side.extent.positions(), self.width].into())
        })?;
        let mut x = layers.dropout(graph, "model.decoder.dropout", self.dropout, x)?;
        let mut hidden = vec![];
        for layer in 0..self.decoder.layers {
            hidden.push(x);
            let block = format!("model.decoder.layers.{layer}");
            x = self.attend(graph, layers, side, (&block, self.decoder), &Attention::causal(), x)?;
            x = self.recall(graph, layers, side, &block, x, memory)?;
            x = self.feed_forward(graph, layers, &block, x)?;
        }
        hidden.push(layers.layer_norm(graph, "model.decoder.layer_norm", x, NORM_EPSILON)?);
        Ok(hidden)
    }

    /// The stream with what a stack's attention to itself adds to it.
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
        let x = layers.layer_norm(graph, &format!("{module}_layer_norm"), stream, NORM_EPSILON)?;
        let mut heads = |name: &str| {
            let module = format!("{module}.{name}");
            let y = layers.linear(graph, &module, Form::Nt, x)?;
            side.heads(graph, &module, stack.heads, y)
        };
        let sources = [heads("q_proj")?, heads("k_proj")?, heads("v_proj")?];
        let mixed = side.attend(graph, layers, &module, how, sources, self.attention_dropout)?;
        let y = layers.linear(graph, &format!("{module}.out_proj"), Form::Nt, mixed)?;
        self.onto(graph, layers, block, stream, y)
    }

    /// The stream with what the decoder's attention to the encoder's last state adds to it.
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
        let x = layers.layer_norm(graph, &format!("{module}_layer_norm"), stream, NORM_EPSILON)?;
        let query = format!("{module}.q_proj");
        let q = layers.linear(graph, &query, Form::Nt, x)?;
        let q = side.heads(graph, &query, self.decoder.heads, q)?;
        let [k, v] = memory.sources(graph, layers, &module, ["k_proj", "v_proj"], self.memory_heads())?;
        let how = Attention::full();
        let mixed = memory.attend(graph, layers, &module, &how, [q, k, v], self.attention_dropout)?;
        let y = layers.linear(graph, &format!("{module}.out_proj"), Form::Nt, mixed)?;
        self.onto(graph, layers, block, stream, y)
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
        let x = layers.layer_norm(graph, &module("final_layer_norm"), stream, NORM_EPSILON)?;
        let y = layers.linear(graph, &module("fc1"), Form::Nt, x)?;
        let y = layers.activate(graph, &module("activation_fn"), self.activation, y)?;
        let y = layers.dropout(graph, &module("activation_dropout"), self.activation_dropout, y)?;
        let y = layers.linear(graph, &module("fc2"), Form::Nt, y)?;
        self.onto(graph, layers, block, stream, y)
    }

    /// stream + dropout(y).
    fn onto(
        &self,
        graph: &mut Graph,
        layers: &mut Layers,
        block: &str,
        stream: Value,
        y: Value,
    ) -> Result<Value> {
        let y = layers.dropout(graph, &format!("{block}.dropout"), self.dropout, y)?;
        located(graph, block, |g| g.add(stream, y))
    }
}
