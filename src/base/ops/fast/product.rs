//! Matrix products over threads: B packed in panels, rows or columns of C shared out, K in blocks that keep a panel of B in the
//! first cache.

use super::kernel::{Kernel, MOST, kernel};
use super::{team, threads, widest};
use std::cell::RefCell;
use std::ops::Range;

/// Steps of K summed before C is touched: a panel of B of this length stays in the first cache.
const BLOCK: usize = 256;

/// Elements of B that rows read in place pass at a time: they stay in the second cache.
const REACH: usize = 1 << 17;

/// Multiply-adds below which a product stays on its thread.
const FEW: usize = 1 << 17;

/// The same where a team does the work.
const FEW_OF_TEAM: usize = 1 << 14;

/// Elements of a cache line.
const LINE: usize = 16;

/// A matrix inside a slice.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    data: &'a [f32],
    row: usize,
    column: usize,
}

impl<'a> Matrix<'a> {
    /// Rows `stride` elements apart.
    pub fn new(data: &'a [f32], stride: usize) -> Self {
        Matrix { data, row: stride, column: 1 }
    }

    /// Rows and columns exchanged.
    pub fn transposed(self) -> Self {
        Matrix { row: self.column, column: self.row, ..self }
    }

    fn at(self, data: &'a [f32]) -> Self {
        Matrix { data, ..self }
    }

    fn holds(&self, rows: usize, columns: usize) -> bool {
        rows == 0 || columns == 0 || (rows - 1) * self.row + (columns - 1) * self.column < self.data.len()
    }
}

thread_local! {
    /// Memory for packed operands, kept from call to call: A's panel and B's panels.
    static PACKED: RefCell<[Vec<f32>; 2]> = const { RefCell::new([vec![], vec![]]) };
}

/// Where the first cache line begins that lies wholly in `memory`: a load across two lines takes twice as long.
fn first_of_line(memory: &[f32]) -> usize {
    memory.as_ptr().align_offset(4 * LINE).min(LINE)
}

/// Lends `work` memory of at least `count` elements, whatever they hold. It is taken out for the time, since the thread may
/// work on another product while it waits for one.
pub(crate) fn with_memory<T>(which: usize, count: usize, work: impl FnOnce(&mut [f32]) -> T) -> T {
    let mut memory = PACKED.with_borrow_mut(|kept| std::mem::take(&mut kept[which]));
    if memory.len() < count + LINE {
        memory.resize(count + LINE, 0.0);
    }
    let first = first_of_line(&memory);
    let result = work(&mut memory[first..first + count]);
    PACKED.with_borrow_mut(|kept| kept[which] = memory);
    result
}

/// `C = A B` for A [m, k] and B [k, n], over threads. `finish` gets each piece of a row of C when it is done, with the number of
/// its first column.
pub(crate) fn product(
    [m, k, n]: [usize; 3],
    a: Matrix,
    b: Matrix,
    c: &mut [f32],
    finish: &(dyn Fn(usize, &mut [f32]) + Sync),
) {
    assert!(a.holds(m, k) && b.holds(k, n) && c.len() == m * n);
    if m * n == 0 {
        return;
    }
    let kernel = kernel();
    let out = Out { start: c.as_mut_ptr(), stride: n };
    let work = |rows: Range<usize>, columns: Range<usize>, panels: &[f32], first: usize| {
        let b = Packed { panels, steps: k, first };
        multiply(&kernel, 0..k, a, [rows.clone(), columns.clone()], b, out, false);
        for row in rows {
            // SAFETY: the piece lies within C, and no other task touches these rows and columns.
            finish(columns.start, unsafe { out.piece(row, columns.clone()) });
        }
    };
    let few = if team::members().is_some() { FEW_OF_TEAM } else { FEW };
    let threads = if m * n * k < few { 1 } else { threads() };
    let panel = kernel.cols * k;
    if threads == 1 || n > m {
        // Columns are shared out, one task for each thread: it packs its own of B, and all of A.
        let each = n.div_ceil(kernel.cols).div_ceil(threads) * kernel.cols;
        let task = |first: usize| {
            let columns = first..(first + each).min(n);
            with_memory(1, columns.len().div_ceil(kernel.cols) * panel, |packed| {
                pack_panels(b, [k, n], columns.start, kernel.cols, packed);
                work(0..m, columns, packed, first);
            });
        };
        return in_steps(n, each, &task);
    }
    // Rows are shared out, and B packed by all threads for all.
    let panels = n.div_ceil(kernel.cols);
    with_memory(1, panels * panel, |packed| {
        let each = panels.div_ceil(threads);
        team::chunks(packed, each * panel, |part, packed| {
            pack_panels(b, [k, n], part * each * kernel.cols, kernel.cols, packed);
        });
        let each = share(m, kernel.rows, threads);
        in_steps(m, each, &|first| work(first..(first + each).min(m), 0..n, packed, 0));
    });
}

