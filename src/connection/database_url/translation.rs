//! Translates the parameters of a `DATABASE_URL` to libpq's, and collects what cannot be translated.

use super::super::grammar::GivenParameter;
use super::super::parameter::{PARAMETERS, Values, find_similar, find_similar_in, normalized};
use super::super::redact::quoted;
use super::parameters::{self, Dialect, Meaning};
use super::tls::TlsStatements;

/// The parameters read so far.
pub(super) struct Translation {
    dialect: Dialect,
    values: Values,
    /// SQLAlchemy's list of hosts: each `host` in the query of a URI, and its port, which may be empty. `None` where a
    /// repeated parameter replaces the one before.
    hosts: Option<Vec<(String, String)>>,
    has_port: bool,
    tls: TlsStatements,
    /// There is a parameter that only Prisma has.
    is_prisma: bool,
    /// What to call the unknown parameters, with suggestions.
    unknown: Vec<String>,
    /// Other mistakes, each a whole clause.
    problems: Vec<String>,
}

impl Translation {
    /// Starts with the values of the authority and the path.
    pub(super) fn new(values: Values, dialect: Dialect) -> Translation {
        Translation {
            dialect,
            values,
            hosts: None,
            has_port: false,
            tls: TlsStatements::default(),
            is_prisma: false,
            unknown: Vec::new(),
            problems: Vec::new(),
        }
    }

    /// Makes a repeated `host` add to the list of hosts.
    pub(super) fn collecting_hosts(self) -> Translation {
        Translation {
            hosts: Some(Vec::new()),
            ..self
        }
    }

    /// Returns a sink for the parser, which never ends it: all mistakes are reported at once.
    pub(super) fn sink(&mut self) -> impl FnMut(GivenParameter) -> Result<(), String> {
        |given| {
            self.add(&given);
            Ok(())
        }
    }

    fn add(&mut self, given: &GivenParameter) {
        let listed = parameters::find(&given.name);
        let is_about_tls = listed.is_some_and(|listed| matches!(listed.meaning, Meaning::Tls(_)));
        let libpq = PARAMETERS.iter().find(|(name, _)| *name == given.name);
        // In libpq's own spelling it means what it means there, unless it has a part in what is said about TLS.
        if let Some((name, _)) = libpq.filter(|_| !is_about_tls) {
            return self.set(given, name, &given.value);
        }
        self.is_prisma |= listed.is_some_and(|listed| listed.is_only_of_prisma);
        match listed.map(|listed| listed.meaning) {
            Some(Meaning::NoEffect) => {}
            Some(Meaning::Alias(name)) => self.set(given, name, &given.value),
            Some(Meaning::Choice(name, choices)) => {
                let choice = choices
                    .iter()
                    .find(|(theirs, _)| theirs.eq_ignore_ascii_case(&given.value));
                self.set(given, name, choice.map_or(&given.value, |(_, ours)| ours));
            }
            Some(Meaning::Tls(parameter)) => {
                if let Err(expected) = self.tls.add(parameter, &given.value, self.dialect) {
                    let value = if given.is_value_quotable {
                        quoted(&given.value)
                    } else {
                        "invalid".into()
                    };
                    self.problems
                        .push(format!("{} is {value}; expected {expected}", given.label));
                }
            }
            Some(Meaning::Refused { unless, detail }) => {
                if !unless.iter().any(|value| value.eq_ignore_ascii_case(&given.value)) {
                    self.problems.push(format!("{} is not supported{detail}", given.label));
                }
            }
            None => self.add_unlisted(given),
        }
    }

    /// Adds a parameter that is neither libpq's nor in the table: in another spelling it may be libpq's.
    fn add_unlisted(&mut self, given: &GivenParameter) {
        let name = normalized(&given.name);
        if let Some((libpq, _)) = PARAMETERS.iter().find(|(libpq, _)| normalized(libpq) == name) {
            return self.set(given, libpq, &given.value);
        }
        let label = given.label.strip_prefix("parameter ").unwrap_or(&given.label);
        let similar = find_similar(&given.name).or_else(|| find_similar_in(&given.name, parameters::names()));
        self.unknown.push(match similar {
            Some(similar) => format!("{label} (did you mean {similar}?)"),
            None => label.to_owned(),
        });
    }

    fn set(&mut self, given: &GivenParameter, parameter: &str, value: &str) {
        // As for TLS, the strictest counts.
        if parameter == "channel_binding" && self.values.get(parameter) == Some("require") {
            return;
        }
        match &mut self.hosts {
            Some(hosts) if parameter == "host" => {
                hosts.push(split_port(value));
                let list: Vec<&str> = hosts.iter().map(|(host, _)| host.as_str()).collect();
                self.values.set_known(parameter, &list.join(","));
            }
            _ => {
                self.has_port |= parameter == "port";
                self.values.set_known(parameter, value);
            }
        }
        if !given.is_value_quotable {
            self.values.hide(parameter);
        }
    }

    /// Returns the values for libpq's parameters.
    ///
    /// # Errors
    /// Parameters are unknown or not supported; the error names all of them.
    pub(super) fn finish(mut self) -> Result<Values, String> {
        if !self.unknown.is_empty() {
            let noun = if self.unknown.len() > 1 {
                "parameters"
            } else {
                "parameter"
            };
            let problem = format!("unknown connection {noun} {}", self.unknown.join(", "));
            self.problems.insert(0, problem);
        }
        let ports: Vec<&str> = self.hosts.iter().flatten().map(|(_, port)| port.as_str()).collect();
        if ports.iter().any(|port| !port.is_empty()) {
            self.values.set_known("port", &ports.join(","));
            if self.has_port {
                self.problems.push("both host and port give a port".into());
            }
        }
        if !self.problems.is_empty() {
            return Err(self.problems.join("; "));
        }
        self.tls.apply(&mut self.values, self.is_prisma);
        Ok(self.values)
    }
}

/// Splits `host:port`, as SQLAlchemy does. A path may contain colons, and so does an IPv6 address.
fn split_port(value: &str) -> (String, String) {
    let (host, port) = match value.split_once(':') {
        Some((host, port)) if !host.is_empty() && !host.starts_with(['/', '@']) && is_number(port) => (host, port),
        _ => (value, ""),
    };
    (host.to_owned(), port.to_owned())
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}
