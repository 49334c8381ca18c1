//! `kiln generate`: text from a model.

use super::folder::{Beside, ModelFolder};
use super::ngram;
use crate::data::tokenizer::{DecodeStream, END_OF_TEXT, Tokenizer};
use crate::deploy::Deployment;
use crate::exchange::{self, Opened};
use crate::generate::{Error, Lengths, Pace, Sampling, Translator, Writer};
use crate::ngram::{Model, is_ngram};
use crate::train::Target;
use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

/// Let a model continue a text or, where it is an encoder-decoder, write another one in view of it.
///
/// The best token is taken each time, unless one of --do-sample, --temperature, --top-k or --top-p asks for chance.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  kiln generate runs/stories --prompt \"Once upon a time\"\n  kiln generate runs/stories --best --temperature 0.8 --top-k 40 --seed 7\n  kiln generate gpt2 --ids 464,3290 --max-new-tokens 20 --json\n  kiln generate runs/stories/checkpoints/step-000500 --device cpu"
)]
pub struct Generate {
    #[command(flatten)]
    folder: ModelFolder,
    #[command(flatten)]
    beside: Beside,
    /// The text to continue. Absent: the token that ends or begins texts, or else a line break.
    #[arg(long, value_name = "TEXT", conflicts_with = "ids")]
    prompt: Option<String>,
    /// The text to continue, as token ids.
    #[arg(long, value_name = "ID,ID", value_delimiter = ',')]
    ids: Option<Vec<u32>>,
    /// Tokens to write at most; the model's own end-of-text token ends the text sooner.
    #[arg(long, value_name = "COUNT", default_value_t = 200)]
    max_new_tokens: usize,
    /// Draw each token by its probability.
    #[arg(long)]
    do_sample: bool,
    /// Divide the scores by this before drawing; 0 takes the best token.
    #[arg(long, value_name = "NUMBER")]
    temperature: Option<f64>,
    /// Draw from this many of the best tokens; 0 means all.
    #[arg(long, value_name = "COUNT")]
    top_k: Option<usize>,
    /// Draw from the best tokens that together have this probability.
    #[arg(long, value_name = "SHARE")]
    top_p: Option<f64>,
    /// Seed of the draws.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// How keys and values of what was read are kept.
    #[arg(long, value_enum, default_value_t = Cache::F32)]
    cache: Cache,
    /// gpu, cpu, an adapter's number, or part of its name.
    #[arg(long, default_value = "gpu")]
    device: String,
    /// Print {"sequences": [[ids]], "texts": [text]}, with the prompt or the token that starts the text, instead of the text.
    #[arg(long)]
    json: bool,
}

