//! Learning-rate schedules: step number in, rate out.
//!
//! Every curve but one is a pure function of the step, so a resumed run needs no state to agree with one that never
//! stopped. The exception, `plateau`, listens to the validation loss; what it remembers is a [`PlateauState`] that
//! travels in the checkpoint.
//!
//! Steps count from zero. A curve starts at `peak` when the warm-up is over, and the decaying ones reach their floor at
//! step `until`: one past the last step of a run when `until` is the number of steps.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

/// A learning rate for every step of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Schedule {
    /// The highest rate, reached when the warm-up ends.
    pub peak: f64,
    /// Steps of linear warm-up before the curve begins.
    pub warmup: u64,
    /// Where the warm-up line starts.
    pub warmup_rule: WarmupRule,
    /// What happens after the warm-up.
    #[serde(flatten)]
    pub curve: Curve,
}

/// The two conventions for the warm-up line, `w` steps long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WarmupRule {
    /// `peak * (i + 1) / (w + 1)`: no step is wasted on a rate of zero.
    Nanogpt,
    /// `peak * i / w`: the first step has rate zero.
    Huggingface,
}

/// The course of the rate after the warm-up.
#[allow(missing_docs, reason = "each variant's line says what its fields do")]
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "curve", rename_all = "kebab-case")]
pub enum Curve {
    /// Stays at the peak.
    Constant,
    /// From peak to floor along `(1 - progress) ^ power`; power one is a straight line.
    Linear { floor: f64, until: u64, power: f64 },
    /// From peak to floor along half a cosine, `cycles` times over with hard restarts.
    Cosine { floor: f64, until: u64, cycles: u64 },
    /// Half a cosine of `every` steps, again and again, each `growth` times as long as the one before.
    CosineRestarts { floor: f64, every: u64, growth: u64 },
    /// Multiplied by `factor` after each `every` steps, never below the floor.
    Step { floor: f64, factor: f64, every: u64 },
    /// Multiplied by `factor` at each listed step, counted from the end of the warm-up.
    Milestones { factor: f64, at: Vec<u64> },
    /// Multiplied by `factor` at every step, never below the floor.
    Exponential { floor: f64, factor: f64 },
    /// Up from `start` to the peak over the share `rise` of the run, then down to the floor, both along half a cosine.
    OneCycle { start: f64, floor: f64, until: u64, rise: f64 },
    /// `peak * sqrt(timescale / (timescale + i))`, with `i` counted from the end of the warm-up.
    InverseSqrt { floor: f64, timescale: u64 },
    /// Multiplied by `factor` when the validation loss has not improved for more than `patience` evaluations.
    Plateau {
        floor: f64,
        factor: f64,
        patience: u64,
        /// Relative improvement that counts: below `best * (1 - threshold)`.
        threshold: f64,
        /// Evaluations after a cut during which nothing is counted.
        cooldown: u64,
    },
}

/// What the plateau curve remembers between evaluations.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PlateauState {
    best: Option<f64>,
    bad_evaluations: u64,
    cooldown_left: u64,
    rate: Option<f64>,
}

/// Cuts smaller than this are not worth making; the figure is PyTorch's.
const SMALLEST_CUT: f64 = 1e-8;

impl Schedule {
    /// The same rate at every step.
    pub fn constant(rate: f64) -> Schedule {
        Schedule { peak: rate, warmup: 0, warmup_rule: WarmupRule::Nanogpt, curve: Curve::Constant }
    }

    /// The rate in force at `step`, counted from zero. Only the plateau curve reads `plateau`.
    pub fn rate(&self, step: u64, plateau: &PlateauState) -> f64 {
        if step < self.warmup {
            return self.peak * self.warmup_share(step);
        }
        let peak = self.peak;
        let since = step - self.warmup;
        match &self.curve {
            Curve::Constant => peak,
            Curve::Linear { floor, until, power } => {
                floor + (peak - floor) * (1.0 - self.progress(step, *until)).powf(*power)
            }
            Curve::Cosine { floor, until, cycles } => {
                let progress = self.progress(step, *until);
                if progress >= 1.0 {
                    return *floor;
                }
                half_cosine(peak, *floor, (progress * *cycles as f64).fract())
            }
            Curve::CosineRestarts { floor, every, growth } => {
                half_cosine(peak, *floor, restart_progress(since, *every, *growth))
            }
            Curve::Step { floor, factor, every } => (peak * factor.powf((since / every) as f64)).max(*floor),
            Curve::Milestones { factor, at } => {
                let passed = at.iter().filter(|&&milestone| since >= milestone).count();
                peak * factor.powf(passed as f64)
            }
            Curve::Exponential { floor, factor } => (peak * factor.powf(since as f64)).max(*floor),
            Curve::OneCycle { start, floor, until, rise } => {
                one_cycle([*start, peak, *floor], since, *until, *rise)
            }
            Curve::InverseSqrt { floor, timescale } => {
                let timescale = *timescale as f64;
                (peak * (timescale / (timescale + since as f64)).sqrt()).max(*floor)
            }
            Curve::Plateau { .. } => plateau.rate.unwrap_or(peak),
        }
    }

