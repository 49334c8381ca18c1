//! Recurrent models: layers as PyTorch has them, language models and encoder-decoders of such layers.

mod language;
mod stack;
mod translation;

pub use language::RecurrentModel;
pub use stack::{RecurrentStack, Run};
pub use translation::RecurrentTranslator;
