//! Vectors of texts and of lists of tokens: a thread that owns the encoder, and answers in OpenAI's shape.

use super::fields::{Fields, kind_of};
use super::prompts::Truncate;
use super::refusal::Refusal;
use crate::embed::{self, Embedder, Input};
use axum::http::StatusCode;
use serde_json::{Value as Json, json};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

/// Texts of one request at most, as at OpenAI.
const MOST_TEXTS: usize = 2048;

/// Vectors, and how many tokens were read for them.
pub type Made = Result<(Vec<Vec<f32>>, usize), Refusal>;

struct Job {
    texts: Vec<Input>,
    reply: oneshot::Sender<Made>,
    _place: OwnedSemaphorePermit,
}

/// A handle on the thread.
pub struct Vectors {
    jobs: mpsc::UnboundedSender<Job>,
}

impl Vectors {
    /// Opens the encoder on a thread of its own, and waits until it is there.
    pub fn start<E: Send + 'static>(
        truncate: Truncate,
        open: impl FnOnce() -> Result<Embedder, E> + Send + 'static,
    ) -> Result<Vectors, E> {
        let (jobs, mut given) = mpsc::unbounded_channel::<Job>();
        let (tell, opened) = std::sync::mpsc::channel();
        let run = move || {
            let mut embedder = match open() {
                Ok(embedder) => embedder,
                Err(error) => return drop(tell.send(Err(error))),
            };
            drop(tell.send(Ok(())));
            while let Some(job) = given.blocking_recv() {
                if !job.reply.is_closed() {
                    let made = make(&mut embedder, &job.texts, truncate);
                    drop(job.reply.send(made));
                }
            }
        };
        let thread =
            std::thread::Builder::new().name("vectors".into()).spawn(run).expect("a thread can be had");
        match opened.recv() {
            Ok(opened) => opened.map(|()| Vectors { jobs }),
            Err(_) => match thread.join() {
                Err(panic) => std::panic::resume_unwind(panic),
                Ok(()) => unreachable!("the thread tells before it ends"),
            },
        }
    }

    /// Vectors of texts.
    pub async fn of(&self, texts: Vec<Input>, place: OwnedSemaphorePermit) -> Made {
        let (reply, made) = oneshot::channel();
        let ended = || {
            let message = "the model has ended: the server must be started anew";
            Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "model_ended", message)
        };
        self.jobs.send(Job { texts, reply, _place: place }).map_err(|_| ended())?;
        made.await.unwrap_or_else(|_| Err(ended()))
    }
}

fn make(embedder: &mut Embedder, texts: &[Input], truncate: Truncate) -> Made {
    let most = embedder.most_tokens();
    let mut tokens = 0;
    for (number, text) in texts.iter().enumerate() {
        let count = embedder.count(text).map_err(refusal)?;
        if count > most && truncate == Truncate::Refuse {
            let message = format!(
                "text {number} has {count} tokens, and the model reads {most}: shorten it, or start the server with --truncate left"
            );
            let refusal = Refusal::new(StatusCode::BAD_REQUEST, "context_length_exceeded", message);
            return Err(Refusal { param: Some("input".into()), ..refusal });
        }
        tokens += count.min(most);
    }
    Ok((embedder.embed_inputs(texts).map_err(refusal)?, tokens))
}

fn refusal(error: embed::Error) -> Refusal {
    match error {
        embed::Error::Data(error) => Refusal { param: Some("input".into()), ..error.into() },
        other => Refusal::failed(other.to_string()),
    }
}

/// How vectors are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// As lists of numbers.
    Float,
    /// As little-endian floats of 32 bits, in base64.
    Base64,
}

