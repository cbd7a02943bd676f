//! Limits of a template: its length, its steps, the bytes that it builds and the nesting of its values.
//!
//! A template comes with a model, from the network. What it can make large is charged here before it is made, so
//! that a rendering ends, fits in memory, and stops when the caller asks for it. The state is the thread's, because
//! most operations on values are plain functions.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Result, TemplateError};

/// Maximum length of a template, in bytes. The longest ones of known models have 40 KB.
pub(super) const MAX_SOURCE: usize = 1 << 20;
/// Maximum number of operators, filters and attributes in one tag, as the tree of a chain is as deep as it is long.
pub(super) const MAX_CHAIN: usize = 1000;
/// Chains longer than this are evaluated on a thread with a large stack.
pub(super) const LONG_CHAIN: usize = 64;
/// Maximum number of digits of a number in a template.
pub(super) const MAX_DIGITS: usize = 4300;
/// Maximum number of steps of a rendering. A step is a statement, an expression, or 32 bytes of text that an
/// operation reads. A chat of 1000 messages takes about 200,000. Tests, which are not optimized, have fewer.
pub(super) const MAX_STEPS: u64 = if cfg!(test) { 2_000_000 } else { 10_000_000 };
/// Maximum number of bytes of all values that a rendering builds.
pub(super) const MAX_BUILT: usize = 512 << 20;
/// Maximum length of one text, in bytes.
pub(super) const MAX_TEXT: usize = 32 << 20;
/// Maximum number of items of one list.
pub(super) const MAX_ITEMS: usize = 1 << 20;
/// Maximum depth of lists and objects in one another, because comparing, hashing and dropping values recurse.
pub(super) const MAX_NESTING: usize = 256;
/// Maximum width and precision of a formatted value. Larger widths than this are refused, as no chat needs them.
pub(super) const MAX_WIDTH: usize = 10_000;
/// Maximum length of a format of `strftime_now`, in bytes.
pub(super) const MAX_TIME_FORMAT: usize = 1000;

/// Number of steps between two looks at the caller's flag.
const CHECK_INTERVAL: u64 = 1 << 12;
/// Bytes that a value takes beside its text.
pub(super) const VALUE_BYTES: usize = 64;

#[derive(Default)]
struct Budget {
    steps: Cell<u64>,
    next_check: Cell<u64>,
    built: Cell<usize>,
    /// The error of an operation that could not return it. The next step returns it.
    pending: RefCell<Option<String>>,
    stop: RefCell<Option<Arc<AtomicBool>>>,
}

thread_local! {
    static BUDGET: Budget = Budget::default();
}

/// Begins a rendering on this thread, which fails once `stop` is set.
pub(super) fn begin(stop: Option<Arc<AtomicBool>>) {
    BUDGET.with(|budget| {
        budget.steps.set(0);
        budget.next_check.set(0);
        budget.built.set(0);
        budget.pending.replace(None);
        budget.stop.replace(stop);
    });
}

/// Charges steps. Fails if there are too many, if the caller asked to stop, and if an operation before has failed
/// without saying so.
pub(super) fn spend(steps: usize) -> Result<()> {
    BUDGET.with(|budget| {
        let spent = budget.steps.get().saturating_add(steps as u64);
        budget.steps.set(spent);
        if spent < budget.next_check.get() {
            return Ok(());
        }
        budget.check(spent)
    })
}

impl Budget {
    #[cold]
    fn check(&self, spent: u64) -> Result<()> {
        if let Some(message) = &*self.pending.borrow() {
            return Err(TemplateError::new(message.clone()));
        }
        if spent > MAX_STEPS {
            return Err(TemplateError::new(format!(
                "the template takes more than {MAX_STEPS} steps; it may not come to an end"
            )));
        }
        if self.stop.borrow().as_ref().is_some_and(|stop| stop.load(Ordering::Relaxed)) {
            return Err(TemplateError::new("the rendering was interrupted"));
        }
        self.next_check.set((spent + CHECK_INTERVAL).min(MAX_STEPS + 1));
        Ok(())
    }

    /// Makes the next step fail.
    fn fail_later(&self, message: String) {
        self.pending.borrow_mut().get_or_insert(message);
        self.next_check.set(0);
    }
}

/// Charges bytes that are about to be built.
pub(super) fn build(bytes: usize) -> Result<()> {
    BUDGET.with(|budget| {
        let built = budget.built.get().saturating_add(bytes);
        if built > MAX_BUILT {
            return Err(TemplateError::new(too_large()));
        }
        budget.built.set(built);
        Ok(())
    })
}

/// Charges bytes that were built. If there are too many, the next step fails.
pub(super) fn built(bytes: usize) {
    BUDGET.with(|budget| {
        let built = budget.built.get().saturating_add(bytes);
        budget.built.set(built);
        if built > MAX_BUILT {
            budget.fail_later(too_large());
        }
    });
}

fn too_large() -> String {
    format!("the template builds values of more than {MAX_BUILT} bytes")
}

/// Charges the items of a list that is about to be built.
pub(super) fn items(count: usize) -> Result<()> {
    if count > MAX_ITEMS {
        return Err(TemplateError::new(format!("a list has {count} items; the limit is {MAX_ITEMS}")));
    }
    spend(count / 8)?;
    // The list that is built from the items is charged by itself.
    build(count * size_of::<usize>())
}

/// Fails for a length of text that no chat has.
pub(super) fn text(length: usize) -> Result<()> {
    if length > MAX_TEXT {
        return Err(TemplateError::new(format!(
            "a text has {length} bytes; the limit of templates is {MAX_TEXT}"
        )));
    }
    Ok(())
}

/// Returns the error for values that are nested too deeply, and makes the next step fail.
pub(super) fn too_deep() -> TemplateError {
    let message = format!("lists and objects are nested in one another more than {MAX_NESTING} deep");
    BUDGET.with(|budget| budget.fail_later(message.clone()));
    TemplateError::new(message)
}
