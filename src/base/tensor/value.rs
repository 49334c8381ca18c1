//! Tensors on the host and the types of values in a graph.

use super::{DType, Error, Real, Shape};
use half::{bf16, f16};

/// What is known of a value before it exists: how it is stored and its shape.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Type {
    /// Storage of one element.
    pub dtype: DType,
    /// Sizes of the axes.
    pub shape: Shape,
}

impl Type {
    /// A type.
    pub fn new(dtype: DType, shape: impl Into<Shape>) -> Self {
        Type { dtype, shape: shape.into() }
    }

    /// An f32 type.
    pub fn f32(shape: impl Into<Shape>) -> Self {
        Type::new(DType::F32, shape)
    }

    /// The same storage with another shape.
    pub fn with_shape(&self, shape: impl Into<Shape>) -> Self {
        Type::new(self.dtype, shape)
    }

    /// Bytes of the whole value.
    pub fn size_bytes(&self) -> u64 {
        (self.shape.count() * self.dtype.size_bytes()) as u64
    }

    /// 32-bit words in which the host holds the value for an engine: one for each float or integer, whatever the storage,
    /// and one for four bytes.
    pub fn host_words(&self) -> usize {
        match self.dtype {
            DType::I8 => self.shape.count().div_ceil(4),
            _ => self.shape.count(),
        }
    }
}

impl std::fmt::Display for Type {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{:?}", self.dtype, self.shape)
    }
}

/// Elements on the host. Values stored as f16 or bf16 on a device are held here as f32 rounded to it.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    /// f64 elements.
    F64(Vec<f64>),
    /// f32 elements.
    F32(Vec<f32>),
    /// i32 elements.
    I32(Vec<i32>),
    /// u32 elements.
    U32(Vec<u32>),
    /// i8 elements.
    I8(Vec<i8>),
}

impl Data {
    /// The element type.
    pub fn dtype(&self) -> DType {
        match self {
            Data::F64(_) => DType::F64,
            Data::F32(_) => DType::F32,
            Data::I32(_) => DType::I32,
            Data::U32(_) => DType::U32,
            Data::I8(_) => DType::I8,
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Data::F64(v) => v.len(),
            Data::F32(v) => v.len(),
            Data::I32(v) => v.len(),
            Data::U32(v) => v.len(),
            Data::I8(v) => v.len(),
        }
    }

    /// True without elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Zeros; a value of two bytes is held as f32.
    pub fn zeros(dtype: DType, count: usize) -> Data {
        match dtype {
            DType::F64 => Data::F64(vec![0.0; count]),
            DType::F32 | DType::F16 | DType::BF16 => Data::F32(vec![0.0; count]),
            DType::I32 => Data::I32(vec![0; count]),
            DType::U32 => Data::U32(vec![0; count]),
            DType::I8 => Data::I8(vec![0; count]),
        }
    }
}

/// A shape with its elements in row-major order.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Sizes of the axes.
    pub shape: Shape,
    /// The elements.
    pub data: Data,
}

impl Tensor {
    /// A tensor; the count of elements must be the shape's.
    pub fn new(shape: impl Into<Shape>, data: Data) -> Result<Self, Error> {
        let shape = shape.into();
        if shape.count() != data.len() {
            return Err(Error::Count { expected: shape.count(), got: data.len(), shape });
        }
        Ok(Tensor { shape, data })
    }

    /// Some rows, along the first axis; panics if there are not so many.
    pub fn rows(&self, range: std::ops::Range<usize>) -> Tensor {
        let each: usize = self.shape[1..].iter().product();
        let (from, to) = (range.start * each, range.end * each);
        let data = match &self.data {
            Data::F64(v) => Data::F64(v[from..to].to_vec()),
            Data::F32(v) => Data::F32(v[from..to].to_vec()),
            Data::I32(v) => Data::I32(v[from..to].to_vec()),
            Data::U32(v) => Data::U32(v[from..to].to_vec()),
            Data::I8(v) => Data::I8(v[from..to].to_vec()),
        };
        let shape: Vec<usize> = [range.len()].into_iter().chain(self.shape[1..].iter().copied()).collect();
        Tensor { shape: shape.into(), data }
    }

    /// f32 elements; panics if the count is not the shape's, so it is for literals and computed data.
    pub fn f32(shape: impl Into<Shape>, elements: Vec<f32>) -> Self {
        Tensor::new(shape, Data::F32(elements)).expect("element count follows from the shape")
    }

