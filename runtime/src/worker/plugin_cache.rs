//! Where compiled plugins are kept: all commands of a user share one folder, so that a plugin that
//! `transform build` has compiled runs at once in `transform test` and in a worker.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::DataDir;

/// The folder below the cache folder of the user.
const FOLDER: &str = "trunkline/compiled-plugins";

/// The folders for compiled plugins, the preferred one first: that of the user, and that of a data
/// directory, for users without a home.
pub fn plugin_cache_dirs(data: Option<&Path>) -> Vec<PathBuf> {
    let data = data.and_then(DataDir::plugin_cache);
    user_cache_dir().map(|cache| cache.join(FOLDER)).into_iter().chain(data).collect()
}

/// The cache folder of the user.
pub fn user_cache_dir() -> Option<PathBuf> {
    user_cache(std::env::var_os("XDG_CACHE_HOME"), std::env::var_os("HOME"))
}

/// The cache folder of the user, by the XDG Base Directory Specification: a relative path counts as
/// none.
fn user_cache(xdg_cache_home: Option<OsString>, home: Option<OsString>) -> Option<PathBuf> {
    let absolute = |path: Option<OsString>| path.map(PathBuf::from).filter(|path| path.is_absolute());
    absolute(xdg_cache_home).or_else(|| absolute(home).map(|home| home.join(".cache")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_of_the_user_is_the_one_of_the_xdg_specification() {
        let cache = |xdg: Option<&str>, home: Option<&str>| {
            user_cache(xdg.map(OsString::from), home.map(OsString::from)).map(|path| path.display().to_string())
        };
        assert_eq!(cache(Some("/x"), Some("/home/ann")).as_deref(), Some("/x"));
        assert_eq!(cache(Some("x"), Some("/home/ann")).as_deref(), Some("/home/ann/.cache"));
        assert_eq!(cache(Some(""), Some("/home/ann")).as_deref(), Some("/home/ann/.cache"));
        assert_eq!(cache(None, None), None);
    }
}
