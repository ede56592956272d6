"""The LightningModule that trains a where and a what network stage by stage."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from attnmosaic.config.schedule import Stage
from attnmosaic.config.schema import METRICS, PAIR
from attnmosaic.data.datamodule import MosaicDataModule
from attnmosaic.data.mosaics import Mosaics
from attnmosaic.metrics.focus import FocusMetrics
from attnmosaic.nn.attention import WhereWhat
from attnmosaic.training import distributed
from attnmosaic.training.attention_cache import FrozenWhere
from attnmosaic.training.base import RunModule, mean_loss, step_scheduler
from attnmosaic.training.convolutions import choose_convolutions
from attnmosaic.training.cuda_graphs import GraphedSteps, can_capture, set_capturable
from attnmosaic.training.probes import decomposes
from attnmosaic.training.steps import Objective, StepOutputs, Steps

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]
MakeScheduler = Callable[[Optimizer], LRScheduler]


class StagewiseModule(RunModule):
    """Trains Where and What in the stages of a schedule, with Lightning's manual optimization.

    Each network has one optimizer for the whole run, so its momentum is kept while the network is frozen. A frozen
    network gets no gradient and is in eval mode. While Where is frozen, or if the data set the attention weights, the
    attention weights and aggregates are computed once and kept (`FrozenWhere`).

    A batch of Lightning's is a block of rows of the training mosaics from `MosaicDataModule`. A block holds several
    minibatches, and `Steps` takes one optimizer step on each.

    Args:
        config: the run's resolved config as plain containers.
        pair: the two networks.
        objective: ``(logits, alpha, label) -> mean loss``.
        optimizers: by network name ("what", "where"), a function that builds the optimizer from the network's
            parameters.
        schedulers: by network name, a function that builds a learning-rate scheduler from the optimizer. The scheduler
            steps once after every epoch in which its network trained.
        patch_shape: ``(C, H, W)`` or ``(D,)``. Every checkpoint holds it and the classes, so that the pair can be
            restored without its data.
        foreground_classes: names of the classes that What distinguishes, in label order.

    Raises:
        RunError: at the end of an epoch in which the loss or a weight became infinite or not a number.
    """

    metric_names = METRICS
    headline = ("accuracy", "focus")
    table_columns = ("accuracy", "focus", "ftpt", "ffpt", "ftpf", "ffpf", "confident", "entropy", "loss")
    table_caption = "test: new mosaics of training patches (published protocol); held_out: mosaics of unseen patches"

    def __init__(
        self,
        config: dict[str, Any],
        pair: WhereWhat,
        objective: Objective,
        optimizers: Mapping[str, MakeOptimizer],
        schedulers: Mapping[str, MakeScheduler],
        *,
        patch_shape: Sequence[int],
        foreground_classes: Sequence[str],
    ) -> None:
        # Lists of plain values, because checkpoints are loaded with weights_only=True.
        shape, classes = [*map(int, patch_shape)], [*map(str, foreground_classes)]
        super().__init__(config, patch_shape=shape, foreground_classes=classes)
        self.automatic_optimization = False
        self.pair = pair.to(memory_format=torch.channels_last)
        self.networks = tuple(name for name in PAIR if getattr(pair, name) is not None)
        self.objective = objective
        self.make_optimizers = optimizers
        self.make_schedulers = schedulers
        self.running = FocusMetrics()
        self.evaluations: dict[str, FocusMetrics] = {}
        self._step_outputs: list[StepOutputs] = []

    @property
    def stage(self) -> Stage:
        return self.schedule.stage(self.current_epoch)

    @property
    def training_networks(self) -> tuple[str, ...]:
        return self.stage.training_networks

    def place_data(self) -> None:
        datamodule: MosaicDataModule = self.trainer.datamodule  # type: ignore[attr-defined]
        dtype = next(self.parameters()).dtype
        self.mosaics: dict[str, Mosaics] = self.placed(datamodule.mosaics_on)
        self.evaluations = {name: FocusMetrics().to(self.device) for name in datamodule.measured}
        train = self.mosaics["train"]
        self.decomposes = decomposes(self.pair, self.objective, train.pool.patch_shape, train.index.shape[1])
        self.take_threads()
        self.convolutions = choose_convolutions(self.pair, self.device, dtype, self.config, before=self.convolutions)
        budget = round(self.config["compute"]["cache_gb"] * 1e9)
        self.frozen_where = FrozenWhere(self.pair, self.mosaics, dtype, budget, self.workers)

    def configure_optimizers(self) -> tuple[list[Optimizer], list[LRScheduler]]:
        optimizers = {name: self.make_optimizers[name](getattr(self.pair, name).parameters()) for name in self.networks}
        return list(optimizers.values()), [make(optimizers[name]) for name, make in self.make_schedulers.items()]

    # ---- training

    def on_fit_start(self) -> None:
        super().on_fit_start()
        pieces, engine = self.config["optimizer"]["microbatches"], self.config["compute"]["engine"]
        self.steps = Steps(
            self.pair, self.objective, self.frozen_where, pieces, self.clip_norm, decomposes=self.decomposes
        )
        one_process = distributed.count() == 1
        graphs = engine == "auto" and one_process and can_capture(self.device, self.mosaics["train"].pool)
        self.graphed_steps = GraphedSteps(self.steps) if graphs else None

    def on_train_start(self) -> None:
        for optimizer in self.trainer.optimizers:
            set_capturable(optimizer, graphs=self.graphed_steps is not None)

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        for name in self.networks:
            network, trains = getattr(self.pair, name), name in self.training_networks
            if network.training != trains:
                network.train(trains)
        self.running.reset()
        self._step_outputs.clear()

    def training_step(self, rows: Tensor, batch_idx: int) -> None:
        stage = self.stage
        if stage is Stage.WHAT:
            self.frozen_where.keep("train")
        else:
            self.frozen_where.clear()
        *others, last = rows.split(self.config["data"]["batch_size"])
        take_step = self.graphed_steps or self.steps
        with self._training(stage) as optimizers:
            torch_optimizers = [optimizer.optimizer for optimizer in optimizers]
            parameters = [list(getattr(self.pair, name).parameters()) for name in stage.training_networks]
            self._step_outputs += [take_step(minibatch, stage, torch_optimizers, parameters) for minibatch in others]
            # Only the last step of a block goes through Lightning, which counts the step and calls the hooks around it.
            self._step_outputs.append(self.steps(last, stage, optimizers, parameters, self.manual_backward))
        if self.trainer.is_last_batch:
            self._finish_epoch(stage)

    @contextlib.contextmanager
    def _training(self, stage: Stage) -> Iterator[list[LightningOptimizer]]:
        """Yields the optimizers of a stage's training networks; the frozen network gets no gradient in this context."""
        optimizers: Any = self.optimizers()
        all_optimizers: list[LightningOptimizer] = optimizers if isinstance(optimizers, list) else [optimizers]
        if stage is Stage.JOINT:
            yield all_optimizers
        else:
            optimizer = all_optimizers[self.networks.index(stage.training_networks[0])]
            with self.toggled_optimizer(optimizer):
                yield [optimizer]

    def _finish_epoch(self, stage: Stage) -> None:
        """Checks the losses and weights of an epoch, and logs its metrics.

        Runs in the last block of the epoch, so that validation and checkpoints only get finite weights.
        """
        losses = [step.loss for step in self._step_outputs]
        self.check_finite(losses, self.pair)
        distributed.average_buffers(self.pair)
        rows, logits, alpha = (
            torch.cat([getattr(step, part) for step in self._step_outputs]) for part in ("rows", "logits", "alpha")
        )
        data = self.mosaics["train"]
        loss = mean_loss(losses, [len(step.rows) for step in self._step_outputs])
        self.running.update(loss, logits, alpha, data.label[rows], data.foreground[rows])
        self._step_outputs.clear()  # frees the outputs of the training mosaics before the evaluation needs memory
        self.record("running", self.running, stage=float(stage))
        schedulers = [config.scheduler for config in self.trainer.lr_scheduler_configs]
        for scheduler, name in zip(schedulers, self.make_schedulers, strict=True):
            if name in stage.training_networks:
                step_scheduler(scheduler, self.epoch_metrics["running/loss"])

    # ---- evaluation

    def true_classes(self, split: str) -> dict[str, Tensor]:
        return {"accuracy": self.mosaics[split].label}

    def validation_step(self, rows: Tensor, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Measures mosaics and returns their ``logits`` and ``alpha``, which callbacks use."""
        split = list(self.evaluations)[dataloader_idx]
        data = self.mosaics[split]
        shard, n_valid = distributed.shard(rows)
        # Computed in pieces, so that aggregates are still in the CPU's caches when What uses them.
        pieces = shard.split(self.frozen_where.mosaics_per_piece(split))

        def measure(piece: Tensor) -> tuple[Tensor, Tensor]:
            alpha, aggregates = self.frozen_where.attend(split, piece)
            return self.pair.what(aggregates), alpha

        first = measure(pieces[0])  # scores the pool once, before threads share the scores
        measured = [first, *self.workers.map(measure, pieces[1:])]
        logits, alpha = (torch.cat(parts) for parts in zip(*measured, strict=True))
        if n_valid:
            label = data.label[shard]
            loss = self.objective(logits, alpha, label)
            self.evaluations[split].update(loss, logits, alpha, label, data.foreground[shard])
        return {"logits": distributed.gathered(logits, len(rows)), "alpha": distributed.gathered(alpha, len(rows))}
