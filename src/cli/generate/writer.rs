//! How prompts are written: side by side as tokens come, or as wholes.

use super::page::Page;
use crate::cli::retrieve::{listed, sources};
use crate::data::tokenizer::Tokenizer;
use crate::generate::{
    Beams, Contrastive, Error, Finish, Hypothesis, Overflow, Request, Rows, Session, Settings, Sought,
    before_stop, contrast, search,
};
use crate::retrieve::Hit;
use serde_json::{Value as Json, json};
use std::io::Write;
use std::sync::Arc;

/// A text as it was written.
pub struct Written {
    /// All tokens, with those given.
    pub ids: Vec<u32>,
    /// What was written.
    pub text: String,
    /// Mean log-probability.
    pub score: f32,
}

/// What writes the prompts.
pub struct Writer {
    /// Results are JSON.
    pub json: bool,
    /// For text.
    pub tokenizer: Option<Arc<Tokenizer>>,
    /// Of each prompt.
    pub settings: Vec<Settings>,
    /// The model is an encoder-decoder: prompts are what its encoder reads.
    pub pair: bool,
    /// What is to be continued, or read.
    pub prompts: Vec<Vec<u32>>,
    /// Of each prompt behind passages: what of it is shown, and the passages.
    pub grounds: Option<Vec<(Vec<u32>, Vec<Hit>)>>,
    /// What writes side by side.
    pub session: Option<Session>,
}

impl Writer {
    /// Says where a prompt is longer than what the model sees, and cuts it where that is to be done.
    pub fn fit(&mut self, rows: &dyn Rows) -> anyhow::Result<()> {
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

    /// What is shown before the answer to a prompt.
    fn shown(&self, prompt: usize) -> &[u32] {
        self.grounds.as_ref().map_or(&self.prompts[prompt], |grounds| &grounds[prompt].0)
    }

    /// What was read for a prompt, behind an answer.
    fn sources(&self, prompt: usize, answer: &str) -> String {
        self.grounds.as_ref().map_or(String::new(), |grounds| listed(&grounds[prompt].1, answer))
    }

    /// What a text begins with.
    fn begins(&self, prompt: &[u32], start: Option<u32>) -> Vec<u32> {
        start.map_or_else(|| prompt.to_vec(), |start| vec![start])
    }

    /// Writes every prompt `each` times; a single text is shown as it comes.
    pub fn side_by_side(&mut self, each: usize) -> anyhow::Result<Vec<Written>> {
        let first = self.shown(0).to_vec();
        let session = self.session.as_mut().expect("it was opened");
        let start = session.rows().start();
        let single = self.prompts.len() * each == 1;
        let formed = self.settings.iter().any(|settings| settings.grammar.is_some());
        let mut texts = std::collections::BTreeMap::new();
        let mut cut: Vec<&str> = vec![];
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
            page.show(&first)?;
            page.settle()?;
        }
        while !session.is_idle() {
            for event in session.step()? {
                let (written, count) = texts.get_mut(&event.ticket).expect("it was admitted");
                written.ids.push(event.token);
                written.text += &event.text;
                written.score += event.told.as_ref().map_or(0.0, |told| told.chosen);
                *count += 1;
                cut.extend(event.finish.as_ref().and_then(cut_off).filter(|_| formed));
                // A token that ends texts is not shown; what was held back until it came is.
                let ends = matches!(event.finish, Some(Finish::End(_)));
                if !ends || !event.text.is_empty() {
                    page.show_as(&event.text, event.token)?;
                }
            }
        }
        page.finish()?;
        for why in cut {
            eprintln!("cut off  {why}: a text is not whole by what it must match");
        }
        let over = |(written, count): (Written, usize)| Written {
            score: written.score / count.max(1) as f32,
            ..written
        };
        Ok(texts.into_values().map(over).collect())
    }

    /// Writes every prompt by beams, as many at once as have rows.
    pub fn beams(&mut self, session: &mut Session, beams: &Beams) -> anyhow::Result<Vec<Written>> {
        let tokenizer = self.tokenizer.clone();
        let each = beams.num_beams * if self.settings[0].contrast.is_some() { 2 } else { 1 };
        self.whole(session, each, |rows, sought, settings| {
            search(rows, sought, settings, beams, tokenizer.as_deref())
        })
    }

    /// The same by contrastive search.
    pub fn contrastive(&mut self, session: &mut Session, how: &Contrastive) -> anyhow::Result<Vec<Written>> {
        let tokenizer = self.tokenizer.clone();
        self.whole(session, how.top_k, |rows, sought, settings| {
            Ok(contrast(rows, sought, settings, how, tokenizer.as_deref())?
                .into_iter()
                .map(|text| vec![text])
                .collect())
        })
    }

