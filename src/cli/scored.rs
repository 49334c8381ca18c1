//! Figures of several models beside each other, as a table or as JSON, with how they differ from the first.

use crate::metrics::Figure;
use crate::metrics::bootstrap::Interval;
use serde_json::{Map, Value as Json, json};
use std::io::Write;

/// The p-value below which models are told apart.
const SIGNIFICANT: f64 = 0.05;

/// Prints figures to stdout. `kind` is what the rows are: models, or files.
pub fn print(
    kind: &str,
    names: &[String],
    figures: &[Figure],
    as_json: bool,
    more: impl IntoIterator<Item = (&'static str, Json)>,
) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if as_json {
        writeln!(out, "{}", object(kind, names, figures, more))?;
        return Ok(());
    }
    let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0).max(kind.len());
    let columns: Vec<usize> = figures.iter().map(|figure| figure.name.chars().count().max(16)).collect();
    write!(out, "{kind:width$}")?;
    for (figure, column) in figures.iter().zip(&columns) {
        write!(out, "  {:>column$}", figure.name)?;
    }
    writeln!(out)?;
    for (at, name) in names.iter().enumerate() {
        write!(out, "{name:width$}")?;
        for (figure, column) in figures.iter().zip(&columns) {
            write!(out, "  {:>column$}", shown(&figure.values[at]))?;
        }
        writeln!(out)?;
    }
    for (at, name) in names.iter().enumerate().skip(1) {
        writeln!(out, "\n{name} less {}", names[0])?;
        for figure in figures {
            let Some(difference) = figure.differences[at] else { continue };
            let Interval { value, low, high, .. } = difference.interval;
            let better = match (value == 0.0, (value > 0.0) != figure.is_error) {
                (true, _) => "the same",
                _ if difference.p_value >= SIGNIFICANT => "not told apart",
                (false, true) => "better",
                (false, false) => "worse",
            };
            let p = difference.p_value;
            writeln!(
                out,
                "  {:<16}  {value:+.4}  [{low:+.4}, {high:+.4}]  p = {p:.4}  {better}",
                figure.name
            )?;
        }
    }
    for (name, value) in more {
        eprintln!("{name:<8} {value}");
    }
    for figure in figures {
        if let Some(signature) = &figure.signature {
            eprintln!("{:<8} {signature}", figure.name);
        }
    }
    Ok(())
}

fn shown(interval: &Interval) -> String {
    match interval.error.is_nan() {
        true => format!("{:.4}", interval.value),
        false => format!("{:.4} ± {:.4}", interval.value, interval.error),
    }
}

/// A number, or null where there is none.
fn number(value: f64) -> Json {
    if value.is_finite() { json!(value) } else { Json::Null }
}

fn bounds(interval: &Interval) -> Map<String, Json> {
    let parts = [
        ("value", interval.value),
        ("standard_error", interval.error),
        ("low", interval.low),
        ("high", interval.high),
    ];
    parts.iter().map(|(name, value)| (name.to_string(), number(*value))).collect()
}

fn object(
    kind: &str,
    names: &[String],
    figures: &[Figure],
    more: impl IntoIterator<Item = (&'static str, Json)>,
) -> Json {
    let row = |(at, name): (usize, &String)| {
        let mut row = Map::new();
        row.insert(kind.into(), json!(name));
        for figure in figures {
            let mut parts = bounds(&figure.values[at]);
            for (name, numbers) in &figure.details[at] {
                let part = if let [one] = numbers[..] { json!(one) } else { json!(numbers) };
                parts.insert(name.to_string(), part);
            }
            row.insert(figure.name.clone(), Json::Object(parts));
        }
        Json::Object(row)
    };
    let mut differences = vec![];
    for (at, name) in names.iter().enumerate().skip(1) {
        for figure in figures {
            let Some(difference) = figure.differences[at] else { continue };
            let mut row = Map::from_iter([
                ("metric".to_string(), json!(figure.name)),
                (kind.to_string(), json!(name)),
                ("against".to_string(), json!(names[0])),
            ]);
            row.extend(bounds(&difference.interval));
            row.insert("p_value".into(), number(difference.p_value));
            differences.push(Json::Object(row));
        }
    }
    let signatures =
        figures.iter().filter_map(|figure| Some((figure.name.clone(), json!(figure.signature.as_ref()?))));
    let mut all = Map::new();
    all.extend(more.into_iter().map(|(name, value)| (name.to_string(), value)));
    all.insert(format!("{kind}s"), names.iter().enumerate().map(row).collect());
    all.insert("differences".into(), Json::Array(differences));
    all.insert("signatures".into(), Json::Object(signatures.collect()));
    Json::Object(all)
}
