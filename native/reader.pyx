# cython: language_level=3
"""The hot path: chunks of one length bucket, decoded once into a bounded cache, gathered into batches.

No libhdf5, no GIL and no Python object per row. A `ChunkCache` serves one bucket; `gather` copies rows into the
caller's buffers, loading the chunks it needs: pread, XXH3 of the stored bytes, LZ4, range checks. The least
recently used chunk makes room for the next. One thread at a time may call a cache (the Dataset holds a lock).
"""
from libc.errno cimport EINTR, errno
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset
from posix.unistd cimport pread

import numpy as np

ctypedef int (*lz4_function)(const char*, char*, int, int) noexcept nogil
ctypedef uint64_t (*xxh3_function)(const void*, size_t) noexcept nogil

cdef enum Fault:
    NONE = 0
    SHORT_READ
    CHECKSUM
    ROW_CHECKSUM
    LZ4
    TOKEN_RANGE
    LENGTH_RANGE
    STAR_RANGE
    MEMORY
    FALLBACK

FAULTS = {
    SHORT_READ: "the file ends before the chunk does, or cannot be read",
    CHECKSUM: "its stored bytes do not fit their checksum",
    ROW_CHECKSUM: "its lengths and stars do not fit their checksum",
    LZ4: "its LZ4 blocks do not decode to the chunk's size",
    TOKEN_RANGE: "it holds token ids outside the vocabulary",
    LENGTH_RANGE: "it holds lengths outside 1..bound",
    STAR_RANGE: "it holds stars outside 1..5",
    MEMORY: "there is no memory to decode it",
}

CHECKSUM_FAULT = <int>CHECKSUM
ROW_CHECKSUM_FAULT = <int>ROW_CHECKSUM

ctypedef fused token_t:
    uint16_t
    uint32_t


class ChunkFault(Exception):
    """A chunk that cannot be used; args: fault (key of FAULTS), chunk number."""


cdef uint32_t big_endian_32(const uint8_t* at) noexcept nogil:
    return (<uint32_t>at[0] << 24) | (<uint32_t>at[1] << 16) | (<uint32_t>at[2] << 8) | at[3]


cdef Fault decode_lz4(lz4_function lz4, const uint8_t* source, int64_t size, uint8_t* target, int64_t wanted) noexcept nogil:
    # The HDF5 LZ4 filter's container: 8 bytes decoded size and 4 bytes block size, big-endian, then for each block
    # 4 bytes stored size and its bytes; a block stored at its full size is not compressed.
    cdef int64_t at = 12, done = 0, block, stored, plain
    if size < 12 or big_endian_32(source) != 0 or <int64_t>big_endian_32(source + 4) != wanted:
        return LZ4
    block = big_endian_32(source + 8)
    if block < 1 or block > 0x7E000000:
        return LZ4
    while done < wanted:
        if at + 4 > size:
            return LZ4
        stored = big_endian_32(source + at)
        at += 4
        plain = min(block, wanted - done)
        if stored < 1 or stored > size - at:
            return LZ4
        if stored == plain:
            memcpy(target + done, source + at, plain)
        elif lz4(<const char*>source + at, <char*>target + done, <int>stored, <int>plain) != plain:
            return LZ4
        at += stored
        done += plain
    return NONE


cdef bint read_exactly(int descriptor, void* target, int64_t size, int64_t offset) noexcept nogil:
    cdef int64_t done = 0
    cdef Py_ssize_t got
    while done < size:
        got = pread(descriptor, <char*>target + done, size - done, offset + done)
        if got < 0 and errno == EINTR:
            continue
        if got <= 0:
            return False
        done += got
    return True


cdef uint32_t largest(const token_t* tokens, int64_t count) noexcept nogil:
    cdef token_t top = 0
    cdef int64_t i
    for i in range(count):
        top = tokens[i] if tokens[i] > top else top
    return top


