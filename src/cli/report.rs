//! `kiln report`: what the runs of a sweep gave.

use super::Usage;
use super::compare::chart::{Axis, Figure, Point, escaped, scatter};
use super::compare::page::{ENDING, figure, opening, table};
use super::sweep::RESULT_FILE;
use crate::formats::write_whole;
use anyhow::Context;
use clap::Args;
use serde_json::Value;
use std::fmt::Write as _;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Tell what the runs of a sweep gave: a table here, FOLDER/report.csv, and FOLDER/report.html with Pareto plots.
#[derive(Args)]
#[command(after_help = "Examples:\n  kiln report sweeps/schemes\n  kiln report sweeps/schemes --json")]
pub struct Report {
    /// The folder of a sweep.
    runs: PathBuf,
    /// Print all results as JSON.
    #[arg(long)]
    json: bool,
}

impl Report {
    /// Reads the results, writes both files and prints the table.
    pub fn run(self) -> anyhow::Result<()> {
        write_report(&self.runs, self.json)
    }
}

/// A run with its figures.
struct Run {
    name: String,
    result: Value,
    is_pareto: bool,
}

impl Run {
    fn number(&self, path: &str) -> Option<f64> {
        self.result.pointer(path).and_then(Value::as_f64)
    }

    /// Bytes and loss, by which runs are held against each other.
    fn costs(&self) -> [f64; 2] {
        ["/weight_bytes", "/loss_b/value"].map(|path| self.number(path).unwrap_or(f64::INFINITY))
    }
}

/// A column: its title, where its number lies, a factor, digits behind the point.
type Column = (&'static str, &'static str, f64, usize);

const COLUMNS: [Column; 13] = [
    ("parameters", "/parameters", 1.0, 0),
    ("zeros %", "/zeros", 100.0, 1),
    ("weights MiB", "/weight_bytes", 1.0 / (1 << 20) as f64, 3),
    ("bits", "/bits_per_weight", 1.0, 3),
    ("loss", "/loss_b/value", 1.0, 4),
    ("+-", "/loss_b/error", 1.0, 4),
    ("perplexity x", "/perplexity_ratio/value", 1.0, 4),
    ("KL mean", "/kl/mean/value", 1.0, 5),
    ("KL 99.9 %", "/kl/percent_99_9/value", 1.0, 4),
    ("top-1 %", "/top1_agreement/value", 100.0, 2),
    ("prefill x", "/speed/prefill/gain/median", 1.0, 3),
    ("decode x", "/speed/decode/gain/median", 1.0, 3),
    ("decode ms", "/speed/decode/ms_per_token/median", 1.0, 2),
];

/// Writes the CSV and the page of a sweep and prints its table, or all results as JSON.
pub fn write_report(folder: &Path, json: bool) -> anyhow::Result<()> {
    let runs = read(folder)?;
    let keys = keys(&runs);
    let columns: Vec<Column> = COLUMNS
        .into_iter()
        .filter(|(_, path, ..)| runs.iter().any(|run| run.number(path).is_some()))
        .collect();
    write_file(folder, "report.csv", &csv(&runs, &keys, &columns))?;
    write_file(folder, "report.html", &page(folder, &runs, &keys, &columns))?;
    let mut out = std::io::stdout().lock();
    if json {
        let all: Value = runs.iter().map(|run| run.result.clone()).collect();
        writeln!(out, "{all:#}")?;
        return Ok(());
    }
    let (heads, rows) = cells(&runs, &keys, &columns);
    write!(out, "{}", aligned(&heads, &rows, keys.len()))?;
    writeln!(out, "*: no other run is both smaller and better. {}", text_of(&runs))?;
    Ok(())
}

