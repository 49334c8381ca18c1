//! New keys and values written behind those of earlier tokens, in place.
//!
//! `keys[b, position + t] = new_keys[b, t]`, and so the values; rows that would stand past the end of the cache are left out.

use super::cache_code::CacheCode;
use super::launch::{Bind, Caps, Kernel, Launch, Variant, spread};
use super::slice::{pack, wide};
use super::{
    Cases, Cost, Emit, Error, Operator, Result, Site, Value, expect_dtype, expect_float, expect_inputs,
    expect_shape, in_type,
};
use crate::tensor::{DType, Data, Tensor, Type, View, ViewMut};
use std::sync::Arc;

/// Caches of keys and of values [B, S, ..], new keys and values [B, T, ..], position `U32 [1]` -> the caches, in place.
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
    fn copy<T: Copy>(&self, new: &[T], position: usize, cache: &mut [T]) {
        let count = self.time.min(self.capacity.saturating_sub(position)) * self.row;
        if count == 0 {
            return;
        }
        let (old, new) = (cache.chunks_mut(self.capacity * self.row), new.chunks(self.time * self.row));
        for (cache, new) in old.zip(new) {
            cache[position * self.row..][..count].copy_from_slice(&new[..count]);
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
        for (name, new) in [("new_keys", new_keys), ("new_values", new_values)] {
            expect_dtype(op, name, new, keys.dtype)?;
            let time = new.shape.get(1).copied().unwrap_or(0);
            expect_shape(op, name, new, &[&[keys.shape[0], time], &keys.shape[2..]].concat())?;
        }
        expect_dtype(op, "values", values, keys.dtype)?;
        expect_shape(op, "values", values, &keys.shape)?;
        expect_shape(op, "new_values", new_values, &new_keys.shape)?;
        expect_dtype(op, "position", position, DType::U32)?;
        expect_shape(op, "position", position, &[1])?;
        Ok(vec![keys.clone(), values.clone()])
    }

    fn reference(&self, inputs: &[&Tensor], outputs: &mut [Tensor]) {
        let extent = Extent::of(&inputs[0].shape, &inputs[2].shape);
        let position = inputs[4].as_u32()[0] as usize;
        for (i, output) in outputs.iter_mut().enumerate() {
            in_type!(inputs[i], output, |x, y| y.copy_from_slice(x));
            in_type!(inputs[2 + i], output, |x, y| extent.copy(x, position, y));
        }
    }

    fn host(&self, inputs: &[View], outputs: &mut [ViewMut]) {
        let extent = Extent::of(inputs[0].shape, inputs[2].shape);
        let position = inputs[4].as_u32()[0] as usize;
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
        let bindings = [Bind::Output(0), Bind::Output(1), Bind::Input(2), Bind::Input(3), Bind::Input(4)];
        let launch = Launch::new(kernel, bindings, spread(count))
            .param("count", count)
            .param("row", row / width)
            .param("time", time)
            .param("capacity", capacity);
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
    /// `caches` of keys and values with the `new` ones from row `position` on.
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

/// One element, odd rows and rows by fours, several sequences, the last row, rows past the end.
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
