//! What the linker is told of the program.

use std::{env, path::Path, process::Command};

/// Has functions that came out alike kept once, in a release: for many types generic code is the same. That takes lld, which comes with
/// Rust for this target; another linker doesn't know the word.
pub fn fold_identical_functions() {
    let is = |name, value| env_is(name, |found| found == value);
    let is_default_linker = !env_is("CARGO_ENCODED_RUSTFLAGS", |flags| flags.contains("link"))
        && !env_is("RUSTC_LINKER", |_| true)
        && is("TARGET", "x86_64-unknown-linux-gnu")
        && has_lld("x86_64-unknown-linux-gnu");
    if is("PROFILE", "release") && is_default_linker {
        println!("cargo:rustc-link-arg-bin=identity=-Wl,--icf=all");
    }
}

#[expect(clippy::disallowed_methods, reason = "cargo speaks to a build script through the environment")]
fn env_is(name: &str, expected: impl Fn(&str) -> bool) -> bool {
    env::var(name).is_ok_and(|found| expected(&found))
}

#[expect(clippy::disallowed_methods, reason = "cargo speaks to a build script through the environment")]
fn has_lld(target: &str) -> bool {
    let rustc = env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let said = Command::new(rustc).args(["--print", "sysroot"]).output();
    let sysroot = said.ok().and_then(|said| String::from_utf8(said.stdout).ok());
    sysroot.is_some_and(|root| Path::new(root.trim()).join(format!("lib/rustlib/{target}/bin/gcc-ld/ld.lld")).exists())
}
