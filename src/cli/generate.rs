//! `kiln generate`: text from a model.

pub(super) mod flags;
mod page;
pub(super) mod prompt;
mod writer;

use super::Usage;
use super::folder::{Beside, Head, ModelFolder};
use super::ngram;
use super::retrieve::Retrieval;
use crate::data::tokenizer::END_OF_TEXT;
use crate::deploy::{self, Deployment};
use crate::exchange::{self, Opened};
use crate::generate::{
    Agreed, CausalRows, EarlyLayers, Lengths, Overflow, Pace, Room, Rows, Session, Shown, SpeculativeRows,
    end_tokens, open_rows,
};
use crate::model::Family;
use crate::ngram::{Model, is_ngram};
use crate::ops::cache_order::MOST;
use crate::train::Target;
use clap::{Args, ValueEnum};
use flags::Flags;
use page::Page;
use prompt::Prompts;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use writer::{Writer, Written, print_json};

/// Let a model continue texts or, where it is an encoder-decoder, write others in view of them.
///
/// The best token is taken each time, unless --do-sample or a flag that shapes the draw asks for chance, or --num-beams for beams.
/// Several prompts are written side by side; each has the text that it has alone.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  kiln generate runs/stories --prompt \"Once upon a time\"\n  kiln generate runs/stories --best --temperature 0.8 --top-k 40 --seed 7\n  kiln generate runs/stories --prompt \"The sea\" --num-beams 4 --no-repeat-ngram-size 3\n  kiln generate runs/stories --prompt \"The sea\" --penalty-alpha 0.6 --top-k 4\n  kiln generate smollm2 --chat --prompt \"Why is the sky blue?\" --stop-strings User:\n  kiln generate smollm2 --chat --prompt \"Who wrote Emma?\" --json-schema answer.json\n  kiln generate smollm2 --chat --prompt \"How salt is the sea?\" --retrieve notes --retrieve-top 2\n  kiln generate gpt2 --ids 464,3290 --max-new-tokens 20 --json\n  kiln generate runs/stories/checkpoints/step-000500 --device cpu"
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
    #[command(flatten)]
    retrieval: Retrieval,
    /// How keys and values of what was read are kept.
    #[arg(long, value_enum, default_value_t = Cache::F32)]
    cache: Cache,
    /// gpu, cpu, an adapter's number, or part of its name.
    #[arg(long, default_value = "gpu")]
    device: String,
    /// Print {"sequences": [[ids]], "texts": [text], "scores": [number]}, with the prompt or the token that starts the text, instead of the
    /// text. A score is the sum of a text's log-probabilities over its length. Beside --retrieve also "sources": for each prompt its passages.
    #[arg(long)]
    json: bool,
}

/// How keys and values are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
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
        if self != Cache::F32 && family.interface().sums_up {
            let text = "--cache f16 and int8 are for models with caches\n  hint: this one is recurrent and keeps a state: leave it out";
            return Err(Usage(text.into()).into());
        }
        Ok(self.into())
    }
}

impl From<Cache> for deploy::Cache {
    fn from(cache: Cache) -> deploy::Cache {
        match cache {
            Cache::F32 => deploy::Cache::Full,
            Cache::F16 => deploy::Cache::Halves,
            Cache::Int8 => deploy::Cache::Codes,
        }
    }
}

/// Texts most that are written side by side; more wait.
pub(super) const MOST_ROWS: usize = 16;

