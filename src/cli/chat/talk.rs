//! A conversation and what answers in it.

use crate::cli::Usage;
use crate::cli::retrieve::{Library, kept, listed};
use crate::data::chats::Template;
use crate::data::tokenizer::Tokenizer;
use crate::generate::{Error, Finish, Request, Session, Settings};
use crate::retrieve::{Hit, form};
use serde_json::{Value as Json, json};
use std::sync::Arc;

/// Why there is no answer.
#[derive(Debug)]
pub enum Refused {
    /// What was said cannot be answered; other things can.
    This(anyhow::Error),
    /// Nothing can be answered any more.
    All(anyhow::Error),
}

/// A conversation with a model.
pub struct Talk {
    session: Session,
    tokenizer: Arc<Tokenizer>,
    template: Template,
    /// How answers are written.
    pub settings: Settings,
    /// The system's word is not among them.
    messages: Vec<Json>,
    system: Option<String>,
    /// Where passages for each question come from.
    library: Option<Library>,
    /// Those for the last one.
    hits: Vec<Hit>,
}

fn message(role: &str, text: &str) -> Json {
    json!({ "role": role, "content": text })
}

impl Talk {
    /// An empty conversation. An answer ends also where the template would have written on behind it.
    pub fn new(
        session: Session,
        tokenizer: Arc<Tokenizer>,
        template: Template,
        mut settings: Settings,
    ) -> anyhow::Result<Talk> {
        if let Some(end) = template.end_of_answer()? {
            settings.stop.push(end);
        }
        let (messages, system, library, hits) = (vec![], None, None, vec![]);
        Ok(Talk { session, tokenizer, template, settings, messages, system, library, hits })
    }

    /// Answers from passages: each question is put behind those found for it, which do not stay in the conversation.
    pub fn read_from(&mut self, library: Library) {
        self.library = Some(library);
    }

    /// What was read for the last answer, for people.
    pub fn sources(&self) -> String {
        let last = self.messages.last().and_then(|message| message["content"].as_str());
        listed(&self.hits, last.unwrap_or_default())
    }

    /// What the system says before all else.
    pub fn set_system(&mut self, text: Option<String>) {
        self.system = text.filter(|text| !text.trim().is_empty());
    }

    /// Forgets what was said; the system's word stays.
    pub fn clear(&mut self) {
        self.messages.clear();
    }

    /// All messages, the system's first.
    pub fn messages(&self) -> Vec<Json> {
        let system = self.system.iter().map(|text| message("system", text));
        system.chain(self.messages.iter().cloned()).collect()
    }

    /// Goes on with a conversation: a system's word first, if there is one.
    pub fn resume(&mut self, mut messages: Vec<Json>) {
        self.system = None;
        if messages.first().is_some_and(|first| first["role"] == "system") {
            self.set_system(messages.remove(0)["content"].as_str().map(String::from));
        }
        self.messages = messages;
    }

    /// Takes the last answer back. False where the last word is nobody's or the user's.
    pub fn take_answer_back(&mut self) -> bool {
        let answered = self.messages.last().is_some_and(|last| last["role"] == "assistant");
        if answered {
            self.messages.pop();
        }
        answered
    }

    /// Takes the last answer back and what was said before it.
    pub fn take_turn_back(&mut self) -> bool {
        let any = self.take_answer_back();
        self.messages.pop().is_some() || any
    }

    /// Answers what is said, or once more what was said last. `show` gets the text as it comes and tells whether to go on.
    ///
    /// Gives a remark on how the answer ended or what was left out. Where there is no answer the conversation is as it was before.
    pub fn answer(
        &mut self,
        said: Option<String>,
        show: &mut dyn FnMut(&str) -> std::io::Result<bool>,
    ) -> Result<Option<String>, Refused> {
        let before = self.messages.len();
        self.messages.extend(said.map(|text| message("user", &text)));
        let written = self.write(show);
        match written {
            Ok((text, note)) => {
                self.messages.push(message("assistant", text.trim_end()));
                Ok(note)
            }
            Err(refused) => {
                self.messages.truncate(before);
                Err(refused)
            }
        }
    }

