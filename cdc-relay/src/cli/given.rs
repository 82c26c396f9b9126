//! The settings' flags, made from the list of settings.

use clap::{Arg, ArgAction, ArgMatches, Args, Command, Error, FromArgMatches};

use crate::config::layers::Given;
use crate::config::settings::{Flag, Form, SETTINGS, SHORT, Setting};

/// The settings that the command line gives.
#[derive(Clone, Debug, Default)]
pub(super) struct Flags(pub(super) Vec<Given>);

impl Args for Flags {
    fn augment_args(command: Command) -> Command {
        SETTINGS.iter().filter_map(argument).fold(command, Command::arg)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Flags::augment_args(command)
    }
}

impl FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let mut flags = Vec::new();
        for setting in SETTINGS {
            let given = |flag, name: &str, text: &str| Given {
                key: setting.key,
                flag,
                name: name.to_owned(),
                text: text.to_owned(),
            };
            match setting.flag {
                Flag::None => {}
                Flag::Off(flag, _) => {
                    if matches.get_flag(setting.key) {
                        flags.push(given(flag, "", "false"));
                    }
                }
                Flag::Value(flag) => {
                    let texts = matches.get_many::<String>(setting.key).into_iter().flatten();
                    let texts: Vec<&str> = texts.map(String::as_str).collect();
                    match setting.form {
                        Form::One => flags.extend(texts.iter().map(|text| given(flag, "", text))),
                        Form::Many if texts.is_empty() => {}
                        Form::Many => flags.push(given(flag, "", &texts.join(","))),
                        Form::Table => flags.extend(texts.iter().map(|text| {
                            let (name, value) = text.split_once('=').unwrap_or((text, ""));
                            given(flag, name, value)
                        })),
                    }
                }
            }
        }
        Ok(Flags(flags))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Flags::from_arg_matches(matches)?;
        Ok(())
    }
}

fn argument(setting: &Setting) -> Option<Arg> {
    let (flag, about, default) = match setting.flag {
        Flag::None => return None,
        Flag::Value(flag) => (flag, setting.about, setting.default),
        Flag::Off(flag, about) => (flag, about, ""),
    };
    let default = match default {
        "" => String::new(),
        default => format!(" [default: {default}]"),
    };
    let variable = setting.common.map_or_else(|| setting.variable(), str::to_owned);
    let about = format!("{about}{default} [env: {variable}]");
    let argument = Arg::new(setting.key)
        .long(flag)
        .global(true)
        .help_heading("Settings (all of them: cdc-relay config)")
        .help(about);
    let argument = if setting.key == SHORT { argument.short('X') } else { argument };
    Some(match (setting.flag, setting.form) {
        (Flag::Off(..), _) => argument.action(ArgAction::SetTrue),
        (_, Form::One) => argument.value_name(setting.shape).action(ArgAction::Set),
        (_, Form::Many) => argument.value_name(setting.shape).action(ArgAction::Append),
        (_, Form::Table) => {
            argument.value_name(setting.shape).action(ArgAction::Append).value_parser(pair)
        }
    })
}

fn pair(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some((name, _)) if !name.is_empty() => Ok(text.to_owned()),
        _ => Err("not of the form name=value".to_owned()),
    }
}
