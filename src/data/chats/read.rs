//! Files of conversations, one on each line as JSON, in the shapes that are about.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value as Json, json};

use super::marks::{CLOSES, OPENS};
use crate::data::text::Document;
use crate::data::{Error, Result};

const CHATS: &str = "`messages`, `conversations`, `prompt` and `completion`, or `instruction` and `output`";
const PREFERENCES: &str = "`prompt`, `chosen` and `rejected`";

/// Who speaks in `conversations`, and the role that templates know.
const SPEAKERS: [(&str, &str); 8] = [
    ("human", "user"),
    ("user", "user"),
    ("gpt", "assistant"),
    ("assistant", "assistant"),
    ("chatgpt", "assistant"),
    ("system", "system"),
    ("tool", "tool"),
    ("function", "tool"),
];

/// What is said, and what of it is to be learnt.
#[derive(Clone, Debug, PartialEq)]
pub enum Dialogue {
    /// Messages with `role` and `content`, written out by a template.
    Messages {
        /// All of them.
        messages: Vec<Json>,
        /// Answers before this one are read, not learnt.
        first: usize,
    },
    /// Text that stands as it is.
    Text {
        /// What is read.
        prompt: String,
        /// What is learnt.
        completion: String,
    },
}

/// Two answers to one prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Preference {
    /// The better one.
    pub chosen: Dialogue,
    /// The worse one.
    pub rejected: Dialogue,
}

/// What files hold.
#[derive(Clone, Debug)]
pub struct Found<T> {
    /// What can be used.
    pub all: Vec<T>,
    /// Lines that were passed over.
    pub bad: usize,
    /// What was wrong with the first of them.
    pub first_bad: Option<String>,
}

/// Reads conversations; a line that is none is an error, or counted with `skip_bad`.
pub fn read_dialogues(paths: &[PathBuf], skip_bad: bool) -> Result<Found<Dialogue>> {
    read_all(paths, skip_bad, CHATS, dialogue)
}

/// Reads pairs of answers in the same way.
pub fn read_preferences(paths: &[PathBuf], skip_bad: bool) -> Result<Found<Preference>> {
    read_all(paths, skip_bad, PREFERENCES, preference)
}

fn read_all<T>(
    paths: &[PathBuf],
    skip_bad: bool,
    expected: &'static str,
    parse: fn(&str) -> Parsed<T>,
) -> Result<Found<T>> {
    let mut found = Found { all: vec![], bad: 0, first_bad: None };
    for path in paths {
        let before = found.all.len();
        read_one(path, skip_bad, expected, parse, &mut found)?;
        if found.all.len() == before && found.bad == 0 {
            return Err(Error::Empty { path: path.clone() });
        }
    }
    match found.all.is_empty() {
        true => Err(Error::NoExample { read: found.bad, reason: found.first_bad.unwrap_or_default() }),
        false => Ok(found),
    }
}

fn read_one<T>(
    path: &Path,
    skip_bad: bool,
    expected: &'static str,
    parse: fn(&str) -> Parsed<T>,
    found: &mut Found<T>,
) -> Result<()> {
    let document = Document::open(path)?;
    // What stands behind the last line is no line.
    for (number, line) in document.contents().trim_end().lines().enumerate() {
        match parse(line) {
            Ok(one) => found.all.push(one),
            Err(Bad { at_bytes, reason }) => {
                let column = 1 + line.char_indices().take_while(|(at, _)| *at < at_bytes).count();
                let error = Error::ChatLine { path: path.into(), line: number + 1, column, reason, expected };
                if !skip_bad {
                    return Err(error);
                }
                found.bad += 1;
                let told = || error.to_string().lines().next().unwrap_or_default().to_string();
                found.first_bad.get_or_insert_with(told);
            }
        }
    }
    Ok(())
}

/// What is wrong with a line, and where.
struct Bad {
    at_bytes: usize,
    reason: String,
}

type Parsed<T> = Result<T, Bad>;

/// The keys of a line, as they stand in it.
#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    messages: Option<&'a RawValue>,
    #[serde(borrow)]
    conversations: Option<&'a RawValue>,
    #[serde(borrow)]
    prompt: Option<&'a RawValue>,
    #[serde(borrow)]
    completion: Option<&'a RawValue>,
    #[serde(borrow)]
    instruction: Option<&'a RawValue>,
    #[serde(borrow)]
    input: Option<&'a RawValue>,
    #[serde(borrow)]
    output: Option<&'a RawValue>,
    #[serde(borrow)]
    chosen: Option<&'a RawValue>,
    #[serde(borrow)]
    rejected: Option<&'a RawValue>,
}

