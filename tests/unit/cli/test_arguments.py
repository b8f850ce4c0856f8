"""Words of a command line: what they give, and the one line that says what is wrong with them."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from lbm_lora.cli.arguments import alternatives, grouped, is_asked_for_help, range_of, values_of
from lbm_lora.cli.flags import flags_of
from lbm_lora.errors import ConfigError
from lbm_lora.verbs.options import POSITIONAL, Count, Images, LoraScale, Named, Several, Share


def make(
    *,
    save_to: Path,
    rank: Count = 32,
    ranks: Several[int] = (),
    scale: Several[float] = (1.0,),
    by_layer: Several[LoraScale] = (1.0,),
    share: Share | None = None,
    images: Images | None = None,
    mode: Literal["fused", "live"] = "fused",
    mode_name: str = "",
    dense: bool = True,
    json: bool = False,
) -> None: ...


def words_of(
    data: Annotated[Several[Path], POSITIONAL, Named("DATA")] = (), *, to: Path | None = None, quick: bool = False
) -> None: ...


def needy(*, base: Path, other: Several[str]) -> None: ...


def read(line: str, function: Callable[..., None] = make) -> dict[str, Any]:
    words = [word if word != "EMPTY" else "" for word in line.split()]
    return values_of(flags_of(function), words, command="make")


def test_a_tilde_that_no_shell_has_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert read("--save_to ~/a --images ~/b") == {"save_to": Path("/home/me/a"), "images": ("~/b",)}  # expanded later


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("--rank 8", {"rank": 8}),
        ("--rank=8", {"rank": 8}),
        ("--rank 8 --rank 4", {"rank": 4}),
        ("--ranks 8 4", {"ranks": (8, 4)}),
        ("--scale -0.5 1e-3", {"scale": (-0.5, 0.001)}),
        ("--by_layer 0.8 -0.5,attn1=0", {"by_layer": (0.8, "-0.5,attn1=0")}),
        ("--mode live --mode-name a=b", {"mode": "live", "mode_name": "a=b"}),
        ("--mode-name=--rank", {"mode_name": "--rank"}),
        ("--no_dense --json", {"dense": False, "json": True}),
        ("--no-dense --no-json", {"dense": False, "json": False}),
    ],
)
def test_values(line: str, values: dict[str, Any]) -> None:
    assert read(f"--save-to x {line}") == {"save_to": Path("x"), **values}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--rnak 3", "--rnak is not a flag of make. Did you mean --rank?"),
        ("--no_dens", "--no_dens is not a flag of make. Did you mean --no_dense?"),
        ("--sav x", "--sav is not a flag of make. Did you mean --save_to?"),
        ("--ran 3", "--ran is short for several flags of make: --rank, --ranks. Write one."),
        ("--no_rank", "--no_rank: --rank takes a value and cannot be switched off. Leave it out."),
        ("--rank", "--rank needs a value: --rank N."),
        ("--save_to EMPTY", "--save_to needs a value, got an empty text."),
        ("--rank 0", "--rank must be a whole number from 1, got '0'."),
        ("--rank 8.0", "--rank must be a whole number from 1, got '8.0'."),
        ("--scale nan", "--scale must be a number, got 'nan'."),
        ("--by_layer x", "--by_layer must be a number, got 'x'."),
        ("--share 2", "--share must be a number from 0 to 1, got '2'."),
        ("--mode liv", "--mode must be fused or live, got 'liv'. Did you mean live?"),
        ("--dense=3", "--dense takes no value, got '3'. Write --dense or --no_dense alone."),
        ("--ranks 1 --ranks 2", "--ranks is given twice. Put all its values after one --ranks."),
        ("--rank 1 2", "'2' belongs to no flag: --rank takes one value, here '1'."),
        ("a --rank 1", "'a' belongs to no flag. `lbm-lora make --help` lists the flags."),
        ("--rank 1", "make needs --save_to PATH. `lbm-lora make --help` explains it."),
    ],
)
def test_what_is_wrong_is_said_with_the_way_out(line: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(line)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "line", ["a b --to c --quick", "a --to c b --quick", "--quick a --to c b", "--to=c a --quick b"]
)
def test_words_without_a_flag_are_taken_wherever_they_stand(line: str) -> None:
    assert read(line, words_of) == {"data": (Path("a"), Path("b")), "to": Path("c"), "quick": True}


def test_all_that_is_missing_is_named_at_once() -> None:
    with pytest.raises(ConfigError, match=r"^make needs --base PATH and --other TEXT \.\.\.\. `.*` explains them\.$"):
        read("", needy)


def test_help_is_asked_for_anywhere() -> None:
    assert is_asked_for_help(["--rank", "-h"])
    assert is_asked_for_help(["--help"])
    assert not is_asked_for_help(["--rank", "h"])


def test_words_belong_to_the_flag_before_them() -> None:
    assert grouped(["a", "--b", "c", "-1", "-h", "--d=e"]) == [
        ("", ["a"]),
        ("--b", ["c", "-1"]),
        ("-h", []),
        ("--d=e", []),
    ]
    assert grouped([]) == []


def test_ranges_and_alternatives_are_spelt() -> None:
    flags = {flag.name: flag for flag in flags_of(make)}
    assert [range_of(flags[name]) for name in ("rank", "share", "scale")] == [" from 1", " from 0 to 1", ""]
    assert [alternatives(words) for words in ("a", "ab", "abc")] == ["a", "a or b", "a, b or c"]
