//! Codes of matrices on the host against PyTorch's numbers.
//!
//! Cases stand in `dev/quant` of the golden folder. Codes must be equal but where the exact quotient lies within 1e-5 of the
//! middle between two of them: there either may come out.

mod golden;

use kiln::tensor::Tensor;
use kiln::tensor::quant::{Coded, Origin, Scheme, Share, encode};
use libtest_mimic::{Arguments, Failed, Trial};
use std::path::Path;

/// Relative to the largest element.
const FLOATS: f64 = 1e-6;
/// Distance from the middle between two codes up to which either is right.
const MIDDLE: f64 = 1e-5;

/// Name in the golden file, the scheme, what is added to a code to have the file's, and the names of codes, scales and zeros.
type Case = (&'static str, Scheme, i32, &'static str, &'static str, Option<&'static str>);

fn cases() -> Vec<Case> {
    let wholly = Scheme { lowest: -128, ..Scheme::symmetric(8, Share::Row) };
    vec![
        ("pc_sym", wholly, 0, "q", "scale", None),
        ("pc_affine", Scheme::asymmetric(8, Share::Row), 128, "q", "scale", Some("zero_point")),
        ("g4_asym", Scheme::asymmetric(4, Share::Group(32)), 0, "q", "scale", Some("zero")),
        ("g4_sym", Scheme::symmetric(4, Share::Group(32)), 0, "q", "scale", None),
        ("nf4", Scheme::normal_float(32, false), 0, "idx", "absmax", None),
    ]
}

fn main() {
    let arguments = Arguments::from_args();
    let folder = golden::folder().join("dev/quant");
    let absent = golden::is_absent(&folder);
    let trials = cases().into_iter().map(|case| {
        let file = folder.join("int_quant.safetensors");
        Trial::test(case.0, move || check(&file, &case)).with_ignored_flag(absent)
    });
    libtest_mimic::run(&arguments, trials.collect()).exit();
}

fn check(file: &Path, case: &Case) -> Result<(), Failed> {
    let &(name, scheme, shift, of_codes, of_scales, of_zeros) = case;
    let weight = golden::tensors(file, "W")?.remove("").ok_or("no tensor `W`")?;
    let expected = golden::tensors(file, &format!("{name}."))?;
    let get = |name: &str| expected.get(name).map(Tensor::to_f64).ok_or(format!("no tensor `{name}`"));
    let [rows, cols] = [weight.shape[0], weight.shape[1]];
    let coded = encode(weight.real::<f32>(), rows, cols, &scheme)?;
    let scales: Vec<f64> = coded.scales.iter().map(|&s| s.into()).collect();
    close("scale", &scales, &get(of_scales)?)?;
    if let (Some(zeros), Origin::Zeros(got)) = (of_zeros, &coded.origin) {
        let got: Vec<f64> = got.iter().map(|zero| f64::from(zero + shift)).collect();
        if got != get(zeros)? {
            return Err("zeros differ".into());
        }
    }
    same_codes(&coded, shift, &get(of_codes)?, &weight)?;
    let values: Vec<f64> = coded.decode().into_iter().map(f64::from).collect();
    close("values", &values, &get("dequant")?)
}

fn same_codes(coded: &Coded, shift: i32, expected: &[f64], weight: &Tensor) -> Result<(), Failed> {
    if coded.codes.len() != expected.len() {
        return Err(format!("{} codes, expected {}", coded.codes.len(), expected.len()).into());
    }
    for (at, (&code, &expected)) in coded.codes.iter().zip(expected).enumerate() {
        let scale = coded.scales[at / coded.group];
        let exact = f64::from(weight.real::<f32>()[at]) / f64::from(scale);
        let either = (exact.abs().fract() - 0.5).abs() < MIDDLE;
        let off = (f64::from(i32::from(code) + shift) - expected).abs();
        if off > f64::from(u8::from(either)) {
            return Err(format!("code {at} is {code} and {shift}, expected {expected} for {exact}").into());
        }
    }
    Ok(())
}

fn close(what: &str, got: &[f64], expected: &[f64]) -> Result<(), Failed> {
    let largest = expected.iter().fold(0.0f64, |most, e| most.max(e.abs()));
    let off = got.iter().zip(expected).position(|(g, e)| (g - e).abs() > FLOATS * largest || g.is_nan());
    match off {
        _ if got.len() != expected.len() || got.is_empty() => {
            Err(format!("{what}: {} elements, expected {}", got.len(), expected.len()).into())
        }
        Some(at) => Err(format!("{what}[{at}] is {:e}, expected {:e}", got[at], expected[at]).into()),
        None => Ok(()),
    }
}
