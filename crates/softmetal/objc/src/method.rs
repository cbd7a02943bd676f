//! What objc2 asks about methods when it verifies signatures in debug builds.

use std::ffi::{CString, c_char, c_uint, c_void};
use std::ptr::null_mut;

use crate::class::{Imp, Method, Sel, runtime};

unsafe extern "C" {
    fn malloc(bytes: usize) -> *mut c_void;
}

/// The single types of a method's encoding, the result first. Offsets between them are left out.
fn split(types: &str) -> Vec<&str> {
    let bytes = types.as_bytes();
    let mut parts = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let start = at;
        while at < bytes.len() && b"rnNoORVA^".contains(&bytes[at]) {
            at += 1;
        }
        at = end_of_type(bytes, at);
        parts.push(&types[start..at]);
        while at < bytes.len() && bytes[at].is_ascii_digit() {
            at += 1;
        }
    }
    parts
}

/// Where the type that begins at `at` ends.
fn end_of_type(bytes: &[u8], at: usize) -> usize {
    let close = match bytes.get(at) {
        Some(b'{') => b'}',
        Some(b'(') => b')',
        Some(b'[') => b']',
        Some(b'@') if bytes.get(at + 1) == Some(&b'?') => return at + 2,
        _ => return (at + 1).min(bytes.len()),
    };
    let mut depth = 0;
    for (index, &byte) in bytes.iter().enumerate().skip(at) {
        if byte == bytes[at] {
            depth += 1;
        } else if byte == close {
            depth -= 1;
            if depth == 0 {
                return index + 1;
            }
        }
    }
    bytes.len()
}

/// # Safety
/// The pointer came from `class_getInstanceMethod` or `class_getClassMethod` and is not null.
unsafe fn method(method: *const c_void) -> &'static Method {
    // SAFETY: methods are never freed.
    unsafe { &*method.cast() }
}

/// A copy of a part that the caller frees with `free`.
fn part(method: &Method, index: usize) -> *mut c_char {
    let types = method.types.to_str().unwrap_or("");
    let Some(part) = split(types).get(index).and_then(|part| CString::new(*part).ok()) else {
        return null_mut();
    };
    let bytes = part.as_bytes_with_nul();
    // SAFETY: the copy has the length of the bytes.
    unsafe {
        let copy: *mut c_char = malloc(bytes.len()).cast();
        if !copy.is_null() {
            copy.copy_from_nonoverlapping(bytes.as_ptr().cast(), bytes.len());
        }
        copy
    }
}

runtime! {
    fn method_getName(of: *const c_void) -> Sel { method(of).selector }
    fn method_getImplementation(of: *const c_void) -> Imp { method(of).code }
    fn method_getTypeEncoding(of: *const c_void) -> *const c_char { method(of).types.as_ptr() }
    fn method_getNumberOfArguments(of: *const c_void) -> c_uint {
        split(method(of).types.to_str().unwrap_or("")).len().saturating_sub(1) as c_uint
    }
    fn method_copyReturnType(of: *const c_void) -> *mut c_char { part(method(of), 0) }
    fn method_copyArgumentType(of: *const c_void, index: c_uint) -> *mut c_char {
        part(method(of), index as usize + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn encodings_are_split_at_every_nesting() {
        assert_eq!(split("v24@0:8@?16"), ["v", "@", ":", "@?"]);
        assert_eq!(
            split("@@:{MTLSize=QQQ}r^v[4{a=(b=i)}]"),
            ["@", "@", ":", "{MTLSize=QQQ}", "r^v", "[4{a=(b=i)}]"]
        );
        assert_eq!(split("B@:Q"), ["B", "@", ":", "Q"]);
        assert!(split("").is_empty());
        assert_eq!(split("{open"), ["{open"]);
    }
}
