//! What the service is made of: no unsafe code of ours, a list of all that others wrote, and targets for fuzzing that test what is
//! shipped.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

use crate::harness::python;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Name and version of each package of a lock file, with its checksum if it comes from elsewhere.
fn locked(path: &str) -> BTreeMap<(String, String), Option<String>> {
    let field = |package: &str, name: &str| {
        let line = package.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = \""));
        line.map(|value| value.trim_end_matches('"').to_owned())
    };
    let text = read(path);
    let packages = text.split("[[package]]").skip(1);
    packages.map(|p| ((field(p, "name").unwrap(), field(p, "version").unwrap()), field(p, "checksum"))).collect()
}

/// Every manifest forbids unsafe code in all that it builds, and no source allows it anew.
#[test]
fn no_code_of_ours_is_unsafe() {
    let forbids = "unsafe_code = \"forbid\"";
    let workspace = read("Cargo.toml");
    assert!(
        workspace.split("[workspace.lints.rust]").nth(1).is_some_and(|lints| lints.trim_start().starts_with(forbids))
    );
    for manifest in ["Cargo.toml", "migrations/Cargo.toml"] {
        assert!(read(manifest).contains("[lints]\nworkspace = true"), "{manifest}");
    }
    assert!(read("fuzz/Cargo.toml").contains(&format!("[lints.rust]\n{forbids}")));
}

/// The bill of materials has every crate of the program, each with name, version, place, hash and licence, and who needs it; and
/// none that only tests or build scripts need. By its schema, as far as that says what must be there
/// (<https://cyclonedx.org/docs/1.6/json/>).
#[test]
fn the_bill_of_materials_is_whole() {
    let Some(python) = python() else { return };
    let output = Command::new(python).arg(root().join("scripts/sbom")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let bill: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&bill["bomFormat"], &bill["specVersion"], &bill["version"]),
        (&"CycloneDX".into(), &"1.6".into(), &1.into())
    );
    let serial = bill["serialNumber"].as_str().unwrap();
    assert!(serial.strip_prefix("urn:uuid:").is_some_and(|id| uuid::Uuid::parse_str(id).is_ok()), "{serial}");

    let text = |component: &Value, field: &str| {
        component[field].as_str().unwrap_or_else(|| panic!("no {field}: {component}")).to_owned()
    };
    let locked = locked("Cargo.lock");
    let mut refs = BTreeSet::from([text(&bill["metadata"]["component"], "bom-ref")]);
    let mut names = BTreeSet::new();
    for component in bill["components"].as_array().unwrap() {
        let (name, version) = (text(component, "name"), text(component, "version"));
        assert_eq!(text(component, "type"), "library");
        assert_eq!(text(component, "purl"), format!("pkg:cargo/{name}@{}", version.replace('+', "%2B")));
        assert!(refs.insert(text(component, "bom-ref")), "twice: {component}");
        let checksum = locked.get(&(name.clone(), version)).unwrap_or_else(|| panic!("not in Cargo.lock: {component}"));
        if let Some(checksum) = checksum {
            assert_eq!(component["hashes"][0]["alg"], "SHA-256");
            assert_eq!(text(&component["hashes"][0], "content"), *checksum, "{name}");
            let licence = text(&component["licenses"][0], "expression");
            let is_expression = |c: char| c.is_ascii_alphanumeric() || " .-()".contains(c);
            assert!(!licence.is_empty() && licence.chars().all(is_expression), "{name}: {licence}");
        }
        names.insert(name);
    }
    for shipped in
        ["aws-lc-sys", "axum", "h2", "identity-migrations", "jsonwebtoken", "libsqlite3-sys", "rustls", "sqlx", "tonic"]
    {
        assert!(names.contains(shipped), "{shipped} is not there");
    }
    for other in ["criterion", "proptest", "protox", "rcgen", "s3s", "tempfile", "utoipa-swagger-ui-vendored"] {
        assert!(!names.contains(other), "{other} is not shipped");
    }
    let dependencies = bill["dependencies"].as_array().unwrap();
    let said: BTreeSet<_> = dependencies.iter().map(|one| text(one, "ref")).collect();
    assert_eq!(said, refs, "who needs whom is said of each");
    for needed in dependencies.iter().flat_map(|one| one["dependsOn"].as_array().unwrap()) {
        assert!(refs.contains(needed.as_str().unwrap()), "{needed} is needed, but not there");
    }
}

/// Versions known to be bad are refused, each with what is wrong with it.
#[test]
fn what_is_known_to_be_bad_is_refused_by_name() {
    let text = read("deny.toml");
    let refused: BTreeMap<_, _> = text
        .lines()
        .filter_map(|line| {
            let (name, rest) = line.trim().strip_prefix("{ name = \"")?.split_once("\", version = \"<")?;
            let (version, rest) = rest.split_once('"')?;
            Some((name, (version, rest.strip_prefix(", reason = \"")?)))
        })
        .collect();
    let locked = locked("Cargo.lock");
    for name in ["h2", "jsonwebtoken"] {
        assert!(refused.contains_key(name), "{name}");
    }
    for (name, (_, reason)) in refused {
        assert!(reason.starts_with("RUSTSEC-") || reason.starts_with("GHSA-"), "{name}: {reason}");
        assert!(locked.keys().any(|(other, _)| other == name), "{name} is not among our dependencies any more");
    }
}

/// What is fuzzed is what is shipped: the same versions. Where this fails, `cargo update --manifest-path fuzz/Cargo.toml --package
/// NAME --precise VERSION` helps.
#[test]
fn fuzz_targets_test_what_is_shipped() {
    let (ours, theirs) = (locked("Cargo.lock"), locked("fuzz/Cargo.lock"));
    let own = ["identity-fuzz", "libfuzzer-sys", "arbitrary"];
    let others: Vec<_> =
        theirs.keys().filter(|key| !own.contains(&key.0.as_str()) && !ours.contains_key(key)).collect();
    assert!(others.is_empty(), "{others:?}");
}

/// Each target begins from examples, which are few enough to be kept here.
#[test]
fn each_fuzz_target_has_a_small_corpus() {
    let entries = |path: &str| -> Vec<PathBuf> {
        let entries = fs::read_dir(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        entries.map(|entry| entry.unwrap().path()).collect()
    };
    let manifest = read("fuzz/Cargo.toml");
    let mut bytes = 0;
    for target in entries("fuzz/targets") {
        let name = target.file_stem().unwrap().to_str().unwrap().to_owned();
        assert!(manifest.contains(&format!("name = \"{name}\"\npath = \"targets/{name}.rs\"")), "{name} is not built");
        let corpus = entries(&format!("fuzz/corpus/{name}"));
        assert!(corpus.len() >= 5, "{name} begins from {} examples", corpus.len());
        bytes += corpus.iter().map(|path| path.metadata().unwrap().len()).sum::<u64>();
    }
    assert!(bytes < 200_000, "{bytes} bytes");
}
