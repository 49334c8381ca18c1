//! Does a kernel compute on this device what the reference computes in f64?
//!
//! One trial is a case of an operator, a storage type and a variant. The harness and `kiln doctor` run the same trials.

use super::run::Bench;
use super::{Gpu, Pipelines};
use crate::ops::Case;
use crate::ops::launch::Variant;
use crate::tensor::{DType, Data, Tensor, Type};

/// Rounding errors allowed per root of the length of the sum: covers the drivers' exp, log, tanh and division.
const ROUNDINGS: f64 = 16.0;

/// A case made ready for one storage type.
pub struct Trial {
    /// Inputs rounded to the storage, with their types on the device.
    pub inputs: Vec<(Tensor, Type)>,
    /// Types of the outputs.
    pub outputs: Vec<Type>,
    /// The outputs in f64, computed from the rounded inputs.
    pub expected: Vec<Tensor>,
    /// Relative error allowed beside the rounding of the stored output.
    pub tolerance: f64,
}

/// The type under which a case's input is stored: f64 stands for the storage under test.
pub fn stored_type(tensor: &Tensor, storage: DType) -> Type {
    let dtype = if tensor.data.dtype() == DType::F64 { storage } else { tensor.data.dtype() };
    Type::new(dtype, tensor.shape.clone())
}

/// The type with floats in `precision`, as the referee holds it.
pub fn held_type(kind: &Type, precision: DType) -> Type {
    if kind.dtype.is_float() { Type::new(precision, kind.shape.clone()) } else { kind.clone() }
}

/// The reference of a case's operator in one precision.
pub fn reference(case: &Case, inputs: &[Tensor], outputs: &[Type], precision: DType) -> Vec<Tensor> {
    let inputs: Vec<Tensor> = inputs.iter().map(|t| t.to_precision(precision)).collect();
    let mut results: Vec<Tensor> =
        outputs.iter().map(|kind| Tensor::zeros(&held_type(kind, precision))).collect();
    case.op.reference(&inputs.iter().collect::<Vec<_>>(), &mut results);
    results
}

impl Trial {
    /// Types of the inputs and outputs of a case in a storage; the operator's error if it refuses them.
    pub fn types(case: &Case, storage: DType) -> Result<(Vec<Type>, Vec<Type>), crate::ops::Error> {
        let kinds: Vec<Type> = case.inputs.iter().map(|t| stored_type(t, storage)).collect();
        let outputs = case.op.signature(&kinds)?;
        Ok((kinds, outputs))
    }

    /// Rounds the inputs and computes what is expected; the operator's error if it refuses these types.
    pub fn new(case: &Case, storage: DType) -> Result<Trial, crate::ops::Error> {
        let (kinds, outputs) = Trial::types(case, storage)?;
        let rounded: Vec<Tensor> =
            case.inputs.iter().zip(&kinds).map(|(t, kind)| t.to_precision(kind.dtype)).collect();
        let expected = reference(case, &rounded, &outputs, DType::F64);
        let inputs = rounded.into_iter().zip(kinds).collect();
        Ok(Trial { inputs, outputs, expected, tolerance: tolerance(case) })
    }

    /// An output as it is to be compared: where two whole numbers are right, with the expected one.
    pub fn settled(&self, case: &Case, number: usize, got: &Tensor) -> Tensor {
        let inputs: Vec<Tensor> = self.inputs.iter().map(|(tensor, _)| tensor.clone()).collect();
        case.settled(&inputs, number, got, &self.expected[number])
    }

    /// The types of the inputs.
    pub fn kinds(&self) -> Vec<Type> {
        self.inputs.iter().map(|(_, kind)| kind.clone()).collect()
    }

    /// Runs a variant twice: values, guards, unwritten elements and bits must all be right; the error is a sentence.
    pub fn check(
        &self,
        gpu: &Gpu,
        pipelines: &Pipelines,
        case: &Case,
        variant: &Variant,
    ) -> Result<(), String> {
        let in_place = case.op.in_place();
        let bench = Bench::new(gpu, pipelines, variant, &self.inputs, &self.outputs, in_place);
        let bench = bench.map_err(|e| e.to_string())?;
        let first = bench.run().map_err(|e| e.to_string())?;
        for (o, kind) in self.outputs.iter().enumerate() {
            let got = self.settled(case, o, &first.outputs[o]);
            let fine = close(&got, &self.expected[o], kind.dtype, self.tolerance);
            let unwritten = match (kind.dtype.is_float(), first.unwritten[o]) {
                (true, count) if count > 0 => format!("\n  {count} elements were never written"),
                _ => String::new(),
            };
            fine.map_err(|problem| format!("output {o} ({kind}): {problem}{unwritten}"))?;
        }
        if !first.damage.is_empty() {
            return Err(format!("wrote where it should not: {}", first.damage.join("; ")));
        }
        let second = bench.run().map_err(|e| e.to_string())?;
        if first.bits != second.bits {
            return Err("two runs on the same inputs differ in their bits".into());
        }
        Ok(())
    }
}

