//! From `proto/` come the gRPC code, the REST routes, the policy of each rpc, the OpenAPI document and the descriptors that
//! reflection serves. protox compiles the protos, so that no protoc is needed.

#[path = "build/contract.rs"]
mod contract;
#[path = "build/docs_page.rs"]
mod docs_page;
#[path = "build/openapi.rs"]
mod openapi;
#[path = "build/transcode.rs"]
mod transcode;

use std::{env, fs, path::PathBuf};

use contract::{Contract, Result};

const PACKAGE: &str = "identity.v1";

#[expect(clippy::disallowed_methods, reason = "cargo speaks to a build script through the environment")]
fn main() -> Result<()> {
    println!("cargo:rerun-if-changed=proto");
    println!("cargo:rerun-if-changed=build");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    // Half a megabyte less of what the loader has to relocate; glibc 2.36 or newer loads it.
    if env::var("CARGO_CFG_TARGET_OS")? == "linux" && env::var("CARGO_CFG_TARGET_ENV")? == "gnu" {
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }

    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).include_source_info(true);
    compiler
        .open_files(["auth", "user", "profile", "role", "audit"].map(|name| format!("identity/v1/{name}.proto")))?;
    // Only these bytes keep the annotations: as prost types the options that prost doesn't know are lost.
    let descriptors = compiler.encode_file_descriptor_set();
    fs::write(out.join("descriptors.bin"), &descriptors)?;

    let contract = Contract::read(&descriptors, PACKAGE)?;
    fs::write(out.join("policies.rs"), transcode::policies(&contract)?)?;
    fs::write(out.join("rest.rs"), transcode::rest(&contract)?)?;
    fs::write(out.join("debug.rs"), transcode::redacted_debug(&contract)?)?;
    fs::write(
        out.join("openapi.json"),
        serde_json::to_vec(&openapi::document(&contract, &env::var("CARGO_PKG_VERSION")?))?,
    )?;
    docs_page::write_assets(&out)?;
    grpc(&contract, compiler.file_descriptor_set())
}

/// The messages and the gRPC services, with what serde has to know of the answers.
fn grpc(contract: &Contract, descriptors: prost_types::FileDescriptorSet) -> Result<()> {
    let mut builder = tonic_prost_build::configure()
        .skip_debug(transcode::with_secrets(contract).map(|m| format!(".{}", m.full_name())));
    for message in contract.answers() {
        builder = builder.message_attribute(format!(".{}", message.full_name()), "#[derive(serde::Serialize)]");
        for field in message.fields() {
            let attribute = if contract::is_grpc_only(&field) {
                "#[serde(skip)]"
            } else if contract::is_omitted_when_unset(&field) {
                "#[serde(skip_serializing_if = \"Option::is_none\")]"
            } else if contract::is_timestamp(&field) {
                "#[serde(serialize_with = \"crate::api::rest::rfc3339\")]"
            } else {
                continue;
            };
            builder = builder.field_attribute(format!(".{}", field.full_name()), attribute);
        }
    }
    Ok(builder.compile_fds(descriptors)?)
}
