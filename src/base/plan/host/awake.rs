//! Keeps the thread pool from falling asleep between the operators of a run.
//!
//! A pool thread without work sleeps after some microseconds, and waking it takes longer than many an operator does. For the
//! time of one run the threads look for work without pause instead, giving way to other processes in between.
//!
//! A thread must never wait for the end of work of which it holds a part: what lies beneath on its stack would not go on. So all are
//! called before the work begins, and whoever comes later is sent away; and only one run at a time keeps threads awake.

use rayon::Yield;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Looks for work so many times before the processor is offered to others.
const PATIENCE: u32 = 64;

/// How long the work waits for threads to come: about what it takes to wake one.
const CALL: Duration = Duration::from_micros(100);

/// A run keeps threads awake.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// Who waits for a piece of work to end.
#[derive(Default)]
struct Vigil {
    /// Threads that have come.
    come: AtomicUsize,
    /// The work has begun: who comes now may hold a part of it.
    begun: AtomicBool,
    /// The work has ended.
    done: AtomicBool,
}

/// Does `work` on a thread of the pool while all others stay awake.
pub fn all_threads<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    if TAKEN.swap(true, Ordering::Acquire) {
        return rayon::scope(|_| work());
    }
    let _free = Ended { flag: &TAKEN, to: false };
    let vigil = &Vigil::default();
    rayon::scope(|scope| {
        let own = rayon::current_thread_index();
        // Each thread gets a copy that no other can take: on this one it must end at once, since the work waits beneath it.
        scope.spawn_broadcast(move |_, context| {
            if Some(context.index()) != own {
                vigil.keep();
            }
        });
        vigil.call(rayon::current_num_threads() - 1);
        let _ended = Ended { flag: &vigil.done, to: true };
        work()
    })
}

/// Sets a flag even if the work panics.
struct Ended<'a> {
    flag: &'a AtomicBool,
    to: bool,
}

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.flag.store(self.to, Ordering::Release);
    }
}

impl Vigil {
    /// Gives the other threads a moment to come.
    fn call(&self, others: usize) {
        let start = Instant::now();
        let mut looked = 0u32;
        while self.come.load(Ordering::Relaxed) < others {
            looked += 1;
            if looked.is_multiple_of(PATIENCE) {
                if start.elapsed() > CALL {
                    break;
                }
                std::thread::yield_now();
            }
            std::hint::spin_loop();
        }
        self.begun.store(true, Ordering::SeqCst);
    }

    /// Does what others leave to be done, until the work has ended.
    fn keep(&self) {
        if self.begun.load(Ordering::SeqCst) {
            return;
        }
        self.come.fetch_add(1, Ordering::Relaxed);
        let mut idle = 0u32;
        while !self.done.load(Ordering::Acquire) {
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

    #[test]
    fn a_thread_that_may_hold_a_part_of_the_work_is_not_kept() {
        let vigil = Vigil::default();
        vigil.call(0);
        // It would wait for ever: nobody ends this work.
        vigil.keep();
        assert_eq!(vigil.come.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn work_within_work_and_beside_it_comes_to_its_end() {
        let nested = || all_threads(|| (0..64u64).into_par_iter().map(|i| all_threads(|| i)).sum::<u64>());
        std::thread::scope(|scope| {
            let beside: Vec<_> =
                (0..4).map(|_| scope.spawn(|| (0..50).map(|_| nested()).sum::<u64>())).collect();
            assert!(beside.into_iter().all(|thread| thread.join().unwrap() == 50 * 2016));
        });
    }
}
