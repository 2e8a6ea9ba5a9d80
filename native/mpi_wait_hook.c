/* MPI_Allreduce as Horovod's background thread calls it a thousand times a second: waiting asleep instead of spinning.

   Every cycle (1 ms) Horovod's ranks combine a small vector of bits, and the rank that is early waits for the others
   inside MPI_Allreduce, where Open MPI polls without rest: a core is burnt by a rank that has nothing to do. MPI's
   profiling interface lets a library put its own MPI_Allreduce before the MPI library's, which stays PMPI_Allreduce.
   This one, loaded RTLD_GLOBAL before Horovod, does such a call as PMPI_Iallreduce, PMPI_Test and sleep.

   Blocking and non-blocking collectives do not match each other in MPI: one rank with the hook and one without it
   would wait for ever. So nothing is taken over before all ranks have agreed: armed, the hook holds Horovod's first
   call, before MPI sees it, until the process has asked the other ranks and decides for all calls to come.

   While a rank computes, none of its tensors can be reduced, and combining the bits a thousand times a second took a
   tenth of a core all the same: the thread is told so, and then enters its next call when the rank has something to
   send. It looks up some times in between, so that other messages of the process go on, and gives up soon: whoever
   uses Horovod beside the engine is slowed down, not stopped.

   Gradients, where all ranks have agreed on that too (several hosts, all tensors in main memory): sums of float32 and
   float64 go around a ring of the ranks, reduce-scatter and allgather, waiting asleep. A thread that polls beside one
   that computes gets the core a few times in 10 ms only, and every step of a transfer waits for that; one that sleeps is
   run as soon as it wakes. The order of the additions is fixed by the number of ranks.

   Everything else is passed on untouched: mpi4py's calls, MPI libraries that are not Open MPI. mpi.h is not needed:
   handles are passed through as they come, and Horovod's vectors are known by Open MPI's handle for long long, used for
   nothing else. */
#define _GNU_SOURCE
#include "mpi_wait_hook.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <stdint.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define EXPORTED __attribute__((visibility("default")))
#define MOST_ELEMENTS 256
#define FIRST_SLEEP_NS 10000L
#define LONGEST_SLEEP_NS 200000L
#define HOLD_SLEEP_NS 500000L
/* Nobody asked in this time: something else than the engine goes on with this Horovod, which must not hang. */
#define HOLD_SECONDS 10
#define OPEN_MPI_ERR_OTHER 16
#define BUSY_LOOK_NS 4000000L
#define BUSY_LOOKS 5
#define MOST_CALLERS 32
/* Fewer numbers than this are a matter of latency, which a ring of many ranks has most of. */
#define LEAST_RING 4096
#define SHORT_TURN_NS 100000
/* A ring of more ranks has more rounds than it saves. */
#define MOST_RING_RANKS 8
#define RING_TAG 20817
#define RING_SLEEP_NS 50000L
#define ANY_SOURCE (-1)
#define IN_PLACE ((void *)1) /* Open MPI's MPI_IN_PLACE */

typedef int (*allreduce_function)(const void *, void *, int, void *, void *, void *);
typedef int (*iallreduce_function)(const void *, void *, int, void *, void *, void *, void *);
typedef int (*test_function)(void *, int *, void *);
typedef int (*probe_function)(int, int, void *, int *, void *);
typedef int (*number_function)(void *, int *);
typedef int (*post_function)(void *, int, void *, int, int, void *, void **);
typedef int (*local_function)(const void *, void *, int, void *, void *);

/* What a library that calls MPI_Allreduce is, and the MPI that it was linked with. */
struct caller {
    const void *base;
    allreduce_function allreduce;
    iallreduce_function iallreduce; /* NULL: its calls are passed on */
    test_function test;
    probe_function probe;
    const void *bits_type;
    const void *float_type, *double_type; /* NULL: no rings */
    const void *sum;
    number_function size, rank;
    post_function send, receive;
    local_function reduce_local;
};

enum mode { PASS, HOLD, ASKING, SLEEP };

static _Atomic int mode = PASS;
static _Atomic int rings = 0;
static int busy = 0; /* under its lock */
static pthread_mutex_t busy_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t busy_ended = PTHREAD_COND_INITIALIZER;
static _Atomic int arrived = 0;
static _Atomic long taken = 0, passed = 0, around = 0;
static struct caller callers[MOST_CALLERS];
static int known_callers = 0;
static pthread_mutex_t callers_lock = PTHREAD_MUTEX_INITIALIZER;

/* Horovod's thread shares its core with one that computes. Since Linux 6.12 a thread may ask for short turns, and is then
   run as soon as it wakes; otherwise it waits for the other's turn to end, 3 ms at each message. Older kernels wake it at
   once by themselves, and refuse or ignore this. */
static void take_short_turns(void) {
#ifdef SYS_sched_setattr
    static _Thread_local int done = 0;
    if (done) return;
    done = 1;
    struct {
        uint32_t size, policy;
        uint64_t flags;
        int32_t nice;
        uint32_t priority;
        uint64_t runtime, deadline, period;
    } wish = {.size = sizeof wish, .nice = getpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid)), .runtime = SHORT_TURN_NS};
    syscall(SYS_sched_setattr, 0, &wish, 0);
