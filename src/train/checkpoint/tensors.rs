//! Named tensors as bytes, to and from the safetensors format.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::io::{self, Write};

use half::{bf16, f16};
use safetensors::tensor::{Metadata, TensorInfo};
use safetensors::{Dtype, SafeTensors};

use crate::tensor::{Data, Tensor};

/// A tensor as it is stored: type, shape and little-endian bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored<'a> {
    /// Type of one element.
    pub dtype: Dtype,
    /// Sizes of the axes.
    pub shape: Vec<usize>,
    /// The elements in row-major order.
    pub bytes: Cow<'a, [u8]>,
}

impl Stored<'_> {
    /// A host tensor, borrowed.
    pub fn of(tensor: &Tensor) -> Stored<'_> {
        let (dtype, bytes) = match &tensor.data {
            Data::F64(elements) => (Dtype::F64, bytemuck::cast_slice(elements)),
            Data::F32(elements) => (Dtype::F32, bytemuck::cast_slice(elements)),
            Data::I32(elements) => (Dtype::I32, bytemuck::cast_slice(elements)),
            Data::U32(elements) => (Dtype::U32, bytemuck::cast_slice(elements)),
            Data::I8(elements) => (Dtype::I8, bytemuck::cast_slice(elements)),
        };
        Stored { dtype, shape: tensor.shape.to_vec(), bytes: Cow::Borrowed(bytes) }
    }

    /// As a host tensor; 16-bit floats are widened. Nothing for types the host does not hold.
    pub fn to_tensor(&self) -> Option<Tensor> {
        let bytes = &self.bytes;
        let data = match self.dtype {
            Dtype::F64 => Data::F64(elements(bytes)),
            Dtype::F32 => Data::F32(elements(bytes)),
            Dtype::I32 => Data::I32(elements(bytes)),
            Dtype::U32 => Data::U32(elements(bytes)),
            Dtype::I8 => Data::I8(elements(bytes)),
            Dtype::F16 => {
                Data::F32(elements::<u16>(bytes).iter().map(|&x| f16::from_bits(x).to_f32()).collect())
            }
            Dtype::BF16 => {
                Data::F32(elements::<u16>(bytes).iter().map(|&x| bf16::from_bits(x).to_f32()).collect())
            }
            _ => return None,
        };
        Tensor::new(self.shape.as_slice(), data).ok()
    }
}

fn elements<T: bytemuck::AnyBitPattern>(bytes: &[u8]) -> Vec<T> {
    // The bytes of a file lie at any address: copied one by one, they need no alignment.
    bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
}

/// Writes a safetensors file: a length, a JSON header, then the bytes, largest elements first so that all are aligned.
///
/// Why not the package's own `serialize`: it holds the whole file in memory a second time, and its `serialize_to_file`
/// neither syncs nor counts.
pub(super) fn write(out: &mut dyn Write, tensors: &[(String, Stored)]) -> io::Result<()> {
    let mut order: Vec<&(String, Stored)> = tensors.iter().collect();
    order.sort_by(|(a, left), (b, right)| right.dtype.cmp(&left.dtype).then_with(|| a.cmp(b)));
    let names: HashSet<&str> = order.iter().map(|(name, _)| name.as_str()).collect();
    if names.len() < order.len() {
        return Err(invalid("two tensors have the same name"));
    }

    let mut offset = 0;
    let infos = order.iter().map(|(name, tensor)| {
        let start = offset;
        offset += tensor.bytes.len();
        let shape = tensor.shape.clone();
        (name.clone(), TensorInfo { dtype: tensor.dtype, shape, data_offsets: (start, offset) })
    });
    // Other readers of the format look for this word.
    let words = HashMap::from([("format".to_string(), "pt".to_string())]);
    let metadata = Metadata::new(Some(words), infos.collect()).map_err(invalid)?;
    let mut header = serde_json::to_vec(&metadata)?;
    header.resize(header.len().next_multiple_of(8), b' ');

    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    order.iter().try_for_each(|(_, tensor)| out.write_all(&tensor.bytes))
}

/// The tensors of a safetensors file, by name.
pub(super) fn read(bytes: &[u8]) -> Result<Vec<(String, Stored<'static>)>, String> {
    let file = SafeTensors::deserialize(bytes).map_err(|error| error.to_string())?;
    let mut tensors: Vec<_> = file
        .iter()
        .map(|(name, view)| {
            let bytes = Cow::Owned(view.data().to_vec());
            (name.to_string(), Stored { dtype: view.dtype(), shape: view.shape().to_vec(), bytes })
        })
        .collect();
    tensors.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(tensors)
}

fn invalid(reason: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(tensors: &[(String, Stored)]) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        write(&mut bytes, tensors).map(|()| bytes)
    }

    #[test]
    fn tensors_written_are_what_the_package_would_write() {
        let (a, b) = (Tensor::f32([2, 3], (0..6).map(|x| x as f32).collect()), Tensor::u32([1], vec![7]));
        let half = Stored { dtype: Dtype::F16, shape: vec![3], bytes: vec![0, 60, 0, 64, 0, 66].into() };
        let tensors =
            [("h".to_string(), half), ("b".to_string(), Stored::of(&b)), ("a".to_string(), Stored::of(&a))];
        let views = tensors.iter().map(|(name, t)| {
            let view = safetensors::tensor::TensorView::new(t.dtype, t.shape.clone(), &t.bytes);
            (name.as_str(), view.unwrap())
        });
        let words = HashMap::from([("format".to_string(), "pt".to_string())]);
        assert_eq!(written(&tensors).unwrap(), safetensors::serialize(views, Some(words)).unwrap());

        let back = read(&written(&tensors).unwrap()).unwrap();
        assert_eq!(back[0].1.to_tensor().unwrap(), a);
        assert_eq!(back[1].1.to_tensor().unwrap(), b);
        assert_eq!(back[2].1.to_tensor().unwrap(), Tensor::f32([3], vec![1.0, 2.0, 3.0]));
    }

    #[test]
    fn a_name_given_twice_and_a_shape_that_does_not_fit_are_refused() {
        let a = Tensor::f32([2], vec![1.0, 2.0]);
        let twice = [("a".to_string(), Stored::of(&a)), ("a".to_string(), Stored::of(&a))];
        assert!(written(&twice).is_err());
        let wrong = [("a".to_string(), Stored { shape: vec![3], ..Stored::of(&a) })];
        assert!(written(&wrong).is_err());
    }
}
