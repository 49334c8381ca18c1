//! Sums of products of bytes, four to an instruction: AVX-512 with VNNI.
//!
//! Both operands lie along K, so a vector of each is read as it lies; sixteen sums run side by side, and their lanes are added up
//! at the end, transposed on the way. `vpdpbusd` takes unsigned bytes of A: codes are offset by 128, and a row of 128
//! before A gives `128 * sum of b`, which is taken off every row.

use super::memory::{REACH, with_bytes};
use super::{COLUMNS, Finish, Operands, Task, by_blocks, over_threads};
use std::arch::x86_64::*;

/// Rows of A up to which they and the row before them are multiplied at once.
const FEW: usize = 4;
/// Bytes of a vector.
const WIDTH: usize = 64;

/// True on processors that have it.
pub(super) fn is_there() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vnni")
}

/// All tasks; [`is_there`] must have said so.
pub(super) fn compute(operands: Operands, tasks: Vec<Task>, finish: &Finish) {
    let Operands { a, k, .. } = operands;
    with_bytes(a.len() + k, |offset| {
        let (ones, codes) = offset.split_at_mut(k);
        ones.fill(128);
        codes.iter_mut().zip(a).for_each(|(to, &code)| *to = code as u8 ^ 128);
        let offset = &*offset;
        over_threads(operands, tasks, |task| one(operands, offset, task, finish));
    });
}

fn one(operands: Operands, a: &[u8], task: Task, finish: &Finish) {
    let Operands { b, k, .. } = operands;
    // Few rows are multiplied along with the one before them: then B is read once.
    let together = task.rows.len() < FEW && task.rows.start == 0;
    let (first, rows) = (task.rows.start, (REACH / k).clamp(4, 64) & !3);
    let mut excess = [0; COLUMNS];
    let mut all = vec![0; FEW * COLUMNS];
    by_blocks(task, rows, finish, |rows, columns, sums| {
        let b = &b[columns.start * k..columns.end * k];
        if rows.start == first {
            let count = if together { 1 + rows.len() } else { 1 };
            sums_of(&a[..count * k], b, k, &mut all);
            excess.copy_from_slice(&all[..COLUMNS]);
        }
        match together {
            true => sums[..rows.len() * COLUMNS].copy_from_slice(&all[COLUMNS..(1 + rows.len()) * COLUMNS]),
            false => sums_of(&a[(1 + rows.start) * k..(1 + rows.end) * k], b, k, sums),
        }
        for sums in sums.chunks_mut(COLUMNS).take(rows.len()) {
            sums.iter_mut().zip(&excess).for_each(|(sum, excess)| *sum -= excess);
        }
    });
}

/// sums[i * COLUMNS + j] = a[i] . b[j]
fn sums_of(a: &[u8], b: &[i8], k: usize, sums: &mut [i32]) {
    let (m, n) = (a.len() / k, b.len() / k);
    let row = |i: usize| &a[i.min(m - 1) * k..][..k];
    let column = |j: usize| &b[j.min(n - 1) * k..][..k];
    let mut put = |i: usize, j: usize, sum: i32| {
        if i < m && j < n {
            sums[i * COLUMNS + j] = sum;
        }
    };
    if m <= 2 {
        for j in (0..n).step_by(8) {
            // SAFETY: the processor has these instructions, or nobody would have come here.
            let all = unsafe { tile::<2, 8>([row(0), row(1)], std::array::from_fn(|c| column(j + c))) };
            all.iter().enumerate().for_each(|(at, &sum)| put(at / 8, j + at % 8, sum));
        }
        return;
    }
    for j in (0..n).step_by(4) {
        let right = std::array::from_fn(|c| column(j + c));
        for i in (0..m).step_by(4) {
            // SAFETY: as above.
            let all = unsafe { tile::<4, 4>(std::array::from_fn(|r| row(i + r)), right) };
            for (at, &sum) in all.iter().enumerate() {
                put(i + at / 4, j + at % 4, sum);
            }
        }
    }
}

/// Dot products of each row with each column, sixteen in all.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn tile<const ROWS: usize, const COLUMNS: usize>(a: [&[u8]; ROWS], b: [&[i8]; COLUMNS]) -> [i32; 16] {
    const { assert!(ROWS * COLUMNS == 16) };
    let k = a[0].len();
    assert!(a.iter().all(|a| a.len() == k) && b.iter().all(|b| b.len() == k));
    let mut sums = [_mm512_setzero_si512(); 16];
    let mut step = |at: usize, live: u64| {
        let mut left = [_mm512_setzero_si512(); ROWS];
        for (left, a) in left.iter_mut().zip(&a) {
            // SAFETY: only bytes of the mask are read, and the mask ends with the slice.
            *left = unsafe { _mm512_maskz_loadu_epi8(live, a.as_ptr().add(at).cast()) };
        }
        for (c, b) in b.iter().enumerate() {
            // SAFETY: as above.
            let right = unsafe { _mm512_maskz_loadu_epi8(live, b.as_ptr().add(at).cast()) };
            for r in 0..ROWS {
                sums[r * COLUMNS + c] = _mm512_dpbusd_epi32(sums[r * COLUMNS + c], left[r], right);
            }
        }
    };
    let whole = k / WIDTH * WIDTH;
    for at in (0..whole).step_by(WIDTH) {
        step(at, u64::MAX);
    }
    if whole < k {
        step(whole, u64::MAX >> (WIDTH - (k - whole)));
    }
    let mut out = [0; 16];
    // SAFETY: sixteen numbers have room for sixteen.
    unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), across(sums)) };
    out
}

/// Lane `i` is the sum over all lanes of vector `i`: halves are added while they are brought side by side.
#[target_feature(enable = "avx512f")]
fn across(v: [__m512i; 16]) -> __m512i {
    let mut pairs = [_mm512_setzero_si512(); 8];
    for i in 0..8 {
        let (x, y) = (v[2 * i], v[2 * i + 1]);
        pairs[i] = _mm512_add_epi32(_mm512_unpacklo_epi32(x, y), _mm512_unpackhi_epi32(x, y));
    }
    let mut fours = [_mm512_setzero_si512(); 4];
    for i in 0..4 {
        let (x, y) = (pairs[2 * i], pairs[2 * i + 1]);
        fours[i] = _mm512_add_epi32(_mm512_unpacklo_epi64(x, y), _mm512_unpackhi_epi64(x, y));
    }
    let quarters = |x, y| {
        // Quarters 0, 2 of both and quarters 1, 3 of both.
        let even = _mm512_shuffle_i32x4::<0x88>(x, y);
        _mm512_add_epi32(even, _mm512_shuffle_i32x4::<0xdd>(x, y))
    };
    quarters(quarters(fours[0], fours[1]), quarters(fours[2], fours[3]))
}
