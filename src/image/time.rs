//! Times in image documents: RFC 3339 in UTC. Only what images need, which saves a date crate.

use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since 1970 and nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp {
    /// Seconds since 1970-01-01 00:00 UTC.
    pub seconds: i64,
    /// Nanoseconds within the second.
    pub nanoseconds: u32,
}

/// 0001-01-01T00:00:00Z.
const GO_ZERO: i64 = -62_135_596_800;

/// The first second of the year 0, and the last of 9999: the range of RFC 3339.
pub const WRITABLE: std::ops::RangeInclusive<i64> = -62_167_219_200..=253_402_300_799;

impl Timestamp {
    /// The time stamp for a new image: `source_date_epoch` if given, otherwise now.
    pub(crate) fn now_or(source_date_epoch: Option<i64>) -> Self {
        match source_date_epoch {
            Some(seconds) => Self { seconds, nanoseconds: 0 },
            None => Self::now(),
        }
    }

    /// The clock's time, but not before the epoch.
    pub fn now() -> Self {
        Self::from(SystemTime::now())
    }

    /// The time `seconds` after the epoch.
    pub fn at(seconds: i64) -> Self {
        Self { seconds, nanoseconds: 0 }
    }

    /// The time `seconds` before this one.
    pub fn earlier(self, seconds: i64) -> Self {
        Self { seconds: self.seconds.saturating_sub(seconds), ..self }
    }

    /// Parses an RFC 3339 time with `Z` or a numeric offset.
    pub fn parse(text: &str) -> Option<Self> {
        let number = |range: std::ops::Range<usize>| -> Option<i64> {
            let digits = text.get(range)?;
            digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())?
        };
        let separators = [(4, "-"), (7, "-"), (13, ":"), (16, ":")];
        if separators.iter().any(|&(at, mark)| text.get(at..at + 1) != Some(mark)) {
            return None;
        }
        if !matches!(text.get(10..11), Some("T" | "t" | " ")) {
            return None;
        }
        let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
        let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
        let days = days_from_civil(year, month, day);
        // A day that the month does not have would be written as another day.
        if !(1..=12).contains(&month) || civil_from_days(days) != (year, month, day) {
            return None;
        }
        if hour > 23 || minute > 59 || second > 59 {
            return None;
        }
        let in_day = hour * 3600 + minute * 60 + second;
        let rest = text.get(19..)?;
        let zone_at = rest.find(['Z', 'z', '+', '-'])?;
        let (fraction, zone) = rest.split_at(zone_at);
        let nanoseconds = parse_fraction(fraction)?;
        let offset = parse_offset(zone)?;
        Some(Self { seconds: days * 86_400 + in_day - offset, nanoseconds })
    }

    /// True for the zero of Go's times, the beginning of the year 1, which means that there is no time.
    pub fn is_zero(self) -> bool {
        self == Self { seconds: GO_ZERO, nanoseconds: 0 }
    }

    /// How long ago this was, in docker's words ("3 days ago").
    pub fn ago(self, now: Self) -> String {
        let seconds = now.seconds.saturating_sub(self.seconds);
        let (count, unit) = match seconds {
            i64::MIN..=0 => return "Less than a second ago".to_owned(),
            1..=59 => (seconds, "second"),
            60..=3_599 => (seconds / 60, "minute"),
            3_600..=172_799 => (seconds / 3_600, "hour"),
            172_800..=1_209_599 => (seconds / 86_400, "day"),
            1_209_600..=5_183_999 => (seconds / 604_800, "week"),
            5_184_000..=63_071_999 => (seconds / 2_592_000, "month"),
            _ => (seconds / 31_536_000, "year"),
        };
        format!("{count} {unit}{} ago", if count == 1 { "" } else { "s" })
    }
}

impl From<SystemTime> for Timestamp {
    /// A time before 1970 becomes 1970.
    fn from(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX), nanoseconds: since.subsec_nanos() }
    }
}