/// A table in columns, the first `left` of them words and the others numbers.
pub fn aligned(heads: &[String], rows: &[Vec<String>], left: usize) -> String {
    let width = |at: usize| {
        rows.iter().map(|row| row[at].chars().count()).chain([heads[at].chars().count()]).max().unwrap_or(0)
    };
    let line = |row: &[String]| {
        let cells = row.iter().enumerate().map(|(at, cell)| match at < left {
            true => format!("{cell:<0$}", width(at)),
            false => format!("{cell:>0$}", width(at)),
        });
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    std::iter::once(heads).chain(rows.iter().map(Vec::as_slice)).map(line).collect()
}

/// A line of a CSV file.
pub fn csv_line(cells: &[String]) -> String {
    let quoted = |cell: &String| match cell.contains([',', '"', '\n']) {
        true => format!("\"{}\"", cell.replace('"', "\"\"")),
        false => cell.clone(),
    };
    cells.iter().map(quoted).collect::<Vec<_>>().join(",") + "\n"
}

/// Writes one of the files of a report, and says so.
pub fn write_file(folder: &Path, name: &str, text: &str) -> anyhow::Result<()> {
    let path = folder.join(name);
    write_whole(&path, |out| out.write_all(text.as_bytes())).with_context(|| path.display().to_string())?;
    eprintln!("written  {}", path.display());
    Ok(())
}

fn read(folder: &Path) -> anyhow::Result<Vec<Run>> {
    let entries = std::fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut runs = vec![];
    for entry in entries {
        let path = entry?.path();
        let file = path.join(RESULT_FILE);
        if !file.is_file() {
            continue;
        }
        let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let result: Value = serde_json::from_str(&text)
            .with_context(|| format!("{} is no result of a sweep", file.display()))?;
        let name = path.file_name().map_or(String::new(), |name| name.to_string_lossy().into_owned());
        runs.push(Run { name, result, is_pareto: false });
    }
    if runs.is_empty() {
        let text = format!(
            "{} holds no finished run\n  hint: kiln sweep MODEL -r recipe.toml --grid KEY=A,B --data TEXT -o {0}",
            folder.display()
        );
        return Err(Usage(text).into());
    }
    runs.sort_by(|a, b| a.costs()[0].total_cmp(&b.costs()[0]).then_with(|| a.name.cmp(&b.name)));
    let costs: Vec<[f64; 2]> = runs.iter().map(Run::costs).collect();
    for (run, &[bytes, loss]) in runs.iter_mut().zip(&costs) {
        let beats =
            |other: &[f64; 2]| other[0] <= bytes && other[1] <= loss && (other[0] < bytes || other[1] < loss);
        run.is_pareto = loss.is_finite() && !costs.iter().any(beats);
    }
    Ok(runs)
}

/// What was varied, in the order of the first run that has it.
fn keys(runs: &[Run]) -> Vec<String> {
    let mut keys: Vec<String> = vec![];
    for run in runs {
        let grid = run.result["grid"].as_object();
        for key in grid.into_iter().flat_map(|grid| grid.keys()) {
            if !keys.contains(key) {
                keys.push(key.clone());
            }
        }
    }
    keys
}

fn cells(runs: &[Run], keys: &[String], columns: &[Column]) -> (Vec<String>, Vec<Vec<String>>) {
    let titles = columns.iter().map(|column| column.0.to_string());
    let heads = keys.iter().cloned().chain(titles).chain([String::new()]).collect();
    let row = |run: &Run| {
        let of_grid = keys.iter().map(|key| run.result["grid"][key].as_str().unwrap_or("-").to_string());
        let of_columns = columns.iter().map(|&(_, path, factor, digits)| {
            run.number(path).map_or("-".to_string(), |x| format!("{:.digits$}", factor * x))
        });
        of_grid.chain(of_columns).chain([if run.is_pareto { "*" } else { "" }.to_string()]).collect()
    };
    (heads, runs.iter().map(row).collect())
}

/// Numbers as they are, so that nothing is lost to rounding.
fn csv(runs: &[Run], keys: &[String], columns: &[Column]) -> String {
    let heads = ["run".to_string()].into_iter().chain(keys.iter().cloned());
    let heads: Vec<String> = heads
        .chain(columns.iter().map(|column| column.1[1..].replace('/', ".")))
        .chain(["pareto".into()])
        .collect();
    let mut text = csv_line(&heads);
    for run in runs {
        let of_grid = keys.iter().map(|key| run.result["grid"][key].as_str().unwrap_or_default().to_string());
        let of_columns =
            columns.iter().map(|(_, path, ..)| run.number(path).map_or(String::new(), |x| x.to_string()));
        let row = [run.name.clone()].into_iter().chain(of_grid).chain(of_columns);
        text += &csv_line(&row.chain([run.is_pareto.to_string()]).collect::<Vec<_>>());
    }
    text
}

fn text_of(runs: &[Run]) -> String {
    let of = |path: &str| runs[0].result.pointer(path).and_then(Value::as_str).unwrap_or("unknown");
    format!("Text: {}; device: {}", of("/measured/text"), of("/measured/device"))
}

/// One page that needs nothing beside itself.
fn page(folder: &Path, runs: &[Run], keys: &[String], columns: &[Column]) -> String {
    let title = escaped(&folder.display().to_string());
    let mut text = opening(&format!("kiln report: {title}"));
    let _ = write!(
        text,
        "<h1>What compressing costs and buys: {title}</h1>\n<p>{}.</p>\n<div class=\"charts\">\n",
        escaped(&text_of(runs))
    );
    let size = ("weights on the device, MiB", "/weight_bytes", 1.0 / f64::from(1 << 20));
    let best = "Lower left is better; a star marks runs that no other beats in both. Bars: 95 % interval from window to window.";
    text += &plot("Size against loss", runs, size, ("loss, nats a token", "/loss_b"), best);
    text += &plot(
        "Size against divergence",
        runs,
        size,
        ("mean KL from the model that came in, nats", "/kl/mean"),
        best,
    );
    let time = ("ms a token, decode", "/speed/decode/ms_per_token/median", 1.0);
    text += &plot("Time against loss", runs, time, ("loss, nats a token", "/loss_b"), best);
    text += "</div>\n<h2>All figures</h2>\n";
    let (heads, rows) = cells(runs, keys, columns);
    let heads: Vec<&str> = heads.iter().map(String::as_str).collect();
    text += &table(&heads, &rows);
    text += "<h2>What each run did</h2>\n<dl>\n";
    for run in runs {
        let done = |done: &Value| {
            let word = |key: &str| escaped(done[key].as_str().unwrap_or_default());
            format!("{}: {}", word("pass"), word("summary"))
        };
        let passes: Vec<String> = run.result["passes"].as_array().into_iter().flatten().map(done).collect();
        let _ = writeln!(text, "<dt>{}</dt><dd>{}</dd>", escaped(&run.name), passes.join("<br>"));
    }
    text + "</dl>\n" + ENDING
}

/// Runs by one number and a mean with its interval; nothing where no run has both.
fn plot(
    title: &str,
    runs: &[Run],
    (x_title, x_path, factor): (&str, &str, f64),
    (y_title, y_path): (&str, &str),
    caption: &str,
) -> String {
    let point = |(colour, run): (usize, &Run)| {
        let x = Figure::exact(factor * run.number(x_path)?);
        let value = run.number(&format!("{y_path}/value")).filter(|value| value.is_finite())?;
        let end = |at: usize| run.number(&format!("{y_path}/interval/{at}")).unwrap_or(value);
        let name = if run.is_pareto { format!("{} *", run.name) } else { run.name.clone() };
        Some(Point { name, colour, x, y: Figure { low: end(0), value, high: end(1) } })
    };
    let points: Vec<Point> = runs.iter().enumerate().filter_map(point).collect();
    if points.is_empty() {
        return String::new();
    }
    let figures = |of: fn(&Point) -> Figure| points.iter().map(of).collect::<Vec<_>>();
    let (x, y) = (Axis::of(x_title, &figures(|p| p.x), false), Axis::of(y_title, &figures(|p| p.y), false));
    figure(title, &scatter(&format!("{y_title} by {x_title}"), &x, &y, &points), caption)
}
