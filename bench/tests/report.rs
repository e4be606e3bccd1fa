//! Reports of benchmarks: what is made of figures, and every form of them.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, ensure};
use packetflix_bench::report::{
    FigureKind, Machine, Report, Scenario, Spread, markdown, number,
    output::{keep, publish},
    plots, replace_results, text,
};

const CPU: FigureKind = FigureKind {
    name: "CPU per million packets",
    unit: "s",
    is_less_better: Some(true),
    is_ratio_told: true,
};

const SENT: FigureKind = FigureKind {
    name: "sent",
    unit: "packets",
    is_less_better: None,
    is_ratio_told: false,
};

const LOST: FigureKind = FigureKind {
    name: "lost",
    unit: "%",
    is_less_better: Some(true),
    is_ratio_told: false,
};

fn machine() -> Machine {
    Machine {
        kernel: "6.12.0_test".to_owned(),
        cpus: 2,
        memory_mib: 3900,
        version: "0.1.0".to_owned(),
        date: "2026-01-02".to_owned(),
    }
}

fn report(scenarios: Vec<Scenario>) -> Report {
    Report {
        machine: machine(),
        scenarios,
    }
}

/// Three rounds of two contestants on a machine that gets slower and slower.
fn scenario(name: &str) -> Scenario {
    let mut scenario = Scenario::new(
        name,
        "64 bytes | full <speed> & \"more\"",
        "Sent & counted.",
        Some("dumpcap"),
    );
    for (ours, theirs) in [(1.0, 2.0), (3.0, 5.0), (6.0, 24.0)] {
        scenario.record("packetflix", &SENT, 1_000_000.0);
        scenario.record("packetflix", &CPU, ours);
        scenario.record("dumpcap", &SENT, 1_000_000.0);
        scenario.record("dumpcap", &CPU, theirs);
    }
    scenario
}

fn spread(values: &[f64]) -> Option<(f64, f64, f64)> {
    Spread::of(values.iter().copied()).map(|spread| (spread.median, spread.min, spread.max))
}

#[test]
fn spread_has_the_middle_and_the_ends() {
    assert_eq!(spread(&[]), None);
    assert_eq!(spread(&[f64::NAN]), None);
    assert_eq!(spread(&[4.0]), Some((4.0, 4.0, 4.0)));
    assert_eq!(spread(&[9.0, 1.0, 2.0]), Some((2.0, 1.0, 9.0)));
    assert_eq!(spread(&[9.0, 1.0, 2.0, 4.0]), Some((3.0, 1.0, 9.0)));
    assert_eq!(
        spread(&[f64::INFINITY, 3.0, f64::NAN, 1.0]),
        Some((2.0, 1.0, 3.0))
    );
}

#[test]
fn ratios_are_of_the_same_round() -> anyhow::Result<()> {
    let scenario = scenario("rate-1000");
    assert_eq!(scenario.rounds, 3);
    let figure = scenario
        .figures
        .iter()
        .find(|figure| figure.name == CPU.name)
        .context("no figure")?;
    // The medians are 3 and 5, but no round had that ratio in the middle by that.
    let ratio = figure.ratio("packetflix", "dumpcap").context("no ratio")?;
    assert_eq!((ratio.median, ratio.min, ratio.max), (0.5, 0.25, 0.6));
    Ok(())
}

#[test]
fn round_without_a_value_spoils_no_pair() -> anyhow::Result<()> {
    let mut scenario = Scenario::new("one", "One", "", Some("b"));
    for (a, b) in [(1.0, 10.0), (f64::NAN, 1.0), (2.0, 0.0), (3.0, 10.0)] {
        scenario.record("a", &CPU, a);
        scenario.record("b", &CPU, b);
    }
    let before = report(vec![scenario]);
    let json = serde_json::to_string(&before)?;
    ensure!(json.contains("[1.0,null,2.0,3.0]"), "{json}");
    let after: Report = serde_json::from_str(&json)?;
    let ratio = after.scenarios[0].figures[0]
        .ratio("a", "b")
        .context("no ratio")?;
    assert_eq!((ratio.median, ratio.min, ratio.max), (0.2, 0.1, 0.3));
    Ok(())
}

#[test]
fn numbers_have_three_digits_that_count() {
    for (value, text) in [
        (0.0, "0"),
        (3.0, "3"),
        (0.5, "0.5"),
        (0.012_345, "0.0123"),
        (1.2345, "1.23"),
        (12.345, "12.3"),
        (123.45, "123"),
        (1_234_567.8, "1,234,568"),
        (-1_000.0, "-1,000"),
        (100_000.0, "100,000"),
        (0.000_000_01, "0"),
    ] {
        assert_eq!(number(value), text);
    }
}

