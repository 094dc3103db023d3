//! Two plots, as SVG: the parts of the ceiling that calls reach, and lists as the number of users grows.

use std::{collections::BTreeMap, fmt::Write};

use crate::{
    Outcome,
    calls::HASH,
    lists,
    report::{Compared, Report},
    stores::Store,
    targets,
};

const BLUE: &str = "#2f6fab";
const ORANGE: &str = "#d9822b";
const GREY: &str = "#d0d4d9";
const LINES: [&str; 8] = ["#2f6fab", "#d9822b", "#3a923a", "#c03d3e", "#9372b2", "#845b53", "#d684bd", "#7f7f7f"];

/// A picture of this size, white, so that it can be read on any page.
fn picture(width: f64, height: f64, inside: &str) -> String {
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" font-family="system-ui, sans-serif" font-size="12" fill="#24292f">
<rect width="{width}" height="{height}" fill="#ffffff"/>
{inside}</svg>
"##
    )
}

fn text(x: f64, y: f64, anchor: &str, words: &str) -> String {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    format!(r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{words}</text>"#) + "\n"
}

/// Of each call a bar: how much of the ceiling it reaches, with a mark where it was to reach.
pub fn calls(report: &Report) -> Outcome<String> {
    const LEFT: f64 = 300.0;
    const WIDTH: f64 = 420.0;
    const ROW: f64 = 22.0;
    // With as many callers as a busy service has; where there was no such run, with as many as there were.
    let most = report.calls.iter().map(|c| c.at).filter(|at| *at <= 16).max().unwrap_or(1);
    let shown: Vec<&Compared> = report.calls.iter().filter(|c| c.at == most).collect();
    let bottom = 60.0 + ROW * shown.len() as f64;
    let mut inside = text(
        16.0,
        24.0,
        "start",
        &format!("Parts of the ceiling in the same run, {most} callers at once (1 = as fast as bare)"),
    );
    for tenth in (0..=10).step_by(2) {
        let x = LEFT + WIDTH * f64::from(tenth) / 10.0;
        writeln!(inside, r#"<path d="M{x:.1} 44V{:.1}" stroke="{GREY}"/>"#, bottom - 8.0)?;
        inside += &text(x, bottom + 8.0, "middle", &format!("{:.1}", f64::from(tenth) / 10.0));
    }
    for (row, c) in shown.into_iter().enumerate() {
        let y = 50.0 + ROW * row as f64;
        let (ratio, colour) = match c.ratio_cpu.filter(|_| c.beside != HASH) {
            Some(ratio) => (ratio, BLUE),
            None => (c.ratio_calls, ORANGE),
        };
        inside += &text(LEFT - 8.0, y + 12.0, "end", &format!("{}, {}", c.call, c.store));
        let width = WIDTH * ratio.clamp(0.0, 1.1);
        writeln!(inside, r#"<rect x="{LEFT}" y="{y:.1}" width="{width:.1}" height="15" fill="{colour}"/>"#)?;
        inside += &text(LEFT + WIDTH * 1.1 + 8.0, y + 12.0, "start", &format!("{ratio:.2}"));
        if let Some(least) = targets::least(&c.call) {
            let x = LEFT + WIDTH * least;
            writeln!(inside, r##"<path d="M{x:.1} {:.1}v19" stroke="#24292f" stroke-width="2"/>"##, y - 2.0)?;
        }
    }
    for (n, (colour, words)) in [
        (BLUE, "CPU time per call, of bare axum or tonic"),
        (ORANGE, "calls a second, of raw argon2 or bare UPDATEs"),
        ("#24292f", "wanted"),
    ]
    .into_iter()
    .enumerate()
    {
        let x = 16.0 + [0.0, 290.0, 620.0][n];
        writeln!(
            inside,
            r#"<rect x="{x}" y="{:.1}" width="{}" height="12" fill="{colour}"/>"#,
            bottom + 22.0,
            [12, 12, 2][n]
        )?;
        inside += &text(x + 18.0, bottom + 32.0, "start", words);
    }
    Ok(picture(LEFT + WIDTH + 100.0, bottom + 48.0, &inside))
}

/// Of each kind of list a line, on a panel for each store: milliseconds (p50) over users, both by powers of ten.
pub fn lists(report: &Report) -> Outcome<String> {
    const WIDTH: f64 = 320.0;
    const HEIGHT: f64 = 350.0;
    const TOP: f64 = 60.0;
    let kinds = lists::PLOTTED;
    // From 0.1 ms to 10 s, and from a thousand to a million.
    let y = |ms: f64| TOP + HEIGHT * (1.0 - (ms.clamp(0.1, 10_000.0).log10() + 1.0) / 5.0);
    let mut inside = text(16.0, 24.0, "start", "Lists as an admin sees them, p50 in milliseconds, one caller");
    for (panel, store) in [Store::Postgres, Store::Sqlite].into_iter().enumerate() {
        let left = 60.0 + (WIDTH + 90.0) * panel as f64;
        let x = |users: u64| left + WIDTH * ((users as f64).log10() - 3.0) / 3.0;
        inside += &text(left + WIDTH / 2.0, TOP - 12.0, "middle", store.name());
        for power in -1..=4 {
            let ms = 10_f64.powi(power);
            writeln!(inside, r#"<path d="M{left} {:.1}h{WIDTH}" stroke="{GREY}"/>"#, y(ms))?;
            inside += &text(left - 6.0, y(ms) + 4.0, "end", &format!("{ms}"));
        }
        for (power, words) in [(3, "1 000"), (4, "10 000"), (5, "100 000"), (6, "1 000 000")] {
            let at = x(10_u64.pow(power));
            writeln!(inside, r#"<path d="M{at:.1} {TOP}v{HEIGHT}" stroke="{GREY}"/>"#)?;
            inside += &text(at, TOP + HEIGHT + 18.0, "middle", words);
        }
        inside += &text(left + WIDTH / 2.0, TOP + HEIGHT + 36.0, "middle", "users");
        for (kind, colour) in kinds.iter().zip(LINES.iter().cycle()) {
            let of_kind =
                report.lists.iter().filter(|l| l.what == *kind && l.store == store.name() && l.view == "admin");
            let points: BTreeMap<u64, f64> = of_kind.map(|list| (list.users, list.p50_ms)).collect();
            let path: Vec<String> =
                points.iter().map(|(users, ms)| format!("{:.1} {:.1}", x(*users), y(*ms))).collect();
            writeln!(inside, r#"<path d="M{}" fill="none" stroke="{colour}" stroke-width="2"/>"#, path.join("L"))?;
            for (users, ms) in points {
                writeln!(inside, r#"<circle cx="{:.1}" cy="{:.1}" r="3" fill="{colour}"/>"#, x(users), y(ms))?;
            }
        }
    }
    let legend = 60.0 + (WIDTH + 90.0) * 2.0;
    for (n, (kind, colour)) in kinds.iter().zip(LINES.iter().cycle()).enumerate() {
        let at = TOP + 20.0 * n as f64;
        writeln!(inside, r#"<rect x="{legend}" y="{at:.1}" width="12" height="12" fill="{colour}"/>"#)?;
        inside += &text(legend + 18.0, at + 10.0, "start", kind);
    }
    Ok(picture(legend + 160.0, TOP + HEIGHT + 52.0, &inside))
}
