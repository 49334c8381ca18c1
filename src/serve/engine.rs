//! The thread that owns the session: takes texts on between steps, and hands out what each step brings.
//!
//! A text is written for somebody who reads what comes of it through a channel of limited length. Who has gone away, or does not
//! read, has his text given up, and its row is free for another.

use super::figures::Figures;
use crate::generate::{self, Event, Request, Session, Ticket};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::{self, error::TrySendError};

/// What comes of a job.
#[derive(Debug)]
pub enum Said {
    /// All of its texts will be written.
    Admitted,
    /// None will be.
    Refused(generate::Error),
    /// A token of the text of that number.
    Event(usize, Event),
    /// The model failed; nothing more comes.
    Failed(String),
}

/// Events of a text that wait for its reader at most; behind that it is given up.
pub const MOST_UNREAD: usize = 512;

/// Texts for one reader.
pub struct Job {
    /// The texts.
    pub texts: Vec<Request>,
    /// Where what comes of them goes.
    pub reader: mpsc::Sender<Said>,
    /// A place for each text among those that are written or wait.
    pub places: OwnedSemaphorePermit,
    /// When the request came.
    pub since: Instant,
}

enum Order {
    Write(Box<Job>),
    End,
}

/// What is known of the model once it is there.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Texts that are written side by side.
    pub rows: usize,
    /// Tokens for which each has room.
    pub capacity: usize,
    /// It is an encoder-decoder: prompts are what its encoder reads.
    pub pair: bool,
    /// Bytes of device memory held.
    pub memory_bytes: u64,
}

/// A handle on the thread.
pub struct Engine {
    orders: mpsc::UnboundedSender<Order>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Engine {
    /// Opens a session on a thread of its own, and waits until it is there.
    pub fn start<E: Send + 'static>(
        figures: Arc<Figures>,
        open: impl FnOnce() -> Result<Session, E> + Send + 'static,
    ) -> Result<(Engine, Facts), E> {
        let (orders, given) = mpsc::unbounded_channel();
        let (tell, opened) = std::sync::mpsc::channel();
        let run = move || {
            let mut session = match open() {
                Ok(session) => session,
                Err(error) => return drop(tell.send(Err(error))),
            };
            let rows = session.rows();
            let facts = Facts {
                rows: rows.count(),
                capacity: rows.capacity(),
                pair: rows.start().is_some(),
                memory_bytes: rows.memory_bytes(),
            };
            drop(tell.send(Ok(facts)));
            Desk { session, figures, texts: BTreeMap::new(), reused: 0 }.run(given);
        };
        let thread =
            std::thread::Builder::new().name("engine".into()).spawn(run).expect("a thread can be had");
        match opened.recv() {
            Ok(facts) => Ok((Engine { orders, thread: Mutex::new(Some(thread)) }, facts?)),
            Err(_) => match thread.join() {
                Err(panic) => std::panic::resume_unwind(panic),
                Ok(()) => unreachable!("the thread tells before it ends"),
            },
        }
    }

    /// Hands texts over. False where the thread is no more.
    pub fn write(&self, job: Job) -> bool {
        self.orders.send(Order::Write(Box::new(job))).is_ok()
    }

    /// True while texts are taken on.
    pub fn is_alive(&self) -> bool {
        !self.orders.is_closed()
    }

    /// Ends the thread, whatever it is at.
    pub fn end(&self) {
        let _ = self.orders.send(Order::End);
        let thread = self.thread.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        thread.map(JoinHandle::join);
    }
}

/// Somebody who waits for a text.
struct Reader {
    /// Its number among the texts of its job.
    number: usize,
    sender: mpsc::Sender<Said>,
    since: Instant,
    last: Option<Instant>,
    _place: Option<OwnedSemaphorePermit>,
}

struct Desk {
    session: Session,
    figures: Arc<Figures>,
    texts: BTreeMap<Ticket, Reader>,
    /// Tokens that the session had not to read again, as far as they are counted.
    reused: u64,
}

