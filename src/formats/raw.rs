//! Tensors as a safetensors file holds them: an element type, a shape, and bytes.

use crate::tensor::{Data, Shape, Tensor};
use half::{bf16, f16};
use std::borrow::Cow;

pub use safetensors::Dtype as Element;

/// A tensor in the type it is stored in.
#[derive(Clone, Debug, PartialEq)]
pub struct Raw<'a> {
    /// Type of the elements.
    pub element: Element,
    /// Sizes of the axes.
    pub shape: Shape,
    /// The elements, little-endian, row-major.
    pub bytes: Cow<'a, [u8]>,
}

impl<'a> Raw<'a> {
    /// A tensor in the type it is held in.
    pub fn of(tensor: &'a Tensor) -> Raw<'a> {
        let (element, bytes) = match &tensor.data {
            Data::F64(elements) => (Element::F64, bytemuck::cast_slice(elements)),
            Data::F32(elements) => (Element::F32, bytemuck::cast_slice(elements)),
            Data::I32(elements) => (Element::I32, bytemuck::cast_slice(elements)),
            Data::U32(elements) => (Element::U32, bytemuck::cast_slice(elements)),
            Data::I8(elements) => (Element::I8, bytemuck::cast_slice(elements)),
        };
        Raw { element, shape: tensor.shape.clone(), bytes: Cow::Borrowed(bytes) }
    }

    /// Floats stored as f32.
    pub fn f32(shape: impl Into<Shape>, values: &[f32]) -> Raw<'static> {
        Raw::owned(Element::F32, shape, values.iter().flat_map(|x| x.to_le_bytes()).collect())
    }

    /// Floats rounded to f16.
    pub fn f16(shape: impl Into<Shape>, values: &[f32]) -> Raw<'static> {
        let bytes = values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect();
        Raw::owned(Element::F16, shape, bytes)
    }

    /// Floats rounded to bf16.
    pub fn bf16(shape: impl Into<Shape>, values: &[f32]) -> Raw<'static> {
        let bytes = values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect();
        Raw::owned(Element::BF16, shape, bytes)
    }

    /// Whole numbers of 64 bits.
    pub fn i64(shape: impl Into<Shape>, values: &[i64]) -> Raw<'static> {
        Raw::owned(Element::I64, shape, values.iter().flat_map(|x| x.to_le_bytes()).collect())
    }

    /// Signed bytes.
    pub fn i8(shape: impl Into<Shape>, values: &[i8]) -> Raw<'static> {
        Raw::owned(Element::I8, shape, bytemuck::cast_slice(values).to_vec())
    }

    /// Bytes of any element type.
    pub fn owned(element: Element, shape: impl Into<Shape>, bytes: Vec<u8>) -> Raw<'static> {
        Raw { element, shape: shape.into(), bytes: Cow::Owned(bytes) }
    }

    /// Whether there are as many bytes as the shape says.
    pub(super) fn fits(&self) -> bool {
        self.shape.count() * self.element.bitsize() == self.bytes.len() * 8
    }

    /// Floats as f32; `None` for types that are no plain floats.
    pub fn floats(&self) -> Option<Vec<f32>> {
        // The bytes of a file lie at any address, so they are taken one element at a time.
        Some(match self.element {
            Element::F32 => elements(&self.bytes, f32::from_le_bytes),
            Element::F16 => elements(&self.bytes, |b| f16::from_le_bytes(b).to_f32()),
            Element::BF16 => elements(&self.bytes, |b| bf16::from_le_bytes(b).to_f32()),
            Element::F64 => elements(&self.bytes, |b| f64::from_le_bytes(b) as f32),
            _ => return None,
        })
    }

    /// Floats of these values in another type; `None` for types that are no plain floats.
    pub fn of_floats(element: Element, shape: impl Into<Shape>, values: &[f32]) -> Option<Raw<'static>> {
        Some(match element {
            Element::F32 => Raw::f32(shape, values),
            Element::F16 => Raw::f16(shape, values),
            Element::BF16 => Raw::bf16(shape, values),
            Element::F64 => {
                let bytes = values.iter().flat_map(|&x| f64::from(x).to_le_bytes()).collect();
                Raw::owned(element, shape, bytes)
            }
            _ => return None,
        })
    }

    /// Whole numbers as i64; `None` for types that are none.
    pub fn integers(&self) -> Option<Vec<i64>> {
        Some(match self.element {
            Element::I64 => elements(&self.bytes, i64::from_le_bytes),
            Element::I32 => elements(&self.bytes, |b| i32::from_le_bytes(b).into()),
            Element::U32 => elements(&self.bytes, |b| u32::from_le_bytes(b).into()),
            Element::I16 => elements(&self.bytes, |b| i16::from_le_bytes(b).into()),
            Element::I8 => elements(&self.bytes, |b| i8::from_le_bytes(b).into()),
            Element::U8 => elements(&self.bytes, |b| u8::from_le_bytes(b).into()),
            _ => return None,
        })
    }
}

fn elements<T, const N: usize>(bytes: &[u8], read: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.chunks_exact(N).map(|b| read(b.try_into().expect("chunks have the length asked for"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sixteen_bit_floats_are_widened() {
        let raw = |element, bytes: &[u8]| Raw::owned(element, [2], bytes.to_vec()).floats();
        assert_eq!(raw(Element::F16, &[0x00, 0x3c, 0x00, 0xc0]).unwrap(), [1.0, -2.0]);
        assert_eq!(raw(Element::BF16, &[0x80, 0x3f, 0x00, 0xc0]).unwrap(), [1.0, -2.0]);
        assert_eq!(raw(Element::I64, &[0; 8]), None);
    }

    #[test]
    fn what_is_put_in_comes_out() {
        let values = [0.5, -1024.0, 3.0];
        for raw in [Raw::f32([3], &values), Raw::f16([3], &values), Raw::bf16([3], &values)] {
            assert!(raw.fits());
            assert_eq!((raw.floats().unwrap(), raw.integers()), (values.to_vec(), None));
        }
        assert_eq!(Raw::i64([2], &[i64::MIN, 7]).integers().unwrap(), [i64::MIN, 7]);
        assert_eq!(Raw::i8([2], &[-128, 127]).integers().unwrap(), [-128, 127]);
        assert!(!Raw::i64([3], &[1, 2]).fits());
    }
}
