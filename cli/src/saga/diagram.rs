//! `tailrace saga diagram`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use sqlx::PgConnection;
use tailrace_saga::diagram::Drawing;
use tailrace_saga::operate::{self, Listed};
use tailrace_saga::{MappingFile, SagaId, Structure};

use super::{connect, no_such, saga_id};
use crate::answer::Answer;
use crate::database::Database;
use crate::error::{Error, Kind};

#[derive(Args)]
pub(crate) struct Diagram {
    #[command(flatten)]
    database: Database,
    /// The definition, as create-order or create-order/4; the newest version where none is said
    definition: Option<String>,
    /// The definition of this saga, coloured by how far it is
    #[arg(long, value_name = "ID", value_parser = saga_id, conflicts_with = "definition")]
    saga: Option<SagaId>,
    /// The structure in this file, as `Definition::structure` writes it as JSON; without a database
    #[arg(long, conflicts_with_all = ["definition", "saga"])]
    file: Option<PathBuf>,
    /// As states or as messages in Mermaid, as a picture, or the structure itself
    #[arg(long, value_enum, default_value_t = Form::States)]
    form: Form,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    States,
    Sequence,
    Svg,
    Json,
}

impl Diagram {
    pub(super) async fn run(self) -> Result<Answer, Error> {
        let (structure, saga) = match &self.file {
            Some(file) => (read(file)?, None),
            None => {
                let mut connection = connect(&self.database).await?;
                self.find(&mut connection).await?
            }
        };
        let drawing = Drawing::of(&structure);
        let instance = saga.as_ref().and_then(|saga| saga.instance.as_ref());
        let drawing = instance.map_or(drawing, |saga| drawing.at(saga));
        Ok(match self.form {
            Form::States => drawing.states(),
            Form::Sequence => drawing.sequence(),
            Form::Svg => drawing.svg(),
            Form::Json => super::words::json(&structure),
        }
        .into())
    }

    async fn find(
        &self,
        connection: &mut PgConnection,
    ) -> Result<(Structure, Option<Listed>), Error> {
        if let Some(id) = self.saga {
            let saga = operate::get(connection, id).await?.ok_or_else(|| no_such(id))?;
            let of = &saga.definition;
            let known = operate::structure_of(connection, of).await?;
            let structure = known.ok_or_else(|| unknown(&of.to_string(), Vec::new()))?;
            return Ok((structure, Some(saga)));
        }
        let Some(wanted) = &self.definition else {
            let known = known(connection).await?;
            let text = "no definition is named";
            return Err(Error::new(Kind::Settings, text).mended_by(list(known)));
        };
        let (name, version) = match MappingFile::identity(wanted) {
            Some((name, version)) => (name, Some(version)),
            None => (wanted.as_str(), None),
        };
        match operate::structure(connection, name, version).await? {
            Some(structure) => Ok((structure, None)),
            None => Err(unknown(wanted, known(connection).await?)),
        }
    }
}

async fn known(connection: &mut PgConnection) -> Result<Vec<String>, Error> {
    let known = operate::definitions(connection).await?;
    Ok(known.iter().map(ToString::to_string).collect())
}

fn unknown(definition: &str, known: Vec<String>) -> Error {
    let text = format!("the structure of {definition} is not stored here");
    Error::new(Kind::Refused, text).mended_by(list(known))
}

fn list(known: Vec<String>) -> String {
    match known.as_slice() {
        [] => "an engine stores it when it starts: start one, or give --file".to_owned(),
        known => format!("name one of {}", known.join(", ")),
    }
}

fn read(file: &std::path::Path) -> Result<Structure, Error> {
    let fault = |text: String| Error::new(Kind::Settings, text);
    let text = std::fs::read_to_string(file).map_err(|error| {
        fault(format!("the structure can not be read from {}", file.display()))
            .mended_by("check the file")
            .caused_by(error)
    })?;
    serde_json::from_str(&text).map_err(|error| {
        fault(format!("{} is no structure of a saga", file.display()))
            .mended_by("write it by Definition::structure, or by --form json")
            .caused_by(error)
    })
}