impl std::fmt::Display for Timestamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (year, month, day) = civil_from_days(self.seconds.div_euclid(86_400));
        let second = self.seconds.rem_euclid(86_400);
        write!(f, "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}", second / 3600, second / 60 % 60, second % 60)?;
        if self.nanoseconds != 0 {
            let digits = format!("{:09}", self.nanoseconds);
            write!(f, ".{}", digits.trim_end_matches('0'))?;
        }
        f.write_str("Z")
    }
}

fn parse_fraction(text: &str) -> Option<u32> {
    if text.is_empty() {
        return Some(0);
    }
    let digits = text.strip_prefix(['.', ','])?;
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    format!("{digits:0<9}").get(..9)?.parse().ok()
}

/// Seconds east of UTC.
fn parse_offset(zone: &str) -> Option<i64> {
    if zone.eq_ignore_ascii_case("z") {
        return Some(0);
    }
    let sign = if zone.starts_with('-') { -1 } else { 1 };
    let (hours, minutes) = zone.get(1..)?.split_once(':')?;
    let number = |digits: &str, most: i64| -> Option<i64> {
        let plain = digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_digit());
        digits.parse().ok().filter(|number| plain && *number <= most)
    };
    Some(sign * (number(hours, 23)? * 3600 + number(minutes, 59)? * 60))
}

/// Days from 1970-01-01 to a date of the proleptic Gregorian calendar (Howard Hinnant, "chrono-compatible
/// low-level date algorithms").
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// Inverse of [`days_from_civil`].
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_rfc_3339() {
        let table = [
            ("1970-01-01T00:00:00Z", 0, 0, "1970-01-01T00:00:00Z"),
            ("2024-02-29T12:34:56.789Z", 1_709_210_096, 789_000_000, "2024-02-29T12:34:56.789Z"),
            ("2024-02-29T14:34:56.000000001+02:00", 1_709_210_096, 1, "2024-02-29T12:34:56.000000001Z"),
            ("0001-01-01T00:00:00Z", -62_135_596_800, 0, "0001-01-01T00:00:00Z"),
            ("0000-01-01T00:00:00Z", -62_167_219_200, 0, "0000-01-01T00:00:00Z"),
            ("9999-12-31T23:59:59Z", 253_402_300_799, 0, "9999-12-31T23:59:59Z"),
            ("2024-02-29T12:34:56,5Z", 1_709_210_096, 500_000_000, "2024-02-29T12:34:56.5Z"),
            ("1969-12-31T23:59:59.5Z", -1, 500_000_000, "1969-12-31T23:59:59.5Z"),
        ];
        for (text, seconds, nanoseconds, written) in table {
            let parsed = Timestamp::parse(text).expect(text);
            assert_eq!(parsed, Timestamp { seconds, nanoseconds }, "{text}");
            assert_eq!(parsed.to_string(), written);
        }
        for bad in [
            "",
            "2024",
            "2024-02-29",
            "2024-02-29T12:34:56",
            "2024-02-29T12:34:56.Z",
            "20xx-02-29T12:34:56Z",
            "2023-02-29T12:34:56Z",
            "2024-13-01T00:00:00Z",
            "2024-00-01T00:00:00Z",
            "2024-01-00T00:00:00Z",
            "2024-04-31T00:00:00Z",
            "2024-01-01T24:00:00Z",
            "2024-01-01T00:60:00Z",
            "2024-01-01T00:00:60Z",
            "2024-01-01T00:00:00+24:00",
            "2024-01-01T00:00:00+1:00",
            "10000-01-01T00:00:00Z",
        ] {
            assert_eq!(Timestamp::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn says_how_long_ago() {
        let at = |seconds| Timestamp { seconds, nanoseconds: 0 };
        for (age, words) in [
            (0, "Less than a second ago"),
            (1, "1 second ago"),
            (90, "1 minute ago"),
            (7_200, "2 hours ago"),
            (4 * 86_400, "4 days ago"),
            (21 * 86_400, "3 weeks ago"),
            (100 * 86_400, "3 months ago"),
            (800 * 86_400, "2 years ago"),
        ] {
            assert_eq!(at(1_000_000_000 - age).ago(at(1_000_000_000)), words);
        }
    }
}
