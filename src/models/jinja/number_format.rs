//! Numbers and text by a format: what `%` and `str.format` of Python have in common.

use num_bigint::BigInt;
use num_traits::{Signed, ToPrimitive};

use super::limits::MAX_WIDTH;
use super::operators::{as_float, truncate};
use super::value::Value;
use super::{Result, TemplateError, repr};

/// A format: `[[fill]align][sign][#][0][width][grouping][.precision][kind]`.
#[derive(Debug, Clone, Default)]
pub(super) struct Spec {
    pub(super) fill: Option<char>,
    pub(super) align: Option<char>,
    pub(super) sign: Option<char>,
    pub(super) alternate: bool,
    pub(super) zero: bool,
    pub(super) width: usize,
    pub(super) grouping: Option<char>,
    pub(super) precision: Option<usize>,
    pub(super) kind: Option<char>,
}

impl Spec {
    /// Parses a format of `str.format`.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let invalid = || TemplateError::new(format!("Invalid format specifier '{text}'"));
        let chars: Vec<char> = text.chars().collect();
        let is_align = |at: usize| chars.get(at).is_some_and(|c| "<>=^".contains(*c));
        let mut spec = Self::default();
        let mut at = 0;
        if is_align(1) {
            spec.fill = Some(chars[0]);
            spec.align = Some(chars[1]);
            at = 2;
        } else if is_align(0) {
            spec.align = Some(chars[0]);
            at = 1;
        }
        let take = |at: &mut usize, set: &str| {
            let found = chars.get(*at).copied().filter(|c| set.contains(*c));
            *at += usize::from(found.is_some());
            found
        };
        spec.sign = take(&mut at, "+- ");
        spec.alternate = take(&mut at, "#").is_some();
        spec.zero = take(&mut at, "0").is_some();
        let number = |at: &mut usize| {
            let start = *at;
            while take(at, "0123456789").is_some() {}
            let digits: String = chars[start..*at].iter().collect();
            if digits.is_empty() {
                None
            } else {
                digits.parse().ok().filter(|n| *n <= MAX_WIDTH).or(Some(usize::MAX))
            }
        };
        spec.width = number(&mut at).unwrap_or(0);
        spec.grouping = chars.get(at).copied().filter(|c| matches!(c, ',' | '_'));
        at += usize::from(spec.grouping.is_some());
        if chars.get(at) == Some(&'.') {
            at += 1;
            spec.precision = Some(number(&mut at).ok_or_else(invalid)?);
        }
        spec.kind = chars.get(at).copied();
        at += usize::from(spec.kind.is_some());
        if at != chars.len() {
            return Err(invalid());
        }
        if spec.width.max(spec.precision.unwrap_or(0)) > MAX_WIDTH {
            let message = format!("a width or precision of the format is above the limit of {MAX_WIDTH}");
            return Err(TemplateError::new(message));
        }
        Ok(spec)
    }

    /// Pads a text to the width. `sign_length` characters stay before zeros.
    pub(super) fn pad(&self, text: &str, default: char, sign_length: usize) -> String {
        let length = text.chars().count();
        let missing = self.width.saturating_sub(length);
        let align = self.align.unwrap_or(if self.zero { '=' } else { default });
        let fill = self.fill.unwrap_or(if self.zero { '0' } else { ' ' });
        let fill = |count: usize| fill.to_string().repeat(count);
        match align {
            '<' => format!("{text}{}", fill(missing)),
            '^' => format!("{}{text}{}", fill(missing / 2), fill(missing - missing / 2)),
            '=' => format!("{}{}{}", &text[..sign_length], fill(missing), &text[sign_length..]),
            _ => format!("{}{text}", fill(missing)),
        }
    }

    fn sign(&self, is_negative: bool) -> &'static str {
        match (is_negative, self.sign) {
            (true, _) => "-",
            (false, Some('+')) => "+",
            (false, Some(' ')) => " ",
            _ => "",
        }
    }

    fn unknown(&self, value: &Value) -> TemplateError {
        let kind = self.kind.unwrap_or(' ');
        let name = value.type_name();
        TemplateError::new(format!("Unknown format code '{kind}' for object of type '{name}'"))
    }
}

