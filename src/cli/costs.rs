//! What each node of a plan costs: by its own account and by the clock.

use super::bench::Roofs;
use crate::data::groups::sorted_positions;
#[cfg(feature = "gpu")]
use crate::gpu::{Gpu, GpuEngine, Pipelines};
use crate::model::{self, Family};
use crate::ops::Value;
use crate::plan::{Engine, Feed, HostEngine, Plan};
use crate::tensor::{DType, Tensor, random::Stream};
use crate::train::{job::Step, program::Program};
use serde_json::{Value as Json, json};
#[cfg(feature = "gpu")]
use std::sync::Arc;

/// One node with all its dispatches.
pub struct Row {
    node: usize,
    op: &'static str,
    scope: String,
    variant: String,
    dispatches: usize,
    /// Floating-point operations, a multiply-add counted as two.
    pub flops: f64,
    /// Bytes that must move at least.
    pub bytes: f64,
    /// Time it would take at the device's best rates: the larger of operations over operations a second and bytes over bytes
    /// a second. What stays in a cache may beat it.
    pub floor_ms: Option<f64>,
    /// Measured time of all its dispatches.
    pub ms: Option<f64>,
}

/// The nodes of a plan in the order they run, without times.
pub fn rows(plan: &Plan) -> Vec<Row> {
    let kinds = |values: &[Value]| values.iter().map(|&v| plan.graph.kind(v).clone()).collect::<Vec<_>>();
    let mut rows: Vec<Row> = vec![];
    for dispatch in &plan.dispatches {
        // The dispatches of a node are neighbours.
        if let Some(row) = rows.last_mut().filter(|row| row.node == dispatch.node) {
            row.dispatches += 1;
            continue;
        }
        let node = &plan.graph.nodes()[dispatch.node];
        let cost = node.op.cost(&kinds(&node.inputs), &kinds(&node.outputs));
        rows.push(Row {
            node: dispatch.node,
            op: node.op.name(),
            scope: node.scope.clone(),
            variant: dispatch.variant.clone(),
            dispatches: 1,
            flops: cost.flops,
            bytes: cost.bytes,
            floor_ms: None,
            ms: None,
        });
    }
    rows
}

/// Sets each row's floor by the best rates of the device.
pub fn set_floors(rows: &mut [Row], roofs: &Roofs) {
    for row in rows {
        row.floor_ms = Some(1e3 * (row.flops / roofs.multiply).max(row.bytes / roofs.copy));
    }
}

/// Spreads the times of a plan's dispatches over its rows.
#[cfg(feature = "gpu")]
fn set_times(rows: &mut [Row], times_ms: &[f64]) {
    let mut left = times_ms;
    for row in rows {
        let (own, rest) = left.split_at(row.dispatches.min(left.len()));
        row.ms = Some(own.iter().sum());
        left = rest;
    }
}

/// A row as JSON.
pub fn json_of(row: &Row) -> Json {
    json!({
        "node": row.node, "op": row.op, "scope": row.scope, "variant": row.variant,
        "dispatches": row.dispatches, "flops": row.flops, "bytes": row.bytes, "floor_ms": row.floor_ms,
        "ms": row.ms,
    })
}

/// Rows as a table; the columns of times and floors only where there are any.
pub fn table(rows: &[Row]) -> String {
    let timed = rows.iter().any(|row| row.ms.is_some());
    let time = |floor: String, ms: String| match timed {
        true => format!("{floor:>10}{ms:>10}"),
        false => String::new(),
    };
    let line = |node: &str, op: &str, variant: &str, work: [String; 2], ms: String, scope: &str| {
        let [flops, bytes] = work;
        let text = format!("{node:>5}  {op:<22} {variant:<24} {flops:>10} {bytes:>10}{ms}  {scope}");
        format!("{}\n", text.trim_end())
    };
    let head = ["MFLOP".to_string(), "KiB".to_string()];
    let mut text = line("node", "operator", "variant", head, time("floor ms".into(), "ms".into()), "place");
    let work = |row: &Row| [format!("{:.3}", row.flops / 1e6), format!("{:.1}", row.bytes / 1024.0)];
    for row in rows {
        let variant = match row.dispatches {
            1 => row.variant.clone(),
            count => format!("{} x{count}", row.variant),
        };
        let of = |ms: Option<f64>| ms.map_or(String::new(), |ms| format!("{ms:.4}"));
        let ms = time(of(row.floor_ms), of(row.ms));
        text += &line(&row.node.to_string(), row.op, &variant, work(row), ms, &row.scope);
    }
    text
}

/// How long a plan took.
#[derive(Default)]
pub struct Clock {
    /// Median of whole runs, with waiting for the result, in ms.
    pub whole_ms: Option<f64>,
    /// How single dispatches were timed.
    pub how: &'static str,
}

/// Whole runs of which the median counts.
const RUNS: usize = 5;

/// Profiles of which the median of each dispatch counts.
#[cfg(feature = "gpu")]
const PROFILES: usize = 3;

