//! Tokens: what `SimpleJWT` writes and checks, and what we add: the session, the roles, and whether
//! the address is verified.

use aws_lc_rs::hmac;
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use chrono::{DateTime, Duration, Utc};
use jsonwebtoken::{DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    config::{self, Algorithm},
    entity::{session, user},
    error::{AuthFailure, Error, Result},
    model::role::Roles,
    random,
};

/// How far apart the clocks of two replicas may be.
const LEEWAY: Duration = Duration::seconds(5);
/// No token of ours is longer; a longer one is not worth a look.
const MAX_TOKEN_BYTES: usize = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Access,
    Refresh,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Access => "access",
            Self::Refresh => "refresh",
        }
    }
}

/// An access token, and the refresh token that buys the next.
pub struct TokenPair {
    pub access: String,
    pub refresh: String,
}

/// What a token says whose signature and times are right.
#[derive(Debug, Clone)]
pub struct VerifiedToken {
    pub kind: Kind,
    pub user_id: i64,
    pub session_id: Uuid,
    pub jti: String,
    pub issued_at: DateTime<Utc>,
    /// Seconds since the Unix epoch.
    pub expires_at: i64,
    /// None in a refresh token.
    pub roles: Roles,
    /// false in a refresh token.
    pub is_verified: bool,
}

/// The keys that sign and verify.
pub struct Keys {
    header: Header,
    encoding: EncodingKey,
    decoding: DecodingKey,
    validation: Validation,
    /// Makes the `jti` of a refresh token out of its session and generation.
    successor: hmac::Key,
    access_lifetime: Duration,
    refresh_lifetime: Duration,
}

/// The claims as we write them: those of `SimpleJWT`, and ours.
#[derive(Serialize)]
struct Written<'a> {
    token_type: Kind,
    exp: i64,
    iat: i64,
    jti: &'a str,
    user_id: &'a str,
    sub: &'a str,
    sid: Uuid,
    /// What an access token says of its user; a refresh token says nothing.
    #[serde(flatten)]
    user: Option<WrittenUser>,
}

#[derive(Serialize)]
struct WrittenUser {
    roles: Vec<&'static str>,
    is_verified: bool,
}

/// The claims as they come: whatever is required but missing, or of another type, makes the token a bad one.
#[derive(Deserialize)]
struct Claims {
    token_type: Kind,
    exp: i64,
    iat: i64,
    #[serde(default)]
    nbf: Option<i64>,
    jti: String,
    user_id: String,
    #[serde(default)]
    sid: Option<Uuid>,
    #[serde(default)]
    roles: Vec<String>,
    #[serde(default)]
    is_verified: bool,
}

impl Keys {
    pub fn new(config: &config::Jwt, signing: &config::SecretKey) -> Self {
        let algorithm = match config.algorithm {
            Algorithm::Hs256 => jsonwebtoken::Algorithm::HS256,
            Algorithm::Hs384 => jsonwebtoken::Algorithm::HS384,
            Algorithm::Hs512 => jsonwebtoken::Algorithm::HS512,
        };
        // Only the signature is left to the library: claims are checked here, by our clock and without its defaults.
        let mut validation = Validation::new(algorithm);
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_aud = false;
        Self {
            header: Header::new(algorithm),
            encoding: EncodingKey::from_secret(signing.expose()),
            decoding: DecodingKey::from_secret(signing.expose()),
            validation,
            successor: hmac::Key::new(hmac::HMAC_SHA256, &signing.derive("refresh token successor")),
            access_lifetime: in_seconds(config.access_lifetime),
            refresh_lifetime: in_seconds(config.refresh_lifetime),
        }
    }

    /// When the last access token is over that any replica made before `now`, by whichever of their clocks.
    pub fn last_access_expiry(&self, now: DateTime<Utc>) -> DateTime<Utc> {
        now + self.access_lifetime + Duration::minutes(1)
    }

    /// When the refresh token runs out that is issued at `now`.
    pub fn refresh_expires_at(&self, now: DateTime<Utc>) -> DateTime<Utc> {
        now + self.refresh_lifetime
    }

