//! What texts begin with: as text, as token ids, or as what somebody says to an assistant.

use crate::cli::Usage;
use crate::cli::retrieve::{Library, kept};
use crate::data::chats::{Date, Template};
use crate::data::tokenizer::{END_OF_TEXT, Tokenizer};
use crate::generate::Error;
use crate::retrieve::{Hit, form};
use clap::Args;
use serde_json::{Value as Json, json};
use std::path::Path;

/// What is to be continued.
#[derive(Args)]
pub struct Prompts {
    /// The text to continue; given again, texts are written side by side. Absent: the token that ends or begins texts, or else a line
    /// break.
    #[arg(long, value_name = "TEXT", conflicts_with = "ids")]
    prompt: Vec<String>,
    /// The text to continue, as token ids. May be given again.
    #[arg(long, value_name = "ID,ID")]
    ids: Vec<String>,
    /// The prompt is what a user says: it is written as the model's chat template has it.
    #[arg(long, requires = "prompt")]
    chat: bool,
    /// Beside --chat: what the system says first.
    #[arg(long, value_name = "TEXT", requires = "chat")]
    system: Option<String>,
}

/// A prompt behind passages.
pub struct Grounded {
    /// Its tokens.
    pub ids: Vec<u32>,
    /// What of them is shown before the answer: the prompt, where it is one that goes on.
    pub shown: Vec<u32>,
    /// The passages.
    pub hits: Vec<Hit>,
}

impl Prompts {
    /// Texts that are given in another way than by these flags.
    #[cfg_attr(not(feature = "judge"), allow(dead_code))]
    pub fn of(texts: Vec<String>, chat: bool, system: Option<String>) -> Prompts {
        Prompts { prompt: texts, ids: vec![], chat, system }
    }

    /// True where they are given as token ids.
    pub fn are_ids(&self) -> bool {
        !self.ids.is_empty()
    }

    /// Token ids of every prompt, each at least one. `folder` is that of the model.
    pub fn ids(&self, tokenizer: Option<&Tokenizer>, folder: &Path) -> anyhow::Result<Vec<Vec<u32>>> {
        if self.are_ids() {
            return self.ids.iter().map(|list| numbers(list)).collect();
        }
        let tokenizer = tokenizer.ok_or(Error::NoTokenizer)?;
        if self.prompt.is_empty() {
            return Ok(vec![opening(tokenizer)?]);
        }
        let template = self.template(folder)?;
        self.prompt.iter().map(|text| self.encode(tokenizer, template.as_ref(), text)).collect()
    }

    /// How a prompt is written, where it is what a user says.
    fn template(&self, folder: &Path) -> anyhow::Result<Option<Template>> {
        if self.chat { template(folder).map(Some) } else { Ok(None) }
    }

    fn encode(
        &self,
        tokenizer: &Tokenizer,
        template: Option<&Template>,
        text: &str,
    ) -> anyhow::Result<Vec<u32>> {
        let ids = match template {
            Some(template) => tokenizer.encode(&self.rendered(template, text)?)?,
            None => tokenizer.encode_with_special(text)?,
        };
        if ids.is_empty() { Err(Error::EmptyPrompt.into()) } else { Ok(ids) }
    }

    /// Token ids of every prompt with the best passages for it before it, as many as leave room for `answer` tokens in a context.
    pub fn with_passages(
        &self,
        tokenizer: Option<&Tokenizer>,
        folder: &Path,
        library: &mut Library,
        [context, answer]: [usize; 2],
    ) -> anyhow::Result<Vec<Grounded>> {
        if self.prompt.is_empty() {
            let text =
                "--retrieve seeks what a prompt asks for, and there is none as text\n  hint: --prompt \"..\"";
            return Err(Usage(text.into()).into());
        }
        let tokenizer = tokenizer.ok_or(Error::NoTokenizer)?;
        let template = self.template(folder)?;
        let template = template.as_ref();
        let mut all = vec![];
        for text in &self.prompt {
            let with = |hits: &[Hit]| match template {
                Some(_) => form::message(hits, text),
                None => form::plain(hits, text),
            };
            // The prompt itself must be one; of passages those are left out that are none.
            let alone = self.encode(tokenizer, template, text)?;
            let mut length =
                |hits: &[Hit]| self.encode(tokenizer, template, &with(hits)).ok().map(|ids| ids.len());
            let hits = kept(form::fit(library.find(text)?, context, answer, &mut length)?);
            let ids = self.encode(tokenizer, template, &with(&hits))?;
            let shown = if template.is_some() { vec![] } else { alone };
            all.push(Grounded { ids, shown, hits });
        }
        Ok(all)
    }

    fn rendered(&self, template: &Template, text: &str) -> anyhow::Result<String> {
        let say = |role: &str, text: &str| json!({ "role": role, "content": text });
        let system = self.system.iter().map(|text| say("system", text));
        let messages: Vec<Json> = system.chain([say("user", text)]).collect();
        Ok(template.render(&messages, true)?)
    }
}

fn numbers(list: &str) -> anyhow::Result<Vec<u32>> {
    let parse = |word: &str| {
        let wrong = || Usage(format!("--ids has {word:?}, expected whole numbers with commas between them"));
        word.trim().parse::<u32>().map_err(|_| wrong())
    };
    let ids = list.split(',').map(parse).collect::<Result<Vec<_>, _>>()?;
    if ids.is_empty() { Err(Error::EmptyPrompt.into()) } else { Ok(ids) }
}

/// What stands before a text of which nothing is given.
fn opening(tokenizer: &Tokenizer) -> anyhow::Result<Vec<u32>> {
    let ids = match tokenizer.token_id(END_OF_TEXT) {
        Some(id) => vec![id],
        None => match tokenizer.opening()? {
            opening if opening.is_empty() => tokenizer.encode("\n")?,
            opening => opening,
        },
    };
    if ids.is_empty() { Err(Error::EmptyPrompt.into()) } else { Ok(ids) }
}

fn template(folder: &Path) -> anyhow::Result<Template> {
    let found = Template::of_folder(folder, Date::today())?;
    found.ok_or_else(|| {
        let text = "the model's folder has no chat template, which --chat asks for\n  hint: leave --chat out, or put chat_template.jinja into the folder";
        Usage(text.into()).into()
    })
}
