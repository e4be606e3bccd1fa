//! Sizes and times as people write them, in flags and in requests.

use std::time::Duration;

/// Bytes: a whole number, by itself or in KiB, MiB or GiB.
///
/// # Errors
/// With what would be right, if this is not.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text);
    let unit = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err("the unit is KiB, MiB or GiB".to_owned()),
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(unit))
        .ok_or_else(|| "give a whole number, such as 4MiB".to_owned())
}

/// A time: a whole number of ms, s, m or h.
///
/// # Errors
/// With what would be right, if this is not.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text);
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err("the unit is ms, s, m or h".to_owned()),
    };
    number
        .parse::<u64>()
        .ok()
        .filter(|number| *number > 0)
        .and_then(|number| number.checked_mul(milliseconds))
        .map(Duration::from_millis)
        .ok_or_else(|| "give a whole number of at least 1, such as 10s".to_owned())
}

fn split(text: &str) -> (&str, &str) {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    (number, unit.trim())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn understands_sizes() {
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("512KiB"), Ok(512 << 10));
        assert_eq!(parse_size("4 MiB"), Ok(4 << 20));
        assert_eq!(parse_size("2GiB"), Ok(2 << 30));
        for wrong in [
            "",
            "MiB",
            "4MB",
            "-1",
            "4.5MiB",
            "99999999999999999999",
            "18446744073709551615MiB",
        ] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn understands_times() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(parse_duration("2 m"), Ok(Duration::from_secs(120)));
        assert_eq!(parse_duration("1h"), Ok(Duration::from_secs(3600)));
        for wrong in [
            "",
            "s",
            "0s",
            "10",
            "-1s",
            "1.5s",
            "1d",
            "10S",
            "18446744073709551615h",
        ] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn takes_any_text(text in any::<String>(), number in any::<u64>(), unit in "[a-zA-Z]{0,3}") {
            for text in [text, format!("{number}{unit}")] {
                let _ = (parse_size(&text), parse_duration(&text));
            }
        }
    }
}
