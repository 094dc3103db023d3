//! Passwords: which ones are taken, how they are kept, and how one is checked against what is kept.
//!
//! They are kept as argon2id in the PHC string format (`$argon2id$v=19$m=19456,t=2,p=1$salt$output`). What the Django
//! service kept is understood as well. To hash or to check takes milliseconds at least: do it in a
//! [`HashPool`](crate::hash_pool::HashPool).

use std::{borrow::Cow, fmt, num::NonZeroU32};

use argon2::{Algorithm, Argon2, Version};
use aws_lc_rs::{constant_time, digest, pbkdf2};
use base64::{
    Engine as _,
    prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD},
};
use icu_casemap::CaseMapper;
use secrecy::{ExposeSecret, SecretString};

use crate::{
    config::Hashing,
    error::{Error, Result},
    hash_pool::Scratch,
    random,
};

pub const MIN_CHARS: usize = 8;
/// In UTF-8 these are 512 bytes at most.
pub const MAX_CHARS: usize = 128;

const TOO_WEAK: &str = "Password is too weak";
const IS_PERSONAL: &str = "The password must not be the same as the e-mail address or a name.";

/// A password as it was typed. `Debug` shows `[REDACTED]`, and the memory is wiped when it is dropped.
#[derive(Debug)]
pub struct Password(SecretString);

impl Password {
    /// A password that someone chose, if it is strong enough. `personal` is what it must not equal: the e-mail address
    /// and the names.
    ///
    /// # Errors
    /// Everything that is wrong with it, for people to read.
    pub fn parse_new(raw: &str, personal: &[&str]) -> Result<Self, Vec<Cow<'static, str>>> {
        if raw.is_empty() {
            return Err(vec!["This field may not be blank.".into()]);
        }
        let chars = raw.chars().count();
        let checks = [
            (chars < MIN_CHARS, "The password must contain at least 8 characters."),
            (chars > MAX_CHARS, "The password must contain at most 128 characters."),
            (!raw.contains(char::is_numeric), "The password must contain at least one digit."),
            (!raw.contains(is_special), "The password must contain at least one special character."),
            (raw.contains(char::is_control), "The password must not contain control characters."),
            (chars <= MAX_CHARS && is_common(raw), "The password is too common."),
            (is_personal(raw, personal), IS_PERSONAL),
        ];
        let mut messages = vec![TOO_WEAK.into()];
        messages.extend(checks.into_iter().filter(|(fails, _)| *fails).map(|(_, reason)| reason.into()));
        if messages.len() == 1 { Ok(Self(raw.into())) } else { Err(messages) }
    }

    /// A password that someone claims to have. The rules for new ones don't count: they may be younger than the account.
    ///
    /// # Errors
    /// What is wrong with it if no account can have it. As that is said without a look at any account it tells nothing
    /// of them, and costs no hash.
    pub fn given(raw: &str) -> Result<Self, &'static str> {
        if raw.is_empty() {
            Err("This field may not be blank.")
        } else if raw.chars().nth(MAX_CHARS).is_some() {
            Err("Ensure this field has no more than 128 characters.")
        } else if raw.contains('\0') {
            // HMAC pads its key with NUL: PBKDF2 would take `secret\0` for `secret`.
            Err("Null characters are not allowed.")
        } else {
            Ok(Self(raw.into()))
        }
    }

    /// Nothing, or what is wrong where the password is the person's address or a name: `personal`. For a new password that
    /// was parsed before it was known whose it is.
    ///
    /// # Errors
    /// Everything that is wrong, in words for whoever sent it.
    pub fn is_impersonal(&self, personal: &[&str]) -> Result<(), Vec<Cow<'static, str>>> {
        if is_personal(self.0.expose_secret(), personal) {
            Err(vec![TOO_WEAK.into(), IS_PERSONAL.into()])
        } else {
            Ok(())
        }
    }

    fn bytes(&self) -> &[u8] {
        self.0.expose_secret().as_bytes()
    }
}

fn is_special(c: char) -> bool {
    !c.is_alphanumeric() && !c.is_whitespace() && !c.is_control()
}

/// Whether `raw` is a common password, perhaps with digits and signs around it or in place of letters.
fn is_common(raw: &str) -> bool {
    let password: Vec<char> = raw.to_lowercase().chars().collect();
    let mut entries = include_str!("common_passwords.txt").lines().filter(|line| !line.starts_with("# "));
    entries.any(|entry| {
        let entry: Vec<char> = entry.chars().collect();
        // Around a number (`12345678!`) further digits make another number.
        let is_decoration: fn(&char) -> bool =
            if entry.iter().any(|c| c.is_alphabetic()) { |c| !c.is_alphabetic() } else { |c| !c.is_alphanumeric() };
        password.windows(entry.len()).enumerate().any(|(start, window)| {
            window.iter().zip(&entry).all(|(&sign, &letter)| stands_for(sign, letter))
                && password[..start].iter().all(is_decoration)
                && password[start + entry.len()..].iter().all(is_decoration)
        })
    })
}

