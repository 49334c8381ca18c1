//! The embedding on the host as an engine runs it.

use super::row_of;
use crate::ops::fast::{rows_of_piece, widest};
use crate::tensor::{View, ViewMut};
use rayon::prelude::*;

/// Rows by token over threads.
pub(super) fn look_up(weight: &View, tokens: &View, y: &mut ViewMut, part: Option<usize>) {
    let (rows, columns) = (weight.shape[0], weight.shape[1]);
    let (weight, tokens) = (weight.floats(), tokens.as_u32());
    if columns == 0 {
        return;
    }
    let each = rows_of_piece(tokens.len(), columns);
    let parts = y.floats().par_chunks_mut(each * columns).zip(tokens.par_chunks(each));
    parts.for_each(|(y, tokens)| {
        for (y, &token) in y.chunks_exact_mut(columns).zip(tokens) {
            match row_of(token, rows, part) {
                Some(row) => y.copy_from_slice(&weight[row * columns..][..columns]),
                None => y.fill(0.0),
            }
        }
    });
}

/// Rows of the table over threads; each sums the positions of its token in their order.
pub(super) fn gradient(inputs: &[View], y: &mut ViewMut) {
    let columns = inputs[0].shape[1];
    let (up, order, starts) = (inputs[0].floats(), inputs[1].as_u32(), inputs[2].as_u32());
    if columns == 0 {
        return;
    }
    let vocabulary = starts.len() - 1;
    let each = vocabulary.div_ceil(8 * rayon::current_num_threads()).max(1);
    y.floats().par_chunks_mut(each * columns).enumerate().for_each(|(piece, y)| {
        for (i, y) in y.chunks_exact_mut(columns).enumerate() {
            let token = piece * each + i;
            gather(up, &order[starts[token] as usize..starts[token + 1] as usize], y);
        }
    });
}

widest! {
    fn gather(up: &[f32], positions: &[u32], y: &mut [f32]) {
        y.fill(0.0);
        for &position in positions {
            let row = &up[position as usize * y.len()..][..y.len()];
            y.iter_mut().zip(row).for_each(|(y, x)| *y += x);
        }
    }
}
