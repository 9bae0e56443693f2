"""`python -m cluster`: see cluster/cli.py."""

import sys
from pathlib import Path

# `make` sets PYTHONPATH; make this work from a plain shell too.
sys.path.append(str(Path(__file__).resolve().parent.parent / "data-prep"))

from cluster.cli import main

if __name__ == "__main__":
    main()
