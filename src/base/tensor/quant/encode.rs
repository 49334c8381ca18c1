//! Round to nearest: the codes of a matrix by a scheme, each number for itself.

use super::{
    Coded, DoubleScales, Error, Grid, Origin, Result, Scale, Scheme, Share, first_not_finite,
    nearest_normal_float,
};
use rayon::prelude::*;

/// The least and the greatest of some numbers, and zero.
#[derive(Clone, Copy, Debug, Default)]
struct Range {
    least: f32,
    greatest: f32,
}

impl Range {
    fn of(numbers: &[f32]) -> Range {
        let widen =
            |range: Range, &x: &f32| Range { least: range.least.min(x), greatest: range.greatest.max(x) };
        numbers.iter().fold(Range::default(), widen)
    }
}

/// Scale and zero of some numbers.
#[derive(Clone, Copy, Debug)]
struct Step {
    scale: f32,
    zero: i32,
}

impl Scheme {
    /// Scale and zero for numbers of a range; a scale that is no normal number becomes zero, and so do its codes.
    fn step(&self, range: Range) -> Step {
        let usable = |scale: f32| if scale >= f32::MIN_POSITIVE { scale } else { 0.0 };
        match self.scale {
            Scale::Largest { divisor } => {
                Step { scale: usable(range.greatest.max(-range.least) / divisor), zero: 0 }
            }
            Scale::Span => {
                let scale = usable((range.greatest - range.least) / (self.highest - self.lowest) as f32);
                let steps = if scale > 0.0 { self.rounding.round(-range.least / scale) } else { 0.0 };
                Step { scale, zero: (self.lowest + steps as i32).clamp(self.lowest, self.highest) }
            }
        }
    }

    /// Scale and zero of numbers that share them; zero is [`Scheme::lowest`] or higher, and 0 where codes are symmetric.
    pub fn scale_of(&self, numbers: &[f32]) -> (f32, i32) {
        let step = self.step(Range::of(numbers));
        (step.scale, step.zero)
    }

    /// Code of one number under a scale and a zero.
    pub fn code(&self, x: f32, scale: f32, zero: i32) -> i8 {
        if scale == 0.0 {
            return if self.grid == Grid::NormalFloat { 7 } else { zero as i8 };
        }
        match self.grid {
            Grid::NormalFloat => nearest_normal_float(x / scale),
            Grid::Integers => {
                let code = self.rounding.round(x / scale) + zero as f32;
                code.clamp(self.lowest as f32, self.highest as f32) as i8
            }
        }
    }

    /// The number that a code stands for.
    pub fn value(&self, code: i8, scale: f32, zero: i32) -> f32 {
        match self.grid {
            Grid::NormalFloat => super::NORMAL_FLOAT[code as usize & 15] * scale,
            Grid::Integers => (i32::from(code) - zero) as f32 * scale,
        }
    }
}

/// Codes of a matrix [rows, cols], each number rounded for itself.
pub fn encode(matrix: &[f32], rows: usize, cols: usize, scheme: &Scheme) -> Result<Coded> {
    if scheme.double {
        return Ok(encode_double(matrix, rows, cols, scheme)?.0);
    }
    let (scales, zeros) = steps_of(matrix, rows, cols, scheme)?;
    Ok(round_to(matrix, [rows, cols, scheme.group(cols)], scheme, scales, zeros))
}

/// The same under scales in 8 bits, with these.
pub fn encode_double(
    matrix: &[f32],
    rows: usize,
    cols: usize,
    scheme: &Scheme,
) -> Result<(Coded, DoubleScales)> {
    let (scales, zeros) = steps_of(matrix, rows, cols, scheme)?;
    let double = DoubleScales::encode(&scales);
    let scales = double.decode().expect("made with a second scale for each block");
    Ok((round_to(matrix, [rows, cols, scheme.group(cols)], scheme, scales, zeros), double))
}

/// Scales and zeros, one for each group of each row.
fn steps_of(matrix: &[f32], rows: usize, cols: usize, scheme: &Scheme) -> Result<(Vec<f32>, Vec<i32>)> {
    scheme.check()?;
    expect_finite(matrix, rows, cols)?;
    let group = scheme.group(cols);
    let steps: Vec<Step> = match scheme.share {
        Share::Tensor => vec![scheme.step(Range::of(matrix)); rows],
        _ => matrix
            .par_chunks(cols.max(1))
            .flat_map_iter(|row| row.chunks(group).map(|numbers| scheme.step(Range::of(numbers))))
            .collect(),
    };
    Ok(steps.into_iter().map(|step| (step.scale, step.zero)).unzip())
}

