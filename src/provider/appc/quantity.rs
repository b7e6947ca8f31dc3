//! Quantities of resource isolators: `500m`, `1G`, `1Gi`, `1.5e3` (appc spec, schema/types/resource).
//!
//! Kept exactly, in billionths. What is finer is rounded away from zero: who asked for a little gets a little. What is larger than
//! 2^63-1 is that.

use std::fmt;
use std::str::FromStr;

use keelblock_actors::error::quote;

/// Billionths in one.
const NANO: i128 = 1_000_000_000;
/// The most that a quantity can be, in whole units.
const UNITS_MAX: i128 = i64::MAX as i128;
/// Decimal places of a number before its binary suffix; what is finer only rounds the result up.
const PLACES: i64 = 18;

/// An amount of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Quantity {
    nano: i128,
}

/// A text is no quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no quantity: write a decimal number with one of the suffixes n, u, m, k, M, G, T, P, E, Ki, Mi, Gi, Ti, Pi, Ei, an exponent such as e3, or none"
)]
pub struct QuantityError(String);

impl Quantity {
    /// So many whole units.
    pub fn units(units: u64) -> Self {
        Self { nano: i128::from(units).min(UNITS_MAX) * NANO }
    }

    /// Whole units, rounded up; `None` below zero.
    pub fn ceil(&self) -> Option<u64> {
        u64::try_from(up(self.nano, NANO)).ok()
    }

    /// Thousandths, rounded up; `None` below zero. More than fit are as many as fit.
    pub fn milli(&self) -> Option<u64> {
        let milli = up(self.nano, NANO / 1000);
        (milli >= 0).then(|| u64::try_from(milli).unwrap_or(u64::MAX))
    }

    /// Whether it is less than nothing.
    pub fn is_negative(&self) -> bool {
        self.nano < 0
    }
}

/// Divides, and rounds away from zero.
fn up(value: i128, by: i128) -> i128 {
    let rest = value % by;
    value / by + rest.signum()
}

/// Ten to the power of what a decimal suffix says, and two to that of a binary one.
fn suffix(text: &str) -> Option<(i64, u32)> {
    Some(match text {
        "" => (0, 0),
        "n" => (-9, 0),
        "u" => (-6, 0),
        "m" => (-3, 0),
        // The specification writes K, its schema k.
        "k" | "K" => (3, 0),
        "M" => (6, 0),
        "G" => (9, 0),
        "T" => (12, 0),
        "P" => (15, 0),
        "E" => (18, 0),
        "Ki" => (0, 10),
        "Mi" => (0, 20),
        "Gi" => (0, 30),
        "Ti" => (0, 40),
        "Pi" => (0, 50),
        "Ei" => (0, 60),
        exponent => {
            let digits = exponent.strip_prefix(['e', 'E'])?;
            let unsigned = digits.strip_prefix(['+', '-']).unwrap_or(digits);
            if unsigned.is_empty() || !unsigned.bytes().all(|byte| byte.is_ascii_digit()) {
                return None;
            }
            // Beyond these it is nothing, or all there is, whatever stands before it.
            (
                i64::from(digits.parse::<i32>().unwrap_or(if digits.starts_with('-') {
                    i32::MIN
                } else {
                    i32::MAX
                })),
                0,
            )
        }
    })
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let wrong = || QuantityError(quote(text));
        let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
        let end = unsigned.bytes().position(|byte| !byte.is_ascii_digit() && byte != b'.');
        let (number, rest) = unsigned.split_at(end.unwrap_or(unsigned.len()));
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) {
            return Err(wrong());
        }
        let (ten, two) = suffix(rest).ok_or_else(wrong)?;
        let nano = nano(whole, fraction, ten, two);
        Ok(Self { nano: if text.starts_with('-') { -nano } else { nano } })
    }
}

