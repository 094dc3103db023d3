//! A key: read from the forms in which operators have keys, checked, and made.

use std::{fmt, sync::Arc};

use aws_lc_rs::{
    encoding::AsDer,
    hmac, rsa,
    signature::{
        ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, ED25519, EcdsaKeyPair, Ed25519KeyPair,
        ParsedPublicKey,
    },
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use jsonwebtoken::{
    DecodingKey, EncodingKey,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse, ThumbprintHash},
};
use secrecy::SecretString;
use serde_json::json;

use super::Algorithm;
use crate::{
    error::{Error, Result},
    random,
};

/// The sizes of RSA that are safe (RFC 7518 §3.3) and no waste of time, in bits.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// What is wrong with a key, in words that follow its name. It never quotes the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flaw(pub &'static str);

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// What tells whether the key made a signature.
#[derive(Clone)]
enum Verifier {
    /// The secret, with all that HMAC computes of it alone done: each call comes by here.
    Secret(Arc<hmac::Key>),
    Public(DecodingKey),
}

/// One key, and the one algorithm that it is for. Its `Debug` doesn't show it.
#[derive(Clone)]
pub struct Key {
    algorithm: Algorithm,
    /// Its `kid`.
    id: String,
    /// None of a key that only verifies.
    private: Option<EncodingKey>,
    verifier: Verifier,
    /// As others may see it. None of a shared secret.
    shown: Option<Jwk>,
    /// The header of the tokens that it signs, encoded.
    header: String,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("algorithm", &self.algorithm).field("id", &self.id).finish_non_exhaustive()
    }
}

impl Key {
    /// A key from its text: a shared secret, to the letter; for a key pair a private or public key as PEM (PKCS#8, SPKI, and
    /// PKCS#1 of RSA), in which `\n` may stand for the ends of the lines. Either may be a JWK instead (RFC 7517), of a key pair the
    /// public half.
    ///
    /// # Errors
    /// What is wrong with it. A short shared secret is not: who may have one is another question.
    pub fn read(algorithm: Algorithm, text: &str) -> Result<Self, Flaw> {
        let trimmed = text.trim();
        let is_pem = trimmed.starts_with("-----BEGIN");
        match (algorithm.least_secret(), trimmed.starts_with('{'), is_pem) {
            (Some(_), _, true) => Err(Flaw("is a PEM key, not a shared secret, which its algorithm needs")),
            (_, true, _) if let Ok(jwk) = serde_json::from_str(trimmed) => Self::from_jwk(algorithm, jwk),
            (Some(_), _, false) => Ok(Self::from_secret(algorithm, text.as_bytes())),
            (None, _, true) => Self::from_pem(algorithm, trimmed.replace("\\n", "\n").as_bytes()),
            (None, _, false) => Err(Flaw("is no PEM key, which its algorithm needs")),
        }
    }

