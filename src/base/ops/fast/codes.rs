//! Products of matrices of codes over threads: exact sums of i8 products, row by row of the result.
//!
//! `sums[i, j] = sum over p of a[i, p] * b[j, p]`: both operands lie along K, as activations [M, K] and weights [N, K] do. No
//! instruction but those for tiles takes two signed bytes, so elsewhere A is offset by 128 and a row of 128 before
//! it gives what is to be taken off again.

#[cfg(target_arch = "x86_64")]
mod memory;
#[cfg(target_arch = "x86_64")]
mod pairs;
#[cfg(target_arch = "x86_64")]
mod tiles;
#[cfg(target_arch = "x86_64")]
mod vnni;

use super::widest;
use rayon::prelude::*;
use std::ops::Range;

/// Multiply-adds below which a product stays on its thread.
const FEW: usize = 1 << 17;
/// Columns of which a task keeps sums at a time.
const COLUMNS: usize = 256;

/// Operands of a product: A [m, k] and B [n, k].
#[derive(Clone, Copy)]
pub(crate) struct Operands<'a> {
    /// A's codes.
    pub a: &'a [i8],
    /// B's codes.
    pub b: &'a [i8],
    /// Terms of a sum.
    pub k: usize,
}

/// Called with a row, its first column, the sums from there on and their place in C.
pub(crate) type Finish<'a> = dyn Fn(usize, usize, &[i32], &mut [f32]) + Sync + 'a;

/// What of the result a task makes: pieces of C's rows, all of the same columns.
struct Task<'a> {
    rows: Range<usize>,
    columns: Range<usize>,
    pieces: Vec<&'a mut [f32]>,
}

/// What this processor multiplies codes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Means {
    /// Whatever the compiler makes of a loop.
    Plain,
    /// Products of pairs of 16 bits in vectors of 256: AVX2.
    #[cfg(target_arch = "x86_64")]
    Pairs,
    /// Dot products of four bytes in vectors of 512 bits.
    #[cfg(target_arch = "x86_64")]
    Vnni,
    /// Products of whole tiles, for many rows; else as above.
    #[cfg(target_arch = "x86_64")]
    Tiles,
}

fn means() -> Means {
    #[cfg(target_arch = "x86_64")]
    if vnni::is_there() {
        return if tiles::is_there() { Means::Tiles } else { Means::Vnni };
    }
    #[cfg(target_arch = "x86_64")]
    if pairs::is_there() {
        return Means::Pairs;
    }
    Means::Plain
}

/// C [m, n] from all sums, over threads; `k` and `n` must not be zero.
pub(crate) fn product(operands: Operands, c: &mut [f32], n: usize, finish: &Finish) {
    product_by(means(), operands, c, n, finish);
}

fn product_by(means: Means, operands: Operands, c: &mut [f32], n: usize, finish: &Finish) {
    let Operands { a, b, k } = operands;
    let m = a.len() / k;
    assert!(a.len() == m * k && b.len() == n * k && c.len() == m * n);
    match means {
        Means::Plain => plain(operands, tasks(c, [m, n], 8), finish),
        #[cfg(target_arch = "x86_64")]
        Means::Pairs => pairs::compute(operands, tasks(c, [m, n], 8), finish),
        #[cfg(target_arch = "x86_64")]
        Means::Tiles if m >= tiles::FEWEST => tiles::compute(operands, tasks(c, [m, n], 32), finish),
        #[cfg(target_arch = "x86_64")]
        _ => vnni::compute(operands, tasks(c, [m, n], 8), finish),
    }
}

/// Shares C out: its columns where there are more of them than rows, since each task then reads only some of B.
fn tasks(c: &mut [f32], [m, n]: [usize; 2], unit: usize) -> Vec<Task<'_>> {
    let threads = rayon::current_num_threads();
    if n >= m {
        let each = n.div_ceil(unit).div_ceil(threads) * unit;
        let mut tasks: Vec<Task> = (0..n.div_ceil(each))
            .map(|t| Task { rows: 0..m, columns: t * each..((t + 1) * each).min(n), pieces: vec![] })
            .collect();
        for row in c.chunks_mut(n) {
            tasks.iter_mut().zip(row.chunks_mut(each)).for_each(|(task, piece)| task.pieces.push(piece));
        }
        return tasks;
    }
    let each = m.div_ceil(unit).div_ceil(threads) * unit;
    let mut tasks = vec![];
    for (t, part) in c.chunks_mut(each * n).enumerate() {
        let rows = t * each..t * each + part.len() / n;
        tasks.push(Task { rows, columns: 0..n, pieces: part.chunks_mut(n).collect() });
    }
    tasks
}

