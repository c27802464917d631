"""The file systems that are compared: how each is installed, mounted and found again."""

import os
import re
import signal
import subprocess
import time
from dataclasses import dataclass, field

MOUNT_PATIENCE = 30
# The defaults of the others when root mounts.
FOR_ALL = "allow_other,suid,dev"


class Failure(Exception):
    """A command or a mount that did not do what it should; one line."""


@dataclass
class Driver:
    """One column of the table."""

    name: str
    title: str
    # Makes the command line from the mount's parts; None for the kernel's own, mounted by mount(8).
    command: object
    # Lower files can be changed, removed and renamed.
    copies_up: bool = True
    # Options given to every mount.
    options: str = ""


@dataclass
class Mount:
    """One mount: the layers are named relative to `base`, where the driver is started (short paths fit in one page)."""

    base: str
    lowers: list
    upper: str
    work: str
    merged: str
    options: list = field(default_factory=list)

    def overlay_options(self):
        words = ["lowerdir=" + ":".join(self.lowers)]
        if self.upper:
            words += ["upperdir=" + self.upper, "workdir=" + self.work]
        return ",".join(words + [word for word in self.options if word])


def overlay_like(binary):
    return lambda mount: [binary, "-f", "-o", mount.overlay_options(), mount.merged]


def unionfs(mount):
    branches = ([mount.upper + "=RW"] if mount.upper else []) + [lower + "=RO" for lower in mount.lowers]
    options = "cow,allow_other,use_ino,suid,dev,default_permissions"
    return ["unionfs", "-f", "-o", options, ":".join(branches), mount.merged]


def mergerfs(mount):
    branches = ([mount.upper + "=RW"] if mount.upper else []) + [lower + "=RO" for lower in mount.lowers]
    # What its manual recommends for local disks.
    options = "allow_other,suid,dev,use_ino,cache.files=partial,dropcacheonclose=true,category.create=ff,minfreespace=1M"
    return ["mergerfs", "-f", "-o", options, ":".join(branches), mount.merged]


def all_drivers(repository, stratafs):
    tools = os.path.join(repository, "target/tools/bin")
    return [
        Driver("overlayfs", "overlayfs", None, options="redirect_dir=on"),
        Driver("stratafs", "stratafs", overlay_like(stratafs)),
        Driver("fo1", "fuse-overlayfs 1.10", overlay_like("/usr/bin/fuse-overlayfs")),
        Driver("fo2", "fuse-overlayfs 2.0", overlay_like(os.path.join(tools, "fuse-overlayfs")), options=FOR_ALL),
        Driver("unionfs", "unionfs-fuse", unionfs),
        Driver("mergerfs", "mergerfs", mergerfs, copies_up=False),
    ]


def choose(available, wanted):
    """`--drivers a,b`; `stratafs+OPTION+OPTION` is a column of its own with those mount options."""
    if not wanted:
        wanted = ",".join(driver.name for driver in available).replace("stratafs", "stratafs,stratafs+inventory=off")
    chosen = []
    for name in wanted.split(","):
        base, *extra = name.split("+")
        found = [driver for driver in available if driver.name == base]
        if not found:
            raise Failure(f"no such driver: {base} (there are {', '.join(d.name for d in available)})")
        driver = found[0]
        options = ",".join(word for word in [driver.options, *extra] if word)
        title = " ".join([driver.title, *extra])
        chosen.append(Driver(name, title, driver.command, driver.copies_up, options))
    return chosen


def install(repository, drivers):
    """Debian's packages (scripts/lib/packages knows how), fuse-overlayfs 2.0 from its registry, and our own build."""
    script = '. scripts/lib/packages && ensure_packages "${build_packages[@]}" "${bench_packages[@]}"'
    subprocess.run(["bash", "-c", script], cwd=repository, check=True)
    names = {driver.name.split("+")[0] for driver in drivers}
    if "fo2" in names and not os.path.exists(os.path.join(repository, "target/tools/bin/fuse-overlayfs")):
        command = ["cargo", "install", "--quiet", "fuse-overlayfs", "--version", "^2.0", "--root", "target/tools"]
        subprocess.run(command, cwd=repository, check=True)


