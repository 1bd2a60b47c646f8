"""`python -m gptstar`, the `gptstar` command."""

from gptstar.cli import main

if __name__ == "__main__":
    main()
