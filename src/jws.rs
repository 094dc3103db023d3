//! Signatures of tokens: JSON Web Signature (RFC 7515) in its compact form, by the algorithms of RFC 7518 and RFC 8037.
//!
//! A token never chooses how it is verified (RFC 8725 §3.1): its `kid` may only name one of the keys in force, each of which has
//! one algorithm; `jku`, `jwk`, `x5u` and `x5c` are not read.

mod key;

use std::borrow::Cow;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use jsonwebtoken::jwk::{Jwk, JwkSet};
use serde::{Deserialize, Serialize, de::IgnoredAny};

pub use key::{Flaw, Key};

use crate::error::{Error, Result};

/// How a key signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    Hs256,
    Hs384,
    Hs512,
    Rs256,
    Es256,
    EdDsa,
}

impl Algorithm {
    pub const ALL: [Self; 6] = [Self::Hs256, Self::Hs384, Self::Hs512, Self::Rs256, Self::Es256, Self::EdDsa];

    /// As the header of a token names it (RFC 7518 §3.1, RFC 8037 §3.1).
    pub fn name(self) -> &'static str {
        match self {
            Self::Hs256 => "HS256",
            Self::Hs384 => "HS384",
            Self::Hs512 => "HS512",
            Self::Rs256 => "RS256",
            Self::Es256 => "ES256",
            Self::EdDsa => "EdDSA",
        }
    }

    /// The algorithm that an operator calls so, in whatever case.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name().eq_ignore_ascii_case(name))
    }

    /// The least length of a shared secret, in bytes: that of the hash (RFC 7518 §3.2). `None` for a key pair.
    pub fn least_secret(self) -> Option<usize> {
        match self {
            Self::Hs256 => Some(32),
            Self::Hs384 => Some(48),
            Self::Hs512 => Some(64),
            Self::Rs256 | Self::Es256 | Self::EdDsa => None,
        }
    }

    fn of_library(self) -> jsonwebtoken::Algorithm {
        match self {
            Self::Hs256 => jsonwebtoken::Algorithm::HS256,
            Self::Hs384 => jsonwebtoken::Algorithm::HS384,
            Self::Hs512 => jsonwebtoken::Algorithm::HS512,
            Self::Rs256 => jsonwebtoken::Algorithm::RS256,
            Self::Es256 => jsonwebtoken::Algorithm::ES256,
            Self::EdDsa => jsonwebtoken::Algorithm::EdDSA,
        }
    }
}

/// The keys in force: the first signs, all verify. Its `Debug` shows no key.
#[derive(Debug, Clone)]
pub struct KeySet {
    keys: Vec<Key>,
}

/// What is read of a header.
#[derive(Deserialize)]
struct Header<'a> {
    #[serde(borrow)]
    alg: Cow<'a, str>,
    #[serde(borrow, default)]
    kid: Option<Cow<'a, str>>,
    #[serde(default)]
    crit: Option<IgnoredAny>,
}

/// What a signature vouches for.
pub struct Verified {
    pub payload: Vec<u8>,
    /// The token names its key. Ours do; those of other issuers that share a secret with us may not.
    pub names_key: bool,
}

impl KeySet {
    /// # Errors
    /// The first can't sign, or two have the same `kid`.
    pub fn new(signing: Key, others: Vec<Key>) -> Result<Self, Flaw> {
        if !signing.can_sign() {
            return Err(Flaw("is a public key, which can't sign"));
        }
        let mut keys = vec![signing];
        for key in others {
            if keys.iter().any(|known| known.id() == key.id()) {
                return Err(Flaw("is the same key as another in force"));
            }
            keys.push(key);
        }
        Ok(Self { keys })
    }

    /// A token with these claims, in the compact form.
    ///
    /// # Errors
    /// `Internal` if the key doesn't sign: a fault of the key, or of memory.
    pub fn sign(&self, claims: &impl Serialize) -> Result<String> {
        let claims = serde_json::to_vec(claims).map_err(Error::internal)?;
        self.keys[0].sign(&claims)
    }

    /// The payload, if one of the keys signed it. What it says is another question.
    pub fn verify(&self, token: &str) -> Option<Verified> {
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, payload) = signed.split_once('.')?;
        if payload.contains('.') {
            return None;
        }
        let header = BASE64_URL_SAFE_NO_PAD.decode(header).ok()?;
        let header: Header<'_> = serde_json::from_slice(&header).ok()?;
        // An extension that must be understood (RFC 7515 §4.1.11): none is.
        if header.crit.is_some() {
            return None;
        }
        let may_be = |key: &&Key| match &header.kid {
            Some(kid) => key.id() == kid,
            // Who shares a secret with us need not know what we call it. A key pair is ours alone, and our tokens name it.
            None => key.is_shared_secret(),
        };
        let mut candidates = self.keys.iter().filter(|key| key.algorithm().name() == header.alg).filter(may_be);
        candidates.find(|key| key.verifies(signed.as_bytes(), signature))?;
        let payload = BASE64_URL_SAFE_NO_PAD.decode(payload).ok()?;
        Some(Verified { payload, names_key: header.kid.is_some() })
    }

    /// The public halves, for whoever verifies tokens without asking (RFC 7517). Shared secrets are not among them.
    pub fn public(&self) -> JwkSet {
        JwkSet { keys: self.keys.iter().filter_map(Key::public).cloned().collect::<Vec<Jwk>>() }
    }

    /// All keys, the one that signs first.
    pub fn keys(&self) -> &[Key] {
        &self.keys
    }
}
