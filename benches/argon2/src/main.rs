//! Hashes a password as often as it is told, at the service's cost and in memory that it keeps, as the service does. Prints the
//! milliseconds of a processor that one took, and the hash.

use argon2::{Algorithm, Argon2, Block, Params, Version};
use rustix::time::{ClockId, clock_gettime};

fn main() {
    let times: u32 = std::env::args().nth(1).and_then(|times| times.parse().ok()).expect("how many times");
    let params = Params::new(19_456, 2, 1, Some(32)).expect("parameters");
    let mut memory = vec![Block::new(); params.block_count()];
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    let mut hash = [0; 32];
    let mut once =
        || argon2.hash_password_into_with_memory(b"SecurePass123!", b"sixteen bytes ok", &mut hash, &mut memory);
    once().expect("a hash");
    let began = spent();
    for _ in 0..times {
        once().expect("a hash");
    }
    let each = (spent() - began) / f64::from(times);
    println!("{each:.3} {}", hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
}

/// Milliseconds of a processor that this program has had so far.
fn spent() -> f64 {
    let spent = clock_gettime(ClockId::ProcessCPUTime);
    spent.tv_sec as f64 * 1e3 + spent.tv_nsec as f64 / 1e6
}
