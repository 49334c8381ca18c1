//! What texts begin with: strings, tokens, and what is said in a chat.

use super::fields::{Fields, kind_of};
use super::model::Model;
use super::refusal::Refusal;
use crate::data;
use axum::http::StatusCode;
use serde_json::{Map, Value as Json};

/// Prompts of one request at most.
const MOST_PROMPTS: usize = 2048;

/// A prompt as it is read.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    /// Its tokens, as many as are read.
    pub tokens: Vec<u32>,
    /// Tokens of its beginning that were left out.
    pub left_out: usize,
}

/// What becomes of a prompt that is longer than the model's context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truncate {
    /// It is refused.
    Refuse,
    /// Its beginning is left out, so that there is room for an answer.
    Left,
}

/// The prompts of a completion.
pub fn of_completion(fields: &Fields, model: &Model) -> Result<Vec<Prompt>, Refusal> {
    const EXPECTED: &str = "a string, a list of strings, a list of token ids, or a list of such lists";
    let wrong = |got: &Json| Refusal::field("prompt", format!("is {}, expected {EXPECTED}", kind_of(got)));
    let prompt = fields.raw("prompt").ok_or_else(|| Refusal::field("prompt", "is missing"))?;
    let of_text = |text: &str| -> Result<Vec<u32>, Refusal> {
        Ok(ended(model.tokenizer()?.encode_with_special(text)?, model))
    };
    let ids = |list: &[Json]| -> Result<Vec<u32>, Refusal> {
        let id = |value: &Json| value.as_u64().and_then(|id| u32::try_from(id).ok());
        list.iter()
            .map(|value| {
                id(value).ok_or_else(|| {
                    Refusal::field("prompt", format!("has {} among its token ids", kind_of(value)))
                })
            })
            .collect()
    };
    let all = match prompt {
        Json::String(text) => vec![of_text(text)?],
        Json::Array(list) => match list.first() {
            None => return Err(Refusal::field("prompt", "is an empty list")),
            Some(Json::Number(_)) => vec![ids(list)?],
            Some(_) if list.len() > MOST_PROMPTS => {
                return Err(Refusal::field(
                    "prompt",
                    format!("has {} prompts, expected at most {MOST_PROMPTS}", list.len()),
                ));
            }
            Some(_) => list
                .iter()
                .map(|each| match each {
                    Json::String(text) => of_text(text),
                    Json::Array(list) => ids(list),
                    other => Err(wrong(other)),
                })
                .collect::<Result<_, _>>()?,
        },
        other => return Err(wrong(other)),
    };
    Ok(all.into_iter().map(|tokens| Prompt { tokens, left_out: 0 }).collect())
}

/// The prompt of a chat, as the model's template writes it.
pub fn of_chat(fields: &Fields, model: &Model) -> Result<Prompt, Refusal> {
    let template = model.template.as_ref().ok_or_else(|| {
        let message = "the model has no chat template, so that it cannot be talked with: use /v1/completions, or start the server with --template";
        Refusal::new(StatusCode::BAD_REQUEST, "no_chat_template", message)
    })?;
    let expected = "a list of objects with `role` and `content`";
    let messages: Vec<Map<String, Json>> =
        fields.get("messages", expected)?.ok_or_else(|| Refusal::field("messages", "is missing"))?;
    if messages.is_empty() {
        return Err(Refusal::field("messages", "is an empty list"));
    }
    let messages = messages.into_iter().enumerate().map(message).collect::<Result<Vec<_>, _>>()?;
    let rendered = template.render(&messages, true);
    let rendered = rendered
        .map_err(|error| Refusal::field("messages", format!("cannot be written: {}", told(&error))))?;
    let tokens = ended(model.tokenizer()?.encode(&rendered)?, model);
    Ok(Prompt { tokens, left_out: 0 })
}

/// What an encoder reads ends as that did from which the model learned, also where its tokenizer does not see to it.
fn ended(mut tokens: Vec<u32>, model: &Model) -> Vec<u32> {
    let is_whole = tokens.last().is_some_and(|last| model.ends.contains(last));
    tokens.extend(model.ends.first().filter(|_| model.facts.pair && !is_whole));
    tokens
}

/// A message whose content is one text.
fn message((number, mut message): (usize, Map<String, Json>)) -> Result<Json, Refusal> {
    let wrong = |what: &str| Refusal {
        param: Some(format!("messages[{number}]")),
        ..Refusal::bad(format!("message {number} {what}"))
    };
    if message.get("role").and_then(Json::as_str).is_none_or(str::is_empty) {
        return Err(wrong("has no `role`, expected system, user or assistant"));
    }
    let text = match message.get("content") {
        None | Some(Json::Null) => String::new(),
        Some(Json::String(text)) => text.clone(),
        Some(Json::Array(parts)) => {
            let text = |part: &Json| match part["type"].as_str() {
                Some("text" | "input_text") => part["text"].as_str().map(String::from),
                _ => None,
            };
            let texts: Option<Vec<String>> = parts.iter().map(text).collect();
            texts
                .ok_or_else(|| wrong("has a part that is no text, and this model reads nothing else"))?
                .join("\n")
        }
        Some(other) => return Err(wrong(&format!("has {} as its `content`, expected text", kind_of(other)))),
    };
    message.insert("content".into(), Json::String(text));
    Ok(Json::Object(message))
}

impl Prompt {
    /// As much of it as the model reads.
    pub fn fit(mut self, model: &Model, wanted: usize) -> Result<Prompt, Refusal> {
        let (count, capacity) = (self.tokens.len(), model.facts.capacity);
        if count <= capacity || model.facts.pair {
            return Ok(self);
        }
        if model.truncate == Truncate::Refuse {
            let message = format!(
                "the prompt has {count} tokens, and the model's context is {capacity}: shorten it, or start the server with --truncate left"
            );
            let refusal = Refusal::new(StatusCode::BAD_REQUEST, "context_length_exceeded", message);
            return Err(Refusal { param: Some("prompt".into()), ..refusal });
        }
        // At most half of the context is kept free for an answer.
        let kept = capacity - wanted.min(capacity / 2);
        self.left_out = count - kept.max(1);
        self.tokens.drain(..self.left_out);
        Ok(self)
    }
}

/// An error without the hint, which speaks of recipes.
fn told(error: &data::Error) -> String {
    error.to_string().split("\n  hint:").next().unwrap_or_default().to_string()
}

impl From<data::Error> for Refusal {
    fn from(error: data::Error) -> Refusal {
        Refusal::bad(told(&error))
    }
}
