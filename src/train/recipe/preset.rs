//! Named model shapes.

use super::Shape;

/// A model shape that goes by a name.
#[derive(Clone, Copy, Debug)]
pub struct Preset {
    /// The name in `model.preset`.
    pub name: &'static str,
    /// Blocks, one after the other.
    pub layers: usize,
    /// Attention heads in each block.
    pub heads: usize,
    /// Channels of the residual stream.
    pub width: usize,
    /// The longest sequence, in tokens.
    pub context: usize,
}

/// Every preset. The first is the default.
pub const PRESETS: &[Preset] = &[
    preset("gpt-nano", 4, 4, 128, 64),
    preset("gpt-micro", 2, 2, 64, 64),
    preset("gpt-mini", 6, 6, 384, 256),
    preset("gpt2", 12, 12, 768, 1024),
];

const fn preset(name: &'static str, layers: usize, heads: usize, width: usize, context: usize) -> Preset {
    Preset { name, layers, heads, width, context }
}

impl Preset {
    /// The preset of that name.
    pub fn find(name: &str) -> Option<&'static Preset> {
        PRESETS.iter().find(|preset| preset.name == name)
    }

    /// The shape with everything that a preset does not name at its usual value.
    pub fn shape(&self) -> Shape {
        Shape {
            family: "gpt2".to_string(),
            layers: self.layers,
            heads: self.heads,
            width: self.width,
            hidden: 4 * self.width,
            context: self.context,
            activation: "gelu".to_string(),
            norm_epsilon: 1e-5,
            dropout: 0.0,
            bias: true,
            tie: true,
        }
    }
}
