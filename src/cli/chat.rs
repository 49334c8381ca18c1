//! `kiln chat`: a conversation with a model.

mod order;
mod talk;

use super::Usage;
use super::folder::{Beside, ModelFolder};
use super::generate::flags::Flags;
use super::retrieve::Retrieval;
use crate::data::chats::{Date, Template};
use crate::deploy::Deployment;
use crate::exchange;
use crate::generate::{Lengths, Overflow, Room, Session, end_tokens, open_rows};
use crate::ngram::is_ngram;
use crate::train::Target;
use crate::train::caches::cache_folder;
use anyhow::Context;
use clap::Args;
use order::Order;
use rustyline::error::ReadlineError;
use rustyline::history::DefaultHistory;
use rustyline::{Config, Editor};
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use talk::Talk;

/// Talk with a model that has learned to answer.
///
/// What you type is put into the model's chat template, and the answer appears as it is written. A line that ends in a backslash goes on in
/// the next. Ctrl-C stops an answer, Ctrl-D ends the conversation. Lines that begin with a slash are orders: /help lists them. Where the
/// input is no terminal, each of its lines is something said. The oldest turns are left out where the model has no room for all.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  kiln chat smollm2\n  kiln chat runs/sft --system \"You answer in one sentence.\" --temperature 0.7 --top-p 0.9 --seed 7\n  kiln chat gpt2 --template chatml --stop-strings User:\n  kiln chat smollm2 --retrieve notes --retrieve-encoder all-MiniLM-L6-v2\n  echo \"Why is the sky blue?\" | kiln chat runs/sft --device cpu"
)]
pub struct Chat {
    #[command(flatten)]
    folder: ModelFolder,
    #[command(flatten)]
    beside: Beside,
    /// What the system says first.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// chatml, a file in Jinja, or a folder. Absent: the chat template of the model's tokenizer.
    #[arg(long, value_name = "TEMPLATE")]
    template: Option<String>,
    #[command(flatten)]
    flags: Flags,
    #[command(flatten)]
    retrieval: Retrieval,
    /// gpu, cpu, an adapter's number, or part of its name.
    #[arg(long, default_value = "gpu")]
    device: String,
}

impl Chat {
    /// Answers until the input ends.
    pub fn run(self) -> anyhow::Result<()> {
        if self.flags.beams()?.is_some() || self.flags.texts() != 1 {
            let text = "an answer is shown as it is written, and that is one\n  hint: leave out --num-beams and --num-return-sequences";
            return Err(Usage(text.into()).into());
        }
        self.flags.sampling().check()?;
        let folder = self.folder.resolve()?;
        if is_ngram(&folder) {
            return Err(Usage("models of counted runs have learned no conversations".into()).into());
        }
        let model = exchange::open_to_run(&folder, &self.beside.resolve()?)?;
        if model.family.interface().start.is_some() {
            let text = "an encoder-decoder answers one text, it leads no conversation\n  hint: kiln generate";
            return Err(Usage(text.into()).into());
        }
        let template = self.template_of(&folder)?;
        let ends = end_tokens(&model.family.config(), Some(&folder));
        let mut settings = self.flags.settings(model.tokenizer.as_ref(), &ends)?;
        // What is forgotten is whole turns, not the middle of what the template has written.
        settings.overflow = Overflow::Stop;
        let target = Target::open_or_host(&self.device, &mut |line| eprintln!("{line}"))?;
        let family = model.family.as_ref();
        let deployment = Deployment::new(&model.weights).within(&target);
        let tokens = family.context();
        let lengths = Lengths { source: 1, target: 1 };
        let rows = open_rows(family, &deployment, &target, Room { rows: 1, tokens }, lengths)?;
        let tokenizer = Arc::new(model.tokenizer.ok_or(crate::generate::Error::NoTokenizer)?);
        let session = Session::new(rows, Some(tokenizer.clone()));
        let mut talk = Talk::new(session, tokenizer, template, settings)?;
        talk.set_system(self.system);
        if let Some(library) = self.retrieval.open(&self.device)? {
            talk.read_from(library);
        }
        converse(&mut talk)
    }

