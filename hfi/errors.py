"""Everything that a user of hfi can do something about.

    HfiError              exit code 1: one sentence that says what was given, what is accepted, what to do
    ├── UsageError        exit code 2: wrong options, wrong configuration
    ├── NoWorkspace       the folder is no workspace
    ├── NotFound          a concept, campaign, run, ... of that name does not exist
    ├── NoJudgments       nothing, or nothing usable, has been judged
    ├── ModelError        a folder or hub id is not a model that hfi can load
    ├── NoRoom            the disk is full; what was written before is whole
    ├── ProcessLost       of several processes that work at one run, another one ended
    └── NonFiniteLoss     training diverged; the last good state stays on disk

A caller's mistake is a ValueError instead.
"""


class HfiError(Exception):
    exit_code = 1


class UsageError(HfiError):
    exit_code = 2


class NoWorkspace(HfiError):
    pass


class NotFound(HfiError):
    pass


class NoJudgments(HfiError):
    pass


class ModelError(HfiError):
    pass


class NoRoom(HfiError):
    def __init__(self, path: object, why: str) -> None:
        super().__init__(f"cannot write {path}: {why}; make room there and run the same command again, nothing earlier is lost")


class ProcessLost(HfiError):
    def __init__(self, rank: int, size: int, why: BaseException) -> None:
        said = (str(why).strip().splitlines() or [type(why).__name__])[0]
        super().__init__(
            f"another of the {size} processes of this run ended, or cannot be reached (process {rank}: {said}); "
            "run the same command again to go on"
        )


class NonFiniteLoss(HfiError):
    def __init__(self, step: int) -> None:
        super().__init__(
            f"the loss is not finite at step {step}; the last good state is kept: lower the learning rate and run again"
        )
        self.step = step
