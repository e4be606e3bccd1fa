//! Errors say what failed, and leave it to their source to say why: whoever prints an error with what caused it would otherwise
//! print that twice.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use proc_macro2::TokenTree;
use syn::{
    Attribute, Field, Fields, Ident, ItemStruct, Variant,
    visit::{self, Visit},
};

/// Finds sentences of thiserror's that have their source in them.
#[derive(Default)]
struct Repetitions(Vec<String>);

impl<'ast> Visit<'ast> for Repetitions {
    fn visit_variant(&mut self, variant: &'ast Variant) {
        self.look_at(&variant.ident, &variant.attrs, &variant.fields);
        visit::visit_variant(self, variant);
    }

    fn visit_item_struct(&mut self, item: &'ast ItemStruct) {
        self.look_at(&item.ident, &item.attrs, &item.fields);
        visit::visit_item_struct(self, item);
    }
}

impl Repetitions {
    fn look_at(&mut self, error: &Ident, attributes: &[Attribute], fields: &Fields) {
        let sentence = attributes.iter().find(|one| one.path().is_ident("error"));
        let Some(source) = source(fields) else { return };
        if sentence.is_some_and(|sentence| has(sentence, &source)) {
            self.0.push(format!("{error} has its {source} in its sentence"));
        }
    }

    fn in_text(text: &str) -> anyhow::Result<Vec<String>> {
        let mut found = Self::default();
        found.visit_file(&syn::parse_file(text)?);
        Ok(found.0)
    }
}

/// The name, or place, of the field that is the source.
fn source(fields: &Fields) -> Option<String> {
    let is_marked = |attribute: &Attribute| {
        ["source", "from"]
            .iter()
            .any(|mark| attribute.path().is_ident(mark))
    };
    let is_source = |field: &Field| {
        field.attrs.iter().any(is_marked) || field.ident.as_ref().is_some_and(|name| name == "source")
    };
    let place = fields.iter().position(is_source)?;
    let name = fields.iter().nth(place)?.ident.as_ref();
    Some(name.map_or_else(|| place.to_string(), ToString::to_string))
}

/// Whether a sentence has a field in it, be it by its name or as `.name` among what follows the text.
fn has(sentence: &Attribute, field: &str) -> bool {
    let Ok(list) = sentence.meta.require_list() else {
        return false;
    };
    let mut tokens = list.tokens.clone().into_iter();
    let Some(TokenTree::Literal(text)) = tokens.next() else {
        // It is transparent.
        return false;
    };
    let others: Vec<String> = tokens.map(|token| token.to_string()).collect();
    let text = text.to_string().replace("{{", "");
    let mut places = text.split('{').skip(1);
    places.any(|place| place.split(['}', ':']).next() == Some(field))
        || others.windows(2).any(|pair| pair == [".", field])
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            sources(&path, found)?;
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push(path);
        }
    }
    Ok(())
}

#[test]
fn no_error_repeats_its_source() -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut files = Vec::new();
    for entry in fs::read_dir(&root)? {
        let folder = entry?.path();
        if folder.join("Cargo.toml").is_file() {
            sources(&folder.join("src"), &mut files)?;
        }
    }
    let mut repetitions = Vec::new();
    for file in &files {
        let found = Repetitions::in_text(&fs::read_to_string(file)?);
        let found = found.with_context(|| file.display().to_string())?;
        repetitions.extend(
            found
                .into_iter()
                .map(|found| format!("{}: {found}", file.display())),
        );
    }
    assert!(files.len() > 150, "{} files", files.len());
    assert!(repetitions.is_empty(), "{repetitions:#?}");
    Ok(())
}

#[test]
fn repetitions_are_found() -> anyhow::Result<()> {
    for (error, is_repetition) in [
        ("#[error(\"no: {0}\")] struct E(#[source] io::Error);", true),
        (
            "#[error(\"no: {0}\")] struct E(String, #[source] io::Error);",
            false,
        ),
        (
            "#[error(\"no: {1:?}\")] struct E(String, #[from] io::Error);",
            true,
        ),
        ("#[error(\"no: {source}\")] struct E { source: io::Error }", true),
        (
            "#[error(\"no: {error}\")] struct E { #[source] error: io::Error }",
            true,
        ),
        ("#[error(\"no: {}\", .0)] struct E(#[source] io::Error);", true),
        (
            "#[error(\"no: {}\", .source.kind())] struct E { source: io::Error }",
            true,
        ),
        (
            "#[error(\"no: {{source}}\")] struct E { source: io::Error }",
            false,
        ),
        (
            "#[error(\"no {what}\")] struct E { what: String, source: io::Error }",
            false,
        ),
        ("#[error(\"no: {0}\")] struct E(String);", false),
        ("#[error(transparent)] struct E(#[from] io::Error);", false),
        ("enum E { #[error(\"no: {0}\")] One(#[from] io::Error) }", true),
        (
            "mod inner { enum E { #[error(\"no: {0}\")] One(#[from] io::Error) } }",
            true,
        ),
    ] {
        let found = Repetitions::in_text(error)?;
        assert_eq!(!found.is_empty(), is_repetition, "{error}: {found:?}");
    }
    Ok(())
}
