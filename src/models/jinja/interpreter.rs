//! The interpreter: runs the statements of a template.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use super::arguments::Args;
use super::ast::{Expr, For, MacroNode, Stmt, StmtKind, Target};
use super::scope::Scope;
use super::value::{Dict, Items, Kept, Loop, Macro, Value};
use super::{Result, TemplateError, limits, repr};

/// Deepest nesting of statements and expressions while a template runs.
const MAX_DEPTH: usize = 3000;

/// Steps of an iteration beside those of its body: it makes a scope with two variables.
const ITERATION_STEPS: usize = 4;

/// What a body ended with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    Next,
    Break,
    Continue,
}

/// The state of a rendering.
pub(super) struct Interpreter<'t> {
    pub(super) out: String,
    /// Characters around the text of `{% generation %}` blocks.
    marks: Option<[char; 2]>,
    /// Scope of the template, with the variables of the call around it.
    root: Rc<Scope>,
    /// What may refer to itself, or to a long chain of its like. It is emptied at the end, one after the other.
    kept: Kept,
    depth: usize,
    pub(super) line: usize,
    /// Text of the `{% filter %}` block whose filters run.
    pub(super) block_text: Option<Value>,
    pub(super) now: &'t dyn Fn(&str) -> String,
}

impl<'t> Interpreter<'t> {
    pub(super) fn new(marks: Option<[char; 2]>, now: &'t dyn Fn(&str) -> String) -> Self {
        Self {
            out: String::new(),
            marks,
            root: Rc::default(),
            kept: Kept::default(),
            depth: 0,
            line: 1,
            block_text: None,
            now,
        }
    }

    /// Renders a template with its variables.
    pub(super) fn render(mut self, body: &[Stmt], variables: Vec<(String, Value)>) -> Result<String> {
        let context = Rc::new(Scope::default());
        for (name, value) in variables {
            context.set(&name, value);
        }
        self.root = Scope::inside(&context);
        let root = self.root.clone();
        let result = self.body(body, &root);
        self.kept.clear();
        // An operation may have failed without saying so.
        match result.and_then(|_| limits::spend(0)) {
            Ok(()) => Ok(self.out),
            Err(error) => Err(error.with_line(self.line)),
        }
    }

    /// Runs something one level deeper.
    pub(super) fn nested<T>(&mut self, run: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        limits::spend(1)?;
        self.depth += 1;
        let result = if self.depth > MAX_DEPTH {
            Err(TemplateError::new(format!("maximum recursion depth exceeded: the limit is {MAX_DEPTH}")))
        } else {
            run(self)
        };
        self.depth -= 1;
        result
    }

    pub(super) fn body(&mut self, body: &[Stmt], scope: &Rc<Scope>) -> Result<Flow> {
        self.nested(|interpreter| {
            for statement in body {
                interpreter.line = statement.line;
                let flow = interpreter.statement(statement, scope)?;
                if flow != Flow::Next {
                    return Ok(flow);
                }
            }
            Ok(Flow::Next)
        })
    }

    /// The text that a body writes.
    pub(super) fn captured(&mut self, body: &[Stmt], scope: &Rc<Scope>) -> Result<(String, Flow)> {
        let outer = std::mem::take(&mut self.out);
        let result = self.body(body, scope);
        let text = std::mem::replace(&mut self.out, outer);
        Ok((text, result?))
    }

