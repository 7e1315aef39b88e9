//! [`Labels`]: what the options `labels`, `host` and `kubernetes` add to the records of a file.

use std::collections::BTreeMap;
use std::path::Path;

use arrow::datatypes::{DataType, Field, Fields};
use trunkline_connector::json::{key_is, members, write_string};

/// The field of the record's value.
pub(crate) const LABELS: &str = "labels";
/// Members of [`LABELS`], and template variables.
const HOST: &str = "host";
const KUBERNETES: [&str; 3] = ["namespace", "pod", "container"];
/// Headers of the record, for templates.
const HEADERS: [(&str, &str); 4] = [
    (HOST, "trunkline.host"),
    ("namespace", "trunkline.namespace"),
    ("pod", "trunkline.pod"),
    ("container", "trunkline.container"),
];

/// The configured labels.
#[derive(Debug, Clone, Default)]
pub struct Labels {
    /// Names and values that all records have.
    pub(crate) fixed: BTreeMap<String, String>,
    /// The name of the machine, if it is added.
    pub(crate) host: Option<String>,
    /// The names in the paths of containers' logs are added.
    pub(crate) kubernetes: bool,
}

impl Labels {
    /// No label is configured.
    pub(crate) fn is_empty(&self) -> bool {
        self.fixed.is_empty() && self.host.is_none() && !self.kubernetes
    }

    /// The template variables: the path, and the labels that are headers.
    pub(crate) fn template_variables(&self) -> &'static [&'static str] {
        match (self.host.is_some(), self.kubernetes) {
            (false, false) => &["path"],
            (true, false) => &["path", HOST],
            (false, true) => &["path", "namespace", "pod", "container"],
            (true, true) => &["path", HOST, "namespace", "pod", "container"],
        }
    }

    /// The column.
    pub(crate) fn field(&self) -> Option<Field> {
        let fields: Vec<Field> = self.names().map(|name| Field::new(name, DataType::Utf8, true)).collect();
        (!fields.is_empty()).then(|| Field::new(LABELS, DataType::Struct(Fields::from(fields)), true))
    }

    /// The names of all labels, in the order of the record's value.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        let host = self.host.iter().map(|_| HOST);
        let kubernetes = KUBERNETES.into_iter().filter(|_| self.kubernetes);
        self.fixed.keys().map(String::as_str).chain(host).chain(kubernetes)
    }

    /// The labels of a file's records: `,"labels":{..}`; empty if there are none.
    pub(crate) fn json(&self, names: Option<&ContainerNames<'_>>) -> Vec<u8> {
        let mut out = Vec::new();
        for name in self.names() {
            out.extend_from_slice(if out.is_empty() { b",\"labels\":{" } else { b"," });
            write_string(&mut out, name);
            out.push(b':');
            match self.value(name, names) {
                Some(value) => write_string(&mut out, value),
                None => out.extend_from_slice(b"null"),
            }
        }
        if !out.is_empty() {
            out.push(b'}');
        }
        out
    }

    /// The headers of a file's records.
    pub(crate) fn headers<'a>(&'a self, names: Option<&ContainerNames<'a>>) -> Vec<(&'static str, &'a str)> {
        let of = |(name, header): (&'static str, &'static str)| {
            let is_fixed = self.fixed.contains_key(name);
            self.value(name, names).filter(|_| !is_fixed).map(|value| (header, value))
        };
        HEADERS.into_iter().filter_map(of).collect()
    }

    fn value<'a>(&'a self, name: &str, names: Option<&ContainerNames<'a>>) -> Option<&'a str> {
        if let Some(value) = self.fixed.get(name) {
            return Some(value);
        }
        let names = names.filter(|_| self.kubernetes);
        match name {
            HOST => self.host.as_deref(),
            "namespace" => names.map(|names| names.namespace),
            "pod" => names.map(|names| names.pod),
            "container" => names.map(|names| names.container),
            _ => None,
        }
    }
}

