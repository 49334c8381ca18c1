//! Examples laid side by side into windows.

use super::Example;
use crate::data::random::{Permutation, Random};
use crate::data::windows::IGNORED;

/// Stream of the seed for the order in which examples are packed.
const STREAM: u64 = 0x7061_636b;

/// Examples of these lengths in windows of `room` places: each goes to the first window that has place for it, in an order that
/// the seed draws. None is longer than a window.
pub fn first_fit(lengths: &[usize], room: usize, seed: u64) -> Vec<Vec<usize>> {
    let count = lengths.len();
    let order = Permutation::new(count as u64, &mut Random::new(seed, STREAM));
    let mut windows: Vec<Vec<usize>> = vec![];
    // A tree of the places left: a node holds the most of its two, so that the first window with enough is found on one way down.
    let leaves = count.next_power_of_two();
    let mut left = vec![room; 2 * leaves];
    for at in 0..count as u64 {
        let example = order.at(at) as usize;
        let mut node = 1;
        while node < leaves {
            node = if left[2 * node] >= lengths[example] { 2 * node } else { 2 * node + 1 };
        }
        let window = node - leaves;
        if window == windows.len() {
            windows.push(vec![]);
        }
        windows[window].push(example);
        left[node] -= lengths[example];
        while node > 1 {
            node /= 2;
            left[node] = left[2 * node].max(left[2 * node + 1]);
        }
    }
    windows
}

/// Windows as the arrays that a step reads, each [rows, context].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Laid {
    /// Windows.
    pub rows: usize,
    /// Places in each.
    pub context: usize,
    /// What is read; zero where there is nothing.
    pub tokens: Vec<u32>,
    /// What is guessed, or [`IGNORED`].
    pub targets: Vec<i32>,
    /// Which example of its window a place belongs to, counted from one; zero where there is nothing.
    pub segments: Vec<u32>,
    /// Places before it in its example.
    pub places: Vec<u32>,
}

impl Laid {
    /// Lays out windows, each given by its examples.
    pub fn of<'a>(windows: impl IntoIterator<Item = Vec<&'a Example>>, context: usize) -> Laid {
        let mut laid =
            Laid { rows: 0, context, tokens: vec![], targets: vec![], segments: vec![], places: vec![] };
        for window in windows {
            laid.rows += 1;
            for (number, example) in window.into_iter().enumerate() {
                let count = example.places();
                laid.tokens.extend(&example.tokens[..count]);
                let targets = example.tokens.iter().zip(&example.learnt).skip(1);
                laid.targets.extend(targets.map(|(&t, &learnt)| if learnt { t as i32 } else { IGNORED }));
                laid.segments.extend(std::iter::repeat_n(number as u32 + 1, count));
                laid.places.extend(0..count as u32);
            }
            let end = laid.rows * context;
            assert!(laid.tokens.len() <= end, "examples that do not fit were sorted out");
            laid.tokens.resize(end, 0);
            laid.targets.resize(end, IGNORED);
            laid.segments.resize(end, 0);
            laid.places.resize(end, 0);
        }
        laid
    }

    /// How many targets count.
    pub fn counted(&self) -> usize {
        self.targets.iter().filter(|&&target| target != IGNORED).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// First fit as it is told in books.
    fn told(lengths: &[usize], room: usize, order: &[usize]) -> Vec<Vec<usize>> {
        let mut windows: Vec<Vec<usize>> = vec![];
        for &example in order {
            let taken = |window: &Vec<usize>| window.iter().map(|&e| lengths[e]).sum::<usize>();
            match windows.iter_mut().find(|window| taken(window) + lengths[example] <= room) {
                Some(window) => window.push(example),
                None => windows.push(vec![example]),
            }
        }
        windows
    }

    #[test]
    fn each_example_goes_to_the_first_window_with_place_for_it() {
        let mut random = Random::new(3, 0);
        for count in [1, 2, 3, 17, 200] {
            let lengths: Vec<usize> = (0..count).map(|_| 1 + random.below(40) as usize).collect();
            let packed = first_fit(&lengths, 40, 5);
            let permutation = Permutation::new(count as u64, &mut Random::new(5, STREAM));
            let order: Vec<usize> = (0..count as u64).map(|at| permutation.at(at) as usize).collect();
            assert_eq!(packed, told(&lengths, 40, &order));
            assert_eq!(packed, first_fit(&lengths, 40, 5), "the seed alone decides");
            let mut all = packed.concat();
            all.sort_unstable();
            assert_eq!(all, (0..count).collect::<Vec<_>>());
        }
        assert_ne!(first_fit(&[3; 50], 10, 1), first_fit(&[3; 50], 10, 2));
        assert!(first_fit(&[], 10, 1).is_empty());
    }

    #[test]
    fn places_begin_anew_in_each_example_and_nothing_is_guessed_across() {
        let a = Example { tokens: vec![5, 6, 7], learnt: vec![true; 3] };
        let b = Example { tokens: vec![8, 9], learnt: vec![false, true] };
        let laid = Laid::of([vec![&a, &b], vec![&b]], 4);
        assert_eq!(laid.tokens, [5, 6, 8, 0, 8, 0, 0, 0]);
        assert_eq!(laid.targets, [6, 7, 9, IGNORED, 9, IGNORED, IGNORED, IGNORED]);
        assert_eq!(laid.segments, [1, 1, 2, 0, 1, 0, 0, 0]);
        assert_eq!(laid.places, [0, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!((laid.rows, laid.counted()), (2, 4));
    }
}
