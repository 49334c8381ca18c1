//! `kiln bench serve`: a server under many streams at once, each compared with what it gives alone.

use super::client::Place;
use super::positive;
use crate::cli::{Usage, count};
use anyhow::{Context, bail};
use clap::Args;
use serde_json::{Value as Json, json};
use std::io::{BufRead, Read, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Ask a running server for many streams at once, and compare each with what it gives alone.
///
/// Each prompt is asked for alone first, greedily and by chance with a seed of its own. Then so many streams at once ask for them again
/// and again. A stream that fails, ends without its end, or has another text than alone counts as a fault, and the command fails.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  kiln bench serve http://127.0.0.1:8080 --streams 64 --seconds 60\n  kiln bench serve http://127.0.0.1:8080 --prompt \"The sea\" --prompt \"A house\" --json"
)]
pub struct Serve {
    /// Where the server is: http://HOST:PORT.
    #[arg(value_name = "URL")]
    url: String,
    /// Streams at once.
    #[arg(long, value_name = "COUNT", default_value_t = 64, value_parser = count)]
    streams: usize,
    /// How long.
    #[arg(long, default_value_t = 60.0, value_parser = positive)]
    seconds: f64,
    /// Tokens of each text.
    #[arg(long, value_name = "COUNT", default_value_t = 32, value_parser = count)]
    max_tokens: usize,
    /// A prompt. May be given again; absent: eight lists of the first token ids, which every model knows.
    #[arg(long, value_name = "TEXT")]
    prompt: Vec<String>,
    /// The key that the server wants to see.
    #[arg(long, value_name = "KEY")]
    api_key: Option<String>,
    /// Print one line of JSON.
    #[arg(long)]
    json: bool,
}

/// A request with the text that it gives alone.
struct Asked {
    body: String,
    alone: String,
}

/// What streams have seen.
#[derive(Default)]
struct Seen {
    texts: usize,
    parts: usize,
    /// Seconds to the first part, and between parts.
    first: Vec<f64>,
    gaps: Vec<f64>,
    faults: Vec<String>,
}

impl Serve {
    /// Loads the server, and prints what was seen.
    pub fn run(self) -> anyhow::Result<()> {
        let place = Place::parse(&self.url, self.api_key.clone(), Duration::from_secs(120));
        let place = place.map_err(|reason| Usage(format!("{}: {reason}", self.url)))?;
        let length = Duration::try_from_secs_f64(self.seconds).map_err(|error| Usage(error.to_string()))?;
        let asked = self.alone(&place)?;
        let begun = Instant::now();
        let (end, next, seen) = (begun + length, AtomicUsize::new(0), Mutex::new(Seen::default()));
        let resident = std::thread::scope(|scope| {
            for _ in 0..self.streams {
                scope.spawn(|| {
                    while Instant::now() < end {
                        let asked = &asked[next.fetch_add(1, Relaxed) % asked.len()];
                        let one = stream(&place, asked);
                        seen.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take(one);
                    }
                });
            }
            let mut resident = vec![];
            for tenth in 0..=10 {
                let due = begun + length.mul_f64(f64::from(tenth) / 10.0);
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                resident.extend(resident_mebibytes(&place));
            }
            resident
        });
        let elapsed = begun.elapsed().as_secs_f64();
        let mut seen = seen.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        let report = seen.report(&self, elapsed, &resident);
        let mut out = std::io::stdout().lock();
        match self.json {
            true => writeln!(out, "{report}")?,
            false => {
                for (name, value) in report.as_object().into_iter().flatten() {
                    writeln!(out, "{name:<24} {value}")?;
                }
            }
        }
        match seen.faults.first() {
            Some(first) => {
                bail!("{} of {} streams were at fault; the first: {first}", seen.faults.len(), seen.texts)
            }
            None => Ok(()),
        }
    }