fn stands_for(sign: char, letter: char) -> bool {
    sign == letter
        || matches!(
            (letter, sign),
            ('a', '4' | '@') | ('e', '3') | ('i', '1' | '!') | ('l', '1') | ('o', '0') | ('s', '5' | '$') | ('t', '7')
        )
}

/// Whether `raw` is one of `personal`, or the local part of an address among them, in whatever case.
fn is_personal(raw: &str, personal: &[&str]) -> bool {
    let fold = |text| CaseMapper::new().fold_string(text);
    let raw = fold(raw);
    let local_parts = personal.iter().filter_map(|text| Some(text.rsplit_once('@')?.0));
    personal.iter().copied().chain(local_parts).any(|text| fold(text) == raw)
}

/// What one argon2 hash costs. Written `m=19456,t=2,p=1`, as in a stored hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Argon2Params {
    memory_kib: u32,
    iterations: u32,
    parallelism: u32,
}

impl Default for Argon2Params {
    /// 19 MiB, twice, in one lane: the least that OWASP recommends (Password Storage Cheat Sheet).
    fn default() -> Self {
        Self { memory_kib: 19 * 1024, iterations: 2, parallelism: 1 }
    }
}

impl fmt::Display for Argon2Params {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "m={},t={},p={}", self.memory_kib, self.iterations, self.parallelism)
    }
}

impl Argon2Params {
    /// # Errors
    /// Which bound is crossed. The upper ones keep a login from taking the machine away; they hold for stored
    /// hashes as well, so that none is made that would not be read again.
    pub fn new(memory_kib: u32, iterations: u32, parallelism: u32) -> Result<Self, &'static str> {
        if !(1..=Hashing::MAX_PARALLELISM).contains(&parallelism) {
            Err("parallelism must be from 1 to 64")
        } else if !(8 * parallelism..=Hashing::MAX_MEMORY_KIB).contains(&memory_kib) {
            Err("memory must be from 8 KiB for each lane to 262144 KiB")
        } else if iterations == 0 || u64::from(memory_kib) * u64::from(iterations) > Hashing::MAX_WORK {
            Err("iterations must be at least 1, and memory in KiB times iterations at most 1048576")
        } else {
            Ok(Self { memory_kib, iterations, parallelism })
        }
    }

    /// Whether none of the three is below that of `other`.
    pub fn is_at_least(self, other: Self) -> bool {
        self.memory_kib >= other.memory_kib
            && self.iterations >= other.iterations
            && self.parallelism >= other.parallelism
    }

    fn parse(text: &str) -> Option<Self> {
        let (memory, rest) = text.strip_prefix("m=")?.split_once(",t=")?;
        let (iterations, parallelism) = rest.split_once(",p=")?;
        Self::new(number(memory)?, number(iterations)?, number(parallelism)?).ok()
    }
}

/// Whether a password is the one that was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Wrong,
    Right {
        /// It was not stored by [`hash`], or at a lower cost than the present one: store it anew.
        outdated: bool,
    },
}

/// The string to store for `password`, with a salt of its own.
///
/// # Errors
/// [`Error::Internal`] if argon2 refuses the parameters.
pub fn hash(password: &Password, params: Argon2Params, scratch: &mut Scratch) -> Result<String> {
    let salt = random::bytes::<SALT_BYTES>();
    let mut output = [0; OUTPUT_BYTES];
    Argon2Recipe::ours(params).run(password, &salt, &mut output, params, scratch)?;
    Ok(phc_string(params, salt, output))
}

/// What looks like a hash with `params`, and is that of no password. To check an unknown account against it costs what
/// a wrong password costs.
pub fn decoy(params: Argon2Params) -> String {
    phc_string(params, [0; SALT_BYTES], [0; OUTPUT_BYTES])
}

/// Checks `password` against what is `stored`: by [`hash`], or by one of Django's argon2, bcrypt, PBKDF2 and scrypt
/// hashers (`django.contrib.auth.hashers`).
///
/// Anything else that is stored matches nothing, at the cost of a [`decoy`]: the time it takes does not tell an account
/// without a password (Django's `!…`) from a wrong password.
///
/// # Errors
/// [`Error::Internal`] if there is no memory for a hash that needs more than one with `params`.
pub fn verify(stored: &str, password: &Password, params: Argon2Params, scratch: &mut Scratch) -> Result<Verdict> {
    let decoy = decoy(params);
    let Some(stored) = Stored::parse(stored).or_else(|| Stored::parse(&decoy)) else { return Ok(Verdict::Wrong) };
    let outdated = stored.is_outdated(params);
    let right = stored.matches(password, params, scratch)?;
    Ok(if right { Verdict::Right { outdated } } else { Verdict::Wrong })
}

