//! Which limits a container has: what its caller asks, else what its Appc image does; and what the kernel is told.

use keelblock_actors::container::Resources;
use keelblock_actors::error::quote;
use keelblock_actors::image::appc::Isolator;
use keelblock_actors::launch::LaunchContext;
use serde::Deserialize;

use super::{CPU, MEM};
use crate::provider::appc::quantity::{Quantity, QuantityError};

/// Least limit of memory. 6 MiB, as docker and podman have it: in less neither the supervisor's page tables nor a
/// small command's have room, and the container would die before it runs.
pub(in crate::isolator) const MEMORY_MIN: u64 = 6 << 20;
/// Least limit of processor time, in thousandths of a processor. 10: the kernel has 1 ms in 100 ms as its least.
pub(in crate::isolator) const CPU_MILLIS_MIN: u64 = 10;
/// Most thousandths of processors that the kernel is told of: ten thousand processors. No machine has more, and the
/// kernel refuses numbers that are out of all proportion.
const CPU_MILLIS_MAX: u64 = 10_000_000;
/// Over which time processor time is counted, in microseconds: 100 ms, the kernel's default and that of docker.
const PERIOD_US: u64 = 100_000;
/// Weight of one processor asked for: what every cgroup has that asks for nothing.
const SHARES_PER_CPU: u64 = 1024;
/// The kernel's own bounds of shares.
const SHARES: (u64, u64) = (2, 262_144);

/// Which of the two isolators are there, and whether images have a say.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::isolator) struct Enforced {
    pub(in crate::isolator) memory: bool,
    pub(in crate::isolator) cpu: bool,
    /// `appc/runtime`.
    pub(in crate::isolator) images: bool,
}

impl Enforced {
    pub(super) fn any(self) -> bool {
        self.memory || self.cpu
    }

    pub(super) fn controllers(self) -> Vec<&'static str> {
        let all = [("memory", self.memory), ("cpu", self.cpu)];
        all.into_iter().filter(|(_, there)| *there).map(|(name, _)| name).collect()
    }
}

/// Why a container cannot have the limits it asks for.
#[derive(Debug, thiserror::Error)]
pub(in crate::isolator) enum ResourceError {
    #[error("{what} is asked for and nothing would limit it; add {isolator} to --isolation, or do not ask")]
    NotLimited { what: &'static str, isolator: &'static str },
    #[error("a limit of {bytes} bytes of memory is too small; the least is {MEMORY_MIN} (6M)")]
    MemoryTooSmall { bytes: u64 },
    #[error(
        "a limit of {millis} thousandths of a processor is too small; the least is {CPU_MILLIS_MIN} (0.01)"
    )]
    CpuTooSmall { millis: u64 },
    #[error(
        "the request of {isolator}, {request}, is above the limit of {limit}; ask for less, or allow more"
    )]
    RequestAboveLimit { isolator: &'static str, request: u64, limit: u64 },
    #[error("the image asks for what cannot be")]
    Image {
        isolator: &'static str,
        #[source]
        source: ImageValueError,
    },
}

impl ResourceError {
    /// Whose it is.
    pub(super) fn isolator(&self) -> &'static str {
        match self {
            Self::NotLimited { isolator, .. }
            | Self::RequestAboveLimit { isolator, .. }
            | Self::Image { isolator, .. } => isolator,
            Self::MemoryTooSmall { .. } => MEM,
            Self::CpuTooSmall { .. } => CPU,
        }
    }
}

/// A resource isolator of an image has a value that is none.
#[derive(Debug, thiserror::Error)]
pub(in crate::isolator) enum ImageValueError {
    #[error("isolator {name} of the image has a value that is none: {value:?}")]
    Json {
        name: String,
        value: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("isolator {name} of the image has a value that is none: {value:?}")]
    Quantity {
        name: String,
        value: String,
        #[source]
        source: QuantityError,
    },
    #[error("isolator {name} of the image asks for less than nothing: {value:?}")]
    Negative { name: String, value: String },
}

/// Limit and request of one resource: bytes, or thousandths of a processor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::isolator) struct Ask {
    pub(in crate::isolator) limit: Option<u64>,
    pub(in crate::isolator) request: Option<u64>,
    /// Why it is not just as the image has it.
    pub(in crate::isolator) changed: Option<&'static str>,
}

/// What a resource isolator of an image asks, as it can be had.
pub(in crate::isolator) fn asked_by_image(isolator: &Isolator) -> Result<Ask, ImageValueError> {
    #[derive(Deserialize)]
    struct Value {
        limit: Option<String>,
        request: Option<String>,
    }
    let (name, value) = (isolator.name.to_string(), quote(&isolator.value));
    let memory = name == "resource/memory";
    let parsed: Value = match serde_json::from_str(&isolator.value) {
        Ok(parsed) => parsed,
        Err(source) => return Err(ImageValueError::Json { name, value, source }),
    };
    let number = |text: Option<String>| {
        let Some(text) = text else { return Ok(None) };
        let quantity: Quantity = text.parse().map_err(|source| ImageValueError::Quantity {
            name: name.clone(),
            value: value.clone(),
            source,
        })?;
        let number = if memory { quantity.ceil() } else { quantity.milli() };
        let negative = || ImageValueError::Negative { name: name.clone(), value: value.clone() };
        number.filter(|_| !quantity.is_negative()).map(Some).ok_or_else(negative)
    };
    let mut ask = Ask { limit: number(parsed.limit)?, request: number(parsed.request)?, changed: None };
    let (least, too_small) = if memory {
        (MEMORY_MIN, "its limit is too small; it is 6 MiB, the least")
    } else {
        (CPU_MILLIS_MIN, "its limit is too small; it is 0.01 processors, the least")
    };
    if ask.limit.is_some_and(|limit| limit < least) {
        (ask.limit, ask.changed) = (Some(least), Some(too_small));
    }
    if let (Some(limit), Some(request)) = (ask.limit, ask.request)
        && request > limit
    {
        ask.request = Some(limit);
        ask.changed = ask.changed.or(Some("it requests more than its limit; the limit holds"));
    }
    Ok(ask)
}

