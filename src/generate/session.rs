//! Texts that are written side by side, each with settings of its own, and that come and go between steps.
//!
//! ```text
//! let mut session = Session::new(rows, tokenizer);
//! let ticket = session.admit(Request::new(prompt, settings))?;   // waits for a row where all are taken
//! while !session.is_idle() {
//!     for event in session.step()? { .. }                        // one pass: a token for every text that has a row
//! }
//! ```
//! What a text becomes does not depend on what is written beside it: a row's scores are those it has alone, and chance is counted by
//! seed and place. A free row that has read the beginning of a prompt is taken before others, so that turns of a conversation
//! are not read again.

mod stop;
#[cfg(test)]
mod tests;

use super::processors::{self, log_probabilities};
use super::rows::{Outcome, Rows, Source, Text, shared};
use super::settings::{Overflow, Settings};
use super::{Error, Result, draw};
use crate::data::tokenizer::Tokenizer;
use crate::ops::choose_token::Choice;
use std::collections::VecDeque;
use std::sync::Arc;
use stop::Spoken;

/// The number of an admitted text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// A text to be written.
#[derive(Clone, Debug)]
pub struct Request {
    /// Tokens to go on with; of an encoder-decoder what its text begins with, the start first.
    pub prompt: Vec<u32>,
    /// What an encoder reads; of a decoder none.
    pub source: Option<Source>,
    /// How it is written.
    pub settings: Settings,
    /// Tells several texts of one seed apart.
    pub stream: u32,
    /// How many of the likeliest tokens are to be told with their log-probabilities at each place; none where nothing is to be told.
    pub logprobs: Option<usize>,
}

impl Request {
    /// A text that goes on with a prompt.
    pub fn new(prompt: Vec<u32>, settings: Settings) -> Request {
        Request { prompt, source: None, settings, stream: 0, logprobs: None }
    }
}

/// Why a text has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finish {
    /// This token ends texts.
    End(u32),
    /// This text was written that ends texts.
    Stop(String),
    /// It has as many tokens as it may have.
    Length,
    /// The model has no room for more.
    Full,
    /// It matches what it must match, and nothing may follow.
    Complete,
    /// It does not match what it must match, and there is no token for what must follow, or none that is not banned.
    Stuck,
}

/// Log-probabilities at a place, before settings changed them.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    /// Of the token that was chosen.
    pub chosen: f32,
    /// Of the likeliest, the best first.
    pub top: Vec<(u32, f32)>,
}

/// What a step has brought to one text.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Which text.
    pub ticket: Ticket,
    /// The token that was chosen.
    pub token: u32,
    /// What can be shown now: whole characters, and nothing that may turn out to be the beginning of a stop text. Empty without a
    /// tokenizer, and of tokens that end texts.
    pub text: String,
    /// Log-probabilities, where they were asked for.
    pub told: Option<Told>,
    /// Whether it ends here.
    pub finish: Option<Finish>,
    /// Tokens of its prompt that were not read for it, since the row given to it had read them.
    pub reused: usize,
}

/// A text with a row.
struct Writing {
    ticket: Ticket,
    request: Request,
    row: usize,
    /// The row of the same text without its context.
    second: Option<usize>,
    /// All tokens, the prompt among them.
    text: Vec<u32>,
    /// The first token that the model still sees.
    start: usize,
    key: u32,
    spoken: Spoken,
    /// Tokens of its prompt that its row had read.
    reused: usize,
}

/// Runs of new text that are read in one step at the most: so long those who are being written wait.
const RUNS: usize = 2;

/// Texts that are written side by side.
pub struct Session {
    rows: Box<dyn Rows>,
    tokenizer: Option<Arc<Tokenizer>>,
    waiting: VecDeque<(Ticket, Request)>,
    writing: Vec<Writing>,
    next: u64,
    reused: usize,
}

