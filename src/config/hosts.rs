//! Which host names are ours.

use std::net::Ipv6Addr;

use super::parse::{self, Wrong};

/// The host names that the service goes by, by Django's rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AllowedHosts {
    Any,
    /// In lower case. One that begins with a dot stands for the name after it and all its subdomains.
    Only(Vec<String>),
}

impl AllowedHosts {
    /// Whether `host` is one of ours: what its `Host` header or `:authority` says, with or without a port.
    pub fn allows(&self, host: &str) -> bool {
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.ends_with(':') => name,
            _ => host,
        };
        let name = name.strip_suffix('.').unwrap_or(name);
        // Looked at first, also where any host will do: `evil.com/.example.com` is the name of nothing.
        let bracketed = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
        let is_name = match bracketed {
            Some(address) => address.parse::<Ipv6Addr>().is_ok(),
            None => {
                !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
            }
        };
        let patterns = match self {
            _ if !is_name => return false,
            Self::Any => return true,
            Self::Only(patterns) => patterns,
        };
        patterns.iter().any(|pattern| match pattern.strip_prefix('.') {
            Some(domain) => {
                let tail = name.len().checked_sub(pattern.len()).and_then(|at| name.get(at..));
                name.eq_ignore_ascii_case(domain) || tail.is_some_and(|tail| tail.eq_ignore_ascii_case(pattern))
            }
            None => name.eq_ignore_ascii_case(pattern),
        })
    }

    pub(super) fn parse(text: &str) -> Result<Self, Wrong> {
        let patterns = parse::list(text, |item| {
            let name = item.strip_prefix('.').unwrap_or(item);
            let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
            if item == "*" {
                Ok("*".to_owned())
            } else if bare.is_empty() || parse::host(bare).is_err() {
                Err("is not a host name: no scheme, no port, no path".into())
            } else if bare.contains(':') && bare == name {
                // In a Host header an IPv6 address has brackets.
                Ok(format!("[{}]", bare.to_ascii_lowercase()))
            } else {
                Ok(item.to_ascii_lowercase())
            }
        })?;
        match patterns {
            patterns if patterns.is_empty() => Err("names no host".into()),
            patterns if patterns.iter().any(|pattern| pattern == "*") => Ok(Self::Any),
            patterns => Ok(Self::Only(patterns)),
        }
    }
}
