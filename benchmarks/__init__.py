"""Measurements on the user's own machine: one module a question, each a command that prints one JSON object last.

python -m benchmarks.reader        the reader against memcpy and against other loaders, rows/s on one core
python -m benchmarks.input         how long a trainer waits for its input
python -m benchmarks.shuffle       training with a windowed shuffle against a full one
python -m benchmarks.preprocess    from raw reviews to a dataset, against the original's method and a loop without mrjob
python -m benchmarks.preprocess_memory    what memory python -m mr takes for 10 million reviews
python -m benchmarks.waiting       what idle ranks cost, and memory that is given back at every step
python -m benchmarks.watching      what it costs to watch a run on a terminal
python -m benchmarks.balance       how near training on uneven ranks comes to what the ranks can do, by method
python -m benchmarks               all of them, one after the other (`make bench`)
"""

BENCHMARKS = ("reader", "input", "shuffle", "preprocess", "waiting", "watching")
"""modules of this package that `python -m benchmarks` runs, in this order"""
