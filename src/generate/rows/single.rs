//! Rows of models that cannot have several texts in their caches: recurrent ones, whose state is a sum of all that was read.
//!
//! One text is read at a time; a row whose text is not the one read last is read anew from its start. So one row is as fast as it can
//! be, and several are right but slow.

use super::{Outcome, Rows, Source, Text, check, check_text, outcome};
use crate::deploy::Deployment;
use crate::generate::reader::{Pace, Reader};
use crate::generate::translator::Translator;
use crate::generate::{Error, Lengths, Result};
use crate::model::Family;
use crate::ops::choose_token::Choice;
use crate::tensor::Tensor;
use crate::train::Target;

/// A model that continues texts, one at a time.
pub struct SingleRows {
    reader: Reader,
    held: Vec<Vec<u32>>,
    vocabulary: usize,
}

impl SingleRows {
    /// Room for texts.
    pub fn new(
        family: &dyn Family,
        deployment: &Deployment,
        target: &Target,
        room: super::Room,
    ) -> Result<SingleRows> {
        let reader = Reader::new(family, deployment, target, room.tokens.clamp(1, family.context()))?;
        Ok(SingleRows { reader, held: vec![vec![]; room.rows.max(1)], vocabulary: family.vocabulary() })
    }
}

impl Rows for SingleRows {
    fn count(&self) -> usize {
        self.held.len()
    }

    fn capacity(&self) -> usize {
        self.reader.capacity
    }

    fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    fn held(&self, row: usize) -> &[u32] {
        &self.held[row]
    }

    fn next(&mut self, texts: &[Text], how: &[Option<Choice>]) -> Result<Vec<Outcome>> {
        check(self, texts)?;
        let mut all = vec![];
        for (&(row, text), how) in texts.iter().zip(how) {
            all.push(outcome(self.reader.scores(text)?, how));
            self.held[row] = text.to_vec();
        }
        Ok(all)
    }

    fn order(&mut self, from: &[usize]) -> Result<()> {
        self.held = super::ordered(&self.held, from)?;
        Ok(())
    }

    fn pace(&self) -> Pace {
        self.reader.pace
    }

    fn memory_bytes(&self) -> u64 {
        self.reader.memory_bytes()
    }
}

/// A model that writes in view of a source, one text at a time.
pub struct SinglePairs {
    translator: Translator,
    lengths: Lengths,
    vocabulary: usize,
    sources: Vec<Option<Vec<u32>>>,
    held: Vec<Vec<u32>>,
    /// The row whose source was read last.
    current: Option<usize>,
}

impl SinglePairs {
    /// Room for so many texts.
    pub fn new(
        family: &dyn Family,
        deployment: &Deployment,
        target: &Target,
        rows: usize,
        lengths: Lengths,
    ) -> Result<SinglePairs> {
        let translator = Translator::over(family, deployment, None, target, lengths)?;
        let rows = rows.max(1);
        let (sources, held) = (vec![None; rows], vec![vec![]; rows]);
        Ok(SinglePairs { translator, lengths, vocabulary: family.vocabulary(), sources, held, current: None })
    }
}

impl Rows for SinglePairs {
    fn count(&self) -> usize {
        self.held.len()
    }

    fn capacity(&self) -> usize {
        self.lengths.target
    }

    fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    fn held(&self, row: usize) -> &[u32] {
        &self.held[row]
    }

    fn next(&mut self, texts: &[Text], how: &[Option<Choice>]) -> Result<Vec<Outcome>> {
        check(self, texts)?;
        let mut all = vec![];
        for (&(row, text), how) in texts.iter().zip(how) {
            let source = self.sources[row].clone().ok_or(Error::NoSource { row })?;
            let mut known = self.held[row].len();
            if self.current != Some(row) || known >= text.len() || !text.starts_with(&self.held[row]) {
                self.current = None;
                self.translator.read(&source)?;
                known = 0;
            }
            let mut scores = vec![];
            for (place, &token) in text.iter().enumerate().skip(known) {
                scores = self.translator.scores(token, place)?;
            }
            self.held[row] = text.to_vec();
            self.current = Some(row);
            all.push(outcome(scores, how));
        }
        Ok(all)
    }

    fn order(&mut self, from: &[usize]) -> Result<()> {
        self.held = super::ordered(&self.held, from)?;
        self.current = self.current.filter(|row| from[*row] == *row);
        Ok(())
    }

    fn share(&mut self, from: &[usize]) -> Result<()> {
        self.order(from)?;
        self.sources = from.iter().map(|&row| self.sources[row].clone()).collect();
        Ok(())
    }

    fn start(&self) -> Option<u32> {
        Some(self.translator.start())
    }

    fn source_of(&self, tokens: &[u32]) -> Result<Source> {
        check_text(tokens, self.vocabulary, self.lengths.source)?;
        let kept = Tensor::u32([1, tokens.len()], tokens.to_vec());
        Ok(Source { inputs: vec![("tokens".into(), kept)], live: tokens.len() })
    }

    fn begin(&mut self, row: usize, source: &Source) -> Result<()> {
        let rows = self.held.len();
        let place = self.sources.get_mut(row).ok_or(Error::Row { row, rows })?;
        let tokens = source.inputs.iter().find(|(name, _)| name == "tokens");
        let tokens = tokens.ok_or_else(|| Error::Source { input: "tokens".into() })?;
        *place = Some(tokens.1.as_u32()[..source.live].to_vec());
        self.held[row].clear();
        self.current = None;
        Ok(())
    }

    fn memory_bytes(&self) -> u64 {
        self.translator.memory_bytes()
    }
}
