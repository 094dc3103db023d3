//! Reads variables one by one, and remembers what it met: mistakes, warnings, what is in force.

use std::{fmt, str::FromStr};

use secrecy::SecretString;
use url::Url;

use super::{
    NOT_YET,
    key::fingerprint,
    parse::{self, Wrong},
    variables::{Fallback, Shown, Variable},
};

/// All that is wrong with the configuration; never empty. Its text has one line a mistake, and no secret in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<Mistake>);

/// One thing to put right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// The variable, or the place in `.env`.
    pub name: String,
    pub wrong: String,
    /// What would be right.
    pub right: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; expected {}", self.name, self.wrong, self.right)
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, mistake) in self.0.iter().enumerate() {
            write!(f, "{}{mistake}", if i == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// A variable and what holds for it, fit to be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    pub variable: &'static Variable,
    /// The value, without its secrets.
    pub value: String,
    /// Whether it was set, rather than left to its default.
    pub is_set: bool,
}

pub(super) struct Reader<L> {
    lookup: L,
    pub mistakes: Vec<Mistake>,
    pub warnings: Vec<String>,
    pub settings: Vec<Setting>,
}

impl<L: Fn(&str) -> Option<String>> Reader<L> {
    pub fn new(lookup: L) -> Self {
        Self { lookup, mistakes: Vec::new(), warnings: Vec::new(), settings: Vec::new() }
    }

    /// The value of a variable whose default is in the table.
    pub fn value<T: PartialEq>(&mut self, variable: &'static Variable, parse: impl Fn(&str) -> Result<T, Wrong>) -> T {
        let Fallback::Value(text) = variable.default else {
            unreachable!("{} has no value in the table of variables", variable.name)
        };
        let default = parse(text).unwrap_or_else(|Wrong(wrong)| {
            unreachable!("the default of {}: {wrong}; a test reads them all", variable.name)
        });
        if let Some((set, value)) = self.parsed(variable, parse) {
            self.note(variable, shown(variable.shown, &set), true);
            self.warn_if_not_yet(variable, value != default);
            value
        } else {
            self.note(variable, text.into(), false);
            default
        }
    }

    /// The value of a variable whose default is worked out.
    pub fn value_or<T: fmt::Display>(
        &mut self,
        variable: &'static Variable,
        default: T,
        parse: impl Fn(&str) -> Result<T, Wrong>,
    ) -> T {
        let value = self.parsed(variable, parse);
        self.warn_if_not_yet(variable, value.is_some());
        let is_set = value.is_some();
        let value = value.map_or(default, |(_, value)| value);
        self.note(variable, value.to_string(), is_set);
        value
    }

    /// The value of a variable that may be absent.
    pub fn optional<T>(&mut self, variable: &'static Variable, parse: impl Fn(&str) -> Result<T, Wrong>) -> Option<T> {
        let value = self.parsed(variable, parse);
        self.warn_if_not_yet(variable, value.is_some());
        match &value {
            Some((text, _)) => self.note(variable, shown(variable.shown, text), true),
            None => self.note(variable, format!("({})", variable.default.text()), false),
        }
        value.map(|(_, value)| value)
    }

    /// A secret, to the letter.
    pub fn secret(&mut self, variable: &'static Variable) -> Option<SecretString> {
        let secret = self.optional(variable, |text| Ok(text.to_owned()))?;
        if secret.trim() != secret {
            self.warnings
                .push(format!("{} begins or ends with white space, which is taken as part of it", variable.name));
        }
        Some(secret.into())
    }

    /// A whole number within `range`.
    pub fn number<T>(&mut self, variable: &'static Variable, range: std::ops::RangeInclusive<T>) -> T
    where
        T: FromStr + PartialOrd + fmt::Display,
    {
        self.value(variable, |text| parse::number(text, &range))
    }

    pub fn is_set(&self, variable: &Variable) -> bool {
        self.settings.iter().any(|s| s.variable.name == variable.name && s.is_set)
    }

    /// The names of those that are set, as a list to read; `None` if none is.
    pub fn set_among<'v>(&self, variables: impl IntoIterator<Item = &'v &'static Variable>) -> Option<String> {
        let set: Vec<_> = variables.into_iter().filter(|variable| self.is_set(variable)).map(|v| v.name).collect();
        (!set.is_empty()).then(|| set.join(", "))
    }

    pub fn mistake(&mut self, variable: &Variable, wrong: impl Into<String>) {
        self.mistakes.push(Mistake { name: variable.name.into(), wrong: wrong.into(), right: variable.form.into() });
    }

    pub fn warn(&mut self, warning: impl Into<String>) {
        self.warnings.push(warning.into());
    }

    /// The text of a variable that is set and not blank. Secrets keep the white space around them.
    pub fn text(&self, variable: &Variable) -> Option<String> {
        let text = (self.lookup)(variable.name).filter(|text| !text.trim().is_empty())?;
        Some(match variable.shown {
            Shown::Fingerprint | Shown::Hidden => text,
            Shown::Plain | Shown::Place => text.trim().to_owned(),
        })
    }

    /// The text and the value of a variable that is set and right.
    fn parsed<T>(&mut self, variable: &Variable, parse: impl Fn(&str) -> Result<T, Wrong>) -> Option<(String, T)> {
        let text = self.text(variable)?;
        match parse(&text) {
            Ok(value) => Some((text, value)),
            Err(Wrong(wrong)) => {
                // A URL with a user, or with parameters, may well hold a secret, though it has no place for one.
                let may_hold_a_secret = text.contains("://") && text.contains(['@', '?']);
                let wrong = if variable.shown == Shown::Plain && !may_hold_a_secret {
                    format!("{text:?} {wrong}")
                } else {
                    format!("the value {wrong}")
                };
                self.mistake(variable, wrong);
                None
            }
        }
    }

    fn note(&mut self, variable: &'static Variable, value: String, is_set: bool) {
        self.settings.push(Setting { variable, value, is_set });
    }

    fn warn_if_not_yet(&mut self, variable: &Variable, departs: bool) {
        if departs && NOT_YET.contains(&variable.name) {
            self.warn(format!("{} is set, but this release doesn't act upon it yet", variable.name));
        }
    }
}

fn shown(how: Shown, text: &str) -> String {
    match how {
        Shown::Plain => text.into(),
        Shown::Place => without_credentials(text),
        Shown::Fingerprint => format!("sha256 {}", fingerprint(text.as_bytes())),
        Shown::Hidden => "(set)".into(),
    }
}

/// A URL without user, password and query, each of which may hold a secret.
fn without_credentials(text: &str) -> String {
    let Ok(mut url) = Url::parse(text) else { return "(set)".into() };
    url.set_query(None);
    url.set_fragment(None);
    // These fail for a URL without a host, which has neither.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.into()
}
