//! Keeps the thread pool from falling asleep between the operators of a run.
//!
//! A pool thread without work sleeps after some microseconds, and waking it takes longer than many an operator does. For the
//! time of one run the threads look for work without pause instead, giving way to other processes in between.

use rayon::Yield;
use std::sync::atomic::{AtomicBool, Ordering};

/// Looks for work so many times before the processor is offered to others.
const PATIENCE: u32 = 64;

/// Does `work` on a thread of the pool while all others stay awake.
pub fn all_threads<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let done = AtomicBool::new(false);
    let flag = &done;
    rayon::scope(|scope| {
        let own = rayon::current_thread_index();
        // Each thread gets a copy that no other can take: on this one it must end at once, since the work waits beneath it.
        scope.spawn_broadcast(move |_, context| {
            if Some(context.index()) != own {
                wait(flag);
            }
        });
        let _ended = Ended(flag);
        work()
    })
}

/// Sets the flag even if the work panics.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Does what others leave to be done, until the flag is set.
fn wait(done: &AtomicBool) {
    let mut idle = 0;
    while !done.load(Ordering::Acquire) {
        match rayon::yield_now() {
            Some(Yield::Executed) => idle = 0,
            _ => idle += 1,
        }
        if idle % PATIENCE == PATIENCE - 1 {
            std::thread::yield_now();
        }
        std::hint::spin_loop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rayon::prelude::*;

    #[test]
    fn work_is_shared_and_its_result_comes_back() {
        for threads in [1, 2, 4] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            for round in 0..100u64 {
                let sum: u64 =
                    pool.install(|| all_threads(|| (0..1000u64).into_par_iter().map(|i| i * round).sum()));
                assert_eq!(sum, 499_500 * round);
            }
        }
    }

    #[test]
    fn a_panic_ends_the_waiting() {
        let failed = std::panic::catch_unwind(|| all_threads(|| panic!("as it should")));
        assert!(failed.is_err());
        assert_eq!(all_threads(|| 7), 7);
    }
}
