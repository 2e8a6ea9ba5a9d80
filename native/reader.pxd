"""The chunk reader: the contract between the dataset, which reads any rows from Python, and the batch producer, which
reads without the GIL."""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

ctypedef int (*lz4_function)(const char*, char*, int, int) noexcept nogil
ctypedef uint64_t (*xxh3_function)(const void*, size_t) noexcept nogil

cdef enum Fault:
    NONE = 0
    SHORT_READ
    CHECKSUM
    ROW_CHECKSUM
    SIZE
    LZ4
    TOKEN_RANGE
    LENGTH_RANGE
    STAR_RANGE
    MEMORY
    FALLBACK
    OUTSIDE


ctypedef struct Trouble:
    # What went wrong, and with which chunk of the bucket (OUTSIDE: with which row).
    Fault fault
    int64_t place


ctypedef struct Source:
    # Where a row lies in the cache.
    const uint8_t* block    # NULL: its chunk is not decoded
    int64_t inside          # its number within the chunk


cdef class ChunkReader:
    cdef readonly int64_t buckets, chunk_rows, chunks_decoded, bytes_decoded
    cdef int64_t token_bytes, ids, clock, scratch_size
    cdef int chunk_shift                    # log2(chunk_rows), -1 where it is no power of two
    cdef lz4_function lz4
    cdef xxh3_function xxh3
    cdef object fallback, files
    cdef object error                       # what the fallback raised
    # per bucket; the bases have one entry more
    cdef const int64_t[::1] bounds, rows, chunk_base, slot_base
    cdef int64_t[::1] used
    # per chunk, all buckets one after the other
    cdef const int32_t[::1] descriptors
    cdef const int64_t[::1] offsets, sizes, lengths_offsets, stars_offsets
    cdef const uint8_t[::1] filters
    cdef const uint64_t[::1] checksums, row_checksums
    cdef int64_t[::1] slot_of               # -1: not decoded
    # per slot, all buckets one after the other
    cdef int64_t[::1] chunk_in, touched     # touched 0: may be reused first
    cdef uint8_t** blocks
    cdef uint8_t** arenas                   # at the first slot of each piece of memory: the piece
    cdef uint8_t* scratch                   # a chunk's stored bytes
    cdef uint8_t* sides                     # its lengths, then its stars

    cdef Trouble gather(self, int64_t bucket, const int64_t* rows, int64_t count, int32_t* tokens, int32_t* lengths,
                        uint8_t* stars) noexcept nogil
    # Decodes a chunk of the bucket ahead of its use; what is wrong with it will be told when it is used.
    cdef void load_ahead(self, int64_t bucket, int64_t chunk) noexcept nogil
    # Lets the slot of a chunk that is no longer needed be reused first.
    cdef void retire(self, int64_t bucket, int64_t chunk) noexcept nogil
    # Whether the chunk is decoded; if so it counts as used now.
    cdef bint touch(self, int64_t bucket, int64_t chunk) noexcept nogil
    # Asks the kernel to read the chunk's bytes soon.
    cdef void advise(self, int64_t bucket, int64_t chunk) noexcept nogil
    # The chunk that holds a row of its bucket: a division for every row would take a tenth of the time.
    cdef inline int64_t chunk_of(self, int64_t row) noexcept nogil:
        return row >> self.chunk_shift if self.chunk_shift >= 0 else row // self.chunk_rows
    cdef object problem(self, int64_t bucket, Trouble trouble)
    # its own parts
    cdef int64_t block_bytes(self, int64_t bucket) noexcept nogil
    cdef int64_t sides_at(self, int64_t bucket) noexcept nogil
    cdef Source find(self, int64_t bucket, int64_t row) noexcept nogil
    cdef bint allocate(self, int64_t bucket, int64_t slot) noexcept nogil
    cdef int64_t free_slot(self, int64_t bucket) noexcept nogil
    cdef Fault load(self, int64_t bucket, int64_t chunk, int64_t* into) noexcept nogil
    cdef Fault fill(self, int64_t bucket, int64_t chunk, uint8_t* block) noexcept nogil
    cdef Fault fill_tokens(self, int64_t bucket, int64_t chunk, int64_t rows, uint8_t* tokens) noexcept nogil
    cdef Fault fill_slowly(self, int64_t bucket, int64_t chunk, int64_t rows, uint8_t* tokens)
    cdef Fault check(self, int64_t bucket, int64_t rows, uint8_t* block) noexcept nogil
