"""python -m hfi"""

from hfi.cli import main

main()