    /// A fresh access token of this session, and its refresh token: the one, however often it is made.
    ///
    /// # Errors
    /// `Internal` if it can't be signed: a fault of the key.
    pub fn issue(&self, user: &user::Model, session: &session::Model, now: DateTime<Utc>) -> Result<TokenPair> {
        let user_id = user.id.to_string();
        let access = Written {
            token_type: Kind::Access,
            exp: (now + self.access_lifetime).min(session.ends_at).timestamp(),
            iat: now.timestamp(),
            jti: &BASE64_URL_SAFE_NO_PAD.encode(random::bytes::<16>()),
            user_id: &user_id,
            sub: &user_id,
            sid: session.id,
            user: Some(WrittenUser { roles: Roles::of(user).display(), is_verified: user.is_verified }),
        };
        let refresh = Written {
            token_type: Kind::Refresh,
            exp: (session.rotated_at + self.refresh_lifetime).min(session.ends_at).timestamp(),
            iat: session.rotated_at.timestamp(),
            jti: &self.refresh_jti(session.id, session.generation),
            user: None,
            ..access
        };
        Ok(TokenPair { access: self.sign(&access)?, refresh: self.sign(&refresh)? })
    }

    /// The `jti` of the refresh token of a session's generation: derived, so that a lost answer can be given again
    /// without having been stored.
    pub fn refresh_jti(&self, session_id: Uuid, generation: i64) -> String {
        let mut message = [0; 24];
        message[..16].copy_from_slice(session_id.as_bytes());
        message[16..].copy_from_slice(&generation.to_be_bytes());
        BASE64_URL_SAFE_NO_PAD.encode(&hmac::sign(&self.successor, &message).as_ref()[..16])
    }

    /// What the token says, if it is one of ours, of this kind, and in its time. Whether its session still stands is
    /// another question. RFC 8725 §3.1: algorithm and key are ours to name, never the token's.
    ///
    /// # Errors
    /// `Unauthenticated`.
    pub fn verify(&self, token: &str, kind: Kind, now: DateTime<Utc>) -> Result<VerifiedToken> {
        let verified = self.verify_either(token, now)?;
        if verified.kind == kind { Ok(verified) } else { Err(Error::Unauthenticated(AuthFailure::BadToken)) }
    }

    /// As [`Keys::verify`], for a token of either kind.
    ///
    /// # Errors
    /// `Unauthenticated`.
    pub fn verify_either(&self, token: &str, now: DateTime<Utc>) -> Result<VerifiedToken> {
        let bad = Error::Unauthenticated(AuthFailure::BadToken);
        if token.len() > MAX_TOKEN_BYTES {
            return Err(bad);
        }
        let Ok(decoded) = jsonwebtoken::decode::<Claims>(token, &self.decoding, &self.validation) else {
            return Err(bad);
        };
        // No token of ours names a key, or an extension that must be understood (RFC 7515 §4.1.11).
        if decoded.header.kid.is_some() || decoded.header.crit.is_some() {
            return Err(bad);
        }
        let claims = decoded.claims;
        let (now, leeway) = (now.timestamp(), LEEWAY.num_seconds());
        if claims.exp <= now {
            return Err(Error::Unauthenticated(AuthFailure::ExpiredToken));
        }
        if claims.iat > now + leeway || claims.nbf.is_some_and(|nbf| nbf > now + leeway) {
            return Err(bad);
        }
        let (Some(session_id), Ok(user_id)) = (claims.sid, claims.user_id.parse()) else { return Err(bad) };
        Ok(VerifiedToken {
            kind: claims.token_type,
            user_id,
            session_id,
            jti: claims.jti,
            issued_at: DateTime::from_timestamp(claims.iat, 0).unwrap_or_default(),
            expires_at: claims.exp,
            roles: Roles::from_display(claims.roles.iter().map(String::as_str)),
            is_verified: claims.is_verified,
        })
    }

    fn sign(&self, claims: &impl Serialize) -> Result<String> {
        jsonwebtoken::encode(&self.header, claims, &self.encoding).map_err(Error::internal)
    }
}

fn in_seconds(lifetime: std::time::Duration) -> Duration {
    Duration::seconds(i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX / 1000))
}
