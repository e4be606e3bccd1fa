// Makes `dist` of `src`: `node build.mjs [FOLDER]`. The same sources always give the same bytes.

import { createHash } from "node:crypto";
import { mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";

const folder = process.argv[2] ?? "dist";
const notSources = ["dist", "node_modules"];

/** Names of all sources, in the order of their bytes. */
function sources(path) {
  const found = readdirSync(join(".", path), { withFileTypes: true }).flatMap((entry) => {
    const name = path ? `${path}/${entry.name}` : entry.name;
    if (notSources.includes(entry.name)) return [];
    return entry.isDirectory() ? sources(name) : [name];
  });
  return path ? found : found.sort();
}

/** What tells these sources from others: `page.rs` has the test that counts the same. */
function digest() {
  const hash = createHash("sha256");
  for (const name of sources("")) {
    const content = readFileSync(name);
    hash.update(`${name}\0${content.length}\0`);
    hash.update(content);
  }
  return hash.digest("hex");
}

const mark = `packetflix' page, made by \`cargo xtask ui\` of sources sha256:${digest()}`;

const bundled = await build({
  entryPoints: { page: "src/main.tsx", worker: "src/worker/main.ts" },
  bundle: true,
  minify: true,
  format: "iife",
  target: "es2022",
  charset: "utf8",
  jsx: "automatic",
  jsxImportSource: "preact",
  legalComments: "none",
  banner: { js: `/*! ${mark} */`, css: `/*! ${mark} */` },
  outdir: folder,
  write: false,
  logLevel: "warning",
});

const files = new Map(bundled.outputFiles.map((file) => [file.path.split("/").pop(), file.text]));
const html = readFileSync("src/index.html", "utf8").replace("MARK", mark);
files.set("index.html", html.replaceAll("BASE/", ""));
files.set("root.html", html.replaceAll("BASE/", "ui/"));
files.set("icon.svg", readFileSync("src/icon.svg", "utf8").replace("MARK", mark));
const licences = ["preact", "uplot"].map((name) => {
  const { version } = JSON.parse(readFileSync(`node_modules/${name}/package.json`, "utf8"));
  return `${name} ${version}\n\n${readFileSync(`node_modules/${name}/LICENSE`, "utf8").trim()}\n`;
});
files.set("licences.txt", [`${mark}\n\nWhat others have written of it:\n`, ...licences].join("\n"));

rmSync(folder, { recursive: true, force: true });
mkdirSync(folder, { recursive: true });
for (const [name, text] of files) {
  writeFileSync(join(folder, name), text);
  const packed = gzipSync(text, { level: 9 });
  // The system that it was made on.
  packed[9] = 255;
  writeFileSync(join(folder, `${name}.gz`), packed);
}
