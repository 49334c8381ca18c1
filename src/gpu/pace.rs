//! Submissions cut to a time budget: a watchdog resets a GPU that is busy for about two seconds.
//!
//! Until a plan has run, time is guessed from work at the rate of a slow GPU. From then on it is what the device's clock gave
//! its runs, spread over the dispatches by their work. A driver on the CPU has no watchdog and gets everything at once.

use crate::ops::Value;
use crate::ops::launch::Caps;
use crate::plan::Plan;
use crate::tensor::Type;
use std::ops::Range;
use std::time::Duration;

/// Time for one submission: a part of what a watchdog allows, since work is no exact measure of time.
const BUDGET: Duration = Duration::from_millis(250);
/// Work per second of a slow GPU.
const GUESS: f64 = 4e10;
/// Operations that take as long as moving a byte.
const FLOPS_PER_BYTE: f64 = 8.0;
/// A run that takes this many times longer or shorter than was thought changes the cut.
const SURPRISE: f64 = 1.5;

/// How the dispatches of a plan are cut.
pub(super) struct Pace {
    /// Work of each dispatch.
    work: Vec<f64>,
    /// Seconds a run takes, as far as is known.
    seconds: f64,
    /// Seconds a submission may take.
    budget: f64,
    parts: Vec<Range<usize>>,
}

impl Pace {
    pub(super) fn new(plan: &Plan, caps: &Caps) -> Self {
        let graph = &plan.graph;
        let types =
            |values: &[Value]| -> Vec<Type> { values.iter().map(|&v| graph.kind(v).clone()).collect() };
        let work = |node: usize| {
            let node = &graph.nodes()[node];
            let cost = node.op.cost(&types(&node.inputs), &types(&node.outputs));
            cost.flops + FLOPS_PER_BYTE * cost.bytes
        };
        let work = plan.dispatches.iter().map(|dispatch| work(dispatch.node)).collect();
        Pace::of(work, if caps.is_cpu { f64::INFINITY } else { BUDGET.as_secs_f64() })
    }

    fn of(work: Vec<f64>, budget: f64) -> Self {
        let seconds = work.iter().sum::<f64>() / GUESS;
        let mut pace = Pace { work, seconds, budget, parts: vec![] };
        pace.cut();
        pace
    }

    /// Dispatches of each submission.
    pub(super) fn parts(&self) -> &[Range<usize>] {
        &self.parts
    }

    /// Changes the time a submission may take.
    pub(super) fn allow(&mut self, budget: Duration) {
        self.budget = budget.as_secs_f64();
        self.cut();
    }

    /// Takes notice of how long a run took.
    pub(super) fn learn(&mut self, seconds: f64) {
        let ratio = seconds / self.seconds;
        if seconds > 0.0 && !(1.0 / SURPRISE..=SURPRISE).contains(&ratio) {
            self.seconds = seconds;
            self.cut();
        }
    }

    fn cut(&mut self) {
        let total: f64 = self.work.iter().sum();
        let most = self.budget * total / self.seconds;
        self.parts.clear();
        let (mut first, mut sum) = (0, 0.0);
        for (at, own) in self.work.iter().enumerate() {
            if at > first && sum + own > most {
                self.parts.push(first..at);
                (first, sum) = (at, 0.0);
            }
            sum += own;
        }
        self.parts.push(first..self.work.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::random::Stream;

    #[test]
    fn no_submission_is_expected_to_exceed_the_budget_unless_it_is_one_dispatch() {
        let mut stream = Stream::new(&[61]);
        for _ in 0..100 {
            let work: Vec<f64> = (0..1 + stream.below(40)).map(|_| (1 + stream.below(1000)) as f64).collect();
            let mut pace = Pace::of(work.clone(), 0.25);
            let seconds = (1 + stream.below(3000)) as f64 / 1e3;
            pace.learn(seconds);
            let rate = work.iter().sum::<f64>() / seconds;
            let time = |part: &Range<usize>| work[part.clone()].iter().sum::<f64>() / rate;
            assert!(pace.parts().iter().all(|part| part.len() == 1 || time(part) <= 0.25 + 1e-9));
            let covered: Vec<usize> = pace.parts().iter().cloned().flatten().collect();
            assert_eq!(covered, (0..work.len()).collect::<Vec<_>>());
            // Two neighbours would not have fitted into one.
            assert!(pace.parts().windows(2).all(|two| time(&(two[0].start..two[1].end)) > 0.25));
        }
    }

    #[test]
    fn a_guess_is_corrected_by_what_runs_take_and_small_changes_are_left_alone() {
        // A second at the guessed rate, in ten dispatches.
        let mut pace = Pace::of(vec![GUESS / 10.0; 10], 0.25);
        assert_eq!(pace.parts().len(), 5);
        pace.learn(0.01);
        assert_eq!(pace.parts().len(), 1, "a fast device gets the whole run at once");
        pace.learn(1.0);
        pace.learn(1.4);
        assert_eq!(pace.parts().len(), 5);
        pace.learn(2.5);
        assert_eq!(pace.parts().len(), 10, "a slow one a dispatch at a time");
    }

    #[test]
    fn a_driver_on_the_cpu_and_an_empty_plan_have_one_submission() {
        assert!(matches!(Pace::of(vec![1e30; 7], f64::INFINITY).parts(), [Range { start: 0, end: 7 }]));
        let mut empty = Pace::of(vec![], 0.25);
        empty.learn(1.0);
        assert!(matches!(empty.parts(), [Range { start: 0, end: 0 }]));
    }
}
