//! The values of templates, which behave as Python's.

use std::cell::RefCell;
use std::cmp::Ordering;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use num_bigint::BigInt;
use num_traits::{FromPrimitive, Zero};

use super::ast::{For, MacroNode};
use super::scope::Scope;
use super::{Result, TemplateError, limits};

/// A value of a template. Lists, tuples and objects cannot change, as in Jinja2's immutable sandbox.
#[derive(Clone)]
pub(super) enum Value {
    /// A name or attribute that is not there, with the message of its use.
    Undefined(Rc<str>),
    None,
    Bool(bool),
    Int(BigInt),
    Float(f64),
    Str(Text),
    List(Rc<Sequence>),
    Tuple(Rc<Sequence>),
    /// A group of `groupby`: a tuple of the key and its items, which have names.
    Group(Rc<Sequence>),
    Dict(Rc<Dict>),
    /// The keys, values or items of an object.
    View(View, Rc<Dict>),
    Range(Rc<Range>),
    Iterator(Rc<RefCell<Items>>),
    Namespace(Rc<RefCell<Dict>>),
    Loop(Rc<RefCell<Loop>>),
    Macro(Rc<Macro>),
    /// A method with the value that it belongs to.
    Method(Rc<(Value, String)>),
    Function(&'static str),
    /// Separator, and whether the joiner was called before.
    Joiner(Rc<(Value, RefCell<bool>)>),
    /// Values, and the position of the current one.
    Cycler(Rc<(Sequence, RefCell<usize>)>),
}

/// Text, which `safe` and `escape` mark as HTML.
#[derive(Clone)]
pub(super) struct Text {
    pub(super) text: Rc<str>,
    pub(super) is_markup: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum View {
    Keys,
    Values,
    Items,
}

#[derive(PartialEq, Eq)]
pub(super) struct Range {
    pub(super) start: i64,
    pub(super) stop: i64,
    pub(super) step: i64,
}

impl Range {
    pub(super) fn len(&self) -> usize {
        let (start, stop, step) = (i128::from(self.start), i128::from(self.stop), i128::from(self.step));
        let length =
            if step > 0 { (stop - start + step - 1) / step } else { (start - stop - step - 1) / -step };
        usize::try_from(length.max(0)).unwrap_or(usize::MAX)
    }

    pub(super) fn get(&self, index: usize) -> Value {
        Value::Int(BigInt::from(i128::from(self.start) + i128::from(self.step) * index as i128))
    }
}

/// The items of a list or tuple, which are never nested deeper than [`limits::MAX_NESTING`].
#[derive(Default)]
pub(super) struct Sequence {
    items: Vec<Value>,
    depth: usize,
}

impl Sequence {
    pub(super) fn new(items: Vec<Value>) -> Self {
        limits::built((items.len() + 1) * limits::VALUE_BYTES);
        let depth = items.iter().map(|item| item.depth() + 1).max().unwrap_or(0);
        if depth > limits::MAX_NESTING {
            limits::too_deep();
            return Self::default();
        }
        Self { items, depth }
    }
}

impl std::ops::Deref for Sequence {
    type Target = Vec<Value>;

    fn deref(&self) -> &Vec<Value> {
        &self.items
    }
}

/// What an iterator still has, and the error that ends it.
#[derive(Default)]
pub(super) struct Items {
    pub(super) items: VecDeque<Value>,
    pub(super) error: Option<TemplateError>,
    /// Depth of the items in one another, which is measured where a template can store the iterator.
    pub(super) depth: usize,
}

impl Items {
    /// The items with their depth, which an iterator that a template can store needs.
    pub(super) fn measured(mut self) -> Self {
        self.depth = self.items.iter().map(|item| item.depth() + 1).max().unwrap_or(0);
        limits::built(self.items.len() * limits::VALUE_BYTES);
        if self.depth > limits::MAX_NESTING {
            limits::too_deep();
            return Self::default();
        }
        self
    }

