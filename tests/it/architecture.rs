//! What the sources say of themselves in `src/lib.rs`: imports run one way, the domain knows no transport, files stay short
//! enough to be read.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// The layers, the highest first: a module imports from its own layer and from those below it.
const LAYERS: [&[&str]; 8] = [
    &["main"],
    &["cli"],
    &["server", "telemetry"],
    &["api"],
    &["domain"],
    &["app"],
    &[
        "avatar_store",
        "cache",
        "db",
        "entity",
        "hash_pool",
        "limiter",
        "mail",
        "model",
        "notifier",
        "redis",
        "places",
        "feed",
        "seal",
    ],
    &["clock", "config", "error", "jws", "metrics", "random", "trace"],
];

/// Lines of code that a file may have, without comments and blank lines.
const MAX_LINES: usize = 600;

#[test]
fn imports_run_one_way() {
    let files = sources("src");
    let mut wrong = Vec::new();
    for (path, code) in &files {
        let from = module_of(path);
        // lib.rs is the root: it declares the modules and holds what is generated.
        if from == "lib" {
            continue;
        }
        for import in crate_paths(code) {
            let to = import.split("::").next().unwrap();
            // Generated code, beside the modules.
            if to == "pb" {
                if !["api", "server"].contains(&from.as_str()) {
                    wrong.push(format!("{}: only the edge speaks protobuf, not {from}", path.display()));
                }
                continue;
            }
            if layer(to) < layer(&from) {
                wrong.push(format!("{}: {from} imports {import}, which lies above it", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn modules_of_one_layer_do_not_import_each_other_in_a_circle() {
    let mut imports = BTreeMap::<String, BTreeSet<String>>::new();
    for (path, code) in sources("src") {
        let from = module_of(&path);
        let beside =
            crate_paths(&code).iter().map(|import| first(import)).filter(|to| layer(to) == layer(&from)).collect();
        imports.entry(from).or_default().append(&mut { beside });
    }
    assert_no_circle(&imports);
}

#[test]
fn the_files_of_a_module_do_not_import_each_other_in_a_circle() {
    for module in ["api", "config", "domain", "model"] {
        let mut imports = BTreeMap::<String, BTreeSet<String>>::new();
        for (path, code) in sources(&format!("src/{module}")) {
            let within = |import: &String| import.strip_prefix(&format!("{module}::")).map(str::to_owned);
            let paths = crate_paths(&code);
            let mut beside = paths.iter().filter_map(within).map(|import| first(&import)).collect();
            let name = path.strip_prefix(format!("src/{module}")).unwrap().with_extension("");
            imports.entry(name.to_str().unwrap().to_owned()).or_default().append(&mut beside);
        }
        imports.remove("mod");
        assert_no_circle(&imports);
    }
}

/// `domain` of `domain::token::Keys`.
fn first(import: &str) -> String {
    import.split("::").next().unwrap().to_owned()
}

/// Fails if one of these imports itself by way of others.
fn assert_no_circle(imports: &BTreeMap<String, BTreeSet<String>>) {
    let others = |of: &str| -> BTreeSet<String> {
        imports.get(of).into_iter().flatten().filter(|to| *to != of && *to != "pb").cloned().collect()
    };
    for module in imports.keys() {
        let (mut seen, mut open) = (BTreeSet::new(), others(module));
        while let Some(next) = open.pop_first() {
            assert_ne!(next, *module, "{module} imports itself by way of {seen:?}");
            open.extend(others(&next).difference(&seen).cloned().collect::<Vec<_>>());
            seen.insert(next);
        }
    }
}

#[test]
fn every_module_has_a_layer_and_a_place_in_the_overview() {
    let overview = fs::read_to_string("src/lib.rs").unwrap();
    for (path, _) in sources("src") {
        let module = module_of(&path);
        if module != "lib" {
            assert!(layer(&module) < LAYERS.len(), "{module} has no layer here");
        }
        if !["lib", "main"].contains(&module.as_str()) {
            assert!(overview.contains(&format!("pub mod {module};")), "src/lib.rs doesn't declare {module}");
        }
    }
}

#[test]
fn the_domain_and_what_lies_below_it_know_no_transport() {
    for (path, code) in sources("src") {
        if layer(&module_of(&path)) < layer("domain") || module_of(&path) == "lib" {
            continue;
        }
        for transport in ["tonic", "axum", "hyper", "tower", "prost", "prost_types"] {
            assert!(!names_crate(&code, transport), "{} names {transport}", path.display());
        }
    }
}

#[test]
fn the_migrations_follow_nothing_of_the_service() {
    for (path, code) in sources("migrations/src") {
        assert!(!names_crate(&code, "identity"), "{} imports the service, whose entities change", path.display());
    }
    let manifest = fs::read_to_string("migrations/Cargo.toml").unwrap();
    let dependencies = manifest.split("[dependencies]").nth(1).unwrap();
    assert!(!dependencies.contains("path ="), "the migrations depend on a crate of this repository");
}

/// `scripts/test` runs `tests/it` and nothing else.
#[test]
fn every_test_is_where_it_is_run() {
    for folder in ["src", "build", "migrations/src"] {
        for (path, code) in sources(folder) {
            assert!(!code.contains("test]"), "{} has a test, which nobody runs", path.display());
            let text = fs::read_to_string(&path).unwrap();
            let is_example = |line: &str| line.trim_start().starts_with("//") && line.contains("```");
            assert!(!text.lines().any(is_example), "{} has an example that would be a test", path.display());
        }
    }
}

#[test]
fn no_file_is_too_long_to_be_read() {
    for folder in ["src", "build", "migrations/src", "tests"] {
        for (path, code) in sources(folder) {
            let lines = code.lines().filter(|line| !line.trim().is_empty()).count();
            assert!(lines <= MAX_LINES, "{} has {lines} lines of code", path.display());
        }
    }
}

#[test]
fn the_reader_of_imports_sees_every_spelling() {
    let code = "use crate::app::App;\nuse crate::{\n    api::{self, gate::{Gate, Peer}},\n    error::Error,\n};\n\
                fn f() { crate::random::bytes() }\npub(in crate::domain) fn g() {}\n";
    let found: Vec<_> = crate_paths(code).into_iter().collect();
    assert_eq!(
        found,
        ["api::gate::Gate", "api::gate::Peer", "api::self", "app::App", "domain", "error::Error", "random::bytes"]
    );
    assert!(names_crate("use tonic::Status;", "tonic") && !names_crate("use tonic_types::X;", "tonic"));
    assert!(!names_crate("crate::identity::x", "tonic"));
}

/// Every source file under `folder`, without its comments and the texts in it.
fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut open = vec![PathBuf::from(folder)];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path, without_comments(&text)));
            }
        }
    }
    assert!(!found.is_empty(), "there are no sources in {folder}");
    found
}

