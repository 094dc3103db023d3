//! An export as it is given out, field by field: what is kept of a user and is not here, stays here.

use super::{Api, audit::activity, owned, role::user_permissions, timestamp};
use crate::{
    domain::{
        caller::Call,
        export::{Message, UserExport, Verification},
    },
    entity::{known_client, outbox::State, session},
    pb,
};

impl Api {
    pub(super) fn exported(&self, call: &Call, export: UserExport) -> pb::UserExport {
        let user = export.user;
        pb::UserExport {
            exported_at: Some(timestamp(export.exported_at)),
            account: Some(pb::ExportedAccount {
                id: user.id,
                roles: owned(user.roles().display()),
                email: user.email,
                first_name: user.first_name,
                last_name: user.last_name,
                is_active: user.is_active,
                is_verified: user.is_verified,
                is_freelancer: user.is_freelancer,
                is_seller: user.is_seller,
                is_moderator: user.is_moderator,
                is_staff: user.is_staff,
                is_superuser: user.is_superuser,
                date_joined: Some(timestamp(user.date_joined)),
                updated_at: Some(timestamp(user.updated_at)),
                last_login: export.last_login.map(timestamp),
            }),
            profile: Some(self.profile(call, export.profile)),
            permissions: Some(user_permissions(export.held)),
            sessions: export.sessions.into_iter().map(login).collect(),
            known_networks: export.known_networks.into_iter().map(network).collect(),
            verifications: export.verifications.into_iter().map(verification).collect(),
            messages: export.messages.into_iter().map(message).collect(),
            activity: export.activity.into_iter().map(activity).collect(),
            truncated: owned(export.truncated),
        }
    }
}

fn login(session: session::Model) -> pb::ExportedSession {
    pb::ExportedSession {
        began_at: Some(timestamp(session.created_at)),
        refreshed_at: Some(timestamp(session.rotated_at)),
        expires_at: Some(timestamp(session.expires_at)),
        ended_at: session.revoked_at.map(timestamp),
        ip: session.ip,
        user_agent: session.user_agent,
    }
}

fn network(client: known_client::Model) -> pb::ExportedNetwork {
    pb::ExportedNetwork { network: client.network, last_login_at: Some(timestamp(client.last_login_at)) }
}

fn verification(code: Verification) -> pb::ExportedVerification {
    pb::ExportedVerification {
        email: code.email_key,
        created_at: Some(timestamp(code.created_at)),
        expires_at: Some(timestamp(code.expires_at)),
        used_at: code.used_at.map(timestamp),
    }
}

fn message(message: Message) -> pb::ExportedMessage {
    let state = match message.state {
        State::Pending => "waiting",
        State::Sent => "sent",
        State::Abandoned => "given_up",
    };
    pb::ExportedMessage { kind: message.kind, created_at: Some(timestamp(message.created_at)), state: state.into() }
}
