//! The functions of templates, and `str.format`, which looks up attributes as templates do.

use std::cell::RefCell;
use std::rc::Rc;

use super::arguments::{Args, int, str};
use super::interpreter::{Interpreter, check_namespace_name};
use super::number_format::format_value;
use super::strings::required;
use super::value::{Dict, Range, Sequence, Text, Value};
use super::{Result, TemplateError, limits, repr};

/// Names of the functions that every template can call.
const GLOBALS: [&str; 9] =
    ["range", "dict", "lipsum", "cycler", "joiner", "namespace", "raise_exception", "strftime_now", "self"];
/// Longest range that the sandbox of Jinja2 allows.
const MAX_RANGE: usize = 100_000;

/// A function by its name.
pub(super) fn global(name: &str) -> Option<Value> {
    GLOBALS.iter().find(|known| **known == name).map(|known| Value::Function(known))
}

impl Interpreter<'_> {
    pub(super) fn call_function(&mut self, name: &str, args: Args) -> Result<Value> {
        match name {
            "range" => range(args),
            "dict" => Ok(Value::Dict(dict(args)?.into())),
            "namespace" => {
                let dict = dict(args)?;
                for (name, _) in dict.entries() {
                    check_namespace_name(name.as_str().unwrap_or_default())?;
                }
                Ok(self.namespace(dict))
            }
            "joiner" => {
                let [separator] = args.bind(name, ["sep"], 0)?;
                let separator = separator.unwrap_or_else(|| ", ".into());
                if separator.depth() >= limits::MAX_NESTING {
                    return Err(limits::too_deep());
                }
                Ok(Value::Joiner(Rc::new((separator, RefCell::new(false)))))
            }
            "cycler" => {
                if args.positional.is_empty() || !args.named.is_empty() {
                    return Err(TemplateError::new("cycler needs at least one item and no keywords"));
                }
                Ok(Value::Cycler(Rc::new((Sequence::new(args.positional), RefCell::new(0)))))
            }
            "raise_exception" => {
                let [message] = args.bind(name, ["message"], 1)?;
                Err(TemplateError::new(repr::text(&required(message))?))
            }
            "strftime_now" => {
                let [format] = args.bind(name, ["format"], 1)?;
                let format = required(format);
                let format = str(name, &format)?;
                if format.len() > limits::MAX_TIME_FORMAT {
                    let limit = limits::MAX_TIME_FORMAT;
                    let message =
                        format!("strftime_now: the format has {} bytes; the limit is {limit}", format.len());
                    return Err(TemplateError::new(message));
                }
                Ok((self.now)(format).into())
            }
            "lipsum" => Err(TemplateError::new("lipsum() is not supported, as its text is random")),
            _ => Err(TemplateError::new(format!("'{name}' is not callable"))),
        }
    }

    /// `text.format(…)` or `text.format_map(mapping)`.
    pub(super) fn str_format(&mut self, text: &Text, name: &str, args: Args) -> Result<Value> {
        if text.is_markup {
            return Err(TemplateError::new("format() of a text that is marked as safe is not supported"));
        }
        let args = if name == "format_map" {
            let [mapping] = args.bind(name, [""], 1)?;
            let Value::Dict(dict) = required(mapping) else {
                return Err(TemplateError::new("format_map() needs a mapping"));
            };
            let named = dict.entries().iter().map(|(key, value)| (repr::text(key), value.clone()));
            let named = named.map(|(key, value)| Ok((key?, value))).collect::<Result<_>>()?;
            Args { positional: Vec::new(), named }
        } else {
            args
        };
        let mut next = Some(0);
        Ok(self.format_fields(&text.text, &args, &mut next, 3)?.into())
    }

    /// Replaces the fields of a format. `next` is the next position, or `None` once fields have numbers.
    fn format_fields(
        &mut self,
        format: &str,
        args: &Args,
        next: &mut Option<usize>,
        depth: usize,
    ) -> Result<String> {
        if depth == 0 {
            return Err(TemplateError::new("Max string recursion exceeded"));
        }
        let mut out = String::new();
        let mut rest = format;
        while let Some(at) = rest.find(['{', '}']) {
            out.push_str(&rest[..at]);
            let brace = &rest[at..=at];
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix(brace) {
                out.push_str(brace);
                rest = after;
                continue;
            }
            if brace == "}" {
                return Err(TemplateError::new("Single '}' encountered in format string"));
            }
            let end = field_end(rest)?;
            let field = &rest[..end];
            rest = &rest[end + 1..];
            let (name, conversion, spec) = split_field(field);
            let mut value = self.field(name, args, next)?;
            match conversion {
                None => {}
                Some("s") => value = repr::text(&value)?.into(),
                Some("r") => value = repr::repr(&value)?.into(),
                Some(other) => {
                    return Err(TemplateError::new(format!("the conversion '!{other}' is not supported")));
                }
            }
            let spec = self.format_fields(spec, args, next, depth - 1)?;
            out.push_str(&format_value(&value, &spec)?);
            limits::text(out.len())?;
        }
        out.push_str(rest);
        Ok(out)
    }

    /// The value of a field such as `0`, `name.attribute` or `name[key]`.
    fn field(&mut self, name: &str, args: &Args, next: &mut Option<usize>) -> Result<Value> {
        let first = name.find(['.', '[']).unwrap_or(name.len());
        let (head, mut rest) = name.split_at(first);
        let is_number = !head.is_empty() && head.bytes().all(|b| b.is_ascii_digit());
        let mut value = if head.is_empty() || is_number {
            let position = if is_number {
                if next.is_some_and(|next| next > 0) {
                    return Err(TemplateError::new("cannot switch from automatic to manual field numbering"));
                }
                *next = None;
                head.parse().unwrap_or(usize::MAX)
            } else {
                let position = next.ok_or_else(|| {
                    TemplateError::new("cannot switch from manual to automatic field numbering")
                })?;
                *next = Some(position + 1);
                position
            };
            let found = args.positional.get(position).cloned();
            found.ok_or_else(|| {
                TemplateError::new("Replacement index out of range for positional args tuple")
            })?
        } else {
            let found = args.named.iter().find(|(name, _)| name == head).map(|(_, value)| value.clone());
            found.ok_or_else(|| TemplateError::new(format!("format: no argument named '{head}'")))?
        };
        while !rest.is_empty() {
            if let Some(after) = rest.strip_prefix('.') {
                let end = after.find(['.', '[']).unwrap_or(after.len());
                value = self.attribute(&value, &after[..end])?;
                rest = &after[end..];
            } else {
                let after = &rest[1..];
                let end =
                    after.find(']').ok_or_else(|| TemplateError::new("Missing ']' in format string"))?;
                let key = &after[..end];
                let key = match key.parse::<u64>() {
                    Ok(index) => Value::Int(index.into()),
                    Err(_) => Value::from(key),
                };
                value = self.subscript(&value, &key)?;
                rest = &after[end + 1..];
            }
        }
        Ok(value)
    }
}

