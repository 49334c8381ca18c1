//! Codes of matrices on the host against PyTorch's numbers.
//!
//! Cases stand in `dev/quant` of the golden folder. Codes must be equal but where the exact quotient lies within 1e-5 of the
//! middle between two of them: there either may come out.

mod golden;

use kiln::compress::{Gptq, Gram, gptq, output_error, smooth};
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
    let mut trials: Vec<Trial> = trials.collect();
    for case in gptq_cases() {
        let file = folder.join("gptq.safetensors");
        let run = move || check_gptq(&file, &case);
        trials.push(Trial::test(case.0, run).with_ignored_flag(absent));
    }
    let file = folder.join("int_quant.safetensors");
    trials.push(Trial::test("smoothquant", move || check_smooth(&file)).with_ignored_flag(absent));
    libtest_mimic::run(&arguments, trials).exit();
}

/// Share of codes that must be equal: a rounding error in one column moves all that come after it.
const EQUAL_CODES: f64 = 0.98;
/// By how much the error of the outputs may be off.
const OUTPUT_ERROR: f64 = 0.02;

/// Name in the golden file, scheme, order, and what is added to a code to have the file's; none by rounding to nearest.
type GptqCase = (&'static str, Scheme, Option<bool>, i32);

fn gptq_cases() -> Vec<GptqCase> {
    vec![
        ("rtn4", Scheme::asymmetric(4, Share::Row), None, 0),
        ("gptq4_asym", Scheme::asymmetric(4, Share::Row), Some(false), 0),
        ("gptq4_sym", Scheme::wide(4, Share::Row), Some(false), 8),
        ("gptq3_asym", Scheme::asymmetric(3, Share::Row), Some(false), 0),
        ("gptq8", Scheme::asymmetric(8, Share::Row), Some(false), 128),
        ("gptq4_g32", Scheme::asymmetric(4, Share::Group(32)), Some(false), 0),
        ("gptq4_actorder", Scheme::asymmetric(4, Share::Row), Some(true), 0),
    ]
}

fn check_gptq(file: &Path, case: &GptqCase) -> Result<(), Failed> {
    let &(name, scheme, order, shift) = case;
    let one = |name: &str| golden::tensors(file, name)?.remove("").ok_or(Failed::from("no such tensor"));
    let (weight, x) = (one("W")?, one("X")?);
    let [rows, cols] = [weight.shape[0], weight.shape[1]];
    let matrix = weight.real::<f32>();
    let gram = Gram::of(x.real(), cols);
    let coded = match order {
        None => encode(matrix, rows, cols, &scheme)?,
        Some(act_order) => gptq(matrix, rows, &scheme, &gram, &Gptq { act_order, ..Gptq::default() })?,
    };
    let expected = golden::tensors(file, &format!("{name}."))?;
    let codes = expected["codes"].to_f64();
    let equal =
        coded.codes.iter().zip(&codes).filter(|(a, b)| f64::from(i32::from(**a) + shift) == **b).count();
    if (equal as f64) < EQUAL_CODES * codes.len() as f64 {
        return Err(format!("{equal} of {} codes are equal", codes.len()).into());
    }
    let theirs: Vec<f32> = expected["dequant"].real::<f32>().to_vec();
    let [ours, theirs] = [coded.decode(), theirs].map(|after| output_error(matrix, &after, rows, &gram));
    match (ours / theirs - 1.0).abs() <= OUTPUT_ERROR {
        true => Ok(()),
        false => Err(format!("the outputs' error is {ours}, expected {theirs}").into()),
    }
}

fn check_smooth(file: &Path) -> Result<(), Failed> {
    let one = |name: &str| golden::tensors(file, name)?.remove("").ok_or(Failed::from("no such tensor"));
    let (weight, x, expected) = (one("W")?, one("X")?, golden::tensors(file, "smoothquant.")?);
    let largest = |t: &Tensor| {
        let cols = t.shape[1];
        (0..cols)
            .map(|c| t.real::<f32>().iter().skip(c).step_by(cols).fold(0.0f32, |m, x| m.max(x.abs())))
            .collect()
    };
    let (of_x, of_w): (Vec<f32>, Vec<f32>) = (largest(&x), largest(&weight));
    let scales: Vec<f64> = smooth(&of_x, &of_w, 0.5).into_iter().map(f64::from).collect();
    close("scale", &scales, &expected["scale"].to_f64())
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
