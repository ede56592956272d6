"""Stand-ins for code and data of users: data sets, networks and callbacks."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor, nn


class TinyCifar10:
    """Forty random images with the classes and the size of CIFAR-10; takes torchvision's arguments."""

    classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

    def __init__(self, root: str, train: bool, download: bool) -> None:
        self.seed = int(train)

    def __len__(self) -> int:
        return 40

    def __getitem__(self, i: int) -> tuple[Any, int]:
        if i >= 40:
            raise IndexError
        pixels = np.random.default_rng([self.seed, i]).integers(256, size=(32, 32, 3), dtype=np.uint8)
        return Image.fromarray(pixels), i % 10


TINY_CIFAR10 = (
    "data.train_set._target_=helpers.user_code.TinyCifar10",
    "data.test_set._target_=helpers.user_code.TinyCifar10",
)


class TinyMnist(TinyCifar10):
    """Forty random images with the classes and the size of MNIST."""

    classes = tuple(f"{digit} - name" for digit in range(10))

    def __getitem__(self, i: int) -> tuple[Any, int]:
        image, label = super().__getitem__(i)
        return image.convert("L").resize((28, 28)), label


TINY_MNIST = (
    "data.train_set._target_=helpers.user_code.TinyMnist",
    "data.test_set._target_=helpers.user_code.TinyMnist",
)


class NoDownload(TinyCifar10):
    """A data set that fails like torchvision's without files and without a network."""

    def __init__(self, root: str, train: bool, download: bool) -> None:
        raise OSError("Temporary failure in name resolution")


class MyWhere(nn.Module):
    """A where network of a user."""

    def __init__(self, in_shape: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.layer = nn.Linear(in_shape[0], outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Fate(pl.Callback):
    """Lets a job of a sweep finish, fail with a bug or be killed; writes facts about its process to ``facts.json``."""

    def __init__(self, fate: str, folder: str) -> None:
        self.fate = fate
        self.folder = Path(folder)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        parents_threads = Path(f"/proc/{os.getppid()}/task")
        facts = {
            "process": os.getpid(),
            "parent": os.getppid(),
            "parent's threads": len([*parents_threads.iterdir()]) if parents_threads.exists() else None,
            "cuda is spoilt": torch.cuda._is_in_bad_fork(),
            **{name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")},
        }
        (self.folder / "facts.json").write_text(json.dumps(facts))
        if self.fate == "bug":
            raise ZeroDivisionError("a bug of the user's")
        if self.fate == "killed":
            os.kill(os.getpid(), signal.SIGKILL)


class Holds(Fate):
    """Like `Fate`, but with the fates ``holds...`` the job waits in its third epoch until a file exists."""

    def __init__(self, fate: str, folder: str, until: str) -> None:
        super().__init__(fate, folder)
        self.until = Path(until)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.fate.startswith("holds") and trainer.current_epoch == 2:
            with (self.folder / "held").open("a") as file:
                file.write(f"{os.environ.get('SLURM_RESTART_COUNT', '0')}\n")
            while not self.until.exists():
                time.sleep(0.05)


class RecordProcess(pl.Callback):
    """Appends the number of the process and the run's folder to a file."""

    def __init__(self, file: str) -> None:
        self.file = Path(file)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        with self.file.open("a") as file:
            file.write(f"{os.getpid()} {Path(trainer.default_root_dir).absolute()}\n")
