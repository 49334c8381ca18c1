//! New keys and values written behind those of earlier tokens, in place.
//!
//! `keys[b, position + t] = new_keys[b, t]`, and so the values; rows that would stand past the end of the cache are left out. Each sequence
//! may have a position of its own, in a cache that it names.

use super::cache_code::CacheCode;
use super::launch::{Bind, Caps, Kernel, Launch, Variant, spread};
use super::seats::{self, expect_seats, seat};
use super::slice::{pack, wide};
use super::{
    Cases, Cost, Emit, Error, Operator, Result, Site, Value, expect_dtype, expect_float, expect_inputs,
    expect_shape, in_type,
};
use crate::tensor::{Data, Tensor, Type, View, ViewMut};
use std::sync::Arc;

/// Caches of keys and of values [B, S, ..], new keys and values [B, T, ..], position `U32 [1]` -> the caches, in place. With a position
/// `U32 [N, 2]` of N sequences, each its first position and the number of its cache, what is new is [N, T, ..].
#[derive(Clone, Debug)]
pub struct CacheWrite;

/// What is copied: elements of one row, rows in a cache, rows that are new.
struct Extent {
    row: usize,
    capacity: usize,
    time: usize,
}

impl Extent {
    fn of(cache: &[usize], new: &[usize]) -> Self {
        Extent { row: cache[2..].iter().product(), capacity: cache[1], time: new[1] }
    }

    /// Copies the rows of every sequence that have room.
    fn copy<T: Copy>(&self, new: &[T], position: &[u32], caches: &mut [T]) {
        for (b, new) in new.chunks(self.time * self.row).enumerate() {
            let [first, cache] = seat(position, b);
            let count = self.time.min(self.capacity.saturating_sub(first)) * self.row;
            let held = caches.chunks_mut(self.capacity * self.row).nth(cache);
            if let Some(held) = held.filter(|_| count > 0) {
                held[first * self.row..][..count].copy_from_slice(&new[..count]);
            }
        }
    }
}

impl Operator for CacheWrite {
    fn name(&self) -> &'static str {
        "cache_write"
    }

    fn signature(&self, inputs: &[Type]) -> Result<Vec<Type>> {
        let op = self.name();
        let [keys, values, new_keys, new_values, position] = expect_inputs(op, inputs)?;
        expect_float(op, "keys", keys)?;
        if keys.shape.len() < 2 {
            let expected = "[batch, rows, ..]".to_string();
            return Err(Error::Shape { op, input: "keys", expected, got: keys.shape.clone() });
        }
        let sequences = new_keys.shape.first().copied().unwrap_or(0);
        for (name, new) in [("new_keys", new_keys), ("new_values", new_values)] {
            expect_dtype(op, name, new, keys.dtype)?;
            let time = new.shape.get(1).copied().unwrap_or(0);
            expect_shape(op, name, new, &[&[sequences, time], &keys.shape[2..]].concat())?;
        }
        expect_dtype(op, "values", values, keys.dtype)?;
        expect_shape(op, "values", values, &keys.shape)?;
        expect_shape(op, "new_values", new_values, &new_keys.shape)?;
        expect_seats(op, position, [sequences, keys.shape[0]])?;
        Ok(vec![keys.clone(), values.clone()])
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        let extent = Extent::of(&inputs[0].shape, &inputs[2].shape);
        let position = inputs[4].as_u32();
        for (i, output) in outputs.iter_mut().enumerate() {
            in_type!(inputs[i], output, |x, y| y.copy_from_slice(x));
            in_type!(inputs[2 + i], output, |x, y| extent.copy(x, position, y));
        }
    }

    fn host(&self, inputs: &[View], outputs: &mut [ViewMut]) {
        let extent = Extent::of(inputs[0].shape, inputs[2].shape);
        let position = inputs[4].as_u32();
        for (i, output) in outputs.iter_mut().enumerate() {
            extent.copy(inputs[2 + i].floats(), position, output.floats());
        }
    }

    fn gradient(&self, _: &mut dyn Emit, _: &Site, _: &[Option<Value>]) -> Result<Vec<Option<Value>>> {
        let hint = "a cache is for reading texts, not for training";
        Err(Error::NoGradient { op: self.name(), hint })
    }

    fn launch(&self, inputs: &[Type], _outputs: &[Type], _caps: &Caps) -> Vec<Variant> {
        let Extent { row, capacity, time } = Extent::of(&inputs[0].shape, &inputs[2].shape);
        let width = wide(&[row]);
        let count = inputs[2].shape.count() / width;
        let kernel = Kernel::new("cache_write").retype("Elem", inputs[0].dtype).paste("WIDTH", pack(width));
        let kernel = kernel.paste("SEATS", seats::text(&inputs[4]));
        let bindings = [Bind::Output(0), Bind::Output(1), Bind::Input(2), Bind::Input(3), Bind::Input(4)];
        let launch = Launch::new(kernel, bindings, spread(count))
            .param("count", count)
            .param("row", row / width)
            .param("time", time)
            .param("capacity", capacity)
            .param("caches", inputs[0].shape[0]);
        vec![Variant::single(if width == 4 { "cache_write_wide" } else { "cache_write" }, launch)]
    }

    /// The new rows are read and written; the rest of the caches stays where it is.
    fn cost(&self, inputs: &[Type], _outputs: &[Type]) -> Cost {
        Cost { flops: 0.0, bytes: 2.0 * inputs[2..].iter().map(|t| t.size_bytes() as f64).sum::<f64>() }
    }

    fn writing_codes(&self) -> Option<Arc<dyn Operator>> {
        Some(Arc::new(CacheCode))
    }

    fn in_place(&self) -> &'static [(usize, usize)] {
        &[(0, 0), (1, 1)]
    }
}

