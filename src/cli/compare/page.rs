//! The comparison as one page in HTML that needs nothing beside itself.

use super::chart::{Axis, Figure, Point, bars, escaped, lines, scatter};
use super::report::{Case, Entry, Report};
use super::speed::{Pace, Sample};
use super::table::{cells, number};
use crate::compare::Mean;
use std::fmt::Write;

/// How such pages look.
const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #59636e; --paper: #ffffff; --line: #d9dee3; --mark: #fff4d6;
  --c0: #3d4752; --c1: #1f6feb; --c2: #c2410c; --c3: #15803d; --c4: #9333ea; --c5: #b45309; --c6: #0e7490; --c7: #be185d;
  --c8: #4d7c0f; --c9: #6d28d9; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #9aa4ae; --paper: #14171a; --line: #30363d; --mark: #3a3113;
  --c0: #c3ccd5; --c1: #6cb0ff; --c2: #ff9a6a; --c3: #6bd08a; --c4: #cf9bff; --c5: #f2b84b; --c6: #5cd0e6; --c7: #ff8fc0;
  --c8: #b6d858; --c9: #b8a1ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem; font: 16px/1.5 system-ui, sans-serif; color: var(--ink);
  background: var(--paper); }
h1 { font-size: 1.5rem; margin: 0 0 .5rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
.verdict { background: var(--mark); border-left: 4px solid var(--c5); padding: .75rem 1rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 1rem; }
figure { margin: 0; border: 1px solid var(--line); border-radius: 6px; padding: .75rem; }
figcaption { color: var(--soft); font-size: .85rem; } figure h3 { margin: 0 0 .25rem; font-size: 1rem; }
svg { width: 100%; height: auto; display: block; } svg text { font-size: 12px; fill: var(--soft); }
svg .middle { text-anchor: middle; } svg .end { text-anchor: end; } svg .label { fill: var(--ink); paint-order: stroke; stroke: var(--paper); stroke-width: 3px; } svg .name { fill: var(--ink); }
svg .grid { stroke: var(--line); } svg .whisker { stroke: var(--ink); stroke-width: 1.5; }
svg line { stroke-width: 1; } svg polyline { fill: none; stroke-width: 1.5; } svg .dashed { stroke-dasharray: 5 4; }
svg polygon { fill-opacity: .15; stroke: none; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .85rem; white-space: nowrap; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid var(--line); font-variant-numeric: tabular-nums; }
th:first-child, td:first-child, td.words { text-align: left; } dt { font-weight: 600; } dd { margin: 0 0 .5rem; color: var(--soft); }
";

/// Colours of points, bars and lines.
fn colours() -> String {
    let of = |n: usize| {
        format!(
            "circle.c{n}, rect.c{n}, polygon.c{n} {{ fill: var(--c{n}); }} line.c{n}, polyline.c{n} {{ stroke: var(--c{n}); stroke-width: 1.5; }}\n"
        )
    };
    (0..super::chart::COLOURS).map(of).collect()
}

/// What such a page begins with, up to the first of its contents. The title must be escaped.
pub fn opening(title: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width, \
         initial-scale=1\">\n<title>{title}</title>\n<style>{STYLE}{}</style>\n</head>\n<body>\n",
        colours()
    )
}

/// What such a page ends with.
pub const ENDING: &str = "</body>\n</html>\n";

fn of_sample(sample: &Sample) -> Figure {
    Figure { low: sample.low, value: sample.median, high: sample.high }
}

fn of_mean(mean: &Mean) -> Figure {
    let [low, high] = mean.interval().unwrap_or([mean.value; 2]);
    Figure { low, value: mean.value, high }
}

/// A scheme that was measured, with its name and the number of its colour.
type Shown<'a> = (usize, &'a str, &'a Case);

/// The page.
pub fn html(report: &Report) -> String {
    let shown: Vec<Shown> = report
        .entries
        .iter()
        .enumerate()
        .filter_map(|(number, entry)| Some((number, entry.scheme.name, entry.case()?)))
        .collect();
    let model = escaped(&report.model.display().to_string());
    let mut page = opening(&format!("kiln compare: {model}"));
    let _ = write!(
        page,
        "<h1>What quantising costs and buys: {model}</h1>\n<p class=\"verdict\">{}</p>\n",
        escaped(&report.sentence())
    );
    let losses = report.losses();
    if !losses.is_empty() {
        page += "<h2>Where schemes lose</h2>\n<ul>\n";
        losses.iter().for_each(|line| page += &format!("<li>{}</li>\n", escaped(line)));
        page += "</ul>\n";
    }
    page += "<h2>Quality and speed</h2>\n<div class=\"charts\">\n";
    page += &quality(&shown);
    page += &speeds(&shown);
    page += &layers(&shown);
    page += "</div>\n<h2>All figures</h2>\n";
    let (heads, rows) = cells(report);
    page += &table(&heads, &rows);
    report.mixed().iter().for_each(|line| page += &format!("<p>{}</p>\n", escaped(line)));
    page += &streams(&shown);
    if let Some(training) = &report.training {
        let (heads, rows) = training.cells();
        let _ = write!(
            page,
            "<h2>Training</h2>\n<p>{}.</p>\n{}<p>{}. Losses are there so that nobody compares nonsense.</p>\n",
            escaped(&training.sentence()),
            table(&heads, &rows),
            escaped(&training.describe)
        );
    }
    page + &facts(report) + ENDING
}

