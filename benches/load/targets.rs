//! What was to be reached, and whether it was.

use crate::{
    lists::{
        ALL_MATCH, COMMON, COMMON_ADDRESS, DEEP, DEEP_BY_NAME, LARGE_ROLE, LETTER, PAGE_ONE, PAGE_ONE_BY_NAME, RARE,
        ROLE, ROLE_AND_SEARCH, TOKEN, TOKEN_BY_NAME, VERIFIED,
    },
    report::{Compared, Report, Target},
    stores::Store,
};

/// The least part of the ceiling in computing: of CPU time per call.
const OF_CPU: [(&str, f64); 4] =
    [("GET /api/profile/me/", 0.70), ("GetMyProfile", 0.70), ("POST /api/auth/verify/", 0.75), ("VerifyToken", 0.75)];
/// The least part of the ceiling in calls a second.
const OF_CALLS: [(&str, f64); 6] = [
    ("POST /api/auth/login/", 0.95),
    ("Login", 0.95),
    ("POST /api/auth/refresh/", 0.60),
    ("RefreshToken", 0.60),
    ("PATCH /api/profile/me/", 0.60),
    ("UpdateMyProfile", 0.60),
];
/// The most that a list of a million users may take on PostgreSQL, in milliseconds. SQLite may take three times as long.
const LISTS: [(&str, f64); 15] = [
    (PAGE_ONE, 5.0),
    (PAGE_ONE_BY_NAME, 5.0),
    (TOKEN, 5.0),
    (TOKEN_BY_NAME, 5.0),
    (DEEP, 60.0),
    (DEEP_BY_NAME, 60.0),
    (RARE, 20.0),
    (COMMON, 50.0),
    (COMMON_ADDRESS, 50.0),
    (ALL_MATCH, 50.0),
    (LETTER, 50.0),
    (ROLE, 10.0),
    (LARGE_ROLE, 10.0),
    (ROLE_AND_SEARCH, 50.0),
    (VERIFIED, 50.0),
];
const MANY_USERS: u64 = 1_000_000;

pub fn judge(report: &Report) -> Vec<Target> {
    let mut targets = Vec::new();
    for (call, least) in OF_CPU {
        let ratios = of(report, call).filter_map(|compared| compared.ratio_cpu);
        targets.extend(at_least(format!("{call}, CPU per call"), least, &ratios.collect::<Vec<_>>()));
    }
    for (call, least) in OF_CALLS {
        for store in [Store::Postgres, Store::Sqlite] {
            // One caller doesn't keep several hashing threads busy.
            let is_hash = least > 0.9;
            let compared = of(report, call).filter(|c| c.store == store.name() && (c.at > 1 || !is_hash));
            let beside = if is_hash { "raw argon2" } else { "a bare UPDATE" };
            let what = format!("{call} beside {beside}, {}", store.name());
            targets.extend(at_least(what, least, &compared.map(|compared| compared.ratio_calls).collect::<Vec<_>>()));
        }
    }
    for compared in of(report, "POST /api/auth/register/").filter(|compared| compared.at == 1) {
        let more = compared.service.p50_ms - compared.ceiling.p50_ms;
        targets.push(at_most(format!("registration beyond its hash, {}", compared.store), 2.0, more));
    }
    for overload in &report.overload {
        let what = format!("logins shed at ten times the capacity, p99, {}", overload.store);
        let shed = at_most(what, 50.0, overload.shed_p99_ms);
        let none = overload.shed_per_sec == 0.0;
        targets.push(if none { Target { found: "none was".into(), is_met: false, ..shed } } else { shed });
        let most = (2.0 * overload.reads_p99_idle_ms).max(10.0);
        targets.push(at_most(format!("warm reads meanwhile, p99, {}", overload.store), most, overload.reads_p99_ms));
    }
    for store in [Store::Postgres, Store::Sqlite] {
        for (what, most) in LISTS {
            let most = if store == Store::Sqlite { 3.0 * most } else { most };
            let lists =
                report.lists.iter().filter(|l| l.users == MANY_USERS && l.what == what && l.store == store.name());
            targets
                .extend(lists.map(|l| {
                    at_most(format!("list of a million: {what}, {}, as {}", l.store, l.view), most, l.p50_ms)
                }));
        }
    }
    for footprint in &report.footprint {
        let store = &footprint.store;
        let mib = |mib: f64| format!("{mib:.1} MiB");
        let resident = footprint.resident_mib;
        targets.push(Target {
            what: format!("memory before the first login, {store}"),
            wanted: "≤ 30 MiB".into(),
            found: mib(resident),
            is_met: resident <= 30.0,
        });
        let after: Vec<_> = footprint.resident_mib_after.iter().collect();
        if let [_, (some, first), .., (all, last)] = after.as_slice() {
            targets.push(Target {
                what: format!("memory after {all},000 warm reads, {store}"),
                wanted: format!("level: at most 1 MiB more than after {some},000"),
                found: format!("{:+.1} MiB, to {}", *last - *first, mib(**last)),
                is_met: *last - *first <= 1.0,
            });
        }
        let most = if *store == Store::Sqlite.name() { 150.0 } else { 300.0 };
        targets.push(at_most(format!("cold start, {store}"), most, footprint.cold_start_ms));
    }
    targets.push(Target {
        what: "size of the program".into(),
        wanted: "≤ 25 MB".into(),
        found: format!("{:.1} MB", report.binary_mb),
        is_met: report.binary_mb <= 25.0,
    });
    targets
}

fn of<'a>(report: &'a Report, call: &'a str) -> impl Iterator<Item = &'a Compared> {
    report.calls.iter().filter(move |compared| compared.call == call)
}

/// The lowest of the ratios decides; `None` if nothing was measured.
fn at_least(what: String, least: f64, ratios: &[f64]) -> Option<Target> {
    let [low, high] = [f64::min, f64::max].map(|pick| ratios.iter().copied().reduce(pick));
    let (low, high) = (low?, high?);
    let found = if high - low < 0.01 { format!("{low:.2}") } else { format!("{low:.2} to {high:.2}") };
    Some(Target { what, wanted: format!("≥ {least:.2}"), found, is_met: low >= least })
}

fn at_most(what: String, most_ms: f64, found_ms: f64) -> Target {
    let wanted = format!("≤ {} ms", in_short(most_ms));
    Target { what, wanted, found: format!("{} ms", in_short(found_ms)), is_met: found_ms <= most_ms }
}

/// With as many digits as say something.
pub fn in_short(ms: f64) -> String {
    let text = match ms.abs() {
        100.0.. => return format!("{ms:.0}"),
        10.0.. => format!("{ms:.1}"),
        1.0.. => format!("{ms:.2}"),
        _ => format!("{ms:.3}"),
    };
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// The part of the ceiling that this call was to reach, if one was asked for.
pub fn least(call: &str) -> Option<f64> {
    OF_CPU.iter().chain(&OF_CALLS).find(|(of, _)| *of == call).map(|(_, least)| *least)
}
