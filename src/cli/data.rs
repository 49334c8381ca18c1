//! `kiln data`: look at text before a model learns from it, and clean it.

use super::Usage;
use crate::data::clean::minhash::Shingle;
use crate::data::clean::quality::{Limits, RULES};
use crate::data::clean::{Kept, Near, Report, Request, clean};
use crate::data::sources::{Column, Manner, Mark, Rows, SampleBy, Source, find};
use crate::data::text::{ending, is_packed};
use crate::data::tokenizer::Tokenizer;
use anyhow::Context;
use clap::{Arg, ArgMatches, Args, FromArgMatches, Subcommand, ValueEnum, value_parser};
use flate2::write::GzEncoder;
use serde_json::json;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Look at texts, and clean them of duplicates and of what is no text.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  kiln data inspect 'corpus/**/*.txt' news.jsonl\n  kiln data clean news.jsonl -o clean.jsonl --near 0.8 --quality gopher --report report.json"
)]
pub struct DataCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Remove exact duplicates, near duplicates, and documents that break rules; keep the order.
    #[command(
        after_help = "Duplicates are found among words in lower case. What is remembered of a document that stays grows with the permutations, not with its length: about 1 KB at 128.\n\nExamples:\n  kiln data clean news.jsonl -o clean.jsonl\n  kiln data clean 'dumps/*.jsonl.gz' -o clean.jsonl --near 0.8 --permutations 128\n  kiln data clean pages.csv --column body -o clean.txt --quality gopher,c4 --least-words 20\n  kiln data clean book.txt --sample-by paragraph -o clean.txt --dry-run --report report.json"
    )]
    Clean(Box<Clean>),
    /// Count documents, characters and tokens, and tell how long documents are.
    #[command(
        after_help = "Examples:\n  kiln data inspect news.jsonl\n  kiln data inspect 'corpus/**/*.txt' pages.csv --column body --tokenizer runs/shakespeare --json"
    )]
    Inspect(Inspect),
}

