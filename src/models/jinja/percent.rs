//! `%` formatting of text.

use num_traits::{Signed, ToPrimitive};

use super::limits::MAX_WIDTH;
use super::number_format::{Spec, digits, magnitude, radix, whole};
use super::operators::as_float;
use super::value::Value;
use super::{Result, TemplateError, limits, repr};

/// The values that a format takes.
struct Values<'v> {
    items: Vec<Value>,
    next: usize,
    all: &'v Value,
}

impl Values<'_> {
    fn next(&mut self) -> Result<Value> {
        self.next += 1;
        let item = self.items.get(self.next - 1).cloned();
        item.ok_or_else(|| TemplateError::new("not enough arguments for format string"))
    }
}

/// `format % values` of Python.
pub(super) fn format(format: &str, values: &Value) -> Result<String> {
    let items = match values {
        Value::Tuple(items) | Value::Group(items) => items.to_vec(),
        other => vec![other.clone()],
    };
    let is_mapping =
        matches!(values, Value::Dict(_) | Value::List(_) | Value::Range(_) | Value::Undefined(_));
    let mut values = Values { items, next: 0, all: values };
    let mut used_names = false;
    let mut out = String::new();
    let chars: Vec<char> = format.chars().collect();
    let mut at = 0;
    while at < chars.len() {
        let c = chars[at];
        at += 1;
        if c != '%' {
            out.push(c);
            continue;
        }
        let named = chars.get(at) == Some(&'(');
        used_names |= named;
        out.push_str(&directive(&chars, &mut at, &mut values)?);
        limits::text(out.len())?;
    }
    if values.next < values.items.len() && !is_mapping && !used_names {
        return Err(TemplateError::new("not all arguments converted during string formatting"));
    }
    Ok(out)
}

/// One directive after its `%`.
fn directive(chars: &[char], at: &mut usize, values: &mut Values<'_>) -> Result<String> {
    let incomplete = || TemplateError::new("incomplete format");
    let mut value = None;
    if chars.get(*at) == Some(&'(') {
        let mut open = 1;
        let start = *at + 1;
        *at = start;
        while open > 0 {
            match chars.get(*at).ok_or_else(incomplete)? {
                '(' => open += 1,
                ')' => open -= 1,
                _ => {}
            }
            *at += 1;
        }
        let name: String = chars[start..*at - 1].iter().collect();
        let Value::Dict(dict) = values.all else {
            return Err(TemplateError::new("format requires a mapping"));
        };
        let found = dict.get_str(&name).cloned();
        value = Some(found.ok_or_else(|| TemplateError::new(format!("no value for %({name})")))?);
    }
    let mut spec = Spec::default();
    let mut is_left = false;
    while let Some(flag) = chars.get(*at).filter(|c| "#0- +".contains(**c)) {
        match flag {
            '#' => spec.alternate = true,
            '0' => spec.zero = true,
            '-' => is_left = true,
            '+' => spec.sign = Some('+'),
            _ => spec.sign = spec.sign.or(Some(' ')),
        }
        *at += 1;
    }
    if let Some(width) = number(chars, at, values)? {
        is_left |= width < 0;
        spec.width = width.unsigned_abs() as usize;
    }
    if chars.get(*at) == Some(&'.') {
        *at += 1;
        spec.precision = Some(number(chars, at, values)?.unwrap_or(0).max(0) as usize);
    }
    if chars.get(*at).is_some_and(|c| "hlL".contains(*c)) {
        *at += 1;
    }
    let kind = *chars.get(*at).ok_or_else(incomplete)?;
    *at += 1;
    if kind == '%' {
        return Ok("%".to_owned());
    }
    if is_left {
        spec.align = Some('<');
        spec.fill = Some(' ');
    }
    spec.kind = Some(kind);
    let value = match value {
        Some(value) => value,
        None => values.next()?,
    };
    convert(&value, spec)
}

