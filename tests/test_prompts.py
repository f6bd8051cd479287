import json
from pathlib import Path

import pytest

from hfi.errors import HfiError
from hfi.prompts import Prompt, load_prompt_sets, load_prompts


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def test_text_one_prompt_a_line(tmp_path):
    path = write(tmp_path / "p.txt", "a sailor\r\n\n  a king, crowned \n")
    assert load_prompts(path) == (Prompt("a sailor"), Prompt("a king, crowned"))


def test_csv_seed_and_expected_attributes(tmp_path):
    path = write(
        tmp_path / "p.csv",
        '\ufeffprompt,seed,character,hair\n"a sailor, red",7,sailor,red\na king,,king,\n\n',
    )
    assert load_prompts(path) == (
        Prompt("a sailor, red", 7, {"character": "sailor", "hair": "red"}),
        Prompt("a king", None, {"character": "king"}),
    )


def test_json_strings_and_objects(tmp_path):
    path = write(tmp_path / "p.json", json.dumps(["a sailor", {"prompt": "a king", "seed": 3, "character": "king"}]))
    assert load_prompts(path) == (Prompt("a sailor"), Prompt("a king", 3, {"character": "king"}))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("p.csv", "text,seed\na sailor,1\n", "no 'prompt' column (found 'text', 'seed')"),
        ("p.csv", "", "no 'prompt' column"),
        ("p.csv", "prompt\n\n", "holds no prompt"),
        ("p.csv", "prompt,seed\na sailor,-1\n", "line 2 is not a whole number"),
        ("p.csv", "prompt,seed\na sailor,1.5\n", "'1.5'"),
        ("p.txt", " \n", "holds no prompt"),
        ("p.json", "{", "is not JSON"),
        ("p.json", '{"prompt": "a"}', "is not a JSON list"),
        ("p.json", '["a", {"text": "b"}]', "item 1"),
        ("p.yaml", "a", "is no prompts file"),
    ],
)
def test_a_bad_file_is_named(tmp_path, name, text, said):
    path = write(tmp_path / name, text)
    with pytest.raises(HfiError) as e:
        load_prompts(path)
    assert said in str(e.value)
    assert str(path) in str(e.value)


def test_missing_and_undecodable_files(tmp_path):
    with pytest.raises(HfiError, match="no prompts file"):
        load_prompts(tmp_path / "none.csv")
    (tmp_path / "p.txt").write_bytes(b"a sailor \xff")
    with pytest.raises(HfiError, match="UTF-8"):
        load_prompts(tmp_path / "p.txt")


def test_a_folder_gives_the_sets_it_has_and_no_training_sets(tmp_path):
    for name in ("harmless", "implicit", "retain", "judge"):
        write(tmp_path / f"{name}.csv", f"prompt\n{name} prompt\n")
    sets = load_prompt_sets(tmp_path)
    assert list(sets) == ["implicit", "harmless"]
    assert sets["harmless"][0].text == "harmless prompt"
    with pytest.raises(HfiError, match="holds no prompt set"):
        load_prompt_sets(tmp_path / "..")
