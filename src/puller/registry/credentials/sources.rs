//! Every place that may say who to be, in order.
//!
//! What came with the image counts alone: its config replaces that of the agent, as in Mesos, also where it says nothing.
//! Else `--docker_auth`, which is for any registry and for no mirror; then `--docker_config`, or without it the usual places,
//! the first that has something for the host. Within one config: the helper that it names for the host (`credHelpers`), its
//! own entries (`auths`, the longest path first), and the helper that it names for all (`credsStore`).

use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use keelblock_actors::error::Cause;
use tokio::runtime::Handle;

use super::docker_config::{DockerConfig, DockerConfigError};
use super::file::{ConfigFile, FILE_BYTES_MAX};
use super::helper::{Helpers, Named};
use super::places::UsualPlace;
use super::{Credentials, Found, Login, LoginFor, Wanted};
use crate::limits::Limits;
use crate::puller::registry::Task;

/// What the config of an image is called in messages.
const OF_THE_IMAGE: &str = "the config that came with the image";
/// What a config in a flag is called in messages.
const OF_THE_FLAG: &str = "--docker_config";

/// Why a config that came with an image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// It is longer than any such config.
    #[error("the docker config that came with the image has more than {limit} bytes")]
    TooLarge {
        /// How many are allowed.
        limit: u64,
    },
    /// It is none.
    #[error("the docker config that came with the image cannot be used")]
    Config(#[source] DockerConfigError),
}

/// What `--docker_config` means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DockerConfigSource {
    /// The config itself.
    Text(DockerConfig),
    /// A file, or a directory with a `config.json`: read when it is first needed.
    Path(PathBuf),
}

impl DockerConfigSource {
    /// JSON, or else a path.
    ///
    /// # Errors
    /// When JSON is no docker config.
    pub fn parse(text: &str) -> Result<Self, DockerConfigError> {
        match text.trim_start().starts_with('{') {
            true => DockerConfig::parse(text).map(Self::Text),
            false => Ok(Self::Path(PathBuf::from(text.trim_end_matches('\n')))),
        }
    }
}

#[derive(Debug)]
enum Place {
    Text(Arc<DockerConfig>),
    File(ConfigFile),
}

#[derive(Debug)]
struct Shared {
    login: Option<LoginFor>,
    places: Vec<Place>,
    helpers: Helpers,
}

/// The credentials of an agent: its flags, the usual places, and the helpers that they name.
#[derive(Clone, Debug)]
pub struct Sources(Arc<Shared>);

impl Sources {
    /// `login` of `--docker_auth`, `config` of `--docker_config`; `usual` are looked at when there is no `config`. Nothing is
    /// read yet.
    pub fn new(
        login: Option<LoginFor>,
        config: Option<DockerConfigSource>,
        usual: Vec<UsualPlace>,
        limits: &Limits,
    ) -> Self {
        let places = match config {
            Some(DockerConfigSource::Text(config)) => vec![Place::Text(Arc::new(config))],
            Some(DockerConfigSource::Path(path)) => {
                vec![Place::File(ConfigFile::new(path, OF_THE_FLAG, true))]
            }
            None => usual.into_iter().map(|place| Place::File(place.into())).collect(),
        };
        Self(Arc::new(Shared { login, places, helpers: Helpers::new(limits.credential_helper_timeout) }))
    }
}

impl Credentials for Sources {
    fn login(&self, wanted: Wanted<'_>) -> BoxFuture<'static, Result<Found, Cause>> {
        if let Some(access) = wanted.access {
            let found = of_image(access.config(), &wanted);
            return Box::pin(async { Ok(found?) });
        }
        let shared = Arc::clone(&self.0);
        let of_flag = shared.login.as_ref().map(|login| login.of(&wanted));
        if let Some(Some(login)) = of_flag {
            return Box::pin(async { Ok(Found { login: Some(login), without: Vec::new() }) });
        }
        let without = if of_flag.is_some() { vec!["--docker_auth".to_owned()] } else { Vec::new() };
        let (host, repository) = (wanted.host.to_owned(), wanted.repository.to_owned());
        let anew = wanted.anew;
        Box::pin(async move { shared.of_places(&host, &repository, anew, without).await })
    }
}

/// Only what is written in it. Helpers would act with the rights of the agent for whoever names them.
fn of_image(text: &str, wanted: &Wanted<'_>) -> Result<Found, AccessError> {
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(AccessError::TooLarge { limit: FILE_BYTES_MAX });
    }
    let config = DockerConfig::parse(text).map_err(AccessError::Config)?;
    let login = config.login(wanted.host, wanted.repository, OF_THE_IMAGE);
    let named = config.helper(wanted.host).is_some() || config.store().is_some();
    let place = match named {
        true => format!("{OF_THE_IMAGE}, whose credential helpers are not run"),
        false => OF_THE_IMAGE.to_owned(),
    };
    Ok(Found { login, without: vec![place] })
}

impl Shared {
    async fn of_places(
        self: Arc<Self>,
        host: &str,
        repository: &str,
        anew: bool,
        mut without: Vec<String>,
    ) -> Result<Found, Cause> {
        for at in 0..self.places.len() {
            let shared = Arc::clone(&self);
            let read = Task::spawn_blocking(&Handle::current(), move || shared.read(at)).await??;
            let Some((config, name)) = read else { continue };
            if let Some(config) = config
                && let Some(login) = self.of_config(&config, &name, host, repository, anew).await?
            {
                return Ok(Found { login: Some(login), without });
            }
            without.push(name);
        }
        Ok(Found { login: None, without })
    }

    /// The config of a place, if it is there, and what the place is called.
    #[allow(clippy::type_complexity, reason = "used once, one line above")]
    fn read(&self, at: usize) -> Result<Option<(Option<Arc<DockerConfig>>, String)>, super::FileError> {
        Ok(match self.places.get(at) {
            Some(Place::Text(config)) => Some((Some(Arc::clone(config)), OF_THE_FLAG.to_owned())),
            Some(Place::File(file)) => Some((file.config()?, file.name())),
            None => None,
        })
    }

    async fn of_config(
        &self,
        config: &DockerConfig,
        name: &str,
        host: &str,
        repository: &str,
        anew: bool,
    ) -> Result<Option<Login>, Cause> {
        let ask = async |helper: &str, member: &str| {
            let named = Named { name: helper.to_owned(), of: format!("{member} of {name}") };
            self.helpers.login(&named, host, anew).await
        };
        if let Some(helper) = config.helper(host)
            && let Some(login) = ask(helper, "credHelpers").await?
        {
            return Ok(Some(login));
        }
        if let Some(login) = config.login(host, repository, name) {
            return Ok(Some(login));
        }
        match config.store() {
            Some(helper) => Ok(ask(helper, "credsStore").await?),
            None => Ok(None),
        }
    }
}
