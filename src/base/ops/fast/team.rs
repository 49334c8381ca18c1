//! Work of microseconds, shared out at once.
//!
//! A pool takes some microseconds to hand work over and tens of them to call a thread that sleeps: more than one operator
//! takes where a small model writes one token. A team's threads look at a place of their own, each at one, without pause, for as
//! long as a run lasts and a moment longer. Who leads puts a piece into each place, does a piece itself, and then does what
//! nobody has taken, so that no one is waited for who has not come.
//!
//! Piece number i is always for thread number i: its share of a weight stays in its core's cache from run to run.

use rayon::prelude::*;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, OnceLock, TryLockError};
use std::thread::Thread;
use std::time::{Duration, Instant};

/// Threads of a team at the most, the leader among them: more gain nothing on work this small.
const MOST: usize = 8;

/// How long a thread looks for work before it sleeps.
const LINGER: Duration = Duration::from_micros(200);

/// Looks for work so many times before the processor is offered to others.
const PATIENCE: u32 = 64;

/// Nothing lies there.
const EMPTY: u8 = 0;
/// A piece lies there that anyone may take.
const OFFERED: u8 = 1;
/// Its thread is at it.
const TAKEN: u8 = 2;
/// It is done.
const DONE: u8 = 3;
/// It has panicked.
const BROKEN: u8 = 4;

/// What is done with each number of a piece, without its lifetime.
type Work = *const (dyn Fn(usize) + Sync);

/// A thread's place, on cache lines of its own.
#[repr(align(128))]
struct Seat {
    state: AtomicU8,
    asleep: AtomicBool,
    /// Written by who leads while the place is empty, read by who has taken the piece.
    work: UnsafeCell<Option<Work>>,
}

// SAFETY: `work` is handed over by `state`; what it points to is `Sync` and outlives the piece, since the leader waits for it.
unsafe impl Sync for Seat {}
// SAFETY: as above.
unsafe impl Send for Seat {}

struct Team {
    /// Where the others look for work.
    seats: Vec<Arc<Seat>>,
    /// Who looks there.
    threads: Vec<Thread>,
    /// Held by who leads.
    leader: Mutex<()>,
}

