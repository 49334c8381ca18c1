//! The two precisions of the host: f32 to train with, f64 to referee with.

use super::Data;
use std::ops::{Add, AddAssign, Div, Mul, MulAssign, Neg, Sub, SubAssign};

/// f32 or f64. References are written once over this trait.
pub trait Real:
    Copy
    + Send
    + Sync
    + Default
    + PartialOrd
    + std::fmt::Debug
    + std::iter::Sum
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + SubAssign
    + MulAssign
    + 'static
{
    /// Rounds from f64.
    fn of(x: f64) -> Self;
    /// Widens to f64.
    fn wide(self) -> f64;
    /// e to the power of self.
    fn exp(self) -> Self;
    /// Natural logarithm.
    fn ln(self) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;
    /// Hyperbolic tangent.
    fn tanh(self) -> Self;
    /// Error function.
    fn erf(self) -> Self;
    /// Larger of two; NaN if either is NaN.
    fn maximum(self, other: Self) -> Self {
        if self > other || self.wide().is_nan() { self } else { other }
    }
    /// The elements of `data` in this precision.
    fn slice(data: &Data) -> &[Self];
    /// The elements of `data` in this precision, to be written.
    fn slice_mut(data: &mut Data) -> &mut [Self];
    /// Wraps elements.
    fn wrap(elements: Vec<Self>) -> Data;
}

macro_rules! real {
    ($type:ident, $variant:ident) => {
        impl Real for $type {
            fn of(x: f64) -> Self {
                x as $type
            }
            fn wide(self) -> f64 {
                self as f64
            }
            fn exp(self) -> Self {
                self.exp()
            }
            fn ln(self) -> Self {
                self.ln()
            }
            fn sqrt(self) -> Self {
                self.sqrt()
            }
            fn tanh(self) -> Self {
                self.tanh()
            }
            fn erf(self) -> Self {
                erf(self as f64) as $type
            }
            fn slice(data: &Data) -> &[Self] {
                match data {
                    Data::$variant(elements) => elements,
                    other => panic!("expected {} elements, found {}", stringify!($type), other.dtype()),
                }
            }
            fn slice_mut(data: &mut Data) -> &mut [Self] {
                match data {
                    Data::$variant(elements) => elements,
                    other => panic!("expected {} elements, found {}", stringify!($type), other.dtype()),
                }
            }
            fn wrap(elements: Vec<Self>) -> Data {
                Data::$variant(elements)
            }
        }
    };
}
real!(f32, F32);
real!(f64, F64);

/// Error function to f64 precision: Maclaurin series near zero, continued fraction of erfc beyond
/// (Abramowitz and Stegun 7.1.5 and 7.1.14).
fn erf(x: f64) -> f64 {
    if x.is_nan() {
        return x;
    }
    let a = x.abs();
    if a >= 6.0 {
        return x.signum();
    }
    let scale = std::f64::consts::FRAC_2_SQRT_PI;
    if a < 2.5 {
        let (mut term, mut sum, mut n) = (x, x, 0.0);
        while term.abs() > 1e-17 * sum.abs() {
            n += 1.0;
            term *= -x * x / n;
            sum += term / (2.0 * n + 1.0);
        }
        return scale * sum;
    }
    let tail = (1..=60).rev().fold(0.0, |below, k| (k as f64 / 2.0) / (a + below));
    x.signum() * (1.0 - (-a * a).exp() / (a + tail) * scale / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_matches_published_values() {
        // Abramowitz and Stegun, table 7.1, and the symmetric point.
        for (x, y) in [
            (0.0, 0.0),
            (0.5, 0.5204998778130465),
            (1.0, 0.8427007929497149),
            (2.0, 0.9953222650189527),
            (3.0, 0.9999779095030014),
            (-1.0, -0.8427007929497149),
        ] {
            assert!((erf(x) - y).abs() < 1e-15, "{x}: {} {y}", erf(x));
        }
    }
}
