//! AWQ (Lin et al., arXiv 2306.00978): inputs that are large on average keep more of their weights' precision.
//!
//! The weights that meet input j are multiplied by `s_j = mean|X_j|^r`, brought to a geometric mean of its extremes of one, and the
//! input is divided; r is the one of twenty steps in 0..1 whose rounded weights change the layers' outputs least. That change is
//! known exactly from the inner products of the inputs, so no pass over the data is made for it.

use super::calibrate::{Channels, Gram};
use super::gptq::output_error;
use crate::tensor::quant::{self, Scheme, encode};

/// Steps of the exponent.
const STEPS: usize = 20;

/// The best scales that were found.
#[derive(Clone, Debug, PartialEq)]
pub struct Search {
    /// One for each input.
    pub scales: Vec<f32>,
    /// The exponent.
    pub ratio: f64,
    /// Mean squared change of the outputs with them.
    pub error: f64,
    /// The same without any.
    pub plain: f64,
}

/// Tries the exponents for layers that read the same inputs: matrices [rows, cols] with their rows.
pub fn search(
    layers: &[(&[f32], usize)],
    scheme: &Scheme,
    channels: &Channels,
    gram: &Gram,
) -> Result<Search, quant::Error> {
    let mut best: Option<Search> = None;
    let mut plain = 0.0;
    for step in 0..STEPS {
        let ratio = step as f64 / STEPS as f64;
        let scales = scales_of(channels, ratio);
        let mut error = 0.0;
        for &(matrix, rows) in layers {
            error += error_with(matrix, rows, scheme, &scales, gram)?;
        }
        if step == 0 {
            plain = error;
        }
        if best.as_ref().is_none_or(|best| error < best.error) {
            best = Some(Search { scales, ratio, error, plain });
        }
    }
    Ok(Search { plain, ..best.expect("there is at least one step") })
}

fn scales_of(channels: &Channels, ratio: f64) -> Vec<f32> {
    let raw: Vec<f64> = channels.magnitude.iter().map(|x| x.powf(ratio).max(1e-4)).collect();
    let (least, most) = raw.iter().fold((f64::INFINITY, 0.0f64), |(a, b), x| (a.min(*x), b.max(*x)));
    let centre = (least * most).sqrt();
    raw.iter().map(|x| (x / centre) as f32).collect()
}

/// Change of the outputs when the scaled weight is rounded.
fn error_with(
    matrix: &[f32],
    rows: usize,
    scheme: &Scheme,
    scales: &[f32],
    gram: &Gram,
) -> Result<f64, quant::Error> {
    let cols = scales.len();
    let scaled: Vec<f32> =
        matrix.chunks(cols).flat_map(|row| row.iter().zip(scales).map(|(x, s)| x * s)).collect();
    let mut rounded = encode(&scaled, rows, cols, scheme)?.decode();
    rounded.chunks_mut(cols).for_each(|row| row.iter_mut().zip(scales).for_each(|(x, s)| *x /= s));
    Ok(output_error(matrix, &rounded, rows, gram))
}
