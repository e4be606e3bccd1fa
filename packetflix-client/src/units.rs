//! Numbers as people write and read them.

use std::time::Duration;

/// A time: seconds, as dumpcap takes them, or a number of ms, s, m or h.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text);
    let seconds = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(format!("{text} is no time: write seconds, or 500ms, 10s, 2m, 1h")),
    };
    let duration = number.parse().ok().map(|number: f64| number * seconds);
    duration
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .filter(|duration| *duration >= Duration::from_millis(1))
        .ok_or_else(|| format!("{text} is no time: write a number above 0, such as 10 or 1.5"))
}

/// A size: a number of kB, as dumpcap takes it, or of B, KiB, MiB or GiB.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text);
    let unit = match unit {
        "" | "kB" => 1000,
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => {
            return Err(format!(
                "{text} is no size: write a number of kB, or 500KiB, 10MiB, 1GiB"
            ));
        }
    };
    let number: Option<u64> = number.parse().ok();
    number
        .and_then(|number| number.checked_mul(unit))
        .filter(|size| *size > 0)
        .ok_or_else(|| format!("{text} is no size: write a whole number of at least 1"))
}

fn split(text: &str) -> (&str, &str) {
    let is_digit = |c: char| c.is_ascii_digit() || c == '.';
    let (number, unit) = text.split_at(text.find(|c: char| !is_digit(c)).unwrap_or(text.len()));
    (number, unit.trim())
}

/// A number of bytes, for people.
pub(crate) fn shown_size(bytes: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1_000_000_000, "GB"), (1_000_000, "MB"), (1000, "kB")];
    match UNITS.iter().find(|(size, _)| bytes >= *size) {
        Some((size, unit)) => format!("{:.1} {unit}", bytes as f64 / *size as f64),
        None => format!("{bytes} B"),
    }
}

/// A time, for people.
pub(crate) fn shown_duration(duration: Duration) -> String {
    match duration.as_secs() {
        0..60 => format!("{:.1} s", duration.as_secs_f64()),
        seconds @ 60..3600 => format!("{}:{:02} min", seconds / 60, seconds % 60),
        seconds => format!(
            "{}:{:02}:{:02} h",
            seconds / 3600,
            seconds / 60 % 60,
            seconds % 60
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_dumpcap_and_ours() {
        for (text, milliseconds) in [
            ("10", 10_000),
            ("1.5", 1500),
            ("500ms", 500),
            ("2m", 120_000),
            ("1h", 3_600_000),
        ] {
            assert_eq!(
                parse_duration(text),
                Ok(Duration::from_millis(milliseconds)),
                "{text}"
            );
        }
        for wrong in ["", "0", "-1", "1d", "x", "1e99", "."] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_are_those_of_dumpcap_and_ours() {
        for (text, bytes) in [("10", 10_000), ("10kB", 10_000), ("7B", 7), ("1MiB", 1 << 20)] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for wrong in ["", "0", "-1", "1MB", "1.5", "99999999999999999999"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(shown_size(999), "999 B");
        assert_eq!(shown_size(1_234_567), "1.2 MB");
        assert_eq!(shown_duration(Duration::from_millis(1540)), "1.5 s");
        assert_eq!(shown_duration(Duration::from_secs(61)), "1:01 min");
        assert_eq!(shown_duration(Duration::from_secs(3723)), "1:02:03 h");
    }
}
