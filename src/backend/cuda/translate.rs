//! Metal's shading language to CUDA C++, for the dialect of our kernel files (see the head of `common.metal`).
//!
//! The text stays as it is but for what only one of the languages has: address spaces, attributes and explicit instantiations.
//! Kernels become functions on the device; for each kernel that is asked for, a `__global__` function ([`entry_name`]) calls that
//! function with the positions of the thread. `prelude.cuh` contains Metal's types and functions. Structs in constant memory
//! become parameters by value.

use std::fmt::Write as _;
use std::ops::Range;

use msl::{AddressSpace, Argument, Builtin, Error, Kernel, Library, Passing, Role, Source, TokenKind};

use super::preprocess::Preprocessor;
use crate::backend::gpu::kernel::{COMMON, Constant};

/// Metal's types and functions in CUDA C++.
pub(super) const PRELUDE: &str = include_str!("prelude.cuh");

/// Number of threads of a threadgroup that a kernel without a declared maximum may have.
const MAX_THREADS: usize = 1024;

/// A kernel file with its macros expanded.
pub(super) struct KernelFile {
    name: String,
    text: String,
    library: Library,
}

impl KernelFile {
    /// Reads a kernel file; `common.metal` precedes it where `includes_common` is set.
    ///
    /// # Errors
    /// The file, the line and the construct that cannot be read.
    pub(super) fn read(name: &str, text: &str, includes_common: bool) -> Result<Self, Error> {
        let mut preprocessor = Preprocessor::default();
        let mut expanded = String::new();
        if includes_common {
            expanded.push_str(&preprocessor.expand_file("common.metal", COMMON)?);
        }
        expanded.push_str(&preprocessor.expand_file(&format!("{name}.metal"), text)?);
        let library = Library::read(&expanded)?;
        Ok(Self { name: name.to_owned(), text: expanded, library })
    }

    /// Names of the kernels.
    pub(super) fn functions(&self) -> impl Iterator<Item = &str> {
        self.library.kernels.iter().map(|kernel| kernel.name.as_str())
    }

    fn kernel(&self, function: &str) -> Result<&Kernel, Error> {
        self.library.kernel(function).ok_or_else(|| Error {
            location: msl::Location { file: format!("{}.metal", self.name), line: 1 },
            construct: format!("kernel `{function}`"),
            reason: "the file has no such kernel".to_owned(),
        })
    }

    /// Maximum number of threads of a threadgroup of a kernel.
    ///
    /// # Errors
    /// The file has no such kernel, or the maximum is not a number.
    pub(super) fn max_threads(&self, function: &str) -> Result<usize, Error> {
        let kernel = self.kernel(function)?;
        kernel.max_threads.as_ref().map_or(Ok(MAX_THREADS), |text| {
            let reason = || format!("its maximum of threads, `{text}`, is not a number");
            text.parse().map_err(|_| fault(kernel, reason()))
        })
    }

    /// Number of buffers that a kernel takes.
    ///
    /// # Errors
    /// The file has no such kernel.
    pub(super) fn buffers(&self, function: &str) -> Result<usize, Error> {
        let arguments = &self.kernel(function)?.arguments;
        Ok(arguments.iter().filter(|argument| matches!(argument.role, Role::Buffer(_))).count())
    }

    /// Translates the file, with entry points for these kernels.
    ///
    /// # Errors
    /// The file, the line and the construct that has no translation.
    pub(super) fn translate(&self, functions: &[&str], constants: &[Constant]) -> Result<String, Error> {
        let source = Source::lex(&self.text)?;
        let body = apply(&self.text, edits(&source, &self.library, constants)?);
        let mut out = format!("{PRELUDE}\nnamespace metal {{\n{body}\nnamespace entry {{\n");
        for function in functions {
            entry(self.kernel(function)?, self.max_threads(function)?, &mut out)?;
        }
        out.push_str("}  // namespace entry\n}  // namespace metal\n");
        Ok(out)
    }
}

fn fault(kernel: &Kernel, reason: impl Into<String>) -> Error {
    Error {
        location: kernel.location.clone(),
        construct: format!("kernel `{}`", kernel.name),
        reason: reason.into(),
    }
}

/// Replaces ranges of a text; what spans lines leaves their ends, so that lines keep their numbers.
fn apply(text: &str, mut edits: Vec<(Range<usize>, String)>) -> String {
    edits.sort_by_key(|(range, _)| (range.start, std::cmp::Reverse(range.end)));
    let (mut out, mut copied) = (String::with_capacity(text.len()), 0);
    for (range, replacement) in edits {
        if range.start < copied {
            continue;
        }
        out.push_str(&text[copied..range.start]);
        out.push_str(&replacement);
        out.extend(text[range.clone()].chars().filter(|&c| c == '\n'));
        copied = range.end;
    }
    out.push_str(&text[copied..]);
    out
}