    /// Every request, asked for alone.
    fn alone(&self, place: &Place) -> anyhow::Result<Vec<Asked>> {
        let prompts: Vec<Json> = match self.prompt.is_empty() {
            true => (0..8)
                .map(|number| json!((0..=number).map(|id| (id * 3 + number) % 8).collect::<Vec<u32>>()))
                .collect(),
            false => self.prompt.iter().map(|prompt| json!(prompt)).collect(),
        };
        let mut all = vec![];
        for (number, prompt) in prompts.iter().enumerate() {
            for temperature in [0.0, 1.0] {
                let mut body = json!({
                    "prompt": prompt, "max_tokens": self.max_tokens, "temperature": temperature, "seed": number,
                });
                let mut answer = place.ask("POST", "/v1/completions", Some(&body.to_string()))?;
                let mut text = String::new();
                answer.body.read_to_string(&mut text)?;
                let parsed: Json = serde_json::from_str(&text).context("the server's answer")?;
                let Some(alone) = parsed["choices"][0]["text"].as_str() else {
                    bail!("the server refuses: status {}: {text}", answer.status);
                };
                let alone = alone.to_string();
                body["stream"] = json!(true);
                all.push(Asked { body: body.to_string(), alone });
            }
        }
        Ok(all)
    }
}

/// One stream from its request to its end.
fn stream(place: &Place, asked: &Asked) -> Seen {
    let mut seen = Seen { texts: 1, ..Seen::default() };
    match listen(place, asked, &mut seen) {
        Ok(text) if text == asked.alone => {}
        Ok(text) => seen.faults.push(format!("it gave {text:?}, alone {:?}", asked.alone)),
        Err(error) => seen.faults.push(format!("{error:#}")),
    }
    seen
}

fn listen(place: &Place, asked: &Asked, seen: &mut Seen) -> anyhow::Result<String> {
    let begun = Instant::now();
    let mut answer = place.ask("POST", "/v1/completions", Some(&asked.body))?;
    if answer.status != 200 {
        let mut text = String::new();
        answer.body.read_to_string(&mut text)?;
        bail!("status {}: {text}", answer.status);
    }
    let (mut text, mut last) = (String::new(), None);
    for line in answer.body.lines() {
        let line = line?;
        let Some(data) = line.strip_prefix("data: ") else { continue };
        if data == "[DONE]" {
            return Ok(text);
        }
        let part: Json = serde_json::from_str(data).context("a part")?;
        if !part["error"].is_null() {
            bail!("{}", part["error"]);
        }
        let now = Instant::now();
        match last.replace(now) {
            None => seen.first.push((now - begun).as_secs_f64()),
            Some(last) => seen.gaps.push((now - last).as_secs_f64()),
        }
        seen.parts += 1;
        text += part["choices"][0]["text"].as_str().unwrap_or_default();
    }
    bail!("it ended without [DONE]")
}

/// Memory of the server's process, as it tells.
fn resident_mebibytes(place: &Place) -> Option<f64> {
    let text = place.text("/metrics").ok()?;
    let bytes = text.lines().find_map(|line| line.strip_prefix("process_resident_memory_bytes "))?;
    Some((bytes.parse::<f64>().ok()? / f64::from(1 << 20) * 10.0).round() / 10.0)
}

impl Seen {
    fn take(&mut self, other: Seen) {
        self.texts += other.texts;
        self.parts += other.parts;
        self.first.extend(other.first);
        self.gaps.extend(other.gaps);
        self.faults.extend(other.faults);
    }

    fn report(&mut self, of: &Serve, elapsed: f64, resident: &[f64]) -> Json {
        let round = |x: f64, places: i32| (x * 10f64.powi(places)).round() / 10f64.powi(places);
        let quantiles = |times: &mut Vec<f64>| {
            times.sort_by(f64::total_cmp);
            let at = |share: f64| times.get((times.len() as f64 * share) as usize).map(|x| round(x * 1e3, 2));
            json!({ "p50": at(0.5), "p99": at(0.99), "max": times.last().map(|x| round(x * 1e3, 2)) })
        };
        json!({
            "streams": of.streams,
            "seconds": round(elapsed, 2),
            "texts": self.texts,
            "faults": self.faults.len(),
            "parts_per_second": round(self.parts as f64 / elapsed, 1),
            "first_part_ms": quantiles(&mut self.first),
            "between_parts_ms": quantiles(&mut self.gaps),
            "resident_mebibytes": resident,
        })
    }
}
