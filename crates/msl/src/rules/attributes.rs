//! Attributes of arguments: types, widths, and which may be combined.

use crate::argument::{Argument, Builtin, Passing, Role};
use crate::kernel::Kernel;

use super::{Finding, about};

pub(super) fn check(kernel: &Kernel, findings: &mut Vec<Finding>) {
    for argument in &kernel.arguments {
        combined(kernel, argument, findings);
        if let Role::Builtin(builtin) = argument.role {
            builtin_type(kernel, argument, builtin, findings);
        }
    }
    position_width(kernel, findings);
}

/// Number of components of `ty`, if it is an unsigned integer type that the GPU supplies.
fn width(ty: &str) -> Option<usize> {
    let bare = ty.trim_start_matches("metal::");
    match bare {
        "uint" | "ushort" | "uint32_t" | "uint16_t" | "unsigned" | "unsigned int" | "unsigned short" => {
            return Some(1);
        }
        _ => {}
    }
    let compact: String = bare.chars().filter(|c| !c.is_whitespace()).collect();
    (2..=3).find(|n| {
        ["uint", "ushort"].iter().any(|t| compact == format!("{t}{n}") || compact == format!("vec<{t},{n}>"))
    })
}

fn builtin_type(kernel: &Kernel, argument: &Argument, builtin: Builtin, findings: &mut Vec<Finding>) {
    let (name, ty, line) = (&argument.name, &argument.ty, argument.line);
    let attribute = builtin.attribute();
    if argument.passing != Passing::Value {
        let reason = format!("`{name}` [[{attribute}]] must be passed by value, not by pointer or reference");
        findings.push(about(kernel, line, "builtin-by-value", reason));
        return;
    }
    let allowed = if builtin.components() == 3 {
        "uint or ushort, or a vector of 2 or 3 of them"
    } else {
        "uint or ushort"
    };
    if width(ty).is_none_or(|n| n > builtin.components()) {
        let reason = format!("type `{ty}` is not valid for `{name}` [[{attribute}]]: use {allowed}");
        findings.push(about(kernel, line, "builtin-type", reason));
    }
}

/// All positions and sizes of a kernel are scalars, or vectors of one width.
fn position_width(kernel: &Kernel, findings: &mut Vec<Finding>) {
    let mut first: Option<(&Argument, usize)> = None;
    for argument in &kernel.arguments {
        let Role::Builtin(builtin) = argument.role else { continue };
        let (3, Some(width)) = (builtin.components(), width(&argument.ty)) else { continue };
        match first {
            Some((other, expected)) if expected != width => {
                let reason = format!(
                    "`{}` is `{}` and {} is `{}`: positions and sizes must all be scalars, or all be vectors of one \
                     width. Use [[thread_index_in_threadgroup]] for a scalar, or one type for both",
                    other.name, other.ty, argument, argument.ty
                );
                findings.push(about(kernel, argument.line, "position-width", reason));
            }
            Some(_) => {}
            None => first = Some((argument, width)),
        }
    }
}

/// An argument has one role, and every attribute once.
fn combined(kernel: &Kernel, argument: &Argument, findings: &mut Vec<Finding>) {
    let names: Vec<&str> = argument.attributes.iter().map(|(name, _)| name.as_str()).collect();
    for (index, name) in names.iter().enumerate() {
        if names[..index].contains(name) {
            let reason = format!("`{}` has [[{name}]] twice", argument.name);
            findings.push(about(kernel, argument.line, "attribute-twice", reason));
        }
    }
    let mut roles = names.clone();
    roles.retain(|name| *name != "function_constant");
    roles.dedup();
    if roles.len() > 1 {
        let reason =
            format!("`{}` has the attributes [[{}]]: use one", argument.name, roles.join("]] and [["));
        findings.push(about(kernel, argument.line, "one-role", reason));
    }
}
