//! Answers in the shapes that OpenAI gives completions and chats, whole and in parts.

use super::fields::Wanted;
use super::model::Model;
use super::prompts::Prompt;
use super::refusal::Refusal;
use crate::data::tokenizer::Tokenizer;
use crate::generate::{Event, Finish, Told};
use serde_json::{Map, Value as Json, json};
use std::sync::Arc;

/// What is the same in all parts of an answer, and what is known of its texts so far.
pub struct Answer {
    id: String,
    name: String,
    created: u64,
    is_chat: bool,
    stream: bool,
    include_usage: bool,
    told: bool,
    tokenizer: Option<Arc<Tokenizer>>,
    /// Texts by their number, each behind what is to stand before it.
    texts: Vec<Text>,
    prompt_tokens: usize,
    /// Texts of each prompt.
    each: usize,
    left_out: usize,
}

/// A text as far as it has come.
#[derive(Default)]
struct Text {
    /// What stands before it, and of an answer as a whole all that came.
    text: String,
    /// Characters that came, and those before them.
    characters: usize,
    pieces: Vec<Piece>,
    tokens: usize,
    /// Tokens of its prompt that the model had read before.
    reused: usize,
    finish: Option<Finish>,
}

/// A token with what was told of it.
struct Piece {
    token: u32,
    told: Told,
    /// Characters that stand before it.
    offset: usize,
}