    pub(super) fn next(&mut self) -> Result<Option<Value>> {
        match (self.items.pop_front(), self.error.take()) {
            (Some(item), error) => {
                self.error = error;
                Ok(Some(item))
            }
            (None, Some(error)) => Err(error),
            (None, None) => Ok(None),
        }
    }
}

/// A running loop, which templates see as `loop`.
pub(super) struct Loop {
    pub(super) node: Arc<For>,
    /// Scope around the loop.
    pub(super) scope: Rc<Scope>,
    pub(super) source: Rc<RefCell<Items>>,
    /// True if the loop's condition still has to choose among the items.
    pub(super) is_filtered: bool,
    /// The item after the current one, if it was looked at.
    pub(super) after: Option<Option<Value>>,
    pub(super) before: Option<Value>,
    pub(super) current: Option<Value>,
    /// Number of items that were taken.
    pub(super) index: usize,
    pub(super) length: Option<usize>,
    pub(super) depth0: usize,
    pub(super) changed: Option<Vec<Value>>,
}

pub(super) struct Macro {
    pub(super) node: Arc<MacroNode>,
    pub(super) scope: Rc<Scope>,
}

/// An object, in the order of its insertions.
#[derive(Default, Clone)]
pub(super) struct Dict {
    entries: Vec<(Value, Value)>,
    index: HashMap<Key, usize>,
    depth: usize,
}

/// A key as Python hashes it: `1`, `1.0` and `true` are the same.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Key {
    None,
    Undefined,
    Int(BigInt),
    Float(u64),
    Str(Rc<str>),
    Tuple(Vec<Key>),
    Identity(usize),
}

impl Dict {
    pub(super) fn insert(&mut self, key: Value, value: Value) -> Result<()> {
        let depth = key.depth().max(value.depth()) + 1;
        if depth > limits::MAX_NESTING {
            return Err(limits::too_deep());
        }
        self.depth = self.depth.max(depth);
        match self.index.entry(key.hash_key()?) {
            std::collections::hash_map::Entry::Occupied(at) => self.entries[*at.get()].1 = value,
            std::collections::hash_map::Entry::Vacant(at) => {
                limits::built(2 * limits::VALUE_BYTES);
                at.insert(self.entries.len());
                self.entries.push((key, value));
            }
        }
        Ok(())
    }

    pub(super) fn get(&self, key: &Value) -> Result<Option<&Value>> {
        Ok(self.index.get(&key.hash_key()?).map(|at| &self.entries[*at].1))
    }

    pub(super) fn get_str(&self, key: &str) -> Option<&Value> {
        self.index.get(&Key::Str(key.into())).map(|at| &self.entries[*at].1)
    }