/// A drawing with its title and what to know of it.
pub fn figure(title: &str, drawing: &str, caption: &str) -> String {
    format!("<figure>\n<h3>{title}</h3>\n{drawing}<figcaption>{caption}</figcaption>\n</figure>\n")
}

fn quality(shown: &[Shown]) -> String {
    let divergence = |case: &Case| of_mean(&case.apart.summary.divergence);
    let apart: Vec<Point> = shown
        .iter()
        .filter(|(_, _, case)| case.apart.summary.divergence.value > 0.0)
        .map(|&(colour, name, case)| Point {
            name: name.to_string(),
            colour,
            x: Figure::exact(case.bits),
            y: divergence(case),
        })
        .collect();
    let all: Vec<Point> = shown
        .iter()
        .map(|&(colour, name, case)| {
            let ms = case.speed.decode.seconds.clone();
            let x = Figure { low: 1e3 * ms.low, value: 1e3 * ms.median, high: 1e3 * ms.high };
            let y = of_mean(&case.apart.summary.ratio());
            Point { name: name.to_string(), colour, x, y }
        })
        .collect();
    let axes = |points: &[Point], x: &str, y: &str, is_log| {
        let xs: Vec<Figure> = points.iter().map(|p| p.x).collect();
        let ys: Vec<Figure> = points.iter().map(|p| p.y).collect();
        (Axis::of(x, &xs, false), Axis::of(y, &ys, is_log))
    };
    let (x, y) = axes(
        &apart,
        "bits per weight of the quantised layers, scales in",
        "mean KL from f32, nats a token",
        true,
    );
    let first = figure(
        "Bits against divergence",
        &scatter("mean KL divergence by bits per weight", &x, &y, &apart),
        "Lower left is better. f32 is the reference and diverges by nothing. Bars: 95 % interval from window to window.",
    );
    let (x, y) = axes(&all, "ms a token, decode", "perplexity over that of f32", false);
    let second = figure(
        "Time against perplexity",
        &scatter("perplexity over that of f32 by milliseconds a token", &x, &y, &all),
        "Lower left is better. Bars: 95 % intervals, of the median time over rounds, of the ratio from window to window.",
    );
    first + &second
}

fn speeds(shown: &[Shown]) -> String {
    let chart = |title: &str, what: &str, of: fn(&Case) -> &Pace| {
        let all: Vec<(String, usize, Figure)> = shown
            .iter()
            .map(|&(colour, name, case)| (name.to_string(), colour, of_sample(&of(case).rate())))
            .collect();
        let figures: Vec<Figure> = all.iter().map(|bar| bar.2).collect();
        let axis = Axis::of("tokens a second", &figures, false).rooted();
        figure(
            title,
            &bars(what, &axis, &all),
            "Median of the rounds; whiskers: its 95 % interval. Taken in turn.",
        )
    };
    chart("Prefill: reading a prompt", "prefill tokens a second by scheme", |case| &case.speed.prefill)
        + &chart("Decode: one token after another", "decode tokens a second by scheme", |case| {
            &case.speed.decode
        })
}

fn layers(shown: &[Shown]) -> String {
    let all: Vec<(String, usize, Vec<f64>)> = shown
        .iter()
        .map(|&(colour, name, case)| {
            (name.to_string(), colour, case.outcomes.iter().map(|o| o.sqnr_db).collect::<Vec<f64>>())
        })
        .filter(|(_, _, values)| values.iter().any(|v| v.is_finite()))
        .collect();
    if all.is_empty() {
        return String::new();
    }
    let figures: Vec<Figure> = all.iter().flat_map(|line| line.2.iter().map(|&v| Figure::exact(v))).collect();
    let axis = Axis::of("signal to noise of the weight, dB", &figures, false);
    figure(
        "Error by layer",
        &lines(
            "signal to noise of each quantised weight",
            "layers in the order they are computed",
            &axis,
            &all,
        ),
        "Higher is better; 6 dB are about one bit. Scaled or smoothed layers (awq, smoothquant) are measured after scaling.",
    )
}

