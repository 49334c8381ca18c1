//! `[memory]`: what a run may hold.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use toml::Value;

use super::error::Error;
use super::read::{Section, describe};
use crate::passes::Recompute;

/// What is held, and how much of it there may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// What the backward part computes again instead of holding it: time for memory.
    pub recompute: Recompute,
    /// Most bytes of the device that a run may take. Absent: what the device has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget: Option<Bytes>,
}

/// A number of bytes, written `"1.5GiB"`, `"300MiB"`, `"64KiB"` or as a whole number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

impl Bytes {
    fn parse(text: &str) -> Option<Bytes> {
        let (number, unit) = UNITS.iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, unit)))?;
        let number: f64 = number.trim().parse().ok()?;
        (number.is_finite() && number > 0.0).then_some(Bytes((number * *unit as f64) as u64))
    }
}

impl std::fmt::Display for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (name, unit) = UNITS.into_iter().find(|(_, unit)| self.0 >= *unit).unwrap_or(UNITS[2]);
        write!(f, "{:.2} {name}", self.0 as f64 / unit as f64)
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match UNITS.into_iter().find(|(_, unit)| self.0 > 0 && self.0.is_multiple_of(*unit)) {
            Some((name, unit)) => serializer.serialize_str(&format!("{}{name}", self.0 / unit)),
            None => serializer.serialize_u64(self.0),
        }
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        let given = Value::deserialize(deserializer)?;
        let read = match &given {
            Value::Integer(bytes) if *bytes > 0 => Some(Bytes(*bytes as u64)),
            given => given.as_str().and_then(Bytes::parse),
        };
        let expected = "\"2GiB\", \"300MiB\" or a number of bytes";
        read.ok_or_else(|| serde::de::Error::custom(format!("{given} is no size, expected {expected}")))
    }
}

impl std::str::FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Bytes, String> {
        Bytes::parse(text).ok_or_else(|| "expected a size such as 2GiB or 300MiB".into())
    }
}

pub(super) fn memory(section: &Section) -> Result<Memory, Error> {
    let words = [("none", Recompute::None), ("cheap", Recompute::Cheap), ("layers", Recompute::Layers)];
    let recompute = section.word("recompute", &words)?.or(Recompute::None);
    let budget = match section.value("budget") {
        None => None,
        Some(Value::Integer(bytes)) if *bytes > 0 => Some(Bytes(*bytes as u64)),
        Some(given) => match given.as_str().and_then(Bytes::parse) {
            Some(bytes) => Some(bytes),
            None => {
                let hint = format!("it is {}", describe(given));
                return Err(section.refuse("budget", "\"2GiB\", \"300MiB\" or a number of bytes", &hint));
            }
        },
    };
    Ok(Memory { recompute, budget })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_with_a_binary_unit_only() {
        assert_eq!(Bytes::parse("2GiB"), Some(Bytes(2 << 30)));
        assert_eq!(Bytes::parse("1.5 MiB"), Some(Bytes(3 << 19)));
        for wrong in ["2GB", "2", "-1GiB", "GiB", "nanMiB", "infKiB"] {
            assert_eq!(Bytes::parse(wrong), None, "{wrong}");
        }
        assert_eq!(Bytes(3 << 19).to_string(), "1.50 MiB");
    }
}
