//! Metal Shading Language to C++, by replacing parts of the text.
//!
//! Address spaces become empty macros, attributes vanish, threadgroup variables become statics in a section
//! of their own. Lines stay where they are, so the compiler's messages name the author's lines.

use std::collections::HashSet;
use std::fmt::Write;
use std::ops::{Range, RangeInclusive};

use msl::{ItemKind, Kernel, Library, Passing, Role, Source, TokenKind};

/// What every translated text begins with.
pub(crate) const PRELUDE: &str = concat!(
    include_str!("../prelude/shared.h"),
    include_str!("../prelude/abi.h"),
    include_str!("../prelude/traits.h"),
    include_str!("../prelude/vector.h"),
    include_str!("../prelude/math.h"),
    include_str!("../prelude/simd.h"),
);

/// A library as C++.
pub(crate) struct Translation {
    /// Prelude, library, and the tables of its constants.
    pub(crate) text: String,
    /// For each kernel, the function that calls it with the engine's values.
    pub(crate) callers: Vec<String>,
}

/// Translates what `library` was read from.
pub(crate) fn translate(source: &Source<'_>, library: &Library) -> Translation {
    let mut edits = Edits { text: source.text(), list: Vec::new() };
    for range in &library.instantiations {
        edits.list.push((range.clone(), String::new()));
    }
    for constant in &library.function_constants {
        let (name, ty) = (&constant.name, &constant.ty);
        let new = format!("static {ty} {name}; static uchar softmetal_defined_{name};");
        edits.list.push((constant.span.clone(), new));
    }
    for constant in &library.derived_constants {
        edits.list.push((constant.span.clone(), format!("static {} {};", constant.ty, constant.name)));
    }
    for variable in library.kernels.iter().flat_map(|k| &k.threadgroup_variables) {
        edits.list.push((variable.keyword.clone(), "SOFTMETAL_SHARED".into()));
    }
    duplicates(source, 0..source.tokens().len(), false, &mut edits);
    words(source, &mut edits);
    let mut text = format!("# 1 \"softmetal prelude\"\n{PRELUDE}\n# 1 \"library\"\n{}\n", edits.apply());
    text.push_str("# 1 \"softmetal tables\"\n");
    text.push_str("#undef device\n#undef constant\n#undef thread\n#undef threadgroup\n");
    tables(library, &mut text);
    let callers = library.kernels.iter().map(caller).collect();
    Translation { text, callers }
}

/// Replacements of parts of a text.
pub(crate) struct Edits<'a> {
    pub(crate) text: &'a str,
    pub(crate) list: Vec<(Range<usize>, String)>,
}

impl Edits<'_> {
    /// The text with all edits made; an edit inside an earlier one is dropped, and line ends are kept.
    pub(crate) fn apply(mut self) -> String {
        self.list.sort_by_key(|(range, _)| (range.start, std::cmp::Reverse(range.end)));
        let (mut out, mut at) = (String::with_capacity(self.text.len()), 0);
        for (range, new) in self.list {
            if range.start < at {
                continue;
            }
            out.push_str(&self.text[at..range.start]);
            out.push_str(&new);
            out.extend(self.text[range.clone()].bytes().filter(|b| *b == b'\n').map(char::from));
            at = range.end;
        }
        out.push_str(&self.text[at..]);
        out
    }
}

/// Replaces single words anywhere in the text: attribute lists by what `attributes` returns for their tokens, literals of
/// half and bfloat by those of C++, where `half` is the suffix, and the tokens that `word` returns a text for.
pub(crate) fn replace_words(
    source: &Source<'_>,
    edits: &mut Edits<'_>,
    half: &str,
    attributes: impl Fn(Range<usize>) -> &'static str,
    word: impl Fn(usize) -> Option<(RangeInclusive<usize>, String)>,
) {
    let tokens = source.tokens();
    let mut index = 0;
    while let Some(token) = tokens.get(index) {
        let mut replace = |range: RangeInclusive<usize>, text: String| {
            edits.list.push((tokens[*range.start()].span.start..tokens[*range.end()].span.end, text));
            *range.end()
        };
        let adjacent = tokens.get(index + 1).is_some_and(|next| next.span.start == token.span.end);
        if source.at(index) == "[" && source.at(index + 1) == "[" && adjacent {
            let end = source.close(index).unwrap_or(index + 1);
            index = replace(index..=end, attributes(index..end).into());
        } else if let Some((range, text)) = word(index) {
            index = replace(range, text);
        } else if token.kind == TokenKind::Number
            && let Some(text) = literal(source.at(index), half)
        {
            replace(index..=index, text);
        }
        index += 1;
    }
}

/// Returns a literal of half (`1h`) or bfloat (`1.0bf`) as C++ has it.
fn literal(word: &str, half: &str) -> Option<String> {
    if word.starts_with("0x") {
        return None;
    }
    if let Some(digits) = word.strip_suffix("bf") {
        return Some(format!("bfloat({digits}f)"));
    }
    let digits = word.strip_suffix(['h', 'H'])?;
    let point = if digits.contains(['.', 'e', 'E']) { "" } else { ".0" };
    Some(format!("{digits}{point}{half}"))
}

