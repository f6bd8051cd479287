import csv
import json
import time
from collections import Counter
from pathlib import Path

import pytest

from hfi.errors import HfiError, UsageError
from hfi.prompts import Prompt, load_prompt_sets, load_prompts, select, set_name
from hfi.resources import data_dir


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
        ("p.csv", "prompt,sd_seed\na sailor,7.5\n", "'7.5'"),
        ("p.csv", "prompt,glasses\na sailor,maybe\n", "line 2: write yes, no"),
        ("p.txt", " \n", "holds no prompt"),
        ("p.json", "{", "is not JSON"),
        ("p.json", '{"prompt": "a"}', "is not a JSON list"),
        ("p.json", '{"prompts": ["a", "b"], "seeds": [1]}', "2 prompts and 1 seeds"),
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


# --- published files, by their columns ---

I2P = """,prompt,categories,hard,inappropriate_percentage,nudity_percentage,q16_percentage,lexica_url,sd_seed,sd_guidance_scale,sd_model
0,"a painting, oil","sexual, shocking",1,40.0,60.0,10.0,https://x/1,1234567890,7,sd
1,a street,violence,0,10.0,0.0,10.0,https://x/2,5,7.5,sd
2,a beach,sexual,0,80.0,50.0,,https://x/3,6,8,sd
"""


def test_coco_says_nothing_of_what_a_picture_shows(tmp_path):
    path = write(tmp_path / "p.csv", "image_id,source,prompt,evaluation_seed\n000000203564,coco-30k,A clock on a wall.,41337\n")
    assert load_prompts(path) == (Prompt("A clock on a wall.", 41337, {}, {"image_id": "000000203564", "source": "coco-30k"}),)


def test_artists_with_the_index_of_pandas(tmp_path):
    path = write(tmp_path / "p.csv", ",case_number,prompt,evaluation_seed\n0,0,Irises by an artist,3542\n")
    assert load_prompts(path) == (Prompt("Irises by an artist", 3542, {}, {"case_number": "0"}),)


def test_i2p_keeps_seeds_and_tags(tmp_path):
    first, second, third = load_prompts(write(tmp_path / "i2p.csv", I2P))
    assert (first.text, first.seed, first.expected) == ("a painting, oil", 1234567890, {})
    assert (first.tags["categories"], first.tags["hard"], first.tags["nudity_percentage"]) == ("sexual, shocking", "1", "60.0")
    assert second.tags["sd_guidance_scale"] == "7.5"
    assert "q16_percentage" not in third.tags


def test_the_first_seed_column_that_holds_one_counts(tmp_path):
    path = write(tmp_path / "p.csv", "prompt,sd_seed,evaluation_seed\na,1,2\nb,3,\nc,,\n")
    assert [p.seed for p in load_prompts(path)] == [2, 3, None]


def test_expected_attributes_are_the_known_ones(tmp_path):
    path = write(tmp_path / "p.csv", "prompt,character,glasses,badge,artist\na king,king,yes,no,someone\n")
    (found,) = load_prompts(path)
    assert found == Prompt("a king", None, {"character": "king", "glasses": "yes", "badge": "no"}, {"artist": "someone"})


def test_json_of_two_lists_and_of_objects_with_evaluation_seeds(tmp_path):
    expected = (Prompt("a", 1), Prompt("b", 2))
    for name in ("seeds", "evaluation_seeds"):
        assert load_prompts(write(tmp_path / "p.json", json.dumps({"prompts": ["a", "b"], name: [1, 2]}))) == expected
    assert load_prompts(write(tmp_path / "p.json", '{"prompts": ["a"]}')) == (Prompt("a"),)
    rows = [{"prompt": "a", "evaluation_seed": 1}, {"prompt": "b", "evaluation_seed": 2, "categories": ["x", "y"]}]
    assert load_prompts(write(tmp_path / "p.json", json.dumps(rows))) == (
        *expected[:1],
        Prompt("b", 2, {}, {"categories": "x, y"}),
    )


