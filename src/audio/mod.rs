//! Sound from files, as models hear it: samples of WAV, and the log-mel spectrograms that Whisper was trained on.

mod mel;
mod wav;

pub use mel::{Listener, Settings};
pub use wav::read;

use std::path::PathBuf;

/// What can go wrong on the way from a file to what a model hears.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file that cannot be read, or is no WAV.
    #[error("{}: {source}\n  hint: `ffmpeg -i INPUT -ac 1 -ar 16000 -c:a pcm_s16le OUTPUT.wav` makes one of nearly anything", path.display())]
    Wav {
        /// The file.
        path: PathBuf,
        /// What the reader says.
        source: hound::Error,
    },
    /// A sound that the model cannot hear.
    #[error("{}: {what} is {got}, expected {expected}\n  hint: `ffmpeg -i INPUT -ac 1 -ar 16000 -c:a pcm_s16le OUTPUT.wav` makes one of nearly anything", path.display())]
    Unfit {
        /// The file.
        path: PathBuf,
        /// What about it.
        what: &'static str,
        /// What it may be.
        expected: String,
        /// What it is.
        got: String,
    },
    /// A file of settings that cannot be followed.
    #[error("{}: `{key}` is {got}, expected {expected}", path.display())]
    Setting {
        /// The file.
        path: PathBuf,
        /// The setting.
        key: &'static str,
        /// What it may be.
        expected: String,
        /// What it is.
        got: String,
    },
    /// A file of settings that is none.
    #[error("{}: {source}", path.display())]
    Settings {
        /// The file.
        path: PathBuf,
        /// What the reader says.
        source: std::io::Error,
    },
}

/// Result of hearing.
pub type Result<T, E = Error> = std::result::Result<T, E>;
