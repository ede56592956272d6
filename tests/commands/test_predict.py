"""Predictions of a trained network for a user's image, from Python and from the command line."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.checkpoints import edited, trained
from helpers.commands import Cli, check_line
from helpers.small_runs import build
from omegaconf import OmegaConf
from PIL import Image

from attnmosaic.config.digit_operations import OPERATIONS
from attnmosaic.core.errors import UserError
from attnmosaic.predict import predict

pytestmark = pytest.mark.runs

SHORT = ("schedule.epochs=3", "lr.network=0.01")


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("sum") / "run", "experiment=mnist_sum", "data.mean=0.3", *SHORT)


@pytest.fixture(scope="module")
def products(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("product") / "run"
    return trained(folder, "experiment=mnist_product", "precision=float64", *SHORT)


@pytest.mark.parametrize("operation", ["sums", "products"])
def test_predictions_equal_those_of_the_run(operation: str, request: pytest.FixtureRequest) -> None:
    """For the run's own images as arrays; predictions are values, not indices of classes."""
    path = request.getfixturevalue(operation)
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
        expected = {"digit": digit[i], operation.name: operation.values[result[i]]}
        assert predict(path, pixels, int(batch.number[i])) == expected
        if i < 3:
            assert predict(str(path), Image.fromarray(255 - pixels), batch.number.numpy()[i], invert=True) == expected
            assert predict(path, Image.fromarray(pixels).convert("RGB"), int(batch.number[i])) == expected
    assert torch.equal(torch.get_rng_state(), before)
    assert len(set(digit)) > 1, "the test needs a network with different predictions"


def test_result_is_a_value_and_not_a_class_index(products: Path, tmp_path: Path) -> None:
    """Class 36 of the products is 81."""

    def make_class_36_win(saved: dict[str, dict[str, torch.Tensor]]) -> None:
        names = [name for name in saved["state_dict"] if name.startswith("network.product") and name.endswith("bias")]
        saved["state_dict"][names[-1]][36] += 1e6

    path = edited(products, tmp_path / "edited.ckpt", make_class_36_win)
    assert predict(path, np.zeros((28, 28), dtype=np.uint8), 9)["product"] == 81 == OPERATIONS["product"].values[36]


def test_predict_command(cli: Cli, sums: Path, tmp_path: Path) -> None:
    """Resizes the image, converts it to grey, inverts it, and writes no file."""
    pixels = np.random.default_rng(0).integers(256, size=(61, 45, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "seven.png")
    before = sorted(tmp_path.rglob("*"))
    for extra, invert in ((), False), (("invert=true",), True):
        code, out, err = cli("predict", f"ckpt_path={sums}", "image=seven.png", "number=5", *extra)
        assert code == 0, err
        prediction = predict(sums, tmp_path / "seven.png", 5, invert=invert)
        assert out == f"digit: {prediction['digit']}  sum: {prediction['sum']}\n"
    assert sorted(tmp_path.rglob("*")) == before


ERRORS = {
    (): r"ckpt_path: required",
    ("ckpt_path=no.ckpt", "image=a.png"): r"number: required",
    ("ckpt_path=no.ckpt", "number=3"): r"image: required",
    ("ckpt_path=no.ckpt", "image=a.png", "number=10"): r"number: got 10, .* 0 to 9",
    ("ckpt_path=no.ckpt", "image=a.png", "number=-1"): r"number: got -1",
    ("ckpt_path=no.ckpt", "image=a.png", "number=2.5"): r"number: .*2\.5",
    ("ckpt_path=no.ckpt", "image=a.png", "number=3"): r"ckpt_path: 'no\.ckpt' does not exist",
    ("ckpt_path=text.ckpt", "image=a.png", "number=3"): r"image: 'a\.png' .*No such file",
    ("ckpt_path=text.ckpt", "image=text.ckpt", "number=3"): r"image: 'text\.ckpt' ",
    ("ckpt_path=text.ckpt", "image=deep.png", "number=3"): r"image: 'deep\.png' .*mode I",
    ("ckpt_pth=text.ckpt",): r"ckpt_pth: .* did you mean ckpt_path\?",
}


def test_errors_found_before_torch_is_imported(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attnmosaic.predict.import_lightning", lambda: pytest.fail("imports torch"))
    (tmp_path / "text.ckpt").write_text("hello")
    Image.fromarray(np.zeros((9, 9), dtype=np.uint16)).save(tmp_path / "deep.png")
    for arguments, message in ERRORS.items():
        code, _, err = cli("predict", *arguments)
        check_line(code, err, message)


def test_invalid_images_numbers_and_checkpoints_are_refused(sums: Path, tmp_path: Path) -> None:
    black = np.zeros((28, 28), dtype=np.uint8)
    pair = trained(tmp_path / "pair", "schedule.k=1", "schedule.epochs=1")
    with pytest.raises(UserError, match=r"where/what pair.*experiment=mnist_sum"):
        predict(pair, black, 5)
    (tmp_path / "text.ckpt").write_text("hello")
    with pytest.raises(UserError, match=r"text\.ckpt'"):
        predict(tmp_path / "text.ckpt", black, 5)
    for number in (10, -1, 2.5, "3", None):
        with pytest.raises(UserError, match=r"number: got .*, needs a whole number"):
            predict(sums, black, number)
    wide = Image.fromarray(black.astype(np.uint16))
    for image in (black.astype(float), black[0], np.zeros((2, 28, 28, 3), dtype=np.uint8), wide, None, 7):
        with pytest.raises(UserError, match=r"image: got a \w+"):
            predict(sums, image, 3)
