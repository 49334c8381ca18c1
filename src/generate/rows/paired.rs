//! Rows of an encoder-decoder: each has a source, in view of which its text is written.
//!
//! One plan reads a source, once, and leaves what the decoder attends to in the row's part of the memory; another reads one written
//! token of every row.

use super::causal::{names, ordering_of};
use super::{Outcome, Rows, Text, check, check_text, choice, shared};
use crate::deploy::Deployment;
use crate::generate::{Error, Lengths, Result};
use crate::graph::Graph;
use crate::model::{self, Extent, Family, Mode, Reading, Seats, Task};
use crate::ops::choose_token::Choice;
use crate::plan::Engine;
use crate::tensor::Tensor;
use crate::train::{self, Target};

/// Plans in the order in which the engine numbers them.
const READ: usize = 0;
const WRITE: usize = 1;
const ORDER: usize = 2;
const SHARE: usize = 3;
const SCORES: usize = 4;

/// What an encoder reads of one source: its inputs by name, batch one, and how many of its places count.
#[derive(Clone, Debug)]
pub struct Source {
    /// Inputs of the encoder's pass but for the mask, such as `tokens` U32 [1, S].
    pub inputs: Vec<(String, Tensor)>,
    /// Places that are no filling, from the first on.
    pub live: usize,
}

/// An encoder-decoder on a device, with sources and texts.
pub struct PairedRows {
    engine: Box<dyn Engine>,
    /// Names of the feeds of the plans that read and write.
    feeds: [Vec<String>; 2],
    /// Which places of each source count, [B, S].
    mask: Vec<u32>,
    held: Vec<Vec<u32>>,
    vocabulary: usize,
    start: u32,
    lengths: Lengths,
}

impl PairedRows {
    /// Room for so many texts.
    pub fn new(
        family: &dyn Family,
        deployment: &Deployment,
        target: &Target,
        rows: usize,
        lengths: Lengths,
    ) -> Result<PairedRows> {
        let start = start_of(family)?;
        let rows = rows.max(1);
        let lengths = Lengths { source: lengths.source.max(1), target: lengths.target.max(1) };
        let read = reading(family, deployment, rows, lengths)?;
        let write = writing(family, deployment, rows, lengths)?;
        let kept = super::causal::states(&read);
        let own = super::causal::states(&write);
        let own: Vec<_> = own.into_iter().filter(|(name, _)| !kept.iter().any(|(k, _)| k == name)).collect();
        let all = [own.clone(), kept].concat();
        let scores = choice::reading(rows, [rows, family.vocabulary()])?;
        let graphs = [read, write, ordering_of(&own, rows)?, ordering_of(&all, rows)?, scores];
        let (engine, plans) = deployment.engine(target, &graphs)?;
        Ok(PairedRows {
            engine,
            feeds: [names(&plans[READ]), names(&plans[WRITE])],
            mask: vec![0; rows * lengths.source],
            held: vec![vec![]; rows],
            vocabulary: family.vocabulary(),
            start,
            lengths,
        })
    }

    /// Most tokens of a source and of what is written.
    pub fn lengths(&self) -> Lengths {
        self.lengths
    }

    /// A source of tokens.
    pub fn tokens(&self, source: &[u32]) -> Result<Source> {
        check_text(source, self.vocabulary, self.lengths.source)?;
        let mut tokens = source.to_vec();
        tokens.resize(self.lengths.source, 0);
        let tokens = Tensor::u32([1, self.lengths.source], tokens);
        Ok(Source { inputs: vec![("tokens".into(), tokens)], live: source.len() })
    }

    /// Reads one token of each of some rows; the others stay as they are.
    fn step(&mut self, texts: &[Text], how: &[Option<Choice>]) -> Result<Vec<Outcome>> {
        let rows = self.held.len();
        let mut choices = vec![Some(Choice::BEST); rows];
        texts.iter().zip(how).for_each(|((row, _), how)| choices[*row] = *how);
        let (mut tokens, mut seats, mut positions) = (vec![0; rows], vec![0; 2 * rows], vec![0; rows]);
        for row in 0..rows {
            // A row that is not read on stands past the end, where nothing is written.
            (seats[2 * row], seats[2 * row + 1]) = (self.lengths.target as u32, row as u32);
        }
        for &(row, text) in texts {
            let at = self.held[row].len();
            tokens[row] = text[at];
            (seats[2 * row], positions[row]) = (at as u32, at as u32);
        }
        let given = [
            ("mask", Tensor::u32([rows, self.lengths.source], self.mask.clone())),
            ("target_tokens", Tensor::u32([rows, 1], tokens)),
            ("positions", Tensor::u32([rows, 1], positions)),
            ("position", Tensor::u32([rows, 2], seats)),
        ];
        let results = self.run_choosing(&given, &choices)?;
        for &(row, text) in texts {
            let at = self.held[row].len();
            self.held[row].push(text[at]);
        }
        let scores = match how.iter().any(Option::is_none) {
            true => Some(self.engine.run(SCORES, &[]).map_err(train::Error::from)?),
            false => None,
        };
        let outcome = |((row, _), how): (&Text, &Option<Choice>)| match (how, &scores) {
            (None, Some(scores)) => {
                Outcome::Scores(scores[0].real::<f32>()[row * self.vocabulary..][..self.vocabulary].to_vec())
            }
            _ => Outcome::Chosen(results[0].as_u32()[*row], results[1].real::<f32>()[*row]),
        };
        Ok(texts.iter().zip(how).map(outcome).collect())
    }

