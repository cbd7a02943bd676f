//! The filters of Jinja2 on single values. Those on sequences are in `sequence_filters`.

use num_bigint::BigInt;
use num_traits::ToPrimitive;

use super::arguments::{Args, int, int_or, str, str_or_none};
use super::ast::BinaryOp;
use super::interpreter::Interpreter;
use super::number_format::magnitude;
use super::strings::{self, required};
use super::value::{Text, Value};
use super::{Result, TemplateError, json, limits, markup, operators, percent, pretty, repr};

pub(super) const FILTERS: [&str; 54] = [
    "abs",
    "attr",
    "batch",
    "capitalize",
    "center",
    "count",
    "d",
    "default",
    "dictsort",
    "e",
    "escape",
    "filesizeformat",
    "first",
    "float",
    "forceescape",
    "format",
    "groupby",
    "indent",
    "int",
    "items",
    "join",
    "last",
    "length",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "pprint",
    "random",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "round",
    "safe",
    "select",
    "selectattr",
    "slice",
    "sort",
    "string",
    "striptags",
    "sum",
    "title",
    "tojson",
    "trim",
    "truncate",
    "unique",
    "upper",
    "urlencode",
    "urlize",
    "wordcount",
    "wordwrap",
    "xmlattr",
];

impl Interpreter<'_> {
    pub(super) fn filter(&mut self, name: &str, value: Value, args: Args) -> Result<Value> {
        limits::spend(value.cost())?;
        match name {
            "default" | "d" => {
                let [default, boolean] = args.bind(name, ["default_value", "boolean"], 0)?;
                let boolean = boolean.is_some_and(|boolean| boolean.is_true());
                let replaced = value.is_undefined() || (boolean && !value.is_true());
                Ok(if replaced { default.unwrap_or_else(|| "".into()) } else { value })
            }
            "length" | "count" => {
                args.none(name)?;
                if let Value::Loop(_) = value {
                    return self.attribute(&value, "length");
                }
                let length = value.len();
                length.map(Value::from).ok_or_else(|| {
                    TemplateError::new(format!("object of type '{}' has no len()", value.type_name()))
                })
            }
            "tojson" => Ok(json::tojson(&value, args)?.into()),
            "string" => {
                args.none(name)?;
                if matches!(value, Value::Str(_)) { Ok(value) } else { Ok(repr::text(&value)?.into()) }
            }
            "attr" => {
                let [attribute] = args.bind(name, ["name"], 1)?;
                let attribute = required(attribute);
                let attribute = str(name, &attribute)?;
                value.defined()?;
                Ok(self.own_attribute(&value, attribute)?.unwrap_or_else(|| Value::undefined(attribute)))
            }
            "int" => to_int(&value, args),
            "float" => {
                let [default] = args.bind(name, ["default"], 0)?;
                value.defined()?;
                let float = match value.as_str() {
                    Some(text) => operators::parse_float(text),
                    None => operators::as_float(&value)?,
                };
                Ok(float.map_or_else(|| default.unwrap_or(Value::Float(0.0)), Value::Float))
            }
            "abs" => {
                args.none(name)?;
                match &value {
                    Value::Float(float) => Ok(Value::Float(float.abs())),
                    value => match value.as_int() {
                        Some(int) => Ok(Value::Int(int.magnitude().clone().into())),
                        None => Err(TemplateError::new(format!(
                            "bad operand type for abs(): '{}'",
                            value.type_name()
                        ))),
                    },
                }
            }
            "round" => round(&value, args),
            "escape" | "e" => {
                args.none(name)?;
                Ok(safe(markup::escaped(&value)?))
            }
            "forceescape" => {
                args.none(name)?;
                Ok(safe(markup::escape(&repr::text(&value)?)))
            }
            "safe" => {
                args.none(name)?;
                Ok(safe(repr::text(&value)?))
            }
            "filesizeformat" => file_size(&value, args),
            "pprint" => {
                args.none(name)?;
                Ok(pretty::pformat(&value)?.into())
            }
            "urlencode" => {
                args.none(name)?;
                url_encode(&value)
            }
            "xmlattr" => {
                let [space] = args.bind(name, ["autospace"], 0)?;
                Ok(markup::attributes(&value, space.is_none_or(|space| space.is_true()))?.into())
            }
            "upper" | "lower" | "capitalize" | "title" | "trim" | "striptags" | "wordcount" | "center"
            | "format" | "replace" | "indent" | "truncate" | "wordwrap" => text_filter(name, value, args),
            "urlize" => Err(TemplateError::new("the filter urlize is not supported: chats are not HTML")),
            "random" => Err(TemplateError::new("the filter random is not supported, as its text is random")),
            _ => self.sequence_filter(name, value, args),
        }
    }
}