/// What is replaced in a file, by ranges of bytes. A range within another one has no effect.
fn edits(
    source: &Source<'_>,
    library: &Library,
    constants: &[Constant],
) -> Result<Vec<(Range<usize>, String)>, Error> {
    let mut edits: Vec<(Range<usize>, String)> =
        library.instantiations.iter().map(|range| (range.clone(), String::new())).collect();
    for constant in &library.function_constants {
        let value = constants
            .iter()
            .find_map(|&Constant::Bool(index, value)| (index == constant.index as usize).then_some(value));
        let value = value.ok_or_else(|| Error {
            location: location_of(source, &constant.span),
            construct: format!("function constant `{}`", constant.name),
            reason: format!("index {} has no value", constant.index),
        })?;
        let declaration = format!("constexpr {} {} = {value};", constant.ty, constant.name);
        edits.push((constant.span.clone(), declaration));
    }
    for constant in &library.derived_constants {
        let declaration = format!("constexpr {} {} = {};", constant.ty, constant.name, constant.expression);
        edits.push((constant.span.clone(), declaration));
    }
    let shared: Vec<usize> = library
        .kernels
        .iter()
        .flat_map(|kernel| kernel.threadgroup_variables.iter().map(|variable| variable.keyword.start))
        .collect();
    let mut index = 0;
    while index < source.tokens().len() {
        let token = &source.tokens()[index];
        let (text, span) = (source.at(index), token.span.clone());
        if text == "[" && source.at(index + 1) == "[" {
            let close = source.close(index).unwrap_or(index);
            let marks = (index..close).any(|at| source.at(at) == "kernel");
            let replacement = if marks { "static __forceinline__" } else { "" };
            edits.push((span.start..source.tokens()[close].span.end, replacement.to_owned()));
            index = close + 1;
            continue;
        }
        match (token.kind, text) {
            (TokenKind::Word, "kernel") => edits.push((span, "static __forceinline__".to_owned())),
            (TokenKind::Word, "device" | "thread") => edits.push((span, String::new())),
            (TokenKind::Word, "threadgroup") => {
                let replacement = if shared.contains(&span.start) { "__shared__" } else { "" };
                edits.push((span, replacement.to_owned()));
            }
            (TokenKind::Word, "constant") => edits.push((span, constant_qualifier(source, index).to_owned())),
            (TokenKind::Number, number) => {
                if let Some(number) = number.strip_suffix(['h', 'H']).filter(|_| !number.starts_with("0x")) {
                    edits.push((span, format!("half({number}f)")));
                }
            }
            (TokenKind::Word, word) if word.starts_with("simdgroup_") || word.starts_with("atomic_") => {
                return Err(Error {
                    location: source.location(index),
                    construct: format!("`{word}`"),
                    reason: "has no translation to CUDA".to_owned(),
                });
            }
            _ => {}
        }
        index += 1;
    }
    Ok(edits)
}

/// Where a range of bytes begins.
fn location_of(source: &Source<'_>, range: &Range<usize>) -> msl::Location {
    let first = source.tokens().partition_point(|token| token.span.start < range.start);
    source.location(first)
}

