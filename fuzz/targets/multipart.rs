//! Form bodies: parts, fields and pictures.
#![no_main]

use identity_fuzz::{Kind, exchange, mutate};
use libfuzzer_sys::{Corpus, fuzz_mutator, fuzz_target};

fuzz_target!(|data: &[u8]| -> Corpus { exchange(data, Kind::Form) });
fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| { mutate(data, size, max_size, seed) });
