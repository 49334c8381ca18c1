//! Whisper: an encoder that hears and a decoder that writes what was said (Radford et al. 2022).
//!
//! ```text
//! h = gelu(conv2(gelu(conv1(features)))) + positions                      features: bands of a log-mel spectrogram over time
//! h = h + dropout(out_proj(attention(q_proj(n), k_proj(n), v_proj(n))))   n = self_attn_layer_norm(h), for each block
//! h = h + dropout(out_proj(attention over the encoder's last state))      n = encoder_attn_layer_norm(h), of the decoder
//! h = h + dropout(fc2(dropout(activation(fc1(n)))))                       n = final_layer_norm(h)
//! logits = layer_norm(h) embed_tokens^T
//! ```
//! `conv2` takes every second frame, so the encoder has half as many positions as there are frames. Its positions are sinusoids
//! that stand in the file and are not trained; the decoder learns its own. Projections of keys have no bias.

mod configuration;
mod convolution;
mod forward;
#[cfg(test)]
mod tests;

use super::{
    Activation, Error, Family, Forward, Init, Interface, Marks, ParameterSpec, Reading, Result, Sound, Stack,
    Task, count_elements,
};
use crate::graph::Graph;
use crate::ops::Value;
use serde_json::{Map, Value as Json};

/// Added to the variance in every norm.
const NORM_EPSILON: f32 = 1e-5;
/// Places that a convolution sees.
const TAPS: usize = 3;
/// Frames of sound for each position of the encoder.
pub(super) const FRAMES: usize = 2;
/// The positions of the encoder, which are held and not trained.
const HELD: &str = "model.encoder.embed_positions.weight";
/// Weights of a head that is not the token embedding.
const HEAD: &str = "proj_out.weight";

/// A Whisper of any size.
#[derive(Clone, Debug, PartialEq)]
pub struct Whisper {
    /// Tokens it knows, V.
    pub vocabulary: usize,
    /// Bands of the spectrogram.
    pub bands: usize,
    /// Positions of the encoder: half the frames that it hears, no more and no fewer.
    pub heard: usize,
    /// Most tokens that the decoder writes.
    pub written: usize,
    /// Channels of the residual stream, C.
    pub width: usize,
    /// The encoder.
    pub encoder: Stack,
    /// The decoder.
    pub decoder: Stack,
    /// Activation of the feed-forward part; that of the convolutions is always GELU.
    pub activation: Activation,
    /// Share of elements zeroed in training: of embeddings, and of what each part of a block adds.
    pub dropout: f32,
    /// The same of the attention probabilities.
    pub attention_dropout: f32,
    /// The same inside the feed-forward part.
    pub activation_dropout: f32,
    /// The head is the token embedding.
    pub tie: bool,
    /// Standard deviation of initial weights.
    pub deviation: f64,
    /// Tokens with a meaning of their own.
    pub marks: Marks,
    /// Keys of `config.json` that change nothing here, kept for saving.
    pub kept: Map<String, Json>,
}

impl Whisper {
    fn stack_parameters(&self, name: &str, stack: Stack, list: &mut Vec<ParameterSpec>) {
        for layer in 0..stack.layers {
            let module = |part: &str| format!("model.{name}.layers.{layer}.{part}");
            let attentions: &[&str] =
                if name == "decoder" { &["self_attn", "encoder_attn"] } else { &["self_attn"] };
            for attention in attentions {
                for projection in ["k_proj", "v_proj", "q_proj", "out_proj"] {
                    let name = module(&format!("{attention}.{projection}"));
                    self.linear_parameters(&name, &[self.width, self.width], projection != "k_proj", list);
                }
                self.norm_parameters(&module(&format!("{attention}_layer_norm")), list);
            }
            self.linear_parameters(&module("fc1"), &[stack.hidden, self.width], true, list);
            self.linear_parameters(&module("fc2"), &[self.width, stack.hidden], true, list);
            self.norm_parameters(&module("final_layer_norm"), list);
        }
        self.norm_parameters(&format!("model.{name}.layer_norm"), list);
    }

    fn norm_parameters(&self, module: &str, list: &mut Vec<ParameterSpec>) {
        list.push(ParameterSpec::new(format!("{module}.weight"), [self.width], Init::Ones));
        list.push(ParameterSpec::new(format!("{module}.bias"), [self.width], Init::Zeros));
    }

