//! The pages for operators say what is so.

use std::fmt::Write;

use expect_test::expect_file;
use identity::config::{NOT_YET, VARIABLES};

/// `docs/settings.md` is written by this test: `UPDATE_EXPECT=1 scripts/test integration operations`.
#[test]
fn the_page_of_settings_lists_every_variable() {
    let mut page = String::from(
        "# Settings\n\nEvery environment variable that the service reads. `identity config` prints the values in force.\n",
    );
    let mut group = "";
    for variable in VARIABLES {
        if variable.group != group {
            group = variable.group;
            write!(page, "\n## {group}\n\n| variable | by default | value | what it does |\n|---|---|---|---|\n")
                .unwrap();
        }
        let later = if NOT_YET.contains(&variable.name) { " *Nothing acts upon it yet.*" } else { "" };
        let help = variable.help.split_whitespace().collect::<Vec<_>>().join(" ");
        writeln!(page, "| `{}` | {} | {} | {help}{later} |", variable.name, variable.default.text(), variable.form)
            .unwrap();
    }
    expect_file!["../../docs/settings.md"].assert_eq(&page);
}
