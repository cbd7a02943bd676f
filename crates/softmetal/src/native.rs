//! Kernels written in Rust, for tests that are about buffers and order and not about kernels.
//!
//! `newDefaultLibrary` finds them by name, as it finds an application's own on a Mac.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::program::{Launch, LaunchFault, Program};

type Kernels = HashMap<String, Arc<dyn Program>>;

static KERNELS: Mutex<Option<Kernels>> = Mutex::new(None);

struct Native<F>(F);

impl<F: Fn(&mut Launch) -> Result<(), LaunchFault> + Send + Sync> Program for Native<F> {
    fn run(&self, launch: &mut Launch) -> Result<(), LaunchFault> {
        (self.0)(launch)
    }
}

/// Adds a kernel to the default library; one of the same name is replaced.
pub fn define(name: &str, kernel: impl Fn(&mut Launch) -> Result<(), LaunchFault> + Send + Sync + 'static) {
    let mut kernels = KERNELS.lock().unwrap_or_else(PoisonError::into_inner);
    kernels.get_or_insert_default().insert(name.to_owned(), Arc::new(Native(kernel)));
}

/// The kernels of the default library.
pub(crate) fn find(name: &str) -> Option<Arc<dyn Program>> {
    let kernels = KERNELS.lock().unwrap_or_else(PoisonError::into_inner);
    kernels.as_ref().and_then(|kernels| kernels.get(name).cloned())
}

/// Their names, sorted.
pub(crate) fn names() -> Vec<String> {
    let kernels = KERNELS.lock().unwrap_or_else(PoisonError::into_inner);
    let mut names: Vec<String> = kernels.iter().flat_map(|kernels| kernels.keys().cloned()).collect();
    names.sort();
    names
}