/// What stands for `constant` at token `index`: nothing where a static member or `const` already says so, `const` before the
/// type of a pointer or reference, and constant memory for a variable.
fn constant_qualifier(source: &Source<'_>, index: usize) -> &'static str {
    let is = |at: usize, words: &[&str]| words.contains(&source.at(at));
    let before = index > 0 && is(index - 1, &["static", "const", "constexpr"]);
    if before || is(index + 1, &["const", "constexpr"]) {
        return "";
    }
    let mut at = index + 1;
    while source.tokens().get(at).is_some_and(|token| token.kind == TokenKind::Word) || source.at(at) == "::"
    {
        at += 1;
    }
    if is(at, &["<"]) {
        at = source.close(at).unwrap_or(at) + 1;
    }
    if is(at, &["*", "&"]) { "const" } else { "__constant__" }
}

/// Name of a kernel's entry point. The prefix keeps it apart from functions that the compiler declares, such as `norm`.
pub(super) fn entry_name(function: &str) -> String {
    format!("kernel_{function}")
}

/// Appends the entry point of a kernel.
fn entry(kernel: &Kernel, max_threads: usize, out: &mut String) -> Result<(), Error> {
    let mut parameters: Vec<(u32, String)> = Vec::new();
    let mut values = Vec::new();
    for argument in &kernel.arguments {
        match argument.role {
            Role::Buffer(index) => {
                let (parameter, value) = buffer(kernel, argument)?;
                parameters.push((index, parameter));
                values.push(value);
            }
            Role::Builtin(builtin) => values.push(builtin_value(builtin, &argument.ty)),
            Role::Threadgroup(index) => {
                let reason =
                    format!("[[threadgroup({index})]] has no translation; declare the array in the kernel");
                return Err(fault(kernel, reason));
            }
        }
    }
    parameters.sort_by_key(|(index, _)| *index);
    if let Some((expected, (index, _))) =
        (0..).zip(&parameters).find(|(expected, (index, _))| expected != index)
    {
        return Err(fault(kernel, format!("buffer {expected} is missing before buffer {index}")));
    }
    let parameters: Vec<String> = parameters.into_iter().map(|(_, text)| text).collect();
    let (name, expression) = (entry_name(&kernel.name), &kernel.expression);
    let _ = write!(
        out,
        "extern \"C\" __global__ void __launch_bounds__({max_threads}) {name}(\n    {}) {{\n    metal::{expression}({});\n}}\n",
        parameters.join(",\n    "),
        values.join(", ")
    );
    Ok(())
}

/// The parameter of an entry point for a buffer, and what the kernel's function receives.
fn buffer(kernel: &Kernel, argument: &Argument) -> Result<(String, String), Error> {
    let (ty, name) = (instantiated(kernel, &argument.ty), &argument.name);
    let qualifier = if argument.is_const { "const " } else { "" };
    match (argument.address_space, argument.passing) {
        (Some(AddressSpace::Constant), Passing::Reference) => {
            Ok((format!("const __grid_constant__ {ty} {name}"), name.clone()))
        }
        (Some(AddressSpace::Device | AddressSpace::Constant), Passing::Pointer) => {
            Ok((format!("{qualifier}{ty}* {name}"), name.clone()))
        }
        (Some(AddressSpace::Device), Passing::Reference) => {
            Ok((format!("{qualifier}{ty}* {name}"), format!("*{name}")))
        }
        _ => Err(fault(kernel, format!("its argument `{name}` is no buffer"))),
    }
}

/// A type with a template's arguments in the place of its parameters.
fn instantiated(kernel: &Kernel, ty: &str) -> String {
    let mut out = String::new();
    let mut word = String::new();
    for character in ty.chars().chain([' ']) {
        if character.is_ascii_alphanumeric() || character == '_' {
            word.push(character);
            continue;
        }
        let index = kernel.template_parameters.iter().position(|parameter| parameter.name == word);
        let argument = index.and_then(|index| {
            let default = kernel.template_parameters[index].default.as_ref();
            kernel.template_arguments.get(index).or(default)
        });
        out.push_str(argument.unwrap_or(&word));
        out.push(character);
        word.clear();
    }
    out.trim_end().to_owned()
}

/// A value that the GPU supplies, as an expression.
fn builtin_value(builtin: Builtin, ty: &str) -> String {
    const INDEX: &str = "((threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x)";
    const THREADS: &str = "(blockDim.x * blockDim.y * blockDim.z)";
    let components = ty.chars().last().and_then(|last| last.to_digit(10)).unwrap_or(1) as usize;
    let axes = |of: &dyn Fn(char) -> String| {
        let parts: Vec<String> = "xyz".chars().take(components).map(of).collect();
        format!("{ty}({})", parts.join(", "))
    };
    match builtin {
        Builtin::ThreadPositionInGrid => axes(&|a| format!("blockIdx.{a} * blockDim.{a} + threadIdx.{a}")),
        Builtin::ThreadPositionInThreadgroup => axes(&|a| format!("threadIdx.{a}")),
        Builtin::ThreadgroupPositionInGrid => axes(&|a| format!("blockIdx.{a}")),
        Builtin::ThreadsPerThreadgroup | Builtin::DispatchThreadsPerThreadgroup => {
            axes(&|a| format!("blockDim.{a}"))
        }
        Builtin::ThreadgroupsPerGrid => axes(&|a| format!("gridDim.{a}")),
        Builtin::ThreadsPerGrid => axes(&|a| format!("gridDim.{a} * blockDim.{a}")),
        Builtin::ThreadIndexInThreadgroup => format!("{ty}{INDEX}"),
        Builtin::ThreadIndexInSimdgroup => format!("{ty}({INDEX} % 32)"),
        Builtin::SimdgroupIndexInThreadgroup => format!("{ty}({INDEX} / 32)"),
        Builtin::SimdgroupsPerThreadgroup | Builtin::DispatchSimdgroupsPerThreadgroup => {
            format!("{ty}(({THREADS} + 31) / 32)")
        }
        Builtin::ThreadsPerSimdgroup | Builtin::ThreadExecutionWidth => format!("{ty}(32)"),
    }
}

#[cfg(test)]
mod tests;
