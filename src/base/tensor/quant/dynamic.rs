//! The 8-bit dynamic map (Dettmers, arXiv 1511.04561), and scales held in it.
//!
//! A code names one of 256 values in -1..=1 whose exponent and fraction trade bits: seven decades, the finer the larger.

use serde::{Deserialize, Serialize};

/// Decades of the map.
const DECADES: i32 = 7;
/// Scales that share a second scale.
const BLOCK: usize = 256;

/// The values in rising order: of both signs, or zero and above.
pub fn dynamic_map(signed: bool) -> [f32; 256] {
    let mut values = vec![0.0, 1.0];
    for decade in 0..DECADES {
        let count = if signed { 1 << decade } else { 2 << decade };
        let power = 10f64.powi(decade - DECADES + 1);
        for at in 0..count {
            // Means of neighbours of an even walk from 0.1 to 1.
            let mean = 0.1 + 0.9 * (at as f64 + 0.5) / f64::from(count);
            values.push(power * mean);
            if signed {
                values.push(-power * mean);
            }
        }
    }
    values.sort_by(f64::total_cmp);
    // 2 + 2 * 127 values, or 2 + 254: exactly 256 either way.
    std::array::from_fn(|at| values[at] as f32)
}

/// Number of the entry of a rising table nearest to `x`, the lower of two that are equally near.
pub(super) fn nearest(table: &[f32; 256], x: f32) -> u8 {
    let above = table.partition_point(|&value| value < x).clamp(1, 255);
    let below = above - 1;
    (if x - table[below] <= table[above] - x { below } else { above }) as u8
}

/// Scales as 8-bit codes about their mean, a second scale for each 256 of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DoubleScales {
    /// A code of the signed map for each scale.
    pub codes: Vec<u8>,
    /// Largest distance from the mean in each block.
    pub scales: Vec<f32>,
    /// Mean of all scales.
    pub mean: f32,
}

impl DoubleScales {
    /// Codes of scales.
    pub fn encode(scales: &[f32]) -> DoubleScales {
        let table = dynamic_map(true);
        let mean = (scales.iter().map(|&s| f64::from(s)).sum::<f64>() / scales.len().max(1) as f64) as f32;
        let mut coded = DoubleScales { codes: vec![], scales: vec![], mean };
        for block in scales.chunks(BLOCK) {
            let largest = block.iter().fold(0.0f32, |largest, s| largest.max((s - mean).abs()));
            coded.scales.push(largest);
            let code = |s: &f32| nearest(&table, if largest > 0.0 { (s - mean) / largest } else { 0.0 });
            coded.codes.extend(block.iter().map(code));
        }
        coded
    }

    /// The scales that the codes stand for; none if there are not enough second scales.
    pub fn decode(&self) -> Option<Vec<f32>> {
        let table = dynamic_map(true);
        let scale = |(at, &code): (usize, &u8)| {
            Some(table[usize::from(code)] * self.scales.get(at / BLOCK)? + self.mean)
        };
        self.codes.iter().enumerate().map(scale).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::random::Stream;

    #[test]
    fn the_maps_rise_and_hold_zero_and_one() {
        for signed in [true, false] {
            let map = dynamic_map(signed);
            assert!(map.windows(2).all(|pair| pair[0] < pair[1]));
            assert!(map.contains(&0.0) && map[255] == 1.0);
            assert_eq!(map[0] < 0.0, signed);
        }
    }

    #[test]
    fn the_nearest_entry_is_found_everywhere() {
        let map = dynamic_map(true);
        let mut random = Stream::new(&[3]);
        let mut inputs: Vec<f32> = (0..2000).map(|_| (random.normal() * 0.3) as f32).collect();
        inputs.extend([-2.0, 2.0, 0.0, 1e-9]);
        inputs.extend(map);
        for x in inputs {
            let best = map.iter().map(|value| (x - value).abs()).fold(f32::INFINITY, f32::min);
            assert_eq!((x - map[usize::from(nearest(&map, x))]).abs(), best, "{x}");
        }
    }

    #[test]
    fn doubled_scales_come_back_within_a_step() {
        let mut random = Stream::new(&[4]);
        let scales: Vec<f32> = (0..700).map(|_| (1.0 + 0.2 * random.normal()) as f32).collect();
        let coded = DoubleScales::encode(&scales);
        assert_eq!((coded.codes.len(), coded.scales.len()), (700, 3));
        for (back, scale) in coded.decode().unwrap().iter().zip(&scales) {
            assert!((back - scale).abs() < 0.01, "{back} {scale}");
        }
        let equal = DoubleScales::encode(&[0.5; 5]);
        assert_eq!(equal.decode().unwrap(), [0.5; 5]);
        assert_eq!(DoubleScales { scales: vec![], ..equal }.decode(), None);
    }
}
