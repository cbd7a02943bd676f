//! Kernels: as written, and as the host finds them.

use std::ops::Range;

use crate::argument::{Argument, read_arguments, split};
use crate::error::{Error, Location};
use crate::item::{Item, ItemKind};
use crate::lexer::{Source, TokenKind};
use crate::threadgroup::{ThreadgroupVariable, read_variables};

/// `typename T = float` in the template list of a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TemplateParameter {
    /// `typename`, `class`, or the type of the value, such as `int`.
    pub ty: String,
    /// Its name; empty where it has none.
    pub name: String,
    /// What it is where an instantiation does not say.
    pub default: Option<String>,
}

/// A kernel that a host can make a pipeline of: a plain function or one instantiation of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// The name by which the host finds it.
    pub name: String,
    /// The name of the function.
    pub function: String,
    /// What to call: the function, with template arguments where it has them, as in `f<float, 4>`.
    pub expression: String,
    /// The template's parameters; empty for a plain function.
    pub template_parameters: Vec<TemplateParameter>,
    /// What the instantiation puts for them, in order; parameters with a default may be missing at the end.
    pub template_arguments: Vec<String>,
    /// Its arguments, in order.
    pub arguments: Vec<Argument>,
    /// What its body declares in threadgroup memory.
    pub threadgroup_variables: Vec<ThreadgroupVariable>,
    /// The most threads of a threadgroup: what `max_total_threads_per_threadgroup(...)` holds, as written.
    pub max_threads: Option<String>,
    /// Where the function is.
    pub location: Location,
    /// Bytes of the definition in the text.
    pub span: Range<usize>,
}

/// Token indices of attributes `[[...]]` among `range`, each as its whole.
fn attributes(source: &Source<'_>, range: Range<usize>) -> Vec<Range<usize>> {
    let (mut found, mut index) = (Vec::new(), range.start);
    while index < range.end {
        match (source.at(index), source.at(index + 1)) {
            ("[", "[") => {
                let end = source.close(index).unwrap_or(index) + 1;
                found.push(index..end);
                index = end;
            }
            ("template", "<") => index = source.close(index + 1).unwrap_or(index + 1) + 1,
            ("(", _) => return found,
            _ => index += 1,
        }
    }
    found
}

/// The string of `host_name("...")` in tokens `range`; adjacent literals are one.
pub(crate) fn host_name(source: &Source<'_>, range: Range<usize>) -> Option<String> {
    let at = range.clone().find(|i| source.at(*i) == "host_name")?;
    let literals = (at + 2..range.end).take_while(|i| source.tokens()[*i].kind == TokenKind::Literal);
    Some(literals.map(|i| source.at(i).trim_matches('"')).collect())
}

/// What `max_total_threads_per_threadgroup(...)` holds in tokens `range`.
fn max_threads(source: &Source<'_>, range: Range<usize>) -> Option<String> {
    let at = range.clone().find(|i| source.at(*i) == "max_total_threads_per_threadgroup")?;
    let close = source.close(at + 1).filter(|close| *close < range.end)?;
    Some(source.join(at + 2..close))
}

/// The kernel that `item` defines, if it is one. A template's `name` is that of its function.
pub(crate) fn read_kernel(source: &Source<'_>, item: &Item) -> Result<Option<Kernel>, Error> {
    let (ItemKind::Function, Some((body, body_end))) = (item.kind, item.body) else { return Ok(None) };
    let attributes = attributes(source, item.tokens.start..body);
    let marked = attributes.iter().flat_map(|r| r.clone()).any(|i| source.at(i) == "kernel");
    let keyword = (item.head..body).take_while(|i| source.at(*i) != "(").any(|i| source.at(i) == "kernel");
    if !marked && !keyword {
        return Ok(None);
    }
    let mut open = item.head;
    while open < body && source.at(open) != "(" {
        open = match source.at(open) {
            "[" => source.close(open).unwrap_or(open) + 1,
            _ => open + 1,
        };
    }
    let function = source.at(open - 1).to_string();
    let construct = format!("kernel `{function}`");
    let close = source
        .close(open)
        .filter(|c| *c < body)
        .ok_or_else(|| source.error(item.head, &construct, "its list of arguments does not end"))?;
    let result = (item.head..open).any(|i| source.at(i) == "void");
    if !result {
        return Err(source.error(item.head, construct, "a kernel returns void"));
    }
    let named = attributes.iter().find_map(|r| host_name(source, r.clone()));
    Ok(Some(Kernel {
        name: named.unwrap_or_else(|| function.clone()),
        expression: function.clone(),
        template_parameters: template_parameters(source, item.tokens.start),
        template_arguments: Vec::new(),
        arguments: read_arguments(source, open, close, &construct)?,
        threadgroup_variables: read_variables(source, body, body_end),
        max_threads: attributes.iter().find_map(|r| max_threads(source, r.clone())),
        location: source.location(open - 1),
        span: source.span(item.tokens.start, body_end),
        function,
    }))
}

fn template_parameters(source: &Source<'_>, start: usize) -> Vec<TemplateParameter> {
    if source.at(start) != "template" || source.at(start + 1) != "<" {
        return Vec::new();
    }
    let close = source.close(start + 1).unwrap_or(start + 1);
    let parts = split(source, start + 2..close).into_iter().map(|part| {
        let equals = part.clone().find(|i| source.at(*i) == "=");
        let end = equals.unwrap_or(part.end);
        let named = end > part.start + 1 && source.tokens()[end - 1].kind == TokenKind::Word;
        let ty_end = if named { end - 1 } else { end };
        TemplateParameter {
            ty: source.join(part.start..ty_end),
            name: if named { source.at(end - 1).to_string() } else { String::new() },
            default: equals.map(|e| source.join(e + 1..part.end)),
        }
    });
    parts.collect()
}