    fn statement(&mut self, statement: &Stmt, scope: &Rc<Scope>) -> Result<Flow> {
        match &statement.kind {
            StmtKind::Text(text) => {
                limits::spend(text.len() / 64)?;
                self.out.push_str(text);
                limits::text(self.out.len())?;
            }
            StmtKind::Print(expr) => {
                let value = self.eval(expr, scope)?;
                repr::write_text(&mut self.out, &value)?;
            }
            StmtKind::If(branches, otherwise) => {
                for (condition, body) in branches {
                    if self.eval(condition, scope)?.is_true() {
                        return self.body(body, scope);
                    }
                }
                return self.body(otherwise, scope);
            }
            StmtKind::For(node) => {
                let iterable = self.eval(&node.iterable, scope)?;
                return self.for_loop(node, iterable, scope, 0);
            }
            StmtKind::Set(target, expr) => {
                let value = self.eval(expr, scope)?;
                self.assign(target, value, scope)?;
            }
            StmtKind::SetBlock(target, filter, body) => {
                let (text, flow) = self.captured(body, &Scope::inside(scope))?;
                if flow != Flow::Next {
                    return Ok(flow);
                }
                let value = self.filtered(filter.as_ref(), text, scope)?;
                self.assign(target, value, scope)?;
            }
            StmtKind::With(values, body) => {
                let inner = Scope::inside(scope);
                let values = values.iter().map(|(target, expr)| Ok((target, self.eval(expr, scope)?)));
                for (target, value) in values.collect::<Result<Vec<_>>>()? {
                    self.assign(target, value, &inner)?;
                }
                return self.body(body, &inner);
            }
            StmtKind::Macro(node) => {
                let value = self.macro_value(node, scope);
                scope.set(&node.name, value);
            }
            StmtKind::Call(call, node) => self.call_block(call, node, scope)?,
            StmtKind::Filter(filter, body) => {
                let (text, flow) = self.captured(body, &Scope::inside(scope))?;
                if flow != Flow::Next {
                    return Ok(flow);
                }
                let value = self.filtered(Some(filter), text, scope)?;
                repr::write_text(&mut self.out, &value)?;
            }
            StmtKind::Generation(body) => {
                let (text, _) = self.captured(body, &Scope::inside(scope))?;
                self.out.extend(self.marks.map(|[open, _]| open));
                self.out.push_str(&text);
                self.out.extend(self.marks.map(|[_, close]| close));
            }
            StmtKind::Block(body, scoped) => {
                let inner = Scope::inside(if *scoped { scope } else { &self.root });
                self.body(body, &inner)?;
            }
            StmtKind::Break => return Ok(Flow::Break),
            StmtKind::Continue => return Ok(Flow::Continue),
        }
        Ok(Flow::Next)
    }

    pub(super) fn namespace(&mut self, values: Dict) -> Value {
        let namespace = Rc::new(RefCell::new(values));
        self.kept.namespace(&namespace);
        Value::Namespace(namespace)
    }

    /// A block's text after the block's filters.
    fn filtered(&mut self, filter: Option<&Expr>, text: String, scope: &Rc<Scope>) -> Result<Value> {
        let Some(filter) = filter else { return Ok(text.into()) };
        let outer = self.block_text.replace(text.into());
        let result = self.eval(filter, scope);
        self.block_text = outer;
        result
    }

    fn macro_value(&mut self, node: &Arc<MacroNode>, scope: &Rc<Scope>) -> Value {
        self.kept.scope(scope);
        Value::Macro(Rc::new(Macro { node: node.clone(), scope: scope.clone() }))
    }

    fn call_block(&mut self, call: &Expr, node: &Arc<MacroNode>, scope: &Rc<Scope>) -> Result<()> {
        let Expr::Call(function, arguments) = call else {
            return Err(TemplateError::new("a call block needs a call"));
        };
        let function = self.eval(function, scope)?;
        let mut args = self.arguments(arguments, scope)?;
        let caller = Value::Macro(Rc::new(Macro { node: node.clone(), scope: scope.clone() }));
        args.named.push(("caller".to_owned(), caller.clone()));
        let value = self.call(&function, args);
        if let Value::Macro(caller) = &caller
            && Rc::strong_count(caller) > 1
        {
            self.kept.scope(scope);
        }
        repr::write_text(&mut self.out, &value?)
    }

    pub(super) fn assign(&mut self, target: &Target, value: Value, scope: &Rc<Scope>) -> Result<()> {
        match target {
            Target::Name(name) => scope.set(name, value),
            Target::Attribute(name, attribute) => match self.lookup(name, scope) {
                Value::Namespace(namespace) => {
                    check_namespace_name(attribute)?;
                    namespace.borrow_mut().insert(Value::from(attribute.as_str()), value)?;
                }
                _ => return Err(TemplateError::new("cannot assign attribute on non-namespace object")),
            },
            Target::Tuple(targets) => {
                let items = value.items()?;
                if items.len() != targets.len() {
                    let (found, wanted) = (items.len(), targets.len());
                    return Err(TemplateError::new(format!("{found} values to unpack, {wanted} expected")));
                }
                for (target, item) in targets.iter().zip(items) {
                    self.assign(target, item, scope)?;
                }
            }
        }
        Ok(())
    }

