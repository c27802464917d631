"""Rows of work on several drivers in turn, for some rounds; and the machine that they run on."""

import contextlib
import os
import subprocess
import sys
import time

import drivers
import report
import rows
import trees
from measure import Measure

HERE = os.path.dirname(os.path.realpath(__file__))
REPOSITORY = os.path.dirname(os.path.dirname(HERE))


def say(text):
    print(text, file=sys.stderr, flush=True)


HALT_POLL = "/sys/module/haltpoll/parameters/guest_halt_poll_ns"


@contextlib.contextmanager
def halt_polling(nanoseconds):
    """Where waking a halted virtual processor takes tens of microseconds, that is all that rows of many small requests
    measure. Like a processor of its own, one that polls for a moment before it halts wakes in a few."""
    if nanoseconds is None:
        yield
        return
    if not os.path.exists(HALT_POLL):
        raise drivers.Failure(f"--halt-poll: no {HALT_POLL} here")
    with open(HALT_POLL) as file:
        before = file.read()
    try:
        with open(HALT_POLL, "w") as file:
            file.write(str(nanoseconds))
        yield
    finally:
        with open(HALT_POLL, "w") as file:
            file.write(before)


# The file is sparse, and has inodes for a million files and their copies.
EXT4_BYTES, EXT4_INODES = 16 << 30, 3_000_000


@contextlib.contextmanager
def own_ext4(given):
    """Moves the work directory into a new ext4, if that is asked for. What was removed shortly before, a journal that is
    missing or a file system that is nearly full make a host's own another one every time."""
    if not given.ext4:
        yield
        return
    image, point = os.path.join(given.dir, "ext4.img"), os.path.join(given.dir, "ext4")
    os.makedirs(point, exist_ok=True)
    with open(image, "wb") as file:
        file.truncate(EXT4_BYTES)
    try:
        mkfs = ["mkfs.ext4", "-q", "-m", "0", "-N", str(EXT4_INODES), "-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1", image]
        subprocess.run(mkfs, check=True)
        attach = ["losetup", "--find", "--show", "--direct-io=on", image]
        device = subprocess.run(attach, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
        try:
            # Without lazy initialization of inode tables: the kernel's thread for it would be measured too.
            subprocess.run(["mount", "-o", "noinit_itable", device, point], check=True)
            given.dir = point
            try:
                yield
            finally:
                subprocess.run(["umount", point], check=True)
        finally:
            subprocess.run(["losetup", "--detach", device], check=True)
    finally:
        os.remove(image)


def machine(given):
    with open("/proc/cpuinfo") as lines:
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    with open("/proc/meminfo") as lines:
        memory = int(lines.readline().split()[1]) // 1024**2
    polling = f", halt polling {given.halt_poll // 1000} µs" if given.halt_poll else ""
    place = ", in an ext4 of its own" if given.ext4 else ""
    return f"{os.cpu_count()} × {model}, {memory} GiB{polling}{place}"


def add(cell, found):
    """One more measurement."""
    cell.setdefault("values", []).append(found["value"])
    if found.get("peak_kb"):
        cell.setdefault("peak_kb", []).append(found["peak_kb"])
    if "requests" in found:
        cell["requests"] = found["requests"]


def run(given, chosen_drivers, chosen_rows, results, strata, requests=False):
    """`strata`: the program that makes the inventories."""
    measure = Measure(os.path.abspath(given.dir), requests)
    measure.clean()
    measure.compile(os.path.join(HERE, "ops.c"))
    stacks = {row.stack: None for row in chosen_rows}
    for name in stacks:
        stacks[name] = trees.ensure(REPOSITORY, measure.top, name, say)
    if any(driver.name.startswith("stratafs") for driver in chosen_drivers):
        made = {name: trees.inventories(strata, *stack, say) for name, stack in stacks.items()}
        results.setdefault("inventories", {}).update(made)
    for row in chosen_rows:
        kept = results["rows"].get(row.key, {}).get("drivers", {})
        kept = {name: cell for name, cell in kept.items() if name not in {d.name for d in chosen_drivers}}
        results["rows"][row.key] = {"title": row.title, "unit": row.unit, "target": row.target, "drivers": kept}
    # In the order of the table, whatever was measured first.
    order = [row.key for row in (*rows.ROWS, *rows.all_curves())]
    results["rows"] = {key: results["rows"][key] for key in order if key in results["rows"]}
    end = time.monotonic() + given.minutes * 60 if given.minutes else float("inf")
    took = {}
    try:
        for number in range(given.rounds):
            for row in chosen_rows:
                started = time.monotonic()
                fits = number == 0 or started + took[row.key] < end
                if number < row.rounds and fits:
                    # Each round begins with another driver.
                    first = number % len(chosen_drivers)
                    turn = chosen_drivers[first:] + chosen_drivers[:first]
                    one_round(measure, row, turn, stacks[row.stack], results, f"{number + 1}/{given.rounds}")
                    took[row.key] = time.monotonic() - started
    finally:
        measure.clean()


def one_round(measure, row, chosen_drivers, stack, results, number):
    shown = []
    for driver in chosen_drivers:
        cell = results["rows"][row.key]["drivers"].setdefault(driver.name, {})
        if row.copies_up and not driver.copies_up:
            continue
        # A row that failed once is not tried again: it may have hung for minutes.
        if not cell.get("failed"):
            try:
                add(cell, measure.once(row, driver, stack))
                shown.append(f"{driver.name} {report.absolute(cell['values'][-1], row.unit)}")
            except (drivers.Failure, OSError, subprocess.SubprocessError) as error:
                cell["failed"] = str(error)
                cell.pop("values", None)
                shown.append(f"{driver.name} FAILED ({error})")
    say(f"{number}  {row.title}: " + ", ".join(shown))
