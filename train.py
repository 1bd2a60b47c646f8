"""Train a language model. `python train.py --help` shows every choice; `gptstar train` is the same, installed."""

from gptstar.launch.train import main

if __name__ == "__main__":
    main()
