/* MPI_Allreduce as Horovod's background thread calls it a thousand times a second: waiting asleep instead of spinning.

   Every cycle (1 ms) Horovod's ranks combine a small vector of bits, and the rank that is early waits for the others
   inside MPI_Allreduce, where Open MPI polls without rest: a core is burnt by a rank that has nothing to do. MPI's
   profiling interface lets a library put its own MPI_Allreduce before the MPI library's, which stays PMPI_Allreduce.
   This one, loaded RTLD_GLOBAL before Horovod, does such a call as PMPI_Iallreduce, PMPI_Test and sleep.

   Blocking and non-blocking collectives do not match each other in MPI: one rank with the hook and one without it
   would wait for ever. So nothing is taken over before all ranks have agreed: armed, the hook holds Horovod's first
   call, before MPI sees it, until the process has asked the other ranks and decides for all calls to come.

   Everything else is passed on untouched: data (so that sums are the same bit for bit, and buffers of a GPU are left to
   what knows them), mpi4py's calls, MPI libraries that are not Open MPI. mpi.h is not needed: handles are passed
   through as they come, and Horovod's vectors are known by Open MPI's handle for long long, used for nothing else. */
#define _GNU_SOURCE
#include "mpi_wait_hook.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define EXPORTED __attribute__((visibility("default")))
#define MOST_ELEMENTS 256
#define FIRST_SLEEP_NS 10000L
#define LONGEST_SLEEP_NS 200000L
#define HOLD_SLEEP_NS 500000L
/* Nobody asked in this time: something else than the engine goes on with this Horovod, which must not hang. */
#define HOLD_SECONDS 10
#define OPEN_MPI_ERR_OTHER 16
#define MOST_CALLERS 32

typedef int (*allreduce_function)(const void *, void *, int, void *, void *, void *);
typedef int (*iallreduce_function)(const void *, void *, int, void *, void *, void *, void *);
typedef int (*test_function)(void *, int *, void *);

/* What a library that calls MPI_Allreduce is, and the MPI that it was linked with. */
struct caller {
    const void *base;
    allreduce_function allreduce;
    iallreduce_function iallreduce; /* NULL: its calls are passed on */
    test_function test;
    const void *bits_type;
};

enum mode { PASS, HOLD, ASKING, SLEEP };

static _Atomic int mode = PASS;
static _Atomic int arrived = 0;
static _Atomic long taken = 0, passed = 0;
static struct caller callers[MOST_CALLERS];
static int known_callers = 0;
static pthread_mutex_t callers_lock = PTHREAD_MUTEX_INITIALIZER;

static void pause_ns(long nanoseconds) {
    struct timespec pause = {0, nanoseconds};
    nanosleep(&pause, NULL);
}

static int is_horovod(const char *path) {
    const char *name = strrchr(path, '/');
    name = name == NULL ? path : name + 1;
    return strncmp(name, "mpi_lib", 7) == 0; /* horovod/torch/mpi_lib_v2.cpython-311-x86_64-linux-gnu.so */
}

