//! The addresses that are answered, and what is looked at before any of them is.

use super::Shared;
use super::answers::Answer;
use super::connection::Link;
use super::embeddings;
use super::engine::Engine;
use super::fields::{Fields, Wanted};
use super::forms;
use super::model::Model;
use super::prompts;
use super::refusal::Refusal;
use super::stream;
use super::texts::{Incoming, Stage};
use axum::body::{Body, HttpBody};
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_core::Stream;
use serde_json::json;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

type Answered = Result<Response, Refusal>;

const ROUTES: [&str; 7] = [
    "/v1/models",
    "/v1/models/{model}",
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/embeddings",
    "/health",
    "/metrics",
];

/// Tokens of a completion where the request does not say, as at OpenAI.
const USUAL_TOKENS: usize = 16;

/// All addresses.
pub fn router(shared: Arc<Shared>) -> Router {
    let nothing = |request: Request| async move {
        let message = format!("there is nothing at {} {}", request.method(), request.uri().path());
        Refusal::new(StatusCode::NOT_FOUND, "not_found", message)
    };
    let other_way = |request: Request| async move {
        let message = format!("{} is not how {} is asked", request.method(), request.uri().path());
        Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
    };
    Router::new()
        .route("/v1/models", get(models))
        .route("/v1/models/{model}", get(model))
        .route("/v1/completions", post(|state, request| write(state, request, false)))
        .route("/v1/chat/completions", post(|state, request| write(state, request, true)))
        .route("/v1/embeddings", post(embed))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .fallback(nothing)
        .method_not_allowed_fallback(other_way)
        .layer(from_fn_with_state(shared.clone(), around))
        .with_state(shared)
}

/// What happens to every request: its connection is busy until it is answered, and the answer is counted.
async fn around(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let occupied = request.extensions().get::<ConnectInfo<Link>>().map(|link| link.0.occupy());
    let path = request.uri().path();
    let is_model = |route: &&str| *route == "/v1/models/{model}" && path.starts_with("/v1/models/");
    let route = ROUTES.into_iter().find(|route| *route == path || is_model(route)).unwrap_or("other");
    let response = match looked_at(&shared, &request) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    };
    shared.figures.answered(route, response.status().as_u16());
    // What is whole is written at once; a stream is being answered until its body is dropped.
    match response.body().size_hint().exact() {
        Some(_) => response,
        None => response.map(|body| stream::while_occupied(body, occupied)),
    }
}

/// Refuses what nobody may ask, or not now.
fn looked_at(shared: &Shared, request: &Request) -> Result<(), Refusal> {
    let text = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
    let path = request.uri().path();
    // A page from anywhere can make a browser send requests here: to a name that it has bound to this address.
    if shared.limits.loopback_only && !is_loopback(text(header::HOST).unwrap_or("localhost")) {
        let message = "the Host of the request is not this machine: start the server with --host to be reached by other names";
        return Err(Refusal::new(StatusCode::FORBIDDEN, "host_not_allowed", message));
    }
    if let Some(key) = shared.limits.api_key.as_deref().filter(|_| path != "/health") {
        let given = text(header::AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer ")).unwrap_or("");
        if !is_same(given.trim(), key) {
            let message = "the API key is missing or wrong: send it as `Authorization: Bearer KEY`";
            return Err(Refusal::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message));
        }
    }
    match request.method() == Method::POST && *shared.stage.borrow() > Stage::Running {
        true => Err(Refusal::ending()),
        false => Ok(()),
    }
}

fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Whether two keys are the same, in a time that does not tell how far they are.
fn is_same(given: &str, key: &str) -> bool {
    let far = given.bytes().zip(key.bytes()).fold(0, |far, (a, b)| far | (a ^ b));
    given.len() == key.len() && far == 0
}

async fn models(State(shared): State<Arc<Shared>>) -> Response {
    Json(json!({ "object": "list", "data": [shared.told_of_model()] })).into_response()
}

async fn model(State(shared): State<Arc<Shared>>, request: Request) -> Answered {
    let name = request.uri().path().trim_start_matches("/v1/models/").to_string();
    shared.expect_model(Some(name))?;
    Ok(Json(shared.told_of_model()).into_response())
}

async fn health(State(shared): State<Arc<Shared>>) -> Response {
    let alive = shared.writer.as_ref().is_none_or(|(engine, _)| engine.is_alive());
    let (status, word) = match *shared.stage.borrow() {
        Stage::Running if alive => (StatusCode::OK, "ok"),
        Stage::Running => (StatusCode::SERVICE_UNAVAILABLE, "failed"),
        _ => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
    };
    (status, Json(json!({ "status": word }))).into_response()
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], shared.figures.text()).into_response()
}

/// Completions and chats.
async fn write(State(shared): State<Arc<Shared>>, request: Request, is_chat: bool) -> Answered {
    let bytes = body(&shared, request).await?;
    let Some((engine, model)) = &shared.writer else {
        let message = "this model makes vectors and writes no text: ask /v1/embeddings";
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "model_writes_no_text", message));
    };
    let task = shared.clone();
    // Tokenizers, templates and expressions take their time: others are answered meanwhile.
    let read = tokio::task::spawn_blocking(move || {
        let (_, model) = task.writer.as_ref().expect("it was there");
        read(&task, model, &bytes, is_chat)
    });
    let (prompts, wanted) = read.await.map_err(|_| Refusal::failed("reading the request failed"))??;
    let answer = Answer::new(shared.next_id(), &shared.name, model, &prompts, &wanted, is_chat)?;
    respond(&shared, engine, answer, &prompts, &wanted).await
}