/// `format(value, spec)` of Python.
pub(super) fn format_value(value: &Value, text: &str) -> Result<String> {
    if text.is_empty() {
        return repr::text(value);
    }
    let spec = Spec::parse(text)?;
    match value {
        Value::Str(content) if matches!(spec.kind, None | Some('s')) => {
            if spec.sign.is_some() || spec.alternate || spec.grouping.is_some() || spec.align == Some('=') {
                return Err(TemplateError::new("the format does not suit a text"));
            }
            let cut: String = content.text.chars().take(spec.precision.unwrap_or(usize::MAX)).collect();
            // Zeros before the width of a text fill it at the end.
            let align = spec.align.unwrap_or('<');
            Ok(Spec { align: Some(align), ..spec }.pad(&cut, '<', 0))
        }
        Value::Float(float) => format_float(value, *float, &spec),
        Value::Int(_) | Value::Bool(_) => match spec.kind {
            None if matches!(value, Value::Bool(_)) => format_int(&value.as_int().unwrap_or_default(), &spec),
            Some('e' | 'E' | 'f' | 'F' | 'g' | 'G' | '%') => {
                format_float(value, as_float(value)?.unwrap_or(0.0), &spec)
            }
            None | Some('d' | 'b' | 'o' | 'x' | 'X' | 'c') => {
                format_int(&value.as_int().unwrap_or_default(), &spec)
            }
            Some(_) => Err(spec.unknown(value)),
        },
        Value::Str(_) => Err(spec.unknown(value)),
        _ => Err(TemplateError::new(format!(
            "unsupported format string passed to {}.__format__",
            value.type_name()
        ))),
    }
}

/// An integer by a format of `str.format`.
fn format_int(value: &BigInt, spec: &Spec) -> Result<String> {
    if spec.precision.is_some() {
        return Err(TemplateError::new("Precision not allowed in integer format specifier"));
    }
    if spec.kind == Some('c') {
        let c = value
            .to_u32()
            .and_then(char::from_u32)
            .ok_or_else(|| TemplateError::new("%c arg not a character"))?;
        return Ok(spec.pad(&c.to_string(), '<', 0));
    }
    let (radix, prefix) = radix(spec.kind);
    let mut digits = digits(value, radix, spec.kind == Some('X'))?;
    let prefix = if spec.alternate { prefix } else { "" };
    let sign = spec.sign(value.is_negative());
    if let Some(separator) = spec.grouping {
        let size = if radix == 10 { 3 } else { 4 };
        let room = zero_room(spec, sign.len() + prefix.len());
        digits = grouped(&digits, separator, size, room);
    }
    Ok(spec.pad(&format!("{sign}{prefix}{digits}"), '>', sign.len() + prefix.len()))
}

/// Width that zeros fill, which take separators too.
fn zero_room(spec: &Spec, taken: usize) -> usize {
    let fills = spec.zero && matches!(spec.align, None | Some('=')) && matches!(spec.fill, None | Some('0'));
    if fills { spec.width.saturating_sub(taken) } else { 0 }
}

fn grouped(digits: &str, separator: char, size: usize, width: usize) -> String {
    let mut count = digits.len();
    while count + count.saturating_sub(1) / size < width {
        count += 1;
    }
    let zeros = std::iter::repeat_n('0', count - digits.len());
    let mut out = String::new();
    for (index, digit) in zeros.chain(digits.chars()).enumerate() {
        if index > 0 && (count - index).is_multiple_of(size) {
            out.push(separator);
        }
        out.push(digit);
    }
    out
}