    pub(super) fn entries(&self) -> &[(Value, Value)] {
        &self.entries
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }
}

impl FromIterator<(Value, Value)> for Dict {
    /// Keys have to be hashable; others are left out.
    fn from_iter<I: IntoIterator<Item = (Value, Value)>>(items: I) -> Self {
        let mut dict = Self::default();
        for (key, value) in items {
            // Callers pass text, which is hashable.
            let _ = dict.insert(key, value);
        }
        dict
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        limits::built(text.len() + limits::VALUE_BYTES);
        Self::Str(Text { text: text.into(), is_markup: false })
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        limits::built(text.len() + limits::VALUE_BYTES);
        Self::Str(Text { text: text.into(), is_markup: false })
    }
}

impl From<usize> for Value {
    fn from(value: usize) -> Self {
        Self::Int(BigInt::from(value))
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl Value {
    pub(super) fn list(items: Vec<Self>) -> Self {
        Self::List(Rc::new(Sequence::new(items)))
    }

    pub(super) fn tuple(items: Vec<Self>) -> Self {
        Self::Tuple(Rc::new(Sequence::new(items)))
    }

    pub(super) fn iterator(items: impl IntoIterator<Item = Self>) -> Self {
        let items = Items { items: items.into_iter().collect(), ..Items::default() };
        Self::Iterator(Rc::new(RefCell::new(items.measured())))
    }

    pub(super) fn undefined(name: &str) -> Self {
        Self::Undefined(format!("{name} is undefined").into())
    }

    /// Name of the value's type in Python.
    pub(super) fn type_name(&self) -> &'static str {
        match self {
            Self::Undefined(_) => "Undefined",
            Self::None => "NoneType",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Float(_) => "float",
            Self::Str(text) if text.is_markup => "Markup",
            Self::Str(_) => "str",
            Self::List(_) => "list",
            Self::Tuple(_) | Self::Group(_) => "tuple",
            Self::Dict(_) => "dict",
            Self::View(View::Keys, _) => "dict_keys",
            Self::View(View::Values, _) => "dict_values",
            Self::View(View::Items, _) => "dict_items",
            Self::Range(_) => "range",
            Self::Iterator(_) => "iterator",
            Self::Namespace(_) => "Namespace",
            Self::Loop(_) => "LoopContext",
            Self::Macro(_) => "Macro",
            Self::Method(_) => "method",
            Self::Function(_) => "function",
            Self::Joiner(_) => "Joiner",
            Self::Cycler(_) => "Cycler",
        }
    }

    pub(super) fn as_str(&self) -> Option<&str> {
        match self {
            Self::Str(text) => Some(&text.text),
            _ => None,
        }
    }

    pub(super) fn as_items(&self) -> Option<&Rc<Sequence>> {
        match self {
            Self::List(items) | Self::Tuple(items) | Self::Group(items) => Some(items),
            _ => None,
        }
    }

    /// An integer, which a Boolean is too.
    pub(super) fn as_int(&self) -> Option<BigInt> {
        match self {
            Self::Int(value) => Some(value.clone()),
            Self::Bool(value) => Some(BigInt::from(u8::from(*value))),
            _ => None,
        }
    }

    /// Depth of the value's lists and objects in one another.
    pub(super) fn depth(&self) -> usize {
        match self {
            Self::List(items) | Self::Tuple(items) | Self::Group(items) => items.depth,
            Self::Dict(dict) | Self::View(_, dict) => dict.depth,
            Self::Iterator(items) => items.try_borrow().map_or(0, |items| items.depth),
            Self::Method(method) => method.0.depth() + 1,
            Self::Joiner(joiner) => joiner.0.depth() + 1,
            Self::Cycler(cycler) => cycler.0.depth,
            // The interpreter keeps namespaces, loops and the scopes of macros, and empties them one by one.
            _ => 0,
        }
    }

    /// Steps that an operation which reads the value takes.
    pub(super) fn cost(&self) -> usize {
        match self {
            Self::Str(text) => text.text.len() / 32,
            Self::List(items) | Self::Tuple(items) | Self::Group(items) => items.len() / 8,
            Self::Dict(dict) | Self::View(_, dict) => dict.len() / 8,
            Self::Int(value) => {
                let words = usize::try_from(value.bits() / 64).unwrap_or(usize::MAX);
                words.saturating_mul(words) / 64
            }
            _ => 0,
        }
    }

    fn is_number(&self) -> bool {
        matches!(self, Self::Bool(_) | Self::Int(_) | Self::Float(_))
    }

    pub(super) fn is_undefined(&self) -> bool {
        matches!(self, Self::Undefined(_))
    }

    /// Fails for an undefined value, with its message.
    pub(super) fn defined(&self) -> Result<()> {
        match self {
            Self::Undefined(message) => Err(TemplateError::new(&**message)),
            _ => Ok(()),
        }
    }

    pub(super) fn is_true(&self) -> bool {
        match self {
            Self::Undefined(_) | Self::None => false,
            Self::Bool(value) => *value,
            Self::Int(value) => !value.is_zero(),
            Self::Float(value) => *value != 0.0,
            Self::Loop(state) => state.borrow().length != Some(0),
            _ => self.len() != Some(0),
        }
    }

    /// Python's `len`, for what has one.
    pub(super) fn len(&self) -> Option<usize> {
        match self {
            Self::Undefined(_) => Some(0),
            Self::Str(text) => Some(text.text.chars().count()),
            Self::List(items) | Self::Tuple(items) | Self::Group(items) => Some(items.len()),
            Self::Dict(dict) | Self::View(_, dict) => Some(dict.len()),
            Self::Range(range) => Some(range.len()),
            _ => None,
        }
    }

    /// The items of a value that can be iterated. Iterators are left empty.
    pub(super) fn items(&self) -> Result<Vec<Self>> {
        match self {
            Self::Iterator(items) => limits::items(items.borrow().items.len())?,
            _ => limits::items(self.len().unwrap_or(0))?,
        }
        Ok(match self {
            Self::Undefined(_) => Vec::new(),
            Self::Str(text) => {
                text.text.chars().map(|c| Self::from(c.encode_utf8(&mut [0; 4]) as &str)).collect()
            }
            Self::List(items) | Self::Tuple(items) | Self::Group(items) => items.to_vec(),
            Self::Dict(dict) => dict.entries.iter().map(|(key, _)| key.clone()).collect(),
            Self::View(view, dict) => {
                let item = |(key, value): &(Self, Self)| match view {
                    View::Keys => key.clone(),
                    View::Values => value.clone(),
                    View::Items => Self::tuple(vec![key.clone(), value.clone()]),
                };
                dict.entries.iter().map(item).collect()
            }
            Self::Range(range) => (0..range.len()).map(|index| range.get(index)).collect(),
            Self::Iterator(items) => {
                let mut items = items.borrow_mut();
                let mut all = Vec::with_capacity(items.items.len());
                while let Some(item) = items.next()? {
                    all.push(item);
                }
                all
            }
            _ => return Err(TemplateError::new(format!("'{}' object is not iterable", self.type_name()))),
        })
    }

    fn hash_key(&self) -> Result<Key> {
        limits::spend(4 + if let Self::Str(_) = self { self.cost() } else { 0 })?;
        limits::build(limits::VALUE_BYTES)?;
        Ok(match self {
            Self::Undefined(_) => Key::Undefined,
            Self::None => Key::None,
            Self::Bool(value) => Key::Int(BigInt::from(u8::from(*value))),
            Self::Int(value) => Key::Int(value.clone()),
            Self::Float(value) => match BigInt::from_f64(*value) {
                Some(integer) if value.fract() == 0.0 => Key::Int(integer),
                _ => Key::Float(value.to_bits()),
            },
            Self::Str(text) => Key::Str(text.text.clone()),
            Self::Tuple(items) | Self::Group(items) => {
                Key::Tuple(items.iter().map(Self::hash_key).collect::<Result<_>>()?)
            }
            Self::Macro(node) => Key::Identity(Rc::as_ptr(node).addr()),
            Self::Namespace(namespace) => Key::Identity(Rc::as_ptr(namespace).addr()),
            Self::Iterator(items) => Key::Identity(Rc::as_ptr(items).addr()),
            _ => return Err(TemplateError::new(format!("unhashable type: '{}'", self.type_name()))),
        })
    }

    /// Python's `==`.
    pub(super) fn equals(&self, other: &Self) -> bool {
        // Lists can share their items, so that there are many more comparisons than values. Once the steps are used
        // up, the answer does not matter: the next step fails.
        if limits::spend(1).is_err() {
            return false;
        }
        match (self, other) {
            (Self::Undefined(_), Self::Undefined(_)) | (Self::None, Self::None) => true,
            (Self::Str(a), Self::Str(b)) => {
                a.text.len() == b.text.len() && limits::spend(self.cost()).is_ok() && a.text == b.text
            }
            (Self::List(a), Self::List(b)) => all_equal(a, b),
            (Self::Tuple(a) | Self::Group(a), Self::Tuple(b) | Self::Group(b)) => all_equal(a, b),
            (Self::Dict(a), Self::Dict(b)) => {
                let same = |(key, value): &(Self, Self)| matches!(b.get(key), Ok(Some(other)) if other.equals(value));
                a.len() == b.len() && a.entries.iter().all(same)
            }
            (Self::View(View::Keys, a), Self::View(View::Keys, b)) => {
                a.len() == b.len() && a.entries.iter().all(|(key, _)| matches!(b.get(key), Ok(Some(_))))
            }
            (Self::View(View::Items, a), Self::View(View::Items, b)) => {
                Self::Dict(a.clone()).equals(&Self::Dict(b.clone()))
            }
            (Self::Range(a), Self::Range(b)) => {
                let (long, length) = (a.len() > 1, a.len());
                length == b.len() && (length == 0 || a.start == b.start) && (!long || a.step == b.step)
            }
            (Self::Method(a), Self::Method(b)) => a.1 == b.1 && a.0.is_same(&b.0) == Some(true),
            _ if self.is_number() && other.is_number() => {
                self.compare_numbers(other) == Some(Ordering::Equal)
            }
            _ => self.is_same(other) == Some(true),
        }
    }

    /// Python's `is`. Returns `None` where the answer depends on what Python shares between equal values.
    pub(super) fn is_same(&self, other: &Self) -> Option<bool> {
        Some(match (self, other) {
            (Self::None, Self::None) => true,
            (Self::Bool(a), Self::Bool(b)) => a == b,
            (Self::List(a), Self::List(b)) => Rc::ptr_eq(a, b),
            (Self::Dict(a), Self::Dict(b)) => Rc::ptr_eq(a, b),
            (Self::Iterator(a), Self::Iterator(b)) => Rc::ptr_eq(a, b),
            (Self::Namespace(a), Self::Namespace(b)) => Rc::ptr_eq(a, b),
            (Self::Loop(a), Self::Loop(b)) => Rc::ptr_eq(a, b),
            (Self::Macro(a), Self::Macro(b)) => Rc::ptr_eq(a, b),
            (Self::Joiner(a), Self::Joiner(b)) => Rc::ptr_eq(a, b),
            (Self::Cycler(a), Self::Cycler(b)) => Rc::ptr_eq(a, b),
            (Self::Function(a), Self::Function(b)) => a == b,
            (Self::Str(a), Self::Str(b)) if Rc::ptr_eq(&a.text, &b.text) => true,
            (Self::Str(_), Self::Str(_))
            | (Self::Int(_), Self::Int(_))
            | (Self::Float(_), Self::Float(_))
            | (Self::Tuple(_), Self::Tuple(_)) => return if self.equals(other) { None } else { Some(false) },
            _ => false,
        })
    }

    /// Order of two numbers. `None` for others and for NaN.
    pub(super) fn compare_numbers(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Float(a), Self::Float(b)) => a.partial_cmp(b),
            (Self::Float(a), _) => compare_float(*a, &other.as_int()?),
            (_, Self::Float(b)) => compare_float(*b, &self.as_int()?).map(Ordering::reverse),
            _ => Some(self.as_int()?.cmp(&other.as_int()?)),
        }
    }