/// `C = A B`, or `C += A B`, on this thread; rows of C are `stride` apart.
pub(crate) fn product_here(
    [m, k, n]: [usize; 3],
    a: Matrix,
    b: Matrix,
    c: &mut [f32],
    stride: usize,
    add: bool,
) {
    if m * n == 0 {
        return;
    }
    assert!(a.holds(m, k) && b.holds(k, n) && n <= stride && (m - 1) * stride + n <= c.len());
    let kernel = kernel();
    with_memory(1, n.div_ceil(kernel.cols) * kernel.cols * k, |packed| {
        pack_panels(b, [k, n], 0, kernel.cols, packed);
        let out = Out { start: c.as_mut_ptr(), stride };
        let b = Packed { panels: packed, steps: k, first: 0 };
        multiply(&kernel, 0..k, a, [0..m, 0..n], b, out, add);
    });
}

/// A right operand packed once for several products.
#[derive(Default)]
pub(crate) struct Panels {
    memory: Vec<f32>,
    steps: usize,
    columns: usize,
}

impl Panels {
    /// Packs B [k, n] in place of what was here.
    pub fn pack(&mut self, b: Matrix, [k, n]: [usize; 2]) {
        assert!(b.holds(k, n));
        let cols = kernel().cols;
        (self.steps, self.columns) = (k, n);
        let count = n.div_ceil(cols) * cols * k;
        self.memory.resize(count + LINE, 0.0);
        let first = first_of_line(&self.memory);
        pack_panels(b, [k, n], 0, cols, &mut self.memory[first..first + count]);
    }

    /// `C = A B`, or `C += A B`, on this thread, with the first `n` columns and some of the steps of B; rows of C are `stride`
    /// apart.
    pub fn product(
        &self,
        [m, n]: [usize; 2],
        steps: Range<usize>,
        a: Matrix,
        c: &mut [f32],
        stride: usize,
        add: bool,
    ) {
        if m * n == 0 {
            return;
        }
        assert!(a.holds(m, steps.len()) && n <= self.columns && steps.end <= self.steps);
        assert!(n <= stride && (m - 1) * stride + n <= c.len());
        let out = Out { start: c.as_mut_ptr(), stride };
        let b = Packed { panels: &self.memory[first_of_line(&self.memory)..], steps: self.steps, first: 0 };
        multiply(&kernel(), steps, a, [0..m, 0..n], b, out, add);
    }
}

/// Panels of B, all its steps in each, from the column `first` on.
#[derive(Clone, Copy)]
struct Packed<'a> {
    panels: &'a [f32],
    steps: usize,
    first: usize,
}

/// C, for tasks that each write rows and columns of their own.
#[derive(Clone, Copy)]
struct Out {
    start: *mut f32,
    stride: usize,
}

// SAFETY: tasks touch disjoint elements of C, which outlives them.
unsafe impl Send for Out {}
// SAFETY: as above.
unsafe impl Sync for Out {}

impl Out {
    /// Part of a row.
    ///
    /// # Safety
    /// The elements are within C, and nothing else touches them for the time.
    unsafe fn piece<'a>(self, row: usize, columns: Range<usize>) -> &'a mut [f32] {
        // SAFETY: the caller's.
        unsafe {
            std::slice::from_raw_parts_mut(self.start.add(row * self.stride + columns.start), columns.len())
        }
    }
}

