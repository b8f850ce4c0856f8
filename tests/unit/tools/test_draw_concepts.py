"""The images of the concept pages are what their tool draws, and small."""

from tools.draw_concepts import FOLDER, factors


def test_the_committed_factors_are_up_to_date() -> None:
    assert (FOLDER / "factors.svg").read_text(encoding="utf-8") == factors()


def test_the_images_are_small_and_all_there() -> None:
    sizes = {path.name: path.stat().st_size for path in FOLDER.iterdir()}
    assert set(sizes) == {"bridge.png", "factors.svg", "noise-floor.svg"}
    assert max(sizes.values()) < 150_000
