//! What a PATCH changes: absent, null and a value are three things. Absent stays as it is; null clears what may be cleared,
//! and is a bad value elsewhere.

use prost_types::FieldMask;

use crate::{domain::profile::Change, error::FieldErrors};

/// How much of a wrong name is repeated to the caller: more than any right one has.
const QUOTED_CHARS: usize = 40;

/// The fields that a request means to change.
///
/// With a mask, those that it names: one that is named and unset is null. Without one, those that are set.
pub struct Patch<'a> {
    mask: Vec<String>,
    errors: &'a mut FieldErrors,
}

impl<'a> Patch<'a> {
    /// `fields`: all that a mask may name.
    pub fn new(mask: Option<FieldMask>, fields: &[&str], errors: &'a mut FieldErrors) -> Self {
        let mask = mask.map(|mask| mask.paths).unwrap_or_default();
        if let Some(foreign) = mask.iter().find(|path| !fields.contains(&path.as_str())) {
            let foreign: String = foreign.chars().take(QUOTED_CHARS).collect();
            let message = format!("{foreign:?} can't be changed. What can: {}.", fields.join(", "));
            errors.wrong("update_mask", message);
        }
        Self { mask, errors }
    }

    /// The new value of a field that can't be null.
    pub fn value<T>(&mut self, field: &'static str, value: Option<T>) -> Option<T> {
        if value.is_none() && self.names(field) && !self.errors.has(field) {
            self.errors.wrong(field, "This field may not be null.");
        }
        value.filter(|_| self.means(field))
    }

    /// What to do about a field that null clears.
    pub fn clearable<T>(&mut self, field: &'static str, value: Option<T>) -> Change<T> {
        match value {
            Some(value) if self.means(field) => Change::Set(value),
            None if self.names(field) && !self.errors.has(field) => Change::Clear,
            _ => Change::Keep,
        }
    }

    /// The field's value in its type, noting what is wrong with it.
    pub fn check<V, T>(
        &mut self,
        field: &'static str,
        value: Option<V>,
        parse: impl FnOnce(V) -> Result<T, &'static str>,
    ) -> Option<T> {
        let value = value.filter(|_| self.means(field));
        value.and_then(|value| self.errors.check(field, parse(value)))
    }

    fn names(&self, field: &str) -> bool {
        self.mask.iter().any(|path| path == field)
    }

    fn means(&self, field: &str) -> bool {
        self.mask.is_empty() || self.names(field)
    }
}
