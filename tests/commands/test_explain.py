"""Attention weights and predictions for a user's images, from Python and from the command line."""

import csv
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.checkpoints import edited, trained
from helpers.commands import Cli, check_line
from helpers.user_code import TINY_CIFAR10
from PIL import Image, ImageColor

from attnmosaic.core.errors import UserError
from attnmosaic.inference import explanation
from attnmosaic.inference.explanation import Explanation, explain
from attnmosaic.nn.networks import ConvNet
from attnmosaic.plotting.explanation import ATTENDED, BANNER
from attnmosaic.plotting.palette import RED

pytestmark = pytest.mark.runs

SHORT = ("schedule.k=1", "schedule.epochs=2")
MEAN, STD = (0.1, 0.2, 0.3), 0.7


@pytest.fixture(scope="module")
def color(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the checkpoint of a run on colour images in float64, with clearly different scores of Where."""
    settings = (f"data.mean={[*MEAN]}".replace(" ", ""), f"data.std={STD}", "precision=float64", "data.classes=null")
    path = trained(tmp_path_factory.mktemp("color") / "run", "experiment=stagewise", *SHORT, *TINY_CIFAR10, *settings)

    def sharpen(saved: dict[str, Any]) -> None:
        for network in ("where", "what"):
            saved["state_dict"][f"pair.{network}.head.layers.3.weight"] *= 300

    return edited(path, path, sharpen)


@pytest.fixture(scope="module")
def bright(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the checkpoint of a pair on grey 8 x 8 images.

    Where's score is the sum of the pixels, and What predicts "9" for bright aggregates.
    """
    linear = ("model=mlp", "model.where.hidden=[]", "model.what.hidden=[]")
    path = trained(tmp_path_factory.mktemp("bright") / "run", "experiment=stagewise", *SHORT, "data=digits", *linear)

    def brighten(saved: dict[str, Any]) -> None:
        weights = saved["state_dict"]
        weights["pair.where.layers.0.weight"][:] = 0.2
        weights["pair.what.layers.0.weight"][:] = torch.tensor([[-0.1], [0.0], [0.1]])
        for network in ("where", "what"):
            weights[f"pair.{network}.layers.0.bias"][:] = 0

    return edited(path, path, brighten)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)


def picture_with_bright_cell(at: int, grid: int, side: int = 8) -> Image.Image:
    """Returns a grey picture of grid x grid cells, in which the cell with index `at` is bright."""
    pixels = np.full((grid * side, grid * side), 60, dtype=np.uint8)
    y, x = divmod(at, grid)
    pixels[y * side : (y + 1) * side, x * side : (x + 1) * side] = 200
    return Image.fromarray(pixels)


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


# ---- predictions