/// A line and what is read of it; values are found again by where they lie.
#[derive(Clone, Copy)]
struct Place<'a>(&'a str);

impl<'a> Place<'a> {
    fn bad<T>(self, at: &RawValue, reason: impl Into<String>) -> Parsed<T> {
        let at_bytes = (at.get().as_ptr() as usize).saturating_sub(self.0.as_ptr() as usize);
        Err(Bad { at_bytes, reason: reason.into() })
    }

    fn keys(self) -> Parsed<Line<'a>> {
        if self.0.trim().is_empty() {
            return Err(Bad { at_bytes: 0, reason: "the line is empty".into() });
        }
        if let Some(at_bytes) = self.0.find([OPENS, CLOSES]) {
            return Err(Bad { at_bytes, reason: "it holds U+FDD0 or U+FDD1, which no text does".into() });
        }
        // A list would be read as the values of an object's keys.
        if self.0.trim_start().starts_with('[') {
            return Err(Bad { at_bytes: 0, reason: "it is no JSON object but a list".into() });
        }
        serde_json::from_str(self.0).map_err(|error| {
            // The library counts bytes from one, and the end of the line as one more.
            let at_bytes = error.column().saturating_sub(1);
            let text = error.to_string();
            let reason = text.split(" at line ").next().unwrap_or_default();
            Bad { at_bytes, reason: format!("it is no JSON object: {reason}") }
        })
    }

    fn text(self, key: &str, raw: &RawValue) -> Parsed<String> {
        match serde_json::from_str(raw.get()) {
            Ok(Json::String(text)) => Ok(text),
            _ => self.bad(raw, format!("expected text for `{key}`, got {}", shown(raw))),
        }
    }

    /// Text with something in it.
    fn words(self, key: &str, raw: &RawValue) -> Parsed<String> {
        let text = self.text(key, raw)?;
        if text.trim().is_empty() { self.bad(raw, format!("`{key}` is empty")) } else { Ok(text) }
    }

    fn list(self, key: &str, raw: &'a RawValue) -> Parsed<Vec<&'a RawValue>> {
        match serde_json::from_str::<Vec<&RawValue>>(raw.get()) {
            Ok(items) if items.is_empty() => self.bad(raw, format!("`{key}` is empty")),
            Ok(items) => Ok(items),
            Err(_) => self.bad(raw, format!("expected a list for `{key}`, got {}", shown(raw))),
        }
    }

    /// Messages with `role` and `content`.
    fn messages(self, key: &str, raw: &'a RawValue) -> Parsed<Vec<Json>> {
        let message = |raw: &'a RawValue| {
            let Ok(message @ Json::Object(_)) = serde_json::from_str::<Json>(raw.get()) else {
                return self
                    .bad(raw, format!("expected an object with `role` and `content`, got {}", shown(raw)));
            };
            match (&message["role"], &message["content"]) {
                (Json::String(role), _) if role.is_empty() => self.bad(raw, "the `role` is empty"),
                (Json::String(_), Json::String(_)) => Ok(message),
                (Json::String(_), Json::Null) if !message["tool_calls"].is_null() => Ok(message),
                (Json::String(_), Json::Null) => self.bad(raw, "there is no `content`"),
                (Json::String(_), other) => {
                    self.bad(raw, format!("expected text for `content`, got {other}"))
                }
                (Json::Null, _) => self.bad(raw, "there is no `role`"),
                (other, _) => self.bad(raw, format!("expected text for `role`, got {other}")),
            }
        };
        self.list(key, raw)?.into_iter().map(message).collect()
    }

    /// Messages with `from` and `value`, as those with `role` and `content`.
    fn speeches(self, key: &str, raw: &'a RawValue) -> Parsed<Vec<Json>> {
        let speech = |raw: &'a RawValue| {
            let speech: Json = serde_json::from_str(raw.get()).unwrap_or_default();
            let (Json::String(from), Json::String(value)) = (&speech["from"], &speech["value"]) else {
                return self.bad(
                    raw,
                    format!("expected an object with the texts `from` and `value`, got {}", shown(raw)),
                );
            };
            match SPEAKERS.iter().find(|(name, _)| name == from) {
                Some((_, role)) => Ok(json!({ "role": role, "content": value })),
                None => {
                    let names = SPEAKERS.map(|(name, _)| name).join(", ");
                    self.bad(raw, format!("`from` is {from:?}, expected one of {names}"))
                }
            }
        };
        self.list(key, raw)?.into_iter().map(speech).collect()
    }

    /// A conversation in which something from message `first` on is an answer.
    fn conversation(self, at: &RawValue, messages: Vec<Json>, first: usize) -> Parsed<Dialogue> {
        let answers = |message: &Json| {
            let says = message["content"].as_str().is_some_and(|text| !text.trim().is_empty());
            message["role"] == "assistant" && (says || !message["tool_calls"].is_null())
        };
        match messages[first..].iter().any(answers) {
            true => Ok(Dialogue::Messages { messages, first }),
            false => self.bad(at, "the assistant says nothing"),
        }
    }

    /// A prompt and what follows from it: both text, or both messages.
    fn pair(self, prompt: &'a RawValue, key: &str, answer: &'a RawValue) -> Parsed<Dialogue> {
        let is_text = |raw: &RawValue| raw.get().starts_with('"');
        match [is_text(prompt), is_text(answer)] {
            [true, true] => Ok(Dialogue::Text {
                prompt: self.text("prompt", prompt)?,
                completion: self.words(key, answer)?,
            }),
            [false, false] => {
                let mut messages = self.messages("prompt", prompt)?;
                let first = messages.len();
                messages.extend(self.messages(key, answer)?);
                self.conversation(answer, messages, first)
            }
            _ => self.bad(answer, format!("expected both `prompt` and `{key}` as text, or both as messages")),
        }
    }
}

