"""The rows of the table: what is done, in which state of the caches, and what must come out of it.

A command runs in the mount through `sh -c`. `{ops}` is the compiled ops.c, `{base}` the directory of the stack (lists of
names, sources). What it prints must equal `expect`; then `check`, which is not timed, must print `check_expect`."""

from dataclasses import dataclass, field

import trees

SMALL = 12_000
SMALL_BYTES = SMALL // 3 * (200 + 900 + 1600)
# p0..p19, d0..d499, the small files, the big directory and what is in it, the huge file.
ENTRIES = 20 + 500 + SMALL + 1 + trees.BIG + 1
HUGE = trees.HUGE_MIB << 20


@dataclass
class Row:
    key: str
    title: str
    stack: str
    command: str
    expect: str
    # cold: fresh mount, dropped caches. warm: the command has run once. fresh: fresh mount, caches as they are.
    state: str = "cold"
    # Untimed, before it (and before the caches are dropped).
    prepare: str = ""
    # Untimed, in the stack's directory, so that the first driver does not read from the disk what the others find cached.
    preload: str = ""
    prepare_expect: str = ""
    check: str = ""
    check_expect: str = ""
    # s, MB
    unit: str = "s"
    # Name of a function in measure.py that does the row in place of timing the command.
    measure: str = ""
    # At most this many rounds.
    rounds: int = 1000
    # Mount options for a driver, by name.
    options: dict = field(default_factory=dict)
    # Lower files are changed, removed or renamed.
    copies_up: bool = False
    patience: int = 300
    # The wanted ratio to overlayfs; None: no peer may be faster.
    target: float = None


def said(entries, files, count):
    return f"{entries} entries {files} files {count} bytes"


def walked(entries, directories, count):
    return said(entries, entries - directories, count)


MAIN_WALK = walked(ENTRIES, 521, SMALL_BYTES + HUGE)
LAYERS = {count: sum(n % count == l or n % 10 == 0 for l in range(count) for n in range(500)) for count in trees.LAYER_COUNTS}


def layers_walk(count):
    return walked(520 + LAYERS[count], 520, 500 * LAYERS[count])


def together(count, command):
    """The command `count` times at once; `{n}` is the number of each."""
    return "{ " + " ".join(command.replace("{n}", str(n)) + " &" for n in range(count)) + " wait; }"


def lines(*texts):
    return "\n".join(texts)


