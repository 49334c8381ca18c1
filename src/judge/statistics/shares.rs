//! Shares of a count, and whether two counts differ by more than chance.

use super::Z;

/// Bounds of a share by Wilson's score interval (Wilson 1927, "Probable inference, the law of succession, and statistical inference",
/// equation 2 of Brown, Cai, DasGupta 2001):
///
/// `(p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)` with `p = successes / n`.
///
/// Successes may be halves, for ties; as a half varies less than a win or a loss, the bounds are then wider than need be. None of nothing.
pub fn wilson(successes: f64, count: f64) -> Option<[f64; 2]> {
    if count <= 0.0 {
        return None;
    }
    let (share, square) = (successes / count, Z * Z);
    let middle = share + square / (2.0 * count);
    let reach = Z * (share * (1.0 - share) / count + square / (4.0 * count * count)).sqrt();
    let over = 1.0 + square / count;
    Some([((middle - reach) / over).max(0.0), ((middle + reach) / over).min(1.0)])
}

/// How often a fair coin gives counts as unequal as these, in either direction (the exact sign test; ties are left out beforehand).
pub fn sign_test(a: u64, b: u64) -> f64 {
    let (count, less) = (a + b, a.min(b));
    // The logarithm of `count choose k` over two to the count, from one k to the next.
    let mut log = -(count as f64) * std::f64::consts::LN_2;
    let mut tail = log.exp();
    for k in 1..=less {
        log += ((count - k + 1) as f64 / k as f64).ln();
        tail += log.exp();
    }
    (2.0 * tail).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn near(got: f64, expected: f64) {
        assert!((got - expected).abs() < 1e-9, "{got}, expected {expected}");
    }

    #[test]
    fn wilsons_bounds_are_those_of_statsmodels() {
        // statsmodels 0.15, proportion_confint(count, nobs, method="wilson").
        for (successes, count, low, high) in [
            (7.0, 10.0, 0.396_778_147_461_145, 0.892_208_732_593_699),
            (0.0, 5.0, 0.0, 0.434_482_464_783_175),
            (12.5, 20.0, 0.409_489_566_151_427, 0.800_229_144_335_369),
            (5.0, 5.0, 0.565_517_535_216_825, 1.0),
            (480.0, 1000.0, 0.449_170_794_996_941, 0.510_982_275_342_481),
        ] {
            let [got_low, got_high] = wilson(successes, count).unwrap();
            near(got_low, low);
            near(got_high, high);
        }
        assert_eq!(wilson(0.0, 0.0), None);
    }

    #[test]
    fn the_sign_test_is_scipys_exact_binomial_test() {
        // scipy 1.17, binomtest(a, a + b, 0.5).pvalue.
        for (a, b, expected) in
            [(7, 3, 0.34375), (0, 6, 0.03125), (5, 5, 1.0), (130, 90, 0.008_405_451_752_682), (1, 0, 1.0)]
        {
            near(sign_test(a, b), expected);
        }
    }
}
