//! Products of whole tiles of bytes: AMX, where a processor and its system offer it.
//!
//! An instruction multiplies 16 rows of 64 codes with 64 x 16 of them, both signed. Rows of B are read as they lie; A, the
//! smaller operand as a rule, is packed in fours, so that tiles of the result lie with B's rows downwards and are transposed on
//! their way out. Past its end K is filled with zeros in A, so whatever B is followed by adds nothing.
//!
//! Why in assembly: the compiler's own functions for these instructions are not stable yet.

use super::memory::with_bytes;
use super::{Finish, Operands, Task, over_threads};
use rayon::prelude::*;
use std::arch::asm;
use std::arch::x86_64::*;
use std::sync::OnceLock;

/// Rows from which tiles are worth their packing.
pub(super) const FEWEST: usize = 4;
/// Rows of a tile, and numbers in one of its rows.
const SIDE: usize = 16;
/// Bytes of a tile's row.
const DEPTH: usize = 64;
/// Rows and columns of C that are summed at a time: two tiles each way.
const BLOCK: usize = 2 * SIDE;
/// Bytes of A that are packed on one thread at least.
const AT_ONCE: usize = 1 << 16;
/// Columns of which sums are kept until their rows are finished.
const COLUMNS: usize = 8 * BLOCK;

/// True if the processor has tiles of bytes and the system lets this process use them.
pub(super) fn is_there() -> bool {
    static THERE: OnceLock<bool> = OnceLock::new();
    *THERE.get_or_init(|| has_instructions() && system_saves_tiles() && permitted())
}

fn has_instructions() -> bool {
    const TILES_OF_BYTES: u32 = 1 << 24 | 1 << 25;
    __get_cpuid_max(0).0 >= 7
        && __cpuid_count(7, 0).edx & TILES_OF_BYTES == TILES_OF_BYTES
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("xsave")
}

fn system_saves_tiles() -> bool {
    const TILES: u64 = 0b11 << 17;
    // SAFETY: the processor has `xsave`, and a system that runs AVX-512 has switched it on.
    unsafe { xgetbv() & TILES == TILES }
}

#[target_feature(enable = "xsave")]
fn xgetbv() -> u64 {
    // SAFETY: register zero is always there.
    unsafe { _xgetbv(0) }
}

/// Linux gives tiles to a process that asks for them; of other systems we do not know.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const ASK_FOR_PERMISSION: u64 = 0x1023;
    const TILE_DATA: u64 = 18;
    let refused: i64;
    // SAFETY: the call asks for a permission and touches no memory.
    unsafe {
        asm!(
            "syscall", inlateout("rax") ARCH_PRCTL => refused, in("rdi") ASK_FOR_PERMISSION, in("rsi") TILE_DATA,
            out("rcx") _, out("r11") _, options(nostack)
        );
    }
    refused == 0
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// Shapes of the eight tiles: all 16 rows of 64 bytes.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

