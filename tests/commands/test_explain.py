"""Where a trained pair looks in one's own images, from Python and from the command line."""

import csv
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.commands import Cli, check_line
from helpers.fresh_process import answers
from helpers.settings import SMALL
from helpers.user_code import TINY_CIFAR10
from hydra import compose, initialize_config_dir
from PIL import Image, ImageColor

from attnmosaic.config.schema import conf_dir, register
from attnmosaic.core.errors import UserError
from attnmosaic.data.image_files import UnreadableError
from attnmosaic.inference import explanation
from attnmosaic.inference.explanation import Explained, explain, picture_names
from attnmosaic.inference.user_images import Source, find_sources, read_mosaic
from attnmosaic.nn.networks import ConvNet
from attnmosaic.plotting.explanation import BANNER, LOOKED_AT
from attnmosaic.plotting.palette import RED

pytestmark = pytest.mark.runs

SHORT = ("schedule.k=1", "schedule.epochs=2", "logger=none", "callbacks=default", "callbacks.pictures=null")
MEAN, STD = (0.1, 0.2, 0.3), 0.7


def trained(folder: Path, *overrides: str) -> Path:
    from attnmosaic.train import train

    register()
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        train(compose("train", [*SMALL, *SHORT, *overrides, f"run_dir={folder}"]))
    return folder / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def color(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a run on colour images, in float64, where Where's scores differ enough to tell."""
    given = (f"data.mean={[*MEAN]}".replace(" ", ""), f"data.std={STD}", "precision=float64", "data.classes=null")
    path = trained(tmp_path_factory.mktemp("color") / "run", "experiment=stagewise", *TINY_CIFAR10, *given)
    saved = torch.load(path, weights_only=True)
    for network in ("where", "what"):
        saved["state_dict"][f"pair.{network}.head.layers.3.weight"] *= 300
    torch.save(saved, path)
    return path


@pytest.fixture(scope="module")
def bright(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a pair on grey images of 8 x 8: Where adds up the pixels, What says "9" of what is bright."""
    linear = ("model=mlp", "model.where.hidden=[]", "model.what.hidden=[]")
    path = trained(tmp_path_factory.mktemp("bright") / "run", "experiment=stagewise", "data=digits", *linear)
    saved = torch.load(path, weights_only=True)
    weights = saved["state_dict"]
    weights["pair.where.layers.0.weight"][:] = 0.2
    weights["pair.what.layers.0.weight"][:] = torch.tensor([[-0.1], [0.0], [0.1]])
    for network in ("where", "what"):
        weights[f"pair.{network}.layers.0.bias"][:] = 0
    torch.save(saved, path)
    return path


def edited(path: Path, to: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """Writes a checkpoint with other hyperparameters."""
    saved = torch.load(path, weights_only=True)
    change(saved["hyper_parameters"])
    torch.save(saved, to)
    return to


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)


def lit(at: int, grid: int, side: int = 8) -> Image.Image:
    """Returns a grey picture of grid x grid cells, the one at a position (from 0) brighter than the others."""
    pixels = np.full((grid * side, grid * side), 60, dtype=np.uint8)
    y, x = divmod(at, grid)
    pixels[y * side : (y + 1) * side, x * side : (x + 1) * side] = 200
    return Image.fromarray(pixels)


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


# ---- what it says


def by_hand(path: Path, cells: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Returns weights and probabilities of cells, uint8 ``[32, 32, 3]`` each, by the checkpoint's weights alone."""
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


def check(seen: Explained, path: Path, cells: list[np.ndarray]) -> None:
    weights, probabilities = by_hand(path, cells)
    np.testing.assert_allclose(seen.weights, weights, rtol=0, atol=1e-10)
    np.testing.assert_allclose(seen.probabilities, probabilities, rtol=0, atol=1e-10)
    assert seen.classes == ("horse", "ship", "truck")
    assert seen.predicted == seen.classes[probabilities.argmax()]
    assert seen.looks_at == weights.argmax() + 1
    assert seen.entropy == pytest.approx(-(weights * np.log(weights)).sum())
    assert weights.std() > 0.01, "weights that are all alike show nothing"


def test_it_is_the_pair_on_the_cells(color: Path, tmp_path: Path) -> None:
    """Cells of the trained size are taken as they are; others are resized, and nothing leaks into the next."""
    pixels = noise(96, 96, 3)
    Image.fromarray(pixels).save(tmp_path / "exact.png")
    before = torch.get_rng_state()
    (seen,) = explain(str(color), tmp_path / "exact.png")
    assert torch.equal(torch.get_rng_state(), before)
    assert seen.name == "exact.png"
    check(seen, color, [pixels[y : y + 32, x : x + 32] for y in (0, 32, 64) for x in (0, 32, 64)])

    wide = noise(70, 200, 3, seed=1)  # 200 / 3 is no whole number
    Image.fromarray(wide).save(tmp_path / "wide.png")
    (seen,) = explain(color, tmp_path / "wide.png", grid=3)
    edges = (0, 23, 47, 70), (0, 67, 133, 200)
    cut = [wide[edges[0][i] : edges[0][i + 1], edges[1][j] : edges[1][j + 1]] for i in range(3) for j in range(3)]
    check(seen, color, [np.asarray(Image.fromarray(c).resize((32, 32), Image.Resampling.BICUBIC)) for c in cut])
    (seen,) = explain(color, tmp_path / "wide.png", grid=1)
    assert seen.weights.tolist() == [1.0]
    assert seen.entropy == 0.0


def test_a_folder_is_one_mosaic(color: Path, tmp_path: Path) -> None:
    """Of any number of patches, by name; what is not square is cropped at its centre."""
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


@pytest.mark.parametrize("grid", [2, 3, 5])
def test_it_looks_at_the_bright_cell(bright: Path, tmp_path: Path, grid: int) -> None:
    """Cells are numbered row by row; a picture of any size and colour is cut alike."""
    for at in range(grid**2):
        lit(at, grid, side=(8, 13, 40)[at % 3]).convert(("L", "RGB", "RGBA", "P")[at % 4]).save(
            tmp_path / f"{at:02}.png"
        )
    seen = explain(bright, tmp_path, grid)
    assert [mosaic.looks_at for mosaic in seen] == [at + 1 for at in range(grid**2)]
    assert {mosaic.predicted for mosaic in seen} == {"9"}
    assert all(mosaic.weights.max() > 0.9 for mosaic in seen)


def test_color_and_grey(bright: Path, color: Path, tmp_path: Path) -> None:
    """A pair gets what it was trained on, whatever the image is."""
    pixels = noise(96, 96, 3)
    Image.fromarray(pixels).save(tmp_path / "color.png")
    Image.fromarray(pixels).convert("L").save(tmp_path / "grey.png")
    grey = np.repeat(np.asarray(Image.open(tmp_path / "grey.png"))[..., None], 3, axis=-1)
    one, other = explain(bright, tmp_path)
    np.testing.assert_array_equal(one.weights, other.weights)
    check(
        explain(color, tmp_path / "grey.png")[0], color, [c for r in np.split(grey, 3) for c in np.split(r, 3, axis=1)]
    )


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "gif", "tiff"])
def test_formats(bright: Path, tmp_path: Path, suffix: str) -> None:
    """Of an animation the first frame; a photo as its camera was held."""
    frames = {"save_all": True, "append_images": [lit(0, 3, 16)]} if suffix == "gif" else {}
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned right: the cell in the lower left corner comes to the upper left
    held = {"exif": exif} if suffix == "jpg" else {}
    lit(6, 3, 16).save(tmp_path / f"6.{suffix.upper()}", **frames, **held)
    assert [mosaic.looks_at for mosaic in explain(bright, tmp_path)] == [1 if held else 7]


