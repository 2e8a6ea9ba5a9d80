"""Second job: distinct reviews in, the words of the training split by frequency and the lengths per split out.

What clean said of the other lines passes through, so that the driver reads this job's small output alone.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from mr.job import Pairs, ReviewJob
from mr.records import QUARANTINE, REVIEW, WORD, decode_words
from native.text import WordCounter, split_of, to_ascii

WORDS_HELD = 500_000
"""different words that a mapper holds before it hands its counts on"""


class CountJob(ReviewJob):
    """Counts words on the whole texts, lengths after stop words and truncation."""

    MAPPERS_A_CORE = 1

    def mapper_init(self) -> None:
        """Start the word counts."""
        super().mapper_init()
        self.words = WordCounter(map(to_ascii, self.settings.text.stop_words))

    def mapper(self, key: bytes, value: bytes) -> Pairs:
        """One distinct review, or a record that passes through."""
        if not key.startswith(REVIEW):
            yield key, value
            return
        split = split_of(bytes.fromhex(key[1:].decode()), self.settings.split)
        if split == "train":
            length = self.words.add(value[2:])
            if len(self.words) > WORDS_HELD:
                yield from self._emit_words()
        else:
            length = self.words.length(value[2:])
        self.numbers[f"length:{split}:{min(length, self.settings.text.max_length)}"] += 1
        self.numbers[f"stars:{split}:{value[:1].decode()}"] += 1

    def mapper_final(self) -> Pairs:
        """What the task counted."""
        yield from self._emit_words()
        yield from self.emit_numbers()

    def reducer_init(self) -> None:
        """Start the list of the most frequent words."""
        super().reducer_init()
        self.top: list[tuple[int, _Reversed]] = []

    def reducer(self, key: bytes, values: Iterable[bytes]) -> Pairs:
        """Sum a word or a number; malformed records pass through."""
        if key.startswith(QUARANTINE):
            for value in values:
                yield key, value
            return
        total = sum(map(int, values))
        if not key.startswith(WORD):
            yield key, b"%d" % total
            return
        self.numbers["words:different"] += 1
        self.numbers["words:all"] += total
        entry = (total, _Reversed(decode_words(key[1:])[0]))
        if len(self.top) < self.settings.vocab_size:
            heapq.heappush(self.top, entry)
        else:
            heapq.heappushpop(self.top, entry)

    def reducer_final(self) -> Pairs:
        """The task's most frequent words: no other can be among the most frequent of all."""
        for count, word in self.top:
            yield WORD + to_ascii(word), b"%d" % count
        yield from self.emit_numbers()

    def _emit_words(self) -> Pairs:
        for word, count in self.words.items():
            yield WORD + word, b"%d" % count
        self.words.clear()


class _Reversed(str):
    """A word that sorts the other way round: of equally frequent words the first one in the order wins."""

    __slots__ = ()

    def __lt__(self, other: str) -> bool:
        return str.__gt__(self, other)


if __name__ == "__main__":
    CountJob.run()
