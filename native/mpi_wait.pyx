# cython: language_level=3
# distutils: sources = native/mpi_wait_hook.c
# distutils: libraries = dl pthread
"""Horovod's background thread waits asleep for other ranks; the hook itself, and why, is in mpi_wait_hook.c.

    import native.mpi_wait          # changes nothing yet
    ... its file loaded RTLD_GLOBAL, Horovod not yet loaded ...
    arm()                           # Horovod's first small reduction will be held
    ... Horovod starts ...
    decide(all ranks say ask())     # the same on all ranks: it goes on, asleep or spinning

`engine.environment` and `engine.session` do that. Every function may be called from any thread.
"""
import time

cdef extern from "mpi_wait_hook.h":
    void mpi_wait_arm() nogil
    int mpi_wait_arrived() nogil
    int mpi_wait_ask() nogil
    void mpi_wait_decide(int sleeping) nogil
    void mpi_wait_busy(int computing) nogil
    void mpi_wait_rings(int wanted) nogil
    void mpi_wait_counts(long* calls_taken, long* calls_passed, long* calls_around) nogil


def arm():
    """Hold Horovod's first small reduction until `decide`; call it before Horovod starts."""
    mpi_wait_arm()


def ask(double seconds):
    """Whether this rank can wait asleep: Horovod's thread came to the hook within this time, and is held there.

    After True `decide` must be called: nothing else lets the thread go on. After False it is not held any more.
    """
    cdef double end = time.monotonic() + seconds
    while not mpi_wait_arrived() and time.monotonic() < end:
        time.sleep(0.001)
    return mpi_wait_ask() != 0


def decide(bint sleeping):
    """Let Horovod's thread go on, and wait asleep from now on or not; must be the same on all ranks."""
    mpi_wait_decide(sleeping)


def computing(bint busy):
    """Tell that this process computes and has nothing to reduce, or that it has: Horovod's thread sleeps meanwhile.

    A process that forgets to tell the end slows Horovod down, to some cycles in 100 ms.
    """
    mpi_wait_busy(busy)


def use_rings(bint wanted):
    """Let Horovod's sums of many numbers go around a ring of the ranks, waiting asleep.

    Only after `decide(True)`, at the same place on all ranks, none of which may hold tensors on a GPU.
    """
    mpi_wait_rings(wanted)


def counts():
    """Horovod's calls of MPI_Allreduce since the start, and all others'.

    Returns:
        (small ones that waited asleep, all that were passed on to MPI as they were, sums that went around a ring).
    """
    cdef long taken = 0, passed = 0, around = 0
    mpi_wait_counts(&taken, &passed, &around)
    return taken, passed, around
