//! `kiln retrieve`: passages of the user's files for a question; and the flags by which other commands put them before prompts.

use super::{Usage, count, folder};
use crate::retrieve::form::Fitted;
use crate::retrieve::{Finder, Hit, Lengths, Result as Found, Settings, USUAL, USUAL_TOP};
use crate::train::Target;
use crate::train::caches::cache_folder;
use clap::Args;
use serde_json::{Value as Json, json};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Show which passages of a folder a question finds, with their scores.
///
/// Read are all files whose bytes are text; what is binary is passed over and counted. The same passages are what `generate --retrieve` puts
/// before a prompt.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  kiln retrieve notes \"how salt is the sea?\"\n  kiln retrieve notes \"how salt is the sea?\" --top 10 --json\n  kiln retrieve notes \"salt water\" --encoder all-MiniLM-L6-v2 --device cpu"
)]
pub struct Retrieve {
    /// A folder of files, or one file.
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
    /// What is asked.
    #[arg(value_name = "QUESTION")]
    question: String,
    /// Passages at most.
    #[arg(long, value_name = "COUNT", default_value_t = USUAL_TOP, value_parser = count)]
    top: usize,
    /// Seek by the vectors of this encoder, and not by words.
    #[arg(long, value_name = "MODEL")]
    encoder: Option<PathBuf>,
    /// Longest passage, in words or in the encoder's tokens.
    #[arg(long, value_name = "TOKENS", default_value_t = USUAL.size, value_parser = count)]
    size: usize,
    /// What a passage repeats of the one before it where a paragraph is cut. [default: a quarter of the size]
    #[arg(long, value_name = "TOKENS")]
    overlap: Option<usize>,
    /// Of the encoder: gpu, cpu, an adapter's number, or part of its name.
    #[arg(long, default_value = "gpu")]
    device: String,
    /// Print [{"number", "path", "first_line", "last_line", "score", "text"}].
    #[arg(long)]
    json: bool,
}

impl Retrieve {
    /// Prints what is found.
    pub fn run(self) -> anyhow::Result<()> {
        let lengths = lengths(self.size, self.overlap);
        let mut finder = open(&self.folder, self.encoder.as_deref(), "--encoder", lengths, &self.device)?;
        let hits = finder.find(&self.question, self.top)?;
        let mut out = std::io::stdout().lock();
        if self.json {
            let all: Vec<Json> = hits.iter().enumerate().map(|(at, hit)| object(at + 1, hit)).collect();
            return Ok(writeln!(out, "{}", Json::Array(all))?);
        }
        if hits.is_empty() {
            eprintln!("{NOTHING}");
        }
        for (at, hit) in hits.iter().enumerate() {
            let space = if at == 0 { "" } else { "\n" };
            writeln!(
                out,
                "{space}[{}] {}  {:.4}\n{}",
                at + 1,
                hit.passage.place(),
                hit.score,
                hit.passage.text
            )?;
        }
        Ok(())
    }
}

const NOTHING: &str = "retrieve no passage matches";

fn lengths(size: usize, overlap: Option<usize>) -> Lengths {
    Lengths { size, overlap: overlap.unwrap_or(size / 4) }
}

fn open(
    root: &Path,
    encoder: Option<&Path>,
    encoder_flag: &'static str,
    lengths: Lengths,
    device: &str,
) -> anyhow::Result<Finder> {
    let encoder = match encoder {
        Some(given) if given.is_dir() => Some(folder::resolve(given, false)?),
        given => given.map(Path::to_path_buf),
    };
    let settings = Settings { lengths, encoder, encoder_flag };
    let mut target =
        || -> Found<Target> { Ok(Target::open_or_host(device, &mut |line| eprintln!("{line}"))?) };
    let finder = Finder::open(root, &settings, cache_folder().as_deref(), &mut target)?;
    finder.report().told().iter().for_each(|line| eprintln!("{line}"));
    Ok(finder)
}

fn object(number: usize, hit: &Hit) -> Json {
    let passage = &hit.passage;
    json!({
        "number": number,
        "path": passage.path,
        "first_line": passage.first_line,
        "last_line": passage.last_line,
        "score": hit.score,
        "text": passage.text,
    })
}