    fn from_secret(algorithm: Algorithm, secret: &[u8]) -> Self {
        // Not a hash of the secret, though keyed by it: nobody learns more from it than from a signature.
        let named = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), b"identity/v1/kid");
        let id = BASE64_URL_SAFE_NO_PAD.encode(&named.as_ref()[..12]);
        let hash = match algorithm {
            Algorithm::Hs512 => hmac::HMAC_SHA512,
            Algorithm::Hs384 => hmac::HMAC_SHA384,
            _ => hmac::HMAC_SHA256,
        };
        let verifier = Verifier::Secret(Arc::new(hmac::Key::new(hash, secret)));
        Self::new(algorithm, id, Some(EncodingKey::from_secret(secret)), verifier, None)
    }

    fn from_pem(algorithm: Algorithm, pem: &[u8]) -> Result<Self, Flaw> {
        const UNREADABLE: Flaw = Flaw("is no key of its algorithm that can be read: PEM in PKCS#8 without a password");
        let is_private = pem.windows(11).any(|word| word == b"PRIVATE KEY");
        let (private, public) = if is_private {
            let private = match algorithm {
                Algorithm::Rs256 => EncodingKey::from_rsa_pem(pem),
                Algorithm::Es256 => EncodingKey::from_ec_pem(pem),
                _ => EncodingKey::from_ed_pem(pem),
            };
            let private = private.map_err(|_| UNREADABLE)?;
            let jwk = Jwk::from_encoding_key(&private, algorithm.of_library()).map_err(|_| UNREADABLE)?;
            (Some(private), jwk)
        } else {
            let public = match algorithm {
                Algorithm::Rs256 => DecodingKey::from_rsa_pem(pem),
                Algorithm::Es256 => DecodingKey::from_ec_pem(pem),
                _ => DecodingKey::from_ed_pem(pem),
            };
            let public = public.map_err(|_| UNREADABLE)?;
            (None, Jwk::from_decoding_key(&public, Some(algorithm.of_library())).map_err(|_| UNREADABLE)?)
        };
        Self::from_public(algorithm, private, public)
    }

    fn from_jwk(algorithm: Algorithm, jwk: Jwk) -> Result<Self, Flaw> {
        let common = &jwk.common;
        if common.key_algorithm.is_some_and(|named| named.to_string() != algorithm.name()) {
            return Err(Flaw("is a JWK for another algorithm"));
        }
        let is_for_signatures = common.public_key_use.as_ref().is_none_or(|used| *used == PublicKeyUse::Signature)
            && common.key_operations.as_ref().is_none_or(|may| may.contains(&KeyOperations::Verify));
        if !is_for_signatures {
            return Err(Flaw("is a JWK that is not for signatures"));
        }
        match (algorithm.least_secret(), &jwk.algorithm) {
            (Some(least), AlgorithmParameters::OctetKey(secret)) => {
                let secret = BASE64_URL_SAFE_NO_PAD.decode(&secret.value).map_err(|_| Flaw("is no JWK"))?;
                if secret.len() < least {
                    return Err(Flaw("is a JWK with a secret that is too short for its algorithm"));
                }
                let mut key = Self::from_secret(algorithm, &secret);
                if let Some(id) = jwk.common.key_id {
                    key = Self::new(algorithm, id, key.private, key.verifier, None);
                }
                Ok(key)
            }
            (None, _) => Self::from_public(algorithm, None, jwk),
            (Some(_), _) => Err(Flaw("is a JWK for another algorithm")),
        }
    }

    /// Checks the public half, which tells of the other all that can be told.
    fn from_public(algorithm: Algorithm, private: Option<EncodingKey>, mut jwk: Jwk) -> Result<Self, Flaw> {
        const MALFORMED: Flaw = Flaw("is a malformed key");
        let public = DecodingKey::from_jwk(&jwk).map_err(|_| MALFORMED)?;
        match (algorithm, &jwk.algorithm) {
            (Algorithm::Rs256, AlgorithmParameters::RSA(rsa)) => check_rsa(&rsa.n, &rsa.e)?,
            (Algorithm::Es256, AlgorithmParameters::EllipticCurve(ec)) if ec.curve == EllipticCurve::P256 => {
                let point = public.try_get_as_bytes().map_err(|_| MALFORMED)?;
                ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).map_err(|_| MALFORMED)?;
            }
            (Algorithm::EdDsa, AlgorithmParameters::OctetKeyPair(pair)) if pair.curve == EllipticCurve::Ed25519 => {
                let point = public.try_get_as_bytes().map_err(|_| MALFORMED)?;
                ParsedPublicKey::new(&ED25519, point).map_err(|_| MALFORMED)?;
            }
            _ => return Err(Flaw("is a key for another algorithm")),
        }
        // RFC 7638: whoever has the key finds the same name for it.
        let thumbprint = jwk.thumbprint(ThumbprintHash::SHA256).map_err(|_| MALFORMED)?;
        let id = jwk.common.key_id.get_or_insert(thumbprint).clone();
        jwk.common.public_key_use = Some(PublicKeyUse::Signature);
        jwk.common.key_algorithm = Some(algorithm.of_library().into());
        jwk.common.key_operations = None;
        Ok(Self::new(algorithm, id, private, Verifier::Public(public), Some(jwk)))
    }

    fn new(
        algorithm: Algorithm,
        id: String,
        private: Option<EncodingKey>,
        verifier: Verifier,
        shown: Option<Jwk>,
    ) -> Self {
        let header = json!({ "alg": algorithm.name(), "typ": "JWT", "kid": id });
        let header = BASE64_URL_SAFE_NO_PAD.encode(header.to_string());
        Self { algorithm, id, private, verifier, shown, header }
    }

    /// The text of a new key: 32 random bytes or more in hexadecimal digits, or a private key as PEM (PKCS#8), of RSA with 3072 bits.
    ///
    /// # Errors
    /// `Internal` if the system gives no chance.
    pub fn generate(algorithm: Algorithm) -> Result<SecretString> {
        let failed = |_| Error::internal("no key can be made");
        let der = match algorithm {
            Algorithm::Hs256 => return Ok(hex::encode(random::bytes::<32>()).into()),
            Algorithm::Hs384 => return Ok(hex::encode(random::bytes::<48>()).into()),
            Algorithm::Hs512 => return Ok(hex::encode(random::bytes::<64>()).into()),
            Algorithm::Rs256 => {
                let pair = rsa::KeyPair::generate(rsa::KeySize::Rsa3072).map_err(failed)?;
                AsDer::<aws_lc_rs::encoding::Pkcs8V1Der<'_>>::as_der(&pair).map_err(failed)?.as_ref().to_vec()
            }
            Algorithm::Es256 => {
                let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).map_err(failed)?;
                pair.to_pkcs8v1().map_err(failed)?.as_ref().to_vec()
            }
            Algorithm::EdDsa => {
                let pair = Ed25519KeyPair::generate().map_err(failed)?;
                pair.to_pkcs8v1().map_err(failed)?.as_ref().to_vec()
            }
        };
        Ok(pem::encode_config(
            &pem::Pem::new("PRIVATE KEY", der),
            pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF),
        )
        .into())
    }

    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The `kid` of its tokens: of a key pair the thumbprint of RFC 7638, unless its JWK has one.
    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn can_sign(&self) -> bool {
        self.private.is_some()
    }

    pub fn is_shared_secret(&self) -> bool {
        self.shown.is_none()
    }

    /// The public half of a key pair.
    pub fn public(&self) -> Option<&Jwk> {
        self.shown.as_ref()
    }

    pub(super) fn sign(&self, payload: &[u8]) -> Result<String> {
        let private = self.private.as_ref().ok_or_else(|| Error::internal("a public key can't sign"))?;
        let mut token = format!("{}.{}", self.header, BASE64_URL_SAFE_NO_PAD.encode(payload));
        let signature = jsonwebtoken::crypto::sign(token.as_bytes(), private, self.algorithm.of_library());
        token.push('.');
        token.push_str(&signature.map_err(Error::internal)?);
        Ok(token)
    }

    pub(super) fn verifies(&self, signed: &[u8], signature: &str) -> bool {
        match &self.verifier {
            Verifier::Secret(key) => BASE64_URL_SAFE_NO_PAD
                .decode(signature)
                .is_ok_and(|signature| hmac::verify(key, signed, &signature).is_ok()),
            Verifier::Public(key) => {
                jsonwebtoken::crypto::verify(signature, signed, key, self.algorithm.of_library()).unwrap_or(false)
            }
        }
    }
}

