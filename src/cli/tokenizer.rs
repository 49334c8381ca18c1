//! `kiln tokenizer`: make one, use it, look at it.

use super::Usage;
use crate::data::text::Text;
use crate::data::tokenizer::{END_OF_TEXT, FILE_NAME, SMALLEST_BYTE_PAIR_VOCABULARY, Tokenizer};
use anyhow::Context;
use clap::{Args, Subcommand};
use serde_json::json;
use std::io::{Read, Write};
use std::path::PathBuf;

/// Train a tokenizer on your text, encode and decode with one, or look into it.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  kiln tokenizer train --data input.txt --vocabulary 4096 -o mine\n  kiln tokenizer encode --tokenizer mine --text \"Once upon a time\"\n  kiln tokenizer decode --tokenizer mine 12 7 93\n  kiln tokenizer inspect --tokenizer mine --data input.txt"
)]
pub struct TokenizerCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Train a byte-level BPE, or collect the characters, and save it as tokenizer.json.
    #[command(
        after_help = "Examples:\n  kiln tokenizer train --data input.txt --vocabulary 4096 -o mine\n  kiln tokenizer train --data texts/ --char -o mine\n  kiln train --data input.txt --set data.tokenizer=mine"
    )]
    Train(Train),
    /// Text to token ids.
    #[command(
        after_help = "Examples:\n  kiln tokenizer encode --tokenizer mine --text \"Once upon a time\"\n  kiln tokenizer encode --tokenizer runs/stories --data input.txt --json\n  echo hello | kiln tokenizer encode --tokenizer mine"
    )]
    Encode(Encode),
    /// Token ids to text.
    #[command(
        after_help = "Examples:\n  kiln tokenizer decode --tokenizer mine 12 7 93\n  kiln tokenizer encode --tokenizer mine --data a.txt | kiln tokenizer decode --tokenizer mine"
    )]
    Decode(Decode),
    /// Kind, size and tokens of a tokenizer, and how well it fits a text.
    #[command(
        after_help = "Examples:\n  kiln tokenizer inspect --tokenizer mine\n  kiln tokenizer inspect --tokenizer mine --data input.txt --json\n  kiln tokenizer inspect --tokenizer mine --tokens"
    )]
    Inspect(Inspect),
}

