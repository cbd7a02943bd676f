//! Names the GPU backends that this build contains, so that the code says `cfg(metal)`, `cfg(mps)` and `cfg(cuda)`.
//!
//! Features only say what is wanted; a backend is compiled where its system is one that has such GPUs. The tests' harness in
//! `crates/softmetal` has a build script of its own that turns both on for a software device.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-check-cfg=cfg(cuda)");
    println!("cargo:rustc-check-cfg=cfg(metal)");
    println!("cargo:rustc-check-cfg=cfg(mps)");
    println!("cargo:rustc-check-cfg=cfg(softmetal)");
    // Tests look for their files here, whoever compiles them.
    println!("cargo:rustc-env=METAL_CANDLE_ROOT={}", std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default());
    let on = |name: &str| std::env::var_os(name).is_some();
    let apple = std::env::var("CARGO_CFG_TARGET_VENDOR").is_ok_and(|vendor| vendor == "apple");
    let system = std::env::var("CARGO_CFG_TARGET_OS").unwrap_or_default();
    if matches!(system.as_str(), "linux" | "windows") && on("CARGO_FEATURE_CUDA") {
        println!("cargo:rustc-cfg=cuda");
    }
    if apple && on("CARGO_FEATURE_CUSTOM_METAL") {
        println!("cargo:rustc-cfg=metal");
        if on("CARGO_FEATURE_MPS") {
            println!("cargo:rustc-cfg=mps");
        }
    }
}