impl Session {
    /// A session over a model's rows; the tokenizer is for text as it comes and for stop texts.
    pub fn new(rows: Box<dyn Rows>, tokenizer: Option<Arc<Tokenizer>>) -> Session {
        Session { rows, tokenizer, waiting: VecDeque::new(), writing: vec![], next: 0, reused: 0 }
    }

    /// The rows, for beam search and scores between steps; what texts that are being written hold there is read anew where it is changed.
    pub fn rows(&mut self) -> &mut dyn Rows {
        self.rows.as_mut()
    }

    /// True when there is nothing to write.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.writing.is_empty()
    }

    /// Texts that have a row, and texts that wait for one.
    pub fn load(&self) -> [usize; 2] {
        [self.writing.len(), self.waiting.len()]
    }

    /// Tokens of prompts that were not read again, since the row given to their text had read them.
    pub fn reused(&self) -> usize {
        self.reused
    }

    /// Takes a text on. It is refused now where it could not be written.
    pub fn admit(&mut self, request: Request) -> Result<Ticket> {
        let Request { prompt, settings, .. } = &request;
        settings.check()?;
        if !settings.stop.is_empty() && self.tokenizer.is_none() {
            return Err(Error::NoTokenizer);
        }
        let (vocabulary, capacity) = (self.rows.vocabulary(), self.rows.capacity());
        let seen =
            if settings.overflow == Overflow::Slide { prompt.len().min(capacity) } else { prompt.len() };
        super::rows::check_text(&prompt[prompt.len() - seen..], vocabulary, capacity)?;
        if let Some(contrast) = &settings.contrast {
            super::rows::check_text(&contrast.without, vocabulary, capacity)?;
            if self.rows.count() < 2 {
                return Err(Error::Row { row: 1, rows: 1 });
            }
        }
        if let Some(grammar) =
            settings.grammar.as_ref().filter(|grammar| !grammar.is_open(&[], &settings.ends))
        {
            return Err(grammar.refused("the tokenizer has no token to begin it with"));
        }
        self.next += 1;
        let ticket = Ticket(self.next);
        self.waiting.push_back((ticket, request));
        Ok(ticket)
    }

    /// Gives a text up. True where there was one.
    pub fn cancel(&mut self, ticket: Ticket) -> bool {
        let before = self.waiting.len() + self.writing.len();
        self.waiting.retain(|(other, _)| *other != ticket);
        self.writing.retain(|writing| writing.ticket != ticket);
        before > self.waiting.len() + self.writing.len()
    }

    /// Gives rows to those who wait, and writes a token of every text that has one and is read: of long new texts a part is read in each
    /// step, so that the others go on. Should the model fail, texts stay where they are, and the step may be tried again.
    pub fn step(&mut self) -> Result<Vec<Event>> {
        self.seat()?;
        if self.writing.is_empty() {
            return Ok(vec![]);
        }
        let capacity = self.rows.capacity();
        for writing in &mut self.writing {
            writing.slide(capacity);
        }
        let turns = self.turns(self.rows.reads_at_once());
        let without: Vec<(usize, Vec<u32>)> = self.writing.iter().filter_map(Writing::without).collect();
        let (mut texts, mut how): (Vec<Text>, Vec<Option<Choice>>) = (vec![], vec![]);
        for (writing, tokens) in self.writing.iter().zip(&turns).filter(|(_, tokens)| **tokens > 0) {
            let end = writing.start + tokens;
            let is_whole = end == writing.text.len();
            texts.push((writing.row, &writing.text[writing.start..end]));
            how.push(if is_whole { writing.choice() } else { Some(Choice::BEST) });
        }
        let count = texts.len();
        texts.extend(without.iter().map(|(row, text)| (*row, &text[text.len().saturating_sub(capacity)..])));
        how.resize(texts.len(), None);
        let mut outcomes = self.rows.next(&texts, &how)?;
        let mut seconds = outcomes.split_off(count).into_iter();
        let room = [capacity, self.rows.vocabulary()];
        let mut events = vec![];
        let turns = self.writing.iter_mut().zip(turns).filter(|(_, tokens)| *tokens > 0);
        for ((writing, tokens), outcome) in turns.zip(outcomes) {
            if writing.start + tokens < writing.text.len() {
                continue;
            }
            let second = writing.second.and_then(|_| seconds.next());
            let (token, told) = writing.choose(writing.contrasted(outcome, second));
            events.push(writing.take(token, told, self.tokenizer.as_deref(), room)?);
        }
        let ended = |ticket: Ticket| events.iter().any(|e: &Event| e.ticket == ticket && e.finish.is_some());
        self.writing.retain(|writing| !ended(writing.ticket));
        Ok(events)
    }

    /// How many tokens of each text its row is to hold after this step: all, or whole runs of `run` tokens where more are new than one
    /// step reads, or none, where others' take it up. Runs are those in which the text would be read alone.
    fn turns(&self, run: usize) -> Vec<usize> {
        let mut left = run.saturating_mul(RUNS);
        let turn = |writing: &Writing| {
            let text = &writing.text[writing.start..];
            let new = text.len() - shared(self.rows.held(writing.row), text);
            if new <= 1 || writing.second.is_some() {
                return text.len();
            }
            let read = if new <= left { new } else { left / run * run };
            left -= read;
            if read > 0 { text.len() - new + read } else { 0 }
        };
        self.writing.iter().map(turn).collect()
    }

    /// Gives free rows to those who wait, in the order in which they came.
    fn seat(&mut self) -> Result<()> {
        while let Some((_, request)) = self.waiting.front() {
            let is_free = |row: &usize| self.writing.iter().all(|w| w.row != *row && w.second != Some(*row));
            let free: Vec<usize> = (0..self.rows.count()).filter(is_free).collect();
            if request.settings.contrast.is_some() && free.len() < 2 {
                return Ok(());
            }
            let common = |row: &usize| {
                let held = self.rows.held(*row).iter().zip(&request.prompt);
                held.take_while(|(held, token)| held == token).count()
            };
            // Of equals the one that holds least: what others have read may be of use yet.
            let best = free
                .iter()
                .copied()
                .max_by_key(|row| (common(row), std::cmp::Reverse(self.rows.held(*row).len())));
            let Some(row) = best else { return Ok(()) };
            // The last token is read in any case: its scores are wanted.
            let reused = common(&row).min(request.prompt.len().saturating_sub(1));
            self.reused += reused;
            let second =
                request.settings.contrast.as_ref().and_then(|_| free.into_iter().find(|r| *r != row));
            let (ticket, request) = self.waiting.pop_front().expect("it was looked at");
            if let Some(source) = &request.source {
                self.rows.begin(row, source)?;
            }
            self.writing.push(Writing { second, reused, ..Writing::new(ticket, request, row) });
        }
        Ok(())
    }
}