/// Position of the brace that ends a field.
fn field_end(text: &str) -> Result<usize> {
    let mut open = 1;
    for (at, c) in text.char_indices() {
        match c {
            '{' => open += 1,
            '}' => open -= 1,
            _ => {}
        }
        if open == 0 {
            return Ok(at);
        }
    }
    Err(TemplateError::new("expected '}' before end of string"))
}

/// Name, conversion and format of a field.
fn split_field(field: &str) -> (&str, Option<&str>, &str) {
    // A bracket may contain what separates the parts elsewhere.
    let mut in_bracket = false;
    let at = field.find(|c: char| {
        in_bracket = (in_bracket || c == '[') && c != ']';
        !in_bracket && matches!(c, '!' | ':')
    });
    let Some(at) = at else { return (field, None, "") };
    let (name, rest) = field.split_at(at);
    match rest.strip_prefix('!') {
        Some(rest) => match rest.split_once(':') {
            Some((conversion, spec)) => (name, Some(conversion), spec),
            None => (name, Some(rest), ""),
        },
        None => (name, None, &rest[1..]),
    }
}

fn range(args: Args) -> Result<Value> {
    let [first, second, step] = args.bind("range", ["", "", ""], 1)?;
    let bound = |value: Option<Value>| value.map(|value| int("range", &value)).transpose();
    let (first, second) = (bound(first)?.unwrap_or(0), bound(second)?);
    let step = bound(step)?.unwrap_or(1);
    if step == 0 {
        return Err(TemplateError::new("range() arg 3 must not be zero"));
    }
    let range = match second {
        Some(stop) => Range { start: first, stop, step },
        None => Range { start: 0, stop: first, step },
    };
    if range.len() > MAX_RANGE {
        let message =
            format!("Range too big. The sandbox blocks ranges larger than MAX_RANGE ({MAX_RANGE}).");
        return Err(TemplateError::new(message));
    }
    Ok(Value::Range(Rc::new(range)))
}

/// `dict(mapping or pairs, **named)`.
fn dict(args: Args) -> Result<Dict> {
    if args.positional.len() > 1 {
        return Err(TemplateError::new("dict expected at most 1 argument"));
    }
    let mut dict = match args.positional.first() {
        None => Dict::default(),
        Some(Value::Dict(dict)) => (**dict).clone(),
        Some(pairs) => {
            let mut dict = Dict::default();
            for pair in pairs.items()? {
                match pair.items()?.as_slice() {
                    [key, value] => dict.insert(key.clone(), value.clone())?,
                    _ => return Err(TemplateError::new("dict needs pairs")),
                }
            }
            dict
        }
    };
    for (name, value) in args.named {
        dict.insert(Value::from(name), value)?;
    }
    Ok(dict)
}
