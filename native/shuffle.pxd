from libc.stdint cimport int64_t, uint64_t

ctypedef struct Feistel:
    # A keyed permutation of [0, size): an alternating Feistel network on `left + right` bits with cycle walking.
    uint64_t size
    int left_bits
    int right_bits
    uint64_t[8] keys

cdef uint64_t mix64(uint64_t x) noexcept nogil
cdef void feistel_init(Feistel* network, uint64_t size, uint64_t key) noexcept nogil
cdef uint64_t feistel_forward(const Feistel* network, uint64_t x) noexcept nogil
cdef uint64_t feistel_inverse(const Feistel* network, uint64_t x) noexcept nogil
