//! `kiln generate`: text from a model.

pub(super) mod flags;
mod page;
mod prompt;

use super::Usage;
use super::folder::{Beside, Head, ModelFolder};
use super::ngram;
use crate::data::tokenizer::{END_OF_TEXT, Tokenizer};
use crate::deploy::{self, Deployment};
use crate::exchange::{self, Opened};
use crate::generate::{
    Agreed, CausalRows, Finish, Lengths, Overflow, Pace, Request, Room, Rows, Session, Settings, Sought,
    SpeculativeRows, end_tokens, open_rows, search,
};
use crate::model::Family;
use crate::ngram::{Model, is_ngram};
use crate::train::Target;
use clap::{Args, ValueEnum};
use flags::Flags;
use page::Page;
use prompt::Prompts;
use serde_json::json;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Let a model continue texts or, where it is an encoder-decoder, write others in view of them.
///
/// The best token is taken each time, unless --do-sample or a flag that shapes the draw asks for chance, or --num-beams for beams.
/// Several prompts are written side by side; each has the text that it has alone.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  kiln generate runs/stories --prompt \"Once upon a time\"\n  kiln generate runs/stories --best --temperature 0.8 --top-k 40 --seed 7\n  kiln generate runs/stories --prompt \"The sea\" --num-beams 4 --no-repeat-ngram-size 3\n  kiln generate smollm2 --chat --prompt \"Why is the sky blue?\" --stop-strings User:\n  kiln generate smollm2 --chat --prompt \"Who wrote Emma?\" --json-schema answer.json\n  kiln generate gpt2 --ids 464,3290 --max-new-tokens 20 --json\n  kiln generate runs/stories/checkpoints/step-000500 --device cpu"
)]
pub struct Generate {
    #[command(flatten)]
    folder: ModelFolder,
    #[command(flatten)]
    beside: Beside,
    #[command(flatten)]
    head: Head,
    #[command(flatten)]
    prompts: Prompts,
    #[command(flatten)]
    flags: Flags,
    /// How keys and values of what was read are kept.
    #[arg(long, value_enum, default_value_t = Cache::F32)]
    cache: Cache,
    /// gpu, cpu, an adapter's number, or part of its name.
    #[arg(long, default_value = "gpu")]
    device: String,
    /// Print {"sequences": [[ids]], "texts": [text], "scores": [number]}, with the prompt or the token that starts the text, instead of the
    /// text. A score is the sum of a text's log-probabilities over its length.
    #[arg(long)]
    json: bool,
}

/// How keys and values are kept.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Cache {
    /// As they are.
    F32,
    /// In 16 bits, where the device computes with them.
    F16,
    /// As 8-bit codes with a scale for each token and head, for heads of a multiple of four elements.
    Int8,
}

impl Cache {
    /// The same for a model that can have it.
    pub(super) fn of(self, family: &dyn Family) -> anyhow::Result<deploy::Cache> {
        if self != Cache::F32 && family.interface().start.is_some() {
            let text = "--cache f16 and int8 are for decoders alone\n  hint: this model is an encoder-decoder: leave it out";
            return Err(Usage(text.into()).into());
        }
        Ok(match self {
            Cache::F32 => deploy::Cache::Full,
            Cache::F16 => deploy::Cache::Halves,
            Cache::Int8 => deploy::Cache::Codes,
        })
    }
}

/// Texts most that are written side by side; more wait.
const MOST_ROWS: usize = 16;

/// A text as it was written.
struct Written {
    ids: Vec<u32>,
    text: String,
    score: f32,
}

