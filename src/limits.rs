//! Every limit of the engine: name, unit, default and reason. Each is a flag of the same name.

use std::time::Duration;

/// The limits in force. `Default` is what the flags default to.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Launches and provisions under way at once; one more is refused as busy. 1024: each holds a few
    /// descriptors and a mailbox slot, well below the usual 4096 open files with four per launch.
    pub launches_max: usize,
    /// Blobs fetched at once from one registry. 6: enough to fill a link from it without being throttled by it.
    pub fetches_max: usize,
    /// Layers unpacked at once, each on a thread that waits for the network most of the time. 0 = as many as
    /// processors, but not fewer than four times `fetches_max`: a blob is unpacked while it comes, so three registries that
    /// give no byte still leave room for a fourth.
    pub unpacks_max: usize,
    /// Trees copied at once by the copy backend. 2: the disk is the limit, not the processor.
    pub copies_max: usize,
    /// Mounts and unmounts at once. 8: they contend for one kernel lock anyway.
    pub mounts_max: usize,
    /// Bytes of a manifest or index. 4 MiB: what registries accept at most.
    pub manifest_bytes_max: u64,
    /// Bytes of an image config. 8 MiB: history and labels of the largest known stay below 1 MiB.
    pub config_bytes_max: u64,
    /// Indexes within indexes. 4: real ones have one.
    pub index_depth_max: usize,
    /// Images below each other in the dependencies of an Appc image. 16: real ones have two or three.
    pub appc_dependency_depth_max: usize,
    /// Images that an Appc image depends on, those of its dependencies included, each counted once. 128: real ones have a few.
    pub appc_dependencies_max: usize,
    /// Layers of an image. 500: what overlayfs stacks.
    pub layers_max: usize,
    /// Bytes of the uncompressed tar of one layer, which bounds its files and a decompression bomb alike. 64 GiB:
    /// model images have layers of tens of GB.
    pub layer_bytes_max: u64,
    /// How many times its size a blob may become when it is decompressed, once that is more than 1 GiB. 200: layers
    /// become 2 to 20 times as large; only those of zeros reach the 1000 of gzip and more.
    pub layer_expansion_max: u64,
    /// Percent of its compressed size that a layer is taken to need on the disk before more is known of it; a plain tar
    /// needs its size. 300: base images become 2.4 to 2.8 times as large, layers of many small files up to 4.
    pub layer_expansion_estimate: u64,
    /// Bytes that a pull leaves free on the filesystem of the store; 0 = none. `None` = 64 MiB, or a sixteenth of all where
    /// that is less: what the records, logs and containers of a machine need to go on while somebody makes room.
    pub disk_free_min: Option<u64>,
    /// Entries of one layer. 10 million: an inode takes some 0.3 to 1 KB of disk.
    pub layer_entries_max: u64,
    /// Bytes of memory for the names of a layer while an image is written of it. 192 MiB: some three million names, ten
    /// times those of the largest known layers. The same for what is remembered of the paths of an ACI.
    pub layer_names_bytes_max: usize,
    /// Bytes of file content of all layers of an image that is pulled. 256 GiB: four layers of the largest size.
    pub image_bytes_max: u64,
    /// Entries of all layers of an image that is pulled. 40 million: four layers of the largest size.
    pub image_entries_max: u64,
    /// Bytes of a path in a layer. 4096: PATH_MAX.
    pub path_bytes_max: usize,
    /// Bytes of all xattrs of one entry, names and values. 64 KiB: the kernel's own limit for one value.
    pub xattr_bytes_max: usize,
    /// Bytes of extended headers (PAX, GNU long names) of one entry. 1 MiB.
    pub pax_bytes_max: usize,
    /// Members of an archive of images. 100,000: an archive of the old form has four to each layer.
    pub archive_members_max: usize,
    /// Bytes that a compressed archive of images may decompress to. 256 GiB: four layers of the largest size.
    pub archive_bytes_max: u64,
    /// Bytes of `/etc/passwd` and of `/etc/group` of an image. 4 MiB: tens of thousands of users.
    pub user_file_bytes_max: u64,
    /// Redirects followed for one request. 5.
    pub redirects_max: usize,
    /// How often a question to a registry is asked again after a failure that may pass. 5: with the pauses below some
    /// 15 s, in which a load balancer has found another server.
    pub retries_max: usize,
    /// The pause before the first retry; each is twice as long as the one before, less up to a half at random. 500 ms.
    pub retry_pause: Duration,
    /// The longest such pause. 10 s.
    pub retry_pause_max: Duration,
    /// The longest pause that a registry may ask for (`Retry-After`); asked for a longer one, the pull fails at once. 60 s:
    /// whoever waits for a launch wants to be told.
    pub retry_after_max: Duration,
    /// Requests at once to one server of a registry, which over HTTP/1.1 is connections. 16: what fetches of several images
    /// have under way at their busiest, and less than registries throttle. No fewer than `fetches_max` and two.
    pub connections_per_host_max: usize,
    /// Bytes of a blob from which on it is fetched in ranges over several connections, where one alone is slower than its
    /// reader. 32 MiB: below, a second connection hardly reaches its speed before all is there.
    pub fetch_ranges_min: u64,
    /// Connections for one blob at most; 1 = never more. 4: what registries and their object stores slow down is each
    /// connection; more than a few are taken for an attack.
    pub fetch_ranges_max: usize,
    /// Bytes of one such range. 4 MiB: a second's worth of a slow connection, which makes the pause between two ranges small;
    /// eight of them wait in memory at most, over all blobs.
    pub fetch_range_bytes: u64,
    /// Until a connection stands. 10 s.
    pub connect_timeout: Duration,
    /// Without one byte on a connection that should bring some. 60 s (Mesos `fetcher_stall_timeout`).
    pub stall_timeout: Duration,
    /// Bytes of a token server's answer, and of an error answer that is read for its message. 64 KiB.
    pub answer_bytes_max: u64,
    /// For how long a token of a registry is used, whatever lifetime its server claims. 1 h.
    pub token_lifetime_max: Duration,
    /// For how long a credential helper may work. 30 s: some ask a server of their own, none should ask a person.
    pub credential_helper_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            launches_max: 1024,
            fetches_max: 6,
            unpacks_max: 0,
            copies_max: 2,
            mounts_max: 8,
            manifest_bytes_max: 4 << 20,
            config_bytes_max: 8 << 20,
            index_depth_max: 4,
            appc_dependency_depth_max: 16,
            appc_dependencies_max: 128,
            layers_max: 500,
            layer_bytes_max: 64 << 30,
            layer_expansion_max: 200,
            layer_expansion_estimate: 300,
            disk_free_min: None,
            layer_entries_max: 10_000_000,
            layer_names_bytes_max: 192 << 20,
            image_bytes_max: 256 << 30,
            image_entries_max: 40_000_000,
            path_bytes_max: 4096,
            xattr_bytes_max: 64 << 10,
            pax_bytes_max: 1 << 20,
            archive_members_max: 100_000,
            archive_bytes_max: 256 << 30,
            user_file_bytes_max: 4 << 20,
            redirects_max: 5,
            retries_max: 5,
            retry_pause: Duration::from_millis(500),
            retry_pause_max: Duration::from_secs(10),
            retry_after_max: Duration::from_secs(60),
            connections_per_host_max: 16,
            fetch_ranges_min: 32 << 20,
            fetch_ranges_max: 4,
            fetch_range_bytes: 4 << 20,
            connect_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(60),
            answer_bytes_max: 64 << 10,
            token_lifetime_max: Duration::from_secs(3600),
            credential_helper_timeout: Duration::from_secs(30),
        }
    }
}

/// What stays free when nobody says how much: see [`Limits::disk_free_min`].
const FREE_MIN_BYTES: u64 = 64 << 20;

/// Bytes that stay free on a filesystem of so many bytes, where `wanted` is [`Limits::disk_free_min`]: by default, of one that is
/// small itself, at most a sixteenth.
pub(crate) fn stays_free(wanted: Option<u64>, bytes_total: u64) -> u64 {
    wanted.unwrap_or_else(|| FREE_MIN_BYTES.min(bytes_total / 16))
}

impl Limits {
    /// How many layers are unpacked at once: `unpacks_max`, or one per processor and no fewer than four registries fetch.
    pub fn unpack_threads(&self) -> usize {
        match self.unpacks_max {
            0 => {
                std::thread::available_parallelism().map_or(1, |cores| cores.get()).max(4 * self.fetches_max)
            }
            n => n,
        }
    }
}
