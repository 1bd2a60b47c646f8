"""`gptstar lm_eval`: the harness's own command, which finds our models by `--model gptstar`."""

from gptstar.entry import one_line_errors


def main() -> None:
    """Run the command line."""
    from gptstar.evaluation.harness import run_harness  # imports torch, which --help of `gptstar` need not wait for

    with one_line_errors():
        run_harness()
