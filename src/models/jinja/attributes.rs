//! Attributes and methods of values.

use std::rc::Rc;

use num_bigint::BigInt;

use super::arguments::{Args, int_or};
use super::interpreter::Interpreter;
use super::strings::{self, required};
use super::value::{Dict, Value, View};
use super::{Result, TemplateError, limits, operators};

/// Methods that change what they belong to, which the sandbox of transformers refuses.
const DICT_CHANGES: [&str; 5] = ["clear", "pop", "popitem", "setdefault", "update"];
const LIST_CHANGES: [&str; 8] = ["append", "clear", "pop", "reverse", "insert", "sort", "extend", "remove"];
const INT_ATTRIBUTES: [&str; 10] = [
    "as_integer_ratio",
    "bit_count",
    "bit_length",
    "conjugate",
    "denominator",
    "from_bytes",
    "imag",
    "numerator",
    "real",
    "to_bytes",
];
const FLOAT_ATTRIBUTES: [&str; 7] =
    ["as_integer_ratio", "conjugate", "fromhex", "hex", "imag", "is_integer", "real"];

impl Interpreter<'_> {
    /// `value.name`: the attribute, otherwise the item.
    pub(super) fn attribute(&mut self, value: &Value, name: &str) -> Result<Value> {
        value.defined()?;
        if let Some(found) = self.own_attribute(value, name)? {
            return Ok(found);
        }
        Ok(operators::item(value, &Value::from(name)).unwrap_or_else(|| missing(value, name)))
    }

    /// `value[key]`: the item, otherwise the attribute.
    pub(super) fn subscript(&mut self, value: &Value, key: &Value) -> Result<Value> {
        limits::spend(key.cost() + if let Value::Str(_) = value { value.cost() } else { 0 })?;
        value.defined()?;
        if let Some(found) = operators::item(value, key) {
            return Ok(found);
        }
        let name = super::repr::text(key)?;
        if let (Value::Str(_), Some(found)) = (key, self.own_attribute(value, &name)?) {
            return Ok(found);
        }
        Ok(missing(value, &name))
    }

    /// An attribute that the value's type has in Python.
    pub(super) fn own_attribute(&mut self, value: &Value, name: &str) -> Result<Option<Value>> {
        let unsafe_access = || {
            let message =
                format!("access to attribute '{name}' of '{}' object is unsafe.", value.type_name());
            Ok(Some(Value::Undefined(message.into())))
        };
        if name.starts_with('_') {
            let is_special = name.starts_with("__") && name.ends_with("__") && name.len() > 4;
            return if is_special && !matches!(value, Value::Namespace(_)) {
                unsafe_access()
            } else {
                Ok(None)
            };
        }
        let unsupported = || {
            Err(TemplateError::new(format!("attribute '{name}' of '{}' is not supported", value.type_name())))
        };
        let is_method = match value {
            Value::Str(_) => strings::METHODS.contains(&name),
            Value::Dict(_) => {
                if DICT_CHANGES.contains(&name) {
                    return unsafe_access();
                }
                matches!(name, "items" | "keys" | "values" | "get" | "copy" | "fromkeys")
            }
            Value::List(_) => {
                if LIST_CHANGES.contains(&name) {
                    return unsafe_access();
                }
                matches!(name, "index" | "count" | "copy")
            }
            Value::Group(items) if name == "grouper" => return Ok(items.first().cloned()),
            Value::Group(items) if name == "list" => return Ok(items.get(1).cloned()),
            Value::Tuple(_) | Value::Group(_) => matches!(name, "index" | "count"),
            Value::Int(_) | Value::Bool(_) if INT_ATTRIBUTES.contains(&name) => {
                return self.int_attribute(value, name);
            }
            Value::Float(float) if FLOAT_ATTRIBUTES.contains(&name) => match name {
                "real" => return Ok(Some(Value::Float(*float))),
                "imag" => return Ok(Some(Value::Float(0.0))),
                "is_integer" => true,
                _ => return unsupported(),
            },
            Value::Range(range) => match name {
                "start" => return Ok(Some(Value::Int(range.start.into()))),
                "stop" => return Ok(Some(Value::Int(range.stop.into()))),
                "step" => return Ok(Some(Value::Int(range.step.into()))),
                "index" | "count" => true,
                _ => false,
            },
            Value::View(..) if matches!(name, "mapping" | "isdisjoint") => return unsupported(),
            Value::Namespace(namespace) => return Ok(namespace.borrow().get_str(name).cloned()),
            Value::Loop(state) => {
                let state = state.clone();
                return self.loop_attribute(&state, name);
            }
            Value::Macro(value) => return Ok(macro_attribute(value, name)),
            Value::Joiner(_) if matches!(name, "sep" | "used") => return unsupported(),
            Value::Cycler(cycler) => match name {
                "current" => return Ok(cycler.0.get(*cycler.1.borrow()).cloned()),
                "next" | "reset" => true,
                "items" | "pos" => return unsupported(),
                _ => false,
            },
            Value::Function("dict") => name == "fromkeys",
            Value::Function("self") => return unsupported(),
            // What Python's generators, methods and functions have is of no use to templates.
            _ => false,
        };
        Ok(is_method.then(|| Value::Method(Rc::new((value.clone(), name.to_owned())))))
    }

    fn int_attribute(&mut self, value: &Value, name: &str) -> Result<Option<Value>> {
        let int = value.as_int().unwrap_or_default();
        Ok(Some(match name {
            "real" | "numerator" => Value::Int(int),
            "imag" => Value::Int(BigInt::ZERO),
            "denominator" => Value::Int(1.into()),
            "bit_length" | "bit_count" | "conjugate" => {
                Value::Method(Rc::new((value.clone(), name.to_owned())))
            }
            _ => {
                let message = format!("attribute '{name}' of '{}' is not supported", value.type_name());
                return Err(TemplateError::new(message));
            }
        }))
    }

    /// Calls a method.
    pub(super) fn call_method(&mut self, value: &Value, name: &str, args: Args) -> Result<Value> {
        limits::spend(value.cost())?;
        match value {
            Value::Str(text) if matches!(name, "format" | "format_map") => self.str_format(text, name, args),
            Value::Str(text) => strings::call(text, name, args),
            Value::Dict(dict) => dict_method(dict, name, args),
            Value::List(_) | Value::Tuple(_) | Value::Group(_) | Value::Range(_) => {
                sequence_method(value, name, args)
            }
            Value::Int(_) | Value::Bool(_) => {
                args.none(name)?;
                let int = value.as_int().unwrap_or_default();
                Ok(match name {
                    "bit_length" => Value::Int(int.bits().into()),
                    "bit_count" => {
                        Value::Int(int.magnitude().iter_u64_digits().map(u64::count_ones).sum::<u32>().into())
                    }
                    _ => Value::Int(int),
                })
            }
            Value::Float(float) => {
                args.none(name)?;
                Ok(Value::Bool(float.is_finite() && float.fract() == 0.0))
            }
            Value::Cycler(cycler) => {
                args.none(name)?;
                let mut position = cycler.1.borrow_mut();
                if name == "reset" {
                    *position = 0;
                    return Ok(Value::None);
                }
                let current = cycler.0.get(*position).cloned();
                *position = (*position + 1) % cycler.0.len().max(1);
                current.ok_or_else(|| TemplateError::new("a cycler without items"))
            }
            Value::Function("dict") => from_keys(args),
            Value::Loop(state) => {
                let state = state.clone();
                self.call_loop_method(&state, name, args)
            }
            _ => Err(TemplateError::new(format!("'{}' object has no method '{name}'", value.type_name()))),
        }
    }
}

