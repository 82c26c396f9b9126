//! `tailrace saga migrate`.

use std::path::PathBuf;

use clap::Args;
use tailrace_saga::MappingFile;
use tailrace_saga::operate::{self, Change};

use super::change::Which;
use super::connect;
use crate::answer::Answer;
use crate::error::{Error, Kind};

#[derive(Args)]
pub(crate) struct Migrate {
    /// The file with the mapping, as JSON
    #[arg(long, value_name = "FILE")]
    mapping: PathBuf,
    #[command(flatten)]
    which: Which,
}

impl Migrate {
    pub(super) async fn run(mut self) -> Result<Answer, Error> {
        let mapping = self.read()?;
        let (from, version) = identity(&mapping.from, "from")?;
        let (to, to_version) = identity(&mapping.to, "to")?;
        self.which.must_name_no_step()?;
        self.must_choose(from, version)?;
        let mut connection = connect(&self.which.database).await?;
        let living = operate::living(&mut connection).await?;
        let to =
            operate::structure(&mut connection, to, Some(to_version)).await?.ok_or_else(|| {
                Error::new(Kind::Refused, format!("no engine has ever had {} here", mapping.to))
                    .mended_by("deploy an engine that has it, and run this again")
            })?;
        if let Some(form) = living.form(&to.identity().name, to_version)
            && form != to.identity()
        {
            let text =
                format!("{} has two forms, and the newer one has no living engine", mapping.to);
            return Err(Error::new(Kind::Refused, text)
                .mended_by("give the changed definition a version of its own"));
        }
        // What follows the old definition is meant, unless sagas are named.
        if !self.which.names_sagas() {
            self.which.chosen.definition = Some(from.to_owned());
            self.which.chosen.version = Some(version);
        }
        let chosen = self.which.chosen(&[])?;
        let query = format!("{chosen}; mapping {}", serde_json::json!(mapping));
        let change = Change::migrate(to, mapping, self.which.hand.by(), query);
        self.which.make(&mut connection, &change, chosen).await
    }

    /// What the mapping begins with is chosen by itself; another choice would be none.
    fn must_choose(&self, from: &str, version: u32) -> Result<(), Error> {
        let chosen = &self.which.chosen;
        let fits = chosen.definition.as_deref().is_none_or(|name| name == from)
            && chosen.version.is_none_or(|number| number == version);
        if fits || self.which.names_sagas() {
            return Ok(());
        }
        let text = format!("the mapping is of {from}/{version}, and other sagas are chosen");
        Err(Error::new(Kind::Settings, text)
            .mended_by("leave out --definition and --version: the mapping says which are meant"))
    }

    fn read(&self) -> Result<MappingFile, Error> {
        let fault = |text: String| Error::new(Kind::Settings, text);
        let text = std::fs::read_to_string(&self.mapping).map_err(|error| {
            fault(format!("the mapping can not be read from {}", self.mapping.display()))
                .mended_by("check the file")
                .caused_by(error)
        })?;
        serde_json::from_str(&text).map_err(|error| {
            fault(format!("{} is no mapping", self.mapping.display()))
                .mended_by("write it as `tailrace saga migrate --help` shows")
                .caused_by(error)
        })
    }
}

fn identity<'t>(text: &'t str, which: &str) -> Result<(&'t str, u32), Error> {
    MappingFile::identity(text).ok_or_else(|| {
        Error::new(
            Kind::Settings,
            format!("{text:?} in {which:?} names no version of a definition"),
        )
        .mended_by("write it as create-order/4")
    })
}
