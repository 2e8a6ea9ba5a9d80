/* Loops over the tokens of a row or a chunk. On x86-64 each is compiled for AVX2 as well, and the processor at hand
 * picks: hosts of one cluster differ and share a build, so that -march=native is no choice. */
#ifndef NATIVE_KERNELS_H
#define NATIVE_KERNELS_H

#include <stdint.h>
#include <string.h>

/* Under AddressSanitizer the choice would run before the sanitizer does. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__)
#define KERNEL static __attribute__((target_clones("avx2", "default")))
#else
#define KERNEL static
#endif

/* Tokens as they stand in a chunk: whole numbers, or split into planes of bytes by HDF5's shuffle filter (all first
 * bytes of the chunk's numbers, then all second bytes, ...). */

KERNEL void widen_16(const uint16_t *restrict source, int32_t *restrict target, int64_t count) {
    for (int64_t i = 0; i < count; i++) target[i] = source[i];
}

KERNEL void widen_planes_16(const uint8_t *restrict low, const uint8_t *restrict high, int32_t *restrict target,
                            int64_t count) {
    for (int64_t i = 0; i < count; i++) target[i] = low[i] | high[i] << 8;
}

KERNEL void widen_planes_32(const uint8_t *restrict source, int64_t plane, int32_t *restrict target, int64_t count) {
    const uint8_t *b1 = source + plane, *b2 = b1 + plane, *b3 = b2 + plane;
    for (int64_t i = 0; i < count; i++)
        target[i] = (int32_t)(source[i] | (uint32_t)b1[i] << 8 | (uint32_t)b2[i] << 16 | (uint32_t)b3[i] << 24);
}

KERNEL uint32_t largest_16(const uint16_t *source, int64_t count) {
    uint16_t top = 0;
    for (int64_t i = 0; i < count; i++) top = source[i] > top ? source[i] : top;
    return top;
}

KERNEL uint32_t largest_32(const uint32_t *source, int64_t count) {
    uint32_t top = 0;
    for (int64_t i = 0; i < count; i++) top = source[i] > top ? source[i] : top;
    return top;
}

KERNEL uint32_t largest_planes_16(const uint8_t *low, const uint8_t *high, int64_t count) {
    uint16_t top = 0;
    for (int64_t i = 0; i < count; i++) {
        uint16_t value = (uint16_t)(low[i] | high[i] << 8);
        top = value > top ? value : top;
    }
    return top;
}

KERNEL uint32_t largest_planes_32(const uint8_t *source, int64_t plane, int64_t count) {
    const uint8_t *b1 = source + plane, *b2 = b1 + plane, *b3 = b2 + plane;
    uint32_t top = 0;
    for (int64_t i = 0; i < count; i++) {
        uint32_t value = source[i] | (uint32_t)b1[i] << 8 | (uint32_t)b2[i] << 16 | (uint32_t)b3[i] << 24;
        top = value > top ? value : top;
    }
    return top;
}

/* Brings the lines of a row into the second-level cache before it is needed: rows of a shuffled batch lie far apart.
 * (The first level has room for fewer requests at a time: asking for it took 1.4 times as long.) */
static inline void prefetch_bytes(const uint8_t *at, int64_t size) {
    const uint8_t *line = (const uint8_t *)((uintptr_t)at & ~(uintptr_t)63);
    for (; line < at + size; line += 64) __builtin_prefetch(line, 0, 2);
}

#endif
