//! The fields of a request, each read by its name: of a wrong type is an error that names it, and what nobody knows is passed over.

use super::refusal::Refusal;
use crate::generate::{Overflow, Settings};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value as Json};

/// Texts that a request may ask for each of its prompts.
const MOST_TEXTS: usize = 128;
/// Tokens that may be told beside the chosen one.
const MOST_TOLD: usize = 20;
/// Texts that may end one.
const MOST_STOPS: usize = 16;

/// A request's body.
#[derive(Clone, Debug)]
pub struct Fields(Map<String, Json>);

impl Fields {
    /// From the bytes of a body.
    pub fn parse(bytes: &[u8]) -> Result<Fields, Refusal> {
        let body: Json = serde_json::from_slice(bytes)
            .map_err(|error| Refusal::bad(format!("the body is no JSON: {error}")))?;
        match body {
            Json::Object(fields) => Ok(Fields(fields)),
            other => Err(Refusal::bad(format!("the body is {}, expected a JSON object", kind_of(&other)))),
        }
    }

    /// A field as it stands; none where it is absent or null.
    pub fn raw(&self, name: &str) -> Option<&Json> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    /// A field of a type.
    pub fn get<T: DeserializeOwned>(&self, name: &str, expected: &str) -> Result<Option<T>, Refusal> {
        let Some(value) = self.raw(name) else { return Ok(None) };
        let wrong = |_| Refusal::field(name, format!("is {}, expected {expected}", kind_of(value)));
        T::deserialize(value).map(Some).map_err(wrong)
    }

    /// A field of a type within limits.
    fn within(&self, name: &str, [least, most]: [usize; 2]) -> Result<Option<usize>, Refusal> {
        let expected = format!("a whole number from {least} to {most}");
        let found: Option<usize> = self.get(name, &expected)?;
        match found.filter(|count| !(least..=most).contains(count)) {
            Some(count) => Err(Refusal::field(name, format!("is {count}, expected {expected}"))),
            None => Ok(found),
        }
    }

    /// Refuses fields that would change the answer if they were obeyed.
    pub fn refuse(&self, names: &[&str]) -> Result<(), Refusal> {
        let empty = |value: &Json| match value {
            Json::Array(list) => list.is_empty(),
            Json::Object(map) => map.is_empty(),
            Json::String(text) => text.is_empty() || text == "none",
            Json::Bool(value) => !value,
            _ => false,
        };
        match names.iter().find(|name| self.raw(name).is_some_and(|value| !empty(value))) {
            Some(name) => Err(Refusal::unsupported(name, "is not supported by this server: leave it out")),
            None => Ok(()),
        }
    }
}

/// What a value is, in words: short ones as they are.
pub fn kind_of(value: &Json) -> String {
    match value {
        Json::Null => "null".into(),
        Json::String(text) if text.len() > 40 => "a string".into(),
        Json::Array(_) => "a list".into(),
        Json::Object(_) => "an object".into(),
        short => short.to_string(),
    }
}

/// What a request asks for, whatever its prompts are.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// How each text is written; its ends, and what it must match, are not among it yet.
    pub settings: Settings,
    /// Texts for each prompt.
    pub texts: usize,
    /// Likeliest tokens to be told at each place, where something is to be told.
    pub logprobs: Option<usize>,
    /// Texts are sent as they come.
    pub stream: bool,
    /// The last part of a stream tells how many tokens there were.
    pub include_usage: bool,
    /// The prompt is to stand before the text.
    pub echo: bool,
}

impl Wanted {
    /// What the fields ask for. `most_tokens` is what a text may have where nothing is said; `chance` the seed where none is given.
    pub fn of(fields: &Fields, is_chat: bool, most_tokens: usize, chance: u64) -> Result<Wanted, Refusal> {
        fields.refuse(&["logit_bias", "suffix", "tools", "functions", "audio", "prediction"])?;
        let number = |name: &str| fields.get::<f64>(name, "a number");
        let texts = fields.within("n", [1, MOST_TEXTS])?.unwrap_or(1);
        if fields.within("best_of", [1, MOST_TEXTS])?.is_some_and(|best| best != texts) {
            return Err(Refusal::unsupported("best_of", "is supported only where it is `n`"));
        }
        let whole = "a whole number from 1 on";
        let limit =
            fields.get::<usize>("max_completion_tokens", whole)?.map(|most| ("max_completion_tokens", most));
        let limit = limit.or(fields.get::<usize>("max_tokens", whole)?.map(|most| ("max_tokens", most)));
        if let Some((name, 0)) = limit {
            return Err(Refusal::field(name, format!("is 0, expected {whole}")));
        }
        let top_k = fields.get::<i64>("top_k", "a whole number; 0 or -1 for all")?.unwrap_or(0);
        if top_k < -1 {
            return Err(Refusal::field(
                "top_k",
                format!("is {top_k}, expected 1 or more, or 0 or -1 for all"),
            ));
        }
        let seed = fields.get::<i64>("seed", "a whole number")?;
        let temperature = number("temperature")?.unwrap_or(1.0);
        // Nearer to zero than a device can tell is zero.
        let temperature = if (0.0..1e-6).contains(&temperature) { 0.0 } else { temperature };
        let settings = Settings {
            do_sample: temperature != 0.0,
            temperature,
            min_new_tokens: fields.get("min_tokens", "a whole number")?.unwrap_or(0),
            top_k: usize::try_from(top_k).unwrap_or(0),
            top_p: number("top_p")?.unwrap_or(1.0),
            min_p: number("min_p")?.unwrap_or(0.0),
            repetition_penalty: number("repetition_penalty")?.unwrap_or(1.0),
            presence_penalty: number("presence_penalty")?.unwrap_or(0.0),
            frequency_penalty: number("frequency_penalty")?.unwrap_or(0.0),
            stop: stops(fields)?,
            seed: seed.map_or(chance, |seed| seed as u64),
            overflow: Overflow::Stop,
            ..Settings::greedy(limit.map_or(most_tokens, |(_, most)| most))
        };
        settings.check()?;
        let stream = fields.get("stream", "true or false")?.unwrap_or(false);
        Ok(Wanted {
            settings,
            texts,
            logprobs: logprobs(fields, is_chat)?,
            stream,
            include_usage: include_usage(fields, stream)?,
            echo: !is_chat && fields.get("echo", "true or false")?.unwrap_or(false),
        })
    }
}

