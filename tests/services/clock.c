/* The wall clock of one program, which a test can set: what the system says, and an offset in seconds from a file.

   Interposed with LD_PRELOAD.  The clocks that nobody sets (CLOCK_MONOTONIC, CLOCK_BOOTTIME) are left alone. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static int (*real)(clockid_t, struct timespec *);
static const volatile long *offset_s;

__attribute__((constructor)) static void begin(void)
{
    int fd = open(getenv("VOSFS_CLOCK"), O_RDONLY | O_CLOEXEC);
    void *mapped = mmap(NULL, sizeof *offset_s, PROT_READ, MAP_SHARED, fd, 0);

    real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    if (mapped == MAP_FAILED || real == NULL)
        abort();
    offset_s = mapped;
    close(fd);
}

int clock_gettime(clockid_t which, struct timespec *now)
{
    int failed;

    if (offset_s == NULL)
        begin();
    failed = real(which, now);
    if (!failed && (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE))
        now->tv_sec += *offset_s;
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    struct timespec found;

    (void)zone;
    clock_gettime(CLOCK_REALTIME, &found);
    now->tv_sec = found.tv_sec;
    now->tv_usec = found.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now)
{
    struct timespec found;

    clock_gettime(CLOCK_REALTIME, &found);
    if (now != NULL)
        *now = found.tv_sec;
    return found.tv_sec;
}
