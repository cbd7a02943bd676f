//! Turns the Apple backends on, over the software device.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    for name in ["metal", "mps", "softmetal"] {
        println!("cargo:rustc-check-cfg=cfg({name})");
        println!("cargo:rustc-cfg={name}");
    }
}