fn safe(text: String) -> Value {
    Value::Str(Text { text: text.into(), is_markup: true })
}

/// The filters on text, which make text of other values first.
fn text_filter(name: &str, value: Value, args: Args) -> Result<Value> {
    let text = || -> Result<Text> {
        match &value {
            Value::Str(text) => Ok(text.clone()),
            other => Ok(Text { text: repr::text(other)?.into(), is_markup: false }),
        }
    };
    match name {
        "upper" | "lower" | "capitalize" => strings::call(&text()?, name, args),
        "title" => {
            args.none(name)?;
            Ok(title(&text()?.text).into())
        }
        "trim" => {
            let [chars] = args.bind(name, ["chars"], 0)?;
            let positional = chars.into_iter().collect();
            strings::call(&text()?, "strip", Args { positional, named: Vec::new() })
        }
        "striptags" => {
            args.none(name)?;
            Ok(markup::strip_tags(&text()?.text)?.into())
        }
        "wordcount" => {
            args.none(name)?;
            let text = text()?;
            let is_word = |c: char| c == '_' || c.is_alphanumeric();
            Ok(text.text.split(|c: char| !is_word(c)).filter(|word| !word.is_empty()).count().into())
        }
        "center" => {
            let [width] = args.bind(name, ["width"], 0)?;
            strings::center(&text()?.text, int_or(name, width, 80)?)
        }
        "format" => {
            if !args.positional.is_empty() && !args.named.is_empty() {
                return Err(TemplateError::new(
                    "can't handle positional and keyword arguments at the same time",
                ));
            }
            let values = if args.named.is_empty() {
                Value::tuple(args.positional)
            } else {
                let named = args.named.into_iter().map(|(name, value)| (Value::from(name), value));
                Value::Dict(named.collect::<super::value::Dict>().into())
            };
            Ok(percent::format(&text()?.text, &values)?.into())
        }
        "replace" => {
            let [old, new, count] = args.bind(name, ["old", "new", "count"], 2)?;
            let (old, new) = (repr::text(&required(old))?, repr::text(&required(new))?);
            let count = count.filter(|count| !matches!(count, Value::None));
            Ok(strings::replace(&repr::text(&value)?, &old, &new, int_or(name, count, -1)?)?.into())
        }
        "indent" => indent(&value, args),
        "truncate" => truncate(value, args),
        _ => word_wrap(&value, args),
    }
}

fn to_int(value: &Value, args: Args) -> Result<Value> {
    let [default, base] = args.bind("int", ["default", "base"], 0)?;
    let base = u32::try_from(int_or("int", base, 10)?).unwrap_or(1);
    value.defined()?;
    let int = match value {
        Value::Str(text) => match operators::parse_int(&text.text, base)? {
            Some(int) => Some(int),
            None => operators::parse_float(&text.text).and_then(|float| operators::truncate(float).ok()),
        },
        Value::Float(float) if float.is_infinite() => {
            return Err(TemplateError::new("cannot convert float infinity to integer"));
        }
        Value::Float(float) => operators::truncate(*float).ok(),
        value => value.as_int(),
    };
    Ok(int.map_or_else(|| default.unwrap_or(Value::Int(BigInt::ZERO)), Value::Int))
}

