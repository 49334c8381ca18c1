//! Texts predicted in windows that overlap: each token once, behind as many as fit.

use super::subject::Subject;
use super::{Error, Measured, Outcome, Result, Task};
use std::ops::Range;

/// A window of tokens, and the first of them that is scored there.
pub struct Window {
    /// Tokens that are seen.
    pub tokens: Range<usize>,
    /// Scored are these and those behind them.
    pub from: usize,
}

/// Windows over so many tokens, as transformers' documentation cuts them: each scores what those before did not, and never its own
/// first token, which nothing stands before.
pub fn windows(count: usize, window: usize, stride: usize) -> Vec<Window> {
    let (mut all, mut end) = (vec![], 0);
    for begin in (0..count).step_by(stride) {
        let before = end;
        end = count.min(begin + window);
        all.push(Window { tokens: begin..end, from: before.max(begin + 1) });
        if end == count {
            break;
        }
    }
    all
}

/// Of each window minus the logarithms of what it scores, and the numbers of these tokens.
pub fn sliding(
    subject: &mut Subject,
    tokens: &[u32],
    window: usize,
    stride: usize,
) -> Result<Vec<(f64, Range<usize>)>> {
    let windows = windows(tokens.len(), window, stride);
    let texts: Vec<Vec<u32>> = windows.iter().map(|window| tokens[window.tokens.clone()].to_vec()).collect();
    let logs = subject.logs(&texts)?;
    let of = |(window, logs): (&Window, &Vec<f64>)| {
        let Range { start, end } = window.tokens;
        let from = window.from.min(end);
        // The first logarithm is that of the second token.
        let scored = &logs[(from - start).saturating_sub(1).min(logs.len())..];
        (-scored.iter().sum::<f64>(), from..end)
    };
    Ok(windows.iter().zip(&logs).map(of).filter(|(_, scored)| !scored.is_empty()).collect())
}

/// perplexity: loss, perplexity and bits per byte. A segment is a row or, of a single text, a window.
pub fn measure(task: &Task, subject: &mut Subject) -> Result<Outcome> {
    // A window of as many tokens as the context has scores all but the first of them.
    let window = task.file.window.unwrap_or(subject.context());
    if window > subject.context() {
        let (expected, got) =
            (format!("at most the model's context of {}", subject.context()), window.to_string());
        return Err(Error::Setting { setting: "window", expected, got });
    }
    let stride = task.file.stride.unwrap_or(window).min(window);
    let is_one = task.examples.rows.len() == 1;
    let (mut segments, mut same) = (vec![], format!("{} rows", task.examples.rows.len()));
    for row in &task.examples.rows {
        let opening = subject.tokenizer()?.opening()?;
        let (own, ranges) = subject.tokenizer()?.encode_with_ranges(&row.prompt)?;
        let tokens = [&opening[..], &own].concat();
        let found = sliding(subject, &tokens, window, stride)?;
        let bytes = |scored: &Range<usize>| {
            let own = scored.start.saturating_sub(opening.len())..scored.end.saturating_sub(opening.len());
            ranges[own].iter().map(|range| range.len()).sum::<usize>()
        };
        let parts: Vec<Vec<f64>> =
            found.iter().map(|(sum, scored)| vec![*sum, scored.len() as f64, bytes(scored) as f64]).collect();
        if is_one {
            // Windows are the same where all tokens are.
            same = format!(
                "{:08x} in windows of {window} by {stride}",
                crc32fast::hash(bytemuck::cast_slice(&tokens))
            );
            segments = parts;
        } else if !parts.is_empty() {
            segments.push(crate::metrics::sums(&parts));
        } else {
            segments.push(vec![0.0; 3]);
        }
    }
    if segments.iter().all(|segment| segment[1] == 0.0) {
        let reason = "there is nothing to predict: every text is of one token or none".to_string();
        return Err(Error::Task { path: task.file.path.clone(), reason });
    }
    let measured = vec![
        Measured::new("loss", segments.clone(), |sums| sums[0] / sums[1]).error(),
        Measured::new("perplexity", segments.clone(), |sums| (sums[0] / sums[1]).exp()).error(),
        Measured::new("bits_per_byte", segments, |sums| sums[0] / sums[2] / std::f64::consts::LN_2).error(),
    ];
    Ok(Outcome { measured, segments: same, told: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_is_scored_once_where_windows_overlap() {
        // Tokens scored of 150, as transformers' loop has it.
        for (window, stride, scored) in
            [(48, 48, 146), (48, 16, 149), (32, 8, 149), (200, 200, 149), (2, 1, 149)]
        {
            let all = windows(150, window, stride);
            let count: usize = all.iter().map(|window| window.tokens.end - window.from).sum();
            assert_eq!(count, scored, "{window} by {stride}");
            let mut ends = all.iter().map(|window| window.tokens.end);
            assert!(ends.all(|end| end <= 150) && all.iter().all(|one| one.tokens.len() <= window));
        }
        assert!(windows(0, 4, 2).is_empty());
        assert_eq!(windows(1, 4, 2)[0].from, 1);
    }
}
