//! From the table to the command line parser.

use super::{Effect, Opt, Place, Shape};
use clap::{Arg, ArgAction, Command, builder::PossibleValuesParser};

/// Adds an argument for every option of the table.
pub fn with_options(command: Command, options: &'static [Opt]) -> Command {
    command.args(options.iter().map(arg))
}

/// One option as an argument. Defaults and variables are only shown here: [`super::Settings`] applies them.
pub(crate) fn arg(opt: &'static Opt) -> Arg {
    let arg =
        Arg::new(opt.flag).value_name(opt.shape.value_name()).value_hint(opt.shape.hint()).help(help(opt)).hide(opt.effect == Effect::None);
    let arg = match opt.shape {
        // Known to the parser, so that a shell can complete them.
        Shape::OneOf(words) => arg.value_parser(PossibleValuesParser::new(words)),
        _ => arg,
    };
    let arg = arg.action(ArgAction::Append);
    let arg = match opt.place {
        Place::Position => return arg.num_args(0..),
        Place::Flags => arg.long(opt.flag).num_args(1..),
        Place::Flag => arg.long(opt.flag).num_args(1),
    };
    let arg = match opt.short {
        Some(letter) => arg.short(letter),
        None => arg,
    };
    match opt.shape {
        // `--register-service` alone means true.
        Shape::Bool => arg.num_args(0..=1).default_missing_value("true"),
        _ => arg,
    }
}

fn help(opt: &Opt) -> String {
    let mut text = opt.help.to_owned();
    if !opt.env.is_empty() {
        text += &format!(" [env: {}]", opt.env);
    }
    if opt.required {
        text += &format!(" [required, for instance {}]", opt.default);
    } else if !opt.default.is_empty() {
        text += &format!(" [default: {}]", opt.default);
    }
    text
}
