//! A study as tables in the terminal, as CSV and as JSON.

use super::super::compare::table::number;
use super::super::plot::curve;
use super::super::report::{aligned, csv_line};
use super::Outcome;
use crate::cli::mebibytes;
use crate::scale::laws::Finding;
use crate::scale::rungs::{Facts, Rung, Rungs};
use crate::scale::study::Finished;
use serde_json::{Value, json};

/// Columns and lines of a curve in the terminal.
const CURVE: (usize, usize) = (64, 12);

/// What is known of all rungs before they are trained.
pub fn planned(all: &Rungs) -> String {
    let heads =
        ["rung", "parameters", "no tables", "tokens", "epochs", "steps", "rate", "FLOPs", "6 N D", "memory"];
    let row = |rung: &Rung| {
        let f = &rung.facts;
        vec![
            f.name.clone(),
            f.parameters.to_string(),
            f.parameters_without_embeddings.to_string(),
            f.tokens.to_string(),
            f.epochs.map_or("-".into(), |epochs| format!("{epochs:.2}")),
            f.steps.to_string(),
            format!("{:.2e}", f.learning_rate),
            format!("{:.3e}", f.flops),
            format!("{:.3e}", f.flops_6nd),
            mebibytes(f.memory_bytes),
        ]
    };
    let rows: Vec<Vec<String>> = all.rungs.iter().map(row).collect();
    let mut text = aligned(&heads.map(String::from), &rows, 1);
    text += &match all.text.training_tokens {
        Some(tokens) => {
            format!("text     {tokens} tokens to train on, {} to measure", all.text.validation_tokens)
        }
        None => format!(
            "text     streamed, so epochs are unknown; {} tokens to measure",
            all.text.validation_tokens
        ),
    };
    text += &format!("; {} different ones\n", all.text.vocabulary);
    text += &format!("rate     the recipe's is that of width {}\n", all.reference_width);
    text +=
        "FLOPs    by the plan's own count, of all steps; no tables: parameters without embeddings and head\n";
    let again = all.rungs.iter().filter(|rung| rung.facts.epochs.is_some_and(|epochs| epochs > 1.0)).count();
    if again > 0 {
        text += &format!(
            "warning: {again} of {} rungs read the text more than once; from about 4 times on that is worth less than new text\n",
            all.rungs.len()
        );
    }
    text
}

/// How long the other rungs take at the speed of one.
pub fn left(done: &Finished, others: &[Rung]) -> String {
    let seconds = done.step_ms * 1e-3 * done.facts.steps as f64;
    let rate = done.facts.flops / seconds;
    let left: f64 = others.iter().map(|rung| rung.facts.flops).sum::<f64>() / rate;
    let time = match left {
        s if s < 90.0 => format!("{s:.0} s"),
        s if s < 5400.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    };
    match others.len() {
        0 => format!("{:.2} GFLOP/s", rate / 1e9),
        count => format!("{:.2} GFLOP/s; {count} rungs to come: {time} at that speed", rate / 1e9),
    }
}

/// A law in a line, with what to know of it in further ones.
fn law(finding: &Finding) -> String {
    let of = |number_of: &crate::scale::laws::Number| {
        let bounds = number_of
            .bounds
            .map_or(String::new(), |[low, high]| format!(" [{}, {}]", scaled(low), scaled(high)));
        format!("{} {}{bounds}", number_of.name, scaled(number_of.value))
    };
    let numbers = finding.numbers.iter().map(of).collect::<Vec<_>>().join(", ");
    let what = match finding.numbers.is_empty() {
        true => format!("L({}): no law\n", finding.over.letters().join(", ")),
        false => format!("{}: {numbers}\n", finding.formula),
    };
    let notes: String = finding.notes.iter().map(|note| format!("  {note}\n")).collect();
    what + &foretold(finding).map_or(String::new(), |line| format!("  {line}\n")) + &notes
}