impl Generate {
    /// Streams the text to stdout, or prints it whole as JSON.
    pub fn run(self) -> anyhow::Result<()> {
        let beams = self.flags.beams()?;
        let contrastive = self.flags.contrastive()?;
        self.flags.sampling().check()?;
        let folder = self.folder.resolve()?;
        let adapters = self.beside.resolve()?;
        if is_ngram(&folder) && adapters.is_empty() {
            self.retrieval
                .refuse_beside(&[("a model of counted runs, which sees a few tokens alone", true)])?;
            return self.draw(&folder);
        }
        self.retrieval
            .refuse_beside(&[("--ids", self.prompts.are_ids()), ("--context", self.flags.has_context())])?;
        let model = self.head.open(&folder, &adapters)?;
        let ends = end_tokens(&model.family.config(), Some(&folder));
        let pair = model.family.interface().start.is_some();
        let (mut prompts, grounds) = match self.retrieval.open(&self.device)? {
            None => (self.prompts.ids(model.tokenizer.as_ref(), &folder)?, None),
            Some(mut library) => {
                // An encoder-decoder writes its answer elsewhere than it reads; a token that ends what it reads may be added.
                let answer = if pair { 1 } else { self.flags.max_new_tokens };
                let room = [model.family.context(), answer];
                let all =
                    self.prompts.with_passages(model.tokenizer.as_ref(), &folder, &mut library, room)?;
                let (ids, grounds) = all.into_iter().map(|one| (one.ids, (one.shown, one.hits))).unzip();
                (ids, Some(grounds))
            }
        };
        if pair && let Some(&end) = ends.first() {
            // A text ends as those did from which the model learned, also where its tokenizer does not see to it.
            let whole = |ids: &Vec<u32>| ids.last().is_some_and(|last| ends.contains(last));
            prompts
                .iter_mut()
                .filter(|ids| !self.prompts.are_ids() && !whole(ids))
                .for_each(|ids| ids.push(end));
        }
        let settings = self.flags.settings(model.tokenizer.as_ref(), &ends)?;
        if let (true, Some(limit)) = (pair, model.family.longest_source()) {
            prompts.iter_mut().try_for_each(|ids| fit_source(ids, limit, settings.overflow))?;
        }
        let target = Target::open_or_host(&self.device, &mut |line| eprintln!("{line}"))?;
        let each = match (&beams, &contrastive) {
            (Some(beams), _) => beams.num_beams,
            (_, Some(contrastive)) => contrastive.top_k,
            _ => self.flags.texts(),
        };
        if each > MOST {
            let text = format!(
                "{each} texts side by side are asked for, there is room for {MOST}\n  hint: lower --num-beams, --top-k of --penalty-alpha, or --num-return-sequences"
            );
            return Err(Usage(text).into());
        }
        let prompts = self.flags.in_context(model.tokenizer.as_ref(), prompts, &settings)?;
        let (prompts, settings): (Vec<_>, Vec<_>) = prompts.into_iter().unzip();
        let seconds = settings.iter().any(|settings| settings.contrast.is_some());
        let rows = self.rows(&model, &target, &prompts, if seconds { 2 * each } else { each })?;
        target.told().iter().for_each(|report| eprintln!("kernels  {report}"));
        let tokenizer = model.tokenizer.map(Arc::new);
        let mut writer =
            Writer { json: self.json, tokenizer, settings, pair, prompts, grounds, session: None };
        writer.fit(rows.as_ref())?;
        let mut session = Session::new(rows, writer.tokenizer.clone());
        let written = match (&beams, &contrastive) {
            (Some(beams), _) => writer.beams(&mut session, beams)?,
            (_, Some(contrastive)) => writer.contrastive(&mut session, contrastive)?,
            _ => {
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
        if let Some(shown) = self.shown(family)? {
            return Ok(Box::new(CausalRows::showing(family, &deployment, target, room, shown)?));
        }
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

    /// What passes are to show beside scores; none where scores are enough.
    fn shown(&self, family: &dyn Family) -> anyhow::Result<Option<Shown>> {
        let (flag, early) = match (self.flags.contrastive()?, &self.flags.dola_layers) {
            (Some(_), _) => ("--penalty-alpha", None),
            (_, Some(layers)) => ("--dola-layers", Some(layers.parse::<EarlyLayers>()?)),
            _ => return Ok(None),
        };
        let interface = family.interface();
        if interface.start.is_some() || interface.sums_up {
            let text =
                format!("{flag} is for decoders with caches: neither encoder-decoders nor recurrent models");
            return Err(Usage(text).into());
        }
        Ok(Some(match early {
            Some(layers) => Shown::Early(layers.of(family)?),
            None => Shown::States,
        }))
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
        print_json(&[Written { ids, text, score: f32::NAN }], true, None)
    }
}

/// Cuts a source to its last tokens where the encoder reads no more, and says so, or refuses it.
fn fit_source(ids: &mut Vec<u32>, limit: usize, overflow: Overflow) -> anyhow::Result<()> {
    let given = ids.len();
    if given <= limit {
        return Ok(());
    }
    if overflow == Overflow::Stop {
        let text = format!(
            "the source has {given} tokens, the model reads {limit}\n  hint: shorten it, or --overflow slide: its last {limit} are used"
        );
        return Err(Usage(text).into());
    }
    eprintln!("the source has {given} tokens, the model reads {limit}: only the last {limit} are used");
    ids.drain(..given - limit);
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_beyond_the_encoders_positions_keeps_its_end_or_is_refused() {
        let cut = |count: u32, overflow| {
            let mut ids: Vec<u32> = (0..count).collect();
            fit_source(&mut ids, 4, overflow).map(|()| ids)
        };
        assert_eq!(cut(7, Overflow::Slide).unwrap(), [3, 4, 5, 6]);
        assert_eq!(cut(4, Overflow::Stop).unwrap(), [0, 1, 2, 3]);
        let refused = cut(5, Overflow::Stop).unwrap_err().to_string();
        assert!(refused.contains("5 tokens, the model reads 4") && refused.contains("hint"), "{refused}");
    }
}
