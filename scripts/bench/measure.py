"""Does one row on one driver, once."""

import os
import shutil
import signal
import subprocess
import time

from drivers import Failure, Mount, Session

TOOLS = ("cat", "chmod", "dd", "find", "git", "ls", "rm", "wc")


class Measure:
    """The place where it happens; knows every open session, so that nothing stays mounted."""

    def __init__(self, top, with_requests):
        self.top = top
        self.run = os.path.join(top, "run")
        self.ops = os.path.join(top, "ops")
        self.with_requests = with_requests
        self.sessions = []
        # Memory that drivers hold after they have forgotten, if it was measured along with their peak: by driver and stack.
        self.forgotten = {}

    def compile(self, source):
        subprocess.run(["gcc", "-O2", "-Wall", "-o", self.ops, source], check=True)

    def close_all(self):
        for session in reversed(self.sessions):
            session.close()
        self.sessions.clear()

    def clean(self):
        self.close_all()
        with open("/proc/self/mountinfo") as mounts:
            if any(f" {self.run}/" in line for line in mounts):
                raise Failure(f"still mounted below {self.run}")
        shutil.rmtree(self.run, ignore_errors=True)

    # ---------------------------------------------------------------------------------------------------- mounts

    def open(self, row, driver, stack, number=0, read_only=False):
        """Mounts `stack` with the writable directory that is there, or a new one."""
        base, lowers = stack
        place = os.path.join(self.run, str(number))
        for name in ("upper", "work", "merged"):
            os.makedirs(os.path.join(place, name), exist_ok=True)
        # Short, so that 200 layers fit in the page that mount(2) takes.
        short = os.path.relpath(place, base)
        upper, work = (None, None) if read_only else (f"{short}/upper", f"{short}/work")
        extra = row.options.get(driver.name.split("+")[0], "")
        mount = Mount(base, lowers, upper, work, f"{place}/merged", [extra])
        session = Session(driver, mount, os.path.join(self.top, f"{driver.name}.log"))
        self.sessions.append(session)
        return session

    def close(self, session):
        self.sessions.remove(session)
        session.close()

    def drop_caches(self):
        os.sync()
        with open("/proc/sys/vm/drop_caches", "w") as control:
            control.write("3")

    def preload(self):
        """The programs themselves are no part of what is measured."""
        subprocess.run([self.ops, "none"], check=True)
        for tool in TOOLS:
            subprocess.run([tool, "--version"], stdout=subprocess.DEVNULL, check=True)

    # -------------------------------------------------------------------------------------------------- commands

    def shell(self, row, session, command, expect):
        """Runs a command in the mount; seconds. What it prints must be `expect`."""
        words = command.replace("{ops}", self.ops).replace("{base}", session.mount.base)
        script = f'cd "$0" || exit 1\n{words}'
        started = time.perf_counter()
        process = subprocess.Popen(
            ["sh", "-c", script, session.mount.merged],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            said, complaint = process.communicate(timeout=row.patience)
        except BaseException as error:
            # A process stuck in a request dies only when the daemon does.
            session.kill()
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                raise Failure(f"no end after {row.patience} s: {command}") from None
            raise
        seconds = time.perf_counter() - started
        reason = (complaint.strip().splitlines() or [f"status {process.returncode}"])[0]
        if process.returncode and not expect.isdigit():
            raise Failure(reason)
        if said.strip() != expect:
            raise Failure(f"printed '{said.strip()[:80]}', not '{expect}' ({reason})".replace("\n", "; "))
        return seconds

    # ------------------------------------------------------------------------------------------------------ rows

    def once(self, row, driver, stack):
        """One measurement: a dictionary with `value`, `peak_kb`, `requests`."""
        self.clean()
        try:
            if row.measure:
                return {"value": getattr(self, row.measure)(row, driver, stack)}
            return self.time(row, driver, stack)
        finally:
            self.clean()

    def time(self, row, driver, stack):
        session = None
        if row.prepare:
            session = self.open(row, driver, stack)
            self.shell(row, session, row.prepare, row.prepare_expect)
        if row.state == "cold":
            if session:
                self.close(session)
            self.drop_caches()
            session = None
        session = session or self.open(row, driver, stack)
        if row.state == "warm":
            self.shell(row, session, row.command, row.expect)
        self.preload()
        if row.preload:
            subprocess.run(["sh", "-c", row.preload], cwd=session.mount.base, check=True)
        # Earlier drivers' writes must not reach the disk while this one is timed.
        os.sync()
        counting = self.with_requests and driver.name.startswith("stratafs")
        before = session.requests() if counting else {}
        found = {"value": self.shell(row, session, row.command, row.expect)}
        if counting:
            after = session.requests()
            found["requests"] = {k: n - before.get(k, 0) for k, n in after.items() if n > before.get(k, 0)}
        found["peak_kb"] = session.memory("VmHWM")
        if row.check:
            self.shell(row, session, row.check, row.check_expect)
        return found

    def walked(self, row, driver, stack):
        self.drop_caches()
        session = self.open(row, driver, stack)
        self.shell(row, session, row.command, row.expect)
        return session

    def peak_memory(self, row, driver, stack):
        """Of the driver's process, in MB; the kernel's own has none."""
        if driver.command is None:
            return None
        session = self.walked(row, driver, stack)
        peak = in_mb(session.memory("VmHWM"))
        self.forgotten[driver.name, stack[0]] = self.memory_left(session)
        return peak

    def memory_after_forget(self, row, driver, stack):
        """What the driver's process still holds when the kernel has dropped its inodes."""
        if driver.command is None:
            return None
        # The walk is the same, and long.
        known = self.forgotten.pop((driver.name, stack[0]), None)
        return self.memory_left(self.walked(row, driver, stack)) if known is None else known

    def memory_left(self, session):
        self.drop_caches()
        time.sleep(1)
        self.drop_caches()
        return in_mb(session.memory("VmRSS"))

    def page_cache(self, row, driver, stack, read_only=False):
        """How much the page cache grows, in MB, when ten mounts have read the same files."""
        self.drop_caches()
        sessions = [self.open(row, driver, stack, number, read_only) for number in range(10)]
        self.preload()
        before = cached_kb()
        for session in sessions:
            self.shell(row, session, row.command, row.expect)
        return in_mb(cached_kb() - before)

    def page_cache_read_only(self, row, driver, stack):
        return self.page_cache(row, driver, stack, read_only=True)


def in_mb(kilobytes):
    return None if kilobytes is None else kilobytes * 1024 / 1e6


def cached_kb():
    with open("/proc/meminfo") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("Cached:"))
