"""python -m hfi.bench.peak FILE ARGUMENTS: one command line of hfi, and in FILE the most memory that it took, in bytes."""

import sys
from pathlib import Path

from hfi.cli import main
from hfi.resources import process_memory

if __name__ == "__main__":
    try:
        main(sys.argv[2:])
    finally:
        Path(sys.argv[1]).write_text(str(process_memory()))
