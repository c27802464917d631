"""The layers that the rows work on. Each stack is built once below the work directory and used again; a file `built`
says that it is complete."""

import glob
import json
import os
import re
import shutil
import stat
import subprocess
import time

MAIN_LAYERS = 8
DIRECTORIES = 500
BIG = 20_000
HUGE_MIB = 512
CACHE_MB = 200
DEEP = 60
MILLION_DIRECTORIES = 2_000
MILLION_EACH = 499
LAYER_COUNTS = (1, 10, 50, 100, 200, 500)
# The stack with so many files and directories of files.
ENTRY_COUNTS = {1_000: "thousand", 10_000: "tenthousand", 100_000: "hundredthousand", 1_000_000: "million"}
LARGE_FILES = 20
LARGE_MIB = 10
SOURCE_FILES = 8_000
TRANSACTIONS = 500
# The package `git` and its dependencies, from Debian.
INSTALLED = "git"


def directory(number):
    return f"p{number % 20}/d{number}"


def write(path, size):
    with open(path, "wb") as file:
        file.write(b"x" * size)


def random_file(path, mib):
    with open(path, "wb") as file:
        for _ in range(mib):
            file.write(os.urandom(1 << 20))


def write_lines(path, lines):
    with open(path, "w") as file:
        file.writelines(line + "\n" for line in lines)


def main(base):
    """8 layers with 12,000 small files in 500 directories, a directory of 20,000 entries, and a file of 512 MiB."""
    small = []
    for layer in range(MAIN_LAYERS):
        for number in range(DIRECTORIES):
            path = f"l{layer}/{directory(number)}"
            os.makedirs(f"{base}/{path}")
            for index in range(3):
                name = f"f{layer}-{index}"
                write(f"{base}/{path}/{name}", 200 + index * 700)
                small.append(f"{directory(number)}/{name}")
    os.mkdir(f"{base}/l0/big")
    for index in range(BIG):
        write(f"{base}/l0/big/e{index}", 0)
    random_file(f"{base}/l0/huge", HUGE_MIB)
    write_lines(f"{base}/small.list", small)
    write_lines(f"{base}/append.list", [name for name in small if "/f0-" in name or "/f1-0" in name][:2000])
    write_lines(f"{base}/missing.list", [f"{directory(d)}/none{k}" for d in range(DIRECTORIES) for k in range(40)])
    for part in range(4):
        write_lines(f"{base}/small{part}.list", small[part::4])


def many_layers(count):
    def build(base):
        """500 directories with a file of each layer that has them; 50 of the directories are in every layer."""
        for layer in range(count):
            for number in range(DIRECTORIES):
                if number % count == layer or number % 10 == 0:
                    path = f"{base}/l{layer}/{directory(number)}"
                    os.makedirs(path)
                    write(f"{path}/f{layer}", 500)
            os.makedirs(f"{base}/l{layer}", exist_ok=True)

    return build


def hundred_thousand(base):
    """One directory of 100,000 entries in two layers."""
    for layer in range(2):
        os.makedirs(f"{base}/l{layer}/big")
        for index in range(layer, 100_000, 2):
            write(f"{base}/l{layer}/big/e{index}", 0)


def deep(base):
    """A path of 60 directories in 8 layers, a file of each layer at every step, and lists of them."""
    names = []
    for layer in range(MAIN_LAYERS):
        path = ""
        for depth in range(DEEP):
            path += f"level{depth}/"
            os.makedirs(f"{base}/l{layer}/{path}")
            for index in range(4):
                write(f"{base}/l{layer}/{path}f{layer}-{index}", 300)
                names.append(f"{path}f{layer}-{index}")
    write_lines(f"{base}/names.list", names)


def entries(directories):
    def build(base):
        """Directories of 499 files in 4 layers."""
        for layer in range(4):
            os.makedirs(f"{base}/l{layer}")
        for number in range(directories):
            path = f"{base}/l{number % 4}/m{number % 40}/d{number}"
            os.makedirs(path)
            for index in range(MILLION_EACH):
                os.close(os.open(f"{path}/file{index}", os.O_CREAT | os.O_WRONLY, 0o644))

    return build


def large(base):
    """20 files of 10 MiB."""
    os.makedirs(f"{base}/l0/large")
    for index in range(LARGE_FILES):
        random_file(f"{base}/l0/large/f{index}", LARGE_MIB)


