//! How the databases go about a list: by an index wherever one can help.

use identity::{
    domain::directory::{Filter, Ordering, Search, Start, View},
    entity::user,
    model::role::Role,
};
use sea_orm::{ConnectionTrait, DbBackend, QueryTrait, Select, Statement};

use super::{add, person};
use crate::harness::{Service, on_each_store};

const ADMIN: View = View { everyone: true, emails: true };
const STRANGER: View = View { everyone: false, emails: false };

/// 20 000 people; each tenth a freelancer, each hundredth a moderator; one of them has a name of her own.
async fn fill(service: &Service) {
    for from in (0..20_000).step_by(1000) {
        let one = |n: u32| user::Model {
            is_freelancer: n.is_multiple_of(10),
            is_moderator: n.is_multiple_of(100),
            is_superuser: n.is_multiple_of(1000),
            listed: !n.is_multiple_of(20),
            is_verified: n.is_multiple_of(2),
            date_joined: super::noon() + chrono::Duration::seconds(n.into()),
            ..person(
                &format!("user{n}@example.com"),
                if n == 7777 { "Xanthippe" } else { "Jane" },
                &format!("Doe{}", n % 97),
            )
        };
        add(service, (from..from + 1000).map(one).collect()).await;
    }
    if service.app.db.backend_name() == "PostgreSQL" {
        service.app.db.reader().execute_unprepared("VACUUM ANALYZE users").await.unwrap();
    }
}

async fn plan(service: &Service, select: &Select<user::Entity>) -> String {
    plan_on(service.app.db.reader(), select).await
}

async fn plan_on(db: &impl ConnectionTrait, select: &Select<user::Entity>) -> String {
    let backend = db.get_database_backend();
    plan_of(db, select.build(backend)).await
}

async fn plan_of(db: &impl ConnectionTrait, query: Statement) -> String {
    let (explain, column) = match db.get_database_backend() {
        DbBackend::Sqlite => ("EXPLAIN QUERY PLAN", "detail"),
        _ => ("EXPLAIN", "QUERY PLAN"),
    };
    let rows = db.query_all_raw(Statement { sql: format!("{explain} {}", query.sql), ..query }).await.unwrap();
    let lines: Vec<String> = rows.iter().map(|row| row.try_get("", column).unwrap()).collect();
    lines.join("\n")
}

/// Whom a search finds, or the role.
fn filter(search: &str, role: Option<Role>) -> Filter {
    Filter { search: Search::parse(search).unwrap(), role, is_verified: None, group_id: None }
}

/// A kind of list, and how each store goes about it.
struct Case {
    view: View,
    filter: Filter,
    ordering: &'static str,
    start: Start,
    /// As few that they are collected.
    is_collected: bool,
    sqlite: &'static str,
    postgres: &'static str,
}

fn case(view: View, filter: Filter, ordering: &'static str, sqlite: &'static str, postgres: &'static str) -> Case {
    Case { view, filter, ordering, start: Start::At(0), is_collected: false, sqlite, postgres }
}

impl Case {
    fn from(self, start: Start) -> Self {
        Self { start, ..self }
    }

    fn collected(self) -> Self {
        Self { is_collected: true, ..self }
    }
}

