//! A model that answers over HTTP as OpenAI's API does.
//!
//! One thread owns the [`Session`](crate::generate::Session): requests come to it through a channel, join what it writes between two
//! steps, and leave when they have ended or nobody reads them any more. Everything else is asynchronous, and waits for it.
//!
//! ```text
//! connection -> routes -> fields, prompts, forms -> texts -> engine: session.step()
//!                                  answers, stream <- texts <-
//! ```

mod answers;
mod connection;
mod embeddings;
mod engine;
mod fields;
mod figures;
mod forms;
mod model;
mod prompts;
mod refusal;
mod routes;
mod stream;
#[cfg(test)]
mod tests;
mod texts;

pub use connection::Patience;
pub use embeddings::Vectors;
pub use engine::{Engine, Facts};
pub use figures::Figures;
pub use model::Model;
pub use prompts::Truncate;

use axum::http::StatusCode;
use connection::{Link, Listening};
use refusal::Refusal;
use serde_json::{Value as Json, json};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use texts::Stage;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

/// What is let in, and how long it may take.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Texts that are written or wait.
    pub places: usize,
    /// Connections at once.
    pub connections: usize,
    /// Bytes of a body.
    pub body_bytes: usize,
    /// Time for a body to come.
    pub body_time: Duration,
    /// Time for an answer, waiting included.
    pub request: Duration,
    /// Time for answers to be finished once the server is to end.
    pub drain: Duration,
    /// What clients have for the rest.
    pub patience: Patience,
    /// The key that requests must bring.
    pub api_key: Option<String>,
    /// Only requests to a name of this machine itself are answered.
    pub loopback_only: bool,
}

impl Default for Limits {
    fn default() -> Limits {
        let patience = Patience {
            head: Duration::from_secs(10),
            idle: Duration::from_secs(75),
            write: Duration::from_secs(30),
        };
        Limits {
            places: 136,
            connections: 1024,
            body_bytes: 4 << 20,
            body_time: Duration::from_secs(30),
            request: Duration::from_secs(600),
            drain: Duration::from_secs(30),
            patience,
            api_key: None,
            loopback_only: true,
        }
    }
}

/// What answers.
pub enum Served {
    /// A model that writes.
    Writer(Engine, Box<Model>),
    /// A model that makes vectors.
    Vectors(Vectors),
}

/// What all handlers share.
pub struct Shared {
    name: String,
    created: u64,
    writer: Option<(Engine, Box<Model>)>,
    vectors: Option<Vectors>,
    figures: Arc<Figures>,
    places: Arc<Semaphore>,
    limits: Limits,
    stage: watch::Receiver<Stage>,
    ids: AtomicU64,
}

impl Shared {
    fn next_id(&self) -> u64 {
        self.ids.fetch_add(1, Relaxed)
    }

    /// A seed for a request that brings none.
    fn chance(&self) -> u64 {
        let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64);
        nanos ^ self.next_id().rotate_left(48)
    }

    fn told_of_model(&self) -> Json {
        let mut told =
            json!({ "id": self.name, "object": "model", "created": self.created, "owned_by": "kiln" });
        if let Some((_, model)) = &self.writer {
            told["max_model_len"] = json!(model.facts.capacity);
        }
        told
    }

    /// Refuses another model than the one that is there.
    fn expect_model(&self, wanted: Option<String>) -> Result<(), Refusal> {
        match wanted.filter(|wanted| *wanted != self.name) {
            None => Ok(()),
            Some(wanted) => {
                let message = format!("there is no model {wanted:?} here, only {:?}", self.name);
                let refusal = Refusal::new(StatusCode::NOT_FOUND, "model_not_found", message);
                Err(Refusal { param: Some("model".into()), ..refusal })
            }
        }
    }
}

/// A server with its socket, ready to run.
pub struct Server {
    shared: Arc<Shared>,
    socket: std::net::TcpListener,
    stage: watch::Sender<Stage>,
}

impl Server {
    /// A server on a socket that listens.
    pub fn on(
        socket: std::net::TcpListener,
        name: String,
        served: Served,
        figures: Arc<Figures>,
        limits: Limits,
    ) -> io::Result<Server> {
        socket.set_nonblocking(true)?;
        let (sender, stage) = watch::channel(Stage::Running);
        let (writer, vectors) = match served {
            Served::Writer(engine, model) => (Some((engine, model)), None),
            Served::Vectors(vectors) => (None, Some(vectors)),
        };
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let places = Arc::new(Semaphore::new(limits.places));
        let ids = AtomicU64::new(0);
        let shared = Shared { name, created, writer, vectors, figures, places, limits, stage, ids };
        Ok(Server { shared: Arc::new(shared), socket, stage: sender })
    }

    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Answers until `until` ends; then what is being written is finished, as far as there is time, and nothing new taken on.
    pub fn run(self, until: impl Future<Output = ()> + Send + 'static) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let shared = self.shared.clone();
        let result = runtime.block_on(self.answer(until));
        // Handlers that still wait for something are let go.
        runtime.shutdown_timeout(Duration::from_secs(1));
        if let Some((engine, _)) = &shared.writer {
            engine.end();
        }
        result
    }

    async fn answer(self, until: impl Future<Output = ()> + Send + 'static) -> io::Result<()> {
        let Server { shared, socket, stage } = self;
        let limits = &shared.limits;
        let socket = TcpListener::from_std(socket)?;
        let listening = Listening::new(socket, limits.connections, limits.patience, &shared);
        let service = routes::router(shared.clone()).into_make_service_with_connect_info::<Link>();
        let stage = Arc::new(stage);
        let begun = stage.clone();
        let draining = async move {
            until.await;
            begun.send_replace(Stage::Draining);
        };
        let mut stages = shared.stage.clone();
        let drain = limits.drain;
        let too_long = async move {
            let _ = stages.wait_for(|stage| *stage > Stage::Running).await;
            tokio::time::sleep(drain).await;
            stage.send_replace(Stage::Over);
            // Time to say so.
            tokio::time::sleep(Duration::from_secs(1)).await;
        };
        let serve = axum::serve(listening, service).with_graceful_shutdown(draining);
        tokio::select! {
            result = async { serve.await } => result,
            () = too_long => Ok(()),
        }
    }
}
