//! What the page asks and what it is told, as JSON.

use super::sessions::Sessions;
use super::store::Store;
use super::store::rating::{Rating, clean_name};
use super::{Error, Result, Verdict};
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// A request of the page. `page` is a word of its own for each page that was opened.
#[derive(Deserialize)]
#[serde(tag = "do", rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// Begin to judge under a name, where `takeover` says that another session may end by it.
    Enter {
        name: String,
        page: String,
        #[serde(default)]
        takeover: bool,
    },
    /// Tell where the rater stands.
    State { token: String, page: String },
    /// The page is still open.
    Beat { token: String, page: String },
    /// Keep a judgement.
    Judge {
        token: String,
        page: String,
        item: i64,
        verdict: Verdict,
        #[serde(default)]
        comment: String,
        #[serde(default)]
        elapsed_ms: i64,
    },
    /// Take the last judgement back.
    Undo { token: String, page: String },
    /// The page is closed.
    Leave { token: String, page: String },
}

/// What the page is told.
#[derive(Serialize)]
pub struct Reply {
    /// The session's token, where one has begun.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Where the rater stands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rating: Option<Rating>,
}

/// Answers a request.
pub fn answer(store: &mut Store, sessions: &mut Sessions, request: Request) -> Result<Reply> {
    let now = Instant::now();
    let mut of = |store: &Store, token: &str, page: &str| -> Result<i64> {
        let rater = store.rater_of(token)?;
        sessions.hear(rater, page, now);
        Ok(rater)
    };
    let rater = match request {
        Request::Enter { name, page, takeover } => return enter(store, sessions, &name, &page, takeover),
        Request::State { token, page } => of(store, &token, &page)?,
        Request::Beat { token, page } => {
            of(store, &token, &page)?;
            return Ok(Reply { token: None, rating: None });
        }
        Request::Judge { token, page, item, verdict, comment, elapsed_ms } => {
            let rater = of(store, &token, &page)?;
            store.judge(rater, item, verdict, comment.trim(), elapsed_ms)?;
            rater
        }
        Request::Undo { token, page } => {
            let rater = of(store, &token, &page)?;
            store.undo(rater)?;
            rater
        }
        Request::Leave { token, page } => {
            let rater = store.rater_of(&token)?;
            sessions.leave(rater, &page);
            return Ok(Reply { token: None, rating: None });
        }
    };
    Ok(Reply { token: None, rating: Some(store.rating(rater)?) })
}

fn enter(
    store: &mut Store,
    sessions: &mut Sessions,
    name: &str,
    page: &str,
    takeover: bool,
) -> Result<Reply> {
    let (name, now) = (clean_name(name)?, Instant::now());
    let known = store.rater(&name)?;
    if let Some(silent) = known.filter(|_| !takeover).and_then(|rater| sessions.active(rater, now)) {
        return Err(Error::Active { name, seconds: silent.as_secs() });
    }
    let (rater, token) = store.enter(&name)?;
    sessions.hear(rater, page, now);
    Ok(Reply { token: Some(token), rating: Some(store.rating(rater)?) })
}
