"""python -m hfi.cli.child PARENT ARGUMENTS: one command line of hfi, in a process that ends when its parent does.

A parent that is killed cannot stop what it started, and its next run would find two processes at work on one erasure.
"""

import os
import sys
import threading
import time


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with, args=(int(sys.argv[1]),), daemon=True).start()
    from hfi.cli import main

    main(sys.argv[2:])