/// What a request asks for.
fn read(
    shared: &Shared,
    model: &Model,
    bytes: &[u8],
    is_chat: bool,
) -> Result<(Vec<prompts::Prompt>, Wanted), Refusal> {
    let fields = Fields::parse(bytes)?;
    shared.expect_model(fields.get("model", "a string")?)?;
    let usual = if is_chat { model.facts.capacity } else { USUAL_TOKENS };
    let mut wanted = Wanted::of(&fields, is_chat, usual, shared.chance())?;
    if wanted.echo && wanted.logprobs.is_some() {
        return Err(Refusal::unsupported("echo", "is not supported beside `logprobs`"));
    }
    let found = match is_chat {
        true => vec![prompts::of_chat(&fields, model)?],
        false => prompts::of_completion(&fields, model)?,
    };
    wanted.settings.grammar = forms::grammar(&fields, model)?;
    wanted.settings.ends = model.ends.clone();
    if is_chat {
        wanted.settings.stop.extend(model.end_of_answer.clone());
    }
    let most = wanted.settings.max_new_tokens;
    let fitted = found.into_iter().map(|prompt| prompt.fit(model, most)).collect::<Result<_, _>>()?;
    Ok((fitted, wanted))
}

async fn respond(
    shared: &Arc<Shared>,
    engine: &Engine,
    mut answer: Answer,
    prompts: &[prompts::Prompt],
    wanted: &Wanted,
) -> Answered {
    let mut incoming = Incoming::begin(shared, engine, prompts, wanted).await?;
    if wanted.stream {
        return Ok(stream::of(incoming, answer));
    }
    while !answer.is_whole() {
        let (number, event) = incoming.next().await?;
        answer.take(number, event);
    }
    Ok(Json(answer.whole()).into_response())
}

async fn embed(State(shared): State<Arc<Shared>>, request: Request) -> Answered {
    let bytes = body(&shared, request).await?;
    let fields = Fields::parse(&bytes)?;
    shared.expect_model(fields.get("model", "a string")?)?;
    let (texts, encoding) = embeddings::wanted(&fields)?;
    let Some(vectors) = &shared.vectors else {
        let message = "this model writes text; vectors are made by encoders such as BERT's: start the server with one of them";
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "model_makes_no_vectors", message));
    };
    let place = shared.places.clone().try_acquire_owned().map_err(|_| {
        let message = "as many requests are waiting as the server lets wait: try again in a while";
        Refusal::new(StatusCode::TOO_MANY_REQUESTS, "queue_full", message)
    })?;
    let made = tokio::time::timeout(shared.limits.request, vectors.of(texts, place)).await;
    let (vectors, tokens) = made.map_err(|_| {
        Refusal::new(StatusCode::GATEWAY_TIMEOUT, "timeout", "the request took longer than one may take")
    })??;
    Ok(Json(embeddings::body(&shared.name, &vectors, tokens, encoding)).into_response())
}

/// The bytes of a request's body, no more than there may be.
async fn body(shared: &Shared, request: Request) -> Result<Vec<u8>, Refusal> {
    // Without this a page from anywhere could make a browser send what is no JSON by its own word.
    if !is_json(request.headers()) {
        let message = "the body is no JSON by its Content-Type, expected application/json";
        return Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "content_type", message));
    }
    let patience = shared.limits.body_time;
    let read = tokio::time::timeout(patience, bytes(request.into_body(), shared.limits.body_bytes)).await;
    read.unwrap_or_else(|_| {
        let message = format!("the body took longer than {} s", patience.as_secs_f64());
        Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", message))
    })
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    kind == "application/json" || (kind.starts_with("application/") && kind.ends_with("+json"))
}

async fn bytes(body: Body, most: usize) -> Result<Vec<u8>, Refusal> {
    let too_large = || {
        let message = format!("the body has more than the {most} bytes that one may have");
        Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
    };
    let said = body.size_hint().lower();
    let mut stream = pin!(body.into_data_stream());
    let mut all = vec![];
    let mut count = 0u64;
    // A client that is still sending hears nothing: some of what is too much is read and thrown away.
    let patience = Duration::from_secs(1);
    let mut end = None;
    loop {
        if count.max(said) > most as u64 && end.is_none() {
            all = vec![];
            end = Some(tokio::time::Instant::now() + patience);
        }
        let next = poll_fn(|context| stream.as_mut().poll_next(context));
        let part = match end {
            None => next.await,
            Some(end) => match tokio::time::timeout_at(end, next).await {
                Ok(part) => part,
                Err(_) => return Err(too_large()),
            },
        };
        match part {
            None if end.is_some() => return Err(too_large()),
            None => return Ok(all),
            Some(Err(error)) => return Err(Refusal::bad(format!("the body was cut off: {error}"))),
            Some(Ok(part)) => {
                count += part.len() as u64;
                if end.is_none() {
                    all.extend_from_slice(&part);
                }
            }
        }
    }
}