    /// Order of two values, for `<` and sorting. `Ok(None)` if either is NaN.
    pub(super) fn compare(&self, other: &Self, operator: &str) -> Result<Option<Ordering>> {
        limits::spend(1)?;
        match (self, other) {
            (Self::Str(a), Self::Str(b)) => {
                limits::spend(self.cost().min(other.cost()))?;
                return Ok(Some(a.text.cmp(&b.text)));
            }
            (Self::List(a), Self::List(b))
            | (Self::Tuple(a) | Self::Group(a), Self::Tuple(b) | Self::Group(b)) => {
                for (a, b) in a.iter().zip(b.iter()) {
                    if !a.equals(b) {
                        return a.compare(b, operator);
                    }
                }
                return Ok(Some(a.len().cmp(&b.len())));
            }
            _ => {}
        }
        if self.is_number() && other.is_number() {
            return Ok(self.compare_numbers(other));
        }
        self.defined()?;
        other.defined()?;
        Err(TemplateError::new(format!(
            "'{operator}' not supported between instances of '{}' and '{}'",
            self.type_name(),
            other.type_name()
        )))
    }

    /// Python's `in`.
    pub(super) fn contains(&self, item: &Self) -> Result<bool> {
        match self {
            Self::Str(text) => match item {
                Self::Str(part) => Ok(text.text.contains(&*part.text)),
                _ => Err(TemplateError::new(format!(
                    "'in <string>' requires string as left operand, not {}",
                    item.type_name()
                ))),
            },
            Self::Dict(dict) | Self::View(View::Keys, dict) => Ok(dict.get(item)?.is_some()),
            Self::Iterator(items) => {
                let mut items = items.borrow_mut();
                while let Some(next) = items.next()? {
                    limits::spend(1)?;
                    if next.equals(item) {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            Self::List(items) | Self::Tuple(items) | Self::Group(items) => {
                Ok(items.iter().any(|i| i.equals(item)))
            }
            Self::Undefined(_) | Self::View(..) | Self::Range(_) => {
                Ok(self.items()?.iter().any(|i| i.equals(item)))
            }
            _ => Err(TemplateError::new(format!("argument of type '{}' is not iterable", self.type_name()))),
        }
    }
}

fn all_equal(a: &[Value], b: &[Value]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.equals(b))
}

fn compare_float(float: f64, int: &BigInt) -> Option<Ordering> {
    match BigInt::from_f64(float) {
        Some(whole) => {
            let fraction = float.fract().partial_cmp(&0.0)?;
            Some(whole.cmp(int).then(fraction))
        }
        None => float.partial_cmp(&0.0),
    }
}

/// What can refer to itself or to a chain of its like: namespaces, the scopes of macros, and loops that a template has
/// stored. Each is held until the end of the rendering and emptied by itself, so that nothing stays in memory and
/// dropping a long chain does not recurse.
#[derive(Default)]
pub(super) struct Kept {
    scopes: Vec<Rc<Scope>>,
    namespaces: Vec<Rc<RefCell<Dict>>>,
    loops: Vec<Rc<RefCell<Loop>>>,
}

/// Bytes of a scope, a namespace or a loop without its values.
const KEPT_BYTES: usize = 256;

impl Kept {
    /// Keeps a scope that a macro refers to.
    pub(super) fn scope(&mut self, scope: &Rc<Scope>) {
        if !self.scopes.last().is_some_and(|last| Rc::ptr_eq(last, scope)) {
            limits::built(KEPT_BYTES);
            self.scopes.push(scope.clone());
        }
    }

    pub(super) fn namespace(&mut self, namespace: &Rc<RefCell<Dict>>) {
        limits::built(KEPT_BYTES);
        self.namespaces.push(namespace.clone());
    }

    /// Keeps a loop that has ended.
    pub(super) fn looped(&mut self, state: &Rc<RefCell<Loop>>) {
        limits::built(KEPT_BYTES);
        self.loops.push(state.clone());
    }

    pub(super) fn clear(&mut self) {
        for scope in &self.scopes {
            scope.clear();
        }
        for namespace in &self.namespaces {
            drop(namespace.take());
        }
        for state in &self.loops {
            let mut state = state.borrow_mut();
            drop((state.after.take(), state.before.take(), state.current.take(), state.changed.take()));
            state.source = Rc::default();
        }
    }
}
