//! Function constants, and program constants that are computed from them.

use std::ops::Range;

use crate::error::Error;
use crate::lexer::{Source, TokenKind};

/// `constant T name [[function_constant(n)]];`: a value the host sets when it makes a pipeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionConstant {
    /// Its name.
    pub name: String,
    /// Its type.
    pub ty: String,
    /// The index under which the host sets it.
    pub index: u32,
    /// Line of the declaration.
    pub line: u32,
    /// Bytes of the declaration, `;` included.
    pub span: Range<usize>,
}

/// `constant T name = ...;` whose initialiser mentions a function constant, directly or through another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DerivedConstant {
    /// Its name.
    pub name: String,
    /// Its type.
    pub ty: String,
    /// The initialiser.
    pub expression: String,
    /// Line of the declaration.
    pub line: u32,
    /// Bytes of the declaration, `;` included.
    pub span: Range<usize>,
}

/// A declaration `constant T name ... ;` at the scope of a namespace.
pub(crate) enum Constant {
    Function(FunctionConstant),
    Derived(DerivedConstant),
    Plain,
}

/// Reads the declaration of tokens `range`, whose last token is `;`.
pub(crate) fn read_constant(
    source: &Source<'_>,
    range: Range<usize>,
    known: &dyn Fn(&str) -> bool,
) -> Result<Constant, Error> {
    let end = range.end - 1;
    let stop = (range.start..end)
        .find(|i| source.at(*i) == "=" || (source.at(*i) == "[" && source.at(*i + 1) == "["))
        .unwrap_or(end);
    let is_qualifier = |word: &str| matches!(word, "constant" | "static" | "const" | "inline" | "constexpr");
    let words: Vec<usize> = (range.start..stop).filter(|i| !is_qualifier(source.at(*i))).collect();
    let [first, .., name] = words[..] else { return Ok(Constant::Plain) };
    if source.tokens()[name].kind != TokenKind::Word {
        return Ok(Constant::Plain);
    }
    let (line, span) = (source.tokens()[range.start].line, source.span(range.start, end));
    let (ty, text) = (source.join(first..name), source.at(name).to_string());
    if source.at(stop) == "[" {
        if source.at(stop + 2) != "function_constant" {
            return Ok(Constant::Plain);
        }
        let value = source.at(stop + 4);
        let index = value.parse().map_err(|_| {
            source.error(
                range.start,
                format!("function constant `{text}`"),
                format!("index `{value}` is not a number"),
            )
        })?;
        return Ok(Constant::Function(FunctionConstant { name: text, ty, index, line, span }));
    }
    let derived = (stop..end).any(|i| source.tokens()[i].kind == TokenKind::Word && known(source.at(i)));
    if !derived {
        return Ok(Constant::Plain);
    }
    let expression = source.text()[source.span(stop + 1, end - 1)].to_string();
    Ok(Constant::Derived(DerivedConstant { name: text, ty, expression, line, span }))
}
