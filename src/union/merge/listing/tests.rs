use std::ffi::CString;

use super::*;
use crate::inventory::position::LAST_POSITION;

fn c(name: &str) -> CString {
    CString::new(name).expect("no NUL")
}

fn listing_keeping(names: &[&str], kept: &Moved) -> Listing {
    let mut gathered = Gathered::default();
    for name in names {
        gathered.add(&c(name), 1, libc::DT_REG, UPPER, false, true).expect("added");
    }
    Listing(Form::Merged(Merged::new(gathered, kept)))
}

fn listing(names: &[&str]) -> Listing {
    listing_keeping(names, &Moved::default())
}

fn names(listing: &Listing) -> Vec<String> {
    listing.iter().map(|listed| listed.name.to_string_lossy().into_owned()).collect()
}

#[test]
fn positions_do_not_depend_on_other_names() {
    let many: Vec<String> = (0..5000).map(|n| format!("file-{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let (all, half) = (listing(&many), listing(&many[..2500]));
    let mut last = FIRST_POSITION - 1;
    for listed in all.iter() {
        assert!(listed.position > last && listed.position <= LAST_POSITION);
        last = listed.position;
    }
    for name in &many[..2500] {
        let name = c(name);
        assert_eq!(
            all.get(&name).map(|l| l.position),
            half.get(&name).map(|l| l.position),
            "{name:?} moved when others were added"
        );
    }
    assert!(all.get(c"absent").is_none());
}

#[test]
fn reading_on_after_a_position_misses_and_repeats_nothing() {
    let names: Vec<String> = (0..300).map(|n| n.to_string()).collect();
    let all = listing(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let mut seen = Vec::new();
    let mut position = 0;
    while let Some(listed) = all.after(position).next() {
        seen.push(listed.name.to_owned());
        position = listed.position;
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 300);
}

/// Names that share one first position are all listed and found, whether the listing is made at once, step by step, or again.
#[test]
fn names_with_one_position_are_all_found() {
    let (less, more) = crate::inventory::position::tests::colliding();
    for order in [[&less, &more], [&more, &less]] {
        let mut steps = listing(&["other"]);
        for name in order {
            assert!(steps.add(&c(name), None, libc::DT_REG, Source::Upper));
        }
        let again = listing_keeping(&["other", &less, &more], &steps.moved());
        for made in [&steps, &again, &listing(&["other", &less, &more])] {
            assert_eq!(made.len(), 3);
            for name in ["other", &less, &more] {
                assert_eq!(made.get(&c(name)).map(|listed| listed.name.to_owned()), Some(c(name)));
            }
        }
        let positions = |made: &Listing| order.map(|name| made.get(&c(name)).map(|listed| listed.position));
        assert_eq!(positions(&steps), positions(&again), "a listing that is made again moves nothing");
        // The remaining name keeps its position.
        let left = positions(&steps)[1];
        assert!(steps.remove(&c(order[0])));
        assert_eq!(steps.get(&c(order[1])).map(|listed| listed.position), left);
        let again = listing_keeping(&["other", order[1]], &steps.moved());
        assert_eq!(again.get(&c(order[1])).map(|listed| listed.position), left);
        assert!(steps.get(&c(order[0])).is_none());
    }
}

#[test]
fn changed_step_by_step_it_is_as_if_made_anew() {
    let all: Vec<String> = (0..2000).map(|n| format!("a-rather-long-name-{n}")).collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let mut changed = listing(&all[..1000]);
    for name in &all[1000..] {
        assert!(changed.add(&c(name), None, libc::DT_REG, Source::Upper));
    }
    for name in &all[..900] {
        assert!(changed.remove(&c(name)));
        assert!(changed.remove(&c(name)), "a name that is not there");
    }
    assert_eq!(names(&changed), names(&listing(&all[900..])));
    assert!(changed.add(&c(all[1500]), None, libc::DT_DIR, Source::Upper), "in the place of itself");
    assert_eq!(changed.len(), 1100);
    assert_eq!(changed.get(&c(all[1500])).map(|listed| listed.kind), Some(libc::DT_DIR));
    assert!(changed.memory() < 200_000, "{}", changed.memory());
}

#[test]
fn an_entry_says_its_file_if_that_is_known() {
    let (here, there) = ((8, 1), (8, 2));
    let mut made = listing(&[]);
    assert!(made.add(c"a", Some(FileId { device: here, ino: 7 }), libc::DT_REG, Source::Upper));
    assert!(made.add(c"sub", Some(FileId { device: there, ino: 256 }), libc::DT_DIR, Source::Upper));
    assert!(made.add(c"b", None, libc::DT_REG, Source::Upper));
    let id = |name| made.get(name).and_then(|listed| listed.id);
    assert_eq!((id(c"a"), id(c"sub"), id(c"b")), (Some(FileId { device: here, ino: 7 }), None, None));
}

/// Reads the first name and removes it, again and again: the processor time for each does not grow with the number of
/// names. If the listing were rebuilt each time, the larger one would take thirty times as long.
#[test]
fn taking_the_first_again_and_again_is_flat() {
    let now = || {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
    };
    let time = |count: usize| {
        let all: Vec<String> = (0..count).map(|n| format!("mail-{n:06}")).collect();
        let mut spool = listing(&all.iter().map(String::as_str).collect::<Vec<_>>());
        let start = now();
        loop {
            let Some(first) = spool.iter().next().map(|listed| listed.name.to_owned()) else { break };
            assert!(spool.remove(&first));
        }
        (now() - start) / count as f64
    };
    // Takes the best of three: on a busy machine, runs are slowed down by others.
    let best = |count: usize| (0..3).map(|_| time(count)).fold(f64::INFINITY, f64::min);
    let (small, large) = (best(2000), best(60_000));
    assert!(large < small * 8.0 + 2e-6, "{small} s each of 2,000, {large} s each of 60,000");
}
