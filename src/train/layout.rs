//! Where each weight lies in the arenas: parameters, gradients and moments share one layout.
//!
//! Tensors are padded to blocks of 64 elements, which is also the alignment any adapter demands of a binding. Pads are zero
//! and stay zero: their gradient is never written. Weights that together are larger than a kernel may bind are laid out in
//! pages, each with arenas of its own; a tensor lies in one page.

use crate::tensor::{DType, Shape, Tensor, Type};
use std::ops::Range;

/// Elements of one block.
pub const BLOCK: usize = 64;

pub use crate::ops::optimizer::bytes::GROUP;

/// Bytes of the numbers that an update makes of codes at a time.
const BYTES_AT_ONCE: u64 = 16 << 20;

/// One weight in the arenas.
#[derive(Clone, Debug, PartialEq)]
pub struct Placed {
    /// Name of the parameter.
    pub name: String,
    /// Its shape.
    pub shape: Shape,
    /// Number of its page.
    pub page: usize,
    /// Elements before it in the page.
    pub offset: usize,
    /// Elements with its pad.
    pub padded: usize,
    /// True if weight decay applies.
    pub decays: bool,
}

/// How a tensor and what belongs to it are held; tensors that differ in it lie in pages of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Class {
    /// The optimiser keeps its moments in 8 bits, with a scale for each [`GROUP`] elements.
    pub byte_moments: bool,
    /// The weight is bf16, and there is no copy of it in 32 bits.
    pub half_weights: bool,
    /// The weight is codes of 8 bits with a scale for each [`GROUP`] elements, and there is no copy of it in more.
    pub byte_weights: bool,
    /// Whether a mask keeps some of it at zero.
    pub masked: Masked,
}

/// Whether a mask keeps some of a weight at zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Masked {
    /// There is none.
    #[default]
    No,
    /// What is zero when training begins.
    Kept,
    /// More is chosen while it goes on.
    Chosen,
}

impl Class {
    /// Elements to whose multiples tensors are padded.
    fn unit(self) -> usize {
        match self {
            // The scales of each tensor are bound by themselves, so that they begin on blocks as well.
            Class { byte_weights: true, .. } => GROUP * BLOCK,
            Class { byte_moments: false, half_weights: false, .. } => BLOCK,
            _ => GROUP,
        }
    }

    /// The type in which weights lie in their arena.
    pub fn stored(self) -> DType {
        match self {
            Class { byte_weights: true, .. } => DType::I8,
            Class { half_weights: true, .. } => DType::BF16,
            _ => DType::F32,
        }
    }
}

/// Some of the tensors, one after another.
#[derive(Clone, Debug, PartialEq)]
pub struct Page {
    /// Numbers of its tensors.
    pub tensors: Range<usize>,
    /// Elements with pads.
    pub elements: usize,
    /// How its tensors are held.
    pub class: Class,
}

/// The common layout of all arenas.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    /// The weights in order.
    pub tensors: Vec<Placed>,
    /// Runs of weights that share arenas; at least one.
    pub pages: Vec<Page>,
}

impl Layout {
    /// Lays out weights (name, shape, whether decay applies) one after another, in pages of at most `most_bytes` each.
    ///
    /// A tensor larger than that has a page to itself; whether a kernel can use it is for the planner to say.
    pub fn new(weights: impl IntoIterator<Item = (String, Shape, bool)>, most_bytes: u64) -> Self {
        Layout::keeping(weights, most_bytes, |_| Class::default())
    }

    /// The same with tensors held as `class` says of their names; those that are f32 throughout come first.
    pub fn keeping(
        weights: impl IntoIterator<Item = (String, Shape, bool)>,
        most_bytes: u64,
        class: impl Fn(&str) -> Class,
    ) -> Self {
        let mut layout = Layout { tensors: vec![], pages: vec![] };
        let mut all: Vec<_> = weights.into_iter().map(|w| (class(&w.0), w)).collect();
        all.sort_by_key(|(class, _)| *class);
        let first = all.first().map_or(Class::default(), |(class, _)| *class);
        layout.pages.push(Page { tensors: 0..0, elements: 0, class: first });
        for (class, (name, shape, decays)) in all {
            let padded = shape.count().next_multiple_of(class.unit());
            let number = layout.tensors.len();
            let last = layout.pages.last().expect("there is always one");
            // An update makes numbers of a whole page of codes: small pages take turns in the same memory.
            let most_bytes = if class.byte_weights { most_bytes.min(BYTES_AT_ONCE) } else { most_bytes };
            let is_full = last.elements > 0 && 4 * (last.elements + padded) as u64 > most_bytes;
            if is_full || last.class != class {
                layout.pages.push(Page { tensors: number..number, elements: 0, class });
            }
            let page = layout.pages.len() - 1;
            let last = &mut layout.pages[page];
            layout.tensors.push(Placed { name, shape, page, offset: last.elements, padded, decays });
            last.elements += padded;
            last.tensors.end = number + 1;
        }
        layout
    }