/// A number of any size; where an exponent is about zero, what stands before it may be beyond all numbers.
pub fn scaled(x: f64) -> String {
    match x {
        _ if !x.is_finite() => "-".into(),
        _ if x.abs() >= 1e6 => format!("{x:.3e}"),
        _ => number(x),
    }
}

/// How well the largest rung is foretold by the others.
pub fn foretold(finding: &Finding) -> Option<String> {
    let f = finding.foretold.as_ref()?;
    let bounds = f.bounds.map_or(String::new(), |[low, high]| format!(" [{low:.4}, {high:.4}]"));
    let line = if f.has_floor { "" } else { ", by a line without a floor" };
    Some(format!(
        "{} foretold from the others{line}: {:.4}{bounds}, measured {:.4}, {:+.2} %",
        f.rung,
        f.predicted,
        f.measured,
        100.0 * f.error
    ))
}

/// Heads and cells of what came of all rungs.
pub fn cells(outcome: &Outcome) -> (Vec<String>, Vec<Vec<String>>) {
    let mut heads = ["rung", "N", "D", "FLOPs", "loss", "train loss", "ms/step"].map(String::from).to_vec();
    for task in &outcome.tasks {
        heads.extend(
            ["accuracy", "p", "ln p(right)"].map(|head| format!("{head} {}", stem(&task.examination.name))),
        );
    }
    let row = |done: &Finished| {
        let f = &done.facts;
        let mut row = vec![
            f.name.clone(),
            f.counted.to_string(),
            f.tokens.to_string(),
            format!("{:.3e}", f.flops),
            format!("{:.4}", done.loss),
            format!("{:.4}", done.training_loss),
            format!("{:.2}", done.step_ms),
        ];
        for task in &outcome.tasks {
            row.extend(match done.tasks.get(&task.examination.name) {
                Some(score) => [
                    format!("{:.4}", score.accuracy[0]),
                    format!("{:.2e}", score.p_value),
                    format!("{:.4}", score.likelihood[0]),
                ],
                None => ["-", "-", "-"].map(String::from),
            });
        }
        row
    };
    let failed = outcome.failures.iter().map(|(name, _)| {
        let mut row = vec!["-".to_string(); heads.len()];
        row[0] = name.clone();
        row[4] = "failed".into();
        row
    });
    let rows = outcome.finished.iter().map(row).chain(failed).collect();
    (heads, rows)
}

/// A task's name without its folder and ending.
pub fn stem(name: &str) -> String {
    std::path::Path::new(name).file_stem().map_or(name.into(), |stem| stem.to_string_lossy().into_owned())
}

/// What came of a study, for a terminal.
pub fn told(outcome: &Outcome) -> String {
    let (heads, rows) = cells(outcome);
    let mut text = aligned(&heads, &rows, 1) + "\n";
    outcome.laws.iter().for_each(|finding| text += &law(finding));
    let points: Vec<(f64, f64)> =
        outcome.finished.iter().map(|done| (done.facts.flops.log10(), done.loss)).collect();
    text += &format!("\nloss by the power of ten of FLOPs\n{}", curve(&points, None, CURVE.0, CURVE.1));
    for task in &outcome.tasks {
        let points: Vec<(f64, f64)> =
            task.rise.stages.iter().map(|stage| (stage.flops.log10(), stage.accuracy)).collect();
        let chance = task.examination.chances.level();
        text += &format!(
            "\n{}: accuracy by the power of ten of FLOPs, chance {chance:.3} dashed\n{}",
            stem(&task.examination.name),
            curve(&points, Some(chance), CURVE.0, CURVE.1)
        );
        sentences(task).iter().for_each(|line| text += &format!("{line}\n"));
    }
    outcome.failures.iter().for_each(|(name, why)| text += &format!("failed   {name}: {why}\n"));
    text
}

