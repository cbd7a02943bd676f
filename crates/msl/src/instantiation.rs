//! Explicit instantiations that give a kernel template a name for the host.

use crate::argument::split;
use crate::error::Error;
use crate::item::Item;
use crate::kernel::{Kernel, host_name};
use crate::lexer::{Source, TokenKind};

/// `template [[host_name("add_f32")]] [[kernel]] decltype(add<float>) add<float>;` and its older forms.
pub(crate) struct Instantiation {
    pub(crate) host_name: String,
    function: String,
    expression: String,
    arguments: Vec<String>,
    item: Item,
}

/// The instantiation that `item` is, if it is one.
///
/// After the attributes stands a type (`void`, `decltype(...)`, a typedef) and then what is instantiated: the
/// last `name<...>` before the list of arguments or the end, a namespace before it included.
pub(crate) fn read_instantiation(source: &Source<'_>, item: &Item) -> Result<Option<Instantiation>, Error> {
    let start = item.tokens.start;
    let attributed =
        source.at(start) == "template" && source.at(start + 1) == "[" && source.at(start + 2) == "[";
    if !attributed {
        return Ok(None);
    }
    let end = item.tokens.end - 1;
    let Some(name) = host_name(source, start..end) else { return Ok(None) };
    let construct = format!("instantiation `{name}`");
    let mut index = start + 1;
    let mut found = None;
    while index < end {
        match source.at(index) {
            "[" => index = source.close(index).unwrap_or(index),
            "(" if found.is_none() => index = source.close(index).unwrap_or(index),
            "(" => break,
            "<" if source.tokens()[index - 1].kind == TokenKind::Word => {
                let close = source.close(index).filter(|c| *c < end).ok_or_else(|| {
                    source.error(start, &construct, "its template arguments do not end with `>`")
                })?;
                found = Some((index, close));
                index = close;
            }
            _ => {}
        }
        index += 1;
    }
    let Some((open, close)) = found else {
        return Err(source.error(start, construct, "instantiates no `name<...>`"));
    };
    let mut first = open - 1;
    while source.at(first - 1) == "::" && source.tokens()[first - 2].kind == TokenKind::Word {
        first -= 2;
    }
    Ok(Some(Instantiation {
        host_name: name,
        function: source.at(open - 1).to_string(),
        expression: source.join(first..close + 1),
        arguments: split(source, open + 1..close).into_iter().map(|r| source.join(r)).collect(),
        item: item.clone(),
    }))
}

impl Instantiation {
    /// The kernel of this name, from the definitions of templates.
    pub(crate) fn resolve(self, source: &Source<'_>, templates: &[Kernel]) -> Result<Kernel, Error> {
        let template = templates.iter().find(|k| k.function == self.function).ok_or_else(|| {
            let construct = format!("instantiation `{}`", self.host_name);
            source.error(
                self.item.tokens.start,
                construct,
                format!("there is no kernel template `{}`", self.function),
            )
        })?;
        Ok(Kernel {
            name: self.host_name,
            expression: self.expression,
            template_arguments: self.arguments,
            ..template.clone()
        })
    }
}
