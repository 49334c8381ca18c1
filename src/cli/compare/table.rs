//! The comparison as a table and as JSON.

use super::report::{Case, Entry, Report};
use super::verdict::{self, Row};
use crate::cli::bench::{short, size};
use crate::cli::diff::{apart_json, mean_json};
use crate::compress::{Form, Outcome};
use crate::ops::coded::Activations;
use serde_json::{Value, json};

/// Head of columns of intervals.
const RANGE: &str = "95 %";
/// Layers that the table names.
const WORST: usize = 3;

impl Entry {
    /// Its figures, if it has any.
    pub fn case(&self) -> Option<&Case> {
        self.outcome.as_ref().ok()
    }
}

impl Case {
    /// The layers that lost most, the worst first.
    pub fn worst(&self) -> Vec<&Outcome> {
        let mut layers: Vec<&Outcome> = self.outcomes.iter().filter(|o| o.sqnr_db.is_finite()).collect();
        layers.sort_by(|a, b| a.sqnr_db.total_cmp(&b.sqnr_db));
        layers.truncate(WORST);
        layers
    }
}

impl Report {
    /// What decides, of the schemes that were measured.
    fn rows(&self) -> Vec<Row> {
        let row = |entry: &Entry| {
            let case = entry.case()?;
            let whole = matches!(entry.scheme.form, Form::Codes { activations, .. } if activations != Activations::Numbers);
            Some(Row {
                name: entry.scheme.name.to_string(),
                bits: case.bits,
                ratio: case.apart.summary.ratio().value,
                whole,
                prefill: case.speed.prefill.clone(),
                decode: case.speed.decode.clone(),
            })
        };
        self.entries.iter().filter_map(row).collect()
    }

    /// What wins and why.
    pub fn sentence(&self) -> String {
        verdict::sentence(&self.place, &self.rows())
    }

    /// What loses and why.
    pub fn losses(&self) -> Vec<String> {
        verdict::losses(&self.place, &self.rows())
    }

    /// Where layers could not be made under a scheme and are under another.
    pub fn mixed(&self) -> Vec<String> {
        let of = |entry: &Entry| {
            let (name, case) = (entry.scheme.name, entry.case()?);
            let others: Vec<&str> =
                case.outcomes.iter().map(|o| o.scheme).filter(|other| *other != name).collect();
            let kinds: Vec<&str> =
                others.iter().copied().collect::<std::collections::BTreeSet<_>>().into_iter().collect();
            let (count, all) = (others.len(), case.outcomes.len());
            (count > 0).then(|| {
                format!("{name}: {count} of {all} layers do not fit it and are {}.", kinds.join(", "))
            })
        };
        self.entries.iter().filter_map(of).collect()
    }

    /// How the reference's passes are bound.
    pub fn bounds(&self) -> Option<[String; 2]> {
        let speed = &self.entries.first()?.case()?.speed;
        Some([verdict::bound(&speed.prefill), verdict::bound(&speed.decode)])
    }
}

/// A number as the table and the page write it: `1.2e-3` below a hundredth.
pub fn number(x: f64) -> String {
    if x != 0.0 && x.abs() < 0.01 { format!("{x:.2e}") } else { short(x) }
}

/// Heads and cells of the table.
pub fn cells(report: &Report) -> (Vec<&'static str>, Vec<Vec<String>>) {
    let heads = vec![
        "scheme",
        "bits",
        "of model",
        "weights",
        "memory",
        "perplexity",
        "+-",
        "KL mean",
        "KL 99.9 %",
        "top-1 %",
        "prefill/s",
        RANGE,
        "x f32",
        "decode/s",
        RANGE,
        "x f32",
    ];
    let row = |entry: &Entry| match &entry.outcome {
        Err(problem) => {
            vec![entry.scheme.name.to_string(), problem.lines().next().unwrap_or_default().to_string()]
        }
        Ok(case) => {
            let summary = &case.apart.summary;
            let mut cells = vec![
                entry.scheme.name.to_string(),
                format!("{:.3}", case.bits),
                format!("{:.2}", case.model_bits),
                size(case.weight_bytes.into()),
                size(case.speed.memory_bytes.into()),
                format!("{:.4}", summary.perplexity(1).value),
                summary.perplexity(1).error.map_or("-".into(), |error| format!("{error:.3}")),
                number(summary.divergence.value),
                number(summary.percent_99_9.value),
                format!("{:.2}", 100.0 * summary.agreement.value),
            ];
            for pace in [&case.speed.prefill, &case.speed.decode] {
                let rate = pace.rate();
                cells.push(short(rate.median));
                cells.push(format!("{}..{}", short(rate.low), short(rate.high)));
                cells.push(pace.gain.as_ref().map_or("1".into(), |gain| {
                    format!("{:.2} ({:.2}..{:.2})", gain.median, gain.low, gain.high)
                }));
            }
            cells
        }
    };
    (heads, report.entries.iter().map(row).collect())
}