/// The flags of commands that write.
#[derive(Args)]
pub struct Retrieval {
    /// Put passages of the files in this folder before the prompt, numbered [1], [2] .., and list them behind the answer.
    #[arg(long, value_name = "FOLDER")]
    retrieve: Option<PathBuf>,
    /// Beside --retrieve: passages at most. [default: 3]
    #[arg(long, value_name = "COUNT", requires = "retrieve", value_parser = count)]
    retrieve_top: Option<usize>,
    /// Beside --retrieve: seek by the vectors of this encoder, and not by words.
    #[arg(long, value_name = "MODEL", requires = "retrieve")]
    retrieve_encoder: Option<PathBuf>,
    /// Beside --retrieve: longest passage, in words or in the encoder's tokens. [default: 128]
    #[arg(long, value_name = "TOKENS", requires = "retrieve", value_parser = count)]
    retrieve_size: Option<usize>,
    /// Beside --retrieve: what a passage repeats of the one before it where a paragraph is cut. [default: a quarter of the size]
    #[arg(long, value_name = "TOKENS", requires = "retrieve")]
    retrieve_overlap: Option<usize>,
}

/// Finds passages for prompts.
pub struct Library {
    finder: Finder,
    top: usize,
}

impl Retrieval {
    /// True where passages are asked for.
    pub fn is_asked(&self) -> bool {
        self.retrieve.is_some()
    }

    /// Refuses what passages do not go with: the first thing of which the flag was given.
    pub fn refuse_beside(&self, others: &[(&str, bool)]) -> anyhow::Result<()> {
        match others.iter().find(|(_, given)| *given && self.is_asked()) {
            Some((other, _)) => {
                Err(Usage(format!("--retrieve does not go with {other}\n  hint: leave one of them out"))
                    .into())
            }
            None => Ok(()),
        }
    }

    /// Reads the folder, and says what is in it.
    pub fn open(&self, device: &str) -> anyhow::Result<Option<Library>> {
        let Some(root) = &self.retrieve else { return Ok(None) };
        let lengths = lengths(self.retrieve_size.unwrap_or(USUAL.size), self.retrieve_overlap);
        let finder = open(root, self.retrieve_encoder.as_deref(), "--retrieve-encoder", lengths, device)?;
        Ok(Some(Library { finder, top: self.retrieve_top.unwrap_or(USUAL_TOP) }))
    }
}

impl Library {
    /// Passages for a question, and says where there are none.
    pub fn find(&mut self, question: &str) -> anyhow::Result<Vec<Hit>> {
        let hits = self.finder.find(question, self.top)?;
        if hits.is_empty() {
            eprintln!("{NOTHING}: the answer is written without");
        }
        Ok(hits)
    }
}

/// Says what was dropped, and gives what is left.
pub fn kept(fitted: Fitted) -> Vec<Hit> {
    fitted.told().iter().for_each(|told| eprintln!("retrieve {told}"));
    fitted.kept
}

/// Numbers in brackets that an answer cites.
fn cited(answer: &str) -> Vec<usize> {
    crate::metrics::qa::citations(answer, &[], &[]).cited
}

/// What an answer was given to read, for people; empty where that was nothing.
pub fn listed(hits: &[Hit], answer: &str) -> String {
    let cited = cited(answer);
    let line = |(at, hit): (usize, &Hit)| {
        let mark = if cited.contains(&(at + 1)) { "  cited" } else { "" };
        format!("[{}] {}  {:.4}{mark}\n", at + 1, hit.passage.place(), hit.score)
    };
    match hits.is_empty() {
        true => String::new(),
        false => format!("\nSources:\n{}", hits.iter().enumerate().map(line).collect::<String>()),
    }
}

/// The same as JSON.
pub fn sources(hits: &[Hit], answers: &[&str]) -> Json {
    let one = |(at, hit): (usize, &Hit)| {
        let mut object = object(at + 1, hit);
        object["cited"] =
            json!(answers.iter().map(|answer| cited(answer).contains(&(at + 1))).collect::<Vec<_>>());
        object
    };
    Json::Array(hits.iter().enumerate().map(one).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::retrieve::Passage;

    #[test]
    fn sources_have_place_and_score_and_tell_what_an_answer_cites() {
        let passage = Passage { path: "a.md".into(), first_line: 3, last_line: 9, text: "Salt.".into() };
        let one = Hit { passage, score: 1.5 };
        let hits = [one.clone(), one];
        assert_eq!(
            listed(&hits, "Salt [2]."),
            "\nSources:\n[1] a.md:3-9  1.5000\n[2] a.md:3-9  1.5000  cited\n"
        );
        assert_eq!(listed(&[], "Salt [2]."), "");
        let json = sources(&hits, &["Salt [2]", "[1]"]);
        assert_eq!(json[1]["cited"], json!([true, false]));
        assert_eq!((json[0]["first_line"].as_u64(), json[0]["score"].as_f64()), (Some(3), Some(1.5)));
    }
}
