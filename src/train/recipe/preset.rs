//! Named model shapes.

use super::Shape;
use crate::model::usual;

/// A model shape that goes by a name.
#[derive(Clone, Copy, Debug)]
pub struct Preset {
    /// The name in `model.preset`.
    pub name: &'static str,
    /// The architecture.
    pub family: &'static str,
    /// Blocks, one after the other.
    pub layers: usize,
    /// Attention heads in each block.
    pub heads: usize,
    /// Heads of the keys and values; absent: as many as heads.
    pub kv_heads: Option<usize>,
    /// Channels of the residual stream.
    pub width: usize,
    /// Width inside the feed-forward part; absent: what the family has by its width.
    pub hidden: Option<usize>,
    /// The longest sequence, in tokens.
    pub context: usize,
    /// Tokens of the embedding; absent: those of the tokenizer.
    pub vocabulary: Option<usize>,
    /// Base of the rotary positions; absent: the family's.
    pub rope_theta: Option<f64>,
    /// The output head shares the embedding's weights; absent: as the family has it.
    pub tie: Option<bool>,
}

/// Every preset. The first is the default.
pub const PRESETS: &[Preset] = &[
    preset("gpt-nano", 4, 4, 128, 64),
    preset("gpt-micro", 2, 2, 64, 64),
    preset("gpt-mini", 6, 6, 384, 256),
    preset("gpt2", 12, 12, 768, 1024),
    Preset {
        family: "llama",
        kv_heads: Some(3),
        hidden: Some(1536),
        vocabulary: Some(49152),
        rope_theta: Some(100_000.0),
        tie: Some(true),
        ..preset("smollm2-135m", 30, 9, 576, 8192)
    },
];

/// A GPT-2 of this size.
const fn preset(name: &'static str, layers: usize, heads: usize, width: usize, context: usize) -> Preset {
    let (kv_heads, hidden, vocabulary, rope_theta, tie) = (None, None, None, None, None);
    let family = "gpt2";
    Preset { name, family, layers, heads, kv_heads, width, hidden, context, vocabulary, rope_theta, tie }
}

impl Preset {
    /// The preset of that name.
    pub fn find(name: &str) -> Option<&'static Preset> {
        PRESETS.iter().find(|preset| preset.name == name)
    }

    /// The shape with everything that a preset does not name at its family's usual value.
    pub fn shape(&self) -> Shape {
        Shape {
            layers: self.layers,
            heads: self.heads,
            kv_heads: self.kv_heads,
            width: self.width,
            hidden: self.hidden.unwrap_or((usual(self.family).hidden)(self.width)),
            context: self.context,
            vocabulary: self.vocabulary,
            rope_theta: self.rope_theta,
            tie: self.tie.unwrap_or(usual(self.family).tie),
            ..Shape::usual(self.family)
        }
    }
}

impl Shape {
    /// What a family usually has; it says nothing about sizes, so they are zero.
    pub(super) fn usual(family: &str) -> Shape {
        let usual = usual(family);
        Shape {
            family: family.to_string(),
            layers: 0,
            heads: 0,
            kv_heads: None,
            head_size: None,
            width: 0,
            hidden: 0,
            context: 0,
            vocabulary: None,
            activation: usual.activation.to_string(),
            norm_epsilon: usual.norm_epsilon,
            rope_theta: None,
            window: None,
            dropout: 0.0,
            bias: usual.bias,
            tie: usual.tie,
            head: None,
        }
    }
}
