//! What is JSON, and yet not for a column of type `jsonb`.
//!
//! `jsonb` keeps strings as text of Postgres and numbers as `numeric`, so it has their bounds
//! (<https://www.postgresql.org/docs/current/datatype-json.html>). Postgres says so without a column
//! or a place, and fails the transaction; here it is known before anything is sent.

/// Digits before and after the point that a `numeric` takes
/// (<https://www.postgresql.org/docs/current/datatype-numeric.html>).
const WHOLE_DIGITS_MAX: i64 = 131_072;
const FRACTION_DIGITS_MAX: i64 = 16_383;

const SURROGATES: &str = "JSON whose surrogates stand in pairs, a high one before a low one";

/// What `jsonb` takes that this text is not; the text is JSON.
pub(super) fn fault(json: &str) -> Option<&'static str> {
    let mut rest = json;
    while let Some(at) = rest.find(|next: char| next == '"' || next.is_ascii_digit()) {
        rest = rest.get(at..)?;
        if let Some(inside) = rest.strip_prefix('"') {
            let (length, fault) = string(inside);
            if fault.is_some() {
                return fault;
            }
            rest = inside.get(length..)?;
        } else {
            let end = rest.find(|next: char| !is_of_number(next)).unwrap_or(rest.len());
            let (number, behind) = rest.split_at(end);
            if !fits_numeric(number) {
                return Some("JSON with numbers in the range of numeric");
            }
            rest = behind;
        }
    }
    None
}

fn is_of_number(letter: char) -> bool {
    letter.is_ascii_digit() || matches!(letter, '.' | 'e' | 'E' | '+' | '-')
}

/// How long a string is, with the quote at its end, and what is wrong with its escapes.
fn string(text: &str) -> (usize, Option<&'static str>) {
    let mut letters = text.char_indices();
    let mut high = false;
    while let Some((at, letter)) = letters.next() {
        let unit = match letter {
            '"' => return (at + 1, high.then_some(SURROGATES)),
            '\\' => match letters.next() {
                Some((_, 'u')) => {
                    let digits = letters.as_str().get(..4).unwrap_or_default();
                    let unit = u16::from_str_radix(digits, 16).unwrap_or_default();
                    letters = skipping(letters, 4);
                    Some(unit)
                }
                _ => None,
            },
            _ => None,
        };
        match unit {
            Some(0) => return (0, Some("JSON without \\u0000")),
            Some(0xDC00..=0xDFFF) if high => high = false,
            Some(0xDC00..=0xDFFF) => return (0, Some(SURROGATES)),
            _ if high => return (0, Some(SURROGATES)),
            Some(0xD800..=0xDBFF) => high = true,
            _ => {}
        }
    }
    (text.len(), None)
}

fn skipping(mut letters: std::str::CharIndices<'_>, count: usize) -> std::str::CharIndices<'_> {
    letters.by_ref().take(count).for_each(drop);
    letters
}

/// Whether a number without its sign fits.
fn fits_numeric(number: &str) -> bool {
    let (digits, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    // Too many digits for an exponent of 64 bits are too many for a numeric.
    let Ok(exponent) = exponent.parse::<i64>() else { return false };
    let length = |digits: &str| i64::try_from(digits.len()).unwrap_or(i64::MAX);
    let leading =
        whole.len() + fraction.len() - format!("{whole}{fraction}").trim_start_matches('0').len();
    let significant = length(whole) - i64::try_from(leading).unwrap_or(i64::MAX);
    let is_zero = leading == whole.len() + fraction.len();
    (is_zero || significant.saturating_add(exponent) <= WHOLE_DIGITS_MAX)
        && length(fraction).saturating_sub(exponent) <= FRACTION_DIGITS_MAX
}

#[cfg(test)]
mod tests {
    use super::fault;

    #[test]
    fn what_jsonb_does_not_take_is_known() {
        for good in [
            r#"{"a\"\\u0000": [1, -2.5e3, 0.001, "\u0041\\u0000\ud83d\ude00\n"], "": null}"#,
            r#""\\\\u0000""#,
            "1e131071",
            "0e900000",
            "1e-16383",
            "0.00001e131075",
        ] {
            assert_eq!(fault(good), None, "{good}");
        }
        for (bad, what) in [
            (r#"{"a": "x\u0000"}"#, "u0000"),
            (r#"{"\u0000": 1}"#, "u0000"),
            (r#""\ud800""#, "surrogates"),
            (r#""\ud800x\udc00""#, "surrogates"),
            (r#""\udc00\ud800""#, "surrogates"),
            (r#""\ud800\n""#, "surrogates"),
            ("[1, 1e131072]", "numeric"),
            ("-1e-16384", "numeric"),
            ("1e99999999999999999999", "numeric"),
        ] {
            assert!(fault(bad).is_some_and(|fault| fault.contains(what)), "{bad}");
        }
    }
}