#[test]
fn text_has_a_row_for_each_figure_and_ratio() {
    let text = text(&scenario("rate-1000"));
    let rows: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
    assert_eq!(rows[0], "rate-1000: 64 bytes | full <speed> & \"more\"");
    assert_eq!(
        rows[1],
        "                           unit         packetflix    dumpcap"
    );
    assert_eq!(
        rows[2],
        "sent                       packets       1,000,000  1,000,000"
    );
    assert_eq!(
        rows[3],
        "CPU per million packets ↓  s               3 (1–6)   5 (2–24)"
    );
    assert_eq!(
        rows[4],
        "… as a ratio to dumpcap    ×        0.5 (0.25–0.6)          1"
    );
    assert_eq!(
        rows[5],
        "Rounds: 3; each cell is the median (the least–the most). Sent & counted."
    );
}

#[test]
fn contestant_without_a_figure_has_an_empty_cell() {
    let mut scenario = scenario("rate-1000");
    scenario.record("nobody", &SENT, 5.0);
    let text = text(&scenario);
    let of_cpu = text.lines().find(|line| line.starts_with("CPU"));
    assert!(of_cpu.is_some_and(|line| line.ends_with('–')), "{text}");
}

#[test]
fn merging_keeps_what_was_not_measured_anew() {
    let mut before = report(vec![scenario("one"), scenario("two"), scenario("three")]);
    before.machine.date = "2025-01-01".to_owned();
    let mut two = scenario("two");
    two.title = "Anew".to_owned();
    let mut after = report(vec![scenario("four"), two]);
    assert!(after.merge(before));
    let names: Vec<(&str, bool)> = after
        .scenarios
        .iter()
        .map(|scenario| (scenario.name.as_str(), scenario.title == "Anew"))
        .collect();
    assert_eq!(
        names,
        [("one", false), ("two", true), ("three", false), ("four", false)]
    );
    assert_eq!(after.machine, machine());
}

#[test]
fn figures_of_another_machine_are_not_mixed_in() {
    let mut before = report(vec![scenario("one")]);
    before.machine.kernel = "5.10".to_owned();
    let mut after = report(vec![scenario("two")]);
    assert!(!after.merge(before));
    assert_eq!(after.scenarios.len(), 1);
}

#[test]
fn markdown_has_tables_of_whole_rows() {
    let markdown = markdown(&report(vec![scenario("rate-1000")]), "benchmarks");
    assert!(markdown.contains("Linux 6.12.0\\_test, 2 CPUs"), "{markdown}");
    assert!(
        markdown.contains("64 bytes \\| full &lt;speed&gt; &amp; \"more\""),
        "{markdown}"
    );
    assert!(
        markdown.contains("](benchmarks/rate-cpu-per-million-packets.svg)"),
        "{markdown}"
    );
    let table: Vec<&str> = markdown.lines().filter(|line| line.starts_with('|')).collect();
    assert_eq!(
        table,
        [
            "|  | unit | packetflix | dumpcap |",
            "|---|---|---:|---:|",
            "| sent | packets | 1,000,000 | 1,000,000 |",
            "| CPU per million packets ↓ | s | 3 (1–6) | 5 (2–24) |",
            "| … as a ratio to dumpcap | × | 0.5 (0.25–0.6) | 1 |",
        ]
    );
}

#[test]
fn results_are_replaced_between_the_markers() -> anyhow::Result<()> {
    let page = "a\n<!-- results: begin -->\nold\n<!-- results: end -->\nz\n";
    let once = replace_results(page, "new")?;
    assert_eq!(
        once,
        "a\n<!-- results: begin -->\n\nnew\n\n<!-- results: end -->\nz\n"
    );
    assert_eq!(replace_results(&once, "new")?, once);
    for wrong in [
        "",
        "<!-- results: begin -->",
        "<!-- results: end --><!-- results: begin -->",
        "<!-- results: begin --><!-- results: end --><!-- results: begin -->",
    ] {
        assert!(replace_results(wrong, "new").is_err(), "{wrong}");
    }
    Ok(())
}

