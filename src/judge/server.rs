//! The page and its requests over HTTP, for this machine alone.
//!
//! It is bound to the loopback address and answers only requests that are made to that address by name, so that no other page in the
//! rater's browser reaches it through a name of its own. Whatever changes something must be JSON, which other pages may not send.

use super::requests::{Request, answer};
use super::sessions::Sessions;
use super::{Error, Result, Store};
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::json;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const PAGE: &str = include_str!("../../assets/judge/index.html");
const SCRIPT: &str = include_str!("../../assets/judge/judge.js");
const STYLE: &str = include_str!("../../assets/judge/judge.css");

/// Nothing but the page's own script, style and requests; no picture, no frame, no form.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// How long what is being written to the file is waited for at the end.
const LAST_WRITE: Duration = Duration::from_secs(5);

struct Shared {
    both: Mutex<(Store, Sessions)>,
}

/// How serving ended.
pub struct Served {
    /// Judgements that stand in the file.
    pub judgements: usize,
}

/// Serves the page on a port of this machine (0 takes a free one) until Ctrl-C; `ready` is told its address.
pub fn serve(store: Store, port: u16, ready: impl FnOnce(SocketAddr)) -> Result<Served> {
    let refuse = |source| Error::Port { port, source };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().map_err(refuse)?;
    let shared = Arc::new(Shared { both: Mutex::new((store, Sessions::default())) });
    let routes = routes(shared.clone());
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.map_err(refuse)?;
        ready(listener.local_addr().map_err(refuse)?);
        tokio::spawn(async move { axum::serve(listener, routes).await });
        tokio::signal::ctrl_c().await.map_err(refuse)
    })?;
    runtime.shutdown_timeout(LAST_WRITE);
    let both = shared.both.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    Ok(Served { judgements: both.0.judgements()?.len() })
}

fn routes(shared: Arc<Shared>) -> Router {
    let file = |kind: &'static str, text: &'static str| {
        get(move || async move { ([(header::CONTENT_TYPE, kind)], text) })
    };
    Router::new()
        .route("/", file("text/html; charset=utf-8", PAGE))
        .route("/judge.js", file("text/javascript; charset=utf-8", SCRIPT))
        .route("/judge.css", file("text/css; charset=utf-8", STYLE))
        .route("/favicon.ico", get(|| async { StatusCode::NO_CONTENT }))
        .route("/api", post(requested))
        .layer(middleware::from_fn(guarded))
        .with_state(shared)
}

/// Refuses what was sent to another name, and sends the policy with every reply.
async fn guarded(request: axum::extract::Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("");
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let mut response = match name {
        "127.0.0.1" | "localhost" => next.run(request).await,
        _ => (StatusCode::FORBIDDEN, "this page is for the machine it runs on: use http://127.0.0.1\n")
            .into_response(),
    };
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        response.headers_mut().insert(name, header::HeaderValue::from_static(value));
    }
    response
}

async fn requested(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Response {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or("");
    if !kind.starts_with("application/json") {
        let error = Error::Request("expected JSON, with the content type application/json".into());
        return refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, &error);
    }
    // SQLite waits for the disk, which would hold up whoever else this thread serves.
    let answered = tokio::task::spawn_blocking(move || {
        let request: Request = serde_json::from_slice(&body)
            .map_err(|error| Error::Request(format!("no such request: {error}")))?;
        let mut both = shared.both.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let (store, sessions) = &mut *both;
        answer(store, sessions, request)
    })
    .await;
    match answered {
        Ok(Ok(reply)) => axum::Json(reply).into_response(),
        Ok(Err(error)) => refused(status_of(&error), &error),
        Err(error) => refused(StatusCode::INTERNAL_SERVER_ERROR, &Error::Request(error.to_string())),
    }
}

fn status_of(error: &Error) -> StatusCode {
    match error {
        Error::Name | Error::Comment { .. } | Error::Request(_) => StatusCode::BAD_REQUEST,
        Error::Ended => StatusCode::UNAUTHORIZED,
        Error::Active { .. } | Error::NotNext | Error::NothingToUndo => StatusCode::CONFLICT,
        Error::Busy { .. } => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// An error as the page reads it: `kind` says what it can offer.
fn refused(status: StatusCode, error: &Error) -> Response {
    let kind = match error {
        Error::Active { .. } => "active",
        Error::Ended => "ended",
        Error::NotNext => "not_next",
        _ => "other",
    };
    (status, axum::Json(json!({ "kind": kind, "error": error.to_string() }))).into_response()
}
