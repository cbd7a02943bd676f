//! The part of the C preprocessor that our kernel files use: macros with and without parameters, `#` and continued lines.
//!
//! The result has as many lines as the input, so that lines in messages are those of the file. Conditionals and `##` are errors.

use std::collections::HashMap;

use msl::{Error, Location, Source, TokenKind};

/// One token, and whether white space precedes it.
#[derive(Clone)]
struct Piece {
    text: String,
    word: bool,
    spaced: bool,
}

struct Macro {
    /// Names of the parameters; `None` for a macro without a list.
    parameters: Option<Vec<String>>,
    body: Vec<Piece>,
}

/// Macros by name. They outlive a file, so that a common header can precede several files.
#[derive(Default)]
pub(super) struct Preprocessor {
    macros: HashMap<String, Macro>,
}

fn error(file: &str, line: u32, construct: &str, reason: impl Into<String>) -> Error {
    Error {
        location: Location { file: file.to_owned(), line },
        construct: construct.to_owned(),
        reason: reason.into(),
    }
}

fn pieces(text: &str) -> Result<Vec<Piece>, Error> {
    // A body such as `#T` must not be read as a directive.
    let padded = format!(" ; {text}");
    let source = Source::lex(&padded)?;
    let tokens = source.tokens();
    let piece = |index: usize| Piece {
        text: source.at(index).to_owned(),
        word: tokens[index].kind == TokenKind::Word,
        spaced: tokens[index - 1].span.end < tokens[index].span.start,
    };
    Ok((1..tokens.len()).map(piece).collect())
}

impl Preprocessor {
    /// Expands a file; `#line` precedes the result.
    ///
    /// # Errors
    /// A directive other than `#define`, `#include` and `#pragma`, or a macro that is used with the wrong arguments.
    pub(super) fn expand_file(&mut self, file: &str, text: &str) -> Result<String, Error> {
        let mut out = format!("#line 1 \"{file}\"\n");
        let mut block = String::new();
        let mut block_line = 1;
        let mut lines = text.lines().zip(1..);
        while let Some((line, number)) = lines.next() {
            if !line.trim_start().starts_with('#') {
                if block.is_empty() {
                    block_line = number;
                }
                block.push_str(line);
                block.push('\n');
                continue;
            }
            self.expand_block(file, block_line, &std::mem::take(&mut block), &mut out)?;
            let mut directive = line.to_owned();
            out.push('\n');
            while directive.ends_with('\\') {
                directive.pop();
                directive.push_str(lines.next().map_or("", |(line, _)| line));
                out.push('\n');
            }
            self.directive(file, number, directive.trim_start()[1..].trim_start())?;
        }
        self.expand_block(file, block_line, &block, &mut out)?;
        Ok(out)
    }

    fn directive(&mut self, file: &str, line: u32, directive: &str) -> Result<(), Error> {
        let name = directive.split_whitespace().next().unwrap_or_default();
        match name {
            "define" => self.define(file, line, directive["define".len()..].trim_start()),
            "include" | "pragma" => Ok(()),
            _ => Err(error(file, line, &format!("#{name}"), "is not supported in kernel files")),
        }
    }

    fn define(&mut self, file: &str, line: u32, definition: &str) -> Result<(), Error> {
        let end =
            definition.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(definition.len());
        let (name, rest) = definition.split_at(end);
        let at = |mut error: Error| {
            error.location = Location { file: file.to_owned(), line };
            error
        };
        let (parameters, body) = match rest.strip_prefix('(') {
            Some(rest) => {
                let (list, body) = rest
                    .split_once(')')
                    .ok_or_else(|| error(file, line, name, "its list of parameters does not end"))?;
                let names = list.split(',').map(|name| name.trim().to_owned());
                (Some(names.filter(|name| !name.is_empty()).collect()), body)
            }
            None => (None, rest),
        };
        if body.contains("##") {
            return Err(error(file, line, name, "`##` is not supported in kernel files"));
        }
        let body = pieces(body.trim()).map_err(at)?;
        self.macros.insert(name.to_owned(), Macro { parameters, body });
        Ok(())
    }

    /// Appends a block without directives, in which invocations are replaced by what they expand to.
    fn expand_block(&self, file: &str, first_line: u32, block: &str, out: &mut String) -> Result<(), Error> {
        let at = |mut error: Error| {
            error.location = Location { file: file.to_owned(), line: error.location.line + first_line - 1 };
            error
        };
        let source = Source::lex(block).map_err(at)?;
        let tokens = source.tokens();
        let (mut copied, mut index) = (0, 0);
        while index < tokens.len() {
            let name = source.at(index);
            let Some(used) = self.macros.get(name).filter(|_| tokens[index].kind == TokenKind::Word) else {
                index += 1;
                continue;
            };
            let mut last = index;
            if used.parameters.is_some() {
                if source.at(index + 1) != "(" {
                    index += 1;
                    continue;
                }
                last = source.close(index + 1).ok_or_else(|| {
                    error(
                        file,
                        first_line + tokens[index].line - 1,
                        name,
                        "its list of arguments does not end",
                    )
                })?;
            }
            let whole = tokens[index].span.start..tokens[last].span.end;
            out.push_str(&block[copied..whole.start]);
            let expanded = self
                .expand(pieces(&block[whole.clone()]).map_err(at)?, &mut Vec::new())
                .map_err(|reason| error(file, first_line + tokens[index].line - 1, name, reason))?;
            out.push_str(&join(&expanded));
            out.extend(block[whole.clone()].chars().filter(|&c| c == '\n'));
            copied = whole.end;
            index = last + 1;
        }
        out.push_str(&block[copied..]);
        Ok(())
    }