/// Builder of [`CacheWrite`].
pub trait CacheWriteEmit {
    /// `caches` of keys and values with the `new` ones from row `position` on, or from where each sequence stands.
    fn cache_write(&mut self, caches: [Value; 2], new: [Value; 2], position: Value) -> Result<[Value; 2]>;
}

impl<E: Emit + ?Sized> CacheWriteEmit for E {
    fn cache_write(
        &mut self,
        [keys, values]: [Value; 2],
        [new_keys, new_values]: [Value; 2],
        position: Value,
    ) -> Result<[Value; 2]> {
        let written = self.apply(Arc::new(CacheWrite), &[keys, values, new_keys, new_values, position])?;
        Ok([written[0], written[1]])
    }
}

/// One element, odd rows and rows by fours, several sequences, the last row, rows past the end; sequences at places of their own.
pub fn cases() -> Cases {
    let mut cases = Cases::new("cache_write");
    for (label, [batch, capacity, time, heads, size], position) in [
        ("one element", [1, 1, 1, 1, 1], 0),
        ("one odd row", [2, 7, 1, 1, 5], 3),
        ("one row by fours, the last", [1, 9, 1, 3, 8], 8),
        ("many rows of several sequences", [3, 41, 17, 2, 12], 20),
        ("all rows", [2, 13, 13, 1, 4], 0),
        ("more rows than there is room", [2, 11, 6, 2, 4], 8),
        ("no room at all", [1, 5, 3, 1, 3], 9),
    ] {
        let mut normal = |rows: usize| cases.normal([batch, rows, heads, size]);
        let mut inputs = vec![normal(capacity), normal(capacity), normal(time), normal(time)];
        inputs.push(Tensor::u32([1], vec![position]));
        cases.add(label, CacheWrite, inputs).no_gradient();
    }
    for (label, [caches, capacity, time, heads, size], seats) in [
        ("each at its own place", [3, 9, 1, 2, 8], &[[4, 1], [8, 0], [0, 2]][..]),
        ("some of the caches, odd rows", [5, 7, 2, 1, 3], &[[6, 4], [3, 1]]),
        ("past the end, and no such cache", [2, 5, 3, 1, 4], &[[9, 0], [0, 2], [1, 1]]),
    ] {
        let mut normal = |caches: usize, rows: usize| cases.normal([caches, rows, heads, size]);
        let mut inputs = vec![normal(caches, capacity), normal(caches, capacity)];
        inputs.extend([normal(seats.len(), time), normal(seats.len(), time)]);
        inputs.push(Tensor::u32([seats.len(), 2], seats.concat()));
        cases.add(label, CacheWrite, inputs).no_gradient();
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_go_behind_the_position_and_the_others_stay() {
        let rows = |count: usize, first: f32| {
            Tensor::f32([1, count, 2], (0..2 * count).map(|i| first + i as f32).collect())
        };
        let inputs = [rows(4, 0.0), rows(4, 100.0), rows(2, 50.0), rows(2, 60.0), Tensor::u32([1], vec![1])];
        let mut outputs = [rows(4, -1.0), rows(4, -1.0)];
        CacheWrite.reference(&inputs.each_ref(), &mut outputs);
        assert_eq!(outputs[0].real::<f32>(), [0.0, 1.0, 50.0, 51.0, 52.0, 53.0, 6.0, 7.0]);
        assert_eq!(outputs[1].real::<f32>(), [100.0, 101.0, 60.0, 61.0, 62.0, 63.0, 106.0, 107.0]);
    }
}
