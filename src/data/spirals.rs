//! A small classification problem: points on spiral arms that wind around each other, one arm a class.
//!
//! Point `i` of arm `k` stands at radius `r = (i + 1) / n` and angle `turns * 2 pi * r + 2 pi * k / arms`, moved by normal
//! noise. No straight line separates the arms, so a single layer fails where an MLP succeeds.

use crate::tensor::Tensor;
use crate::tensor::random::Stream;
use std::f64::consts::TAU;

/// How the arms lie.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spirals {
    /// Arms, which are the classes.
    pub arms: usize,
    /// Points on each arm.
    pub points: usize,
    /// How often an arm winds around the centre.
    pub turns: f64,
    /// Standard deviation of the noise on both coordinates.
    pub noise: f64,
}

impl Default for Spirals {
    fn default() -> Self {
        Spirals { arms: 2, points: 100, turns: 1.0, noise: 0.02 }
    }
}

impl Spirals {
    /// Points `[N, 2]` and their classes `I32 [N]`, the arms taking turns, so that any run of points holds all classes.
    pub fn draw(&self, seed: u64) -> (Tensor, Tensor) {
        let mut stream = Stream::new(&[seed as u32, (seed >> 32) as u32, 0x5350_4952]);
        let count = self.arms * self.points;
        let (mut places, mut classes) = (Vec::with_capacity(2 * count), Vec::with_capacity(count));
        for number in 0..count {
            let (point, arm) = (number / self.arms, number % self.arms);
            let radius = (point + 1) as f64 / self.points as f64;
            let angle = TAU * (self.turns * radius + arm as f64 / self.arms as f64);
            for coordinate in [radius * angle.cos(), radius * angle.sin()] {
                places.push((coordinate + self.noise * stream.normal()) as f32);
            }
            classes.push(arm as i32);
        }
        (Tensor::f32([count, 2], places), Tensor::i32([count], classes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_arms_without_noise_mirror_each_other_through_the_centre() {
        let (places, classes) = Spirals { points: 7, noise: 0.0, ..Spirals::default() }.draw(1);
        assert_eq!(classes.as_i32()[..4], [0, 1, 0, 1]);
        for pair in places.real::<f32>().chunks(4) {
            assert!((pair[0] + pair[2]).abs() < 1e-6 && (pair[1] + pair[3]).abs() < 1e-6, "{pair:?}");
        }
    }

    #[test]
    fn the_seed_decides_the_points() {
        let spirals = Spirals::default();
        assert_eq!(spirals.draw(5), spirals.draw(5));
        assert_ne!(spirals.draw(5), spirals.draw(6));
        assert_ne!(spirals.draw(5), spirals.draw(5 | 1 << 32));
    }
}
