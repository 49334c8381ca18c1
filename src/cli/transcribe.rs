//! `kiln transcribe`: what was said in a sound.

use super::generate::Cache;
use super::{Usage, count};
use crate::transcribe::Task;
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// Write down what was said in WAV files.
///
/// A line for each file. Sounds that are longer than what the model hears at once, 30 seconds of a Whisper, are cut there and
/// written down part by part. Of several languages that is taken which the model thinks likeliest of each part. Words are chosen
/// greedily, without times. In programs built without the feature `audio` this command is an error.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  kiln transcribe whisper-tiny speech.wav\n  kiln transcribe whisper-tiny speech.wav --language de --task translate\n  kiln transcribe whisper-tiny.en *.wav --json"
)]
pub struct Transcribe {
    /// A Hugging Face folder with a model that hears.
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// A WAV file of the model's rate, usually 16000 samples a second.
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// The language that is spoken, as in `en`.
    #[arg(long, value_name = "CODE")]
    language: Option<String>,
    /// What is written.
    #[arg(long, value_enum, default_value_t = Doing::Transcribe)]
    task: Doing,
    /// Tokens that are written at most of each part.
    #[arg(long, value_name = "TOKENS", value_parser = count)]
    most: Option<usize>,
    /// How keys and values of the sound and of what was written are kept.
    #[arg(long, value_enum, default_value_t = Cache::F32)]
    cache: Cache,
    /// Print the numbers of the tokens instead of text, as they are for a model without a tokenizer.
    #[arg(long)]
    ids: bool,
    /// Print an object a line: {"file", "text", "ids", "opening"}, the last two by the parts of the file.
    #[arg(long)]
    json: bool,
    /// gpu, cpu, an adapter's number, or part of its name.
    #[arg(long, default_value = "gpu")]
    device: String,
}

/// What is written of a sound.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Doing {
    /// What was said.
    Transcribe,
    /// The same in English.
    Translate,
}

impl From<Doing> for Task {
    fn from(doing: Doing) -> Task {
        match doing {
            Doing::Transcribe => Task::Transcribe,
            Doing::Translate => Task::Translate,
        }
    }
}

/// What is said where the program was built without ears.
#[cfg_attr(feature = "audio", allow(dead_code))]
fn without_ears() -> Usage {
    Usage(
        "transcribe reads sound, which this program was built without\n  hint: cargo install or build it with --features audio; `kiln forward` takes input_features from others"
            .into(),
    )
}

#[cfg(not(feature = "audio"))]
impl Transcribe {
    /// An error that names what is missing.
    pub fn run(self) -> anyhow::Result<()> {
        let Transcribe { model, files, language, task, most, cache, ids, json, device } = self;
        drop((model, files, language, Task::from(task), most, cache, ids, json, device));
        Err(without_ears().into())
    }
}

#[cfg(feature = "audio")]
impl Transcribe {
    /// Prints a line for each file.
    pub fn run(self) -> anyhow::Result<()> {
        use crate::audio::{Listener, Settings, read};
        use crate::model::Sound;
        use crate::train::Target;
        use crate::transcribe::Transcriber;
        use std::io::Write;

        let folder = super::folder::resolve(&self.model, false)?;
        let target = Target::open_or_host(&self.device, &mut |line| eprintln!("{line}"))?;
        eprintln!("device   {}", target.describe());
        let mut transcriber = Transcriber::open(&folder, &target, self.cache.into())?;
        let (language, task) = (self.language.as_deref(), Task::from(self.task));
        transcriber.check(language, task)?;
        let Sound { bands, frames, .. } = transcriber.sound();
        let listener = Listener::new(Settings::beside(&folder, bands, frames)?);
        let rate = listener.settings().rate as u32;
        for file in &self.files {
            let samples = read(file, rate)?;
            let mut parts = vec![];
            for part in samples.chunks(listener.settings().samples()) {
                parts.push(transcriber.write(listener.features(part), language, task, self.most)?);
            }
            let line = self.line(file, &parts, transcriber.tokenizer())?;
            writeln!(std::io::stdout().lock(), "{line}")?;
        }
        target.told().iter().for_each(|report| eprintln!("kernels  {report}"));
        Ok(())
    }

    /// What is printed of a file.
    fn line(
        &self,
        file: &std::path::Path,
        parts: &[crate::transcribe::Written],
        tokenizer: Option<&crate::data::tokenizer::Tokenizer>,
    ) -> anyhow::Result<String> {
        let text = match tokenizer {
            None => None,
            Some(tokenizer) => {
                let texts =
                    parts.iter().map(|part| tokenizer.decode(&part.ids)).collect::<Result<Vec<_>, _>>()?;
                Some(texts.concat().trim().to_string())
            }
        };
        if self.json {
            let ids: Vec<_> = parts.iter().map(|part| &part.ids).collect();
            let opening: Vec<_> = parts.iter().map(|part| &part.opening).collect();
            let file = file.display().to_string();
            return Ok(
                serde_json::json!({ "file": file, "text": text, "ids": ids, "opening": opening }).to_string()
            );
        }
        let ids =
            parts.iter().flat_map(|part| part.ids.iter().map(u32::to_string)).collect::<Vec<_>>().join(" ");
        Ok(if self.ids { ids } else { text.unwrap_or(ids) })
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_program_without_ears_names_the_feature() {
        let said = super::without_ears().to_string();
        assert!(said.contains("--features audio"), "{said}");
    }
}
