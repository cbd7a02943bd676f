//! The tests of Jinja2, as in `value is defined`.

use num_bigint::BigInt;
use num_traits::Zero;

use super::arguments::{Args, str};
use super::ast::{BinaryOp, CompareOp};
use super::evaluate::compare;
use super::filters::FILTERS;
use super::interpreter::Interpreter;
use super::strings::required;
use super::value::Value;
use super::{Result, TemplateError, limits, operators, repr};

const TESTS: [&str; 39] = [
    "odd",
    "even",
    "divisibleby",
    "defined",
    "undefined",
    "filter",
    "test",
    "none",
    "boolean",
    "false",
    "true",
    "integer",
    "float",
    "lower",
    "upper",
    "string",
    "mapping",
    "number",
    "sequence",
    "iterable",
    "callable",
    "sameas",
    "escaped",
    "in",
    "==",
    "eq",
    "equalto",
    "!=",
    "ne",
    ">",
    "gt",
    "greaterthan",
    "ge",
    ">=",
    "<",
    "lt",
    "lessthan",
    "<=",
    "le",
];

impl Interpreter<'_> {
    pub(super) fn test(&mut self, name: &str, value: &Value, args: Args) -> Result<bool> {
        limits::spend(value.cost())?;
        let operator = match name {
            "==" | "eq" | "equalto" => Some(CompareOp::Eq),
            "!=" | "ne" => Some(CompareOp::Ne),
            ">" | "gt" | "greaterthan" => Some(CompareOp::Gt),
            ">=" | "ge" => Some(CompareOp::Ge),
            "<" | "lt" | "lessthan" => Some(CompareOp::Lt),
            "<=" | "le" => Some(CompareOp::Le),
            "in" => Some(CompareOp::In),
            _ => None,
        };
        if let Some(operator) = operator {
            let [other] = args.bind(name, [""], 1)?;
            return compare(operator, value, &required(other));
        }
        match name {
            "divisibleby" => {
                let [divisor] = args.bind(name, ["num"], 1)?;
                return is_multiple(value, &required(divisor), 0);
            }
            "sameas" => {
                let [other] = args.bind(name, ["other"], 1)?;
                let same = value.is_same(&required(other));
                return same.ok_or_else(|| {
                    TemplateError::new(
                        "sameas of equal texts or numbers is not supported: compare them by ==",
                    )
                });
            }
            _ => args.none(name)?,
        }
        let two = Value::Int(2.into());
        Ok(match name {
            "odd" => is_multiple(value, &two, 1)?,
            "even" => is_multiple(value, &two, 0)?,
            "defined" => !value.is_undefined(),
            "undefined" => value.is_undefined(),
            "filter" => FILTERS.contains(&str(name, value)?),
            "test" => TESTS.contains(&str(name, value)?),
            "none" => matches!(value, Value::None),
            "boolean" => matches!(value, Value::Bool(_)),
            "false" => matches!(value, Value::Bool(false)),
            "true" => matches!(value, Value::Bool(true)),
            "integer" => matches!(value, Value::Int(_)),
            "float" => matches!(value, Value::Float(_)),
            "number" => matches!(value, Value::Int(_) | Value::Float(_) | Value::Bool(_)),
            "string" => matches!(value, Value::Str(_)),
            "mapping" => matches!(value, Value::Dict(_)),
            "lower" | "upper" => {
                let text = repr::text(value)?;
                let text = super::value::Text { text: text.into(), is_markup: false };
                super::strings::call(
                    &text,
                    if name == "lower" { "islower" } else { "isupper" },
                    Args::default(),
                )?
                .is_true()
            }
            "sequence" => {
                value.len().is_some() && !matches!(value, Value::View(..)) || value.as_items().is_some()
            }
            "iterable" => match value {
                Value::Iterator(_) | Value::Loop(_) => true,
                value => value.len().is_some(),
            },
            "callable" => match value {
                Value::Function(name) => *name != "self",
                value => matches!(
                    value,
                    Value::Method(_)
                        | Value::Macro(_)
                        | Value::Joiner(_)
                        | Value::Loop(_)
                        | Value::Undefined(_)
                ),
            },
            "escaped" => matches!(value, Value::Str(text) if text.is_markup),
            _ => return Err(TemplateError::new(format!("No test named '{name}'."))),
        })
    }
}

/// Returns true if the remainder of a division is `wanted`.
fn is_multiple(value: &Value, divisor: &Value, wanted: u8) -> Result<bool> {
    let remainder = operators::binary(BinaryOp::Mod, value, divisor)?;
    if wanted == 0 {
        return Ok(match &remainder {
            Value::Int(int) => int.is_zero(),
            Value::Float(float) => *float == 0.0,
            _ => false,
        });
    }
    Ok(remainder.equals(&Value::Int(BigInt::from(wanted))))
}