impl Writing {
    fn new(ticket: Ticket, mut request: Request, row: usize) -> Writing {
        let text = std::mem::take(&mut request.prompt);
        let key = draw::key(request.settings.seed, request.stream);
        let spoken = Spoken::new(&text);
        Writing { ticket, request, row, second: None, text, start: 0, key, spoken, reused: 0 }
    }

    /// Where the text has filled the context, its older half is forgotten.
    fn slide(&mut self, capacity: usize) {
        let seen = self.text.len() - self.start;
        if seen > capacity {
            let written = self.text.len() > self.spoken.prompt;
            self.start = self.text.len() - if written { capacity.div_ceil(2) } else { capacity };
        }
    }

    /// The text without its context, and its row.
    fn without(&self) -> Option<(usize, Vec<u32>)> {
        let contrast = self.request.settings.contrast.as_ref()?;
        let written = &self.text[self.spoken.prompt..];
        Some((self.second?, [&contrast.without[..], written].concat()))
    }

    /// Scores less what is owed to everything but the context.
    fn contrasted(&self, outcome: Outcome, second: Option<Outcome>) -> Outcome {
        match (outcome, second, &self.request.settings.contrast) {
            (Outcome::Scores(mut scores), Some(Outcome::Scores(without)), Some(contrast)) => {
                contrast.apply(&mut scores, &without);
                Outcome::Scores(scores)
            }
            (outcome, _, _) => outcome,
        }
    }

