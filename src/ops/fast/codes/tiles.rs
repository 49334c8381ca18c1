//! Products of whole tiles of bytes: AMX, where a processor and its system offer it.
//!
//! An instruction multiplies 16 rows of 64 codes with 64 x 16 of them, both signed. Rows of B are read as they lie; A, the
//! smaller operand as a rule, is packed in fours, so that tiles of the result lie with B's rows downwards and are transposed on
//! their way out. Past its end K is filled with zeros in A, so whatever B is followed by adds nothing.
//!
//! Why in assembly: the compiler's own functions for these instructions are not stable yet.

use super::{Finish, Operands, Task, over_threads, with_bytes};
use std::arch::asm;
use std::arch::x86_64::*;
use std::sync::OnceLock;

/// Rows from which tiles are worth their packing.
pub(super) const FEWEST: usize = 8;
/// Rows of a tile, and numbers in one of its rows.
const SIDE: usize = 16;
/// Bytes of a tile's row.
const DEPTH: usize = 64;
/// Rows and columns of C that are summed at a time: two tiles each way.
const BLOCK: usize = 2 * SIDE;
/// Columns of which sums are kept until their rows are finished.
const COLUMNS: usize = 4 * BLOCK;

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
        packed.chunks_mut(SIDE * deep).zip(a.chunks(SIDE * k)).for_each(|(to, rows)| pack(rows, k, to));
        let packed = &*packed;
        over_threads(operands, tasks, |task| one(operands, packed, deep, task, finish));
    });
}

/// Up to 16 rows in fours: `to[p, i]` is the `p`-th four of row `i`.
fn pack(rows: &[i8], k: usize, to: &mut [u8]) {
    let (fours, _) = to.as_chunks_mut::<4>();
    if rows.len() < SIDE * k || !k.is_multiple_of(DEPTH) {
        fours.fill([0; 4]);
    }
    for (i, row) in rows.chunks(k).enumerate() {
        let (whole, rest) = row.as_chunks::<4>();
        for (p, four) in whole.iter().enumerate() {
            fours[p * SIDE + i] = four.map(|code| code as u8);
        }
        for (at, &code) in rest.iter().enumerate() {
            fours[whole.len() * SIDE + i][at] = code as u8;
        }
    }
}

fn one(operands: Operands, packed: &[u8], deep: usize, mut task: Task, finish: &Finish) {
    let Operands { b, k, .. } = operands;
    let tiles = Tiles::set_up();
    let steps = deep / DEPTH;
    let mut sums = vec![[0; COLUMNS]; BLOCK];
    let mut block = [[0; BLOCK]; BLOCK];
    let mut last = vec![];
    for first_column in task.columns.clone().step_by(COLUMNS) {
        let columns = COLUMNS.min(task.columns.end - first_column);
        for first_row in task.rows.clone().step_by(BLOCK) {
            let rows = BLOCK.min(task.rows.end - first_row);
            let panel = |tile: usize| {
                let tile = (first_row / SIDE + tile).min(packed.len() / (SIDE * deep) - 1);
                packed[tile * SIDE * deep..][..SIDE * deep].as_ptr()
            };
            for at in (0..columns).step_by(BLOCK) {
                let column = first_column + at;
                let readable = column * k + (BLOCK - 1) * k + deep <= b.len();
                let (from, stride) = if readable {
                    (&b[column * k..], k)
                } else {
                    copy_last(&b[column * k..], k, deep, &mut last);
                    (&last[..], deep)
                };
                let left = [from.as_ptr(), from[SIDE * stride..].as_ptr()];
                // SAFETY: `from` has 32 rows, the last of them `deep` bytes long; panels have `deep` * 16 bytes.
                unsafe { tiles.multiply(left, stride, [panel(0), panel(1)], steps, &mut block) };
                for (i, j) in [(0, 0), (0, SIDE), (SIDE, 0), (SIDE, SIDE)] {
                    if i < rows {
                        // SAFETY: a processor with tiles has AVX-512.
                        unsafe { transpose(&block, [j, i], &mut sums[i..i + SIDE], at + j) };
                    }
                }
            }
            for (i, sums) in sums.iter().take(rows).enumerate() {
                let piece = &mut task.pieces[first_row + i - task.rows.start];
                let first = first_column - task.columns.start;
                finish(first_row + i, first_column, &sums[..columns], &mut piece[first..first + columns]);
            }
        }
    }
}

/// Rows of B up to its end, as 32 rows of `deep` bytes.
fn copy_last(b: &[i8], k: usize, deep: usize, last: &mut Vec<i8>) {
    last.clear();
    last.resize(BLOCK * deep, 0);
    for (to, row) in last.chunks_mut(deep).zip(b.chunks(k)) {
        to[..k].copy_from_slice(row);
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
    for r in 0..4 {
        let [a, b, c, d] = [fours[r], fours[4 + r], fours[8 + r], fours[12 + r]];
        let (even, odd) = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xdd>(a, b));
        let (next_even, next_odd) = (_mm512_shuffle_i32x4::<0x88>(c, d), _mm512_shuffle_i32x4::<0xdd>(c, d));
        let quarters = [
            _mm512_shuffle_i32x4::<0x88>(even, next_even),
            _mm512_shuffle_i32x4::<0x88>(odd, next_odd),
            _mm512_shuffle_i32x4::<0xdd>(even, next_even),
            _mm512_shuffle_i32x4::<0xdd>(odd, next_odd),
        ];
        for (q, quarter) in quarters.into_iter().enumerate() {
            // SAFETY: sixteen numbers from there on are within the row.
            unsafe { _mm512_storeu_si512(to[4 * q + r].as_mut_ptr().add(at).cast(), quarter) };
        }
    }
}
