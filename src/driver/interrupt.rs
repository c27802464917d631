//! Whether somebody still waits for what a thread does.

use std::cell::RefCell;

use rustix::io::Errno;

type Wanted = Box<dyn Fn() -> bool>;

thread_local! {
    static WANTED: RefCell<Option<Wanted>> = const { RefCell::new(None) };
}

/// Says how the calling thread finds out whether somebody waits for the request that it works on. In a thread without
/// that, somebody always does.
pub fn ask_in_this_thread(is_wanted: impl Fn() -> bool + 'static) {
    WANTED.with_borrow_mut(|wanted| *wanted = Some(Box::new(is_wanted)));
}

/// To be called between the steps of what takes long, while it can still be given up without a trace. Costs nothing worth
/// counting.
///
/// # Errors
/// `INTR`: nobody waits any more.
pub fn check() -> Result<(), Errno> {
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
