"""Which rows make each global batch: the contract between the plan, which asks from Python, and the batch producer,
which asks without the GIL."""
from libc.stdint cimport int64_t, uint64_t

from native.shuffle cimport Feistel

cdef enum:
    STRATA_BITS = 5
    STRATA = 32


ctypedef struct Window:
    # A shuffle window: consecutive chunks of the permuted order of chunks. Its rows are numbered 0 .. size - 1 in
    # the ascending order of its chunks.
    int64_t epoch
    int64_t index       # -1: nothing computed yet
    int64_t first       # position, within the bucket's order, at which it begins
    int64_t size        # rows
    int64_t width       # chunks
    int64_t* chunks     # their numbers, ascending
    int64_t stratum     # rows of a stratum; 0: not stratified
    int64_t rotation
    uint64_t blocks_key
    Feistel[33] inside  # one per stratum, and one for the rows beyond (all rows where there are no strata)


ctypedef struct Bucket:
    int64_t rows
    int64_t chunk_rows
    int chunk_shift     # log2(chunk_rows), -1 where it is no power of two
    int64_t chunks
    int64_t width       # chunks of a full window
    int64_t missing     # rows that the last chunk lacks
    int64_t batches
    int64_t phase       # of this epoch's rounds, see BatchOrder
    Window[2] windows


ctypedef struct Place:
    # A step's batch: number k within its bucket, and its rows.
    int64_t bucket
    int64_t number
    int64_t rows


ctypedef struct Item:
    uint64_t key
    int64_t row


cdef class BatchOrder:
    cdef readonly int64_t batch_size
    cdef readonly int64_t steps
    cdef int64_t buckets
    cdef uint64_t seed
    cdef bint shuffle
    cdef Bucket* bucket
    cdef Item* items
    cdef Item* spare
    cdef int64_t* pending
    # the round that was computed last: a bucket and its batch's number for each of its steps
    cdef int64_t rounds, round_epoch, round_first, round_steps
    cdef int64_t* round_buckets
    cdef int64_t* round_numbers

    cdef Place place(self, int64_t epoch, int64_t step) noexcept nogil
    # Row numbers begin..end, within the bucket, of a batch's rows in chunk order.
    cdef void rows_into(self, int64_t epoch, Place place, int64_t begin, int64_t end, int64_t* target) noexcept nogil
    cdef int64_t window_at(self, int64_t epoch, int64_t bucket, int64_t position) noexcept nogil
    cdef int64_t window_count(self, int64_t bucket) noexcept nogil
    cdef int64_t window_start(self, int64_t epoch, int64_t bucket, int64_t index) noexcept nogil
    cdef uint64_t rows_key(self, int64_t epoch, int64_t bucket) noexcept nogil
    cdef uint64_t epoch_key(self, int64_t epoch) noexcept nogil
    cdef int64_t batches_before(self, int64_t bucket, int64_t round_index) noexcept nogil
    cdef int64_t steps_before(self, int64_t round_index) noexcept nogil
    cdef void compute_round(self, int64_t epoch, int64_t round_index) noexcept nogil
    # Valid until another window of this bucket is asked for.
    cdef Window* window(self, int64_t epoch, int64_t bucket, int64_t index) noexcept nogil
