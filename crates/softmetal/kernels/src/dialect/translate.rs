//! Metal Shading Language to C++ for OpenCL, by replacing parts of the text. Lines stay where they are.

use std::fmt::Write;
use std::ops::Range;

use msl::rules::{MAX_THREADGROUP_BYTES, MAX_THREADS};
use msl::{Kernel, Library, Source, ThreadgroupVariable};

use super::{STANDARD, STANDARD_NAME};
use crate::translate::{Edits, replace_words};

/// The library with the declarations it needs before it.
pub(super) fn translate(source: &Source<'_>, library: &Library) -> String {
    let mut edits = Edits { text: source.text(), list: Vec::new() };
    for constant in &library.function_constants {
        edits
            .list
            .push((constant.span.clone(), format!("extern constant {} {};", constant.ty, constant.name)));
    }
    let mut expressions = String::new();
    for (index, constant) in library.derived_constants.iter().enumerate() {
        let (ty, name, expression) = (&constant.ty, &constant.name, &constant.expression);
        edits.list.push((constant.span.clone(), format!("extern constant {ty} {name};")));
        let _ = writeln!(expressions, "inline {ty} softmetal_derived_{index}() {{ return {expression}; }}");
    }
    let mut done: Vec<Range<usize>> = Vec::new();
    for kernel in library.kernels.iter().chain(&library.uninstantiated) {
        if !done.contains(&kernel.span) {
            done.push(kernel.span.clone());
            threadgroup_memory(source, kernel, &mut edits);
            max_threads(source, kernel, &mut edits);
        }
    }
    members(source, &mut edits);
    words(source, library, &mut edits);
    format!(
        "# 1 \"{STANDARD_NAME}\"\n{STANDARD}\n# 1 \"library\"\n{}\n# 1 \"derived constants\"\n{expressions}",
        edits.apply()
    )
}

/// Makes threadgroup variables references, since only a kernel that is no template could declare them; and asserts
/// that those which are visible at the same time fit.
fn threadgroup_memory(source: &Source<'_>, kernel: &Kernel, edits: &mut Edits<'_>) {
    let variables = &kernel.threadgroup_variables;
    let scopes: Vec<Range<usize>> = variables.iter().map(|v| scope(source, v.declaration.start)).collect();
    let mut index = 0;
    while index < variables.len() {
        let declaration = variables[index].declaration.clone();
        let mut new = String::new();
        while index < variables.len() && variables[index].declaration == declaration {
            reference(&variables[index], &mut new);
            index += 1;
        }
        // One aligned place each.
        let sum: Vec<String> = (0..index)
            .filter(|other| scopes[*other].contains(&declaration.start))
            .map(|other| format!("(sizeof({}) + 15) / 16 * 16", variables[other].name))
            .collect();
        let _ = write!(
            new,
            " static_assert({} <= {MAX_THREADGROUP_BYTES}, \"softmetal: threadgroup memory\");",
            sum.join(" + ")
        );
        edits.list.push((declaration, new));
    }
}

fn reference(variable: &ThreadgroupVariable, out: &mut String) {
    let ThreadgroupVariable { name, ty, extents, .. } = variable;
    let brackets: String = extents.iter().map(|extent| format!("[{extent}]")).collect();
    let declared = if brackets.is_empty() { format!("&{name}") } else { format!("(&{name}){brackets}") };
    let _ = write!(out, " threadgroup {ty} {declared} = softmetal_threadgroup<{ty}{brackets}>();");
}

/// Bytes of the innermost braces around byte `at`.
fn scope(source: &Source<'_>, at: usize) -> Range<usize> {
    let (mut open, mut found) = (Vec::new(), 0..source.text().len());
    for (index, token) in source.tokens().iter().enumerate() {
        match source.at(index) {
            "{" => open.push(token.span.start),
            "}" => {
                let Some(start) = open.pop() else { continue };
                if start < at && at < token.span.end {
                    return start..token.span.end;
                }
            }
            _ => {}
        }
    }
    found.end = found.end.max(at);
    found
}

