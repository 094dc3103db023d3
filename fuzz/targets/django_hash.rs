//! Stored hashes, ours and those of Django: a first line with the password, then what is stored.
#![no_main]

use identity::{
    hash_pool::Scratch,
    model::password::{self, Argon2Params, Password, Verdict},
};
use libfuzzer_sys::{Corpus, fuzz_target};

/// The numbers of a hash that is cheap to check, multiplied: passes × memory × lanes, or iterations.
const MAX_WORK: u64 = 20_000;
const MAX_BCRYPT_COST: u64 = 5;

fuzz_target!(|data: &[u8]| -> Corpus {
    let Ok(text) = std::str::from_utf8(data) else { return Corpus::Reject };
    let Some((typed, stored)) = text.split_once('\n') else { return Corpus::Reject };
    let Ok(typed) = Password::given(typed) else { return Corpus::Reject };
    if !is_cheap(stored) {
        return Corpus::Reject;
    }
    let params = Argon2Params::new(8, 1, 1).expect("the least");
    let mut scratch = Scratch::default();
    let verdict = password::verify(stored, &typed, params, &mut scratch).expect("there is memory for it");
    if matches!(verdict, Verdict::Right { .. }) {
        // Whatever was taken has a cost and an end: neither less of it nor more is the same hash.
        for other in [&stored[..stored.len() - 1], &format!("{stored}A"), &format!(" {stored}")] {
            let verdict = password::verify(other, &typed, params, &mut scratch).expect("there is memory for it");
            assert_eq!(verdict, Verdict::Wrong, "{other:?} is taken, too");
        }
        let other = Password::given("another").expect("a password");
        let verdict = password::verify(stored, &other, params, &mut scratch).expect("there is memory for it");
        assert_eq!(verdict, Verdict::Wrong, "another password is taken, too");
    }
    Corpus::Keep
});

/// Dear ones are refused by bounds of their own, which tests look at; here they would only take the time.
fn is_cheap(stored: &str) -> bool {
    let numbers = stored.split(|c: char| matches!(c, '$' | ',' | '=')).filter_map(|part| part.parse::<u64>().ok());
    if stored.starts_with("bcrypt") {
        return numbers.max().unwrap_or(0) <= MAX_BCRYPT_COST;
    }
    let parameters = numbers.filter(|number| *number > 0);
    parameters.fold(1_u64, u64::saturating_mul) <= MAX_WORK * 19 // `v=19` is among them
}
