/* Makes the calls that change files below one folder fail: preloaded and armed by faults.py. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { CREATE = 1, WRITE = 2, RENAME = 4, REMOVE = 8 };

static char below[PATH_MAX];
static int armed_kinds, armed_error, armed_stays;
static long armed_at;
static long seen;
static long *counted; /* by kind, in memory that the parent shares */

/* Of the calls of `kinds`, the `at`-th fails with `error`, with `stays` all that follow too. */
void faults_arm(const char *folder, int kinds, int error, long at, int stays, long *counters) {
    snprintf(below, sizeof below, "%s/", folder);
    armed_error = error;
    armed_at = at;
    armed_stays = stays;
    counted = counters;
    seen = 0;
    armed_kinds = kinds;
}

static int fails(int kind, const char *path) {
    if (!(armed_kinds & kind) || strncmp(path, below, strlen(below)))
        return 0;
    __atomic_add_fetch(&counted[kind], 1, __ATOMIC_SEQ_CST);
    long number = __atomic_add_fetch(&seen, 1, __ATOMIC_SEQ_CST);
    if (number != armed_at && !(armed_stays && armed_at && number > armed_at))
        return 0;
    errno = armed_error;
    return 1;
}

static int fails_open(int kind, int number) {
    char link[64], path[PATH_MAX];
    if (!(armed_kinds & kind))
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", number);
    ssize_t size = readlink(link, path, sizeof path - 1);
    path[size < 0 ? 0 : size] = 0;
    return fails(kind, path);
}

static int fails_at(int kind, int folder, const char *name) {
    char link[64], path[2 * PATH_MAX];
    if (!(armed_kinds & kind) || !name)
        return 0;
    if (name[0] == '/')
        return fails(kind, name);
    if (folder == AT_FDCWD)
        strcpy(link, "/proc/self/cwd");
    else
        snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    ssize_t size = readlink(link, path, PATH_MAX - 1);
    snprintf(path + (size < 0 ? 0 : size), PATH_MAX, "/%s", name);
    return fails(kind, path);
}

#define WRAP(type, name, parameters, arguments, condition)       \
    type name parameters {                                       \
        static type(*real) parameters;                           \
        if (!real)                                               \
            real = (type(*) parameters)dlsym(RTLD_NEXT, #name);  \
        return (condition) ? -1 : real arguments;                \
    }

#define WRAP_OPEN(name, folder, parameters, arguments)                                  \
    int name parameters {                                                               \
        static int(*real) parameters;                                                   \
        va_list more;                                                                   \
        va_start(more, flags);                                                          \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;         \
        va_end(more);                                                                   \
        if (!real)                                                                      \
            real = (int(*) parameters)dlsym(RTLD_NEXT, #name);                          \
        int writes = flags & (O_CREAT | O_WRONLY | O_RDWR);                             \
        return writes && fails_at(CREATE, folder, path) ? -1 : real arguments;          \
    }

WRAP_OPEN(open, AT_FDCWD, (const char *path, int flags, ...), (path, flags, mode))
WRAP_OPEN(open64, AT_FDCWD, (const char *path, int flags, ...), (path, flags, mode))
WRAP_OPEN(openat, folder, (int folder, const char *path, int flags, ...), (folder, path, flags, mode))
WRAP_OPEN(openat64, folder, (int folder, const char *path, int flags, ...), (folder, path, flags, mode))
WRAP(int, mkdir, (const char *path, mode_t mode), (path, mode), fails_at(CREATE, AT_FDCWD, path))
WRAP(int, mkdirat, (int at, const char *path, mode_t mode), (at, path, mode), fails_at(CREATE, at, path))
WRAP(ssize_t, write, (int file, const void *data, size_t n), (file, data, n), fails_open(WRITE, file))
WRAP(ssize_t, writev, (int file, const struct iovec *v, int n), (file, v, n), fails_open(WRITE, file))
WRAP(ssize_t, pwrite, (int file, const void *data, size_t n, off_t at), (file, data, n, at),
     fails_open(WRITE, file))
WRAP(ssize_t, pwrite64, (int file, const void *data, size_t n, off64_t at), (file, data, n, at),
     fails_open(WRITE, file))
WRAP(ssize_t, sendfile, (int file, int from, off_t *at, size_t n), (file, from, at, n),
     fails_open(WRITE, file))
WRAP(int, ftruncate, (int file, off_t size), (file, size), fails_open(WRITE, file))
WRAP(int, ftruncate64, (int file, off64_t size), (file, size), fails_open(WRITE, file))
WRAP(int, fsync, (int file), (file), fails_open(WRITE, file))
WRAP(int, fdatasync, (int file), (file), fails_open(WRITE, file))
WRAP(int, rename, (const char *from, const char *to), (from, to), fails_at(RENAME, AT_FDCWD, to))
WRAP(int, renameat, (int at, const char *from, int there, const char *to), (at, from, there, to),
     fails_at(RENAME, there, to))
WRAP(int, renameat2, (int at, const char *from, int there, const char *to, unsigned flags),
     (at, from, there, to, flags), fails_at(RENAME, there, to))
WRAP(int, link, (const char *from, const char *to), (from, to), fails_at(RENAME, AT_FDCWD, to))
WRAP(int, unlink, (const char *path), (path), fails_at(REMOVE, AT_FDCWD, path))
WRAP(int, unlinkat, (int at, const char *path, int flags), (at, path, flags), fails_at(REMOVE, at, path))
WRAP(int, rmdir, (const char *path), (path), fails_at(REMOVE, AT_FDCWD, path))
WRAP(int, remove, (const char *path), (path), fails_at(REMOVE, AT_FDCWD, path))
