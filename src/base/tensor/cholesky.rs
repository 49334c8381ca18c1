//! What GPTQ needs of a matrix of inner products: the upper factor of its inverse.

use rayon::prelude::*;

/// A matrix that has no such factor.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("their inner products are not positive definite at column {column}: {pivot}")]
pub struct NotPositive {
    /// Where it was found.
    pub column: usize,
    /// What should have been above zero.
    pub pivot: f64,
}

/// U of `H^-1 = U^T U`, upper triangular, for a symmetric positive definite H [n, n].
///
/// With J that reverses the order and `J H J = M M^T`, M lower, it is `U = J M^-1 J`: one factor and one inverse of a triangle
/// instead of three of each. In f64: H of a short text has a condition that f32 does not bear.
pub fn inverse_factor(h: &[f64], n: usize) -> Result<Vec<f64>, NotPositive> {
    let mut m: Vec<f64> = (0..n * n).map(|at| h[(n - 1 - at / n) * n + (n - 1 - at % n)]).collect();
    factor(&mut m, n)?;
    let inverse = invert_lower(&m, n);
    Ok((0..n * n).map(|at| inverse[(n - 1 - at / n) * n + (n - 1 - at % n)]).collect())
}

/// The lower factor of a symmetric matrix, in its place; what is above the diagonal becomes zero.
fn factor(m: &mut [f64], n: usize) -> Result<(), NotPositive> {
    for column in 0..n {
        let (above, rest) = m.split_at_mut(column * n + n);
        let row = &mut above[column * n..];
        let pivot = row[column] - row[..column].iter().map(|x| x * x).sum::<f64>();
        if pivot.is_nan() || pivot <= 0.0 {
            return Err(NotPositive { column: n - 1 - column, pivot });
        }
        let root = pivot.sqrt();
        row[column] = root;
        row[column + 1..].fill(0.0);
        let row = &*row;
        rest.par_chunks_mut(n).with_min_len(16).for_each(|below| {
            let dot: f64 = below[..column].iter().zip(&row[..column]).map(|(a, b)| a * b).sum();
            below[column] = (below[column] - dot) / root;
        });
    }
    Ok(())
}

/// The inverse of a lower triangle, column by column of its transpose.
fn invert_lower(m: &[f64], n: usize) -> Vec<f64> {
    let mut columns = vec![0.0; n * n];
    columns.par_chunks_mut(n).enumerate().for_each(|(column, x)| {
        x[column] = 1.0 / m[column * n + column];
        for row in column + 1..n {
            let dot: f64 =
                m[row * n + column..row * n + row].iter().zip(&x[column..row]).map(|(a, b)| a * b).sum();
            x[row] = -dot / m[row * n + row];
        }
    });
    (0..n * n).map(|at| columns[at % n * n + at / n]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::random::Stream;

    #[test]
    fn the_factor_gives_back_the_inverse() {
        for n in [1, 2, 7, 33] {
            let mut random = Stream::new(&[n as u32]);
            let x: Vec<f64> = (0..2 * n * n).map(|_| random.normal()).collect();
            let mut h = vec![0.0; n * n];
            for (i, j) in (0..n * n).map(|at| (at / n, at % n)) {
                h[i * n + j] = x.chunks(n).map(|row| row[i] * row[j]).sum();
            }
            let u = inverse_factor(&h, n).unwrap();
            // U^T U H must be one.
            for (i, j) in (0..n * n).map(|at| (at / n, at % n)) {
                assert!(i <= j || u[i * n + j] == 0.0);
                let inverse = |k: usize| (0..n).map(|l| u[l * n + i] * u[l * n + k]).sum::<f64>();
                let product: f64 = (0..n).map(|k| inverse(k) * h[k * n + j]).sum();
                assert!((product - f64::from(u8::from(i == j))).abs() < 1e-8, "{n} {i} {j}: {product}");
            }
        }
    }

    #[test]
    fn a_matrix_that_is_not_positive_definite_is_told() {
        assert_eq!(inverse_factor(&[1.0, 0.0, 0.0, -1.0], 2), Err(NotPositive { column: 1, pivot: -1.0 }));
        assert!(inverse_factor(&[f64::NAN], 1).is_err());
    }
}