    /// Tells the plateau curve a validation loss; gives the new rate when it was cut. Other curves do not listen.
    pub fn observe(&self, state: &mut PlateauState, validation_loss: f64) -> Option<f64> {
        let Curve::Plateau { floor, factor, patience, threshold, cooldown } = &self.curve else {
            return None;
        };
        let limit = state.best.map_or(f64::INFINITY, |best| best * (1.0 - threshold));
        if validation_loss < limit {
            state.best = Some(validation_loss);
            state.bad_evaluations = 0;
        } else {
            state.bad_evaluations += 1;
        }
        if state.cooldown_left > 0 {
            state.cooldown_left -= 1;
            state.bad_evaluations = 0;
        }
        if state.bad_evaluations <= *patience {
            return None;
        }
        state.cooldown_left = *cooldown;
        state.bad_evaluations = 0;
        let old = state.rate.unwrap_or(self.peak);
        let new = (old * factor).max(*floor);
        if old - new <= SMALLEST_CUT {
            return None;
        }
        state.rate = Some(new);
        Some(new)
    }

    fn warmup_share(&self, step: u64) -> f64 {
        match self.warmup_rule {
            WarmupRule::Nanogpt => (step + 1) as f64 / (self.warmup + 1) as f64,
            WarmupRule::Huggingface => step as f64 / self.warmup as f64,
        }
    }

    /// Share of the way from the end of the warm-up to `until`, in `0.0..=1.0`.
    fn progress(&self, step: u64, until: u64) -> f64 {
        if step >= until {
            return 1.0;
        }
        (step - self.warmup) as f64 / (until - self.warmup) as f64
    }
}

/// From `high` at progress zero to `low` at progress one.
fn half_cosine(high: f64, low: f64, progress: f64) -> f64 {
    low + (high - low) * 0.5 * (1.0 + (PI * progress).cos())
}

fn restart_progress(mut since: u64, every: u64, growth: u64) -> f64 {
    let mut length = every;
    while since >= length {
        since -= length;
        length = length.saturating_mul(growth);
    }
    since as f64 / length as f64
}