const SHAPES: Shapes = {
    let mut shapes =
        Shapes { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
    let mut tile = 0;
    while tile < 8 {
        (shapes.row_bytes[tile], shapes.rows[tile]) = (DEPTH as u16, SIDE as u8);
        tile += 1;
    }
    shapes
};

/// Tiles set up on this thread, and given back when dropped.
struct Tiles;

impl Tiles {
    /// [`is_there`] must have said so.
    fn set_up() -> Tiles {
        // SAFETY: the instruction is there and permitted; it reads the 64 bytes of the shapes.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &SHAPES, options(nostack, readonly)) };
        Tiles
    }

    /// out[j, i] = sum over p of left[j, p] * right[p, i] for 32 x 32 numbers.
    ///
    /// # Safety
    /// From both places of `left`, 16 rows of `steps` * 64 bytes, `stride` apart, must be readable, and from both of `right` `steps` * 1024 bytes.
    unsafe fn multiply(
        &self,
        left: [*const i8; 2],
        stride: usize,
        right: [*const u8; 2],
        steps: usize,
        out: &mut [[i32; BLOCK]; BLOCK],
    ) {
        // SAFETY: the caller vouches for what is read; what is written is `out`. The tiles were set up on this thread, as
        // `self` cannot leave it.
        unsafe {
            asm!(
                "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                "2:",
                "tileloadd tmm4, [{left0} + {stride}]",
                "tileloadd tmm6, [{right0} + {depth}]",
                "tdpbssd tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{right1} + {depth}]",
                "tdpbssd tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{left1} + {stride}]",
                "tdpbssd tmm2, tmm5, tmm6",
                "tdpbssd tmm3, tmm5, tmm7",
                "add {left0}, 64", "add {left1}, 64", "add {right0}, 1024", "add {right1}, 1024",
                "dec {steps}",
                "jnz 2b",
                "lea {left0}, [{out} + 2048]",
                "tilestored [{out} + {depth} * 2], tmm0",
                "tilestored [{out} + {depth} * 2 + 64], tmm1",
                "tilestored [{left0} + {depth} * 2], tmm2",
                "tilestored [{left0} + {depth} * 2 + 64], tmm3",
                left0 = inout(reg) left[0] => _, left1 = inout(reg) left[1] => _,
                right0 = inout(reg) right[0] => _, right1 = inout(reg) right[1] => _,
                steps = inout(reg) steps => _, stride = in(reg) stride, depth = in(reg) DEPTH,
                out = in(reg) out.as_mut_ptr(),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack)
            );
        }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: the tiles were set up on this thread.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// All tasks; [`is_there`] must have said so.
pub(super) fn compute(operands: Operands, tasks: Vec<Task>, finish: &Finish) {
    let Operands { a, k, .. } = operands;
    let (m, deep) = (a.len() / k, k.next_multiple_of(DEPTH));
    with_bytes(m.next_multiple_of(SIDE) * deep, |packed| {
        let panels = packed.par_chunks_mut(SIDE * deep).zip(a.par_chunks(SIDE * k));
        // SAFETY: a processor with tiles has these instructions: `is_there` has asked.
        panels
            .with_min_len(AT_ONCE.div_ceil(SIDE * deep))
            .for_each(|(to, rows)| unsafe { pack(rows, k, to) });
        let packed = &*packed;
        over_threads(operands, tasks, |task| one(operands, packed, deep, task, finish));
    });
}

/// Up to 16 rows in fours: `to[p, i]` is the `p`-th four of row `i`, and zero where there is none.
#[target_feature(enable = "avx512f,avx512bw")]
fn pack(rows: &[i8], k: usize, to: &mut [u8]) {
    for (chunk, to) in to.chunks_exact_mut(SIDE * DEPTH).enumerate() {
        let first = chunk * DEPTH;
        let live = u64::MAX >> (DEPTH - DEPTH.min(k - first));
        let mut v = [_mm512_setzero_si512(); SIDE];
        for (v, row) in v.iter_mut().zip(rows.chunks_exact(k)) {
            // SAFETY: only bytes of the mask are read, and the mask ends with the row.
            *v = unsafe { _mm512_maskz_loadu_epi8(live, row.as_ptr().add(first)) };
        }
        for (v, to) in turned(v).into_iter().zip(to.chunks_exact_mut(DEPTH)) {
            // SAFETY: there is room for 64 bytes.
            unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), v) };
        }
    }
}

fn one(operands: Operands, packed: &[u8], deep: usize, mut task: Task, finish: &Finish) {
    let tiles = Tiles::set_up();
    let steps = deep / DEPTH;
    let mut sums = vec![[0; COLUMNS]; BLOCK];
    let mut blocks = [[[0; BLOCK]; BLOCK]; 2];
    let mut copy = vec![];
    for first_column in task.columns.clone().step_by(COLUMNS) {
        let columns = COLUMNS.min(task.columns.end - first_column);
        let left = Left::of(operands, first_column, task.rows.len(), deep, &mut copy);
        for first_row in task.rows.clone().step_by(BLOCK) {
            let rows = BLOCK.min(task.rows.end - first_row);
            let right = [0, 1].map(|tile| {
                let tile = (first_row / SIDE + tile).min(packed.len() / (SIDE * deep) - 1);
                packed[tile * SIDE * deep..][..SIDE * deep].as_ptr()
            });
            let mut turn = |number: usize, from: &[[i32; BLOCK]; BLOCK]| {
                for (i, j) in [(0, 0), (0, SIDE), (SIDE, 0), (SIDE, SIDE)] {
                    if i < rows {
                        // SAFETY: a processor with tiles has AVX-512.
                        unsafe { transpose(from, [j, i], &mut sums[i..i + SIDE], number * BLOCK + j) };
                    }
                }
            };
            // A block is turned while the next one is multiplied.
            let count = columns.div_ceil(BLOCK);
            for number in 0..count {
                let [block, other] = &mut blocks;
                let (next, before) = if number % 2 == 0 { (block, other) } else { (other, block) };
                // SAFETY: `left` has 32 rows for each block, and panels have `deep` * 16 bytes.
                unsafe { tiles.multiply(left.tiles(number), left.stride, right, steps, next) };
                if number > 0 {
                    turn(number - 1, before);
                }
            }
            turn(count - 1, &blocks[(count - 1) % 2]);
            for (i, sums) in sums.iter().take(rows).enumerate() {
                let piece = &mut task.pieces[first_row + i - task.rows.start];
                let first = first_column - task.columns.start;
                finish(first_row + i, first_column, &sums[..columns], &mut piece[first..first + columns]);
            }
        }
    }
}

