//! The measured part of `docs/performance.md`, between two marks that stay.

use std::{collections::BTreeMap, fmt::Write, fs};

use crate::{Outcome, report::Report, targets::in_short};

const BEGIN: &str = "<!-- measured: scripts/bench writes what follows -->";
const END: &str = "<!-- /measured -->";

/// Puts what the report says into the page.
pub fn write(path: &str, report: &Report) -> Outcome<()> {
    let page = fs::read_to_string(path)?;
    let (before, rest) = page.split_once(BEGIN).ok_or("the page lacks its first mark")?;
    let (_, after) = rest.split_once(END).ok_or("the page lacks its second mark")?;
    Ok(fs::write(path, format!("{before}{BEGIN}\n\n{}\n{END}{after}", measured(report)?))?)
}

fn measured(report: &Report) -> Outcome<String> {
    let mut text = String::new();
    let machine = &report.machine;
    let kind = if report.is_quick { "A quick run" } else { "A full run" };
    writeln!(
        text,
        "{kind} of {}, at commit {}: {} cores of {}, {:.0} GiB, Linux {}. Load and stores run on the same cores.\n",
        machine.date, machine.commit, machine.cores, machine.cpu, machine.memory_gib, machine.kernel
    )?;

    writeln!(text, "## Targets\n\n| what | wanted | found | |\n|---|---|---|---|")?;
    for target in &report.targets {
        let met = if target.is_met { "met" } else { "**missed**" };
        writeln!(text, "| {} | {} | {} | {met} |", target.what, target.wanted, target.found)?;
    }

    writeln!(text, "\n## Calls\n\n![Parts of the ceiling](performance/calls.svg)\n")?;
    writeln!(
        text,
        "| call | store | at | calls/s | ceiling | of calls | CPU/call | ceiling | of CPU | p50 | p99 | p99.9 | allocs | MiB |"
    )?;
    writeln!(text, "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|")?;
    for c in &report.calls {
        let us = |us: Option<f64>| us.map_or("–".into(), |us| format!("{us:.1} µs"));
        let ratio = |ratio: Option<f64>| ratio.map_or("–".into(), |ratio| format!("{ratio:.2}"));
        let allocations = c.allocations.map_or("–".into(), |count| format!("{count:.0}"));
        let [p50, p99, p999] = [c.service.p50_ms, c.service.p99_ms, c.service.p999_ms].map(in_short);
        writeln!(
            text,
            "| {} | {} | {} | {:.0} | {:.0} {} | {:.2} | {} | {} | {} | {p50} | {p99} | {p999} | {allocations} | {:.0} |",
            c.call,
            c.store,
            c.at,
            c.service.calls_per_sec,
            c.ceiling.calls_per_sec,
            c.beside,
            c.ratio_calls,
            us(c.service.cpu_us_per_call),
            us(c.ceiling.cpu_us_per_call),
            ratio(c.ratio_cpu),
            c.resident_mib,
        )?;
    }

    writeln!(text, "\n## Ten times the logins that can be hashed\n")?;
    for o in &report.overload {
        writeln!(
            text,
            "{}: of {:.0} logins a second, where {:.0} can be hashed, {:.0} were done and {:.0} refused with 503: half of the \
             refusals within {} ms, 99 % within {} ms, the last after {} ms. Meanwhile {:.0} warm reads a second had a p99 of {} ms; \
             without the flood it was {} ms.\n",
            o.store,
            o.offered_per_sec,
            o.capacity_per_sec,
            o.done_per_sec,
            o.shed_per_sec,
            in_short(o.shed_p50_ms),
            in_short(o.shed_p99_ms),
            in_short(o.shed_max_ms),
            o.reads_per_sec,
            in_short(o.reads_p99_ms),
            in_short(o.reads_p99_idle_ms),
        )?;
    }

    write!(text, "## Lists\n\n![Lists from a thousand users on](performance/lists.svg)\n\n")?;
    text += &lists(report);

    text += "\n## Footprint\n\n";
    text += &footprint(report);
    writeln!(text, "\nThe program has {:.1} MB.", report.binary_mb)?;
    // Fewer are made before the program has quite begun.
    for import in report.imports.iter().filter(|import| import.users >= 10_000) {
        writeln!(text, "\n`identity import` made {} users on {} in {:.0} s.", import.users, import.store, import.secs)?;
    }
    Ok(text)
}

fn footprint(report: &Report) -> String {
    let Some(first) = report.footprint.first() else { return String::new() };
    let mut head = ["store", "cold start", "before the first login"].map(str::to_owned).to_vec();
    head.extend(first.resident_mib_after.keys().map(|thousands| match thousands {
        0 => "after it".to_owned(),
        _ => format!("after {thousands},000 reads"),
    }));
    let mut text = row(&head) + &row(&vec!["---".to_owned(); head.len()]);
    for f in &report.footprint {
        let mut cells =
            vec![f.store.clone(), format!("{:.0} ms", f.cold_start_ms), format!("{:.1} MiB", f.resident_mib)];
        cells.extend(f.resident_mib_after.values().map(|mib| format!("{mib:.1} MiB")));
        text += &row(&cells);
    }
    text
}

/// A row of a table.
fn row(cells: &[String]) -> String {
    format!("| {} |\n", cells.join(" | "))
}

/// Milliseconds (p50) by the number of users.
fn lists(report: &Report) -> String {
    let mut sizes: Vec<u64> = report.lists.iter().map(|list| list.users).collect();
    sizes.sort_unstable();
    sizes.dedup();
    let mut rows: BTreeMap<_, BTreeMap<u64, f64>> = BTreeMap::new();
    for list in &report.lists {
        rows.entry((&list.store, &list.what, &list.view)).or_default().insert(list.users, list.p50_ms);
    }
    let mut head = ["list", "store", "as"].map(str::to_owned).to_vec();
    head.extend(sizes.iter().map(|size| format!("{size} users")));
    let mut text = row(&head) + &row(&vec!["---".to_owned(); head.len()]);
    for ((store, what, view), by_size) in rows {
        let mut cells = vec![what.clone(), store.clone(), view.clone()];
        cells.extend(
            sizes.iter().map(|size| by_size.get(size).map_or("–".into(), |ms| format!("{} ms", in_short(*ms)))),
        );
        text += &row(&cells);
    }
    text
}
