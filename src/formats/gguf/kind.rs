//! How GGUF numbers the ways to store a tensor.

use crate::tensor::quant::blocks::Block;

/// How a tensor of a GGUF file is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Floats, plain or in blocks, that are decoded here.
    Block(Block),
    /// Anything else that the format defines: its size is known, so the file can be checked, listed and copied.
    Other(Other),
}

/// A way to store that is not decoded here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Other {
    id: u32,
    name: &'static str,
    elements: usize,
    size_bytes: usize,
}

const BLOCKS: &[(u32, Block)] = &[
    (0, Block::F32),
    (1, Block::F16),
    (2, Block::Q4_0),
    (3, Block::Q4_1),
    (6, Block::Q5_0),
    (7, Block::Q5_1),
    (8, Block::Q8_0),
    (10, Block::Q2K),
    (11, Block::Q3K),
    (12, Block::Q4K),
    (13, Block::Q5K),
    (14, Block::Q6K),
    (20, Block::Iq4Nl),
    (30, Block::BF16),
];

const OTHERS: &[Other] = &[
    other(9, "Q8_1", 32, 40),
    other(15, "Q8_K", 256, 292),
    other(16, "IQ2_XXS", 256, 66),
    other(17, "IQ2_XS", 256, 74),
    other(18, "IQ3_XXS", 256, 98),
    other(19, "IQ1_S", 256, 50),
    other(21, "IQ3_S", 256, 110),
    other(22, "IQ2_S", 256, 82),
    other(23, "IQ4_XS", 256, 136),
    other(24, "I8", 1, 1),
    other(25, "I16", 1, 2),
    other(26, "I32", 1, 4),
    other(27, "I64", 1, 8),
    other(28, "F64", 1, 8),
    other(29, "IQ1_M", 256, 56),
    other(34, "TQ1_0", 256, 54),
    other(35, "TQ2_0", 256, 66),
    other(39, "MXFP4", 32, 17),
    other(40, "NVFP4", 64, 36),
    other(41, "Q1_0", 128, 18),
];

const fn other(id: u32, name: &'static str, elements: usize, size_bytes: usize) -> Other {
    Other { id, name, elements, size_bytes }
}

impl From<Block> for Kind {
    fn from(block: Block) -> Kind {
        Kind::Block(block)
    }
}

impl Kind {
    /// The kind of that number.
    pub fn of(id: u32) -> Option<Kind> {
        let block = BLOCKS.iter().find(|(known, _)| *known == id).map(|(_, block)| Kind::Block(*block));
        block.or_else(|| OTHERS.iter().find(|other| other.id == id).map(|other| Kind::Other(*other)))
    }

    /// Its number in a file.
    pub fn id(self) -> u32 {
        match self {
            Kind::Block(block) => {
                BLOCKS.iter().find(|(_, known)| *known == block).expect("every block has a number").0
            }
            Kind::Other(other) => other.id,
        }
    }

    /// Name as GGUF tools write it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Block(block) => block.name(),
            Kind::Other(other) => other.name,
        }
    }

    /// Elements of one block.
    pub fn elements(self) -> usize {
        match self {
            Kind::Block(block) => block.elements(),
            Kind::Other(other) => other.elements,
        }
    }

    /// Bytes of one block.
    pub fn size_bytes(self) -> usize {
        match self {
            Kind::Block(block) => block.size_bytes(),
            Kind::Other(other) => other.size_bytes,
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_block_has_one_number_that_leads_back() {
        for block in Block::ALL {
            assert_eq!(Kind::of(Kind::Block(block).id()), Some(Kind::Block(block)));
        }
        assert_eq!(BLOCKS.len(), Block::ALL.len());
        for other in OTHERS {
            assert_eq!(Kind::of(other.id), Some(Kind::Other(*other)));
        }
        // Removed from the format: Q4_2, Q4_3, and the repacked Q4_0.
        assert!([4, 5, 31, 32, 33, 36, 42].iter().all(|&id| Kind::of(id).is_none()));
    }
}
