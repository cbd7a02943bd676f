//! Implicit conversions to bfloat: clang has them for `__bf16`, Metal has not. clang's dump of the syntax tree shows them, in
//! every instantiation.

use std::fmt::Write;

use super::STANDARD_NAME;

/// What is written of each conversion, in the form of clang's errors.
pub(super) const MESSAGE: &str =
    "softmetal: a number of another type becomes bfloat without a cast; write bfloat(x)";

/// A place in the text.
#[derive(Clone, Copy, Default, PartialEq)]
struct Place<'a> {
    file: &'a str,
    line: u32,
}

impl<'a> Place<'a> {
    /// The place that the dump calls `text`, after this one: `file:line:column`, `line:line:column` or `col:column`.
    fn next(self, text: &'a str) -> Self {
        let mut parts = text.rsplitn(3, ':');
        let (Some(_column), Some(line), Some(file)) = (parts.next(), parts.next(), parts.next()) else {
            return self;
        };
        match line.parse() {
            Ok(line) if file == "line" => Self { line, ..self },
            Ok(line) => Self { file, line },
            Err(_) => self,
        }
    }
}

/// Returns an error for each line of the library with such a conversion, from a dump of its syntax tree.
pub(super) fn errors(dump: &str) -> String {
    let (mut out, mut at, mut last) = (String::new(), Place::default(), Place::default());
    for node in dump.lines() {
        let Some((range, rest)) = node
            .split_once(" 0x")
            .and_then(|(_, rest)| rest.split_once(" <"))
            .and_then(|(_, rest)| rest.split_once('>'))
        else {
            continue;
        };
        let (begin, end) = range.split_once(", ").unwrap_or((range, ""));
        let begin = at.next(begin);
        at = begin.next(end);
        // A declaration's name has a place of its own.
        at = at.next(rest.split_whitespace().next().unwrap_or_default());
        let cast = node.contains("ImplicitCastExpr ")
            && rest.contains("__bf16' <FloatingCast>")
            && !rest.contains("part_of_explicit_cast");
        let update = node.contains("CompoundAssignOperator ")
            && rest.contains("__bf16' lvalue ")
            && rest.split_once("ComputeResultTy=").is_some_and(|(_, ty)| !ty.contains("__bf16'"));
        if (cast || update) && begin.file != STANDARD_NAME && begin != last {
            let _ = writeln!(out, "{}:{}:1: error: {MESSAGE}", begin.file, begin.line);
            last = begin;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_follow_one_another() {
        let dump = format!(
            "TranslationUnitDecl 0x1 <<invalid sloc>> <invalid sloc>\n\
             |-FunctionDecl 0x2 <{STANDARD_NAME}:3:1, line:5:2> line:3:5 f 'bfloat (float)'\n\
             | `-ImplicitCastExpr 0x3 <line:4:3> '__bf16' <FloatingCast>\n\
             `-FunctionDecl 0x4 prev 0x2 <a.metal:7:1, line:12:1> line:7:8 g 'void ()'\n\
             \x20 |-ImplicitCastExpr 0x5 <col:9, line:8:2> 'bfloat':'__bf16' <FloatingCast> part_of_explicit_cast\n\
             \x20 |-ImplicitCastExpr 0x6 <line:9:4, col:9> '__private bfloat':'__private __bf16' <FloatingCast>\n\
             \x20 |-ImplicitCastExpr 0x7 <col:9> '__bf16' <LValueToRValue>\n\
             \x20 |-CompoundAssignOperator 0x8 <line:10:2> '__bf16' lvalue '+=' ComputeLHSTy='bfloat':'__bf16' ComputeResultTy='bfloat':'__bf16'\n\
             \x20 `-CompoundAssignOperator 0x9 <line:11:2> '__global __bf16' lvalue '+=' ComputeLHSTy='float' ComputeResultTy='float'\n"
        );
        assert_eq!(errors(&dump), format!("a.metal:9:1: error: {MESSAGE}\na.metal:11:1: error: {MESSAGE}\n"));
    }
}
