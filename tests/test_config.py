"""Settings: one description, read from defaults, TOML and flags; every mistake said at once."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from hfi.cli.options import with_config
from hfi.config import as_dict, check, from_toml, option, to_toml
from hfi.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Settings:
    steps: int = option(10, "optimizer updates", low=1, high=100)
    learning_rate: float = option(0.1, "how far each update goes", above=0)
    template: Literal["plain", "own"] = option("plain", "what the prompt is")
    name: str = option("", "what it is called")
    anchor: bool = option(True, "whether the rest is held")
    seed: int | None = option(None, "where the noise starts")

    def __post_init__(self) -> None:
        check(self)


def test_every_mistake_is_named_in_one_sentence() -> None:
    with pytest.raises(UsageError) as told:
        Settings(steps=0, learning_rate=0.0, template="other")  # type: ignore[arg-type]
    assert str(told.value) == (
        "--steps is 0: give 1 or more; --learning-rate is 0.0: give more than 0; --template is 'other': choose plain or own"
    )
    with pytest.raises(UsageError, match="give 100 or less"):
        Settings(steps=101)
    with pytest.raises(UsageError, match="--learning-rate is nan"):
        Settings(learning_rate=float("nan"))
    assert Settings(steps=1).steps == 1
    assert Settings(steps=100).steps == 100


def test_a_file_of_settings_is_read_and_flags_win(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('steps = 5\nlearning_rate = 1\nname = "a \\"b\\""\n')
    assert from_toml(Settings, file) == Settings(steps=5, learning_rate=1.0, name='a "b"')
    assert from_toml(Settings, file, steps=7).steps == 7


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("step = 5", "unknown settings step: known are anchor, learning_rate"),
        ("steps = true", "steps = True is no int"),
        ("steps = 1.5", "steps = 1.5 is no int"),
        ('learning_rate = "1"', "learning_rate = '1' is no float"),
        ("name = 3", "name = 3 is no str"),
        ('seed = "x"', "seed = 'x' is no int"),
        ('template = "no"', "--template is 'no': choose plain or own"),
        ("steps = 0", "--steps is 0"),
        ("steps = ", "is not TOML"),
    ],
)
def test_a_wrong_file_is_one_clear_sentence(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match=r"settings\.toml|--") as told:
        from_toml(Settings, file)
    assert said in str(told.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no configuration file .*gone\.toml"):
        from_toml(Settings, tmp_path / "gone.toml")


@settings(max_examples=50)
@given(
    st.builds(
        Settings,
        steps=st.integers(1, 100),
        learning_rate=st.floats(1e-30, 1e30),
        template=st.sampled_from(["plain", "own"]),
        name=st.text(st.characters(exclude_categories=["Cs"])),
        anchor=st.booleans(),
        seed=st.none() | st.integers(0, 2**40),
    )
)
def test_settings_survive_toml(tmp_path_factory: pytest.TempPathFactory, chosen: Settings) -> None:
    file = tmp_path_factory.getbasetemp() / "settings.toml"
    file.write_text(to_toml(as_dict(chosen)), encoding="utf-8", newline="")
    assert from_toml(Settings, file) == chosen


def test_lists_are_written_too() -> None:
    assert tomllib.loads(to_toml({"sizes": [1, 2], "names": ("a",), "none": None})) == {"sizes": [1, 2], "names": ["a"]}


# --- as options ---


@pytest.fixture
def command() -> typer.Typer:
    app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)

    @app.command()
    @with_config(Settings)
    def run(word: str, *, loud: bool = False, config: Settings) -> None:
        typer.echo(f"{word} {loud} {config}")

    return app


def test_each_field_is_an_option(command: typer.Typer, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('steps = 5\ntemplate = "own"\nanchor = false\n')
    run = CliRunner()
    assert run.invoke(command, ["hi"]).output == f"hi False {Settings()}\n"
    assert (
        run.invoke(command, ["hi", "--loud", "--no-anchor", "--steps", "3"]).output
        == f"hi True {Settings(steps=3, anchor=False)}\n"
    )
    given_file = ["hi", "--config", str(file)]
    assert run.invoke(command, given_file).output == f"hi False {Settings(steps=5, template='own', anchor=False)}\n"
    assert run.invoke(command, [*given_file, "--steps", "10", "--anchor"]).output == f"hi False {Settings(template='own')}\n"
    assert isinstance(run.invoke(command, ["hi", "--steps", "0"]).exception, UsageError)
    for wrong in (["--steps", "x"], ["--template", "other"], ["--unknown", "1"]):
        assert run.invoke(command, ["hi", *wrong]).exit_code == 2


def test_help_is_the_fields_own(command: typer.Typer) -> None:
    text = " ".join(CliRunner().invoke(command, ["--help"]).output.split())
    for words in (
        "optimizer updates (default: 10)",
        "--anchor / --no-anchor",
        "plain|own",
        "where the noise starts",
        "--config",
    ):
        assert words in text
    assert "where the noise starts (default" not in text
