//! Turns the Apple backends on, over the software device.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let suite = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    println!("cargo:rustc-env=METAL_CANDLE_ROOT={suite}/../../..");
    println!("cargo:rustc-check-cfg=cfg(cuda)");
    for name in ["metal", "mps", "softmetal"] {
        println!("cargo:rustc-check-cfg=cfg({name})");
        println!("cargo:rustc-cfg={name}");
    }
}
