//! A call before every access to memory, put into optimised LLVM assembly.
//!
//! clang's own coverage (`-fsanitize-coverage=trace-loads`) leaves out `memcpy` and accesses of more than 16
//! bytes, so the text of the assembly is changed instead. Accesses through a local variable or a global's own
//! name are left alone. All alignments of accesses become 1: shipped Metal kernels use vectors at half their
//! alignment, which GPUs accept and SSE instructions do not.

use std::collections::HashSet;
use std::fmt::Write;

/// Bodies of what `prelude/abi.h` declares: calls through the table of hooks.
const HOOKS: [(&str, &str, usize); 5] = [
    ("softmetal_load", "void (ptr, i64)", 0),
    ("softmetal_store", "void (ptr, i64)", 8),
    ("softmetal_simd", "void (ptr, ptr, ptr)", 16),
    ("softmetal_barrier", "void (ptr, i32)", 24),
    ("softmetal_lane", "i32 ()", 32),
];

/// The assembly with its accesses announced.
///
/// # Errors
/// The line of an access whose size is not known.
pub(crate) fn instrument(assembly: &str) -> Result<String, String> {
    let mut out = String::with_capacity(assembly.len() * 3 / 2);
    let mut local = HashSet::new();
    for line in assembly.lines() {
        if line.starts_with("define ") {
            local.clear();
        }
        if line.starts_with("declare ") && HOOKS.iter().any(|(name, ..)| line.contains(&format!("@{name}(")))
        {
            continue;
        }
        if let Some(access) = parse(line) {
            for operand in access.operands {
                announce(&mut out, &operand, &local)
                    .map_err(|()| format!("size of an access: {}", line.trim()))?;
            }
            unaligned(&mut out, line);
            continue;
        }
        if let Some(name) = local_address(line, &local) {
            local.insert(name.to_string());
        }
        out.push_str(line);
        out.push('\n');
    }
    for (name, ty, offset) in HOOKS {
        let (result, parameters) = ty.split_once(' ').unwrap_or((ty, "()"));
        let parameters: Vec<_> =
            parameters.trim_matches(['(', ')']).split(", ").filter(|p| !p.is_empty()).collect();
        let list: Vec<_> = parameters.iter().enumerate().map(|(i, p)| format!("{p} %a{i}")).collect();
        let list = list.join(", ");
        let _ = writeln!(out, "define internal {result} @{name}({list}) noinline {{");
        let _ = writeln!(out, "  %at = getelementptr i8, ptr @softmetal_hooks, i64 {offset}");
        let _ = writeln!(out, "  %hook = load ptr, ptr %at, align 8");
        let (value, back) =
            if result == "void" { ("", "ret void".into()) } else { ("%v = ", format!("ret {result} %v")) };
        let _ = writeln!(out, "  {value}call {result} %hook({list})\n  {back}\n}}");
    }
    Ok(out)
}

struct Operand<'a> {
    pointer: &'a str,
    size: Size<'a>,
    write: bool,
}

enum Size<'a> {
    Of(&'a str),
    Value(&'a str),
}

struct Access<'a> {
    operands: Vec<Operand<'a>>,
}

fn parse(line: &str) -> Option<Access<'_>> {
    let body = line.strip_prefix("  ")?;
    let body = match body.split_once(" = ") {
        Some((name, rest)) if name.starts_with('%') && !name.contains(' ') => rest,
        _ => body,
    };
    let one =
        |pointer, ty, write| Some(Access { operands: vec![Operand { pointer, size: Size::Of(ty), write }] });
    if let Some(rest) = body.strip_prefix("load ") {
        let parts = split(qualified(rest));
        return one(parts.get(1)?.strip_prefix("ptr ")?, parts[0], false);
    }
    if let Some(rest) = body.strip_prefix("store ") {
        let parts = split(qualified(rest));
        return one(parts.get(1)?.strip_prefix("ptr ")?, first_type(parts[0]), true);
    }
    let call = body.find("call void @llvm.mem")?;
    let open = call + body[call..].find('(')?;
    let close = body.rfind(')')?;
    let arguments = split(&body[open + 1..close]);
    let last = |i: usize| arguments.get(i).and_then(|a| a.rsplit(' ').next());
    let pointer = |i: usize| arguments.get(i).map(|a| constant_or_name(a));
    let size = |i| Some(Size::Value(last(i)?));
    let mut operands = vec![Operand { pointer: pointer(0)?, size: size(2)?, write: true }];
    if !body[call..].starts_with("call void @llvm.memset") {
        operands.push(Operand { pointer: pointer(1)?, size: size(2)?, write: false });
    }
    Some(Access { operands })
}

fn qualified(rest: &str) -> &str {
    let rest = rest.strip_prefix("atomic ").unwrap_or(rest);
    rest.strip_prefix("volatile ").unwrap_or(rest)
}

/// The pointer at the end of `ptr noundef align 4 %x`.
fn constant_or_name(argument: &str) -> &str {
    let at = argument.find(['%', '@']).unwrap_or(0);
    // A constant expression begins before the global that it names.
    match argument.find("getelementptr") {
        Some(constant) if constant < at => &argument[constant..],
        _ => &argument[at..],
    }
}