/// Rows of B for some columns of C, 64 bytes of each readable past every step.
struct Left<'a> {
    codes: &'a [i8],
    stride: usize,
}

impl<'a> Left<'a> {
    /// B as it lies, or a copy of those rows: at B's end, where tiles would reach past it, and where rows do not begin with a cache
    /// line and are read often, since each is then in two lines.
    fn of(
        operands: Operands<'a>,
        column: usize,
        rows: usize,
        deep: usize,
        copy: &'a mut Vec<i8>,
    ) -> Left<'a> {
        let Operands { b, k, .. } = operands;
        let readable = (column + COLUMNS - 1) * k + deep <= b.len();
        let in_lines = k.is_multiple_of(DEPTH) && (b.as_ptr() as usize).is_multiple_of(DEPTH);
        if readable && (in_lines || rows <= BLOCK) {
            return Left { codes: &b[column * k..], stride: k };
        }
        copy.resize(COLUMNS * deep + DEPTH, 0);
        let first = copy.as_ptr().align_offset(DEPTH).min(DEPTH);
        for (to, row) in copy[first..].chunks_mut(deep).zip(b[column * k..].chunks(k)).take(COLUMNS) {
            to[..k].copy_from_slice(row);
            to[k..].fill(0);
        }
        Left { codes: &copy[first..], stride: deep }
    }

    /// Where the two tiles of a block begin.
    fn tiles(&self, number: usize) -> [*const i8; 2] {
        [0, SIDE].map(|row| self.codes[(number * BLOCK + row) * self.stride..].as_ptr())
    }
}

/// to[i][at + j] = from[row + j][column + i] for 16 x 16 numbers.
#[target_feature(enable = "avx512f")]
fn transpose(from: &[[i32; BLOCK]; BLOCK], [row, column]: [usize; 2], to: &mut [[i32; COLUMNS]], at: usize) {
    assert!(row + SIDE <= BLOCK && column + SIDE <= BLOCK && at + SIDE <= COLUMNS && to.len() == SIDE);
    let mut v = [_mm512_setzero_si512(); SIDE];
    for (j, v) in v.iter_mut().enumerate() {
        // SAFETY: sixteen numbers from there on are within the row.
        *v = unsafe { _mm512_loadu_si512(from[row + j].as_ptr().add(column).cast()) };
    }
    for (v, to) in turned(v).into_iter().zip(to) {
        // SAFETY: as above.
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().add(at).cast(), v) };
    }
}

/// Number `j` of vector `i` becomes number `i` of vector `j`.
#[target_feature(enable = "avx512f")]
fn turned(v: [__m512i; SIDE]) -> [__m512i; SIDE] {
    // Neighbours in pairs, then fours: within each quarter of the vector.
    let mut fours = v;
    for g in 0..4 {
        let [a, b, c, d] = [v[4 * g], v[4 * g + 1], v[4 * g + 2], v[4 * g + 3]];
        let (low, high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let (next_low, next_high) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
        fours[4 * g] = _mm512_unpacklo_epi64(low, next_low);
        fours[4 * g + 1] = _mm512_unpackhi_epi64(low, next_low);
        fours[4 * g + 2] = _mm512_unpacklo_epi64(high, next_high);
        fours[4 * g + 3] = _mm512_unpackhi_epi64(high, next_high);
    }
    // Then quarters: vector 4 q + r of the result is quarter q of those numbered r.
    let mut result = v;
    for r in 0..4 {
        let [a, b, c, d] = [fours[r], fours[4 + r], fours[8 + r], fours[12 + r]];
        let (even, odd) = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xdd>(a, b));
        let (next_even, next_odd) = (_mm512_shuffle_i32x4::<0x88>(c, d), _mm512_shuffle_i32x4::<0xdd>(c, d));
        result[r] = _mm512_shuffle_i32x4::<0x88>(even, next_even);
        result[4 + r] = _mm512_shuffle_i32x4::<0x88>(odd, next_odd);
        result[8 + r] = _mm512_shuffle_i32x4::<0xdd>(even, next_even);
        result[12 + r] = _mm512_shuffle_i32x4::<0xdd>(odd, next_odd);
    }
    result
}
