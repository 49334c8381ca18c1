//! Token ids, held in memory or mapped from a file of 16- or 32-bit numbers.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use memmap2::Mmap;

/// A run of token ids; clones share it.
#[derive(Clone, Debug)]
pub struct Tokens {
    kept: Kept,
}

#[derive(Clone, Debug)]
enum Kept {
    Held(Arc<[u32]>),
    Mapped { map: Arc<Mmap>, start_bytes: usize, count: usize, width: Width },
}

/// How large an id is in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// Two bytes.
    Half,
    /// Four bytes.
    Whole,
}

impl Width {
    /// The least that holds ids below `vocabulary`.
    pub fn of(vocabulary: usize) -> Width {
        if vocabulary <= 1 << 16 { Width::Half } else { Width::Whole }
    }

    /// Bytes of an id.
    pub fn bytes(self) -> usize {
        match self {
            Width::Half => 2,
            Width::Whole => 4,
        }
    }
}

impl Tokens {
    /// `count` ids in little-endian order from a byte of a file on, all of which must be there.
    pub fn mapped(map: Arc<Mmap>, start_bytes: usize, count: usize, width: Width) -> Tokens {
        assert!(start_bytes + count * width.bytes() <= map.len(), "the caller has checked the length");
        Tokens { kept: Kept::Mapped { map, start_bytes, count, width } }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        match &self.kept {
            Kept::Held(tokens) => tokens.len(),
            Kept::Mapped { count, .. } => *count,
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Those from one place to another.
    pub fn range(&self, range: Range<usize>) -> Cow<'_, [u32]> {
        match &self.kept {
            Kept::Held(tokens) => Cow::Borrowed(&tokens[range]),
            Kept::Mapped { map, start_bytes, count, width } => {
                assert!(range.end <= *count, "{range:?} of {count} tokens");
                let at = |place: usize| start_bytes + place * width.bytes();
                let bytes = &map[at(range.start)..at(range.end)];
                Cow::Owned(match width {
                    Width::Half => {
                        bytes.chunks_exact(2).map(|b| u32::from(u16::from_le_bytes([b[0], b[1]]))).collect()
                    }
                    Width::Whole => {
                        bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
                    }
                })
            }
        }
    }

    /// All of them.
    pub fn all(&self) -> Cow<'_, [u32]> {
        self.range(0..self.len())
    }
}

impl From<Vec<u32>> for Tokens {
    fn from(tokens: Vec<u32>) -> Tokens {
        Tokens { kept: Kept::Held(tokens.into()) }
    }
}

impl From<Arc<[u32]>> for Tokens {
    fn from(tokens: Arc<[u32]>) -> Tokens {
        Tokens { kept: Kept::Held(tokens) }
    }
}
