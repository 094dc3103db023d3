//! The users of a run, as lines for `identity import`: the same ones each time.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::Path,
};

use argon2::{Algorithm, Argon2, Params, Version};
use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};

use crate::Outcome;

/// That of every user.
pub const PASSWORD: &str = "SecurePass123!";
/// The superuser, who comes first.
pub const ADMIN: &str = "admin@example.com";
/// A first name that one user in twenty has; what one in ten has in the address; and what all have there.
pub const COMMON_NAME: &str = "maria";
pub const COMMON_HOST: &str = "fabrikam";
pub const EVERYBODY: &str = "example";

/// The service's parameters of argon2id (OWASP's): 19 MiB, two passes, one lane.
pub const MEMORY_KIB: u32 = 19_456;
pub const PASSES: u32 = 2;

const FIRST: [&str; 20] = [
    "Anna", "Boris", "Clara", "David", "Elena", "Farid", "Grace", "Hugo", "Irina", "Jonas", "Karla", "Liam", "Maria",
    "Nikolai", "Olga", "Pavel", "Rosa", "Stefan", "Tamara", "Viktor",
];
const LAST: [&str; 25] = [
    "Andersson",
    "Becker",
    "Costa",
    "Dubois",
    "Egorov",
    "Fischer",
    "Garcia",
    "Haddad",
    "Ivanova",
    "Jansen",
    "Kowalski",
    "Larsen",
    "Moretti",
    "Novak",
    "Okafor",
    "Petrov",
    "Quinn",
    "Rossi",
    "Schmidt",
    "Tanaka",
    "Ueda",
    "Vargas",
    "Weber",
    "Yilmaz",
    "Zhang",
];
const HOSTS: [&str; 10] = [
    "adatum",
    "contoso",
    "cohowinery",
    COMMON_HOST,
    "litware",
    "northwind",
    "proseware",
    "tailspin",
    "treyresearch",
    "wingtip",
];

/// The address of the n-th user after the superuser.
pub fn email(n: u64) -> String {
    let (first, last, host) = (of(&FIRST, n, 1), of(&LAST, n, 7), of(&HOSTS, n, 3));
    format!("{first}.{last}.{n}@{host}.example.com").to_lowercase()
}

/// A first name that one user in a thousand has, each another: that of the last of so many users.
pub fn rare(users: u64) -> String {
    format!("zephyr{}x", users / 1000 * 1000 - 1)
}

/// Writes so many users, the superuser among them. One in ten is a freelancer, one in a hundred a moderator, one in twenty has
/// a profile that others don't see, one in fifty is no longer active. The first thousand are neither: they are those who call.
pub fn write(path: &Path, users: u64) -> Outcome<()> {
    let mut file = BufWriter::new(File::create(path)?);
    let hash = hash()?;
    writeln!(
        file,
        r#"{{"email":"{ADMIN}","password_hash":"{hash}","is_verified":true,"is_staff":true,"is_superuser":true}}"#
    )?;
    for n in 1..users {
        let calls = n < 1000;
        let first = if n % 1000 == 999 { format!("Zephyr{n}x") } else { of(&FIRST, n, 1).to_owned() };
        writeln!(
            file,
            r#"{{"email":"{}","password_hash":"{hash}","first_name":"{first}","last_name":"{}","is_active":{},"is_verified":{},"is_freelancer":{},"is_moderator":{},"is_public":{},"bio":"Number {n}."}}"#,
            email(n),
            of(&LAST, n, 7),
            calls || n % 50 != 0,
            calls || n % 4 != 0,
            n % 10 == 0,
            n % 100 == 7,
            calls || n % 20 != 0,
        )?;
    }
    Ok(file.flush()?)
}

/// One of `all`, which each `n` gets anew and always the same; `salt` keeps the choices apart.
fn of<'a>(all: &[&'a str], n: u64, salt: u64) -> &'a str {
    let mut z = (n ^ (salt << 48)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 32)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    all[((z >> 33) % all.len() as u64) as usize]
}

/// The hash of everybody's password, as the service stores it.
fn hash() -> Outcome<String> {
    let (salt, mut out) = ([7; 16], [0; 32]);
    hasher()?.hash_password_into(PASSWORD.as_bytes(), &salt, &mut out)?;
    let [salt, out] = [&salt[..], &out[..]].map(|bytes| STANDARD_NO_PAD.encode(bytes));
    Ok(format!("$argon2id$v=19$m={MEMORY_KIB},t={PASSES},p=1${salt}${out}"))
}

/// The hash function, as the service has it.
pub fn hasher() -> Outcome<Argon2<'static>> {
    let params = Params::new(MEMORY_KIB, PASSES, 1, None)?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}
