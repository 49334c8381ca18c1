//! Where tokens appear as they come.

use crate::data::tokenizer::{DecodeStream, Tokenizer};
use std::io::Write;

/// Tokens as text, as numbers where there is no tokenizer, or not at all.
pub enum Page<'a> {
    /// Through a tokenizer.
    Text(Option<DecodeStream<'a>>),
    /// As they are.
    Numbers,
    /// Not at all.
    Hidden,
}

impl<'a> Page<'a> {
    /// An empty one.
    pub fn new(tokenizer: Option<&'a Tokenizer>, hidden: bool) -> Self {
        match tokenizer {
            _ if hidden => Page::Hidden,
            Some(tokenizer) => Page::Text(Some(tokenizer.decode_stream())),
            None => Page::Numbers,
        }
    }

    /// Shows tokens.
    pub fn show(&mut self, ids: &[u32]) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        for &id in ids {
            match self {
                Page::Text(Some(stream)) => write!(out, "{}", stream.push(id)?)?,
                Page::Numbers => write!(out, "{id} ")?,
                Page::Text(None) | Page::Hidden => {}
            }
        }
        Ok(out.flush()?)
    }

    /// Shows text that was made of tokens elsewhere; where there are only numbers, the token itself.
    pub fn show_as(&mut self, text: &str, token: u32) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        match self {
            Page::Text(_) => write!(out, "{text}")?,
            Page::Numbers => write!(out, "{token} ")?,
            Page::Hidden => {}
        }
        Ok(out.flush()?)
    }

    /// What a stream has held back, without the end of a line.
    pub fn settle(&mut self) -> anyhow::Result<()> {
        if let Page::Text(stream) = self
            && let Some(stream) = stream.take()
        {
            write!(std::io::stdout().lock(), "{}", stream.finish()?)?;
        }
        Ok(())
    }

    /// Ends the line.
    pub fn finish(&mut self) -> anyhow::Result<()> {
        self.settle()?;
        if !matches!(self, Page::Hidden) {
            writeln!(std::io::stdout().lock())?;
        }
        Ok(())
    }
}
