//! A study as one page that needs nothing beside itself.

use super::super::compare::chart::{Axis, Figure, Point, Trace, escaped, plot};
use super::super::compare::page::{ENDING, figure, opening, table};
use super::table::{cells, foretold, scaled, sentences, stem};
use super::{Examined, Outcome};
use crate::scale::emergence::Score;
use crate::scale::fit::bounds;
use crate::scale::laws::{Finding, Over};
use crate::scale::study::Finished;
use std::fmt::Write;

/// Places at which a law is drawn.
const PLACES: usize = 48;

/// How far a law is drawn beyond the last rung.
const BEYOND: f64 = 4.0;

/// A chart of a task: title, name of the scale, the number with its bounds, whether chance has a level on it.
type Chart = (&'static str, &'static str, fn(&Score) -> [f64; 3], bool);

/// The page.
pub fn html(outcome: &Outcome) -> String {
    let title = escaped(&outcome.title);
    let mut page = opening(&format!("kiln scale: {title}"));
    let text = match outcome.text.training_tokens {
        Some(tokens) => format!("{tokens} tokens to train on"),
        None => "streamed text".into(),
    };
    let _ = write!(
        page,
        "<h1>How loss falls with compute: {title}</h1>\n<p>{} rungs, {text}; device: {}.</p>\n<div class=\"charts\">\n",
        outcome.finished.len(),
        escaped(&outcome.device)
    );
    for finding in &outcome.laws {
        if finding.over.letters().len() == 1 {
            page += &of_law(outcome, finding);
        }
    }
    page += "</div>\n";
    for task in outcome.tasks.iter().filter(|task| !task.rise.stages.is_empty()) {
        let _ = write!(page, "<h2>{}</h2>\n<p class=\"verdict\">", escaped(&stem(&task.examination.name)));
        page += &escaped(&sentences(task).join(" "));
        page += "</p>\n<div class=\"charts\">\n";
        page += &of_task(outcome, task);
        page += "</div>\n";
    }
    page += "<h2>Laws</h2>\n";
    page += &table(&["law", "number", "value", "95 % low", "95 % high"], &numbers(outcome));
    page += "<ul>\n";
    for finding in &outcome.laws {
        let lines = foretold(finding).into_iter().chain(finding.notes.iter().cloned());
        let letters = finding.over.letters().join(", ");
        lines.for_each(|line| page += &format!("<li>L({letters}): {}</li>\n", escaped(&line)));
    }
    page += "</ul>\n<p>Huber loss (delta 0.001) of logarithms; intervals from rungs drawn anew with replacement.</p>\n<h2>All rungs</h2>\n";
    let (heads, rows) = cells(outcome);
    page += &table(&heads.iter().map(String::as_str).collect::<Vec<_>>(), &rows);
    if !outcome.failures.is_empty() {
        page += "<h2>Rungs that failed</h2>\n<dl>\n";
        for (name, why) in &outcome.failures {
            let _ = writeln!(page, "<dt>{}</dt><dd>{}</dd>", escaped(name), escaped(why));
        }
        page += "</dl>\n";
    }
    page + ENDING
}

fn numbers(outcome: &Outcome) -> Vec<Vec<String>> {
    let mut rows = vec![];
    for finding in &outcome.laws {
        for one in &finding.numbers {
            let end = |at: usize| one.bounds.map_or("-".into(), |bounds: [f64; 2]| scaled(bounds[at]));
            rows.push(vec![finding.formula.clone(), one.name.clone(), scaled(one.value), end(0), end(1)]);
        }
    }
    rows
}