thread_local! {
    /// Threads that work for this one; none where it leads no team.
    static MEMBERS: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Threads among which this one shares out work, itself among them; none where it leads no team, but may use the pool.
pub(crate) fn members() -> Option<usize> {
    MEMBERS.get()
}

/// Does `work` on this thread, and what it shares out on those of a team too. Where another leads the team it is done alone.
pub fn lead<T>(work: impl FnOnce() -> T) -> T {
    let team = team();
    let held = match team.leader.try_lock() {
        Ok(held) => Some(held),
        Err(TryLockError::Poisoned(held)) => Some(held.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    };
    let members = held.as_ref().map_or(1, |_| {
        (0..team.seats.len()).for_each(|number| team.wake(number));
        1 + team.seats.len()
    });
    let _before = Members::are(members);
    work()
}

/// Sets the number of members back, even if the work panics.
struct Members {
    before: Option<usize>,
}

impl Members {
    fn are(count: usize) -> Members {
        Members { before: MEMBERS.replace(Some(count)) }
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        MEMBERS.set(self.before);
    }
}

/// Calls `work` with each number below `pieces`, over the team's threads where this one leads one, else over those of the pool.
pub(crate) fn share(pieces: usize, work: &(dyn Fn(usize) + Sync)) {
    match members() {
        None if pieces > 1 => (0..pieces).into_par_iter().with_max_len(1).for_each(work),
        Some(members) if members > 1 && pieces > 1 => {
            let used = members.min(pieces);
            team().together(used - 1, &|member: usize| (member..pieces).step_by(used).for_each(work));
        }
        _ => (0..pieces).for_each(work),
    }
}

/// Calls `work` with the number of each piece of `each` elements and the piece, as [`share`] does.
pub(crate) fn chunks<T: Send>(all: &mut [T], each: usize, work: impl Fn(usize, &mut [T]) + Sync) {
    let (each, length) = (each.max(1), all.len());
    let start = Start(all.as_mut_ptr());
    share(length.div_ceil(each), &|number| {
        let first = number * each;
        // SAFETY: within `all`, which is borrowed for the time; each number is given once, and pieces do not overlap.
        let piece = unsafe { std::slice::from_raw_parts_mut(start.at(first), each.min(length - first)) };
        work(number, piece);
    });
}

/// Where a slice begins, for threads that each take another part of it.
struct Start<T>(*mut T);

// SAFETY: see its only use.
unsafe impl<T: Send> Sync for Start<T> {}

impl<T> Start<T> {
    /// # Safety
    /// The slice has more than so many elements.
    unsafe fn at(&self, first: usize) -> *mut T {
        // SAFETY: the caller's.
        unsafe { self.0.add(first) }
    }
}

impl Team {
    fn wake(&self, number: usize) {
        let asleep = &self.seats[number].asleep;
        if asleep.load(Ordering::Relaxed) && asleep.swap(false, Ordering::AcqRel) {
            self.threads[number].unpark();
        }
    }

    /// Does piece 0 here, and piece i + 1 at seat i or here as well.
    fn together(&self, others: usize, work: &(dyn Fn(usize) + Sync)) {
        // What a piece shares out itself stays on its thread: the seats are taken.
        let _alone = Members::are(1);
        let borrowed: *const (dyn Fn(usize) + Sync + '_) = work;
        // SAFETY: only the lifetime changes; `Offered` waits for every piece, so that `work` is there as long as one is under way.
        let lent: Work = unsafe { std::mem::transmute(borrowed) };
        for (number, seat) in self.seats[..others].iter().enumerate() {
            // SAFETY: the place is empty, so nobody else touches it.
            unsafe { *seat.work.get() = Some(lent) };
            seat.state.store(OFFERED, Ordering::Release);
            self.wake(number);
        }
        let mut offered = Offered { seats: &self.seats[..others], broken: false };
        work(0);
        for number in 1..=others {
            if !offered.settle() {
                work(number);
            }
        }
        assert!(!offered.broken, "a thread of the team panicked");
    }
}

/// Pieces of which nobody knows yet that they are done. None is left when this is dropped, whatever happens.
struct Offered<'a> {
    seats: &'a [Arc<Seat>],
    broken: bool,
}

impl Offered<'_> {
    /// Takes the next piece back, or waits for it where its thread has it: whether that thread has done it.
    fn settle(&mut self) -> bool {
        let Some((seat, rest)) = self.seats.split_first() else { return true };
        self.seats = rest;
        if seat.state.compare_exchange(OFFERED, EMPTY, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            return false;
        }
        let mut looked = 0u32;
        while seat.state.load(Ordering::Acquire) == TAKEN {
            pause(&mut looked);
        }
        self.broken |= seat.state.swap(EMPTY, Ordering::Relaxed) == BROKEN;
        true
    }
}

impl Drop for Offered<'_> {
    fn drop(&mut self) {
        while !self.seats.is_empty() {
            self.settle();
        }
    }
}

/// Waits a moment; every now and then others may have the processor. Whether they could have had it.
fn pause(looked: &mut u32) -> bool {
    *looked = looked.wrapping_add(1);
    let gives = looked.is_multiple_of(PATIENCE);
    if gives {
        std::thread::yield_now();
    }
    std::hint::spin_loop();
    gives
}

