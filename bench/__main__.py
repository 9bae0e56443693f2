"""Runs the command line. It is imported only here, as contenders' processes import this file."""

if __name__ == "__main__":
    import typer

    from bench.cli import main

    typer.run(main)
