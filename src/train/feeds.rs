//! What each step of a run reads: batches of the text, what a teacher said of them, or what one of the models writes instead.

use super::distill::cache::{self, Cache, Key};
use super::distill::{COLUMNS, LOGS, SHARE};
use super::job::{Job, feeds_of};
use super::run::Watch;
use super::trainer::Trainer;
use super::{Result, Target, recipe};
use crate::data::groups::sorted_positions;
use crate::data::prefetch::Prepared;
use crate::data::windows::Batch;
use crate::graph::Feeds;
use crate::tensor::Tensor;
use std::collections::BTreeSet;

/// By which texts are damaged in evaluation: the same in every run, whatever its seed.
const EVALUATION_SEED: u64 = 0x6576_616C;

impl Job {
    /// Lets a teacher run ahead, where the recipe has a folder for what it says; what it has said before is not said again.
    pub(super) fn run_ahead(&mut self, target: &Target, watch: &mut Watch) -> Result<()> {
        let Some(teacher) = &self.beside.teacher else { return Ok(()) };
        let (Some(folder), Some(top_k)) = (&teacher.recipe.cache, teacher.top()) else { return Ok(()) };
        if self.is_streamed() {
            let problem =
                "distill.cache is for text that is read whole, not beside data.streaming".to_string();
            return Err(super::Error::Mismatch { folder: "recipe".into(), problem });
        }
        let extent = self.extent();
        teacher.check_context(extent.context)?;
        let train = &self.recipe.train;
        let windows = match (&self.replay, &self.recipe.data.windows) {
            (Some(_), Some(path)) => {
                let bytes = std::fs::read(path)
                    .map_err(|source| recipe::Error::File { path: path.clone(), source })?;
                format!("replayed, checksum {:08x}", crc32fast::hash(&bytes))
            }
            _ => format!("shuffled, seed {}", train.seed),
        };
        let key = Key {
            teacher: cache::hash_of(&teacher.recipe.teacher, teacher.family.as_ref())?,
            precision: format!("{:?}", teacher.recipe.teacher_precision).to_lowercase(),
            tokens: cache::hash_of_tokens(&self.store.training.tokens.all()),
            windows,
            batch: train.batch,
            context: extent.context,
            temperature: teacher.recipe.temperature,
            top_k,
        };
        let cache = Cache::open(folder, key)?;
        // A step that is timed in the end takes batches as well.
        let steps = train.steps as usize + usize::from(self.recipe.run.profile);
        cache.fill(teacher, self.sampler()?, steps * train.accumulate, extent.batch, target, watch)?;
        self.ahead = Some(cache);
        Ok(())
    }

    /// Asks a reference for preferences, where these are learnt: the model as it is now, about all that the run will read.
    pub(super) fn ask_reference(&self, trainer: &mut Trainer, evaluation: &[Vec<Batch>; 2]) -> Result<()> {
        let Some(chats) = self.chats.as_ref().filter(|chats| chats.rows_each() == 2) else { return Ok(()) };
        let train = &self.recipe.train;
        let mut sampler = self.sampler()?;
        let mut numbers: BTreeSet<u32> =
            evaluation.iter().flatten().flat_map(|batch| batch.tokens.clone()).collect();
        // A step that is timed in the end takes batches as well.
        let steps = train.steps + u64::from(self.recipe.run.profile);
        for _ in 0..steps * train.accumulate as u64 {
            if sampler.cursor().epoch > 0 {
                break;
            }
            numbers.extend(sampler.next_batch()?.tokens);
        }
        chats.ask_reference(trainer, numbers, self.extent().batch)
    }