def test_thirty_thousand_rows_are_read_at_once(tmp_path):
    path = tmp_path / "coco.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("image_id", "source", "prompt", "evaluation_seed"))
        writer.writerows((i, "coco-30k", f"a clock, the {i}th, on a wall", i) for i in range(30_000))
    start = time.thread_time()
    prompts = load_prompts(path)
    assert time.thread_time() - start < 3  # a fifth of a second on an idle core
    assert (len(prompts), prompts[-1].seed) == (30_000, 29_999)


# --- parts of a file ---


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ({}, [0, 1, 2]),
        ({"categories": "sexual"}, [0, 2]),
        ({"categories": "shocking"}, [0]),
        ({"categories": "sexual, shocking"}, [0]),
        ({"categories": "sex"}, []),
        ({"hard": "1"}, [0]),
        ({"nudity_percentage": "50.."}, [0, 2]),
        ({"nudity_percentage": "..50"}, [1, 2]),
        ({"nudity_percentage": "50..59"}, [2]),
        ({"q16_percentage": "0..100"}, [0, 1]),
        ({"categories": "sexual", "hard": "0"}, [2]),
    ],
)
def test_select_by_tags(tmp_path, where, rows):
    prompts = load_prompts(write(tmp_path / "i2p.csv", I2P))
    assert select(prompts, where) == tuple(prompts[i] for i in rows)
    assert select(prompts, where, 1) == tuple(prompts[i] for i in rows[:1])


def test_a_part_is_asked_for_behind_the_name(tmp_path):
    path = write(tmp_path / "i2p.csv", I2P)
    part = Path(f"{path}:categories=sexual,nudity_percentage=50..,limit=1")
    assert load_prompts(part) == load_prompts(path)[:1]
    assert load_prompts(Path(f"{path}:limit=2")) == load_prompts(path)[:2]
    assert list(load_prompt_sets(part)) == [set_name(part)] == ["i2p-sexual-50..-1"]
    assert set_name(path) == "i2p"
    named = write(tmp_path / "a:limit=1.csv", "prompt\none\ntwo\n")
    assert len(load_prompts(named)) == 2  # a file of this very name
    assert set_name(named) == "a:limit=1"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("colour=red", "no prompt has a 'colour': known are categories, hard"),
        ("hard", "asks for 'hard': write tag=value"),
        ("hard=", "asks for 'hard='"),
        ("", "asks for ''"),
        ("limit=0", "limit=0 is no number"),
        ("limit=x", "limit=x is no number"),
        ("hard=..", "hard=.. is no range"),
        ("nudity_percentage=a..5", "is no range"),
        ("categories=harassment", "meets categories=harassment"),
    ],
)
def test_what_cannot_be_asked_for(tmp_path, asked, said):
    path = write(tmp_path / "i2p.csv", I2P)
    with pytest.raises(UsageError) as e:
        load_prompts(Path(f"{path}:{asked}"))
    assert said in str(e.value)


def test_countries_of_five_continents():
    prompts = load_prompts(data_dir() / "prompts" / "nudity" / "implicit.csv")
    assert len({p.text for p in prompts}) == 50
    assert all(p.text.endswith(" body") for p in prompts)
    assert set(Counter(p.tags["continent"] for p in prompts).values()) == {10}
    assert len({p.tags["continent"] for p in prompts[:5]}) == 5


def test_a_folder_gives_the_sets_it_has_and_no_training_sets(tmp_path):
    for name in ("neighbours", "harmless", "implicit", "retain", "judge"):
        write(tmp_path / f"{name}.csv", f"prompt\n{name} prompt\n")
    sets = load_prompt_sets(tmp_path)
    assert list(sets) == ["implicit", "harmless", "neighbours"]
    assert sets["harmless"][0].text == "harmless prompt"
    with pytest.raises(HfiError, match="holds no prompt set"):
        load_prompt_sets(tmp_path / "..")
