//! Whole models in other programs' files: GGUF, as llama.cpp and its relatives read it, and folders as Hugging Face has them.
//!
//! A [`Source`] is a model with the tensors as they are stored, so that what nobody changed is handed back bit for bit.
//! [`export_gguf`] writes weights under the names and in the order of rows that those programs expect, with the keys that describe
//! the model and its tokenizer; [`import_gguf`] reads such files, ours or not, back into a family, its weights and a tokenizer.

mod adapted;
mod any;
mod error;
mod export;
mod folder;
mod import;
mod keys;
mod names;
mod pieces;
mod rows;
mod source;
mod vocabulary;

pub use adapted::{Parts, parts};
pub use any::{Opened, is_gguf, open, open_model, open_of_task, open_to_run};
pub use error::{Error, Result};
pub use export::{Exported, Options, export_gguf};
pub use folder::{FolderOptions, WrittenFolder};
pub use import::{Imported, import_gguf};
pub use keys::TEMPLATE;
pub use source::Source;
