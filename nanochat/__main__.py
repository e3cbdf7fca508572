"""`python -m nanochat` is the command `nanochat`."""

from nanochat.cli.main import main

if __name__ == "__main__":
    main()
