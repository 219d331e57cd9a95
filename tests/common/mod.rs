//! Where tests keep the real model: one download for all of them, apart from what the user has. Knows no test.

use socius::{
    common::{Home, Silent},
    fetch::{self, LocalModel},
};
use std::path::PathBuf;

/// `$SOCIUS_TEST_HOME`, else `target/test-home`.
pub(crate) fn home() -> Home {
    let default = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/test-home");
    Home::at(std::env::var_os("SOCIUS_TEST_HOME").map_or(default, PathBuf::from))
}

/// The default model, fetched on first use.
pub(crate) fn default_model() -> LocalModel {
    fetch::ensure(fetch::DEFAULT_MODEL, &home(), &mut Silent).expect("the default model can be fetched")
}
