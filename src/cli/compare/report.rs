//! What a comparison found.

use super::speed::Speed;
use super::training::Training;
use super::verdict::Place;
use crate::cli::bench::Roofs;
use crate::compare::Apart;
use crate::compress::{Named, Outcome};
use std::path::PathBuf;
use std::time::SystemTime;

/// A scheme that was made and measured.
pub struct Case {
    /// How codes were chosen.
    pub method: &'static str,
    /// Bits of a weight of the quantised layers, scales in.
    pub bits: f64,
    /// Bits of a weight as the device holds the whole model.
    pub model_bits: f64,
    /// Bytes of all weights on the device.
    pub weight_bytes: u64,
    /// What became of each layer.
    pub outcomes: Vec<Outcome>,
    /// How far it is from f32.
    pub apart: Apart,
    /// How fast it is.
    pub speed: Speed,
}

/// A scheme and what came of it.
pub struct Entry {
    /// The scheme.
    pub scheme: Named,
    /// Its figures, or why there are none.
    pub outcome: Result<Case, String>,
}

/// Everything that was found.
pub struct Report {
    /// Where the model was.
    pub model: PathBuf,
    /// Its sizes in words.
    pub design: String,
    /// The adapter as JSON.
    pub device: serde_json::Value,
    /// The same in words.
    pub device_words: String,
    /// What decides of it.
    pub place: Place,
    /// Best rates.
    pub roofs: Roofs,
    /// The text in words.
    pub text: String,
    /// How speeds were taken, in words.
    pub course: String,
    /// Day and time, UTC.
    pub date: String,
    /// Processes that wanted to run before the start.
    pub load: Option<f64>,
    /// All schemes, f32 first.
    pub entries: Vec<Entry>,
    /// Training, if it was asked for.
    pub training: Option<Training>,
    /// What a reader should know beside.
    pub notes: Vec<String>,
}

/// Day and time of day, UTC.
pub fn date_of(time: SystemTime) -> String {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (mut day, rest) = (seconds / 86_400, seconds % 86_400);
    let is_leap =
        |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while day >= 365 + u64::from(is_leap(year)) {
        day -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while day >= lengths[month] {
        day -= lengths[month];
        month += 1;
    }
    format!("{year}-{:02}-{:02} {:02}:{:02} UTC", month + 1, day + 1, rest / 3600, rest / 60 % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let at = |seconds| date_of(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01 00:00 UTC");
        assert_eq!(at(951_782_400), "2000-02-29 00:00 UTC");
        assert_eq!(at(1_709_251_199), "2024-02-29 23:59 UTC");
        assert_eq!(at(4_107_542_400), "2100-03-01 00:00 UTC");
    }
}
