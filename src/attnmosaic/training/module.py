"""The stage-wise LightningModule."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from attnmosaic.data.datamodule import SPLITS, MosaicDataModule
from attnmosaic.data.mosaics import Mosaics
from attnmosaic.errors import RunError
from attnmosaic.metrics.focus import FocusMetrics
from attnmosaic.nn.attention import WhereWhat
from attnmosaic.training.frozen import FrozenWhere
from attnmosaic.training.schedule import Schedule, Stage

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]
MakeScheduler = Callable[[Optimizer], LRScheduler]
NETWORKS = ("what", "where")


class StagewiseModule(pl.LightningModule):
    """Trains Where and What in the stages of a schedule, by manual optimization.

    Each network has one optimizer, made once: its momentum survives the stages in which it rests. A resting
    network gets no gradient and is in eval mode. While Where rests, its weights are computed once and the
    aggregates kept (`FrozenWhere`).

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
        microbatches: pieces each minibatch's gradient is accumulated over, to save memory.
        clip_norm: largest norm of a network's gradient, None for no clipping.
        cache_gb: memory that kept aggregates may take, in GB (1e9 bytes).
        config: the run's resolved config as plain containers; saved in every checkpoint.

    Raises:
        RunError: at the end of an epoch in which the loss or a weight became infinite or not a number.
    """

    def __init__(
        self,
        pair: WhereWhat,
        schedule: Schedule,
        objective: Callable[[Tensor, Tensor, Tensor], Tensor],
        optimizers: Mapping[str, MakeOptimizer],
        schedulers: Mapping[str, MakeScheduler] | None = None,
        *,
        batch_size: int,
        seed: int,
        microbatches: int = 1,
        clip_norm: float | None = None,
        cache_gb: float = 1.0,
        config: dict[str, Any],
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.pair = pair.to(memory_format=torch.channels_last)
        self.schedule = schedule
        self.objective = objective
        self.make_optimizers = optimizers
        self.make_schedulers = schedulers or {}
        self.batch_size = batch_size
        self.seed = seed
        self.microbatches = microbatches
        self.clip_norm = clip_norm
        self.cache_gb = cache_gb
        self.running = FocusMetrics()
        self.evaluations = nn.ModuleList(FocusMetrics() for _ in SPLITS)
        self.epoch_metrics: dict[str, float] = {}
        """What this epoch measured so far; callbacks write it down."""
        self._losses: list[Tensor] = []
        self.save_hyperparameters({"config": config}, logger=False)

    @property
    def stage(self) -> Stage:
        return self.schedule.stage(self.current_epoch)

    def _take_data(self) -> None:
        """Puts the data where the networks are; only now has the trainer given them device and precision."""
        datamodule: MosaicDataModule = self.trainer.datamodule  # type: ignore[attr-defined]
        dtype = next(self.parameters()).dtype
        self.mosaics: dict[str, Mosaics] = datamodule.mosaics_on(self.device, dtype)
        self.frozen_where = FrozenWhere(self.pair, self.mosaics, dtype, round(self.cache_gb * 1e9))

    def configure_optimizers(self) -> tuple[list[Optimizer], list[LRScheduler]]:
        made = {name: self.make_optimizers[name](getattr(self.pair, name).parameters()) for name in NETWORKS}
        return list(made.values()), [make(made[name]) for name, make in self.make_schedulers.items()]

    # ---- training

    def on_fit_start(self) -> None:
        self._take_data()

    def on_train_epoch_start(self) -> None:
        stage = self.stage
        # Anew each epoch: a resumed run then draws what the uninterrupted one would have.
        torch.manual_seed(int(np.random.SeedSequence([self.seed, self.current_epoch, 2]).generate_state(1)[0]))
        for name in NETWORKS:
            getattr(self.pair, name).train(name in stage.learners)
        self.running.reset()
        self._losses.clear()
        self.epoch_metrics = {}

    def training_step(self, rows: Tensor, batch_idx: int) -> None:
        stage = self.stage
        if stage is Stage.WHAT:
            self.frozen_where.keep("train")
        else:
            self.frozen_where.clear()
        with self._learning(stage) as optimizers:
            seen = [self._step(minibatch, stage, optimizers) for minibatch in rows.split(self.batch_size)]
        losses, logits, alpha = (list(part) for part in zip(*seen, strict=True))
        self._losses += losses
        data = self.mosaics["train"]
        sizes = torch.tensor([len(part) for part in logits], device=rows.device)
        mean_loss = (torch.stack(losses) * sizes).sum() / len(rows)
        self.running.update(mean_loss, torch.cat(logits), torch.cat(alpha), data.label[rows], data.foreground[rows])
        if self.trainer.is_last_batch:
            self._finish_epoch(stage)

    @contextlib.contextmanager
    def _learning(self, stage: Stage) -> Iterator[list[LightningOptimizer]]:
        """Yields the optimizers of the networks that learn; the other network takes no gradient."""
        both: list[LightningOptimizer] = self.optimizers()  # type: ignore[assignment]
        if stage is Stage.JOINT:
            yield both
        else:
            optimizer = both[NETWORKS.index(stage.learners[0])]
            with self.toggled_optimizer(optimizer):
                yield [optimizer]

    def _step(self, rows: Tensor, stage: Stage, optimizers: list[LightningOptimizer]) -> tuple[Tensor, Tensor, Tensor]:
        """Takes one optimizer step; returns the mean loss, the logits and alpha, without gradients."""
        for optimizer in optimizers:
            optimizer.zero_grad()
        seen = []
        for piece in rows.chunk(self.microbatches):
            logits, alpha = self._forward(piece, stage)
            loss = self.objective(logits, alpha, self.mosaics["train"].label[piece])
            loss = loss * (len(piece) / len(rows)) if self.microbatches > 1 else loss
            self.manual_backward(loss)
            seen.append((loss.detach(), logits.detach(), alpha.detach()))
        for optimizer in optimizers:
            if self.clip_norm is not None:
                self.clip_gradients(optimizer, self.clip_norm, "norm")  # type: ignore[arg-type]
            optimizer.step()
        if len(seen) == 1:
            return seen[0]
        losses, all_logits, alphas = zip(*seen, strict=True)
        return torch.stack(losses).sum(), torch.cat(all_logits), torch.cat(alphas)

    def _forward(self, rows: Tensor, stage: Stage) -> tuple[Tensor, Tensor]:
        if stage is Stage.WHAT:
            alpha, aggregates = self.frozen_where.attend("train", rows)
            return self.pair.what(aggregates), alpha
        mosaics = self.mosaics["train"]
        return self.pair(mosaics.patches(rows, self.frozen_where.dtype))

    def _finish_epoch(self, stage: Stage) -> None:
        """Runs in the epoch's last block, so that validation and checkpoints only see finite weights."""
        losses = torch.stack(self._losses)
        # The last step's loss is from before that step: its weights are looked at themselves.
        weights = all(value.isfinite().all() for value in self.pair.state_dict().values())
        finite = torch.cat([losses.isfinite(), torch.tensor([weights], device=losses.device)])
        if not finite.all():
            step = int(finite.logical_not().nonzero()[0]) + 1
            what = f"the loss became {losses[step - 1].item()}" if step <= len(losses) else "a weight became infinite"
            raise RunError(
                f"{what} in epoch {self.current_epoch + 1}, step {min(step, len(losses))} of {len(losses)}, while "
                f"{' and '.join(stage.learners)} learned; the last checkpoint is from before this epoch. "
                f"Try a smaller lr.{stage.learners[0]}"
            )
        self._record("running", self.running)
        for scheduler, name in zip(self._schedulers(), self.make_schedulers, strict=True):
            if name in stage.learners:
                if isinstance(scheduler, ReduceLROnPlateau):
                    scheduler.step(self.epoch_metrics["running/loss"])
                else:
                    scheduler.step()

    def _schedulers(self) -> list[Any]:
        found = self.lr_schedulers()
        if found is None:
            return []
        return found if isinstance(found, list) else [found]

    # ---- evaluation

    def evaluation(self, split: str) -> FocusMetrics:
        """Returns what the last evaluation measured on a split."""
        metrics = self.evaluations[SPLITS.index(split)]
        assert isinstance(metrics, FocusMetrics)
        return metrics

    def on_validation_start(self) -> None:
        if self.trainer.state.fn != TrainerFn.FITTING:
            self._take_data()

    def on_validation_epoch_start(self) -> None:
        for split in SPLITS:
            self.evaluation(split).reset()

    def validation_step(self, rows: Tensor, batch_idx: int, dataloader_idx: int = 0) -> None:
        split = SPLITS[dataloader_idx]
        data = self.mosaics[split]
        alpha, aggregates = self.frozen_where.attend(split, rows)
        logits = self.pair.what(aggregates)
        label = data.label[rows]
        loss = self.objective(logits, alpha, label)
        self.evaluation(split).update(loss, logits, alpha, label, data.foreground[rows])

    def on_validation_epoch_end(self) -> None:
        for split in SPLITS:
            self._record(split, self.evaluation(split))

    @property
    def epochs_done(self) -> int:
        """Epochs trained, counted from 1 while the first one is still being evaluated."""
        return self.current_epoch + (self.trainer.state.fn == TrainerFn.FITTING)

    def _record(self, prefix: str, metrics: FocusMetrics) -> None:
        values = {f"{prefix}/{name}": value for name, value in metrics.compute().items()}
        self.epoch_metrics |= {name: float(value) for name, value in values.items()}
        if prefix == "running":
            values["stage"] = torch.tensor(float(self.stage))
        # Lightning takes a logged "step" as the x axis; its own counts every optimizer's steps.
        values["step"] = torch.tensor(float(self.epochs_done))
        # The full pass after training is logged with the hyperparameters (`finish_run`), not twice.
        logged = self.trainer.state.fn == TrainerFn.FITTING and bool(self.trainer.loggers)
        self.log_dict(values, on_step=False, on_epoch=True, add_dataloader_idx=False, logger=logged)
