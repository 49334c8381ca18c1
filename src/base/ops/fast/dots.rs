//! Products of one row with several, which are summed side by side.

/// Sums kept of each product.
const SUMS: usize = 8;

/// `a . b[i]` for `N` rows of B that begin `stride` apart. What it is inlined into chooses the vectors.
#[inline(always)]
pub(crate) fn dots<const N: usize>(a: &[f32], b: &[f32], stride: usize) -> [f32; N] {
    let (parts, tail) = a.as_chunks::<SUMS>();
    let row = |i: usize| b[i * stride..][..a.len()].as_chunks::<SUMS>();
    // Plain loops: through a closure the lengths would be lost, and sums that it borrowed be kept in memory.
    let mut rows: [&[[f32; SUMS]]; N] = [&[]; N];
    for (i, part) in rows.iter_mut().enumerate() {
        *part = &row(i).0[..parts.len()];
    }
    let mut sums = [[0.0f32; SUMS]; N];
    for (p, a) in parts.iter().enumerate() {
        for r in 0..N {
            for i in 0..SUMS {
                sums[r][i] += a[i] * rows[r][p][i];
            }
        }
    }
    // Turned, so that all rows' sums are added up at once.
    let mut turned = [[0.0f32; N]; SUMS];
    for (r, sums) in sums.iter().enumerate() {
        for i in 0..SUMS {
            turned[i][r] = sums[i];
        }
    }
    let mut half = SUMS / 2;
    while half > 0 {
        let (low, high) = turned.split_at_mut(half);
        for (low, high) in low.iter_mut().zip(high) {
            low.iter_mut().zip(high).for_each(|(low, high)| *low += *high);
        }
        half /= 2;
    }
    let mut products = turned[0];
    if !tail.is_empty() {
        for (r, product) in products.iter_mut().enumerate() {
            for (a, b) in tail.iter().zip(row(r).1) {
                *product += a * b;
            }
        }
    }
    products
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_every_length_give_the_plain_sums() {
        for length in [0, 1, 7, 8, 9, 32, 67] {
            let stride = length + 3;
            let a: Vec<f32> = (0..length).map(|i| (i % 5) as f32 - 2.0).collect();
            let b: Vec<f32> = (0..8 * stride).map(|i| (i % 7) as f32 - 3.0).collect();
            let plain = |r: usize| a.iter().zip(&b[r * stride..]).map(|(a, b)| a * b).sum::<f32>();
            assert_eq!(dots::<8>(&a, &b, stride), std::array::from_fn(plain), "{length}");
            assert_eq!(dots::<1>(&a, &b, stride), [plain(0)], "{length}");
        }
    }
}