/// Rows of one task: whole tiles, two tasks for each thread.
fn share(m: usize, tile: usize, threads: usize) -> usize {
    m.div_ceil(tile).div_ceil(2 * threads) * tile
}

/// Calls `task` with 0, `step`, 2 `step` and so on below `end`, over threads.
fn in_steps(end: usize, step: usize, task: &(dyn Fn(usize) + Sync)) {
    if end <= step {
        return task(0);
    }
    team::share(end.div_ceil(step), &|number| task(number * step));
}

/// Panels of B from column `first` on, as many as `packed` has room for: `width` elements for each step, zeros past the last
/// column.
fn pack_panels(b: Matrix, [k, n]: [usize; 2], first: usize, width: usize, packed: &mut [f32]) {
    let size = width * k;
    if size == 0 || first >= n {
        return;
    }
    let live = (packed.len() / k).min(n - first);
    if !live.is_multiple_of(width) {
        packed[live / width * size..][..size].fill(0.0);
    }
    if b.column != 1 {
        for (number, column) in (0..live).step_by(width).enumerate() {
            let data = &b.data[(first + column) * b.column..];
            let lines = [width.min(live - column), k];
            transpose(data, b.column, b.row, lines, &mut packed[number * size..], width);
        }
        return;
    }
    let across = b.transposed().at(&b.data[first..]);
    share_out(across, [live, k], width, size, packed);
}

widest! {
    /// packed[p * width + i] = data[i * row + p * step] for i in rows and p in steps, by blocks that stay in cache.
    fn transpose(
        data: &[f32],
        row: usize,
        step: usize,
        sizes: [usize; 2],
        packed: &mut [f32],
        width: usize,
    ) {
        let [rows, steps] = sizes;
        if step != 1 {
            for p in 0..steps {
                for i in 0..rows {
                    packed[p * width + i] = data[i * row + p * step];
                }
            }
            return;
        }
        for start in (0..steps).step_by(BLOCK_SIDE) {
            let live = BLOCK_SIDE.min(steps - start);
            for top in (0..rows).step_by(BLOCK_SIDE) {
                let mut block = [[0.0f32; BLOCK_SIDE]; BLOCK_SIDE];
                let high = BLOCK_SIDE.min(rows - top);
                for (i, line) in block.iter_mut().enumerate().take(high) {
                    let from = &data[(top + i) * row + start..][..live];
                    match from.first_chunk::<BLOCK_SIDE>() {
                        Some(from) => *line = *from,
                        None => line[..live].copy_from_slice(from),
                    }
                }
                for p in 0..live {
                    let to = &mut packed[(start + p) * width + top..];
                    if high == BLOCK_SIDE {
                        for i in 0..BLOCK_SIDE {
                            to[i] = block[i][p];
                        }
                    } else {
                        for i in 0..high {
                            to[i] = block[i][p];
                        }
                    }
                }
            }
        }
    }
}

/// Rows and columns of a block that is transposed at a time.
const BLOCK_SIDE: usize = 16;