/// Adds encoded labels to the object that begins at `start`. A line that has a field of this name
/// keeps it, and gets no labels.
pub(crate) fn add_labels(labels: &[u8], out: &mut Vec<u8>, start: usize) {
    let may_have = memchr::memmem::find(&out[start..], b"labels").is_some();
    let has = may_have && members(&out[start..]).map_while(Result::ok).any(|member| key_is(member.key, LABELS));
    if has || labels.is_empty() || out.pop() != Some(b'}') {
        return;
    }
    let is_first = out[start..].iter().all(|byte| matches!(byte, b'{' | b' ' | b'\t'));
    out.extend_from_slice(&labels[usize::from(is_first)..]);
    out.push(b'}');
}

/// The names in the path of a container's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ContainerNames<'a> {
    namespace: &'a str,
    pod: &'a str,
    container: &'a str,
}

impl<'a> ContainerNames<'a> {
    /// `/var/log/containers/POD_NAMESPACE_CONTAINER-ID.log` or
    /// `/var/log/pods/NAMESPACE_POD_UID/CONTAINER/0.log`. Names in Kubernetes have no underscores.
    pub(crate) fn of(path: &'a str) -> Option<Self> {
        let path = Path::new(path);
        let text = |part: Option<&'a std::ffi::OsStr>| part.and_then(|part| part.to_str());
        let file = text(path.file_name())?;
        let parent = path.parent()?;
        let folder = text(parent.file_name())?;
        let names = if folder == "containers" {
            let mut parts = file.splitn(3, '_');
            let (pod, namespace, rest) = (parts.next()?, parts.next()?, parts.next()?);
            let (container, id) = rest.rsplit_once('-')?;
            let id = id.split('.').next()?;
            let is_id = id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
            Self { namespace, pod, container: Some(container).filter(|_| is_id)? }
        } else {
            let pod_folder = parent.parent()?;
            if text(pod_folder.parent()?.file_name())? != "pods" {
                return None;
            }
            let mut parts = text(pod_folder.file_name())?.splitn(3, '_');
            let (namespace, pod) = (parts.next()?, parts.next()?);
            parts.next()?;
            Self { namespace, pod, container: folder }
        };
        let complete = ![names.namespace, names.pod, names.container].contains(&"");
        complete.then_some(names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_in_the_paths_of_containers() {
        let id = "0123456789abcdef".repeat(4);
        let names = Some(ContainerNames { namespace: "shop", pod: "web-1", container: "app-main" });
        for path in [
            format!("/var/log/containers/web-1_shop_app-main-{id}.log"),
            "/var/log/pods/shop_web-1_5f3c/app-main/0.log".to_owned(),
            "/var/log/pods/shop_web-1_5f3c/app-main/0.log.20260301-000000.gz".to_owned(),
        ] {
            assert_eq!(ContainerNames::of(&path), names, "{path}");
        }
        for path in
            ["/var/log/containers/a.log", "/var/log/containers/a_b_c-12.log", "/var/log/pods/a/0.log", "a.log", "/"]
        {
            assert_eq!(ContainerNames::of(path), None, "{path}");
        }
    }

    #[test]
    fn labels_are_added_to_values_that_have_none() {
        let fixed = BTreeMap::from([("env".to_owned(), "a\"b".to_owned())]);
        let labels = Labels { fixed, host: Some("web-3".to_owned()), kubernetes: true };
        let json = labels.json(None);
        for (value, expected) in [
            (
                r#"{"a":1}"#,
                r#"{"a":1,"labels":{"env":"a\"b","host":"web-3","namespace":null,"pod":null,"container":null}}"#,
            ),
            ("{ }", r#"{ "labels":{"env":"a\"b","host":"web-3","namespace":null,"pod":null,"container":null}}"#),
            (r#"{"labels":1}"#, r#"{"labels":1}"#),
        ] {
            let mut out = format!("x{value}").into_bytes();
            add_labels(&json, &mut out, 1);
            assert_eq!(String::from_utf8(out).unwrap(), format!("x{expected}"));
        }
        let mut out = br#"{"labels_of":1}"#.to_vec();
        add_labels(&json, &mut out, 0);
        assert!(out.ends_with(b"}}"));
        let names = ContainerNames::of("/var/log/pods/shop_web-1_5f3c/app/0.log");
        assert_eq!(labels.headers(names.as_ref()).len(), 4);
        assert_eq!(labels.field().unwrap().name(), LABELS);
        assert!(Labels::default().json(names.as_ref()).is_empty());
    }
}