    /// Expands all macros in a run of tokens but those in `hidden`, which are being expanded.
    fn expand(&self, pieces: Vec<Piece>, hidden: &mut Vec<String>) -> Result<Vec<Piece>, String> {
        let (mut out, mut index) = (Vec::new(), 0);
        while index < pieces.len() {
            let piece = &pieces[index];
            let found = self.macros.get(&piece.text).filter(|_| piece.word && !hidden.contains(&piece.text));
            let open = pieces.get(index + 1).is_some_and(|next| next.text == "(");
            let Some(used) = found.filter(|used| used.parameters.is_none() || open) else {
                out.push(piece.clone());
                index += 1;
                continue;
            };
            let mut arguments = Vec::new();
            let name = piece.text.clone();
            let spaced = piece.spaced;
            index += 1;
            if let Some(parameters) = &used.parameters {
                let (read, end) = arguments_of(&pieces, index)?;
                if read.len() != parameters.len() {
                    return Err(format!(
                        "the macro `{name}` has {} parameters and is given {}",
                        parameters.len(),
                        read.len()
                    ));
                }
                (arguments, index) = (read, end);
            }
            let mut body = self.substitute(used, &arguments, hidden)?;
            if let Some(first) = body.first_mut() {
                first.spaced = spaced;
            }
            hidden.push(name);
            out.extend(self.expand(body, hidden)?);
            hidden.pop();
        }
        Ok(out)
    }

    /// A macro's body with its arguments in the place of its parameters.
    fn substitute(
        &self,
        used: &Macro,
        arguments: &[Vec<Piece>],
        hidden: &mut Vec<String>,
    ) -> Result<Vec<Piece>, String> {
        let names = used.parameters.as_deref().unwrap_or_default();
        let position = |piece: &Piece| names.iter().position(|name| piece.word && *name == piece.text);
        let (mut out, mut body) = (Vec::new(), used.body.iter());
        while let Some(piece) = body.next() {
            if piece.text == "#" && !names.is_empty() {
                let parameter = body.next().and_then(position).ok_or("`#` precedes no parameter")?;
                let text = format!("\"{}\"", join(&arguments[parameter]).trim());
                out.push(Piece { text, word: false, spaced: piece.spaced });
            } else if let Some(parameter) = position(piece) {
                let mut argument = self.expand(arguments[parameter].clone(), hidden)?;
                if let Some(first) = argument.first_mut() {
                    first.spaced = piece.spaced;
                }
                out.extend(argument);
            } else {
                out.push(piece.clone());
            }
        }
        Ok(out)
    }
}

/// The arguments between the parentheses that open at `open`, and the index after them.
fn arguments_of(pieces: &[Piece], open: usize) -> Result<(Vec<Vec<Piece>>, usize), String> {
    let (mut arguments, mut current, mut depth) = (Vec::new(), Vec::new(), 0);
    for (index, piece) in pieces.iter().enumerate().skip(open) {
        match piece.text.as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
        match piece.text.as_str() {
            "(" if depth == 1 => {}
            ")" if depth == 0 => {
                if !current.is_empty() || !arguments.is_empty() {
                    arguments.push(current);
                }
                return Ok((arguments, index + 1));
            }
            "," if depth == 1 => arguments.push(std::mem::take(&mut current)),
            _ => current.push(piece.clone()),
        }
    }
    Err("its list of arguments does not end".to_owned())
}

fn join(pieces: &[Piece]) -> String {
    let mut text = String::new();
    for (index, piece) in pieces.iter().enumerate() {
        let touching = index > 0 && pieces[index - 1].word && piece.word;
        if index > 0 && (piece.spaced || touching) {
            text.push(' ');
        }
        text.push_str(&piece.text);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(text: &str) -> Result<String, String> {
        Preprocessor::default().expand_file("k.metal", text).map_err(|error| error.to_string())
    }

    #[test]
    fn macros_expand_in_their_arguments_and_bodies_and_lines_stay() {
        let text = "#define N 4\n#define FOR(f) \\\n    f(int) \\\n    f(half)\n#define NAME(T) \"x_\" #T [N]\nFOR(NAME)\nN n\n";
        let expected = "#line 1 \"k.metal\"\n\n\n\n\n\n\"x_\" \"int\" [4] \"x_\" \"half\" [4]\n4 n\n";
        assert_eq!(expanded(text).unwrap(), expected);
    }

    #[test]
    fn an_invocation_of_several_lines_keeps_their_number() {
        let text = "#define ADD(a, b) a + b\nADD(\n  1, // one\n  f(2, 3)\n)\nADD;\n";
        assert_eq!(expanded(text).unwrap(), "#line 1 \"k.metal\"\n\n1 + f(2, 3)\n\n\n\nADD;\n");
    }

    #[test]
    fn what_is_not_supported_is_named_with_its_line() {
        for (text, message) in [
            ("\n#if 1\n", "k.metal:2: #if: is not supported in kernel files"),
            ("#define A(x) x ## 1\n", "k.metal:1: A: `##` is not supported in kernel files"),
            ("#define A(x, y) x\n\nA(1)\n", "k.metal:3: A: the macro `A` has 2 parameters and is given 1"),
            ("#define A(x) x\nint a;\nA(1\n", "k.metal:3: A: its list of arguments does not end"),
        ] {
            assert_eq!(expanded(text).unwrap_err(), message);
        }
    }
}