/// Parts between the commas that no bracket holds.
fn split(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0i32, 0);
    for (index, byte) in text.bytes().enumerate() {
        match byte {
            b'(' | b'<' | b'[' | b'{' => depth += 1,
            b')' | b'>' | b']' | b'}' => depth -= 1,
            b',' if depth == 0 => {
                parts.push(text[start..index].trim());
                start = index + 1;
            }
            _ => {}
        }
    }
    parts.push(text[start..].trim());
    parts
}

/// The type at the beginning of `<2 x float> %v`.
fn first_type(text: &str) -> &str {
    let mut depth = 0i32;
    for (index, byte) in text.bytes().enumerate() {
        match byte {
            b'(' | b'<' | b'[' | b'{' => depth += 1,
            b')' | b'>' | b']' | b'}' => depth -= 1,
            b' ' if depth == 0 => return &text[..index],
            _ => {}
        }
    }
    text
}

/// Bytes of a first-class type; structures as LLVM lays them out.
fn size_of(ty: &str) -> Option<u64> {
    layout(ty).map(|(size, _)| size)
}

fn layout(ty: &str) -> Option<(u64, u64)> {
    let scalar = match ty {
        "half" | "bfloat" => 2,
        "float" => 4,
        "double" | "ptr" => 8,
        _ => match ty.strip_prefix('i').map(str::parse::<u64>) {
            Some(Ok(bits)) => bits.div_ceil(8).next_power_of_two(),
            _ => 0,
        },
    };
    if scalar > 0 {
        return Some((scalar, scalar));
    }
    if let Some(inner) = ty.strip_prefix('<').or_else(|| ty.strip_prefix('[')) {
        let (count, element) = inner[..inner.len() - 1].split_once(" x ")?;
        let (size, align) = layout(element)?;
        return Some((count.parse::<u64>().ok()? * size, align));
    }
    let fields = ty.strip_prefix('{')?.strip_suffix('}')?;
    let (mut at, mut most) = (0u64, 1);
    for field in split(fields) {
        let (size, align) = layout(field)?;
        at = at.next_multiple_of(align) + size;
        most = most.max(align);
    }
    Some((at.next_multiple_of(most), most))
}

fn announce(out: &mut String, operand: &Operand<'_>, local: &HashSet<String>) -> Result<(), ()> {
    if !operand.pointer.starts_with('%') || local.contains(operand.pointer) {
        return Ok(());
    }
    let hook = if operand.write { "softmetal_store" } else { "softmetal_load" };
    let size = match operand.size {
        Size::Of(ty) => size_of(ty).ok_or(())?.to_string(),
        Size::Value(value) => value.to_string(),
    };
    let _ = writeln!(out, "  call void @{hook}(ptr {}, i64 {size})", operand.pointer);
    Ok(())
}

/// The name that `line` gives to the address of a local variable or of a part of one.
fn local_address<'a>(line: &'a str, local: &HashSet<String>) -> Option<&'a str> {
    let (name, value) = line.strip_prefix("  ")?.split_once(" = ")?;
    let base = || value.split(", ptr ").nth(1)?.split(',').next();
    let is_local = value.starts_with("alloca ")
        || (value.starts_with("getelementptr ") && base().is_some_and(|b| local.contains(b)));
    is_local.then_some(name)
}

fn unaligned(out: &mut String, line: &str) {
    let mut rest = line;
    while let Some(at) = rest.find("align ") {
        let digits = rest[at + 6..].bytes().take_while(u8::is_ascii_digit).count();
        out.push_str(&rest[..at]);
        out.push_str("align 1");
        rest = &rest[at + 6 + digits..];
    }
    out.push_str(rest);
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(assembly: &str) -> String {
        let text = instrument(assembly).unwrap();
        text[..text.find("define internal").unwrap()].to_string()
    }

    #[test]
    fn accesses_are_announced_and_unaligned() {
        assert_eq!(
            body("  %1 = load <4 x float>, ptr %p, align 16, !tbaa !5\n"),
            "  call void @softmetal_load(ptr %p, i64 16)\n  %1 = load <4 x float>, ptr %p, align 1, !tbaa !5\n"
        );
        assert_eq!(
            body("  store volatile { i32, i64 } %v, ptr %p, align 8\n"),
            "  call void @softmetal_store(ptr %p, i64 16)\n  store volatile { i32, i64 } %v, ptr %p, align 1\n"
        );
        assert_eq!(
            body(
                "  tail call void @llvm.memcpy.p0.p0.i64(ptr align 4 %d, ptr noundef align 4 %s, i64 %n, i1 false)\n"
            ),
            "  call void @softmetal_store(ptr %d, i64 %n)\n  call void @softmetal_load(ptr %s, i64 %n)\n  \
             tail call void @llvm.memcpy.p0.p0.i64(ptr align 1 %d, ptr noundef align 1 %s, i64 %n, i1 false)\n"
        );
    }

    #[test]
    fn locals_and_named_globals_are_not() {
        let text = "define void @f() {\n  %a = alloca [4 x i32], align 16\n  \
                    %b = getelementptr inbounds i8, ptr %a, i64 4\n  store i32 0, ptr %b, align 4\n  \
                    %c = load i32, ptr @g, align 4\n}\n";
        assert!(!body(text).contains("call"));
    }
}
