"""python -m hfi.cli.job FOLDER ARGUMENTS: one command line of hfi in the background, see `hfi.jobs`.

FOLDER gets the process that does it, and at the end the exit code, so that whoever looks later, even after a restart of the server
that started it, knows how it went.
"""

import os
import signal
import sys
import traceback
from pathlib import Path


def main(folder: Path, arguments: list[str]) -> int:
    from hfi.jobs import note_end, note_start

    note_start(folder)
    code = 1
    try:
        from hfi.cli import main as hfi

        hfi(arguments)
        code = 0
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else int(e.code is not None)
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        traceback.print_exc()
    note_end(folder, code)
    return code


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a server that itself runs in the background may hand down "ignore"
    os.nice(5)  # people who judge come first
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
