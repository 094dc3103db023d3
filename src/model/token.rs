//! Tokens: what `SimpleJWT` writes and checks, and what we add: the session, the roles, and whether
//! the address is verified.

use std::{borrow::Cow, fmt};

use aws_lc_rs::hmac;
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use chrono::{DateTime, Duration, Utc};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{self, Visitor},
};
use uuid::Uuid;

use crate::{
    config,
    entity::{session, user},
    error::{AuthFailure, Error, Result},
    jws::KeySet,
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
    /// The Django service made it, before there were sessions.
    pub is_adopted: bool,
    /// Of the session that a refresh token was made of, if it says so and its `jti` bears that out.
    pub generation: Option<i64>,
    pub jti: String,
    pub issued_at: DateTime<Utc>,
    /// Seconds since the Unix epoch.
    pub expires_at: i64,
    /// None in a refresh token.
    pub roles: Roles,
    /// false in a refresh token.
    pub is_verified: bool,
}

/// What makes and checks tokens.
pub struct Keys {
    signatures: KeySet,
    /// Makes the `jti` of a refresh token out of its session and generation.
    successor: hmac::Key,
    /// Makes the ids of the sessions that tokens of the Django service stand for.
    adopted: hmac::Key,
    access_lifetime: Duration,
    refresh_lifetime: Duration,
    /// Until when tokens without a session are taken.
    accept_simplejwt_until: Option<DateTime<Utc>>,
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
    /// Of the session, in a refresh token: it spares a look.
    #[serde(skip_serializing_if = "Option::is_none", rename = "gen")]
    generation: Option<i64>,
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
struct Claims<'a> {
    token_type: Kind,
    exp: i64,
    iat: i64,
    #[serde(default)]
    nbf: Option<i64>,
    #[serde(borrow)]
    jti: Cow<'a, str>,
    user_id: UserId,
    #[serde(default)]
    sid: Option<Uuid>,
    #[serde(default, rename = "gen")]
    generation: Option<i64>,
    #[serde(default)]
    roles: Vec<String>,
    #[serde(default)]
    is_verified: bool,
}

/// A text, as we and newer releases of `SimpleJWT` write it; before 5.5 that wrote a number.
enum UserId {
    Text(i64),
    Number(i64),
}

impl<'de> Deserialize<'de> for UserId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EitherVisitor;
        impl Visitor<'_> for EitherVisitor {
            type Value = UserId;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the id of a user")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<UserId, E> {
                text.parse().map(UserId::Text).map_err(E::custom)
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<UserId, E> {
                Ok(UserId::Number(number))
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<UserId, E> {
                i64::try_from(number).map(UserId::Number).map_err(E::custom)
            }
        }
        deserializer.deserialize_any(EitherVisitor)
    }
}

impl Keys {
    pub fn new(config: &config::Jwt, signatures: KeySet, secret: &config::SecretKey) -> Self {
        // Not of the signing key: sessions outlive that.
        let key = |label| hmac::Key::new(hmac::HMAC_SHA256, &secret.derive(label));
        Self {
            signatures,
            successor: key("refresh token successor"),
            adopted: key("sessions of SimpleJWT"),
            access_lifetime: in_seconds(config.access_lifetime),
            refresh_lifetime: in_seconds(config.refresh_lifetime),
            accept_simplejwt_until: config.accept_simplejwt_until,
        }
    }

    /// The public halves of the keys, for whoever verifies tokens without asking.
    pub fn public(&self) -> jsonwebtoken::jwk::JwkSet {
        self.signatures.public()
    }

    /// Whether tokens of the Django service are taken.
    pub fn accept_simplejwt(&self, now: DateTime<Utc>) -> bool {
        self.accept_simplejwt_until.is_some_and(|until| now < until)
    }

    /// The session that stands for all access tokens of the user that the Django service made: they name none.
    pub fn simplejwt_session(&self, user_id: i64) -> Uuid {
        self.adopted_session(b"user", &user_id.to_be_bytes())
    }

    fn adopted_session(&self, kind: &[u8], of: &[u8]) -> Uuid {
        let mut id = [0; 16];
        id.copy_from_slice(&hmac::sign(&self.adopted, &[kind, b" ", of].concat()).as_ref()[..16]);
        uuid::Builder::from_custom_bytes(id).into_uuid()
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
            generation: None,
            user: Some(WrittenUser { roles: Roles::of(user).display(), is_verified: user.is_verified }),
        };
        let refresh = Written {
            token_type: Kind::Refresh,
            exp: (session.rotated_at + self.refresh_lifetime).min(session.ends_at).timestamp(),
            iat: session.rotated_at.timestamp(),
            jti: &self.refresh_jti(session.id, session.generation),
            generation: Some(session.generation),
            user: None,
            ..access
        };
        Ok(TokenPair { access: self.signatures.sign(&access)?, refresh: self.signatures.sign(&refresh)? })
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
        let Some(verified) = self.signatures.verify(token) else { return Err(bad) };
        let Ok(claims) = serde_json::from_slice::<Claims<'_>>(&verified.payload) else { return Err(bad) };
        let is_adopted = claims.sid.is_none();
        // Of others' tokens none lives longer than ours: what ends them is remembered no longer.
        let exp = if is_adopted {
            claims.exp.min(claims.iat.saturating_add(self.lifetime(claims.token_type)))
        } else {
            claims.exp
        };
        let (seconds, leeway) = (now.timestamp(), LEEWAY.num_seconds());
        if exp <= seconds {
            return Err(Error::Unauthenticated(AuthFailure::ExpiredToken));
        }
        // Those who share the secret name no key in what they sign.
        if is_adopted && (verified.names_key || !self.accept_simplejwt(now)) {
            return Err(bad);
        }
        if claims.iat > seconds + leeway || claims.nbf.is_some_and(|nbf| nbf > seconds + leeway) {
            return Err(bad);
        }
        let user_id = match claims.user_id {
            UserId::Text(id) => Some(id),
            UserId::Number(number) => Some(number).filter(|_| is_adopted),
        };
        let Some(user_id) = user_id else { return Err(bad) };
        let (session_id, jti) = match (claims.sid, claims.token_type) {
            (Some(session_id), _) => (session_id, claims.jti.into_owned()),
            (None, Kind::Access) => (self.simplejwt_session(user_id), claims.jti.into_owned()),
            // The token before the first of a session of its own.
            (None, Kind::Refresh) => {
                let session_id = self.adopted_session(b"refresh token", claims.jti.as_bytes());
                (session_id, self.refresh_jti(session_id, 0))
            }
        };
        let generation = claims.generation.filter(|generation| jti == self.refresh_jti(session_id, *generation));
        Ok(VerifiedToken {
            kind: claims.token_type,
            user_id,
            session_id,
            is_adopted,
            generation,
            jti,
            issued_at: DateTime::from_timestamp(claims.iat, 0).unwrap_or_default(),
            expires_at: exp,
            roles: Roles::from_display(claims.roles.iter().map(String::as_str)),
            is_verified: claims.is_verified,
        })
    }

    /// In seconds.
    fn lifetime(&self, kind: Kind) -> i64 {
        match kind {
            Kind::Access => self.access_lifetime.num_seconds(),
            Kind::Refresh => self.refresh_lifetime.num_seconds(),
        }
    }
}

fn in_seconds(lifetime: std::time::Duration) -> Duration {
    Duration::seconds(i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX / 1000))
}
