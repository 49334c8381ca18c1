//! Answers of models, written side by side, each handed over as soon as it is whole.

use super::Run;
use crate::cli::Usage;
use crate::cli::generate::MOST_ROWS;
use crate::cli::generate::prompt::Prompts;
use crate::deploy::Deployment;
use crate::exchange;
use crate::generate::{Lengths, Request, Room, Session, end_tokens, open_rows};
use crate::ngram::is_ngram;
use crate::train::Target;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

/// What is done with an answer: the number of its prompt, and the text.
type Keep<'a> = dyn FnMut(usize, &str) -> anyhow::Result<()> + 'a;

/// Has models write, on a device that is opened when the first of them does.
pub struct Author<'a> {
    run: &'a Run,
    target: Option<Target>,
}

impl<'a> Author<'a> {
    /// Refuses flags by which there is not one answer to each prompt.
    pub fn new(run: &'a Run) -> anyhow::Result<Author<'a>> {
        let flags = &run.flags;
        let other = flags.assistant_model.is_some() || flags.contrastive()?.is_some();
        if flags.beams()?.is_some() || flags.texts() != 1 || flags.has_context() || other {
            let text = "judge has one answer written to each prompt, without beams, contrastive search, --context and --assistant-model\n  hint: leave them out, or write answers by other means and give them by --answers-a";
            return Err(Usage(text.into()).into());
        }
        flags.sampling().check()?;
        Ok(Author { run, target: None })
    }

    /// Writes a model's answers to some prompts, each with its number.
    ///
    /// Chance is counted by that number: an answer is the same whether or not the others were written before.
    pub fn write(&mut self, place: &Path, prompts: &[(usize, &str)], keep: &mut Keep) -> anyhow::Result<()> {
        if is_ngram(place) {
            let text = "models of counted runs write no answers here\n  hint: write them with kiln generate, and give them by --answers-a";
            return Err(Usage(text.into()).into());
        }
        let Run { flags, chat, system, device, .. } = self.run;
        let model = exchange::open_to_run(place, &[])?;
        let family = model.family.as_ref();
        let ends = end_tokens(&family.config(), Some(place));
        let pair = family.interface().start.is_some();
        let given =
            Prompts::of(prompts.iter().map(|(_, text)| text.to_string()).collect(), *chat, system.clone());
        let mut ids = given.ids(model.tokenizer.as_ref(), place)?;
        if let (true, Some(&end)) = (pair, ends.first()) {
            ids.iter_mut()
                .filter(|ids| !ids.last().is_some_and(|last| ends.contains(last)))
                .for_each(|ids| ids.push(end));
        }
        let settings = flags.settings(model.tokenizer.as_ref(), &ends)?;
        let target = match self.target.take() {
            Some(target) => target,
            None => Target::open_or_host(device, &mut |line| eprintln!("{line}"))?,
        };
        let deployment = Deployment::new(&model.weights).within(&target);
        let longest = ids.iter().map(Vec::len).max().unwrap_or(1);
        let room =
            Room { rows: MOST_ROWS.min(ids.len()), tokens: longest.saturating_add(flags.max_new_tokens) };
        let lengths = Lengths { source: longest, target: flags.max_new_tokens.clamp(1, family.context()) };
        let rows = open_rows(family, &deployment, &target, room, lengths)?;
        target.told().iter().for_each(|report| eprintln!("kernels  {report}"));
        let mut session = Session::new(rows, model.tokenizer.map(Arc::new));
        let start = session.rows().start();
        let mut texts = HashMap::new();
        for (&(number, _), ids) in prompts.iter().zip(ids) {
            let source = if pair { Some(session.rows().source_of(&ids)?) } else { None };
            let prompt = start.map_or(ids, |start| vec![start]);
            let request = Request { source, stream: number as u32, ..Request::new(prompt, settings.clone()) };
            texts.insert(session.admit(request)?, (number, String::new()));
        }
        while !session.is_idle() {
            for event in session.step()? {
                let (number, text) = texts.get_mut(&event.ticket).expect("it was admitted");
                *text += &event.text;
                if event.finish.is_some() {
                    keep(*number, text)?;
                }
            }
        }
        self.target = Some(target);
        Ok(())
    }
}
