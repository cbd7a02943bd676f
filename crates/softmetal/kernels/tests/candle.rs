//! candle's own libraries: all are checked, and some kernels of each kind are run.

mod harness;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock, Mutex};

use harness::*;
use softmetal_kernels::{CompileOptions, Library, Pipeline};

/// Source of candle-metal-kernels 0.11.1, where cargo has fetched it.
fn folder() -> Option<PathBuf> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".cargo")))?;
    let registries = std::fs::read_dir(home.join("registry/src")).ok()?;
    let mut folders =
        registries.flatten().map(|r| r.path().join("candle-metal-kernels-0.11.1/src/metal_src"));
    folders.find(|f| f.is_dir())
}

/// The library of file `name`; compiled once per test run. `None` after a line that says what is skipped.
fn candle(name: &str) -> Option<Arc<Library>> {
    static LIBRARIES: LazyLock<Mutex<HashMap<String, Arc<Library>>>> = LazyLock::new(Mutex::default);
    let Some(folder) = folder() else {
        eprintln!("SKIPPED {name}: candle-metal-kernels 0.11.1 is not in cargo's registry");
        return None;
    };
    if let Some(library) = LIBRARIES.lock().unwrap().get(name) {
        return Some(library.clone());
    }
    let source = std::fs::read_to_string(folder.join(name)).unwrap();
    let options = CompileOptions { name: name.to_string(), ..options() };
    let library =
        Library::from_source(&source, &options).unwrap_or_else(|e| panic!("{name}: {e}\n{}", e.details));
    LIBRARIES.lock().unwrap().insert(name.to_string(), library.clone());
    Some(library)
}

#[test]
fn all_libraries_pass_the_check() {
    let Some(folder) = folder() else {
        eprintln!(
            "SKIPPED all_libraries_pass_the_check: candle-metal-kernels 0.11.1 is not in cargo's registry"
        );
        return;
    };
    let mut kernels = 0;
    for file in std::fs::read_dir(folder).unwrap().flatten() {
        let name = file.file_name().into_string().unwrap();
        if name != "utils.metal" {
            let start = std::time::Instant::now();
            let library = candle(&name).unwrap();
            println!(
                "{name}: {} kernels, {:.2} s",
                library.function_names().len(),
                start.elapsed().as_secs_f64()
            );
            kernels += library.function_names().len();
        }
    }
    assert_eq!(kernels, 1734);
}

fn compiled(library: &Library, name: &str, constants: &[(u32, &[u8])]) -> Arc<Pipeline> {
    let start = std::time::Instant::now();
    let p = pipeline(library, name, constants);
    println!("{name}: {:.2} s", start.elapsed().as_secs_f64());
    p
}
