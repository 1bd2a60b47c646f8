"""Run the `gptstar` command as `python -m gptstar`."""

from gptstar.cli import main

if __name__ == "__main__":
    main()
