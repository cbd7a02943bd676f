//! Arithmetic, indices and slices as Python defines them.

use std::rc::Rc;

use num_bigint::BigInt;
use num_traits::{FromPrimitive, Signed, ToPrimitive, Zero};

use super::ast::BinaryOp;
use super::markup::escape;
use super::value::{Text, Value};
use super::{Result, TemplateError, limits, percent};

/// Integers with more bits than this are refused: no chat has them.
const MAX_BITS: u64 = 1 << 16;

pub(super) fn binary(operator: BinaryOp, left: &Value, right: &Value) -> Result<Value> {
    limits::spend(left.cost() + right.cost())?;
    left.defined()?;
    match (operator, left, right) {
        (BinaryOp::Mod, Value::Str(format), _) => {
            if format.is_markup {
                return Err(TemplateError::new("% of a text that is marked as safe is not supported"));
            }
            return Ok(percent::format(&format.text, right)?.into());
        }
        (BinaryOp::Add, Value::Str(a), Value::Str(b)) => return concatenate(a, b),
        (BinaryOp::Add, Value::List(a), Value::List(b)) => {
            limits::items(a.len() + b.len())?;
            return Ok(Value::list(a.iter().chain(b.iter()).cloned().collect()));
        }
        (BinaryOp::Add, Value::Tuple(a) | Value::Group(a), Value::Tuple(b) | Value::Group(b)) => {
            limits::items(a.len() + b.len())?;
            return Ok(Value::tuple(a.iter().chain(b.iter()).cloned().collect()));
        }
        (BinaryOp::Mul, Value::Str(_) | Value::List(_) | Value::Tuple(_) | Value::Group(_), _) => {
            if let Some(count) = right.as_int() {
                return repeat(left, &count);
            }
        }
        (BinaryOp::Mul, _, Value::Str(_) | Value::List(_) | Value::Tuple(_) | Value::Group(_)) => {
            if let Some(count) = left.as_int() {
                return repeat(right, &count);
            }
        }
        _ => {}
    }
    right.defined()?;
    if let (Some(a), Some(b)) = (left.as_int(), right.as_int()) {
        return integers(operator, &a, &b);
    }
    if let (Some(a), Some(b)) = (as_float(left)?, as_float(right)?) {
        return floats(operator, a, b);
    }
    if operator == BinaryOp::Add
        && let Value::Str(_) = left
    {
        return Err(TemplateError::new(format!(
            "can only concatenate str (not \"{}\") to str",
            right.type_name()
        )));
    }
    let symbol = match operator {
        BinaryOp::Add => "+",
        BinaryOp::Sub => "-",
        BinaryOp::Mul => "*",
        BinaryOp::Div => "/",
        BinaryOp::FloorDiv => "//",
        BinaryOp::Mod => "%",
        BinaryOp::Pow => "**",
    };
    let (left, right) = (left.type_name(), right.type_name());
    Err(TemplateError::new(format!("unsupported operand type(s) for {symbol}: '{left}' and '{right}'")))
}

/// Text joined to text. Text marked as safe escapes the other.
fn concatenate(a: &Text, b: &Text) -> Result<Value> {
    let is_markup = a.is_markup || b.is_markup;
    limits::text(a.text.len() + b.text.len())?;
    let part =
        |text: &Text| if is_markup && !text.is_markup { escape(&text.text) } else { text.text.to_string() };
    Ok(Value::Str(Text { text: (part(a) + &part(b)).into(), is_markup }))
}

