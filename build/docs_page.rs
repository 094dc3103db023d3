//! The assets of the interactive documentation: Swagger UI as its crate ships it, each file compressed, so that the page
//! needs no internet and costs the binary no more than it must.

use std::{
    fs::{self, File},
    io::{Cursor, Read, Write},
    path::Path,
};

use flate2::{Compression, write::GzEncoder};

use super::contract::Result;

const ASSETS: [&str; 2] = ["swagger-ui.css", "swagger-ui-bundle.js"];

/// Writes `swagger-ui.css.gz` and `swagger-ui-bundle.js.gz`.
pub fn write_assets(out: &Path) -> Result<()> {
    if ASSETS.iter().all(|name| fs::exists(out.join(format!("{name}.gz"))).unwrap_or_default()) {
        return Ok(()); // A build after the first: they don't change with the contract.
    }
    let mut archive = zip::ZipArchive::new(Cursor::new(utoipa_swagger_ui_vendored::SWAGGER_UI_VENDORED))?;
    for name in ASSETS {
        let suffix = format!("/dist/{name}");
        let names = archive.file_names().collect::<Result<Vec<_>, _>>()?;
        let at = names.iter().position(|path| path.ends_with(&suffix)).ok_or("Swagger UI lacks an asset")?;
        let mut plain = Vec::new();
        archive.by_index(at)?.read_to_end(&mut plain)?;
        let mut gz = GzEncoder::new(File::create(out.join(format!("{name}.gz")))?, Compression::best());
        gz.write_all(&plain)?;
        gz.finish()?;
    }
    Ok(())
}
