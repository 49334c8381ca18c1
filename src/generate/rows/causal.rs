//! Rows of a decoder: keys and values of all rows stand in the same caches.
//!
//! Passes of several sizes share weights and caches: one reads many tokens of a row at a time, one a few, and others one token each
//! of 1, 2, 4 .. rows, whichever these are.

use super::shown::{self, Shown, State};
use super::{Outcome, Rows, Text, check, choice, shared};
use crate::deploy::{self, Deployment};
use crate::generate::{Error, Pace, Result};
use crate::graph::{Graph, Source};
use crate::model::{Extent, Family, Mode, Reading, Seats};
use crate::ops::cache_order::CacheOrderEmit;
use crate::ops::choose_token::Choice;
use crate::plan::{Engine, Plan};
use crate::tensor::{DType, Tensor, Type};
use crate::train::{self, Target};
use std::time::Instant;

/// Tokens that a pass reads of one row at a time, the most first; a shorter rest is filled up.
const CHUNKS: [usize; 2] = [128, 16];

/// The first result of a pass that is neither the token nor its log-probability.
const SHOWN: usize = 2;

/// How much is to be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Texts side by side.
    pub rows: usize,
    /// Tokens of each, prompt and continuation.
    pub tokens: usize,
}

/// A decoder on a device, with the texts it has read.
pub struct CausalRows {
    engine: Box<dyn Engine>,
    passes: Vec<Pass>,
    /// Number of the plan that puts caches in order. Behind it stand those that read the scores that each pass has left.
    order: usize,
    /// What reads some tokens of one row and chooses one after each of them, and the number of its plan.
    verify: Option<(Pass, usize)>,
    held: Vec<Vec<u32>>,
    shown: Shown,
    /// Of each row the hidden states of what it holds, and perhaps of more that it held before; where they are shown.
    states: Vec<Vec<State>>,
    vocabulary: usize,
    capacity: usize,
    pub(super) pace: Pace,
}

/// One plan: so many rows, and tokens of each.
#[derive(Clone, Debug)]
struct Pass {
    rows: usize,
    tokens: usize,
    feeds: Vec<String>,
}

impl CausalRows {
    /// Room for texts; no more tokens than the model has positions for.
    pub fn new(
        family: &dyn Family,
        deployment: &Deployment,
        target: &Target,
        room: Room,
    ) -> Result<CausalRows> {
        CausalRows::made(family, deployment, target, room, 0, Shown::Nothing)
    }

    /// The same for rows that show more than scores.
    pub fn showing(
        family: &dyn Family,
        deployment: &Deployment,
        target: &Target,
        room: Room,
        shown: Shown,
    ) -> Result<CausalRows> {
        CausalRows::made(family, deployment, target, room, 0, shown)
    }

    /// The same for rows of which up to `verified` tokens are read at once, with the token that follows each: what a draft needs.
    pub fn verifying(
        family: &dyn Family,
        deployment: &Deployment,
        target: &Target,
        room: Room,
        verified: usize,
    ) -> Result<CausalRows> {
        CausalRows::made(family, deployment, target, room, verified, Shown::Nothing)
    }