fn shown(raw: &RawValue) -> String {
    let text = raw.get();
    match text.chars().count() {
        0..=40 => text.to_string(),
        _ => format!("{}..", text.chars().take(40).collect::<String>()),
    }
}

fn dialogue(line: &str) -> Parsed<Dialogue> {
    let place = Place(line);
    let keys = place.keys()?;
    if let Some(raw) = keys.messages {
        return place.conversation(raw, place.messages("messages", raw)?, 0);
    }
    if let Some(raw) = keys.conversations {
        return place.conversation(raw, place.speeches("conversations", raw)?, 0);
    }
    if let (Some(prompt), Some(completion)) = (keys.prompt, keys.completion) {
        return place.pair(prompt, "completion", completion);
    }
    if let (Some(instruction), Some(output)) = (keys.instruction, keys.output) {
        let mut asked = place.words("instruction", instruction)?;
        if let Some(input) = keys.input {
            let input = place.text("input", input)?;
            if !input.trim().is_empty() {
                asked = format!("{asked}\n\n{input}");
            }
        }
        let answer = place.words("output", output)?;
        let messages = vec![
            json!({ "role": "user", "content": asked }),
            json!({ "role": "assistant", "content": answer }),
        ];
        return Ok(Dialogue::Messages { messages, first: 0 });
    }
    Err(Bad { at_bytes: 0, reason: format!("there is neither of {CHATS}") })
}

