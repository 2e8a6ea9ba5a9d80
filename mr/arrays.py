"""Takes one big JSON array apart, element by element, in bounded memory.

The JSON decoder itself finds where a sound element ends, so pretty-printed elements and arrays on one line need no
rules of their own. Where it fails, the element is broken: it is handed out as it is, up to the place where the next
object seems to begin, and reading goes on there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

MAX_RECORD_BYTES = 16 << 20
"""a longer record is taken for broken: hostile JSON takes up to 30 times its size in memory"""
_REFILL_BYTES = 64 << 10
_BLANK = re.compile(r"[ \t\n\r]*")
_BETWEEN = re.compile(r"[ \t\n\r,]*")
# A comma forgotten between two objects costs neither of them.
_AFTER_ELEMENT = re.compile(r"[ \t\n\r]*[,\]{]")
# Where the next element may begin after a broken object: after "}," or on a new line; after a bare word: at a comma.
_NEXT_OBJECT = re.compile(r"\}[ \t\n\r]*,[ \t\n\r]*(?=\{)|\n[ \t\r]*(?=\{)")
_NEXT_AFTER_WORD = re.compile(r",[ \t\n\r]*(?=\{)|\n[ \t\r]*(?=\{)")
# Numbers stay strings: they are not looked at here, and a number of 5,000 digits is no reason to fail.
_DECODER = json.JSONDecoder(parse_int=str, parse_float=str)
# An error this near the end of the buffer, in characters, may come from the cut (the longest token is "\ud83d\ude00").
_CUT = 16


class ArrayReader:
    """Iterates over the elements of the array at the start of a stream of blocks.

    After the iteration, `rest` holds what was read beyond the closing bracket and `line` its line number; `whole`
    tells whether there was a closing bracket at all.

    Args:
        blocks: the file's bytes, from its beginning.
    """

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._end = False
        # Latin-1 maps each byte to one character and back, whatever the file's encoding is.
        self._text = ""
        self._at = 0
        self.line = 1
        self.whole = False

    @property
    def rest(self) -> bytes:
        """What was read but not used."""
        return self._text[self._at :].encode("latin-1")

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        """Yield (line number where the element starts, the element's bytes with blanks in place of line ends)."""
        self._skip(_BLANK)
        self._advance(self._at + 1)  # the opening bracket
        while True:
            self._skip(_BETWEEN)
            if self._at >= len(self._text):
                return
            if self._text[self._at] == "]":
                self._advance(self._at + 1)
                self.whole = True
                return
            stop = self._element_end()
            element = self._text[self._at : stop].strip(" \t\r\n").replace("\n", " ").replace("\r", " ")
            yield self.line, element.encode("latin-1")
            self._advance(stop)

    def _element_end(self) -> int:
        if len(self._text) - self._at < _REFILL_BYTES:
            self._refill()
        while True:
            try:
                stop = _DECODER.raw_decode(self._text, self._at)[1]
                if _AFTER_ELEMENT.match(self._text, stop):
                    return stop
                failed_at = _end_of(_BLANK, self._text, stop)
                open_string = False
            except json.JSONDecodeError as error:
                failed_at, open_string = error.pos, error.msg.startswith("Unterminated string")
            except RecursionError:
                failed_at, open_string = self._at, False
            cut = open_string or failed_at >= len(self._text) - _CUT
            too_long = len(self._text) - self._at > MAX_RECORD_BYTES
            if not cut or too_long or not self._refill():
                return self._next_element(failed_at)

    def _next_element(self, failed_at: int) -> int:
        # The search starts behind the error, or a sound nested object before it would be taken for the next element;
        # one step back, because the error is often found only at the brace that opens the next object.
        start = max(self._at + 1, failed_at - 1) - self._at
        pattern = _NEXT_OBJECT if self._text[self._at] in "{[" else _NEXT_AFTER_WORD
        while True:
            found = pattern.search(self._text, self._at + start)
            if found:
                return found.start() + found.group().startswith("}")
            if len(self._text) - self._at > MAX_RECORD_BYTES or not self._refill():
                return len(self._text)

    def _skip(self, pattern: re.Pattern[str]) -> None:
        while True:
            stop = _end_of(pattern, self._text, self._at)
            self._advance(stop)
            if stop < len(self._text) or not self._refill():
                return

    def _advance(self, stop: int) -> None:
        self.line += self._text.count("\n", self._at, stop)
        self._at = stop

    def _refill(self) -> bool:
        """Drop what is used and read about as much as is held again; False at the end of the file."""
        wanted = max(1, len(self._text) - self._at)
        pieces = [self._text[self._at :]]
        while wanted > 0 and not self._end:
            block = next(self._blocks, None)
            if block is None:
                self._end = True
                break
            pieces.append(block.decode("latin-1"))
            wanted -= len(block)
        if len(pieces) == 1:
            return False
        self._text, self._at = "".join(pieces), 0
        return True


def _end_of(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    assert found is not None, "a pattern that also matches nothing"
    return found.end()
