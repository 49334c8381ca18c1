//! Windows that a model writes while the student is trained, instead of reading them in the text.
//!
//! The student writes, and the teacher says of each token what it would have written (on-policy: GKD, Agarwal et al. 2024): it learns
//! where its own words lead. Or the teacher writes, and what it wrote stands for the text (sequence-level: Kim and Rush 2016).
//! Nothing is differentiated through what was drawn. Both write with the weights that the step holds, keys and values in caches,
//! and what they write follows from the seed and the step alone, so that a run that goes on writes the same again.

use super::{PREFIX, Teacher};
use crate::data::sampling::{Sampling, sample};
use crate::data::windows::{Batch, IGNORED};
use crate::graph::{Feeds, Graph};
use crate::model::{Extent, Family, Mode};
use crate::tensor::Tensor;
use crate::tensor::random::Stream;
use crate::train::Result;
use crate::train::trainer::Trainer;
use rayon::prelude::*;

/// Salts of the streams: who writes, and what.
const WHO: u32 = 0x3A7;
const WHAT: u32 = 0x3A8;

/// Who writes a step's windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Author {
    /// The student, with its weights as they are.
    Student,
    /// The teacher.
    Teacher,
}

impl Teacher {
    /// Who writes the windows of a step; nobody where they are the text's.
    pub fn author(&self, seed: u64, step: u64) -> Option<Author> {
        let writing = self.recipe.writing.as_ref()?;
        let drawn = stream(WHO, seed, step, &[]).uniform();
        let student = writing.on_policy.at(step);
        match drawn {
            _ if drawn < student => Some(Author::Student),
            _ if drawn < student + writing.sequence.at(step) => Some(Author::Teacher),
            _ => None,
        }
    }

    /// Those who write at any step.
    fn authors(&self) -> Vec<Author> {
        let Some(writing) = &self.recipe.writing else { return vec![] };
        let all = [(Author::Student, writing.on_policy), (Author::Teacher, writing.sequence)];
        all.into_iter().filter(|(_, share)| !share.is_zero()).map(|(author, _)| author).collect()
    }

    /// What the authors write with: for each a graph that reads the prompt, and one that reads a token more.
    pub fn writers(&self, student: &dyn Family, extent: Extent) -> Result<Vec<Graph>> {
        let mut graphs = vec![];
        for author in self.authors() {
            let writing = self.recipe.writing.as_ref().expect("there are authors");
            let (family, prefix) = match author {
                Author::Student => (student, ""),
                Author::Teacher => (self.family.as_ref(), PREFIX),
            };
            for count in [writing.prompt_of(extent.context), 1] {
                let mut alone = Graph::new();
                let part = Extent { batch: extent.batch, context: count };
                let forward =
                    family.forward(&mut alone, part, Mode::Continue { capacity: extent.context })?;
                let mut graph = Graph::new();
                let map = graph.bring(&alone, prefix)?;
                graph.output("logits", map[forward.logits.index()]);
                graphs.push(graph);
            }
        }
        Ok(graphs)
    }

    /// The windows as an author goes on behind their first tokens, in the step's pass of that number.
    pub fn write(
        &self,
        trainer: &mut Trainer,
        author: Author,
        batch: &Batch,
        seed: u64,
        [step, pass]: [u64; 2],
    ) -> Result<Batch> {
        let writing = self.recipe.writing.as_ref().expect("there is an author");
        let first = 2 * self.authors().iter().position(|a| *a == author).expect("one of the authors");
        let (rows, context) = (batch.rows, batch.context);
        let prompt = writing.prompt_of(context);
        let begin = |(row, tokens): (usize, &[u32])| {
            (tokens[..prompt].to_vec(), stream(WHAT, seed, step, &[pass as u32, row as u32]))
        };
        let mut texts: Vec<(Vec<u32>, Stream)> =
            batch.tokens.chunks(context).enumerate().map(begin).collect();
        let sampling = Sampling { temperature: writing.sampling_temperature, ..Sampling::default() };
        let mut seen = 0;
        while seen < context {
            let (number, count) = if seen == 0 { (first, prompt) } else { (first + 1, 1) };
            let new = texts.iter().flat_map(|(tokens, _)| tokens[seen..].iter().copied()).collect();
            let positions = (0..rows).flat_map(|_| (seen..seen + count).map(|at| at as u32)).collect();
            let scored = (0..rows).map(|row| (row * count + count - 1) as u32).collect();
            let feeds = Feeds::new()
                .with("tokens", Tensor::u32([rows, count], new))
                .with("positions", Tensor::u32([rows, count], positions))
                .with("position", Tensor::u32([1], vec![seen as u32]))
                .with("scored", Tensor::u32([rows], scored));
            let logits = trainer.consult(number, &feeds)?;
            let each = texts.par_iter_mut().zip(logits.real::<f32>().par_chunks(logits.shape.last()));
            each.for_each(|((tokens, random), logits)| tokens.push(sample(logits, &sampling, random)));
            seen += count;
        }
        let mut written = Batch { tokens: vec![], targets: vec![], ..batch.clone() };
        for ((tokens, _), targets) in texts.iter().zip(batch.targets.chunks(context)) {
            written.tokens.extend(&tokens[..context]);
            match author {
                // Its own words are no text to be learnt: beyond the prompt only the teacher has a say.
                Author::Student => {
                    written.targets.extend(&targets[..prompt]);
                    written.targets.extend((prompt..context).map(|_| IGNORED));
                }
                Author::Teacher => written.targets.extend(tokens[1..].iter().map(|&token| token as i32)),
            }
        }
        Ok(written)
    }

    /// Each position's share in the mean over what an author has written.
    pub fn written_share(&self, author: Author, extent: Extent) -> Tensor {
        let first = match (author, &self.recipe.writing) {
            (Author::Student, Some(writing)) => writing.prompt_of(extent.context) - 1,
            _ => 0,
        };
        let share = 1.0 / (extent.batch * (extent.context - first)) as f32;
        let of = |at: usize| if at % extent.context < first { 0.0 } else { share };
        Tensor::f32([extent.positions()], (0..extent.positions()).map(of).collect())
    }
}

fn stream(salt: u32, seed: u64, step: u64, more: &[u32]) -> Stream {
    let words = [salt, seed as u32, (seed >> 32) as u32, step as u32, (step >> 32) as u32];
    Stream::new(&[&words, more].concat())
}
