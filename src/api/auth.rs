//! `AuthService`: registration, sessions, tokens, verified addresses.

use tonic::{Request, Response, Status};

use super::{
    Api,
    cookies::{self, Tokens},
    new_account, owned, parse, parse_as_user,
};
use crate::{
    domain::{user::EmailAddress, verification::Code},
    entity::user,
    error::FieldErrors,
    model::{password::Password, role::Roles, token::TokenPair},
    pb::{self, auth_service_server::AuthService},
};

#[tonic::async_trait]
impl AuthService for Api {
    async fn register(&self, request: Request<pb::RegisterRequest>) -> Result<Response<pb::RegisterResponse>, Status> {
        let (call, new) = parse(request, |new, errors| {
            new_account(new.email, new.password, [new.first_name, new.last_name], errors)
        })?;
        let done = self.app.register(call, new).await?;
        let issued = issued(&done.tokens);
        let reply = pb::RegisterResponse {
            id: done.user.id,
            email: done.user.email.clone(),
            first_name: done.user.first_name.clone(),
            last_name: done.user.last_name.clone(),
            access_token: done.tokens.access,
            refresh_token: done.tokens.refresh,
            user: Some(summary(done.user)),
        };
        Ok(with_tokens(reply, issued))
    }

    async fn login(&self, request: Request<pb::LoginRequest>) -> Result<Response<pb::LoginResponse>, Status> {
        let (call, (email, password)) = parse(request, |login, errors| {
            let email = errors.required("email", login.email);
            let email = email.and_then(|raw| errors.check("email", EmailAddress::parse(&raw)));
            let password = errors.required("password", login.password);
            let password = password.and_then(|raw| errors.check("password", Password::given(&raw)));
            Some((email?, password?))
        })?;
        let done = self.app.login(call, email, password).await?;
        let issued = issued(&done.tokens);
        let reply = pb::LoginResponse {
            access_token: done.tokens.access,
            refresh_token: done.tokens.refresh,
            user: Some(summary(done.user)),
        };
        Ok(with_tokens(reply, issued))
    }

    async fn refresh_token(
        &self,
        mut request: Request<pb::RefreshTokenRequest>,
    ) -> Result<Response<pb::RefreshTokenResponse>, Status> {
        if request.get_ref().refresh_token.is_none() {
            request.get_mut().refresh_token = cookies::refresh_token(request.extensions())?;
        }
        let (call, token) =
            parse(request, |refresh, errors| required_token("refresh_token", refresh.refresh_token, errors))?;
        let tokens = self.app.refresh(call, &token).await?;
        let issued = issued(&tokens);
        let reply = pb::RefreshTokenResponse { access_token: tokens.access, refresh_token: tokens.refresh };
        Ok(with_tokens(reply, issued))
    }

    async fn logout(&self, request: Request<pb::LogoutRequest>) -> Result<Response<pb::LogoutResponse>, Status> {
        let (call, caller, ()) = parse_as_user(request, |_, _| Some(()))?;
        self.app.logout(call, caller).await?;
        Ok(with_tokens(pb::LogoutResponse { message: "Successfully logged out".into() }, Tokens::Gone))
    }

    async fn send_verification(
        &self,
        request: Request<pb::SendVerificationRequest>,
    ) -> Result<Response<pb::SendVerificationResponse>, Status> {
        let (_, caller, ()) = parse_as_user(request, |_, _| Some(()))?;
        let email = self.app.send_verification(caller).await?;
        Ok(Response::new(pb::SendVerificationResponse { message: "Verification email sent".into(), email }))
    }

    async fn verify_email(
        &self,
        request: Request<pb::VerifyEmailRequest>,
    ) -> Result<Response<pb::VerifyEmailResponse>, Status> {
        let (call, (email, code)) = parse(request, |verify, errors| {
            let email = errors.required("email", verify.email);
            let email = email.and_then(|raw| errors.check("email", EmailAddress::parse(&raw)));
            let code = errors.required("code", verify.code);
            let code = code.and_then(|raw| errors.check("code", Code::parse(&raw)));
            Some((email?, code?))
        })?;
        self.app.verify_email(call, email, code).await?;
        Ok(Response::new(pb::VerifyEmailResponse { message: "Email verified successfully".into(), is_verified: true }))
    }

    async fn verify_token(
        &self,
        request: Request<pb::VerifyTokenRequest>,
    ) -> Result<Response<pb::VerifyTokenResponse>, Status> {
        let (call, token) = parse(request, |verify, errors| required_token("token", verify.token, errors))?;
        let (verified, permissions) = self.app.verify_token(&call, &token).await?;
        Ok(Response::new(pb::VerifyTokenResponse {
            user_id: verified.user_id,
            token_type: verified.kind.as_str().into(),
            sid: verified.session_id.to_string(),
            exp: verified.expires_at,
            roles: owned(verified.roles.display_with_user()),
            permissions: permissions.names(),
            is_verified: verified.is_verified,
        }))
    }

    async fn change_password(
        &self,
        request: Request<pb::ChangePasswordRequest>,
    ) -> Result<Response<pb::ChangePasswordResponse>, Status> {
        let (call, caller, (old, new)) = parse_as_user(request, |change, errors| {
            let old = errors.required("old_password", change.old_password);
            let old = old.and_then(|raw| errors.check("old_password", Password::given(&raw)));
            let new = errors.required("new_password", change.new_password);
            let new = new.and_then(|raw| errors.check("new_password", Password::parse_new(&raw, &[])));
            Some((old?, new?))
        })?;
        self.app.change_password(call, caller, old, new).await?;
        Ok(Response::new(pb::ChangePasswordResponse { message: "Password changed successfully".into() }))
    }
}

/// For those who keep them in cookies.
fn issued(tokens: &TokenPair) -> Tokens {
    Tokens::Issued { access: tokens.access.clone(), refresh: tokens.refresh.clone() }
}

/// The reply, and what it means for cookies.
fn with_tokens<T>(reply: T, tokens: Tokens) -> Response<T> {
    let mut response = Response::new(reply);
    response.extensions_mut().insert(tokens);
    response
}

fn required_token(field: &'static str, token: Option<String>, errors: &mut FieldErrors) -> Option<String> {
    let token = errors.required(field, token)?;
    if token.trim().is_empty() {
        errors.wrong(field, "This field may not be blank.");
        return None;
    }
    Some(token)
}

fn summary(user: user::Model) -> pb::AccountSummary {
    pb::AccountSummary {
        roles: owned(Roles::of(&user).display_with_user()),
        id: user.id,
        email: user.email,
        first_name: user.first_name,
        last_name: user.last_name,
        is_active: user.is_active,
        is_verified: user.is_verified,
    }
}
