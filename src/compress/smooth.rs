//! SmoothQuant (Xiao et al., arXiv 2211.10438): large activations are made smaller and the weights they meet larger, so that both can
//! be rounded to 8 bits.
//!
//! For input j of the layers behind a norm: `s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)`; X is divided, W multiplied.

/// The scales of inputs, from the largest magnitudes of each input and of what meets it in the weights.
pub fn smooth(of_inputs: &[f32], of_weights: &[f32], alpha: f32) -> Vec<f32> {
    let scale = |(&x, &w): (&f32, &f32)| {
        let s = x.powf(alpha) / w.powf(1.0 - alpha);
        // An input that is always zero, or that nothing meets, stays as it is.
        if s.is_finite() && s > 1e-5 { s } else { 1.0 }
    };
    of_inputs.iter().zip(of_weights).map(scale).collect()
}

/// Largest magnitude of what meets each input in a matrix [rows, cols].
pub(super) fn largest_by_column(matrix: &[f32], cols: usize) -> Vec<f32> {
    let mut largest = vec![0.0f32; cols];
    for row in matrix.chunks(cols) {
        largest.iter_mut().zip(row).for_each(|(most, x)| *most = most.max(x.abs()));
    }
    largest
}