/// Relative error allowed for a case: sums are kept in f32 whatever the storage.
pub fn tolerance(case: &Case) -> f64 {
    case.slack * ROUNDINGS * DType::F32.epsilon() * (case.sum_length as f64).sqrt()
}

/// Compares a result stored as `storage` with the expected f64 values.
///
/// Allowed is the rounding of the storage, relative to the element, plus `tolerance` relative to the larger of the
/// element and the root mean square of the whole: terms of a sum may cancel.
pub fn close(got: &Tensor, expected: &Tensor, storage: DType, tolerance: f64) -> Result<(), String> {
    let exact = matches!(got.data, Data::I32(_) | Data::U32(_) | Data::I8(_));
    let (got, expected) = (got.to_f64(), expected.to_f64());
    let finite = expected.iter().filter(|e| e.is_finite());
    let (squares, count) = finite.fold((0.0, 0.0), |(sum, n), e| (sum + e * e, n + 1.0));
    let magnitude = (squares / f64::max(count, 1.0)).sqrt().max(1e-3);
    let largest = if storage == DType::F16 { 65_504.0 } else { f32::MAX as f64 };
    // Below the smallest normal number the spacing is fixed.
    let smallest = if storage == DType::F16 { 6e-8 } else { 0.0 };
    let (mut wrong, mut worst, mut at) = (0, -1.0, 0);
    for (i, (&g, &e)) in got.iter().zip(&expected).enumerate() {
        let allowed = if exact {
            0.0
        } else {
            storage.epsilon() * e.abs() + tolerance * e.abs().max(magnitude) + smallest
        };
        let same_class =
            (e.is_nan() && g.is_nan()) || g == e || (e.abs() > largest && g == e.signum() * f64::INFINITY);
        let error = if same_class { 0.0 } else { (g - e).abs() / f64::max(allowed, f64::MIN_POSITIVE) };
        let error = if error.is_nan() { f64::INFINITY } else { error };
        wrong += (error > 1.0) as usize;
        if error > worst {
            (worst, at) = (error, i);
        }
    }
    if wrong == 0 {
        return Ok(());
    }
    Err(format!(
        "{wrong} of {} elements are off; the worst, number {at}, is {:e}, expected {:e} ({worst:.3} times the tolerance)",
        got.len(),
        got[at],
        expected[at],
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_wrong_or_missing_element_is_found() {
        let expected = Tensor { shape: [3].into(), data: Data::F64(vec![1.0, 2.0, -3.0]) };
        let fine = |x: [f32; 3]| close(&Tensor::f32([3], x.to_vec()), &expected, DType::F32, 1e-6);
        assert!(fine([1.0, 2.0, -3.0]).is_ok());
        assert!(fine([1.0, 2.000001, -3.0]).is_ok());
        assert!(fine([1.0, 2.0001, -3.0]).is_err());
        assert!(fine([1.0, f32::NAN, -3.0]).is_err());
        assert!(fine([1.0, f32::INFINITY, -3.0]).is_err());
    }

    #[test]
    fn integers_are_compared_exactly() {
        let got = Tensor::u32([2], vec![1, 1_000_001]);
        let expected = Tensor::u32([2], vec![1, 1_000_000]);
        assert!(close(&got, &expected, DType::U32, 1.0).is_err());
    }

    #[test]
    fn what_overflows_the_storage_becomes_infinite() {
        let expected = Tensor { shape: [1].into(), data: Data::F64(vec![-7e4]) };
        let got = Tensor::f32([1], vec![f32::NEG_INFINITY]);
        assert!(close(&got, &expected, DType::F16, 1e-6).is_ok());
        assert!(close(&got, &expected, DType::F32, 1e-6).is_err());
    }
}
