//! Sums of products of bytes widened to 16 bits, two to an instruction: AVX2.
//!
//! Its products of bytes themselves saturate, so both operands are widened: A once, for all columns, B where it is read.

use super::memory::{REACH, with_bytes};
use super::{COLUMNS, Finish, Operands, Task, by_blocks, over_threads};
use std::arch::x86_64::*;

/// Codes of a vector.
const WIDTH: usize = 16;
/// Rows and columns of a tile.
const ROWS: usize = 4;
const COLS: usize = 2;

/// True on processors that have it.
pub(super) fn is_there() -> bool {
    is_x86_feature_detected!("avx2")
}

/// All tasks; [`is_there`] must have said so.
pub(super) fn compute(operands: Operands, tasks: Vec<Task>, finish: &Finish) {
    let Operands { a, b, k } = operands;
    with_bytes(2 * a.len(), |wide| {
        let wide: &mut [i16] = bytemuck::cast_slice_mut(wide);
        wide.iter_mut().zip(a).for_each(|(to, &code)| *to = code.into());
        let wide = &*wide;
        over_threads(operands, tasks, |task| {
            let rows = (REACH / 2 / k).clamp(ROWS, 64) & !(ROWS - 1);
            by_blocks(task, rows, finish, |rows, columns, sums| {
                sums_of(&wide[rows.start * k..rows.end * k], &b[columns.start * k..columns.end * k], k, sums);
            });
        });
    });
}

/// sums[i * COLUMNS + j] = a[i] . b[j]
fn sums_of(a: &[i16], b: &[i8], k: usize, sums: &mut [i32]) {
    let (m, n) = (a.len() / k, b.len() / k);
    for j in (0..n).step_by(COLS) {
        let right = std::array::from_fn(|c| &b[(j + c).min(n - 1) * k..][..k]);
        for i in (0..m).step_by(ROWS) {
            let left = std::array::from_fn(|r| &a[(i + r).min(m - 1) * k..][..k]);
            // SAFETY: the processor has these instructions, or nobody would have come here.
            let tile = unsafe { tile(left, right) };
            for (r, tile) in tile.iter().enumerate().take(m - i) {
                for (c, &sum) in tile.iter().enumerate().take(n - j) {
                    sums[(i + r) * COLUMNS + j + c] = sum;
                }
            }
        }
    }
}

/// Dot products of each row with each column.
#[target_feature(enable = "avx2")]
fn tile(a: [&[i16]; ROWS], b: [&[i8]; COLS]) -> [[i32; COLS]; ROWS] {
    let k = a[0].len();
    assert!(a.iter().all(|a| a.len() == k) && b.iter().all(|b| b.len() == k));
    let mut sums = [[_mm256_setzero_si256(); COLS]; ROWS];
    let whole = k / WIDTH * WIDTH;
    for at in (0..whole).step_by(WIDTH) {
        let mut right = [_mm256_setzero_si256(); COLS];
        for c in 0..COLS {
            // SAFETY: sixteen codes from there on are within the slice.
            right[c] = unsafe { _mm256_cvtepi8_epi16(_mm_loadu_si128(b[c].as_ptr().add(at).cast())) };
        }
        for r in 0..ROWS {
            // SAFETY: as above.
            let left = unsafe { _mm256_loadu_si256(a[r].as_ptr().add(at).cast()) };
            for c in 0..COLS {
                sums[r][c] = _mm256_add_epi32(sums[r][c], _mm256_madd_epi16(left, right[c]));
            }
        }
    }
    let mut tile = [[0; COLS]; ROWS];
    for r in 0..ROWS {
        for c in 0..COLS {
            let mut lanes = [0i32; 8];
            // SAFETY: eight numbers have room for eight.
            unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), sums[r][c]) };
            let tail = a[r][whole..].iter().zip(&b[c][whole..]);
            let tail: i32 = tail.map(|(&a, &b)| i32::from(a) * i32::from(b)).sum();
            tile[r][c] = lanes.iter().sum::<i32>() + tail;
        }
    }
    tile
}
