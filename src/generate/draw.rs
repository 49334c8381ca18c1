//! How a token is chosen from scores: the best one, or one by chance.
//!
//! Chance is counted, not drawn from a stream: the number that decides over a token at a place of a text is a function of seed, place and
//! token alone. So a text does not depend on what is written beside it, nor on where it is resumed. The choice is that of the greatest
//! score plus noise of Gumbel's distribution, which has the probabilities of a softmax (Gumbel 1954) and needs no sum that rounding
//! could tip.

use super::processors::greatest;
use crate::ops::choose_token::noise;
use crate::tensor::random::key_of;

/// The key of all draws with a seed; `stream` tells several texts of one request apart.
pub fn key(seed: u64, stream: u32) -> u32 {
    key_of(&[seed as u32, (seed >> 32) as u32, 0x5a3, stream])
}

/// The token drawn for a place, by its probability.
pub fn draw(scores: &[f32], key: u32, place: u32) -> u32 {
    let noisy = |(token, &score): (usize, &f32)| match score > f32::NEG_INFINITY {
        true => score + noise(key, place, token as u32),
        false => f32::NEG_INFINITY,
    };
    greatest(&scores.iter().enumerate().map(noisy).collect::<Vec<_>>())
}

/// The `count` numbers drawn without putting back, the first drawn first.
pub fn draw_several(scores: &[f32], count: usize, key: u32, place: u32) -> Vec<usize> {
    let noisy: Vec<f32> =
        scores.iter().enumerate().map(|(token, &score)| score + noise(key, place, token as u32)).collect();
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| noisy[b].total_cmp(&noisy[a]).then(a.cmp(&b)));
    order.truncate(count);
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::processors::probabilities;

    #[test]
    fn tokens_come_as_often_as_their_probability_says_and_the_seed_brings_them_again() {
        let scores = [0.0f32, 0.7, 1.4, -3.0, f32::NEG_INFINITY];
        let key = key(7, 0);
        let drawn: Vec<u32> = (0..20_000).map(|place| draw(&scores, key, place)).collect();
        for (token, p) in probabilities(&scores).iter().enumerate() {
            let share = drawn.iter().filter(|&&t| t as usize == token).count() as f64 / 20_000.0;
            assert!((share - p).abs() < 0.012, "{token}: {share}, expected {p}");
        }
        assert_eq!(drawn, (0..20_000).map(|place| draw(&scores, key, place)).collect::<Vec<_>>());
        assert_ne!(
            drawn[..100],
            (0..100).map(|place| draw(&scores, super::key(7, 1), place)).collect::<Vec<_>>()
        );
        assert_eq!(draw_several(&scores, 2, key, 5)[0] as u32, drawn[5]);
    }
}
