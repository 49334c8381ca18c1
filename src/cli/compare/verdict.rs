//! What wins here and why, in plain words, from the figures alone.

use super::speed::Pace;
use crate::cli::bench::short;

/// Growth of perplexity up to which a scheme counts as fit for use.
const FIT: f64 = 1.02;
/// Share of a roof from which on it is what a pass waits for.
const BOUND: f64 = 0.5;
/// Share of a roof below which a pass waits for something else.
const NEAR: f64 = 0.25;

/// A scheme's figures, as far as they decide.
#[derive(Clone, Debug)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// Bits of a quantised weight.
    pub bits: f64,
    /// Perplexity over the reference's.
    pub ratio: f64,
    /// Activations are codes as well, so that products are of whole numbers.
    pub whole: bool,
    /// Reading.
    pub prefill: Pace,
    /// Continuing.
    pub decode: Pace,
}

/// Where the figures were taken.
#[derive(Clone, Debug)]
pub struct Place {
    /// The device.
    pub name: String,
    /// It is a processor, or a driver that runs on one.
    pub is_cpu: bool,
    /// The product of packed bytes: `native`, `assembled`, `unknown`, or `host`.
    pub dot: &'static str,
}

impl Place {
    fn words(&self) -> String {
        match (self.is_cpu, self.dot) {
            (_, "host") => "On the host's processor".to_string(),
            (true, _) => format!("On {}, a driver that runs on the CPU", self.name),
            (false, _) => format!("On {}", self.name),
        }
    }

    /// What is known of the product of packed bytes.
    pub fn dot_words(&self) -> &'static str {
        match self.dot {
            "native" => "the driver says that the dot product of packed bytes is an instruction here",
            "assembled" => {
                "the dot product of packed bytes is no instruction here: it is put together from others (a polyfill)"
            }
            "host" => "whole numbers are multiplied by the processor's own vector instructions",
            _ => "nobody tells whether the dot product of packed bytes is an instruction here",
        }
    }
}

/// What a pass waits for.
pub fn bound(pace: &Pace) -> String {
    let (copy, multiply) = (100.0 * pace.of_copy, 100.0 * pace.of_multiply);
    if pace.of_copy.max(pace.of_multiply) < NEAR {
        format!(
            "bound by neither memory nor arithmetic ({copy:.0} % of the copy roof, {multiply:.0} % of the multiply roof), but by \
             what each dispatch costs and by kernels that leave both idle"
        )
    } else if pace.of_copy.max(pace.of_multiply) < BOUND {
        let nearer = if pace.of_copy >= pace.of_multiply { "memory" } else { "arithmetic" };
        format!(
            "nearer to being bound by {nearer} than by the other ({copy:.0} % of the copy roof, {multiply:.0} % of the multiply roof)"
        )
    } else if pace.of_copy >= pace.of_multiply {
        format!("memory-bound ({copy:.0} % of the copy roof)")
    } else {
        format!("compute-bound ({multiply:.0} % of the multiply roof)")
    }
}

fn is_near(pace: &Pace) -> bool {
    pace.of_copy.max(pace.of_multiply) >= NEAR
}

fn gain(pace: &Pace) -> String {
    pace.gain.as_ref().map_or(String::new(), |gain| {
        format!("{:.2} x f32 ({:.2} to {:.2})", gain.median, gain.low, gain.high)
    })
}

impl Row {
    /// What it does to perplexity.
    fn quality(&self) -> String {
        let percent = 100.0 * (self.ratio - 1.0);
        if percent.abs() < 0.005 {
            "the same perplexity".into()
        } else {
            format!("{percent:+.2} % perplexity")
        }
    }
}

type Which = fn(&Row) -> &Pace;

/// The fastest of those that are fit for use and beyond doubt faster than the reference.
fn best(rows: &[Row], which: Which) -> Option<&Row> {
    let fit = rows.iter().filter(|row| row.ratio <= FIT && which(row).wins());
    fit.min_by(|a, b| which(a).seconds.median.total_cmp(&which(b).seconds.median))
}

/// The sentence: rows as they were measured, the reference first.
pub fn sentence(place: &Place, rows: &[Row]) -> String {
    let Some(first) = rows.first() else { return String::new() };
    let decode = match best(rows, |row| &row.decode) {
        None => format!(
            "nothing that is fit for use continues texts faster than f32, whose decode is {}",
            bound(&first.decode)
        ),
        Some(row) => {
            let why = match (is_near(&first.decode), first.decode.of_copy >= first.decode.of_multiply) {
                (true, true) => "so fewer bytes are less time",
                _ => "and fewer bytes and operations help all the same",
            };
            format!(
                "{} wins at continuing texts with {} at {} bits per weight and {}, as f32's decode is {}, {why}",
                row.name,
                gain(&row.decode),
                short(row.bits).trim_end_matches('0').trim_end_matches('.'),
                row.quality(),
                bound(&first.decode)
            )
        }
    };
    let prefill = match best(rows, |row| &row.prefill) {
        None => {
            format!("nothing fit for use reads prompts faster, f32's prefill being {}", bound(&first.prefill))
        }
        Some(row) => {
            let why = if row.whole { format!(", and {}", place.dot_words()) } else { String::new() };
            format!(
                "{} wins at reading prompts with {} and {}, f32's prefill being {}{why}",
                row.name,
                gain(&row.prefill),
                row.quality(),
                bound(&first.prefill)
            )
        }
    };
    format!("{}, {decode}; {prefill}.", place.words())
}

