//! The page for browsers: what `cargo xtask ui` made of `page/src`, as it is served.
//!
//! All of it is in the program, so that it needs no other host, and building the program needs no Node.

use std::sync::LazyLock;

use ring::digest::{SHA256, digest};

/// What the page may do (Content Security Policy Level 3): load from here what is listed below, and connect to here. No script
/// runs that is not a file of ours, whatever a container is called.
pub(crate) const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
                                 connect-src 'self'; worker-src 'self'; base-uri 'none'; form-action 'none'; \
                                 frame-ancestors 'none'";

/// Below this, everything is the page's.
const FOLDER: &str = "/ui/";

/// A file of the page.
pub(crate) struct File {
    name: &'static str,
    pub(crate) media_type: &'static str,
    pub(crate) plain: &'static [u8],
    /// The same, compressed (RFC 1952).
    pub(crate) gzip: &'static [u8],
    /// What tells one version from another, in quotation marks (RFC 9110, section 8.8.3).
    pub(crate) tag: LazyLock<String>,
}

macro_rules! file {
    ($name:literal, $media_type:literal) => {
        File {
            name: $name,
            media_type: $media_type,
            plain: include_bytes!(concat!("../page/dist/", $name)),
            gzip: include_bytes!(concat!("../page/dist/", $name, ".gz")),
            tag: LazyLock::new(|| tag_of(include_bytes!(concat!("../page/dist/", $name)))),
        }
    };
}

/// The page at `/`, whose files are in the folder.
static ROOT: File = file!("root.html", "text/html; charset=utf-8");

static FILES: [File; 6] = [
    file!("index.html", "text/html; charset=utf-8"),
    file!("page.css", "text/css; charset=utf-8"),
    file!("page.js", "text/javascript; charset=utf-8"),
    file!("worker.js", "text/javascript; charset=utf-8"),
    file!("icon.svg", "image/svg+xml"),
    file!("licences.txt", "text/plain; charset=utf-8"),
];

/// The file at a path, if there is one.
pub(crate) fn file(path: &str) -> Option<&'static File> {
    match path.strip_prefix(FOLDER) {
        Some("") => FILES.first(),
        Some(name) => FILES.iter().find(|file| file.name == name),
        None => (path == "/").then_some(&ROOT),
    }
}

/// Whether whatever is at a path is the page's, even where `/` is another's.
pub(crate) fn has(path: &str) -> bool {
    path.starts_with(FOLDER) || path == FOLDER.trim_end_matches('/')
}

fn tag_of(content: &[u8]) -> String {
    let digest = digest(&SHA256, content);
    let digits = digest.as_ref().iter().take(16).map(|byte| format!("{byte:02x}"));
    digits.collect()
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        path::{Path, PathBuf},
    };

    use ring::digest::Context;

    use super::*;

    /// What is not made from the sources, or is made of them.
    const NO_SOURCES: [&str; 2] = ["dist", "node_modules"];

    fn sources(folder: &Path) -> Vec<PathBuf> {
        let mut all = Vec::new();
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            if NO_SOURCES.contains(&&name[..]) {
                continue;
            }
            match entry.file_type().unwrap().is_dir() {
                true => all.extend(sources(&entry.path())),
                false => all.push(entry.path()),
            }
        }
        all
    }

    /// As `page/build.mjs` counts it.
    fn digest_of_sources() -> String {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("page");
        let mut files: Vec<(String, PathBuf)> = sources(&folder)
            .into_iter()
            .map(|path| {
                (
                    path.strip_prefix(&folder).unwrap().to_str().unwrap().to_owned(),
                    path,
                )
            })
            .collect();
        files.sort();
        let mut context = Context::new(&SHA256);
        for (name, path) in files {
            let content = fs::read(path).unwrap();
            context.update(format!("{name}\0{}\0", content.len()).as_bytes());
            context.update(&content);
        }
        let digest = context.finish();
        digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn the_bundle_is_made_of_these_sources() {
        let digest = digest_of_sources();
        for file in FILES.iter().chain([&ROOT]) {
            let text = str::from_utf8(file.plain).unwrap();
            let (name, first) = (file.name, text.lines().find(|line| line.contains("sha256:")));
            assert!(
                first.is_some_and(|line| line.contains(&digest)),
                "{name} is made of other sources than there are ({digest}): cargo xtask ui"
            );
        }
    }

    #[test]
    fn the_page_is_small() {
        let sent: usize = FILES.iter().map(|file| file.gzip.len()).sum();
        assert!(sent < 300 << 10, "{sent}");
    }

    #[test]
    fn nothing_else_is_served() {
        for path in ["/", "/ui/", "/ui/page.js", "/ui/licences.txt"] {
            assert!(file(path).is_some(), "{path}");
        }
        for path in [
            "",
            "/ui",
            "/ui/x",
            "/ui/../page.js",
            "/ui/page.js/",
            "/page.js",
            "/uix",
        ] {
            assert!(file(path).is_none(), "{path}");
        }
        assert!(has("/ui") && has("/ui/x") && !has("/uix") && !has("/"));
    }

    #[test]
    fn the_policy_is_strict() {
        assert!(!POLICY.contains("unsafe") && !POLICY.contains('*') && !POLICY.contains(':'));
    }
}