fn preference(line: &str) -> Parsed<Preference> {
    let place = Place(line);
    let keys = place.keys()?;
    let (Some(prompt), Some(chosen), Some(rejected)) = (keys.prompt, keys.chosen, keys.rejected) else {
        let all = [("prompt", keys.prompt), ("chosen", keys.chosen), ("rejected", keys.rejected)];
        let missing = all.iter().find(|(_, raw)| raw.is_none()).map_or("", |(key, _)| key);
        return Err(Bad { at_bytes: 0, reason: format!("there is no `{missing}`") });
    };
    Ok(Preference {
        chosen: place.pair(prompt, "chosen", chosen)?,
        rejected: place.pair(prompt, "rejected", rejected)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_file(text: &str) -> (tempfile::TempDir, Vec<PathBuf>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("chats.jsonl");
        std::fs::write(&path, text).unwrap();
        (folder, vec![path])
    }

    fn read(text: &str, skip_bad: bool) -> Result<Found<Dialogue>> {
        let (_folder, paths) = in_file(text);
        read_dialogues(&paths, skip_bad)
    }

    #[test]
    fn all_shapes_of_a_conversation_are_read() {
        let text = r#"{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}], "id": 7}
{"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]}
{"prompt": [{"role": "user", "content": "hi"}], "completion": [{"role": "assistant", "content": "ho"}]}
{"instruction": "hi", "input": "", "output": "ho"}
{"instruction": "hi", "input": "you", "output": "ho"}
{"prompt": "hi ", "completion": "ho"}
"#;
        let found = read(text, false).unwrap();
        let said = |asked: &str, first| Dialogue::Messages {
            messages: vec![
                json!({"role": "user", "content": asked}),
                json!({"role": "assistant", "content": "ho"}),
            ],
            first,
        };
        let plain = Dialogue::Text { prompt: "hi ".into(), completion: "ho".into() };
        let expected =
            [said("hi", 0), said("hi", 0), said("hi", 1), said("hi", 0), said("hi\n\nyou", 0), plain];
        assert_eq!(found.all, expected);
        assert_eq!((found.bad, found.first_bad), (0, None));
    }

    #[test]
    fn a_line_that_is_no_conversation_is_refused_by_line_and_column() {
        let good = r#"{"prompt": "a", "completion": "b"}"#;
        for (bad, at, part) in [
            ("", 1, "the line is empty"),
            ("{\"prompt\": \"é\", ]}", 17, "no JSON object"),
            ("[1]", 1, "no JSON object"),
            ("{\"text\": \"a\"}", 1, "neither of `messages`"),
            ("{\"prompt\": \"é\", \"completion\": 3}", 31, "both `prompt` and `completion`"),
            ("{\"prompt\": \"a\", \"completion\": \" \"}", 31, "`completion` is empty"),
            ("{\"messages\": []}", 14, "`messages` is empty"),
            ("{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}", 14, "the assistant says nothing"),
            ("{\"messages\": [{\"role\": \"user\"}]}", 15, "no `content`"),
            ("{\"messages\": [{\"content\": \"a\"}]}", 15, "no `role`"),
            ("{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, 5]}", 49, "expected an object"),
            ("{\"conversations\": [{\"from\": \"bob\", \"value\": \"a\"}]}", 20, "`from` is \"bob\""),
            ("{\"prompt\": \"a\", \"completion\": \"\u{fdd0}\"}", 32, "U+FDD0"),
        ] {
            let error = read(&format!("{good}\n{bad}\n{good}\n"), false).unwrap_err();
            let Error::ChatLine { line, column, reason, .. } = &error else { panic!("{error}") };
            assert!((*line, *column) == (2, at) && reason.contains(part), "{bad}: {error}");
        }
        assert!(matches!(read("\n", false), Err(Error::Empty { .. })));
    }

    #[test]
    fn bad_lines_are_passed_over_and_counted_when_asked_to() {
        let text =
            "{\"prompt\": \"a\", \"completion\": \"b\"}\nno\n\n{\"prompt\": \"c\", \"completion\": \"d\"}";
        let found = read(text, true).unwrap();
        assert_eq!((found.all.len(), found.bad), (2, 2));
        assert!(found.first_bad.unwrap().contains("line 2, column 2"));
        assert!(matches!(read("no\n", true), Err(Error::NoExample { read: 1, .. })));
    }

    #[test]
    fn preferences_are_two_answers_to_one_prompt() {
        let text = r#"{"prompt": "a", "chosen": "b", "rejected": "c"}
{"prompt": [{"role": "user", "content": "a"}], "chosen": [{"role": "assistant", "content": "b"}], "rejected": [{"role": "assistant", "content": "c"}]}"#;
        let (_folder, paths) = in_file(text);
        let found = read_preferences(&paths, false).unwrap();
        let plain = |completion: &str| Dialogue::Text { prompt: "a".into(), completion: completion.into() };
        assert_eq!(found.all[0], Preference { chosen: plain("b"), rejected: plain("c") });
        let Dialogue::Messages { messages, first: 1 } = &found.all[1].rejected else { panic!() };
        assert_eq!(messages[1]["content"], "c");
        let (_folder, paths) = in_file("{\"prompt\": \"a\", \"chosen\": \"b\"}");
        let error = read_preferences(&paths, false).unwrap_err().to_string();
        assert!(error.contains("no `rejected`") && error.contains("`chosen`"), "{error}");
    }
}