/// Whether [`verify`] reads what is `stored`: some password may match it.
pub fn is_verifiable(stored: &str) -> bool {
    Stored::parse(stored).is_some()
}

const SALT_BYTES: usize = 16;
const OUTPUT_BYTES: usize = 32;

/// Longer strings are not read. Ours have 97 bytes; Django's column holds 128 characters.
const STORED_MAX_BYTES: usize = 512;

/// Django 5.2 takes 1 000 000 (0.1 to 0.3 s), and each release some more.
const PBKDF2_MAX_ITERATIONS: u32 = 4_000_000;

/// The base-2 logarithm of the rounds. Django takes 12 (0.25 s).
const BCRYPT_MAX_COST: u32 = 14;

/// Work factor × block size: blocks of 128 bytes, thus 256 MiB. Django takes 16 MiB.
const SCRYPT_MAX_BLOCKS: u64 = 2 << 20;
/// Work factor × block size × parallelism. Django takes 655 360 (0.2 s).
const SCRYPT_MAX_WORK: u64 = 3 << 20;

fn phc_string(params: Argon2Params, salt: [u8; SALT_BYTES], output: [u8; OUTPUT_BYTES]) -> String {
    let [salt, output] = [BASE64_STANDARD_NO_PAD.encode(salt), BASE64_STANDARD_NO_PAD.encode(output)];
    format!("$argon2id$v=19${params}${salt}${output}")
}

/// How an argon2 hash is computed.
struct Argon2Recipe {
    algorithm: Algorithm,
    version: Version,
    params: Argon2Params,
}

impl Argon2Recipe {
    fn ours(params: Argon2Params) -> Self {
        Self { algorithm: Algorithm::Argon2id, version: Version::V0x13, params }
    }

    /// Fills `output`. Memory up to that of `usual` comes from `scratch`, and is kept there; a greater one is returned.
    fn run(
        &self,
        password: &Password,
        salt: &[u8],
        output: &mut [u8],
        usual: Argon2Params,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let Argon2Params { memory_kib, iterations, parallelism } = self.params;
        let result = argon2::Params::new(memory_kib, iterations, parallelism, Some(output.len())).and_then(|params| {
            let blocks = params.block_count();
            let argon2 = Argon2::new(self.algorithm, self.version, params);
            if memory_kib <= usual.memory_kib {
                argon2.hash_password_into_with_memory(password.bytes(), salt, output, scratch.blocks(blocks))
            } else {
                argon2.hash_password_into(password.bytes(), salt, output)
            }
        });
        result.map_err(Error::internal)
    }
}

/// A stored hash. What has been parsed costs at most 256 MiB and a second or so to check.
enum Stored<'a> {
    Argon2 {
        recipe: Argon2Recipe,
        salt: Vec<u8>,
        output: Vec<u8>,
        by_django: bool,
    },
    Pbkdf2 {
        algorithm: pbkdf2::Algorithm,
        iterations: NonZeroU32,
        salt: &'a str,
        output: Vec<u8>,
    },
    /// Without `sha256_first` the algorithm sees the first 72 bytes of a password only, as it did in Django.
    Bcrypt {
        sha256_first: bool,
        hash: &'a str,
    },
    Scrypt {
        params: scrypt::Params,
        salt: &'a str,
        output: Vec<u8>,
    },
}

impl<'a> Stored<'a> {
    fn parse(stored: &'a str) -> Option<Self> {
        if stored.len() > STORED_MAX_BYTES {
            return None;
        }
        let (hasher, rest) = stored.split_once('$')?;
        match hasher {
            "" => Self::parse_argon2(rest, false),
            "argon2" => Self::parse_argon2(rest, true),
            "pbkdf2_sha256" => Self::parse_pbkdf2(rest, pbkdf2::PBKDF2_HMAC_SHA256, digest::SHA256_OUTPUT_LEN),
            "pbkdf2_sha1" => Self::parse_pbkdf2(rest, pbkdf2::PBKDF2_HMAC_SHA1, digest::SHA1_OUTPUT_LEN),
            "bcrypt_sha256" => Self::parse_bcrypt(rest, true),
            "bcrypt" => Self::parse_bcrypt(rest, false),
            "scrypt" => Self::parse_scrypt(rest),
            _ => None,
        }
    }