    fn write(
        &mut self,
        show: &mut dyn FnMut(&str) -> std::io::Result<bool>,
    ) -> Result<(String, Option<String>), Refused> {
        self.look_up().map_err(Refused::This)?;
        let (prompt, left_out) = self.prompt().map_err(Refused::This)?;
        let request = Request::new(prompt, self.settings.clone());
        let ticket = self.session.admit(request).map_err(|error| Refused::This(error.into()))?;
        let all = |error: Error| Refused::All(error.into());
        let mut text = String::new();
        let mut end = None;
        while !self.session.is_idle() {
            for event in self.session.step().map_err(all)? {
                text += &event.text;
                let on = show(&event.text).map_err(|error| Refused::All(error.into()))?;
                if event.finish.is_some() {
                    end = event.finish;
                } else if !on {
                    self.session.cancel(ticket);
                    return Ok((text, Some("stopped".into())));
                }
            }
        }
        let most = self.settings.max_new_tokens;
        let ended = match end {
            Some(Finish::Length) => Some(format!("cut at {most} tokens: /set max-new-tokens {}", 2 * most)),
            Some(Finish::Full) => Some("cut where the model's context ends".to_string()),
            _ => None,
        };
        let left_out = (left_out > 0).then(|| {
            format!("{left_out} of the oldest messages were left out: the model has no room for them")
        });
        let notes: Vec<String> = left_out.into_iter().chain(ended).collect();
        Ok((text, (!notes.is_empty()).then(|| notes.join("; "))))
    }

    /// Finds passages for what was said last: as many as have room beside it, if all else were left out.
    fn look_up(&mut self) -> anyhow::Result<()> {
        self.hits.clear();
        let asked = self.messages.iter().rposition(|message| message["role"] == "user");
        let Some(last) = asked.filter(|at| at + 1 == self.messages.len()) else { return Ok(()) };
        let Some(mut library) = self.library.take() else { return Ok(()) };
        let question = self.messages[last]["content"].as_str().unwrap_or_default().to_string();
        let found = library.find(&question);
        self.library = Some(library);
        let room = self.room();
        let mut length = |hits: &[Hit]| self.encoded(last, hits).ok().map(|ids| ids.len());
        self.hits = kept(form::fit(found?, room, 0, &mut length)?);
        Ok(())
    }

    /// Tokens of a prompt that leave room for an answer: an eighth of the context, or all that it may take if that is less.
    fn room(&mut self) -> usize {
        let capacity = self.session.rows().capacity();
        capacity - self.settings.max_new_tokens.min(capacity / 8).min(capacity - 1)
    }

    /// Tokens of the system's word and of messages from `first` on, the last of them behind passages.
    fn encoded(&self, first: usize, hits: &[Hit]) -> anyhow::Result<Vec<u32>> {
        let system = self.system.iter().map(|text| message("system", text));
        let mut shown: Vec<Json> = system.chain(self.messages[first..].iter().cloned()).collect();
        if let Some(last) = shown.last_mut().filter(|_| !hits.is_empty()) {
            *last = message("user", &form::message(hits, last["content"].as_str().unwrap_or_default()));
        }
        Ok(self.tokenizer.encode(&self.template.render(&shown, true)?)?)
    }

    /// Tokens of the conversation with as many of its last turns as leave room for an answer, and how many messages that leaves out.
    fn prompt(&mut self) -> anyhow::Result<(Vec<u32>, usize)> {
        let room = self.room();
        let mut first = 0;
        loop {
            let ids = self.encoded(first, &self.hits)?;
            if ids.is_empty() {
                return Err(Error::EmptyPrompt.into());
            }
            if ids.len() <= room {
                return Ok((ids, first));
            }
            // Conversations begin with what a user says.
            let rest = self.messages.iter().enumerate().skip(first + 1);
            match rest.into_iter().find(|(_, message)| message["role"] == "user") {
                Some((next, _)) => first = next,
                None => {
                    let text = format!(
                        "what was said has {} tokens with what the template adds, and there is room for {room} beside an answer\n  hint: say it in fewer words",
                        ids.len()
                    );
                    return Err(Usage(text).into());
                }
            }
        }
    }
}
