//! How well each of several tasks is done.

use super::{Part, Several};
use crate::data::windows::Batch;
use crate::train::lesson::Scores;
use crate::train::trainer::Trainer;
use crate::train::{Error, Result};

/// Batches of the training and the validation part of each task; none of a task that holds nothing back.
pub type Measured = Vec<Option<[Vec<Batch>; 2]>>;

impl Several {
    /// What each task is measured by.
    pub(in crate::train) fn evaluation(&self) -> Result<Measured> {
        let of = |part: &Part| {
            let both = part.job.evaluation().map_err(|error| part.blame(error))?;
            Ok(Some(both).filter(|both| both.iter().all(|batches| !batches.is_empty())))
        };
        self.parts.iter().map(of).collect()
    }

    /// Finds out whether each task has enough to train on and to measure.
    pub(in crate::train) fn check_data(&self) -> Result<()> {
        for part in &self.parts {
            part.job.check_data().map_err(|error| part.blame(error))?;
        }
        Ok(())
    }

    /// Measures both parts of each task that holds something back; with the name of each.
    pub(in crate::train) fn measure(
        &self,
        trainer: &mut Trainer,
        measured: &Measured,
    ) -> Result<Vec<(&Part, [Scores; 2])>> {
        let mut all = vec![];
        for (number, (part, batches)) in self.parts.iter().zip(measured).enumerate() {
            if let Some([training, validation]) = batches {
                let both =
                    [part.measure(trainer, number, training)?, part.measure(trainer, number, validation)?];
                all.push((part, both));
            }
        }
        Ok(all)
    }
}

impl Part {
    fn measure(&self, trainer: &mut Trainer, number: usize, batches: &[Batch]) -> Result<Scores> {
        if let Some(lesson) = &self.job.lesson {
            return lesson.measure(trainer, number, batches, self.job.extent().batch);
        }
        let (mut sum, mut weights) = (0.0, 0.0);
        for (at, batch) in batches.iter().enumerate() {
            let (feeds, weight) = self.job.evaluation_feeds(at, batch);
            sum += weight * trainer.consult(number, &feeds)?.to_f64()[0];
            weights += weight;
        }
        Ok(Scores { loss: sum / weights, ..Scores::default() })
    }

    /// Figures of both parts by name, behind that of the task.
    pub(in crate::train) fn figures(&self, [training, validation]: &[Scores; 2]) -> Vec<(String, f64)> {
        let losses = [("train_loss", training.loss), ("loss", validation.loss)].into_iter();
        let all = losses.chain(validation.figures.iter().copied());
        all.map(|(name, figure)| (format!("{}.{name}", self.name), figure)).collect()
    }

    fn blame(&self, error: Error) -> Error {
        Error::Task { name: self.name.clone(), source: Box::new(error) }
    }
}