def shared(base):
    """An image of 200 MB."""
    os.makedirs(f"{base}/l0")
    os.makedirs(f"{base}/l1")
    for index in range(CACHE_MB // 2):
        for layer in range(2):
            with open(f"{base}/l{layer}/f{layer}-{index}", "wb") as file:
                file.write(os.urandom(1_000_000))


def programs(base):
    """sh, perl and python of this machine with their libraries and modules."""
    root = f"{base}/l0"
    python = os.path.realpath("/usr/bin/python3")
    version = os.path.basename(python)
    started = ["/bin/sh", "/usr/bin/perl", python]
    modules = [path for path in perl_modules() if os.path.isdir(path)]
    extensions = glob.glob(f"/usr/lib/{version}/lib-dynload/*.so")
    needed = {library for program in (*started, *extensions) for library in libraries(program)}
    for path in {*started, *needed}:
        copied = root + path
        os.makedirs(os.path.dirname(copied), exist_ok=True)
        shutil.copy2(path, copied)
    for path in (*modules, f"/usr/lib/{version}"):
        shutil.copytree(path, root + path, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    os.symlink(version, f"{root}/usr/bin/python3")
    os.mkdir(f"{root}/dev")
    os.mknod(f"{root}/dev/null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))


def perl_modules():
    told = subprocess.run(["perl", "-e", 'print join "\n", @INC'], check=True, capture_output=True, text=True)
    return [path for path in told.stdout.splitlines() if "perl-base" in path]


def libraries(program):
    """The paths at which the loader finds the libraries of a program or a library."""
    told = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    return re.findall(r"(/\S+) \(0x", told)


def sources(base):
    """A git repository of 8,000 files, and SQL for sqlite; the layer itself is almost empty."""
    os.makedirs(f"{base}/l0/home")
    repository = f"{base}/repository"
    os.mkdir(repository)
    git = ["git", "-c", "user.name=bench", "-c", "user.email=bench@localhost", "-C", repository]
    subprocess.run([*git, "init", "-q"], check=True)
    for index in range(SOURCE_FILES):
        path = f"{repository}/s{index % 250}"
        os.makedirs(path, exist_ok=True)
        write_lines(f"{path}/source{index}.c", [f"int f{index}_{line}(void);" for line in range(40)])
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "bench"], check=True)
    subprocess.run([*git, "repack", "-q", "-a", "-d"], check=True)
    rows = ["create table t(id integer primary key, words text);"]
    rows += [f"begin; insert into t(words) values('row {n}'); commit;" for n in range(TRANSACTIONS)]
    write_lines(f"{base}/transactions.sql", [*rows, "select count(*) from t;"])


def build_tree(repository):
    def build(base):
        """The C library zstd, as the crate zstd-sys that we depend on brings it."""
        told = subprocess.run(
            ["cargo", "metadata", "--format-version", "1"], cwd=repository, check=True, capture_output=True
        )
        packages = json.loads(told.stdout)["packages"]
        manifest = next(p["manifest_path"] for p in packages if p["name"] == "zstd-sys")
        source = os.path.join(os.path.dirname(manifest), "zstd/lib")
        shutil.copytree(source, f"{base}/l0/zstd/lib")
        count = sum(name.endswith(".c") for _, _, names in os.walk(source) for name in names)
        write_lines(f"{base}/count", [str(count)])

    return build


def debian(base):
    """A minimal Debian from the machine's own apt sources, with the packages to install already fetched."""
    lists = ["/etc/apt/sources.list"]
    for name in sorted(os.listdir("/etc/apt/sources.list.d")):
        if name.endswith((".list", ".sources")):
            lists.append(f"/etc/apt/sources.list.d/{name}")
    active = [path for path in lists if os.path.exists(path) and any(is_source(line) for line in open(path))]
    dumped = subprocess.run(["apt-config", "dump"], check=True, capture_output=True, text=True).stdout.splitlines()
    # The tree needs the same settings as this machine to reach the mirror.
    kept = ("Acquire::http::Proxy ", "Acquire::https::Proxy ", "Acquire::Check-Valid-Until ", "Acquire::Check-Date ")
    write_lines(f"{base}/apt.conf", [line for line in dumped if line.startswith(kept)])
    with open("/etc/os-release") as release:
        words = dict(line.rstrip().split("=", 1) for line in release if "=" in line)
    fetch = f'chroot "$1" apt-get -qq -y --no-install-recommends --download-only install {INSTALLED}'
    command = ["mmdebstrap", "--quiet", "--variant=apt", f"--aptopt={base}/apt.conf", "--skip=cleanup"]
    command += ["--include=ca-certificates", f"--customize-hook={fetch}"]
    command += [words["VERSION_CODENAME"], f"{base}/l0", *active]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def is_source(line):
    return line.startswith(("deb ", "URIs:"))


# Name -> (number of layers, builder).
def stacks(repository):
    return {
        "main": (MAIN_LAYERS, main),
        **{f"layers{count}": (count, many_layers(count)) for count in LAYER_COUNTS},
        "hundred": (2, hundred_thousand),
        "deep": (MAIN_LAYERS, deep),
        **{name: (4, entries(count // (MILLION_EACH + 1))) for count, name in ENTRY_COUNTS.items()},
        "large": (1, large),
        "shared": (2, shared),
        "programs": (1, programs),
        "sources": (1, sources),
        "build": (1, build_tree(repository)),
        "debian": (1, debian),
    }


def ensure(repository, top, name, say):
    """The directory of a stack and the names of its layers in it, topmost first; builds what is missing."""
    count, build = stacks(repository)[name]
    base = os.path.join(top, "trees", name)
    if not os.path.exists(f"{base}/built"):
        say(f"building the layers '{name}': {build.__doc__}")
        shutil.rmtree(base, ignore_errors=True)
        os.makedirs(base)
        build(base)
        os.sync()
        write_lines(f"{base}/built", ["yes"])
    return base, [f"l{layer}" for layer in range(count)]


def inventories(strata, base, layers, say):
    """Makes the inventories of a stack's layers anew, so that they are of the version that is measured. Twice: the second
    time, which is told, the layers' inodes are in memory."""
    command = [strata, "inventory", *layers]
    subprocess.run(command, cwd=base, check=True, stdout=subprocess.DEVNULL)
    started = time.perf_counter()
    subprocess.run(command, cwd=base, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - started
    size = sum(os.path.getsize(f"{base}/{layer}.inventory") for layer in layers)
    say(f"inventories of '{os.path.basename(base)}': {len(layers)} layers in {seconds:.2f} s, {size / 1e6:.1f} MB")
    os.sync()
    return {"layers": len(layers), "seconds": seconds, "bytes": size}
