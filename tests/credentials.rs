//! Who a pull is at a registry: every source of credentials, every way to show them, and that they are never shown to
//! anybody else, nor in a log or an error.

use std::io::Read;
use std::sync::{Arc, Mutex};

use keelblock::limits::Limits;
use keelblock::provider::archive::Archives;
use keelblock::provider::docker::{DockerProvider, DockerSource};
use keelblock::provider::manifest::Platform;
use keelblock::puller::registry::{
    Credentials, DockerConfigSource, LoginFor, RegistryClient, RegistryPuller, RegistrySettings, Sources,
    Wanted, usual_places,
};
use keelblock_actors::error::chain;
use keelblock_actors::image::access::Access;
use keelblock_actors::image::name::ImageRequest;
use keelblock_actors::image::plan::{ImagePlan, LayerSpec};
use keelblock_actors::ports::{Provider, Puller};
use slog::{Drain, Logger, o};
use tokio::runtime::Runtime;

mod support {
    pub(crate) mod registry;
}
use support::registry::{Reply, Seen, TestRegistry};

const PASSWORD: &str = "open-sesame-7";
/// `user:open-sesame-7`.
const CODED: &str = "dXNlcjpvcGVuLXNlc2FtZS03";
const IDENTITY: &str = "identity-token-8";
const TOKEN: &str = "bearer-token-9";
const SECRETS: [&str; 4] = [PASSWORD, CODED, IDENTITY, TOKEN];

