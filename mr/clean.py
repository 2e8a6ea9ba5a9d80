"""First job: line shards in, distinct reviews out, and what became of every other line."""

from __future__ import annotations

import json
from collections.abc import Iterable

from mrjob.protocol import BytesValueProtocol

from mr.job import Pairs, ReviewJob
from mr.records import QUARANTINE, REVIEW, quarantine_key
from mr.review import Malformed, parse_review, start_of
from mr.shards import decode_record
from native.text import normalize, normalized_digest, to_ascii


class CleanJob(ReviewJob):
    """Parses, cleans, and drops texts that were there before.

    Of equal texts the one with the lowest file and line number counts as kept, whatever comes first; its rating is the
    one given most often, the lower one on a tie.
    """

    INPUT_PROTOCOL = BytesValueProtocol
    STAYS_REMOTE = True

    def mapper_init(self) -> None:
        """Prepare the stop words: a review of nothing else is empty."""
        super().mapper_init()
        self.stop_words = frozenset(self.settings.text.stop_words)

    def mapper(self, _: None, shard_line: bytes) -> Pairs:
        """One record: a review under its digest, a malformed one, or a count."""
        file, line, record = decode_record(shard_line)
        try:
            if isinstance(record, Malformed):
                raise record
            text, stars = parse_review(record, self.settings.fields) if record.strip() else ("", 0)
        except Malformed as error:
            self.numbers[f"file:{file}:malformed"] += 1
            self.numbers[f"reason:{error.kind}"] += 1
            start = error.start if isinstance(record, Malformed) else start_of(record)
            yield quarantine_key(file, line), json.dumps({"reason": str(error), "start": start}).encode()
            return
        if stars is None:
            self.numbers[f"file:{file}:without_rating"] += 1
            return
        text = normalize(text)
        if not text or (self.stop_words and self.stop_words.issuperset(text.split(" "))):
            self.numbers[f"file:{file}:empty"] += 1
            return
        value = b"%d,%d,%d,%s" % (file, line, stars, to_ascii(text))
        yield REVIEW + normalized_digest(text).hex().encode(), value

    def mapper_final(self) -> Pairs:
        """What the task counted."""
        return self.emit_numbers()

    def reducer(self, key: bytes, values: Iterable[bytes]) -> Pairs:
        """One text with all its ratings, or records that pass through."""
        if key.startswith(REVIEW):
            yield key, self._merge(values)
        elif key.startswith(QUARANTINE):
            for value in values:
                yield key, value
        else:
            yield key, b"%d" % sum(map(int, values))

    def reducer_final(self) -> Pairs:
        """What the task counted."""
        return self.emit_numbers()

    def _merge(self, values: Iterable[bytes]) -> bytes:
        votes = [0] * 6
        first: tuple[int, int] | None = None
        words = b""
        for value in values:
            file_number, line_number, stars, words = value.split(b",", 3)
            place = (int(file_number), int(line_number))
            votes[int(stars)] += 1
            if first is None:
                first = place
                continue
            self.numbers[f"file:{max(first, place)[0]}:duplicates"] += 1
            first = min(first, place)
        assert first is not None
        self.numbers[f"file:{first[0]}:kept"] += 1
        return b"%d %s" % (votes.index(max(votes)), words)


if __name__ == "__main__":
    CleanJob.run()
