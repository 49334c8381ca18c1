//! Bias correction (Nagel et al., arXiv 1906.04721): what rounding a weight adds to a layer's mean output is taken off its bias.

/// Mean change of each output when the weight `a` [rows, cols] becomes `b`, for inputs of these means.
pub(super) fn mean_change(a: &[f32], b: &[f32], means: &[f64]) -> Vec<f64> {
    let cols = means.len();
    let of_row = |(a, b): (&[f32], &[f32])| {
        let each = a.iter().zip(b).zip(means);
        each.map(|((a, b), mean)| (f64::from(*b) - f64::from(*a)) * mean).sum()
    };
    a.chunks(cols).zip(b.chunks(cols)).map(of_row).collect()
}
