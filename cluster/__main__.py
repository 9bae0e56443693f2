"""`python -m cluster`: see cluster/cli.py."""

import sys
from pathlib import Path

# The make targets set the path; a person who types the command has not.
sys.path.append(str(Path(__file__).resolve().parent.parent / "data-prep"))

from cluster.cli import main

if __name__ == "__main__":
    main()