/// Without the intervals of rates, which those of their ratios are closer than: a terminal is only so wide.
fn narrowed((heads, rows): (Vec<&'static str>, Vec<Vec<String>>)) -> (Vec<&'static str>, Vec<Vec<String>>) {
    let stays: Vec<bool> = heads.iter().map(|head| *head != RANGE).collect();
    let keep = |row: Vec<String>| {
        row.into_iter().zip(&stays).filter(|(_, stays)| **stays).map(|(cell, _)| cell).collect()
    };
    (heads.into_iter().filter(|head| *head != RANGE).collect(), rows.into_iter().map(keep).collect())
}

/// Cells in columns: the first to the left, the others to the right; short rows run on.
fn columns(heads: &[&str], rows: &[Vec<String>]) -> String {
    let full = || rows.iter().filter(|row| row.len() == heads.len());
    let width =
        |at: usize| full().map(|row| row[at].chars().count()).chain([heads[at].len()]).max().unwrap_or(0);
    let first = rows.iter().map(|row| row[0].chars().count()).chain([heads[0].len()]).max().unwrap_or(0);
    let widths: Vec<usize> = (0..heads.len()).map(|at| if at == 0 { first } else { width(at) }).collect();
    let line = |cells: Vec<&str>| {
        let cell = |(at, cell): (usize, &&str)| match (at, cells.len() == heads.len()) {
            (0, _) => format!("{cell:<width$}", width = widths[0]),
            (_, true) => format!("  {cell:>width$}", width = widths[at]),
            (_, false) => format!("  {cell}"),
        };
        let text: String = cells.iter().enumerate().map(cell).collect();
        format!("{}\n", text.trim_end())
    };
    let body: String = rows.iter().map(|row| line(row.iter().map(String::as_str).collect())).collect();
    line(heads.to_vec()) + &body
}

/// The report for people.
pub fn text(report: &Report) -> String {
    let mut text = format!(
        "model    {} ({})\ndevice   {}\nroofs    {}\ntext     {}\nspeeds   {}\n",
        report.model.display(),
        report.design,
        report.device_words,
        report.roofs.text(),
        report.text,
        report.course
    );
    if let Some([prefill, decode]) = report.bounds() {
        text += &format!("f32      prefill is {prefill}\n         decode is {decode}\n");
    }
    report.notes.iter().for_each(|note| text += &format!("note     {note}\n"));
    let (heads, rows) = narrowed(cells(report));
    text += &format!("\n{}\n", columns(&heads, &rows));
    report.mixed().iter().for_each(|line| text += &format!("{line}\n"));
    for entry in &report.entries {
        let Some(case) = entry.case().filter(|case| !case.worst().is_empty()) else { continue };
        let layers: Vec<String> =
            case.worst().iter().map(|o| format!("{} {:.1} dB", o.weight, o.sqnr_db)).collect();
        text += &format!("worst layers, {} by {}: {}\n", entry.scheme.name, case.method, layers.join(", "));
    }
    text += &format!("\n{}\n", report.sentence());
    report.losses().iter().for_each(|line| text += &format!("{line}\n"));
    if let Some(training) = &report.training {
        let (heads, rows) = training.cells();
        text += &format!("\n{}\n{}\n{}\n", columns(&heads, &rows), training.sentence(), training.describe);
    }
    text + "bits: of a weight of the quantised layers, scales in as f16; KL in nats a token against f32; +-: one standard error, from \
            window to window; x f32: within a round, with \
            the 95 % interval of its median\n"
}

/// The report for machines.
pub fn json(report: &Report) -> Value {
    let rows = report.entries.iter().map(|entry| {
        let mut row = json!({ "scheme": entry.scheme.name, "about": entry.scheme.about, "problem": entry.outcome.as_ref().err() });
        if let (Some(case), Some(row)) = (entry.case(), row.as_object_mut()) {
            let layers: Vec<Value> = case.outcomes.iter().map(layer_json).collect();
            let figures = json!({
                "method": case.method, "bits_per_weight": case.bits, "bits_per_weight_of_model": case.model_bits,
                "weight_bytes": case.weight_bytes, "memory_bytes": case.speed.memory_bytes,
                "perplexity": mean_json(&case.apart.summary.perplexity(1)),
                "prefill": case.speed.prefill.json(), "decode": case.speed.decode.json(), "layers": layers,
            });
            row.extend(figures.as_object().cloned().unwrap_or_default());
            row.extend(apart_json(&case.apart));
        }
        row
    });
    json!({
        "kiln": env!("CARGO_PKG_VERSION"), "build": if cfg!(debug_assertions) { "debug" } else { "release" },
        "date": report.date, "load": report.load, "model": report.model, "design": report.design,
        "device": report.device, "packed_dot": report.place.dot, "roofs": report.roofs.json(), "text": report.text,
        "speeds": report.course, "notes": report.notes, "rows": rows.collect::<Vec<_>>(),
        "sentence": report.sentence(), "losses": report.losses(),
        "training": report.training.as_ref().map(|training| training.json()),
    })
}

fn layer_json(o: &Outcome) -> Value {
    json!({
        "weight": o.weight, "scheme": o.scheme, "rows": o.rows, "cols": o.cols, "bits_per_weight": o.bits_per_weight,
        "sqnr_db": o.sqnr_db.is_finite().then_some(o.sqnr_db), "output_error": o.output_error, "note": o.note,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_a_problem_runs_on() {
        let rows = [vec!["f32".into(), "1".into()], vec!["int4-g32".into(), "12".into()], vec!["x".into()]];
        assert_eq!(columns(&["scheme", "n"], &rows), "scheme     n\nf32        1\nint4-g32  12\nx\n");
    }

    #[test]
    fn small_numbers_keep_their_digits() {
        assert_eq!(
            (number(0.0), number(0.00012), number(0.5)),
            ("0".into(), "1.20e-4".into(), "0.500".into())
        );
    }
}
