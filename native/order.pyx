# cython: language_level=3, cdivision=True
"""The order of rows: which rows make the global batch of (epoch, step). Computed, never stored.

Within a bucket, chunks are permuted first; then the rows of each window of consecutive chunks of that order. So each
chunk is decoded once an epoch while memory stays bounded by the window; a bucket of one window is shuffled whole.

The steps of an epoch mix the buckets, yet take the batches of each in their order, so that its windows come one after
the other. They are laid out in rounds of about 64 steps: a round holds each bucket's fair part of its batches (with a
random phase, so that a bucket of one batch can come anywhere), in an order that is drawn at random.

Rows inside a window are drawn in strata. The window's rows, in chunk order, are cut into 32 equal intervals after a
random rotation; each run of 32 positions takes one row from every interval, and each interval has a permutation of
its own. So any row can stand at any position, with equal probability, and every batch holds nearly the same number
of rows of each part of the window. A rank's contiguous slice of the batch therefore keeps to the same few chunks
from batch to batch, whatever the shares: with a plain permutation the slices' borders would wander by the standard
deviation of a random sample, and ranks would decode up to twice their part of the window.
"""
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, qsort
from libc.string cimport memset

from native.shuffle cimport Feistel, feistel_forward, feistel_init, feistel_inverse, feistel_pass, fold, mix64

import numpy as np

cdef enum:
    # Purposes of keys; the trainer's dropout uses 3.
    ROWS_KEY = 1
    BATCHES_KEY = 2
    # Below this many rows, or chunks, a window's strata would be too small to be worth their cost.
    STRATIFIED_ROWS = 1024
    STRATIFIED_CHUNKS = 4
    DIGIT_BITS = 8
    ROUND_STEPS = 64
    # Keeps batches x rounds within 64 bits; beyond 2^26 steps rounds grow longer.
    MOST_ROUNDS = 1 << 20


cdef int compare(const void* a, const void* b) noexcept nogil:
    cdef int64_t x = (<const int64_t*>a)[0], y = (<const int64_t*>b)[0]
    return (x > y) - (x < y)


cdef Item* sort_items(Item* items, Item* spare, int64_t count, uint64_t top) noexcept nogil:
    """Stable radix sort by key, keys at most `top`; returns the array that holds the result."""
    cdef int64_t[1 << DIGIT_BITS] at
    cdef int64_t i, total, size
    cdef uint64_t digit, mask = (1 << DIGIT_BITS) - 1
    cdef int shift = 0
    cdef Item* swap
    while shift < 64 and (top >> shift) != 0:
        memset(at, 0, sizeof(at))
        for i in range(count):
            at[(items[i].key >> shift) & mask] += 1
        total = 0
        for i in range(1 << DIGIT_BITS):
            size = at[i]
            at[i] = total
            total += size
        for i in range(count):
            digit = (items[i].key >> shift) & mask
            spare[at[digit]] = items[i]
            at[digit] += 1
        swap = items
        items = spare
        spare = swap
        shift += DIGIT_BITS
    return items


cdef void draw(const Window* window, int64_t first, int64_t count, Item* items, int64_t* pending) noexcept nogil:
    """Set items[i].row to the window's row (in chunk order) that stands at position first + i of the window."""
    cdef int64_t i, position, strata_end = window.stratum * STRATA, waiting = 0, left, row
    cdef uint64_t mixed, stratum
    cdef const Feistel* network
    for i in range(count):
        position = first + i
        if position < strata_end:
            mixed = mix64(window.blocks_key + (<uint64_t>position >> STRATA_BITS))
            # Odd factor: a permutation of the strata, another one in each block.
            stratum = (<uint64_t>position * (mixed | 1) + (mixed >> 32)) & (STRATA - 1)
            items[i].key, items[i].row = stratum, position >> STRATA_BITS
        else:
            items[i].key, items[i].row = STRATA, position - strata_end
        pending[i] = i
    # One pass of the network over all, then over those that fell outside the domain, and so on: a loop inside each
    # row's own would be mispredicted at every other row.
    waiting = count
    while waiting > 0:
        left = 0
        for i in range(waiting):
            network = &window.inside[items[pending[i]].key]
            row = <int64_t>feistel_pass(network, <uint64_t>items[pending[i]].row)
            items[pending[i]].row = row
            pending[left] = pending[i]
            left += <uint64_t>row >= network.size
        waiting = left
    for i in range(count):
        row = items[i].row + <int64_t>items[i].key * window.stratum + window.rotation
        items[i].row = row - (window.size if row >= window.size else 0)


