//! Where settings are read from: flags, the environment, the configuration file.

use std::path::PathBuf;

use super::given::Flags;
use crate::config::file::File;
use crate::config::layers::{Layers, Settings};
use crate::config::settings::{SETTINGS, VARIABLES};
use crate::error::{Error, Kind};

/// What the process was started with; file and environment are read when asked for.
pub(super) struct Sources {
    pub(super) file: Option<PathBuf>,
    pub(super) flags: Flags,
}

impl Sources {
    /// The settings as they are now.
    pub(super) fn read(&self) -> Result<Settings, Error> {
        let file = match &self.file {
            None => None,
            Some(path) => {
                let name = path.display().to_string();
                let text = std::fs::read_to_string(path).map_err(|error| {
                    let text = format!("the configuration file {name:?} can not be read");
                    Error::new(Kind::Config, text)
                        .hint("check the path given by --config or CDC_RELAY_CONFIG")
                        .caused_by(error)
                })?;
                Some(File { name, text })
            }
        };
        let is_ours = |name: &str| {
            name.starts_with(VARIABLES)
                || SETTINGS.iter().any(|setting| setting.common == Some(name))
        };
        let environment = std::env::vars_os()
            .filter_map(|(name, text)| Some((name.into_string().ok()?, text)))
            .filter(|(name, _)| is_ours(name))
            .map(|(name, text)| match text.into_string() {
                Ok(text) => Ok((name, text)),
                Err(_) => {
                    Err(Error::new(Kind::Config, format!("environment: {name} is not UTF-8"))
                        .hint("write it in UTF-8"))
                }
            })
            .collect::<Result<_, _>>()?;
        Layers { file, environment, flags: self.flags.0.clone() }.settings()
    }
}