/// `whole.fraction` times ten and two to these powers, in billionths.
fn nano(whole: &str, fraction: &str, ten: i64, two: u32) -> i128 {
    let max = UNITS_MAX * NANO;
    let digits = || whole.bytes().chain(fraction.bytes()).map(|byte| i128::from(byte - b'0'));
    let leading_zeros = digits().take_while(|digit| *digit == 0).count();
    let count = whole.len() + fraction.len() - leading_zeros;
    if count == 0 {
        return 0;
    }
    // The number is below ten to this power, and not below a tenth of it.
    let Ok(fraction_digits) = i64::try_from(fraction.len()) else { return max };
    let magnitude =
        i64::try_from(count).unwrap_or(i64::MAX).saturating_sub(fraction_digits).saturating_add(ten);
    if magnitude > 20 {
        return max;
    }
    // In units of ten to the power of minus PLACES: at most 38 digits.
    let places = usize::try_from(magnitude + PLACES).unwrap_or(0);
    let mut value: i128 = 0;
    let mut taken = digits().skip(leading_zeros);
    for _ in 0..places {
        value = value * 10 + taken.next().unwrap_or(0);
    }
    let finer = taken.any(|digit| digit != 0);
    let Some(value) = value.checked_mul(1 << two) else { return max };
    let scale = 10i128.pow(PLACES as u32) / NANO;
    let rounded = value / scale + i128::from(value % scale != 0 || finer);
    rounded.min(max)
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, rest) = ((self.nano / NANO).unsigned_abs(), (self.nano % NANO).unsigned_abs());
        let sign = if self.nano < 0 { "-" } else { "" };
        match rest {
            0 => write!(f, "{sign}{whole}"),
            rest => write!(f, "{sign}{whole}.{}", format!("{rest:09}").trim_end_matches('0')),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quantity(text: &str) -> Quantity {
        text.parse().unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn every_suffix_means_what_the_specification_says() {
        for (text, shown) in [
            ("0", "0"),
            ("-0", "0"),
            ("000", "0"),
            ("500m", "0.5"),
            ("0.3", "0.3"),
            ("300m", "0.3"),
            (".5", "0.5"),
            ("1.", "1"),
            ("1n", "0.000000001"),
            ("7u", "0.000007"),
            ("1k", "1000"),
            ("1K", "1000"),
            ("2M", "2000000"),
            ("1G", "1000000000"),
            ("1T", "1000000000000"),
            ("1P", "1000000000000000"),
            ("1E", "1000000000000000000"),
            ("1Ki", "1024"),
            ("123Mi", "128974848"),
            ("125952Ki", "128974848"),
            ("1Gi", "1073741824"),
            ("1.5Gi", "1610612736"),
            ("0.1Ki", "102.4"),
            ("1Ti", "1099511627776"),
            ("1Ei", "1152921504606846976"),
            ("12e6", "12000000"),
            ("12E6", "12000000"),
            ("1.5e+3", "1500"),
            ("15e-1", "1.5"),
            ("-2M", "-2000000"),
            ("+1", "1"),
        ] {
            assert_eq!(quantity(text).to_string(), shown, "{text}");
        }
    }

    #[test]
    fn what_is_too_fine_is_rounded_up_and_what_is_too_large_is_the_largest() {
        assert_eq!(quantity("0.1n").to_string(), "0.000000001");
        assert_eq!(quantity("1e-2147483999").to_string(), "0.000000001");
        assert_eq!(quantity("-0.1n").to_string(), "-0.000000001");
        assert_eq!(quantity(&format!("0.{}1", "0".repeat(5000))).to_string(), "0.000000001");
        let largest = i64::MAX.to_string();
        for text in ["9223372036854775807", "8Ei", "10E", "1e400", "1e99999999999999", &"9".repeat(5000)] {
            assert_eq!(quantity(text).to_string(), largest, "{text}");
        }
        assert_eq!(quantity("-1e400").to_string(), format!("-{largest}"));
        assert_eq!(quantity("0e99999999999999").to_string(), "0");
    }

    #[test]
    fn it_is_told_in_units_and_thousandths() {
        assert_eq!((quantity("250m").ceil(), quantity("250m").milli()), (Some(1), Some(250)));
        assert_eq!((quantity("1.0001").milli(), quantity("2G").ceil()), (Some(1001), Some(2_000_000_000)));
        assert_eq!((quantity("-1").ceil(), quantity("-1").milli()), (None, None));
        assert_eq!((quantity("8Ei").milli(), Quantity::units(3)), (Some(u64::MAX), quantity("3")));
        assert!(quantity("-1n").is_negative() && !quantity("0").is_negative());
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "", "-", ".", "1.2.3", "1 G", "G", "1g", "1KB", "1ki", "1e", "1e+", "1e1.5", "0x1", "1Mi3",
            "--1", "١",
        ] {
            assert!(text.parse::<Quantity>().is_err(), "{text}");
        }
    }
}
