"""`python -m cluster`: see cluster/cli.py."""

from cluster.cli import main

if __name__ == "__main__":
    main()
