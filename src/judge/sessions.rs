//! Who is judging at this moment: which raters' pages have been heard of lately.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// For how long a page that is silent counts as open. Pages speak up every five seconds.
const SILENCE: Duration = Duration::from_secs(30);

/// Pages by rater. A restart forgets them; tokens are in the results file.
#[derive(Default)]
pub struct Sessions {
    seen: HashMap<i64, (String, Instant)>,
}

impl Sessions {
    /// A rater's page was heard of.
    pub fn hear(&mut self, rater: i64, page: &str, now: Instant) {
        self.seen.insert(rater, (page.to_string(), now));
    }

    /// A page was closed. Where another one of the rater's has been opened since, that one stays.
    pub fn leave(&mut self, rater: i64, page: &str) {
        if self.seen.get(&rater).is_some_and(|(last, _)| last == page) {
            self.seen.remove(&rater);
        }
    }

    /// Since when nothing was heard of a rater who is judging; none where nobody is.
    pub fn active(&self, rater: i64, now: Instant) -> Option<Duration> {
        let silent = now.duration_since(self.seen.get(&rater)?.1);
        (silent < SILENCE).then_some(silent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_active_until_it_is_closed_or_long_silent() {
        let (mut sessions, now) = (Sessions::default(), Instant::now());
        assert_eq!(sessions.active(1, now), None);
        sessions.hear(1, "first", now);
        let later = now + Duration::from_secs(7);
        assert_eq!(sessions.active(1, later), Some(Duration::from_secs(7)));
        assert_eq!(sessions.active(2, later), None);
        assert_eq!(sessions.active(1, now + SILENCE), None);
        // A reload: the old page's farewell comes after the new page's first word.
        sessions.hear(1, "second", later);
        sessions.leave(1, "first");
        assert!(sessions.active(1, later).is_some());
        sessions.leave(1, "second");
        assert_eq!(sessions.active(1, later), None);
    }
}
