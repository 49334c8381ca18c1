//! Direct preference optimisation (Rafailov et al. 2023): of two answers to a prompt the better one is to become likelier, measured
//! by how likely both are for the model as it was in the beginning.
//!
//! With `d` the log-probability of the better answer less that of the worse one, and `m = d - d of the reference`:
//!
//! ```text
//! sigmoid   -(1 - s) log sigmoid(beta m) - s log sigmoid(-beta m)     s: label smoothing
//! ipo       (m - 1 / (2 beta))^2, of means over tokens instead of sums (Azar et al. 2023)
//! hinge     max(0, 1 - beta m) (SLiC, Zhao et al. 2023)
//! ```
//!
//! Why the reference is asked ahead, and is no second model in the step: each answer is asked once and not in every epoch, a step
//! costs half, and nothing of the reference is held. It is the model as the run begins: beside new adapters that is the base, as
//! held. A run that goes on asks it again, with the weights that it began from.

use super::Chats;
use crate::data::chats::Laid;
use crate::data::windows::Batch;
use crate::graph::{Feeds, Graph};
use crate::model::{Extent, Family, IGNORED, Mode, Reading};
use crate::ops::gather::GatherEmit;
use crate::ops::losses::{LossEmit, Reduction};
use crate::ops::pointwise::PointwiseEmit;
use crate::ops::reduce::{Kind, ReduceEmit};
use crate::ops::reshape::ReshapeEmit;
use crate::ops::slice::SliceEmit;
use crate::ops::softmax::SoftmaxEmit;
use crate::ops::{Emit, Value};
use crate::tensor::{DType, Tensor, Type};
use crate::train::Result;
use crate::train::recipe::{Dpo, Preferring};
use crate::train::trainer::Trainer;

/// Input U32 [N, 1]: the token that is guessed at each place.
const GUESSED: &str = "guessed";

/// Input F32 \[N\]: what the log-probability of each place counts in that of its answer.
const SHARES: &str = "shares";

/// Input F32 \[B\]: by how much the reference prefers the better answers.
pub(super) const REFERENCE: &str = "reference";

/// Log-probabilities [2B] of answers, the better and the worse one of each pair in turn.
fn answers(family: &dyn Family, graph: &mut Graph, reading: &Reading) -> Result<Value> {
    let forward = family.read(graph, reading)?;
    let Extent { batch, context } = reading.extent;
    let places = reading.extent.positions();
    let guessed = graph.input(GUESSED, Type::new(DType::U32, [places, 1]));
    let shares = graph.input(SHARES, Type::f32([places]));
    Ok(graph.within("loss", |graph| {
        let chosen = graph.gather(forward.logits, guessed)?;
        let chosen = graph.reshape(chosen, [places].into())?;
        let all = graph.log_sum_exp(forward.logits)?;
        let each = graph.sub(chosen, all)?;
        let each = graph.mul(each, shares)?;
        let rows = graph.reshape(each, [batch, context].into())?;
        let sums = graph.reduce(Kind::Sum, rows, 1)?;
        graph.reshape(sums, [batch].into())
    })?)
}

/// The mean cost of the margins of pairs, over rows of the better and the worse answer in turn.
pub fn loss(family: &dyn Family, graph: &mut Graph, reading: &Reading, dpo: &Dpo) -> Result<Value> {
    let rows = answers(family, graph, reading)?;
    let pairs = reading.extent.batch / 2;
    let reference = graph.input(REFERENCE, Type::f32([pairs]));
    let beta = dpo.beta as f32;
    Ok(graph.within("loss", |graph| {
        let rows = graph.reshape(rows, [pairs, 2].into())?;
        let sides = [graph.slice(rows, 1, 0, 1)?, graph.slice(rows, 1, 1, 2)?];
        let difference = graph.sub(sides[0], sides[1])?;
        let difference = graph.reshape(difference, [pairs].into())?;
        let margin = graph.sub(difference, reference)?;
        match dpo.loss {
            Preferring::Sigmoid => {
                let right = Tensor::f32([pairs], vec![1.0 - dpo.label_smoothing as f32; pairs]);
                let right = graph.constant(right);
                let scaled = graph.scale(margin, beta)?;
                graph.binary_cross_entropy(scaled, right, None, Reduction::Mean)
            }
            Preferring::Ipo => {
                let off = graph.shift(margin, -1.0 / (2.0 * beta))?;
                let square = graph.pointwise("square", &[off], 0.0)?;
                graph.mean_all(square)
            }
            Preferring::Hinge => {
                let scaled = graph.scale(margin, -beta)?;
                let missing = graph.shift(scaled, 1.0)?;
                let cost = graph.pointwise("relu", &[missing], 0.0)?;
                graph.mean_all(cost)
            }
        }
    })?)
}