/// The texts of a request, and how their vectors are wanted.
pub fn wanted(fields: &Fields) -> Result<(Vec<Input>, Encoding), Refusal> {
    fields.refuse(&["dimensions"])?;
    const EXPECTED: &str = "a string, a list of strings, a list of token ids, or a list of such lists";
    let texts = match fields.raw("input") {
        None => return Err(Refusal::field("input", "is missing")),
        Some(Json::String(text)) => vec![Input::Text(text.clone())],
        Some(Json::Array(list)) => match list.first() {
            None => return Err(Refusal::field("input", "is an empty list")),
            Some(Json::Number(_)) => vec![ids(list)?],
            Some(_) if list.len() > MOST_TEXTS => {
                let message = format!("has {} texts, expected at most {MOST_TEXTS}", list.len());
                return Err(Refusal::field("input", message));
            }
            Some(_) => list.iter().map(input).collect::<Result<_, _>>()?,
        },
        Some(other) => {
            return Err(Refusal::field("input", format!("is {}, expected {EXPECTED}", kind_of(other))));
        }
    };
    let encoding = match fields.get::<String>("encoding_format", "float or base64")?.as_deref() {
        None | Some("float") => Encoding::Float,
        Some("base64") => Encoding::Base64,
        Some(other) => {
            return Err(Refusal::field("encoding_format", format!("is {other:?}, expected float or base64")));
        }
    };
    Ok((texts, encoding))
}

/// One of several texts.
fn input(value: &Json) -> Result<Input, Refusal> {
    match value {
        Json::String(text) => Ok(Input::Text(text.clone())),
        Json::Array(list) => ids(list),
        other => {
            let message =
                format!("has {} in its list, expected strings or lists of token ids", kind_of(other));
            Err(Refusal::field("input", message))
        }
    }
}

fn ids(list: &[Json]) -> Result<Input, Refusal> {
    if list.is_empty() {
        return Err(Refusal::field("input", "has an empty list of token ids"));
    }
    let id = |value: &Json| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let ids = list.iter().map(|value| {
        let message =
            || format!("has {} among its token ids, expected whole numbers from 0 on", kind_of(value));
        id(value).ok_or_else(|| Refusal::field("input", message()))
    });
    Ok(Input::Ids(ids.collect::<Result<_, _>>()?))
}

/// The answer's body.
pub fn body(name: &str, vectors: &[Vec<f32>], tokens: usize, encoding: Encoding) -> Json {
    let one = |(index, vector): (usize, &Vec<f32>)| {
        let vector = match encoding {
            Encoding::Float => json!(vector),
            Encoding::Base64 => {
                json!(base64(&vector.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>()))
            }
        };
        json!({ "object": "embedding", "index": index, "embedding": vector })
    };
    let data: Vec<Json> = vectors.iter().enumerate().map(one).collect();
    let usage = json!({ "prompt_tokens": tokens, "total_tokens": tokens });
    json!({ "object": "list", "data": data, "model": name, "usage": usage })
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let byte = |at: usize| u32::from(three.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for place in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * place) & 63) as usize];
            text.push(if place <= three.len() { char::from(letter) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_in_base64_are_what_the_standard_says() {
        for (bytes, text) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        let body = body("m", &[vec![1.0, -2.0]], 3, Encoding::Base64);
        assert_eq!(body["data"][0]["embedding"], "AACAPwAAAMA=");
    }

    #[test]
    fn texts_are_strings_or_tokens_and_other_input_is_refused_by_name() {
        let of = |body: Json| wanted(&Fields::parse(body.to_string().as_bytes()).unwrap());
        assert_eq!(
            of(json!({"input": ["a", "b"]})).unwrap(),
            (vec![Input::Text("a".into()), Input::Text("b".into())], Encoding::Float)
        );
        let ids = |ids: &[u32]| Input::Ids(ids.to_vec());
        assert_eq!(of(json!({"input": [1, 2]})).unwrap().0, [ids(&[1, 2])]);
        assert_eq!(of(json!({"input": [[1, 2], "a"]})).unwrap().0, [ids(&[1, 2]), Input::Text("a".into())]);
        for (name, body) in [
            ("input", json!({})),
            ("input", json!({"input": 3})),
            ("input", json!({"input": [[1, -2]]})),
            ("input", json!({"input": [1, "a"]})),
            ("input", json!({"input": ["a", 1]})),
            ("input", json!({"input": [[1], []]})),
            ("input", json!({"input": []})),
            ("encoding_format", json!({"input": "a", "encoding_format": "int8"})),
            ("dimensions", json!({"input": "a", "dimensions": 8})),
        ] {
            assert_eq!(of(body).unwrap_err().param.as_deref(), Some(name));
        }
    }
}