/// Runs tasks over threads, or here where there is little to do.
fn over_threads(operands: Operands, tasks: Vec<Task>, work: impl Fn(Task) + Sync + Send) {
    let products: usize = tasks.iter().map(|t| t.rows.len() * t.columns.len() * operands.k).sum();
    match products < FEW || tasks.len() == 1 {
        true => tasks.into_iter().for_each(work),
        false => tasks.into_par_iter().with_max_len(1).for_each(work),
    }
}

/// Sums of a task block by block: `fill` gives those of some rows and columns, [`COLUMNS`] apart, and `finish` takes them by rows.
fn by_blocks(
    mut task: Task,
    rows: usize,
    finish: &Finish,
    mut fill: impl FnMut(Range<usize>, Range<usize>, &mut [i32]),
) {
    let mut sums = vec![0; rows.min(task.rows.len()) * COLUMNS];
    for first_column in task.columns.clone().step_by(COLUMNS) {
        let columns = first_column..(first_column + COLUMNS).min(task.columns.end);
        for first_row in task.rows.clone().step_by(rows) {
            let block = first_row..(first_row + rows).min(task.rows.end);
            fill(block.clone(), columns.clone(), &mut sums);
            for (row, sums) in block.zip(sums.chunks(COLUMNS)) {
                let piece = &mut task.pieces[row - task.rows.start];
                let first = first_column - task.columns.start;
                let piece = &mut piece[first..first + columns.len()];
                finish(row, first_column, &sums[..columns.len()], piece);
            }
        }
    }
}

fn plain(operands: Operands, tasks: Vec<Task>, finish: &Finish) {
    let Operands { a, b, k } = operands;
    over_threads(operands, tasks, |task| {
        by_blocks(task, 1, finish, |rows, columns, sums| {
            dots(&a[rows.start * k..][..k], &b[columns.start * k..columns.end * k], sums);
        });
    });
}

widest! {
    /// sums[j] = a . b[j] for rows of B.
    fn dots(a: &[i8], b: &[i8], sums: &mut [i32]) {
        for (sum, b) in sums.iter_mut().zip(b.chunks_exact(a.len())) {
            let mut total = 0;
            for (&a, &b) in a.iter().zip(b) {
                total += i32::from(a) * i32::from(b);
            }
            *sum = total;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(count: usize, seed: usize) -> Vec<i8> {
        let code = |i: usize| (i.wrapping_mul(2_654_435_761) >> 13).wrapping_mul(seed) as u8 as i8;
        (0..count).map(|i| if i % 11 == 0 { i8::MIN } else { code(i) }).collect()
    }

    fn check(means: Means, [m, n, k]: [usize; 3]) {
        let (a, b) = (codes(m * k, 7), codes(n * k, 3));
        let mut expected = vec![0.0; m * n];
        for (i, c) in expected.iter_mut().enumerate() {
            let (a, b) = (&a[i / n * k..][..k], &b[i % n * k..][..k]);
            *c = a.iter().zip(b).map(|(&a, &b)| i64::from(a) * i64::from(b)).sum::<i64>() as f32;
        }
        let mut c = vec![f32::NAN; m * n];
        let finish = |row: usize, first: usize, sums: &[i32], c: &mut [f32]| {
            assert!(row < m && first + sums.len() <= n && sums.len() == c.len());
            c.iter_mut().zip(sums).for_each(|(c, &sum)| *c = sum as f32);
        };
        product_by(means, Operands { a: &a, b: &b, k }, &mut c, n, &finish);
        assert!(c == expected, "{means:?} {m} {n} {k}");
    }

    #[test]
    fn every_shape_gives_the_exact_sums_by_every_means_there_is() {
        #[cfg_attr(not(target_arch = "x86_64"), expect(unused_mut))]
        let mut all = vec![Means::Plain];
        #[cfg(target_arch = "x86_64")]
        {
            all.extend(pairs::is_there().then_some(Means::Pairs));
            all.extend(vnni::is_there().then_some(Means::Vnni));
            all.extend(tiles::is_there().then_some(Means::Tiles));
        }
        println!("{all:?}");
        for means in all {
            for sizes in [
                [1, 1, 1],
                [1, 300, 64],
                [2, 7, 65],
                [3, 5, 127],
                [4, 4, 64],
                [5, 9, 63],
                [8, 16, 128],
                [16, 16, 64],
                [33, 31, 200],
                [17, 300, 130],
                [70, 20, 1000],
                [40, 600, 96],
                [31, 33, 4],
            ] {
                check(means, sizes);
            }
        }
    }
}
