//! The date that templates may ask for, by `strftime_now`.
//!
//! A run remembers its date: one that goes on another day reads the same text as if it had never stopped.

use std::fmt;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

/// A day of the Gregorian calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Date {
    year: i64,
    month: u32,
    day: u32,
}

impl Date {
    /// Today, in Greenwich.
    pub fn today() -> Date {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |passed| passed.as_secs());
        Date::of_days((seconds / 86_400) as i64)
    }

    /// The day so many days after 1970-01-01. Years begin in March, so that a leap day is the last of its year.
    fn of_days(days: i64) -> Date {
        let days = days + 719_468;
        let era = days.div_euclid(146_097);
        let of_era = days.rem_euclid(146_097);
        let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year + year / 4 - year / 100);
        let month = (5 * of_year + 2) / 153;
        let day = (of_year - (153 * month + 2) / 5 + 1) as u32;
        let month = if month < 10 { month + 3 } else { month - 9 } as u32;
        Date { year: year + era * 400 + i64::from(month <= 2), month, day }
    }

    /// Days after 1970-01-01.
    fn days(self) -> i64 {
        let year = self.year - i64::from(self.month <= 2);
        let month = i64::from(if self.month > 2 { self.month - 3 } else { self.month + 9 });
        let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
        let of_year = (153 * month + 2) / 5 + i64::from(self.day) - 1;
        era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
    }

    /// As Python's `strftime` writes it at midnight; `Err` holds a directive that is not known.
    pub fn format(self, pattern: &str) -> Result<String, String> {
        let month = MONTHS[self.month as usize - 1];
        // 1970-01-01 was a Thursday.
        let weekday = DAYS[(self.days() + 3).rem_euclid(7) as usize];
        let mut text = String::new();
        let mut rest = pattern.chars();
        while let Some(character) = rest.next() {
            if character != '%' {
                text.push(character);
                continue;
            }
            let mut directive = rest.next();
            // C libraries leave out the zero before a number.
            let bare = directive == Some('-');
            if bare {
                directive = rest.next();
            }
            let two = |number: u32| if bare { number.to_string() } else { format!("{number:02}") };
            let written = match directive {
                Some('Y') => self.year.to_string(),
                Some('y') => two(self.year.rem_euclid(100) as u32),
                Some('m') => two(self.month),
                Some('d') => two(self.day),
                Some('B') => month.to_string(),
                Some('b') => month[..3].to_string(),
                Some('A') => weekday.to_string(),
                Some('a') => weekday[..3].to_string(),
                Some('H' | 'M' | 'S') => two(0),
                Some('%') => "%".to_string(),
                Some(other) => return Err(format!("%{other}")),
                None => return Err("%".to_string()),
            };
            text.push_str(&written);
        }
        Ok(text)
    }
}

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{:04}-{:02}-{:02}", self.year, self.month, self.day)
    }
}

impl FromStr for Date {
    type Err = ();

    fn from_str(text: &str) -> Result<Date, ()> {
        let parts: Vec<u32> = text.split('-').map(str::parse).collect::<Result<_, _>>().map_err(|_| ())?;
        let [year, month, day] = parts[..] else { return Err(()) };
        if !(1..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
            return Err(());
        }
        let date = Date { year: i64::from(year), month, day };
        // There and back: the thirtieth of February is another day.
        if Date::of_days(date.days()) == date { Ok(date) } else { Err(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_counted_there_and_back() {
        for (text, days) in [("1970-01-01", 0), ("2000-02-29", 11_016), ("2024-07-26", 19_930)] {
            let date: Date = text.parse().unwrap();
            assert_eq!((date.days(), date.to_string().as_str()), (days, text));
            assert_eq!(Date::of_days(days), date);
        }
        assert!(
            ["2023-02-29", "2024-13-01", "26 Jul 2024", "2024-07", ""]
                .iter()
                .all(|t| t.parse::<Date>().is_err())
        );
    }

    #[test]
    fn a_date_is_written_as_python_writes_it() {
        let date: Date = "2024-07-06".parse().unwrap();
        assert_eq!(date.format("%d %b %Y").unwrap(), "06 Jul 2024");
        assert_eq!(date.format("%A, %-d. %B %y (%a) 100%%").unwrap(), "Saturday, 6. July 24 (Sat) 100%");
        assert_eq!(date.format("%Y-%m-%dT%H:%M:%S").unwrap(), "2024-07-06T00:00:00");
        assert_eq!(date.format("%q").unwrap_err(), "%q");
    }
}
