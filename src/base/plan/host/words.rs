//! Memory of a slot or an arena: words that begin a cache line, since a vector across two lines takes twice as long to move.

use std::ops::{Deref, DerefMut};

/// Words of a cache line.
const LINE: usize = 16;

/// Words in their order, the first at the start of a cache line.
#[derive(Default)]
pub(super) struct Words {
    all: Vec<u32>,
    first: usize,
    count: usize,
}

impl Words {
    /// So many zeros.
    pub fn zeros(count: usize) -> Self {
        let all = vec![0; count + LINE];
        // The vector never grows, so it stays where it is.
        let first = all.as_ptr().align_offset(4 * LINE).min(LINE);
        Words { all, first, count }
    }
}

impl Deref for Words {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        &self.all[self.first..self.first + self.count]
    }
}

impl DerefMut for Words {
    fn deref_mut(&mut self) -> &mut [u32] {
        &mut self.all[self.first..self.first + self.count]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_there_and_the_first_begins_a_line() {
        for count in [0, 1, 16, 1000] {
            let mut words = Words::zeros(count);
            words.iter_mut().for_each(|w| *w = 7);
            assert_eq!(words.len(), count);
            assert_eq!(words.as_ptr() as usize % (4 * LINE), 0);
            assert!(Words::default().is_empty());
        }
    }
}