    /// `argon2id$v=19$m=102400,t=2,p=8$salt$output`
    fn parse_argon2(text: &str, by_django: bool) -> Option<Self> {
        let [algorithm, version, params, salt, output] = fields(text)?;
        let algorithm = Algorithm::new(algorithm).ok()?;
        let version = Version::try_from(number(version.strip_prefix("v=")?)?).ok()?;
        let params = Argon2Params::parse(params)?;
        let [salt, output] = [BASE64_STANDARD_NO_PAD.decode(salt).ok()?, BASE64_STANDARD_NO_PAD.decode(output).ok()?];
        let lengths_fit = (8..=64).contains(&salt.len()) && (16..=64).contains(&output.len());
        lengths_fit.then_some(Self::Argon2 {
            recipe: Argon2Recipe { algorithm, version, params },
            salt,
            output,
            by_django,
        })
    }

    /// `1000000$salt$output`
    fn parse_pbkdf2(text: &'a str, algorithm: pbkdf2::Algorithm, output_bytes: usize) -> Option<Self> {
        let [iterations, salt, output] = fields(text)?;
        let iterations = NonZeroU32::new(number(iterations)?).filter(|n| n.get() <= PBKDF2_MAX_ITERATIONS)?;
        let output = BASE64_STANDARD.decode(output).ok()?;
        let lengths_fit = !salt.is_empty() && output.len() == output_bytes;
        lengths_fit.then_some(Self::Pbkdf2 { algorithm, iterations, salt, output })
    }

    /// `$2b$12$`, then salt and output in one
    fn parse_bcrypt(hash: &'a str, sha256_first: bool) -> Option<Self> {
        let cost = hash.parse::<bcrypt::HashParts>().ok()?.get_cost();
        (4..=BCRYPT_MAX_COST).contains(&cost).then_some(Self::Bcrypt { sha256_first, hash })
    }

    /// `16384$salt$8$5$output`: work factor, salt, block size, parallelism, output
    fn parse_scrypt(text: &'a str) -> Option<Self> {
        let [work_factor, salt, block_size, parallelism, output] = fields(text)?;
        let [work_factor, block_size, parallelism] = [number(work_factor)?, number(block_size)?, number(parallelism)?];
        let blocks = u64::from(work_factor) * u64::from(block_size);
        let work = blocks.checked_mul(parallelism.into())?;
        if blocks > SCRYPT_MAX_BLOCKS || work > SCRYPT_MAX_WORK || work_factor < 2 || !work_factor.is_power_of_two() {
            return None;
        }
        let log2_work_factor = u8::try_from(work_factor.trailing_zeros()).ok()?;
        let params = scrypt::Params::new(log2_work_factor, block_size, parallelism).ok()?;
        let output = BASE64_STANDARD.decode(output).ok()?;
        (!salt.is_empty() && output.len() == 64).then_some(Self::Scrypt { params, salt, output })
    }

    fn matches(&self, password: &Password, usual: Argon2Params, scratch: &mut Scratch) -> Result<bool> {
        let typed = password.bytes();
        Ok(match self {
            Self::Argon2 { recipe, salt, output, .. } => {
                let mut computed = vec![0; output.len()];
                recipe.run(password, salt, &mut computed, usual, scratch)?;
                constant_time::verify_slices_are_equal(&computed, output).is_ok()
            }
            Self::Pbkdf2 { algorithm, iterations, salt, output } => {
                pbkdf2::verify(*algorithm, *iterations, salt.as_bytes(), typed, output).is_ok()
            }
            Self::Bcrypt { sha256_first: false, hash } => bcrypt::verify(typed, hash).map_err(Error::internal)?,
            Self::Bcrypt { sha256_first: true, hash } => {
                let digest = digest::digest(&digest::SHA256, typed);
                let nibbles = digest.as_ref().iter().flat_map(|byte| [byte >> 4, byte & 15]);
                let hex: String = nibbles.filter_map(|nibble| char::from_digit(nibble.into(), 16)).collect();
                bcrypt::verify(hex, hash).map_err(Error::internal)?
            }
            Self::Scrypt { params, salt, output } => {
                let mut computed = vec![0; output.len()];
                scrypt::scrypt(typed, salt.as_bytes(), params, &mut computed).map_err(Error::internal)?;
                constant_time::verify_slices_are_equal(&computed, output).is_ok()
            }
        })
    }

    fn is_outdated(&self, wanted: Argon2Params) -> bool {
        let Self::Argon2 { recipe, salt, output, by_django: false } = self else { return true };
        recipe.algorithm != Algorithm::Argon2id
            || recipe.version != Version::V0x13
            || !recipe.params.is_at_least(wanted)
            || salt.len() < SALT_BYTES
            || output.len() < OUTPUT_BYTES
    }
}

/// Exactly `N` fields between dollar signs.
fn fields<const N: usize>(text: &str) -> Option<[&str; N]> {
    text.split('$').collect::<Vec<_>>().try_into().ok()
}

/// A decimal number without sign or blanks, as Django writes it.
fn number(text: &str) -> Option<u32> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}
