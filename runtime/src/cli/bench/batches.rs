//! Batch sizes as `-npl` names them: a number, or a range such as `1-32`.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// One or more neighbouring batch sizes, from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batches(RangeInclusive<u32>);

impl Batches {
    /// Those that are at most `limit`, if any.
    pub(super) fn up_to(&self, limit: u32) -> Option<Self> {
        let cut = *self.0.start()..=limit.min(*self.0.end());
        (!cut.is_empty()).then_some(Self(cut))
    }

    pub(super) fn iter(&self) -> RangeInclusive<u32> {
        self.0.clone()
    }
}

impl From<RangeInclusive<u32>> for Batches {
    fn from(range: RangeInclusive<u32>) -> Self {
        Self(range)
    }
}

impl FromStr for Batches {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| match text.parse() {
            Ok(0) | Err(_) => Err(format!("{text:?} is no batch size, a number from 1")),
            Ok(n) => Ok(n),
        };
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last): (u32, u32) = (number(first)?, number(last)?);
        if first > last {
            return Err(format!("ranges ascend: {last}-{first}"));
        }
        Ok(Self(first..=last))
    }
}

impl fmt::Display for Batches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0.start(), self.0.end()) {
            (a, b) if a == b => write!(f, "{a}"),
            (a, b) => write!(f, "{a}-{b}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_ranges() {
        for (text, expected) in [("1", 1..=1), ("3-5", 3..=5), ("7-7", 7..=7)] {
            assert_eq!(text.parse(), Ok(Batches(expected)), "{text}");
        }
        for text in [
            "",
            "0",
            "0-4",
            "5-3",
            "1-",
            "-1",
            "1-2-3",
            "a",
            "1-99999999999",
            "1 - 2",
        ] {
            assert!(text.parse::<Batches>().is_err(), "{text}");
        }
        assert_eq!(Batches(2..=9).to_string(), "2-9");
        assert_eq!(Batches(4..=4).to_string(), "4");
    }

    #[test]
    fn a_range_is_cut_where_the_bundle_ends() {
        let all: Batches = "2-4294967295".parse().expect("a range");
        assert_eq!(all.up_to(5), Some(Batches(2..=5)));
        assert_eq!(all.up_to(1), None);
        assert!(all.up_to(5).expect("some").iter().eq(2..=5));
    }
}
