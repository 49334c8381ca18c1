//! Elements lent to an operator on the host: a shape and a slice, wherever the memory belongs.

use super::{DType, Data, Shape, Tensor, Type};

/// A value to be read. Floats are f32; values stored as f16 or bf16 are held as f32 rounded to it.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Sizes of the axes.
    pub shape: &'a Shape,
    words: Words<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Words<'a> {
    F32(&'a [f32]),
    I32(&'a [i32]),
    U32(&'a [u32]),
    I8(&'a [i8]),
}

/// A value to be written.
#[derive(Debug)]
pub struct ViewMut<'a> {
    /// Sizes of the axes.
    pub shape: &'a Shape,
    words: WordsMut<'a>,
}

#[derive(Debug)]
enum WordsMut<'a> {
    F32(&'a mut [f32]),
    I32(&'a mut [i32]),
    U32(&'a mut [u32]),
    I8(&'a mut [i8]),
}

impl<'a> View<'a> {
    /// A value of type `kind` in the first of `words`, which must be enough.
    pub fn of_words(kind: &'a Type, words: &'a [u32]) -> Self {
        let words = &words[..kind.host_words()];
        let words = match kind.dtype {
            DType::U32 => Words::U32(words),
            DType::I32 => Words::I32(bytemuck::cast_slice(words)),
            DType::F32 | DType::F16 | DType::BF16 => Words::F32(bytemuck::cast_slice(words)),
            DType::I8 => Words::I8(&bytemuck::cast_slice(words)[..kind.shape.count()]),
            DType::F64 => panic!("f64 is the referee's precision, not an engine's"),
        };
        View { shape: &kind.shape, words }
    }

    /// A type without its elements: the input that an output in place stands for.
    pub fn absent(kind: &'a Type) -> Self {
        View { shape: &kind.shape, words: Words::F32(&[]) }
    }

    /// A tensor lent; panics for f64.
    pub fn of_tensor(tensor: &'a Tensor) -> Self {
        let words = match &tensor.data {
            Data::F32(v) => Words::F32(v),
            Data::I32(v) => Words::I32(v),
            Data::U32(v) => Words::U32(v),
            Data::I8(v) => Words::I8(v),
            Data::F64(_) => panic!("f64 is the referee's precision, not an engine's"),
        };
        View { shape: &tensor.shape, words }
    }

    /// Floats; panics for another type.
    pub fn floats(&self) -> &'a [f32] {
        match self.words {
            Words::F32(v) => v,
            _ => panic!("expected floats"),
        }
    }

    /// u32 elements; panics for another type.
    pub fn as_u32(&self) -> &'a [u32] {
        match self.words {
            Words::U32(v) => v,
            _ => panic!("expected u32 elements"),
        }
    }

    /// i32 elements; panics for another type.
    pub fn as_i32(&self) -> &'a [i32] {
        match self.words {
            Words::I32(v) => v,
            _ => panic!("expected i32 elements"),
        }
    }

    /// i8 elements; panics for another type.
    pub fn as_i8(&self) -> &'a [i8] {
        match self.words {
            Words::I8(v) => v,
            _ => panic!("expected i8 elements"),
        }
    }

    /// The elements as bare bytes, for what only moves them.
    pub fn bytes(&self) -> &'a [u8] {
        match self.words {
            Words::F32(v) => bytemuck::cast_slice(v),
            Words::I32(v) => bytemuck::cast_slice(v),
            Words::U32(v) => bytemuck::cast_slice(v),
            Words::I8(v) => bytemuck::cast_slice(v),
        }
    }

    /// The same elements under another shape of equal count.
    pub fn reshaped(self, shape: &'a Shape) -> Self {
        View { shape, ..self }
    }

    /// The type as held on the host.
    pub fn host_type(&self) -> Type {
        let dtype = match self.words {
            Words::F32(_) => DType::F32,
            Words::I32(_) => DType::I32,
            Words::U32(_) => DType::U32,
            Words::I8(_) => DType::I8,
        };
        Type::new(dtype, self.shape.clone())
    }

    /// A copy.
    pub fn to_tensor(&self) -> Tensor {
        let data = match self.words {
            Words::F32(v) => Data::F32(v.to_vec()),
            Words::I32(v) => Data::I32(v.to_vec()),
            Words::U32(v) => Data::U32(v.to_vec()),
            Words::I8(v) => Data::I8(v.to_vec()),
        };
        Tensor { shape: self.shape.clone(), data }
    }
}

