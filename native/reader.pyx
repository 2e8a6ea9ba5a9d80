# cython: language_level=3, cdivision=True
"""The hot path: chunks decoded once into a bounded cache, rows gathered from them into batches.

No libhdf5, no GIL and no Python object per row. A chunk is loaded by pread, XXH3 of the stored bytes, LZ4 and range
checks; the least recently used chunk of the bucket makes room for it. Bytes that HDF5's shuffle filter has split into
planes stay so in the cache and are joined while a row is widened to int32, which costs nothing beside it.
One thread at a time may use a reader.
"""
from libc.errno cimport EINTR, errno
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy
from posix.fcntl cimport posix_fadvise, POSIX_FADV_WILLNEED
from posix.unistd cimport pread

import numpy as np

cdef extern from "<sys/mman.h>" nogil:
    int MADV_HUGEPAGE
    int madvise(void* at, size_t size, int advice)

cdef extern from "<stdlib.h>" nogil:
    int posix_memalign(void** at, size_t alignment, size_t size)

cdef extern from "kernels.h" nogil:
    void widen_16(const uint16_t* source, int32_t* target, int64_t count)
    void widen_planes_16(const uint8_t* low, const uint8_t* high, int32_t* target, int64_t count)
    void widen_planes_32(const uint8_t* source, int64_t plane, int32_t* target, int64_t count)
    uint32_t largest_16(const uint16_t* source, int64_t count)
    uint32_t largest_32(const uint32_t* source, int64_t count)
    uint32_t largest_planes_16(const uint8_t* low, const uint8_t* high, int64_t count)
    uint32_t largest_planes_32(const uint8_t* source, int64_t plane, int64_t count)
    void prefetch_bytes(const uint8_t* at, int64_t size)

cdef enum:
    # Bits of a chunk's filters, see native/index.py.
    WITH_LZ4 = 1
    WITH_SHUFFLE = 2
    ROWS_AHEAD = 8      # rows whose memory is asked for before they are copied: 4 to 8 doubled the rate
    ARENA = 8 << 20     # memory is taken in pieces of this size
    HUGE_PAGE = 2 << 20
    HEADER = 64         # bytes of a block before its tokens; the first says how they stand


FAULTS = {
    SHORT_READ: "the file ends before the chunk does, or cannot be read",
    CHECKSUM: "its stored bytes do not fit their checksum",
    ROW_CHECKSUM: "its lengths and stars do not fit their checksum",
    SIZE: "its stored size cannot be that of its rows",
    LZ4: "its LZ4 blocks do not decode to the chunk's size",
    TOKEN_RANGE: "it holds token ids outside the vocabulary",
    LENGTH_RANGE: "it holds lengths outside 1..bound",
    STAR_RANGE: "it holds stars outside 1..5",
    MEMORY: "there is no memory to decode it",
}

CHECKSUM_FAULT = <int>CHECKSUM
ROW_CHECKSUM_FAULT = <int>ROW_CHECKSUM


class ChunkFault(Exception):
    """A chunk that cannot be used; args: bucket, fault (key of FAULTS), chunk number within the bucket."""


cdef uint32_t big_endian_32(const uint8_t* at) noexcept nogil:
    return (<uint32_t>at[0] << 24) | (<uint32_t>at[1] << 16) | (<uint32_t>at[2] << 8) | at[3]


cdef Fault decode_lz4(lz4_function lz4, const uint8_t* source, int64_t size, uint8_t* target,
                      int64_t wanted) noexcept nogil:
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
        if stored < 1 or stored > size - at or stored > 0x7FFFFFFF:
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