/// Shows tokens as `write` makes them, up to one of `ends`.
fn stream<T>(
    page: &mut Page,
    ends: &[u32],
    write: impl FnOnce(&mut dyn FnMut(u32) -> bool) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let mut failed = None;
    let written = write(&mut |token| {
        if ends.contains(&token) {
            return false;
        }
        failed = page.show(&[token]).err();
        failed.is_none()
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    page.finish()?;
    Ok(written)
}

/// How keys and values are kept.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Cache {
    /// As they are.
    F32,
    /// As 8-bit codes with a scale for each token and head, for heads of a multiple of four elements.
    Int8,
}

impl Generate {
    /// Streams the text to stdout, or prints it whole as JSON.
    pub fn run(self) -> anyhow::Result<()> {
        let sampling = self.sampling();
        sampling.check()?;
        let folder = self.folder.resolve()?;
        let adapters = self.beside.resolve()?;
        if is_ngram(&folder) && adapters.is_empty() {
            return self.draw(&folder, &sampling);
        }
        let model = exchange::open_to_run(&folder, &adapters)?;
        let tokenizer = model.tokenizer.clone();
        let ends = end_tokens(&model.family.config());
        let prompt = self.prompt_ids(tokenizer.as_ref())?;
        if model.family.interface().start.is_some() {
            return self.translate(model, &prompt, &sampling, &ends);
        }
        let target = Target::open_or_host(&self.device, &mut |line| eprintln!("{line}"))?;
        let longest = prompt.len().saturating_add(self.max_new_tokens);
        let mut deployment = Deployment::new(&model.weights).within(&target);
        if self.cache == Cache::Int8 {
            deployment = deployment.with_coded_cache();
        }
        let mut writer = Writer::over(model.family.as_ref(), &deployment, model.tokenizer, &target, longest)?;
        target.told().iter().for_each(|report| eprintln!("kernels  {report}"));
        writer.check(&prompt)?;
        if prompt.len() > writer.context() {
            let (given, context) = (prompt.len(), writer.context());
            eprintln!(
                "the prompt has {given} tokens, the model sees {context}: only the last {context} are used"
            );
        }
        let mut page = Page::new(tokenizer.as_ref(), self.json);
        page.show(&prompt)?;
        let written = stream(&mut page, &ends, |next| {
            Ok(writer.continue_ids(&prompt, self.max_new_tokens, &sampling, next)?)
        })?;
        eprintln!("{}", said_of(&writer.pace()));
        if self.json {
            print_sequence([prompt, written].concat(), tokenizer.as_ref())?;
        }
        Ok(())
    }

    /// Continues the prompt with a model of runs.
    fn draw(&self, folder: &Path, sampling: &Sampling) -> anyhow::Result<()> {
        let (model, tokenizer) = Model::load(folder)?;
        let prompt = self.prompt_ids(Some(&tokenizer))?;
        let end = tokenizer.token_id(END_OF_TEXT);
        let mut page = Page::new(Some(&tokenizer), self.json);
        page.show(&prompt)?;
        let written = stream(&mut page, end.as_slice(), |next| {
            ngram::write(&model, &prompt, self.max_new_tokens, sampling, next)
        })?;
        if self.json {
            print_sequence([prompt, written].concat(), Some(&tokenizer))?;
        }
        Ok(())
    }

    /// Writes a text in view of the prompt.
    fn translate(
        &self,
        model: Opened,
        prompt: &[u32],
        sampling: &Sampling,
        ends: &[u32],
    ) -> anyhow::Result<()> {
        if self.cache != Cache::F32 {
            let text =
                "--cache int8 is for decoders alone\n  hint: this model is an encoder-decoder: leave it out";
            return Err(super::Usage(text.into()).into());
        }
        let tokenizer = model.tokenizer.clone();
        let mut prompt = prompt.to_vec();
        // A text ends as those did from which the model learned, also where its tokenizer does not see to it.
        if let (None, Some(&end)) = (&self.ids, ends.first())
            && prompt.last().is_none_or(|last| !ends.contains(last))
        {
            prompt.push(end);
        }
        let target = Target::open_or_host(&self.device, &mut |line| eprintln!("{line}"))?;
        let count = self.max_new_tokens.min(model.family.context());
        let lengths = Lengths { source: prompt.len(), target: count.max(1) };
        let mut translator = Translator::with(model, &target, lengths)?;
        target.told().iter().for_each(|report| eprintln!("kernels  {report}"));
        let mut page = Page::new(tokenizer.as_ref(), self.json);
        let written =
            stream(&mut page, ends, |next| Ok(translator.write_ids(&prompt, count, sampling, next)?))?;
        if self.json {
            let sequence = [vec![translator.start()], written].concat();
            print_sequence(sequence, tokenizer.as_ref())?;
        }
        Ok(())
    }

    /// Greedy unless something speaks of chance.
    fn sampling(&self) -> Sampling {
        let by_chance =
            self.do_sample || self.temperature.is_some() || self.top_k.is_some() || self.top_p.is_some();
        if !by_chance {
            return Sampling::greedy();
        }
        Sampling {
            temperature: self.temperature.unwrap_or(1.0),
            top_k: self.top_k.unwrap_or(0),
            top_p: self.top_p.unwrap_or(1.0),
            seed: self.seed,
        }
    }

    fn prompt_ids(&self, tokenizer: Option<&Tokenizer>) -> anyhow::Result<Vec<u32>> {
        let ids = match (&self.ids, &self.prompt, tokenizer) {
            (Some(ids), _, _) => ids.clone(),
            (None, _, None) => return Err(Error::NoTokenizer.into()),
            (None, Some(text), Some(tokenizer)) => tokenizer.encode_with_special(text)?,
            (None, None, Some(tokenizer)) => match tokenizer.token_id(END_OF_TEXT) {
                Some(id) => vec![id],
                None => match tokenizer.opening()? {
                    opening if opening.is_empty() => tokenizer.encode("\n")?,
                    opening => opening,
                },
            },
        };
        if ids.is_empty() { Err(Error::EmptyPrompt.into()) } else { Ok(ids) }
    }
}

fn print_sequence(sequence: Vec<u32>, tokenizer: Option<&Tokenizer>) -> anyhow::Result<()> {
    let texts: Vec<String> = tokenizer.iter().map(|t| t.decode(&sequence)).collect::<Result<_, _>>()?;
    Ok(writeln!(std::io::stdout(), "{}", json!({ "sequences": [sequence], "texts": texts }))?)
}

/// How fast a prompt was read and continued, in tokens per second.
fn said_of(pace: &Pace) -> String {
    let rate = |count: usize, time: Duration| {
        format!("{count} tokens at {:.1} a second", count as f64 / time.as_secs_f64().max(1e-9))
    };
    let mut parts = vec![];
    if pace.read > 0 {
        parts.push(format!("read {}", rate(pace.read, pace.reading)));
    }
    if pace.steps > 0 {
        parts.push(format!("wrote {}", rate(pace.steps, pace.stepping)));
    }
    parts.join("; ")
}

/// Tokens that end a text, as the model's `config.json` says; none where it says nothing.
fn end_tokens(config: &Map<String, Value>) -> Vec<u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match config.get("eos_token_id") {
        Some(Value::Array(list)) => list.iter().filter_map(id).collect(),
        Some(value) => id(value).into_iter().collect(),
        None => vec![],
    }
}

/// Where tokens appear as they come: as text, as numbers where there is no tokenizer, or not at all.
enum Page<'a> {
    Text(Option<DecodeStream<'a>>),
    Numbers,
    Hidden,
}

impl<'a> Page<'a> {
    fn new(tokenizer: Option<&'a Tokenizer>, hidden: bool) -> Self {
        match tokenizer {
            _ if hidden => Page::Hidden,
            Some(tokenizer) => Page::Text(Some(tokenizer.decode_stream())),
            None => Page::Numbers,
        }
    }

    fn show(&mut self, ids: &[u32]) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        for &id in ids {
            match self {
                Page::Text(Some(stream)) => write!(out, "{}", stream.push(id)?)?,
                Page::Numbers => write!(out, "{id} ")?,
                Page::Text(None) | Page::Hidden => {}
            }
        }
        Ok(out.flush()?)
    }

    fn finish(&mut self) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        match self {
            Page::Text(stream) => {
                if let Some(stream) = stream.take() {
                    writeln!(out, "{}", stream.finish()?)?;
                }
            }
            Page::Numbers => writeln!(out)?,
            Page::Hidden => {}
        }
        Ok(())
    }
}
