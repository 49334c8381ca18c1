//! Counter-based random numbers: the same on host and device, keyed instead of drawn.
//!
//! Philox 2x32 with 10 rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011). A number is a pure
//! function of (key, counter), so a resumed run sees the numbers of the run that never stopped.

const MULTIPLIER: u32 = 0xD256_D193;
const WEYL: u32 = 0x9E37_79B9;

/// Two random words for a key and a 64-bit counter.
pub fn philox(key: u32, counter: [u32; 2]) -> [u32; 2] {
    let [mut left, mut right] = counter;
    let mut key = key;
    for _ in 0..10 {
        let product = MULTIPLIER as u64 * left as u64;
        let (high, low) = ((product >> 32) as u32, product as u32);
        left = high ^ key ^ right;
        right = low;
        key = key.wrapping_add(WEYL);
    }
    [left, right]
}

/// Whether dropout keeps an element: `rng` is (key of the run, counter of the micro-step), `salt` numbers the operator.
///
/// Kept with probability `1 - threshold / 2^32`; the shader `random.wgsl` computes the same.
pub fn keep_element(rng: [u32; 2], salt: u32, element: u32, threshold: u32) -> bool {
    philox(rng[0].wrapping_add(salt.wrapping_mul(WEYL)), [element, rng[1]])[0] >= threshold
}

/// Mixes words into one key (rounds of philox over the running key).
pub fn key_of(words: &[u32]) -> u32 {
    words.iter().fold(0x5EED_1337, |key, &word| philox(key, [word, 0x6B69_6C6E])[0])
}

/// A stream over the counter for host-side use: initial weights, test data, shuffles.
#[derive(Clone, Debug)]
pub struct Stream {
    key: u32,
    counter: u64,
}

impl Stream {
    /// A stream of its own for each list of words, such as seed and purpose.
    pub fn new(words: &[u32]) -> Self {
        Stream { key: key_of(words), counter: 0 }
    }

    /// The next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        let [a, b] = philox(self.key, [self.counter as u32, (self.counter >> 32) as u32]);
        self.counter += 1;
        (a as u64) << 32 | b as u64
    }

    /// Uniform in `0.0..1.0`, 53 bits.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in `0..bound`; bound zero gives zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((self.next_u64() as u128 * bound as u128) >> 64) as u64
    }

    /// Standard normal by Box and Muller's transform.
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_matches_the_authors_known_answers() {
        // Random123, kat_vectors: philox2x32 10.
        assert_eq!(philox(0, [0, 0]), [0xff1d_ae59, 0x6cd1_0df2]);
        assert_eq!(philox(u32::MAX, [u32::MAX, u32::MAX]), [0x2c3f_628b, 0xab4f_d7ad]);
        assert_eq!(philox(0x1319_8a2e, [0x243f_6a88, 0x85a3_08d3]), [0xdd7c_e038, 0xf62a_4c12]);
    }

    #[test]
    fn normals_have_mean_zero_and_variance_one() {
        let mut stream = Stream::new(&[1]);
        let draws: Vec<f64> = (0..20_000).map(|_| stream.normal()).collect();
        let mean = draws.iter().sum::<f64>() / 2e4;
        let variance = draws.iter().map(|x| x * x).sum::<f64>() / 2e4 - mean * mean;
        assert!(mean.abs() < 0.03 && (variance - 1.0).abs() < 0.05, "{mean} {variance}");
    }
}