/// What a task's curve says.
pub fn sentences(task: &super::Examined) -> Vec<String> {
    let chances = &task.examination.chances;
    let level = match chances.is_commonest {
        true => format!("Chance is {:.3}: as often as the commonest answer is right.", chances.level()),
        false => format!("Chance is {:.3}: one over the number of choices.", chances.level()),
    };
    let mark = match task.rise.mark.map(|at| &task.rise.stages[at]) {
        Some(stage) => format!(
            "Accuracy leaves chance at {}, {:.3e} FLOPs (corrected p = {:.2e}), and stays above.",
            stage.name, stage.flops, stage.p_value
        ),
        None => "Accuracy leaves chance nowhere for good (corrected p at or above 0.05).".into(),
    };
    let verdict = &task.rise.verdict;
    let verdict = verdict[..1].to_uppercase() + &verdict[1..] + ".";
    vec![level, mark, verdict]
}

/// A column of facts: its name, and what stands in it.
type Column = (&'static str, fn(&Facts) -> String);

/// All rungs, a line each; numbers as they are.
pub fn csv(outcome: &Outcome) -> String {
    let facts: [Column; 15] = [
        ("rung", |f| f.name.clone()),
        ("width", |f| f.size.width.to_string()),
        ("layers", |f| f.size.layers.to_string()),
        ("heads", |f| f.size.heads.to_string()),
        ("parameters", |f| f.parameters.to_string()),
        ("parameters_without_embeddings", |f| f.parameters_without_embeddings.to_string()),
        ("counted", |f| f.counted.to_string()),
        ("tokens", |f| f.tokens.to_string()),
        ("epochs", |f| f.epochs.map_or(String::new(), |epochs| epochs.to_string())),
        ("steps", |f| f.steps.to_string()),
        ("seed", |f| f.seed.to_string()),
        ("learning_rate", |f| f.learning_rate.to_string()),
        ("flops", |f| f.flops.to_string()),
        ("flops_6nd", |f| f.flops_6nd.to_string()),
        ("memory_bytes", |f| f.memory_bytes.to_string()),
    ];
    let of_task = ["accuracy", "right", "questions", "right_by_length", "p_value", "likelihood", "share"];
    let mut heads: Vec<String> = facts.iter().map(|(name, _)| name.to_string()).collect();
    heads.extend(["loss", "training_loss", "step_ms"].map(String::from));
    for task in &outcome.tasks {
        heads.extend(of_task.map(|part| format!("{}.{part}", stem(&task.examination.name))));
    }
    let mut text = csv_line(&heads);
    for done in &outcome.finished {
        let mut row: Vec<String> = facts.iter().map(|(_, of)| of(&done.facts)).collect();
        row.extend([done.loss, done.training_loss, done.step_ms].map(|x| x.to_string()));
        for task in &outcome.tasks {
            row.extend(match done.tasks.get(&task.examination.name) {
                Some(s) => [
                    s.accuracy[0].to_string(),
                    s.right.to_string(),
                    s.questions.to_string(),
                    s.right_by_length.to_string(),
                    s.p_value.to_string(),
                    s.likelihood[0].to_string(),
                    s.share[0].to_string(),
                ],
                None => [const { String::new() }; 7],
            });
        }
        text += &csv_line(&row);
    }
    text
}

/// Everything.
pub fn json(outcome: &Outcome) -> Value {
    let task = |task: &super::Examined| {
        let chances = &task.examination.chances;
        let mark = task.rise.mark.map(|at| &task.rise.stages[at]);
        json!({
            "task": task.examination.name, "questions": task.examination.task.count(), "chance": chances.level(),
            "chance_is_commonest_answer": chances.is_commonest, "stages": task.rise.stages, "mark": mark,
            "verdict": task.rise.verdict,
        })
    };
    let failure = |(name, why): &(String, String)| json!({ "rung": name, "why": why });
    json!({
        "device": outcome.device, "text": outcome.text, "rungs": outcome.finished,
        "failures": outcome.failures.iter().map(failure).collect::<Vec<_>>(),
        "laws": outcome.laws, "tasks": outcome.tasks.iter().map(task).collect::<Vec<_>>(),
    })
}