def versions():
    """What was compared, for the record."""
    found = {"kernel": os.uname().release}
    for package in ("fuse-overlayfs", "unionfs-fuse", "mergerfs"):
        told = subprocess.run(["dpkg-query", "-W", "-f", "${Version}", package], capture_output=True, text=True)
        found[package] = told.stdout.strip()
    return found


def is_mounted(path):
    with open("/proc/self/mountinfo", "rb") as mounts:
        wanted = os.fsencode(path)
        for line in mounts:
            point = re.sub(rb"\\([0-7]{3})", lambda code: bytes([int(code[1], 8)]), line.split()[4])
            if point == wanted:
                return True
    return False


class Session:
    """A mounted driver. `close` always leaves nothing mounted and no process behind."""

    def __init__(self, driver, mount, log):
        self.driver = driver
        self.mount = mount
        self.log = log
        self.daemon = None
        self.log_file = open(log, "ab")
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self):
        mount = self.mount
        mount.options = [self.driver.options, *mount.options]
        if self.driver.command is None:
            words = ["mount", "-t", "overlay", "bench", "-o", mount.overlay_options(), mount.merged]
            done = subprocess.run(words, cwd=mount.base, capture_output=True, text=True, timeout=MOUNT_PATIENCE)
            if done.returncode:
                raise Failure("mount: " + done.stderr.strip().replace("\n", "; "))
            return
        environment = dict(os.environ, STRATAFS_LOG="warn,stratafs::requests=info", STRATAFS_LOG_FILE=self.log)
        self.daemon = subprocess.Popen(
            self.driver.command(mount),
            cwd=mount.base,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self.log_file,
            stderr=self.log_file,
            start_new_session=True,
        )
        end = time.monotonic() + MOUNT_PATIENCE
        while not is_mounted(mount.merged):
            if self.daemon.poll() is not None:
                raise Failure(f"{self.driver.name} ended with {self.daemon.returncode}: {last_line(self.log)}")
            if time.monotonic() > end:
                raise Failure(f"{self.driver.name} did not mount in {MOUNT_PATIENCE} s")
            time.sleep(0.002)
        # The first answer: from now on the daemon serves.
        subprocess.run(["stat", "-f", mount.merged], stdout=subprocess.DEVNULL, check=True, timeout=MOUNT_PATIENCE)

    def memory(self, field_name):
        """A field of the daemon's /proc status in kB; none for the kernel's own."""
        if self.daemon is None:
            return None
        try:
            with open(f"/proc/{self.daemon.pid}/status") as status:
                for line in status:
                    if line.startswith(field_name + ":"):
                        return int(line.split()[1])
        except OSError:
            pass
        return None

    def requests(self):
        """How many requests of each kind stratafs has answered so far."""
        size = os.path.getsize(self.log)
        self.daemon.send_signal(signal.SIGUSR1)
        end = time.monotonic() + 5
        while time.monotonic() < end:
            with open(self.log, errors="replace") as log:
                log.seek(size)
                for line in log:
                    if "stratafs::requests" in line and line.endswith("\n"):
                        return {name: int(number) for name, number in re.findall(r"(\w+)=(\d+)", line)}
            time.sleep(0.01)
        raise Failure("stratafs did not log its request counts")

    def close(self):
        path = self.mount.merged
        try:
            if is_mounted(path) and not unmounted(["umount", path]):
                # It is still in use, or the driver hangs: without its daemon nothing can.
                self.kill()
                unmounted(["umount", "-l", path])
        finally:
            self._reap()
            self.log_file.close()

    def kill(self):
        if self.daemon is not None and self.daemon.poll() is None:
            self.daemon.kill()

    def _reap(self):
        if self.daemon is None:
            return
        try:
            self.daemon.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.kill()
            self.daemon.wait(timeout=20)


def unmounted(words):
    for attempt in range(10):
        try:
            if subprocess.run(words, capture_output=True, timeout=30).returncode == 0:
                return True
        except subprocess.TimeoutExpired:
            return False
        time.sleep(0.05 * (attempt + 1))
    return False


def last_line(log):
    with open(log, errors="replace") as lines:
        said = [line.strip() for line in lines if line.strip()]
    return said[-1] if said else "no message"
