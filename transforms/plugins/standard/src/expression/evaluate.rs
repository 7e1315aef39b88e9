//! Evaluates expressions.

use std::borrow::Cow;
use std::rc::Rc;

use trunkline_plugin::json;

use super::compile::{Comparison, Expression, Literal, Loop, Node, Operator, Variable};
use super::functions::{self, number};
use super::value::Value;
use super::{Scope, functions::Function};
use crate::number::Decimal;
use crate::rows;

impl Expression {
    /// The value for a record. The error is a problem of the record's data.
    pub(crate) fn evaluate<'a>(&'a self, scope: Scope<'a>) -> Result<Value<'a>, String> {
        Evaluation { scope, locals: Vec::new() }.node(&self.root)
    }

    /// The truth of a condition.
    pub(crate) fn is_true(&self, scope: Scope<'_>) -> Result<bool, String> {
        match self.evaluate(scope)? {
            Value::Boolean(boolean) => Ok(boolean),
            other => Err(format!("the condition is {}, not true or false", other.kind())),
        }
    }
}

struct Evaluation<'a> {
    scope: Scope<'a>,
    locals: Vec<Value<'a>>,
}

impl<'a> Evaluation<'a> {
    fn node(&mut self, node: &'a Node) -> Result<Value<'a>, String> {
        match node {
            Node::Literal(value) => Ok(literal(value)),
            Node::Variable(variable) => self.variable(*variable),
            Node::Local(position) => self.locals.get(*position).cloned().ok_or_else(|| "a variable is gone".to_owned()),
            Node::Member(of, name) => self.member(of, name),
            Node::Has(of, name) => match self.node(of)? {
                // a tombstone, or an absent row, has no members
                Value::Null => Ok(Value::Boolean(false)),
                of => match of.member(name)? {
                    Some(member) => Ok(Value::Boolean(member.is_some())),
                    None => Err(format!("{} has no members", of.kind())),
                },
            },
            Node::Index(of, index) => {
                let (of, index) = (self.node(of)?, self.node(index)?);
                item(&of, &index)
            }
            Node::And(left, right) => self.either(left, right, false),
            Node::Or(left, right) => self.either(left, right, true),
            Node::Not(operand) => self.boolean(operand).map(|boolean| Value::Boolean(!boolean)),
            Node::Negate(operand) => Ok(Value::Number(number(&self.node(operand)?)?.negate())),
            Node::NotStrictlyFalse(operand) => {
                Ok(Value::Boolean(!matches!(self.node(operand), Ok(Value::Boolean(false)))))
            }
            Node::Condition(parts) => {
                let [condition, yes, no] = parts.as_ref();
                let chosen = if self.boolean(condition)? { yes } else { no };
                self.node(chosen)
            }
            Node::Binary(operator, operands) => {
                let [left, right] = operands.as_ref();
                let (left, right) = (self.node(left)?, self.node(right)?);
                binary(*operator, left, &right)
            }
            Node::Compare(comparison) => match self.compare(comparison) {
                Some(holds) => Ok(Value::Boolean(holds)),
                None => {
                    let member = self.node(&comparison.member)?;
                    binary(comparison.operator, member, &literal(&comparison.literal))
                }
            },
            Node::Call(Function::Size, arguments) if arguments.len() == 1 => {
                let value = self.node(&arguments[0])?;
                functions::call(Function::Size, std::slice::from_ref(&value))
            }
            Node::Call(function, arguments) => {
                let values: Vec<Value<'a>> =
                    arguments.iter().map(|argument| self.node(argument)).collect::<Result<_, _>>()?;
                functions::call(*function, &values)
            }
            Node::Matches(text, regex) => match self.node(text)? {
                Value::Text(text) => Ok(Value::Boolean(regex.is_match(&text))),
                other => Err(format!("{} is not a text", other.kind())),
            },
            Node::List(items) => {
                let items = items.iter().map(|item| self.node(item)).collect::<Result<_, _>>()?;
                Ok(Value::List(Rc::new(items)))
            }
            Node::Map(members) => {
                let mut map = Vec::new();
                for (name, value) in members {
                    let Some(name) = self.node(name)?.into_text() else {
                        return Err("null cannot be the name of a member".to_owned());
                    };
                    map.push((name.into_owned(), self.node(value)?));
                }
                Ok(Value::Map(Rc::new(map)))
            }
            Node::Loop(parts) => self.run_loop(parts),
            Node::Append(position, items) => self.append(*position, items),
        }
    }

    /// Appends to the list of a macro without a copy. The loop assigns the result to the variable.
    fn append(&mut self, position: usize, items: &'a [Node]) -> Result<Value<'a>, String> {
        let items: Vec<Value<'a>> = items.iter().map(|item| self.node(item)).collect::<Result<_, _>>()?;
        match self.locals.get_mut(position).map(|local| std::mem::replace(local, Value::Null)) {
            Some(Value::List(mut list)) => {
                Rc::make_mut(&mut list).extend(items);
                Ok(Value::List(list))
            }
            _ => Err("the accumulator of a macro is not a list".to_owned()),
        }
    }

    fn boolean(&mut self, node: &'a Node) -> Result<bool, String> {
        match self.node(node)? {
            Value::Boolean(boolean) => Ok(boolean),
            other => Err(format!("{} is not true or false", other.kind())),
        }
    }

    /// `&&` (decided by false) and `||` (decided by true). As in CEL, an operand that decides makes
    /// an error of the other one irrelevant.
    fn either(&mut self, left: &'a Node, right: &'a Node, decides: bool) -> Result<Value<'a>, String> {
        let left = self.boolean(left);
        if left == Ok(decides) {
            return Ok(Value::Boolean(decides));
        }
        match self.boolean(right) {
            Ok(right) if right == decides => Ok(Value::Boolean(decides)),
            right => left.and(right).map(Value::Boolean),
        }
    }

    fn variable(&self, variable: Variable) -> Result<Value<'a>, String> {
        let record = &self.scope.record;
        let whole = |number: i64| Value::Number(Decimal::from(number));
        Ok(match variable {
            Variable::Value => match record.value() {
                Some(value) => Value::of_json(rows::trim(value))?,
                None => Value::Null,
            },
            Variable::Row => self.scope.row()?,
            Variable::Key => match record.key() {
                Some(key) => key_value(key)?,
                None => Value::Null,
            },
            Variable::Headers => {
                let mut headers: Vec<(String, Value<'a>)> = Vec::new();
                for (name, value) in record.headers() {
                    let value = value.map_or(Value::Null, |value| Value::Text(String::from_utf8_lossy(value)));
                    // the last header of a name counts
                    headers.retain(|(known, _)| known != name);
                    headers.push((name.to_owned(), value));
                }
                Value::Map(Rc::new(headers))
            }
            Variable::Topic => Value::Text(Cow::Borrowed(record.topic())),
            Variable::Partition => whole(record.partition().into()),
            Variable::Offset => record.offset().map_or(Value::Null, whole),
            Variable::Timestamp => record.timestamp().map_or(Value::Null, whole),
        })
    }

    /// Compares the text of a member with a literal. `None` if that is not a number with a number,
    /// or two texts: then the general evaluation decides, and finds the error if there is one.
    fn compare(&self, comparison: &Comparison) -> Option<bool> {
        let Comparison { variable, path, operator, literal, .. } = comparison;
        let value = self.scope.record.value();
        let object = match variable {
            Variable::Row => self.scope.row.or_else(|| value.map(rows::row_of))?,
            _ => value?,
        };
        let raw = json::lookup(rows::trim(object), path).ok()??;
        let order = match (literal, raw) {
            (Literal::Number(number), [b'-' | b'0'..=b'9', ..]) => Decimal::parse_bytes(raw)?.cmp(number),
            (Literal::Text(text), [b'"', inner @ .., b'"']) if !inner.contains(&b'\\') => {
                std::str::from_utf8(inner).ok()?.cmp(text)
            }
            _ => return None,
        };
        match operator {
            Operator::Equal => Some(order.is_eq()),
            Operator::NotEqual => Some(order.is_ne()),
            Operator::Less => Some(order.is_lt()),
            Operator::LessOrEqual => Some(order.is_le()),
            Operator::Greater => Some(order.is_gt()),
            Operator::GreaterOrEqual => Some(order.is_ge()),
            _ => None,
        }
    }

    fn member(&mut self, of: &'a Node, name: &str) -> Result<Value<'a>, String> {
        let of = self.node(of)?;
        match of.member(name)? {
            Some(Some(member)) => Ok(member),
            Some(None) => Err(format!("there is no member `{name}`; test it with has(..)")),
            None => Err(format!("{} has no member `{name}`", of.kind())),
        }
    }

    fn run_loop(&mut self, parts: &'a Loop) -> Result<Value<'a>, String> {
        let range = self.node(&parts.range)?;
        let items = match range.items()? {
            Some(items) => items,
            None => range.names()?.ok_or_else(|| format!("{} is neither a list nor an object", range.kind()))?,
        };
        let initial = self.node(&parts.initial)?;
        let base = self.locals.len();
        self.locals.extend([Value::Null, initial]);
        let outcome = self.iterate(parts, items, base);
        self.locals.truncate(base);
        outcome
    }

    fn iterate(&mut self, parts: &'a Loop, items: Vec<Value<'a>>, base: usize) -> Result<Value<'a>, String> {
        let mut failure = None;
        for item in items {
            self.locals[base] = item;
            if !self.boolean(&parts.condition)? {
                break;
            }
            match self.node(&parts.step) {
                Ok(next) => self.locals[base + 1] = next,
                // as in CEL: an item that decides makes the error of another one irrelevant
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        let result = self.node(&parts.result)?;
        let is_decided = !self.boolean(&parts.condition).unwrap_or(true);
        match failure {
            Some(error) if !is_decided => Err(error),
            _ => Ok(result),
        }
    }
}

fn literal(literal: &Literal) -> Value<'_> {
    match literal {
        Literal::Null => Value::Null,
        Literal::Boolean(boolean) => Value::Boolean(*boolean),
        Literal::Number(number) => Value::Number(*number),
        Literal::Text(text) => Value::Text(Cow::Borrowed(text)),
    }
}

/// A key: JSON if it is an object, an array or a number, otherwise text.
fn key_value(key: &[u8]) -> Result<Value<'_>, String> {
    let is_json = match key.first() {
        Some(b'{' | b'[') => true,
        Some(b'-' | b'0'..=b'9') => std::str::from_utf8(key).is_ok_and(|text| Decimal::parse(text).is_some()),
        Some(b'"') => json::text(key).is_some() && key.len() > 1 && key.ends_with(b"\""),
        _ => false,
    };
    if is_json {
        return Value::of_json(key);
    }
    match std::str::from_utf8(key) {
        Ok(text) => Ok(Value::Text(Cow::Borrowed(text))),
        Err(_) => Err("the key is not valid UTF-8".to_owned()),
    }
}

fn item<'a>(of: &Value<'a>, index: &Value<'a>) -> Result<Value<'a>, String> {
    if let Value::Text(name) = index {
        return match of.member(name)? {
            Some(Some(member)) => Ok(member),
            Some(None) => Err(format!("there is no member `{name}`; test it with has(..)")),
            None => Err(format!("{} has no member `{name}`", of.kind())),
        };
    }
    let position = number(index)?.to_i64();
    let items = of.items()?.ok_or_else(|| format!("{} has no item at a position", of.kind()))?;
    let found = position.and_then(|position| usize::try_from(position).ok()).and_then(|position| items.get(position));
    found.cloned().ok_or_else(|| format!("the list has {} items; the index is out of range", items.len()))
}

fn binary<'a>(operator: Operator, left: Value<'a>, right: &Value<'a>) -> Result<Value<'a>, String> {
    let exact = |result: Result<Decimal, crate::number::Inexact>| match result {
        Ok(number) => Ok(Value::Number(number)),
        Err(error) => Err(error.to_string()),
    };
    match operator {
        Operator::Equal => left.equals(right).map(Value::Boolean),
        Operator::NotEqual => left.equals(right).map(|equal| Value::Boolean(!equal)),
        Operator::Less => left.order(right).map(|order| Value::Boolean(order.is_lt())),
        Operator::LessOrEqual => left.order(right).map(|order| Value::Boolean(order.is_le())),
        Operator::Greater => left.order(right).map(|order| Value::Boolean(order.is_gt())),
        Operator::GreaterOrEqual => left.order(right).map(|order| Value::Boolean(order.is_ge())),
        Operator::In => contains(right, &left).map(Value::Boolean),
        Operator::Add => add(left, right),
        Operator::Subtract => exact(number(&left)?.add(number(right)?.negate())),
        Operator::Multiply => exact(number(&left)?.multiply(number(right)?)),
        Operator::Divide => exact(number(&left)?.divide(number(right)?)),
        Operator::Remainder => exact(number(&left)?.remainder(number(right)?)),
    }
}

fn add<'a>(left: Value<'a>, right: &Value<'a>) -> Result<Value<'a>, String> {
    match (left, right) {
        (Value::Text(left), Value::Text(right)) => {
            let mut text = left.into_owned();
            text.push_str(right);
            Ok(Value::Text(Cow::Owned(text)))
        }
        (Value::List(mut left), right) => {
            let added = right.items()?.ok_or_else(|| format!("a list and {} cannot be added", right.kind()))?;
            Rc::make_mut(&mut left).extend(added);
            Ok(Value::List(left))
        }
        (left, right) => {
            if let (Some(mut items), Some(added)) = (left.items()?, right.items()?) {
                items.extend(added);
                return Ok(Value::List(Rc::new(items)));
            }
            let sum = number(&left)?.add(number(right)?);
            sum.map(Value::Number).map_err(|error| error.to_string())
        }
    }
}

fn contains<'a>(of: &Value<'a>, searched: &Value<'a>) -> Result<bool, String> {
    if let Some(items) = of.items()? {
        for item in &items {
            if item.equals(searched)? {
                return Ok(true);
            }
        }
        return Ok(false);
    }
    match (searched, of.names()?) {
        (Value::Text(name), Some(_)) => Ok(of.member(name)?.flatten().is_some()),
        (_, Some(_)) => Ok(false),
        (_, None) => Err(format!("{} is neither a list nor an object", of.kind())),
    }
}
