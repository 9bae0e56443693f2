"""Starts the command line, and imports nothing else: contenders' processes read this file too."""

if __name__ == "__main__":
    import typer

    from bench.cli import main

    typer.run(main)
