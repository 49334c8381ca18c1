//! Where the sequences of a pass stand in their caches: all at one position, or each at its own and in a cache it names.
//!
//! The input `position` U32 \[1\] is the first position of every sequence, which has the cache of its own number. As U32 [B, 2] it holds
//! for each sequence its first position and the number of its cache, so that a pass may go on with some of the texts that caches
//! hold, each where it ends.

use super::{Error, Result, expect_dtype};
use crate::tensor::{DType, Type};

/// Whether each sequence has a position of its own.
pub(super) fn is_seated(position: &Type) -> bool {
    position.shape.len() == 2
}

/// Checks the input `position` of `sequences` over as many caches.
pub(super) fn expect_seats(op: &'static str, position: &Type, [sequences, caches]: [usize; 2]) -> Result<()> {
    expect_dtype(op, "position", position, DType::U32)?;
    let fits = match position.shape[..] {
        [1] => sequences == caches,
        [count, 2] => count == sequences,
        _ => false,
    };
    if fits {
        return Ok(());
    }
    let expected = format!("[{sequences}, 2], or [1] where there is a cache for each sequence");
    Err(Error::Shape { op, input: "position", expected, got: position.shape.clone() })
}

/// First position of a sequence, and the number of its cache.
pub(super) fn seat(position: &[u32], sequence: usize) -> [usize; 2] {
    match position {
        [first] => [*first as usize, sequence],
        seats => [seats[2 * sequence] as usize, seats[2 * sequence + 1] as usize],
    }
}

/// `seat_of(sequence) -> vec2<u32>` for a kernel with the binding `position`.
pub(super) fn text(position: &Type) -> &'static str {
    match is_seated(position) {
        true => {
            "fn seat_of(b: u32) -> vec2<u32> { return vec2<u32>(position[2u * b], position[2u * b + 1u]); }"
        }
        false => "fn seat_of(b: u32) -> vec2<u32> { return vec2<u32>(position[0], b); }",
    }
}