/// Asserts in a kernel's body that the maximum it declares is one.
fn max_threads(source: &Source<'_>, kernel: &Kernel, edits: &mut Edits<'_>) {
    let Some(limit) = &kernel.max_threads else { return };
    let inside = |i: &usize| kernel.span.contains(&source.tokens()[*i].span.start);
    let tokens = source.tokens().iter();
    let name = (0..tokens.len())
        .filter(inside)
        .find(|i| source.at(*i) == kernel.function && source.at(*i + 1) == "(");
    let Some(close) = name.and_then(|name| source.close(name + 1)) else { return };
    let Some(body) = (close..source.tokens().len()).filter(inside).find(|i| source.at(*i) == "{") else {
        return;
    };
    let end = source.tokens()[body].span.end;
    let assertion = format!(
        " static_assert(({limit}) >= 1 && ({limit}) <= {MAX_THREADS}, \"softmetal: maximum of threads\");"
    );
    edits.list.push((end..end, assertion));
}

/// Says of member functions without an address space that their object is a thread's, as in Metal.
fn members(source: &Source<'_>, edits: &mut Edits<'_>) {
    for function in source.functions() {
        let Some(class) = function.class else { continue };
        let (start, close) = (function.tokens.start, function.parameters.1);
        let constructor = source.at(function.name) == source.at(class);
        let free = (start..function.parameters.0).any(|i| matches!(source.at(i), "static" | "friend"));
        let mut after = close;
        while source.at(after + 1) == "const" {
            after += 1;
        }
        if constructor
            || free
            || matches!(source.at(after + 1), "thread" | "device" | "constant" | "threadgroup")
        {
            continue;
        }
        let end = source.tokens()[after].span.end;
        edits.list.push((end..end, " thread".into()));
    }
}

/// Types of vectors, whose constructors become functions.
fn is_vector(word: &str) -> bool {
    let Some(element) = word.strip_suffix(['2', '3', '4']) else { return false };
    ["bool", "char", "uchar", "short", "ushort", "int", "uint", "long", "ulong", "half", "bfloat", "float"]
        .contains(&element)
}

/// Replaces single words, and takes attributes out.
fn words(source: &Source<'_>, library: &Library, edits: &mut Edits<'_>) {
    let tokens = source.tokens();
    let instantiation = |index: usize| {
        let at = tokens[index].span.start;
        library.instantiations.iter().any(|range| range.contains(&at))
    };
    let begins = |i: &usize| source.at(*i) == "template" && source.at(*i + 1) == "<";
    let lists: Vec<Range<usize>> =
        (0..tokens.len()).filter(begins).filter_map(|i| Some(i..source.close(i + 1)?)).collect();
    let before = |index: usize| source.at(index.wrapping_sub(1));
    // With the `metal::` before it.
    let qualified = |index: usize| if before(index) == "::" { index - 2 } else { index };
    let word = |index: usize| {
        let (range, text) = match source.at(index) {
            // Behind a function it says where the object is.
            "constant" if before(index) == ")" => (index..=index, "__constant".into()),
            // OpenCL cannot take the address of a function for a template's parameter, but binds references.
            "*" if before(index) == "("
                && source.at(index + 2) == ")"
                && source.at(index + 3) == "("
                && lists.iter().any(|list| list.contains(&index)) =>
            {
                (index..=index, "&".into())
            }
            // A template that is given bool may make a vector of it.
            "bool"
                if instantiation(index)
                    && matches!(before(index), "<" | ",")
                    && matches!(source.at(index + 1), ">" | ",") =>
            {
                (index..=index, "char".into())
            }
            "bool" if before(index) == "<" && source.at(index.wrapping_sub(2)) == "vec" => {
                (index..=index, "char".into())
            }
            "kernel" => (index..=index, String::new()),
            "is_function_constant_defined" => (index..=index, "softmetal_is_defined".into()),
            "vec" if source.at(index + 1) == "<" => {
                let close = source.close(index + 1).unwrap_or(index);
                if source.at(close + 1) != "(" || declares(source, index) {
                    return None;
                }
                let ty = source.join(index..close + 1).replace("vec<bool", "vec<char");
                (qualified(index)..=close, format!("softmetal_make<metal::{ty}>"))
            }
            word if is_vector(word) && source.at(index + 1) == "(" && !declares(source, index) => {
                (qualified(index)..=index, format!("softmetal_make<{word}>"))
            }
            _ => return None,
        };
        Some((range, text))
    };
    replace_words(source, edits, "h", |_| "", word);
}

/// Whether the type at token `index`, which a parenthesis follows, begins a declarator such as `float2 (&x)[2]` and not
/// an expression.
fn declares(source: &Source<'_>, index: usize) -> bool {
    let open = (index..).find(|i| matches!(source.at(*i), "(" | "")).unwrap_or(index);
    matches!(source.at(open + 1), "&" | "*") || source.at(index.wrapping_sub(1)) == "operator"
}
