//! The rules by which a page is checked for people who cannot see it well, or use no mouse.

use std::fs;

use crate::cache;
use crate::error::{Error, Kind};
use crate::maven::{self, Maven};
use crate::settings::Settings;
use crate::stack::blocking;

const FETCH_BYTES: u64 = 170_000;

/// The file in the archive.
const SCRIPT: &str = "axe.min.js";

/// The script of [axe-core](https://github.com/dequelabs/axe-core), which a page runs to be checked by `axe.run`.
///
/// It is fetched once through Maven, out of the archive in which its makers publish it for browsers that are driven, and
/// kept in the cache. It is under the MPL-2.0 and no part of what we publish.
///
/// # Errors
///
/// Where it is not in the cache and cannot be fetched.
pub async fn axe() -> Result<String, Error> {
    let settings = Settings::from_environment()?;
    blocking(move || script(&settings)).await
}

fn script(settings: &Settings) -> Result<String, Error> {
    let version = maven::version("axe");
    let entry = cache::entry(&settings.cache, &format!("axe-{version}"), |home| {
        let maven = Maven::find(settings).ok_or_else(|| {
            let text = "axe-core, by which pages are checked, is not in the cache, and Maven (`mvn`) that fetches it \
                        is not found";
            Error::new(Kind::Missing, text)
        })?;
        let coordinates = format!("-Dartifact=com.deque.html.axe-core:playwright:{version}");
        let what = format!("axe-core {version}");
        maven.fetch(home, &what, FETCH_BYTES, "unpack", &[&coordinates])
    })?;
    let path = entry.join(SCRIPT);
    fs::read_to_string(&path).map_err(|error| {
        Error::new(Kind::Download, format!("cannot read {}", path.display())).caused_by(error)
    })
}
