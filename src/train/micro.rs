//! How much of a batch goes through the model at once: the most that fits, by what the plans say they take.

use super::job::Step;
use super::program::{Foreseen, Memory, Program};
use super::recipe::{Bytes, MicroBatch, Recipe};
use super::{Beside, Error, Result, Target};
use crate::model::Family;
use crate::plan;

/// Share of a device's memory that a run plans with: drivers and other programs need some too.
const SHARE: f64 = 0.9;

/// What a run may take, and who says so.
struct Budget {
    bytes: u64,
    from: String,
}

impl Budget {
    /// The recipe's, else most of what the device has; none where nobody tells.
    fn of(recipe: &Recipe, target: &Target) -> Option<Budget> {
        if let Some(Bytes(bytes)) = recipe.memory.budget {
            return Some(Budget { bytes, from: "memory.budget".into() });
        }
        let has = target.memory_bytes()?;
        let from = format!("{:.0} % of the {} that the device has", 100.0 * SHARE, Bytes(has));
        Some(Budget { bytes: (SHARE * has as f64) as u64, from })
    }
}

/// Replaces `train.micro_batch = "auto"` by the largest divisor of the batch that fits, and tells why; else does nothing.
pub fn settle(
    recipe: &mut Recipe,
    family: &dyn Family,
    beside: &Beside,
    target: &Target,
) -> Result<Option<String>> {
    if recipe.train.micro_batch != MicroBatch::Auto {
        return Ok(None);
    }
    let batch = recipe.train.batch;
    let budget = Budget::of(recipe, target);
    let mut larger = String::new();
    let mut last = None;
    for rows in (1..=batch).rev().filter(|&rows| batch.is_multiple_of(rows)) {
        recipe.train.micro_batch = MicroBatch::Rows(rows);
        let need_bytes = match need(recipe, family, beside, target) {
            Ok(memory) => memory.total(),
            Err(error @ Error::Plan(plan::Error::BindingTooLarge { .. })) => {
                larger = format!("; {rows} would exceed what this adapter binds at once");
                last = Some(error);
                continue;
            }
            Err(other) => return Err(other),
        };
        match &budget {
            Some(budget) if need_bytes > budget.bytes => {
                larger = format!("; {rows} would take up to {}", Bytes(need_bytes));
                last = Some(over(rows, need_bytes, budget));
            }
            _ => {
                let passes = recipe.train.passes();
                let room = budget
                    .map_or("; this device does not tell its memory, memory.budget does".into(), |b| {
                        format!(" of {} ({})", Bytes(b.bytes), b.from)
                    });
                let (takes, passes) = (
                    Bytes(need_bytes),
                    if passes == 1 { "1 pass".into() } else { format!("{passes} passes") },
                );
                return Ok(Some(format!(
                    "micro    {rows} of {batch} sequences at a time, {passes} to a step: at most {takes}{room}{larger}"
                )));
            }
        }
    }
    Err(last.expect("one divides every batch"))
}

/// Refuses what takes more than the recipe allows.
pub(super) fn refuse_over_budget(recipe: &Recipe, memory: Memory) -> Result<()> {
    match recipe.memory.budget {
        Some(Bytes(bytes)) if memory.total() > bytes => {
            let budget = Budget { bytes, from: "memory.budget".into() };
            Err(over(recipe.train.rows(), memory.total(), &budget))
        }
        _ => Ok(()),
    }
}

/// The most the recipe's step can take on a device.
pub fn need(recipe: &Recipe, family: &dyn Family, beside: &Beside, target: &Target) -> Result<Memory> {
    Ok(foresee(recipe, family, beside, target)?.memory)
}

/// The same, with what the step computes.
pub fn foresee(recipe: &Recipe, family: &dyn Family, beside: &Beside, target: &Target) -> Result<Foreseen> {
    let Step { weights, settings, extent } = Step::new(recipe, family, beside)?;
    let build = Step::loss(recipe, family, beside, extent);
    Program::foresee(target, &weights, &build, &settings)
}

fn over(rows: usize, need_bytes: u64, budget: &Budget) -> Error {
    let (need, budget, from) = (Bytes(need_bytes), Bytes(budget.bytes), budget.from.clone());
    Error::OverBudget { rows, need, budget, from }
}
