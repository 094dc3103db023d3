//! `ProfileService`: what a user tells of oneself.

use tonic::{Request, Response, Status};

use super::{Api, owned, parse_as_user, patch::Patch};
use crate::{
    domain::{
        avatar::Upload,
        caller::Call,
        profile::{Bio, ProfileChange, Timezone, VisibleProfile},
    },
    error::{Error, FieldErrors, Resource},
    pb::{self, profile_service_server::ProfileService},
};

#[tonic::async_trait]
impl ProfileService for Api {
    async fn get_my_profile(&self, request: Request<pb::GetMyProfileRequest>) -> Result<Response<pb::Profile>, Status> {
        let (call, caller, ()) = parse_as_user(request, |_, _| Some(()))?;
        let profile = self.app.my_profile(&caller).await?;
        Ok(Response::new(self.profile(&call, profile)))
    }

    async fn get_profile(&self, request: Request<pb::GetProfileRequest>) -> Result<Response<pb::Profile>, Status> {
        let (call, caller, user_id) = parse_as_user(request, |get, _| Some(get.user_id))?;
        let found = self.app.get_profile(&caller, user_id).await?;
        Ok(Response::new(self.profile(&call, found.ok_or(Error::NotFound(Resource::Profile))?)))
    }

    async fn update_my_profile(
        &self,
        request: Request<pb::UpdateMyProfileRequest>,
    ) -> Result<Response<pb::Profile>, Status> {
        let (call, caller, change) = parse_as_user(request, |update, errors| Some(profile_change(update, errors)))?;
        let profile = self.app.update_my_profile(caller, change).await?;
        Ok(Response::new(self.profile(&call, profile)))
    }
}

fn profile_change(update: pb::UpdateMyProfileRequest, errors: &mut FieldErrors) -> ProfileChange {
    const FIELDS: [&str; 5] = ["avatar", "bio", "is_public", "timezone", "streak_visibility"];
    let mut patch = Patch::new(update.update_mask, &FIELDS, errors);
    let avatar = patch.check("avatar", update.avatar, Upload::parse);
    let bio = patch.check("bio", update.bio, |raw| Bio::parse(&raw));
    let timezone = patch.check("timezone", update.timezone, |raw| Timezone::parse(&raw));
    ProfileChange {
        avatar: patch.clearable("avatar", avatar),
        bio: patch.clearable("bio", bio),
        is_public: patch.value("is_public", update.is_public),
        timezone: patch.clearable("timezone", timezone),
        streak_visibility: patch.value("streak_visibility", update.streak_visibility),
    }
}

impl Api {
    /// The profile, with an absolute link to its picture.
    pub(super) fn profile(&self, call: &Call, visible: VisibleProfile) -> pb::Profile {
        let VisibleProfile { user, profile, is_own } = visible;
        pb::Profile {
            id: profile.id,
            roles: owned(user.roles().display()),
            user: Some(pb::ProfileUser {
                id: user.id,
                email: user.email,
                first_name: user.first_name,
                last_name: user.last_name,
            }),
            avatar: profile.avatar.map(|name| format!("{}/media/avatars/{name}", self.app.base_url(call))),
            bio: profile.bio,
            is_public: profile.is_public,
            timezone: profile.timezone,
            streak_visibility: is_own.then_some(profile.streak_visibility),
        }
    }
}
