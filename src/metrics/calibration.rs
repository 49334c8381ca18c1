//! Whether a model is right as often as it says.

/// Answers of about the same confidence.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Bin {
    /// Confidences above this ..
    pub above: f64,
    /// .. and up to this.
    pub up_to: f64,
    /// How many answers.
    pub count: usize,
    /// Their mean confidence.
    pub confidence: f64,
    /// Share of them that is right.
    pub accuracy: f64,
}

/// Answers by confidence in `count` bins of one width, each `(confidence, right)`.
pub fn reliability(answers: &[(f64, bool)], count: usize) -> Vec<Bin> {
    let count = count.max(1);
    let bound = |at: usize| at as f64 / count as f64;
    let new = |at: usize| Bin { above: bound(at), up_to: bound(at + 1), ..Bin::default() };
    let mut bins: Vec<Bin> = (0..count).map(new).collect();
    for &(confidence, right) in answers {
        let at = bins.iter().position(|bin| confidence <= bin.up_to).unwrap_or(count - 1);
        let bin = &mut bins[at];
        bin.count += 1;
        bin.confidence += confidence;
        bin.accuracy += f64::from(u8::from(right));
    }
    for bin in bins.iter_mut().filter(|bin| bin.count > 0) {
        bin.confidence /= bin.count as f64;
        bin.accuracy /= bin.count as f64;
    }
    bins
}

/// Expected calibration error: the distance of confidence and accuracy, as a mean of all answers (Guo et al. 2017).
pub fn expected_error(bins: &[Bin]) -> f64 {
    let all: usize = bins.iter().map(|bin| bin.count).sum();
    let apart = |bin: &Bin| bin.count as f64 * (bin.accuracy - bin.confidence).abs();
    bins.iter().map(apart).sum::<f64>() / all.max(1) as f64
}

/// Brier's score: the squared distance of shares from what was right, summed over classes, as a mean of answers.
pub fn brier(answers: &[(Vec<f64>, usize)]) -> f64 {
    let of = |(shares, right): &(Vec<f64>, usize)| {
        let apart = |(class, share): (usize, &f64)| (share - f64::from(u8::from(class == *right))).powi(2);
        shares.iter().enumerate().map(apart).sum::<f64>()
    };
    answers.iter().map(of).sum::<f64>() / answers.len().max(1) as f64
}
