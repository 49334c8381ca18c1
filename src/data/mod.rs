//! Text to batches: everything between the user's files and the arrays that a training step uploads.
//!
//! ```text
//! text (files, folders)  --+                    +-- train ------ windows -- prefetch --> batch + cursor
//!                          +-- tokenizer -- store
//! corpus (grammar, seed) --+                    +-- validation -- evaluation windows --> batches
//! ```
//!
//! Everything here is a pure function of the text, the tokenizer and the seed: the same cursor always
//! gives the same batch, on every machine, so that a resumed run sees exactly what it would have seen.

pub mod cache;
mod cells;
pub mod chats;
pub mod clean;
pub mod corpus;
pub mod damage;
mod error;
pub mod features;
pub mod grammar;
pub mod groups;
pub mod labelled;
pub mod masking;
pub mod mixture;
pub mod pairs;
pub mod prefetch;
pub mod random;
pub mod records;
pub mod replay;
pub mod sampling;
pub mod sequel;
pub mod similar;
pub mod sources;
pub mod spirals;
pub mod store;
pub mod stream;
pub mod tagged;
pub mod text;
pub mod tokenizer;
pub mod tokens;
pub mod windows;

pub use error::{Error, Result};