UNTAR = said(0, 8000, 0)
HALF, QUARTER = said(0, 4000, 0), said(0, 2000, 0)
MEMORY_32 = "memory after walking 32,000 entries"
SMALL_LIST = "{ops} open {base}/small.list"
REMOVE = "rm -r big p5 p6 p7 p8"
REMOVED_LEFT = walked(ENTRIES - trees.BIG - 1 - 4 * 626, 521 - 1 - 4 * 26, SMALL_BYTES * 16 // 20 + HUGE)
BY_NAME = "find p* -type f | LC_ALL=C sort | xargs cat | wc -c"
# Python loads all of its extension modules: most of the files it reads are shared libraries.
START = lines(
    "export LC_ALL=C; chroot . sh -c : && chroot . perl -e 'use POSIX; use Socket;' &&",
    "chroot . python3 -BSc 'import glob, importlib, os, sysconfig",
    'for path in sorted(glob.glob("/usr/lib/python3*/lib-dynload/*.so")):',
    '    name = os.path.basename(path).split(".")[0]',
    '    if "test" not in name: importlib.import_module(name)\' && echo started',
)
READ_ALL = "find . -type f -exec cat {} + >/dev/null"
INSTALL = (
    "DEBIAN_FRONTEND=noninteractive chroot . apt-get -q -y --no-download --no-install-recommends "
    "-o Dpkg::Options::=--force-unsafe-io install " + trees.INSTALLED + " >/dev/null 2>&1 && echo installed"
)
COMPILE = (
    "mkdir zstd/o && cd zstd/o && find ../lib -name '*.c' | xargs -P 2 -n 4 "
    "gcc -O0 -c -w -I../lib -I../lib/common -I../lib/legacy -DZSTD_DISABLE_ASM -DZSTD_LEGACY_SUPPORT=1 "
    "&& ar rc libzstd.a *.o && [ $(ls *.o | wc -l) = $(cat {base}/count) ] && echo built"
)



def spool(count, text):
    """Takes the first file of a directory of the upper a thousand times: as fast however many there are."""
    return Row(
        f"spool-{count}", f"take the first of {text} files, 1,000 times", "main", "{ops} spool spool 1000", said(0, 1000, 0), "fresh",
        prepare=f"mkdir spool && cd spool && seq {count} | xargs touch", check="ls spool | wc -l", check_expect=str(count - 1000),
    )


ROWS = [
    Row("walk-cold", "walk with stat, cold", "main", "{ops} walk .", MAIN_WALK, target=1.3),
    Row("walk-warm", "walk with stat, warm", "main", "{ops} walk .", MAIN_WALK, "warm", target=0.7),
    Row("walk-100", "walk cold, 100 layers", "layers100", "{ops} walk .", layers_walk(100), target=0.7),
    Row("walk-200", "walk cold, 200 layers", "layers200", "{ops} walk .", layers_walk(200), target=0.5),
    Row("walk-two", "two walks in parallel, cold", "main", together(2, "{ops} walk ."), lines(MAIN_WALK, MAIN_WALK), target=1.0),
    Row("ls-20000", "ls -l of 20,000 entries, cold", "main", "ls -l big | wc -l", "20001", target=2),
    Row("ls-100000", "ls -l of 100,000 entries, cold", "hundred", "ls -l big | wc -l", "100001"),
    Row("deep", "stat of 1,920 files, 60 directories deep, cold", "deep", "{ops} stat {base}/names.list", said(0, 1920, 576000)),
    Row("read-cold", "read all small files, cold", "main", "{ops} read .", said(ENTRIES, SMALL, SMALL_BYTES), target=1.3),
    Row("read-by-name", "cat of all small files in order of their names, cold", "main", BY_NAME, str(SMALL_BYTES)),
    Row("read-warm", "read all small files, warm", "main", "{ops} read .", said(ENTRIES, SMALL, SMALL_BYTES), "warm", target=1.9),
    Row("open-warm", "open, read, close 12,000 files, warm", "main", SMALL_LIST, said(0, SMALL, SMALL_BYTES), "warm", target=1.9),
    Row("stat-warm", "stat 12,000 files, warm", "main", "{ops} stat {base}/small.list", said(0, SMALL, SMALL_BYTES), "warm"),
    Row(
        "stat-four", "stat 12,000 files in four processes, cold", "main", together(4, "{ops} stat {base}/small{n}.list"),
        lines(*[said(0, SMALL // 4, SMALL_BYTES // 4)] * 4),
    ),
    Row("missing", "look up 20,000 missing names, cold", "main", "{ops} missing {base}/missing.list", said(0, 20000, 0), target=1.0),
    Row("sequential-cold", "read 512 MiB, cold", "main", "cat huge | wc -c", str(HUGE), target=1.05),
    Row("sequential-warm", "read 512 MiB, warm", "main", "cat huge | wc -c", str(HUGE), "warm", target=1.05),
    Row("random-cold", "20,000 random reads of 4 KiB, cold", "main", "{ops} read-at-random huge 20000", said(0, 1, 20000 * 4096), target=0.25),
    Row(
        "write-sync", "write 512 MiB and fsync", "main", "dd if=/dev/zero of=new bs=1M count=512 conv=fsync status=none", "",
        "fresh", check="stat -c %s new", check_expect=str(HUGE), target=0.6,
    ),
    Row(
        "write-4k", "write 128 MiB by 4 KiB, sequential", "main", "{ops} write-in-order new 32768", said(0, 1, 128 << 20), "fresh",
        check="stat -c %s new", check_expect=str(128 << 20), target=1.1,
    ),
    Row(
        "write-4k-random", "write 128 MiB by 4 KiB, random", "main", "{ops} write-at-random new 32768", said(0, 1, 128 << 20), "fresh",
        target=1.1,
    ),
    Row(
        "untar", "untar 8,000 files in 500 directories", "main", "{ops} untar u 500 16", UNTAR, "fresh",
        check="ls -d u* | wc -l; cat u7/* | wc -c", check_expect=lines("500", "32000"), target=3,
    ),
    Row(
        "untar-two", "untar 8,000 files in two processes", "main", together(2, "{ops} untar v{n}- 250 16"), lines(HALF, HALF), "fresh",
        check="ls v0-3 v1-3 | grep -c f", check_expect="32", target=3,
    ),
    Row(
        "untar-four", "untar 8,000 files in four processes", "main", together(4, "{ops} untar v{n}- 125 16"), lines(*[QUARTER] * 4),
        "fresh", check="ls v0-3 v3-3 | grep -c f", check_expect="32", target=3,
    ),
    Row(
        "append", "append to 2,000 lower files", "main", "{ops} append {base}/append.list", said(0, 2000, 0), copies_up=True,
        check="{ops} walk .", check_expect=walked(ENTRIES, 521, SMALL_BYTES + HUGE + 2000), target=1.2,
    ),
    Row(
        "chmod", "chmod -R of 2,400 lower files", "main", "chmod -R u+x p0 p1 p2 p3", "", copies_up=True,
        check="find p0 p1 p2 p3 -type f -perm -u+x | wc -l", check_expect="2400", target=0.9,
    ),
    Row(
        "chmod-large", "chmod of 20 lower files of 10 MiB, metacopy", "large", "chmod u+x large/*", "", copies_up=True,
        options={"overlayfs": "metacopy=on", "stratafs": "metacopy=on"},
        check="find large -type f -perm -u+x -size +9M | wc -l", check_expect="20", target=1.2,
    ),
    Row(
        "remove", "rm -r of 22,000 lower files", "main", REMOVE, "", copies_up=True, check="{ops} walk .", check_expect=REMOVED_LEFT,
        target=1.8,
    ),
    Row(
        "remove-two", "rm -r of 22,000 lower files in two processes", "main", "{ rm -r big & rm -r p5 p6 p7 p8 & wait; }", "",
        copies_up=True, check="{ops} walk .", check_expect=REMOVED_LEFT, target=1.8,
    ),
    Row(
        "remove-four", "rm -r of 9,600 lower files in four processes", "main",
        "{ rm -r p0 p1 p2 p3 & rm -r p4 p5 p6 p7 & rm -r p8 p9 p10 p11 & rm -r p12 p13 p14 p15 & wait; }", "",
        copies_up=True, check="find p* -type f | wc -l", check_expect="2400", target=1.8,
    ),
    Row(
        "rename", "5,120 renames", "main", "{ops} rename u 320 16", said(0, 5120, 0), "fresh", prepare="{ops} untar u 320 16",
        prepare_expect=said(0, 5120, 0),
        check="ls u0 u319 | grep -c g", check_expect="32", target=2,
    ),
    spool(1_000, "1,000"),
    spool(10_000, "10,000"),
    spool(40_000, "40,000"),
    Row(
        "git", "git clone and status of 8,000 files", "sources",
        "git clone -q --no-hardlinks {base}/repository clone && git -C clone status --porcelain | wc -l", "0", "fresh",
        preload=READ_ALL,
        check="find clone/s* -type f | wc -l", check_expect=str(trees.SOURCE_FILES), target=1.5,
    ),
    Row("build", "build of the C library zstd", "build", COMPILE, "built", "fresh", preload=READ_ALL + "; gcc -x c -c -o /dev/null - </dev/null", rounds=1, check="ls zstd/o/libzstd.a",
        check_expect="zstd/o/libzstd.a"),
    Row("apt", "apt install git in a chroot", "debian", INSTALL, "installed", "fresh", copies_up=True, preload=READ_ALL, rounds=1,
        check="chroot . git --version | cut -d' ' -f1-2", check_expect="git version"),
    Row("sqlite", "500 transactions of sqlite", "sources", "sqlite3 home/test.db <{base}/transactions.sql", str(trees.TRANSACTIONS), "fresh"),
    Row("memory-32000", "peak memory, 32,000 entries walked", "main", "{ops} walk .", MAIN_WALK, unit="MB", measure="peak_memory", rounds=1),
    Row(
        "memory-million", "peak memory, 1,000,000 entries walked", "million", "{ops} walk .",
        walked(40 + 1_000_000, 40 + trees.MILLION_DIRECTORIES, 0), unit="MB", measure="peak_memory", rounds=1, patience=900,
    ),
    Row(
        "memory-forgotten", "memory when 1,000,000 entries were walked and forgotten", "million", "{ops} walk .",
        walked(40 + 1_000_000, 40 + trees.MILLION_DIRECTORIES, 0), unit="MB", measure="memory_after_forget", rounds=1, patience=900,
    ),
    Row(
        "page-cache", "page cache, 10 containers reading the same 200 MB", "shared", "{ops} read .", said(200, 200, 200_000_000), unit="MB",
        measure="page_cache",
    ),
    Row(
        "page-cache-ro", "page cache, 10 read-only mounts reading the same 200 MB", "shared", "{ops} read .",
        said(200, 200, 200_000_000), unit="MB", measure="page_cache_read_only",
    ),
    Row(
        "page-cache-programs", "page cache, 10 containers starting sh, perl and python", "programs", START, "started", unit="MB",
        measure="page_cache", target=1.15,
    ),
    Row("start-warm", "start sh, perl and python, warm", "programs", START, "started", "warm"),
]


def entries_walk(count):
    directories = count // (trees.MILLION_EACH + 1)
    above = min(directories, 40)
    return walked(above + count, above + directories, 0)


# The kind of curve, and the number on its axis.
CURVES = {
    "layers": [
        Row(f"layers-{count}", f"walk cold, {count} layer{'s' if count > 1 else ''}", f"layers{count}", "{ops} walk .", layers_walk(count))
        for count in trees.LAYER_COUNTS
    ],
    "entries": [
        Row(f"entries-{count}", f"walk cold, {count:,} entries", name, "{ops} walk .", entries_walk(count), patience=900)
        for count, name in trees.ENTRY_COUNTS.items()
    ],
}


def all_curves():
    return [row for points in CURVES.values() for row in points]


def choose(wanted, of=ROWS):
    """The rows of `of` with these keys, separated by commas; all of them without any."""
    if not wanted:
        return of
    known = {row.key: row for row in of}
    unknown = [key for key in wanted.split(",") if key not in known]
    if unknown:
        raise KeyError(f"no row '{unknown[0]}'; there are: {', '.join(known)}")
    return [known[key] for key in wanted.split(",")]
