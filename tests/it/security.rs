//! The page of what must hold against an attacker: each of its lines has tests, and each test says which line it is of.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

const LINES: std::ops::RangeInclusive<u32> = 1..=60;

/// The tests of each line: `security_sessions::logout_…`.
type Tests = BTreeMap<u32, BTreeSet<String>>;

/// By what tests say of themselves: `/// Line 7.` or `/// Lines 7, 12.` before anything else.
fn by_tests() -> Tests {
    let mut found = Tests::new();
    for entry in fs::read_dir("tests/it").unwrap() {
        let path = entry.unwrap().path();
        let file = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if !file.starts_with("security_") || path.is_dir() {
            continue;
        }
        // What is said before the next function, and whether that is a test.
        let (mut numbers, mut is_test, mut in_doc) = (Vec::new(), false, false);
        for line in fs::read_to_string(&path).unwrap().lines() {
            let doc = line.strip_prefix("/// ").filter(|_| !in_doc);
            in_doc = line.starts_with("///");
            if let Some(list) = doc.and_then(|doc| doc.strip_prefix("Line")).and_then(|rest| rest.split_once('.')) {
                let list = list.0.trim_start_matches('s').split(',');
                numbers = list.map(|n| n.trim().parse().unwrap_or_else(|_| panic!("{file}: {line}"))).collect();
            } else if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
                is_test = true;
            } else if let Some((before, after)) = line.split_once("fn ")
                && !before.starts_with(char::is_whitespace)
                && !before.starts_with('/')
            {
                let name = format!("{file}::{}", after.split(['(', '<']).next().unwrap());
                assert!(is_test || numbers.is_empty(), "{name} is no test");
                for number in numbers.drain(..) {
                    found.entry(number).or_default().insert(name.clone());
                }
                is_test = false;
            }
        }
    }
    found
}

/// By the page: rows of `| line | what holds | shown by | clauses |`.
fn by_page() -> Tests {
    let mut found = Tests::new();
    for row in fs::read_to_string("docs/security.md").unwrap().lines() {
        let cells: Vec<_> = row.split(" | ").map(|cell| cell.trim_matches(['|', ' '])).collect();
        let [number, holds, tests, clauses] = cells[..] else { continue };
        let Ok(number) = number.parse::<u32>() else { continue };
        assert!(!holds.is_empty() && clauses.contains(char::is_numeric), "{row}");
        let tests = tests.split("<br>").map(|test| test.trim_matches('`').to_owned()).filter(|test| !test.is_empty());
        assert!(found.insert(number, tests.collect()).is_none(), "line {number} is there twice");
    }
    found
}

#[test]
fn each_line_is_on_the_page_with_all_tests_that_show_it() {
    let (page, tests) = (by_page(), by_tests());
    assert!(page.keys().copied().eq(LINES), "{:?}", page.keys());
    for line in LINES {
        let (shown, there) = (&page[&line], tests.get(&line).cloned().unwrap_or_default());
        assert!(!there.is_empty(), "line {line} has no test");
        let [gone, missing] = [shown - &there, &there - shown];
        assert!(gone.is_empty(), "line {line} names what is no test of it: {gone:?}");
        assert!(missing.is_empty(), "line {line} doesn't name {missing:?}");
    }
    assert!(tests.keys().all(|line| LINES.contains(line)), "{:?}", tests.keys());
}
