/* Between native/mpi_wait.pyx and the hook; nothing of it is visible outside of the module. */
#ifndef MPI_WAIT_HOOK_H
#define MPI_WAIT_HOOK_H

#define HIDDEN __attribute__((visibility("hidden")))

/* From now on Horovod's first small reduction is held until mpi_wait_decide. */
HIDDEN void mpi_wait_arm(void);
/* Whether Horovod's thread is held. */
HIDDEN int mpi_wait_arrived(void);
/* Keep it held until mpi_wait_decide, however long that takes; 0, and nothing is held, where it has not arrived. */
HIDDEN int mpi_wait_ask(void);
/* Let it go on, asleep or spinning in all calls to come. */
HIDDEN void mpi_wait_decide(int sleeping);
/* Whether this process computes, and has nothing for Horovod to reduce. */
HIDDEN void mpi_wait_busy(int computing);
/* From now on sums of many floating-point numbers go around a ring, asleep, or not; the same on all ranks. */
HIDDEN void mpi_wait_rings(int wanted);
HIDDEN void mpi_wait_counts(long *calls_taken, long *calls_passed, long *calls_around);

#endif