impl<'a> ViewMut<'a> {
    /// A value of type `kind` in the first of `words`, which must be enough.
    pub fn of_words(kind: &'a Type, words: &'a mut [u32]) -> Self {
        let words = &mut words[..kind.host_words()];
        let words = match kind.dtype {
            DType::U32 => WordsMut::U32(words),
            DType::I32 => WordsMut::I32(bytemuck::cast_slice_mut(words)),
            DType::F32 | DType::F16 | DType::BF16 => WordsMut::F32(bytemuck::cast_slice_mut(words)),
            DType::I8 => WordsMut::I8(&mut bytemuck::cast_slice_mut(words)[..kind.shape.count()]),
            DType::F64 => panic!("f64 is the referee's precision, not an engine's"),
        };
        ViewMut { shape: &kind.shape, words }
    }

    /// A tensor lent; panics for f64.
    pub fn of_tensor(tensor: &'a mut Tensor) -> Self {
        let words = match &mut tensor.data {
            Data::F32(v) => WordsMut::F32(v),
            Data::I32(v) => WordsMut::I32(v),
            Data::U32(v) => WordsMut::U32(v),
            Data::I8(v) => WordsMut::I8(v),
            Data::F64(_) => panic!("f64 is the referee's precision, not an engine's"),
        };
        ViewMut { shape: &tensor.shape, words }
    }

    /// Floats to be written; panics for another type.
    pub fn floats(&mut self) -> &mut [f32] {
        match &mut self.words {
            WordsMut::F32(v) => v,
            _ => panic!("expected floats"),
        }
    }

    /// i8 elements to be written; panics for another type.
    pub fn as_i8(&mut self) -> &mut [i8] {
        match &mut self.words {
            WordsMut::I8(v) => v,
            _ => panic!("expected i8 elements"),
        }
    }

    /// The elements as bare bytes, for what only moves them.
    pub fn bytes(&mut self) -> &mut [u8] {
        match &mut self.words {
            WordsMut::F32(v) => bytemuck::cast_slice_mut(v),
            WordsMut::I32(v) => bytemuck::cast_slice_mut(v),
            WordsMut::U32(v) => bytemuck::cast_slice_mut(v),
            WordsMut::I8(v) => bytemuck::cast_slice_mut(v),
        }
    }

    /// The same elements, to be read.
    pub fn as_view(&self) -> View<'_> {
        let words = match &self.words {
            WordsMut::F32(v) => Words::F32(v),
            WordsMut::I32(v) => Words::I32(v),
            WordsMut::U32(v) => Words::U32(v),
            WordsMut::I8(v) => Words::I8(v),
        };
        View { shape: self.shape, words }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_as_their_type_says() {
        let words = [1.5f32.to_bits(), 2, u32::MAX];
        let (float, count, signed) = (Type::f32([1]), Type::new(DType::U32, [2]), Type::new(DType::I32, [1]));
        assert_eq!(View::of_words(&float, &words).floats(), [1.5]);
        assert_eq!(View::of_words(&count, &words[1..]).as_u32(), [2, u32::MAX]);
        assert_eq!(View::of_words(&signed, &words[2..]).as_i32(), [-1]);
        assert_eq!(View::of_words(&float, &words).to_tensor(), Tensor::f32([1], vec![1.5]));
    }

    #[test]
    fn five_bytes_lie_in_two_words_the_first_lowest() {
        let mut words = [0x04_03_02_ff_u32, 0x0000_0080, 7];
        let kind = Type::new(DType::I8, [5]);
        assert_eq!(kind.host_words(), 2);
        assert_eq!(View::of_words(&kind, &words).to_tensor(), Tensor::i8([5], vec![-1, 2, 3, 4, -128]));
        ViewMut::of_words(&kind, &mut words).as_i8()[4] = 1;
        assert_eq!(words, [0x04_03_02_ff, 1, 7]);
    }
}
