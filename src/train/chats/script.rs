//! Conversations before there is a tokenizer, the template that writes them, and examples once there is one.

use crate::data::chats::{
    Date, Dialogue, Example, Template, example_of, read_dialogues, read_preferences, shorten,
};
use crate::data::tokenizer::{END_OF_TEXT, FILE_NAME, Tokenizer};
use crate::data::{self, Error};
use crate::model::Family;
use crate::train::Result;
use crate::train::recipe::{self, Recipe};
use rayon::prelude::*;
use serde_json::{Value as Json, json};
use std::path::PathBuf;

/// The file beside `tokenizer.json` in which a template stands.
const CONFIG: &str = "tokenizer_config.json";

/// Conversations as they were read.
pub struct Script {
    /// Of preferences the better and the worse answer in turn.
    dialogues: Vec<Dialogue>,
    template: Option<Template>,
    /// The tokenizer's folder, if it comes from one.
    folder: Option<PathBuf>,
    settings: recipe::Chats,
    bad: Option<String>,
}

/// Examples as tokens, and what became of the others.
pub(in crate::train) struct Found {
    /// Those that are left.
    pub examples: Vec<Example>,
    /// The others, in words.
    pub told: String,
}

impl Script {
    /// Reads the conversations of a recipe, if it names some.
    pub fn read(recipe: &Recipe) -> Result<Option<Script>> {
        let Some(settings) = &recipe.data.chats else { return Ok(None) };
        let found = match settings.preferences.is_empty() {
            true => read_dialogues(&settings.chats, recipe.data.skip_bad)?,
            false => {
                let found = read_preferences(&settings.preferences, recipe.data.skip_bad)?;
                let all = found.all.into_iter().flat_map(|pair| [pair.chosen, pair.rejected]).collect();
                data::chats::Found { all, bad: found.bad, first_bad: found.first_bad }
            }
        };
        let folder = folder_of(recipe);
        let template = template_of(settings, folder.as_ref(), settings.date)?;
        let bad = found.first_bad.map(|first| match found.bad {
            1 => format!("a line was passed over: {first}"),
            count => format!("{count} lines were passed over, the first: {first}"),
        });
        let settings = settings.clone();
        Ok(Some(Script { dialogues: found.all, template, folder, settings, bad }))
    }

    /// All of it as text, of which a new tokenizer is made.
    pub fn text(&self) -> Result<String> {
        let write = |dialogue: &Dialogue| match dialogue {
            Dialogue::Messages { messages, .. } => self.template()?.render(messages, false),
            Dialogue::Text { prompt, completion } => Ok(format!("{prompt}{completion}\n")),
        };
        let texts: data::Result<Vec<String>> = self.dialogues.par_iter().map(write).collect();
        Ok(texts?.concat())
    }

    fn template(&self) -> data::Result<&Template> {
        self.template.as_ref().ok_or_else(|| Error::NoTemplate { place: self.place() })
    }

    /// Where a template would have been.
    fn place(&self) -> String {
        match &self.folder {
            Some(folder) => folder.display().to_string(),
            None => "a new tokenizer".to_string(),
        }
    }

    /// What is learnt of them, in windows of `context` places.
    pub(in crate::train) fn examples(
        &self,
        tokenizer: &Tokenizer,
        family: &dyn Family,
        context: usize,
    ) -> Result<Found> {
        let (settings, end, place) = (&self.settings, self.end_of(tokenizer, family), self.place());
        let of = |dialogue: &Dialogue| {
            let learn = settings.learn.unwrap_or_default();
            example_of(dialogue, self.template.as_ref(), &place, tokenizer, learn, end)
        };
        let all: Vec<Example> = self.dialogues.par_iter().map(of).collect::<data::Result<_>>()?;
        let (read, long) = (all.len(), all.iter().filter(|example| example.places() > context).count());
        let shortened = all.into_iter().map(|example| shorten(example, context, settings.too_long));
        let shortened: Vec<Option<Example>> = shortened.collect();
        // Of two answers both stay or none.
        let each = if settings.preferences.is_empty() { 1 } else { 2 };
        let whole = shortened.chunks(each).filter(|some| some.iter().all(Option::is_some));
        let examples: Vec<Example> = whole.flatten().flatten().cloned().collect();
        let dropped = (read - examples.len()) / each;
        let mut told = vec![];
        if long > dropped {
            told.push(format!("{} cut to {context} tokens", long - dropped));
        }
        if dropped > 0 {
            told.push(format!("{dropped} left out"));
        }
        if examples.is_empty() {
            let reason = format!("{long} are longer than {context} tokens, {dropped} are left out");
            return Err(Error::NoExample { read, reason }.into());
        }
        let told = if told.is_empty() { String::new() } else { format!(" ({})", told.join(", ")) };
        Ok(Found { examples, told })
    }

    /// Lines that were passed over, in words.
    pub fn bad(&self) -> Option<&str> {
        self.bad.as_deref()
    }

    /// The token behind a text that no template ends: as the tokenizer or the model calls it.
    fn end_of(&self, tokenizer: &Tokenizer, family: &dyn Family) -> Option<u32> {
        let named =
            self.template.as_ref().and_then(|template| template.special("eos_token")).map(str::to_string);
        let config = self.config();
        let said =
            config["eos_token"].as_str().or(config["eos_token"]["content"].as_str()).map(str::to_string);
        let by_name = named.or(said).and_then(|token| tokenizer.token_id(&token));
        let of_model = family.config().get("eos_token_id").and_then(Json::as_u64).map(|id| id as u32);
        let known = |id: &u32| (*id as usize) < tokenizer.vocabulary_size();
        by_name.or(of_model.filter(known)).or_else(|| tokenizer.token_id(END_OF_TEXT))
    }

    /// The tokenizer's own settings, or null.
    fn config(&self) -> Json {
        let text = self.folder.as_ref().and_then(|folder| std::fs::read_to_string(folder.join(CONFIG)).ok());
        text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
    }

    /// What a folder holds beside `tokenizer.json`, so that others write conversations as they were learnt.
    pub(in crate::train) fn files(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let mut config = self.config();
        if let Some(template) = &self.template {
            let keys = match &mut config {
                Json::Object(keys) => keys,
                other => {
                    *other = json!({});
                    other.as_object_mut().expect("it was just made")
                }
            };
            keys.insert("chat_template".into(), template.source().into());
        }
        let json = |config: &Json| serde_json::to_vec_pretty(config).expect("a JSON object is printable");
        Ok(if config.is_object() { vec![(CONFIG.to_string(), json(&config))] } else { vec![] })
    }
}

fn template_of(settings: &recipe::Chats, folder: Option<&PathBuf>, date: Date) -> Result<Option<Template>> {
    let folder = folder.map(PathBuf::as_path);
    Ok(match (&settings.template, folder) {
        (Some(name), _) => Some(Template::named(name, folder, date)?),
        (None, Some(folder)) => Template::of_folder(folder, date)?,
        (None, None) => None,
    })
}

/// The folder of the recipe's tokenizer, unless it is made by the run.
fn folder_of(recipe: &Recipe) -> Option<PathBuf> {
    match (&recipe.data.tokenizer, &recipe.model) {
        (recipe::Tokenizer::Model, recipe::Model::Load { folder, .. }) => Some(folder.clone()),
        (recipe::Tokenizer::File(path), _) => {
            let of_file = path.file_name().is_some_and(|name| name == FILE_NAME) || path.is_file();
            Some(if of_file { path.parent()?.to_path_buf() } else { path.clone() })
        }
        _ => None,
    }
}
