//! Answers that are sent as they come: server-sent events, each a piece of JSON, and `[DONE]` at their end.

use super::answers::Answer;
use super::connection::Occupied;
use super::texts::Incoming;
use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_core::Stream;
use serde_json::Value as Json;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::mpsc;

/// Parts that wait to be sent at most; what comes behind them waits in the engine's channel.
const MOST_UNSENT: usize = 16;
/// While nothing comes a comment is sent so often: what stands between may close a connection that is silent.
const SILENCE: Duration = Duration::from_secs(15);

/// Sends an answer as it comes.
pub fn of(incoming: Incoming, answer: Answer) -> Response {
    let (sender, parts) = mpsc::channel(MOST_UNSENT);
    tokio::spawn(async move {
        // A client that has gone away ends it, and so does one that reads, but hardly.
        let _ = tokio::time::timeout_at(incoming.end(), send(incoming, answer, sender)).await;
    });
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
    (headers, Body::from_stream(Parts(parts))).into_response()
}

async fn send(
    mut incoming: Incoming,
    mut answer: Answer,
    sender: mpsc::Sender<Bytes>,
) -> Result<(), mpsc::error::SendError<Bytes>> {
    for part in answer.opening() {
        sender.send(event(&part)).await?;
    }
    while !answer.is_whole() {
        let next = tokio::select! {
            biased;
            () = sender.closed() => return Ok(()),
            next = tokio::time::timeout(SILENCE, incoming.next()) => next,
        };
        match next {
            Err(_) => sender.send(Bytes::from_static(b": still writing\n\n")).await?,
            Ok(Ok((number, token))) => {
                if let Some(part) = answer.take(number, token) {
                    sender.send(event(&part)).await?;
                }
            }
            Ok(Err(refusal)) => return sender.send(event(&refusal.body())).await,
        }
    }
    if let Some(part) = answer.closing() {
        sender.send(event(&part)).await?;
    }
    sender.send(Bytes::from_static(b"data: [DONE]\n\n")).await
}

fn event(part: &Json) -> Bytes {
    Bytes::from(format!("data: {part}\n\n"))
}

/// Parts as a body.
struct Parts(mpsc::Receiver<Bytes>);

impl Stream for Parts {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context).map(|part| part.map(Ok))
    }
}

/// A body that occupies its connection until it has been sent, or given up.
pub fn while_occupied(body: Body, occupied: Option<Occupied>) -> Body {
    Body::from_stream(Occupying { parts: body.into_data_stream(), _occupied: occupied })
}

struct Occupying {
    parts: axum::body::BodyDataStream,
    _occupied: Option<Occupied>,
}

impl Stream for Occupying {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context) -> Poll<Option<Self::Item>> {
        Pin::new(&mut self.parts).poll_next(context)
    }
}
