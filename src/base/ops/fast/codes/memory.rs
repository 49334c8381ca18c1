//! Memory for packed operands, kept from call to call.

use std::cell::RefCell;

/// Bytes of rows of A that are worked on at a time: they stay in the first cache.
pub(super) const REACH: usize = 24 << 10;

thread_local! {
    /// What is kept.
    static BYTES: RefCell<Vec<u64>> = const { RefCell::new(vec![]) };
}

/// Lends `work` that many bytes, whatever they hold, from the start of a cache line. They are taken out for the time, since the
/// thread may work on another product while it waits for one.
pub(super) fn with_bytes<T>(count: usize, work: impl FnOnce(&mut [u8]) -> T) -> T {
    const LINE: usize = 8;
    let mut kept = BYTES.take();
    let words = count.div_ceil(8) + LINE;
    if kept.len() < words {
        kept.resize(words, 0);
    }
    let first = kept.as_ptr().align_offset(64).min(LINE);
    let result = work(&mut bytemuck::cast_slice_mut(&mut kept[first..])[..count]);
    BYTES.set(kept);
    result
}