impl Generate {
    /// Streams the text to stdout, or prints it whole as JSON.
    pub fn run(self) -> anyhow::Result<()> {
        let beams = self.flags.beams()?;
        self.flags.sampling().check()?;
        let folder = self.folder.resolve()?;
        let adapters = self.beside.resolve()?;
        if is_ngram(&folder) && adapters.is_empty() {
            return self.draw(&folder);
        }
        let model = self.head.open(&folder, &adapters)?;
        let ends = end_tokens(&model.family.config(), Some(&folder));
        let pair = model.family.interface().start.is_some();
        let mut prompts = self.prompts.ids(model.tokenizer.as_ref(), &folder)?;
        if pair && let Some(&end) = ends.first() {
            // A text ends as those did from which the model learned, also where its tokenizer does not see to it.
            let whole = |ids: &Vec<u32>| ids.last().is_some_and(|last| ends.contains(last));
            prompts
                .iter_mut()
                .filter(|ids| !self.prompts.are_ids() && !whole(ids))
                .for_each(|ids| ids.push(end));
        }
        let settings = self.flags.settings(model.tokenizer.as_ref(), &ends)?;
        let target = Target::open_or_host(&self.device, &mut |line| eprintln!("{line}"))?;
        let each = beams.as_ref().map_or(self.flags.texts(), |beams| beams.num_beams);
        let prompts = self.flags.in_context(model.tokenizer.as_ref(), prompts, &settings)?;
        let (prompts, settings): (Vec<_>, Vec<_>) = prompts.into_iter().unzip();
        let seconds = settings.iter().any(|settings| settings.contrast.is_some());
        let rows = self.rows(&model, &target, &prompts, if seconds { 2 * each } else { each })?;
        target.told().iter().for_each(|report| eprintln!("kernels  {report}"));
        let tokenizer = model.tokenizer.map(Arc::new);
        let mut writer = Writer { json: self.json, tokenizer, settings, pair, prompts, session: None };
        writer.fit(rows.as_ref())?;
        let mut session = Session::new(rows, writer.tokenizer.clone());
        let written = match &beams {
            Some(beams) => writer.beams(&mut session, beams)?,
            None => {
                writer.session = Some(session);
                writer.side_by_side(self.flags.texts())?
            }
        };
        if let Some(session) = &mut writer.session {
            eprintln!("{}", said_of(&session.rows().pace()));
            if let Some(agreed) = session.rows().agreed() {
                let Agreed { proposed, accepted, passes } = agreed;
                eprintln!(
                    "draft    {accepted} of {proposed} tokens were right, in {passes} passes of the model"
                );
            }
        }
        writer.print(&written)
    }

    /// Rows for the prompts, on a device.
    fn rows(
        &self,
        model: &Opened,
        target: &Target,
        prompts: &[Vec<u32>],
        each: usize,
    ) -> anyhow::Result<Box<dyn Rows>> {
        let family = model.family.as_ref();
        let deployment = Deployment::new(&model.weights).within(target).with_cache(self.cache.of(family)?);
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(1);
        let most = (MOST_ROWS / each.max(1)).max(1).min(prompts.len()) * each.max(1);
        let count = if self.flags.max_new_tokens > family.context() {
            family.context()
        } else {
            self.flags.max_new_tokens
        };
        let tokens = longest.saturating_add(self.flags.max_new_tokens);
        let lengths = Lengths { source: longest, target: count.max(1) };
        let room = Room { rows: most, tokens };
        let Some(assistant) = &self.flags.assistant_model else {
            return Ok(open_rows(family, &deployment, target, room, lengths)?);
        };
        let draft = exchange::open_to_run(&super::folder::resolve(assistant, false)?, &[])?;
        let both = [family, draft.family.as_ref()].map(|family| family.interface());
        if both.iter().any(|of| of.start.is_some() || of.sums_up) {
            let text =
                "--assistant-model is for decoders alone: neither encoder-decoders nor recurrent models";
            return Err(Usage(text.into()).into());
        }
        let ahead = Deployment::new(&draft.weights).within(target);
        let own = CausalRows::verifying(family, &deployment, target, room, self.flags.ahead() + 1)?;
        let draft = CausalRows::new(draft.family.as_ref(), &ahead, target, room)?;
        Ok(Box::new(SpeculativeRows::new(own, draft)?))
    }

