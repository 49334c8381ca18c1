//! Where each weight lies in the arenas: parameters, gradients and moments share one layout.
//!
//! Tensors are padded to blocks of 64 elements, which is also the alignment any adapter demands of a binding. Pads are zero
//! and stay zero: their gradient is never written.

use crate::plan::Span;
use crate::tensor::{Shape, Tensor, Type};

/// Elements of one block.
pub const BLOCK: usize = 64;

/// One weight in the arenas.
#[derive(Clone, Debug, PartialEq)]
pub struct Placed {
    /// Name of the parameter.
    pub name: String,
    /// Its shape.
    pub shape: Shape,
    /// Elements before it.
    pub offset: usize,
    /// True if weight decay applies.
    pub decays: bool,
}

/// The common layout of all arenas.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    /// The weights in order.
    pub tensors: Vec<Placed>,
    /// Elements of an arena with pads.
    pub elements: usize,
}

impl Layout {
    /// Lays out weights (name, shape, whether decay applies) one after another.
    pub fn new(weights: impl IntoIterator<Item = (String, Shape, bool)>) -> Self {
        let mut layout = Layout { tensors: vec![], elements: 0 };
        for (name, shape, decays) in weights {
            let padded = shape.count().next_multiple_of(BLOCK);
            layout.tensors.push(Placed { name, shape, offset: layout.elements, decays });
            layout.elements += padded;
        }
        layout
    }

    /// Number of weights without pads.
    pub fn count(&self) -> usize {
        self.tensors.iter().map(|t| t.shape.count()).sum()
    }

    /// Type of an arena.
    pub fn kind(&self) -> Type {
        Type::f32([self.elements])
    }

    /// The place of a weight in an arena.
    pub fn span(placed: &Placed, arena: usize) -> Span {
        Span { arena, offset_bytes: 4 * placed.offset as u64 }
    }

    /// For each block the number of its tensor.
    pub fn segments(&self) -> Tensor {
        let of = |(i, t): (usize, &Placed)| std::iter::repeat_n(i as u32, t.shape.count().div_ceil(BLOCK));
        let segments: Vec<u32> = self.tensors.iter().enumerate().flat_map(of).collect();
        Tensor::u32([segments.len()], segments)
    }

    /// For each tensor its weight decay.
    pub fn decay(&self, weight_decay: f64) -> Tensor {
        let of = |t: &Placed| if t.decays { weight_decay as f32 } else { 0.0 };
        Tensor::f32([self.tensors.len()], self.tensors.iter().map(of).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::ALIGNMENT;

    #[test]
    fn weights_start_on_blocks_and_blocks_name_their_tensor() {
        let weight = |name: &str, shape: &[usize]| (name.to_string(), Shape::from(shape), shape.len() > 1);
        let layout = Layout::new([weight("a", &[3, 5]), weight("b", &[64]), weight("c", &[13, 10])]);
        assert_eq!(layout.elements, 64 + 64 + 192);
        assert_eq!(layout.count(), 15 + 64 + 130);
        assert_eq!(layout.segments().as_u32(), [0, 1, 2, 2, 2]);
        assert_eq!(layout.decay(0.1).real::<f32>(), [0.1, 0.0, 0.1]);
        assert!(layout.tensors.iter().all(|t| Layout::span(t, 0).offset_bytes.is_multiple_of(ALIGNMENT)));
    }
}
