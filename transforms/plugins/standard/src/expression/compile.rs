//! Parses an expression, and checks its names.

use cel::common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue, operators};
use cel::parser::PrattParser;
use regex_lite::Regex;
use trunkline_plugin::Inputs;

use super::functions::{self, Function};
use crate::number::Decimal;

/// An expression that is ready to be evaluated.
#[derive(Debug)]
pub(crate) struct Expression {
    pub(super) root: Node,
    inputs: Inputs,
}

/// A column, from 1, and a problem.
type CompileError = (usize, String);

/// The names that every expression sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Variable {
    Value,
    Row,
    Key,
    Headers,
    Topic,
    Partition,
    Offset,
    Timestamp,
}

const VARIABLES: [(&str, Variable); 8] = [
    ("value", Variable::Value),
    ("row", Variable::Row),
    ("key", Variable::Key),
    ("headers", Variable::Headers),
    ("topic", Variable::Topic),
    ("partition", Variable::Partition),
    ("offset", Variable::Offset),
    ("timestamp", Variable::Timestamp),
];

#[derive(Debug)]
pub(super) enum Literal {
    Null,
    Boolean(bool),
    Number(Decimal),
    Text(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    In,
}

#[derive(Debug)]
pub(super) enum Node {
    Literal(Literal),
    Variable(Variable),
    /// A variable of a macro such as `all`, by its position on the stack.
    Local(usize),
    Member(Box<Node>, String),
    Has(Box<Node>, String),
    Index(Box<Node>, Box<Node>),
    And(Box<Node>, Box<Node>),
    Or(Box<Node>, Box<Node>),
    Not(Box<Node>),
    Negate(Box<Node>),
    NotStrictlyFalse(Box<Node>),
    Condition(Box<[Node; 3]>),
    Binary(Operator, Box<[Node; 2]>),
    /// The comparison of a member with a literal, the most frequent condition.
    Compare(Box<Comparison>),
    Call(Function, Vec<Node>),
    Matches(Box<Node>, Regex),
    List(Vec<Node>),
    Map(Vec<(Node, Node)>),
    Loop(Box<Loop>),
    /// Appends to the list in a local variable, which is taken: the loops of `map` and `filter`.
    Append(usize, Vec<Node>),
}

/// A member of the value or the row, an operator and a literal.
#[derive(Debug)]
pub(super) struct Comparison {
    pub(super) variable: Variable,
    pub(super) path: Vec<String>,
    pub(super) operator: Operator,
    pub(super) literal: Literal,
    /// The member as an expression, for the cases that need one.
    pub(super) member: Node,
}

impl Comparison {
    /// The node of a binary operation.
    fn or_binary(operator: Operator, left: Node, right: Node) -> Node {
        use Operator::{Equal, Greater, GreaterOrEqual, Less, LessOrEqual, NotEqual};
        let is_comparison = matches!(operator, Equal | NotEqual | Less | LessOrEqual | Greater | GreaterOrEqual);
        match (Self::path(&left), right) {
            (Some((variable, path)), Node::Literal(literal)) if is_comparison => {
                Node::Compare(Box::new(Self { variable, path, operator, literal, member: left }))
            }
            (_, right) => Node::Binary(operator, Box::new([left, right])),
        }
    }

    fn path(node: &Node) -> Option<(Variable, Vec<String>)> {
        let Node::Member(of, name) = node else { return None };
        let (variable, mut path) = match of.as_ref() {
            Node::Variable(variable @ (Variable::Value | Variable::Row)) => (*variable, Vec::new()),
            of => Self::path(of)?,
        };
        path.push(name.clone());
        Some((variable, path))
    }
}

/// The form of the macros `all`, `exists`, `exists_one`, `filter` and `map`.
#[derive(Debug)]
pub(super) struct Loop {
    pub(super) range: Node,
    pub(super) initial: Node,
    pub(super) condition: Node,
    pub(super) step: Node,
    pub(super) result: Node,
}

impl Expression {
    /// Compiles an expression. The error has the column.
    pub(crate) fn compile(source: &str) -> Result<Self, CompileError> {
        let parsed = PrattParser::default().parse(source).map_err(|errors| match errors.errors.first() {
            Some(error) => (column(source, error.pos), in_words(&error.msg)),
            None => (1, "the expression is not valid".to_owned()),
        })?;
        let mut compiler = Compiler { source, locals: Vec::new(), inputs: Inputs::VALUE };
        Ok(Self { root: compiler.node(&parsed)?, inputs: compiler.inputs })
    }

