//! Where and of what it was measured.

use std::{fs, process::Command};

use crate::{Outcome, report::Machine};

/// This machine, today, and the commit that is checked out.
pub fn this() -> Outcome<Machine> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
    let cpu = field(&cpuinfo, "model name").unwrap_or("an unknown processor").to_owned();
    let meminfo = fs::read_to_string("/proc/meminfo")?;
    let kib: f64 = field(&meminfo, "MemTotal").unwrap_or_default().trim_end_matches(" kB").parse()?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let kernel = kernel.trim().split('-').next().unwrap_or_default().to_owned();
    Ok(Machine {
        cpu,
        cores: std::thread::available_parallelism()?.get(),
        memory_gib: kib / 1024.0 / 1024.0,
        kernel,
        date: said("date", &["--utc", "+%Y-%m-%d"])?,
        commit: said("git", &["describe", "--always", "--dirty=, with changes"])?,
    })
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim())
}

fn said(program: &str, arguments: &[&str]) -> Outcome<String> {
    let output = Command::new(program).args(arguments).output()?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