#[derive(Args)]
struct Inputs {
    /// Files, folders and patterns such as 'corpus/**/*.txt': text, .jsonl, .csv, .tsv (also .gz), .parquet.
    #[arg(value_name = "IN", required = true)]
    inputs: Vec<PathBuf>,
    /// The key of each JSON object that holds the text.
    #[arg(long, value_name = "KEY")]
    field: Option<String>,
    /// The column of tables that holds the text, by name or by number from 1.
    #[arg(long, value_name = "NAME")]
    column: Option<String>,
    /// What is a document in a text file.
    #[arg(long, value_name = "UNIT", value_enum, default_value = "document")]
    sample_by: Unit,
    /// Count and pass over rows that cannot be read.
    #[arg(long)]
    skip_bad: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Unit {
    /// The whole file.
    Document,
    /// What blank lines divide.
    Paragraph,
    /// Each line.
    Line,
}

impl Inputs {
    /// A key goes to the sources that have files for it.
    fn sources(&self) -> anyhow::Result<Vec<Source>> {
        let column = self.column.as_ref().map(|text| match text.parse() {
            Ok(number) => Column::Number(number),
            Err(_) => Column::Name(text.clone()),
        });
        let sample_by = match self.sample_by {
            Unit::Document => None,
            Unit::Paragraph => Some(SampleBy::Paragraph),
            Unit::Line => Some(SampleBy::Line),
        };
        let source = |path: &PathBuf| {
            let whole = Source::of(path);
            if path.is_dir() {
                return Source { field: self.field.clone(), column: column.clone(), sample_by, ..whole };
            }
            match ending(path).as_str() {
                "jsonl" | "ndjson" => Source { field: self.field.clone(), ..whole },
                "csv" | "tsv" | "parquet" => Source { column: column.clone(), ..whole },
                _ => Source { sample_by, ..whole },
            }
        };
        Ok(self.inputs.iter().map(source).collect())
    }
}

#[derive(Args)]
struct Clean {
    #[command(flatten)]
    inputs: Inputs,
    /// Where what stays is written: JSON objects where the name ends in .jsonl (those of .jsonl files as they were), else text; packed where it ends in .gz.
    #[arg(short, long, value_name = "FILE", required_unless_present = "dry_run")]
    out: Option<PathBuf>,
    /// Write over OUT if it exists. Inputs are never written over.
    #[arg(long)]
    force: bool,
    /// Write nothing but the report.
    #[arg(long)]
    dry_run: bool,
    /// Write counts and examples for each reason here, as JSON.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
    /// Keep documents that have the words of an earlier one.
    #[arg(long)]
    keep_exact: bool,
    /// Remove documents whose shingles have this estimated Jaccard similarity to an earlier one's.
    #[arg(long, value_name = "SHARE")]
    near: Option<f64>,
    /// Permutations of MinHash that estimate it: the standard error is at most 0.5 / sqrt(permutations).
    #[arg(long, value_name = "COUNT", default_value_t = 128, value_parser = super::count)]
    permutations: usize,
    /// Words (or characters) in a shingle.
    #[arg(long, value_name = "COUNT", default_value_t = 5, value_parser = super::count)]
    shingle: usize,
    /// Shingles of characters rather than words, as for languages without spaces.
    #[arg(long)]
    characters: bool,
    /// Apply the rules of these papers with their limits: gopher, c4, fineweb.
    #[arg(long, value_name = "PAPERS", value_delimiter = ',', value_parser = ["gopher", "c4", "fineweb"])]
    quality: Vec<String>,
    #[command(flatten)]
    own: OwnLimits,
}

/// A flag for each rule: it applies the rule with another limit, or without its paper.
struct OwnLimits(Vec<(&'static str, f64)>);

impl Args for OwnLimits {
    fn augment_args(command: clap::Command) -> clap::Command {
        RULES.iter().fold(command, |command, rule| {
            let help = format!("{} [{}: {}]", rule.about, rule.source, rule.usual);
            let flag = Arg::new(rule.name).long(rule.name).value_name("LIMIT").help(help);
            command.arg(flag.value_parser(value_parser!(f64)).help_heading("Rules"))
        })
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for OwnLimits {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = |rule: &crate::data::clean::quality::Rule| {
            matches.get_one::<f64>(rule.name).map(|limit| (rule.name, *limit))
        };
        Ok(OwnLimits(RULES.iter().filter_map(given).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

#[derive(Args)]
struct Inspect {
    #[command(flatten)]
    inputs: Inputs,
    /// Count tokens of this tokenizer: a tokenizer.json, or a folder with one.
    #[arg(long, value_name = "PATH")]
    tokenizer: Option<PathBuf>,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

impl DataCommand {
    /// Does what was asked.
    pub fn run(self) -> anyhow::Result<()> {
        match self.action {
            Action::Clean(clean) => clean.run(),
            Action::Inspect(inspect) => inspect.run(),
        }
    }
}

impl Clean {
    fn run(self) -> anyhow::Result<()> {
        let sources = self.inputs.sources()?;
        if let Some(near) = self.near.filter(|near| !(*near > 0.0 && *near <= 1.0)) {
            return Err(Usage(format!("--near {near}: expected above 0, and at most 1")).into());
        }
        let out = self.out.as_deref().filter(|_| !self.dry_run);
        for path in [out, self.report.as_deref()].into_iter().flatten() {
            self.refuse_to_lose(path, &sources)?;
        }
        let shingle = if self.characters { Shingle::Characters } else { Shingle::Words }(self.shingle);
        let near = self.near.map(|threshold| Near { threshold, permutations: self.permutations, shingle });
        let limits = Limits::new(&self.quality, &self.own.0);
        let (exact, skip_bad) = (!self.keep_exact, self.inputs.skip_bad);
        let request = Request { sources, exact, near, limits, skip_bad };
        let started = Instant::now();
        let report = match out {
            None => clean(&request, &mut |_| Ok(()))?,
            Some(path) => write(path, &request)?,
        };
        let seconds = started.elapsed().as_secs_f64();
        let written = serde_json::to_string_pretty(&report).expect("plain numbers are printable");
        if let Some(path) = &self.report {
            fs::write(path, &written).with_context(|| format!("cannot write {}", path.display()))?;
        }
        if self.json {
            println!("{written}");
        } else {
            print(&report, seconds);
        }
        Ok(())
    }

    /// An input is never written over, and nothing else without being told to.
    fn refuse_to_lose(&self, path: &Path, sources: &[Source]) -> anyhow::Result<()> {
        let Ok(real) = path.canonicalize() else { return Ok(()) };
        for source in sources {
            if find(source)?.iter().any(|file| is_same(&file.path, &real)) {
                return Err(Usage(format!("{} is an input: name another file", path.display())).into());
            }
        }
        if !self.force {
            return Err(Usage(format!("{} exists: --force writes over it", path.display())).into());
        }
        Ok(())
    }
}

/// Whether two paths are one file, also by another name of it.
fn is_same(input: &Path, out: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let place = |path: &Path| fs::metadata(path).map(|m| (m.dev(), m.ino())).ok();
        place(input).is_some() && place(input) == place(out)
    }
    #[cfg(not(unix))]
    {
        input.canonicalize().is_ok_and(|input| input == out)
    }
}

/// Cleans into a file that is there whole or not at all.
fn write(path: &Path, request: &Request) -> anyhow::Result<Report> {
    let as_objects = matches!(ending(path).as_str(), "jsonl" | "ndjson");
    let partial = path.with_extension(format!("{}.partial", std::process::id()));
    let unwritable = |source| crate::data::Error::Unwritable { path: path.into(), source };
    let file = BufWriter::with_capacity(1 << 18, File::create(&partial).map_err(unwritable)?);
    let mut out = if is_packed(path) {
        Out::Packed(GzEncoder::new(file, Default::default()))
    } else {
        Out::Plain(file)
    };
    let done = clean(request, &mut |document| put(&mut out, &document, as_objects).map_err(unwritable));
    let written = done.map_err(anyhow::Error::from).and_then(|report| {
        out.finish().and_then(|()| fs::rename(&partial, path)).map_err(unwritable)?;
        Ok(report)
    });
    if written.is_err() {
        // The error that matters is the first one.
        let _ = fs::remove_file(&partial);
    }
    written
}

/// A file that is written, packed by gzip or not.
enum Out {
    Plain(BufWriter<File>),
    Packed(GzEncoder<BufWriter<File>>),
}

impl Out {
    fn finish(self) -> std::io::Result<()> {
        match self {
            Out::Plain(mut out) => out.flush(),
            Out::Packed(out) => out.finish()?.flush(),
        }
    }
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self {
            Out::Plain(out) => out.write(bytes),
            Out::Packed(out) => out.write(bytes),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        match self {
            Out::Plain(out) => out.flush(),
            Out::Packed(out) => out.flush(),
        }
    }
}

fn put(out: &mut impl Write, document: &Kept, as_objects: bool) -> std::io::Result<()> {
    let row = document.row;
    if as_objects {
        return match &row.whole {
            Some(line) => writeln!(out, "{line}"),
            None => writeln!(out, "{}", json!({ "text": row.text })),
        };
    }
    // A blank line divides documents that have lines of their own.
    let end = if document.is_line { "\n" } else { "\n\n" };
    write!(out, "{}{end}", row.text.trim_end_matches('\n'))
}

fn print(report: &Report, seconds: f64) {
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    println!("read     {} documents, {:.2} MB of text", report.documents, megabytes(report.bytes));
    for removed in &report.removed {
        let example = removed.examples.first().map_or(String::new(), |example| {
            let of = example.of.map_or(String::new(), |of| format!(" as document {of}"));
            let figure = example.figure.map_or(String::new(), |figure| format!(" ({figure:.3})"));
            format!("; first {}, line {}{of}{figure}", example.file.display(), example.line)
        });
        let share = 100.0 * removed.documents as f64 / report.documents as f64;
        println!("removed  {} ({share:.1} %) {}{example}", removed.documents, removed.reason);
    }
    if let Some(first) = &report.first_bad_row {
        println!("bad rows {}; the first: {first}", report.bad_rows);
    }
    println!("kept     {} documents, {:.2} MB of text", report.kept, megabytes(report.kept_bytes));
    println!("speed    {:.1} MB/s", megabytes(report.bytes) / seconds);
}

/// What is known of a source.
struct Counted {
    name: String,
    bytes: u64,
    characters: u64,
    tokens: u64,
    /// Of each document: tokens, or else characters.
    lengths: Vec<u64>,
    bad: u64,
}

impl Inspect {
    fn run(self) -> anyhow::Result<()> {
        let tokenizer = self.tokenizer.as_deref().map(Tokenizer::load).transpose()?;
        let sources = self.inputs.sources()?;
        let count = |source: &Source| count(source, tokenizer.as_ref(), self.inputs.skip_bad);
        let counted = sources.iter().map(count).collect::<anyhow::Result<Vec<_>>>()?;
        let unit = if tokenizer.is_some() { "tokens" } else { "characters" };
        let total: u64 = counted.iter().flat_map(|source| &source.lengths).sum();
        if self.json {
            let rows: Vec<_> = counted.iter().map(|source| source.json(total, unit)).collect();
            println!("{}", serde_json::to_string_pretty(&json!({ "unit": unit, "sources": rows }))?);
        } else {
            counted.iter().for_each(|source| source.print(total, unit));
        }
        Ok(())
    }
}

fn count(source: &Source, tokenizer: Option<&Tokenizer>, skip_bad: bool) -> anyhow::Result<Counted> {
    let name = source.path.display().to_string();
    let mut all = Counted { name, bytes: 0, characters: 0, tokens: 0, lengths: vec![], bad: 0 };
    let manner = Manner { skip_bad, ..Manner::default() };
    for file in find(source)? {
        let mut rows = Rows::open(&file, source, manner, Mark::default())?;
        while let Some(row) = rows.next_row()? {
            let characters = row.text.chars().count() as u64;
            let tokens = tokenizer.map(|tokenizer| tokenizer.encode(&row.text)).transpose()?;
            let tokens = tokens.map(|tokens| tokens.len() as u64);
            all.bytes += row.text.len() as u64;
            all.characters += characters;
            all.tokens += tokens.unwrap_or(0);
            all.lengths.push(tokens.unwrap_or(characters));
        }
        all.bad += rows.bad.count;
    }
    all.lengths.sort_unstable();
    Ok(all)
}

impl Counted {
    fn share(&self, total: u64) -> f64 {
        self.lengths.iter().sum::<u64>() as f64 / total.max(1) as f64
    }

    /// The length below which a share of the documents lies.
    fn quantile(&self, share: f64) -> u64 {
        let last = self.lengths.len().saturating_sub(1);
        self.lengths.get((share * last as f64).round() as usize).copied().unwrap_or(0)
    }

    fn quantiles(&self) -> [(&'static str, u64); 5] {
        [("least", 0.0), ("quarter", 0.25), ("median", 0.5), ("three quarters", 0.75), ("most", 1.0)]
            .map(|(name, share)| (name, self.quantile(share)))
    }

    fn json(&self, total: u64, unit: &str) -> serde_json::Value {
        let quantiles: serde_json::Map<String, serde_json::Value> =
            self.quantiles().iter().map(|(name, length)| (name.replace(' ', "_"), json!(length))).collect();
        json!({
            "path": self.name,
            "documents": self.lengths.len(),
            "bytes": self.bytes,
            "characters": self.characters,
            "tokens": (unit == "tokens").then_some(self.tokens),
            "bad_rows": self.bad,
            "share": self.share(total),
            "length": quantiles,
        })
    }

    fn print(&self, total: u64, unit: &str) {
        let bad = if self.bad > 0 { format!(", {} bad rows", self.bad) } else { String::new() };
        println!("{}", self.name);
        println!("  documents  {}{bad}", self.lengths.len());
        println!("  text       {} bytes, {} characters", self.bytes, self.characters);
        if unit == "tokens" {
            println!("  tokens     {}", self.tokens);
        }
        println!("  share      {:.1} %", 100.0 * self.share(total));
        let lengths: Vec<String> =
            self.quantiles().iter().map(|(name, length)| format!("{name} {length}")).collect();
        println!("  {unit} in a document: {}", lengths.join(", "));
    }
}
