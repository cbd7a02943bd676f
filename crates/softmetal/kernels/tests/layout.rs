//! Structs that the host binds by `setBytes`: size and every offset are the same in Rust and, by clang, in the kernel.
//!
//! A struct is found by the text of both sides, so a new one that is not in [`PAIRS`] fails the test.

mod harness;
mod sources;

use std::collections::{BTreeMap, BTreeSet};

use harness::{candle_folder, options};
use softmetal_kernels::{CompileOptions, StructLayout, check_layouts};
use sources::{backend, ours, read};

/// File of the backend, struct there, and struct of the kernel library of that name. `[u32]`: words without a struct.
const PAIRS: &[(&str, &str, &str)] = &[
    ("accumulate", "[u32; 1]", "AccumulateSizes"),
    ("adamw", "AdamWSizes", "AdamWSizes"),
    ("attention", "Sizes", "AttentionSizes"),
    ("attention_grad", "Sizes", "AttentionGradSizes"),
    ("check_indices", "[u32; 2]", "CheckSizes"),
    ("cross_entropy", "Sizes", "CrossEntropySizes"),
    ("cross_entropy", "[u32; 1]", "LossSizes"),
    ("dropout", "Sizes", "DropoutSizes"),
    ("elementwise", "FillSizes", "FillSizes"),
    ("elementwise", "Sizes", "ElementwiseSizes"),
    ("embedding", "Sizes", "EmbeddingSizes"),
    ("gemv", "Sizes", "GemvSizes"),
    ("gemv", "TransposedSizes", "GemvTSizes"),
    ("global_norm", "SquaresSizes", "SquaresSizes"),
    ("global_norm", "[u32; 1]", "NormSizes"),
    ("kv_write", "Sizes", "KvWriteSizes"),
    ("layer_norm", "ColumnSizes", "LayerNormColumns"),
    ("layer_norm", "GradSizes", "LayerNormGradSizes"),
    ("layer_norm", "Sizes", "LayerNormSizes"),
    ("layout", "CopySizes", "CopySizes"),
    ("layout", "UnsliceSizes", "UnsliceSizes"),
    ("lora", "Sizes", "LoraSizes"),
    ("lora_slots", "Slots", "Slots"),
    ("matmul", "Sizes", "MatMulSizes"),
    ("multi_tensor", "Entry", "Entry"),
    ("quant_matmul", "Sizes", "QuantizedSizes"),
    ("reduce", "Sizes", "ReduceSizes"),
    ("rms_norm", "ColumnSizes", "ColumnSizes"),
    ("rms_norm", "GradSizes", "RmsNormGradSizes"),
    ("rms_norm", "Sizes", "RmsNormSizes"),
    ("rope", "CacheSizes", "RopeCacheSizes"),
    ("rope", "Sizes", "RopeSizes"),
    ("sample", "Sizes", "SampleSizes"),
    ("silu_mul", "Sizes", "SiluMulSizes"),
    ("softmax", "Axis", "SoftmaxAxis"),
    ("softmax", "Sizes", "SoftmaxSizes"),
    ("strided", "Walk", "Walk"),
    ("top_k", "Sizes", "TopKSizes"),
];

/// Structs that MLX's kernels, which candle ships, take.
const MLX: &[(&str, &str)] = &[("GemmParams", "GEMMParams"), ("GemmAddendParams", "GEMMAddMMParams")];

/// Text without comments.
fn plain(text: &str) -> String {
    text.lines().map(|line| line.split("//").next().unwrap_or("")).collect::<Vec<_>>().join("\n")
}

/// Fields as name and type of each `#[repr(C)]` struct, by file and name.
fn rust_structs() -> BTreeMap<(String, String), Vec<(String, String)>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(backend()).unwrap().flatten() {
        let path = entry.path();
        if path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let file = path.file_stem().unwrap().to_string_lossy().into_owned();
        let text = plain(&read(&path));
        for part in text.split("#[repr(C)]").skip(1) {
            let (head, rest) = part.split_once('{').expect("a struct has a body");
            let name = head.split_whitespace().last().unwrap().to_string();
            let body = rest.split_once("\n}").expect("a struct ends").0;
            let fields = body.lines().filter_map(|line| {
                let (name, ty) = line.trim().trim_end_matches(',').split_once(": ")?;
                Some((name.split_whitespace().last()?.to_string(), ty.to_string()))
            });
            found.insert((file.clone(), name), fields.collect());
        }
    }
    found
}

