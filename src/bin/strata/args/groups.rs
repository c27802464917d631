//! `strata image …`, `strata container …` and `strata system …`: docker's longer names of the verbs.

use clap::Subcommand;

use super::{
    Attach, Commit, ContainerPrune, Cp, Create, Df, Diff, Exec, Exists, Export, History, ImagePrune, Images, Import,
    Info, Inspect, Kill, KindArg, Load, Logs, Pause, PortList, Ps, Pull, Push, Rename, Restart, Rm, Rmi, Run, Save,
    Start, Stats, Stop, SystemPrune, Tag, Top, Unpause, Verb, Wait,
};

/// Manage containers: the verbs of containers by docker's longer names
#[derive(Subcommand)]
#[command(after_help = "Examples:\n  strata container ls -a\n  strata container prune -f")]
pub enum ContainerVerb {
    #[command(visible_aliases = ["list", "ps"])]
    Ls(Ps),
    Run(Box<Run>),
    Exec(Exec),
    Logs(Logs),
    Stats(Stats),
    Stop(Stop),
    #[command(visible_alias = "remove")]
    Rm(Rm),
    Inspect(Inspect),
    Diff(Diff),
    Cp(Cp),
    Commit(Commit),
    Export(Export),
    Create(Box<Create>),
    Start(Start),
    Attach(Attach),
    Restart(Restart),
    Kill(Kill),
    Wait(Wait),
    Rename(Rename),
    Pause(Pause),
    Unpause(Unpause),
    Top(Top),
    Port(PortList),
    Exists(Exists),
    Prune(ContainerPrune),
}

/// Manage images: the verbs of images by docker's longer names
#[derive(Subcommand)]
#[command(after_help = "Examples:\n  strata image ls\n  strata image prune -af")]
pub enum ImageVerb {
    #[command(visible_alias = "list")]
    Ls(Images),
    #[command(visible_alias = "remove")]
    Rm(Rmi),
    Inspect(Inspect),
    History(History),
    Tag(Tag),
    Load(Load),
    Save(Save),
    Import(Import),
    Pull(Pull),
    Push(Push),
    Exists(Exists),
    Prune(ImagePrune),
}

/// Look after the store: what it takes, what is in it, and what can go
#[derive(Subcommand)]
#[command(after_help = "Examples:\n  strata system df\n  strata system prune -f")]
pub enum SystemVerb {
    Df(Df),
    Info(Info),
    Prune(SystemPrune),
}

/// A verb that is not a longer name of another one.
pub enum OnlyLonger {
    PruneContainers(ContainerPrune),
    PruneImages(ImagePrune),
    PruneSystem(SystemPrune),
    ContainerExists(Exists),
    ImageExists(Exists),
}

impl Verb {
    /// The same verb by its shorter name; or one that has none.
    pub fn plain(self) -> Result<Self, OnlyLonger> {
        let of_kind = |inspect: Inspect, kind| Inspect { r#type: Some(kind), ..inspect };
        Ok(match self {
            Self::Container(verb) => match verb {
                ContainerVerb::Ls(args) => Self::Ps(args),
                ContainerVerb::Run(args) => Self::Run(args),
                ContainerVerb::Exec(args) => Self::Exec(args),
                ContainerVerb::Logs(args) => Self::Logs(args),
                ContainerVerb::Stats(args) => Self::Stats(args),
                ContainerVerb::Stop(args) => Self::Stop(args),
                ContainerVerb::Rm(args) => Self::Rm(args),
                ContainerVerb::Inspect(args) => Self::Inspect(of_kind(args, KindArg::Container)),
                ContainerVerb::Diff(args) => Self::Diff(args),
                ContainerVerb::Cp(args) => Self::Cp(args),
                ContainerVerb::Commit(args) => Self::Commit(args),
                ContainerVerb::Export(args) => Self::Export(args),
                ContainerVerb::Create(args) => Self::Create(args),
                ContainerVerb::Start(args) => Self::Start(args),
                ContainerVerb::Attach(args) => Self::Attach(args),
                ContainerVerb::Restart(args) => Self::Restart(args),
                ContainerVerb::Kill(args) => Self::Kill(args),
                ContainerVerb::Wait(args) => Self::Wait(args),
                ContainerVerb::Rename(args) => Self::Rename(args),
                ContainerVerb::Pause(args) => Self::Pause(args),
                ContainerVerb::Unpause(args) => Self::Unpause(args),
                ContainerVerb::Top(args) => Self::Top(args),
                ContainerVerb::Port(args) => Self::Port(args),
                ContainerVerb::Exists(args) => return Err(OnlyLonger::ContainerExists(args)),
                ContainerVerb::Prune(args) => return Err(OnlyLonger::PruneContainers(args)),
            },
            Self::Image(verb) => match verb {
                ImageVerb::Ls(args) => Self::Images(args),
                ImageVerb::Rm(args) => Self::Rmi(args),
                ImageVerb::Inspect(args) => Self::Inspect(of_kind(args, KindArg::Image)),
                ImageVerb::History(args) => Self::History(args),
                ImageVerb::Tag(args) => Self::Tag(args),
                ImageVerb::Load(args) => Self::Load(args),
                ImageVerb::Save(args) => Self::Save(args),
                ImageVerb::Import(args) => Self::Import(args),
                ImageVerb::Pull(args) => Self::Pull(args),
                ImageVerb::Push(args) => Self::Push(args),
                ImageVerb::Exists(args) => return Err(OnlyLonger::ImageExists(args)),
                ImageVerb::Prune(args) => return Err(OnlyLonger::PruneImages(args)),
            },
            Self::System(verb) => match verb {
                SystemVerb::Df(args) => Self::Df(args),
                SystemVerb::Info(args) => Self::Info(args),
                SystemVerb::Prune(args) => return Err(OnlyLonger::PruneSystem(args)),
            },
            other => other,
        })
    }

    /// True for `run` and `exec`, whose exit codes are the container's.
    pub fn is_run(&self) -> bool {
        let plain = matches!(self, Self::Run(_) | Self::Exec(_));
        plain || matches!(self, Self::Container(ContainerVerb::Run(_) | ContainerVerb::Exec(_)))
    }

    /// True for verbs that make something from an image: if the image is missing, pulling it helps.
    pub fn wants_image(&self) -> bool {
        matches!(
            self,
            Self::Mount(_)
                | Self::Run(_)
                | Self::Create(_)
                | Self::Save(_)
                | Self::Tag(_)
                | Self::Flatten(_)
                | Self::Export(_)
        ) || matches!(
            self,
            Self::Container(ContainerVerb::Run(_) | ContainerVerb::Create(_) | ContainerVerb::Export(_))
                | Self::Image(ImageVerb::Save(_) | ImageVerb::Tag(_))
        )
    }

    /// True for verbs that do not change the store: they do not make a missing one.
    pub fn only_reads(&self) -> bool {
        matches!(
            self,
            Self::Ps(_)
                | Self::Logs(_)
                | Self::Port(_)
                | Self::Top(_)
                | Self::Stats(_)
                | Self::Diff(_)
                | Self::Images(_)
                | Self::Inspect(_)
                | Self::History(_)
                | Self::Layers(_)
                | Self::Report(_)
                | Self::Which(_)
                | Self::Df(_)
                | Self::Info(_)
                | Self::Version(_)
        )
    }
}