/// Losses over one variable, both by powers of ten, with the law and its band.
fn of_law(outcome: &Outcome, finding: &Finding) -> String {
    let (name, below, of): (&str, &str, fn(&Finished) -> f64) = match finding.over {
        Over::Compute => ("Loss by compute", "FLOPs, by the plan's count", |done| done.facts.flops),
        Over::Tokens => ("Loss by tokens", "tokens, D", |done| done.facts.tokens as f64),
        _ => ("Loss by size", "parameters, N", |done| done.facts.counted as f64),
    };
    let point = |done: &Finished| Point {
        name: done.facts.size.to_string(),
        colour: if finding.rungs.contains(&done.facts.name) { 1 } else { 0 },
        x: Figure::exact(of(done)),
        y: Figure::exact(done.loss),
    };
    let points: Vec<Point> = outcome.finished.iter().map(point).collect();
    let mut trace = Trace { colour: 2, ..Trace::default() };
    if let Some(law) = &finding.law {
        let ends = points.iter().map(|p| p.x.value);
        let (low, high) = ends.fold((f64::INFINITY, 0.0f64), |(low, high), x| (low.min(x), high.max(x)));
        for at in 0..=PLACES {
            let x = low * (BEYOND * high / low).powf(at as f64 / PLACES as f64);
            trace.line.push([x, law.predict(&[x])]);
            if !finding.redrawn.is_empty() {
                let [low, high] = bounds(finding.redrawn.iter().map(|law| law.predict(&[x])).collect());
                trace.band.push([x, low, high]);
            }
        }
    }
    let figures = |of: fn(&Point) -> Figure| points.iter().map(of).collect::<Vec<_>>();
    let (mut xs, mut ys) = (figures(|p| p.x), figures(|p| p.y));
    xs.extend(trace.line.iter().map(|line| Figure::exact(line[0])));
    ys.extend(trace.line.iter().map(|line| Figure::exact(line[1])));
    let (x, y) = (Axis::of(below, &xs, true), Axis::of("validation loss, nats a token", &ys, true));
    let certain = if finding.is_determined { "" } else { " These rungs do not determine it." };
    let caption = match finding.law {
        Some(_) => format!("{}; band: 95 % of sets drawn anew.{certain}", escaped(&finding.formula)),
        None => "No law: see below.".into(),
    };
    figure(name, &plot(&format!("validation loss by {below}"), &x, &y, &[trace], &points), &caption)
}

/// Accuracy beside what has no threshold.
fn of_task(outcome: &Outcome, task: &Examined) -> String {
    let chance = task.examination.chances.level();
    let mark = task.rise.mark.map(|at| task.rise.stages[at].flops);
    let charts: [Chart; 3] = [
        ("Accuracy", "accuracy", |score| score.accuracy, true),
        (
            "Share of the right answer",
            "mean share of the right answer among the choices",
            |score| score.share,
            false,
        ),
        (
            "Likelihood of the right answer",
            "mean ln p of the right answer, nats",
            |score| score.likelihood,
            false,
        ),
    ];
    let chart = |(title, name, of, is_accuracy): Chart| {
        let point = |done: &Finished| {
            let [value, low, high] = of(done.tasks.get(&task.examination.name)?);
            let (x, y) = (Figure::exact(done.facts.flops), Figure { low, value, high });
            Some(Point { name: done.facts.size.to_string(), colour: 1, x, y })
        };
        let points: Vec<Point> = outcome.finished.iter().filter_map(point).collect();
        let mut ys: Vec<Figure> = points.iter().map(|p| p.y).collect();
        if is_accuracy {
            ys.push(Figure::exact(chance));
        }
        let xs: Vec<Figure> = points.iter().map(|p| p.x).collect();
        let ends = |figures: &[Figure]| {
            let all = figures.iter().flat_map(|f| [f.low, f.high]);
            all.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)))
        };
        let ((left, right), (bottom, top)) = (ends(&xs), ends(&ys));
        let dashed = |colour, line, name: &str| Trace {
            colour,
            line,
            is_dashed: true,
            name: name.into(),
            band: vec![],
        };
        let mut traces = vec![];
        if is_accuracy {
            traces.push(dashed(0, vec![[left, chance], [right, chance]], "chance"));
        }
        if let Some(flops) = mark {
            traces.push(dashed(
                2,
                vec![[flops, bottom], [flops, top]],
                if is_accuracy { "leaves chance" } else { "" },
            ));
        }
        let (x, y) = (Axis::of("FLOPs, by the plan's count", &xs, true), Axis::of(name, &ys, false));
        let drawing = plot(&format!("{name} by FLOPs"), &x, &y, &traces, &points);
        figure(title, &drawing, "Bars: 95 % interval over questions. Upright: where accuracy leaves chance.")
    };
    charts.into_iter().map(chart).collect()
}
