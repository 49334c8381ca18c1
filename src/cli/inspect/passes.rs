//! `kiln inspect --passes`: what each pass does to a graph, operator by operator, and what a recipe of compression does to a model.

use crate::cli::compress::Source;
use crate::cli::mebibytes;
use crate::compress::{Recipe, Report, Setting, Stage, Statistics, Subject, checked};
use crate::deploy::Deployment;
use crate::graph::Graph;
use crate::model::{Extent, Mode, Reading};
use crate::passes::{self, Change};
use crate::train::program::Program;
use anyhow::Context;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// Graphs that stand together under names, each with what its passes did.
pub fn text_of(program: &Program) -> String {
    let of = |(name, reports): (&str, &[passes::Report])| format!("# {name}\n{}\n", table(reports));
    program.passes().map(of).collect()
}

/// The same as JSON.
pub fn json_of(program: &Program) -> Value {
    let of = |(name, reports): (&str, &[passes::Report])| (name.to_string(), json_of_all(reports));
    Value::Object(program.passes().map(of).collect::<Map<_, _>>())
}

fn json_of_all(reports: &[passes::Report]) -> Value {
    let one = |r: &passes::Report| {
        json!({
            "pass": r.pass, "nodes_before": r.nodes_before, "nodes_after": r.nodes_after,
            "operators": json_of_changes(&r.changes),
        })
    };
    reports.iter().map(one).collect()
}

fn json_of_changes(changes: &[Change]) -> Value {
    let one = |c: &Change| (c.operator.to_string(), json!([c.before, c.after]));
    Value::Object(changes.iter().map(one).collect::<Map<_, _>>())
}

fn table(reports: &[passes::Report]) -> String {
    let mut text = format!("{:<14}{:>6}  {:>6}  operators\n", "pass", "before", "after");
    for r in reports {
        let changes = if r.changes.is_empty() { "as they were".into() } else { words(&r.changes) };
        text += &format!("{:<14}{:>6}  {:>6}  {changes}\n", r.pass, r.nodes_before, r.nodes_after);
    }
    text
}

/// Operators that were made, grew or shrank in number: `matmul 12 -> 6`.
fn words(changes: &[Change]) -> String {
    let one = |c: &Change| format!("{} {} -> {}", c.operator, c.before, c.after);
    changes.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// A model between two passes of a recipe: its graph as it runs, and its weights.
struct Look {
    graph: Graph,
    reports: Vec<passes::Report>,
    elements: usize,
    bytes: u64,
}

impl Look {
    fn at(subject: &Subject) -> anyhow::Result<Look> {
        let deployment = Deployment::new(&subject.weights);
        let extent = Extent { batch: 1, context: subject.family.context().min(32) };
        let reading = Reading::new(extent, Mode::Evaluate);
        let family = subject.family.as_ref();
        let (graph, reports) = deployment.graph_with_reports(family, &reading, |graph, forward| {
            graph.output("logits", forward.logits);
            Ok(())
        })?;
        let (elements, bytes) = (subject.weights.count_elements(), deployment.weight_bytes());
        Ok(Look { graph, reports, elements, bytes })
    }

    fn text(&self) -> String {
        format!(
            "{} operators, {} weights in {} on the device",
            self.graph.nodes().len(),
            self.elements,
            mebibytes(self.bytes)
        )
    }

    fn json(&self) -> Value {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        self.graph.nodes().iter().for_each(|node| *counts.entry(node.op.name()).or_default() += 1);
        json!({
            "nodes": self.graph.nodes().len(), "operators": counts, "weights": self.elements,
            "weight_bytes": self.bytes, "passes": json_of_all(&self.reports),
        })
    }
}

/// Applies a recipe of compression to a model in memory and shows the model before, between and after its passes; nothing is written.
/// A pass that trains, or goes back to weights of before, is not run.
pub fn of_recipe(model: &Path, recipe: &Path, device: &str, as_json: bool) -> anyhow::Result<String> {
    let place = recipe.display().to_string();
    let text = std::fs::read_to_string(recipe).with_context(|| place.clone())?;
    let recipe = Recipe::parse(&place, &text)?;
    let source = Source::open(model, &recipe, device)?;
    let mut subject = source.model.copy()?;
    let mut last = Look::at(&subject)?;
    let (mut text, mut all) = (String::new(), vec![json!({ "pass": null, "model": last.json() })]);
    text += &format!("model    {}\n         {}\n", subject.family.describe(), last.text());
    text += &format!("\nits graph, made ready to run\n{}", table(&last.reports));
    for (at, stage) in recipe.stages().enumerate() {
        text += &format!("\npass {:<3} {}\n", at + 1, stage.kind());
        let needs = stage.needs();
        if needs.training || needs.earlier.is_some() {
            let does = if needs.training { "trains" } else { "goes back to earlier weights" };
            text += &format!("         it {does}, which is not done here: shapes and operators stay\n");
            all.push(json!({ "pass": stage.kind(), "trains": needs.training }));
            continue;
        }
        let done = apply(stage, &mut subject, &source, &recipe)?;
        let now = Look::at(&subject)?;
        let report = passes::Report::of(stage.kind(), &last.graph, &now.graph);
        let changes = words(&report.changes);
        text += &format!("         {}\n         {}\n", done.summary, now.text());
        text += &format!("         {}\n", if changes.is_empty() { "the same operators" } else { &changes });
        all.push(json!({
            "pass": stage.kind(), "summary": done.summary, "operators": json_of_changes(&report.changes),
            "model": now.json(),
        }));
        last = now;
    }
    Ok(if as_json { Value::Array(all).to_string() } else { text })
}

fn apply(
    stage: &dyn Stage,
    subject: &mut Subject,
    source: &Source,
    recipe: &Recipe,
) -> anyhow::Result<Report> {
    let (stop, known) = (AtomicBool::new(false), Statistics::default());
    let setting = Setting {
        target: source.target(),
        device: "cpu",
        batches: &source.batches,
        known: &known,
        memory_bytes: recipe.calibration.memory.0,
        seed: recipe.seed,
        data: &recipe.data,
        original: &source.folder,
        earlier: std::slice::from_ref(&source.folder),
        folder: &source.folder,
        stop: &stop,
        say: &|_| {},
    };
    Ok(checked(stage, subject, &setting)?)
}