/// A range of rows and columns of C, summed over `steps` of B. A begins with the first of them.
fn multiply(
    kernel: &Kernel,
    steps: Range<usize>,
    a: Matrix,
    [lines, columns]: [Range<usize>; 2],
    b: Packed,
    out: Out,
    add: bool,
) {
    let Kernel { rows, cols, .. } = *kernel;
    let panels = b.panels;
    let m = lines.len();
    // Rows that lie contiguous are read in place; others, and a short last tile, are packed with zeros.
    let loose = if a.column == 1 { m / rows } else { 0 };
    let tail = (m - loose * rows).div_ceil(rows);
    with_memory(0, tail * rows * BLOCK, |tails| {
        let mut start = 0;
        loop {
            let length = BLOCK.min(steps.len() - start);
            if tail > 0 {
                let data = &a.data[(lines.start + loose * rows) * a.row + start * a.column..];
                pack_rows(a.at(data), [m - loose * rows, length], rows, tails);
            }
            let one = |tile: usize, column: usize| {
                let line = lines.start + tile * rows;
                let [height, width] = [rows.min(lines.end - line), cols.min(columns.end - column)];
                let b = (column - b.first) * b.steps + (steps.start + start) * cols;
                let b = &panels[b..][..length * cols];
                let (run, from) = match tile.checked_sub(loose) {
                    None => (kernel.loose, &a.data[line * a.row + start..]),
                    Some(number) => (kernel.packed, &tails[number * rows * BLOCK..]),
                };
                let (from, b, add) = (from.as_ptr(), b.as_ptr(), add || start > 0);
                if height == rows && width == cols {
                    // SAFETY: A was checked to hold its rows; b has `length * cols` elements, a tail's panel `rows * BLOCK`. The
                    // tile lies within C, since none of its rows and columns is past the last.
                    unsafe {
                        let c = out.start.add(line * out.stride + column);
                        return run(length, from, a.row, b, c, out.stride, add);
                    }
                }
                let mut whole = [0.0; MOST[0] * MOST[1]];
                // SAFETY: as above, and the largest tile fits into `whole`.
                unsafe { run(length, from, a.row, b, whole.as_mut_ptr(), cols, false) }
                for (i, whole) in whole.chunks_exact(cols).take(height).enumerate() {
                    // SAFETY: these are rows and columns of this task's part of C.
                    let c = unsafe { out.piece(line + i, column..column + width) };
                    match add {
                        true => c.iter_mut().zip(whole).for_each(|(c, x)| *c += x),
                        false => c.copy_from_slice(&whole[..width]),
                    }
                }
            };
            // Rows read in place lie scattered: they stay in the first cache while the panels stream past. Packed ones stream.
            let tiles = 0..loose + tail;
            if loose > 0 {
                let chunk = (REACH / length.max(1) / cols).max(1) * cols;
                for first in columns.clone().step_by(chunk) {
                    let chunk = first..(first + chunk).min(columns.end);
                    tiles
                        .clone()
                        .for_each(|tile| chunk.clone().step_by(cols).for_each(|column| one(tile, column)));
                }
            } else {
                columns
                    .clone()
                    .step_by(cols)
                    .for_each(|column| tiles.clone().for_each(|tile| one(tile, column)));
            }
            start += length;
            if start >= steps.len() {
                return;
            }
        }
    });
}

/// The first `m` rows and `length` steps of A in tiles: `rows` elements for each step, zeros past the last row.
fn pack_rows(a: Matrix, [m, length]: [usize; 2], rows: usize, tiles: &mut [f32]) {
    let size = rows * BLOCK;
    if !m.is_multiple_of(rows) {
        tiles[m / rows * size..][..length * rows].fill(0.0);
    }
    if a.row != 1 {
        for (number, first) in (0..m).step_by(rows).enumerate() {
            let live = rows.min(m - first);
            transpose(
                &a.data[first * a.row..],
                a.row,
                a.column,
                [live, length],
                &mut tiles[number * size..],
                rows,
            );
        }
        return;
    }
    share_out(a, [m, length], rows, size, tiles);
}

widest! {
    /// Shares each step's contiguous elements out to tiles `size` apart, `width` to each.
    fn share_out(x: Matrix, sizes: [usize; 2], width: usize, size: usize, tiles: &mut [f32]) {
        match width {
            32 => copy_across::<32>(x, sizes, size, tiles),
            16 => copy_across::<16>(x, sizes, size, tiles),
            12 => copy_across::<12>(x, sizes, size, tiles),
            8 => copy_across::<8>(x, sizes, size, tiles),
            6 => copy_across::<6>(x, sizes, size, tiles),
            _ => copy_across::<4>(x, sizes, size, tiles),
        }
    }
}