fn repeat(value: &Value, count: &BigInt) -> Result<Value> {
    let too_long = || TemplateError::new("the result of a repetition is too long");
    let count = if count.is_negative() { 0 } else { count.to_usize().ok_or_else(too_long)? };
    let repeated = |items: &[Value]| -> Result<Vec<Value>> {
        let length = items.len().saturating_mul(count);
        limits::items(length)?;
        // No item may be repeated without end.
        let count = if items.is_empty() { 0 } else { count };
        Ok((0..count).flat_map(|_| items.iter().cloned()).collect())
    };
    Ok(match value {
        Value::Str(text) => {
            let length = text.text.len().saturating_mul(count);
            limits::text(length)?;
            limits::build(length)?;
            let count = if text.text.is_empty() { 0 } else { count };
            Value::Str(Text { text: text.text.repeat(count).into(), is_markup: text.is_markup })
        }
        Value::List(items) => Value::list(repeated(items)?),
        Value::Tuple(items) | Value::Group(items) => Value::tuple(repeated(items)?),
        _ => return Err(TemplateError::new(format!("a {} cannot be repeated", value.type_name()))),
    })
}

fn zero_division() -> TemplateError {
    TemplateError::new("division by zero")
}

/// Quotient and remainder with the divisor's sign.
pub(super) fn divide_floor(a: &BigInt, b: &BigInt) -> Result<(BigInt, BigInt)> {
    if b.is_zero() {
        return Err(zero_division());
    }
    let (quotient, remainder) = (a / b, a % b);
    if !remainder.is_zero() && remainder.is_negative() != b.is_negative() {
        return Ok((quotient - 1, remainder + b));
    }
    Ok((quotient, remainder))
}

fn integers(operator: BinaryOp, a: &BigInt, b: &BigInt) -> Result<Value> {
    if a.bits().max(b.bits()) > MAX_BITS {
        return Err(TemplateError::new("the integers are too large"));
    }
    Ok(Value::Int(match operator {
        BinaryOp::Add => a + b,
        BinaryOp::Sub => a - b,
        BinaryOp::Mul => a * b,
        BinaryOp::FloorDiv => divide_floor(a, b)?.0,
        BinaryOp::Mod => divide_floor(a, b)?.1,
        BinaryOp::Div => {
            if b.is_zero() {
                return Err(zero_division());
            }
            if a.bits().max(b.bits()) > 53 {
                return Err(TemplateError::new("division of integers above 2^53 is not supported"));
            }
            return floats(operator, int_to_float(a)?, int_to_float(b)?);
        }
        BinaryOp::Pow if b.is_negative() => return floats(operator, int_to_float(a)?, int_to_float(b)?),
        BinaryOp::Pow => match b.to_u32() {
            Some(exponent) if a.bits().saturating_mul(u64::from(exponent)) <= MAX_BITS || a.bits() <= 1 => {
                a.pow(exponent)
            }
            _ => return Err(TemplateError::new("the power is too large")),
        },
    }))
}

/// An integer as a float, rounded to the nearest one.
pub(super) fn int_to_float(value: &BigInt) -> Result<f64> {
    match value.to_f64() {
        Some(float) if float.is_finite() => Ok(float),
        _ => Err(TemplateError::new("int too large to convert to float")),
    }
}

/// A number as a float. `None` for other values.
pub(super) fn as_float(value: &Value) -> Result<Option<f64>> {
    match value {
        Value::Float(float) => Ok(Some(*float)),
        _ => value.as_int().map(|int| int_to_float(&int)).transpose(),
    }
}

fn floats(operator: BinaryOp, a: f64, b: f64) -> Result<Value> {
    let divides = matches!(operator, BinaryOp::Div | BinaryOp::FloorDiv | BinaryOp::Mod);
    if divides && b == 0.0 {
        return Err(zero_division());
    }
    // Python's remainder has the divisor's sign, also if it is zero.
    let remainder = || match a % b {
        0.0 => 0.0_f64.copysign(b),
        remainder if (remainder < 0.0) != (b < 0.0) => remainder + b,
        remainder => remainder,
    };
    Ok(Value::Float(match operator {
        BinaryOp::Add => a + b,
        BinaryOp::Sub => a - b,
        BinaryOp::Mul => a * b,
        BinaryOp::Div => a / b,
        BinaryOp::Mod => remainder(),
        BinaryOp::FloorDiv => {
            let quotient = (a - remainder()) / b;
            if quotient == 0.0 {
                0.0_f64.copysign(a / b)
            } else {
                let floor = quotient.floor();
                if quotient - floor > 0.5 { floor + 1.0 } else { floor }
            }
        }
        BinaryOp::Pow => {
            if a == 0.0 && b < 0.0 {
                return Err(TemplateError::new("0.0 cannot be raised to a negative power"));
            }
            let power = a.powf(b);
            if a < 0.0 && b.fract() != 0.0 && a.is_finite() {
                return Err(TemplateError::new("complex numbers are not supported"));
            }
            if power.is_infinite() && a.is_finite() && b.is_finite() {
                return Err(TemplateError::new("the power is too large"));
            }
            power
        }
    }))
}

