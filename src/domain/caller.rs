//! Who calls, and from where.

use std::{
    fmt,
    net::IpAddr,
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
};

use http::HeaderValue;
use uuid::Uuid;

use crate::{
    app::App,
    error::{AuthFailure, Error, Result},
    feed::Verdict,
    model::{
        role::Roles,
        token::{self, VerifiedToken},
        user::User,
    },
    random,
};

/// One call: where it comes from and, if it bears a good token, who makes it.
#[derive(Debug)]
pub struct Call {
    pub request_id: RequestId,
    /// The address that limits and the audit go by.
    pub client: IpAddr,
    pub user_agent: Option<HeaderValue>,
    /// The host, with its port, at which the caller reached us.
    pub authority: Option<HeaderValue>,
    /// The caller reached us, or the proxy in front of us, over TLS.
    pub is_secure: bool,
    pub caller: Option<Caller>,
}

impl Call {
    /// The caller's program as it names itself: at most 255 characters, none of them a control character.
    pub fn user_agent(&self) -> Option<String> {
        // Whatever it holds: a letter that isn't ASCII must not keep the rest out of the audit.
        let text = String::from_utf8_lossy(self.user_agent.as_ref()?.as_bytes());
        Some(text.chars().filter(|c| !c.is_control()).take(255).collect())
    }
}

/// The user who calls, as the token tells, corrected by what changed since.
#[derive(Debug, Clone)]
pub struct Caller {
    pub user_id: i64,
    pub session_id: Uuid,
    pub roles: Roles,
    pub is_verified: bool,
}

impl Caller {
    /// Admins and moderators see private and inactive users too, and every address.
    pub fn sees_everyone(&self) -> bool {
        self.roles.is_admin() || self.roles.is_moderator()
    }

    /// Oneself, and whom the directory lists.
    pub fn may_see(&self, user: &User) -> bool {
        self.user_id == user.id || user.listed || self.sees_everyone()
    }
}

impl App {
    /// Where the caller reached us, for absolute links: `PUBLIC_URL`, or the host of the call where it is an allowed
    /// one. `""` otherwise: a link of ours never leads to a host that the caller made up.
    pub fn base_url(&self, call: &Call) -> String {
        if let Some(url) = &self.config.server.public_url {
            return url.trim_end_matches('/').to_owned();
        }
        let authority = call.authority.as_ref().and_then(|a| a.to_str().ok());
        match authority.filter(|host| self.config.http.allowed_hosts.allows(host)) {
            Some(host) => format!("{}://{host}", if call.is_secure { "https" } else { "http" }),
            None => String::new(),
        }
    }

    /// The user who bears this access token.
    ///
    /// It takes neither network nor disk, save for a user whose roles changed since the token was made.
    ///
    /// # Errors
    /// `Unauthenticated` for a token that is bad or expired, or whose session is over; `Unavailable` if that can't be known now.
    pub async fn caller(&self, access_token: &str) -> Result<Caller> {
        let claims = self.keys.verify(access_token, token::Kind::Access, self.clock.now())?;
        self.caller_of(&claims).await
    }

    /// The user who bears the access token of these claims.
    pub(super) async fn caller_of(&self, claims: &VerifiedToken) -> Result<Caller> {
        match self.feed.verdict(claims.session_id, claims.user_id, claims.issued_at)? {
            Verdict::Ended => Err(Error::Unauthenticated(AuthFailure::SessionEnded)),
            // What says nothing of its user is no better than what is old.
            Verdict::Unchanged if !claims.is_adopted => Ok(Caller {
                user_id: claims.user_id,
                session_id: claims.session_id,
                roles: claims.roles,
                is_verified: claims.is_verified,
            }),
            Verdict::Unchanged | Verdict::Changed => {
                let user = self.active_user(claims.user_id).await?;
                Ok(Caller {
                    user_id: user.id,
                    session_id: claims.session_id,
                    roles: Roles::of(&user),
                    is_verified: user.is_verified,
                })
            }
        }
    }
}

/// What a call is found by in the logs of every service that it passes.
#[derive(Debug, Clone)]
pub struct RequestId(HeaderValue);

impl RequestId {
    /// The id that came with the call where it is well formed: 1 to 128 letters, digits, `-`, `_` or `.`. Else a new one.
    pub fn given_or_new(given: Option<&HeaderValue>) -> Self {
        let well_formed = |id: &&HeaderValue| {
            (1..=128).contains(&id.len())
                && id.as_bytes().iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        };
        given.filter(well_formed).map_or_else(Self::new, |id| Self(id.clone()))
    }

    /// 16 hexadecimal digits. A counter, scrambled from a random start: ids must be different, not secret, and a random
    /// number for each call would cost a good part of a warm read.
    fn new() -> Self {
        static NEXT: LazyLock<AtomicU64> = LazyLock::new(|| AtomicU64::new(u64::from_ne_bytes(random::bytes())));
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let mut digits = [0_u8; 16];
        for (pair, byte) in digits.chunks_exact_mut(2).zip(scramble(n).to_be_bytes()) {
            let hex = |nibble: u8| b"0123456789abcdef"[usize::from(nibble)];
            pair.copy_from_slice(&[hex(byte >> 4), hex(byte & 15)]);
        }
        Self(HeaderValue::from_bytes(&digits).unwrap_or(HeaderValue::from_static("0")))
    }

    pub fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }

    pub fn into_header(self) -> HeaderValue {
        self.0
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The finaliser of `SplitMix64`: a bijection, so that different counts stay different.
fn scramble(mut n: u64) -> u64 {
    n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}