/// Python's `round`, which rounds halves of the stored value to even digits, or by a method.
fn round(value: &Value, args: Args) -> Result<Value> {
    let [precision, method] = args.bind("round", ["precision", "method"], 0)?;
    let precision = int_or("round", precision, 0)?;
    let method = method.map_or(Ok("common".to_owned()), |method| str("round", &method).map(str::to_owned))?;
    value.defined()?;
    let number = operators::as_float(value)?.ok_or_else(|| {
        TemplateError::new(format!("type {} doesn't define __round__ method", value.type_name()))
    })?;
    let decimals = usize::try_from(precision).ok().filter(|precision| *precision <= 300);
    if !number.is_finite() {
        return Err(TemplateError::new("round of infinities and NaN is not supported"));
    }
    match method.as_str() {
        "common" => {
            if let (Some(int), Some(_)) = (value.as_int(), decimals) {
                return Ok(Value::Int(int));
            }
            let decimals = decimals
                .filter(|_| matches!(value, Value::Float(_)))
                .ok_or_else(|| TemplateError::new("round to a negative precision is not supported"))?;
            let sign = if number.is_sign_negative() { "-" } else { "" };
            let rounded = format!("{sign}{}", magnitude(number, 'f', decimals, false)).parse();
            Ok(Value::Float(rounded.unwrap_or(number)))
        }
        "ceil" | "floor" => {
            let decimals = decimals
                .ok_or_else(|| TemplateError::new("round to a negative precision is not supported"))?;
            let scale = BigInt::from(10).pow(u32::try_from(decimals).unwrap_or(0));
            let scaled = operators::binary(BinaryOp::Mul, value, &Value::Int(scale.clone()))?;
            let whole = match scaled {
                Value::Float(float) => {
                    operators::truncate(if method == "ceil" { float.ceil() } else { float.floor() })?
                }
                int => int.as_int().unwrap_or_default(),
            };
            operators::binary(BinaryOp::Div, &Value::Int(whole), &Value::Int(scale))
        }
        _ => Err(TemplateError::new("method must be common, ceil or floor")),
    }
}

fn file_size(value: &Value, args: Args) -> Result<Value> {
    let [binary] = args.bind("filesizeformat", ["binary"], 0)?;
    let binary = binary.is_some_and(|binary| binary.is_true());
    let bytes = match value.as_str() {
        Some(text) => operators::parse_float(text),
        None => operators::as_float(value)?,
    };
    let bytes = bytes.ok_or_else(|| TemplateError::new("filesizeformat needs a number"))?;
    let base: f64 = if binary { 1024.0 } else { 1000.0 };
    if bytes == 1.0 {
        return Ok("1 Byte".into());
    }
    if bytes < base {
        return Ok(format!("{} Bytes", operators::truncate(bytes)?).into());
    }
    let mut unit = base;
    let prefixes = if binary {
        ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB"]
    } else {
        ["kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"]
    };
    let mut prefix = prefixes[0];
    for name in prefixes {
        prefix = name;
        unit *= base;
        if bytes < unit {
            break;
        }
    }
    Ok(format!("{:.1} {prefix}", base * bytes / unit).into())
}

fn url_encode(value: &Value) -> Result<Value> {
    let items = match value {
        Value::Dict(dict) => Some(Value::View(super::value::View::Items, dict.clone()).items()?),
        Value::Str(_) => None,
        value if value.len().is_some() || matches!(value, Value::Iterator(_)) => Some(value.items()?),
        _ => None,
    };
    let Some(items) = items else { return Ok(markup::quote(&repr::text(value)?, false).into()) };
    let mut pairs = Vec::new();
    for item in items {
        match item.items()?.as_slice() {
            [key, value] => pairs.push(format!(
                "{}={}",
                markup::quote(&repr::text(key)?, true),
                markup::quote(&repr::text(value)?, true)
            )),
            _ => return Err(TemplateError::new("urlencode needs pairs")),
        }
    }
    Ok(pairs.join("&").into())
}

/// Title case: letters after space, dashes and opening brackets are upper case, all others lower case.
fn title(text: &str) -> String {
    let is_break = |c: char| super::lexer::is_space(c) || matches!(c, '-' | '(' | '{' | '[' | '<');
    let mut out = String::with_capacity(text.len());
    let mut word = String::new();
    let finish = |word: &mut String, out: &mut String| {
        let mut chars = word.chars();
        if let Some(first) = chars.next() {
            out.extend(first.to_uppercase());
        }
        out.push_str(&chars.as_str().to_lowercase());
        word.clear();
    };
    for c in text.chars() {
        if is_break(c) {
            finish(&mut word, &mut out);
            out.push(c);
        } else {
            word.push(c);
        }
    }
    finish(&mut word, &mut out);
    out
}

