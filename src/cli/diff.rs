//! `kiln diff`: how far one model is from another.

use super::folder::{Beside, resolve};
use super::passage::Passage;
use crate::compare::{Apart, Mean, Model, Quantile, Reference, Scored, Summary, expect_alike, weight_noise};
use crate::exchange::{self, Opened};
use crate::train::Target;
use clap::Args;
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Tell how far model B is from model A over a text: weights, residual stream, next-token distributions, perplexity.
///
/// Both must be of one design; either may be quantised. Signal to noise is the power of A's values over that of what B's are off
/// by. Weights of a model that was smoothed or scaled (smoothquant, awq) differ without being worse: look at the residual stream.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  kiln diff runs/shakespeare shakespeare-int8 --data unseen.txt\n  kiln diff llama llama-int4 --data unseen.txt --json\n  kiln diff smollm smollm --adapter style --data unseen.txt\n  kiln diff before after --tokenizer char --data input.txt --windows batches.safetensors"
)]
pub struct Diff {
    /// The model that counts as right: a run folder, a checkpoint, a Hugging Face folder, or a GGUF file.
    #[arg(value_name = "A")]
    first: PathBuf,
    /// The model that is held against it, with the adapters if there are some.
    #[arg(value_name = "B")]
    second: PathBuf,
    #[command(flatten)]
    beside: Beside,
    #[command(flatten)]
    passage: Passage,
    /// gpu, cpu, an adapter's number, or part of its name.
    #[arg(long, default_value = "gpu")]
    device: String,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Diff {
    /// Prints the figures.
    pub fn run(self) -> anyhow::Result<()> {
        let folders = [resolve(&self.first, false)?, resolve(&self.second, false)?];
        self.passage.check()?;
        let models = [exchange::open(&folders[0])?, self.second(&folders[1])?];
        expect_alike(models[0].family.as_ref(), models[1].family.as_ref())?;
        let target = Target::open_or_host(&self.device, &mut |line| eprintln!("{line}"))?;
        eprintln!("device   {}", target.describe());
        let cut = self.passage.cut(&folders[0], &models[0], &target)?;
        let of = |n: usize| Model { family: models[n].family.as_ref(), weights: &models[n].weights };
        let first = Scored::new(of(0), &target, cut.extent)?;
        let mut second = Scored::new(of(1), &target, cut.extent)?;
        target.told().iter().for_each(|report| eprintln!("kernels  {report}"));
        let apart = Reference::new(first, &cut.batches).against(Some(&mut second))?;
        let noise = weight_noise(of(0), of(1))?;
        let mut out = std::io::stdout().lock();
        if self.json {
            let mut all = json!({
                "a": folders[0], "b": folders[1], "device": target.describe(), "text": cut.describe,
                "weights": noise_json(&noise),
            });
            all.as_object_mut().expect("an object").extend(apart_json(&apart));
            writeln!(out, "{all:#}")?;
            return Ok(());
        }
        write!(
            out,
            "text     {}\n\n{}{}",
            cut.describe,
            noise_text(&noise, &apart),
            summary_text(&apart.summary)
        )?;
        Ok(())
    }
}

impl Diff {
    /// Model B, with its adapters merged into its weights.
    fn second(&self, folder: &Path) -> anyhow::Result<Opened> {
        match exchange::parts(folder, &self.beside.resolve()?)? {
            Some(parts) => Ok(parts.merged()?.0),
            None => Ok(exchange::open(folder)?),
        }
    }
}

/// Signal to noise by name; null where nothing differs.
pub fn noise_json(noise: &[(String, Option<f64>)]) -> Value {
    noise.iter().map(|(name, decibels)| json!({ "name": name, "sqnr_db": decibels })).collect()
}

/// A mean with its error and interval.
pub fn mean_json(mean: &Mean) -> Value {
    json!({ "value": mean.value, "error": mean.error, "interval": mean.interval() })
}

fn quantile_json(quantile: &Quantile) -> Value {
    json!({ "value": quantile.value, "interval": [quantile.low, quantile.high] })
}

/// What two models are apart by.
pub fn apart_json(apart: &Apart) -> serde_json::Map<String, Value> {
    let Apart { summary, hidden } = apart;
    let all = json!({
        "hidden": noise_json(hidden),
        "tokens": summary.tokens,
        "windows": summary.windows,
        "kl": {
            "mean": mean_json(&summary.divergence), "median": quantile_json(&summary.median),
            "percent_99": quantile_json(&summary.percent_99), "percent_99_9": quantile_json(&summary.percent_99_9),
            "most": summary.most,
        },
        "top1_agreement": mean_json(&summary.agreement),
        "loss_a": mean_json(&summary.losses[0]),
        "loss_b": mean_json(&summary.losses[1]),
        "perplexity_a": mean_json(&summary.perplexity(0)),
        "perplexity_b": mean_json(&summary.perplexity(1)),
        "perplexity_ratio": mean_json(&summary.ratio()),
        "rms_probability_shift": summary.probability_shift,
    });
    match all {
        Value::Object(map) => map,
        _ => unreachable!("json! of braces is an object"),
    }
}

fn noise_text(noise: &[(String, Option<f64>)], apart: &Apart) -> String {
    let changed: Vec<_> = noise.iter().filter_map(|(name, d)| Some((name, (*d)?))).collect();
    let width = changed.iter().map(|(name, _)| name.len()).chain([15]).max().unwrap_or_default();
    let mut text = format!("{:width$}  {:>7}\n", "weight", "SQNR dB");
    changed.iter().for_each(|(name, d)| text += &format!("{name:width$}  {d:>7.2}\n"));
    text += &format!("{} of {} weights are the same\n\n", noise.len() - changed.len(), noise.len());
    text += &format!("{:width$}  {:>7}\n", "residual stream", "SQNR dB");
    for (place, decibels) in &apart.hidden {
        let decibels = decibels.map_or("same".to_string(), |d| format!("{d:.2}"));
        text += &format!("{place:width$}  {decibels:>7}\n");
    }
    text
}

fn summary_text(summary: &Summary) -> String {
    let error = |mean: &Mean, digits: usize| {
        mean.error.map_or(String::new(), |error| format!(" +- {error:.digits$}"))
    };
    let with = |mean: &Mean, digits: usize| format!("{:.digits$}{}", mean.value, error(mean, digits));
    let small = |mean: &Mean| {
        let error = mean.error.map_or(String::new(), |error| format!(" +- {error:.1e}"));
        format!("{:.4e}{error}", mean.value)
    };
    let quantile = |q: &Quantile| format!("{:.4e}  ({:.3e} to {:.3e})", q.value, q.low, q.high);
    let agreement = Mean {
        value: 100.0 * summary.agreement.value,
        error: summary.agreement.error.map(|error| 100.0 * error),
    };
    format!(
        "\nKL of B from A, nats a token\n  mean           {}\n  median         {}\n  99 %           {}\n  99.9 %         {}\n  \
         largest        {:.4e}\ntop-1 agreement  {} %\nperplexity of A  {}\nperplexity of B  {}\nB over A         {}\n\
         RMS change of the probability of the token that came  {:.4} %\n\
         {} tokens in {} windows; +- one standard error, from window to window\n",
        small(&summary.divergence),
        quantile(&summary.median),
        quantile(&summary.percent_99),
        quantile(&summary.percent_99_9),
        summary.most,
        with(&agreement, 3),
        with(&summary.perplexity(0), 4),
        with(&summary.perplexity(1), 4),
        with(&summary.ratio(), 5),
        100.0 * summary.probability_shift,
        summary.tokens,
        summary.windows,
    )
}
