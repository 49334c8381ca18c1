//! Where golden cases are found and how their tensors are read.
//!
//! The folder is `KILN_GOLDEN`, or `../shared/golden` beside the checkout. Where there is none, trials are counted as
//! ignored, unless `KILN_REQUIRE_GOLDEN=1`.

// Each suite is a crate of its own and uses a part.
#![allow(dead_code)]

use kiln::tensor::{Data, Tensor};
use libtest_mimic::Failed;
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Tensors by name.
pub type Tensors = BTreeMap<String, Tensor>;

/// The golden folder, there or not.
pub fn folder() -> PathBuf {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/golden");
    std::env::var_os("KILN_GOLDEN").map_or_else(beside, PathBuf::from)
}

/// True if `path` is missing and that is allowed: its trials are to be ignored.
pub fn is_absent(path: &Path) -> bool {
    !path.exists() && std::env::var("KILN_REQUIRE_GOLDEN").as_deref() != Ok("1")
}

/// All tensors of a file whose names start with `prefix`, which is dropped; whole numbers of 64 bits and unsigned bytes become i32.
pub fn tensors(path: &Path, prefix: &str) -> Result<Tensors, Failed> {
    let bytes = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let mut found = Tensors::new();
    for (name, view) in SafeTensors::deserialize(&bytes)?.tensors() {
        let Some(name) = name.strip_prefix(prefix) else { continue };
        let data = match view.dtype() {
            Dtype::F32 => Data::F32(elements(view.data(), f32::from_le_bytes)),
            Dtype::I32 => Data::I32(elements(view.data(), i32::from_le_bytes)),
            Dtype::U8 => Data::I32(view.data().iter().map(|&code| code.into()).collect()),
            Dtype::I8 => Data::I8(elements(view.data(), i8::from_le_bytes)),
            Dtype::I64 => {
                let wide = elements(view.data(), i64::from_le_bytes).into_iter().map(i32::try_from);
                Data::I32(wide.collect::<Result<_, _>>()?)
            }
            other => return Err(format!("{name}: {other:?} is not read here").into()),
        };
        found.insert(name.to_string(), Tensor::new(view.shape(), data)?);
    }
    Ok(found)
}

fn elements<T, const N: usize>(bytes: &[u8], of: fn([u8; N]) -> T) -> Vec<T> {
    let chunks = bytes.chunks_exact(N);
    chunks.map(|chunk| of(chunk.try_into().expect("chunks have their size"))).collect()
}

/// Whether all elements are as near as `absolute` and `share` of the largest expected one together allow.
pub fn compare(name: &str, got: &Tensor, expected: &Tensor, absolute: f64, share: f64) -> Result<(), Failed> {
    let (got, expected) = (got.to_f64(), expected.to_f64());
    if got.len() != expected.len() {
        return Err(format!("{name}: {} elements, expected {}", got.len(), expected.len()).into());
    }
    let limit = absolute + share * expected.iter().fold(0.0, |largest: f64, x| largest.max(x.abs()));
    for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
        let difference = (got - expected).abs();
        if difference.is_nan() || difference > limit {
            return Err(format!("{name}[{i}]: got {got}, expected {expected} within {limit:.1e}").into());
        }
    }
    Ok(())
}

/// The cosine of the angle between two tensors taken as vectors.
pub fn cosine(a: &Tensor, b: &Tensor) -> f64 {
    let (a, b) = (a.to_f64(), b.to_f64());
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
    dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt()
}