fn indent(value: &Value, args: Args) -> Result<Value> {
    let [width, first, blank] = args.bind("indent", ["width", "first", "blank"], 0)?;
    let text = str("indent", value)?;
    let indention = match width {
        Some(Value::Str(text)) => text.text.to_string(),
        width => {
            let width = usize::try_from(int_or("indent", width, 4)?).unwrap_or(0);
            limits::text(width)?;
            " ".repeat(width)
        }
    };
    let blank = blank.is_some_and(|blank| blank.is_true());
    let text = format!("{text}\n");
    let lines = strings::split_lines(&text, false)?;
    limits::text(text.len().saturating_add(lines.len().saturating_mul(indention.len())))?;
    let mut out = String::new();
    for (index, line) in lines.iter().enumerate() {
        if index > 0 {
            out.push('\n');
        }
        let is_indented = if index == 0 { false } else { blank || !line.is_empty() };
        if is_indented {
            out.push_str(&indention);
        }
        out.push_str(line);
    }
    if first.is_some_and(|first| first.is_true()) {
        out.insert_str(0, &indention);
    }
    Ok(out.into())
}

fn truncate(value: Value, args: Args) -> Result<Value> {
    let name = "truncate";
    let [length, killwords, end, leeway] = args.bind(name, ["length", "killwords", "end", "leeway"], 0)?;
    let length = int_or(name, length, 255)?;
    let end = end.map_or(Ok("...".to_owned()), |end| str(name, &end).map(str::to_owned))?;
    let leeway = int_or(name, leeway.filter(|leeway| !matches!(leeway, Value::None)), 5)?;
    let kept = length.saturating_sub(end.chars().count() as i64);
    if kept < 0 || leeway < 0 {
        return Err(TemplateError::new(format!(
            "truncate: a length of {length} is shorter than its end {end:?}"
        )));
    }
    let count = value.len().ok_or_else(|| TemplateError::new("truncate needs a text"))?;
    if i64::try_from(count).unwrap_or(i64::MAX) <= length.saturating_add(leeway) {
        return Ok(value);
    }
    let text = str(name, &value)?;
    let cut: String = text.chars().take(kept.to_usize().unwrap_or(0)).collect();
    if killwords.is_some_and(|killwords| killwords.is_true()) {
        return Ok((cut + &end).into());
    }
    let words = cut.rsplit_once(' ').map_or(cut.as_str(), |(words, _)| words);
    Ok(format!("{words}{end}").into())
}

fn word_wrap(value: &Value, args: Args) -> Result<Value> {
    let names = ["width", "break_long_words", "wrapstring", "break_on_hyphens"];
    let [width, break_long, wrap, hyphens] = args.bind("wordwrap", names, 0)?;
    let width = int("wordwrap", &width.unwrap_or(Value::Int(79.into())))?;
    let width = usize::try_from(width).ok().filter(|width| *width > 0);
    let width = width.ok_or_else(|| TemplateError::new("wordwrap: the width must be above 0"))?;
    let wrap = str_or_none("wordwrap", wrap)?.unwrap_or_else(|| "\n".to_owned());
    let break_long = break_long.is_none_or(|flag| flag.is_true());
    let hyphens = hyphens.is_none_or(|flag| flag.is_true());
    let text = str("wordwrap", value)?;
    // Each word is a list of characters meanwhile.
    limits::build(text.len().saturating_mul(limits::VALUE_BYTES))?;
    let mut out = String::new();
    for (index, line) in strings::split_lines(text, false)?.into_iter().enumerate() {
        if index > 0 {
            out.push_str(&wrap);
        }
        for (part, wrapped) in pretty::wrap(line, width, break_long, hyphens)?.iter().enumerate() {
            if part > 0 {
                out.push_str(&wrap);
            }
            out.push_str(wrapped);
            limits::text(out.len())?;
        }
    }
    Ok(out.into())
}
