//! Arguments of calls, bound to the names of parameters.

use num_traits::ToPrimitive;

use super::value::Value;
use super::{Result, TemplateError};

/// Evaluated arguments.
#[derive(Clone, Default)]
pub(super) struct Args {
    pub(super) positional: Vec<Value>,
    pub(super) named: Vec<(String, Value)>,
}

impl Args {
    /// Binds the arguments to parameters, of which the first `required` need a value. A parameter whose name is
    /// empty takes no keyword.
    pub(super) fn bind<const N: usize>(
        self,
        function: &str,
        names: [&str; N],
        required: usize,
    ) -> Result<[Option<Value>; N]> {
        let given = self.positional.len();
        if given > N {
            return Err(TemplateError::new(format!(
                "{function} takes at most {N} arguments ({given} given)"
            )));
        }
        let mut values = self.positional.into_iter();
        let mut bound: [Option<Value>; N] = std::array::from_fn(|_| values.next());
        for (name, value) in self.named {
            let at = names.iter().position(|known| !known.is_empty() && *known == name);
            let slot = at.and_then(|at| bound.get_mut(at));
            let slot = slot.ok_or_else(|| {
                TemplateError::new(format!("{function} got an unexpected keyword argument '{name}'"))
            })?;
            if slot.replace(value).is_some() {
                return Err(TemplateError::new(format!(
                    "{function} got multiple values for argument '{name}'"
                )));
            }
        }
        if let Some(at) = bound[..required].iter().position(Option::is_none) {
            return Err(TemplateError::new(format!("{function} needs an argument '{}'", label(&names, at))));
        }
        Ok(bound)
    }

    /// Fails if there are arguments.
    pub(super) fn none(self, function: &str) -> Result<()> {
        self.bind::<0>(function, [], 0).map(|_| ())
    }
}

fn label(names: &[&str], at: usize) -> String {
    match names[at] {
        "" => (at + 1).to_string(),
        name => name.to_owned(),
    }
}

/// An integer argument.
pub(super) fn int(function: &str, value: &Value) -> Result<i64> {
    value.defined()?;
    let int = value.as_int().and_then(|int| int.to_i64());
    int.ok_or_else(|| TemplateError::new(format!("{function} needs an integer, not {}", value.type_name())))
}

/// An integer argument with a default.
pub(super) fn int_or(function: &str, value: Option<Value>, default: i64) -> Result<i64> {
    value.map_or(Ok(default), |value| int(function, &value))
}

/// A text argument.
pub(super) fn str<'v>(function: &str, value: &'v Value) -> Result<&'v str> {
    value.defined()?;
    value
        .as_str()
        .ok_or_else(|| TemplateError::new(format!("{function} needs a text, not {}", value.type_name())))
}

/// An optional text argument, for which `None` is none.
pub(super) fn str_or_none(function: &str, value: Option<Value>) -> Result<Option<String>> {
    match value {
        None | Some(Value::None) => Ok(None),
        Some(value) => Ok(Some(str(function, &value)?.to_owned())),
    }
}