impl Answer {
    /// An answer to prompts, of which nothing is written yet.
    pub fn new(
        id: u64,
        name: &str,
        model: &Model,
        prompts: &[Prompt],
        wanted: &Wanted,
        is_chat: bool,
    ) -> Result<Answer, Refusal> {
        let created =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |t| t.as_secs());
        let mut texts = vec![];
        for prompt in prompts {
            let before = if wanted.echo { model.tokenizer()?.decode(&prompt.tokens)? } else { String::new() };
            let characters = before.chars().count();
            texts.extend((0..wanted.texts).map(|_| Text {
                text: before.clone(),
                characters,
                ..Text::default()
            }));
        }
        Ok(Answer {
            id: format!("{}-{created:x}{id:08x}", if is_chat { "chatcmpl" } else { "cmpl" }),
            name: name.to_string(),
            created,
            is_chat,
            stream: wanted.stream,
            include_usage: wanted.include_usage,
            told: wanted.logprobs.is_some(),
            tokenizer: model.tokenizer.clone(),
            texts,
            prompt_tokens: prompts.iter().map(|prompt| prompt.tokens.len()).sum(),
            each: wanted.texts.max(1),
            left_out: prompts.iter().map(|prompt| prompt.left_out).sum(),
        })
    }

    /// True when every text has ended.
    pub fn is_whole(&self) -> bool {
        self.texts.iter().all(|text| text.finish.is_some())
    }

    /// Parts that stand before all that is written.
    pub fn opening(&self) -> Vec<Json> {
        let part = |(number, text): (usize, &Text)| match self.is_chat {
            true => Some(self.part(number, json!({ "role": "assistant", "content": "" }), Json::Null, None)),
            false => (!text.text.is_empty()).then(|| self.part(number, json!(text.text), Json::Null, None)),
        };
        self.texts.iter().enumerate().filter_map(part).collect()
    }

    /// Takes a token on; gives the part of a stream that tells of it, where there is something to tell.
    pub fn take(&mut self, number: usize, event: Event) -> Option<Json> {
        let text = &mut self.texts[number];
        let offset = text.characters;
        text.characters += event.text.chars().count();
        text.tokens += 1;
        text.reused = event.reused;
        let is_end = matches!(event.finish, Some(Finish::End(_)));
        let piece = event.told.filter(|_| !is_end).map(|told| Piece { token: event.token, told, offset });
        text.finish = event.finish;
        if !self.stream {
            text.text += &event.text;
            text.pieces.extend(piece);
            return None;
        }
        let text = &self.texts[number];
        if event.text.is_empty() && text.finish.is_none() && piece.is_none() {
            return None;
        }
        let logprobs = if self.told { self.logprobs(piece.as_slice()) } else { Json::Null };
        let written = match (self.is_chat, event.text.is_empty()) {
            (true, true) => json!({}),
            (true, false) => json!({ "content": event.text }),
            (false, _) => json!(event.text),
        };
        Some(self.part(number, written, logprobs, text.finish.as_ref()))
    }

    /// The part of a stream that tells how many tokens there were, where that is wanted.
    pub fn closing(&self) -> Option<Json> {
        let mut body = self.head(true);
        body.insert("choices".into(), json!([]));
        body.insert("usage".into(), self.usage());
        self.include_usage.then_some(Json::Object(body))
    }

    /// All of it at once.
    pub fn whole(&self) -> Json {
        let choice = |(number, text): (usize, &Text)| {
            let logprobs = if self.told { self.logprobs(&text.pieces) } else { Json::Null };
            let written = match self.is_chat {
                true => json!({ "role": "assistant", "content": text.text, "refusal": null }),
                false => json!(text.text),
            };
            self.choice(
                number,
                if self.is_chat { "message" } else { "text" },
                written,
                logprobs,
                text.finish.as_ref(),
            )
        };
        let choices: Vec<Json> = self.texts.iter().enumerate().map(choice).collect();
        let mut body = self.head(false);
        body.insert("choices".into(), json!(choices));
        body.insert("usage".into(), self.usage());
        Json::Object(body)
    }

    fn head(&self, is_part: bool) -> Map<String, Json> {
        let object = match (self.is_chat, is_part) {
            (true, true) => "chat.completion.chunk",
            (true, false) => "chat.completion",
            (false, _) => "text_completion",
        };
        let mut head = Map::new();
        head.insert("id".into(), json!(self.id));
        head.insert("object".into(), json!(object));
        head.insert("created".into(), json!(self.created));
        head.insert("model".into(), json!(self.name));
        if self.left_out > 0 {
            head.insert("truncated_prompt_tokens".into(), json!(self.left_out));
        }
        head
    }

    fn part(&self, number: usize, written: Json, logprobs: Json, finish: Option<&Finish>) -> Json {
        let mut body = self.head(true);
        let name = if self.is_chat { "delta" } else { "text" };
        body.insert("choices".into(), json!([self.choice(number, name, written, logprobs, finish)]));
        if self.include_usage {
            body.insert("usage".into(), Json::Null);
        }
        Json::Object(body)
    }

    fn choice(
        &self,
        number: usize,
        name: &str,
        written: Json,
        logprobs: Json,
        finish: Option<&Finish>,
    ) -> Json {
        let mut choice = Map::new();
        choice.insert("index".into(), json!(number));
        choice.insert(name.into(), written);
        choice.insert("logprobs".into(), logprobs);
        choice.insert("finish_reason".into(), json!(finish.map(reason)));
        // What ended it besides a token, as vLLM names it.
        match finish {
            Some(Finish::Stop(stop)) => drop(choice.insert("stop_reason".into(), json!(stop))),
            Some(Finish::Stuck) => {
                drop(choice.insert("stop_reason".into(), json!("no token fits what the text must match")));
            }
            _ => {}
        }
        Json::Object(choice)
    }

    fn usage(&self) -> Json {
        let written: usize = self.texts.iter().map(|text| text.tokens).sum();
        let read = self.prompt_tokens;
        // A prompt is counted once, whatever number of texts goes on from it: so is what of it was known.
        let known: usize = self.texts.iter().step_by(self.each).map(|text| text.reused).sum();
        json!({
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
            "prompt_tokens_details": { "cached_tokens": known },
        })
    }

    /// A token as it is written inside a text; what is part of a character has the sign for what is unknown.
    fn name(&self, token: u32) -> String {
        let text = |ids: &[u32]| self.tokenizer.as_ref()?.decode_with_special(ids).ok();
        // Some decoders leave out the space before the first token: behind itself a token has it.
        match (text(&[token]), text(&[token, token])) {
            (Some(alone), Some(twice)) => twice.strip_prefix(&alone).unwrap_or(&alone).to_string(),
            _ => format!("token_id:{token}"),
        }
    }

    fn logprobs(&self, pieces: &[Piece]) -> Json {
        let one = |token: u32, logprob: f32| {
            let name = self.name(token);
            let bytes = (!name.contains(char::REPLACEMENT_CHARACTER)).then(|| name.as_bytes().to_vec());
            json!({ "token": name, "logprob": finite(logprob), "bytes": bytes })
        };
        if self.is_chat {
            let content = |piece: &Piece| {
                let mut content = one(piece.token, piece.told.chosen);
                let top: Vec<Json> =
                    piece.told.top.iter().map(|(token, logprob)| one(*token, *logprob)).collect();
                content["top_logprobs"] = json!(top);
                content
            };
            return json!({ "content": pieces.iter().map(content).collect::<Vec<_>>(), "refusal": null });
        }
        let top = |piece: &Piece| -> Map<String, Json> {
            piece
                .told
                .top
                .iter()
                .map(|(token, logprob)| (self.name(*token), json!(finite(*logprob))))
                .collect()
        };
        json!({
            "tokens": pieces.iter().map(|piece| self.name(piece.token)).collect::<Vec<_>>(),
            "token_logprobs": pieces.iter().map(|piece| finite(piece.told.chosen)).collect::<Vec<_>>(),
            "top_logprobs": pieces.iter().map(top).collect::<Vec<_>>(),
            "text_offset": pieces.iter().map(|piece| piece.offset).collect::<Vec<_>>(),
        })
    }
}

/// JSON has no infinity: OpenAI's own stand-in for what has no probability.
fn finite(logprob: f32) -> f32 {
    logprob.max(-9999.0)
}

/// Why a text has ended, in OpenAI's words.
fn reason(finish: &Finish) -> &'static str {
    match finish {
        Finish::Length | Finish::Full => "length",
        Finish::End(_) | Finish::Stop(_) | Finish::Complete | Finish::Stuck => "stop",
    }
}
