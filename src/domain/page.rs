//! Pages of a list: how large they are, and the tokens by which the next one is asked for.

use serde::{Serialize, de::DeserializeOwned};

use crate::{
    app::App,
    error::{Error, Result},
};

const PAGE_SIZE: u64 = 20;
const PAGE_SIZE_MAX: u64 = 100;

/// How many entries make a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageSize(u64);

impl PageSize {
    /// What was asked for, 100 at most; 20 where nothing was asked for, or nothing that a page can have.
    pub fn new(asked: Option<i64>) -> Self {
        let usable = asked.and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0);
        Self(usable.map_or(PAGE_SIZE, |n| Ord::min(n, PAGE_SIZE_MAX)))
    }

    pub fn get(self) -> u64 {
        self.0
    }
}

impl App {
    /// Where a page of `list` ended, for nobody to read or to change, and good for this list alone.
    pub(super) fn page_token(&self, list: &str, end: &impl Serialize) -> Result<String> {
        self.page_seal.close(list.as_bytes(), serde_json::to_vec(end).map_err(Error::internal)?)
    }

    /// What a token of `list` says.
    ///
    /// # Errors
    /// `Invalid` if it did not come with this very list.
    pub(super) fn open_page_token<T: DeserializeOwned>(&self, list: &str, token: &str) -> Result<T> {
        let end = self.page_seal.open(list.as_bytes(), token).map_err(|_| foreign_token())?;
        serde_json::from_slice(&end).map_err(Error::internal)
    }
}

/// The refusal of a token that did not come with this very list.
pub(super) fn foreign_token() -> Error {
    const FOREIGN: &str = "It did not come with a page of this very list. Repeat the filters and the ordering of the first \
                           call, or begin without a token.";
    Error::invalid("page_token", FOREIGN)
}
