//! The filters of Jinja2 on sequences.

use std::cell::RefCell;
use std::cmp::Ordering;
use std::rc::Rc;

use super::arguments::{Args, int, int_or, str};
use super::ast::BinaryOp;
use super::interpreter::Interpreter;
use super::strings::required;
use super::value::{Dict, Items, Sequence, Value};
use super::{Result, TemplateError, limits, operators, repr};

/// Filters that are generators in Jinja2.
const GENERATORS: [&str; 9] =
    ["map", "select", "reject", "selectattr", "rejectattr", "unique", "batch", "slice", "items"];

/// The path of an attribute such as `function.name` or `0`.
type Path = Vec<Value>;

impl Interpreter<'_> {
    pub(super) fn sequence_filter(&mut self, name: &str, value: Value, args: Args) -> Result<Value> {
        // Python's generators fail when they are used, not when they are made.
        let result = self.filter_items(name, value, args);
        match result {
            Err(error) if GENERATORS.contains(&name) => {
                Ok(Value::Iterator(Rc::new(RefCell::new(Items { error: Some(error), ..Items::default() }))))
            }
            result => result,
        }
    }

    fn filter_items(&mut self, name: &str, value: Value, args: Args) -> Result<Value> {
        match name {
            "list" => {
                args.none(name)?;
                Ok(Value::list(value.items()?))
            }
            "first" => {
                args.none(name)?;
                let first = match &value {
                    Value::Iterator(items) => items.borrow_mut().next()?,
                    value => value.items()?.into_iter().next(),
                };
                Ok(first.unwrap_or(Value::Undefined("No first item, sequence was empty.".into())))
            }
            "last" => {
                args.none(name)?;
                if matches!(value, Value::Iterator(_)) {
                    return Err(TemplateError::new("'generator' object is not reversible"));
                }
                let last = value.items()?.pop();
                Ok(last.unwrap_or(Value::Undefined("No last item, sequence was empty.".into())))
            }
            "reverse" => {
                args.none(name)?;
                if let Value::Str(_) = value {
                    let backwards = [&Value::None, &Value::None, &Value::Int((-1).into())];
                    return Ok(operators::slice(&value, backwards)?.unwrap_or(value));
                }
                let mut items = value.items()?;
                items.reverse();
                Ok(if matches!(value, Value::Iterator(_)) {
                    Value::list(items)
                } else {
                    Value::iterator(items)
                })
            }
            "join" => self.join(&value, args),
            "sum" => self.sum(&value, args),
            "sort" => self.sort(&value, args),
            "min" | "max" => self.extreme(name, &value, args),
            "unique" => self.unique(&value, args),
            "groupby" => self.group_by(&value, args),
            "map" => self.map(&value, args),
            "select" | "reject" | "selectattr" | "rejectattr" => self.select(name, &value, args),
            "items" => {
                args.none(name)?;
                match &value {
                    Value::Undefined(_) => Ok(Value::iterator([])),
                    Value::Dict(dict) => {
                        Ok(Value::iterator(Value::View(super::value::View::Items, dict.clone()).items()?))
                    }
                    _ => Err(TemplateError::new("Can only get item pairs from a mapping.")),
                }
            }
            "dictsort" => dict_sort(&value, args),
            "batch" => batch(&value, args),
            "slice" => slice(&value, args),
            _ => Err(TemplateError::new(format!("No filter named '{name}'."))),
        }
    }

    /// The attribute of an item by its path.
    fn by_path(&mut self, item: &Value, path: &Path, default: Option<&Value>) -> Result<Value> {
        let mut item = item.clone();
        for part in path {
            item = self.subscript(&item, part)?;
            if let (Value::Undefined(_), Some(default)) = (&item, default) {
                item = default.clone();
            }
        }
        Ok(item)
    }

    fn keys(&mut self, items: &[Value], path: &Path, ignore_case: bool) -> Result<Vec<Value>> {
        let key = |item| {
            let key = self.by_path(item, path, None)?;
            Ok(if ignore_case { lower(key) } else { key })
        };
        items.iter().map(key).collect()
    }

    fn join(&mut self, value: &Value, args: Args) -> Result<Value> {
        let [separator, attribute] = args.bind("join", ["d", "attribute"], 0)?;
        let separator = separator.map_or(Ok(String::new()), |separator| repr::text(&separator))?;
        let path = attribute.map_or(Ok(Path::new()), |attribute| path(&attribute))?;
        let mut out = String::new();
        for (index, item) in value.items()?.iter().enumerate() {
            if index > 0 {
                out.push_str(&separator);
            }
            repr::write_text(&mut out, &self.by_path(item, &path, None)?)?;
        }
        Ok(out.into())
    }

    fn sum(&mut self, value: &Value, args: Args) -> Result<Value> {
        let [attribute, start] = args.bind("sum", ["attribute", "start"], 0)?;
        let path = attribute.map_or(Ok(Path::new()), |attribute| path(&attribute))?;
        let mut sum = start.unwrap_or_else(|| 0.into());
        if let Value::Str(_) = sum {
            return Err(TemplateError::new("sum() can't sum strings [use ''.join(seq) instead]"));
        }
        for item in value.items()? {
            let item = self.by_path(&item, &path, None)?;
            sum = operators::binary(BinaryOp::Add, &sum, &item)?;
        }
        Ok(sum)
    }

    fn sort(&mut self, value: &Value, args: Args) -> Result<Value> {
        let names = ["reverse", "case_sensitive", "attribute"];
        let [reverse, case_sensitive, attribute] = args.bind("sort", names, 0)?;
        let ignore_case = !case_sensitive.is_some_and(|flag| flag.is_true());
        let paths = match attribute {
            Some(Value::Str(text)) => {
                text.text.split(',').map(|part| path(&Value::from(part))).collect::<Result<Vec<_>>>()?
            }
            attribute => vec![attribute.map_or(Ok(Path::new()), |attribute| path(&attribute))?],
        };
        let items = value.items()?;
        let mut columns = Vec::new();
        for path in &paths {
            columns.push(self.keys(&items, path, ignore_case)?);
        }
        let key = |row: usize| Value::list(columns.iter().map(|column| column[row].clone()).collect());
        let keyed = items.into_iter().enumerate().map(|(row, item)| (key(row), item)).collect();
        let sorted = sorted(keyed, reverse.is_some_and(|reverse| reverse.is_true()))?;
        Ok(Value::list(sorted.into_iter().map(|(_, item)| item).collect()))
    }

    fn extreme(&mut self, name: &str, value: &Value, args: Args) -> Result<Value> {
        let [case_sensitive, attribute] = args.bind(name, ["case_sensitive", "attribute"], 0)?;
        let ignore_case = !case_sensitive.is_some_and(|flag| flag.is_true());
        let path = attribute.map_or(Ok(Path::new()), |attribute| path(&attribute))?;
        let items = value.items()?;
        let keys = self.keys(&items, &path, ignore_case)?;
        let (operator, wanted) = if name == "min" { ("<", Ordering::Less) } else { (">", Ordering::Greater) };
        let mut best: Option<usize> = None;
        for (at, key) in keys.iter().enumerate() {
            if match best {
                None => true,
                Some(best) => key.compare(&keys[best], operator)? == Some(wanted),
            } {
                best = Some(at);
            }
        }
        Ok(match best {
            Some(best) => items[best].clone(),
            None => Value::Undefined("No aggregated item, sequence was empty.".into()),
        })
    }

    fn unique(&mut self, value: &Value, args: Args) -> Result<Value> {
        let [case_sensitive, attribute] = args.bind("unique", ["case_sensitive", "attribute"], 0)?;
        let ignore_case = !case_sensitive.is_some_and(|flag| flag.is_true());
        let path = attribute.map_or(Ok(Path::new()), |attribute| path(&attribute))?;
        let mut seen = Dict::default();
        let items = value.items()?;
        Ok(lazily(&items, |item| {
            let key = self.by_path(item, &path, None)?;
            let key = if ignore_case { lower(key) } else { key };
            if seen.get(&key)?.is_some() {
                return Ok(None);
            }
            seen.insert(key, Value::None)?;
            Ok(Some(item.clone()))
        }))
    }

    fn group_by(&mut self, value: &Value, args: Args) -> Result<Value> {
        let names = ["attribute", "default", "case_sensitive"];
        let [attribute, default, case_sensitive] = args.bind("groupby", names, 1)?;
        let ignore_case = !case_sensitive.is_some_and(|flag| flag.is_true());
        let path = path(&required(attribute))?;
        let default = default.filter(|default| !matches!(default, Value::None));
        let mut keyed = Vec::new();
        for item in value.items()? {
            let key = self.by_path(&item, &path, default.as_ref())?;
            keyed.push((if ignore_case { lower(key) } else { key }, item));
        }
        let mut groups: Vec<(Value, Vec<Value>)> = Vec::new();
        for (key, item) in sorted(keyed, false)? {
            match groups.last_mut() {
                Some((last, items)) if last.equals(&key) => items.push(item),
                _ => groups.push((key, vec![item])),
            }
        }
        let mut out = Vec::new();
        for (key, items) in groups {
            let key = if ignore_case { self.by_path(&items[0], &path, default.as_ref())? } else { key };
            out.push(Value::Group(Sequence::new(vec![key, Value::list(items)]).into()));
        }
        Ok(Value::list(out))
    }

    fn map(&mut self, value: &Value, mut args: Args) -> Result<Value> {
        if !value.is_true() {
            return Ok(Value::iterator([]));
        }
        let items = value.items()?;
        if args.positional.is_empty() {
            let [attribute, default] = args.bind("map", ["attribute", "default"], 1)?;
            let path = path(&required(attribute))?;
            let default = default.filter(|default| !matches!(default, Value::None));
            return Ok(lazily(&items, |item| self.by_path(item, &path, default.as_ref()).map(Some)));
        }
        let name = args.positional.remove(0);
        let name = str("map", &name)?.to_owned();
        Ok(lazily(&items, |item| self.filter(&name, item.clone(), args.clone()).map(Some)))
    }

    fn select(&mut self, name: &str, value: &Value, mut args: Args) -> Result<Value> {
        if !value.is_true() {
            return Ok(Value::iterator([]));
        }
        let items = value.items()?;
        let mut path = Path::new();
        if name.ends_with("attr") {
            if args.positional.is_empty() {
                return Err(TemplateError::new("Missing parameter for attribute name"));
            }
            path = self::path(&args.positional.remove(0))?;
        }
        let test = match args.positional.is_empty() {
            true => None,
            false => Some(str(name, &args.positional.remove(0))?.to_owned()),
        };
        let wanted = name.starts_with("select");
        Ok(lazily(&items, |item| {
            let tested = self.by_path(item, &path, None)?;
            let result = match &test {
                Some(test) => self.test(test, &tested, args.clone())?,
                None => tested.is_true(),
            };
            Ok((result == wanted).then(|| item.clone()))
        }))
    }
}