/// The graph that tells log-probabilities, for [`Trainer::consult`].
pub fn teller(family: &dyn Family, extent: Extent) -> Result<Graph> {
    let mut graph = Graph::new();
    let reading = Reading::new(Extent { batch: 2 * extent.batch, ..extent }, Mode::Evaluate);
    let rows = answers(family, &mut graph, &reading)?;
    graph.output("logits", rows);
    Ok(graph)
}

/// Adds what the loss reads of rows of answers, of which some may be missing; a reference of zero until it is known.
pub fn feed(feeds: &mut Feeds, laid: &Laid, rows: usize, dpo: &Dpo) {
    let places = rows * laid.context;
    let (mut guessed, mut shares) = (vec![0; places], vec![0.0; places]);
    for (row, targets) in laid.targets.chunks(laid.context).enumerate() {
        let counted = targets.iter().filter(|&&target| target != IGNORED).count();
        let share = if dpo.loss == Preferring::Ipo { 1.0 / counted as f32 } else { 1.0 };
        for (at, &target) in targets.iter().enumerate().filter(|(_, target)| **target != IGNORED) {
            guessed[row * laid.context + at] = target as u32;
            shares[row * laid.context + at] = share;
        }
    }
    feeds.set(GUESSED, Tensor::u32([places, 1], guessed));
    feeds.set(SHARES, Tensor::f32([places], shares));
    feeds.set(REFERENCE, Tensor::f32([rows / 2], vec![0.0; rows / 2]));
}

impl Chats {
    /// Asks the model as it is now how likely the answers of some pairs are, which it is the first to be asked.
    pub(in crate::train) fn ask_reference(
        &self,
        trainer: &mut Trainer,
        numbers: impl IntoIterator<Item = u32>,
        rows: usize,
    ) -> Result<()> {
        let (Some(dpo), None) = (&self.dpo, self.reference.get()) else { return Ok(()) };
        let mut known = vec![f32::NAN; self.windows.len()];
        if dpo.reference_free {
            known.fill(0.0);
        } else {
            let mut numbers: Vec<u32> = numbers.into_iter().collect();
            numbers.sort_unstable();
            numbers.dedup();
            for numbers in numbers.chunks(rows) {
                for (&number, difference) in numbers.iter().zip(self.differences(trainer, numbers, rows)?) {
                    known[number as usize] = difference;
                }
            }
        }
        // Asked again after a lost device, it says the same.
        let _ = self.reference.set(known);
        Ok(())
    }

    /// By how much the better answers of pairs are likelier than the worse ones.
    fn differences(&self, trainer: &mut Trainer, numbers: &[u32], rows: usize) -> Result<Vec<f32>> {
        let batch = Batch { tokens: numbers.to_vec(), targets: vec![], rows: numbers.len(), context: 1 };
        let told = trainer.consult(0, &self.feeds(&batch, rows))?;
        Ok(told.real::<f32>().chunks(2).take(numbers.len()).map(|pair| pair[0] - pair[1]).collect())
    }

    /// By how much the reference prefers the better answers; none where that is not asked for.
    pub(super) fn reference_of(&self, numbers: &[u32], rows: usize) -> Option<Tensor> {
        let known = self.reference.get()?;
        let mut all: Vec<f32> = numbers.iter().map(|&number| known[number as usize]).collect();
        all.resize(rows, 0.0);
        Some(Tensor::f32([rows], all))
    }

    /// The margin of rewards, the mean of `beta m`, and the share of pairs of which it is above zero; none where no preferences are
    /// learnt.
    pub(in crate::train) fn rewards(
        &self,
        trainer: &mut Trainer,
        batches: &[Batch],
        rows: usize,
    ) -> Result<Vec<(&'static str, f64)>> {
        let (Some(dpo), Some(known)) = (&self.dpo, self.reference.get()) else { return Ok(vec![]) };
        let mut rewards = vec![];
        for batch in batches {
            let differences = self.differences(trainer, &batch.tokens, rows)?;
            let reward = |(&number, difference): (&u32, f32)| {
                dpo.beta * f64::from(difference - known[number as usize])
            };
            rewards.extend(batch.tokens.iter().zip(differences).map(reward));
        }
        let count = rewards.len() as f64;
        let right = rewards.iter().filter(|reward| **reward > 0.0).count() as f64;
        Ok(vec![("reward_margin", rewards.iter().sum::<f64>() / count), ("reward_accuracy", right / count)])
    }
}