/// The team of this process, as many as the pool has threads; they begin when it is first led.
fn team() -> &'static Team {
    static TEAM: OnceLock<Team> = OnceLock::new();
    TEAM.get_or_init(|| {
        let mut team = Team { seats: vec![], threads: vec![], leader: Mutex::new(()) };
        for number in 1..rayon::current_num_threads().min(MOST) {
            let seat = Arc::new(Seat {
                state: AtomicU8::new(EMPTY),
                asleep: AtomicBool::new(false),
                work: UnsafeCell::new(None),
            });
            let own = seat.clone();
            let thread = std::thread::Builder::new().name(format!("team {number}"));
            // A system that gives no more threads has fewer in the team.
            let Ok(thread) = thread.spawn(move || serve(number, &own)) else { break };
            team.seats.push(seat);
            team.threads.push(thread.thread().clone());
        }
        team
    })
}

/// Does every piece that is put into a seat, as long as the process lives.
fn serve(number: usize, seat: &Seat) {
    MEMBERS.set(Some(1));
    let (mut looked, mut last) = (0, Instant::now());
    loop {
        let offered = seat.state.load(Ordering::Relaxed) == OFFERED;
        if offered
            && seat.state.compare_exchange(OFFERED, TAKEN, Ordering::Acquire, Ordering::Relaxed).is_ok()
        {
            // SAFETY: taken, so nobody else touches it.
            let work = unsafe { (*seat.work.get()).take() };
            let work = work.expect("an offered place holds work");
            // SAFETY: who leads waits for this piece before the work ends.
            let done = catch_unwind(AssertUnwindSafe(|| unsafe { (*work)(number) }));
            seat.state.store(if done.is_ok() { DONE } else { BROKEN }, Ordering::Release);
            (looked, last) = (0, Instant::now());
        } else if pause(&mut looked) && last.elapsed() > LINGER {
            seat.asleep.store(true, Ordering::Release);
            while seat.asleep.load(Ordering::Acquire) {
                std::thread::park();
            }
            last = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_is_done_once_with_a_team_and_without() {
        let trial = |pieces: usize| {
            let mut counts = vec![0u32; pieces * 3];
            chunks(&mut counts, 3, |number, piece| piece.iter_mut().for_each(|c| *c += number as u32 + 1));
            let expected: Vec<u32> = (0..3 * pieces).map(|i| (i / 3) as u32 + 1).collect();
            assert_eq!(counts, expected);
        };
        for round in 0..200 {
            trial(round % 9);
            lead(|| (0..5).for_each(|more| trial((round + more) % 9)));
            if round % 50 == 0 {
                // Its threads fall asleep in the meantime.
                std::thread::sleep(2 * LINGER);
            }
        }
    }

    #[test]
    fn a_last_piece_may_be_short() {
        let mut all = [0; 10];
        lead(|| chunks(&mut all, 4, |number, piece| piece.fill(10 * number + piece.len())));
        assert_eq!(all, [4, 4, 4, 4, 14, 14, 14, 14, 22, 22]);
    }

    #[test]
    fn pieces_that_share_out_work_themselves_and_leaders_beside_each_other_come_to_an_end() {
        let nested = || {
            lead(|| {
                let mut sums = [0u64; 4];
                chunks(&mut sums, 1, |number, sum| {
                    let mut parts = [0u64; 5];
                    lead(|| chunks(&mut parts, 2, |at, part| part.fill((number + at) as u64)));
                    sum[0] = parts.iter().sum();
                });
                sums.iter().sum::<u64>()
            })
        };
        let alone = nested();
        std::thread::scope(|scope| {
            let all: Vec<_> =
                (0..4).map(|_| scope.spawn(|| (0..50).map(|_| nested()).sum::<u64>())).collect();
            assert!(all.into_iter().all(|thread| thread.join().unwrap() == 50 * alone));
        });
    }

    #[test]
    fn a_piece_that_panics_ends_the_work_and_not_the_team() {
        for broken in 0..3 {
            let work = |number: usize| assert_ne!(number, broken, "as it should");
            assert!(std::panic::catch_unwind(|| lead(|| share(3, &work))).is_err());
        }
        lead(|| share(3, &|_| {}));
        assert_eq!(members(), None);
    }
}
