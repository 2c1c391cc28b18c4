//! Numbers as people read them: three digits, and the unit that keeps them short.

/// Three significant digits, no more than needed.
pub(super) fn digits(value: f64) -> String {
    let magnitude = value.abs();
    let decimals = match magnitude {
        m if m >= 100.0 || m == 0.0 => 0,
        m if m >= 10.0 => 1,
        m if m >= 1.0 => 2,
        _ => 3,
    };
    let text = format!("{value:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { grouped(&text) }
}

/// Thousands apart.
fn grouped(text: &str) -> String {
    let (sign, digits) = text.strip_prefix('-').map_or(("", text), |rest| ("-", rest));
    let mut out = sign.to_owned();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A count.
pub(super) fn count(value: u64) -> String {
    grouped(&value.to_string())
}

/// Milliseconds in, the best unit out.
pub(super) fn ms(value: f64) -> String {
    match value {
        v if v >= 60_000.0 => format!("{} min", digits(v / 60_000.0)),
        v if v >= 1_000.0 => format!("{} s", digits(v / 1_000.0)),
        v if v >= 0.1 || v == 0.0 => format!("{} ms", digits(v)),
        v => format!("{} µs", digits(v * 1_000.0)),
    }
}

/// Bytes in powers of ten.
pub(super) fn bytes(value: f64) -> String {
    match value.abs() {
        v if v >= 1e9 => format!("{} GB", digits(value / 1e9)),
        v if v >= 1e6 => format!("{} MB", digits(value / 1e6)),
        v if v >= 1e4 => format!("{} kB", digits(value / 1e3)),
        _ => format!("{} B", digits(value)),
    }
}

/// A value with the unit of its measure.
pub(super) fn with_unit(value: f64, unit: &str) -> String {
    match unit {
        "ms" => ms(value),
        "bytes" => bytes(value),
        "/s" => format!("{}/s", digits(value)),
        "" => digits(value),
        unit => format!("{} {unit}", digits(value)),
    }
}

/// A moment in UTC: year-month-day hour:minute.
pub(super) fn moment(unix_ms: u64) -> String {
    let seconds = unix_ms / 1_000;
    // Days to a date: Howard Hinnant's `civil_from_days`, for days since 1970.
    let days = (seconds / 86_400) as i64 + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year}-{month:02}-{day:02} {:02}:{:02} UTC", seconds / 3_600 % 24, seconds / 60 % 60)
}

/// A length of time.
pub(super) fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..120 => format!("{} s", digits(seconds)),
        120..7_200 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3_600, whole / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let cases = [
            (ms(0.0512), "51.2 µs"),
            (ms(1.0), "1 ms"),
            (ms(12.345), "12.3 ms"),
            (ms(1_234.0), "1.23 s"),
            (ms(90_000.0), "1.5 min"),
            (bytes(502.4), "502 B"),
            (bytes(8_123.0), "8,123 B"),
            (bytes(24e9), "24 GB"),
            (count(1_234_567), "1,234,567"),
            (with_unit(20_430.4, "/s"), "20,430/s"),
            (duration(61.2), "61.2 s"),
            (duration(3_600.0), "60 min 0 s"),
        ];
        for (said, wanted) in cases {
            assert_eq!(said, wanted);
        }
    }

    #[test]
    fn moments_are_those_of_the_calendar() {
        assert_eq!(moment(0), "1970-01-01 00:00 UTC");
        assert_eq!(moment(951_782_400_000), "2000-02-29 00:00 UTC");
        assert_eq!(moment(1_764_547_199_000), "2025-11-30 23:59 UTC");
    }
}
