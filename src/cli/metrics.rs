//! `kiln metrics`: how near texts in files come to their references.

use super::{Usage, scored};
use crate::data::text::Document;
use crate::metrics::bootstrap::{Draws, USUAL};
use crate::metrics::qa::ExactMatch;
use crate::metrics::{
    Bleu, Chrf, Figure, Rouge, Smoothing, Ter, TextMetric, Tokenization, diversity, figure,
};
use clap::Args;
use serde_json::json;
use std::path::{Path, PathBuf};

/// ROUGE's kinds that are shown.
const ROUGE: [&str; 4] = ["rouge1", "rouge2", "rougeL", "rougeLsum"];

/// Score texts by their references: BLEU, chrF, TER as sacrebleu has them, ROUGE as rouge-score has it.
///
/// A text on each line. Without a flag that names a metric all are shown. Each comes with a standard error and the bounds in which it
/// lies in 95 of 100 sets of texts drawn anew; several files of texts are compared with the first one, over the same sets.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  kiln metrics --hypotheses written.txt --references wanted.txt\n  kiln metrics --hypotheses f32.txt --hypotheses int8.txt --references wanted.txt --json\n  kiln metrics --hypotheses written.txt --references wanted.txt --bleu --tokenize intl"
)]
pub struct Metrics {
    /// A file with a text on each line. May be given again: each is compared with the first.
    #[arg(long, value_name = "FILE", required = true)]
    hypotheses: Vec<PathBuf>,
    /// A file with a reference for each text, in their order. May be given again: each text may have several, and an empty line is none.
    #[arg(long, value_name = "FILE", required = true)]
    references: Vec<PathBuf>,
    /// BLEU.
    #[arg(long)]
    bleu: bool,
    /// chrF2 of characters.
    #[arg(long)]
    chrf: bool,
    /// chrF2 of characters, and of one and two words.
    #[arg(long)]
    chrf_plus_plus: bool,
    /// Translation edit rate.
    #[arg(long)]
    ter: bool,
    /// ROUGE-1, -2, -L and -Lsum.
    #[arg(long)]
    rouge: bool,
    /// Share of texts that are a reference, without case, punctuation and articles.
    #[arg(long)]
    exact: bool,
    /// Distinct-1 and -2, and the share of runs of four words that a text repeats.
    #[arg(long)]
    diversity: bool,
    /// BLEU: how texts are cut into words: 13a, none, char, intl or zh.
    #[arg(long, value_name = "NAME", default_value = "13a")]
    tokenize: String,
    /// BLEU: what becomes of lengths without a match: exp, floor, add-k or none.
    #[arg(long, value_name = "NAME", default_value = "exp")]
    smooth: String,
    /// BLEU: of floor (0.1 unless given) and add-k (1).
    #[arg(long, value_name = "NUMBER")]
    smooth_value: Option<f64>,
    /// BLEU: lengths that a text is too short for do not count.
    #[arg(long)]
    effective_order: bool,
    /// BLEU and chrF: all letters are small.
    #[arg(long)]
    lowercase: bool,
    /// ROUGE: words lose their endings.
    #[arg(long)]
    stem: bool,
    /// Sets of texts drawn for errors and differences; 0 for none.
    #[arg(long, value_name = "COUNT", default_value_t = USUAL)]
    resamples: usize,
    /// Seed of the draws.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print an object with the score, signature and bounds of each metric.
    #[arg(long)]
    json: bool,
}

