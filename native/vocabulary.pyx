# cython: language_level=3
"""Words by number: counting them, and turning them into token ids, as native/words.py does, several times as fast.

A table holds its words' bytes and compares them whole, so that equal hashes cannot mix words up; the hashes are seeded,
so that nobody can write reviews whose words all collide. Results do not depend on the seed.
"""
import os

from cpython.mem cimport PyMem_Free, PyMem_Realloc
from libc.stdint cimport UINT32_MAX, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from native.shuffle cimport mix64

from native import words as twin

cdef extern from * nogil:
    """
    #if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    #define first_byte_lowest(x) __builtin_bswap64(x)
    #else
    #define first_byte_lowest(x) (x)
    #endif
    """
    uint64_t first_byte_lowest(uint64_t)
    int __builtin_ctzll(uint64_t)

cdef enum:
    BLANK = 32
    STOP = -1       # the value of a stop word

cdef uint64_t EIGHT_ONES = 0x0101010101010101
cdef uint64_t EIGHT_BLANKS = 0x2020202020202020

cdef int64_t UNKNOWN_ID = twin.UNKNOWN_ID
cdef int64_t FIRST_WORD_ID = twin.FIRST_WORD_ID


ctypedef struct Word:
    # Of a normalised text in ASCII: the bytes between two blanks.
    const uint8_t* letters
    Py_ssize_t size
    uint64_t hash


ctypedef struct Entry:
    uint64_t hash
    Py_ssize_t begin        # of its letters in WordTable.letters
    Py_ssize_t size
    int64_t value


cdef inline const uint8_t* read_word(const uint8_t* at, const uint8_t* end, uint64_t seed, Word* word) noexcept:
    """Read the next word (its size is 0 where there is none); returns where it ends.

    Eight bytes at a time: most words are shorter, and a loop over bytes of unforeseeable length took twice as long.
    """
    cdef uint64_t hash = seed, bytes_8, blanks
    while at < end and at[0] == BLANK:
        at += 1
    word.letters = at
    while True:
        if end - at >= 8:
            memcpy(&bytes_8, at, 8)
        else:
            bytes_8 = EIGHT_BLANKS
            memcpy(&bytes_8, at, end - at)
        bytes_8 = first_byte_lowest(bytes_8)
        # The lowest bit that is set is the upper one of the first blank (Mycroft's test for a zero byte).
        blanks = bytes_8 ^ EIGHT_BLANKS
        blanks = (blanks - EIGHT_ONES) & ~blanks & (EIGHT_ONES << 7)
        if blanks != 0:
            break
        hash = mix64(hash ^ bytes_8)
        at += 8
    blanks = __builtin_ctzll(blanks) & ~7   # bits in front of the first blank
    word.hash = mix64(hash ^ (bytes_8 & (<uint64_t>1 << blanks) - 1))
    at += blanks >> 3
    word.size = at - word.letters
    return at


cdef void* resized(void* memory, size_t size) except NULL:
    memory = PyMem_Realloc(memory, size)
    if memory is NULL:
        raise MemoryError
    return memory