/// The median of each place over lists of equal length.
#[cfg(feature = "gpu")]
fn medians(lists: &[Vec<f64>]) -> Vec<f64> {
    let middle = |at: usize| {
        let mut values: Vec<f64> = lists.iter().map(|list| list[at]).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    (0..lists.first().map_or(0, Vec::len)).map(middle).collect()
}

/// Times the plans of a program on a device with random tokens and first weights, and fills in the rows of each.
#[cfg(feature = "gpu")]
pub fn measure(
    gpu: &Arc<Gpu>,
    pipelines: &Pipelines,
    program: &Program,
    step: &Step,
    family: &dyn Family,
    rows: &mut [Vec<Row>],
) -> anyhow::Result<Vec<Clock>> {
    let plans: Vec<Plan> = program.plans().map(|(_, plan)| plan.clone()).collect();
    let lists: Vec<Vec<Feed>> = plans.iter().map(|plan| plan.feeds.clone()).collect();
    let mut engine = GpuEngine::new(gpu.clone(), pipelines, program.arenas(), plans)?;
    write_weights(&mut engine, program, step, family)?;
    let mut clocks = vec![];
    for ((number, feeds), rows) in lists.iter().enumerate().zip(rows) {
        let feeds = some_feeds(feeds, program, step, family.vocabulary())?;
        let feeds: Vec<&Tensor> = feeds.iter().collect();
        engine.run(number, &feeds)?;
        let whole_ms = whole_runs(&mut engine, number, &feeds)?;
        let (times, how) = match gpu.listing.timestamps {
            true => {
                let profile = |_| Ok(engine.profile(number, &feeds)?);
                let profiles = (0..PROFILES).map(profile).collect::<anyhow::Result<Vec<_>>>()?;
                (medians(&profiles), "in place, by the device's clock")
            }
            false => (engine.time_alone(number, RUNS as u32)?, "alone, by the host's clock"),
        };
        set_times(rows, &times);
        clocks.push(Clock { whole_ms: Some(whole_ms), how });
    }
    Ok(clocks)
}

/// Times the plans of a program on the host in the same way.
pub fn measure_host(
    program: &Program,
    step: &Step,
    family: &dyn Family,
    rows: &mut [Vec<Row>],
) -> anyhow::Result<Vec<Clock>> {
    let plans: Vec<Plan> = program.plans().map(|(_, plan)| plan.clone()).collect();
    let lists: Vec<Vec<Feed>> = plans.iter().map(|plan| plan.feeds.clone()).collect();
    let mut engine = HostEngine::new(program.arenas(), plans);
    write_weights(&mut engine, program, step, family)?;
    let mut clocks = vec![];
    for ((number, feeds), rows) in lists.iter().enumerate().zip(rows) {
        let feeds = some_feeds(feeds, program, step, family.vocabulary())?;
        let whole_ms = whole_runs(&mut engine, number, &feeds.iter().collect::<Vec<_>>())?;
        for (node, time) in engine.times(number) {
            rows.iter_mut().filter(|r| r.node == node).for_each(|r| r.ms = Some(time.as_secs_f64() * 1e3));
        }
        clocks.push(Clock { whole_ms: Some(whole_ms), how: "in place, mean of all runs" });
    }
    Ok(clocks)
}

fn write_weights(
    engine: &mut dyn Engine,
    program: &Program,
    step: &Step,
    family: &dyn Family,
) -> anyhow::Result<()> {
    for (span, tensor) in program.fixed(&step.settings) {
        engine.write(span, &tensor)?;
    }
    let weights = model::initial(&family.parameters(), step.settings.seed);
    for (placed, span) in program.weights() {
        engine.write(span, weights.get(&placed.name)?)?;
    }
    Ok(())
}

/// Median time of whole runs, in ms.
fn whole_runs(engine: &mut dyn Engine, number: usize, feeds: &[&Tensor]) -> anyhow::Result<f64> {
    let mut whole_ms = vec![];
    for _ in 0..RUNS {
        let start = std::time::Instant::now();
        engine.run(number, feeds)?;
        whole_ms.push(start.elapsed().as_secs_f64() * 1e3);
    }
    whole_ms.sort_by(f64::total_cmp);
    Ok(whole_ms[RUNS / 2])
}

/// Random tokens and targets, with what belongs to them; the update at step 0 with a small learning rate.
fn some_feeds(
    feeds: &[Feed],
    program: &Program,
    step: &Step,
    vocabulary: usize,
) -> anyhow::Result<Vec<Tensor>> {
    let positions = step.extent.positions();
    let mut random = Stream::new(&[0x636f_7374]);
    let tokens: Vec<u32> = (0..positions).map(|_| random.below(vocabulary as u64) as u32).collect();
    let groups = sorted_positions(&tokens, vocabulary);
    let update = program.update_scalars(&step.settings, 1e-4);
    let of = |feed: &Feed| match feed.name.as_str() {
        "tokens" => Tensor::u32(feed.kind.shape.clone(), tokens.clone()),
        "targets" if feed.kind.dtype == DType::I32 => {
            Tensor::i32(feed.kind.shape.clone(), tokens.iter().map(|&t| t as i32).collect())
        }
        "order" => Tensor::u32(feed.kind.shape.clone(), groups.order.clone()),
        "starts" => Tensor::u32(feed.kind.shape.clone(), groups.starts.clone()),
        "scalars" if feed.kind == update.host_type() => update.clone(),
        _ => Tensor::zeros(&feed.kind),
    };
    Ok(feeds.iter().map(of).collect())
}