    /// What the expression gives if that is never true or false, as far as its outermost operation
    /// shows it.
    pub(super) fn other_than_boolean(&self) -> Option<&'static str> {
        use Operator::{Add, Divide, Multiply, Remainder, Subtract};
        match &self.root {
            Node::Literal(Literal::Null) => Some("null"),
            Node::Literal(Literal::Number(_)) | Node::Negate(_) => Some("a number"),
            Node::Literal(Literal::Text(_)) => Some("a text"),
            Node::Binary(Add, _) => Some("a number or a text"),
            Node::Binary(Subtract | Multiply | Divide | Remainder, _) => Some("a number"),
            Node::List(_) => Some("a list"),
            Node::Map(_) => Some("an object"),
            Node::Variable(Variable::Headers) => Some("an object"),
            Node::Variable(Variable::Topic) => Some("a text"),
            Node::Variable(Variable::Partition | Variable::Offset | Variable::Timestamp) => Some("a number"),
            _ => None,
        }
    }

    /// The parts of records that the expression reads: at least the value, as a tombstone is tested
    /// first.
    pub(crate) fn inputs(&self) -> Inputs {
        self.inputs
    }
}

/// The position of the parser, a line and a column from 1, as a column of the whole text.
fn column(source: &str, (line, column): (isize, isize)) -> usize {
    let from_one = |number: isize| usize::try_from(number).unwrap_or(1).max(1);
    let before = source.split_inclusive('\n').take(from_one(line) - 1);
    before.map(|line| line.chars().count()).sum::<usize>() + from_one(column)
}

/// The parser's message.
fn in_words(message: &str) -> String {
    let message = message.lines().next().unwrap_or_default().trim_start_matches("Syntax error: ");
    if message == "invalid argument to has() macro" {
        return "`has` needs a member, such as `has(value.name)`".to_owned();
    }
    let mismatch = message.strip_prefix("mismatched input ").and_then(|rest| rest.split_once(" expecting "));
    let Some((found, expected)) = mismatch else { return message.to_owned() };
    let expected = match expected {
        "<EOF>" => "the end or an operator",
        "expression" => "a value",
        expected => expected,
    };
    match found {
        "'<EOF>'" => format!("the expression ends here, and lacks {expected}"),
        found => format!("found {found} instead of {expected}"),
    }
}

struct Compiler<'s> {
    source: &'s str,
    /// Names of the variables of enclosing macros: each has an item and an accumulator.
    locals: Vec<String>,
    /// The parts of records that the variables so far read.
    inputs: Inputs,
}