    fn made(
        family: &dyn Family,
        deployment: &Deployment,
        target: &Target,
        room: Room,
        verified: usize,
        shown: Shown,
    ) -> Result<CausalRows> {
        let capacity = room.tokens.clamp(1, family.context());
        let count = room.rows.max(1);
        let sizes = sizes(count, capacity);
        let reading = |[batch, context]: [usize; 2], scored: usize| {
            let seats = Some(Seats { caches: count, scored });
            Reading { seats, ..Reading::new(Extent { batch, context }, Mode::Continue { capacity }) }
        };
        let graph = |&size: &[usize; 2]| {
            deployment.graph_of(family, &reading(size, 1), |graph, forward| {
                let beside = shown::values(graph, &forward, &shown)?;
                choice::write(graph, forward.logits)?;
                beside.iter().for_each(|value| graph.output("shown", *value));
                Ok(())
            })
        };
        let mut graphs = sizes.iter().map(graph).collect::<deploy::Result<Vec<_>>>()?;
        graphs.push(ordering_of(&states(&graphs[0]), count)?);
        for [rows, _] in &sizes {
            graphs.push(choice::reading(*rows, [count, family.vocabulary()])?);
        }
        let verified = verified.min(capacity);
        if verified > 1 {
            graphs.push(deployment.graph_of(
                family,
                &reading([1, verified], verified),
                |graph, forward| choice::write_tokens(graph, forward.logits),
            )?);
        }
        let (engine, plans) = deployment.engine(target, &graphs)?;
        let last = plans.len() - 1;
        let verify =
            (verified > 1).then(|| (Pass { rows: 1, tokens: verified, feeds: names(&plans[last]) }, last));
        let single = sizes.iter().position(|&size| size == [1, 1]).filter(|_| !target.is_host());
        let dispatches = single.map(|number| plans[number].dispatches.len());
        let passes =
            sizes.iter().zip(&plans).map(|(&[rows, tokens], plan)| Pass { rows, tokens, feeds: names(plan) });
        Ok(CausalRows {
            engine,
            passes: passes.collect(),
            order: sizes.len(),
            verify,
            held: vec![vec![]; count],
            shown,
            states: vec![vec![]; count],
            vocabulary: family.vocabulary(),
            capacity,
            pace: Pace { dispatches, ..Pace::default() },
        })
    }

    /// Reads tokens of rows behind what these hold, with the pass of that number: of each row as many as there are, up to what the pass
    /// reads. Gives the token after the last one of each, or its scores.
    fn read(&mut self, number: usize, texts: &[Text], how: &[Option<Choice>]) -> Result<Vec<Outcome>> {
        let start = Instant::now();
        let Pass { rows, tokens, .. } = self.passes[number];
        let (mut ids, mut positions, mut seats, mut scored) = (vec![], vec![], vec![], vec![]);
        // Rows that only fill the pass up do what the last one does, which writes the same once more.
        let filled = texts.iter().chain(texts.last().into_iter().cycle()).take(rows);
        for (place, &(row, text)) in filled.enumerate() {
            let first = self.held[row].len();
            let live = (text.len() - first).min(tokens);
            ids.extend(&text[first..first + live]);
            // What stands behind the last token is not seen by it, and is written over before anything sees it.
            ids.resize((place + 1) * tokens, 0);
            positions.extend((first..first + tokens).map(|p| p as u32));
            seats.extend([first as u32, row as u32]);
            scored.push((place * tokens + live - 1) as u32);
        }
        let feed = |name: &String| match name.as_str() {
            "tokens" => Tensor::u32([rows, tokens], ids.clone()),
            "positions" => Tensor::u32([rows, tokens], positions.clone()),
            "position" => Tensor::u32([rows, 2], seats.clone()),
            "scored" => Tensor::u32([rows], scored.clone()),
            other => choice::feed(other, rows, how).expect("the graphs declare these inputs alone"),
        };
        let feeds: Vec<Tensor> = self.passes[number].feeds.iter().map(feed).collect();
        // Should the pass fail, nobody knows what it left.
        let held: Vec<Vec<u32>> = texts.iter().map(|&(row, _)| std::mem::take(&mut self.held[row])).collect();
        let results =
            self.engine.run(number, &feeds.iter().collect::<Vec<_>>()).map_err(train::Error::from)?;
        for (place, (&(row, text), mut held)) in texts.iter().zip(held).enumerate() {
            let first = held.len();
            held.extend(text[first..].iter().take(tokens));
            if self.shown == Shown::States {
                let states = shown::states_of(&results[SHOWN], [rows, tokens], place, held.len() - first);
                self.states[row].truncate(first);
                self.states[row].extend(states);
            }
            self.held[row] = held;
        }
        let (count, time) = match tokens {
            1 => (&mut self.pace.steps, &mut self.pace.stepping),
            _ => (&mut self.pace.read, &mut self.pace.reading),
        };
        *count += scored[..texts.len()].iter().map(|at| *at as usize % tokens + 1).sum::<usize>();
        let early = matches!(self.shown, Shown::Early(_));
        let scores = match early || how.iter().any(Option::is_none) {
            true => Some(self.engine.run(self.order + 1 + number, &[]).map_err(train::Error::from)?),
            false => None,
        };
        *time += start.elapsed();
        let of_row = |scores: &[Tensor], row: usize| {
            scores[0].real::<f32>()[row * self.vocabulary..][..self.vocabulary].to_vec()
        };
        let outcome = |(row, how): (usize, &Option<Choice>)| match (how, &scores) {
            (how, Some(scores)) if early => {
                super::outcome(shown::contrasted(&of_row(scores, row), &results[SHOWN..], row), how)
            }
            (None, Some(scores)) => Outcome::Scores(of_row(scores, row)),
            _ => Outcome::Chosen(results[0].as_u32()[row], results[1].real::<f32>()[row]),
        };
        Ok(how.iter().enumerate().map(outcome).collect())
    }

