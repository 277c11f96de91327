//! Go's durations: `750ms`, `1h30m`, `1.5s`, `-1m`.

use std::{fmt, str::FromStr, time::Duration};

const UNITS: [(&str, i64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// A span of time as Go writes it: nanoseconds in 64 bits, possibly negative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct GoDuration(pub i64);

impl GoDuration {
    /// The span when it is not negative.
    pub fn to_std(self) -> Option<Duration> {
        u64::try_from(self.0).ok().map(Duration::from_nanos)
    }
}

impl FromStr for GoDuration {
    type Err = String;

    fn from_str(text: &str) -> Result<GoDuration, String> {
        let (negative, mut rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        if rest == "0" {
            return Ok(GoDuration(0));
        }
        if rest.is_empty() {
            return Err("holds no duration".into());
        }
        let mut total: i128 = 0;
        while !rest.is_empty() {
            let (nanos, after) = part(rest)?;
            total += nanos;
            rest = after;
        }
        let signed = if negative { -total } else { total };
        i64::try_from(signed).map(GoDuration).map_err(|_| "is longer than 292 years".into())
    }
}

/// What the decimals are worth, rounded by the same arithmetic as Go's.
fn below(decimals: &str, unit: i64) -> u64 {
    let (mut value, mut scale) = (0_u64, 1.0_f64);
    for digit in decimals.bytes() {
        let more = value.checked_mul(10).and_then(|value| value.checked_add(u64::from(digit - b'0')));
        // Further digits do not fit and would change nothing.
        let Some(more) = more.filter(|more| *more <= 1 << 63) else { break };
        (value, scale) = (more, scale * 10.0);
    }
    (value as f64 * (unit as f64 / scale)) as u64
}

/// One number with its unit: its nanoseconds (never more than a few hundred years, so that a sum cannot overflow) and what follows.
fn part(text: &str) -> Result<(i128, &str), String> {
    const TOO_LONG: &str = "is longer than 292 years";
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, rest) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return Err(format!("{text:?} does not begin with a number"));
    }
    let unit_end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
    let (unit, rest) = rest.split_at(unit_end);
    let Some((_, scale)) = UNITS.iter().find(|(name, _)| *name == unit) else {
        let problem = if unit.is_empty() { format!("{number} has no unit") } else { format!("{unit:?} is not a unit of time") };
        return Err(problem);
    };
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| TOO_LONG)? };
    let nanos = i128::from(whole) * i128::from(*scale) + i128::from(below(fraction, *scale));
    if nanos > i128::from(i64::MAX) + 1 { Err(TOO_LONG.into()) } else { Ok((nanos, rest)) }
}

impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let nanos = self.0.unsigned_abs();
        let (scale, unit) = match nanos {
            0 => return f.write_str("0s"),
            1..1_000 => (1, "ns"),
            1_000..1_000_000 => (1_000, "µs"),
            1_000_000..1_000_000_000 => (1_000_000, "ms"),
            _ => return write_clock(f, sign, nanos),
        };
        write!(f, "{sign}{}{unit}", decimal(nanos, scale))
    }
}

fn write_clock(f: &mut fmt::Formatter<'_>, sign: &str, nanos: u64) -> fmt::Result {
    const SECOND: u64 = 1_000_000_000;
    let (hours, minutes, below) = (nanos / (3600 * SECOND), nanos / (60 * SECOND) % 60, nanos % (60 * SECOND));
    f.write_str(sign)?;
    if hours > 0 {
        write!(f, "{hours}h")?;
    }
    if hours > 0 || minutes > 0 {
        write!(f, "{minutes}m")?;
    }
    write!(f, "{}s", decimal(below, SECOND))
}

/// `value / scale` with all its decimals and no trailing zero.
fn decimal(value: u64, scale: u64) -> String {
    let (whole, below) = (value / scale, value % scale);
    if below == 0 {
        return whole.to_string();
    }
    let width = scale.ilog10() as usize;
    format!("{whole}.{below:0width$}").trim_end_matches('0').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_and_writes_as_go_does() {
        for (text, nanos, shown) in [
            ("0", 0, "0s"),
            ("750ms", 750_000_000, "750ms"),
            ("1h30m", 5_400_000_000_000, "1h30m0s"),
            ("-1m", -60_000_000_000, "-1m0s"),
            ("1.5s", 1_500_000_000, "1.5s"),
            (".5h", 1_800_000_000_000, "30m0s"),
            ("+2.us", 2_000, "2µs"),
            ("1µs1μs", 2_000, "2µs"),
            ("1h15m30.918s", 4_530_918_000_000, "1h15m30.918s"),
            ("0.3333333333333333333h", 1_200_000_000_000, "20m0s"),
            ("9223372036854775807ns", i64::MAX, "2562047h47m16.854775807s"),
            ("-9223372036854775808ns", i64::MIN, "-2562047h47m16.854775808s"),
        ] {
            let read: GoDuration = text.parse().unwrap_or_else(|problem| panic!("{text}: {problem}"));
            assert_eq!((read.0, read.to_string().as_str()), (nanos, shown), "{text}");
        }
    }

    #[test]
    fn refuses_what_go_refuses() {
        for bad in [
            "",
            "3",
            "-",
            "s",
            ".",
            "-.",
            ".s",
            "+.s",
            "1d",
            "1x",
            " 1s",
            "1s ",
            "1.2.3s",
            "1e3s",
            "9223372036854775808ns",
            "3000000h",
            "--1s",
        ] {
            assert!(bad.parse::<GoDuration>().is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(nanos: i64) {
            let text = GoDuration(nanos).to_string();
            prop_assert_eq!(text.parse::<GoDuration>(), Ok(GoDuration(nanos)), "{}", text);
        }
        #[test]
        fn nothing_makes_it_fall_over(text in "[-+0-9.a-zµ]{0,24}") {
            let _ = text.parse::<GoDuration>();
        }
    }
}
