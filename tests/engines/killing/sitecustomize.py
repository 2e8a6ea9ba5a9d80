"""Where this folder is on PYTHONPATH, Python imports this at its start: first attempts of tasks die in the middle.

Each death, and each attempt that ended well, is a line in the file that TESTS_DEATHS names: what, stage, partition,
attempt. A test-only stand-in for machines that go away; the project knows nothing of it.
"""

import os
import sys

DEATHS = os.environ.get("TESTS_DEATHS")
DIES_AFTER = 1000  # records, or at the end where there are fewer


def note(what, place):
    with open(DEATHS, "a") as stream:
        stream.write(" ".join(map(str, (what, *place))) + "\n")


def place_of_task(kind):
    """(kind, job's stage, partition), attempt: of Spark or of streaming; None elsewhere."""
    if "pyspark" in sys.modules:
        from pyspark import TaskContext

        task = TaskContext.get()
        if task is not None:
            application = os.path.basename(os.path.dirname(os.getcwd()))  # of a standalone worker's executor
            return (kind, f"{application}:{task.stageId()}", task.partitionId()), task.attemptNumber()
    attempt = os.environ.get("mapreduce_task_attempt_id")  # attempt_..._m_000001_0
    if attempt:
        *_, task, number = attempt.split("_")
        return (kind, os.environ["mapreduce_job_id"], task), int(number)
    return None


def mortal(function, kind):
    def pairs(self, *arguments, **options):
        where = place_of_task(kind)
        for count, pair in enumerate(function(self, *arguments, **options)):
            if count == DIES_AFTER:
                perhaps_die(where)
            yield pair
        perhaps_die(where)
        if where:
            note("ended", (*where[0], where[1]))

    return pairs


def perhaps_die(where):
    if where and where[1] == 0:
        note("died", (*where[0], 0))
        os._exit(17)


if DEATHS:
    from mrjob.job import MRJob

    MRJob.map_pairs = mortal(MRJob.map_pairs, "map")
    MRJob.reduce_pairs = mortal(MRJob.reduce_pairs, "reduce")
