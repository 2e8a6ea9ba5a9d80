"""Keyed pseudo-random permutations as inline functions, for the modules that compute the order of rows."""
from libc.stdint cimport uint64_t

ctypedef struct Feistel:
    # A keyed permutation of [0, size): an alternating Feistel network on `left + right` bits with cycle walking.
    uint64_t size
    int left_bits
    int right_bits
    uint64_t[8] keys


cdef enum:
    ROUNDS = 8
    # Small domains walk inside a domain of at least 2^10: a Feistel network on very few bits is not uniform.
    MIN_BITS = 10


cdef inline uint64_t mix64(uint64_t x) noexcept nogil:
    # The finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
    x = (x ^ (x >> 30)) * <uint64_t>0xBF58476D1CE4E5B9ULL
    x = (x ^ (x >> 27)) * <uint64_t>0x94D049BB133111EBULL
    return x ^ (x >> 31)


cdef inline uint64_t fold(uint64_t key, uint64_t item) noexcept nogil:
    # One more value in a key; derive_key folds several.
    return mix64(key + <uint64_t>0x9E3779B97F4A7C15ULL + item)


cdef inline void feistel_init(Feistel* network, uint64_t size, uint64_t key) noexcept nogil:
    cdef int bits = 0, i
    cdef uint64_t top = size - 1
    while bits < 64 and (top >> bits) != 0:
        bits += 1
    if bits < MIN_BITS:
        bits = MIN_BITS
    network.size = size
    network.left_bits = bits // 2
    network.right_bits = bits - bits // 2
    for i in range(ROUNDS):
        network.keys[i] = mix64(key + <uint64_t>0x9E3779B97F4A7C15ULL * <uint64_t>(i + 1))


cdef inline uint64_t round_function(uint64_t half, uint64_t key) noexcept nogil:
    # The upper half of a product depends on all bits below it; eight rounds of that pass the tests of uniformity.
    return ((half ^ key) * <uint64_t>0xD6E8FEB86659FD93ULL) >> 32


cdef inline uint64_t feistel_pass(const Feistel* network, uint64_t x) noexcept nogil:
    # Once through the network; the result may lie outside [0, size).
    cdef uint64_t left_mask = (<uint64_t>1 << network.left_bits) - 1
    cdef uint64_t right_mask = (<uint64_t>1 << network.right_bits) - 1
    cdef uint64_t left = x >> network.right_bits, right = x & right_mask
    cdef int i
    for i in range(0, ROUNDS, 2):  # ROUNDS is even, so the widths are back in place at the end
        left ^= round_function(right, network.keys[i]) & left_mask
        right ^= round_function(left, network.keys[i + 1]) & right_mask
    return (left << network.right_bits) | right


cdef inline uint64_t feistel_forward(const Feistel* network, uint64_t x) noexcept nogil:
    x = feistel_pass(network, x)
    while x >= network.size:
        x = feistel_pass(network, x)
    return x


cdef inline uint64_t feistel_inverse(const Feistel* network, uint64_t x) noexcept nogil:
    cdef uint64_t left_mask = (<uint64_t>1 << network.left_bits) - 1
    cdef uint64_t right_mask = (<uint64_t>1 << network.right_bits) - 1
    cdef uint64_t left, right
    cdef int i
    while True:
        left = x >> network.right_bits
        right = x & right_mask
        for i in range(ROUNDS - 2, -1, -2):
            right ^= round_function(left, network.keys[i + 1]) & right_mask
            left ^= round_function(right, network.keys[i]) & left_mask
        x = (left << network.right_bits) | right
        if x < network.size:
            return x