/// Names of the fields of struct `name` in a kernel's text, in order.
fn metal_fields(text: &str, name: &str) -> Vec<String> {
    let text = plain(text);
    let start = text.find(&format!("struct {name} {{")).unwrap_or_else(|| panic!("no struct {name}"));
    let body = text[start..].split_once('{').unwrap().1.split_once("\n}").unwrap().0;
    let statements = body.split(';').filter(|statement| !statement.trim().is_empty());
    let fields = statements.flat_map(|statement| {
        let names = statement.split(',').map(|part| {
            let part = part.split('[').next().unwrap_or(part);
            part.split_whitespace().last().unwrap_or_default().to_string()
        });
        names.collect::<Vec<_>>()
    });
    fields.collect()
}

/// The layout of `#[repr(C)]` fields: offsets in order, size, alignment.
fn layout(
    fields: &[(String, String)],
    structs: &BTreeMap<(String, String), Vec<(String, String)>>,
) -> (Vec<usize>, usize, usize) {
    let (mut offsets, mut end, mut alignment) = (Vec::new(), 0usize, 1);
    for (_, ty) in fields {
        let (size, align) = size_of_type(ty, structs);
        end = end.next_multiple_of(align);
        offsets.push(end);
        end += size;
        alignment = alignment.max(align);
    }
    (offsets, end.next_multiple_of(alignment), alignment)
}

/// Value of a constant that one of the backend's files declares.
fn constant(name: &str) -> usize {
    let declaration = format!("const {name}: usize = ");
    let files = std::fs::read_dir(backend()).unwrap().flatten().map(|entry| entry.path());
    let texts = files.filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    let values: BTreeSet<usize> = texts
        .filter_map(|path| read(&path).split_once(&declaration)?.1.split_once(';')?.0.parse().ok())
        .collect();
    assert_eq!(values.len(), 1, "values of {name}");
    values.into_iter().next().unwrap()
}

fn size_of_type(ty: &str, structs: &BTreeMap<(String, String), Vec<(String, String)>>) -> (usize, usize) {
    if let Some((element, count)) = ty.strip_prefix('[').and_then(|t| t.strip_suffix(']')?.split_once("; ")) {
        let (size, align) = size_of_type(element, structs);
        let count = count.parse().unwrap_or_else(|_| constant(count));
        return (size * count, align);
    }
    match ty {
        "u32" | "i32" | "f32" => (4, 4),
        "u64" | "i64" => (8, 8),
        _ => {
            let fields = structs.iter().find(|((_, name), _)| name == ty).map(|(_, fields)| fields);
            let (_, size, align) =
                layout(fields.unwrap_or_else(|| panic!("the type {ty} is not known")), structs);
            (size, align)
        }
    }
}

/// The fields with each array as its elements: `q: [u32; 3]` is `q_batch`, `q_token` and `q_head` in a kernel.
fn flattened(fields: &[(String, String)]) -> Vec<(String, String)> {
    let elements = |(name, ty): &(String, String)| {
        let array = ty.strip_prefix('[').and_then(|ty| ty.strip_suffix(']')?.split_once("; "));
        match array.and_then(|(element, count)| Some((element, count.parse::<usize>().ok()?))) {
            Some((element, count)) => vec![(name.clone(), element.to_owned()); count],
            None => vec![(name.clone(), ty.clone())],
        }
    };
    fields.iter().flat_map(elements).collect()
}