#endif
}

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
    found.probe = (probe_function)dlsym(library, "PMPI_Iprobe");
    if (found.test == NULL || found.probe == NULL || found.bits_type == NULL) found.iallreduce = NULL;
    found.size = (number_function)dlsym(library, "PMPI_Comm_size");
    found.rank = (number_function)dlsym(library, "PMPI_Comm_rank");
    found.send = (post_function)dlsym(library, "PMPI_Isend");
    found.receive = (post_function)dlsym(library, "PMPI_Irecv");
    found.reduce_local = (local_function)dlsym(library, "PMPI_Reduce_local");
    found.sum = dlsym(library, "ompi_mpi_op_sum");
    if (found.size == NULL || found.rank == NULL || found.send == NULL || found.receive == NULL ||
        found.reduce_local == NULL || found.sum == NULL)
        return found;
    found.float_type = dlsym(library, "ompi_mpi_float");
    found.double_type = dlsym(library, "ompi_mpi_double");
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

static void wait_while_busy(const struct caller *mpi, void *communicator) {
    int now = 0;
    for (int look = 0; look < BUSY_LOOKS; look++) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += BUSY_LOOK_NS;
        if (until.tv_nsec >= 1000000000L) until.tv_sec += 1, until.tv_nsec -= 1000000000L;
        pthread_mutex_lock(&busy_lock);
        if (busy) pthread_cond_timedwait(&busy_ended, &busy_lock, &until);
        now = busy;
        pthread_mutex_unlock(&busy_lock);
        if (!now) return;
        int found = 0;
        mpi->probe(ANY_SOURCE, RING_TAG, communicator, &found, NULL); /* only for the messages' progress */
    }
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

/* Send to the next rank and receive from the one before, asleep. */
static int pass_on(const struct caller *mpi, char *out, int out_count, char *in, int in_count, void *type, int next,
                   int before, void *communicator) {
    void *requests[2] = {NULL, NULL};
    int error = mpi->receive(in, in_count, type, before, RING_TAG, communicator, &requests[0]);
    if (error == 0) error = mpi->send(out, out_count, type, next, RING_TAG, communicator, &requests[1]);
    for (int number = 0; number < 2 && error == 0; number++) {
        int done = 0;
        while ((error = mpi->test(&requests[number], &done, NULL)) == 0 && !done) pause_ns(RING_SLEEP_NS);
    }
    return error;
}

static int reduce_around(const struct caller *mpi, const void *given, char *data, int count, int width, void *type,
                         void *operation, void *communicator) {
    int ranks = 1, rank = 0;
    int error = mpi->size(communicator, &ranks);
    if (error == 0) error = mpi->rank(communicator, &rank);
    if (error != 0) return error;
    if (ranks > MOST_RING_RANKS) return mpi->allreduce(given, data, count, type, operation, communicator);
    if (given != IN_PLACE) memcpy(data, given, (size_t)count * width);
    if (ranks == 1) return 0;
    int next = (rank + 1) % ranks, before = (rank + ranks - 1) % ranks;
    char *incoming = malloc(((size_t)count / ranks + 1) * width);
    if (incoming == NULL) return OPEN_MPI_ERR_OTHER;
#define FIRST(part) ((int)((long long)count * (part) / ranks))
#define LENGTH(part) (FIRST((part) + 1) - FIRST(part))
#define PLACE(part) (data + (size_t)FIRST(part) * width)
    /* After ranks - 1 rounds each rank holds the sum of one part; in as many more the sums go around. */
    for (int round = 0; round < ranks - 1 && error == 0; round++) {
        int out = (rank - round + ranks) % ranks, in = (rank - round - 1 + ranks) % ranks;
        error = pass_on(mpi, PLACE(out), LENGTH(out), incoming, LENGTH(in), type, next, before, communicator);
        if (error == 0) error = mpi->reduce_local(incoming, PLACE(in), LENGTH(in), type, operation);
    }
    for (int round = 0; round < ranks - 1 && error == 0; round++) {
        int out = (rank - round + 1 + ranks) % ranks, in = (rank - round + ranks) % ranks;
        error = pass_on(mpi, PLACE(out), LENGTH(out), PLACE(in), LENGTH(in), type, next, before, communicator);
    }
    free(incoming);
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
        take_short_turns();
        wait_while_busy(&mpi, communicator);
        return reduce_asleep(&mpi, send, receive, count, type, operation, communicator);
    }
    int width = type == NULL ? 0 : type == mpi.float_type ? 4 : type == mpi.double_type ? 8 : 0;
    if (width != 0 && operation == mpi.sum && count >= LEAST_RING && atomic_load(&rings)) {
        atomic_fetch_add(&around, 1);
        return reduce_around(&mpi, send, receive, count, width, type, operation, communicator);
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

void mpi_wait_busy(int computing) {
    pthread_mutex_lock(&busy_lock);
    busy = computing;
    if (!computing) pthread_cond_signal(&busy_ended);
    pthread_mutex_unlock(&busy_lock);
}

void mpi_wait_rings(int wanted) { atomic_store(&rings, wanted); }

void mpi_wait_counts(long *calls_taken, long *calls_passed, long *calls_around) {
    *calls_taken = atomic_load(&taken);
    *calls_passed = atomic_load(&passed);
    *calls_around = atomic_load(&around);
}
