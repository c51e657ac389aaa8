from pathlib import Path

import pytest
import torch

from loomweight import architectures
from loomweight.candidates import SCALES
from trainer import cli, diffusion, recipe
from trainer.recipe import RECIPES, GeneratorRecipe


@pytest.mark.parametrize("name", sorted(p.stem for p in RECIPES.glob("*.toml")))
def test_every_shipped_recipe_loads(name: str) -> None:
    loaded = recipe.load(name)
    assert loaded.name == name
    assert loaded.targets
    assert set(loaded.bank.views) <= set(loaded.data.domains)
    # A prior that is no candidate of its target would go unnoticed
    for target, prior in loaded.sampling.prior.items():
        shares = [k for k in SCALES if k.origin == prior]
        assert shares, f"{target}: {prior}"
        assert architectures.get(target, encoder_dim=8).trunk or prior in ("mean", "mean-half", "closed-form")
    assert hash(loaded.data.domains) is not None  # lists became tuples


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sed = 3", r"other: unknown keys \['sed'\]"),
        ("[encoder]\nwidht = 4", r"other\.encoder: unknown keys \['widht'\]"),
        ("[targets.head]\nzoos = {}", r"other\.head: unknown keys \['zoos'\]"),
        (
            "[targets.head.diffusion]\nlayer = 1\nwidht = 2",
            r"other\.head\.diffusion: unknown keys \['layer', 'widht'\]",
        ),
    ],
)
def test_an_unknown_key_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "other.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        recipe.load(str(tmp_path / "other.toml"))


def test_an_unknown_recipe_names_the_known_ones() -> None:
    with pytest.raises(FileNotFoundError, match=r"no recipe nope; there are \[.*'starter'.*'tiny'.*\]"):
        recipe.load("nope")


def test_what_is_not_said_keeps_its_default(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("[targets.head.diffusion]\nwidth = 7")
    loaded = recipe.load(str(tmp_path / "a.toml"))
    assert loaded.targets == {"head": recipe.TargetRecipe(diffusion=GeneratorRecipe(width=7))}


def test_the_hash_follows_every_setting(tmp_path: Path) -> None:
    hashes = set()
    for i, text in enumerate(("", "seed = 1", "[targets.head.vae]\ndim = 3")):
        folder = tmp_path / str(i)
        folder.mkdir()
        (folder / "a.toml").write_text(text)
        hashes.add(recipe.load(str(folder / "a.toml")).sha256)
    assert len(hashes) == 3


@pytest.mark.parametrize("text", ["2/2", "1", "-1/2", "a/b", "1/2/3"])
def test_a_shard_is_i_of_n(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["zoo", "--recipe", "tiny", f"--shard={text}"])
    assert stopped.value.code == 2
    assert "is not i/n with 0 <= i < n" in capsys.readouterr().err


def test_diffusion_runs_for_some_targets_on_some_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[str] = []
    threads: list[int] = []
    monkeypatch.setattr(diffusion, "train_target", lambda recipe, run, target, shelves: trained.append(target))
    monkeypatch.setattr("trainer.bank.load", lambda recipe, run: {})
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    tiny = ["diffusion", "--recipe", "tiny", "--run", str(tmp_path)]
    assert cli.main(tiny) == 0
    assert trained == list(recipe.load("tiny").targets)
    assert cli.main([*tiny, "--targets", "head", "--threads", "3"]) == 0
    assert trained[2:] == ["head"]
    assert threads == [recipe.load("tiny").threads, 3]