/// An iterator of what a function makes of items, up to its first error, which comes after the items before it.
fn lazily(items: &[Value], mut make: impl FnMut(&Value) -> Result<Option<Value>>) -> Value {
    let mut made = Items::default();
    for item in items {
        match make(item) {
            Ok(item) => made.items.extend(item),
            Err(error) => {
                made.error = Some(error);
                break;
            }
        }
    }
    Value::Iterator(Rc::new(RefCell::new(made.measured())))
}

/// The path of an attribute argument.
fn path(attribute: &Value) -> Result<Path> {
    Ok(match attribute {
        Value::None => Path::new(),
        Value::Str(text) => {
            let part = |part: &str| match part.parse::<u64>() {
                Ok(index) if part.bytes().all(|b| b.is_ascii_digit()) => Value::Int(index.into()),
                _ => Value::from(part),
            };
            text.text.split('.').map(part).collect()
        }
        Value::Int(_) => vec![attribute.clone()],
        _ => return Err(TemplateError::new("an attribute must be a text or an integer")),
    })
}

fn lower(value: Value) -> Value {
    match &value {
        Value::Str(text) => text.text.to_lowercase().into(),
        _ => value,
    }
}

/// Sorts items by their keys. Items with equal keys keep their order.
fn sorted(mut keyed: Vec<(Value, Value)>, reverse: bool) -> Result<Vec<(Value, Value)>> {
    let mut failed = None;
    keyed.sort_by(|(a, _), (b, _)| match a.compare(b, "<") {
        Ok(order) => {
            let order = order.unwrap_or(Ordering::Equal);
            if reverse { order.reverse() } else { order }
        }
        Err(error) => {
            failed.get_or_insert(error);
            Ordering::Equal
        }
    });
    limits::spend(0)?;
    failed.map_or(Ok(keyed), Err)
}

