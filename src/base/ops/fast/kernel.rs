//! The innermost part of a matrix product: one tile of C in registers, summed over all of K.
//!
//! `C[i, j] (+)= sum over p of A[i, p] * B[p, j]` for a tile of `rows` x `cols`. B is packed: `cols` elements for each p, one after
//! the other. A is read where it lies, or packed as `rows` elements for each p. Each architecture has the tile that fills its
//! registers.

/// Rows and columns of the largest tile.
pub(crate) const MOST: [usize; 2] = [12, 32];

/// Computes one tile. Rows of `a` that are read where they lie are `row` apart; `c` takes rows `stride` apart; with `add` what is there is added to.
///
/// # Safety
/// A tile's rows of `a`, `k * cols` elements of `b` and the tile of `c` must be there, and the processor must have the
/// instructions.
pub(crate) type Tile =
    unsafe fn(k: usize, a: *const f32, row: usize, b: *const f32, c: *mut f32, stride: usize, add: bool);

/// A tile's sizes and code.
#[derive(Clone, Copy)]
pub(crate) struct Kernel {
    /// Rows of the tile.
    pub rows: usize,
    /// Columns of the tile.
    pub cols: usize,
    /// A read where it lies, each row contiguous.
    pub loose: Tile,
    /// A packed.
    pub packed: Tile,
}

/// The kernel of this processor.
pub(crate) fn kernel() -> Kernel {
    #[cfg(target_arch = "x86_64")]
    match super::level() {
        super::Level::Sixteen => {
            return Kernel { rows: 12, cols: 32, loose: sixteen::<false>, packed: sixteen::<true> };
        }
        super::Level::Eight => {
            return Kernel { rows: 6, cols: 16, loose: eight::<false>, packed: eight::<true> };
        }
        super::Level::Plain => {}
    }
    Kernel { rows: 4, cols: 8, loose: plain::<false>, packed: plain::<true> }
}

macro_rules! tile {
    ($name:ident, $features:literal, $rows:literal x $vectors:literal, $lanes:literal,
     $zero:ident, $load:ident, $store:ident, $repeat:ident, $fma:ident, $add:ident) => {
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = $features)]
        unsafe fn $name<const PACKED: bool>(
            k: usize,
            a: *const f32,
            row: usize,
            b: *const f32,
            c: *mut f32,
            stride: usize,
            add: bool,
        ) {
            use std::arch::x86_64::*;
            let (row, step) = if PACKED { (1, $rows) } else { (row, 1) };
            let mut sums = [[$zero(); $vectors]; $rows];
            // SAFETY: the caller vouches for every element touched.
            unsafe {
                for p in 0..k {
                    let mut right = [$zero(); $vectors];
                    for v in 0..$vectors {
                        right[v] = $load(b.add(p * $lanes * $vectors + v * $lanes));
                    }
                    for i in 0..$rows {
                        let left = $repeat(*a.add(i * row + p * step));
                        for v in 0..$vectors {
                            sums[i][v] = $fma(left, right[v], sums[i][v]);
                        }
                    }
                }
                for i in 0..$rows {
                    for v in 0..$vectors {
                        let at = c.add(i * stride + v * $lanes);
                        $store(at, if add { $add($load(at), sums[i][v]) } else { sums[i][v] });
                    }
                }
            }
        }
    };
}
tile!(
    sixteen, "avx512f", 12 x 2, 16,
    _mm512_setzero_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_set1_ps, _mm512_fmadd_ps, _mm512_add_ps
);
tile!(
    eight, "avx2,fma", 6 x 2, 8,
    _mm256_setzero_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_set1_ps, _mm256_fmadd_ps, _mm256_add_ps
);

/// For other processors: 32 sums that the compiler keeps in vectors of four.
unsafe fn plain<const PACKED: bool>(
    k: usize,
    a: *const f32,
    row: usize,
    b: *const f32,
    c: *mut f32,
    stride: usize,
    add: bool,
) {
    let (row, step) = if PACKED { (1, 4) } else { (row, 1) };
    let mut sums = [[0.0f32; 8]; 4];
    // SAFETY: the caller vouches for every element touched.
    unsafe {
        for p in 0..k {
            let right = b.add(p * 8).cast::<[f32; 8]>().read_unaligned();
            for (i, sums) in sums.iter_mut().enumerate() {
                let left = *a.add(i * row + p * step);
                for (sum, right) in sums.iter_mut().zip(right) {
                    // Fused where the architecture always has it; elsewhere that would be a call.
                    *sum = if cfg!(target_arch = "aarch64") {
                        left.mul_add(right, *sum)
                    } else {
                        *sum + left * right
                    };
                }
            }
        }
        for (i, sums) in sums.iter().enumerate() {
            for (j, sum) in sums.iter().enumerate() {
                let at = c.add(i * stride + j);
                *at = if add { *at + sum } else { *sum };
            }
        }
    }
}