/// Everything that is logged, at every level, and every error that was shown.
#[derive(Clone, Default)]
struct Transcript(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Transcript {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Transcript {
    fn log(&self) -> Logger {
        let decorator = slog_term::PlainSyncDecorator::new(self.clone());
        Logger::root(slog_term::FullFormat::new(decorator).build().fuse(), o!())
    }

    fn note(&self, text: &str) {
        self.0.lock().unwrap().extend_from_slice(text.as_bytes());
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

/// A client whose transcript is searched for secrets at its end.
struct Rig {
    provider: DockerProvider,
    puller: RegistryPuller,
    transcript: Transcript,
    runtime: Runtime,
}

impl Drop for Rig {
    fn drop(&mut self) {
        let text = self.transcript.text();
        if std::thread::panicking() {
            return;
        }
        for secret in SECRETS {
            assert!(!text.contains(secret), "{secret} is in the log or in an error:\n{text}");
        }
    }
}

fn with_password(password: &str) -> Option<LoginFor> {
    Some(LoginFor { login: format!("user:{password}").parse().unwrap(), registries: None })
}

fn sources(login: Option<LoginFor>, config: Option<&str>) -> Sources {
    let config = config.map(|text| DockerConfigSource::parse(text).unwrap());
    Sources::new(login, config, Vec::new(), &Limits::default())
}

/// A config with one entry.
fn config(place: &str, entry: serde_json::Value) -> String {
    serde_json::json!({"auths": {place: entry}}).to_string()
}

impl Rig {
    fn new(credentials: Sources) -> Self {
        Self::with(credentials, "docker.io")
    }

    fn with(credentials: Sources, docker_registry: &str) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let source: DockerSource = docker_registry.parse().unwrap();
        let mut settings = RegistrySettings::new(Limits::default());
        settings.platform = "linux/amd64".parse().unwrap();
        settings.limits.retries_max = 0;
        settings.default_registry = source.registry().cloned();
        settings.credentials = Arc::new(credentials);
        let transcript = Transcript::default();
        let client = RegistryClient::new(settings, runtime.handle().clone(), transcript.log());
        let archives = Archives::new(Limits::default(), "/nonexistent/spool".into(), Platform::host());
        let provider = DockerProvider::new(source, client.clone(), archives);
        Self { provider, puller: RegistryPuller::new(client), transcript, runtime }
    }

    fn resolve(&self, name: &str, access: Option<&str>) -> Result<ImagePlan, String> {
        let access = access.map(Access::new);
        let request = ImageRequest::cached(name.parse().unwrap()).with_access(access.clone());
        let plan = self.runtime.block_on(self.provider.resolve(request));
        plan.map(|plan| plan.with_access(access.as_ref())).map_err(|error| {
            self.transcript.note(&format!("{error:?}"));
            self.transcript.note(&chain(&error));
            chain(&error)
        })
    }

    fn error(&self, name: &str) -> String {
        self.resolve(name, None).expect_err("it is refused")
    }

    fn fetch(&self, layer: &LayerSpec) -> Result<Vec<u8>, String> {
        let blob = self.runtime.block_on(self.puller.open(layer));
        let mut blob = blob.map_err(|error| {
            self.transcript.note(&format!("{error:?} {}", chain(&error)));
            chain(&error)
        })?;
        let mut bytes = Vec::new();
        blob.reader.read_to_end(&mut bytes).map_err(|error| error.to_string())?;
        Ok(bytes)
    }
}

/// A registry with an image that wants Basic with this user and password.
fn basic_registry(coded: &'static str) -> TestRegistry {
    let registry = TestRegistry::start();
    registry.put_image("team/app", "1", &[b"layer"]);
    registry.script(move |seen| {
        let right = seen.authorization.as_deref() == Some(&format!("Basic {coded}"));
        let refusal = Reply::error(401, "UNAUTHORIZED", "who are you?");
        (!right).then(|| refusal.header("www-authenticate", "Basic realm=\"r\""))
    });
    registry
}

fn shown(registry: &TestRegistry) -> Vec<Option<String>> {
    registry.seen().into_iter().map(|seen| seen.authorization).collect()
}

/// A registry with an image, for which a token server gives tokens as `give` says.
fn token_registry(
    give: impl Fn(&Seen) -> Option<Reply> + Send + Sync + 'static,
) -> (TestRegistry, TestRegistry, Arc<Mutex<Vec<String>>>) {
    let (registry, server) = (TestRegistry::start(), TestRegistry::start());
    registry.put_image("app", "1", &[b"layer"]);
    let valid = Arc::new(Mutex::new(vec![TOKEN.to_owned()]));
    registry.demand_bearer(format!("{}/token", server.url()), valid.clone());
    server.script(give);
    (registry, server, valid)
}

fn token(name: &str) -> Reply {
    Reply::new(200, serde_json::json!({name: TOKEN, "expires_in": 300}).to_string())
}

// ---- sources --------------------------------------------------------------------------------------------------

#[test]
fn a_docker_config_logs_in_by_the_longest_path() {
    let registry = basic_registry(CODED);
    let host = registry.host();
    let config = serde_json::json!({"auths": {
        &host: {"username": "user", "password": "wrong"},
        format!("http://{host}/team/app"): {"auth": CODED},
    }})
    .to_string();
    let rig = Rig::new(sources(None, Some(&config)));
    let plan = rig.resolve(&format!("{host}/team/app:1"), None).unwrap();
    assert_eq!(rig.fetch(&plan.layers[0]).unwrap(), b"layer");
    // Asked once without, then as told: every later request shows it at once.
    let basic = Some(format!("Basic {CODED}"));
    assert_eq!(shown(&registry), [None, basic.clone(), basic.clone(), basic]);
}

#[test]
fn the_login_of_the_flag_counts_before_the_config_and_is_not_for_mirrors() {
    let registry = basic_registry(CODED);
    let host = registry.host();
    let wrong = config(&host, serde_json::json!({"username": "user", "password": "wrong"}));
    let rig = Rig::new(sources(with_password(PASSWORD), Some(&wrong)));
    rig.resolve(&format!("{host}/team/app:1"), None).unwrap();
    let credentials = sources(with_password(PASSWORD), Some(&wrong));
    let wanted = Wanted { host: &host, repository: "team/app", mirror: true, access: None, anew: false };
    let found = rig.runtime.block_on(async { credentials.login(wanted).await }).unwrap();
    assert_eq!(found.login.unwrap().source, "--docker_config");
    let elsewhere = Wanted { host: "m.io", ..wanted };
    let found = rig.runtime.block_on(async { credentials.login(elsewhere).await }).unwrap();
    assert_eq!((found.login, found.without), (None, vec!["--docker_auth".into(), "--docker_config".into()]));
}

#[test]
fn the_config_of_an_image_is_in_the_place_of_the_agents_and_serves_its_pull_alone() {
    let registry = basic_registry(CODED);
    let (host, name) = (registry.host(), format!("{}/team/app:1", registry.host()));
    let right = config(&host, serde_json::json!({"auth": CODED}));
    let rig = Rig::new(sources(None, Some("{}")));
    let plan = rig.resolve(&name, Some(&right)).unwrap();
    assert_eq!(rig.fetch(&plan.layers[0]).unwrap(), b"layer");
    // Nobody else has anything of it.
    let stranger = plan.clone().with_access(None);
    assert!(rig.fetch(&stranger.layers[0]).unwrap_err().contains("wants a user name"));
    let nobody = rig.error(&name);
    assert!(
        nobody.contains(&format!("without credentials (none for {host} in --docker_config)")),
        "{nobody}"
    );
    // And it has nothing of the agent's.
    let rig = Rig::new(sources(with_password(PASSWORD), None));
    let error = rig.resolve(&name, Some(r#"{"auths":{}}"#)).unwrap_err();
    let expected = format!("none for {host} in the config that came with the image)");
    assert!(error.contains(&expected), "{error}");
    // Helpers would act for the agent.
    let error = rig.resolve(&name, Some(r#"{"credsStore":"pass"}"#)).unwrap_err();
    assert!(error.contains("whose credential helpers are not run)"), "{error}");
    let error = rig.resolve(&name, Some(PASSWORD)).unwrap_err();
    let expected =
        "the docker config that came with the image cannot be used: it is no JSON from line 1, column 1 on";
    assert!(error.ends_with(expected), "{error}");
}

#[test]
fn the_usual_places_are_looked_at_in_order_and_named_when_they_have_nothing() {
    let registry = basic_registry(CODED);
    let (host, name) = (registry.host(), format!("{}/team/app:1", registry.host()));
    let home = tempfile::tempdir().unwrap();
    let place = |path: &str| home.path().join(path);
    let usual = || {
        let runtime = place("run");
        let variable = |name: &str| (name == "XDG_RUNTIME_DIR").then(|| runtime.clone().into_os_string());
        usual_places(variable, 1, Some(home.path().to_owned()))
    };
    let rig = Rig::new(Sources::new(None, None, usual(), &Limits::default()));
    let error = rig.error(&name);
    let places =
        ["run/containers/auth.json", ".config/containers/auth.json", ".docker/config.json", ".dockercfg"];
    let places = places.map(|path| place(path).display().to_string()).join(", ");
    assert!(error.contains(&format!("asked without credentials (none for {host} in {places})")), "{error}");
    // The same agent finds what is put there later.
    std::fs::create_dir_all(place(".docker")).unwrap();
    let wrong = config(&host, serde_json::json!({"username": "user", "password": "wrong"}));
    std::fs::write(place(".docker/config.json"), wrong).unwrap();
    let error = rig.error(&name);
    let file = place(".docker/config.json").display().to_string();
    assert!(
        error.contains(&format!(
            "(HTTP 401); it says \"UNAUTHORIZED: who are you?\"; asked as \"user\" of {file}"
        )),
        "{error}"
    );
    std::fs::create_dir_all(place("run/containers")).unwrap();
    std::fs::write(place("run/containers/auth.json"), config(&host, serde_json::json!({"auth": CODED})))
        .unwrap();
    rig.resolve(&name, None).unwrap();
    // One that cannot be used is not passed over: nobody is to be a stranger by mistake.
    std::fs::write(place("run/containers/auth.json"), PASSWORD).unwrap();
    let rig = Rig::new(Sources::new(None, None, usual(), &Limits::default()));
    let error = rig.error(&name);
    let file = place("run/containers/auth.json").display().to_string();
    let expected = format!(
        "cannot find out who to be there: {file} (a usual place) cannot be used as a docker config; correct it, or name another by --docker_config: it is no JSON from line 1, column 1 on"
    );
    assert!(error.ends_with(&expected), "{error}");
}

// ---- ways to show them ----------------------------------------------------------------------------------------

#[test]
fn an_identity_token_gets_tokens_by_post() {
    let (registry, server, _) = token_registry(|seen| match seen.method.as_str() {
        "POST" => Some(token("access_token")),
        _ => Some(Reply::new(405, "")),
    });
    let config = config(&registry.host(), serde_json::json!({"auth": "MDAwMDo=", "identitytoken": IDENTITY}));
    let rig = Rig::new(sources(None, Some(&config)));
    rig.resolve(&format!("{}/app:1", registry.host()), None).unwrap();
    let asked = server.seen();
    assert_eq!(asked.len(), 1);
    assert_eq!((asked[0].query.as_str(), &asked[0].authorization), ("", &None));
    let expected = format!(
        "grant_type=refresh_token&refresh_token={IDENTITY}&service=test&scope=repository:app:pull&client_id=keelblock&access_type=online"
    );
    assert_eq!(asked[0].body, expected);
}

#[test]
fn servers_that_know_no_post_are_asked_with_the_password_and_the_other_way_round() {
    for status in [400, 401, 404, 405] {
        let (registry, server, _) = token_registry(move |seen| match seen.method.as_str() {
            "POST" => Some(Reply::new(status, "")),
            _ => Some(token("token")),
        });
        let config = config(&registry.host(), serde_json::json!({"auth": CODED, "identitytoken": IDENTITY}));
        let rig = Rig::new(sources(None, Some(&config)));
        rig.resolve(&format!("{}/app:1", registry.host()), None).unwrap();
        assert_eq!(shown(&server), [None, Some(format!("Basic {CODED}"))]);
    }
    let (registry, server, _) = token_registry(|seen| match seen.method.as_str() {
        "POST" => Some(token("access_token")),
        _ => Some(Reply::new(405, "")),
    });
    let rig = Rig::new(sources(with_password(PASSWORD), None));
    rig.resolve(&format!("{}/app:1", registry.host()), None).unwrap();
    let body = &server.seen()[1].body;
    assert!(
        body.starts_with(&format!("grant_type=password&username=user&password={PASSWORD}&service=")),
        "{body}"
    );
}

#[test]
fn a_registry_token_is_shown_as_it_is() {
    let (registry, server, _) = token_registry(|_| None);
    let config = config(&registry.host(), serde_json::json!({"registrytoken": TOKEN}));
    let rig = Rig::new(sources(None, Some(&config)));
    rig.resolve(&format!("{}/app:1", registry.host()), None).unwrap();
    assert_eq!(server.seen().len(), 0);
    // One that is refused is not shown twice.
    let (registry, _, valid) = token_registry(|_| None);
    valid.lock().unwrap().clear();
    let config = self::config(&registry.host(), serde_json::json!({"registrytoken": TOKEN}));
    let rig = Rig::new(sources(None, Some(&config)));
    let error = rig.error(&format!("{}/app:1", registry.host()));
    assert!(error.contains("asked with the registry token of --docker_config"), "{error}");
    assert_eq!(registry.seen().len(), 2);
}

/// A registry that hides everything from strangers: to their questions it says `status`, and asks who they are at `/v2/` alone.
fn hiding_registry(status: u16, challenge: Option<String>) -> TestRegistry {
    let registry = TestRegistry::start();
    registry.put_image("app", "1", &[b"layer"]);
    registry.script(move |seen| {
        let shown = seen.authorization.as_deref();
        if shown == Some(&format!("Bearer {TOKEN}")) || shown == Some(&format!("Basic {CODED}")) {
            return None;
        }
        match (&challenge, seen.path.as_str()) {
            (Some(challenge), "/v2/") => Some(Reply::new(401, "").header("www-authenticate", challenge)),
            _ => Some(Reply::error(status, "DENIED", "nothing to see here")),
        }
    });
    registry
}

#[test]
fn a_registry_that_hides_things_from_strangers_is_asked_once_more_by_whoever_has_credentials() {
    for status in [403, 404] {
        let server = TestRegistry::start();
        server.on("/token", token("token"));
        // As GHCR does: the scope there is that of somebody else.
        let challenge =
            format!(r#"Bearer realm="{}/token",service="s",scope="repository:x/y:pull""#, server.url());
        let registry = hiding_registry(status, Some(challenge));
        let name = format!("{}/app:1", registry.host());
        let rig = Rig::new(sources(with_password(PASSWORD), None));
        let plan = rig.resolve(&name, None).unwrap();
        assert_eq!(server.seen()[0].query, "service=s&scope=repository:app:pull");
        // The manifest twice, the question who we are, the config; then the layer, at once with the token.
        assert_eq!(registry.seen().len(), 4);
        rig.fetch(&plan.layers[0]).unwrap();
        assert_eq!(registry.seen().len(), 5);
        assert_eq!(server.seen().len(), 1);

        // Without a challenge anywhere the password is shown.
        let registry = hiding_registry(status, None);
        let rig = Rig::new(sources(with_password(PASSWORD), None));
        rig.resolve(&format!("{}/app:1", registry.host()), None).unwrap();
        assert_eq!(shown(&registry)[..3], [None, None, Some(format!("Basic {CODED}"))]);

        // Once, and never for nobody.
        let registry = hiding_registry(status, None);
        let rig = Rig::new(sources(with_password("wrong-8"), None));
        let error = rig.error(&format!("{}/app:1", registry.host()));
        assert_eq!(registry.seen().len(), 3);
        assert!(!error.contains("wrong-8"), "{error}");
        let registry = hiding_registry(status, None);
        let rig = Rig::new(sources(None, Some("{}")));
        let error = rig.error(&format!("{}/app:1", registry.host()));
        assert_eq!(registry.seen().len(), 1);
        if status == 403 {
            let expected =
                format!("asked without credentials (none for {} in --docker_config)", registry.host());
            assert!(error.contains(&expected), "{error}");
        }
    }
}

#[test]
fn a_token_that_dies_early_is_renewed_and_callers_have_their_own() {
    let names = Arc::new(Mutex::new(0));
    let valid = Arc::new(Mutex::new(Vec::<String>::new()));
    let (registry, server) = (TestRegistry::start(), TestRegistry::start());
    registry.put_image("app", "1", &[b"layer"]);
    registry.demand_bearer(format!("{}/token", server.url()), valid.clone());
    let giving = valid.clone();
    server.script(move |_| {
        let mut names = names.lock().unwrap();
        *names += 1;
        let token = format!("{TOKEN}-{names}");
        giving.lock().unwrap().push(token.clone());
        Some(Reply::new(200, serde_json::json!({"token": token, "expires_in": 3000}).to_string()))
    });
    let (host, name) = (registry.host(), format!("{}/app:1", registry.host()));
    let rig = Rig::new(sources(with_password(PASSWORD), None));
    let plan = rig.resolve(&name, None).unwrap();
    assert_eq!(server.seen().len(), 1);
    valid.lock().unwrap().clear();
    assert_eq!(rig.fetch(&plan.layers[0]).unwrap(), b"layer");
    assert_eq!(server.seen().len(), 2);
    // Somebody else is given no token of ours.
    let own = config(&host, serde_json::json!({"username": "other", "password": PASSWORD}));
    let plan = rig.resolve(&name, Some(&own)).unwrap();
    rig.fetch(&plan.layers[0]).unwrap();
    let asked = shown(&server);
    assert_eq!(asked.len(), 3);
    assert_ne!(asked[2], asked[1]);
}

// ---- secrets --------------------------------------------------------------------------------------------------

#[test]
fn secrets_do_not_travel_over_plain_http_unless_somebody_said_that_they_may() {
    let registry = basic_registry(CODED);
    // Leads to loopback too, and is no name of it.
    let host = registry.host().replace("127.0.0.1", "0.0.0.0");
    let rig = Rig::with(sources(with_password(PASSWORD), None), &format!("http://{host}"));
    let error = rig.error("team/app:1");
    let expected = format!(
        "credentials (as \"user\" of --docker_auth) are not sent to {host} over plain http, where anybody on the way can read them; let it speak TLS, or add it to --docker_insecure_registries"
    );
    assert!(error.ends_with(&expected), "{error}");
    assert_eq!(shown(&registry), [None]);
    // Nor to a token server.
    let (registry, server) = (TestRegistry::start(), TestRegistry::start());
    let realm = server.url().replace("127.0.0.1", "0.0.0.0");
    registry.demand_bearer(format!("{realm}/token"), Arc::default());
    let rig = Rig::new(sources(with_password(PASSWORD), None));
    let error = rig.error(&format!("{}/app:1", registry.host()));
    assert!(
        error.contains(&format!("are not sent to {} over plain http", &realm["http://".len()..])),
        "{error}"
    );
    assert_eq!(server.seen().len(), 0);
    // Whoever has none may ask.
    let rig = Rig::new(sources(None, None));
    assert!(rig.error(&format!("{}/app:1", registry.host())).contains("asked without credentials"));
    assert_eq!(server.seen().len(), 1);
}

#[test]
fn what_servers_repeat_of_secrets_is_not_repeated() {
    let registry = TestRegistry::start();
    registry.script(|seen| match &seen.authorization {
        None => Some(Reply::new(401, "").header("www-authenticate", "Basic realm=\"r\"")),
        Some(shown) => Some(Reply::error(403, "DENIED", &format!("no {PASSWORD}, no {shown}, go away"))),
    });
    let rig = Rig::new(sources(with_password(PASSWORD), None));
    let error = rig.error(&format!("{}/app:1", registry.host()));
    assert!(error.contains("it says \"DENIED: no (secret), no Basic (secret), go away\""), "{error}");

    let long = "x".repeat(250);
    let (registry, _server, _) = token_registry(move |seen| {
        let body = serde_json::json!({"details": format!("wrong: {} {long}{PASSWORD}", seen.body)});
        Some(Reply::new(401, body.to_string()))
    });
    let both = config(&registry.host(), serde_json::json!({"auth": CODED, "identitytoken": IDENTITY}));
    let rig = Rig::new(sources(None, Some(&both)));
    let error = rig.error(&format!("{}/app:1", registry.host()));
    assert!(error.contains("; asked as \"user\" of --docker_config"), "{error}");
    assert!(!error.contains("open-"), "half a secret: {error}");

    let (registry, _server, _) = token_registry(|seen| {
        let said = format!("bad form: {}", seen.body);
        Some(Reply::new(403, said).header("content-type", "text/plain"))
    });
    let identity = config(&registry.host(), serde_json::json!({"identitytoken": IDENTITY}));
    let rig = Rig::new(sources(None, Some(&identity)));
    let error = rig.error(&format!("{}/app:1", registry.host()));
    let expected =
        "answers HTTP 403; it says \"bad form: grant_type=refresh_token&refresh_token=(secret)&service=";
    assert!(error.contains(expected), "{error}");

    let (registry, _server, _) = token_registry(|_| Some(token("token")));
    registry
        .script(|seen| Some(Reply::error(403, "DENIED", seen.authorization.as_deref().unwrap_or("nobody"))));
    let rig = Rig::new(sources(with_password(PASSWORD), None));
    rig.error(&format!("{}/app:1", registry.host()));
}

#[test]
fn secrets_do_not_follow_redirects() {
    let (registry, elsewhere) = (basic_registry(CODED), TestRegistry::start());
    let to = format!("{}/stolen", elsewhere.url());
    let app = registry.host();
    registry.on("/v2/team/app/manifests/2", Reply::redirect(to));
    elsewhere.script(|_| Some(Reply::new(401, "").header("www-authenticate", "Basic realm=\"r\"")));
    let rig = Rig::new(sources(with_password(PASSWORD), None));
    rig.error(&format!("{app}/team/app:2"));
    assert_eq!(shown(&elsewhere), [None]);
}
