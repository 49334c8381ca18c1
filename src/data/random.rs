//! Counter-based random numbers and permutations without arrays.
//!
//! Draw `n` of a stream is `mix(key + n * step)`: nothing but integers, so every platform agrees, and any
//! draw can be had without making the ones before it.

/// Odd constant near 2^64 divided by the golden ratio: successive multiples spread over all residues.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// Finaliser of SplitMix64: a bijection of 64-bit words in which every input bit reaches every output bit.
pub fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// One stream of random words, fixed by a seed and the number of the stream.
#[derive(Clone, Debug)]
pub struct Random {
    key: u64,
    drawn: u64,
}

impl Random {
    /// Stream `stream` of seed `seed`, at its first draw.
    pub fn new(seed: u64, stream: u64) -> Random {
        let key = mix(mix(seed.wrapping_add(STEP)) ^ stream.wrapping_mul(STEP));
        Random { key, drawn: 0 }
    }

    /// The next word, uniform over all 64-bit words.
    pub fn word(&mut self) -> u64 {
        self.drawn += 1;
        mix(self.key.wrapping_add(self.drawn.wrapping_mul(STEP)))
    }

    /// A number in `0..bound`. The bias is below `bound / 2^64`. `bound` must not be zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        debug_assert!(bound > 0);
        ((u128::from(self.word()) * u128::from(bound)) >> 64) as u64
    }

    /// Uniform in `0.0..1.0`, 53 bits.
    pub fn share(&mut self) -> f64 {
        (self.word() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// A pseudo-random permutation of `0..count`, computed entry by entry.
///
/// A balanced Feistel network permutes the next power of four; an image outside `0..count` is permuted again
/// until it falls inside (under four rounds of that on average), which is a permutation of `0..count`.
#[derive(Clone, Debug)]
pub struct Permutation {
    count: u64,
    half_bits: u32,
    keys: [u64; 6],
}

impl Permutation {
    /// The permutation of `0..count` that `random` draws.
    pub fn new(count: u64, random: &mut Random) -> Permutation {
        let bits = u64::BITS - count.saturating_sub(1).leading_zeros();
        let half_bits = bits.div_ceil(2).max(1);
        let keys = std::array::from_fn(|_| random.word());
        Permutation { count, half_bits, keys }
    }

    /// Where `index` goes. `index` must be below the count.
    pub fn at(&self, index: u64) -> u64 {
        assert!(index < self.count, "index {index} of a permutation of {}", self.count);
        let mut image = self.scramble(index);
        while image >= self.count {
            image = self.scramble(image);
        }
        image
    }

    fn scramble(&self, word: u64) -> u64 {
        let mask = (1 << self.half_bits) - 1;
        let (mut left, mut right) = (word >> self.half_bits, word & mask);
        for key in self.keys {
            (left, right) = (right, left ^ (mix(right ^ key) & mask));
        }
        left << self.half_bits | right
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permutation_reaches_every_number_exactly_once() {
        for count in [1, 2, 3, 4, 5, 7, 16, 17, 63, 64, 65, 1000, 4099] {
            let permutation = Permutation::new(count, &mut Random::new(11, count));
            let mut images: Vec<u64> = (0..count).map(|index| permutation.at(index)).collect();
            images.sort_unstable();
            assert_eq!(images, (0..count).collect::<Vec<_>>(), "count {count}");
        }
    }

    #[test]
    fn permutations_of_two_streams_differ_and_neither_is_the_identity() {
        let images = |stream| {
            let permutation = Permutation::new(500, &mut Random::new(1, stream));
            (0..500).map(|index| permutation.at(index)).collect::<Vec<_>>()
        };
        assert_ne!(images(0), images(1));
        assert_ne!(images(0), (0..500).collect::<Vec<_>>());
    }

    #[test]
    fn draws_below_a_bound_are_even_within_five_standard_errors() {
        let mut random = Random::new(3, 0);
        let (bound, draws) = (7_u64, 70_000);
        let mut counts = [0_f64; 7];
        for _ in 0..draws {
            counts[random.below(bound) as usize] += 1.0;
        }
        let share = 1.0 / bound as f64;
        let expected = draws as f64 * share;
        let deviation = (expected * (1.0 - share)).sqrt();
        assert!(counts.iter().all(|count| (count - expected).abs() < 5.0 * deviation), "{counts:?}");
    }

    #[test]
    fn the_finaliser_is_the_published_splitmix64() {
        // First three outputs of SplitMix64 from state 1234567, as in Rosetta Code's "Pseudo-random numbers/Splitmix64".
        let outputs: Vec<u64> =
            (1..=3).map(|n: u64| mix(1_234_567_u64.wrapping_add(n.wrapping_mul(STEP)))).collect();
        assert_eq!(
            outputs,
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]
        );
    }
}
