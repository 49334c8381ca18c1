//! `data.chats` and the keys beside it: conversations to learn from.

use std::path::PathBuf;

use serde::{Serialize, Serializer};
use toml::Value;

use super::error::Error;
use super::read::Section;
use crate::data::chats::{Date, Learn, TooLong};

/// The keys that only conversations have.
const OWN: [&str; 5] = ["learn", "template", "too_long", "packing", "date"];

/// Keys that say of what else a run learns.
const OTHERS: [&str; 7] = ["text", "pairs", "labelled", "tagged", "objective", "windows", "masking"];

/// Conversations to learn from.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Chats {
    /// Files with a conversation on each line.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub chats: Vec<PathBuf>,
    /// Files with a prompt and two answers on each line, in the place of conversations.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub preferences: Vec<PathBuf>,
    /// What of them is learnt; absent of preferences.
    #[serde(serialize_with = "word_of_learn", skip_serializing_if = "Option::is_none")]
    pub learn: Option<Learn>,
    /// How they are written out. Absent: as the tokenizer's own template says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// What becomes of one that is longer than a window.
    #[serde(serialize_with = "word_of_too_long")]
    pub too_long: TooLong,
    /// Several share a window, without seeing each other. Absent: where the model can.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packing: Option<bool>,
    /// The date that templates may ask for: that on which the run began.
    #[serde(serialize_with = "shown")]
    pub date: Date,
}

fn word_of_learn<S: Serializer>(learn: &Option<Learn>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(match learn {
        Some(Learn::All) => "all",
        _ => "answers",
    })
}

fn word_of_too_long<S: Serializer>(how: &TooLong, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(match how {
        TooLong::Truncate => "truncate",
        TooLong::Drop => "drop",
    })
}

fn shown<S: Serializer>(date: &Date, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(date)
}

/// Reads them from `[data]`; absent where it names no conversations.
pub(super) fn chats(section: &Section) -> Result<Option<Chats>, Error> {
    let hint = "name a .jsonl file with a conversation on each line";
    let named = |names: &Vec<String>| !names.is_empty() && names.iter().all(|name| !name.is_empty());
    let chats = section.texts("chats")?.must(named, "at least one path", hint)?.take();
    let hint = "name a .jsonl file with a prompt and two answers on each line";
    let preferences = section.texts("preferences")?.must(named, "at least one path", hint)?.take();
    if chats.is_none() && preferences.is_none() {
        return match OWN.iter().find(|key| section.has(key)) {
            Some(key) => Err(section.refuse(key, "absent without `chats`", "chats = [\"chats.jsonl\"]")),
            None => Ok(None),
        };
    }
    if preferences.is_some() {
        let packs = section.value("packing") == Some(&Value::Boolean(true));
        let other = if section.has("chats") { Some("chats") } else { packs.then_some("packing") };
        if let Some(key) = other.or(section.has("learn").then_some("learn")) {
            let hint = "of preferences answers are compared, each in a window of its own";
            return Err(section.refuse(key, "absent beside `preferences`", hint));
        }
    }
    let paths =
        |files: Option<Vec<String>>| files.unwrap_or_default().into_iter().map(PathBuf::from).collect();
    if let Some(key) = OTHERS.iter().find(|key| section.has(key)) {
        let hint = "a run learns from conversations or from something else";
        return Err(section.refuse(key, "absent beside `chats`", hint));
    }
    let words = [("answers", Learn::Answers), ("all", Learn::All)];
    let learn = section.word("learn", &words)?.take();
    let learn = if preferences.is_some() { None } else { learn.or(Some(Learn::Answers)) };
    let words = [("truncate", TooLong::Truncate), ("drop", TooLong::Drop)];
    let too_long = section.word("too_long", &words)?.or(TooLong::Truncate);
    Ok(Some(Chats {
        chats: paths(chats),
        preferences: paths(preferences),
        learn,
        template: section.text("template")?.take(),
        too_long,
        packing: section.flag("packing")?.take(),
        date: date(section)?,
    }))
}

/// TOML's own dates and text both do.
fn date(section: &Section) -> Result<Date, Error> {
    let refused = || section.refuse("date", "a day such as \"2024-07-26\"", "leave it out for today");
    match section.value("date") {
        None => Ok(Date::today()),
        Some(Value::String(text)) => text.parse().map_err(|()| refused()),
        Some(Value::Datetime(date)) => date.to_string().parse().map_err(|()| refused()),
        Some(_) => Err(refused()),
    }
}

#[cfg(test)]
mod tests {
    use crate::data::chats::{Learn, TooLong};
    use crate::train::recipe::Recipe;

    fn recipe(data: &str) -> Result<Recipe, String> {
        Recipe::from_text(&format!("[data]\n{data}"), "r.toml", &[]).map_err(|error| error.to_string())
    }

    #[test]
    fn a_recipe_with_conversations_is_the_same_when_it_is_read_again() {
        let text = "chats = \"a.jsonl\"\nlearn = \"all\"\ntemplate = \"chatml\"\ntoo_long = \"drop\"\npacking = false\nskip_bad = true\ndate = 2024-07-26";
        for text in [text, "chats = [\"a.jsonl\", \"b.jsonl\"]"] {
            let first = recipe(text).unwrap();
            let again = Recipe::from_text(&first.to_toml(), "again", &[]).unwrap();
            assert_eq!(first, again, "{}", first.to_toml());
        }
        let chats = recipe(text).unwrap().data.chats.unwrap();
        assert_eq!((chats.learn, chats.too_long), (Some(Learn::All), TooLong::Drop));
        assert_eq!(chats.date.to_string(), "2024-07-26");
    }

    #[test]
    fn keys_that_do_not_go_together_are_refused() {
        for (text, part) in [
            ("learn = \"all\"", "data.learn"),
            ("chats = \"a\"\ntext = \"b\"", "data.text"),
            ("chats = \"a\"\nlearn = \"anwsers\"", "did you mean \"answers\""),
            ("chats = []", "at least one path"),
            ("chats = \"a\"\ndate = \"soon\"", "such as \"2024-07-26\""),
        ] {
            let error = recipe(text).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
        let error = recipe("chats = \"a\"\n[distill]\nteacher = \"t\"").unwrap_err();
        assert!(error.contains("distill.teacher") && error.contains("[data] chats"), "{error}");
    }
}