    pub(super) fn for_loop(
        &mut self,
        node: &Arc<For>,
        iterable: Value,
        scope: &Rc<Scope>,
        depth0: usize,
    ) -> Result<Flow> {
        let length = if node.filter.is_none() { iterable.len() } else { None };
        let source = match iterable {
            Value::Iterator(items) => items,
            iterable => {
                let items = iterable.items()?.into();
                Rc::new(RefCell::new(Items { items, ..Items::default() }))
            }
        };
        let state = Rc::new(RefCell::new(Loop {
            node: node.clone(),
            scope: scope.clone(),
            source,
            is_filtered: node.filter.is_some(),
            after: None,
            before: None,
            current: None,
            index: 0,
            length,
            depth0,
            changed: None,
        }));
        let result = self.run_loop(node, scope, &state);
        if Rc::strong_count(&state) > 1 {
            self.kept.looped(&state);
        }
        result
    }

    fn run_loop(&mut self, node: &Arc<For>, scope: &Rc<Scope>, state: &Rc<RefCell<Loop>>) -> Result<Flow> {
        while let Some(item) = self.advance(state)? {
            limits::spend(ITERATION_STEPS)?;
            let inner = Scope::inside(scope);
            inner.set("loop", Value::Loop(state.clone()));
            self.assign(&node.target, item, &inner)?;
            let flow = self.body(&node.body, &inner)?;
            if flow == Flow::Break {
                break;
            }
        }
        // The other case runs if there was no item.
        if state.borrow().index == 0 {
            return self.body(&node.otherwise, &Scope::inside(scope));
        }
        Ok(Flow::Next)
    }

    /// Calls a macro.
    pub(super) fn call_macro(&mut self, value: &Macro, args: Args) -> Result<Value> {
        let node = &value.node;
        limits::spend(node.parameters.len())?;
        let scope = Scope::inside(&value.scope);
        let Args { positional, mut named } = args;
        let mut positional = positional.into_iter();
        let mut explicit_caller = false;
        for (name, default) in &node.parameters {
            let given = positional.next().or_else(|| take(&mut named, name));
            explicit_caller |= name == "caller";
            match (given, default) {
                (Some(value), _) => scope.set(name, value),
                (None, Some(default)) => {
                    let value = self.eval(default, &scope)?;
                    scope.set(name, value);
                }
                (None, None) => {
                    let message = format!("parameter '{name}' was not provided");
                    scope.set(name, Value::Undefined(message.into()));
                }
            }
        }
        let rest: Vec<Value> = positional.collect();
        if node.reads_caller && !explicit_caller {
            let caller = take(&mut named, "caller");
            scope.set("caller", caller.unwrap_or(Value::Undefined("No caller defined".into())));
        }
        let name = &node.name;
        if node.reads_kwargs {
            let kwargs = named.into_iter().map(|(name, value)| (Value::from(name), value));
            scope.set("kwargs", Value::Dict(kwargs.collect::<Dict>().into()));
        } else if let Some((argument, _)) = named.first() {
            return Err(TemplateError::new(format!("macro '{name}' takes no keyword argument '{argument}'")));
        }
        if node.reads_varargs {
            scope.set("varargs", Value::tuple(rest));
        } else if !rest.is_empty() {
            let most = node.parameters.len();
            return Err(TemplateError::new(format!("macro '{name}' takes not more than {most} argument(s)")));
        }
        let line = self.line;
        self.line = node.line;
        let (text, _) = self.captured(&node.body, &scope)?;
        self.line = line;
        Ok(text.into())
    }

    pub(super) fn lookup(&mut self, name: &str, scope: &Rc<Scope>) -> Value {
        scope
            .get(name)
            .or_else(|| super::functions::global(name))
            .unwrap_or_else(|| Value::Undefined(format!("'{name}' is undefined").into()))
    }
}

fn take(named: &mut Vec<(String, Value)>, name: &str) -> Option<Value> {
    let at = named.iter().position(|(other, _)| other == name)?;
    Some(named.remove(at).1)
}

/// Fails for names that transformers does not allow on a namespace.
pub(super) fn check_namespace_name(name: &str) -> Result<()> {
    if name.starts_with('_') {
        return Err(TemplateError::new(format!(
            "Chat templates cannot store underscore-prefixed attributes on a namespace, but got '{name}'"
        )));
    }
    Ok(())
}