/// Where schemes lose against f32, one line each.
pub fn losses(place: &Place, rows: &[Row]) -> Vec<String> {
    let mut lines = vec![];
    for row in rows {
        for (what, pace, is_decode) in [("prefill", &row.prefill, false), ("decode", &row.decode, true)] {
            if !pace.loses() {
                continue;
            }
            let reference = rows.first().map(|first| if is_decode { &first.decode } else { &first.prefill });
            let why = match (row.whole, is_decode) {
                (true, false) => format!("{}; activations are coded anew for each product", place.dot_words()),
                (true, true) => "activations are coded anew for each product of a single row".to_string(),
                (false, false) => "a prompt reads each weight once for many tokens, so unpacking codes costs more than their bytes save".to_string(),
                (false, true) if reference.is_some_and(is_near) => {
                    "f32 comes nearer to this device's roofs than the kernel on codes does".to_string()
                }
                (false, true) => "memory is not what f32 waits for here, so unpacking codes is added and nothing saved".to_string(),
            };
            lines.push(format!("{} loses at {what}: {}; {why}.", row.name, gain(pace)));
        }
        if row.ratio > FIT {
            let percent = 100.0 * (row.ratio - 1.0);
            lines.push(format!("{} loses quality: {percent:+.1} % perplexity.", row.name));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::super::speed::Sample;
    use super::*;

    fn pace(ms: f64, gain: Option<[f64; 3]>, of_copy: f64, of_multiply: f64) -> Pace {
        let sample = |[low, median, high]: [f64; 3]| Sample { median, low, high, count: 9 };
        let seconds = sample([ms / 1e3; 3]);
        Pace { seconds, gain: gain.map(sample), of_multiply, of_copy }
    }

    fn row(name: &str, ratio: f64, prefill: Pace, decode: Pace) -> Row {
        Row { name: name.into(), bits: 4.5, ratio, whole: name == "W8A8", prefill, decode }
    }

    fn place(is_cpu: bool, dot: &'static str) -> Place {
        Place { name: "Card".into(), is_cpu, dot }
    }

    #[test]
    fn the_winners_of_both_passes_are_named_with_what_bounds_them() {
        let rows = [
            row("f32", 1.0, pace(4.0, None, 0.1, 0.8), pace(8.0, None, 0.7, 0.1)),
            row(
                "W8A8",
                1.001,
                pace(2.0, Some([1.9, 2.0, 2.1]), 0.1, 1.6),
                pace(6.0, Some([1.2, 1.3, 1.4]), 0.3, 0.1),
            ),
            row(
                "int4",
                1.004,
                pace(5.0, Some([0.7, 0.8, 0.9]), 0.1, 0.6),
                pace(2.0, Some([3.8, 4.0, 4.2]), 0.5, 0.2),
            ),
        ];
        let text = sentence(&place(false, "native"), &rows);
        assert!(text.starts_with("On Card, int4 wins at continuing texts with 4.00 x f32"), "{text}");
        assert!(text.contains("memory-bound (70 % of the copy roof), so fewer bytes"), "{text}");
        assert!(
            text.contains("W8A8 wins at reading prompts") && text.contains("is an instruction here"),
            "{text}"
        );
        let lost = losses(&place(false, "native"), &rows);
        assert!(lost.len() == 1 && lost[0].starts_with("int4 loses at prefill: 0.80 x f32"), "{lost:?}");
    }

    #[test]
    fn what_bounds_a_pass_is_told_in_three_degrees() {
        let of = |copy, multiply| bound(&pace(1.0, None, copy, multiply));
        assert!(of(0.6, 0.1).starts_with("memory-bound") && of(0.1, 0.6).starts_with("compute-bound"));
        assert!(of(0.37, 0.02).contains("bound by memory") && of(0.09, 0.35).contains("bound by arithmetic"));
        assert!(of(0.2, 0.1).contains("neither"));
    }

    #[test]
    fn what_is_fast_but_bad_or_perhaps_only_chance_does_not_win() {
        let rows = [
            row("f32", 1.0, pace(4.0, None, 0.01, 0.05), pace(8.0, None, 0.02, 0.01)),
            row(
                "int3",
                1.4,
                pace(1.0, Some([3.0, 4.0, 5.0]), 0.1, 0.2),
                pace(2.0, Some([3.0, 4.0, 5.0]), 0.1, 0.0),
            ),
            row(
                "W8A8",
                1.0,
                pace(9.0, Some([0.4, 0.5, 0.6]), 0.1, 0.1),
                pace(7.9, Some([0.9, 1.01, 1.1]), 0.1, 0.0),
            ),
        ];
        let text = sentence(&place(true, "assembled"), &rows);
        assert!(text.starts_with("On Card, a driver that runs on the CPU, nothing that is fit"), "{text}");
        assert!(text.contains("bound by neither memory nor arithmetic (2 % of the copy roof"), "{text}");
        let lost = losses(&place(true, "assembled"), &rows);
        assert!(lost[0].contains("int3 loses quality: +40.0 %"), "{lost:?}");
        assert!(lost[1].contains("W8A8 loses at prefill") && lost[1].contains("polyfill"), "{lost:?}");
        assert_eq!(lost.len(), 2);
    }
}
