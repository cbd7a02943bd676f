//! What templates see as `loop`.

use std::cell::RefCell;
use std::rc::Rc;

use super::arguments::Args;
use super::interpreter::Interpreter;
use super::scope::Scope;
use super::value::{Loop, Value};
use super::{Result, TemplateError};

type State = Rc<RefCell<Loop>>;

impl Interpreter<'_> {
    /// Goes on to the next item of a loop.
    pub(super) fn advance(&mut self, state: &State) -> Result<Option<Value>> {
        let looked_at = state.borrow_mut().after.take();
        let next = match looked_at {
            Some(next) => next,
            None => self.pull(state)?,
        };
        let mut state = state.borrow_mut();
        if let Some(item) = &next {
            state.index += 1;
            state.before = state.current.replace(item.clone());
        }
        Ok(next)
    }

    /// Takes an item that the loop's condition accepts.
    fn pull(&mut self, state: &State) -> Result<Option<Value>> {
        let (node, scope, source, is_filtered) = {
            let state = state.borrow();
            (state.node.clone(), state.scope.clone(), state.source.clone(), state.is_filtered)
        };
        loop {
            let next = source.borrow_mut().next()?;
            let (Some(item), Some(filter), true) = (&next, &node.filter, is_filtered) else {
                return Ok(next);
            };
            let inner = Scope::inside(&scope);
            self.assign(&node.target, item.clone(), &inner)?;
            if self.eval(filter, &inner)?.is_true() {
                return Ok(next);
            }
        }
    }

    /// The item after the current one, if there is one.
    fn peek(&mut self, state: &State) -> Result<Option<Value>> {
        let looked_at = state.borrow().after.clone();
        if let Some(next) = looked_at {
            return Ok(next);
        }
        let next = self.pull(state)?;
        state.borrow_mut().after = Some(next.clone());
        Ok(next)
    }

    /// Number of items. Loops over iterators take all of them to know it.
    fn loop_length(&mut self, state: &State) -> Result<usize> {
        if let Some(length) = state.borrow().length {
            return Ok(length);
        }
        let mut rest = Vec::new();
        while let Some(item) = self.pull(state)? {
            rest.push(item);
        }
        let mut state = state.borrow_mut();
        let looked_at = matches!(state.after, Some(Some(_)));
        let length = rest.len() + state.index + usize::from(looked_at);
        state.source =
            Rc::new(RefCell::new(super::value::Items { items: rest.into(), ..Default::default() }));
        state.is_filtered = false;
        state.length = Some(length);
        Ok(length)
    }

    pub(super) fn loop_attribute(&mut self, state: &State, name: &str) -> Result<Option<Value>> {
        let index = state.borrow().index;
        Ok(Some(match name {
            "index" => index.into(),
            "index0" => index.saturating_sub(1).into(),
            "first" => (index == 1).into(),
            "last" => self.peek(state)?.is_none().into(),
            "length" => self.loop_length(state)?.into(),
            "revindex" => (self.loop_length(state)? + 1).saturating_sub(index).into(),
            "revindex0" => self.loop_length(state)?.saturating_sub(index).into(),
            "depth" => (state.borrow().depth0 + 1).into(),
            "depth0" => state.borrow().depth0.into(),
            "previtem" => {
                let before = state.borrow().before.clone();
                before.unwrap_or(Value::Undefined("there is no previous item".into()))
            }
            "nextitem" => self.peek(state)?.unwrap_or(Value::Undefined("there is no next item".into())),
            "cycle" | "changed" => Value::Method(Rc::new((Value::Loop(state.clone()), name.to_owned()))),
            _ => return Ok(None),
        }))
    }

    pub(super) fn call_loop_method(&mut self, state: &State, name: &str, args: Args) -> Result<Value> {
        if !args.named.is_empty() {
            return Err(TemplateError::new(format!("loop.{name} takes no keyword arguments")));
        }
        let mut state = state.borrow_mut();
        if name == "cycle" {
            let count = args.positional.len();
            let at = state.index.saturating_sub(1).checked_rem(count);
            let at = at.ok_or_else(|| TemplateError::new("no items for cycling given"))?;
            return Ok(args.positional[at].clone());
        }
        let values = Value::tuple(args.positional.clone());
        let same = state.changed.as_ref().is_some_and(|last| Value::tuple(last.clone()).equals(&values));
        state.changed = Some(args.positional);
        Ok(Value::Bool(!same))
    }

    /// Renders a recursive loop's body for further items.
    pub(super) fn call_loop(&mut self, state: &State, args: Args) -> Result<Value> {
        let [items] = args.bind("loop", ["iterable"], 1)?;
        let (node, scope, depth0) = {
            let state = state.borrow();
            (state.node.clone(), state.scope.clone(), state.depth0)
        };
        if !node.recursive {
            return Err(TemplateError::new(
                "the loop must have the 'recursive' marker to be called recursively",
            ));
        }
        let outer = std::mem::take(&mut self.out);
        let result = self.for_loop(&node, items.unwrap_or(Value::None), &scope, depth0 + 1);
        let text = std::mem::replace(&mut self.out, outer);
        result?;
        Ok(text.into())
    }
}
