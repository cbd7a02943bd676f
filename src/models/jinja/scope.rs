//! Variables: scopes within scopes.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use super::limits;
use super::value::Value;

/// The variables of a block, and the scope around it.
#[derive(Default)]
pub(super) struct Scope {
    variables: RefCell<HashMap<String, Value>>,
    parent: Option<Rc<Scope>>,
}

impl Scope {
    pub(super) fn inside(parent: &Rc<Self>) -> Rc<Self> {
        Rc::new(Self { variables: RefCell::default(), parent: Some(parent.clone()) })
    }

    pub(super) fn set(&self, name: &str, value: Value) {
        limits::charge(name.len() / 64);
        self.variables.borrow_mut().insert(name.to_owned(), value);
    }

    pub(super) fn get(&self, name: &str) -> Option<Value> {
        let mut scope = self;
        let mut scopes = 1;
        let found = loop {
            if let Some(value) = scope.variables.borrow().get(name) {
                break Some(value.clone());
            }
            match scope.parent.as_deref() {
                Some(parent) => scope = parent,
                None => break None,
            }
            scopes += 1;
        };
        limits::charge(scopes * (1 + name.len() / 8) / 8);
        found
    }

    /// Empties the scope, so that a macro in it, which refers to the scope, does not keep itself alive.
    pub(super) fn clear(&self) {
        self.variables.borrow_mut().clear();
    }
}