impl Compiler<'_> {
    /// The error at the first occurrence of a name in the source, if possible not as a member.
    fn error(&self, name: &str, message: String) -> CompileError {
        let is_part = |character: char| character.is_alphanumeric() || character == '_';
        let is_word = |(at, _): &(usize, &str)| {
            let before = self.source[..*at].chars().next_back();
            let after = self.source[at + name.len()..].chars().next();
            !before.is_some_and(is_part) && !after.is_some_and(is_part)
        };
        let words = || self.source.match_indices(name).filter(is_word);
        let place = words().find(|(at, _)| !self.source[..*at].ends_with('.')).or_else(|| words().next());
        (place.map_or(1, |(at, _)| self.source[..at].chars().count() + 1), message)
    }

    fn node(&mut self, expression: &IdedExpr) -> Result<Node, CompileError> {
        match &expression.expr {
            Expr::Literal(literal) => self.literal(literal),
            Expr::Ident(name) => self.name(name),
            Expr::Select(select) => {
                let operand = Box::new(self.node(&select.operand)?);
                Ok(match select.test {
                    true => Node::Has(operand, select.field.clone()),
                    false => Node::Member(operand, select.field.clone()),
                })
            }
            Expr::List(list) => {
                Ok(Node::List(list.elements.iter().map(|item| self.node(item)).collect::<Result<_, _>>()?))
            }
            Expr::Map(map) => {
                let mut members = Vec::new();
                for entry in &map.entries {
                    match &entry.expr {
                        EntryExpr::MapEntry(entry) => members.push((self.node(&entry.key)?, self.node(&entry.value)?)),
                        EntryExpr::StructField(_) => return Err((1, "messages are not supported".to_owned())),
                    }
                }
                Ok(Node::Map(members))
            }
            Expr::Call(call) => self.call(call),
            Expr::Comprehension(comprehension) => self.comprehension(comprehension),
            Expr::Struct(message) => {
                let problem = format!("messages such as `{}{{..}}` are not supported", message.type_name);
                Err(self.error(&message.type_name, problem))
            }
            Expr::Unspecified => Err((1, "the expression is empty".to_owned())),
        }
    }

    fn literal(&self, literal: &LiteralValue) -> Result<Node, CompileError> {
        let number = |text: String| {
            let parsed = Decimal::parse(&text).map(|number| Node::Literal(Literal::Number(number)));
            parsed.ok_or_else(|| (1, format!("the number {text} is not valid or has more than 38 digits")))
        };
        match literal {
            LiteralValue::Null => Ok(Node::Literal(Literal::Null)),
            LiteralValue::Boolean(boolean) => Ok(Node::Literal(Literal::Boolean(*boolean.inner()))),
            LiteralValue::Int(int) => number(int.inner().to_string()),
            LiteralValue::UInt(uint) => number(uint.inner().to_string()),
            // the shortest text that gives this double is what was written
            LiteralValue::Double(double) => number(double.inner().to_string()),
            LiteralValue::String(text) => Ok(Node::Literal(Literal::Text(text.inner().to_owned()))),
            LiteralValue::Bytes(_) => Err((1, "bytes are not supported; expected a text".to_owned())),
        }
    }

    fn name(&mut self, name: &str) -> Result<Node, CompileError> {
        if let Some(position) = self.locals.iter().rposition(|local| local == name) {
            return Ok(Node::Local(position));
        }
        if let Some((_, variable)) = VARIABLES.iter().find(|(known, _)| *known == name) {
            self.inputs = self.inputs.and(match variable {
                Variable::Key => Inputs::KEY,
                Variable::Headers => Inputs::HEADERS,
                _ => Inputs::VALUE,
            });
            return Ok(Node::Variable(*variable));
        }
        let known: Vec<&str> = VARIABLES.iter().map(|(known, _)| *known).collect();
        Err(self.error(
            name,
            format!(
                "there is no variable `{name}`; a member of the value is `value.{name}`; variables: {}",
                known.join(", ")
            ),
        ))
    }

    /// Macros name their accumulators so that no expression can name them.
    fn is_accumulator(&self, position: usize) -> bool {
        self.locals.get(position).is_some_and(|name| name.starts_with('@'))
    }

    fn boxed(&mut self, expression: &IdedExpr) -> Result<Box<Node>, CompileError> {
        self.node(expression).map(Box::new)
    }

    fn call(&mut self, call: &CallExpr) -> Result<Node, CompileError> {
        let arguments: Vec<&IdedExpr> = match &call.target {
            Some(target) if namespace(target).is_none() => std::iter::once(target.as_ref()).chain(&call.args).collect(),
            _ => call.args.iter().collect(),
        };
        if let (Some(operator), [left, right]) = (binary(&call.func_name), arguments.as_slice()) {
            return Ok(match (operator, self.node(left)?, self.node(right)?) {
                (Operator::Add, Node::Local(position), Node::List(items)) if self.is_accumulator(position) => {
                    Node::Append(position, items)
                }
                (operator, left, right) => Comparison::or_binary(operator, left, right),
            });
        }
        match (call.func_name.as_str(), arguments.as_slice()) {
            (operators::LOGICAL_AND, [first, rest @ ..]) => {
                rest.iter().try_fold(self.node(first)?, |left, right| Ok(Node::And(Box::new(left), self.boxed(right)?)))
            }
            (operators::LOGICAL_OR, [first, rest @ ..]) => {
                rest.iter().try_fold(self.node(first)?, |left, right| Ok(Node::Or(Box::new(left), self.boxed(right)?)))
            }
            (operators::LOGICAL_NOT, [operand]) => Ok(Node::Not(self.boxed(operand)?)),
            (operators::NEGATE, [operand]) => Ok(Node::Negate(self.boxed(operand)?)),
            // it is true for an error, too: the loop of a macro continues until a false result
            (operators::NOT_STRICTLY_FALSE, [operand]) => Ok(Node::NotStrictlyFalse(self.boxed(operand)?)),
            (operators::CONDITIONAL, [condition, yes, no]) => {
                Ok(Node::Condition(Box::new([self.node(condition)?, self.node(yes)?, self.node(no)?])))
            }
            (operators::INDEX, [of, index]) => Ok(Node::Index(self.boxed(of)?, self.boxed(index)?)),
            ("matches", [text, pattern]) => self.matches(text, pattern),
            (name, _) => self.function(call, name, &arguments),
        }
    }

    fn matches(&mut self, text: &IdedExpr, pattern: &IdedExpr) -> Result<Node, CompileError> {
        let Expr::Literal(LiteralValue::String(pattern)) = &pattern.expr else {
            return Err(self.error("matches", "the pattern of `matches` must be a literal text".to_owned()));
        };
        let pattern = pattern.inner();
        match Regex::new(pattern) {
            Ok(regex) => Ok(Node::Matches(self.boxed(text)?, regex)),
            Err(error) => {
                Err(self.error("matches", format!("the pattern of `matches` is not a regular expression: {error}")))
            }
        }
    }

    fn function(&mut self, call: &CallExpr, name: &str, arguments: &[&IdedExpr]) -> Result<Node, CompileError> {
        let full = match call.target.as_deref().and_then(namespace) {
            Some(space) => format!("{space}.{name}"),
            None => name.to_owned(),
        };
        let Some((function, counts)) = functions::find(&full) else {
            if full.starts_with(['_', '@', '!', '-']) {
                return Err((1, format!("the operator `{full}` is not supported")));
            }
            let problem = format!("there is no function `{full}`; functions: {}", functions::names().join(", "));
            return Err(self.error(name, problem));
        };
        if !counts.contains(&arguments.len()) {
            let problem = format!("`{full}` has {} arguments; expected {counts:?}", arguments.len());
            return Err(self.error(name, problem));
        }
        let nodes = arguments.iter().map(|argument| self.node(argument)).collect::<Result<_, _>>()?;
        Ok(Node::Call(function, nodes))
    }

    fn comprehension(&mut self, comprehension: &ComprehensionExpr) -> Result<Node, CompileError> {
        if let Some(second) = &comprehension.iter_var2 {
            return Err(self.error(second, "macros with two variables are not supported".to_owned()));
        }
        let range = self.node(&comprehension.iter_range)?;
        let initial = self.node(&comprehension.accu_init)?;
        self.locals.push(comprehension.iter_var.clone());
        self.locals.push(comprehension.accu_var.clone());
        let condition = self.node(&comprehension.loop_cond);
        let step = self.node(&comprehension.loop_step);
        let result = self.node(&comprehension.result);
        self.locals.truncate(self.locals.len() - 2);
        Ok(Node::Loop(Box::new(Loop { range, initial, condition: condition?, step: step?, result: result? })))
    }
}

/// The namespace of a function such as `math.round`.
fn namespace(target: &IdedExpr) -> Option<&str> {
    match &target.expr {
        Expr::Ident(name) if matches!(name.as_str(), "math" | "geo") => Some(name),
        _ => None,
    }
}

fn binary(name: &str) -> Option<Operator> {
    Some(match name {
        operators::ADD => Operator::Add,
        operators::SUBSTRACT => Operator::Subtract,
        operators::MULTIPLY => Operator::Multiply,
        operators::DIVIDE => Operator::Divide,
        operators::MODULO => Operator::Remainder,
        operators::EQUALS => Operator::Equal,
        operators::NOT_EQUALS => Operator::NotEqual,
        operators::LESS => Operator::Less,
        operators::LESS_EQUALS => Operator::LessOrEqual,
        operators::GREATER => Operator::Greater,
        operators::GREATER_EQUALS => Operator::GreaterOrEqual,
        operators::IN => Operator::In,
        _ => return None,
    })
}