impl Desk {
    fn run(mut self, mut orders: mpsc::UnboundedReceiver<Order>) {
        loop {
            // With nothing to write the thread sleeps.
            let mut next =
                if self.session.is_idle() { orders.blocking_recv() } else { orders.try_recv().ok() };
            if next.is_none() && self.session.is_idle() {
                return;
            }
            while let Some(order) = next {
                match order {
                    Order::Write(job) => self.admit(*job),
                    Order::End => return,
                }
                next = orders.try_recv().ok();
            }
            self.give_up_unwanted();
            match self.session.step() {
                Ok(events) => self.hand_out(events),
                Err(error) => self.fail(&error),
            }
            self.tell_load();
        }
    }

    fn admit(&mut self, job: Job) {
        let Job { texts, reader, mut places, since } = job;
        if reader.is_closed() {
            self.figures.cancelled.fetch_add(texts.len() as u64, Relaxed);
            return;
        }
        let mut tickets = vec![];
        let mut tokens = 0;
        for text in texts {
            tokens += text.prompt.len() as u64;
            match self.prepared(text).and_then(|text| self.session.admit(text)) {
                Ok(ticket) => tickets.push(ticket),
                Err(error) => {
                    for ticket in tickets {
                        self.session.cancel(ticket);
                    }
                    drop(reader.try_send(Said::Refused(error)));
                    return;
                }
            }
        }
        self.figures.prompt_tokens.fetch_add(tokens, Relaxed);
        drop(reader.try_send(Said::Admitted));
        for (number, ticket) in tickets.into_iter().enumerate() {
            let (sender, _place) = (reader.clone(), places.split(1));
            self.texts.insert(ticket, Reader { number, sender, since, last: None, _place });
        }
        self.tell_load();
    }

    /// Of an encoder-decoder the prompt is its source, and the text begins with its start.
    fn prepared(&mut self, mut text: Request) -> generate::Result<Request> {
        let rows = self.session.rows();
        if let Some(start) = rows.start() {
            let prompt = std::mem::replace(&mut text.prompt, vec![start]);
            text.source = Some(rows.source_of(&prompt)?);
        }
        Ok(text)
    }

    /// Gives up texts that nobody waits for.
    fn give_up_unwanted(&mut self) {
        let gone: Vec<Ticket> = self
            .texts
            .iter()
            .filter(|(_, reader)| reader.sender.is_closed())
            .map(|(ticket, _)| *ticket)
            .collect();
        for ticket in gone {
            self.session.cancel(ticket);
            self.texts.remove(&ticket);
            self.figures.cancelled.fetch_add(1, Relaxed);
        }
    }

    fn hand_out(&mut self, events: Vec<Event>) {
        let now = Instant::now();
        self.figures.steps.fetch_add(u64::from(!events.is_empty()), Relaxed);
        self.figures.generated_tokens.fetch_add(events.len() as u64, Relaxed);
        for event in events {
            let ticket = event.ticket;
            let Some(reader) = self.texts.get_mut(&ticket) else { continue };
            match reader.last.replace(now) {
                Some(last) => self.figures.next_token.take(now - last),
                None => self.figures.first_token.take(now - reader.since),
            }
            let ended = event.finish.is_some();
            let sent = reader.sender.try_send(Said::Event(reader.number, event));
            let figure = match sent {
                Ok(()) => None,
                Err(TrySendError::Full(_)) => Some(&self.figures.slow_clients),
                Err(TrySendError::Closed(_)) => Some(&self.figures.cancelled),
            };
            if let Some(figure) = figure {
                figure.fetch_add(1, Relaxed);
                self.session.cancel(ticket);
            }
            if ended || figure.is_some() {
                self.texts.remove(&ticket);
            }
        }
    }

    /// A model that fails once has lost nothing but the texts at hand.
    fn fail(&mut self, error: &generate::Error) {
        self.figures.failures.fetch_add(1, Relaxed);
        eprintln!("the model failed, {} texts are given up: {error}", self.texts.len());
        for (ticket, reader) in std::mem::take(&mut self.texts) {
            drop(reader.sender.try_send(Said::Failed(error.to_string())));
            self.session.cancel(ticket);
        }
    }

    fn tell_load(&mut self) {
        let [active, waiting] = self.session.load();
        self.figures.active.store(active as u64, Relaxed);
        self.figures.waiting.store(waiting as u64, Relaxed);
        let reused = self.session.reused() as u64;
        self.figures.reused_tokens.fetch_add(reused - self.reused, Relaxed);
        self.reused = reused;
    }
}
