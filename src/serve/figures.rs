//! What the server counts, in the text form that Prometheus reads.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper ends of the histograms' buckets, in seconds.
const BUCKETS: [f64; 16] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// How often something took how long.
#[derive(Debug, Default)]
pub struct Histogram {
    /// Of each bucket what fell into it alone; the last one has no end.
    counts: [AtomicU64; BUCKETS.len() + 1],
    sum_micros: AtomicU64,
}

impl Histogram {
    /// Counts a time.
    pub fn take(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        let bucket = BUCKETS.iter().position(|end| seconds <= *end).unwrap_or(BUCKETS.len());
        self.counts[bucket].fetch_add(1, Relaxed);
        self.sum_micros.fetch_add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX), Relaxed);
    }

    fn write(&self, out: &mut String, name: &str, about: &str) {
        head(out, name, "histogram", about);
        let mut sum = 0;
        for (count, end) in self.counts.iter().zip(BUCKETS.iter().map(f64::to_string).chain(["+Inf".into()]))
        {
            sum += count.load(Relaxed);
            let _ = writeln!(out, "{name}_bucket{{le=\"{end}\"}} {sum}");
        }
        let seconds = self.sum_micros.load(Relaxed) as f64 / 1e6;
        let _ = writeln!(out, "{name}_sum {seconds}\n{name}_count {sum}");
    }
}

/// All that is counted.
#[derive(Debug, Default)]
pub struct Figures {
    requests: Mutex<BTreeMap<(&'static str, u16), u64>>,
    /// Tokens of prompts that were taken on.
    pub prompt_tokens: AtomicU64,
    /// Of these the ones that a row had read already.
    pub reused_tokens: AtomicU64,
    /// Tokens that were written.
    pub generated_tokens: AtomicU64,
    /// Passes over all texts that had a row.
    pub steps: AtomicU64,
    /// Texts that have a row.
    pub active: AtomicU64,
    /// Texts that wait for one.
    pub waiting: AtomicU64,
    /// Texts that nobody waited for any more.
    pub cancelled: AtomicU64,
    /// Texts given up since their client did not read.
    pub slow_clients: AtomicU64,
    /// Steps that failed.
    pub failures: AtomicU64,
    /// Connections that are open.
    pub connections: AtomicU64,
    /// From a request's arrival to its first token.
    pub first_token: Histogram,
    /// From each token of a text to the next.
    pub next_token: Histogram,
}

impl Figures {
    /// Counts an answer.
    pub fn answered(&self, route: &'static str, status: u16) {
        let mut requests = self.requests.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        *requests.entry((route, status)).or_default() += 1;
    }

    /// Everything as text.
    pub fn text(&self) -> String {
        let mut out = String::new();
        head(&mut out, "kiln_requests_total", "counter", "Answers by route and status.");
        for ((route, status), count) in self.requests.lock().unwrap_or_else(|p| p.into_inner()).iter() {
            let _ = writeln!(out, "kiln_requests_total{{route=\"{route}\",status=\"{status}\"}} {count}");
        }
        let counters = [
            ("kiln_prompt_tokens_total", &self.prompt_tokens, "Tokens of prompts taken on."),
            (
                "kiln_reused_prompt_tokens_total",
                &self.reused_tokens,
                "Of these the ones that were read before.",
            ),
            ("kiln_generated_tokens_total", &self.generated_tokens, "Tokens written."),
            ("kiln_steps_total", &self.steps, "Passes over all texts that had a row."),
            ("kiln_cancelled_texts_total", &self.cancelled, "Texts that nobody waited for any more."),
            (
                "kiln_slow_clients_total",
                &self.slow_clients,
                "Texts given up since their client did not read.",
            ),
            ("kiln_failed_steps_total", &self.failures, "Steps that failed."),
        ];
        for (name, value, about) in counters {
            head(&mut out, name, "counter", about);
            let _ = writeln!(out, "{name} {}", value.load(Relaxed));
        }
        let gauges = [
            ("kiln_active_texts", &self.active, "Texts that have a row."),
            ("kiln_waiting_texts", &self.waiting, "Texts that wait for a row."),
            ("kiln_connections", &self.connections, "Connections that are open."),
        ];
        for (name, value, about) in gauges {
            head(&mut out, name, "gauge", about);
            let _ = writeln!(out, "{name} {}", value.load(Relaxed));
        }
        let first = "From a request's arrival to its first token.";
        self.first_token.write(&mut out, "kiln_time_to_first_token_seconds", first);
        self.next_token.write(
            &mut out,
            "kiln_time_per_token_seconds",
            "From each token of a text to the next.",
        );
        if let Some(bytes) = resident_bytes() {
            let name = "process_resident_memory_bytes";
            head(&mut out, name, "gauge", "Memory that the process holds.");
            let _ = writeln!(out, "{name} {bytes}");
        }
        out
    }
}

fn head(out: &mut String, name: &str, kind: &str, about: &str) {
    let _ = writeln!(out, "# HELP {name} {about}\n# TYPE {name} {kind}");
}

/// Memory of this process, where the system has a file that says so.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kibibytes| kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_hold_all_that_is_not_longer_and_answers_are_counted_by_route_and_status() {
        let figures = Figures::default();
        for micros in [400, 500, 3000, 120_000_000] {
            figures.first_token.take(Duration::from_micros(micros));
        }
        figures.answered("/v1/models", 200);
        figures.answered("/v1/models", 200);
        let text = figures.text();
        for line in [
            "kiln_requests_total{route=\"/v1/models\",status=\"200\"} 2",
            "kiln_time_to_first_token_seconds_bucket{le=\"0.0005\"} 2",
            "kiln_time_to_first_token_seconds_bucket{le=\"60\"} 3",
            "kiln_time_to_first_token_seconds_bucket{le=\"+Inf\"} 4",
            "kiln_time_to_first_token_seconds_sum 120.0039",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in {text}");
        }
    }
}