/// Codes of a finite matrix [rows, cols] in groups, under scales and zeros that are already there, one for each group.
pub fn round_to(
    matrix: &[f32],
    [rows, cols, group]: [usize; 3],
    scheme: &Scheme,
    scales: Vec<f32>,
    zeros: Vec<i32>,
) -> Coded {
    let groups = cols.div_ceil(group);
    let mut codes = vec![0; matrix.len()];
    let by_row = codes.par_chunks_mut(cols.max(1)).zip(matrix.par_chunks(cols.max(1))).enumerate();
    by_row.for_each(|(row, (codes, numbers))| {
        for (at, (codes, numbers)) in codes.chunks_mut(group).zip(numbers.chunks(group)).enumerate() {
            let number = row * groups + at;
            let each = codes.iter_mut().zip(numbers);
            each.for_each(|(code, &x)| *code = scheme.code(x, scales[number], zeros[number]));
        }
    });
    let origin = if scheme.is_symmetric() { Origin::Centred } else { Origin::Zeros(zeros) };
    Coded {
        rows,
        cols,
        group,
        grid: scheme.grid,
        lowest: scheme.lowest,
        highest: scheme.highest,
        codes,
        scales,
        origin,
    }
}

/// Refuses a matrix of another size, or with elements that are no finite numbers.
fn expect_finite(matrix: &[f32], rows: usize, cols: usize) -> Result<()> {
    let expected = rows * cols;
    if matrix.len() != expected {
        return Err(Error::Count { rows, cols, expected, got: matrix.len() });
    }
    match first_not_finite(matrix) {
        None => Ok(()),
        Some(at) => Err(Error::NotFinite { row: at / cols, column: at % cols, got: matrix[at] }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::random::Stream;

    fn normal(count: usize) -> Vec<f32> {
        let mut random = Stream::new(&[7]);
        (0..count).map(|_| random.normal() as f32).collect()
    }

    /// Schemes of every kind that the golden cases do not hold.
    fn schemes() -> Vec<Scheme> {
        let mut all = vec![Scheme::normal_float(32, false), Scheme::normal_float(64, true)];
        for share in [Share::Tensor, Share::Row, Share::Group(32)] {
            for bits in 2..=8 {
                all.extend([
                    Scheme::symmetric(bits, share),
                    Scheme::wide(bits, share),
                    Scheme::asymmetric(bits, share),
                ]);
            }
        }
        all
    }

    #[test]
    fn no_number_is_further_from_its_code_than_half_a_step_unless_the_range_ends() {
        let x = normal(3 * 64);
        for scheme in schemes().into_iter().filter(|s| s.grid == Grid::Integers) {
            let coded = encode(&x, 3, 64, &scheme).unwrap();
            assert!(coded.is_sound(), "{scheme:?}");
            for (at, (back, x)) in coded.decode().iter().zip(&x).enumerate() {
                let scale = coded.scales[at / 64 * coded.groups() + at % 64 / coded.group];
                // The wide rule leaves half a step at the upper end; a zero that is rounded shifts the range by as much.
                let room = if matches!(scheme.scale, Scale::Largest { divisor } if divisor.fract() == 0.0) {
                    0.5
                } else {
                    1.0
                };
                assert!((back - x).abs() <= room * scale * 1.0001, "{scheme:?}: {x} {back} {scale}");
            }
        }
    }

    #[test]
    fn codes_of_decoded_numbers_are_the_codes() {
        let x = normal(4 * 64);
        for scheme in schemes().into_iter().filter(|s| !s.double) {
            let coded = encode(&x, 4, 64, &scheme).unwrap();
            let zeros = match &coded.origin {
                Origin::Zeros(zeros) => zeros.clone(),
                _ => vec![0; coded.scales.len()],
            };
            let size = [4, 64, coded.group];
            let again = round_to(&coded.decode(), size, &scheme, coded.scales.clone(), zeros);
            assert_eq!(again, coded, "{scheme:?}");
        }
    }

    #[test]
    fn zeros_stay_zero_and_what_is_no_number_is_named() {
        for scheme in schemes() {
            assert_eq!(encode(&[0.0; 64], 1, 64, &scheme).unwrap().decode(), [0.0; 64], "{scheme:?}");
            let mut x = normal(128);
            x[64 + 5] = f32::NAN;
            let error = encode(&x, 2, 64, &scheme).unwrap_err();
            assert!(matches!(error, Error::NotFinite { row: 1, column: 5, .. }));
        }
    }

    #[test]
    fn a_last_group_may_be_shorter_and_other_counts_are_refused() {
        let scheme = Scheme::symmetric(4, Share::Group(32));
        let coded = encode(&normal(48), 1, 48, &scheme).unwrap();
        assert_eq!((coded.scales.len(), coded.groups(), coded.is_sound()), (2, 2, true));
        assert!(matches!(encode(&[0.0; 47], 1, 48, &scheme), Err(Error::Count { .. })));
    }
}
