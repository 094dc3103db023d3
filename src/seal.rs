//! What lies in a table but is not for everyone who can read it: sealed with a key that the table doesn't hold.

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use base64::{Engine, prelude::BASE64_STANDARD};

use crate::error::{Cause, Error, Result};

/// AES-256-GCM under a nonce drawn for each message.
pub struct Seal(RandomizedNonceKey);

impl Seal {
    /// A seal with this key.
    ///
    /// # Errors
    /// `Internal` if the key can't be used.
    pub fn new(key: &[u8; 32]) -> Result<Self> {
        RandomizedNonceKey::new(&AES_256_GCM, key).map(Self).map_err(Error::internal)
    }

    /// `plain` as text that only this key opens, and only for the same `place`: moved into another row, it is worthless.
    ///
    /// # Errors
    /// `Internal` if there is no chance to be had for a nonce.
    pub fn close(&self, place: &[u8], plain: Vec<u8>) -> Result<String> {
        let mut bytes = plain;
        let nonce = self.0.seal_in_place_append_tag(Aad::from(place), &mut bytes).map_err(Error::internal)?;
        bytes.extend_from_slice(nonce.as_ref());
        Ok(BASE64_STANDARD.encode(bytes))
    }

    /// What was closed for `place`.
    ///
    /// # Errors
    /// If it was closed by another key, for another place, or is not whole.
    pub fn open(&self, place: &[u8], sealed: &str) -> Result<Vec<u8>, Cause> {
        let mut bytes = BASE64_STANDARD.decode(sealed)?;
        let nonce = bytes.split_off(bytes.len().checked_sub(NONCE_LEN).ok_or("too short for what was sealed")?);
        let nonce = Nonce::try_assume_unique_for_key(&nonce)?;
        let length = self.0.open_in_place(nonce, Aad::from(place), &mut bytes)?.len();
        bytes.truncate(length);
        Ok(bytes)
    }
}
