"""Preprocessing with mrjob: raw reviews (JSON lines) in, a dataset for native/ and engine/ out. `python -m mr --help`.

INPUT... --ingest--> numbered line shards --clean--> distinct reviews --count--> vocabulary, lengths
                                                         |--encode--> ids, sorted --pack--> dataset
"""
