//! The order of rows. Rotary positions turn element i of a head with element i + D/2 in checkpoints of Hugging Face, and with its
//! neighbour in GGUF's llama; so there the rows of each half stand in turn. GPT-NeoX has query, key and value of the first head,
//! then of the second; GGUF has all queries, then all keys, then all values.

use super::names::Turning;
use crate::tensor::quant::{Coded, Origin};

/// For each row of the file, the row of the checkpoint.
pub(super) fn there(turning: Turning, rows: usize, heads: usize) -> Vec<usize> {
    match turning {
        Turning::Queries | Turning::Keys => paired(rows, heads),
        Turning::Braid => parted(rows, heads),
    }
}

/// For each row of the checkpoint, the row of the file.
pub(super) fn here(turning: Turning, rows: usize, heads: usize) -> Vec<usize> {
    let mut order = vec![0; rows];
    there(turning, rows, heads).into_iter().enumerate().for_each(|(there, here)| order[here] = there);
    order
}

fn paired(rows: usize, heads: usize) -> Vec<usize> {
    let size = rows / heads;
    (0..rows).map(|row| row / size * size + row % 2 * (size / 2) + row % size / 2).collect()
}

fn parted(rows: usize, heads: usize) -> Vec<usize> {
    let size = rows / heads / 3;
    let row = |row: usize| {
        let (part, head, inside) = (row / (heads * size), row / size % heads, row % size);
        (head * 3 + part) * size + inside
    };
    (0..rows).map(row).collect()
}

/// Rows of so many elements in a new order.
pub(super) fn reorder<T: Copy>(values: &[T], order: &[usize]) -> Vec<T> {
    let width = values.len() / order.len().max(1);
    order.iter().flat_map(|&row| values[row * width..][..width].iter().copied()).collect()
}

/// The same for codes.
pub(super) fn reorder_coded(coded: &Coded, order: &[usize]) -> Coded {
    let origin = match &coded.origin {
        Origin::Centred => Origin::Centred,
        Origin::Zeros(zeros) => Origin::Zeros(reorder(zeros, order)),
        Origin::Minima(minima) => Origin::Minima(reorder(minima, order)),
    };
    let (codes, scales) = (reorder(&coded.codes, order), reorder(&coded.scales, order));
    Coded { codes, scales, origin, ..coded.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_become_pairs_and_pairs_halves() {
        // As `permute` of llama.cpp's converter: reshape (heads, 2, half), swap the last two.
        assert_eq!(paired(12, 2), [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]);
        let rows: Vec<usize> = (0..24).collect();
        let there = reorder(&rows, &paired(12, 2));
        assert_eq!(there[..4], [0, 1, 6, 7]);
        assert_eq!(reorder(&there, &here(Turning::Keys, 12, 2)), rows);
    }

    #[test]
    fn what_is_braided_by_head_is_parted_and_braided_again() {
        // As llama.cpp's converter: reshape (heads, 3, size), then all of the first, of the second, of the third.
        assert_eq!(parted(12, 2), [0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11]);
        let rows: Vec<usize> = (0..12).collect();
        let apart = reorder(&rows, &there(Turning::Braid, 12, 2));
        assert_eq!(reorder(&apart, &here(Turning::Braid, 12, 2)), rows);
    }
}
