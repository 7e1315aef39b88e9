//! `route`: passes records to ports.

use serde::Deserialize;
use trunkline_plugin::{ConfigError, DEFAULT_PORT, Done, Inputs, Port, Record, Verdict};

use crate::Everyday;
use crate::expression::{self, Expression, Scope};

/// The options.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    routes: Vec<RouteConfig>,
    #[serde(default = "default_port")]
    otherwise: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RouteConfig {
    port: String,
    when: String,
}

const DEFAULT: &str = "default";
const DROP: &str = "drop";

fn default_port() -> String {
    DEFAULT.to_owned()
}

#[derive(Debug)]
pub(crate) struct Route {
    ports: Vec<String>,
    routes: Vec<(Expression, Port)>,
    /// `None`: the record is dropped.
    otherwise: Option<Port>,
}

impl Route {
    pub(crate) fn new(config: &Config) -> Result<Self, ConfigError> {
        if config.routes.is_empty() {
            return Err(ConfigError::at(
                "routes",
                "is empty; expected tables such as { port = \"eu\", when = \"..\" }",
            ));
        }
        let mut route = Self { ports: Vec::new(), routes: Vec::new(), otherwise: None };
        for (index, rule) in config.routes.iter().enumerate() {
            let condition = expression::compile_condition(&format!("routes[{index}].when"), &rule.when)?;
            let is_name = |character: char| character.is_ascii_alphanumeric() || matches!(character, '_' | '-');
            if rule.port.is_empty() || rule.port == DROP || !rule.port.chars().all(is_name) {
                let message =
                    format!("`{}` is not the name of a port; expected letters, digits, `_` and `-`", rule.port);
                return Err(ConfigError::at(format!("routes[{index}].port"), message));
            }
            let port = route.port(&rule.port);
            route.routes.push((condition, port));
        }
        route.otherwise = match config.otherwise.as_str() {
            DROP => None,
            other if other == DEFAULT || route.ports.iter().any(|port| port == other) => Some(route.port(other)),
            other => {
                let ports = route.ports.join("`, `");
                let message = format!("there is no port `{other}`; expected `default`, `drop` or one of `{ports}`");
                return Err(ConfigError::at("otherwise", message));
            }
        };
        Ok(route)
    }

    fn port(&mut self, name: &str) -> Port {
        if name == DEFAULT {
            return DEFAULT_PORT;
        }
        let position = self.ports.iter().position(|known| known == name).unwrap_or_else(|| {
            self.ports.push(name.to_owned());
            self.ports.len() - 1
        });
        Port::try_from(position + 1).unwrap_or(DEFAULT_PORT)
    }
}

impl Everyday for Route {
    fn ports(&self) -> Vec<String> {
        self.ports.clone()
    }

    fn keeps_schema(&self) -> bool {
        true
    }

    fn inputs(&self) -> Inputs {
        self.routes.iter().fold(Inputs::VALUE, |inputs, (condition, _)| inputs.and(condition.inputs()))
    }

    fn record(&mut self, record: Record<'_>, verdict: Verdict<'_>) -> Done {
        for (condition, port) in &self.routes {
            match condition.is_true(Scope::of(record)) {
                Ok(true) => return verdict.pass_to(*port),
                Ok(false) => {}
                // a tombstone has no members
                Err(_) if record.value().is_none() => {}
                Err(problem) => {
                    let message = format!("a condition has no value: {problem}");
                    return verdict.reject("route.condition", &message);
                }
            }
        }
        match self.otherwise {
            Some(port) => verdict.pass_to(port),
            None => verdict.drop(),
        }
    }
}
