"""Container images on their way from this machine's engine to the engines of hosts."""