pub(super) fn radix(kind: Option<char>) -> (u32, &'static str) {
    match kind {
        Some('b') => (2, "0b"),
        Some('o') => (8, "0o"),
        Some('x') => (16, "0x"),
        Some('X') => (16, "0X"),
        _ => (10, ""),
    }
}

/// The digits of an integer without its sign.
pub(super) fn digits(value: &BigInt, radix: u32, upper: bool) -> Result<String> {
    let magnitude = value.abs();
    let digits = if radix == 10 { repr::integer(&magnitude)? } else { magnitude.to_str_radix(radix) };
    Ok(if upper { digits.to_uppercase() } else { digits })
}

fn format_float(value: &Value, float: f64, spec: &Spec) -> Result<String> {
    if !matches!(spec.kind, None | Some('e' | 'E' | 'f' | 'F' | 'g' | 'G' | '%')) {
        return Err(spec.unknown(value));
    }
    let body = match (spec.kind, spec.precision) {
        (None, None) => repr::float(float.abs()),
        (None, Some(precision)) => general(float, precision, spec.alternate, 1),
        (Some('%'), precision) => {
            format!("{}%", magnitude(float * 100.0, 'f', precision.unwrap_or(6), spec.alternate))
        }
        (Some(kind), precision) => magnitude(float, kind, precision.unwrap_or(6), spec.alternate),
    };
    let sign = spec.sign(float.is_sign_negative() && !float.is_nan());
    let body = match spec.grouping {
        Some(separator) if float.is_finite() => {
            let end = body.find(|c: char| !c.is_ascii_digit()).unwrap_or(body.len());
            let room = zero_room(spec, sign.len() + body.len() - end);
            format!("{}{}", grouped(&body[..end], separator, 3, room), &body[end..])
        }
        _ => body,
    };
    Ok(spec.pad(&format!("{sign}{body}"), '>', sign.len()))
}

/// A float without its sign by `e`, `f` or `g`.
pub(super) fn magnitude(float: f64, kind: char, precision: usize, alternate: bool) -> String {
    let float = float.abs();
    let text = if !float.is_finite() {
        repr::float(float)
    } else {
        match kind.to_ascii_lowercase() {
            'e' => exponential(float, precision, alternate),
            'g' => general(float, precision, alternate, 0),
            _ => format!("{float:.precision$}{}", if alternate && precision == 0 { "." } else { "" }),
        }
    };
    if kind.is_ascii_uppercase() { text.to_uppercase() } else { text }
}

fn exponential(float: f64, precision: usize, alternate: bool) -> String {
    let text = format!("{float:.precision$e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let dot = if alternate && precision == 0 { "." } else { "" };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    format!("{digits}{dot}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

/// `g`: as many digits as the precision, fixed or with an exponent. `dot` is 1 if `.0` is added to whole numbers.
fn general(float: f64, precision: usize, alternate: bool, dot: i64) -> String {
    let float = float.abs();
    if !float.is_finite() {
        return repr::float(float);
    }
    let precision = precision.max(1);
    let scientific = format!("{float:.*e}", precision - 1);
    let exponent: i64 = scientific.split_once('e').and_then(|(_, e)| e.parse().ok()).unwrap_or(0);
    let trim = |text: String| {
        if alternate || !text.contains('.') {
            return text;
        }
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    let precision = precision as i64;
    if exponent < -4 || exponent >= precision - dot {
        let text = exponential(float, (precision - 1) as usize, alternate);
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "+00"));
        return format!("{}e{exponent}", trim(digits.to_owned()));
    }
    let decimals = (precision - 1 - exponent).max(0) as usize;
    let text = trim(format!("{float:.decimals$}"));
    if dot == 1 && !text.contains('.') { format!("{text}.0") } else { text }
}

/// An integer for `%d`: floats lose their fraction.
pub(super) fn whole(value: &Value) -> Result<Option<BigInt>> {
    match value {
        Value::Float(float) => truncate(*float).map(Some),
        _ => Ok(value.as_int()),
    }
}