pub(super) fn negative(value: &Value) -> Result<Value> {
    value.defined()?;
    match value {
        Value::Float(float) => Ok(Value::Float(-float)),
        _ => match value.as_int() {
            Some(int) => Ok(Value::Int(-int)),
            None => Err(TemplateError::new(format!("bad operand type for unary -: '{}'", value.type_name()))),
        },
    }
}

pub(super) fn positive(value: &Value) -> Result<Value> {
    value.defined()?;
    match value {
        Value::Float(float) => Ok(Value::Float(*float)),
        _ => match value.as_int() {
            Some(int) => Ok(Value::Int(int)),
            None => Err(TemplateError::new(format!("bad operand type for unary +: '{}'", value.type_name()))),
        },
    }
}

/// The item of a sequence or object by index or key, if there is one.
pub(super) fn item(value: &Value, key: &Value) -> Option<Value> {
    if let Value::Dict(dict) = value {
        return dict.get(key).ok()?.cloned();
    }
    let length = value.len()?;
    let index = key.as_int()?.to_i128()?;
    let index = if index < 0 { index + length as i128 } else { index };
    let index = usize::try_from(index).ok().filter(|index| *index < length)?;
    match value {
        Value::Str(text) => {
            let item = text.text.chars().nth(index)?.to_string();
            Some(Value::Str(Text { text: item.into(), is_markup: text.is_markup }))
        }
        Value::List(items) | Value::Tuple(items) | Value::Group(items) => items.get(index).cloned(),
        Value::Range(range) => Some(range.get(index)),
        _ => None,
    }
}

/// A slice. `None` if the value has no slices or the bounds are no integers.
pub(super) fn slice(value: &Value, bounds: [&Value; 3]) -> Result<Option<Value>> {
    let is_sliceable =
        matches!(value, Value::Str(_) | Value::List(_) | Value::Tuple(_) | Value::Group(_) | Value::Range(_));
    let is_bound = |bound: &Value| matches!(bound, Value::None) || bound.as_int().is_some();
    if !is_sliceable || !bounds.iter().all(|bound| is_bound(bound)) {
        return Ok(None);
    }
    let length = value.len().unwrap_or(0) as i128;
    // Bounds beyond any length are as good as the largest ones.
    let limit = BigInt::from(i64::MAX);
    let bound = |bound: &Value| {
        bound.as_int().map(|int| {
            let clamped = int.clamp(-limit.clone(), limit.clone());
            clamped.to_i128().unwrap_or(0)
        })
    };
    let step = bound(bounds[2]).unwrap_or(1);
    if step == 0 {
        return Err(TemplateError::new("slice step cannot be zero"));
    }
    let clamp = |bound: i128| {
        let from_start = if bound < 0 { bound + length } else { bound };
        if step > 0 { from_start.clamp(0, length) } else { from_start.clamp(-1, length - 1) }
    };
    let (first, last) = if step > 0 { (0, length) } else { (length - 1, -1) };
    let start = bound(bounds[0]).map_or(first, clamp);
    let stop = bound(bounds[1]).map_or(last, clamp);
    limits::spend(value.cost())?;
    let count = if step > 0 { (stop - start + step - 1) / step } else { (start - stop - step - 1) / -step };
    let index = |at: i128| usize::try_from(start + at * step).unwrap_or(0);
    let indices = (0..count.max(0)).map(index);
    Ok(Some(match value {
        Value::Str(text) => {
            let part: String = if step == 1 {
                text.text.chars().skip(index(0)).take(indices.count()).collect()
            } else {
                let chars: Vec<char> = text.text.chars().collect();
                indices.map(|index| chars[index]).collect()
            };
            Value::Str(Text { text: part.into(), is_markup: text.is_markup })
        }
        Value::Range(range) => {
            let (first, stride) = (i128::from(range.start), i128::from(range.step));
            let bound = |value: i128| {
                i64::try_from(value).map_err(|_| TemplateError::new("the bounds of the range are too large"))
            };
            Value::Range(Rc::new(super::value::Range {
                start: bound(first + stride * start)?,
                stop: bound(first + stride * stop)?,
                step: bound(stride * step)?,
            }))
        }
        _ => {
            let items = value.items()?;
            let chosen = indices.map(|index| items[index].clone()).collect();
            if matches!(value, Value::List(_)) { Value::list(chosen) } else { Value::tuple(chosen) }
        }
    }))
}