/// A width or precision, which `*` takes from the values.
fn number(chars: &[char], at: &mut usize, values: &mut Values<'_>) -> Result<Option<i64>> {
    let too_large = || {
        TemplateError::new(format!("a width or precision of the format is above the limit of {MAX_WIDTH}"))
    };
    if chars.get(*at) == Some(&'*') {
        *at += 1;
        let value = values.next()?.as_int().ok_or_else(|| TemplateError::new("* wants int"))?;
        return value
            .to_i64()
            .filter(|n| n.unsigned_abs() <= MAX_WIDTH as u64)
            .ok_or_else(too_large)
            .map(Some);
    }
    let start = *at;
    while chars.get(*at).is_some_and(char::is_ascii_digit) {
        *at += 1;
    }
    if start == *at {
        return Ok(None);
    }
    let digits: String = chars[start..*at].iter().collect();
    digits.parse().ok().filter(|n| *n <= MAX_WIDTH as i64).ok_or_else(too_large).map(Some)
}

fn convert(value: &Value, spec: Spec) -> Result<String> {
    let kind = spec.kind.unwrap_or('s');
    let wrong = |wanted: &str| {
        TemplateError::new(format!("%{kind} format: {wanted} is required, not {}", value.type_name()))
    };
    match kind {
        's' | 'r' | 'a' => {
            let text = match kind {
                's' => repr::text(value)?,
                'r' => repr::repr(value)?,
                _ => ascii(&repr::repr(value)?),
            };
            let cut: String = text.chars().take(spec.precision.unwrap_or(usize::MAX)).collect();
            Ok(Spec { zero: false, ..spec }.pad(&cut, '>', 0))
        }
        'c' => {
            let c = match value {
                Value::Str(text) if text.text.chars().count() == 1 => text.text.to_string(),
                _ => {
                    let code = value.as_int().and_then(|int| int.to_u32()).and_then(char::from_u32);
                    code.ok_or_else(|| wrong("a character"))?.to_string()
                }
            };
            Ok(Spec { zero: false, ..spec }.pad(&c, '>', 0))
        }
        'd' | 'i' | 'u' | 'o' | 'x' | 'X' => {
            let int = if matches!(kind, 'd' | 'i' | 'u') { whole(value)? } else { value.as_int() };
            let int = int.ok_or_else(|| wrong("a number"))?;
            let (radix, prefix) = radix(Some(kind));
            let mut number = digits(&int, radix, kind == 'X')?;
            if let Some(precision) = spec.precision {
                number = format!("{}{number}", "0".repeat(precision.saturating_sub(number.len())));
            }
            let prefix = if spec.alternate { prefix } else { "" };
            finish(&spec, int.is_negative(), prefix, &number)
        }
        'e' | 'E' | 'f' | 'F' | 'g' | 'G' => {
            let float = as_float(value)?.ok_or_else(|| wrong("a real number"))?;
            let number = magnitude(float, kind, spec.precision.unwrap_or(6), spec.alternate);
            finish(&spec, float.is_sign_negative() && !float.is_nan(), "", &number)
        }
        _ => Err(TemplateError::new(format!("unsupported format character '{kind}'"))),
    }
}

fn finish(spec: &Spec, is_negative: bool, prefix: &str, number: &str) -> Result<String> {
    let sign = match (is_negative, spec.sign) {
        (true, _) => "-",
        (false, Some('+')) => "+",
        (false, Some(' ')) => " ",
        _ => "",
    };
    Ok(spec.pad(&format!("{sign}{prefix}{number}"), '>', sign.len() + prefix.len()))
}

/// Escapes what is not ASCII, as Python's `ascii` does.
fn ascii(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match u32::from(c) {
            0..=0x7f => out.push(c),
            code @ ..0x100 => out.push_str(&format!("\\x{code:02x}")),
            code @ ..0x1_0000 => out.push_str(&format!("\\u{code:04x}")),
            code => out.push_str(&format!("\\U{code:08x}")),
        }
    }
    out
}
