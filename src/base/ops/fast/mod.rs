//! What the operators' fast host paths share: vector instructions chosen at run time, matrix products, functions.
//!
//! Nothing here depends on how many threads there are but the time it takes: every sum has one order.

pub(crate) mod codes;
pub(crate) mod dots;
pub(crate) mod kernel;
pub(crate) mod math;
pub(crate) mod product;
pub(crate) mod team;

use crate::tensor::{View, ViewMut};
use rayon::prelude::*;

/// Elements below which work stays on its thread: a hand-over costs some microseconds.
const FEW: usize = 1 << 13;

/// The widest vectors of this processor that we have code for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    /// What every processor of the architecture has.
    Plain,
    /// AVX2 and fused multiply-add.
    #[cfg(target_arch = "x86_64")]
    Eight,
    /// AVX-512.
    #[cfg(target_arch = "x86_64")]
    Sixteen,
}

/// The level of this processor; the standard library remembers what it asked.
#[inline]
pub(crate) fn level() -> Level {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
        {
            return Level::Sixteen;
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return Level::Eight;
        }
    }
    Level::Plain
}

/// Defines a function compiled once for each [`Level`] and dispatched at run time: its loops take the widest vectors.
///
/// The operations are the same at each level, so are the bits of the result.
macro_rules! widest {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name($($arg: $type),*) $(-> $result)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            fn plain($($arg: $type),*) $(-> $result)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn eight($($arg: $type),*) $(-> $result)? {
                    plain($($arg),*)
                }
                #[target_feature(enable = "avx512f,avx512dq,avx512vl,fma")]
                #[allow(clippy::too_many_arguments)]
                fn sixteen($($arg: $type),*) $(-> $result)? {
                    plain($($arg),*)
                }
                match $crate::ops::fast::level() {
                    // SAFETY: the level says that the processor has these instructions.
                    $crate::ops::fast::Level::Sixteen => return unsafe { sixteen($($arg),*) },
                    // SAFETY: as above.
                    $crate::ops::fast::Level::Eight => return unsafe { eight($($arg),*) },
                    $crate::ops::fast::Level::Plain => {}
                }
            }
            plain($($arg),*)
        }
    };
}
pub(crate) use widest;

/// The first input; with a residual, its sum with the last one, which is written into the only output given.
pub(crate) fn summed<'a>(inputs: &[View<'a>], sum: &'a mut [ViewMut], residual: bool) -> &'a [f32] {
    let x = inputs[0].floats();
    if !residual {
        return x;
    }
    let more = inputs[inputs.len() - 1].floats();
    let sum = sum[0].floats();
    if team::members().is_some() {
        add_up(x, more, sum);
        return sum;
    }
    let each = sum.len().div_ceil(3 * rayon::current_num_threads()).max(FEW);
    let parts = sum.par_chunks_mut(each).zip(x.par_chunks(each).zip(more.par_chunks(each)));
    parts.for_each(|(sum, (x, more))| add_up(x, more, sum));
    sum
}

widest! {
    fn add_up(x: &[f32], more: &[f32], sum: &mut [f32]) {
        for ((sum, &x), &more) in sum.iter_mut().zip(x).zip(more) {
            *sum = x + more;
        }
    }
}

widest! {
    /// Adds the first elements of `more` to `to`.
    pub(crate) fn add_onto(to: &mut [f32], more: &[f32]) {
        for (to, &more) in to.iter_mut().zip(more) {
            *to += more;
        }
    }
}

/// Threads that shared work is done by.
pub(crate) fn threads() -> usize {
    team::members().unwrap_or_else(rayon::current_num_threads)
}

/// Rows of one piece of `rows` rows of `cols` elements: all where there are few, else several pieces for each thread.
pub(crate) fn rows_of_piece(rows: usize, cols: usize) -> usize {
    // A team is for plans so small that only products and attention are worth sharing out.
    if rows * cols < FEW || team::members().is_some() {
        return rows.max(1);
    }
    let pieces = 3 * rayon::current_num_threads();
    rows.div_ceil(pieces).max((FEW / 4).div_ceil(cols.max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_work_is_one_piece_and_much_is_several() {
        assert_eq!(rows_of_piece(3, 7), 3);
        assert_eq!(rows_of_piece(0, 7), 1);
        let each = rows_of_piece(1 << 20, 64);
        assert!(each >= 1 && (1usize << 20).div_ceil(each) >= rayon::current_num_threads());
    }
}
