//! Loops over vectors that others put together: here since this package is compiled with optimisation in every build.

/// Sums kept side by side, so that additions need not wait for each other.
const SUMS: usize = 8;

/// Sum of the products of two vectors; the order of its terms is the same each time.
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<SUMS>(), b.as_chunks::<SUMS>());
    let mut sums = [0.0; SUMS];
    for (a, b) in a.iter().zip(b) {
        for i in 0..SUMS {
            sums[i] += a[i] * b[i];
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f64>() + rest
}

/// y += scale x.
pub fn add_scaled(y: &mut [f32], scale: f32, x: &[f32]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y += scale * x);
}

/// y += scale x, in f64.
pub fn add_scaled_wide(y: &mut [f64], scale: f64, x: &[f32]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y += scale * f64::from(*x));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_and_products_are_those_on_paper() {
        assert_eq!(dot(&[1.0, 2.0, 3.0], &[4.0, 5.0, 6.0]), 32.0);
        let [a, b] = [1.0, 0.5].map(|step| (0..19).map(|i| step * f64::from(i)).collect::<Vec<_>>());
        assert_eq!(dot(&a, &b), 0.5 * 2109.0);
        let mut y = [1.0f32, 2.0];
        add_scaled(&mut y, -2.0, &[3.0, 0.5]);
        assert_eq!(y, [-5.0, 1.0]);
        let mut y = [1.0f64, 2.0];
        add_scaled_wide(&mut y, 0.5, &[3.0, 0.5]);
        assert_eq!(y, [2.5, 2.25]);
    }
}