impl Metrics {
    /// Prints the scores.
    pub fn run(self) -> anyhow::Result<()> {
        let texts = self.hypotheses.iter().map(|path| lines(path)).collect::<anyhow::Result<Vec<_>>>()?;
        let streams = self.references.iter().map(|path| lines(path)).collect::<anyhow::Result<Vec<_>>>()?;
        let count = texts[0].len();
        let all = self.hypotheses.iter().zip(&texts).chain(self.references.iter().zip(&streams));
        if let Some((path, lines)) = all.into_iter().find(|(_, lines)| lines.len() != count) {
            let (first, path) = (self.hypotheses[0].display(), path.display());
            let text = format!("{path} has {} lines, {first} has {count}", lines.len());
            return Err(
                Usage(format!("{text}\n  hint: each line of one stands beside that of the other")).into()
            );
        }
        let references: Vec<Vec<&str>> = (0..count).map(|at| of_line(&streams, at)).collect();
        if let Some(line) = references.iter().position(Vec::is_empty) {
            return Err(
                Usage(format!("line {} has no reference: it is empty in every file", line + 1)).into()
            );
        }
        let draws = Draws::new(count, self.resamples, self.seed);
        let of = |metric: Box<dyn TextMetric>| Ok(figure(metric.as_ref(), &texts, &references, &draws)?);
        let mut figures = self.metrics()?.into_iter().map(of).collect::<anyhow::Result<Vec<_>>>()?;
        if self.diversity || !self.is_chosen() {
            figures.extend(self.diversity_of(&texts));
        }
        let names: Vec<String> = self.hypotheses.iter().map(|path| path.display().to_string()).collect();
        scored::print("file", &names, &figures, self.json, [("texts", json!(count))])
    }

    fn is_chosen(&self) -> bool {
        [self.bleu, self.chrf, self.chrf_plus_plus, self.ter, self.rouge, self.exact, self.diversity]
            .contains(&true)
    }

    /// Figures of the texts alone, of which no sets are drawn.
    fn diversity_of(&self, texts: &[Vec<String>]) -> Vec<Figure> {
        let of = |name: &str, measure: &dyn Fn(&[String]) -> f64| {
            let of_file = |texts: &Vec<String>| vec![vec![measure(texts)]];
            let segments: Vec<_> = texts.iter().map(of_file).collect();
            Figure::new(name, &segments, &|sums| sums[0], &Draws::new(1, 0, 0))
        };
        vec![
            of("distinct-1", &|texts| diversity::distinct(texts, 1)),
            of("distinct-2", &|texts| diversity::distinct(texts, 2)),
            of("repetition-4", &|texts| diversity::repetition(texts, 4)).error(),
        ]
    }

    fn metrics(&self) -> anyhow::Result<Vec<Box<dyn TextMetric>>> {
        let wants = |flag: bool| flag || !self.is_chosen();
        let lowercase = self.lowercase;
        let bleu = Bleu {
            tokenization: Tokenization::named(&self.tokenize)?,
            smoothing: Smoothing::named(&self.smooth, self.smooth_value)?,
            lowercase,
            effective_order: self.effective_order,
        };
        let mut list: Vec<Box<dyn TextMetric>> = vec![];
        if wants(self.bleu) {
            list.push(Box::new(bleu));
        }
        if wants(self.chrf) {
            list.push(Box::new(Chrf { lowercase, ..Chrf::default() }));
        }
        if wants(self.chrf_plus_plus) {
            list.push(Box::new(Chrf { lowercase, ..Chrf::plus_plus() }));
        }
        if wants(self.ter) {
            list.push(Box::new(Ter::default()));
        }
        if wants(self.rouge) {
            let kinds = ROUGE.iter().filter_map(|name| Rouge::named(name, self.stem));
            list.extend(kinds.map(|rouge| Box::new(rouge) as Box<dyn TextMetric>));
        }
        if wants(self.exact) {
            list.push(Box::new(ExactMatch));
        }
        Ok(list)
    }
}

/// The texts of a file.
fn lines(path: &Path) -> anyhow::Result<Vec<String>> {
    Ok(Document::open(path)?.contents().lines().map(String::from).collect())
}

/// References of one text; a line that is empty in all files but the first is none.
fn of_line(streams: &[Vec<String>], at: usize) -> Vec<&str> {
    let all = streams.iter().map(|stream| stream[at].as_str());
    match streams.len() {
        1 => all.collect(),
        _ => all.filter(|text| !text.trim().is_empty()).collect(),
    }
}
