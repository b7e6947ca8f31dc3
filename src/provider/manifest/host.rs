//! Which machine this is, as far as it decides which image runs on it.
//!
//! Levels of amd64 are those of the x86-64 psABI ("Low-Level System Information", micro-architecture levels): what a level
//! needs is asked of the processor and of what the kernel lets through. Versions of arm stand in `/proc/cpuinfo`, read as
//! containerd reads it (platforms `cpuinfo_linux.go`).

use super::Platform;

/// The platform of this machine, for programs of this program's architecture.
pub(super) fn platform() -> Platform {
    let architecture = std::env::consts::ARCH;
    let variant = match architecture {
        "x86_64" => Some(amd64_level()),
        // A machine that tells nothing is taken for what nearly all are.
        "arm" => Some(
            std::fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| arm_version(&text)).unwrap_or("v7"),
        ),
        _ => None,
    };
    Platform::normal("linux", architecture, variant)
}

/// The highest level of which the processor has everything.
#[cfg(target_arch = "x86_64")]
fn amd64_level() -> &'static str {
    use std::arch::is_x86_feature_detected as has;
    // LAHF in 64-bit mode, also of v2, cannot be asked for; every processor with SSE4.2 has it.
    let v2 = has!("cmpxchg16b")
        && has!("popcnt")
        && has!("sse3")
        && has!("ssse3")
        && has!("sse4.1")
        && has!("sse4.2");
    let v3 = v2
        && (has!("avx") && has!("avx2") && has!("bmi1") && has!("bmi2") && has!("f16c"))
        && (has!("fma") && has!("lzcnt") && has!("movbe") && has!("xsave"));
    let v4 = v3
        && (has!("avx512f") && has!("avx512bw") && has!("avx512cd"))
        && (has!("avx512dq") && has!("avx512vl"));
    match (v2, v3, v4) {
        (.., true) => "v4",
        (_, true, _) => "v3",
        (true, ..) => "v2",
        _ => "v1",
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn amd64_level() -> &'static str {
    "v1"
}

/// The version of arm that a `/proc/cpuinfo` tells of.
fn arm_version(cpuinfo: &str) -> Option<&'static str> {
    let value = |name: &str| {
        let fields = cpuinfo.lines().filter_map(|line| line.split_once(':'));
        // To the letter: beside `Processor`, the model, there is `processor`, a number.
        fields.map(|(key, value)| (key.trim(), value.trim())).find(|(key, _)| *key == name)
    };
    let version = value("CPU architecture")?.1.to_ascii_lowercase();
    // The first Raspberry Pi says 7, and has a v6 (golang/go issue 18660).
    let model = || value("model name").or_else(|| value("Processor")).map_or("", |(_, text)| text);
    match version.as_str() {
        "7" if model().to_ascii_lowercase().starts_with("armv6-compatible") => Some("v6"),
        "8" | "aarch64" => Some("v8"),
        "7" | "7m" | "?(12)" | "?(13)" | "?(14)" | "?(15)" | "?(16)" | "?(17)" => Some("v7"),
        "6" | "6tej" => Some("v6"),
        "5" | "5t" | "5te" | "5tej" => Some("v5"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_arm_are_read_as_containerd_reads_them() {
        let of = |version: &str, model: &str| {
            arm_version(&format!(
                "processor\t: 0\n{model}\nFeatures\t: half\nCPU architecture: {version}\n\n"
            ))
        };
        for (written, version) in [
            ("8", Some("v8")),
            ("AArch64", Some("v8")),
            ("7", Some("v7")),
            ("6TEJ", Some("v6")),
            ("5TE", Some("v5")),
            ("4", None),
        ] {
            assert_eq!(of(written, "model name\t: x"), version, "{written}");
        }
        let pi = "model name\t: ARMv6-compatible processor rev 7 (v6l)";
        assert_eq!(of("7", pi), Some("v6"));
        assert_eq!(of("7", &pi.replace("model name", "Processor")), Some("v6"));
        assert_eq!(arm_version("flags : sse"), None);
    }

    /// What the kernel tells of the processor and what we find are one machine.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn the_level_of_this_processor_is_what_its_flags_say() {
        let Ok(cpuinfo) = std::fs::read_to_string("/proc/cpuinfo") else {
            return eprintln!("skipped: there is no /proc/cpuinfo");
        };
        let flags = cpuinfo.lines().find_map(|line| line.strip_prefix("flags")).unwrap_or_default();
        let flags: Vec<&str> = flags.split_whitespace().collect();
        if flags.is_empty() {
            return eprintln!("skipped: /proc/cpuinfo has no flags");
        }
        let has = |wanted: &str| wanted.split(' ').all(|flag| flags.contains(&flag));
        let v2 = has("cx16 popcnt pni ssse3 sse4_1 sse4_2");
        let v3 = v2 && has("avx avx2 bmi1 bmi2 f16c fma abm movbe xsave");
        let v4 = v3 && has("avx512f avx512bw avx512cd avx512dq avx512vl");
        let level = if v4 {
            "v4"
        } else if v3 {
            "v3"
        } else if v2 {
            "v2"
        } else {
            "v1"
        };
        assert_eq!(amd64_level(), level);
    }
}
