//! The side of a request on which its texts come in: admission, waiting, and why nothing more comes.

use super::Shared;
use super::engine::{Engine, Job, MOST_UNREAD, Said};
use super::fields::Wanted;
use super::prompts::Prompt;
use super::refusal::Refusal;
use crate::generate::{Event, Request};
use axum::http::StatusCode;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::{mpsc, watch};

/// How far the server's end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// It runs.
    Running,
    /// It takes nothing on, and finishes what it has.
    Draining,
    /// What is not finished will not be.
    Over,
}

/// Texts that are being written for one request.
pub struct Incoming {
    reader: mpsc::Receiver<Said>,
    stage: watch::Receiver<Stage>,
    deadline: tokio::time::Instant,
    shared: Arc<Shared>,
}

impl Incoming {
    /// Hands the texts to the engine, and waits until it has taken them on.
    pub async fn begin(
        shared: &Arc<Shared>,
        engine: &Engine,
        prompts: &[Prompt],
        wanted: &Wanted,
    ) -> Result<Incoming, Refusal> {
        let count = prompts.len() * wanted.texts;
        let places = u32::try_from(count).ok().filter(|_| count <= shared.limits.places);
        let Some(places) = places else {
            let most = shared.limits.places;
            return Err(Refusal::bad(format!(
                "the request is for {count} texts, and the server holds {most} at most"
            )));
        };
        let since = Instant::now();
        let places = shared.places.clone().try_acquire_many_owned(places).map_err(|_| {
            let message = "as many texts are waiting as the server lets wait: try again in a while";
            Refusal::new(StatusCode::TOO_MANY_REQUESTS, "queue_full", message)
        })?;
        let one = |prompt: &Prompt, stream: usize| Request {
            stream: stream as u32,
            logprobs: wanted.logprobs,
            ..Request::new(prompt.tokens.clone(), wanted.settings.clone())
        };
        let texts =
            prompts.iter().flat_map(|prompt| (0..wanted.texts).map(move |stream| one(prompt, stream)));
        let (sender, reader) = mpsc::channel(MOST_UNREAD * count);
        if !engine.write(Job { texts: texts.collect(), reader: sender, places, since }) {
            return Err(shared.why_nothing_comes());
        }
        let deadline = (since + shared.limits.request).into();
        let stage = shared.stage.clone();
        let mut incoming = Incoming { reader, stage, deadline, shared: shared.clone() };
        match incoming.next_said().await? {
            Said::Admitted => Ok(incoming),
            Said::Refused(error) => Err(error.into()),
            Said::Failed(message) => Err(Refusal::failed(message)),
            Said::Event(..) => Err(Refusal::failed("the engine wrote before it admitted")),
        }
    }

    /// When it is too late also for what has come and is not sent yet.
    pub fn end(&self) -> tokio::time::Instant {
        self.deadline + self.shared.limits.patience.write
    }

    /// The next token of one of the texts.
    pub async fn next(&mut self) -> Result<(usize, Event), Refusal> {
        match self.next_said().await? {
            Said::Event(number, event) => Ok((number, event)),
            Said::Failed(message) => Err(Refusal::failed(message)),
            Said::Refused(error) => Err(error.into()),
            Said::Admitted => Err(Refusal::failed("the engine admitted twice")),
        }
    }

    async fn next_said(&mut self) -> Result<Said, Refusal> {
        tokio::select! {
            biased;
            said = self.reader.recv() => said.ok_or_else(|| self.shared.why_nothing_comes()),
            _ = self.stage.wait_for(|stage| *stage == Stage::Over) => Err(Refusal::ending()),
            () = tokio::time::sleep_until(self.deadline) => {
                let seconds = self.shared.limits.request.as_secs_f64();
                let message = format!("the request took longer than the {seconds} s that one may take");
                Err(Refusal::new(StatusCode::GATEWAY_TIMEOUT, "timeout", message))
            }
        }
    }
}

impl Shared {
    /// What is said where the engine has let go of a text that it did not finish.
    fn why_nothing_comes(&self) -> Refusal {
        let is_alive = self.writer.as_ref().is_some_and(|(engine, _)| engine.is_alive());
        match is_alive {
            _ if *self.stage.borrow() > Stage::Running => Refusal::ending(),
            true => {
                let message = "the text was given up: its client did not read what was written";
                Refusal::new(StatusCode::GATEWAY_TIMEOUT, "slow_client", message)
            }
            false => {
                let message = "the model has ended: the server must be started anew";
                Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "model_ended", message)
            }
        }
    }
}
