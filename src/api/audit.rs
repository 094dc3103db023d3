//! `AuditService`: what happened, and who did it.

use chrono::SecondsFormat;
use tonic::{Request, Response, Status};

use super::{Api, parse_as_user, time, timestamp};
use crate::{
    domain::{
        audit::Detail,
        caller::Call,
        page::PageSize,
        trail::{Activity, By, Filter, Kinds, Part, Recorded},
    },
    error::{FieldErrors, Result},
    pb::{self, audit_service_server::AuditService},
};

#[tonic::async_trait]
impl AuditService for Api {
    async fn list_audit_events(
        &self,
        request: Request<pb::ListAuditEventsRequest>,
    ) -> Result<Response<pb::ListAuditEventsResponse>, Status> {
        let asked = parameters(request.get_ref());
        let (call, caller, (filter, part)) = parse_as_user(request, |list, errors| {
            let part = part(list.page_size, list.page_token.clone());
            Some((filter(list, errors), part))
        })?;
        let page = self.app.list_audit_events(call.clone(), caller, filter, part).await?;
        Ok(Response::new(pb::ListAuditEventsResponse {
            next: page.next_page_token.as_deref().map(|token| self.link(&call, "/api/audit/events/", &asked, token)),
            results: page.events.into_iter().map(event).collect(),
            next_page_token: page.next_page_token.unwrap_or_default(),
        }))
    }

    async fn list_user_activity(
        &self,
        request: Request<pb::ListUserActivityRequest>,
    ) -> Result<Response<pb::ListUserActivityResponse>, Status> {
        let (call, caller, (id, page_size, part)) = parse_as_user(request, |list, _| {
            let part = part(list.page_size, list.page_token);
            Some((list.id, list.page_size.map(|n| n.to_string()), part))
        })?;
        let page = self.app.list_activity(call.clone(), caller, id, part).await?;
        let (path, asked) = (format!("/api/users/{id}/activity/"), [("page_size", page_size)]);
        Ok(Response::new(pb::ListUserActivityResponse {
            next: page.next_page_token.as_deref().map(|token| self.link(&call, &path, &asked, token)),
            results: page.events.into_iter().map(activity).collect(),
            next_page_token: page.next_page_token.unwrap_or_default(),
        }))
    }
}

/// What a page was asked for by, save the token.
type Parameters = [(&'static str, Option<String>)];

impl Api {
    /// The address of the page that the token leads to.
    fn link(&self, call: &Call, path: &str, asked: &Parameters, token: &str) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(asked.iter().filter_map(|(name, value)| Some((*name, value.as_deref()?))));
        query.append_pair("page_token", token);
        format!("{}{path}?{}", self.app.base_url(call), query.finish())
    }
}

fn filter(list: pb::ListAuditEventsRequest, errors: &mut FieldErrors) -> Filter {
    Filter {
        user_id: list.user_id,
        actor_id: list.actor_id,
        kinds: list.kind.and_then(|raw| errors.check("kind", Kinds::parse(&raw))),
        since: time("since", list.since, errors),
        until: time("until", list.until, errors),
    }
}

/// An empty token is that of the first page: whoever hands on what came last begins so.
fn part(page_size: Option<i64>, page_token: Option<String>) -> Part {
    Part { page_size: PageSize::new(page_size), page_token: page_token.filter(|token| !token.is_empty()) }
}

fn parameters(list: &pb::ListAuditEventsRequest) -> [(&'static str, Option<String>); 6] {
    let written = |time: &Option<prost_types::Timestamp>| {
        let time = super::time("", *time, &mut FieldErrors::default())?;
        Some(time.to_rfc3339_opts(SecondsFormat::AutoSi, true))
    };
    [
        ("user_id", list.user_id.map(|id| id.to_string())),
        ("actor_id", list.actor_id.map(|id| id.to_string())),
        ("kind", list.kind.clone()),
        ("since", written(&list.since)),
        ("until", written(&list.until)),
        ("page_size", list.page_size.map(|n| n.to_string())),
    ]
}

fn event(Recorded { row, detail: what_else }: Recorded) -> pb::AuditEvent {
    pb::AuditEvent {
        id: row.id,
        occurred_at: Some(timestamp(row.created_at)),
        kind: row.kind,
        actor_id: row.actor_id,
        user_id: row.user_id,
        ip: row.ip,
        user_agent: row.user_agent,
        request_id: row.request_id,
        detail: Some(detail(what_else)),
    }
}

pub(super) fn activity(activity: Activity) -> pb::Activity {
    let by = match activity.by {
        By::Oneself => "self",
        By::Administrator => "administrator",
        By::Operator => "operator",
        By::Unknown => "unknown",
    };
    pb::Activity {
        occurred_at: Some(timestamp(activity.occurred_at)),
        kind: activity.kind,
        by: by.into(),
        ip: activity.ip,
        user_agent: activity.user_agent,
        detail: Some(detail(activity.detail)),
    }
}

fn detail(detail: Detail) -> pb::AuditDetail {
    let Detail { changed, group, permission, sessions } = detail;
    pb::AuditDetail {
        changed: changed.into_iter().map(|(field, value)| pb::AuditChange { field, value }).collect(),
        group,
        permission,
        sessions: sessions.map(|count| i64::try_from(count).unwrap_or(i64::MAX)),
    }
}