cdef class WordTable:
    """Words with a number each, in the order in which they were added: a hash table with open addressing."""

    cdef Entry* entries
    cdef uint8_t* letters
    cdef uint32_t* slots            # the number of an entry, from 1; 0: free. Two of three are taken at most
    cdef Py_ssize_t count, room, letters_size, letters_room
    cdef uint64_t mask, seed

    def __cinit__(self):
        self.seed = int.from_bytes(os.urandom(8), "little")
        self.take_slots(1024)

    def __dealloc__(self):
        PyMem_Free(self.entries)
        PyMem_Free(self.letters)
        PyMem_Free(self.slots)

    cdef int take_slots(self, uint64_t slots) except -1:
        """Make room for `slots` slots, a power of two, and the entries that they are good for."""
        if slots > UINT32_MAX:
            raise MemoryError("more different words than a table can hold")
        self.entries = <Entry*>resized(self.entries, slots * 2 // 3 * sizeof(Entry))
        self.slots = <uint32_t*>resized(self.slots, slots * sizeof(uint32_t))
        self.room = slots * 2 // 3
        self.mask = slots - 1
        self.keep(self.count)
        return 0

    cdef void keep(self, Py_ssize_t count) noexcept:
        """Keep the first `count` entries, and give them their slots anew."""
        cdef uint64_t slot
        cdef Py_ssize_t i
        memset(self.slots, 0, (self.mask + 1) * sizeof(uint32_t))
        self.count = count
        self.letters_size = self.entries[count - 1].begin + self.entries[count - 1].size if count else 0
        for i in range(count):
            slot = self.entries[i].hash & self.mask
            while self.slots[slot] != 0:
                slot = (slot + 1) & self.mask
            self.slots[slot] = <uint32_t>(i + 1)

    cdef inline Entry* find(self, const Word* word, uint64_t* slot) noexcept:
        """The word's entry, NULL where it has none; `slot` is the one it has, or would have."""
        cdef Entry* entry
        slot[0] = word.hash & self.mask
        while self.slots[slot[0]] != 0:
            entry = &self.entries[self.slots[slot[0]] - 1]
            # mix64 is one to one: words of up to seven bytes are equal where their hashes are.
            if (entry.hash == word.hash and entry.size == word.size
                    and (word.size < 8 or memcmp(self.letters + entry.begin, word.letters, word.size) == 0)):
                return entry
            slot[0] = (slot[0] + 1) & self.mask
        return NULL

    cdef Entry* append(self, const Word* word, uint64_t slot) except NULL:
        """A new entry, of value 0, for a word that has none; `slot` is from find."""
        cdef Entry* entry
        if self.letters_size + word.size > self.letters_room:
            self.letters = <uint8_t*>resized(self.letters, 2 * (self.letters_size + word.size))
            self.letters_room = 2 * (self.letters_size + word.size)
        if self.count == self.room:
            self.take_slots(2 * (self.mask + 1))
            self.find(word, &slot)
        entry = &self.entries[self.count]
        entry.hash, entry.begin, entry.size, entry.value = word.hash, self.letters_size, word.size, 0
        memcpy(self.letters + entry.begin, word.letters, word.size)
        self.letters_size += word.size
        self.count += 1
        self.slots[slot] = <uint32_t>self.count
        return entry

    cdef int set(self, bytes letters, int64_t value) except -1:
        """Give a word its value. What is not one word never occurs in a text, and is left out."""
        cdef const uint8_t* begin = letters
        cdef uint64_t slot
        cdef Word word
        cdef Entry* entry
        read_word(begin, begin + len(letters), self.seed, &word)
        if word.size == 0 or word.size != len(letters):
            return 0
        entry = self.find(&word, &slot)
        if entry is NULL:
            entry = self.append(&word, slot)
        entry.value = value
        return 0


cdef class WordCounter(WordTable):
    """How often each word stands in the texts added so far.

    Args:
        stop_words: words, by to_ascii, that are not counted.
    """

    cdef Py_ssize_t stop_words      # the first entries

    def __init__(self, stop_words=()):
        self.keep(0)
        for word in stop_words:
            self.set(word, STOP)
        self.stop_words = self.count

    def __len__(self):
        return self.count - self.stop_words

    def add(self, bytes text not None):
        """Count the words of a normalised text (by to_ascii); returns their number, without stop words."""
        return self.walk(text, True)

    def length(self, bytes text not None):
        """What add returns, without counting."""
        return self.walk(text, False)

    def items(self):
        """Words and counts, in the order in which they first came."""
        cdef Py_ssize_t i = self.stop_words
        while i < self.count:
            yield (<bytes>(self.letters + self.entries[i].begin)[:self.entries[i].size], self.entries[i].value)
            i += 1

    def clear(self):
        """Forget all counts."""
        self.keep(self.stop_words)

    cdef Py_ssize_t walk(self, bytes text, bint count) except -1:
        cdef const uint8_t* at = text
        cdef const uint8_t* end = at + len(text)
        cdef Py_ssize_t kept = 0
        cdef uint64_t slot
        cdef Word word
        cdef Entry* entry
        while True:
            at = read_word(at, end, self.seed, &word)
            if word.size == 0:
                return kept
            entry = self.find(&word, &slot)
            if entry is not NULL and entry.value == STOP:
                continue
            kept += 1
            if count:
                if entry is NULL:
                    entry = self.append(&word, slot)
                entry.value += 1


cdef class WordEncoder(WordTable):
    """Turns normalised texts into token ids.

    Args:
        words: the vocabulary by to_ascii: words[i] has id i + 2.
        stop_words: words, by to_ascii, that are left out before the text is cut.
        max_length: words of a text that are kept, from its beginning; 1..9999.
        item_bytes: 2 or 4, of an id; every id must fit.
    """

    cdef Py_ssize_t max_length, item_bytes
    cdef uint8_t* ids

    def __init__(self, words, stop_words, Py_ssize_t max_length, Py_ssize_t item_bytes):
        cdef int64_t number = FIRST_WORD_ID
        for word in words:
            self.set(word, number)
            number += 1
        for word in stop_words:
            self.set(word, STOP)
        self.ids = <uint8_t*>resized(self.ids, max_length * item_bytes)
        self.max_length, self.item_bytes = max_length, item_bytes

    def __dealloc__(self):
        PyMem_Free(self.ids)

    def encode(self, bytes text not None):
        """The ids of a normalised text (by to_ascii), as little-endian integers."""
        cdef const uint8_t* at = text
        cdef const uint8_t* end = at + len(text)
        cdef Py_ssize_t left = self.max_length
        cdef uint8_t* target = self.ids
        cdef int64_t value
        cdef uint64_t slot
        cdef Word word
        cdef const Entry* entry
        while left > 0:
            at = read_word(at, end, self.seed, &word)
            if word.size == 0:
                break
            entry = self.find(&word, &slot)
            value = entry.value if entry is not NULL else UNKNOWN_ID
            if value == STOP:
                continue
            target[0], target[1] = value & 0xFF, value >> 8 & 0xFF
            if self.item_bytes == 4:
                target[2], target[3] = value >> 16 & 0xFF, value >> 24 & 0xFF
            target += self.item_bytes
            left -= 1
        return <bytes>self.ids[:target - self.ids]
