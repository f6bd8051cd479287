"""What a call needs of memory."""

import gc
import tracemalloc
from collections.abc import Callable


def traced(run: Callable[[], object]) -> int:
    """The most bytes at one time beside those that were there before; of two runs the smaller number, for now and then Python's
    table of interned names, which the parts of every path go through, is made anew, in one piece of many megabytes."""
    peaks = []
    for _ in range(2):
        gc.collect()
        gc.freeze()  # or what was there before decides when rubbish is collected
        tracemalloc.start()
        try:
            run()
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
            gc.unfreeze()
    return min(peaks)
