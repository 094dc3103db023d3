//! Chance: the system's CSPRNG, asked in one place.

use aws_lc_rs::rand;

/// `N` random bytes.
///
/// # Panics
/// If the system has no randomness to give: nothing that needs it may go on.
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    #[expect(clippy::disallowed_methods, reason = "the one place that asks the system")]
    #[expect(clippy::expect_used, reason = "without randomness there is no security to keep up")]
    rand::fill(&mut bytes).expect("the system's random number generator");
    bytes
}
