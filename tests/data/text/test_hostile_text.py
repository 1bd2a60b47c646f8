"""Text as it comes: broken lines, empty documents, NULs, half characters, one endless document, forty scripts."""

import json
import random
import resource
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from gptstar.data.storage.shards import ShardFolder
from gptstar.data.tokenizer import Tokenizer
from support.text import sentences

SCRIPTS = [
    *(0x41, 0x370, 0x400, 0x531, 0x5D0, 0x620, 0x710, 0x780, 0x904, 0x985, 0xA05, 0xA85, 0xB05, 0xB85, 0xC05, 0xC85),
    *(0xD05, 0xD85, 0xE01, 0xE81, 0xF00, 0x1000, 0x10A0, 0x1100, 0x1200, 0x13A0, 0x1401, 0x1681, 0x16A0, 0x1700),
    *(0x1780, 0x1820, 0x1900, 0x1A00, 0x1B05, 0x1C00, 0x2C00, 0x3041, 0x30A1, 0x4E00, 0xAC00, 0x10330, 0x12000),
]
BAD = {
    b'{"text": "cut\n': "not JSON",
    b'{"text": ""}\n': "empty",
    b'{"text": "\xff\xfe"}\n': "not UTF-8",
    b'{"body": 1}\n': 'no "text" field',
    b'{"text": ["a"]}\n': '"text" is not a string',
    b"\n": "",
}


def write_hostile(path: Path, n_lines: int, longest: int) -> Counter[str]:
    """Write `n_lines` lines and two documents of `longest` characters; what is to be counted."""
    draw = random.Random(0)
    counts: Counter[str] = Counter()
    with path.open("wb") as file:
        for number in range(n_lines):
            if draw.random() < 0.05:
                line, reason = draw.choice(list(BAD.items()))
                file.write(line)
                counts.update([reason] if reason else [])
                continue
            kind, script = draw.random(), draw.choice(SCRIPTS)
            text = "".join(chr(script + draw.randrange(20)) if each % 6 else " " for each in range(50))
            if kind < 0.01:
                text += "\x00 and \x00"
            elif kind < 0.02:
                text += "\ud83d"
                counts["half characters replaced"] += 1
            line_of_text = json.dumps({"text": f"{number} {text}"}, ensure_ascii=kind < 0.5)
            file.write(line_of_text.encode() + b"\n")
            counts["documents"] += 1
        words = sentences(50, 100, seed=3)
        many = "\n".join(draw.choice(words) for _ in range(longest // len(words[0])))
        for text in (many, "x" * longest):
            file.write(json.dumps({"text": text}).encode() + b"\n")
            counts["documents"] += 1
        file.write(b'{"text": "no line break after the last"}')
        counts["documents"] += 1
    return counts


def prepare_hostile(folder: Path, n_lines: int, longest: int) -> tuple[Counter[str], ShardFolder]:
    (folder / "c").mkdir()
    expected = write_hostile(folder / "c/a.jsonl", n_lines, longest)
    (folder / "t.json").write_text(Tokenizer.train(sentences(50, 100, seed=1), 300).json_text)
    command = [sys.executable, "-m", "gptstar", "prepare", "data=local", "data.clean=none", "data.workers=2"]
    command += [f"data.files={folder}/c/*", f"data.tokenizer={folder}/t.json", "model.n_vocab=300"]
    subprocess.run([*command, f"data.shards={folder}/s", "data.shard_tokens=1000000"], check=True, capture_output=True)
    return expected, ShardFolder(folder / "s")


@pytest.mark.slow
def test_everything_is_counted_and_nothing_is_lost(tmp_path: Path) -> None:
    expected, folder = prepare_hostile(tmp_path, 3000, 5_000_000)
    source = folder.manifest.sources["c"]
    assert source.counts == expected
    for reason in set(BAD.values()) - {""}:
        assert source.examples[reason][0].startswith(f"{tmp_path}/c/a.jsonl, line ")
    decoded = 0
    for shard in folder.manifest.shards:
        tokens = np.load(tmp_path / "s" / f"{shard.name}.npy")
        ends = np.flatnonzero(tokens == folder.tokenizer.end_of_text)
        assert len(ends) == shard.documents
        decoded += sum(len(folder.tokenizer.decode(part).encode()) for part in np.split(tokens, ends + 1))
    assert decoded == sum(folder.manifest.total(split, "bytes") for split in ("train", "validation"))


@pytest.mark.slow
def test_a_million_lines_and_documents_of_100_megabytes(tmp_path: Path) -> None:
    expected, folder = prepare_hostile(tmp_path, 1_000_000, 100_000_000)
    assert folder.manifest.sources["c"].counts == expected
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 2**20 * 1.5  # KiB, of the largest process