# ---- what it writes


def test_what_is_written(cli: Cli, bright: Path, tmp_path: Path) -> None:
    lit(4, 3).save(tmp_path / "middle.png")
    (tmp_path / "mine").mkdir()
    lit(2, 3).save(tmp_path / "mine" / "a.png")
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
        assert (int(row["looks_at"]), float(row["weight"])) == (mosaic.looks_at, mosaic.weights.max())
        assert float(row["entropy"]) == pytest.approx(mosaic.entropy)
        assert f"patch {mosaic.looks_at} of {len(mosaic.weights)}" in out
    assert [mosaic.looks_at for mosaic in seen] == [3, 2, 11]
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


def framed(picture: Image.Image) -> tuple[float, float]:
    """Returns the middle of the frame in a picture, (y, x)."""
    y, x = np.where((np.asarray(picture) == ImageColor.getrgb(LOOKED_AT)).all(axis=-1))
    return (y.min() + y.max()) / 2, (x.min() + x.max()) / 2


def test_pictures(cli: Cli, bright: Path, tmp_path: Path) -> None:
    """The cell looked at is lit and framed, the others are dark; the aggregate is beside it, as bright as the cell."""
    (tmp_path / "mine").mkdir()
    for at in (0, 5, 7):
        lit(at, 3, 20).save(tmp_path / "mine" / f"{at}.png")
    Image.new("L", (2000, 900), 128).save(tmp_path / "mine" / "large.png")
    for width, height in ((5000, 3), (3, 5000), (3, 3)):
        Image.new("L", (width, height), 128).save(tmp_path / "mine" / f"{width}x{height}.png")
    assert cli("explain", f"ckpt_path={bright}", "images=mine", "hydra.run.dir=out")[0] == 0
    for at in (0, 5, 7):
        picture = Image.open(tmp_path / "out" / f"{at}.png")
        y, x = framed(picture)
        cell = 540 / 3 + 4  # 60 pixels, enlarged nine times, and a line between two cells
        assert (int((y - 16) // cell), int((x - 16) // cell)) == divmod(at, 3)
        middles = [(16 + (i // 3 + 0.5) * cell, 16 + (i % 3 + 0.5) * cell) for i in range(9)]
        shown = [picture.getpixel((int(x), int(y)))[0] for y, x in middles]
        assert shown[at] > 195
        assert max(shown[:at] + shown[at + 1 :]) < 20
        assert picture.getpixel((picture.width - 100, 150))[0] == pytest.approx(200, abs=2)
    assert max(max(Image.open(path).size) for path in (tmp_path / "out").glob("[l35]*.png")) < 1200
    assert (tmp_path / "out" / "5000x3.png").exists()
    assert Image.open(tmp_path / "out" / "index.png").width > 4 * 200


def test_a_smoke_run_says_so_in_all_it_writes(cli: Cli, bright: Path, tmp_path: Path) -> None:
    smoke = edited(bright, tmp_path / "smoke.ckpt", lambda saved: saved["config"].update(scale="smoke"))
    (tmp_path / "mine").mkdir()
    for at in (0, 1):
        lit(at, 3).save(tmp_path / "mine" / f"{at}.png")
    code, out, _ = cli("explain", f"ckpt_path={smoke}", "images=mine", "hydra.run.dir=out")
    assert code == 0
    assert "SMOKE" in out
    assert [row["scale"] for row in rows(tmp_path / "out" / "explained.csv")] == ["smoke"] * 2
    for name in ("0.png", "1.png", "index.png"):
        picture = Image.open(tmp_path / "out" / name)
        assert {picture.getpixel((x, y)) for x in (0, picture.width - 1) for y in (0, BANNER - 1)} == {
            ImageColor.getrgb(RED)
        }


def test_it_writes_as_it_goes(bright: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One mosaic at a time: what was done is there when the next one is read."""
    (tmp_path / "mine").mkdir()
    for at in range(4):
        lit(at, 3).save(tmp_path / "mine" / f"{at}.png")
    there: list[tuple[list[str], int]] = []
    read = explanation.read_mosaic

    def looking(*arguments: Any) -> Any:
        table = tmp_path / "out" / "explained.csv"
        pictures = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
        there.append((pictures, len(rows(table)) if table.exists() else 0))
        return read(*arguments)

    monkeypatch.setattr(explanation, "read_mosaic", looking)
    assert cli("explain", f"ckpt_path={bright}", "images=mine", "hydra.run.dir=out")[0] == 0
    assert there == [([f"{at}.png" for at in range(done)], done) for done in range(4)]


def test_a_long_table_is_cut_short(bright: Path, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for at in range(23):
        lit(at % 9, 3).save(tmp_path / "mine" / f"{at:02}.png")
    code, out, _ = cli("explain", f"ckpt_path={bright}", "images=mine", "hydra.run.dir=out")
    assert code == 0
    assert "19.png" in out
    assert "20.png" not in out
    assert "and 3 more in explained.csv" in out
    assert len(rows(tmp_path / "out" / "explained.csv")) == 23


# ---- names


def test_hostile_names(cli: Cli, bright: Path, tmp_path: Path) -> None:
    """They come back as they are in the table, lead nowhere else, and do nothing to the terminal."""
    (tmp_path / "mine").mkdir()
    names = [
        "a b.png", "a\nb.png", "it's \"quoted\", [bold]=$(x).png", "..png", "été 猫.png", "\x1b[31mred.png", "-rf.png",
        "explained.csv.png", "index.png", "x" * 250 + ".png", "CAT.png", "cat.png", "cat.jpg", "猫" * 80 + ".png",
    ]  # fmt: skip
    for name in names:
        lit(4, 3).save(tmp_path / "mine" / name, format="PNG")
    (tmp_path / "mine" / "cat").mkdir()
    lit(4, 1).save(tmp_path / "mine" / "cat" / "index.png")
    not_text = os.fsdecode(b"\xff\xfe.png")
    lit(4, 3).save(tmp_path / "mine" / "moved.png")
    os.rename(tmp_path / "mine" / "moved.png", tmp_path / "mine" / not_text)
    shown = [name for name in names if not name.startswith(".")]
    code, out, err = cli("explain", f"ckpt_path={bright}", "images=mine", "hydra.run.dir=out")
    assert code == 0, err
    table = rows(tmp_path / "out" / "explained.csv")
    assert sorted(row["image"] for row in table) == sorted([*shown, "cat", "\ufffd\ufffd.png"])
    assert "\x1b" not in out
    assert "a\ufffdb.png" in out
    assert "[bold]" in out
    written = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert len(written) == len(shown) + 2 + 1  # the folder, the name that is no text; the sheet
    assert {"a b.png", "a_b.png", "été 猫.png", "-rf.png", "cat.jpg.png", "index_2.png", "index.png"} <= written
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".")) == ["mine", "out"]
    assert len({name.casefold() for name in written}) == len(written)


def test_picture_names() -> None:
    """Each its own, on systems without capitals too; as near to the image's as can be."""

    def names(*given: str) -> list[str]:
        return picture_names(
            [Source(name, Path(name), () if "." in name else (Path(name, "1.png"),)) for name in given]
        )

    assert names("a.jpg", "b.png", "c") == ["a.png", "b.png", "c.png"]
    assert names("a", "a.jpg", "a.png", "b.png") == ["a.png", "a.jpg.png", "a.png.png", "b.png"]
    assert names("A.png", "a.png") == ["A.png.png", "a.png_2.png"]
    assert names("a?.png", "a*.png") == ["a_.png.png", "a_.png_2.png"]
    assert names("index.jpg") == ["index_2.png"]
    assert names("..") == ["_.png"]
    assert names("a/../../b.png") == ["b.png"]


# ---- what cannot be read


def bomb(path: Path, side: int = 20_000) -> None:
    """Writes a small PNG that says it has so many pixels a side."""
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
    packed = [struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))


def spoil(folder: Path) -> dict[str, str]:
    """Writes files that cannot be read, and returns what is said of each."""
    folder.mkdir(parents=True)
    (folder / "text.png").write_text("no picture at all")
    Image.fromarray(noise(40, 40)).save(folder / "whole.png")
    (folder / "cut.png").write_bytes((folder / "whole.png").read_bytes()[:900])
    (folder / "whole.png").unlink()
    (folder / "nothing.jpg").touch()
    Image.fromarray(noise(9, 9).astype(np.uint16)).save(folder / "deep.png")
    bomb(folder / "huge.png")
    bomb(folder / "large.png", 10_000)
    (folder / "program.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    return {
        "text.png": "is no image in a format that is read",
        "cut.png": "cannot be read (image file is truncated",
        "nothing.jpg": "is no image in a format that is read",
        "deep.png": "has pixels of mode I;16, only 8-bit images are read",
        "huge.png": "cannot be read (Image size (400000000 pixels) exceeds limit",
        "large.png": "cannot be read (Image size (100000000 pixels) exceeds limit",
        "program.png": "is no image in a format that is read",
    }


def test_what_cannot_be_read_is_left_out(cli: Cli, bright: Path, tmp_path: Path) -> None:
    said = spoil(tmp_path / "mine")
    spoil(tmp_path / "mine" / "worse")
    spoil(tmp_path / "mine" / "set")
    for i in range(3):
        Image.new("L", (8, 8), 50 * i).save(tmp_path / "mine" / "set" / f"{i}.png")
    Image.new("L", (2, 8)).save(tmp_path / "mine" / "tiny.png")
    lit(3, 3).save(tmp_path / "mine" / "good.png")
    code, out, err = cli("explain", f"ckpt_path={bright}", "images=mine", "hydra.run.dir=out")
    assert code == 0, err
    told = out[: out.index("\n\n")].splitlines()
    assert len(told) == 2 * len(said) + 2
    for name, why in said.items():
        for path in (name, f"set/{name}"):
            (line,) = [line for line in told if line.startswith(f"'{path}' ")]
            assert why in line
            assert line.endswith("; left out")
    assert "'tiny.png' has 2 x 8 pixels, too few for 3 x 3 cells; left out" in told
    assert any(line.startswith("'worse' holds no image that can be read; the first: 'worse/cut.png' ") for line in told)
    table = rows(tmp_path / "out" / "explained.csv")
    assert [(row["image"], row["looks_at"]) for row in table] == [("good.png", "4"), ("set", "3")]
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"good.png", "set.png", "index.png"}

    code, _, err = cli("explain", f"ckpt_path={bright}", "images=mine/worse", "hydra.run.dir=none")
    check_line(code, err, rf"images: none of {len(said)} mosaics can be read, the first: 'cut\.png' cannot be")
    assert not (tmp_path / "none" / "explained.csv").exists()
    with pytest.raises(UserError, match=r"images: 'text\.png' is no image in a format that is read .*; give other"):
        explain(bright, tmp_path / "mine" / "text.png")


SKIPPED = {
    ".DS_Store": "hidden: 1",
    "list.txt": ".txt: 1",
    "set/0.heic": ".heic: 1",
    "set/IMG_0001": "no ending: 1",
    "set/deeper/0.png": "folders in a mosaic's folder: 1",
    "none/list.txt": ".txt: 1, folders without images: 1",
}


@pytest.mark.parametrize("name", SKIPPED)
def test_skipped_files_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
    caplog.set_level("INFO")
    for path in ("a.png", "set/b.jfif", "set/c.avif"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        lit(3, 3).save(tmp_path / path)
    assert [len(source.files) for source in find_sources(tmp_path)] == [0, 2]
    assert "skipped" not in caplog.text
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    assert [len(source.files) for source in find_sources(tmp_path)] == [0, 2]
    (line,) = [record for record in caplog.records if "skipped" in record.message]
    assert f"'{tmp_path}' ({SKIPPED[name]})" in line.message
    assert line.levelname == ("INFO" if "hidden" in SKIPPED[name] else "WARNING")


def test_links_and_what_is_no_file(tmp_path: Path) -> None:
    """A link that leads nowhere is an image that cannot be read, and reported as such."""
    lit(3, 3).save(tmp_path / "there.png")
    (tmp_path / "mine" / "set").mkdir(parents=True)
    (tmp_path / "mine" / "gone.png").symlink_to("nowhere")
    (tmp_path / "mine" / "linked.png").symlink_to("../there.png")
    (tmp_path / "mine" / "set" / "linked.png").symlink_to(tmp_path / "there.png")
    (tmp_path / "mine" / "sets").symlink_to("set")
    gone, linked, *sets = find_sources(tmp_path / "mine")
    assert [len(source.files) for source in sets] == [1, 1]
    assert read_mosaic(linked, 3, (1, 8, 8)).patches.shape == (9, 8, 8, 1)
    with pytest.raises(UnreadableError, match="No such file"):
        read_mosaic(gone, 3, (1, 8, 8))


def test_skipped_files_alone(tmp_path: Path) -> None:
    (tmp_path / "0.heic").touch()
    with pytest.raises(UserError, match=r"images: .* holds no images.*\(skipped \.heic: 1; "):
        find_sources(tmp_path)


# ---- slips


LIGHT = {
    (): r"ckpt_path: has no value and needs one; type ckpt_path=outputs",
    ("ckpt_path=text.ckpt",): r"images: has no value and needs one; type images=DIR",
    ("ckpt_path=no.ckpt", "images=mine"): r"ckpt_path: 'no\.ckpt' does not exist",
    ("ckpt_path=text.ckpt", "images=no"): r"images: 'no' does not exist; type images=DIR",
    ("ckpt_path=text.ckpt", "images=empty"): r"images: 'empty' holds no images, nor folders of images \(skip",
    ("ckpt_path=text.ckpt", "images=mine", "grid=0"): r"grid: got 0, needs a whole number from 1 to 32",
    ("ckpt_path=text.ckpt", "images=mine", "grid=33"): r"grid: got 33, needs",
    ("ckpt_path=text.ckpt", "images=mine", "grid=2.5"): r"grid: Value '2\.5' of type 'float' could not",
    ("ckpt_path=text.ckpt", "images=mine", "device=gpu"): r"device: got 'gpu', allowed: auto, cpu, cuda",
    ("ckpt_path=text.ckpt", "image=mine"): r"image: there is no such config key; did you mean images\?",
    ("ckpt_path=text.ckpt", "images=mine", "hydra.run.dir=mine"): r"run_dir: .*mine' is among the images.*hydra\.",
    ("ckpt_path=text.ckpt", "images=mine/a.png", "hydra.run.dir=mine"): r"run_dir: '.*mine' is among the images",
    ("ckpt_path=text.ckpt", "images=mine", "hydra.run.dir=mine/set"): r"run_dir: '.*set' is among the images",
    ("ckpt_path=text.ckpt", "images=mine", "hydra.run.dir=run"): r"run_dir: .*run' holds a run; type hydra\.run\.dir=",
}  # fmt: skip


def test_slips_are_told_before_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "text.ckpt").write_text("hello")
    for folder in ("mine/set", "empty/nested/deeper", "run"):
        (tmp_path / folder).mkdir(parents=True)
    for image in ("mine/a.png", "mine/set/b.png", "empty/nested/deeper/c.png", "empty/.hidden.png"):
        lit(0, 3).save(tmp_path / image)
    (tmp_path / "run" / "config.yaml").write_text("name: gaussian")
    for (code, err, heavy), wanted in zip(answers("explain", LIGHT, tmp_path), LIGHT.values(), strict=True):
        check_line(code, err, wanted)
        assert heavy == []


def test_checkpoints_that_will_not_do(bright: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    lit(0, 3).save(tmp_path / "mine" / "a.png")

    def refused(change: Callable[[dict[str, Any]], Any], match: str) -> None:
        with pytest.raises(UserError, match=match) as caught:
            explain(edited(bright, tmp_path / "edited.ckpt", change), tmp_path / "mine")
        assert "\n" not in str(caught.value)

    def other(section: str, **values: Any) -> Callable[[dict[str, Any]], Any]:
        return lambda saved: saved["config"][section].update(values)

    def two_outputs(saved: dict[str, Any]) -> None:
        saved["config"]["model"] = {"where": {}, "what": {}, "network": {"_target_": "x"}}
        saved["config"]["optimizer"]["network"] = {"_target_": "x"}
        saved["config"]["data"]["operation"] = "sum"
        saved["config"]["optimized_metric"] = "test/sum_accuracy"
        saved["image_shape"] = saved["patch_shape"]

    refused(two_outputs, r"two outputs.*python -m attnmosaic\.predict ckpt_path=\S+ image=")
    refused(
        other("data", weights={"_target_": "x"}), r"has no where network: .*\(data\.weights\).*experiment=stagewise"
    )
    refused(lambda saved: saved.pop("patch_shape"), r"is not what a run of attnmosaic saves")
    refused(lambda saved: saved.update(patch_shape=[2]), r"patches, of shape \(2,\), are no grey or RGB images; give")
    refused(lambda saved: saved.update(patch_shape=[4, 8, 8]), r"of shape \(4, 8, 8\), are no grey or RGB")
    refused(lambda saved: saved.update(patch_shape=[1, 9, 9]), r"is of another architecture: pair\.wh\w+\.layers\.0\.w")
    refused(other("data", patches=8), r"grid: has no value .* as the 8 patches of training make no square; .*grid=2")
    eight = edited(bright, tmp_path / "eight.ckpt", other("data", patches=8))
    assert len(explain(eight, tmp_path / "mine", grid=3)[0].weights) == 9
    os.rename(tmp_path / "mine" / "a.png", tmp_path / "a.png")
    (tmp_path / "mine" / "set").mkdir()
    os.rename(tmp_path / "a.png", tmp_path / "mine" / "set" / "a.png")
    assert len(explain(eight, tmp_path / "mine")[0].weights) == 1
    (tmp_path / "text.ckpt").write_text("hello")
    with pytest.raises(UserError, match=r"text\.ckpt' is no readable attnmosaic checkpoint"):
        explain(tmp_path / "text.ckpt", tmp_path / "mine")
    for grid in (True, 2.0, "3"):
        with pytest.raises(UserError, match=r"grid: got .*, needs a whole number"):
            explain(bright, tmp_path / "mine", grid)  # type: ignore[arg-type]
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match=r"device: got cuda, but PyTorch finds no GPU"):
            explain(bright, tmp_path / "mine", device="cuda")


def test_it_can_be_swept(cli: Cli, bright: Path, tmp_path: Path) -> None:
    lit(0, 6).save(tmp_path / "a.png")
    code, _, err = cli("explain", "-m", f"ckpt_path={bright}", "images=a.png", "grid=2,3", "hydra.sweep.dir=both")
    assert code == 0, err
    for job, patches in ((0, 4), (1, 9)):
        (row,) = rows(tmp_path / "both" / str(job) / "explained.csv")
        assert sum(name.startswith("weight_") for name in row) == patches