    /// Runs the plan that writes, with what chooses tokens of all rows.
    fn run_choosing(&mut self, given: &[(&str, Tensor)], how: &[Option<Choice>]) -> Result<Vec<Tensor>> {
        let of_choice = self.feeds[WRITE].clone();
        let of_choice = of_choice.iter().filter_map(|n| Some((n.as_str(), choice::feed(n, how.len(), how)?)));
        let all: Vec<(&str, Tensor)> = given.iter().cloned().chain(of_choice).collect();
        self.run(WRITE, &all)
    }

    fn run(&mut self, plan: usize, given: &[(&str, Tensor)]) -> Result<Vec<Tensor>> {
        let feed = |name: &String| {
            let found = given.iter().find(|(own, _)| own == name).map(|(_, tensor)| tensor);
            found.ok_or_else(|| Error::Source { input: name.clone() })
        };
        let feeds = self.feeds[plan].iter().map(feed).collect::<Result<Vec<&Tensor>>>()?;
        Ok(self.engine.run(plan, &feeds).map_err(train::Error::from)?)
    }

    fn arrange(&mut self, plan: usize, from: &[usize]) -> Result<()> {
        if from.iter().enumerate().all(|(to, from)| to == *from) {
            return Ok(());
        }
        let held = super::ordered(&self.held, from)?;
        let size = self.lengths.source;
        if plan == SHARE {
            self.mask = from.iter().flat_map(|row| self.mask[row * size..][..size].to_vec()).collect();
        }
        let from = Tensor::u32([from.len()], from.iter().map(|&row| row as u32).collect());
        self.held.iter_mut().for_each(Vec::clear);
        self.engine.run(plan, &[&from]).map_err(train::Error::from)?;
        self.held = held;
        Ok(())
    }
}

impl Rows for PairedRows {
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
        for &(row, text) in texts {
            if self.mask[row * self.lengths.source] == 0 {
                return Err(Error::NoSource { row });
            }
            let known = shared(&self.held[row], text);
            self.held[row].truncate(known);
        }
        let mut all: Vec<Outcome> = vec![Outcome::Chosen(0, 0.0); texts.len()];
        loop {
            let left = |&at: &usize| self.held[texts[at].0].len() < texts[at].1.len();
            let ahead: Vec<usize> = (0..texts.len()).filter(left).collect();
            if ahead.is_empty() {
                return Ok(all);
            }
            // Scores before the last token are of no use to anybody.
            let last = |at: usize| texts[at].1.len() == self.held[texts[at].0].len() + 1;
            let how: Vec<Option<Choice>> =
                ahead.iter().map(|&at| if last(at) { how[at] } else { Some(Choice::BEST) }).collect();
            let found = self.step(&ahead.iter().map(|&at| texts[at]).collect::<Vec<_>>(), &how)?;
            ahead.iter().zip(found).for_each(|(&at, found)| all[at] = found);
        }
    }

    fn order(&mut self, from: &[usize]) -> Result<()> {
        self.arrange(ORDER, from)
    }

    fn share(&mut self, from: &[usize]) -> Result<()> {
        self.arrange(SHARE, from)
    }

    fn start(&self) -> Option<u32> {
        Some(self.start)
    }

    fn source_of(&self, tokens: &[u32]) -> Result<Source> {
        self.tokens(tokens)
    }

    fn begin(&mut self, row: usize, source: &Source) -> Result<()> {
        if row >= self.held.len() {
            return Err(Error::Row { row, rows: self.held.len() });
        }
        let size = self.lengths.source;
        let mask: Vec<u32> = (0..size).map(|place| u32::from(place < source.live)).collect();
        self.held[row].clear();
        self.mask[row * size..][..size].fill(0);
        let mut given: Vec<(&str, Tensor)> =
            source.inputs.iter().map(|(name, tensor)| (name.as_str(), tensor.clone())).collect();
        given.push(("mask", Tensor::u32([1, size], mask.clone())));
        given.push(("seat", Tensor::u32([1, 2], vec![0, row as u32])));
        self.run(READ, &given)?;
        self.mask[row * size..][..size].copy_from_slice(&mask);
        Ok(())
    }

    fn memory_bytes(&self) -> u64 {
        self.engine.memory_bytes()
    }
}

/// The start of what an encoder-decoder writes; other models are refused.
pub(in crate::generate) fn start_of(family: &dyn Family) -> Result<u32> {
    let interface = family.interface();
    match interface.start {
        Some([start, _]) => Ok(start),
        None => {
            let expected = Task::SecondText.describe().into();
            Err(model::Error::Task { expected, got: interface.task.describe() }.into())
        }
    }
}

/// The pass over one source.
pub(super) fn reading(
    family: &dyn Family,
    deployment: &Deployment,
    rows: usize,
    lengths: Lengths,
) -> Result<Graph> {
    let extent = Extent { batch: 1, context: lengths.source };
    let whole = Reading { padded: true, target: 1, ..Reading::new(extent, Mode::Evaluate) };
    Ok(deployment.remembering(family, &whole, rows)?)
}

/// The pass over one written token of each row.
pub(super) fn writing(
    family: &dyn Family,
    deployment: &Deployment,
    rows: usize,
    lengths: Lengths,
) -> Result<Graph> {
    let extent = Extent { batch: rows, context: lengths.source };
    let mode = Mode::Continue { capacity: lengths.target };
    let seats = Some(Seats { caches: rows, scored: 1 });
    let reading = Reading { padded: true, target: 1, seats, ..Reading::new(extent, mode) };
    Ok(deployment.graph_of(family, &reading, |graph, forward| choice::write(graph, forward.logits))?)
}