fn without_comments(text: &str) -> String {
    text.lines()
        .map(|line| if line.trim_start().starts_with("//") { "" } else { line.split(" // ").next().unwrap() })
        .fold(String::new(), |code, line| code + line + "\n")
}

/// `src/domain/token.rs` belongs to `domain`, `src/db.rs` is `db`.
fn module_of(path: &Path) -> String {
    let within = path.strip_prefix("src").unwrap_or(path);
    let first = within.components().next().unwrap();
    Path::new(first.as_os_str()).file_stem().unwrap().to_str().unwrap().to_owned()
}

/// 0 is the highest; what has no layer lies below all.
fn layer(module: &str) -> usize {
    LAYERS.iter().position(|modules| modules.contains(&module)).unwrap_or(LAYERS.len())
}

/// The code names the crate at the beginning of a path.
fn names_crate(code: &str, name: &str) -> bool {
    code.match_indices(&format!("{name}::")).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        before.is_none_or(|c| !c.is_alphanumeric() && c != '_' && c != ':')
    })
}

/// Everything behind a `crate::`, its groups taken apart.
fn crate_paths(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let is_macro = code[..at].ends_with('$');
        if !is_macro {
            take_path(&code[at + "crate::".len()..], "", &mut found);
        }
    }
    found
}

/// Reads `a::{b, c::d}` from the beginning of `code` as `a::b` and `a::c::d`; answers how far it read.
fn take_path(code: &str, prefix: &str, found: &mut BTreeSet<String>) -> usize {
    let end = code.find(|c: char| !c.is_alphanumeric() && c != '_' && c != ':').unwrap_or(code.len());
    let path = format!("{prefix}{}", &code[..end]);
    if !code[end..].starts_with('{') {
        found.insert(path.trim_end_matches(':').to_owned());
        return end;
    }
    let mut at = end + 1;
    loop {
        at += code[at..].find(|c: char| !c.is_whitespace() && c != ',').unwrap();
        if code[at..].starts_with('}') {
            return at + 1;
        }
        at += take_path(&code[at..], &path, found);
        // `as` and a name of its own.
        at += code[at..].find([',', '}']).unwrap();
    }
}
