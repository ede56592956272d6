"""The stage-wise LightningModule."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from attnmosaic.config.schedule import Schedule, Stage
from attnmosaic.config.schema import METRICS, PAIR
from attnmosaic.data.datamodule import MosaicDataModule
from attnmosaic.data.mosaics import Mosaics
from attnmosaic.metrics.focus import FocusMetrics
from attnmosaic.nn.attention import WhereWhat
from attnmosaic.training import distributed
from attnmosaic.training.attention_cache import FrozenWhere
from attnmosaic.training.base import RunModule, step_scheduler
from attnmosaic.training.cuda_graphs import GraphedSteps, can_capture, set_capturable
from attnmosaic.training.steps import Objective, Seen, Steps, decomposes, mean_loss

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]
MakeScheduler = Callable[[Optimizer], LRScheduler]


class StagewiseModule(RunModule):
    """Trains Where and What in the stages of a schedule, by manual optimization.

    Each network has one optimizer, made once: its momentum survives the stages in which it rests. A resting
    network gets no gradient and is in eval mode. While Where rests, its weights are computed once and the
    aggregates kept (`FrozenWhere`); so they are where the data decree the weights, and there is no Where.

    A batch is a block of rows of the training mosaics; it holds several minibatches and one optimizer step
    is taken on each. `MosaicDataModule` makes them and holds the data.

    Args:
        pair: the two networks.
        schedule: which stage an epoch belongs to.
        objective: ``(logits, alpha, label) -> mean loss``.
        optimizers: for "what" and for "where", makes the optimizer from the network's parameters.
        schedulers: for either name, makes a learning-rate scheduler from its optimizer. It steps once after
            every epoch in which its network learned.
        batch_size: mosaics a step.
        seed: with the epoch it decides what the networks draw while they train (dropout, say).
        microbatches: pieces each minibatch's gradient is accumulated over; None for as many as are fast.
        clip_norm: largest norm of a network's gradient, None for no clipping.
        cache_gb: memory that kept aggregates may take, in GB (1e9 bytes).
        graphs: take steps as CUDA graphs where there is a GPU (see `GraphedSteps`) that has the pool.
        pool: where the pool is kept (see `placed`).
        patch_shape: ``(C, H, W)`` or ``(D,)``; with the next two saved in every checkpoint, so that the pair can be
            made again without its data.
        foreground_classes: names of the classes What tells apart, in label order.
        config: the run's resolved config as plain containers.

    Raises:
        RunError: at the end of an epoch in which the loss or a weight became infinite or not a number.
    """

    metric_names = METRICS
    headline = ("accuracy", "focus")
    table_columns = ("accuracy", "focus", "ftpt", "ffpt", "ftpf", "ffpf", "confident", "entropy", "loss")
    table_caption = "test: mosaics over the training pool (published protocol); held_out: over unseen patches"

    def __init__(
        self,
        pair: WhereWhat,
        schedule: Schedule,
        objective: Objective,
        optimizers: Mapping[str, MakeOptimizer],
        schedulers: Mapping[str, MakeScheduler] | None = None,
        *,
        batch_size: int,
        seed: int,
        microbatches: int | None = None,
        clip_norm: float | None = None,
        cache_gb: float = 1.0,
        graphs: bool = True,
        pool: str = "auto",
        patch_shape: Sequence[int],
        foreground_classes: Sequence[str],
        config: dict[str, Any],
    ) -> None:
        super().__init__(seed)
        self.automatic_optimization = False
        self.pair = pair.to(memory_format=torch.channels_last)
        self.networks = tuple(name for name in PAIR if getattr(pair, name) is not None)
        self.schedule = schedule
        self.objective = objective
        self.make_optimizers = optimizers
        self.make_schedulers = schedulers or {}
        self.batch_size = batch_size
        self.microbatches = microbatches
        self.clip_norm = clip_norm
        self.cache_gb = cache_gb
        self.graphs = graphs
        self.pool = pool
        self.running = FocusMetrics()
        self.evaluations: dict[str, FocusMetrics] = {}
        self._seen: list[Seen] = []
        # Plain containers of plain values: checkpoints are loaded with weights_only=True.
        shape, classes = [*map(int, patch_shape)], [*map(str, foreground_classes)]
        self.save_hyperparameters({"config": config, "patch_shape": shape, "foreground_classes": classes}, logger=False)

    @property
    def stage(self) -> Stage:
        return self.schedule.stage(self.current_epoch)

    @property
    def learners(self) -> tuple[str, ...]:
        return self.stage.learners

    def _take_data(self) -> None:
        """Puts the data where the networks are; only now has the trainer given them device and precision."""
        datamodule: MosaicDataModule = self.trainer.datamodule  # type: ignore[attr-defined]
        dtype = next(self.parameters()).dtype
        self.mosaics: dict[str, Mosaics] = self.take_data(datamodule.mosaics_on)
        self.evaluations = {name: FocusMetrics().to(self.device) for name in datamodule.measured}
        train = self.mosaics["train"]
        self.decomposes = decomposes(self.pair, self.objective, train.pool.patch_shape, train.index.shape[1])
        self.take_threads(self.decomposes)
        self.frozen_where = FrozenWhere(self.pair, self.mosaics, dtype, round(self.cache_gb * 1e9), self.workers)

    def configure_optimizers(self) -> tuple[list[Optimizer], list[LRScheduler]]:
        made = {name: self.make_optimizers[name](getattr(self.pair, name).parameters()) for name in self.networks}
        return list(made.values()), [make(made[name]) for name, make in self.make_schedulers.items()]

    # ---- training

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self._take_data()
        self.steps = Steps(
            self.pair,
            self.objective,
            self.frozen_where,
            self.microbatches,
            self.clip_norm,
            decomposes=self.decomposes,
        )
        self.warn_of_parts(self.decomposes)
        graphs = self.graphs and distributed.count() == 1 and can_capture(self.device, self.mosaics["train"].pool)
        self.graphed_steps = GraphedSteps(self.steps) if graphs else None

    def on_train_start(self) -> None:
        for optimizer in self.trainer.optimizers:
            set_capturable(optimizer, graphs=self.graphed_steps is not None)

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        for name in self.networks:
            getattr(self.pair, name).train(name in self.learners)
        self.running.reset()
        self._seen.clear()

    def training_step(self, rows: Tensor, batch_idx: int) -> None:
        stage = self.stage
        if stage is Stage.WHAT:
            self.frozen_where.keep("train")
        else:
            self.frozen_where.clear()
        *others, last = rows.split(self.batch_size)
        take = self.graphed_steps or self.steps
        with self._learning(stage) as optimizers:
            plain = [optimizer.optimizer for optimizer in optimizers]
            learning = [list(getattr(self.pair, name).parameters()) for name in stage.learners]
            self._seen += [take(minibatch, stage, plain, learning) for minibatch in others]
            # A block's last step goes through Lightning, which counts it and calls its hooks; with one step a
            # block (data.steps_per_block=1) every step does.
            self._seen.append(self.steps(last, stage, optimizers, learning, self.manual_backward))
        if self.trainer.is_last_batch:
            self._finish_epoch(stage)

    @contextlib.contextmanager
    def _learning(self, stage: Stage) -> Iterator[list[LightningOptimizer]]:
        """Yields the optimizers of the networks that learn; the other network takes no gradient."""
        found: Any = self.optimizers()
        every: list[LightningOptimizer] = found if isinstance(found, list) else [found]
        if stage is Stage.JOINT:
            yield every
        else:
            optimizer = every[self.networks.index(stage.learners[0])]
            with self.toggled_optimizer(optimizer):
                yield [optimizer]

    def _finish_epoch(self, stage: Stage) -> None:
        """Runs in the epoch's last block, so that validation and checkpoints only see finite weights."""
        self.check_finite([seen.loss for seen in self._seen], self.pair)
        distributed.average_buffers(self.pair)
        rows, logits, alpha = (
            torch.cat([getattr(seen, part) for seen in self._seen]) for part in ("rows", "logits", "alpha")
        )
        data = self.mosaics["train"]
        self.running.update(mean_loss(self._seen), logits, alpha, data.label[rows], data.foreground[rows])
        self._seen.clear()  # weights of every mosaic: not to be held while others are measured
        self.record("running", self.running, stage=float(stage))
        for scheduler, name in zip(self._schedulers(), self.make_schedulers, strict=True):
            if name in stage.learners:
                step_scheduler(scheduler, self.epoch_metrics["running/loss"])

    def _schedulers(self) -> list[Any]:
        found = self.lr_schedulers()
        if found is None:
            return []
        return found if isinstance(found, list) else [found]

    # ---- evaluation

    def true_classes(self, split: str) -> dict[str, Tensor]:
        return {"accuracy": self.mosaics[split].label}

    def evaluation(self, split: str) -> FocusMetrics:
        """Returns what the last evaluation measured on a split or view."""
        return self.evaluations[split]

    def on_validation_start(self) -> None:
        if self.trainer.state.fn != TrainerFn.FITTING:
            self._take_data()

    def on_validation_epoch_start(self) -> None:
        for split in self.evaluations:
            self.evaluation(split).reset()

    def validation_step(self, rows: Tensor, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Measures mosaics; returns their ``logits`` and ``alpha`` for callbacks."""
        split = list(self.evaluations)[dataloader_idx]
        data = self.mosaics[split]
        mine, own = distributed.share(rows)
        # Piece by piece, so that aggregates stay in a CPU's caches until What has seen them.
        pieces = mine.split(self.frozen_where.mosaics_per_piece(split))

        def measure(piece: Tensor) -> tuple[Tensor, Tensor]:
            alpha, aggregates = self.frozen_where.attend(split, piece)
            return self.pair.what(aggregates), alpha

        first = measure(pieces[0])  # scores the pool
        seen = [first, *self.workers.map(measure, pieces[1:])]
        logits, alpha = (torch.cat(parts) for parts in zip(*seen, strict=True))
        if own:
            label = data.label[mine]
            loss = self.objective(logits, alpha, label)
            self.evaluation(split).update(loss, logits, alpha, label, data.foreground[mine])
        return {"logits": distributed.whole(logits, len(rows)), "alpha": distributed.whole(alpha, len(rows))}

    def on_validation_epoch_end(self) -> None:
        for split in self.evaluations:
            self.record(split, self.evaluation(split))
