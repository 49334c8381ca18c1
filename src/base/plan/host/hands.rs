//! Who does the work of a plan: the thread that asks, with a team beside it, or the pool.
//!
//! Asking the pool costs tens of microseconds, and its threads take what they find; a team is there at once, on the same pieces in each run,
//! but shares out only products and attention. Which is faster depends on sizes, machine and load: small plans try both.

use super::awake;
use crate::ops::lead;
use crate::plan::Plan;
use std::time::{Duration, Instant};

/// Operations of a plan above which what a run costs besides is nothing beside its work.
const SMALL_FLOPS: f64 = 1e8;

/// Runs of each kind before the faster one stays.
const ROUNDS: u32 = 5;

/// Runs work in one way or the other, and learns which is faster.
pub(super) struct Hands {
    tried: u32,
    /// Shortest time with a team, and with the pool; none where the plan is too large for a team.
    shortest: Option<[Duration; 2]>,
}

impl Hands {
    pub fn of(plan: &Plan) -> Hands {
        let kinds = |values: &[crate::ops::Value]| {
            values.iter().map(|v| plan.graph.kind(*v).clone()).collect::<Vec<_>>()
        };
        let cost =
            |node: &crate::graph::Node| node.op.cost(&kinds(&node.inputs), &kinds(&node.outputs)).flops;
        let flops: f64 = plan.graph.nodes().iter().map(cost).sum();
        Hands { tried: 0, shortest: (flops <= SMALL_FLOPS).then_some([Duration::MAX; 2]) }
    }

    /// Does `work`, which gives the same in either way.
    pub fn run<T: Send>(&mut self, work: impl FnOnce() -> T + Send) -> T {
        let Some(shortest) = &mut self.shortest else { return awake::all_threads(work) };
        let pool = match self.tried < 2 * ROUNDS {
            true => self.tried % 2 == 1,
            false => shortest[1] < shortest[0],
        };
        let start = Instant::now();
        let result = if pool { awake::all_threads(work) } else { lead(work) };
        if self.tried < 2 * ROUNDS {
            self.tried += 1;
            let time = &mut shortest[usize::from(pool)];
            *time = start.elapsed().min(*time);
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_faster_way_stays() {
        let fresh = || Hands { tried: 0, shortest: Some([Duration::MAX; 2]) };
        for slow_in_pool in [true, false] {
            let mut hands = fresh();
            let slow = move || {
                let in_pool = rayon::current_thread_index().is_some();
                std::thread::sleep(Duration::from_millis(if in_pool == slow_in_pool { 5 } else { 0 }));
                in_pool
            };
            let ways: Vec<bool> = (0..2 * ROUNDS).map(|_| hands.run(slow)).collect();
            assert!(ways.contains(&true) && ways.contains(&false));
            assert!((0..4).all(|_| hands.run(slow) != slow_in_pool));
        }
    }
}
