//! Lists of users, as their number grows.

use std::time::Duration;

use identity::pb;

use crate::{
    Outcome,
    ceiling::LIST_USERS,
    data::{self, COMMON_HOST, COMMON_NAME, EVERYBODY},
    grpc::{self, GrpcCaller},
    measure::{Caller, Round, round},
    people,
    report::{Figures, Listed},
    rest::{Request, RestCaller},
    run::Run,
};

pub const PAGE_ONE: &str = "page 1";
pub const PAGE_ONE_BY_NAME: &str = "page 1 by last_name";
pub const TOKEN: &str = "page_token, deep";
pub const TOKEN_BY_NAME: &str = "page_token by last_name, deep";
pub const DEEP: &str = "page=N, deep";
pub const DEEP_BY_NAME: &str = "page=N by last_name, deep";
pub const RARE: &str = "search, one match";
pub const COMMON: &str = "search, 5 % match";
pub const COMMON_ADDRESS: &str = "search, 10 % match";
pub const ALL_MATCH: &str = "search, all match";
pub const LETTER: &str = "search of one letter";
pub const ROLE: &str = "role, 1 %";
pub const LARGE_ROLE: &str = "role, 10 %";
pub const ROLE_AND_SEARCH: &str = "role and search";
pub const VERIFIED: &str = "is_verified";

/// Those that the plot shows.
pub const PLOTTED: [&str; 8] = [PAGE_ONE, TOKEN, DEEP, RARE, COMMON, COMMON_ADDRESS, ALL_MATCH, ROLE];

/// For how long each list is asked for, again and again by one caller.
const LENGTH: Duration = Duration::from_millis(400);
const PAGE_SIZE: u64 = 20;

/// Asks for each kind of list, as an admin who sees all and as a user who sees what is public.
pub async fn measure(run: &mut Run<'_>, users: u64) -> Outcome<()> {
    let address = run.service.address;
    let user = people::log_in(address, 1).await?.remove(0);
    let admin = people::log_in_admin(address).await?;
    // As deep as four fifths of all: at a million users, page 40 000.
    let deep = users / PAGE_SIZE * 4 / 5;
    for (view, person) in [("admin", &admin), ("user", &user)] {
        let mut queries = vec![
            (PAGE_ONE, String::new()),
            (PAGE_ONE_BY_NAME, "?ordering=last_name".into()),
            (DEEP, format!("?page={deep}")),
            (DEEP_BY_NAME, format!("?ordering=last_name&page={deep}")),
            (RARE, format!("?search={}", data::rare(users))),
            (COMMON, format!("?search={COMMON_NAME}")),
            (LETTER, "?search=a".into()),
            (ROLE, "?role=moderator".into()),
            (LARGE_ROLE, "?role=freelancer".into()),
            (ROLE_AND_SEARCH, format!("?role=freelancer&search={COMMON_NAME}")),
            (VERIFIED, "?is_verified=true".into()),
        ];
        if view == "admin" {
            // Others don't find anybody by a part of the address.
            queries.push((COMMON_ADDRESS, format!("?search={COMMON_HOST}")));
            queries.push((ALL_MATCH, format!("?search={EVERYBODY}")));
        }
        for (what, query) in queries {
            let path = format!("/api/users/{query}");
            let caller = RestCaller::same(address, Request::get(&path, &person.access).bytes()).await?;
            let figures = ask(caller).await?;
            note(run, what, path, view, users, &figures);
        }
        let channel = grpc::connections(address, 1).await?.remove(0);
        let list = |request: pb::ListUsersRequest| {
            let token = Some(person.access.as_str());
            GrpcCaller::<_, pb::ListUsersResponse>::new(channel.clone(), LIST_USERS, token, move |_| request.clone())
        };
        for (what, ordering) in [(TOKEN, None), (TOKEN_BY_NAME, Some("last_name".to_owned()))] {
            let first = pb::ListUsersRequest { page: Some(i64::try_from(deep)?), ordering, ..Default::default() };
            let mut before = list(first.clone())?;
            before.call().await?;
            let page_token = before.last.map(|(_, page)| page.next_page_token);
            let figures = ask(list(pb::ListUsersRequest { page: None, page_token, ..first })?).await?;
            note(run, what, "ListUsers".into(), view, users, &figures);
        }
    }
    Ok(())
}

async fn ask<C: Caller>(caller: C) -> Outcome<Figures> {
    let mut callers = vec![caller];
    round(&mut callers, None, LENGTH / 4).await?;
    let round: Round = round(&mut callers, None, LENGTH).await?;
    Ok(Figures::of(&[round]))
}

fn note(run: &mut Run<'_>, what: &str, path: String, view: &str, users: u64, figures: &Figures) {
    let Figures { p50_ms, p99_ms, .. } = *figures;
    let store = run.store.name().to_owned();
    println!("{store:<10} {users:>8} users, {view:<5} {what:<30} ms {p50_ms:.2} {p99_ms:.2}");
    let (what, view) = (what.to_owned(), view.to_owned());
    run.report.lists.push(Listed { what, path, view, store, users, p50_ms, p99_ms });
}
