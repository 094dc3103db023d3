//! Verified addresses: a code goes to the address, and comes back within a day.

use std::sync::Arc;

use aws_lc_rs::{constant_time, hmac};
use chrono::{DateTime, Duration, TimeDelta, Utc};
use sea_orm::{
    ActiveValue::Set, ColumnTrait, EntityTrait, ExprTrait, QueryFilter, QueryOrder, QuerySelect, sea_query::Expr,
};

use crate::{
    app::App,
    config::NeedsVerified,
    domain::{
        audit::Event,
        caller::{Call, Caller},
        change::Transaction,
        event::UserEvent,
        letter::Letter,
        user::EmailAddress,
    },
    entity::{user, verification_code as code},
    error::{AuthFailure, Denial, Error, Result},
    random,
};

/// How long a code is valid.
pub const CODE_LIFETIME: Duration = Duration::hours(24);
/// How many wrong guesses void a code.
pub const CODE_MAX_MISSES: i32 = 5;
/// How many codes a user may ask for within a day.
pub const CODES_A_DAY: usize = 10;

/// Six digits, not yet held against anything.
pub struct Code(String);

impl Code {
    /// What is no code at all is as wrong as a wrong one, and said to be no more.
    ///
    /// # Errors
    /// What is wrong, in words for whoever sent it.
    pub fn parse(raw: &str) -> Result<Self, &'static str> {
        let raw = raw.trim();
        if raw.is_empty() { Err("This field may not be blank.") } else { Ok(Self(raw.chars().take(16).collect())) }
    }

    /// Each of the million is as likely as the others, but for 1 in 10^13: 2^64 is no multiple of a million, and the codes
    /// below 551 616 have that much more.
    fn new() -> Self {
        Self(format!("{:06}", u64::from_ne_bytes(random::bytes()) % 1_000_000))
    }

    /// What is stored: worthless without the key, and different for each user and address.
    fn hash(&self, key: &hmac::Key, user_id: i64, email_key: &str) -> Vec<u8> {
        let mut message = user_id.to_be_bytes().to_vec();
        message.extend_from_slice(self.0.as_bytes());
        message.push(0);
        message.extend_from_slice(email_key.as_bytes());
        hmac::sign(key, &message).as_ref().to_vec()
    }
}

impl App {
    /// Nothing, or the refusal, where `REQUIRE_VERIFIED` names what the user means to do.
    pub(super) fn require_verified(&self, what: NeedsVerified, is_verified: bool) -> Result<()> {
        if is_verified || !self.config.accounts.require_verified.contains(&what) {
            return Ok(());
        }
        Err(Error::PermissionDenied(Denial::EmailNotVerified))
    }

    /// Sends the caller a new code, which voids the one before. The answer is the address that it goes to.
    ///
    /// # Errors
    /// `Invalid` if the address is verified; `Throttled`.
    pub async fn send_verification(self: &Arc<Self>, caller: Caller) -> Result<String> {
        self.change(move |tx| {
            Box::pin(async move {
                // Locked, so that of two requests at once one sees the other's code.
                let user = user::Entity::find_by_id(caller.user_id).lock_exclusive().one(&tx.db).await?;
                let user = user.ok_or(Error::Unauthenticated(AuthFailure::SessionEnded))?;
                if user.is_verified {
                    return Err(Error::invalid("email", "This email address is already verified."));
                }
                tx.refuse_too_many_codes(user.id).await?;
                tx.post_code(&user, true).await?;
                Ok(user.email)
            })
        })
        .await
    }

    /// Marks the address as verified, if this is the code that was sent to it.
    ///
    /// # Errors
    /// `Invalid`, in the same words, for a wrong, expired, used or voided code and for an unknown address.
    pub async fn verify_email(self: &Arc<Self>, call: Arc<Call>, email: EmailAddress, guess: Code) -> Result<()> {
        let is_right = self.change(move |tx| Box::pin(async move { tx.try_code(&call, &email, &guess).await })).await?;
        if is_right {
            return Ok(());
        }
        Err(Error::invalid("code", "Invalid or expired verification code."))
    }
}