cdef class ChunkReader:
    """Reads the rows of a split's buckets through a cache of decoded chunks.

    Args:
        bounds: padded length L of each bucket.
        rows: rows of each bucket.
        slots: most chunks of each bucket that are held decoded at once; their memory is taken as it is needed.
        chunk_rows: rows of a full chunk.
        wide: tokens are uint32 rather than uint16.
        ids: number of valid token ids.
        codecs: addresses of LZ4_decompress_safe and XXH3_64bits.
        index: arrays with an entry per chunk, bucket after bucket: descriptor int32, offset, size int64, filters
            uint8, checksum, row_checksum uint64, lengths_offset, stars_offset int64 (those of the chunk's first row).
        fallback: called as fallback(bucket, chunk) -> (tokens, lengths, stars) for chunks whose offset is -1.
        files: whatever keeps the descriptors open; held as long as the reader lives.

    Raises:
        ValueError: impossible sizes, or an index of another size.
    """

    def __cinit__(self, *, bounds, rows, slots, chunk_rows, wide, ids, codecs, index, fallback, files):
        if not (1 <= chunk_rows <= 1 << 20 and len(bounds) == len(rows) == len(slots)
                and all(1 <= bound <= 9_999 for bound in bounds) and all(0 <= count <= 1 << 48 for count in rows)):
            raise ValueError(f"impossible sizes: bounds {bounds}, chunk_rows {chunk_rows}, rows {rows}")
        chunks = [-(-count // chunk_rows) for count in rows]
        self.buckets, self.chunk_rows = len(bounds), chunk_rows
        self.chunk_shift = chunk_rows.bit_length() - 1 if chunk_rows & (chunk_rows - 1) == 0 else -1
        self.bounds, self.rows = np.array(bounds, np.int64), np.array(rows, np.int64)
        self.chunk_base = np.cumsum([0, *chunks], dtype=np.int64)
        self.slot_base = np.cumsum([0, *(max(1, min(s, c)) for s, c in zip(slots, chunks))], dtype=np.int64)
        self.used = np.zeros(self.buckets, np.int64)
        self.token_bytes = 4 if wide else 2
        self.ids = ids
        self.lz4 = <lz4_function><size_t>codecs[0]
        self.xxh3 = <xxh3_function><size_t>codecs[1]
        self.fallback, self.files = fallback, files
        self.descriptors, self.offsets, self.sizes = index["descriptor"], index["offset"], index["size"]
        self.lengths_offsets, self.stars_offsets = index["lengths_offset"], index["stars_offset"]
        self.filters = index["filters"]
        self.checksums, self.row_checksums = index["checksum"], index["row_checksum"]
        for array in index.values():
            if len(array) != self.chunk_base[self.buckets]:
                raise ValueError(f"an index array has {len(array)} entries for {self.chunk_base[self.buckets]} chunks")
        self.slot_of = np.full(max(1, self.chunk_base[self.buckets]), -1, np.int64)
        self.chunk_in = np.full(self.slot_base[self.buckets], -1, np.int64)
        self.touched = np.zeros(self.slot_base[self.buckets], np.int64)
        self.blocks = <uint8_t**>calloc(self.slot_base[self.buckets], sizeof(uint8_t*))
        self.arenas = <uint8_t**>calloc(self.slot_base[self.buckets], sizeof(uint8_t*))
        self.sides = <uint8_t*>malloc(3 * chunk_rows)
        if self.blocks == NULL or self.arenas == NULL or self.sides == NULL:
            raise MemoryError()

    def __dealloc__(self):
        cdef int64_t slot
        if self.arenas != NULL:
            for slot in range(self.slot_base[self.buckets]):
                free(self.arenas[slot])
        free(self.arenas)
        free(self.blocks)
        free(self.scratch)
        free(self.sides)

    def read(self, int64_t bucket, const int64_t[::1] rows, int32_t[:, ::1] tokens, int32_t[::1] lengths,
             uint8_t[::1] stars):
        """Copy rows of a bucket into the caller's buffers, tokens widened to int32.

        Args:
            bucket: its number.
            rows: row numbers within the bucket, any order; chunk order is fastest.
            tokens: [len(rows), bound]; lengths, stars: [len(rows)].

        Raises:
            IndexError: a row outside the bucket, or no such bucket.
            ValueError: a buffer of another size.
            ChunkFault: a chunk is damaged.
        """
        cdef int64_t count = rows.shape[0]
        cdef Trouble trouble
        if not 0 <= bucket < self.buckets:
            raise IndexError(f"bucket {bucket} lies outside 0..{self.buckets - 1}")
        if tokens.shape[0] != count or tokens.shape[1] != self.bounds[bucket] or lengths.shape[0] != count \
                or stars.shape[0] != count:
            raise ValueError(f"buffers must be [{count}, {self.bounds[bucket]}], [{count}] and [{count}]")
        if count:
            with nogil:
                trouble = self.gather(bucket, &rows[0], count, &tokens[0, 0], &lengths[0], &stars[0])
            problem = self.problem(bucket, trouble)
            if problem is not None:
                raise problem

    cdef object problem(self, int64_t bucket, Trouble trouble):
        """The exception that a trouble stands for; None for none."""
        if trouble.fault == NONE:
            return None
        if trouble.fault == OUTSIDE:
            return IndexError(f"row {trouble.place} lies outside the bucket's {self.rows[bucket]} rows")
        if trouble.fault == FALLBACK:
            error, self.error = self.error, None
            return error
        return ChunkFault(bucket, <int>trouble.fault, trouble.place)

    def resident_bytes(self):
        """Bytes of decoded chunks that are held now."""
        return sum(int(self.used[b]) * self.block_bytes(b) for b in range(self.buckets))

    # A block: header, tokens, and for each row its length and stars in one number (length | stars << 16), so that a
    # row far from the others costs one line of memory less.

    cdef int64_t sides_at(self, int64_t bucket) noexcept nogil:
        return (self.chunk_rows * self.bounds[bucket] * self.token_bytes + 3) // 4 * 4

    cdef int64_t block_bytes(self, int64_t bucket) noexcept nogil:
        return HEADER + self.sides_at(bucket) + 4 * self.chunk_rows

    cdef Trouble gather(self, int64_t bucket, const int64_t* rows, int64_t count, int32_t* tokens, int32_t* lengths,
                        uint8_t* stars) noexcept nogil:
        cdef int64_t bound = self.bounds[bucket], size = self.chunk_rows, plane = size * bound
        cdef int64_t i, j, slot, coming = min(count, ROWS_AHEAD)
        cdef const uint8_t* at
        cdef uint32_t side
        cdef Source[ROWS_AHEAD] sources
        cdef Source source
        cdef Trouble trouble
        trouble.fault, trouble.place = NONE, 0
        for i in range(count):
            if rows[i] < 0 or rows[i] >= self.rows[bucket]:
                trouble.fault, trouble.place = OUTSIDE, rows[i]
                return trouble
        for i in range(coming):
            sources[i] = self.find(bucket, rows[i])
        for i in range(count):
            if sources[i % ROWS_AHEAD].block == NULL:
                trouble.fault = self.load(bucket, rows[i] // size, &slot)
                if trouble.fault != NONE:
                    trouble.place = rows[i] // size
                    return trouble
                for j in range(i, coming):  # the chunk may have taken the place of one that they were found in
                    sources[j % ROWS_AHEAD] = self.find(bucket, rows[j])
            source = sources[i % ROWS_AHEAD]
            if coming < count:
                sources[coming % ROWS_AHEAD] = self.find(bucket, rows[coming])
                coming += 1
            at = source.block + HEADER
            side = (<const uint32_t*>(at + self.sides_at(bucket)))[source.inside]
            if source.block[0] & WITH_SHUFFLE:
                at += source.inside * bound
                if self.token_bytes == 2:
                    widen_planes_16(at, at + plane, tokens, bound)
                else:
                    widen_planes_32(at, plane, tokens, bound)
            elif self.token_bytes == 2:
                widen_16(<const uint16_t*>at + source.inside * bound, tokens, bound)
            else:
                memcpy(tokens, <const uint32_t*>at + source.inside * bound, bound * 4)
            lengths[i] = side & 0xFFFF
            stars[i] = side >> 16
            tokens += bound
        return trouble

    cdef Source find(self, int64_t bucket, int64_t row) noexcept nogil:
        """Where a row lies in the cache, its memory on the way; block NULL: its chunk is not decoded."""
        cdef int64_t chunk = self.chunk_of(row), bound = self.bounds[bucket], i
        cdef int64_t slot = self.slot_of[self.chunk_base[bucket] + chunk]
        cdef const uint8_t* tokens
        cdef Source source
        source.block, source.inside = NULL, row - chunk * self.chunk_rows
        if slot < 0:
            return source
        self.clock += 1
        self.touched[slot] = self.clock
        source.block = self.blocks[slot]
        tokens = source.block + HEADER
        if source.block[0] & WITH_SHUFFLE:
            for i in range(self.token_bytes):
                prefetch_bytes(tokens + (i * self.chunk_rows + source.inside) * bound, bound)
        else:
            prefetch_bytes(tokens + source.inside * bound * self.token_bytes, bound * self.token_bytes)
        prefetch_bytes(tokens + self.sides_at(bucket) + 4 * source.inside, 4)
        return source

    cdef void load_ahead(self, int64_t bucket, int64_t chunk) noexcept nogil:
        cdef int64_t slot
        if not self.touch(bucket, chunk) and self.load(bucket, chunk, &slot) == NONE:
            self.clock += 1
            self.touched[slot] = self.clock

    cdef bint touch(self, int64_t bucket, int64_t chunk) noexcept nogil:
        cdef int64_t slot = self.slot_of[self.chunk_base[bucket] + chunk]
        if slot < 0:
            return False
        self.clock += 1
        self.touched[slot] = self.clock
        return True

    cdef void retire(self, int64_t bucket, int64_t chunk) noexcept nogil:
        cdef int64_t slot = self.slot_of[self.chunk_base[bucket] + chunk]
        if slot >= 0:
            self.touched[slot] = 0

    cdef void advise(self, int64_t bucket, int64_t chunk) noexcept nogil:
        cdef int64_t entry = self.chunk_base[bucket] + chunk
        if self.slot_of[entry] < 0 and self.offsets[entry] >= 0:
            posix_fadvise(self.descriptors[entry], self.offsets[entry], self.sizes[entry], POSIX_FADV_WILLNEED)

    cdef bint allocate(self, int64_t bucket, int64_t slot) noexcept nogil:
        """Memory for this slot and some that follow it: huge pages, where the kernel has them, save a third of the
        time, since every row of a shuffled batch lies on a page of its own."""
        cdef int64_t size = (self.block_bytes(bucket) + 63) // 64 * 64, i
        cdef int64_t count = min(self.slot_base[bucket + 1] - slot, max(1, ARENA // size))
        cdef int64_t whole = count * size
        cdef void* arena = NULL
        if whole >= HUGE_PAGE:
            whole = (whole + HUGE_PAGE - 1) // HUGE_PAGE * HUGE_PAGE
        if posix_memalign(&arena, HUGE_PAGE if whole >= HUGE_PAGE else 64, whole) != 0:
            return False
        if whole >= HUGE_PAGE:
            madvise(arena, whole, MADV_HUGEPAGE)
        self.arenas[slot] = <uint8_t*>arena
        for i in range(count):
            self.blocks[slot + i] = <uint8_t*>arena + i * size
        return True

    cdef int64_t free_slot(self, int64_t bucket) noexcept nogil:
        """A slot for one more chunk of the bucket: a retired one, else a new one, else the least recently used.

        Where there is room for the whole bucket, a new one first: what was decoded once stays.
        """
        cdef bint whole = self.slot_base[bucket + 1] - self.slot_base[bucket] \
            >= self.chunk_base[bucket + 1] - self.chunk_base[bucket]
        cdef int64_t first = self.slot_base[bucket], end = first + self.used[bucket], slot, oldest = first
        for slot in range(first, end):
            if self.touched[slot] < self.touched[oldest]:
                oldest = slot
        if end < self.slot_base[bucket + 1] and (end == first or self.touched[oldest] > 0 or whole):
            if self.blocks[end] == NULL and not self.allocate(bucket, end):
                return -1
            self.used[bucket] += 1
            return end
        if self.chunk_in[oldest] >= 0:
            self.slot_of[self.chunk_in[oldest]] = -1
            self.chunk_in[oldest] = -1
        return oldest

    cdef Fault load(self, int64_t bucket, int64_t chunk, int64_t* into) noexcept nogil:
        cdef int64_t entry = self.chunk_base[bucket] + chunk, slot = self.free_slot(bucket)
        cdef Fault fault
        if slot < 0:
            return MEMORY
        self.touched[slot] = 0
        fault = self.fill(bucket, chunk, self.blocks[slot])
        if fault != NONE:
            return fault
        self.chunk_in[slot] = entry
        self.slot_of[entry] = slot
        self.chunks_decoded += 1
        self.bytes_decoded += self.chunk_rows * self.bounds[bucket] * self.token_bytes
        into[0] = slot
        return NONE

    cdef Fault fill(self, int64_t bucket, int64_t chunk, uint8_t* block) noexcept nogil:
        cdef int64_t entry = self.chunk_base[bucket] + chunk
        cdef int64_t rows = min(self.chunk_rows, self.rows[bucket] - chunk * self.chunk_rows)
        cdef Fault fault
        if self.offsets[entry] < 0 or self.lengths_offsets[entry] < 0 or self.stars_offsets[entry] < 0:
            block[0] = 0
            fault = FALLBACK
            with gil:
                fault = self.fill_slowly(bucket, chunk, rows, block + HEADER)
        else:
            block[0] = self.filters[entry]
            fault = self.fill_tokens(bucket, chunk, rows, block + HEADER)
            if fault == NONE:
                if not read_exactly(self.descriptors[entry], self.sides, rows * 2, self.lengths_offsets[entry]) \
                        or not read_exactly(self.descriptors[entry], self.sides + rows * 2, rows,
                                            self.stars_offsets[entry]):
                    fault = SHORT_READ
                elif self.xxh3(self.sides, rows * 3) != self.row_checksums[entry]:
                    fault = ROW_CHECKSUM
        return fault if fault != NONE else self.check(bucket, rows, block)

    cdef Fault fill_tokens(self, int64_t bucket, int64_t chunk, int64_t rows, uint8_t* tokens) noexcept nogil:
        cdef int64_t entry = self.chunk_base[bucket] + chunk
        cdef int64_t size = self.sizes[entry], row_bytes = self.bounds[bucket] * self.token_bytes
        cdef int64_t whole = self.chunk_rows * row_bytes
        cdef uint8_t* stored = tokens
        if size < 1 or size > 2 * whole + 4096:  # LZ4 never grows data by more than 1 in 255
            return SIZE
        if self.filters[entry] & WITH_LZ4:
            if self.scratch_size < size:
                free(self.scratch)
                self.scratch = <uint8_t*>malloc(size)
                self.scratch_size = size if self.scratch != NULL else 0
                if self.scratch == NULL:
                    return MEMORY
            stored = self.scratch
        elif size != whole and (size != rows * row_bytes or self.filters[entry] & WITH_SHUFFLE):
            return SIZE
        if not read_exactly(self.descriptors[entry], stored, size, self.offsets[entry]):
            return SHORT_READ
        if self.xxh3(stored, size) != self.checksums[entry]:
            return CHECKSUM
        if self.filters[entry] & WITH_LZ4:
            return decode_lz4(self.lz4, stored, size, tokens, whole)
        return NONE

    cdef Fault fill_slowly(self, int64_t bucket, int64_t chunk, int64_t rows, uint8_t* tokens):
        try:
            found = self.fallback(bucket, chunk)
            copy_bytes(found[0], tokens, rows * self.bounds[bucket] * self.token_bytes)
            copy_bytes(found[1], self.sides, rows * 2)
            copy_bytes(found[2], self.sides + rows * 2, rows)
        except BaseException as error:  # whatever it is, Ctrl-C included, is raised where the rows are asked for
            self.error = error
            return FALLBACK
        return NONE

    cdef Fault check(self, int64_t bucket, int64_t rows, uint8_t* block) noexcept nogil:
        # What a wrong writer or a hostile file could hold in spite of right checksums: an id beyond the embedding
        # would be a crash on a GPU, a length beyond the bound a read outside the batch.
        cdef int64_t bound = self.bounds[bucket], count = rows * bound, plane = self.chunk_rows * bound, i
        cdef const uint8_t* tokens = block + HEADER
        cdef const uint16_t* lengths = <const uint16_t*>self.sides
        cdef const uint8_t* stars = self.sides + rows * 2
        cdef uint32_t* sides = <uint32_t*>(tokens + self.sides_at(bucket))
        cdef uint32_t top
        if block[0] & WITH_SHUFFLE:
            top = largest_planes_16(tokens, tokens + plane, count) if self.token_bytes == 2 \
                else largest_planes_32(tokens, plane, count)
        else:
            top = largest_16(<const uint16_t*>tokens, count) if self.token_bytes == 2 \
                else largest_32(<const uint32_t*>tokens, count)
        if <int64_t>top >= self.ids:
            return TOKEN_RANGE
        for i in range(rows):
            if lengths[i] < 1 or lengths[i] > bound:
                return LENGTH_RANGE
            if stars[i] < 1 or stars[i] > 5:
                return STAR_RANGE
            sides[i] = lengths[i] | <uint32_t>stars[i] << 16
        return NONE


cdef copy_bytes(array, uint8_t* target, int64_t size):
    cdef const uint8_t[::1] source = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    if source.shape[0] != size:
        raise ValueError(f"{source.shape[0]} bytes were read where {size} belong")
    memcpy(target, &source[0], size)