/// Memory is read once, in order, and copies of a known length are single instructions.
#[inline(always)]
fn copy_across<const WIDTH: usize>(x: Matrix, [count, steps]: [usize; 2], size: usize, tiles: &mut [f32]) {
    for p in 0..steps {
        let (whole, rest) = x.data[p * x.column..][..count].as_chunks::<WIDTH>();
        for (number, part) in whole.iter().enumerate() {
            // Not `copy_from_slice`: that may stay a call.
            if let Some(tile) = tiles[number * size + p * WIDTH..].first_chunk_mut::<WIDTH>() {
                *tile = *part;
            }
        }
        if !rest.is_empty() {
            tiles[whole.len() * size + p * WIDTH..][..rest.len()].copy_from_slice(rest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7 + seed * 13) % 11) as f32 - 5.0).collect()
    }

    /// Small whole numbers, so that every order of the sum gives the same.
    fn check([m, k, n]: [usize; 3], a_across: bool, b_across: bool) {
        let (a, b) = (numbers(m * k, 1), numbers(k * n, 2));
        let left = if a_across { Matrix::new(&a, m).transposed() } else { Matrix::new(&a, k) };
        let right = if b_across { Matrix::new(&b, k).transposed() } else { Matrix::new(&b, n) };
        let of = |x: &Matrix, i: usize, j: usize| x.data[i * x.row + j * x.column];
        let mut expected = vec![0.0; m * n];
        for i in 0..m {
            for j in 0..n {
                expected[i * n + j] = (0..k).map(|p| of(&left, i, p) * of(&right, p, j)).sum();
            }
        }
        let mut c = vec![f32::NAN; m * n];
        product([m, k, n], left, right, &mut c, &|_, _| {});
        assert_eq!(c, expected, "{m} {k} {n}");
        let stride = n + 3;
        let mut c = vec![1.0; m * stride];
        product_here([m, k, n], left, right, &mut c, stride, true);
        for (c, expected) in c.chunks(stride).zip(expected.chunks(n)) {
            assert!(c[..n].iter().zip(expected).all(|(&c, &e)| c == e + 1.0));
            assert_eq!(c[n..], [1.0; 3]);
        }
    }

    #[test]
    fn every_shape_and_form_gives_the_plain_sum() {
        for size in [[1, 1, 1], [12, 4, 32], [13, 3, 33], [5, 300, 7], [100, 513, 65], [200, 64, 100]] {
            for (a, b) in [(false, false), (false, true), (true, false), (true, true)] {
                check(size, a, b);
            }
        }
    }

    #[test]
    fn part_of_a_packed_operand_is_used() {
        let (a, b) = (numbers(20 * 9, 5), numbers(30 * 40, 6));
        let mut panels = Panels::default();
        panels.pack(Matrix::new(&b, 40), [30, 40]);
        let mut c = vec![f32::NAN; 20 * 37];
        panels.product([20, 37], 11..20, Matrix::new(&a, 9), &mut c, 37, false);
        let mut expected = vec![0.0; 20 * 37];
        product_here(
            [20, 9, 37],
            Matrix::new(&a, 9),
            Matrix::new(&b[11 * 40..], 40),
            &mut expected,
            37,
            false,
        );
        assert_eq!(c, expected);
    }

    #[test]
    fn a_sum_over_nothing_is_zero() {
        let mut c = vec![f32::NAN; 6];
        product([2, 0, 3], Matrix::new(&[], 0), Matrix::new(&[], 3), &mut c, &|_, _| {});
        assert_eq!(c, [0.0; 6]);
    }

    #[test]
    fn rows_that_are_done_are_finished_once() {
        let (a, b) = (numbers(100 * 50, 3), numbers(50 * 40, 4));
        let (mut plain, mut doubled) = (vec![0.0; 4000], vec![0.0; 4000]);
        product([100, 50, 40], Matrix::new(&a, 50), Matrix::new(&b, 40), &mut plain, &|_, _| {});
        let double = |_: usize, rows: &mut [f32]| rows.iter_mut().for_each(|c| *c *= 2.0);
        product([100, 50, 40], Matrix::new(&a, 50), Matrix::new(&b, 40), &mut doubled, &double);
        assert!(plain.iter().zip(&doubled).all(|(p, d)| 2.0 * p == *d));
    }
}