cdef class BatchOrder:
    """The batches of a split's buckets, in O(1) memory.

    Batch k of a bucket is positions kB .. (k+1)B of its order, so there is one short batch per bucket and epoch.
    Inside a batch rows stand in chunk order; where a batch reaches into the next window, the chunks of both stand side
    by side by their place in their window, so that the same slice of the batch means the same slice of either window.

    Args:
        rows: rows per bucket, 0 allowed.
        chunk_rows: rows of a full chunk per bucket; only a bucket's last chunk may be short.
        windows: chunks of a shuffle window per bucket.
        batch_size: rows of a global batch.
        seed: any integer, taken modulo 2^64.
        shuffle: False keeps rows and batches in their stored order.

    Raises:
        ValueError: sizes that are not positive, or no rows at all.
    """

    def __cinit__(self, *, rows, chunk_rows, windows, batch_size, seed, bint shuffle=True):
        cdef int64_t b, largest = 0
        cdef Bucket* bucket
        if not len(rows) == len(chunk_rows) == len(windows):
            raise ValueError("rows, chunk_rows and windows must have one entry per bucket")
        if batch_size < 1 or min(chunk_rows, default=0) < 1 or min(windows, default=0) < 1 or min(rows, default=-1) < 0:
            raise ValueError(f"batch_size {batch_size}, chunk_rows {list(chunk_rows)} and windows {list(windows)} must "
                             f"be at least 1, rows {list(rows)} at least 0")
        if not 0 < sum(rows) < 1 << 62:
            raise ValueError(f"{sum(rows)} rows: there must be some, and fewer than 2^62")
        self.batch_size, self.shuffle = batch_size, shuffle
        self.seed = <uint64_t>(seed & 0xFFFFFFFFFFFFFFFF)
        self.buckets, self.steps, self.round_epoch = len(rows), 0, -1
        self.bucket = <Bucket*>calloc(self.buckets, sizeof(Bucket))
        if self.bucket == NULL:
            raise MemoryError()
        for b in range(self.buckets):
            bucket = &self.bucket[b]
            bucket.rows, bucket.chunk_rows = rows[b], chunk_rows[b]
            power = chunk_rows[b] & (chunk_rows[b] - 1) == 0
            bucket.chunk_shift = int(chunk_rows[b]).bit_length() - 1 if power else -1
            bucket.chunks = (bucket.rows + bucket.chunk_rows - 1) // bucket.chunk_rows
            # Windows of about one width: a last one of few chunks would upset the slices of the batch that reaches it.
            width = min(windows[b], max(1, bucket.chunks))
            bucket.width = -(-max(1, bucket.chunks) // -(-max(1, bucket.chunks) // width))
            bucket.missing = bucket.chunks * bucket.chunk_rows - bucket.rows
            bucket.batches = (bucket.rows + self.batch_size - 1) // self.batch_size
            self.steps += bucket.batches
            largest = max(largest, min(self.batch_size, bucket.rows))
            for i in range(2):
                bucket.windows[i].index = -1
                bucket.windows[i].chunks = <int64_t*>malloc(bucket.width * sizeof(int64_t))
                if bucket.windows[i].chunks == NULL:
                    raise MemoryError()
        self.items = <Item*>malloc(largest * sizeof(Item))
        self.spare = <Item*>malloc(largest * sizeof(Item))
        self.pending = <int64_t*>malloc(largest * sizeof(int64_t))
        if self.steps > <int64_t>1 << 40:
            raise ValueError(f"{self.steps} steps an epoch are more than 2^40: take larger batches than {batch_size}")
        self.rounds = min((self.steps + ROUND_STEPS - 1) // ROUND_STEPS, MOST_ROUNDS)
        room = self.steps // self.rounds + self.buckets + 1
        self.round_buckets = <int64_t*>malloc(room * sizeof(int64_t))
        self.round_numbers = <int64_t*>malloc(room * sizeof(int64_t))
        if self.items == NULL or self.spare == NULL or self.pending == NULL or self.round_buckets == NULL \
                or self.round_numbers == NULL:
            raise MemoryError()

    def __dealloc__(self):
        cdef int64_t b
        if self.bucket != NULL:
            for b in range(self.buckets):
                free(self.bucket[b].windows[0].chunks)
                free(self.bucket[b].windows[1].chunks)
            free(self.bucket)
        free(self.items)
        free(self.spare)
        free(self.pending)
        free(self.round_buckets)
        free(self.round_numbers)

    @property
    def widths(self):
        """Chunks of a shuffle window, per bucket."""
        return [self.bucket[b].width for b in range(self.buckets)]

    def batch(self, int64_t epoch, int64_t step):
        """The batch of a step: (bucket, number k within the bucket, rows).

        Raises:
            IndexError: no such step.
        """
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} lies outside the epoch's {self.steps} steps")
        cdef Place place = self.place(epoch, step)
        return place.bucket, place.number, place.rows

    def rows(self, int64_t epoch, int64_t bucket, int64_t number):
        """Row numbers, within the bucket, of its batch k, in chunk order: int64 [rows of the batch].

        Raises:
            IndexError: no such batch.
        """
        cdef Place place
        if not 0 <= bucket < self.buckets or not 0 <= number < self.bucket[bucket].batches:
            raise IndexError(f"bucket {bucket} has no batch {number}")
        place.bucket, place.number = bucket, number
        place.rows = min(self.batch_size, self.bucket[bucket].rows - number * self.batch_size)
        result = np.empty(place.rows, np.int64)
        cdef int64_t[::1] target = result
        self.rows_into(epoch, place, 0, place.rows, &target[0])
        return result

    cdef Place place(self, int64_t epoch, int64_t step) noexcept nogil:
        cdef Place place
        cdef int64_t b = 0, index
        if not self.shuffle:
            while step >= self.bucket[b].batches:
                step -= self.bucket[b].batches
                b += 1
            place.bucket, place.number = b, step
        else:
            if self.round_epoch != epoch or not 0 <= step - self.round_first < self.round_steps:
                for b in range(self.buckets):
                    self.bucket[b].phase = <int64_t>(
                        fold(self.epoch_key(epoch), <uint64_t>b) % <uint64_t>self.rounds)
                index = step * self.rounds // self.steps
                while self.steps_before(index) > step:
                    index -= 1
                while self.steps_before(index + 1) <= step:
                    index += 1
                self.compute_round(epoch, index)
            step -= self.round_first
            place.bucket, place.number = self.round_buckets[step], self.round_numbers[step]
        place.rows = min(self.batch_size, self.bucket[place.bucket].rows - place.number * self.batch_size)
        return place

    cdef uint64_t epoch_key(self, int64_t epoch) noexcept nogil:
        return fold(fold(fold(0, self.seed), BATCHES_KEY), <uint64_t>epoch)

    cdef int64_t batches_before(self, int64_t bucket, int64_t round_index) noexcept nogil:
        return (self.bucket[bucket].batches * round_index + self.bucket[bucket].phase) // self.rounds

    cdef int64_t steps_before(self, int64_t round_index) noexcept nogil:
        cdef int64_t b, total = 0
        for b in range(self.buckets):
            total += self.batches_before(b, round_index)
        return total

    cdef void compute_round(self, int64_t epoch, int64_t round_index) noexcept nogil:
        # The buckets of its steps are shuffled by Fisher and Yates; then each bucket's batches follow in their order.
        cdef uint64_t key = fold(self.epoch_key(epoch), <uint64_t>(self.buckets + round_index))
        cdef int64_t b, i, j, swap, count = 0
        self.round_epoch, self.round_first = epoch, self.steps_before(round_index)
        for b in range(self.buckets):
            for i in range(self.batches_before(b, round_index + 1) - self.batches_before(b, round_index)):
                self.round_buckets[count] = b
                count += 1
        self.round_steps = count
        for i in range(count - 1, 0, -1):
            j = <int64_t>(mix64(key + <uint64_t>i) % <uint64_t>(i + 1))
            swap = self.round_buckets[i]
            self.round_buckets[i] = self.round_buckets[j]
            self.round_buckets[j] = swap
        for b in range(self.buckets):
            j = self.batches_before(b, round_index)
            for i in range(count):
                if self.round_buckets[i] == b:
                    self.round_numbers[i] = j
                    j += 1

    cdef void rows_into(self, int64_t epoch, Place place, int64_t begin, int64_t end, int64_t* target) noexcept nogil:
        cdef Bucket* bucket = &self.bucket[place.bucket]
        cdef int64_t position = place.number * self.batch_size, last = position + place.rows
        cdef int64_t i, inside, row, stop, index, first_index, spread, done = 0, size = bucket.chunk_rows
        cdef uint64_t top
        cdef Item* items = self.items
        cdef Window* window
        if not self.shuffle:
            for i in range(begin, end):
                target[i - begin] = position + i
            return
        index = first_index = self.window_at(epoch, place.bucket, position)
        spread = self.window_at(epoch, place.bucket, last - 1) - first_index + 1
        while position < last:
            window = self.window(epoch, place.bucket, index)
            stop = min(last, window.first + window.size)
            draw(window, position - window.first, stop - position, items + done, self.pending)
            while position < stop:
                row = items[done].row
                i = row >> bucket.chunk_shift if bucket.chunk_shift >= 0 else row // size
                inside = row - i * size
                items[done].row = window.chunks[i] * size + inside
                if spread > 1:  # side by side with the other windows' chunks; a bucket's last window may be narrower
                    row = ((i * bucket.width // window.width) * spread + index - first_index) * size + inside
                items[done].key = <uint64_t>row
                done += 1
                position += 1
            index += 1
        top = <uint64_t>(bucket.width * spread * size - 1)
        items = sort_items(items, self.spare, done, top)
        for i in range(begin, end):
            target[i - begin] = items[i].row

    cdef int64_t window_count(self, int64_t bucket) noexcept nogil:
        return (self.bucket[bucket].chunks + self.bucket[bucket].width - 1) // self.bucket[bucket].width

    cdef int64_t window_start(self, int64_t epoch, int64_t bucket, int64_t index) noexcept nogil:
        # Rows before a window: whole chunks, less what the short one lacks where it came before.
        cdef Bucket* b = &self.bucket[bucket]
        cdef int64_t slot = min(index * b.width, b.chunks), short_slot = b.chunks
        cdef Feistel order
        if b.missing:
            feistel_init(&order, <uint64_t>b.chunks, self.rows_key(epoch, bucket))
            short_slot = <int64_t>feistel_inverse(&order, <uint64_t>(b.chunks - 1))
        return slot * b.chunk_rows - (b.missing if slot > short_slot else 0)

    cdef int64_t window_at(self, int64_t epoch, int64_t bucket, int64_t position) noexcept nogil:
        cdef Bucket* b = &self.bucket[bucket]
        cdef int64_t i, index
        for i in range(2):
            if b.windows[i].index >= 0 and b.windows[i].epoch == epoch \
                    and 0 <= position - b.windows[i].first < b.windows[i].size:
                return b.windows[i].index
        index = position // (b.width * b.chunk_rows)
        # The short chunk came before, so this window starts earlier.
        return index + (position >= self.window_start(epoch, bucket, index + 1))

    cdef uint64_t rows_key(self, int64_t epoch, int64_t bucket) noexcept nogil:
        return fold(fold(fold(fold(0, self.seed), ROWS_KEY), <uint64_t>epoch), <uint64_t>bucket)

    cdef Window* window(self, int64_t epoch, int64_t bucket, int64_t index) noexcept nogil:
        cdef Bucket* b = &self.bucket[bucket]
        cdef Window* window = &b.windows[index & 1]
        cdef uint64_t key = self.rows_key(epoch, bucket), inside
        cdef Feistel order
        cdef int64_t i
        if window.index == index and window.epoch == epoch:
            return window
        window.epoch, window.index = epoch, index
        window.first = self.window_start(epoch, bucket, index)
        window.size = self.window_start(epoch, bucket, index + 1) - window.first
        window.width = min(b.width, b.chunks - index * b.width)
        feistel_init(&order, <uint64_t>b.chunks, key)
        for i in range(window.width):
            window.chunks[i] = <int64_t>feistel_forward(&order, <uint64_t>(index * b.width + i))
        qsort(window.chunks, window.width, sizeof(int64_t), compare)
        inside = mix64(key ^ mix64(<uint64_t>index + 1))
        window.stratum = window.rotation = 0
        if window.size < STRATIFIED_ROWS or window.width < STRATIFIED_CHUNKS:
            feistel_init(&window.inside[STRATA], <uint64_t>window.size, inside)
            return window
        window.stratum = window.size // STRATA
        for i in range(STRATA):
            feistel_init(&window.inside[i], <uint64_t>window.stratum, fold(inside, <uint64_t>i))
        window.blocks_key = fold(inside, STRATA)
        window.rotation = <int64_t>(fold(inside, STRATA + 1) % <uint64_t>window.size)
        if window.size > window.stratum * STRATA:
            feistel_init(&window.inside[STRATA], <uint64_t>(window.size - window.stratum * STRATA),
                         fold(inside, STRATA + 2))
        return window
