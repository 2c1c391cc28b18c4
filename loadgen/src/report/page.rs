//! The parts that pages are made of, and the page itself: one file with all it needs, which asks nobody for anything.
//!
//! Whatever comes out of a file is text to the template, which escapes it, or JSON to the script, which puts it on
//! the page as text. The page's own policy lets no other script or style run.

use askama::Template;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::report::charts::Chart;

const UPLOT_SCRIPT: &str = include_str!("../../assets/uplot/uPlot.iife.min.js");
const UPLOT_STYLE: &str = include_str!("../../assets/uplot/uPlot.min.css");
const SCRIPT: &str = include_str!("../../assets/report.js");
const STYLE: &str = include_str!("../../assets/report.css");

/// What a page says.
#[derive(Debug, Default)]
pub struct Page {
    pub title: String,
    pub subtitle: String,
    pub passed: bool,
    /// More than one run: each check names its own.
    pub several: bool,
    /// What a reader must know before believing the rest.
    pub notices: Vec<String>,
    pub checks: Vec<Check>,
    pub tiles: Vec<Tile>,
    /// Before the charts: what these are about.
    pub leading: Vec<Table>,
    pub charts: Vec<Chart>,
    pub tables: Vec<Table>,
    /// Names and values, in groups beside each other.
    pub facts: Vec<Vec<(String, String)>>,
    pub folded: Vec<Table>,
    /// Headings and what stands under them as it is.
    pub texts: Vec<(String, String)>,
}

/// A condition, and whether it held.
#[derive(Debug)]
pub struct Check {
    pub run: String,
    pub condition: String,
    pub measured: String,
    pub passed: bool,
    pub note: Option<String>,
}

/// A figure that is seen first.
#[derive(Debug)]
pub struct Tile {
    pub name: String,
    pub value: String,
}

/// Rows and columns; the first column names the row.
#[derive(Debug, Default)]
pub struct Table {
    pub title: String,
    pub note: String,
    pub columns: Vec<String>,
    pub rows: Vec<Vec<Cell>>,
    /// Whether all columns but the first are numbers.
    pub numbers: bool,
    /// Whether paper shows it where the screen folds it.
    pub is_printed: bool,
}

impl Table {
    /// Whether any column has a name.
    fn has_names(&self) -> bool {
        self.columns.iter().any(|name| !name.is_empty())
    }
}

/// A cell, with its interval drawn under it if it has one.
#[derive(Debug)]
pub struct Cell {
    pub text: String,
    pub range: Option<Range>,
}

impl Cell {
    /// Without an interval.
    pub fn text(text: &str) -> Self {
        Self { text: text.to_owned(), range: None }
    }
}

/// Where an interval lies on a line of 100.
#[derive(Debug)]
pub struct Range {
    pub low: f64,
    pub middle: f64,
    pub high: f64,
    /// Where 1 is.
    pub one: f64,
}

impl Range {
    /// On a logarithmic line from a quarter to four times.
    pub fn of_ratio(low: f64, middle: f64, high: f64) -> Self {
        let place = |ratio: f64| ((ratio.max(1e-9).log2() + 2.0) * 25.0).clamp(0.0, 100.0).round();
        Self { low: place(low), middle: place(middle), high: place(high), one: place(1.0) }
    }
}

#[derive(Template)]
#[template(path = "report.html")]
struct Markup<'a> {
    policy: String,
    generator: &'a str,
    style: &'a str,
    script: &'a str,
    data: &'a str,
    figures: &'a [Chart],
    title: &'a str,
    subtitle: &'a str,
    passed: bool,
    several: bool,
    notices: &'a [String],
    checks: &'a [Check],
    tiles: &'a [Tile],
    leading: &'a [Table],
    tables: &'a [Table],
    facts: &'a [Vec<(String, String)>],
    folded: &'a [Table],
    texts: &'a [(String, String)],
}

impl Page {
    /// As HTML.
    pub fn render(&self) -> String {
        let (script, style) = (format!("{UPLOT_SCRIPT}\n{SCRIPT}"), format!("{UPLOT_STYLE}\n{STYLE}"));
        let data = serde_json::to_string(&self.charts).expect("charts are plain data");
        let markup = Markup {
            policy: policy(&script, &style),
            generator: env!("CARGO_PKG_VERSION"),
            style: &style,
            script: &script,
            data: &inside_script(&data),
            figures: &self.charts,
            title: &self.title,
            subtitle: &self.subtitle,
            passed: self.passed,
            several: self.several,
            notices: &self.notices,
            checks: &self.checks,
            tiles: &self.tiles,
            leading: &self.leading,
            tables: &self.tables,
            facts: &self.facts,
            folded: &self.folded,
            texts: &self.texts,
        };
        markup.render().expect("writing to a string does not fail")
    }
}

/// JSON that cannot end the element that it stands in, and still is the same JSON.
fn inside_script(json: &str) -> String {
    json.replace('<', "\\u003c").replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029")
}

/// Nothing may be fetched, and only this script and this style may run.
fn policy(script: &str, style: &str) -> String {
    let hash = |text: &str| STANDARD.encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes()));
    format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; base-uri 'none'; form-action 'none'",
        hash(script),
        hash(style)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_from_files_stays_text() {
        let evil = "</script><img src=x onerror=alert(1)>\"'&";
        let mut chart = Chart { id: "c".to_owned(), title: evil.to_owned(), ..Chart::default() };
        chart.series.push(crate::report::charts::Line::new(evil, 0, vec![]));
        let table = || Table {
            title: evil.to_owned(),
            note: evil.to_owned(),
            columns: vec![evil.to_owned()],
            rows: vec![vec![Cell::text(evil), Cell::text(evil)]],
            ..Table::default()
        };
        let page = Page {
            title: evil.to_owned(),
            subtitle: evil.to_owned(),
            several: true,
            notices: vec![evil.to_owned()],
            checks: vec![Check {
                run: evil.to_owned(),
                condition: evil.to_owned(),
                measured: evil.to_owned(),
                passed: false,
                note: Some(evil.to_owned()),
            }],
            tiles: vec![Tile { name: evil.to_owned(), value: evil.to_owned() }],
            leading: vec![table()],
            charts: vec![chart],
            tables: vec![table()],
            facts: vec![vec![(evil.to_owned(), evil.to_owned())]],
            folded: vec![table()],
            texts: vec![(evil.to_owned(), evil.to_owned())],
            ..Page::default()
        };
        let html = page.render();
        assert!(!html.contains("<img"), "markup got through");
        assert_eq!(html.matches("</script>").count(), 2);
        assert!(html.contains("&#60;img") || html.contains("&lt;img"));
    }

    #[test]
    fn a_ratio_of_one_is_in_the_middle() {
        let range = Range::of_ratio(0.0, 1.0, f64::MAX);
        assert!(range.low.abs() < 1e-9 && (range.middle - range.one).abs() < 1e-9 && (range.high - 100.0).abs() < 1e-9);
    }
}
