//! The interpreter's expressions and calls.

use std::rc::Rc;

use super::arguments::Args;
use super::ast::{Arguments, CompareOp, Expr};
use super::interpreter::Interpreter;
use super::scope::Scope;
use super::value::{Dict, Value};
use super::{Result, TemplateError, limits, operators, repr};

impl Interpreter<'_> {
    pub(super) fn eval(&mut self, expr: &Expr, scope: &Rc<Scope>) -> Result<Value> {
        self.nested(|interpreter| interpreter.evaluate(expr, scope))
    }

    fn evaluate(&mut self, expr: &Expr, scope: &Rc<Scope>) -> Result<Value> {
        Ok(match expr {
            Expr::None => Value::None,
            Expr::Bool(value) => Value::Bool(*value),
            Expr::Int(value) => Value::Int(value.clone()),
            Expr::Float(value) => Value::Float(*value),
            Expr::Str(text) => Value::from(text.as_str()),
            Expr::Name(name) => self.lookup(name, scope),
            Expr::List(items) => Value::list(self.all(items, scope)?),
            Expr::Tuple(items) => Value::tuple(self.all(items, scope)?),
            Expr::Dict(items) => {
                let mut dict = Dict::default();
                for (key, value) in items {
                    let key = self.eval(key, scope)?;
                    dict.insert(key, self.eval(value, scope)?)?;
                }
                Value::Dict(dict.into())
            }
            Expr::Attribute(value, name) => {
                let value = self.eval(value, scope)?;
                self.attribute(&value, name)?
            }
            Expr::Item(value, key) => {
                let value = self.eval(value, scope)?;
                let key = self.eval(key, scope)?;
                self.subscript(&value, &key)?
            }
            Expr::Slice(value, bounds) => {
                let value = self.eval(value, scope)?;
                value.defined()?;
                let mut bound = |bound: &Option<Box<Expr>>| match bound {
                    Some(bound) => self.eval(bound, scope),
                    None => Ok(Value::None),
                };
                let [start, stop, step] = [bound(&bounds[0])?, bound(&bounds[1])?, bound(&bounds[2])?];
                let slice = operators::slice(&value, [&start, &stop, &step])?;
                slice.ok_or_else(|| {
                    TemplateError::new(format!("'{}' object has no such slice", value.type_name()))
                })?
            }
            Expr::Call(function, arguments) => {
                let function = self.eval(function, scope)?;
                let args = self.arguments(arguments, scope)?;
                self.call(&function, args)?
            }
            Expr::Filter(value, name, arguments) => {
                let value = match value {
                    Some(value) => self.eval(value, scope)?,
                    None => self.block_text.clone().unwrap_or(Value::None),
                };
                let args = self.arguments(arguments, scope)?;
                self.filter(name, value, args)?
            }
            Expr::Test(value, name, arguments) => {
                let value = self.eval(value, scope)?;
                let args = self.arguments(arguments, scope)?;
                Value::Bool(self.test(name, &value, args)?)
            }
            Expr::Not(value) => Value::Bool(!self.eval(value, scope)?.is_true()),
            Expr::Negative(value) => operators::negative(&self.eval(value, scope)?)?,
            Expr::Positive(value) => operators::positive(&self.eval(value, scope)?)?,
            Expr::Binary(operator, left, right) => {
                let left = self.eval(left, scope)?;
                let right = self.eval(right, scope)?;
                operators::binary(*operator, &left, &right)?
            }
            Expr::Concat(items) => {
                let mut out = String::new();
                for item in items {
                    let value = self.eval(item, scope)?;
                    repr::write_text(&mut out, &value)?;
                }
                out.into()
            }
            Expr::And(left, right) => {
                let left = self.eval(left, scope)?;
                if left.is_true() { self.eval(right, scope)? } else { left }
            }
            Expr::Or(left, right) => {
                let left = self.eval(left, scope)?;
                if left.is_true() { left } else { self.eval(right, scope)? }
            }
            Expr::Compare(first, operands) => Value::Bool(self.compare(first, operands, scope)?),
            Expr::Conditional(value, condition, otherwise) => {
                if self.eval(condition, scope)?.is_true() {
                    self.eval(value, scope)?
                } else if let Some(otherwise) = otherwise {
                    self.eval(otherwise, scope)?
                } else {
                    let message =
                        "the inline if-expression evaluated to false and no else section was defined.";
                    Value::Undefined(message.into())
                }
            }
        })
    }

    fn all(&mut self, items: &[Expr], scope: &Rc<Scope>) -> Result<Vec<Value>> {
        items.iter().map(|item| self.eval(item, scope)).collect()
    }

    /// Comparisons in a chain, up to the first that is false.
    fn compare(&mut self, first: &Expr, operands: &[(CompareOp, Expr)], scope: &Rc<Scope>) -> Result<bool> {
        let mut left = self.eval(first, scope)?;
        for (operator, right) in operands {
            let right = self.eval(right, scope)?;
            if !compare(*operator, &left, &right)? {
                return Ok(false);
            }
            left = right;
        }
        Ok(true)
    }

    pub(super) fn arguments(&mut self, arguments: &Arguments, scope: &Rc<Scope>) -> Result<Args> {
        let mut args = Args { positional: self.all(&arguments.positional, scope)?, named: Vec::new() };
        for (name, value) in &arguments.named {
            args.named.push((name.clone(), self.eval(value, scope)?));
        }
        if let Some(sequence) = &arguments.sequence {
            let sequence = self.eval(sequence, scope)?;
            args.positional.extend(sequence.items()?);
        }
        if let Some(mapping) = &arguments.mapping {
            let Value::Dict(dict) = self.eval(mapping, scope)? else {
                return Err(TemplateError::new("argument after ** must be a mapping"));
            };
            for (name, value) in dict.entries() {
                let name = name.as_str().ok_or_else(|| TemplateError::new("keywords must be strings"))?;
                if args.named.iter().any(|(other, _)| other == name) {
                    return Err(TemplateError::new(format!("multiple values for keyword argument '{name}'")));
                }
                args.named.push((name.to_owned(), value.clone()));
            }
        }
        Ok(args)
    }

    pub(super) fn call(&mut self, function: &Value, args: Args) -> Result<Value> {
        match function {
            Value::Function(name) => self.call_function(name, args),
            Value::Macro(value) => {
                let value = value.clone();
                self.call_macro(&value, args)
            }
            Value::Method(method) => {
                let method = method.clone();
                self.call_method(&method.0, &method.1, args)
            }
            Value::Loop(state) => {
                let state = state.clone();
                self.call_loop(&state, args)
            }
            Value::Joiner(joiner) => {
                args.none("joiner")?;
                if std::mem::replace(&mut *joiner.1.borrow_mut(), true) {
                    return Ok(joiner.0.clone());
                }
                Ok("".into())
            }
            value => {
                value.defined()?;
                Err(TemplateError::new(format!("'{}' object is not callable", value.type_name())))
            }
        }
    }
}

/// One comparison.
pub(super) fn compare(operator: CompareOp, left: &Value, right: &Value) -> Result<bool> {
    limits::spend(left.cost().min(1 << 20) + right.cost().min(1 << 20))?;
    use std::cmp::Ordering::{Equal, Greater, Less};
    Ok(match operator {
        CompareOp::Eq => left.equals(right),
        CompareOp::Ne => !left.equals(right),
        CompareOp::In => right.contains(left)?,
        CompareOp::NotIn => !right.contains(left)?,
        CompareOp::Lt => left.compare(right, "<")? == Some(Less),
        CompareOp::Le => matches!(left.compare(right, "<=")?, Some(Less | Equal)),
        CompareOp::Gt => left.compare(right, ">")? == Some(Greater),
        CompareOp::Ge => matches!(left.compare(right, ">=")?, Some(Greater | Equal)),
    })
}
