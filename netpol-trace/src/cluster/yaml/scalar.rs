//! Resolves plain scalars as kubectl does: go-yaml's variant of YAML 1.1, as in `sigs.k8s.io/yaml`.

use super::Value;

/// Resolves a plain (unquoted) scalar without a tag.
pub(super) fn resolve(text: &str) -> Result<Value, String> {
    let raw = || Some(text.into());
    Ok(match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            Value::Bool { value: true, raw: raw() }
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            Value::Bool { value: false, raw: raw() }
        }
        ".nan" | ".NaN" | ".NAN" | ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" | "-.inf" | "-.Inf"
        | "-.INF" => return Err(format!("`{text}` is a YAML number that JSON can't hold; quote it to mean the text")),
        _ => match number(text) {
            Some(value) => Value::Number { value, raw: raw() },
            None => Value::String(text.into()),
        },
    })
}

fn number(text: &str) -> Option<serde_json::Number> {
    // Most scalars are names, which the first character shows.
    if !text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.')) {
        return None;
    }
    let plain = text.replace('_', "");
    integer(&plain).or_else(|| float(&plain))
}

/// Go's `strconv.ParseInt(s, 0, 64)`, then `ParseUint`: a leading `0` means octal.
fn integer(text: &str) -> Option<serde_json::Number> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, digits) = if let Some(hex) = lower.strip_prefix("0x") {
        (16, hex)
    } else if let Some(octal) = lower.strip_prefix("0o") {
        (8, octal)
    } else if let Some(binary) = lower.strip_prefix("0b") {
        (2, binary)
    } else if lower.len() > 1 && lower.starts_with('0') {
        (8, &lower[1..])
    } else {
        (10, lower.as_str())
    };
    if digits.starts_with(['+', '-']) {
        return None;
    }
    let magnitude = u64::from_str_radix(digits, radix).ok()?;
    if negative { 0i64.checked_sub_unsigned(magnitude).map(Into::into) } else { Some(magnitude.into()) }
}

/// go-yaml's pattern for floats: `[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?`.
fn float(text: &str) -> Option<serde_json::Number> {
    let body = text.strip_prefix(['-', '+']).unwrap_or(text);
    let (mantissa, exponent) = match body.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent.strip_prefix(['-', '+']).unwrap_or(exponent))),
        None => (body, None),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    let some = !whole.is_empty() || !fraction.is_empty();
    if !some || !digits(whole) || !digits(fraction) || exponent.is_some_and(|e| e.is_empty() || !digits(e)) {
        return None;
    }
    serde_json::Number::from_f64(text.parse().ok()?)
}

/// A mapping key as text: JSON has no other keys, and kubectl writes a plain `yes:` as `true`.
pub(super) fn key(value: Value) -> Result<Box<str>, String> {
    match value {
        Value::String(text) => Ok(text),
        Value::Bool { value, .. } => Ok(value.to_string().into()),
        Value::Number { value, .. } => Ok(value.to_string().into()),
        Value::Null => Err("an empty key; quote it to mean the text".to_owned()),
        Value::Sequence(_) | Value::Mapping(_) => Err("a list or mapping as a key".to_owned()),
    }
}