/// What Rust lays out, under the names of the kernel's struct.
fn expected(fields: &[(String, String)], text: &str, metal: &str) -> StructLayout {
    let structs = rust_structs();
    let mut names = metal_fields(text, metal);
    let fields = if names.len() > fields.len() { &flattened(fields) } else { fields };
    let (offsets, size, _) = layout(fields, &structs);
    // Padding at the end of a Rust struct has no name in a kernel.
    let unnamed = fields.iter().rev().take_while(|(name, _)| name == "padding").count();
    assert_eq!(names.len() + unnamed, fields.len(), "fields of {metal}: {names:?} and {fields:?}");
    names.truncate(fields.len());
    StructLayout { name: metal.to_string(), size, fields: names.into_iter().zip(offsets).collect() }
}

#[test]
fn structs_of_the_host_and_of_kernels_agree() {
    let (structs, sources) = (rust_structs(), ours());
    for (file, name) in structs.keys() {
        let known = PAIRS.iter().any(|(f, n, _)| f == file && n == name);
        let mlx = file == "matmul" && MLX.iter().any(|(n, _)| n == name);
        assert!(known || mlx, "{file}.rs: struct {name} has no counterpart here: add it to PAIRS");
    }
    for source in &sources {
        for part in source.text.split("constant ").skip(1) {
            let Some((name, _)) = part.split_once("& ").filter(|(name, _)| name.ends_with("Sizes")) else {
                continue;
            };
            let known = PAIRS.iter().any(|(_, _, metal)| *metal == name);
            assert!(known, "{}: struct {name} has no counterpart here: add it to PAIRS", source.name);
        }
    }
    for source in &sources {
        let mut layouts = Vec::new();
        for (file, name, metal) in PAIRS {
            let library = match *file {
                "strided" => "layout",
                "lora_slots" => "lora",
                "multi_tensor" => "adamw",
                file => file,
            };
            if library != source.name {
                continue;
            }
            let fields = match name.strip_prefix("[u32; ").and_then(|n| n.strip_suffix(']')) {
                Some(count) => vec![(String::new(), "u32".to_string()); count.parse().unwrap()],
                None => structs
                    .get(&(file.to_string(), name.to_string()))
                    .unwrap_or_else(|| panic!("{file}.rs has no struct {name}"))
                    .clone(),
            };
            let layout = expected(&fields, &source.text, metal);
            assert!(layout.size <= 4096, "{metal}: setBytes takes 4096 bytes at most");
            layouts.push(layout);
        }
        let options = CompileOptions { name: format!("{}.metal", source.name), ..options() };
        let found = check_layouts(&source.text, &options, &layouts).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(found, [], "{}", source.name);
    }
}

#[test]
fn structs_of_mlx_agree() {
    let Some(folder) = candle_folder() else {
        eprintln!("SKIPPED structs_of_mlx_agree: candle-metal-kernels 0.11.1 is not in cargo's registry");
        return;
    };
    let (text, structs) = (read(&folder.join("mlx_gemm.metal")), rust_structs());
    let layouts: Vec<_> = MLX
        .iter()
        .map(|(name, metal)| expected(&structs[&("matmul".to_string(), name.to_string())], &text, metal))
        .collect();
    assert_eq!(check_layouts(&text, &options(), &layouts).unwrap_or_else(|e| panic!("{e}")), []);
}

/// A field moved, a field of another size, and a struct that is too short are reported.
#[test]
fn planted_differences() {
    let text = "struct S { uint a; float3 b; half c; };\nkernel void k(constant S& s [[buffer(0)]]) {}";
    let layout = |size: usize, offsets: [usize; 3]| StructLayout {
        name: "S".into(),
        size,
        fields: ["a", "b", "c"].map(String::from).into_iter().zip(offsets).collect(),
    };
    let found = |layout| check_layouts(text, &options(), &[layout]).unwrap();
    assert_eq!(found(layout(48, [0, 16, 32])), []);
    for wrong in [layout(20, [0, 16, 32]), layout(48, [0, 4, 32]), layout(48, [0, 16, 28])] {
        let findings = found(wrong);
        assert_eq!(findings.iter().map(|f| f.rule).collect::<Vec<_>>(), ["layout"]);
    }
}
