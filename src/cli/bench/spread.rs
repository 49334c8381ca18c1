//! A figure measured several times: its median, and how far the others lie.

use serde_json::{Value, json};

/// Median and quartiles of repeated measurements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The middle one.
    pub median: f64,
    /// A quarter of the measurements lies below.
    pub low: f64,
    /// A quarter lies above.
    pub high: f64,
    /// The least of all.
    pub least: f64,
    /// The largest of all.
    pub most: f64,
    /// Measurements.
    pub samples: usize,
}

impl Spread {
    /// Of measurements in any order; `None` of none.
    pub fn of(mut measured: Vec<f64>) -> Option<Spread> {
        measured.sort_by(f64::total_cmp);
        let samples = measured.len();
        let (&least, &most) = (measured.first()?, measured.last()?);
        // Between two neighbours the value is drawn along the line.
        let at = |share: f64| {
            let place = share * (samples - 1) as f64;
            let (below, above) = (measured[place.floor() as usize], measured[place.ceil() as usize]);
            below + (above - below) * place.fract()
        };
        Some(Spread { median: at(0.5), low: at(0.25), high: at(0.75), least, most, samples })
    }

    /// As JSON.
    pub fn json(&self) -> Value {
        json!({
            "median": self.median, "low": self.low, "high": self.high,
            "min": self.least, "max": self.most, "samples": self.samples,
        })
    }
}

/// A number with three or four digits that count.
pub fn short(x: f64) -> String {
    match x.abs() {
        _ if x == 0.0 => "0".into(),
        size if size >= 1000.0 => format!("{x:.0}"),
        size if size >= 100.0 => format!("{x:.1}"),
        size if size >= 10.0 => format!("{x:.2}"),
        size if size >= 0.1 => format!("{x:.3}"),
        _ => format!("{x:.4}"),
    }
}

/// Seconds in words for messages.
pub fn seconds(x: f64) -> String {
    format!("{} s", short(x))
}

/// Bytes in MiB, or in GiB where they are many.
pub fn size(bytes: u128) -> String {
    let mib = bytes as f64 / (1u64 << 20) as f64;
    if mib >= 1e4 { format!("{} GiB", short(mib / 1024.0)) } else { format!("{} MiB", short(mib)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_and_the_quarters_do_not_depend_on_the_order() {
        let spread = Spread::of(vec![5.0, 1.0, 4.0, 2.0, 3.0]).unwrap();
        assert_eq!((spread.low, spread.median, spread.high), (2.0, 3.0, 4.0));
        assert_eq!((spread.least, spread.most, spread.samples), (1.0, 5.0, 5));
        let even = Spread::of(vec![1.0, 4.0, 2.0, 3.0]).unwrap();
        assert_eq!((even.low, even.median, even.high), (1.75, 2.5, 3.25));
        assert_eq!(Spread::of(vec![7.0]).unwrap().high, 7.0);
        assert_eq!(Spread::of(vec![]), None);
    }
}
