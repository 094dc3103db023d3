//! Paths and queries: variables, filters, orderings, page numbers and page tokens.
#![no_main]

use identity_fuzz::{Kind, exchange};
use libfuzzer_sys::{Corpus, fuzz_target};

fuzz_target!(|data: &[u8]| -> Corpus { exchange(data, Kind::Query) });
