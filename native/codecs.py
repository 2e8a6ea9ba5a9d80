"""Addresses of two C functions from well-kept libraries, for the reader's hot path.

LZ4_decompress_safe comes from the LZ4 filter that hdf5plugin ships, XXH3_64bits from the xxhash package. Both
are plain exported symbols: the reader calls them without the GIL and without libhdf5. Each is checked once
against its library's own Python interface; a build that lacks one reads through h5py, with a warning.
"""

from __future__ import annotations

import ctypes
import warnings
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import hdf5plugin
import xxhash
import xxhash._xxhash as xxhash_module


class Codecs(NamedTuple):
    """Addresses of C functions."""

    lz4_decompress_safe: int
    """int (const char *source, char *target, int source_size, int target_size)"""
    xxh3_64bits: int
    """uint64_t (const void *data, size_t size)"""


@cache
def load_codecs() -> Codecs | None:
    """Load both functions; None, with a warning, where this machine's libraries do not export them."""
    try:
        lz4 = _checked_lz4(Path(hdf5plugin.PLUGIN_PATH) / "libh5lz4.so")
        xxh3 = _checked_xxh3(Path(xxhash_module.__file__))
    except (OSError, AttributeError, AssertionError) as error:
        warnings.warn(
            f"the native codecs are not usable ({error}); reading goes through h5py, several times slower. "
            "Install the pinned hdf5plugin and xxhash wheels (make setup) to mend it.",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return Codecs(_address(lz4), _address(xxh3))


def _address(function: Any) -> int:
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None
    return address


def _checked_lz4(library: Path) -> Any:
    function = ctypes.CDLL(str(library)).LZ4_decompress_safe
    function.restype = ctypes.c_int
    # A token saying "4 literals", then the literals: the smallest complete block of the LZ4 format.
    target = ctypes.create_string_buffer(8)
    assert function(b"\x40rows", target, 5, 8) == 4, f"{library}: unexpected LZ4"
    assert target.raw[:4] == b"rows", f"{library}: unexpected LZ4"
    assert function(b"\x40rows", target, 5, 3) < 0, f"{library}: LZ4 without bounds"
    return function


def _checked_xxh3(library: Path) -> Any:
    exported = ctypes.CDLL(str(library))
    # On x86-64 the wheel has a variant that picks the widest vectors of the processor at hand: 3 to 4 times as fast.
    function = getattr(exported, "XXH3_64bits_dispatch", None) or exported.XXH3_64bits
    function.restype = ctypes.c_uint64
    function.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
    for sample in (b"", b"rows", bytes(range(256)) * 5):
        assert function(sample, len(sample)) == xxhash.xxh3_64_intdigest(sample), f"{library}: unexpected XXH3"
    return function
