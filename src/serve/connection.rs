//! Connections that are not held open by clients that send or read nothing.
//!
//! Limits of time: for the head of a request from its first byte on, for the rest between two requests, and for a client that takes
//! nothing of its answer. While a request is being answered its connection may be silent. Their number is limited too: those
//! beyond it wait to be accepted.

use super::Shared;
use super::figures::Figures;
use super::refusal::Refusal;
use axum::extract::connect_info::Connected;
use axum::http::StatusCode;
use axum::serve::{IncomingStream, Listener};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};

/// Times that a client has.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For the head of a request.
    pub head: Duration,
    /// Between two requests of a connection.
    pub idle: Duration,
    /// Without taking anything of its answer.
    pub write: Duration,
}

/// What a connection is at.
#[derive(Debug)]
struct State {
    /// Requests that are being answered.
    busy: AtomicUsize,
    idle_since: Mutex<Instant>,
}

/// What handlers know of their connection.
#[derive(Clone, Debug)]
pub struct Link(Arc<State>);

impl Link {
    fn new() -> Link {
        Link(Arc::new(State { busy: AtomicUsize::new(0), idle_since: Mutex::new(Instant::now()) }))
    }

    /// A request is answered until what this gives is dropped.
    pub fn occupy(&self) -> Occupied {
        self.0.busy.fetch_add(1, Relaxed);
        Occupied(self.clone())
    }

    fn idle_since(&self) -> Option<Instant> {
        let since = self.0.idle_since.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        (self.0.busy.load(Relaxed) == 0).then_some(*since)
    }
}

/// A request that is being answered.
#[derive(Debug)]
pub struct Occupied(Link);

impl Drop for Occupied {
    fn drop(&mut self) {
        let state = &self.0.0;
        *state.idle_since.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Instant::now();
        state.busy.fetch_sub(1, Relaxed);
    }
}

impl Connected<IncomingStream<'_, Listening>> for Link {
    fn connect_info(stream: IncomingStream<'_, Listening>) -> Link {
        stream.io().link.clone()
    }
}

/// A socket that takes connections on.
pub struct Listening {
    socket: TcpListener,
    places: Arc<Semaphore>,
    patience: Patience,
    figures: Arc<Figures>,
}

impl Listening {
    /// Takes on as many connections at once as there are places.
    pub fn new(socket: TcpListener, places: usize, patience: Patience, shared: &Shared) -> Listening {
        Listening {
            socket,
            places: Arc::new(Semaphore::new(places)),
            patience,
            figures: shared.figures.clone(),
        }
    }
}

impl Listener for Listening {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let place = self.places.clone().acquire_owned().await.expect("the semaphore is never closed");
        let (stream, address) = Listener::accept(&mut self.socket).await;
        // Tokens are small: none is to wait for another to fill a packet.
        let _ = stream.set_nodelay(true);
        self.figures.connections.fetch_add(1, Relaxed);
        let timer = Box::pin(tokio::time::sleep(Duration::ZERO));
        let connection = Connection {
            stream,
            link: Link::new(),
            patience: self.patience,
            begun: None,
            timer,
            stuck: None,
            figures: self.figures.clone(),
            _place: place,
        };
        (connection, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}

/// A client's connection.
pub struct Connection {
    stream: TcpStream,
    link: Link,
    patience: Patience,
    /// When the first byte of a head came.
    begun: Option<Instant>,
    timer: Pin<Box<Sleep>>,
    /// Runs while nothing can be written.
    stuck: Option<Pin<Box<Sleep>>>,
    figures: Arc<Figures>,
    _place: OwnedSemaphorePermit,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.figures.connections.fetch_sub(1, Relaxed);
    }
}

impl Connection {
    /// Ends in an error where the client has had its time.
    fn poll_patience(&mut self, context: &mut Context) -> Poll<io::Error> {
        loop {
            let idle_since = self.link.idle_since();
            // A byte from before the last answer belonged to that request.
            self.begun = self.begun.filter(|begun| idle_since.is_some_and(|since| *begun >= since));
            let end = match (idle_since, self.begun) {
                // Nobody wakes this task when the answer is whole: it looks again by itself.
                (None, _) => Instant::now() + self.patience.head,
                (Some(_), Some(begun)) => begun + self.patience.head,
                (Some(since), None) => since + self.patience.idle,
            };
            if idle_since.is_some() && end <= Instant::now() {
                if self.begun.is_some() {
                    let refusal = Refusal::new(
                        StatusCode::REQUEST_TIMEOUT,
                        "request_timeout",
                        "the request came too slowly",
                    );
                    let body = refusal.body().to_string();
                    let head =
                        "HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\nconnection: close";
                    let text = format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                    // Who reads nothing either hears nothing.
                    let _ = self.stream.try_write(text.as_bytes());
                }
                return Poll::Ready(io::ErrorKind::TimedOut.into());
            }
            self.timer.as_mut().reset(end);
            ready!(self.timer.as_mut().poll(context));
        }
    }

    fn poll_stuck(&mut self, context: &mut Context) -> Poll<io::Error> {
        let patience = self.patience.write;
        let timer = self.stuck.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        timer.as_mut().poll(context).map(|()| io::ErrorKind::TimedOut.into())
    }

    fn written(&mut self, result: Poll<io::Result<usize>>, context: &mut Context) -> Poll<io::Result<usize>> {
        match result {
            Poll::Pending => self.poll_stuck(context).map(Err),
            ready => {
                self.stuck = None;
                ready
            }
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context,
        into: &mut ReadBuf,
    ) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        match Pin::new(&mut self.stream).poll_read(context, into) {
            Poll::Pending => self.poll_patience(context).map(Err),
            ready => {
                if into.filled().len() > before && self.begun.is_none() {
                    self.begun = Some(Instant::now());
                }
                // A head that comes byte by byte always has something to read.
                let late = (into.filled().len() > before).then(|| self.poll_patience(context));
                match late {
                    Some(Poll::Ready(error)) => Poll::Ready(Err(error)),
                    _ => ready,
                }
            }
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context, from: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(context, from);
        self.written(result, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context,
        from: &[io::IoSlice],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(context, from);
        self.written(result, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
