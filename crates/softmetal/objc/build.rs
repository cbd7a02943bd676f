//! Empty archives under the names that objc2's crates link: the symbols come from this crate.

use std::path::Path;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let Some(folder) = std::env::var_os("OUT_DIR") else { panic!("cargo sets OUT_DIR") };
    for library in ["objc", "gnustep-base", "dispatch", "BlocksRuntime"] {
        let path = Path::new(&folder).join(format!("lib{library}.a"));
        if let Err(error) = std::fs::write(&path, "!<arch>\n") {
            panic!("{}: cannot write: {error}", path.display());
        }
    }
    println!("cargo:rustc-link-search=native={}", Path::new(&folder).display());
}