    /// Writes every prompt in so many rows, as many at once as have them, by what gives texts when they are whole.
    fn whole(
        &mut self,
        session: &mut Session,
        each: usize,
        search: impl Fn(&mut dyn Rows, &[Sought], &Settings) -> Result<Vec<Vec<Hypothesis>>, Error>,
    ) -> anyhow::Result<Vec<Written>> {
        let rows = session.rows();
        let (start, capacity) = (rows.start(), rows.capacity());
        let mut all = vec![];
        // What texts have is the same for all prompts, but for what is compared with a context.
        let at_once = if self.settings[0].contrast.is_some() { 1 } else { (rows.count() / each).max(1) };
        for (part, settings) in self.prompts.chunks(at_once).zip(self.settings.iter().step_by(at_once)) {
            let mut begins = vec![];
            for (number, prompt) in part.iter().enumerate() {
                let cut = !self.pair && settings.overflow == Overflow::Slide;
                let seen = if cut { prompt.len().min(rows.capacity()) } else { prompt.len() };
                begins.push(self.begins(&prompt[prompt.len() - seen..], start));
                if self.pair {
                    let source = rows.source_of(prompt)?;
                    for row in 0..each {
                        rows.begin(number * each + row, &source)?;
                    }
                }
            }
            let first = all.len();
            let place = |(number, prompt)| {
                let (row, stream) = (number * each, (first + number) as u32);
                Sought { prompt, row, stream }
            };
            let sought: Vec<Sought> = begins.iter().map(Vec::as_slice).enumerate().map(place).collect();
            for (found, begin) in search(rows, &sought, settings)?.into_iter().zip(&begins) {
                for text in found {
                    let own: Vec<u32> = text.ids[begin.len()..]
                        .iter()
                        .copied()
                        .filter(|token| !settings.ends.contains(token))
                        .collect();
                    let text_of = match &self.tokenizer {
                        Some(tokenizer) => behind(tokenizer, begin, &own)?,
                        None => String::new(),
                    };
                    if settings.grammar.as_ref().is_some_and(|grammar| !grammar.matches(&own)) {
                        eprintln!("cut off  a text is not whole by what it must match");
                    }
                    let shown = before_stop(&text_of, &settings.stop).to_string();
                    let ended = own.len() < text.ids.len() - begin.len() || shown.len() < text_of.len();
                    if !ended && text.ids.len() >= capacity && own.len() < settings.max_new_tokens {
                        eprintln!(
                            "cut off  the context of {capacity} tokens is full: texts that are written as wholes do not slide"
                        );
                    }
                    all.push(Written { ids: text.ids, text: shown, score: text.score });
                }
            }
        }
        Ok(all)
    }

    /// Prints texts that were not shown as they came.
    pub fn print(&self, written: &[Written]) -> anyhow::Result<()> {
        if self.json {
            let whole = |written: &Written| -> anyhow::Result<Written> {
                let text = self.tokenizer.as_ref().map_or(Ok(String::new()), |t| t.decode(&written.ids))?;
                Ok(Written { ids: written.ids.clone(), text, score: written.score })
            };
            let all = written.iter().map(whole).collect::<anyhow::Result<Vec<_>>>()?;
            let each = written.len() / self.prompts.len().max(1);
            let sources = self.grounds.as_ref().map(|grounds| {
                let of = |((_, hits), texts): (&(_, Vec<Hit>), &[Written])| {
                    sources(hits, &texts.iter().map(|text| text.text.as_str()).collect::<Vec<_>>())
                };
                grounds.iter().zip(written.chunks(each.max(1))).map(of).collect()
            });
            return print_json(&all, self.tokenizer.is_some(), sources);
        }
        let mut out = std::io::stdout().lock();
        if written.len() == 1 && self.session.is_some() {
            return Ok(write!(out, "{}", self.sources(0, &written[0].text))?);
        }
        let each = written.len() / self.prompts.len().max(1);
        for (number, text) in written.iter().enumerate() {
            let prompt = self.shown(number / each.max(1));
            match &self.tokenizer {
                Some(tokenizer) if !self.pair => writeln!(out, "{}{}", tokenizer.decode(prompt)?, text.text)?,
                Some(_) => writeln!(out, "{}", text.text)?,
                None => {
                    let ids: Vec<String> = text.ids.iter().map(u32::to_string).collect();
                    writeln!(out, "{}", ids.join(" "))?;
                }
            }
            write!(out, "{}", self.sources(number / each.max(1), &text.text))?;
        }
        Ok(())
    }
}

/// The text of tokens behind others: some decoders treat the first token of a text in their own way.
fn behind(tokenizer: &Tokenizer, begin: &[u32], own: &[u32]) -> anyhow::Result<String> {
    let last = &begin[begin.len().saturating_sub(1)..];
    let all = tokenizer.decode(&[last, own].concat())?;
    match all.strip_prefix(tokenizer.decode(last)?.as_str()) {
        Some(text) => Ok(text.to_string()),
        None => Ok(tokenizer.decode(own)?),
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

/// Prints texts as JSON, and what was read for each prompt.
pub fn print_json(written: &[Written], with_texts: bool, sources: Option<Vec<Json>>) -> anyhow::Result<()> {
    let sequences: Vec<&Vec<u32>> = written.iter().map(|text| &text.ids).collect();
    let texts: Vec<&str> = written.iter().filter(|_| with_texts).map(|text| text.text.as_str()).collect();
    let scores: Vec<f32> = written.iter().map(|text| text.score).filter(|score| !score.is_nan()).collect();
    let mut all = json!({ "sequences": sequences, "texts": texts, "scores": scores });
    if let Some(sources) = sources {
        all["sources"] = Json::Array(sources);
    }
    Ok(writeln!(std::io::stdout(), "{all}")?)
}