#[derive(Args)]
struct Train {
    /// File or folder of text. May be given again.
    #[arg(long, value_name = "PATH", required = true)]
    data: Vec<PathBuf>,
    /// Tokens in the vocabulary, the 256 bytes and the end-of-text token included.
    #[arg(long, value_name = "COUNT", default_value_t = 4096, conflicts_with = "char")]
    vocabulary: usize,
    /// One token a character instead.
    #[arg(long)]
    char: bool,
    /// The folder to write tokenizer.json into.
    #[arg(short, long, value_name = "FOLDER")]
    out: PathBuf,
    /// Print {"path", "kind", "vocabulary"}.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Encode {
    /// A tokenizer.json, or a folder that holds one, such as a run's.
    #[arg(long, value_name = "PATH")]
    tokenizer: PathBuf,
    /// The text.
    #[arg(long, conflicts_with = "data")]
    text: Option<String>,
    /// File or folder of text; without --text and --data standard input is read.
    #[arg(long, value_name = "PATH")]
    data: Vec<PathBuf>,
    /// Print {"ids", "tokens"}.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Decode {
    /// A tokenizer.json, or a folder that holds one, such as a run's.
    #[arg(long, value_name = "PATH")]
    tokenizer: PathBuf,
    /// The ids; without any they are read from standard input.
    ids: Vec<u32>,
    /// Show special tokens such as <|endoftext|>.
    #[arg(long)]
    special: bool,
    /// Print {"text"}.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Inspect {
    /// A tokenizer.json, or a folder that holds one, such as a run's.
    #[arg(long, value_name = "PATH")]
    tokenizer: PathBuf,
    /// Encode this file or folder and count. May be given again.
    #[arg(long, value_name = "PATH")]
    data: Vec<PathBuf>,
    /// List every token.
    #[arg(long)]
    tokens: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl TokenizerCommand {
    /// Does what the subcommand says.
    pub fn run(self) -> anyhow::Result<()> {
        match self.action {
            Action::Train(command) => command.run(),
            Action::Encode(command) => command.run(),
            Action::Decode(command) => command.run(),
            Action::Inspect(command) => command.run(),
        }
    }
}

impl Train {
    fn run(self) -> anyhow::Result<()> {
        if self.vocabulary < SMALLEST_BYTE_PAIR_VOCABULARY && !self.char {
            let (got, least) = (self.vocabulary, SMALLEST_BYTE_PAIR_VOCABULARY);
            let text = format!(
                "--vocabulary is {got}, a byte-level vocabulary has at least {least} tokens\n  hint: --char makes one token a character"
            );
            return Err(Usage(text).into());
        }
        let text = Text::open(&self.data)?;
        let text = text.contents();
        let tokenizer = match self.char {
            true => Tokenizer::characters(&text),
            false => Tokenizer::train_byte_pair(&text, self.vocabulary)?,
        };
        tokenizer.save(&self.out)?;
        let path = self.out.join(FILE_NAME);
        let size = tokenizer.vocabulary_size();
        if size < self.vocabulary && !self.char {
            eprintln!("the text gives {size} tokens: no further pair occurs twice");
        }
        let mut out = std::io::stdout().lock();
        match self.json {
            true => {
                writeln!(out, "{}", json!({ "path": path, "kind": tokenizer.kind(), "vocabulary": size }))?
            }
            false => writeln!(out, "{}: {}, {size} tokens", path.display(), tokenizer.kind())?,
        }
        Ok(())
    }
}

impl Encode {
    fn run(self) -> anyhow::Result<()> {
        let tokenizer = Tokenizer::load(&self.tokenizer)?;
        let text = match self.text {
            Some(text) => text,
            None if self.data.is_empty() => from_stdin()?,
            None => Text::open(&self.data)?.contents().into_owned(),
        };
        let ids = tokenizer.encode(&text)?;
        let mut out = std::io::BufWriter::new(std::io::stdout().lock());
        if self.json {
            let names: Vec<_> = ids.iter().map(|&id| tokenizer.token_name(id)).collect();
            writeln!(out, "{}", json!({ "ids": ids, "tokens": names }))?;
        } else {
            let words: Vec<String> = ids.iter().map(u32::to_string).collect();
            writeln!(out, "{}", words.join(" "))?;
        }
        Ok(out.flush()?)
    }
}

impl Decode {
    fn run(self) -> anyhow::Result<()> {
        let tokenizer = Tokenizer::load(&self.tokenizer)?;
        let ids = if self.ids.is_empty() { ids_in(&from_stdin()?)? } else { self.ids };
        let text =
            if self.special { tokenizer.decode_with_special(&ids)? } else { tokenizer.decode(&ids)? };
        let mut out = std::io::stdout().lock();
        match self.json {
            true => writeln!(out, "{}", json!({ "text": text }))?,
            // A text that ends its line needs no second end.
            false if text.ends_with('\n') => write!(out, "{text}")?,
            false => writeln!(out, "{text}")?,
        }
        Ok(out.flush()?)
    }
}

impl Inspect {
    fn run(self) -> anyhow::Result<()> {
        let tokenizer = Tokenizer::load(&self.tokenizer)?;
        let size = tokenizer.vocabulary_size();
        let fit = if self.data.is_empty() { None } else { Some(Fit::of(&tokenizer, &self.data)?) };
        let names =
            |count: usize| (0..count as u32).map(|id| (id, tokenizer.token_name(id).unwrap_or_default()));
        let mut out = std::io::BufWriter::new(std::io::stdout().lock());
        if self.json {
            let mut all = json!({
                "kind": tokenizer.kind(),
                "vocabulary": size,
                "end_of_text": tokenizer.token_id(END_OF_TEXT),
            });
            if let Some(fit) = fit {
                all["text"] = json!({ "tokens": fit.tokens, "characters": fit.characters, "bytes": fit.bytes, "used": fit.used });
            }
            if self.tokens {
                all["tokens"] = names(size).map(|(_, name)| name).collect();
            }
            writeln!(out, "{all}")?;
            return Ok(out.flush()?);
        }
        writeln!(out, "kind         {}", tokenizer.kind())?;
        writeln!(out, "vocabulary   {size} tokens")?;
        match tokenizer.token_id(END_OF_TEXT) {
            Some(id) => writeln!(out, "end of text  {END_OF_TEXT} = {id}")?,
            None => writeln!(out, "end of text  none")?,
        }
        if let Some(fit) = fit {
            let bytes_per_token = fit.bytes as f64 / fit.tokens.max(1) as f64;
            writeln!(
                out,
                "text         {} tokens for {} characters in {} bytes: {bytes_per_token:.3} bytes a token",
                fit.tokens, fit.characters, fit.bytes
            )?;
            writeln!(out, "used         {} of {size} tokens", fit.used)?;
        }
        if self.tokens {
            names(size).try_for_each(|(id, name)| writeln!(out, "{id:>8}  {name:?}"))?;
        }
        Ok(out.flush()?)
    }
}

/// How a tokenizer takes a text.
struct Fit {
    tokens: usize,
    characters: usize,
    bytes: usize,
    /// Distinct tokens that occur.
    used: usize,
}

impl Fit {
    fn of(tokenizer: &Tokenizer, data: &[PathBuf]) -> anyhow::Result<Fit> {
        let text = Text::open(data)?;
        let text = text.contents();
        let mut ids = tokenizer.encode(&text)?;
        let tokens = ids.len();
        ids.sort_unstable();
        ids.dedup();
        Ok(Fit { tokens, characters: text.chars().count(), bytes: text.len(), used: ids.len() })
    }
}

fn from_stdin() -> anyhow::Result<String> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).context(
        "cannot read standard input as UTF-8 text\n  hint: --data FILE names the place of a wrong byte",
    )?;
    Ok(text)
}

/// Ids as they come from `kiln tokenizer encode`, with or without `--json`.
fn ids_in(text: &str) -> anyhow::Result<Vec<u32>> {
    if let Ok(value) = serde_json::from_str::<serde_json::Value>(text)
        && let Some(list) = value.get("ids").or(Some(&value)).and_then(|v| v.as_array())
    {
        let ids = list.iter().map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok()));
        return ids.collect::<Option<_>>().context("expected a list of token ids");
    }
    let read = |word: &str| {
        word.parse().map_err(|_| {
            Usage(format!(
                "`{word}` is not a token id\n  hint: ids are whole numbers, separated by spaces or commas"
            ))
        })
    };
    let words = text.split(|c: char| c.is_whitespace() || c == ',').filter(|word| !word.is_empty());
    Ok(words.map(read).collect::<Result<_, _>>()?)
}
