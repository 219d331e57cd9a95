//! What a user writes for a model.
#![no_main]

use libfuzzer_sys::fuzz_target;
use socius::fetch::ModelRef;

fuzz_target!(|text: &str| {
    let Ok(model) = ModelRef::parse(text) else { return };
    let folder = model.folder();
    assert!(!folder.is_empty() && !folder.starts_with('.') && !folder.contains(['/', '\\', '\0']), "{folder:?}");
    if let ModelRef::Hub(_) = &model {
        assert_eq!(model.name(), text);
    }
});
