/* The tight loops of the benchmark: what a script would be too slow to time. Each prints what it did, so that a driver
 * that does less than was asked cannot look fast. Any error ends the program: status 1, the reason on stderr. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char buffer[1 << 17];
static unsigned long entries, files;
static unsigned long long bytes;

static void die(const char *what)
{
    fprintf(stderr, "ops: %s: %s\n", what, strerror(errno));
    exit(1);
}

/* Reads FD to its end, in pieces of 128 KiB. */
static void read_through(int fd, const char *name)
{
    ssize_t got;
    while ((got = read(fd, buffer, sizeof buffer)) > 0)
        bytes += got;
    if (got < 0)
        die(name);
    files++;
}

/* Every entry below the directory FD: its attributes, or (READING) the content of files of up to 1 MB. Closes FD. */
static void visit(int fd, int reading)
{
    DIR *directory = fdopendir(fd);
    if (!directory)
        die("fdopendir");
    struct dirent *entry;
    while (errno = 0, (entry = readdir(directory))) {
        const char *name = entry->d_name;
        struct stat status;
        if (!strcmp(name, ".") || !strcmp(name, ".."))
            continue;
        if (fstatat(fd, name, &status, AT_SYMLINK_NOFOLLOW))
            die(name);
        entries++;
        if (S_ISDIR(status.st_mode)) {
            int child = openat(fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
            if (child < 0)
                die(name);
            visit(child, reading);
        } else if (!reading) {
            files++;
            bytes += status.st_size;
        } else if (S_ISREG(status.st_mode) && status.st_size && status.st_size <= 1000000) {
            int file = openat(fd, name, O_RDONLY | O_CLOEXEC);
            if (file < 0)
                die(name);
            read_through(file, name);
            close(file);
        }
    }
    if (errno)
        die("readdir");
    closedir(directory);
}

static int open_directory(const char *name)
{
    int fd = open(name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        die(name);
    return fd;
}

/* Calls DO on each line of the file NAME. */
static void each_line(const char *name, void (*call)(const char *))
{
    FILE *list = fopen(name, "re");
    static char line[4096];
    if (!list)
        die(name);
    while (fgets(line, sizeof line, list)) {
        line[strcspn(line, "\n")] = 0;
        call(line);
    }
    fclose(list);
}

static void look(const char *path)
{
    struct stat status;
    if (lstat(path, &status))
        die(path);
    files++;
    bytes += status.st_size;
}

static void miss(const char *path)
{
    struct stat status;
    if (!lstat(path, &status) || errno != ENOENT)
        die(path);
    files++;
}

static void open_read_close(const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        die(path);
    ssize_t got = read(fd, buffer, sizeof buffer);
    if (got < 0)
        die(path);
    bytes += got;
    files++;
    close(fd);
}

static void append(const char *path)
{
    int fd = open(path, O_WRONLY | O_APPEND | O_CLOEXEC);
    if (fd < 0 || write(fd, "x", 1) != 1 || close(fd))
        die(path);
    files++;
}

/* The INDEXth of COUNT blocks to touch: in order, or in an order that is always the same. */
static off_t block(int random, unsigned index, unsigned count)
{
    static unsigned state = 1;
    if (!random)
        return index;
    state = state * 1103515245 + 12345;
    return (state >> 8) % count;
}

static void write_blocks(const char *name, int random, unsigned count)
{
    int fd = open(name, O_CREAT | O_RDWR | O_CLOEXEC, 0644);
    if (fd < 0)
        die(name);
    memset(buffer, 7, 4096);
    for (unsigned index = 0; index < count; index++)
        if (pwrite(fd, buffer, 4096, block(random, index, count) * 4096) != 4096)
            die(name);
        else
            bytes += 4096;
    if (close(fd))
        die(name);
    files++;
}

static void read_blocks(const char *name, unsigned wanted)
{
    struct stat status;
    int fd = open(name, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &status))
        die(name);
    unsigned count = status.st_size / 4096;
    for (unsigned index = 0; index < wanted; index++) {
        if (pread(fd, buffer, 4096, block(1, index, count) * 4096) != 4096)
            die(name);
        bytes += 4096;
    }
    close(fd);
    files++;
}

/* What tar does when it unpacks: mkdir, create, write, times, mode. */
static void untar(const char *prefix, int directories, int each)
{
    char path[512];
    struct timespec times[2] = {{1, 0}, {1, 0}};
    memset(buffer, 1, 2000);
    for (int d = 0; d < directories; d++) {
        snprintf(path, sizeof path, "%s%d", prefix, d);
        if (mkdir(path, 0755))
            die(path);
        for (int f = 0; f < each; f++) {
            snprintf(path, sizeof path, "%s%d/f%d", prefix, d, f);
            int fd = open(path, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600);
            if (fd < 0 || write(fd, buffer, 2000) != 2000 || futimens(fd, times) || fchmod(fd, 0644) || close(fd))
                die(path);
            files++;
        }
    }
}

static void rename_all(const char *prefix, int directories, int each)
{
    char from[512], to[512];
    for (int d = 0; d < directories; d++)
        for (int f = 0; f < each; f++) {
            snprintf(from, sizeof from, "%s%d/f%d", prefix, d, f);
            snprintf(to, sizeof to, "%s%d/g%d", prefix, d, f);
            if (rename(from, to))
                die(from);
            files++;
        }
}

/* Takes the first file of a directory, again and again. */
static void take_first(const char *path, int wanted)
{
    for (int taken = 0; taken < wanted; taken++) {
        DIR *directory = opendir(path);
        struct dirent *entry;

        if (!directory)
            die(path);
        while ((entry = readdir(directory)) && entry->d_name[0] == '.')
            ;
        if (!entry || unlinkat(dirfd(directory), entry->d_name, 0))
            die(path);
        closedir(directory);
        files++;
    }
}

int main(int count, char **words)
{
    const char *verb = count > 1 ? words[1] : "";
    const char *first = count > 2 ? words[2] : "";
    int second = count > 3 ? atoi(words[3]) : 0, third = count > 4 ? atoi(words[4]) : 0;

    if (!strcmp(verb, "none"))
        return 0;
    if (!strcmp(verb, "walk"))
        visit(open_directory(first), 0);
    else if (!strcmp(verb, "read"))
        visit(open_directory(first), 1);
    else if (!strcmp(verb, "stat"))
        each_line(first, look);
    else if (!strcmp(verb, "missing"))
        each_line(first, miss);
    else if (!strcmp(verb, "open"))
        each_line(first, open_read_close);
    else if (!strcmp(verb, "append"))
        each_line(first, append);
    else if (!strcmp(verb, "write-in-order"))
        write_blocks(first, 0, second);
    else if (!strcmp(verb, "write-at-random"))
        write_blocks(first, 1, second);
    else if (!strcmp(verb, "read-at-random"))
        read_blocks(first, second);
    else if (!strcmp(verb, "untar"))
        untar(first, second, third);
    else if (!strcmp(verb, "rename"))
        rename_all(first, second, third);
    else if (!strcmp(verb, "spool"))
        take_first(first, second);
    else {
        fprintf(stderr, "ops: no such work: '%s'\n", verb);
        return 2;
    }
    printf("%lu entries %lu files %llu bytes\n", entries, files, bytes);
    return 0;
}
