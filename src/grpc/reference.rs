//! The reference of the API, `docs/reference/api.md`, from the comments of `proto/`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use prost::Message as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet};

use crate::pages::{agree, cell};

const PAGE: &str = "docs/reference/api.md";

const COMMENTED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/commented.bin"));

const HEAD: &str = "# The API

<!-- Generated from proto/; `make docs` writes it anew. -->

gRPC over TLS 1.3 with mutual authentication, or with a bearer token of a trusted issuer. Server reflection answers, and `grpc.health.v1`
says whether tokens can be issued. Errors are gRPC codes with `google.rpc.ErrorInfo`, whose `reason` is a constant to rely on
(`domain` is `p8broker`), and where they apply `BadRequest` with every violation and `RetryInfo`. Everything here is
additive within `v1`: fields and reasons are added, none changes its meaning.
";

/// Comments by where they stand: `4.0.2.1` is the second field of the first message.
type Comments = BTreeMap<Vec<i32>, String>;

/// Numbers of fields in `descriptor.proto`.
mod path {
    pub(super) const MESSAGE: i32 = 4;
    pub(super) const ENUM: i32 = 5;
    pub(super) const SERVICE: i32 = 6;
    pub(super) const FIELD_METHOD_VALUE: i32 = 2;
}

fn comments(file: &FileDescriptorProto) -> Comments {
    let info = file.source_code_info.as_ref().expect("comments are kept");
    let with = info.location.iter().filter(|it| it.leading_comments.is_some());
    with.map(|it| (it.path.clone(), it.leading_comments().to_owned())).collect()
}

/// A comment, its paragraphs apart.
#[track_caller]
fn about(comments: &Comments, path: &[i32], name: &str) -> String {
    let text = comments.get(path).unwrap_or_else(|| panic!("{name} has no comment"));
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    lines.join("\n").trim().to_owned()
}

/// `p8broker.v1.Role` of this package is `Role`.
fn local(name: &str) -> String {
    let name = name.trim_start_matches('.');
    match name.strip_prefix("p8broker.v1.") {
        Some(ours) => format!("[{ours}](#{})", ours.to_lowercase()),
        None => format!("`{name}`"),
    }
}

fn kind(of: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    // A map is written as a list of entries.
    let entry = of.nested_type.iter().find(|it| field.type_name().ends_with(&format!(".{}.{}", of.name(), it.name())));
    if let Some([key, value]) = entry.map(|it| &it.field[..]) {
        return format!("map from {} to {}", kind(of, key), kind(of, value));
    }
    let name = match field.r#type() {
        Type::Message | Type::Enum => local(field.type_name()),
        other => format!("`{}`", other.as_str_name().trim_start_matches("TYPE_").to_lowercase()),
    };
    if field.label() == Label::Repeated { format!("repeated {name}") } else { name }
}

fn message(out: &mut String, it: &DescriptorProto, comments: &Comments, path: &[i32]) {
    let name = it.name();
    let _ = write!(out, "\n### {name}\n\n{}\n", about(comments, path, name));
    if !it.field.is_empty() {
        out.push_str("\n| field | type | meaning |\n| --- | --- | --- |\n");
    }
    for (nth, field) in it.field.iter().enumerate() {
        let place = [path, &[path::FIELD_METHOD_VALUE, i32::try_from(nth).unwrap()]].concat();
        let mut meaning = cell(&about(comments, &place, field.name()));
        if let (Some(of), false) = (field.oneof_index, field.proto3_optional()) {
            let _ = write!(meaning, " One of `{}`.", it.oneof_decl[usize::try_from(of).unwrap()].name());
        }
        let _ = writeln!(out, "| `{}` | {} | {meaning} |", field.name(), kind(it, field));
    }
    assert!(
        it.nested_type.iter().all(|it| it.options.as_ref().is_some_and(|it| it.map_entry())),
        "{name} has messages"
    );
    assert!(it.enum_type.is_empty(), "{name} has enums within");
}

fn values(out: &mut String, it: &EnumDescriptorProto, comments: &Comments, path: &[i32]) {
    let _ = write!(
        out,
        "\n### {}\n\n{}\n\n| value | meaning |\n| --- | --- |\n",
        it.name(),
        about(comments, path, it.name())
    );
    // Zero is what nobody has set.
    for (nth, value) in it.value.iter().enumerate().filter(|(_, value)| value.number() != 0) {
        let place = [path, &[path::FIELD_METHOD_VALUE, i32::try_from(nth).unwrap()]].concat();
        // A role is called what Apple calls it.
        let meaning = comments.get(&place).map(|text| cell(text)).unwrap_or_default();
        let _ = writeln!(out, "| `{}` = {} | {meaning} |", value.name(), value.number());
    }
}

fn file(out: &mut String, file: &FileDescriptorProto) {
    let comments = comments(file);
    let nth = |n: usize| i32::try_from(n).unwrap();
    let title = file.service.first().map_or("common", |it| it.name());
    let _ = write!(out, "\n## {title}\n");
    for (at, service) in file.service.iter().enumerate() {
        let path = [path::SERVICE, nth(at)];
        let _ = write!(out, "\n{}\n", about(&comments, &path, service.name()));
        for (at, method) in service.method.iter().enumerate() {
            let place = [&path[..], &[path::FIELD_METHOD_VALUE, nth(at)]].concat();
            let stream = |yes: bool| if yes { "stream of " } else { "" };
            let _ = write!(
                out,
                "\n### {}.{}\n\n{}{} → {}{}\n\n{}\n",
                service.name(),
                method.name(),
                stream(method.client_streaming()),
                local(method.input_type()),
                stream(method.server_streaming()),
                local(method.output_type()),
                about(&comments, &place, method.name())
            );
        }
    }
    for (at, it) in file.message_type.iter().enumerate() {
        message(out, it, &comments, &[path::MESSAGE, nth(at)]);
    }
    for (at, it) in file.enum_type.iter().enumerate() {
        values(out, it, &comments, &[path::ENUM, nth(at)]);
    }
}

#[test]
fn the_page_is_of_this_api() {
    let all = FileDescriptorSet::decode(COMMENTED).unwrap();
    let mut ours: Vec<&FileDescriptorProto> = all.file.iter().filter(|it| it.package() == "p8broker.v1").collect();
    // What clients use first, what all share last.
    ours.sort_by_key(|it| (it.service.is_empty(), !it.name().contains("token"), it.name().to_owned()));
    assert_eq!(ours.len(), 8);
    let mut out = HEAD.to_owned();
    for it in ours {
        file(&mut out, it);
    }
    agree(PAGE, &out);
}