fn cases() -> Vec<Case> {
    let all = || filter("", None);
    let role = |role| filter("", Some(role));
    let verified = Filter { is_verified: Some(true), ..all() };
    let jane = || Start::After(vec!["Jane".into(), 7_i64.into()]);
    let [by_id, by_first_name] = ["Only Scan using users_by_id", "Only Scan using users_by_first_name"];
    let [by_last_name, by_date] =
        ["Only Scan Backward using users_by_last_name", "Only Scan Backward using users_by_date_joined"];
    let trigrams = "VIRTUAL TABLE INDEX 0:M";
    vec![
        case(ADMIN, all(), "id", "COVERING INDEX users_by_id", "Only Scan using users_pkey"),
        case(ADMIN, all(), "-email", "users_email_key", "Only Scan Backward using users_by_email_key"),
        case(STRANGER, all(), "", "COVERING INDEX users_by_id", by_id).from(Start::At(15_000)),
        case(STRANGER, all(), "first_name", "COVERING INDEX users_by_first_name", by_first_name),
        case(STRANGER, all(), "-last_name", "COVERING INDEX users_by_last_name", by_last_name),
        case(STRANGER, verified, "-date_joined", "COVERING INDEX users_by_date_joined", by_date),
        // From where a token says.
        case(ADMIN, all(), "-id", "(id<?)", "(id < '7'::bigint)").from(Start::After(vec![7_i64.into()])),
        case(
            STRANGER,
            all(),
            "first_name",
            "(first_name=? AND id>?)",
            "(ROW(first_name, id) > ROW('Jane'::text, '7'::bigint))",
        )
        .from(jane()),
        case(ADMIN, all(), "first_name,-id", "(first_name=? AND id<?)", "(first_name >= 'Jane'::text)").from(jane()),
        // Roles: many who hold one, and few.
        case(
            STRANGER,
            role(Role::Freelancer),
            "",
            "COVERING INDEX users_freelancers",
            "Only Scan using users_freelancers",
        ),
        case(STRANGER, role(Role::Moderator), "last_name", "users_moderators", "users_moderators").collected(),
        case(ADMIN, role(Role::Admin), "email", "users_admins", "users_admins").collected(),
        // Searches.
        case(ADMIN, filter("xanthi", None), "-date_joined", trigrams, "Bitmap Index Scan on users_search_text")
            .collected(),
        case(STRANGER, filter("xanthi", None), "last_name", trigrams, "Bitmap Index Scan on users_name_text")
            .collected(),
        case(ADMIN, filter("an xanthi", None), "first_name", trigrams, "Bitmap Index Scan on users_search_text")
            .from(jane())
            .collected(),
        case(
            STRANGER,
            filter("user7@example.com", None),
            "",
            "(email_key=?)",
            "Bitmap Index Scan on users_by_email_key",
        )
        .collected(),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn no_list_reads_the_whole_table_where_an_index_can_help() {
    on_each_store(async |service| {
        fill(service).await;
        let backend = service.app.db.reader().get_database_backend();
        for Case { view, filter, ordering, start, is_collected, sqlite, postgres } in cases() {
            let index = if backend == DbBackend::Sqlite { sqlite } else { postgres };
            let page = filter.select_page(view, &Ordering::parse(ordering), start, 21, is_collected, backend);
            let page = plan(service, &page).await;
            assert!(page.contains(index), "{filter:?} by {ordering:?}, without {index}:\n{page}");
            let count = plan_of(service.app.db.reader(), filter.select_count(view, backend)).await;
            for plan in [&page, &count] {
                assert!(!plan.lines().any(|line| line.trim() == "SCAN users"), "{filter:?} by {ordering:?}:\n{plan}");
            }
            // To count nearly all of so few, PostgreSQL reads the table, and is right.
            assert!(!page.contains("Seq Scan on users "), "{filter:?} by {ordering:?}:\n{page}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_word_without_trigrams_is_not_looked_for_in_their_index() {
    on_each_store(async |service| {
        fill(service).await;
        let db = service.app.db.begin().await.unwrap();
        let backend = db.get_database_backend();
        let only_postgres = ["---", "a.b-c", "%_%"];
        for word in ["xa", "x", "%", "Ж"]
            .into_iter()
            .chain(only_postgres.into_iter().filter(|_| backend == DbBackend::Postgres))
        {
            if backend == DbBackend::Postgres {
                // Were it possible, it would be done now.
                db.execute_unprepared("SET LOCAL enable_seqscan = off").await.unwrap();
            }
            let plan = plan_of(&db, filter(word, None).select_count(ADMIN, backend)).await;
            assert!(!plan.contains("users_search"), "{word}:\n{plan}");
        }
    })
    .await;
}