    /// u32 elements, under the same condition as [`Tensor::f32`].
    pub fn u32(shape: impl Into<Shape>, elements: Vec<u32>) -> Self {
        Tensor::new(shape, Data::U32(elements)).expect("element count follows from the shape")
    }

    /// i32 elements, under the same condition as [`Tensor::f32`].
    pub fn i32(shape: impl Into<Shape>, elements: Vec<i32>) -> Self {
        Tensor::new(shape, Data::I32(elements)).expect("element count follows from the shape")
    }

    /// i8 elements, under the same condition as [`Tensor::f32`].
    pub fn i8(shape: impl Into<Shape>, elements: Vec<i8>) -> Self {
        Tensor::new(shape, Data::I8(elements)).expect("element count follows from the shape")
    }

    /// One f32 without axes.
    pub fn scalar(x: f32) -> Self {
        Tensor::f32([], vec![x])
    }

    /// Zeros of a type; f16 and bf16 are held as f32.
    pub fn zeros(of: &Type) -> Self {
        Tensor { shape: of.shape.clone(), data: Data::zeros(of.dtype, of.shape.count()) }
    }

    /// The type as held on the host.
    pub fn host_type(&self) -> Type {
        Type::new(self.data.dtype(), self.shape.clone())
    }

    /// Elements in precision `R`; panics when held in another.
    pub fn real<R: Real>(&self) -> &[R] {
        R::slice(&self.data)
    }

    /// Elements in precision `R`, to be written.
    pub fn real_mut<R: Real>(&mut self) -> &mut [R] {
        R::slice_mut(&mut self.data)
    }

    /// u32 elements; panics for another type.
    pub fn as_u32(&self) -> &[u32] {
        match &self.data {
            Data::U32(v) => v,
            other => panic!("expected u32 elements, found {}", other.dtype()),
        }
    }

    /// i32 elements; panics for another type.
    pub fn as_i32(&self) -> &[i32] {
        match &self.data {
            Data::I32(v) => v,
            other => panic!("expected i32 elements, found {}", other.dtype()),
        }
    }

    /// i8 elements; panics for another type.
    pub fn as_i8(&self) -> &[i8] {
        match &self.data {
            Data::I8(v) => v,
            other => panic!("expected i8 elements, found {}", other.dtype()),
        }
    }

    /// i8 elements to be written; panics for another type.
    pub fn as_i8_mut(&mut self) -> &mut [i8] {
        match &mut self.data {
            Data::I8(v) => v,
            other => panic!("expected i8 elements, found {}", other.dtype()),
        }
    }

    /// All elements widened to f64, whatever they are.
    pub fn to_f64(&self) -> Vec<f64> {
        match &self.data {
            Data::F64(v) => v.clone(),
            Data::F32(v) => v.iter().map(|&x| x as f64).collect(),
            Data::I32(v) => v.iter().map(|&x| x as f64).collect(),
            Data::U32(v) => v.iter().map(|&x| x as f64).collect(),
            Data::I8(v) => v.iter().map(|&x| x as f64).collect(),
        }
    }

    /// Float elements converted to host precision `dtype` (F16 and BF16 round to their storage); integers unchanged.
    pub fn to_precision(&self, dtype: DType) -> Tensor {
        let data = match (&self.data, dtype) {
            (Data::I32(_) | Data::U32(_) | Data::I8(_), _) => self.data.clone(),
            (_, DType::F64) => Data::F64(self.to_f64()),
            (_, DType::F16) => Data::F32(self.to_f64().iter().map(|&x| f16::from_f64(x).to_f32()).collect()),
            (_, DType::BF16) => {
                Data::F32(self.to_f64().iter().map(|&x| bf16::from_f64(x).to_f32()).collect())
            }
            (_, _) => Data::F32(self.to_f64().iter().map(|&x| x as f32).collect()),
        };
        Tensor { shape: self.shape.clone(), data }
    }

    /// The same elements under another shape of equal count.
    pub fn reshaped(mut self, shape: impl Into<Shape>) -> Result<Tensor, Error> {
        let shape = shape.into();
        if shape.count() != self.data.len() {
            return Err(Error::Count { expected: shape.count(), got: self.data.len(), shape });
        }
        self.shape = shape;
        Ok(self)
    }
}
