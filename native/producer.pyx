# cython: language_level=3, cdivision=True
"""Fills a ring of batch buffers ahead of the trainer, in a thread that does not hold the GIL.

The trainer submits what it will want (epoch, step, its part of the batch) and takes the batches in the same order.
Between batches, when the ring is full, the thread decodes the chunks of each bucket's next shuffle window one by one:
a window would otherwise be decoded all at once by its first batch, and the trainer would wait for it.
"""
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport ETIMEDOUT
from libc.stdint cimport int32_t, int64_t, uint8_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from native.order cimport BatchOrder, Place, Window
from native.reader cimport NONE, ChunkReader, Trouble

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    ctypedef struct pthread_condattr_t:
        pass
    int pthread_mutex_init(pthread_mutex_t*, const void*)
    int pthread_mutex_lock(pthread_mutex_t*)
    int pthread_mutex_unlock(pthread_mutex_t*)
    int pthread_condattr_init(pthread_condattr_t*)
    int pthread_condattr_setclock(pthread_condattr_t*, int)
    int pthread_cond_init(pthread_cond_t*, const pthread_condattr_t*)
    int pthread_cond_wait(pthread_cond_t*, pthread_mutex_t*)
    int pthread_cond_timedwait(pthread_cond_t*, pthread_mutex_t*, const timespec*)
    int pthread_cond_signal(pthread_cond_t*)
    int pthread_cond_broadcast(pthread_cond_t*)

cdef enum:
    ADVISED = 8             # chunks that the kernel is asked to read before they are decoded
    LOOK_MILLISECONDS = 50  # a waiting trainer looks this often whether it was interrupted


ctypedef struct Slot:
    # A buffer, and the request that it serves.
    int32_t* tokens
    int32_t* lengths
    uint8_t* stars
    int64_t epoch
    int64_t step
    int64_t begin   # this rank's part of a full batch: rows begin .. end of batch_size
    int64_t end
    Place place
    int64_t rows
    Trouble trouble


ctypedef struct Ahead:
    # A bucket's current window, whose chunks are in use, and the next one, whose chunks are decoded ahead.
    int64_t epoch
    int64_t index           # -1: no batch yet
    int64_t* current        # chunk numbers, ascending
    int64_t current_count
    int64_t* coming
    int64_t coming_count
    int64_t at              # the next of `coming` to decode