static struct caller look_up(const Dl_info *where) {
    struct caller found = {0};
    /* The library that calls leads to its own MPI: a search from here would miss one that was loaded RTLD_LOCAL. */
    void *library = dlopen(where->dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    found.base = where->dli_fbase;
    if (library != NULL) found.allreduce = (allreduce_function)dlsym(library, "PMPI_Allreduce");
    if (found.allreduce == NULL) found.allreduce = (allreduce_function)dlsym(RTLD_NEXT, "PMPI_Allreduce");
    if (found.allreduce == NULL) found.allreduce = (allreduce_function)dlsym(RTLD_NEXT, "MPI_Allreduce");
    if (library == NULL || found.allreduce == NULL || !is_horovod(where->dli_fname)) return found;
    found.iallreduce = (iallreduce_function)dlsym(library, "PMPI_Iallreduce");
    found.test = (test_function)dlsym(library, "PMPI_Test");
    found.bits_type = dlsym(library, "ompi_mpi_long_long_int");
    if (found.test == NULL || found.bits_type == NULL) found.iallreduce = NULL;
    return found;
}

/* 0 where the caller's MPI cannot be found at all. */
static int caller_at(const void *address, struct caller *caller) {
    Dl_info where;
    if (dladdr(address, &where) == 0 || where.dli_fname == NULL) return 0;
    pthread_mutex_lock(&callers_lock);
    int number = 0;
    while (number < known_callers && callers[number].base != where.dli_fbase) number++;
    if (number < known_callers) {
        *caller = callers[number];
    } else {
        *caller = look_up(&where);
        if (known_callers < MOST_CALLERS) callers[known_callers++] = *caller;
    }
    pthread_mutex_unlock(&callers_lock);
    return caller->allreduce != NULL;
}

/* Wait until the ranks have decided; whether they take this call, and all later ones like it, over. */
static int decided(void) {
    int now = atomic_load(&mode);
    if (now == HOLD || now == ASKING) {
        struct timespec start, time;
        clock_gettime(CLOCK_MONOTONIC, &start);
        atomic_store(&arrived, 1);
        while ((now = atomic_load(&mode)) == HOLD || now == ASKING) {
            pause_ns(HOLD_SLEEP_NS);
            clock_gettime(CLOCK_MONOTONIC, &time);
            int expected = HOLD; /* once asked, the other ranks may count on this one: no giving up any more */
            if (time.tv_sec - start.tv_sec > HOLD_SECONDS) atomic_compare_exchange_strong(&mode, &expected, PASS);
        }
    }
    return now == SLEEP;
}

static int reduce_asleep(const struct caller *mpi, const void *send, void *receive, int count, void *type, void *operation,
                         void *communicator) {
    void *request = NULL;
    int done = 0;
    long pause = FIRST_SLEEP_NS;
    int error = mpi->iallreduce(send, receive, count, type, operation, communicator, &request);
    while (error == 0) {
        error = mpi->test(&request, &done, NULL); /* NULL is Open MPI's MPI_STATUS_IGNORE */
        if (error != 0 || done) break;
        pause_ns(pause);
        pause = pause * 2 < LONGEST_SLEEP_NS ? pause * 2 : LONGEST_SLEEP_NS;
    }
    return error;
}

EXPORTED int MPI_Allreduce(const void *send, void *receive, int count, void *type, void *operation, void *communicator) {
    struct caller mpi = {0};
    if (!caller_at(__builtin_return_address(0), &mpi)) {
        fprintf(stderr, "native.mpi_wait: the MPI library behind a call of MPI_Allreduce was not found; "
                        "set ENGINE_MPI_WAIT=spin on all ranks\n");
        return OPEN_MPI_ERR_OTHER;
    }
    if (mpi.iallreduce != NULL && type == mpi.bits_type && count <= MOST_ELEMENTS && decided()) {
        atomic_fetch_add(&taken, 1);
        return reduce_asleep(&mpi, send, receive, count, type, operation, communicator);
    }
    atomic_fetch_add(&passed, 1);
    return mpi.allreduce(send, receive, count, type, operation, communicator);
}

void mpi_wait_arm(void) {
    atomic_store(&arrived, 0);
    atomic_store(&mode, HOLD);
}

int mpi_wait_arrived(void) { return atomic_load(&arrived); }

int mpi_wait_ask(void) {
    int expected = HOLD;
    if (atomic_load(&arrived)) return atomic_compare_exchange_strong(&mode, &expected, ASKING);
    atomic_store(&mode, PASS);
    return 0;
}

void mpi_wait_decide(int sleeping) { atomic_store(&mode, sleeping ? SLEEP : PASS); }

void mpi_wait_counts(long *calls_taken, long *calls_passed) {
    *calls_taken = atomic_load(&taken);
    *calls_passed = atomic_load(&passed);
}