/// Replaces single words; of attributes, those of kernels become `static`, the others vanish.
fn words(source: &Source<'_>, edits: &mut Edits<'_>) {
    let attributes = |mut list: Range<usize>| {
        if list.any(|index| source.at(index) == "kernel") { "static " } else { "" }
    };
    let before = |index: usize| source.at(index.wrapping_sub(1));
    let word = |index: usize| {
        let (end, text) = match source.at(index) {
            // A plain kernel that is not called must not be compiled.
            "kernel" if before(index) != "." => (index, "static".into()),
            // Behind a member function it says where the object lies, not that it is const.
            "constant" if before(index) == ")" => (index, String::new()),
            "static_cast" => (index, "softmetal_cast".into()),
            "is_function_constant_defined" => {
                let end = source.close(index + 1).unwrap_or(index);
                (end, format!("bool(softmetal_defined_{})", source.at(index + 2)))
            }
            _ => return None,
        };
        Some((index..=end, text))
    };
    replace_words(source, edits, "f16", attributes, word);
}

/// Removes declarations that differ from an earlier one in address spaces only: without them, C++ sees the
/// same function, type or constructor twice.
fn duplicates(source: &Source<'_>, range: Range<usize>, class: bool, edits: &mut Edits<'_>) {
    let mut seen = HashSet::new();
    for item in source.items(range) {
        let end = item.body.map_or(item.tokens.end, |(open, _)| open);
        let signature = signature(source, item.tokens.start..end);
        let repeats = match item.kind {
            ItemKind::Namespace => false,
            ItemKind::Function | ItemKind::Type => !seen.insert(signature),
            // Elsewhere a declaration may be repeated.
            ItemKind::Declaration => class && !seen.insert(signature),
        };
        if repeats {
            let bytes =
                source.tokens()[item.tokens.start].span.start..source.tokens()[item.tokens.end - 1].span.end;
            edits.list.push((bytes, String::new()));
        } else if let (ItemKind::Namespace | ItemKind::Type, Some((open, close))) = (item.kind, item.body) {
            duplicates(source, open + 1..close, item.kind == ItemKind::Type, edits);
        }
    }
}

fn signature(source: &Source<'_>, range: Range<usize>) -> String {
    let mut out = String::new();
    for index in range {
        let word = match source.at(index) {
            "device" | "thread" | "threadgroup" => continue,
            "constant" if out.ends_with(") ") => continue,
            "constant" => "const",
            word => word,
        };
        if word != "const" || !out.ends_with("const ") {
            out.push_str(word);
            out.push(' ');
        }
    }
    out
}

/// What the engine needs to know of constants, and a way to compute the derived ones.
fn tables(library: &Library, out: &mut String) {
    out.push_str("SOFTMETAL_EXPORT softmetal_constant softmetal_constants[] = {\n");
    for c in &library.function_constants {
        let _ = writeln!(
            out,
            "  {{{}, sizeof {name}, &{name}, &softmetal_defined_{name}}},",
            c.index,
            name = c.name
        );
    }
    out.push_str("  {0, 0, nullptr, nullptr}};\nSOFTMETAL_EXPORT void softmetal_derive() {\n");
    for c in &library.derived_constants {
        let mut expression = c.expression.clone();
        for f in &library.function_constants {
            let asked = format!("is_function_constant_defined({})", f.name);
            expression = expression.replace(&asked, &format!("bool(softmetal_defined_{})", f.name));
        }
        let _ = writeln!(out, "  {} = {expression};", c.name);
    }
    out.push_str("}\n");
}

/// The exported functions of one kernel: what calls it, which of its arguments exist, how many threads it allows.
fn caller(kernel: &Kernel) -> String {
    let mut out = String::new();
    out.push_str("SOFTMETAL_EXPORT void softmetal_kernel(const softmetal_context *c) {\n  ");
    out.push_str(&kernel.expression);
    out.push('(');
    for (index, argument) in kernel.arguments.iter().enumerate() {
        let wrap =
            if argument.passing == Passing::Reference { "softmetal_reference" } else { "softmetal_pointer" };
        out.push_str(if index == 0 { "\n    " } else { ",\n    " });
        let _ = match argument.role {
            Role::Buffer(n) => write!(out, "{wrap}{{c->buffers[{n}]}}"),
            Role::Threadgroup(n) => write!(out, "{wrap}{{c->threadgroups[{n}]}}"),
            Role::Builtin(msl::Builtin::ThreadExecutionWidth) => write!(out, "c->threads_per_simdgroup"),
            Role::Builtin(b) if b.components() == 3 => {
                write!(out, "softmetal_position{{c->{}}}", b.attribute())
            }
            Role::Builtin(b) => write!(out, "c->{}", b.attribute()),
        };
    }
    out.push_str(");\n}\nSOFTMETAL_EXPORT bool softmetal_enabled(uint argument) {\n  switch (argument) {\n");
    for (index, argument) in kernel.arguments.iter().enumerate() {
        if let Some(condition) = &argument.condition {
            let _ = writeln!(out, "    case {index}: return bool({condition});");
        }
    }
    out.push_str("  }\n  return true;\n}\nSOFTMETAL_EXPORT uint softmetal_limit() {\n");
    match &kernel.max_threads {
        // In terms of the template's parameters, which the instantiation or their defaults say.
        Some(limit) => {
            let values = kernel.template_parameters.iter().zip(0..).filter_map(|(p, i)| {
                let value = kernel.template_arguments.get(i).or(p.default.as_ref())?;
                Some((p, value)).filter(|(p, _)| !p.name.is_empty())
            });
            for (parameter, value) in values {
                let _ = match parameter.ty.as_str() {
                    "typename" | "class" => writeln!(out, "  using {} = {value};", parameter.name),
                    ty => writeln!(out, "  constexpr {ty} {} = {value};", parameter.name),
                };
            }
            let _ = writeln!(out, "  return {limit};\n}}");
        }
        None => out.push_str("  return 0;\n}\n"),
    }
    out
}