/// The turning point lies at `rise * until - 1`, which need not be a whole step; the floor at the last step.
fn one_cycle([start, peak, floor]: [f64; 3], step: u64, until: u64, rise: f64) -> f64 {
    let step = step as f64;
    let turn = rise * until as f64 - 1.0;
    let end = until as f64 - 1.0;
    if step >= end {
        floor
    } else if step <= turn {
        half_cosine(start, peak, step / turn)
    } else {
        half_cosine(peak, floor, (step - turn) / (end - turn))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(got: f64, expected: f64) {
        assert!((got - expected).abs() <= 1e-6 * expected.abs(), "got {got}, expected {expected}");
    }

    fn schedule(peak: f64, warmup: u64, warmup_rule: WarmupRule, curve: Curve) -> Schedule {
        Schedule { peak, warmup, warmup_rule, curve }
    }

    fn check(schedule: &Schedule, expected: &[(u64, f64)]) {
        for &(step, rate) in expected {
            close(schedule.rate(step, &PlateauState::default()), rate);
        }
    }

    // Values of the following tests: PyTorch 2.15, transformers 5.23 and nanoGPT's rule, base rate 1e-3, 60 steps.

    #[test]
    fn cosine_follows_nanogpt_with_its_warm_up() {
        let curve = Curve::Cosine { floor: 1e-4, until: 60, cycles: 1 };
        let cosine = schedule(1e-3, 10, WarmupRule::Nanogpt, curve);
        let expected = [
            (0, 9.090909090909092e-05),
            (9, 0.0009090909090909091),
            (10, 0.001),
            (12, 0.000996451615591515),
            (59, 0.0001008879722072778),
            (60, 1e-4),
            (600, 1e-4),
        ];
        check(&cosine, &expected);
    }

    #[test]
    fn linear_and_cosine_follow_hugging_face_with_its_warm_up() {
        let linear = Curve::Linear { floor: 0.0, until: 60, power: 1.0 };
        let linear = schedule(1e-3, 10, WarmupRule::Huggingface, linear);
        check(&linear, &[(0, 0.0), (1, 1e-4), (10, 1e-3), (12, 0.00096), (59, 2e-5), (60, 0.0)]);

        let cosine = Curve::Cosine { floor: 0.0, until: 60, cycles: 1 };
        let cosine = schedule(1e-3, 10, WarmupRule::Huggingface, cosine);
        check(&cosine, &[(11, 0.0009990133642141358), (35, 0.0005), (59, 9.866357858642206e-07)]);
    }

    #[test]
    fn a_power_bends_the_line_and_cycles_restart_the_cosine() {
        let curve = Curve::Linear { floor: 1e-6, until: 60, power: 2.0 };
        let bent = schedule(1e-3, 10, WarmupRule::Huggingface, curve);
        check(&bent, &[(11, 0.0009604396000000001), (59, 1.3996000000000008e-06), (60, 1e-6)]);

        let curve = Curve::Cosine { floor: 0.0, until: 60, cycles: 3 };
        let hard = schedule(1e-3, 10, WarmupRule::Huggingface, curve);
        check(&hard, &[(11, 0.0009911436253643444), (27, 0.0009990133642141358), (60, 0.0)]);

        let curve = Curve::CosineRestarts { floor: 1e-6, every: 9, growth: 2 };
        let growing = schedule(1e-3, 0, WarmupRule::Nanogpt, curve);
        check(&growing, &[(3, 0.0007502500000000002), (9, 1e-3), (10, 0.000992411472629598)]);
    }

    #[test]
    fn step_milestones_and_exponential_multiply() {
        let curve = Curve::Step { floor: 0.0, factor: 0.5, every: 7 };
        let step = schedule(1e-3, 0, WarmupRule::Nanogpt, curve);
        check(&step, &[(6, 1e-3), (7, 5e-4), (60, 3.90625e-06)]);

        let curve = Curve::Milestones { factor: 0.3, at: vec![5, 20, 33] };
        let milestones = schedule(1e-3, 0, WarmupRule::Nanogpt, curve);
        check(&milestones, &[(4, 1e-3), (5, 3e-4), (60, 2.7e-5)]);

        let curve = Curve::Exponential { floor: 0.0, factor: 0.93 };
        let exponential = schedule(1e-3, 0, WarmupRule::Nanogpt, curve);
        check(&exponential, &[(1, 0.00093), (12, 0.000418596297479371), (60, 1.2852183368996866e-05)]);
    }

    #[test]
    fn one_cycle_rises_turns_between_steps_and_ends_at_its_floor() {
        let curve = Curve::OneCycle { start: 2e-4, floor: 2e-8, until: 61, rise: 0.3 };
        let cycle = schedule(5e-3, 0, WarmupRule::Nanogpt, curve);
        let expected =
            [(0, 2e-4), (1, 0.00023946344452582986), (12, 0.003971620611591767), (60, 2e-8), (99, 2e-8)];
        check(&cycle, &expected);
    }

    #[test]
    fn inverse_square_root_falls_from_the_end_of_the_warm_up() {
        let curve = Curve::InverseSqrt { floor: 0.0, timescale: 10 };
        let inverse = schedule(1e-3, 10, WarmupRule::Huggingface, curve);
        check(&inverse, &[(9, 9e-4), (10, 1e-3), (11, 0.0009534625892455923), (60, 0.0004082482904638631)]);
    }

    #[test]
    fn a_run_shorter_than_its_warm_up_never_leaves_the_line() {
        let curve = Curve::Cosine { floor: 1e-4, until: 50, cycles: 1 };
        let short = schedule(1e-3, 100, WarmupRule::Nanogpt, curve);
        check(&short, &[(49, 1e-3 * 50.0 / 101.0), (99, 1e-3 * 100.0 / 101.0), (100, 1e-4)]);
    }

    fn plateau() -> Schedule {
        let curve = Curve::Plateau { floor: 1e-4, factor: 0.5, patience: 2, threshold: 0.01, cooldown: 1 };
        schedule(1e-3, 0, WarmupRule::Nanogpt, curve)
    }

    #[test]
    fn plateau_cuts_after_more_bad_evaluations_than_its_patience() {
        let (schedule, mut state) = (plateau(), PlateauState::default());
        let cuts: Vec<_> = [2.0, 1.995, 1.999, 1.99, 1.99, 2.0, 2.0, 2.0]
            .map(|loss| schedule.observe(&mut state, loss))
            .into();
        // Three bad ones cut; the next is the cool-down; three more cut again.
        assert_eq!(cuts, [None, None, None, Some(5e-4), None, None, None, Some(2.5e-4)]);
        assert_eq!(schedule.rate(7, &state), 2.5e-4);
    }

    #[test]
    fn a_loss_that_is_not_a_number_never_becomes_the_best() {
        let (schedule, mut state) = (plateau(), PlateauState::default());
        schedule.observe(&mut state, f64::NAN);
        schedule.observe(&mut state, 3.0);
        schedule.observe(&mut state, f64::NAN);
        assert_eq!(state.best, Some(3.0));
    }

    #[test]
    fn a_plateau_restored_from_json_goes_on_as_if_it_never_stopped() {
        let losses: Vec<f64> = (0..40).map(|i| 2.0 / 3.0 + 1.0 / (1.0 + i as f64)).collect();
        let (schedule, mut whole, mut halved) = (plateau(), PlateauState::default(), PlateauState::default());
        for (i, &loss) in losses.iter().enumerate() {
            let text = serde_json::to_string(&halved).unwrap();
            halved = serde_json::from_str(&text).unwrap();
            assert_eq!(schedule.observe(&mut whole, loss), schedule.observe(&mut halved, loss), "at {i}");
        }
        assert_eq!(whole, halved);
        assert!(whole.rate.is_some(), "the example must contain a cut");
    }
}
