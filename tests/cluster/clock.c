/* Shows one process another time of day than the machine's: ahead of it by as many milliseconds as stand
   in the file that CLOCK_AHEAD names. Preloaded. Clocks that nobody sets stay as they are. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

static const volatile int64_t *ahead;
static int (*machine)(clockid_t, struct timespec *);

__attribute__((constructor)) static void begin(void) {
  const char *path = getenv("CLOCK_AHEAD");
  int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  void *page = file < 0 ? MAP_FAILED : mmap(0, sizeof *ahead, PROT_READ, MAP_SHARED, file, 0);
  if (page == MAP_FAILED) abort();
  ahead = page;
}

int clock_gettime(clockid_t clock, struct timespec *at) {
  if (!machine) *(void **)&machine = dlsym(RTLD_NEXT, "clock_gettime");
  int result = machine(clock, at);
  if (result == 0 && ahead && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
    int64_t nanos = at->tv_nsec + *ahead % 1000 * 1000000;
    at->tv_sec += *ahead / 1000 + (nanos >= 1000000000) - (nanos < 0);
    at->tv_nsec = nanos + (nanos < 0 ? 1000000000 : nanos >= 1000000000 ? -1000000000 : 0);
  }
  return result;
}
