"""Runs the check: python -m bench.gpu_check."""

if __name__ == "__main__":
    import typer

    from bench.gpu_check.cli import main

    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    app()