impl Transaction {
    /// Counted in SQL: it holds for all replicas, and across restarts.
    async fn refuse_too_many_codes(&self, user_id: i64) -> Result<()> {
        let in_a_day = Some((CODES_A_DAY, TimeDelta::days(1)));
        let configured = self
            .app
            .config
            .limits
            .verification
            .and_then(|rate| Some((usize::try_from(rate.count).ok()?, TimeDelta::from_std(rate.per).ok()?)));
        let limits: Vec<_> = [configured, in_a_day].into_iter().flatten().collect();
        let longest = limits.iter().map(|(_, window)| *window).max().unwrap_or_default();
        let asked: Vec<DateTime<Utc>> = code::Entity::find()
            .select_only()
            .column(code::Column::CreatedAt)
            .filter(code::Column::UserId.eq(user_id))
            .filter(code::Column::Requested.eq(true))
            .filter(code::Column::CreatedAt.gt(self.now - longest))
            .order_by_desc(code::Column::CreatedAt)
            .into_tuple()
            .all(&self.db)
            .await?;
        for (count, window) in limits {
            // The one that has to leave the window before another may come.
            let Some(at) = count.checked_sub(1).and_then(|last| asked.get(last)) else { continue };
            if let Ok(retry_after) = (*at + window - self.now).to_std()
                && !retry_after.is_zero()
            {
                return Err(Error::Throttled { retry_after });
            }
        }
        Ok(())
    }

    /// A new code for the user, and the mail that brings it. Codes before it are void.
    pub async fn post_code(&mut self, user: &user::Model, requested: bool) -> Result<()> {
        self.void_codes(user.id).await?;
        self.post_first_code(user, requested)
    }

    /// The same where no code is out.
    pub fn post_first_code(&mut self, user: &user::Model, requested: bool) -> Result<()> {
        let now = self.now;
        let new = Code::new();
        let row = code::ActiveModel {
            user_id: Set(user.id),
            email_key: Set(user.email_key.clone()),
            code_hash: Set(new.hash(&self.app.code_key, user.id, &user.email_key)),
            requested: Set(requested),
            misses: Set(0),
            created_at: Set(now),
            expires_at: Set(now + CODE_LIFETIME),
            used_at: Set(None),
            voided_at: Set(None),
            ..Default::default()
        };
        self.put(&row);
        let Code(digits) = new;
        let letter = Letter::VerificationCode { to: user.email.clone(), code: digits };
        self.post(&letter, user.id)
    }

    /// No code that is out verifies anything any more.
    pub async fn void_codes(&self, user_id: i64) -> Result<()> {
        code::Entity::update_many()
            .col_expr(code::Column::VoidedAt, Expr::value(self.now))
            .filter(code::Column::UserId.eq(user_id))
            .filter(code::Column::UsedAt.is_null())
            .filter(code::Column::VoidedAt.is_null())
            .exec(&self.db)
            .await?;
        Ok(())
    }

    async fn try_code(&mut self, call: &Call, email: &EmailAddress, guess: &Code) -> Result<bool> {
        let now = self.now;
        // In the order in which all changes of a user take their locks: the user's row first.
        let owner = user::Entity::find().filter(user::Column::EmailKey.eq(email.key())).lock_exclusive();
        let Some(owner) = owner.one(&self.db).await? else { return Ok(false) };
        // The guess is spent before it is looked at: of a hundred at once, five are.
        let spent = code::Entity::update_many()
            .col_expr(code::Column::Misses, Expr::col(code::Column::Misses).add(1))
            .filter(code::Column::UserId.eq(owner.id))
            .filter(code::Column::EmailKey.eq(email.key()))
            .filter(code::Column::UsedAt.is_null())
            .filter(code::Column::VoidedAt.is_null())
            .filter(code::Column::ExpiresAt.gt(now))
            .filter(code::Column::Misses.lt(CODE_MAX_MISSES))
            .exec_with_returning(&self.db)
            .await?;
        let expected = guess.hash(&self.app.code_key, owner.id, email.key());
        let right = spent.iter().find(|row| constant_time::verify_slices_are_equal(&row.code_hash, &expected).is_ok());
        let Some(right) = right else {
            return Ok(false);
        };
        code::Entity::update_many()
            .col_expr(code::Column::UsedAt, Expr::value(now))
            .filter(code::Column::Id.eq(right.id))
            .exec(&self.db)
            .await?;
        let verified = user::Entity::update_many()
            .col_expr(user::Column::IsVerified, Expr::value(true))
            .col_expr(user::Column::UpdatedAt, Expr::value(now))
            .col_expr(user::Column::Version, Expr::col(user::Column::Version).add(1))
            .filter(user::Column::Id.eq(owner.id))
            .filter(user::Column::EmailKey.eq(email.key()))
            .exec_with_returning(&self.db)
            .await?;
        for user in &verified {
            self.announce(&UserEvent::Verified, user)?;
            // The tokens that are out say that the address is not verified.
            self.user_changed(user);
        }
        self.audit(Event::EmailVerified, Some(call), owner.id)?;
        Ok(true)
    }
}