cdef class BatchProducer:
    """The ring and its thread's work.

    Args:
        reader: this producer's own; nobody else may use it meanwhile.
        order: this producer's own.
        buffers: tuples of C-contiguous arrays (tokens int32 [any], lengths int32 [n], stars uint8 [n]), each with
            room for the largest part of a batch that is submitted.
        epochs: no chunk is decoded ahead for this epoch or a later one.
    """

    cdef readonly ChunkReader reader
    cdef BatchOrder order
    cdef object buffers
    cdef list errors                        # per buffer: what reading through h5py raised
    cdef int64_t epochs, ring, submitted, filled, taken, room_rows, room_tokens, most_rows, longest, buckets, wake_at
    cdef Slot* slots
    cdef Ahead* ahead
    cdef int64_t* row_numbers
    cdef bint stopping
    cdef pthread_mutex_t mutex
    cdef pthread_cond_t work, served

    def __cinit__(self, ChunkReader reader, BatchOrder order, buffers, int64_t epochs):
        cdef int32_t[::1] tokens, lengths
        cdef uint8_t[::1] stars
        cdef pthread_condattr_t attributes
        cdef int64_t i
        self.reader, self.order, self.buffers, self.epochs = reader, order, buffers, epochs
        self.ring, self.buckets = len(buffers), reader.buckets
        self.errors = [None] * self.ring
        if order.buckets != reader.buckets:
            raise ValueError(f"the order has {order.buckets} buckets, the data {reader.buckets}")
        for i in range(self.buckets):
            if order.bucket[i].rows != reader.rows[i] or order.bucket[i].chunk_rows != reader.chunk_rows:
                raise ValueError(f"the order was made for {order.bucket[i].rows} rows in bucket {i} in chunks of "
                                 f"{order.bucket[i].chunk_rows}, not for {reader.rows[i]} in {reader.chunk_rows}")
        # Small batches come in larger rings, and several are filled at a time: waking a thread for each would take longer
        # than filling it.
        self.wake_at = max(1, (self.ring - 2) // 2)
        self.most_rows, self.longest = max(reader.rows), max(reader.bounds)
        self.slots = <Slot*>calloc(self.ring, sizeof(Slot))
        self.ahead = <Ahead*>calloc(self.buckets, sizeof(Ahead))
        if self.slots == NULL or self.ahead == NULL:
            raise MemoryError()
        for i in range(self.ring):
            tokens, lengths, stars = buffers[i]
            self.slots[i].tokens, self.slots[i].lengths, self.slots[i].stars = &tokens[0], &lengths[0], &stars[0]
            self.room_tokens = tokens.shape[0] if i == 0 else min(self.room_tokens, tokens.shape[0])
            self.room_rows = lengths.shape[0] if i == 0 else min(self.room_rows, lengths.shape[0], stars.shape[0])
        self.row_numbers = <int64_t*>malloc(max(1, self.room_rows) * sizeof(int64_t))
        if self.row_numbers == NULL:
            raise MemoryError()
        for i in range(self.buckets):
            self.ahead[i].index = -1
            self.ahead[i].current = <int64_t*>malloc(order.bucket[i].width * sizeof(int64_t))
            self.ahead[i].coming = <int64_t*>malloc(order.bucket[i].width * sizeof(int64_t))
            if self.ahead[i].current == NULL or self.ahead[i].coming == NULL:
                raise MemoryError()
        pthread_mutex_init(&self.mutex, NULL)
        pthread_condattr_init(&attributes)
        pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC)
        pthread_cond_init(&self.work, &attributes)
        pthread_cond_init(&self.served, &attributes)

    def __dealloc__(self):
        cdef int64_t b
        if self.ahead != NULL:
            for b in range(self.buckets):
                free(self.ahead[b].current)
                free(self.ahead[b].coming)
        free(self.ahead)
        free(self.slots)
        free(self.row_numbers)

    def ready(self):
        """Whether a batch waits to be taken."""
        if self.filled == self.taken and self.submitted > self.filled:
            with nogil:
                pthread_mutex_lock(&self.mutex)
                pthread_cond_signal(&self.work)
                pthread_mutex_unlock(&self.mutex)
        return self.filled > self.taken

    def submit(self, int64_t epoch, int64_t step, int64_t begin, int64_t end):
        """Ask for rows begin .. end (of batch_size) of a step's batch; they replace the oldest buffer's content.

        Raises:
            IndexError: no such step or rows.
            ValueError: the ring is full, or its buffers are too small.
        """
        cdef Slot* slot
        cdef int64_t most = min(end - begin, self.most_rows)
        if not 0 <= step < self.order.steps or epoch < 0 or not 0 <= begin <= end <= self.order.batch_size:
            raise IndexError(f"no epoch {epoch}, step {step}, rows {begin}..{end} of {self.order.batch_size}")
        if most > self.room_rows or most * self.longest > self.room_tokens:
            raise ValueError(f"a part of up to {most} rows of {self.longest} tokens does not fit the buffers")
        with nogil:
            pthread_mutex_lock(&self.mutex)
        if self.submitted - self.taken >= self.ring:
            pthread_mutex_unlock(&self.mutex)
            raise ValueError(f"{self.ring} batches have been asked for and none taken: the ring is full")
        slot = &self.slots[self.submitted % self.ring]
        slot.epoch, slot.step, slot.begin, slot.end = epoch, step, begin, end
        self.submitted += 1
        if self.submitted - self.filled >= self.wake_at:
            pthread_cond_signal(&self.work)
        pthread_mutex_unlock(&self.mutex)

    def take(self):
        """Wait for the next batch: (buffer's number, bucket, number k, rows of the whole batch, rows here, problem).

        The problem is None, or an exception in the batch's place: ChunkFault, or what reading through h5py raised.
        For one thread at a time.

        Raises:
            ValueError: nothing was submitted, or the producer was stopped.
        """
        cdef Slot* slot
        while not self.wait():
            PyErr_CheckSignals()  # Ctrl-C must not wait for a disk that does not answer
        if self.stopping or self.filled == self.taken:
            raise ValueError("there is no batch to take: none was submitted, or the producer was stopped")
        number = self.taken % self.ring
        slot = &self.slots[number]
        self.taken += 1
        problem, self.errors[number] = self.errors[number], None
        return number, slot.place.bucket, slot.place.number, slot.place.rows, slot.rows, problem

    cdef bint wait(self):
        """Wait for a filled slot, but not for long; whether there is one, or never will be."""
        cdef timespec until
        cdef bint done
        with nogil:
            pthread_mutex_lock(&self.mutex)
            if self.filled == self.taken and not self.stopping and self.submitted > self.taken:
                pthread_cond_signal(&self.work)
                clock_gettime(CLOCK_MONOTONIC, &until)
                until.tv_nsec += LOOK_MILLISECONDS * 1000000
                if until.tv_nsec >= 1000000000:
                    until.tv_sec += 1
                    until.tv_nsec -= 1000000000
                while self.filled == self.taken and not self.stopping:
                    if pthread_cond_timedwait(&self.served, &self.mutex, &until) == ETIMEDOUT:
                        break
            done = self.filled > self.taken or self.stopping or self.submitted == self.taken
            pthread_mutex_unlock(&self.mutex)
        return done

    def stop(self):
        """Let `run` return soon, and wake whoever waits."""
        with nogil:
            pthread_mutex_lock(&self.mutex)
            self.stopping = True
            pthread_cond_broadcast(&self.work)
            pthread_cond_broadcast(&self.served)
            pthread_mutex_unlock(&self.mutex)

    def run(self):
        """Serve requests until `stop`; the work of the producer's thread."""
        cdef int64_t bucket
        with nogil:
            pthread_mutex_lock(&self.mutex)
            while not self.stopping:
                if self.filled < self.submitted:
                    pthread_mutex_unlock(&self.mutex)
                    self.fill(&self.slots[self.filled % self.ring])
                    pthread_mutex_lock(&self.mutex)
                    self.filled += 1
                    if self.filled - self.taken >= self.wake_at or self.filled == self.submitted:
                        pthread_cond_signal(&self.served)
                    continue
                bucket = self.bucket_to_read_ahead()
                if bucket >= 0:
                    pthread_mutex_unlock(&self.mutex)
                    self.read_ahead(bucket)
                    pthread_mutex_lock(&self.mutex)
                else:
                    pthread_cond_wait(&self.work, &self.mutex)
            pthread_mutex_unlock(&self.mutex)

    cdef void fill(self, Slot* slot) noexcept nogil:
        cdef int64_t begin, end, i, last = -1, chunk
        slot.trouble.fault = NONE
        slot.place = self.order.place(slot.epoch, slot.step)
        # The same cut as engine.plan.Plan.slices makes; a short batch is shared out in proportion.
        begin = slot.begin * slot.place.rows // self.order.batch_size
        end = slot.end * slot.place.rows // self.order.batch_size
        slot.rows = end - begin
        if slot.rows == 0:
            return
        self.order.rows_into(slot.epoch, slot.place, begin, end, self.row_numbers)
        for i in range(slot.rows):
            chunk = self.reader.chunk_of(self.row_numbers[i])
            if chunk != last:
                self.reader.advise(slot.place.bucket, chunk)
                last = chunk
        slot.trouble = self.reader.gather(
            slot.place.bucket, self.row_numbers, slot.rows, slot.tokens, slot.lengths, slot.stars)
        if slot.trouble.fault != NONE:
            with gil:
                self.errors[slot - self.slots] = self.reader.problem(slot.place.bucket, slot.trouble)
        self.follow(slot)

    cdef void follow(self, const Slot* slot) noexcept nogil:
        """See which window the bucket has come to, let the last one's chunks go, and note the next one's."""
        cdef int64_t bucket = slot.place.bucket, epoch = slot.epoch, i, first, end
        cdef int64_t position = slot.place.number * self.order.batch_size + slot.place.rows - 1
        cdef int64_t index = self.order.window_at(epoch, bucket, position)
        cdef Ahead* ahead = &self.ahead[bucket]
        cdef Window* window
        cdef int64_t* swap
        if ahead.index == index and ahead.epoch == epoch or not self.order.shuffle:
            return
        for i in range(ahead.current_count):
            self.reader.retire(bucket, ahead.current[i])
        window = self.order.window(epoch, bucket, index)
        ahead.epoch, ahead.index, ahead.current_count = epoch, index, window.width
        memcpy(ahead.current, window.chunks, window.width * sizeof(int64_t))
        for i in range(window.width):
            self.reader.touch(bucket, window.chunks[i])
        index += 1
        if index == self.order.window_count(bucket):
            epoch, index = epoch + 1, 0
        ahead.at = ahead.coming_count = 0
        if epoch >= self.epochs:
            return
        window = self.order.window(epoch, bucket, index)
        first = slot.begin * window.width // self.order.batch_size
        end = (slot.end * window.width + self.order.batch_size - 1) // self.order.batch_size
        ahead.coming_count = end - first
        memcpy(ahead.coming, window.chunks + first, ahead.coming_count * sizeof(int64_t))
        for i in range(ahead.coming_count):
            self.reader.touch(bucket, ahead.coming[i])
        for i in range(min(ADVISED, ahead.coming_count)):
            self.reader.advise(bucket, ahead.coming[i])

    cdef int64_t bucket_to_read_ahead(self) noexcept nogil:
        """The bucket with the largest part of its next window still to decode; -1 where nothing is left."""
        cdef int64_t b, best = -1
        cdef double part, most = 0.0
        for b in range(self.buckets):
            if self.ahead[b].at < self.ahead[b].coming_count:
                part = <double>(self.ahead[b].coming_count - self.ahead[b].at) / self.ahead[b].coming_count
                if part > most:
                    best, most = b, part
        return best

    cdef void read_ahead(self, int64_t bucket) noexcept nogil:
        cdef Ahead* ahead = &self.ahead[bucket]
        if ahead.at + ADVISED < ahead.coming_count:
            self.reader.advise(bucket, ahead.coming[ahead.at + ADVISED])
        self.reader.load_ahead(bucket, ahead.coming[ahead.at])
        ahead.at += 1
