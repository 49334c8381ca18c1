//! How long a run tries to get a lost device back.

use super::Target;
use super::run::Watch;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Tries from the same checkpoint before a run gives up.
const TRIES: u32 = 3;
/// Wait before the second try; the third waits twice as long. A driver takes its time to reset a device.
const PAUSE: Duration = Duration::from_secs(1);

/// Counts the tries since a checkpoint was last written.
#[derive(Default)]
pub(super) struct Patience {
    from: Option<u64>,
    tries: u32,
}

impl Patience {
    /// The same device opened anew, for a run that goes on after step `from`; none if it was tried often enough.
    pub(super) fn open_again(&mut self, target: &Target, from: u64, watch: &mut Watch) -> Option<Target> {
        loop {
            let pause = self.next(from)?;
            let until = Instant::now() + pause;
            while Instant::now() < until {
                if watch.stop.load(Ordering::Relaxed) {
                    return None;
                }
                std::thread::sleep(PAUSE / 20);
            }
            match target.open_again() {
                Ok(target) => return Some(target),
                Err(error) => (watch.say)(&format!("warning: try {} of {TRIES}: {error}", self.tries)),
            }
        }
    }

    /// Time to wait before the next try, or none.
    fn next(&mut self, from: u64) -> Option<Duration> {
        if self.from != Some(from) {
            *self = Patience { from: Some(from), tries: 0 };
        }
        self.tries += 1;
        (self.tries <= TRIES).then(|| PAUSE * (self.tries - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_tries_from_one_checkpoint_and_three_more_from_the_next() {
        let mut patience = Patience::default();
        let mut waits = |from| patience.next(from).map(|wait| wait.as_secs());
        assert_eq!([waits(0), waits(0), waits(0), waits(0)], [Some(0), Some(1), Some(2), None]);
        assert_eq!([waits(250), waits(250)], [Some(0), Some(1)]);
    }
}