/// What of the residual stream differs, as a table.
fn streams(shown: &[Shown]) -> String {
    let Some((_, _, first)) = shown.first() else { return String::new() };
    let places: Vec<&str> = first.apart.hidden.iter().map(|(place, _)| place.as_str()).collect();
    let heads = [vec!["scheme"], places].concat();
    let row = |&(_, name, case): &Shown| {
        let cell = |decibels: &Option<f64>| decibels.map_or("same".to_string(), |d| format!("{d:.1}"));
        let cells = case.apart.hidden.iter().map(|(_, decibels)| cell(decibels));
        std::iter::once(name.to_string()).chain(cells).collect()
    };
    let rows: Vec<Vec<String>> = shown.iter().skip(1).map(row).collect();
    let worst = |&(_, name, case): &Shown| {
        let layers: Vec<String> =
            case.worst().iter().map(|o| format!("{} ({:.1} dB)", o.weight, o.sqnr_db)).collect();
        (!layers.is_empty()).then(|| format!("<li>{}: {}</li>\n", escaped(name), escaped(&layers.join(", "))))
    };
    let worst: String = shown.iter().filter_map(worst).collect();
    let mut text =
        format!("<h2>Residual stream: signal to noise against f32, dB</h2>\n{}", table(&heads, &rows));
    if !worst.is_empty() {
        let _ = write!(text, "<h2>Worst layers</h2>\n<ul>\n{worst}</ul>\n");
    }
    text
}

/// A table; a row may end early with words over the rest.
pub fn table(heads: &[&str], rows: &[Vec<String>]) -> String {
    let mut text = "<div class=\"scroll\"><table>\n<thead><tr>".to_string();
    heads.iter().for_each(|head| text += &format!("<th>{}</th>", escaped(head)));
    text += "</tr></thead>\n<tbody>\n";
    for row in rows {
        text += "<tr>";
        for (at, cell) in row.iter().enumerate() {
            // A row that ends early says why, over the rest of its columns.
            let open = match at > 0 && at + 1 == row.len() && row.len() < heads.len() {
                true => format!("<td class=\"words\" colspan=\"{}\">", heads.len() - at),
                false => "<td>".to_string(),
            };
            text += &format!("{open}{}</td>", escaped(cell));
        }
        text += "</tr>\n";
    }
    text + "</tbody>\n</table></div>\n"
}

/// Where, with what, and how each number came about.
fn facts(report: &Report) -> String {
    let word = |key: &str| report.device[key].as_str().unwrap_or_default().to_string();
    let build = if cfg!(debug_assertions) { "debug build: not for figures" } else { "release build" };
    let roofs = report.roofs.text();
    let bounds = report.bounds().unwrap_or_default();
    let load = report
        .load
        .map_or("unknown".to_string(), |load| format!("{load} processes in the minute before the start"));
    let mut all: Vec<(&str, String)> = vec![
        ("Model", format!("{}: {}", report.model.display(), report.design)),
        ("Text", report.text.clone()),
        ("Adapter", report.device_words.clone()),
        ("Driver and backend", format!("{} {}", word("driver"), word("backend")).trim().to_string()),
        ("Products of packed bytes", report.place.dot_words().to_string()),
        ("Best rates of this device, measured in the same run", roofs),
        ("f32 here", format!("prefill is {}; decode is {}", bounds[0], bounds[1])),
        ("kiln", format!("{}, {build}, {}", env!("CARGO_PKG_VERSION"), report.date)),
        ("Load", load),
    ];
    all.extend(report.notes.iter().map(|note| ("Note", note.clone())));
    all.extend([
        ("Bits", "bits of a weight of the quantised layers by the scheme, scales counted as f16, zeros in; 'of model': bits of all weights as they lie on the device, scales in f32".to_string()),
        ("Weights, memory", "bytes of all weights on the device; bytes of device memory that the engine holds while it reads and continues a text, the most at any time, since all of it is allocated beforehand".to_string()),
        ("Perplexity", "e to the mean negative log-likelihood; +- is one standard error, from window to window. The ratio to f32 is surer than either: both met the same tokens".to_string()),
        ("KL", format!("divergence of the scheme's distribution of the next token from f32's, in nats, in f64 on the host; {}", intervals(report))),
        ("Top-1", "share of tokens for which both find the same one likeliest".to_string()),
        ("Speed", format!("{}. Wall time on the host, waiting included. Medians; intervals hold the median 95 times in a hundred. 'x f32' compares within a round", report.course)),
        ("Signal to noise", "power of the values in f32 over the power of what the others are off by".to_string()),
    ]);
    let mut text = "<h2>Where, with what, and how it was measured</h2>\n<dl>\n".to_string();
    for (term, words) in all.iter().filter(|(_, words)| !words.is_empty()) {
        let _ = writeln!(text, "<dt>{}</dt><dd>{}</dd>", escaped(term), escaped(words));
    }
    text + "</dl>\n"
}

/// Intervals of the divergences, in words.
fn intervals(report: &Report) -> String {
    let of = |entry: &Entry| {
        let summary = &entry.case()?.apart.summary;
        let [low, high] = summary.divergence.interval()?;
        let tail = summary.percent_99_9;
        let name = entry.scheme.name;
        (summary.divergence.value > 0.0).then(|| {
            format!(
                "{name} mean {} to {}, 99.9 % {} to {}",
                number(low),
                number(high),
                number(tail.low),
                number(tail.high)
            )
        })
    };
    let all: Vec<String> = report.entries.iter().filter_map(of).collect();
    format!("95 % intervals: {}", all.join("; "))
}
