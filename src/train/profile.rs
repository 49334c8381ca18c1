//! Where a step's time goes: each node with the time it took, as a table for people and as a trace for browsers.

use crate::plan::Plan;
use serde_json::{Value as Json, json};
use std::fmt::Write;

/// Name of the table in a run folder.
pub const TABLE_NAME: &str = "profile.txt";
/// Name of the trace, in the format that `chrome://tracing` and Perfetto open.
pub const TRACE_NAME: &str = "profile.json";

/// One node of a plan with its time.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// `step`, `gather` or `update`.
    pub plan: &'static str,
    /// Where in the model it stands.
    pub scope: String,
    /// Operator.
    pub op: &'static str,
    /// Kernel, or `host`.
    pub variant: String,
    /// Time it took.
    pub ms: f64,
    /// Floating-point operations, a multiply-add counted as two.
    pub flops: f64,
    /// Bytes that must move at least.
    pub bytes: f64,
}

/// The nodes of a plan with times (node, ms): those of a node's dispatches are added up.
pub fn rows(name: &'static str, plan: &Plan, times_ms: &[(usize, f64)], on_host: bool) -> Vec<Row> {
    let mut rows: Vec<(usize, Row)> = vec![];
    for &(number, ms) in times_ms {
        if let Some((_, row)) = rows.last_mut().filter(|(last, _)| *last == number) {
            row.ms += ms;
            continue;
        }
        let node = &plan.graph.nodes()[number];
        let kinds = |values: &[crate::ops::Value]| -> Vec<_> {
            values.iter().map(|&v| plan.graph.kind(v).clone()).collect()
        };
        let cost = node.op.cost(&kinds(&node.inputs), &kinds(&node.outputs));
        let chosen = plan.dispatches.iter().find(|d| d.node == number).filter(|_| !on_host);
        let variant = chosen.map_or("host".to_string(), |d| d.variant.clone());
        let (scope, op, flops, bytes) = (node.scope.clone(), node.op.name(), cost.flops, cost.bytes);
        rows.push((number, Row { plan: name, scope, op, variant, ms, flops, bytes }));
    }
    rows.into_iter().map(|(_, row)| row).collect()
}

/// Time by operator and kernel, the longest first, with what it computes and moves in a second.
pub fn table(rows: &[Row]) -> String {
    let mut sums: Vec<(Row, usize)> = vec![];
    for row in rows {
        let same = |r: &Row| (r.plan, r.op, &r.variant) == (row.plan, row.op, &row.variant);
        match sums.iter_mut().find(|(sum, _)| same(sum)) {
            Some((sum, count)) => {
                sum.ms += row.ms;
                sum.flops += row.flops;
                sum.bytes += row.bytes;
                *count += 1;
            }
            None => sums.push((row.clone(), 1)),
        }
    }
    sums.sort_by(|a, b| b.0.ms.total_cmp(&a.0.ms));
    let total: f64 = rows.iter().map(|row| row.ms).sum();
    let mut text = format!("{total:.3} ms in {} operators\n\n", rows.len());
    let line = |cells: [&str; 8]| {
        let [plan, op, variant, count, ms, share, flops, bytes] = cells;
        format!("{plan:<7}{op:<24}{variant:<28}{count:>6}{ms:>10}{share:>8}{flops:>10}{bytes:>8}\n")
    };
    text += &line(["plan", "operator", "kernel", "count", "ms", "share", "GFLOP/s", "GB/s"]);
    for (row, count) in sums {
        let rate =
            |amount: f64| if row.ms > 0.0 { format!("{:.1}", amount / row.ms / 1e6) } else { "-".into() };
        let share = format!("{:.1} %", 100.0 * row.ms / total);
        let (count, ms) = (count.to_string(), format!("{:.3}", row.ms));
        let cells = [row.plan, row.op, &row.variant, &count, &ms, &share, &rate(row.flops), &rate(row.bytes)];
        let _ = write!(text, "{}", line(cells));
    }
    text
}

/// The rows one after the other as complete events of the trace event format, in microseconds.
pub fn trace(rows: &[Row], device: &str) -> Json {
    let mut at = 0.0;
    let mut events =
        vec![json!({ "name": "process_name", "ph": "M", "pid": 1, "tid": 1, "args": { "name": device } })];
    for row in rows {
        let us = 1e3 * row.ms;
        events.push(json!({
            "name": row.op, "cat": row.plan, "ph": "X", "pid": 1, "tid": 1, "ts": at, "dur": us,
            "args": { "scope": row.scope, "kernel": row.variant, "flop": row.flops, "bytes": row.bytes },
        }));
        at += us;
    }
    json!({ "traceEvents": events, "displayTimeUnit": "ms" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(op: &'static str, ms: f64) -> Row {
        let (scope, variant) = ("layer.0".to_string(), format!("{op}_tile"));
        Row { plan: "step", scope, op, variant, ms, flops: 2e6, bytes: 4e6 }
    }

    #[test]
    fn the_table_adds_up_equal_kernels_and_begins_with_the_longest() {
        let text = table(&[row("softmax", 1.0), row("matmul", 2.0), row("matmul", 2.0)]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "5.000 ms in 3 operators");
        let words: Vec<&str> = lines[3].split_whitespace().collect();
        assert_eq!(words, ["step", "matmul", "matmul_tile", "2", "4.000", "80.0", "%", "1.0", "2.0"]);
    }

    #[test]
    fn the_trace_puts_one_event_behind_the_other() {
        let json = trace(&[row("a", 1.5), row("b", 2.0)], "card");
        let events = json["traceEvents"].as_array().unwrap();
        assert_eq!((events[1]["ts"].as_f64(), events[1]["dur"].as_f64()), (Some(0.0), Some(1500.0)));
        assert_eq!((events[2]["ts"].as_f64(), &events[2]["name"]), (Some(1500.0), &json!("b")));
    }
}
