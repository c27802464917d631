//! Tells whether the request that a thread works on was interrupted.

use std::cell::RefCell;

use rustix::io::Errno;

type Wanted = Box<dyn Fn() -> bool>;

thread_local! {
    static WANTED: RefCell<Option<Wanted>> = const { RefCell::new(None) };
}

/// Sets how the calling thread finds out whether its request is still wanted. In a thread without this, requests are always
/// wanted.
pub(crate) fn ask_in_this_thread(is_wanted: impl Fn() -> bool + 'static) {
    WANTED.with_borrow_mut(|wanted| *wanted = Some(Box::new(is_wanted)));
}

/// Call this between the steps of a long operation, as long as it can still be undone completely. The cost is negligible.
///
/// # Errors
/// `INTR`: the request is no longer wanted.
pub(crate) fn check() -> Result<(), Errno> {
    let is_wanted = WANTED.with_borrow(|wanted| wanted.as_ref().is_none_or(|is_wanted| is_wanted()));
    if is_wanted { Ok(()) } else { Err(Errno::INTR) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_asked_for_itself() {
        assert_eq!(check(), Ok(()));
        ask_in_this_thread(|| false);
        assert_eq!(check(), Err(Errno::INTR));
        std::thread::spawn(|| assert_eq!(check(), Ok(()))).join().expect("the other thread");
    }
}
