"""A trained network's answer for one's own image, from Python and from the command line."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import Cli, check_line
from helpers.fresh_process import answers
from helpers.small_runs import build
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from attnmosaic.config.operations import OPERATIONS
from attnmosaic.core.errors import UserError
from attnmosaic.predict import predict

pytestmark = pytest.mark.runs

Train = Callable[..., dict[str, float]]
SHORT = ("schedule.epochs=3", "lr.network=0.01", "logger=none", "callbacks.pictures=null")


@pytest.fixture
def checkpoint(train: Train, tmp_path: Path) -> Callable[..., Path]:
    def make(*overrides: str, name: str = "run") -> Path:
        train(*overrides, *SHORT, run_dir=name)
        return tmp_path / name / "checkpoints" / "last.ckpt"

    return make


@pytest.mark.parametrize(
    "settings", [("experiment=mnist_sum", "data.mean=0.3"), ("experiment=mnist_product", "precision=float64")]
)
def test_it_says_of_a_runs_own_images_what_the_run_said(
    checkpoint: Callable[..., Path], settings: tuple[str, ...]
) -> None:
    """Images of the trained size, as arrays; predictions are values, whatever their class is."""
    path = checkpoint(*settings)
    saved = torch.load(path, weights_only=True)
    module, data = build(OmegaConf.create(saved["hyper_parameters"]["config"]))
    module.load_state_dict(saved["state_dict"])
    examples, operation = data.examples["held_out"], data.operation
    batch = examples.take(torch.arange(12), next(module.parameters()).dtype)
    with torch.no_grad():
        digit, result = (logits.argmax(dim=1).tolist() for logits in module.network.eval()(batch.image, batch.number))
    before = torch.get_rng_state()
    for i in range(12):
        pixels = examples.pool.patches[i, ..., 0].numpy()
        wanted = {"digit": digit[i], operation.name: operation.values[result[i]]}
        assert predict(path, pixels, int(batch.number[i])) == wanted
        assert predict(str(path), Image.fromarray(255 - pixels), batch.number.numpy()[i], invert=True) == wanted
        assert predict(path, Image.fromarray(pixels).convert("RGB"), int(batch.number[i])) == wanted
    assert torch.equal(torch.get_rng_state(), before)
    assert len(set(digit)) > 1, "a network that always says the same shows nothing"


def test_what_a_network_gives_is_told_by_value(checkpoint: Callable[..., Path]) -> None:
    """Class 36 of the products is 81."""
    path = checkpoint("experiment=mnist_product")
    saved = torch.load(path, weights_only=True)
    names = [name for name in saved["state_dict"] if name.startswith("network.product") and name.endswith("bias")]
    saved["state_dict"][names[-1]][36] += 1e6
    torch.save(saved, path)
    assert predict(path, np.zeros((28, 28), dtype=np.uint8), 9)["product"] == 81 == OPERATIONS["product"].values[36]


def test_the_command(cli: Cli, checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """Resizes, turns grey, inverts; leaves no file."""
    path = checkpoint("experiment=mnist_sum")
    pixels = np.random.default_rng(0).integers(256, size=(61, 45, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "seven.png")
    before = sorted(tmp_path.rglob("*"))
    for extra, invert in ((), False), (("invert=true",), True):
        code, out, err = cli("predict", f"ckpt_path={path}", "image=seven.png", "number=5", *extra)
        assert code == 0, err
        answer = predict(path, tmp_path / "seven.png", 5, invert=invert)
        assert out == f"digit: {answer['digit']}  sum: {answer['sum']}\n"
    assert sorted(tmp_path.rglob("*")) == before


LIGHT = {
    (): r"ckpt_path: has no value and needs one; type ckpt_path=outputs",
    ("ckpt_path=no.ckpt", "image=a.png"): r"number: has no value and needs one; type number=5",
    ("ckpt_path=no.ckpt", "number=3"): r"image: has no value and needs one; type image=FILE",
    ("ckpt_path=no.ckpt", "image=a.png", "number=10"): r"number: got 10, needs a whole number from 0 to 9",
    ("ckpt_path=no.ckpt", "image=a.png", "number=-1"): r"number: got -1, needs",
    ("ckpt_path=no.ckpt", "image=a.png", "number=2.5"): r"number: Value '2\.5' of type 'float' could not",
    ("ckpt_path=no.ckpt", "image=a.png", "number=3"): r"ckpt_path: 'no\.ckpt' does not exist",
    ("ckpt_path=text.ckpt", "image=a.png", "number=3"): r"image: 'a\.png' does not exist",
    ("ckpt_path=text.ckpt", "image=text.ckpt", "number=3"): r"image: cannot read 'text\.ckpt', which is no image in",
    (
        "ckpt_path=text.ckpt",
        "image=deep.png",
        "number=3",
    ): r"image: cannot read 'deep\.png', which has pixels of mode I",
    ("ckpt_pth=text.ckpt",): r"ckpt_pth: there is no such config key; did you mean ckpt_path\?",
}


def test_slips_are_told_before_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "text.ckpt").write_text("hello")
    Image.fromarray(np.zeros((9, 9), dtype=np.uint16)).save(tmp_path / "deep.png")
    for (code, err, heavy), wanted in zip(answers("predict", LIGHT, tmp_path), LIGHT.values(), strict=True):
        check_line(code, err, wanted)
        assert heavy == []


def test_what_is_no_image_no_number_and_no_checkpoint(
    checkpoint: Callable[..., Path], config: Callable[..., DictConfig], tmp_path: Path
) -> None:
    black = np.zeros((28, 28), dtype=np.uint8)
    pair = checkpoint("schedule.k=1", name="pair")
    with pytest.raises(UserError, match=r"is of a where/what pair, which takes mosaics; give .*experiment=mnist_sum"):
        predict(pair, black, 5)
    (tmp_path / "text.ckpt").write_text("hello")
    with pytest.raises(UserError, match=r"text\.ckpt' is no readable attnmosaic checkpoint"):
        predict(tmp_path / "text.ckpt", black, 5)
    for number in (10, -1, 2.0, "3", True, None):
        with pytest.raises(UserError, match=r"number: got .*, needs a whole number from 0 to 9"):
            predict(pair, black, number)
    for image in (black.astype(float), black[0], np.zeros((2, 28, 28, 5), dtype=np.uint8), None, 7):
        with pytest.raises(UserError, match=r"image: cannot read a \w+ \("):
            predict(pair, image, 3)
