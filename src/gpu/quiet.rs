//! Calls into wgpu that panic where they should report: the panic becomes an error and prints nothing.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// What `work` gives, or the words of its panic.
pub(super) fn unless_it_panics<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = take_hook();
        set_hook(Box::new(move |panic| {
            if !QUIET.get() {
                usual(panic);
            }
        }));
    });
    let before = QUIET.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(work));
    QUIET.set(before);
    outcome.map_err(words)
}

fn words(panic: Box<dyn Any + Send>) -> String {
    let text = panic.downcast::<String>().map(|text| *text);
    text.or_else(|panic| panic.downcast::<&str>().map(|text| text.to_string()))
        .map_or("it panicked without a word".into(), |text| {
            text.split_whitespace().collect::<Vec<_>>().join(" ")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_its_words_and_a_value_passes() {
        assert_eq!(unless_it_panics(|| 3), Ok(3));
        let lost = "Parent device is lost";
        let caught = unless_it_panics(|| panic!("Error in Device::poll:\n  {lost}"));
        assert_eq!(caught, Err::<(), _>("Error in Device::poll: Parent device is lost".into()));
        assert_eq!(unless_it_panics(|| panic!("fixed")), Err::<(), _>("fixed".into()));
        assert!(!QUIET.get());
    }
}
