# cython: language_level=3
"""The words of a text: what native/words.py finds, several times as fast.

Markup, case and composition are left to `prepare`, which both share; what a letter or digit is comes from this
interpreter's own tables (Py_UNICODE_ISALNUM), as it does for \\w of a regular expression.
"""
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.unicode cimport Py_UNICODE_ISALNUM, PyUnicode_DATA, PyUnicode_FromKindAndData, PyUnicode_KIND
from libc.stdint cimport uint8_t, uint16_t, uint32_t

from native import words as twin

cdef enum:
    SEPARATOR = 0
    WORD = 1
    APOSTROPHE = 2
    EMOJI = 3
    # What lies above is rare and asked for one by one; no mark or emoji of ours does.
    KNOWN = 0x20000
    BLANK = 32

ctypedef fused Character:
    uint8_t
    uint16_t
    uint32_t

cdef uint8_t[KNOWN] KINDS
cdef uint8_t[128] LOWER
cdef Py_ssize_t MAX_WORD_LENGTH = twin.MAX_WORD_LENGTH


cdef void fill_tables():
    cdef Py_ssize_t code
    for code in range(KNOWN):
        KINDS[code] = WORD if Py_UNICODE_ISALNUM(<Py_UCS4>code) else SEPARATOR
    # Some dingbats are digits too, and stay what \w says.
    for kind, characters in ((WORD, twin.MARKS), (EMOJI, twin.EMOJI)):
        for first, last in twin.ranges(characters):
            assert last < KNOWN
            for code in range(first, last + 1):
                if KINDS[code] == SEPARATOR:
                    KINDS[code] = kind
    for code in range(128):
        LOWER[code] = ord(chr(code).lower())
    for character in "'`":
        KINDS[ord(character)] = APOSTROPHE
        LOWER[ord(character)] = ord("'")


fill_tables()


cdef inline uint8_t kind_of(Character code) noexcept:
    if Character is uint32_t:
        if code >= KNOWN:
            return WORD if Py_UNICODE_ISALNUM(code) else SEPARATOR
    return KINDS[code]


cdef Py_ssize_t write_words(const Character* source, Py_ssize_t count, Character* target) noexcept:
    """Write the words to target, which has room for 2 count characters, a blank after each; returns the characters."""
    cdef Py_ssize_t at = 0, size = 0, begin
    cdef uint8_t kind
    while at < count:
        kind = kind_of(source[at])
        if kind == WORD:
            begin = size
            while True:
                target[size] = LOWER[source[at]] if source[at] < 128 else source[at]
                size += 1
                at += 1
                if at == count:
                    break
                kind = kind_of(source[at])
                # An apostrophe belongs to the word where it stands between two of its letters.
                if kind != WORD and not (kind == APOSTROPHE and at + 1 < count and kind_of(source[at + 1]) == WORD):
                    break
            if size - begin > MAX_WORD_LENGTH:
                size = begin + MAX_WORD_LENGTH
                if target[size - 1] == c"'":
                    size -= 1
            target[size] = BLANK
            size += 1
        else:
            if kind == EMOJI:
                target[size] = source[at]
                target[size + 1] = BLANK
                size += 2
            at += 1
    return size


def normalize(str text not None):
    """The words of a raw text, joined by single blanks; see native.text."""
    text = twin.prepare(text)
    cdef Py_ssize_t count = len(text), size
    cdef int kind = PyUnicode_KIND(text)
    cdef const void* source = PyUnicode_DATA(text)
    if count == 0:
        return ""
    cdef void* target = PyMem_Malloc(2 * count * kind)
    if target is NULL:
        raise MemoryError
    try:
        if kind == 1:
            size = write_words(<const uint8_t*>source, count, <uint8_t*>target)
        elif kind == 2:
            size = write_words(<const uint16_t*>source, count, <uint16_t*>target)
        else:
            size = write_words(<const uint32_t*>source, count, <uint32_t*>target)
        return PyUnicode_FromKindAndData(kind, target, size - 1) if size else ""
    finally:
        PyMem_Free(target)
