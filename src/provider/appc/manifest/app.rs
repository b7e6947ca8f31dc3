//! `app`: how an image wants to be run.

use keelblock_actors::image::appc::{App, EventHandler, EventName, MountPoint, Port};

use super::error::ManifestError;
use super::isolators;
use super::json::{AC_NAME, Object, Once, text};

/// `app`.
pub(super) fn read(app: &Object<'_>) -> Result<App, ManifestError> {
    let account = |key: &str| match app.text(key)? {
        Some("") => Err(ManifestError::text(app.path(key), "", "a name, a number or an absolute path")),
        Some(account) => Ok(account.to_owned()),
        None => Err(app.missing(key, "a name, a number or an absolute path")),
    };
    let directory = app.text("workingDirectory")?.filter(|directory| !directory.is_empty());
    if let Some(directory) = directory.filter(|directory| !directory.starts_with('/')) {
        return Err(ManifestError::text(app.path("workingDirectory"), directory, "an absolute path"));
    }
    Ok(App {
        exec: command(app)?,
        user: account("user")?,
        group: account("group")?,
        supplementary_gids: groups(app)?,
        event_handlers: event_handlers(app)?,
        working_directory: directory.map(str::to_owned),
        environment: environment(app)?,
        mount_points: mount_points(app)?,
        ports: ports(app)?,
        isolators: isolators::read(app)?,
        user_annotations: app.map_of_texts("userAnnotations")?,
        user_labels: app.map_of_texts("userLabels")?,
    })
}

/// `exec`; may be empty, and then its user says what to execute.
fn command(object: &Object<'_>) -> Result<Vec<String>, ManifestError> {
    let exec = object.texts("exec")?;
    match exec.first().is_some_and(String::is_empty) {
        true => Err(ManifestError::text(format!("{}[0]", object.path("exec")), "", "the name of a program")),
        false => Ok(exec),
    }
}

fn groups(app: &Object<'_>) -> Result<Vec<u32>, ManifestError> {
    let key = if app.get("supplementaryGIDs").is_some() { "supplementaryGIDs" } else { "supplementaryGids" };
    let group = |(path, value): (String, &serde_json::Value)| {
        let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
        // The last one means "leave it as it is" to the kernel.
        let number = number.filter(|number| *number != u32::MAX);
        number.ok_or_else(|| ManifestError::field(path, value, "a group's number, 0 to 4294967294"))
    };
    app.list(key)?.into_iter().map(group).collect()
}

/// Those that have a command: the others do nothing.
fn event_handlers(app: &Object<'_>) -> Result<Vec<EventHandler>, ManifestError> {
    let (mut handlers, mut once) = (Vec::new(), Once::default());
    for handler in app.objects("eventHandlers")? {
        let name = match handler.text("name")? {
            Some("pre-start") => EventName::PreStart,
            Some("post-stop") => EventName::PostStop,
            Some(other) => {
                return Err(ManifestError::text(handler.path("name"), other, "pre-start or post-stop"));
            }
            None => return Err(handler.missing("name", "pre-start or post-stop")),
        };
        once.take(&handler, "name", handler.required("name")?)?;
        let exec = command(&handler)?;
        if !exec.is_empty() {
            handlers.push(EventHandler { name, exec });
        }
    }
    Ok(handlers)
}

fn environment(app: &Object<'_>) -> Result<Vec<(String, String)>, ManifestError> {
    let (mut variables, mut once) = (Vec::new(), Once::default());
    for variable in app.objects("environment")? {
        let name = variable.required("name")?;
        let good = name.bytes().enumerate().all(|(at, byte)| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'_' => true,
            b'0'..=b'9' | b'.' | b'-' => at > 0,
            _ => false,
        });
        if name.is_empty() || !good {
            let allowed = "letters, digits, _, . and -, and begin with a letter or _";
            return Err(ManifestError::text(variable.path("name"), name, allowed));
        }
        once.take(&variable, "name", name)?;
        variables.push((name.to_owned(), variable.required("value")?.to_owned()));
    }
    Ok(variables)
}

fn mount_points(app: &Object<'_>) -> Result<Vec<MountPoint>, ManifestError> {
    let (mut points, mut once) = (Vec::new(), Once::default());
    for point in app.objects("mountPoints")? {
        let name: keelblock_actors::image::appc::AcName = point.required_parsed("name", AC_NAME)?;
        once.take(&point, "name", name.as_str())?;
        let path = point.required("path")?;
        if !path.starts_with('/') {
            return Err(ManifestError::text(point.path("path"), path, "an absolute path"));
        }
        points.push(MountPoint { name, path: path.to_owned(), read_only: point.flag("readOnly")? });
    }
    Ok(points)
}

fn ports(app: &Object<'_>) -> Result<Vec<Port>, ManifestError> {
    let port = |port: &Object<'_>| {
        let number = port.number("port")?.ok_or_else(|| port.missing("port", "a number, 1 to 65535"))?;
        let first = u16::try_from(number).ok().filter(|first| *first > 0);
        let first = first.ok_or_else(|| port.wrong("port", &number.into(), "a number, 1 to 65535"))?;
        // Where the schema was written, 0 is what is not there.
        let count = port.number("count")?.filter(|count| *count > 0).unwrap_or(1);
        let most = 65536 - u32::from(first);
        let fits = u32::try_from(count).ok().filter(|count| *count <= most);
        let allowed = || format!("at most {most}, so that the last port is at most 65535");
        let protocol = match port.get("protocol") {
            Some(value) => text(&port.path("protocol"), value)?,
            None => "",
        };
        if protocol.is_empty() {
            return Err(port.missing("protocol", "the name of a protocol, as in tcp"));
        }
        Ok(Port {
            name: port.required_parsed("name", AC_NAME)?,
            protocol: protocol.to_owned(),
            port: first,
            count: fits.ok_or_else(|| port.wrong("count", &count.into(), allowed()))?,
            socket_activated: port.flag("socketActivated")?,
        })
    };
    app.objects("ports")?.iter().map(port).collect()
}