fn stops(fields: &Fields) -> Result<Vec<String>, Refusal> {
    let expected = "a string, or a list of strings";
    let stops = match fields.raw("stop") {
        Some(Json::Array(_)) => fields.get::<Vec<String>>("stop", expected)?.unwrap_or_default(),
        _ => fields.get::<String>("stop", expected)?.into_iter().collect(),
    };
    match stops.len() > MOST_STOPS {
        true => {
            Err(Refusal::field("stop", format!("has {} strings, expected at most {MOST_STOPS}", stops.len())))
        }
        false => Ok(stops),
    }
}

/// A number for completions; for chats a yes or no, and the number beside it.
fn logprobs(fields: &Fields, is_chat: bool) -> Result<Option<usize>, Refusal> {
    if !is_chat {
        return fields.within("logprobs", [0, MOST_TOLD]);
    }
    let wanted = fields.get::<bool>("logprobs", "true or false")?.unwrap_or(false);
    let top = fields.within("top_logprobs", [0, MOST_TOLD])?;
    match (wanted, top) {
        (false, Some(_)) => Err(Refusal::field("top_logprobs", "needs `logprobs` to be true")),
        (true, top) => Ok(Some(top.unwrap_or(0))),
        (false, None) => Ok(None),
    }
}

fn include_usage(fields: &Fields, stream: bool) -> Result<bool, Refusal> {
    let Some(options) = fields.get::<Map<String, Json>>("stream_options", "an object")? else {
        return Ok(false);
    };
    if !stream {
        return Err(Refusal::field("stream_options", "needs `stream` to be true"));
    }
    Ok(Fields(options).get("include_usage", "true or false")?.unwrap_or(false))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn wanted(body: Json, is_chat: bool) -> Result<Wanted, Refusal> {
        Wanted::of(&Fields::parse(body.to_string().as_bytes()).unwrap(), is_chat, 16, 7)
    }

    #[test]
    fn fields_have_the_meaning_that_openai_gives_them() {
        let plain = wanted(json!({}), false).unwrap();
        assert!(plain.settings.draws() && plain.settings.max_new_tokens == 16 && plain.settings.seed == 7);
        assert!(plain.texts == 1 && !plain.stream && plain.logprobs.is_none());
        let body = json!({
            "temperature": 0, "top_p": 1, "n": 3, "stop": "x", "seed": -1, "max_tokens": 5, "stream": true, "logprobs": 2,
            "stream_options": {"include_usage": true}, "user": "me", "height": [1], "logit_bias": {}, "presence_penalty": null,
        });
        let more = wanted(body, false).unwrap();
        assert!(!more.settings.draws() && more.settings.seed == u64::MAX && more.settings.stop == ["x"]);
        assert!(more.texts == 3 && more.stream && more.include_usage && more.logprobs == Some(2));
        assert!(!wanted(json!({"temperature": 1e-300}), false).unwrap().settings.draws());
        let chat = json!({"max_completion_tokens": 9, "logprobs": true, "top_logprobs": 4, "stop": ["a", "b"], "top_k": -1});
        let chat = wanted(chat, true).unwrap();
        assert!(chat.settings.max_new_tokens == 9 && chat.logprobs == Some(4) && chat.settings.top_k == 0);
    }

    #[test]
    fn wrong_types_and_ranges_are_refused_by_the_name_of_the_field() {
        for (name, value) in [
            ("temperature", json!("hot")),
            ("temperature", json!(-1)),
            ("top_p", json!(0)),
            ("min_p", json!(2)),
            ("n", json!(0)),
            ("n", json!(1e9)),
            ("n", json!(2.5)),
            ("max_tokens", json!(0)),
            ("max_tokens", json!(-3)),
            ("max_completion_tokens", json!([1])),
            ("stop", json!(3)),
            ("stop", json!(["a", 1])),
            ("stop", json!("")),
            ("stop", json!(vec!["x"; 17])),
            ("seed", json!("one")),
            ("stream", json!("yes")),
            ("logprobs", json!(21)),
            ("stream_options", json!({"include_usage": true})),
            ("logit_bias", json!({"5": 100})),
            ("suffix", json!("end")),
            ("best_of", json!(4)),
            ("top_k", json!(-7)),
            ("repetition_penalty", json!(0)),
            ("min_tokens", json!(17)),
            ("echo", json!(1)),
        ] {
            let refused = wanted(json!({ name: value }), false).unwrap_err();
            assert_eq!((refused.status.as_u16(), refused.param.as_deref()), (400, Some(name)), "{refused:?}");
        }
        let top = wanted(json!({"top_logprobs": 3}), true).unwrap_err();
        assert_eq!(top.param.as_deref(), Some("top_logprobs"));
        for body in ["", "[1]", "{\"a\": ", "\u{0}", &"[".repeat(9999)] {
            assert_eq!(Fields::parse(body.as_bytes()).unwrap_err().status.as_u16(), 400);
        }
    }
}