fn dict_sort(value: &Value, args: Args) -> Result<Value> {
    let [case_sensitive, by, reverse] = args.bind("dictsort", ["case_sensitive", "by", "reverse"], 0)?;
    let ignore_case = !case_sensitive.is_some_and(|flag| flag.is_true());
    value.defined()?;
    let Value::Dict(dict) = value else { return Err(TemplateError::new("dictsort needs an object")) };
    let by = by.map_or(Ok("key".to_owned()), |by| str("dictsort", &by).map(str::to_owned))?;
    if by != "key" && by != "value" {
        return Err(TemplateError::new("You can only sort by either \"key\" or \"value\""));
    }
    let entry = |(key, value): &(Value, Value)| {
        let sorted_by = if by == "key" { key } else { value }.clone();
        let sorted_by = if ignore_case { lower(sorted_by) } else { sorted_by };
        (sorted_by, Value::tuple(vec![key.clone(), value.clone()]))
    };
    let keyed = dict.entries().iter().map(entry).collect();
    let sorted = sorted(keyed, reverse.is_some_and(|reverse| reverse.is_true()))?;
    Ok(Value::list(sorted.into_iter().map(|(_, item)| item).collect()))
}

fn batch(value: &Value, args: Args) -> Result<Value> {
    let [count, fill] = args.bind("batch", ["linecount", "fill_with"], 1)?;
    let count = usize::try_from(int("batch", &required(count))?).ok().filter(|count| *count > 0);
    let count = count.ok_or_else(|| TemplateError::new("batch: the number of items must be above 0"))?;
    let fill = fill.filter(|fill| !matches!(fill, Value::None));
    let mut rows = Vec::new();
    for chunk in value.items()?.chunks(count) {
        let mut row = chunk.to_vec();
        if let Some(fill) = &fill {
            let length = count.min(100_000).max(row.len());
            limits::items(length)?;
            row.resize(length, fill.clone());
        }
        rows.push(Value::list(row));
    }
    Ok(Value::iterator(rows))
}

fn slice(value: &Value, args: Args) -> Result<Value> {
    let [count, fill] = args.bind("slice", ["slices", "fill_with"], 1)?;
    let count =
        usize::try_from(int_or("slice", count, 0)?).ok().filter(|count| (1..=100_000).contains(count));
    let count = count.ok_or_else(|| TemplateError::new("slice: the number of slices must be above 0"))?;
    let fill = fill.filter(|fill| !matches!(fill, Value::None));
    limits::items(count)?;
    let items = value.items()?;
    let (size, longer) = (items.len() / count, items.len() % count);
    let mut rows = Vec::new();
    let mut start = 0;
    for index in 0..count {
        let end = start + size + usize::from(index < longer);
        let mut row = items[start..end].to_vec();
        row.extend(fill.clone().filter(|_| index >= longer));
        rows.push(Value::list(row));
        start = end;
    }
    Ok(Value::iterator(rows))
}
