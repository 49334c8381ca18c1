//! Tensors as the bytes a device stores.

use super::{Error, Result};
use crate::tensor::{DType, Data, Tensor, Type};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// Alignment of copies and bindings in bytes; an odd count of 16-bit elements is padded to it.
pub const WORD: u64 = 4;

/// Bytes a value takes on the device, in whole words.
pub fn stored_bytes(kind: &Type) -> u64 {
    kind.size_bytes().next_multiple_of(WORD)
}

/// The elements as stored, in whole words; `name` is for the message when the tensor does not fit the type.
pub fn pack(name: &str, tensor: &Tensor, kind: &Type) -> Result<Vec<u8>> {
    let misfit = || Error::Value {
        name: name.into(),
        expected: kind.to_string(),
        got: tensor.host_type().to_string(),
    };
    if tensor.shape != kind.shape {
        return Err(misfit());
    }
    let mut bytes: Vec<u8> = match (&tensor.data, kind.dtype) {
        (Data::F32(x), DType::F32) => bytemuck::cast_slice(x).to_vec(),
        (Data::F32(x), DType::F16) => {
            let mut half = vec![f16::ZERO; x.len()];
            half.convert_from_f32_slice(x);
            bytemuck::cast_slice(&half).to_vec()
        }
        (Data::F32(x), DType::BF16) => {
            let mut half = vec![bf16::ZERO; x.len()];
            half.convert_from_f32_slice(x);
            bytemuck::cast_slice(&half).to_vec()
        }
        (Data::I32(x), DType::I32) => bytemuck::cast_slice(x).to_vec(),
        (Data::U32(x), DType::U32) => bytemuck::cast_slice(x).to_vec(),
        (Data::I8(x), DType::I8) => bytemuck::cast_slice(x).to_vec(),
        _ => return Err(misfit()),
    };
    bytes.resize(bytes.len().next_multiple_of(WORD as usize), 0);
    Ok(bytes)
}

/// The tensor that `bytes` store; padding behind the elements is ignored.
pub fn unpack(bytes: &[u8], kind: &Type) -> Result<Tensor> {
    let bytes = &bytes[..kind.size_bytes() as usize];
    let data = match kind.dtype {
        DType::F32 => Data::F32(bytemuck::pod_collect_to_vec(bytes)),
        DType::F16 => {
            let half: Vec<f16> = bytemuck::pod_collect_to_vec(bytes);
            Data::F32(half.iter().map(|x| x.to_f32()).collect())
        }
        DType::BF16 => {
            let half: Vec<bf16> = bytemuck::pod_collect_to_vec(bytes);
            Data::F32(half.iter().map(|x| x.to_f32()).collect())
        }
        DType::I32 => Data::I32(bytemuck::pod_collect_to_vec(bytes)),
        DType::U32 => Data::U32(bytemuck::pod_collect_to_vec(bytes)),
        DType::I8 => Data::I8(bytemuck::pod_collect_to_vec(bytes)),
        DType::F64 => return Err(Error::Storage { dtype: DType::F64 }),
    };
    Ok(Tensor { shape: kind.shape.clone(), data })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_halves_are_padded_to_two_words_and_come_back() {
        let tensor = Tensor::f32([3], vec![1.0, -0.5, 65504.0]);
        let kind = Type::new(DType::F16, [3]);
        let bytes = pack("x", &tensor, &kind).unwrap();
        assert_eq!(bytes, [0x00, 0x3c, 0x00, 0xb8, 0xff, 0x7b, 0, 0]);
        assert_eq!(unpack(&bytes, &kind).unwrap(), tensor);
        // bf16 is the upper half of f32.
        let tensor = Tensor::f32([3], vec![1.0, -0.5, 65536.0]);
        let kind = Type::new(DType::BF16, [3]);
        let bytes = pack("x", &tensor, &kind).unwrap();
        assert_eq!(bytes, [0x80, 0x3f, 0x00, 0xbf, 0x80, 0x47, 0, 0]);
        assert_eq!(unpack(&bytes, &kind).unwrap(), tensor);
    }

    #[test]
    fn five_signed_bytes_are_padded_to_two_words_and_come_back() {
        let tensor = Tensor::i8([5], vec![-128, -1, 0, 1, 127]);
        let kind = Type::new(DType::I8, [5]);
        let bytes = pack("x", &tensor, &kind).unwrap();
        assert_eq!(bytes, [0x80, 0xff, 0, 1, 0x7f, 0, 0, 0]);
        assert_eq!(unpack(&bytes, &kind).unwrap(), tensor);
    }

    #[test]
    fn another_shape_or_type_is_refused() {
        let tensor = Tensor::f32([3], vec![0.0; 3]);
        assert!(matches!(pack("x", &tensor, &Type::f32([1, 3])), Err(Error::Value { .. })));
        assert!(matches!(pack("x", &tensor, &Type::new(DType::U32, [3])), Err(Error::Value { .. })));
    }
}