    /// What a training step reads of a batch: of the step's passes the one of that number.
    pub fn training_feeds(&self, prepared: Prepared, step: u64, pass: usize) -> Result<Feeds> {
        let extent = self.extent();
        if let Some(lesson) = &self.lesson {
            return lesson.feeds(&prepared.batch, extent.batch);
        }
        if let Some(sequel) = &self.sequel {
            let key = [self.recipe.train.seed, step * self.recipe.train.passes() as u64 + pass as u64];
            return sequel.feeds(&prepared.batch, extent.batch, key);
        }
        if let Some(chats) = &self.chats {
            return Ok(chats.feeds(&prepared.batch, extent.batch));
        }
        if let Some(second) = &self.second {
            let key = [self.recipe.train.seed, step * self.recipe.train.passes() as u64 + pass as u64];
            return Ok(second.feeds(&second.batch(&prepared.batch, key), extent.batch));
        }
        let prepared = match &self.hider {
            Some(hider) => {
                let key = [self.recipe.train.seed as u32, step as u32, pass as u32];
                let batch = hider.hide(&prepared.batch, &key);
                let groups = sorted_positions(&batch.tokens, self.family.vocabulary());
                Prepared { batch, groups, ..prepared }
            }
            None => prepared,
        };
        let mut feeds = feeds_of(&prepared.batch, extent);
        let (order, starts) = (prepared.groups.order, prepared.groups.starts);
        feeds.set("order", Tensor::u32([order.len()], order));
        feeds.set("starts", Tensor::u32([starts.len()], starts));
        if let Some(teacher) = &self.beside.teacher {
            teacher.feed(&mut feeds, &prepared.batch, step, extent);
        }
        if let Some(ahead) = &self.ahead {
            let parts = self.recipe.train.batch / extent.batch;
            let number = step as usize * self.recipe.train.accumulate + pass / parts;
            let [columns, logs] = ahead.read(number, pass % parts * extent.batch, &prepared.batch)?;
            feeds.set(COLUMNS, columns);
            feeds.set(LOGS, logs);
        }
        Ok(feeds)
    }

    /// What the evaluation reads of the batch of that number, and how many targets count.
    pub(super) fn evaluation_feeds(&self, number: usize, batch: &Batch) -> (Feeds, f64) {
        let extent = self.extent();
        if let Some(chats) = &self.chats {
            return (chats.feeds(batch, extent.batch), chats.counted(batch) as f64);
        }
        match &self.second {
            Some(second) => {
                let made = second.batch(batch, [EVALUATION_SEED, number as u64]);
                (second.feeds(&made, extent.batch), made.counted() as f64)
            }
            None => (feeds_of(batch, extent), batch.counted() as f64),
        }
    }

    /// What a step reads of its batches, of which `next` gives those of the task of that number: as the text has them, or as the student or the teacher writes them.
    pub(super) fn step_feeds(
        &self,
        trainer: &mut Trainer,
        next: &mut dyn FnMut(usize) -> Result<Prepared>,
    ) -> Result<Vec<Feeds>> {
        let (step, seed) = (trainer.steps_done(), self.recipe.train.seed);
        if let Some(several) = &self.beside.several {
            let pass = |pass| several.feeds(&self.recipe, step, pass, next);
            return (0..self.recipe.train.passes()).map(pass).collect();
        }
        let teacher = self.beside.teacher.as_ref();
        let author = teacher.and_then(|teacher| Some((teacher, teacher.author(seed, step)?)));
        let mut all = vec![];
        for pass in 0..self.recipe.train.passes() {
            let prepared = next(0)?;
            let Some((teacher, author)) = author else {
                all.push(self.training_feeds(prepared, step, pass)?);
                continue;
            };
            let batch = teacher.write(trainer, author, &prepared.batch, seed, [step, pass as u64])?;
            let groups = sorted_positions(&batch.tokens, self.family.vocabulary());
            let mut feeds = self.training_feeds(Prepared { batch, groups, ..prepared }, step, pass)?;
            feeds.set(SHARE, teacher.written_share(author, self.extent()));
            all.push(feeds);
        }
        if let Some(chats) = &self.chats {
            chats.weigh(&mut all);
        }
        Ok(all)
    }
}
