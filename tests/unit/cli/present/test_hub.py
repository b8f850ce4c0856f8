"""The text of `push`."""

from pathlib import Path

from lbm_lora.cli.present import present
from lbm_lora.naming import ParamName
from lbm_lora.workflows.push import PushedFile, PushResult

RESULT = PushResult(
    repo="user/repo",
    url="https://huggingface.co/user/repo",
    commit="abc",
    folder=None,
    files=(PushedFile(path="README.md", nbytes=2800), PushedFile(path="a.safetensors", nbytes=9_490_000)),
    dropped=(ParamName("norm.weight"),),
)


def test_a_published_lora() -> None:
    assert present("push", RESULT).split("\n") == [
        "Published at https://huggingface.co/user/repo",
        "   2.8 kB  README.md",
        "  9.49 MB  a.safetensors",
        "",
        "The file for diffusers leaves out 1 tensor that it cannot hold.",
        "",
        "Use it: --lora_path user/repo",
    ]


def test_verbose_names_what_is_left_out() -> None:
    assert "hold.\nnorm.weight\n" in present("push", RESULT, verbose=True)


def test_a_folder() -> None:
    result = PushResult(repo="user/repo", url="", commit="", folder=Path("look"), files=RESULT.files[:1], dropped=())
    assert present("push", result) == "Written to look. Nothing was uploaded.\n  2.8 kB  README.md"