fn check_rsa(modulus: &str, exponent: &str) -> Result<(), Flaw> {
    let number = |text: &str| BASE64_URL_SAFE_NO_PAD.decode(text).map_err(|_| Flaw("is a malformed key"));
    let (modulus, exponent) = (number(modulus)?, number(exponent)?);
    let modulus = &modulus[modulus.iter().take_while(|byte| **byte == 0).count()..];
    let exponent = exponent.iter().fold(0_u64, |n, byte| n.saturating_mul(256).saturating_add(u64::from(*byte)));
    let bits = modulus.first().map_or(0, |first| modulus.len() * 8 - first.leading_zeros() as usize);
    if !RSA_BITS.contains(&bits) {
        return Err(Flaw("is an RSA key of less than 2048 bits, or more than 8192"));
    }
    if exponent < 3 || exponent % 2 == 0 || exponent > u64::from(u32::MAX) {
        return Err(Flaw("is an RSA key with an exponent that is not safe"));
    }
    if has_roca(modulus) {
        return Err(Flaw("is an RSA key that can be factored (ROCA, CVE-2017-15361)"));
    }
    Ok(())
}

/// Whether the modulus is of a kind that a broken library made (CVE-2017-15361): modulo each small prime a power of 65537.
/// A good modulus looks like it once in 10⁸ times or less.
fn has_roca(modulus: &[u8]) -> bool {
    const PRIMES: [u32; 17] = [11, 13, 17, 19, 37, 53, 61, 71, 73, 79, 97, 103, 107, 109, 127, 151, 157];
    PRIMES.iter().all(|prime| {
        let remainder = modulus.iter().fold(0, |n, byte| (n * 256 + u32::from(*byte)) % prime);
        let mut power = 1;
        (0..*prime).any(|_| {
            power = power * (65537 % prime) % prime;
            power == remainder
        })
    })
}