    /// The tensor of that name.
    pub fn find(&self, name: &str) -> Option<&Placed> {
        self.tensors.iter().find(|placed| placed.name == name)
    }

    /// Number of weights without pads.
    pub fn count(&self) -> usize {
        self.tensors.iter().map(|t| t.shape.count()).sum()
    }

    /// Type of an arena that holds a page.
    pub fn kind(&self, page: usize) -> Type {
        Type::f32([self.pages[page].elements])
    }

    /// The tensors of a page.
    pub fn of_page(&self, page: usize) -> &[Placed] {
        &self.tensors[self.pages[page].tensors.clone()]
    }

    /// For each block of a page the number of its tensor in the page.
    pub fn segments(&self, page: usize) -> Tensor {
        let of = |(i, t): (usize, &Placed)| std::iter::repeat_n(i as u32, t.padded / BLOCK);
        let segments: Vec<u32> = self.of_page(page).iter().enumerate().flat_map(of).collect();
        Tensor::u32([segments.len()], segments)
    }

    /// For each tensor of a page its weight decay.
    pub fn decay(&self, page: usize, weight_decay: f64) -> Tensor {
        let of = |t: &Placed| if t.decays { weight_decay as f32 } else { 0.0 };
        let decay: Vec<f32> = self.of_page(page).iter().map(of).collect();
        Tensor::f32([decay.len()], decay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights() -> [(String, Shape, bool); 3] {
        let weight = |name: &str, shape: &[usize]| (name.to_string(), Shape::from(shape), shape.len() > 1);
        [weight("a", &[3, 5]), weight("b", &[64]), weight("c", &[13, 10])]
    }

    #[test]
    fn weights_start_on_blocks_and_blocks_name_their_tensor() {
        let layout = Layout::new(weights(), u64::MAX);
        assert_eq!(layout.pages.len(), 1);
        assert_eq!(layout.kind(0), Type::f32([64 + 64 + 192]));
        assert_eq!(layout.count(), 15 + 64 + 130);
        assert_eq!(layout.segments(0).as_u32(), [0, 1, 2, 2, 2]);
        assert_eq!(layout.decay(0, 0.1).real::<f32>(), [0.1, 0.0, 0.1]);
        assert_eq!(layout.tensors.iter().map(|t| t.offset).collect::<Vec<_>>(), [0, 64, 128]);
    }

    #[test]
    fn tensors_with_moments_in_bytes_have_pages_of_their_own_and_whole_groups() {
        let bytes = Class { byte_moments: true, ..Class::default() };
        let class = |name: &str| if name == "b" { Class::default() } else { bytes };
        let layout = Layout::keeping(weights(), u64::MAX, class);
        let names: Vec<&str> = layout.tensors.iter().map(|t| t.name.as_str()).collect();
        assert_eq!(names, ["b", "a", "c"]);
        let pages: Vec<_> = layout.pages.iter().map(|p| (p.elements, p.class)).collect();
        assert_eq!(pages, [(64, Class::default()), (512, bytes)]);
        assert_eq!(layout.segments(1).as_u32(), [0, 0, 0, 0, 1, 1, 1, 1]);
        assert_eq!(layout.tensors[2].offset, 256);
    }

    #[test]
    fn a_page_holds_what_may_be_bound_and_a_larger_tensor_stands_alone() {
        let pages = |most_bytes| {
            let layout = Layout::new(weights(), most_bytes);
            let of = |t: &Placed| (t.page, t.offset);
            (layout.tensors.iter().map(of).collect::<Vec<_>>(), layout.segments(layout.pages.len() - 1))
        };
        assert_eq!(pages(4 * 128).0, [(0, 0), (0, 64), (1, 0)]);
        let (alone, last) = pages(4 * 64);
        assert_eq!(alone, [(0, 0), (1, 0), (2, 0)]);
        assert_eq!(last.as_u32(), [0, 0, 0]);
    }
}