/// Whether the caller has a say in what an isolator of an image is about.
pub(in crate::isolator) fn caller_asks(resources: &Resources, isolator: &str) -> bool {
    match isolator {
        "resource/memory" => resources.memory_bytes.or(resources.memory_request_bytes).is_some(),
        _ => resources.cpu_millis.or(resources.cpu_request_millis).is_some(),
    }
}

/// The limits of a container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) memory: Ask,
    pub(super) cpu: Ask,
}

/// What a container's limits are. All of the caller's numbers for a resource stand for all of the image's.
pub(super) fn limits(context: &LaunchContext, enforced: Enforced) -> Result<Limits, ResourceError> {
    let asked = &context.resources;
    let memory = Ask { limit: asked.memory_bytes, request: asked.memory_request_bytes, changed: None };
    let cpu = Ask { limit: asked.cpu_millis, request: asked.cpu_request_millis, changed: None };
    for (ask, there, what, isolator) in
        [(memory, enforced.memory, "memory", MEM), (cpu, enforced.cpu, "processor time", CPU)]
    {
        if !there && ask.limit.or(ask.request).is_some() {
            return Err(ResourceError::NotLimited { what, isolator });
        }
        if let (Some(limit), Some(request)) = (ask.limit, ask.request)
            && request > limit
        {
            return Err(ResourceError::RequestAboveLimit { isolator, request, limit });
        }
    }
    if let Some(bytes) = memory.limit.filter(|bytes| *bytes < MEMORY_MIN) {
        return Err(ResourceError::MemoryTooSmall { bytes });
    }
    if let Some(millis) = cpu.limit.filter(|millis| *millis < CPU_MILLIS_MIN) {
        return Err(ResourceError::CpuTooSmall { millis });
    }
    let mut limits = Limits { memory, cpu };
    let manifest = context.runtime.as_ref().and_then(|runtime| runtime.appc.as_deref());
    let app = manifest.and_then(|manifest| manifest.app.as_ref()).filter(|_| enforced.images);
    for isolator in app.into_iter().flat_map(|app| &app.isolators) {
        let (ask, there, name) = match isolator.name.as_str() {
            "resource/memory" => (&mut limits.memory, enforced.memory, MEM),
            "resource/cpu" => (&mut limits.cpu, enforced.cpu, CPU),
            _ => continue,
        };
        if there && !caller_asks(asked, isolator.name.as_str()) {
            *ask =
                asked_by_image(isolator).map_err(|source| ResourceError::Image { isolator: name, source })?;
        }
    }
    Ok(limits)
}

/// A file of a cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct File {
    pub(super) name: &'static str,
    /// Whether kernels without it will do.
    pub(super) optional: bool,
}

const fn file(name: &'static str) -> File {
    File { name, optional: false }
}

impl Limits {
    /// What to write, of which controller, in order.
    ///
    /// Memory and swap together are limited, not memory alone: what goes to swap is not saved, and a container at its
    /// limit is to be told so at once instead of slowing the machine down. Kernels without a count of swap limit memory.
    pub(super) fn files(&self, unified: bool) -> Vec<(&'static str, File, String)> {
        let mut files = Vec::new();
        if let Some(bytes) = self.memory.limit {
            let (limit, swap) = match unified {
                true => (file("memory.max"), ("memory.swap.max", 0)),
                // The sum of both, which can never be below the first.
                false => (file("memory.limit_in_bytes"), ("memory.memsw.limit_in_bytes", bytes)),
            };
            files.push(("memory", limit, bytes.to_string()));
            files.push(("memory", File { name: swap.0, optional: true }, swap.1.to_string()));
        }
        if let Some(bytes) = self.memory.request {
            let name = if unified { "memory.low" } else { "memory.soft_limit_in_bytes" };
            files.push(("memory", file(name), bytes.to_string()));
        }
        if let Some(millis) = self.cpu.limit {
            let quota = millis.min(CPU_MILLIS_MAX) * PERIOD_US / 1000;
            if unified {
                files.push(("cpu", file("cpu.max"), format!("{quota} {PERIOD_US}")));
            } else {
                files.push(("cpu", file("cpu.cfs_period_us"), PERIOD_US.to_string()));
                files.push(("cpu", file("cpu.cfs_quota_us"), quota.to_string()));
            }
        }
        if let Some(millis) = self.cpu.request {
            let shares = (millis.min(CPU_MILLIS_MAX) * SHARES_PER_CPU / 1000).clamp(SHARES.0, SHARES.1);
            if unified {
                files.push(("cpu", file("cpu.weight"), weight(shares).to_string()));
            } else {
                files.push(("cpu", file("cpu.shares"), shares.to_string()));
            }
        }
        files
    }
}

/// Shares of version 1, 2 to 262144, as a weight of version 2, 1 to 10000: on a straight line, as runc and systemd's
/// users know it.
fn weight(shares: u64) -> u64 {
    1 + (shares - SHARES.0) * 9_999 / (SHARES.1 - SHARES.0)
}
