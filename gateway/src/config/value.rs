//! The types that a setting may have, each read from text.

use std::net::SocketAddr;
use std::path::PathBuf;

/// A setting's type: what it may be, and how TOML writes it.
pub trait Value: Sized {
    /// The value, or nothing if `text` is not one.
    fn parse(text: &str) -> Option<Self>;
    /// What it may be, to follow "it must be".
    fn expected() -> String;
    /// `text` as TOML writes it.
    fn toml(text: &str) -> String;
}

/// A number within bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounded<const MIN: u64, const MAX: u64>(u64);

impl<const MIN: u64, const MAX: u64> Bounded<MIN, MAX> {
    /// The number.
    pub fn get(self) -> u64 {
        self.0
    }
}

/// Texts, separated by commas in the environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct List(Vec<String>);

impl List {
    /// The texts.
    pub fn get(&self) -> &[String] {
        &self.0
    }
}

/// A text that may be left empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MaybeText(Option<String>);

impl MaybeText {
    /// The text, if there is one.
    pub fn get(&self) -> Option<&str> {
        self.0.as_deref()
    }
}

impl<const MIN: u64, const MAX: u64> Value for Bounded<MIN, MAX> {
    fn parse(text: &str) -> Option<Self> {
        text.parse().ok().filter(|number| (MIN..=MAX).contains(number)).map(Self)
    }
    fn expected() -> String {
        format!("a whole number from {MIN} to {MAX}")
    }
    fn toml(text: &str) -> String {
        text.to_owned()
    }
}

impl Value for bool {
    fn parse(text: &str) -> Option<Self> {
        text.parse().ok()
    }
    fn expected() -> String {
        "`true` or `false`".to_owned()
    }
    fn toml(text: &str) -> String {
        text.to_owned()
    }
}

impl Value for SocketAddr {
    fn parse(text: &str) -> Option<Self> {
        text.parse().ok()
    }
    fn expected() -> String {
        "an address and a port, like 127.0.0.1:8800 or [::1]:8800".to_owned()
    }
    fn toml(text: &str) -> String {
        quoted(text)
    }
}

impl Value for PathBuf {
    fn parse(text: &str) -> Option<Self> {
        (!text.is_empty()).then(|| text.into())
    }
    fn expected() -> String {
        "a path".to_owned()
    }
    fn toml(text: &str) -> String {
        quoted(text)
    }
}

impl Value for String {
    fn parse(text: &str) -> Option<Self> {
        (!text.is_empty() && text.len() <= 256).then(|| text.to_owned())
    }
    fn expected() -> String {
        "a text of at most 256 bytes, not empty".to_owned()
    }
    fn toml(text: &str) -> String {
        quoted(text)
    }
}

impl Value for MaybeText {
    fn parse(text: &str) -> Option<Self> {
        Some(Self((!text.is_empty()).then(|| text.to_owned())))
    }
    fn expected() -> String {
        "a text, or empty".to_owned()
    }
    fn toml(text: &str) -> String {
        quoted(text)
    }
}

impl Value for List {
    fn parse(text: &str) -> Option<Self> {
        Some(Self(text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect()))
    }
    fn expected() -> String {
        "a list of texts".to_owned()
    }
    fn toml(text: &str) -> String {
        let items = Self::parse(text).map(|list| list.0).unwrap_or_default();
        format!("[{}]", items.iter().map(|item| quoted(item)).collect::<Vec<_>>().join(", "))
    }
}

/// `text` as a TOML string.
pub(super) fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// The text of a TOML value as the environment would write it.
pub(super) fn text_of(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Boolean(flag) => Some(flag.to_string()),
        toml::Value::Array(items) => {
            let items: Option<Vec<_>> = items.iter().map(toml::Value::as_str).collect();
            Some(items?.join(","))
        }
        toml::Value::Float(_) | toml::Value::Datetime(_) | toml::Value::Table(_) => None,
    }
}