/// `int(value)` of Python. `None` if the text is no integer.
pub(super) fn parse_int(text: &str, base: u32) -> Result<Option<BigInt>> {
    let trimmed = text.trim_matches(super::lexer::is_space);
    let (sign, digits) = match trimmed.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, trimmed.strip_prefix('+').unwrap_or(trimmed)),
    };
    let mut digits = digits;
    for (prefixes, radix) in [(["0x", "0X"], 16), (["0o", "0O"], 8), (["0b", "0B"], 2)] {
        let Some(rest) = prefixes.iter().find_map(|prefix| digits.strip_prefix(prefix)) else { continue };
        if base == radix {
            digits = rest.strip_prefix('_').unwrap_or(rest);
        }
    }
    let bytes = digits.as_bytes();
    let underscores_separate = !digits.starts_with('_') && !digits.ends_with('_') && !digits.contains("__");
    if !digits.is_ascii() && digits.chars().all(|c| c.is_numeric() || c == '_') {
        return Err(TemplateError::new("digits other than 0 to 9 are not supported"));
    }
    if bytes.is_empty() || !underscores_separate || !(2..=36).contains(&base) {
        return Ok(None);
    }
    if bytes.len() > 4300 {
        return Err(TemplateError::new("exceeds the limit (4300 digits) for integer string conversion"));
    }
    let digits = digits.replace('_', "");
    if !digits.chars().all(|c| c.is_digit(base)) {
        return Ok(None);
    }
    Ok(BigInt::parse_bytes(digits.as_bytes(), base).map(|value| value * sign))
}

/// `float(text)` of Python. `None` if the text is no number.
pub(super) fn parse_float(text: &str) -> Option<f64> {
    let trimmed = text.trim_matches(super::lexer::is_space);
    let unsigned = trimmed.strip_prefix(['+', '-']).unwrap_or(trimmed);
    let is_word = ["inf", "infinity", "nan"].iter().any(|word| unsigned.eq_ignore_ascii_case(word));
    let bytes = trimmed.as_bytes();
    let underscores_separate = bytes.iter().enumerate().all(|(at, byte)| {
        let digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
        *byte != b'_' || (at > 0 && digit(at - 1) && digit(at + 1))
    });
    let starts_number = unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.');
    if !is_word && (!starts_number || !underscores_separate) {
        return None;
    }
    trimmed.replace('_', "").parse().ok()
}

/// The whole part of a float. Fails for infinities and NaN.
pub(super) fn truncate(float: f64) -> Result<BigInt> {
    BigInt::from_f64(float)
        .ok_or_else(|| TemplateError::new(format!("cannot convert float {float} to integer")))
}
