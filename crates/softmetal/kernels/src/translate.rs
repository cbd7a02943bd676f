//! Metal Shading Language to C++, by replacing parts of the text.
//!
//! Address spaces become empty macros, attributes vanish, threadgroup variables become statics in a section
//! of their own. Lines stay where they are, so the compiler's messages name the author's lines.

use std::collections::HashSet;
use std::fmt::Write;
use std::ops::Range;

use msl::{ItemKind, Kernel, Library, Passing, Role, Source, TokenKind};

/// What every translated text begins with.
pub(crate) const PRELUDE: &str = concat!(
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

/// Replacements of single words and attributes, anywhere in the text.
fn words(source: &Source<'_>, edits: &mut Edits<'_>) {
    let tokens = source.tokens();
    let mut index = 0;
    while index < tokens.len() {
        let span = tokens[index].span.clone();
        let word = source.at(index);
        match word {
            "[" if source.at(index + 1) == "[" && tokens[index + 1].span.start == span.end => {
                let end = source.close(index).unwrap_or(index + 1);
                let kernel = (index..end).any(|i| source.at(i) == "kernel");
                let new = if kernel { "static " } else { "" };
                edits.list.push((span.start..tokens[end].span.end, new.into()));
                index = end;
            }
            // A plain kernel that is not called must not be compiled.
            "kernel" if source.at(index.wrapping_sub(1)) != "." => edits.list.push((span, "static".into())),
            // Behind a member function it says where the object lies, not that it is const.
            "constant" if source.at(index.wrapping_sub(1)) == ")" => edits.list.push((span, String::new())),
            "static_cast" => edits.list.push((span, "softmetal_cast".into())),
            "is_function_constant_defined" => {
                let end = source.close(index + 1).unwrap_or(index);
                let new = format!("bool(softmetal_defined_{})", source.at(index + 2));
                edits.list.push((span.start..tokens[end].span.end, new));
                index = end;
            }
            _ if tokens[index].kind == TokenKind::Number && !word.starts_with("0x") => {
                if let Some(digits) = word.strip_suffix(['h', 'H']) {
                    let point = if digits.contains(['.', 'e', 'E']) { "" } else { ".0" };
                    edits.list.push((span, format!("{digits}{point}f16")));
                } else if let Some(digits) = word.strip_suffix("bf") {
                    edits.list.push((span, format!("bfloat({digits}f)")));
                }
            }
            _ => {}
        }
        index += 1;
    }
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