    /// How the next token is chosen where the scores are; none where they are needed here.
    fn choice(&self) -> Option<Choice> {
        let Request { settings, logprobs, .. } = &self.request;
        let place = self.text.len() as u32;
        let here = settings.needs_host() || logprobs.is_some_and(|count| count > 0);
        (!here).then(|| settings.choice(self.key, place, logprobs.is_some()))
    }

    /// The token, chosen already or from scores.
    fn choose(&self, outcome: Outcome) -> (u32, Option<Told>) {
        let Request { settings, logprobs, .. } = &self.request;
        let mut scores = match outcome {
            Outcome::Scores(scores) => scores,
            Outcome::Chosen(token, chosen) => return (token, logprobs.map(|_| Told { chosen, top: vec![] })),
        };
        let plain = logprobs.map(|count| (count, log_probabilities(&scores)));
        processors::process(&mut scores, &self.text, self.spoken.prompt, settings);
        let token = match settings.draws() {
            true => draw::draw(&scores, self.key, self.text.len() as u32),
            false => processors::greatest(&scores),
        };
        (token, plain.map(|(count, all)| told(&all, count, token)))
    }

    /// Why nothing may follow, where the text must match something: what it must match, and what is banned besides, leaves no token.
    fn closed(&self, vocabulary: usize) -> Option<Finish> {
        let grammar = self.request.settings.grammar.as_ref()?;
        let mut left = vec![0.0; vocabulary];
        processors::by_history(&mut left, &self.text, self.spoken.prompt, &self.request.settings);
        if left.iter().any(|score| *score > f32::NEG_INFINITY) {
            return None;
        }
        let whole = grammar.matches(&self.text[self.spoken.prompt..]);
        Some(if whole { Finish::Complete } else { Finish::Stuck })
    }

    /// Takes a token on, and says what it brings, where a row has so much room and the model knows so many tokens.
    fn take(
        &mut self,
        token: u32,
        told: Option<Told>,
        tokenizer: Option<&Tokenizer>,
        [capacity, vocabulary]: [usize; 2],
    ) -> Result<Event> {
        let settings = &self.request.settings;
        self.text.push(token);
        let count = self.text.len() - self.spoken.prompt;
        let ends = settings.ends.contains(&token);
        let full = settings.overflow == Overflow::Stop && self.text.len() > capacity;
        let mut finish = match () {
            _ if ends => Some(Finish::End(token)),
            _ if count >= settings.max_new_tokens => Some(Finish::Length),
            _ if full => Some(Finish::Full),
            _ => self.closed(vocabulary),
        };
        let mut text = String::new();
        if let Some(tokenizer) = tokenizer {
            if !ends {
                text = self.spoken.push(tokenizer, token, &settings.stop)?;
            }
            if finish.is_some() {
                text += &self.spoken.finish(tokenizer, &settings.stop)?;
            }
            if let Some(stop) = self.spoken.stopped() {
                finish = Some(Finish::Stop(stop.to_string()));
            }
        }
        Ok(Event { ticket: self.ticket, token, text, told, finish, reused: self.reused })
    }
}

/// What is told of a place.
fn told(all: &[f32], count: usize, token: u32) -> Told {
    let mut order: Vec<u32> = (0..all.len() as u32).collect();
    let before = |a: &u32, b: &u32| all[*b as usize].total_cmp(&all[*a as usize]).then(a.cmp(b));
    let count = count.min(order.len());
    if count > 0 && count < order.len() {
        order.select_nth_unstable_by(count - 1, before);
    }
    order.truncate(count);
    order.sort_by(before);
    Told { chosen: all[token as usize], top: order.into_iter().map(|t| (t, all[t as usize])).collect() }
}
