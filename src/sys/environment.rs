//! Variables of this process's environment.

#![allow(unsafe_code)]

use std::sync::OnceLock;

/// The variables that were removed.
static EMPTY: OnceLock<Vec<&'static str>> = OnceLock::new();

/// Removes those of these variables that are empty, so that an empty variable counts as unset everywhere. Must be called
/// before anything else, while the process has one thread.
pub fn forget_empty(names: &[&'static str]) {
    let is_empty = |name: &&&str| std::env::var_os(name).is_some_and(|value| value.is_empty());
    let empty: Vec<&'static str> = names.iter().filter(is_empty).copied().collect();
    for name in EMPTY.get_or_init(|| empty) {
        // SAFETY: there is one thread, so the environment is not read at the same time.
        unsafe { std::env::remove_var(name) };
    }
}

/// A variable as the caller set it, even if it was empty.
pub fn given(name: &str) -> Option<String> {
    let was_empty = EMPTY.get().is_some_and(|names| names.contains(&name));
    std::env::var(name).ok().or_else(|| was_empty.then(String::new))
}