    fn template_of(&self, folder: &Path) -> anyhow::Result<Template> {
        if let Some(name) = &self.template {
            return Ok(Template::named(name, Some(folder), Date::today())?);
        }
        Template::of_folder(folder, Date::today())?.ok_or_else(|| {
            let text = "the model's folder has no chat template\n  hint: name one: --template chatml, or a file; a model that has learned no conversations is for `kiln generate`";
            Usage(text.into()).into()
        })
    }
}

/// Set by Ctrl-C, taken back when it was heard.
static STOP: AtomicBool = AtomicBool::new(false);

fn converse(talk: &mut Talk) -> anyhow::Result<()> {
    // A handler that is there already will do: it is only missed while an answer is written.
    let _ = ctrlc::set_handler(|| STOP.store(true, Ordering::Relaxed));
    let config = Config::builder().auto_add_history(true).build();
    let mut editor: Editor<(), DefaultHistory> = Editor::with_config(config).context("the line editor")?;
    let history = cache_folder().map(|folder| folder.join("chat-history"));
    let here = std::io::stdin().is_terminal();
    if here {
        eprintln!("Say something. /help lists orders, Ctrl-D ends.");
        history.as_ref().map(|file| editor.load_history(file));
    }
    while let Some(line) = read(&mut editor)? {
        match Order::of(&line) {
            Ok(None) if line.trim().is_empty() => {}
            Ok(None) => answer(talk, Some(line))?,
            Ok(Some(Order::Exit)) => break,
            Ok(Some(Order::Retry)) => match talk.take_answer_back() {
                true => {
                    talk.settings.seed = talk.settings.seed.wrapping_add(1);
                    answer(talk, None)?;
                }
                false => eprintln!("there is no answer to give again"),
            },
            Ok(Some(order)) => match order.obey(talk) {
                Ok(said) => eprintln!("{said}"),
                Err(error) => eprintln!("error: {error:#}"),
            },
            Err(problem) => eprintln!("{problem}"),
        }
    }
    if here && let Some(file) = history {
        let kept = file.parent().map_or(Ok(()), std::fs::create_dir_all).is_ok()
            && editor.append_history(&file).is_ok();
        if !kept {
            eprintln!("what you typed could not be kept in {}", file.display());
        }
    }
    Ok(())
}

/// The next line, with those that a backslash joins to it. `None` at the end.
fn read(editor: &mut Editor<(), DefaultHistory>) -> anyhow::Result<Option<String>> {
    let mut whole = String::new();
    loop {
        match editor.readline(if whole.is_empty() { "> " } else { ". " }) {
            Ok(line) => match line.strip_suffix('\\') {
                Some(begun) => whole += &format!("{begun}\n"),
                None => return Ok(Some(whole + &line)),
            },
            // At the prompt Ctrl-C throws away what was typed.
            Err(ReadlineError::Interrupted) => whole.clear(),
            Err(ReadlineError::Eof) if whole.is_empty() => return Ok(None),
            Err(ReadlineError::Eof) => return Ok(Some(whole)),
            Err(error) => return Err(error).context("the input"),
        }
    }
}

/// Writes an answer; what is said joins the conversation only where it can be answered.
fn answer(talk: &mut Talk, said: Option<String>) -> anyhow::Result<()> {
    STOP.store(false, Ordering::Relaxed);
    let mut show = |text: &str| -> std::io::Result<bool> {
        let mut out = std::io::stdout().lock();
        write!(out, "{text}")?;
        out.flush()?;
        Ok(!STOP.load(Ordering::Relaxed))
    };
    match talk.answer(said, &mut show) {
        Ok(note) => {
            write!(std::io::stdout(), "\n{}", talk.sources())?;
            note.iter().for_each(|note| eprintln!("({note})"));
            Ok(())
        }
        Err(talk::Refused::This(error)) if std::io::stdin().is_terminal() => {
            eprintln!("error: {error:#}");
            Ok(())
        }
        Err(talk::Refused::This(error) | talk::Refused::All(error)) => Err(error),
    }
}