    /// Continues the prompt with a model of runs.
    fn draw(&self, folder: &Path) -> anyhow::Result<()> {
        if let Some(flag) = self.flags.beyond_sampling() {
            return Err(Usage(format!("{flag} is not there for models of counted runs")).into());
        }
        let (model, tokenizer) = Model::load(folder)?;
        let [prompt] = &self.prompts.ids(Some(&tokenizer), folder)?[..] else {
            return Err(Usage("models of counted runs continue one prompt at a time".into()).into());
        };
        let end = tokenizer.token_id(END_OF_TEXT);
        let mut page = Page::new(Some(&tokenizer), self.json);
        page.show(prompt)?;
        let mut failed = None;
        let sampling = self.flags.sampling();
        let ids = ngram::write(&model, prompt, self.flags.max_new_tokens, &sampling, &mut |token| {
            if Some(token) == end {
                return false;
            }
            failed = page.show(&[token]).err();
            failed.is_none()
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
        page.finish()?;
        if !self.json {
            return Ok(());
        }
        let ids = [&prompt[..], &ids].concat();
        let text = tokenizer.decode(&ids)?;
        print_json(&[Written { ids, text, score: f32::NAN }], true)
    }
}

/// What writes the prompts.
struct Writer {
    json: bool,
    tokenizer: Option<Arc<Tokenizer>>,
    /// Of each prompt.
    settings: Vec<Settings>,
    /// The model is an encoder-decoder: prompts are what its encoder reads.
    pair: bool,
    prompts: Vec<Vec<u32>>,
    session: Option<Session>,
}

impl Writer {
    /// Says where a prompt is longer than what the model sees, and cuts it where that is to be done.
    fn fit(&mut self, rows: &dyn Rows) -> anyhow::Result<()> {
        let capacity = rows.capacity();
        if self.pair {
            return Ok(());
        }
        for (prompt, settings) in self.prompts.iter().zip(&self.settings) {
            let given = prompt.len();
            if given > capacity && settings.overflow == Overflow::Slide {
                eprintln!(
                    "the prompt has {given} tokens, the model sees {capacity}: only the last {capacity} are used"
                );
            }
        }
        Ok(())
    }

    /// What a text begins with.
    fn begins(&self, prompt: &[u32], start: Option<u32>) -> Vec<u32> {
        start.map_or_else(|| prompt.to_vec(), |start| vec![start])
    }

    /// Writes every prompt `each` times; a single text is shown as it comes.
    fn side_by_side(&mut self, each: usize) -> anyhow::Result<Vec<Written>> {
        let session = self.session.as_mut().expect("it was opened");
        let start = session.rows().start();
        let single = self.prompts.len() * each == 1;
        let formed = self.settings.iter().any(|settings| settings.grammar.is_some());
        let mut texts = std::collections::BTreeMap::new();
        for (prompt, settings) in self.prompts.iter().zip(&self.settings) {
            let source = if self.pair { Some(session.rows().source_of(prompt)?) } else { None };
            for stream in 0..each as u32 {
                let begins = start.map_or_else(|| prompt.clone(), |start| vec![start]);
                let logprobs = self.json.then_some(0);
                let settings = settings.clone();
                let request =
                    Request { prompt: begins.clone(), source: source.clone(), settings, stream, logprobs };
                let written = Written { ids: begins, text: String::new(), score: 0.0 };
                texts.insert(session.admit(request)?, (written, 0));
            }
        }
        let tokenizer = self.tokenizer.clone();
        let mut page = Page::new(tokenizer.as_deref(), self.json || !single);
        if !self.pair && single {
            page.show(&self.prompts[0])?;
            page.settle()?;
        }
        while !session.is_idle() {
            for event in session.step()? {
                let (written, count) = texts.get_mut(&event.ticket).expect("it was admitted");
                written.ids.push(event.token);
                written.text += &event.text;
                written.score += event.told.as_ref().map_or(0.0, |told| told.chosen);
                *count += 1;
                if let Some(why) = event.finish.as_ref().and_then(cut_off).filter(|_| formed) {
                    eprintln!("cut off  {why}: a text is not whole by what it must match");
                }
                let ends = matches!(event.finish, Some(Finish::End(_)));
                if !ends {
                    page.show_as(&event.text, event.token)?;
                }
            }
        }
        page.finish()?;
        let over = |(written, count): (Written, usize)| Written {
            score: written.score / count.max(1) as f32,
            ..written
        };
        Ok(texts.into_values().map(over).collect())
    }

    /// Writes every prompt by beams, as many at once as have rows.
    fn beams(
        &mut self,
        session: &mut Session,
        beams: &crate::generate::Beams,
    ) -> anyhow::Result<Vec<Written>> {
        let rows = session.rows();
        // What beams have is the same for all prompts.
        let settings = &self.settings[0];
        let start = rows.start();
        let mut all = vec![];
        for part in self.prompts.chunks((rows.count() / beams.num_beams).max(1)) {
            let mut begins = vec![];
            for (number, prompt) in part.iter().enumerate() {
                let seen = prompt.len().min(if settings.overflow == Overflow::Slide {
                    rows.capacity()
                } else {
                    usize::MAX
                });
                begins.push(
                    self.begins(&prompt[prompt.len() - if self.pair { prompt.len() } else { seen }..], start),
                );
                if self.pair {
                    let source = rows.source_of(prompt)?;
                    for row in 0..beams.num_beams {
                        rows.begin(number * beams.num_beams + row, &source)?;
                    }
                }
            }
            let sought: Vec<Sought> = begins
                .iter()
                .enumerate()
                .map(|(number, prompt)| Sought {
                    prompt,
                    row: number * beams.num_beams,
                    stream: (all.len() + number) as u32,
                })
                .collect();
            for (found, begin) in search(rows, &sought, settings, beams)?.into_iter().zip(&begins) {
                for text in found {
                    let own: Vec<u32> = text.ids[begin.len()..]
                        .iter()
                        .copied()
                        .filter(|token| !settings.ends.contains(token))
                        .collect();
                    let shown = self.tokenizer.as_ref().map_or(Ok(String::new()), |t| t.decode(&own))?;
                    all.push(Written { ids: text.ids, text: shown, score: text.score });
                }
            }
        }
        Ok(all)
    }

    /// Prints texts that were not shown as they came.
    fn print(&self, written: &[Written]) -> anyhow::Result<()> {
        if self.json {
            let whole = |written: &Written| -> anyhow::Result<Written> {
                let text = self.tokenizer.as_ref().map_or(Ok(String::new()), |t| t.decode(&written.ids))?;
                Ok(Written { ids: written.ids.clone(), text, score: written.score })
            };
            let all = written.iter().map(whole).collect::<anyhow::Result<Vec<_>>>()?;
            return print_json(&all, self.tokenizer.is_some());
        }
        if written.len() == 1 && self.session.is_some() {
            return Ok(());
        }
        let mut out = std::io::stdout().lock();
        let each = written.len() / self.prompts.len().max(1);
        for (number, text) in written.iter().enumerate() {
            let prompt = &self.prompts[number / each.max(1)];
            match &self.tokenizer {
                Some(tokenizer) if !self.pair => writeln!(out, "{}{}", tokenizer.decode(prompt)?, text.text)?,
                Some(_) => writeln!(out, "{}", text.text)?,
                None => {
                    let ids: Vec<String> = text.ids.iter().map(u32::to_string).collect();
                    writeln!(out, "{}", ids.join(" "))?;
                }
            }
        }
        Ok(())
    }
}

/// Why a text ended before it was whole.
fn cut_off(finish: &Finish) -> Option<&'static str> {
    match finish {
        Finish::Length => Some("it has --max-new-tokens tokens"),
        Finish::Full => Some("the context is full"),
        Finish::Stuck => Some("no token may follow"),
        Finish::End(_) | Finish::Stop(_) | Finish::Complete => None,
    }
}

fn print_json(written: &[Written], with_texts: bool) -> anyhow::Result<()> {
    let sequences: Vec<&Vec<u32>> = written.iter().map(|text| &text.ids).collect();
    let texts: Vec<&str> = written.iter().filter(|_| with_texts).map(|text| text.text.as_str()).collect();
    let scores: Vec<f32> = written.iter().map(|text| text.score).filter(|score| !score.is_nan()).collect();
    let all = json!({ "sequences": sequences, "texts": texts, "scores": scores });
    Ok(writeln!(std::io::stdout(), "{all}")?)
}

/// How fast prompts were read and continued, in tokens per second.
fn said_of(pace: &Pace) -> String {
    let rate = |count: usize, time: Duration| {
        format!("{count} tokens at {:.1} a second", count as f64 / time.as_secs_f64().max(1e-9))
    };
    let mut parts = vec![];
    if pace.read > 0 {
        parts.push(format!("read {}", rate(pace.read, pace.reading)));
    }
    if pace.steps > 0 {
        let each = pace.dispatches.map_or(String::new(), |count| format!(", {count} dispatches each"));
        parts.push(format!("wrote {}{each}", rate(pace.steps, pace.stepping)));
    }
    parts.join("; ")
}
