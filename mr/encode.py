"""Third job: distinct reviews in, token ids out, sorted by split, bucket and digest."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from pathlib import Path

from mr.job import Pairs, ReviewJob
from mr.records import REVIEW, encode_ids
from native.text import SPLITS, Encoder, split_of


class EncodeJob(ReviewJob):
    """Encodes each review; the reducer only sorts."""

    REDUCER_ONLY_SORTS = True
    SORTED = False

    def configure_args(self) -> None:
        """Add --vocabulary, a file that goes to every task."""
        super().configure_args()
        self.add_file_arg("--vocabulary", help="words by falling frequency, one a line")

    def mapper_init(self) -> None:
        """Read the vocabulary."""
        super().mapper_init()
        words = Path(self.options.vocabulary).read_bytes().decode().split("\n")[:-1]
        self.encoder = Encoder(words, self.settings.text, self.settings.item_bytes)

    def mapper(self, key: bytes, value: bytes) -> Pairs:
        """One distinct review."""
        if not key.startswith(REVIEW):
            return
        digest = key[1:]
        ids = self.encoder.encode_ascii(value[2:])
        split = SPLITS.index(split_of(bytes.fromhex(digest.decode()), self.settings.split))
        bucket = bisect_left(self.settings.bounds, len(ids) // self.settings.item_bytes)
        yield b"%d%02d%s" % (split, bucket, digest), value[:1] + encode_ids(ids)

    def reducer(self, key: bytes, values: Iterable[bytes]) -> Pairs:
        """Pass on."""
        for value in values:
            yield key, value


if __name__ == "__main__":
    EncodeJob.run()