cdef void widen(const token_t* source, int32_t* target, int64_t count) noexcept nogil:
    cdef int64_t i
    for i in range(count):
        target[i] = <int32_t>source[i]


cdef class ChunkCache:
    """Decoded chunks of one bucket, at most `slots` of them.

    Args:
        bound: padded length L.
        rows: rows of the bucket.
        chunk_rows: rows of a full chunk.
        wide: tokens are uint32 rather than uint16.
        ids: number of valid token ids.
        slots: most chunks held decoded at once.
        codecs: addresses of LZ4_decompress_safe and XXH3_64bits.
        index: arrays per chunk: descriptor int32, offset, size int64, compressed uint8, checksum, row_checksum
            uint64, lengths_offset, stars_offset int64 (already those of the chunk's first row).
        fallback: called as fallback(chunk) -> (tokens, lengths, stars) for chunks whose offset is -1.
    """

    cdef readonly int64_t bound, rows, chunk_rows, chunks, slots
    cdef readonly int64_t chunks_decoded
    cdef int64_t token_bytes, ids, clock, used
    cdef lz4_function lz4
    cdef xxh3_function xxh3
    cdef object fallback, error
    cdef const int32_t[::1] descriptors
    cdef const int64_t[::1] offsets, sizes, lengths_offsets, stars_offsets
    cdef const uint8_t[::1] compressed
    cdef const uint64_t[::1] checksums, row_checksums
    cdef int32_t[::1] slot_of
    cdef int64_t[::1] chunk_in, touched
    cdef uint8_t** blocks
    cdef uint8_t* scratch
    cdef int64_t scratch_size

    def __cinit__(self, *, bound, rows, chunk_rows, wide, ids, slots, codecs, index, fallback):
        if not (1 <= bound <= 9_999 and 1 <= chunk_rows <= 1 << 20 and 0 <= rows <= 1 << 48):
            raise ValueError(f"impossible sizes: bound {bound}, chunk_rows {chunk_rows}, rows {rows}")
        self.bound, self.rows, self.chunk_rows = bound, rows, chunk_rows
        self.chunks = (rows + chunk_rows - 1) // chunk_rows
        self.token_bytes = 4 if wide else 2
        self.ids = ids
        self.slots = max(1, min(slots, self.chunks))
        self.lz4 = <lz4_function><size_t>codecs[0]
        self.xxh3 = <xxh3_function><size_t>codecs[1]
        self.fallback = fallback
        self.descriptors, self.offsets, self.sizes = index["descriptor"], index["offset"], index["size"]
        self.lengths_offsets, self.stars_offsets = index["lengths_offset"], index["stars_offset"]
        self.compressed = index["compressed"]
        self.checksums, self.row_checksums = index["checksum"], index["row_checksum"]
        for array in index.values():
            if len(array) != self.chunks:
                raise ValueError(f"an index array has {len(array)} entries for {self.chunks} chunks")
        self.slot_of = np.full(max(1, self.chunks), -1, np.int32)
        self.chunk_in = np.full(self.slots, -1, np.int64)
        self.touched = np.zeros(self.slots, np.int64)
        self.blocks = <uint8_t**>malloc(self.slots * sizeof(uint8_t*))
        if self.blocks == NULL:
            raise MemoryError()
        memset(self.blocks, 0, self.slots * sizeof(uint8_t*))

    def __dealloc__(self):
        cdef int64_t slot
        if self.blocks != NULL:
            for slot in range(self.slots):
                free(self.blocks[slot])
            free(self.blocks)
        free(self.scratch)

    cdef int64_t block_bytes(self) noexcept nogil:
        # tokens, then lengths (uint16), then stars (uint8)
        return self.chunk_rows * (self.bound * self.token_bytes + 3)

    def gather(self, const int64_t[::1] rows, int32_t[:, ::1] tokens, int32_t[::1] lengths, uint8_t[::1] stars):
        """Copy rows into the caller's buffers, tokens widened to int32.

        Args:
            rows: row numbers within the bucket, any order; chunk order is fastest.
            tokens: [len(rows), bound]; lengths, stars: [len(rows)].

        Raises:
            IndexError: a row outside the bucket.
            ValueError: a buffer of another size.
            ChunkFault: a chunk is damaged.
        """
        cdef int64_t count = rows.shape[0], i, row = 0, chunk = 0, slot, inside
        cdef bint outside = False
        cdef Fault fault = NONE
        cdef uint8_t* block
        cdef int64_t lengths_at = self.chunk_rows * self.bound * self.token_bytes
        cdef int64_t stars_at = lengths_at + self.chunk_rows * 2
        if tokens.shape[0] != count or tokens.shape[1] != self.bound or lengths.shape[0] != count \
                or stars.shape[0] != count:
            raise ValueError(f"buffers must be [{count}, {self.bound}], [{count}] and [{count}]")
        if count == 0:
            return
        with nogil:
            for i in range(count):
                row = rows[i]
                if row < 0 or row >= self.rows:
                    outside = True
                    break
                chunk = row // self.chunk_rows
                slot = self.slot_of[chunk]
                if slot < 0:
                    fault = self.load(chunk, &slot)
                    if fault != NONE:
                        break
                self.clock += 1
                self.touched[slot] = self.clock
                inside = row - chunk * self.chunk_rows
                block = self.blocks[slot]
                if self.token_bytes == 2:
                    widen(<const uint16_t*>block + inside * self.bound, &tokens[i, 0], self.bound)
                else:
                    widen(<const uint32_t*>block + inside * self.bound, &tokens[i, 0], self.bound)
                lengths[i] = (<const uint16_t*>(block + lengths_at))[inside]
                stars[i] = (block + stars_at)[inside]
        if outside:
            raise IndexError(f"row {row} lies outside the bucket's {self.rows} rows")
        if fault == FALLBACK:
            raise self.error
        if fault != NONE:
            raise ChunkFault(<int>fault, chunk)

    cdef Fault load(self, int64_t chunk, int64_t* into) noexcept nogil:
        """Bring a chunk into a slot: a fresh one while there are any, else the least recently used one."""
        cdef int64_t slot = 0, i
        cdef Fault fault
        if self.used < self.slots:
            slot = self.used
            if self.blocks[slot] == NULL:
                self.blocks[slot] = <uint8_t*>malloc(self.block_bytes())
                if self.blocks[slot] == NULL:
                    return MEMORY
        else:
            for i in range(1, self.slots):
                if self.touched[i] < self.touched[slot]:
                    slot = i
            if self.chunk_in[slot] >= 0:
                self.slot_of[self.chunk_in[slot]] = -1
                self.chunk_in[slot] = -1
        fault = self.fill(chunk, self.blocks[slot])
        if fault != NONE:
            self.touched[slot] = 0
            return fault
        if slot == self.used:
            self.used += 1
        self.chunk_in[slot] = chunk
        self.slot_of[chunk] = <int32_t>slot
        self.chunks_decoded += 1
        into[0] = slot
        return NONE

    cdef Fault fill(self, int64_t chunk, uint8_t* block) noexcept nogil:
        cdef int64_t rows = min(self.chunk_rows, self.rows - chunk * self.chunk_rows)
        cdef int64_t row_bytes = self.bound * self.token_bytes
        cdef uint8_t* lengths_at = block + self.chunk_rows * row_bytes
        cdef uint8_t* stars_at = lengths_at + self.chunk_rows * 2
        cdef Fault fault = NONE
        if self.offsets[chunk] < 0 or self.lengths_offsets[chunk] < 0 or self.stars_offsets[chunk] < 0:
            with gil:
                fault = self.fill_slowly(chunk, rows, block)
        else:
            fault = self.fill_tokens(chunk, rows, block)
            if fault == NONE:
                if not read_exactly(self.descriptors[chunk], lengths_at, rows * 2, self.lengths_offsets[chunk]) \
                        or not read_exactly(self.descriptors[chunk], stars_at, rows, self.stars_offsets[chunk]):
                    fault = SHORT_READ
        if fault == NONE:
            fault = self.check(chunk, rows, block)
        return fault

    cdef Fault fill_tokens(self, int64_t chunk, int64_t rows, uint8_t* block) noexcept nogil:
        cdef int64_t size = self.sizes[chunk], row_bytes = self.bound * self.token_bytes
        cdef int64_t whole = self.chunk_rows * row_bytes
        cdef uint8_t* stored = block
        if size < 1 or size > 2 * whole + 4096:  # LZ4 never grows data by more than 1 in 255
            return LZ4
        if self.compressed[chunk]:
            if self.scratch_size < size:
                free(self.scratch)
                self.scratch = <uint8_t*>malloc(size)
                self.scratch_size = size if self.scratch != NULL else 0
                if self.scratch == NULL:
                    return MEMORY
            stored = self.scratch
        elif size != whole and size != rows * row_bytes:
            return SHORT_READ
        if not read_exactly(self.descriptors[chunk], stored, size, self.offsets[chunk]):
            return SHORT_READ
        if self.xxh3(stored, size) != self.checksums[chunk]:
            return CHECKSUM
        if self.compressed[chunk]:
            return decode_lz4(self.lz4, stored, size, block, whole)
        return NONE

    cdef Fault fill_slowly(self, int64_t chunk, int64_t rows, uint8_t* block):
        cdef const uint8_t[::1] source
        cdef int64_t at = 0
        try:
            for array, width in zip(self.fallback(chunk), (self.bound * self.token_bytes, 2, 1)):
                source = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
                if source.shape[0] != rows * width:
                    raise ValueError(f"chunk {chunk}: {source.shape[0]} bytes where {rows * width} belong")
                memcpy(block + at, &source[0], rows * width)
                at += self.chunk_rows * width
        except Exception as error:
            self.error = error  # raised by gather, once the GIL-free loop has ended
            return FALLBACK
        return NONE

    cdef Fault check(self, int64_t chunk, int64_t rows, uint8_t* block) noexcept nogil:
        # What a wrong writer or a hostile file could hold in spite of right checksums: an id beyond the embedding
        # would be a crash on a GPU, a length beyond the bound a read outside the batch.
        cdef int64_t count = rows * self.bound, i
        cdef uint8_t* lengths_at = block + self.chunk_rows * self.bound * self.token_bytes
        cdef uint8_t* stars_at = lengths_at + self.chunk_rows * 2
        cdef const uint16_t* lengths = <const uint16_t*>lengths_at
        cdef uint32_t top
        if self.offsets[chunk] >= 0 and self.row_digest(lengths_at, stars_at, rows) != self.row_checksums[chunk]:
            return ROW_CHECKSUM
        top = largest(<const uint16_t*>block, count) if self.token_bytes == 2 else largest(<const uint32_t*>block, count)
        if <int64_t>top >= self.ids:
            return TOKEN_RANGE
        for i in range(rows):
            if lengths[i] < 1 or lengths[i] > self.bound:
                return LENGTH_RANGE
            if stars_at[i] < 1 or stars_at[i] > 5:
                return STAR_RANGE
        return NONE

    cdef uint64_t row_digest(self, const uint8_t* lengths, uint8_t* stars, int64_t rows) noexcept nogil:
        # The checksum is of lengths and stars back to back; in a short chunk a gap lies between them here.
        if rows == self.chunk_rows:
            return self.xxh3(lengths, rows * 3)
        cdef uint8_t* both = <uint8_t*>malloc(rows * 3)
        cdef uint64_t digest
        if both == NULL:
            return 0
        memcpy(both, lengths, rows * 2)
        memcpy(both + rows * 2, stars, rows)
        digest = self.xxh3(both, rows * 3)
        free(both)
        return digest
