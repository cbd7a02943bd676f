//! Buffers, threadgroup arguments, and the function constants that turn them off.

use crate::argument::{AddressSpace, Argument, Passing, Role};
use crate::kernel::Kernel;
use crate::lexer::Source;
use crate::library::Library;

use super::limits::MAX_BUFFER_INDEX;
use super::{Finding, about};

/// Largest index of a function constant.
const MAX_CONSTANT_INDEX: u32 = 65535;

pub(super) fn check(kernel: &Kernel, library: &Library, findings: &mut Vec<Finding>) {
    let mut report = |argument: &Argument, rule: &'static str, reason: String| {
        findings.push(about(kernel, argument.line, rule, reason));
    };
    for (position, argument) in kernel.arguments.iter().enumerate() {
        let (rules, n) = match argument.role {
            Role::Buffer(n) => (["buffer-index", "buffer-unique"], n),
            Role::Threadgroup(n) => (["threadgroup-index", "threadgroup-unique"], n),
            Role::Builtin(_) => {
                if argument.condition.is_some() {
                    condition(argument, library, &mut report);
                }
                continue;
            }
        };
        if n > MAX_BUFFER_INDEX {
            report(argument, rules[0], format!("{argument}: the index must be 0 to {MAX_BUFFER_INDEX}"));
        }
        let same = |other: &&Argument| {
            std::mem::discriminant(&other.role) == std::mem::discriminant(&argument.role)
                && other.role == argument.role
                // Function constants may leave one of the two.
                && (other.condition.is_none() || argument.condition.is_none())
        };
        if let Some(other) = kernel.arguments[..position].iter().find(same) {
            report(argument, rules[1], format!("{argument}: `{}` has this index already", other.name));
        }
        pointee(argument, &mut report);
        if argument.condition.is_some() {
            condition(argument, library, &mut report);
        }
    }
}

/// What an argument points to, and how.
fn pointee(argument: &Argument, report: &mut impl FnMut(&Argument, &'static str, String)) {
    let name = &argument.name;
    let named = |attribute: &str| argument.attributes.iter().any(|(n, _)| n == attribute);
    if argument.passing == Passing::Value {
        let rule = if named("threadgroup") { "threadgroup-space" } else { "buffer-by-value" };
        report(argument, rule, format!("{argument}: it must be a pointer or a reference, not a value"));
        return;
    }
    if argument.indirections > 1 {
        let reason = format!("`{name}`: a kernel's argument cannot be a pointer to a pointer");
        report(argument, "pointer-to-pointer", reason);
    }
    match (argument.role, argument.address_space) {
        (Role::Threadgroup(_), Some(AddressSpace::Threadgroup)) => {}
        (Role::Threadgroup(_), _) => {
            let reason = format!("{argument}: it must point to the threadgroup address space");
            report(argument, "threadgroup-space", reason);
        }
        (_, Some(AddressSpace::Threadgroup)) if !named("buffer") => {
            let reason = format!("`{name}` points to threadgroup memory and needs [[threadgroup(n)]]");
            report(argument, "threadgroup-binding", reason);
        }
        (_, Some(AddressSpace::Device | AddressSpace::Constant)) => {}
        (_, space) => {
            let found = space.map_or("no address space", |_| "another address space");
            let reason = format!("`{name}` has {found}: a buffer must be `device` or `constant`");
            report(argument, "buffer-space", reason);
        }
    }
}

fn condition(
    argument: &Argument,
    library: &Library,
    report: &mut impl FnMut(&Argument, &'static str, String),
) {
    let written = argument.attributes.iter().find(|(name, _)| name == "function_constant");
    let name = written.map_or("", |(_, value)| value.as_str());
    let function = library.function_constants.iter().find(|c| c.name == name).map(|c| c.ty.as_str());
    let derived = library.derived_constants.iter().find(|c| c.name == name).map(|c| c.ty.as_str());
    let reason = match function.or(derived) {
        Some("bool") => return,
        Some(ty) => format!("`{}`: function constant `{name}` is `{ty}`, not `bool`", argument.name),
        None => format!("`{}`: there is no function constant `{name}`", argument.name),
    };
    report(argument, "condition", reason);
}

/// Function constants: indices and types.
pub(super) fn check_constants(library: &Library, source: &Source<'_>, findings: &mut Vec<Finding>) {
    let index_of = |start: usize| source.tokens().iter().position(|t| t.span.start >= start).unwrap_or(0);
    for (position, constant) in library.function_constants.iter().enumerate() {
        let mut report = |rule: &'static str, reason: String| {
            let construct = format!("function constant `{}`", constant.name);
            findings.push(super::at(source, index_of(constant.span.start), construct, rule, reason));
        };
        if constant.index > MAX_CONSTANT_INDEX {
            report("constant-index", format!("index {} is above {MAX_CONSTANT_INDEX}", constant.index));
        }
        let earlier = &library.function_constants[..position];
        if let Some(other) = earlier.iter().find(|c| c.index == constant.index) {
            report("constant-index", format!("`{}` has index {} already", other.name, other.index));
        }
        let scalar = constant.ty.trim_start_matches("metal::").trim_end_matches(['2', '3', '4']);
        let known = [
            "bool", "char", "uchar", "short", "ushort", "int", "uint", "long", "ulong", "half", "bfloat",
            "float", "size_t", "int8_t", "uint8_t", "int16_t", "uint16_t", "int32_t", "uint32_t", "int64_t",
            "uint64_t",
        ];
        if !known.contains(&scalar) && !known.contains(&constant.ty.as_str()) {
            report("constant-type", format!("type `{}` is neither a scalar nor a vector", constant.ty));
        }
    }
}
