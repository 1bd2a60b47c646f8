import io
import itertools
import json
import re
from pathlib import Path

import ftfy
import pytest
import zstandard
from ftfy.badness import MOJIBAKE_CATEGORIES
from ftfy.chardata import CONTROL_CHARS, LIGATURES, WIDTH_MAP
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gptstar.data.text.clean import CLEANER, PLAIN, clean

ENTITIES = re.split(r"\|", "&amp;|&lt;|&amp;lt;|&#233;|&#x2019;|&EACUTE;|&|&&|&nbsp;|&#13;|&#0;|;|<")
BROKEN = re.split(r"\|", "Ã©|â€œ|â€�|Ã |voilÃ le|Â |â€™|Ð¿Ñ€|вЂ™|ГўВЂВ™ |Ã¢â‚¬â„¢|œ|œ’|× ²|Ã|Â")
CONTROLS = re.split(r"\|", "\r|\r\n|\n|\n\n|\u2028|\u2029|\x85|\x00|\ufeff|\x1b[31m|\x1b[|\x0b|\x0c")
SHAPES = re.split(r"\|", "ｆｕｌｌ|ﾀｰﾝ|\u3000|ﬁ|ŉ|ǅ|‘|’|“|”|‚Ä|„|ʼ|–|—|…|•|\xa0|�")
MARKS = re.split(r"\|", "e\u0301|\u0301|ö|°|²|£|€|§|¨|\u200d|─|║|→|😀|\U000e0067|Å|Å|Ω")
LETTERS = re.split(r"\|", "a|Z|7| |.|?|'|\"|the end|é|è |я|В|Г|α|ÿ")
SCRIPTS = re.findall(
    r"\S+",
    """
Ελλάδα Ё Россия Հայաստան საქართველო ⴰⵎⴰⵣⵉⵖ ירושלים القاهرة ܣܘܪܝܐ ދިވެހި ߒߞߏ भारत বাংলা ਪੰਜਾਬ ગુજરાત
ଓଡ଼ିଶା தமிழ் తెలుగు ಕನ್ನಡ മലയാളം සිංහල ไทย ລາວ བོད မြန်မာ አማርኛ ᏣᎳᎩ ᐃᓄᒃᑎᑐᑦ ᚠᚢᚦ ខ្មែរ ᠮᠣᠩᠭᠣᠯ 日本語 カタカナ
한국어 한국 ꆈꌠ ꦧꦱ ᬩᬮᬶ Việt Čeština Türkçe Íslenska Ŵelsh
""",
)

pieces = st.lists(
    st.one_of(
        st.sampled_from((*ENTITIES, *BROKEN, *CONTROLS)),
        st.sampled_from((*SHAPES, *MARKS, *LETTERS, *SCRIPTS)),
        st.characters(exclude_categories=["Cs"]),
        st.sampled_from(sorted({c for group in MOJIBAKE_CATEGORIES.values() for c in group} - {"-"})),
        st.text(st.sampled_from("éÃ©â€œ™ ° aA”’"), min_size=2, max_size=6).map(lambda t: t.encode().decode("latin-1")),
    ),
    max_size=24,
)


@given(pieces)
@example(["œ", "’"])
@example(["a&amp;b\n", "<\n", "&amp;"])
@example(["&amp;<\n"])
@settings(deadline=None, max_examples=1500)
def test_it_gives_what_ftfy_gives(parts: list[str]) -> None:
    text = "".join(parts)
    assert clean(text) == ftfy.fix_text(text)
    assert clean(text, unescape_html=False) == ftfy.fix_text(text, unescape_html=False)


@pytest.mark.slow
@given(pieces, st.sampled_from("aZ7"), pieces)
@settings(deadline=None, max_examples=700)
def test_two_pieces_give_what_the_whole_gives(before: list[str], last: str, after: list[str]) -> None:
    first, second = "".join([*before, last]), "".join(["\n", *after])
    assert clean(first) + clean(second, unescape_html="<" not in first) == ftfy.fix_text(first + second)


def test_every_character_alone_and_inside_words() -> None:
    for number in (n for n in range(0x3100) if not PLAIN.fullmatch(chr(n))):
        line = f"ab{chr(number)}c’d {chr(number)}"
        assert clean(line) == ftfy.fix_text(line), hex(number)
    acted_on = "".join(chr(number) for number in (*CONTROL_CHARS, *LIGATURES, *WIDTH_MAP))
    assert clean(acted_on) == ftfy.fix_text(acted_on)


def test_ftfy_leaves_any_plain_characters_as_they_are() -> None:
    plain = [chr(number) for number in range(0x110000) if PLAIN.fullmatch(chr(number))]
    assert len(plain) > 96
    text = "".join(map("".join, itertools.product(plain, repeat=2)))
    assert ftfy.fix_text(text) == text


def test_lines_beyond_ftfys_limit_are_cut_where_it_cuts() -> None:
    long = "a" * 999_999
    for around in (
        "0" * 10**6 + "Â 0",
        f"{long}\r\nÃ©",
        f"{long}e\u0301 <&amp;",
        f"{long}&amp;lt;\n&amp;",
        f"{long}bÃ d",
        f"{long}aÂ \n",
    ):
        assert clean(around) == ftfy.fix_text(around)
    assert clean(long * 2) == long * 2


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts(script: str) -> None:
    text = f"{script} “{script}”\n{script.encode().decode('latin-1')}\n{script}"
    assert clean(text) == ftfy.fix_text(text)


def test_real_documents(shared: Path) -> None:
    for corpus, limit in (("philpapers", 2), ("books", 3), ("openwebtext", 120)):
        path = sorted((shared / "corpora" / corpus).glob("*.jsonl.zst"))[0]
        with path.open("rb") as file:
            lines = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), encoding="utf-8")
            for line in itertools.islice(lines, limit):
                text = json.loads(line)["text"][:200_000]
                assert clean(text) == ftfy.fix_text(text)


def test_clean_text_is_not_even_copied() -> None:
    text = "Plain English,\twith tabs & an ampersand.\n" * 3
    assert clean(text) == text
    plain = text.replace("&", "and")
    assert clean(plain) is plain
    assert f"ftfy {ftfy.__version__}" == CLEANER
