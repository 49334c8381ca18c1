//! Which elements of a matrix are removed: one bit each.

use rayon::prelude::*;

/// Bits of one word.
const WORD: usize = 32;

/// Which weights of a matrix [rows, cols] (outputs, inputs) are removed; a set bit is a weight that is gone.
///
/// Bits follow the elements row by row without gaps, the lowest bit of a word first; bits past the last element are not set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mask {
    rows: usize,
    cols: usize,
    words: Vec<u32>,
}

impl Mask {
    /// A mask that removes nothing.
    pub fn none(rows: usize, cols: usize) -> Mask {
        Mask { rows, cols, words: vec![0; (rows * cols).div_ceil(WORD)] }
    }

    /// A mask that removes the elements of which `removed` says so, by their number row by row.
    pub fn of(rows: usize, cols: usize, removed: impl Fn(usize) -> bool + Sync) -> Mask {
        let count = rows * cols;
        let word = |number: usize| {
            let first = number * WORD;
            let bits = (0..WORD.min(count - first)).filter(|bit| removed(first + bit));
            bits.fold(0u32, |word, bit| word | 1 << bit)
        };
        Mask { rows, cols, words: (0..count.div_ceil(WORD)).into_par_iter().map(word).collect() }
    }

    /// The elements of a matrix that are exactly zero.
    pub fn of_zeros(matrix: &[f32], cols: usize) -> Mask {
        Mask::of(matrix.len() / cols.max(1), cols, |at| matrix[at] == 0.0)
    }

    /// A mask from its words, as [`Mask::words`] gives them; none where their number does not fit or a bit past the end is set.
    pub fn from_words(rows: usize, cols: usize, words: Vec<u32>) -> Option<Mask> {
        let count = rows.checked_mul(cols)?;
        let past = match (words.last(), count % WORD) {
            (Some(last), used) if used > 0 => last >> used,
            _ => 0,
        };
        (words.len() == count.div_ceil(WORD) && past == 0).then_some(Mask { rows, cols, words })
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The bits.
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// Whether the element of that number is removed.
    pub fn is_removed(&self, at: usize) -> bool {
        self.words[at / WORD] >> (at % WORD) & 1 == 1
    }

    /// Removes one more element.
    pub fn remove(&mut self, at: usize) {
        assert!(at < self.rows * self.cols, "element {at} of {} x {}", self.rows, self.cols);
        self.words[at / WORD] |= 1 << (at % WORD);
    }

    /// Number of elements that are removed.
    pub fn count_removed(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Share of the elements that are removed.
    pub fn sparsity(&self) -> f64 {
        self.count_removed() as f64 / (self.rows * self.cols).max(1) as f64
    }

    /// Whether each element that `other` removes is removed here too.
    pub fn covers(&self, other: &Mask) -> bool {
        let size = (self.rows, self.cols) == (other.rows, other.cols);
        size && self.words.iter().zip(&other.words).all(|(mine, its)| its & !mine == 0)
    }

    /// A mask that removes what either of two of one size does.
    pub fn joined(&self, other: &Mask) -> Mask {
        assert_eq!((self.rows, self.cols), (other.rows, other.cols), "masks of one size");
        let words = self.words.iter().zip(&other.words).map(|(a, b)| a | b).collect();
        Mask { words, ..*self }
    }

    /// Sets what is removed to zero.
    pub fn apply(&self, matrix: &mut [f32]) {
        self.each(matrix.len(), |at| matrix[at] = 0.0);
    }

    /// The first removed element that is not zero in a matrix.
    pub fn violated_by(&self, matrix: &[f32]) -> Option<usize> {
        // What is no number is not zero either.
        (0..matrix.len()).find(|&at| self.is_removed(at) && matrix[at] != 0.0)
    }

    /// The mask of the transpose.
    pub fn turned(&self) -> Mask {
        let (rows, cols) = (self.rows, self.cols);
        Mask::of(cols, rows, |at| self.is_removed(at % rows * cols + at / rows))
    }

    /// Whether at most `keep` of each `of` consecutive elements of every row are left.
    pub fn is_pattern(&self, keep: usize, of: usize) -> bool {
        let left = |start: usize, end: usize| (start..end).filter(|&at| !self.is_removed(at)).count();
        (0..self.rows).all(|row| {
            let groups = (0..self.cols).step_by(of.max(1));
            let all = groups.map(|g| (row * self.cols + g, row * self.cols + (g + of).min(self.cols)));
            all.into_iter().all(|(start, end)| left(start, end) <= keep)
        })
    }

    /// Calls `see` with each removed element of the first `count`.
    fn each(&self, count: usize, mut see: impl FnMut(usize)) {
        assert_eq!(count, self.rows * self.cols, "a mask of {} x {}", self.rows, self.cols);
        for (number, &word) in self.words.iter().enumerate() {
            let mut left = word;
            while left != 0 {
                see(number * WORD + left.trailing_zeros() as usize);
                left &= left - 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::random::Stream;

    fn random(rows: usize, cols: usize) -> Mask {
        let mut stream = Stream::new(&[rows as u32, cols as u32]);
        let bits: Vec<bool> = (0..rows * cols).map(|_| stream.below(3) == 0).collect();
        Mask::of(rows, cols, |at| bits[at])
    }

    #[test]
    fn what_is_applied_is_what_is_counted() {
        for (rows, cols) in [(1, 1), (3, 7), (4, 32), (5, 33), (0, 4)] {
            let mask = random(rows, cols);
            let mut matrix = vec![1.0f32; rows * cols];
            mask.apply(&mut matrix);
            let zeros = matrix.iter().filter(|x| **x == 0.0).count();
            assert_eq!((zeros, mask.violated_by(&matrix)), (mask.count_removed(), None));
            assert_eq!(Mask::of_zeros(&matrix, cols), mask);
            assert_eq!(mask.turned().turned(), mask);
            assert_eq!(Mask::from_words(rows, cols, mask.words().to_vec()), Some(mask));
        }
    }

    #[test]
    fn a_removed_element_that_is_not_zero_is_found_and_so_is_one_that_is_no_number() {
        let mut mask = Mask::none(2, 3);
        mask.remove(4);
        assert_eq!(mask.violated_by(&[1.0; 6]), Some(4));
        let mut matrix = [0.0; 6];
        matrix[4] = f32::NAN;
        assert_eq!(mask.violated_by(&matrix), Some(4));
        matrix[4] = -0.0;
        assert_eq!(mask.violated_by(&matrix), None);
    }

    #[test]
    fn words_that_do_not_fit_are_refused() {
        assert_eq!(Mask::from_words(2, 3, vec![0, 0]), None);
        assert_eq!(Mask::from_words(2, 3, vec![1 << 6]), None);
        assert!(Mask::from_words(2, 3, vec![1 << 5]).is_some());
    }

    #[test]
    fn a_larger_mask_covers_a_smaller_one_of_its_size_alone() {
        let (none, mask) = (Mask::none(3, 5), random(3, 5));
        assert!(mask.covers(&none) && mask.covers(&mask) && !none.covers(&mask));
        assert!(!mask.covers(&Mask::none(5, 3)));
        let other = mask.turned().turned();
        assert_eq!((mask.joined(&none), mask.joined(&other)), (mask.clone(), mask));
    }

    #[test]
    fn two_of_four_is_told_by_groups_within_rows() {
        let mask = Mask::of(2, 8, |at| at % 4 < 2);
        assert!(mask.is_pattern(2, 4) && mask.is_pattern(4, 8) && !mask.is_pattern(1, 2));
    }
}
