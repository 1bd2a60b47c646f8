"""Evaluate a checkpoint. `python evaluate.py --help` shows every choice; `gptstar evaluate` is the same, installed."""

from gptstar.launch.evaluate import main

if __name__ == "__main__":
    main()
