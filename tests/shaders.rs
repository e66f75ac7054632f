//! Every shader variant is validated by naga, and compared with the kernel table.
#![cfg(all(feature = "gpu", not(target_arch = "wasm32")))]

use bitnet_rust::gpu::kernels::{Access, Need, variants};
use naga::back::{hlsl, msl, pipeline_constants::process_overrides};
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{AddressSpace, ScalarKind, StorageAccess, TypeInner};
use std::collections::BTreeSet;

fn parse(name: &str, source: &str) -> naga::Module {
    naga::front::wgsl::parse_str(source)
        .unwrap_or_else(|e| panic!("{name}: {}", e.emit_to_string(source)))
}

fn validate(name: &str, source: &str, module: &naga::Module) -> ModuleInfo {
    Validator::new(
        ValidationFlags::all(),
        Capabilities::SUBGROUP
            | Capabilities::SHADER_FLOAT16_IN_FLOAT32
            | Capabilities::SHADER_FLOAT16
            | Capabilities::COOPERATIVE_MATRIX,
    )
    .subgroup_stages(naga::valid::ShaderStages::COMPUTE)
    .subgroup_operations(naga::valid::SubgroupOperationSet::all())
    .validate(module)
    .unwrap_or_else(|e| panic!("{name}: {}", e.emit_to_string(source)))
}

fn access(name: &str, space: AddressSpace) -> Access {
    match space {
        AddressSpace::Uniform => Access::Uniform,
        AddressSpace::Storage { access } if access.contains(StorageAccess::STORE) => Access::Write,
        AddressSpace::Storage { .. } => Access::Read,
        space => panic!("{name}: binding in {space:?}"),
    }
}

/// Name, type and offset of the members of `Params`.
fn fields(
    name: &str,
    module: &naga::Module,
    ty: naga::Handle<naga::Type>,
) -> Vec<(String, String, u32)> {
    let TypeInner::Struct { members, .. } = &module.types[ty].inner else {
        panic!("{name}: Params is no struct");
    };
    let kind = |ty: naga::Handle<naga::Type>| match module.types[ty].inner {
        TypeInner::Scalar(s) if s.kind == ScalarKind::Uint => "u32".to_string(),
        TypeInner::Scalar(s) if s.kind == ScalarKind::Float => "f32".to_string(),
        ref other => format!("{other:?}"),
    };
    members.iter().map(|m| (m.name.clone().unwrap_or_default(), kind(m.ty), m.offset)).collect()
}

#[test]
fn shaders_validate_and_match_the_table() {
    let all = variants();
    assert!(all.len() > 60, "only {} variants", all.len());
    for variant in all {
        let name = variant.name();
        let source = variant.source(false);
        let module = parse(&name, &source);
        validate(&name, &source, &module);

        let declared: BTreeSet<_> =
            module.overrides.iter().filter_map(|(_, o)| o.name.clone()).collect();
        let listed: BTreeSet<_> = variant.overrides().into_iter().map(String::from).collect();
        assert_eq!(declared, listed, "{name}: overrides");

        let mut declared = Vec::new();
        for (_, var) in module.global_variables.iter() {
            let Some(binding) = &var.binding else { continue };
            assert_eq!(binding.group, 0, "{name}");
            declared.push((binding.binding, access(&name, var.space)));
            if binding.binding == 1 {
                let listed: Vec<_> = (0u32..)
                    .zip(variant.kernel.fields)
                    .map(|(i, f)| (f.0.to_string(), f.1.to_string(), 4 * i))
                    .collect();
                assert_eq!(fields(&name, &module, var.ty), listed, "{name}: Params");
            }
        }
        declared.sort_by_key(|d| d.0);
        assert_eq!(declared, variant.bindings(), "{name}: bindings");
        let storage = declared.iter().filter(|d| d.1 != Access::Uniform).count();
        assert!(storage <= 8, "{name}: {storage} storage buffers, WebGPU promises 8");
    }
}

/// No machine with Metal or Direct3D is at hand for every change: at least each variant that may run there
/// is translated. `SHADERS_OUT` names a folder for the results.
#[test]
fn shaders_translate_for_metal_and_direct3d() {
    let out = std::env::var_os("SHADERS_OUT").map(std::path::PathBuf::from);
    for variant in variants().into_iter().filter(|v| !v.needs(Need::Matrices)) {
        let name = variant.name();
        let source = variant.source(false);
        let module = parse(&name, &source);
        let info = validate(&name, &source, &module);
        let (module, info) =
            process_overrides(&module, &info, None, &Default::default()).expect(&name);
        let options = msl::Options {
            lang_version: (2, 4),
            fake_missing_bindings: true,
            ..msl::Options::default()
        };
        let (metal, _) = msl::write_string(&module, &info, &options, &Default::default())
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        let mut direct3d = String::new();
        let options = hlsl::Options { shader_model: hlsl::ShaderModel::V6_0, ..Default::default() };
        hlsl::Writer::new(&mut direct3d, &options, &Default::default())
            .write(&module, &info, None)
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        if let Some(out) = &out {
            std::fs::write(out.join(format!("{name}.metal")), metal).unwrap();
            std::fs::write(out.join(format!("{name}.hlsl")), direct3d).unwrap();
        }
    }
}

/// Browsers demand `enable` directives that naga rejects; the rest of the text is the same.
#[test]
fn shaders_differ_on_the_web_only_by_directives() {
    // Cooperative matrices are no part of WebGPU.
    for variant in variants().into_iter().filter(|v| !v.needs(Need::Matrices)) {
        let (native, web) = (variant.source(false), variant.source(true));
        let directives = web.strip_suffix(native.as_str()).expect("a header in front");
        assert_eq!(directives.contains("enable subgroups;"), variant.needs(Need::Subgroups));
        assert_eq!(native.contains("subgroupShuffle"), variant.needs(Need::Subgroups));
        assert!(!native.contains("enable "), "{}", variant.name());
    }
}

#[test]
fn shaders_have_names_of_their_own() {
    let mut seen = BTreeSet::new();
    for variant in variants() {
        assert!(seen.insert(variant.name()), "{} is there twice", variant.name());
    }
}