/// A tag's name; what it begins or ends.
fn tags(svg: &str) -> anyhow::Result<()> {
    let mut open = Vec::new();
    for part in svg.split('<').skip(1) {
        let (tag, text) = part.split_once('>').context("a tag without end")?;
        ensure!(
            tag.matches('"').count().is_multiple_of(2),
            "an attribute without end: {tag}"
        );
        for text in [tag, text] {
            for entity in text.split('&').skip(1) {
                let known = ["amp;", "lt;", "gt;", "quot;", "apos;"];
                ensure!(known.iter().any(|name| entity.starts_with(name)), "&{entity}");
            }
        }
        let name = tag.split([' ', '/']).find(|word| !word.is_empty());
        let name = name.context("a tag without name")?;
        if tag.starts_with('/') {
            ensure!(open.pop() == Some(name), "{name} ends too soon");
        } else if !tag.ends_with('/') {
            open.push(name);
        }
    }
    ensure!(open.is_empty(), "{open:?} do not end");
    Ok(())
}

#[test]
fn plots_are_well_formed_and_escaped() -> anyhow::Result<()> {
    let plots = plots(&report(vec![
        scenario("rate-1000"),
        scenario("rate-10000"),
        scenario("other"),
    ]));
    let names: Vec<String> = plots
        .iter()
        .map(packetflix_bench::report::Plot::file_name)
        .collect();
    assert_eq!(
        names,
        [
            "rate-cpu-per-million-packets.svg",
            "other-cpu-per-million-packets.svg"
        ]
    );
    assert_eq!(plots[0].parts.len(), 2);
    for plot in &plots {
        let svg = plot.svg();
        tags(&svg).with_context(|| svg.clone())?;
        ensure!(
            svg.contains("64 bytes | full &lt;speed&gt; &amp; &quot;more&quot;"),
            "{svg}"
        );
        ensure!(svg.contains("prefers-color-scheme:dark"), "{svg}");
        ensure!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        // One for each contestant and part, and the paper.
        assert_eq!(svg.matches("<rect ").count(), 2 * plot.parts.len() + 1);
    }
    Ok(())
}

#[test]
fn plot_of_much_and_little_is_logarithmic_unless_there_is_a_zero() -> anyhow::Result<()> {
    for (least, is_logarithmic) in [(0.01, true), (0.0, false), (20.0, false)] {
        let mut scenario = Scenario::new("one", "One", "", None);
        scenario.record("a", &LOST, least);
        scenario.record("b", &LOST, 90.0);
        let plots = plots(&report(vec![scenario]));
        let svg = plots.first().context("no plot")?.svg();
        tags(&svg)?;
        assert_eq!(svg.contains("logarithmic"), is_logarithmic, "{least}");
    }
    Ok(())
}

#[test]
fn nothing_is_drawn_where_all_is_zero() {
    let mut scenario = Scenario::new("one", "One", "", None);
    scenario.record("a", &LOST, 0.0);
    assert!(plots(&report(vec![scenario])).is_empty());
}

/// A folder that is removed when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("packetflix-report-{}-{name}", std::process::id()));
        fs::create_dir_all(path.join("docs"))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn publishing_writes_figures_plots_and_the_page() -> anyhow::Result<()> {
    let folder = Folder::new("publish")?;
    let page = folder.0.join("docs/benchmarks.md");
    fs::write(
        &page,
        "Before.\n<!-- results: begin -->\n<!-- results: end -->\nAfter.\n",
    )?;
    publish(&report(vec![scenario("one")]), &folder.0)?;
    fs::write(folder.0.join("docs/benchmarks/stale.svg"), "")?;
    publish(&report(vec![scenario("two")]), &folder.0)?;

    let json = fs::read(folder.0.join("docs/benchmarks/results.json"))?;
    let all: Report = serde_json::from_slice(&json)?;
    assert_eq!(all, report(vec![scenario("one"), scenario("two")]));
    let page = fs::read_to_string(page)?;
    ensure!(
        page.starts_with("Before.\n") && page.ends_with("After.\n"),
        "{page}"
    );
    ensure!(page.contains("### `one`") && page.contains("### `two`"), "{page}");
    let mut plots: Vec<String> = fs::read_dir(folder.0.join("docs/benchmarks"))?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<anyhow::Result<_>>()?;
    plots.sort();
    assert_eq!(
        plots,
        [
            "one-cpu-per-million-packets.svg",
            "results.json",
            "two-cpu-per-million-packets.svg"
        ]
    );
    Ok(())
}

#[test]
fn unpublished_results_are_kept_in_target() -> anyhow::Result<()> {
    let folder = Folder::new("keep")?;
    keep(&report(vec![scenario("one")]), &folder.0)?;
    let file = keep(&report(vec![scenario("two")]), &folder.0)?;
    assert_eq!(file, folder.0.join("target/bench/results.json"));
    let all: Report = serde_json::from_slice(&fs::read(file)?)?;
    assert_eq!(all.scenarios.len(), 2);
    Ok(())
}
