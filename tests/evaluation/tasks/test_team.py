"""Ranks that share requests: the results of one process, and no rank left waiting when something goes wrong."""

import subprocess
import sys
from pathlib import Path

import pytest

from gptstar.evaluation.tasks.team import Team
from support import ROOT

SCRIPT = """
import sys
from gptstar.errors import ConfigError
from gptstar.evaluation.tasks.team import Team
from gptstar.evaluation.tasks.worker import Worker
from gptstar.ranks import joined
from gptstar.evaluation.tasks.scoring import Scorer

sys.path.insert(0, sys.argv[2])
from support.models import KINDS, build
from support.scoring import assert_same, plainly, requests

what = sys.argv[1]


def fail_on_1(these, rank, world, settled):
    if rank == 1 and what == "refuses":
        raise ConfigError("rank 1 refuses")
    if rank == 1 and what == "breaks":
        raise KeyError("rank 1 breaks")
    return {number: each for number, each in enumerate(these)}


with joined() as ranks:
    rank = ranks.rank
    model = build(KINDS[0])
    team = Team(Worker(Scorer(model, batch_tokens=97), None) if what == "scores" else fail_on_1)
    try:
        if rank:
            team.serve()
        else:
            for asked in (requests(), requests(seed=5, n_contexts=1), []):
                found = team.all_results(asked)
                if what == "scores":
                    assert_same(found, [plainly(model, each) for each in asked], asked)
            if what == "leaves":
                raise ConfigError("rank 0 leaves")
    except ConfigError as error:
        print(error)
    except RuntimeError as error:
        print(error)
    finally:
        team.dismiss()
    print(f"{rank} is done")
"""


@pytest.mark.parametrize(
    ("what", "ranks", "said"),
    [
        ("scores", 2, ""),
        pytest.param("scores", 3, "", marks=pytest.mark.slow),
        pytest.param("leaves", 2, "rank 0 leaves", marks=pytest.mark.slow),
        pytest.param("refuses", 2, "rank 1 refuses", marks=pytest.mark.slow),
        pytest.param("breaks", 2, "rank 1: KeyError", marks=pytest.mark.slow),
    ],
)
def test_ranks_share_the_work(what: str, ranks: int, said: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command = [*launch, str(tmp_path / "script.py"), what, str(ROOT / "tests")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert all(f"{rank} is done" in ended.stdout for rank in range(ranks))
    assert said in ended.stdout


def test_one_process_is_a_team() -> None:
    told: list[int] = []

    def work(these, rank, world, settled):
        assert (rank, world) == (0, 1)
        settled(dict(enumerate(these)))
        return {number: each * 2 for number, each in reversed(list(enumerate(these)))}

    team = Team(work)
    assert team.all_results([3, 1, 2], lambda found: told.extend(found)) == [6, 2, 4]
    assert told == [0, 1, 2]
    team.dismiss()