/// The undefined value of an attribute or item that is not there.
fn missing(value: &Value, name: &str) -> Value {
    let kind = match value {
        Value::None => "None",
        value => value.type_name(),
    };
    Value::Undefined(format!("'{kind} object' has no attribute '{name}'").into())
}

fn macro_attribute(value: &super::value::Macro, name: &str) -> Option<Value> {
    let node = &value.node;
    Some(match name {
        "name" if node.name == "caller" => Value::None,
        "name" => Value::from(node.name.as_str()),
        "arguments" => {
            Value::tuple(node.parameters.iter().map(|(name, _)| Value::from(name.as_str())).collect())
        }
        "catch_kwargs" => Value::Bool(node.reads_kwargs),
        "catch_varargs" => Value::Bool(node.reads_varargs),
        "caller" => Value::Bool(node.reads_caller),
        "explicit_caller" => Value::Bool(node.parameters.iter().any(|(name, _)| name == "caller")),
        _ => return None,
    })
}

fn dict_method(dict: &Rc<Dict>, name: &str, args: Args) -> Result<Value> {
    match name {
        "items" => args.none(name).map(|()| Value::View(View::Items, dict.clone())),
        "keys" => args.none(name).map(|()| Value::View(View::Keys, dict.clone())),
        "values" => args.none(name).map(|()| Value::View(View::Values, dict.clone())),
        "copy" => {
            args.none(name)?;
            limits::items(dict.len())?;
            Ok(Value::Dict(Rc::new((**dict).clone())))
        }
        "get" => {
            let [key, default] = args.bind(name, ["", ""], 1)?;
            Ok(dict.get(&required(key))?.cloned().unwrap_or(required(default)))
        }
        "fromkeys" => from_keys(args),
        _ => Err(TemplateError::new(format!("'dict' object has no method '{name}'"))),
    }
}

fn from_keys(args: Args) -> Result<Value> {
    let [keys, value] = args.bind("fromkeys", ["", ""], 1)?;
    let value = required(value);
    let mut dict = Dict::default();
    for key in required(keys).items()? {
        dict.insert(key, value.clone())?;
    }
    Ok(Value::Dict(dict.into()))
}

fn sequence_method(value: &Value, name: &str, args: Args) -> Result<Value> {
    let items = value.items()?;
    match name {
        "copy" => args.none(name).map(|()| Value::list(items)),
        "count" => {
            let [item] = args.bind(name, [""], 1)?;
            let item = required(item);
            Ok(items.iter().filter(|other| other.equals(&item)).count().into())
        }
        _ => {
            let [item, start, end] = args.bind(name, ["", "", ""], 1)?;
            let item = required(item);
            let length = i64::try_from(items.len()).unwrap_or(i64::MAX);
            let clamp = |at: i64| {
                usize::try_from(if at < 0 { at + length } else { at }.clamp(0, length)).unwrap_or(0)
            };
            let (start, end) = (clamp(int_or(name, start, 0)?), clamp(int_or(name, end, i64::MAX)?));
            let found = (start..end).find(|at| items[*at].equals(&item));
            found.map(Value::from).ok_or_else(|| TemplateError::new("the item is not in the list"))
        }
    }
}