    fn linear_parameters(&self, module: &str, size: &[usize], bias: bool, list: &mut Vec<ParameterSpec>) {
        let normal = Init::Normal { deviation: self.deviation };
        list.push(ParameterSpec::new(format!("{module}.weight"), size, normal));
        if bias {
            list.push(ParameterSpec::new(format!("{module}.bias"), [size[0]], Init::Zeros));
        }
    }

    /// What it hears of a sound.
    fn sound(&self) -> Sound {
        let Marks { start, padding } = self.marks;
        Sound { bands: self.bands, frames: FRAMES * self.heard, start: [start, padding] }
    }

    /// Refuses another stretch of sound than the encoder has positions for.
    fn check_heard(&self, reading: &Reading) -> Result<()> {
        if reading.packed {
            reading.check(self.written)?;
        }
        if !reading.heard {
            let expected = "one that reads tokens alone".to_string();
            return Err(Error::Task { expected, got: Task::Transcript.describe() });
        }
        match reading.extent.context {
            got if got == self.heard => Ok(()),
            got => {
                let (expected, got) = (format!("{} frames", FRAMES * self.heard), (FRAMES * got).to_string());
                Err(Error::Input { name: "input_features".into(), expected, got })
            }
        }
    }
}

impl Family for Whisper {
    fn name(&self) -> &'static str {
        "whisper"
    }

    fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    fn context(&self) -> usize {
        self.written
    }

    fn parameters(&self) -> Vec<ParameterSpec> {
        let normal = Init::Normal { deviation: self.deviation };
        let mut list = vec![];
        self.linear_parameters("model.encoder.conv1", &[self.width, self.bands, TAPS], true, &mut list);
        self.linear_parameters("model.encoder.conv2", &[self.width, self.width, TAPS], true, &mut list);
        // Stored, and added, but never trained: weight decay has no business with it either.
        let held = ParameterSpec::new(HELD, [self.heard, self.width], normal);
        list.push(ParameterSpec { decay: false, ..held });
        self.stack_parameters("encoder", self.encoder, &mut list);
        let table = [self.vocabulary, self.width];
        list.push(ParameterSpec::new("model.decoder.embed_tokens.weight", table, normal));
        let places = "model.decoder.embed_positions.weight";
        list.push(ParameterSpec::new(places, [self.written, self.width], normal));
        self.stack_parameters("decoder", self.decoder, &mut list);
        if !self.tie {
            list.push(ParameterSpec::new(HEAD, table, normal));
        }
        list
    }

    fn interface(&self) -> Interface {
        let silent = Some(self.marks.padding);
        Interface { sound: Some(self.sound()), silent, ..Interface::of(Task::Transcript) }
    }

    fn read(&self, graph: &mut Graph, reading: &Reading) -> Result<Forward> {
        self.check_heard(reading)?;
        let written = match reading.mode {
            super::Mode::Continue { capacity } => capacity,
            _ => reading.target,
        };
        match written > self.written {
            true => Err(Error::Context { limit: self.written, got: written }),
            false => self.write(graph, reading),
        }
    }

    fn remember(&self, graph: &mut Graph, reading: &Reading) -> Result<Vec<(String, Value)>> {
        self.check_heard(reading)?;
        self.write_memory(graph, reading)
    }

    /// The bare model lacks the prefix.
    fn canonical_name(&self, stored: &str) -> Option<String> {
        if self.tie && stored == HEAD {
            return None;
        }
        let full = ["model.", "proj_out."].iter().any(|head| stored.starts_with(head));
        Some(if full { stored.to_string() } else { format!("model.{stored}") })
    }

    fn config(&self) -> Map<String, Json> {
        self.keys()
    }

    fn set_dropout(&mut self, share: f32) {
        (self.dropout, self.attention_dropout, self.activation_dropout) = (share, share, share);
    }

    fn describe(&self) -> String {
        let Whisper { bands, heard, written, encoder, decoder, width, vocabulary, .. } = self;
        let count = count_elements(&self.parameters());
        format!(
            "whisper: {} + {} layers, {} heads, width {width}, {bands} bands of {} frames, {written} tokens, vocabulary {vocabulary}, {count} parameters",
            encoder.layers,
            decoder.layers,
            encoder.heads,
            FRAMES * heard,
        )
    }
}
