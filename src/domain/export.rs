//! The export: all that is kept of a user, for the user to take along (GDPR, article 15 and 20). No hash, no code, no token.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use sea_orm::{ColumnTrait, DerivePartialModel, EntityTrait, QueryFilter, QueryOrder, QuerySelect, Select};
use tracing::Instrument;

use crate::{
    app::App,
    domain::{
        audit::Event,
        caller::{Call, Caller},
        profile::VisibleProfile,
        trail::{Activity, Filter},
        user_permission::{UserPermissions, user_permissions},
    },
    entity::{known_client, outbox, profile, session, user, verification_code as code},
    error::{Error, Resource, Result},
    model::user::{Profile, User},
};

/// How much of each list there is at most.
const MOST: usize = 1000;

/// All that is kept of a user. Lists have the newest first.
pub struct UserExport {
    pub exported_at: DateTime<Utc>,
    pub user: User,
    pub last_login: Option<DateTime<Utc>>,
    pub profile: VisibleProfile,
    pub held: UserPermissions,
    pub sessions: Vec<session::Model>,
    pub known_networks: Vec<known_client::Model>,
    pub verifications: Vec<Verification>,
    pub messages: Vec<Message>,
    pub activity: Vec<Activity>,
    /// The names of the lists that go on.
    pub truncated: Vec<&'static str>,
}

/// A code that was mailed, without the code.
#[derive(DerivePartialModel)]
#[sea_orm(entity = "code::Entity")]
pub struct Verification {
    pub email_key: String,
    pub created_at: DateTime<Utc>,
    pub expires_at: DateTime<Utc>,
    pub used_at: Option<DateTime<Utc>>,
}

/// A message, without what it says.
#[derive(DerivePartialModel)]
#[sea_orm(entity = "outbox::Entity")]
pub struct Message {
    pub kind: String,
    pub created_at: DateTime<Utc>,
    pub state: outbox::State,
}

#[derive(DerivePartialModel)]
#[sea_orm(entity = "user::Entity")]
struct Shown {
    #[sea_orm(nested)]
    user: User,
    #[sea_orm(nested)]
    profile: Profile,
    last_login: Option<DateTime<Utc>>,
}

impl App {
    /// All that is kept of the user: for oneself and admins. That it was given out is in the audit before it is.
    ///
    /// # Errors
    /// `PermissionDenied`; `NotFound`; `Unavailable`, too, if the caller has two other exports or lists under way.
    pub async fn export_user(self: &Arc<Self>, call: Arc<Call>, caller: Caller, id: i64) -> Result<UserExport> {
        self.account_for_oneself_or_admin(&caller, id).await?;
        let place = self.turn_to_search(caller.user_id).await?;
        self.change(move |tx| {
            Box::pin(async move {
                // Whoever was an admin a moment ago may no longer be.
                let authority = tx.authority(&caller).await?;
                if caller.user_id != id {
                    authority.require_admin()?;
                }
                tx.audit(Event::UserExported, Some(&call), id)
            })
        })
        .await?;
        let app = Arc::clone(self);
        // In a task of its own, as lists are: the place is taken for as long as the database works.
        let export = async move {
            let _place = place;
            app.all_of_user(id).await
        };
        tokio::spawn(export.in_current_span()).await.map_err(|_| Error::internal("an export panicked"))?
    }

    async fn all_of_user(&self, id: i64) -> Result<UserExport> {
        let db = self.db.reader();
        let shown = user::Entity::find_by_id(id).inner_join(profile::Entity).into_partial_model::<Shown>();
        let shown = shown.one(db).await?.ok_or(Error::NotFound(Resource::User))?;
        let Shown { user, profile, last_login } = shown;
        let held = user_permissions(db, &user).await?;

        let sessions = newest::<session::Entity>(session::Column::UserId, id, session::Column::CreatedAt)
            // The one that stands for what the Django service issued is no login.
            .filter(session::Column::Id.ne(self.keys.simplejwt_session(id)))
            .all(db)
            .await?;
        let known_networks =
            newest::<known_client::Entity>(known_client::Column::UserId, id, known_client::Column::LastLoginAt)
                .all(db)
                .await?;
        let verifications = newest::<code::Entity>(code::Column::UserId, id, code::Column::CreatedAt);
        let verifications = verifications.into_partial_model::<Verification>().all(db).await?;
        let messages = newest::<outbox::Entity>(outbox::Column::UserId, id, outbox::Column::Id);
        let messages = messages.into_partial_model::<Message>().all(db).await?;
        let activity = self.newest_of_trail(&Filter::of_user(id), None, MOST as u64 + 1).await?;
        let activity = activity.into_iter().map(|event| event.seen_by(id)).collect();

        let mut truncated = Vec::new();
        Ok(UserExport {
            exported_at: self.clock.now(),
            last_login,
            held,
            sessions: first(sessions, "sessions", &mut truncated),
            known_networks: first(known_networks, "known_networks", &mut truncated),
            verifications: first(verifications, "verifications", &mut truncated),
            messages: first(messages, "messages", &mut truncated),
            activity: first(activity, "activity", &mut truncated),
            truncated,
            profile: VisibleProfile { user: user.clone(), profile, is_own: true },
            user,
        })
    }
}

/// Selects the user's rows, the newest first, and one more than there is room for.
fn newest<E: EntityTrait>(owner: E::Column, user_id: i64, time: E::Column) -> Select<E> {
    E::find().filter(owner.eq(user_id)).order_by_desc(time).limit(MOST as u64 + 1)
}

/// As much of a list as there is room for; its name is noted if it goes on.
fn first<T>(mut all: Vec<T>, name: &'static str, truncated: &mut Vec<&'static str>) -> Vec<T> {
    if all.len() > MOST {
        all.truncate(MOST);
        truncated.push(name);
    }
    all
}
