//! Where the variables come from: the process's environment, and `.env` for what that leaves open.

use std::{collections::HashMap, fs, io, path::Path};

use super::{
    read::{ConfigErrors, Mistake},
    variables::{Shown, VARIABLES, Variable},
};

/// The variables of the process, and those of a `.env` file that the process doesn't have.
pub struct Environment(HashMap<String, String>);

impl Environment {
    /// Reads the environment and the file, if there is one. What the process has wins, even a blank: that is how one
    /// switches off a line of the file for once.
    ///
    /// # Errors
    /// Lines of the file that can't be read; values of ours that aren't UTF-8.
    pub fn read(dotenv: &Path) -> Result<Self, ConfigErrors> {
        let (environment, mistakes) = Self::read_what_can_be(dotenv);
        if mistakes.is_empty() { Ok(environment) } else { Err(ConfigErrors(mistakes)) }
    }

    pub fn get(&self, name: &str) -> Option<String> {
        self.0.get(name).cloned()
    }

    /// A warning for each name here that looks like a slip of the pen for one of ours.
    pub fn misspelt(&self) -> Vec<String> {
        let mut near: Vec<_> = self.0.keys().filter_map(|name| Some((name, nearest(name)?))).collect();
        near.sort_unstable_by_key(|(name, _)| *name);
        near.iter().map(|(name, ours)| format!("{name} is set, but unknown: is {} meant?", ours.name)).collect()
    }

    pub(super) fn read_what_can_be(dotenv: &Path) -> (Self, Vec<Mistake>) {
        let mut mistakes = Vec::new();
        let mut values = HashMap::new();
        #[expect(clippy::disallowed_methods, reason = "the one place that asks the process")]
        let process = std::env::vars_os();
        for (name, value) in process {
            let Ok(name) = name.into_string() else { continue };
            match value.into_string() {
                Ok(value) => {
                    values.insert(name, value);
                }
                Err(_) if VARIABLES.iter().any(|ours| ours.name == name) => {
                    mistakes.push(Mistake { name, wrong: "the value is not UTF-8".into(), right: "UTF-8".into() });
                }
                Err(_) => {}
            }
        }
        match fs::read_to_string(dotenv) {
            Ok(text) => read_file(&text, dotenv, &mut values, &mut mistakes),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => mistakes.push(Mistake {
                name: dotenv.display().to_string(),
                wrong: format!("it can't be read ({e})"),
                right: "a file of lines NAME=value, in UTF-8".into(),
            }),
        }
        read_secrets(&mut values, &mut mistakes);
        (Self(values), mistakes)
    }
}

/// Any secret may be in a file, as orchestrators hand them over: `NAME_FILE` names it. A newline at its end is not part of it.
fn read_secrets(values: &mut HashMap<String, String>, mistakes: &mut Vec<Mistake>) {
    for variable in VARIABLES.iter().filter(|variable| variable.shown != Shown::Plain) {
        let name = format!("{}_FILE", variable.name);
        let Some(path) = values.get(&name).filter(|path| !path.trim().is_empty()) else { continue };
        let read = if values.get(variable.name).is_some_and(|value| !value.trim().is_empty()) {
            Err(format!("{} is set too", variable.name))
        } else {
            fs::read_to_string(path.trim()).map_err(|e| format!("the file can't be read ({e})"))
        };
        match read {
            Ok(text) => {
                let text =
                    text.strip_suffix('\n').map_or(text.as_str(), |line| line.strip_suffix('\r').unwrap_or(line));
                values.insert(variable.name.to_owned(), text.to_owned());
            }
            Err(wrong) => mistakes.push(Mistake { name, wrong, right: format!("a file that holds {}", variable.form) }),
        }
    }
}

fn read_file(text: &str, path: &Path, values: &mut HashMap<String, String>, mistakes: &mut Vec<Mistake>) {
    let text = text.trim_start_matches('\u{feff}');
    let mut lines = text.lines().enumerate();
    for entry in dotenvy::from_read_iter(text.as_bytes()) {
        match entry {
            Ok((name, value)) => {
                values.entry(name).or_insert(value);
            }
            // The line itself may hold a secret: only where it is gets told.
            Err(error) => mistakes.push(Mistake {
                name: format!("{}{}", path.display(), position(&mut lines, &error)),
                wrong: "the line can't be read".into(),
                right: "NAME=value, or NAME='value' where there is white space, a quote, a $ or a # in the value"
                    .into(),
            }),
        }
    }
}

/// ` line 7`, and the name of the variable if it is one of ours. `dotenvy` tells the broken part, but not the line.
fn position<'a>(lines: &mut impl Iterator<Item = (usize, &'a str)>, error: &dotenvy::Error) -> String {
    let dotenvy::Error::LineParse(broken, _) = error else { return String::new() };
    let part = broken.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    let Some((index, line)) = lines.find(|(_, line)| line.contains(part)) else { return String::new() };
    let name = line.split('=').next().unwrap_or_default().trim().trim_start_matches("export ");
    match VARIABLES.iter().find(|ours| ours.name == name) {
        Some(ours) => format!(" line {} ({})", index + 1, ours.name),
        None => format!(" line {}", index + 1),
    }
}

/// The variable that somebody who wrote `name` may have meant.
fn nearest(name: &str) -> Option<&'static Variable> {
    let name = name.strip_suffix("_FILE").unwrap_or(name);
    if name.len() < 6 || VARIABLES.iter().any(|ours| ours.name == name) {
        return None;
    }
    let slips = |ours: &Variable| match edits(name, ours.name) {
        edits if edits <= name.len() / 6 => Some(edits),
        _ if extends(name, ours.name) || extends(ours.name, name) => Some(name.len().abs_diff(ours.name.len())),
        _ => None,
    };
    VARIABLES.iter().filter_map(|ours| Some((slips(ours)?, ours))).min_by_key(|(slips, _)| *slips).map(|(_, ours)| ours)
}

/// `JWT_SECRET_KEY` extends `JWT_SECRET`, and `POSTGRES_PASSWORD` extends `POSTGRES_PASS`.
fn extends(long: &str, short: &str) -> bool {
    short.len() >= 8 && long.len() - short.len().min(long.len()) <= 5 && long.starts_with(short)
}

/// How many letters to insert, drop or replace to make one name of the other (Levenshtein).
fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