    /// Tokens of a row that are read at once where a draft is judged; zero where none can be.
    pub fn verified(&self) -> usize {
        self.verify.as_ref().map_or(0, |(pass, _)| pass.tokens)
    }

    /// The tokens that follow a text's last ones, chosen as `how` says of each: the last choice is of the token behind the whole text.
    pub(super) fn verify(&mut self, (row, text): Text, how: &[Choice]) -> Result<Vec<(u32, f32)>> {
        check(self, &[(row, text)])?;
        let begun = text.len() + 1 - how.len();
        let Some((pass, number)) = self.verify.clone().filter(|(pass, _)| how.len() <= pass.tokens) else {
            return Err(Error::Row { row: how.len(), rows: self.verified() });
        };
        let known = shared(&self.held[row], text).min(begun - 1);
        self.held[row].truncate(known);
        if known < begun - 1 {
            self.next(&[(row, &text[..begun - 1])], &[Some(Choice::BEST)])?;
        }
        let start = Instant::now();
        let first = begun - 1;
        let mut ids = text[first..].to_vec();
        ids.resize(pass.tokens, 0);
        let choices: Vec<Option<Choice>> = how.iter().map(|how| Some(*how)).collect();
        let feed = |name: &String| match name.as_str() {
            "tokens" => Tensor::u32([1, pass.tokens], ids.clone()),
            "positions" => {
                Tensor::u32([1, pass.tokens], (first..first + pass.tokens).map(|p| p as u32).collect())
            }
            "position" => Tensor::u32([1, 2], vec![first as u32, row as u32]),
            other => {
                choice::feed(other, pass.tokens, &choices).expect("the graphs declare these inputs alone")
            }
        };
        let feeds: Vec<Tensor> = pass.feeds.iter().map(feed).collect();
        self.held[row].clear();
        let results =
            self.engine.run(number, &feeds.iter().collect::<Vec<_>>()).map_err(train::Error::from)?;
        self.held[row] = text.to_vec();
        self.pace.stepping += start.elapsed();
        let (tokens, told) = (results[0].as_u32(), results[1].real::<f32>());
        Ok((0..how.len()).map(|place| (tokens[place], told[place])).collect())
    }

    /// The pass for a row of which so many tokens are to be read: the largest that they fill, or the smallest that has room for them.
    fn chunk(&self, left: usize) -> usize {
        let chunks = || self.passes.iter().enumerate().filter(|(_, pass)| pass.tokens > 1);
        let filled = chunks().find(|(_, pass)| pass.tokens <= left);
        let room = || chunks().filter(|(_, pass)| pass.tokens >= left).min_by_key(|(_, pass)| pass.tokens);
        filled.or_else(room).map_or(self.step(1), |(number, _)| number)
    }

    /// The smallest pass of one token each of so many rows.
    fn step(&self, rows: usize) -> usize {
        let fits = |pass: &&Pass| pass.tokens == 1 && pass.rows >= rows;
        let best = self.passes.iter().filter(fits).min_by_key(|pass| pass.rows);
        let best = best.or(self.passes.iter().rfind(|pass| pass.tokens == 1));
        let best = best.expect("there are passes of one token");
        self.passes.iter().position(|pass| std::ptr::eq(pass, best)).expect("it is one of them")
    }
}

impl Rows for CausalRows {
    fn count(&self) -> usize {
        self.held.len()
    }

    fn capacity(&self) -> usize {
        self.capacity
    }

    fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    fn held(&self, row: usize) -> &[u32] {
        &self.held[row]
    }

    fn next(&mut self, texts: &[Text], how: &[Option<Choice>]) -> Result<Vec<Outcome>> {
        check(self, texts)?;
        let mut all: Vec<Outcome> = vec![Outcome::Chosen(0, 0.0); texts.len()];
        let mut last = vec![];
        for (at, &(row, text)) in texts.iter().enumerate() {
            let known = shared(&self.held[row], text);
            self.held[row].truncate(known);
            while text.len() - self.held[row].len() > 1 {
                let number = self.chunk(text.len() - self.held[row].len());
                // Scores between chunks are of no use to anybody.
                let ends = text.len() - self.held[row].len() <= self.passes[number].tokens;
                let how = if ends { how[at] } else { Some(Choice::BEST) };
                all[at] = self.read(number, &[(row, text)], &[how])?.swap_remove(0);
            }
            if self.held[row].len() < text.len() {
                last.push(at);
            }
        }
        let most = self.passes[self.step(usize::MAX)].rows;
        for part in last.chunks(most) {
            let texts: Vec<Text> = part.iter().map(|&at| texts[at]).collect();
            let how: Vec<Option<Choice>> = part.iter().map(|&at| how[at]).collect();
            let found = self.read(self.step(part.len()), &texts, &how)?;
            part.iter().zip(found).for_each(|(&at, found)| all[at] = found);
        }
        Ok(all)
    }

    fn reads_at_once(&self) -> usize {
        self.passes.iter().map(|pass| pass.tokens).max().unwrap_or(usize::MAX)
    }

    fn order(&mut self, from: &[usize]) -> Result<()> {
        if from.iter().enumerate().all(|(to, from)| to == *from) {
            return Ok(());
        }
        let held = super::ordered(&self.held, from)?;
        let places = from;
        let from = Tensor::u32([from.len()], from.iter().map(|&row| row as u32).collect());
        self.held.iter_mut().for_each(Vec::clear);
        self.engine.run(self.order, &[&from]).map_err(train::Error::from)?;
        self.held = held;
        if self.shown == Shown::States {
            self.states = places.iter().map(|&row| self.states[row].clone()).collect();
        }
        Ok(())
    }

    fn states(&self, row: usize) -> Option<&[State]> {
        (self.shown == Shown::States).then(|| &self.states[row][..self.held[row].len()])
    }

    fn pace(&self) -> Pace {
        self.pace
    }

    fn memory_bytes(&self) -> u64 {
        self.engine.memory_bytes()
    }
}

/// Rows and tokens of all passes.
fn sizes(count: usize, capacity: usize) -> Vec<[usize; 2]> {
    let mut chunks: Vec<usize> = CHUNKS.iter().map(|chunk| *chunk.min(&capacity)).collect();
    chunks.dedup();
    let steps = std::iter::successors(Some(1), |rows| Some(rows * 2)).take_while(|rows| *rows < count);
    let steps = steps.chain([count]).map(|rows| [rows, 1]);
    chunks.into_iter().filter(|tokens| *tokens > 1).map(|tokens| [1, tokens]).chain(steps).collect()
}

/// Names and types of the caches of a pass.
pub(super) fn states(pass: &Graph) -> Vec<(String, Type)> {
    let states = pass.values().iter().filter(|info| matches!(info.source, Source::State));
    states.filter_map(|info| Some((info.name.clone()?, info.kind.clone()))).collect()
}

/// A graph that puts caches in order, by the input `from`.
pub(super) fn ordering_of(states: &[(String, Type)], count: usize) -> Result<Graph> {
    let mut graph = Graph::new();
    let from = graph.input("from", Type::new(DType::U32, [count]));
    for (name, kind) in states {
        let cache = graph.state(name, kind.clone());
        let ordered = graph.cache_order(cache, from).map_err(crate::model::Error::from)?;
        graph.output(name, ordered);
    }
    Ok(graph)
}

/// Names of a plan's feeds.
pub(super) fn names(plan: &Plan) -> Vec<String> {
    plan.feeds.iter().map(|feed| feed.name.clone()).collect()
}