def computed_by_hand(path: Path, cells: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Returns weights and probabilities of cells, uint8 ``[32, 32, 3]``, computed from the checkpoint's weights."""
    state = torch.load(path, weights_only=True)["state_dict"]
    networks = []
    for name, outputs in (("where", 1), ("what", 3)):
        network = ConvNet((3, 32, 32), outputs).double()
        network.load_state_dict({k.removeprefix(f"pair.{name}."): v for k, v in state.items() if f".{name}." in k})
        networks.append(network.eval())
    patches = torch.from_numpy((np.stack(cells) / 255.0 - np.array(MEAN)) / STD).movedim(-1, 1)
    with torch.no_grad():
        alpha = networks[0](patches).flatten().softmax(dim=0)
        logits = networks[1](sum(a * patch for a, patch in zip(alpha, patches, strict=True))[None])[0]
    return alpha.numpy(), logits.softmax(dim=0).numpy()


def check(explained: Explanation, path: Path, cells: list[np.ndarray]) -> None:
    weights, probabilities = computed_by_hand(path, cells)
    np.testing.assert_allclose(explained.weights, weights, rtol=0, atol=1e-10)
    np.testing.assert_allclose(explained.probabilities, probabilities, rtol=0, atol=1e-10)
    assert explained.classes == ("horse", "ship", "truck")
    assert explained.predicted == explained.classes[probabilities.argmax()]
    assert explained.attended_patch == weights.argmax() + 1
    assert explained.entropy == pytest.approx(-(weights * np.log(weights)).sum())
    assert weights.std() > 0.01, "the test needs different weights"


def test_prediction_is_that_of_the_pair_on_the_cells(color: Path, tmp_path: Path) -> None:
    """Cells of the trained size are not changed; other cells are resized, each without its neighbours."""
    pixels = noise(96, 96, 3)
    Image.fromarray(pixels).save(tmp_path / "exact.png")
    before = torch.get_rng_state()
    (seen,) = explain(str(color), tmp_path / "exact.png")
    assert torch.equal(torch.get_rng_state(), before)
    assert seen.name == "exact.png"
    check(seen, color, [pixels[y : y + 32, x : x + 32] for y in (0, 32, 64) for x in (0, 32, 64)])

    wide = noise(70, 200, 3, seed=1)  # 200 is not a multiple of 3
    Image.fromarray(wide).save(tmp_path / "wide.png")
    (seen,) = explain(color, tmp_path / "wide.png", grid=3)
    edges = (0, 23, 47, 70), (0, 67, 133, 200)
    cut = [wide[edges[0][i] : edges[0][i + 1], edges[1][j] : edges[1][j + 1]] for i in range(3) for j in range(3)]
    check(seen, color, [np.asarray(Image.fromarray(c).resize((32, 32), Image.Resampling.BICUBIC)) for c in cut])
    (seen,) = explain(color, tmp_path / "wide.png", grid=1)
    assert seen.weights.tolist() == [1.0]
    assert seen.entropy == 0.0


def test_folder_is_one_mosaic(color: Path, tmp_path: Path) -> None:
    """Of any number of patches, sorted by name; images that are not square are cropped at their centre."""
    for name, count in (("one", 1), ("two", 2), ("many", 23)):
        (tmp_path / "mine" / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(noise(32, 32, 3, seed=i)).save(tmp_path / "mine" / name / f"{i:02}.png")
    (tmp_path / "mine" / "two" / "notes.txt").write_text("no image")
    (tmp_path / "mine" / "two" / ".hidden.png").write_bytes(b"")
    (tmp_path / "mine" / "empty").mkdir()
    wide = noise(32, 60, 3, seed=9)
    Image.fromarray(wide).save(tmp_path / "mine" / "two" / "9.png")
    seen = {mosaic.name: mosaic for mosaic in explain(color, tmp_path / "mine")}
    assert [*seen] == ["many", "one", "two"]
    check(seen["many"], color, [noise(32, 32, 3, seed=i) for i in range(23)])
    check(seen["two"], color, [*(noise(32, 32, 3, seed=i) for i in range(2)), wide[:, 14:46]])
    assert seen["one"].weights.tolist() == [1.0]


@pytest.mark.parametrize("grid", [2, 5])
def test_pair_attends_to_the_bright_cell(bright: Path, tmp_path: Path, grid: int) -> None:
    """Cells are numbered row by row, in pictures of any size and mode."""
    for at in range(grid**2):
        picture_with_bright_cell(at, grid, side=(8, 13, 40)[at % 3]).convert(("L", "RGB", "RGBA", "P")[at % 4]).save(
            tmp_path / f"{at:02}.png"
        )
    seen = explain(bright, tmp_path, grid)
    assert [mosaic.attended_patch for mosaic in seen] == [at + 1 for at in range(grid**2)]
    assert {mosaic.predicted for mosaic in seen} == {"9"}
    assert all(mosaic.weights.max() > 0.9 for mosaic in seen)


def test_images_are_converted_to_the_colours_of_training(bright: Path, color: Path, tmp_path: Path) -> None:
    pixels = noise(96, 96, 3)
    Image.fromarray(pixels).save(tmp_path / "color.png")
    Image.fromarray(pixels).convert("L").save(tmp_path / "grey.png")
    grey = np.repeat(np.asarray(Image.open(tmp_path / "grey.png"))[..., None], 3, axis=-1)
    first, second = explain(bright, tmp_path)
    np.testing.assert_array_equal(first.weights, second.weights)
    check(
        explain(color, tmp_path / "grey.png")[0], color, [c for r in np.split(grey, 3) for c in np.split(r, 3, axis=1)]
    )


# ---- files


def test_files_equal_the_predictions(cli: Cli, bright: Path, tmp_path: Path) -> None:
    picture_with_bright_cell(4, 3).save(tmp_path / "middle.png")
    (tmp_path / "mine").mkdir()
    picture_with_bright_cell(2, 3).save(tmp_path / "mine" / "a.png")
    for folder, patches in (("b", 2), ("c", 11)):
        (tmp_path / "mine" / folder).mkdir()
        for i in range(patches):
            Image.new("L", (8, 8), 20 * i).save(tmp_path / "mine" / folder / f"{i:02}.png")
    code, out, err = cli("explain", f"ckpt_path={bright}", "images=mine")
    assert code == 0, err
    (folder,) = (tmp_path / "outputs" / "explain").iterdir()
    names = {".hydra", "explain.log", "explained.csv", "index.png", "a.png", "b.png", "c.png"}
    assert {path.name for path in folder.iterdir()} == names
    table = rows(folder / "explained.csv")
    assert [*table[0]] == [
        "image", "predicted", "p(7)", "p(8)", "p(9)", "looks_at", "weight", "entropy",
        *(f"weight_{i}" for i in range(1, 12)),
    ]  # fmt: skip
    seen = explain(bright, tmp_path / "mine")
    assert [row["image"] for row in table] == ["a.png", "b", "c"]
    for row, mosaic in zip(table, seen, strict=True):
        weights = [row[f"weight_{i}"] for i in range(1, 12)]
        assert [float(weight) for weight in weights if weight] == mosaic.weights.tolist()
        assert weights[len(mosaic.weights) :] == [""] * (11 - len(mosaic.weights))
        assert [float(row[f"p({name})"]) for name in "789"] == mosaic.probabilities.tolist()
        assert row["predicted"] == mosaic.predicted
        assert (int(row["looks_at"]), float(row["weight"])) == (mosaic.attended_patch, mosaic.weights.max())
        assert float(row["entropy"]) == pytest.approx(mosaic.entropy)
        assert f"patch {mosaic.attended_patch} of {len(mosaic.weights)}" in out
    assert [mosaic.attended_patch for mosaic in seen] == [3, 2, 11]
    assert str(folder / "explained.csv") in out

    code, _, err = cli("explain", f"ckpt_path={bright}", "images=middle.png", "grid=1", "hydra.run.dir=one")
    assert code == 0, err
    assert {path.name for path in (tmp_path / "one").glob("*.*")} == {
        ".hydra",
        "explain.log",
        "explained.csv",
        "middle.png",
    }
    assert rows(tmp_path / "one" / "explained.csv")[0]["weight_1"] == "1.0"


def center_of_frame(picture: Image.Image) -> tuple[float, float]:
    """Returns the centre (y, x) of the frame in a picture."""
    y, x = np.where((np.asarray(picture) == ImageColor.getrgb(ATTENDED)).all(axis=-1))
    return (y.min() + y.max()) / 2, (x.min() + x.max()) / 2


def test_pictures_show_weights_and_aggregate(cli: Cli, bright: Path, tmp_path: Path) -> None:
    """The attended cell is bright and framed, all others are dark; the aggregate is as bright as the attended cell."""
    (tmp_path / "mine").mkdir()
    for at in (0, 5, 7):
        picture_with_bright_cell(at, 3, 20).save(tmp_path / "mine" / f"{at}.png")
    Image.new("L", (2000, 900), 128).save(tmp_path / "mine" / "large.png")
    for width, height in ((5000, 3), (3, 5000), (3, 3)):
        Image.new("L", (width, height), 128).save(tmp_path / "mine" / f"{width}x{height}.png")
    assert cli("explain", f"ckpt_path={bright}", "images=mine", "hydra.run.dir=out")[0] == 0
    for at in (0, 5, 7):
        picture = Image.open(tmp_path / "out" / f"{at}.png")
        y, x = center_of_frame(picture)
        cell = 540 / 3 + 4  # a picture of 60 pixels is enlarged nine times; lines between cells have 4 pixels
        assert (int((y - 16) // cell), int((x - 16) // cell)) == divmod(at, 3)
        middles = [(16 + (i // 3 + 0.5) * cell, 16 + (i % 3 + 0.5) * cell) for i in range(9)]
        shown = [picture.getpixel((int(x), int(y)))[0] for y, x in middles]
        assert shown[at] > 195
        assert max(shown[:at] + shown[at + 1 :]) < 20
        assert picture.getpixel((picture.width - 100, 150))[0] == pytest.approx(200, abs=2)
    assert max(max(Image.open(path).size) for path in (tmp_path / "out").glob("[l35]*.png")) < 1200
    assert (tmp_path / "out" / "5000x3.png").exists()
    assert Image.open(tmp_path / "out" / "index.png").width > 4 * 200


def test_files_of_a_smoke_run_are_marked(cli: Cli, bright: Path, tmp_path: Path) -> None:
    smoke = edited(
        bright, tmp_path / "smoke.ckpt", lambda saved: saved["hyper_parameters"]["config"].update(scale="smoke")
    )
    (tmp_path / "mine").mkdir()
    for at in (0, 1):
        picture_with_bright_cell(at, 3).save(tmp_path / "mine" / f"{at}.png")
    code, out, _ = cli("explain", f"ckpt_path={smoke}", "images=mine", "hydra.run.dir=out")
    assert code == 0
    assert "SMOKE" in out
    assert [row["scale"] for row in rows(tmp_path / "out" / "explained.csv")] == ["smoke"] * 2
    for name in ("0.png", "1.png", "index.png"):
        picture = Image.open(tmp_path / "out" / name)
        assert {picture.getpixel((x, y)) for x in (0, picture.width - 1) for y in (0, BANNER - 1)} == {
            ImageColor.getrgb(RED)
        }


def test_each_mosaic_is_written_before_the_next_is_read(
    bright: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The terminal shows the first twenty mosaics."""
    (tmp_path / "mine").mkdir()
    for at in range(23):
        picture_with_bright_cell(at % 9, 3).save(tmp_path / "mine" / f"{at:02}.png")
    written: list[tuple[int, int]] = []
    read = explanation.read_mosaic

    def reading(*arguments: Any) -> Any:
        pictures = [*(tmp_path / "out").glob("*.png")]
        written.append((len(pictures), len(rows(tmp_path / "out" / "explained.csv"))))
        return read(*arguments)

    monkeypatch.setattr(explanation, "read_mosaic", reading)
    code, out, _ = cli("explain", f"ckpt_path={bright}", "images=mine", "hydra.run.dir=out")
    assert code == 0
    assert written == [(done, done) for done in range(23)]
    assert "19.png" in out
    assert "20.png" not in out
    assert "3 more" in out
    assert len(rows(tmp_path / "out" / "explained.csv")) == 23


# ---- names


def test_hostile_names(cli: Cli, bright: Path, tmp_path: Path) -> None:
    """The table has the unchanged names; pictures stay in their folder; the terminal gets no control characters."""
    (tmp_path / "mine").mkdir()
    names = [
        "a b.png", "a\nb.png", "it's \"quoted\", [bold]=$(x).png", "..png", "été 猫.png", "\x1b[31mred.png", "-rf.png",
        "explained.csv.png", "index.png", "x" * 250 + ".png", "CAT.png", "cat.png", "cat.jpg", "猫" * 80 + ".png",
    ]  # fmt: skip
    for name in names:
        picture_with_bright_cell(4, 3).save(tmp_path / "mine" / name, format="PNG")
    (tmp_path / "mine" / "cat").mkdir()
    picture_with_bright_cell(4, 1).save(tmp_path / "mine" / "cat" / "index.png")
    not_text = os.fsdecode(b"\xff\xfe.png")
    picture_with_bright_cell(4, 3).save(tmp_path / "mine" / "moved.png")
    os.rename(tmp_path / "mine" / "moved.png", tmp_path / "mine" / not_text)
    shown = [name for name in names if not name.startswith(".")]
    code, out, err = cli("explain", f"ckpt_path={bright}", "images=mine", "hydra.run.dir=out")
    assert code == 0, err
    table = rows(tmp_path / "out" / "explained.csv")
    assert sorted(row["image"] for row in table) == sorted([*shown, "cat", "\ufffd\ufffd.png"])
    assert "\x1b" not in out
    assert "a b.png" in out
    assert "[bold]" in out
    written = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert len(written) == len(shown) + 2 + 1  # the folder, the name that is not UTF-8, and index.png
    assert {"a b.png", "a_b.png", "été 猫.png", "-rf.png", "cat_2.png", "index_2.png", "index.png"} <= written
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".")) == ["mine", "out"]
    assert len({name.casefold() for name in written}) == len(written)


# ---- unreadable images


def test_unreadable_images_are_skipped(cli: Cli, bright: Path, tmp_path: Path) -> None:
    """`tests/data/test_hostile_images.py` has more unreadable images."""
    for folder in (tmp_path / "mine", tmp_path / "mine" / "worse", tmp_path / "mine" / "set"):
        folder.mkdir()
        (folder / "text.png").write_text("no picture at all")
        Image.fromarray(noise(40, 40)).save(folder / "cut.png")
        (folder / "cut.png").write_bytes((folder / "cut.png").read_bytes()[:900])
    for i in range(3):
        Image.new("L", (8, 8), 50 * i).save(tmp_path / "mine" / "set" / f"{i}.png")
    Image.new("L", (2, 8)).save(tmp_path / "mine" / "tiny.png")
    picture_with_bright_cell(3, 3).save(tmp_path / "mine" / "good.png")
    code, out, err = cli("explain", f"ckpt_path={bright}", "images=mine", "hydra.run.dir=out")
    assert code == 0, err
    logged = [line for line in out[: out.index("\n\n")].splitlines() if line.endswith("; skipped")]
    assert [line.split("'")[1] for line in logged] == [
        "cut.png", "set/cut.png", "set/text.png", "text.png", "tiny.png", "worse"
    ]  # fmt: skip
    table = rows(tmp_path / "out" / "explained.csv")
    assert [(row["image"], row["looks_at"]) for row in table] == [("good.png", "4"), ("set", "3")]
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"good.png", "set.png", "index.png"}

    code, _, err = cli("explain", f"ckpt_path={bright}", "images=mine/worse", "hydra.run.dir=none")
    check_line(code, err, r"images: none of 2 mosaics .*'cut\.png'")
    with pytest.raises(UserError, match=r"images: 'text\.png' "):
        explain(bright, tmp_path / "mine" / "text.png")


# ---- user errors


ERRORS = {
    (): r"ckpt_path: required",
    ("ckpt_path=text.ckpt",): r"images: required",
    ("ckpt_path=no.ckpt", "images=mine"): r"ckpt_path: 'no\.ckpt' does not exist",
    ("ckpt_path=text.ckpt", "images=no"): r"images: 'no' does not exist",
    ("ckpt_path=text.ckpt", "images=empty"): r"images: 'empty' .*skipped",
    ("ckpt_path=text.ckpt", "images=mine", "grid=0"): r"grid: got 0, .* 1 to 32",
    ("ckpt_path=text.ckpt", "images=mine", "grid=33"): r"grid: got 33",
    ("ckpt_path=text.ckpt", "images=mine", "grid=2.5"): r"grid: .*2\.5",
    ("ckpt_path=text.ckpt", "images=mine", "device=gpu"): r"device: got 'gpu', allowed: auto, cpu, cuda",
    ("ckpt_path=text.ckpt", "image=mine"): r"image: .*key",
    ("ckpt_path=text.ckpt", "images=mine", "hydra.run.dir=mine"): r"run_dir: .*mine' .*images",
    ("ckpt_path=text.ckpt", "images=mine/a.png", "hydra.run.dir=mine"): r"run_dir: '.*mine' .*images",
    ("ckpt_path=text.ckpt", "images=mine", "hydra.run.dir=mine/set"): r"run_dir: '.*set' .*images",
    ("ckpt_path=text.ckpt", "images=mine", "hydra.run.dir=run"): r"run_dir: .*run' .*run",
}  # fmt: skip


def test_errors_found_before_torch_is_imported(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explanation, "import_lightning", lambda: pytest.fail("imports torch"))
    (tmp_path / "text.ckpt").write_text("hello")
    for folder in ("mine/set", "empty/nested/deeper", "run"):
        (tmp_path / folder).mkdir(parents=True)
    for image in ("mine/a.png", "mine/set/b.png", "empty/nested/deeper/c.png", "empty/.hidden.png"):
        picture_with_bright_cell(0, 3).save(tmp_path / image)
    (tmp_path / "run" / "config.yaml").write_text("name: gaussian")
    for arguments, message in ERRORS.items():
        code, _, err = cli("explain", *arguments)
        check_line(code, err, message)


def test_unsuitable_checkpoints_and_arguments_are_refused(bright: Path, tmp_path: Path) -> None:
    picture_with_bright_cell(0, 3).save(tmp_path / "a.png")

    def edit(**sections: Any) -> Path:
        """Returns a checkpoint with changed sections of the config, or with other changed hyperparameters."""

        def change(saved: dict[str, Any]) -> None:
            for name, value in sections.items():
                if name in saved["hyper_parameters"]["config"]:
                    saved["hyper_parameters"]["config"][name] |= value
                else:
                    saved["hyper_parameters"][name] = value

        return edited(bright, tmp_path / "edited.ckpt", change)

    def refused(match: str, **sections: Any) -> None:
        with pytest.raises(UserError, match=match) as caught:
            explain(edit(**sections), tmp_path / "a.png")
        assert "\n" not in str(caught.value)

    refused(r"no where network: .*data\.weights", data={"weights": {"_target_": "x"}})
    refused(r"\(2,\), .*grey", patch_shape=[2])
    refused(r"\(4, 8, 8\), .*grey", patch_shape=[4, 8, 8])
    refused(r"another architecture: pair\.wh\w+\.layers\.0\.w", patch_shape=[1, 9, 9])
    refused(r"grid: required.* 8 patches.*grid=2", data={"patches": 8})
    assert len(explain(edit(data={"patches": 8}), tmp_path / "a.png", grid=3)[0].weights) == 9
    (tmp_path / "mine" / "set").mkdir(parents=True)
    os.rename(tmp_path / "a.png", tmp_path / "mine" / "set" / "a.png")
    assert len(explain(edit(data={"patches": 8}), tmp_path / "mine")[0].weights) == 1
    (tmp_path / "text.ckpt").write_text("hello")
    with pytest.raises(UserError, match=r"text\.ckpt'"):
        explain(tmp_path / "text.ckpt", tmp_path / "mine")
    with pytest.raises(UserError, match="grid: got 3, needs a whole number"):
        explain(bright, tmp_path / "mine", "3")  # type: ignore[arg-type]
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="device: got cuda"):
            explain(bright, tmp_path / "mine", device="cuda")


def test_checkpoint_with_two_outputs_is_refused(tmp_path: Path) -> None:
    picture_with_bright_cell(0, 3).save(tmp_path / "a.png")
    path = trained(tmp_path / "run", "experiment=mnist_sum", "schedule.epochs=1")
    with pytest.raises(UserError, match=r"two outputs.*python -m attnmosaic\.predict ckpt_path=\S+ image="):
        explain(path, tmp_path / "a.png")


def test_sweep_over_grids(cli: Cli, bright: Path, tmp_path: Path) -> None:
    picture_with_bright_cell(0, 6).save(tmp_path / "a.png")
    code, _, err = cli("explain", "-m", f"ckpt_path={bright}", "images=a.png", "grid=2,3", "hydra.sweep.dir=both")
    assert code == 0, err
    for job, patches in ((0, 4), (1, 9)):
        (row,) = rows(tmp_path / "both" / str(job) / "explained.csv")
        assert sum(name.startswith("weight_") for name in row) == patches
