"""Builds the LightningModule of a run, and its networks, from a checked config."""

import copy
import inspect
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import torch
from hydra.utils import get_object, instantiate
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from attnmosaic.config.schedule import Schedule
from attnmosaic.config.schema import PAIR, processes_of
from attnmosaic.core.errors import UserError
from attnmosaic.data.datamodule import MosaicDataModule
from attnmosaic.data.numbers import NumbersDataModule
from attnmosaic.nn.attention import WhereWhat
from attnmosaic.training.attention_cache import eval_mode
from attnmosaic.training.base import RunModule, step_scheduler
from attnmosaic.training.instantiation import argument_advice, build_object, first_line, raising_user_error
from attnmosaic.training.stagewise import StagewiseModule
from attnmosaic.training.two_outputs import TwoOutputModule

Network = TypeVar("Network", bound=nn.Module)


def build_network(config: dict[str, Any], name: str, in_shape: tuple[int, ...], outputs: int, seed: int) -> nn.Module:
    """Builds a where or a what network; its initial weights depend on ``seed`` and ``name`` only.

    ``in_shape`` and ``outputs`` are passed to the target if it takes arguments with these names.

    Args:
        config: ``_target_`` and its arguments.
        name: "where" or "what".
        in_shape: shape of a patch, ``(C, H, W)`` or ``(D,)``.
        outputs: required number of outputs.
        seed: init seed.

    Raises:
        UserError: the target cannot be built with its arguments, does not take patches of this shape, or gives another
            number of outputs.
    """
    derived = _derived_arguments(config, in_shape=in_shape, outputs=outputs)
    network_seed = 2 * seed + PAIR.index(name)
    network, result = _make_network(config, f"model.{name}", derived, network_seed, torch.zeros(2, *in_shape))
    if tuple(result.shape) != (2, outputs):
        raise UserError(
            f"model.{name}: {config['_target_']} gives outputs of shape {tuple(result.shape[1:])} for each patch, "
            f"needs shape ({outputs},); type another model"
        )
    return network


def build_two_outputs(config: dict[str, Any], in_shape: tuple[int, ...], results: int, seed: int) -> nn.Module:
    """Builds a network that takes images and numbers; its initial weights depend on the seed only.

    ``in_shape`` and ``outputs`` (the number of results) are passed to the target if it takes arguments with these
    names.

    Args:
        config: ``_target_`` and its arguments.
        in_shape: ``(C, H, W)`` of an image.
        results: required number of classes of the second output; the first must have 10.
        seed: init seed.

    Raises:
        UserError: the target cannot be built with its arguments, does not take images of this shape, or gives other
            outputs.
    """
    derived = _derived_arguments(config, in_shape=in_shape, outputs=results)
    inputs = torch.zeros(2, *in_shape), torch.zeros(2, dtype=torch.int64)
    network, outputs = _make_network(config, "model.network", derived, 2 * seed, *inputs)
    if not isinstance(outputs, tuple) or [tuple(logits.shape) for logits in outputs] != [(2, 10), (2, results)]:
        raise UserError(f"model.network: {config['_target_']} must give two outputs, of 10 and of {results} logits")
    return network


def _derived_arguments(config: dict[str, Any], **derived: Any) -> dict[str, Any]:
    """Returns the derived arguments that a target takes and the config does not set."""
    accepted = inspect.signature(get_object(config["_target_"])).parameters
    return {key: value for key, value in derived.items() if key in accepted and key not in config}


def _make_network(
    config: dict[str, Any], key: str, derived: dict[str, Any], seed: int, *inputs: torch.Tensor
) -> tuple[nn.Module, Any]:
    """Builds a network; returns the network and its outputs in eval mode for the given example inputs."""
    advice = "; choose another model for these data"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            network: nn.Module = instantiate(config, **derived)
        except Exception as error:
            cause = error.__cause__ or error
            arguments = {**config, **derived}
            del arguments["_target_"]
            shown = ", ".join(f"{name}={value}" for name, value in arguments.items()) or "no arguments"
            advice = argument_advice(key, config, cause) or advice
            raise UserError(
                f"{key}: {config['_target_']} cannot be built with {shown} ({first_line(cause)}){advice}"
            ) from error
        kind = "patches" if len(inputs) == 1 else "images"
        failure = f"{key}: {config['_target_']} does not take {kind} of shape {tuple(inputs[0].shape[1:])}"
        with raising_user_error(failure, advice), eval_mode(network), torch.no_grad():
            return network, network(*inputs)


def build_module(config: dict[str, Any], data: MosaicDataModule | NumbersDataModule) -> RunModule:
    """Builds the LightningModule of a run: networks, objective, optimizers and schedulers.

    Args:
        config: the run's resolved config.
        data: the run's data module, after ``setup``.

    Raises:
        UserError: a network, optimizer, scheduler or objective fails with its arguments or with the data.
    """
    if isinstance(data, NumbersDataModule):
        return _two_output_module(config, data)
    return _stagewise_module(config, data)


def build_pair(
    config: dict[str, Any], patch_shape: tuple[int, ...], n_labels: int, *, fixed_weights: bool = False
) -> WhereWhat:
    """Builds the pair of networks of a run on mosaics; their initial weights depend on the init seed only.

    Args:
        config: the run's resolved config.
        patch_shape: ``(C, H, W)`` or ``(D,)``.
        n_labels: number of foreground classes, F.
        fixed_weights: whether the data set the attention weights, so that the pair has no where network.

    Raises:
        UserError: see `build_network`.
    """
    seed = config["seed"]["init"]
    pair = WhereWhat(
        where=None if fixed_weights else build_network(config["model"]["where"], "where", patch_shape, 1, seed),
        what=build_network(config["model"]["what"], "what", patch_shape, n_labels, seed),
    )
    return _in_precision(config, pair)


def _in_precision(config: dict[str, Any], network: Network) -> Network:
    # Lightning converts networks to float64, too, but only after a checkpoint's weights were rounded to float32.
    return network.double() if config["precision"] == "float64" else network


def _stagewise_module(config: dict[str, Any], data: MosaicDataModule) -> StagewiseModule:
    pair = build_pair(config, data.patch_shape, data.n_labels, fixed_weights=data.weights is not None)
    mosaics = data.mosaics["train"]
    dtype = next(pair.parameters()).dtype
    aggregate = torch.zeros(1, *data.patch_shape, dtype=dtype)
    _check_smallest_part(config, "what", len(mosaics), lambda: copy.deepcopy(pair.what).train()(aggregate))
    label = torch.arange(2) % data.n_labels
    alpha = torch.full((2, data.patches), 1 / data.patches, dtype=dtype)
    logits = torch.zeros(2, data.n_labels, dtype=dtype)
    networks = {name: network for name in PAIR if (network := getattr(pair, name)) is not None}
    return StagewiseModule(
        config,
        pair,
        _objective(config, logits=logits, alpha=alpha, label=label),
        *_optimizers(config, networks),
        patch_shape=data.patch_shape,
        foreground_classes=mosaics.foreground_classes,
    )


def _two_output_module(config: dict[str, Any], data: NumbersDataModule) -> TwoOutputModule:
    results, seed = len(data.operation.values), config["seed"]["init"]
    network = build_two_outputs(config["model"]["network"], data.image_shape, results, seed)
    network = _in_precision(config, network)
    dtype, train = next(network.parameters()).dtype, data.examples["train"]
    batch = train.take(torch.zeros(2, dtype=torch.int64), dtype)
    compute_one = partial(copy.deepcopy(network).train(), batch.image[:1], batch.number[:1])
    _check_smallest_part(config, "network", len(train), compute_one)
    logits = {"digit_logits": torch.zeros(2, 10), "result_logits": torch.zeros(2, results)}
    logits = {name: value.to(dtype) for name, value in logits.items()}
    optimizers, schedulers = _optimizers(config, {"network": network})
    return TwoOutputModule(
        config,
        network,
        _objective(config, **logits, digit=batch.digit, result=batch.result),
        optimizers["network"],
        schedulers.get("network"),
        operation=data.operation,
        image_shape=data.image_shape,
    )


def _check_smallest_part(config: dict[str, Any], name: str, n: int, compute_one: Callable[[], object]) -> None:
    """Checks that the network accepts a single example, if a minibatch, shard or piece of one has only one example.

    Batch normalisation does not accept a single example.

    Args:
        config: the run's resolved config.
        name: name of the network.
        n: number of training examples.
        compute_one: computes one example with the network in training mode.

    Raises:
        UserError: a part has only one example, and the network does not accept it.
    """
    size, pieces = config["data"]["batch_size"], config["optimizer"]["microbatches"] or 1
    smallest = partial(_smallest_part, n, processes=processes_of(config))
    if smallest(size, pieces=pieces) > 1:
        return
    suitable = next((other for other in range(size, n) if smallest(other, pieces=1) > 1), n)
    override = "optimizer.microbatches=null" if suitable == size else f"data.batch_size={suitable}"
    failure = f"data.batch_size: got {size}, which leaves only one of {n} training examples in the smallest part of a "
    failure += f"minibatch, and {config['model'][name]['_target_']} does not take a single example"
    with raising_user_error(failure, f"; type {override}"), torch.random.fork_rng(devices=[]), torch.no_grad():
        compute_one()


def _smallest_part(n: int, batch_size: int, *, processes: int, pieces: int) -> int:
    """Returns the smallest number of examples that a process computes in one forward pass, of n training examples."""
    shards = [max(1, size // processes) for size in (min(n, batch_size), n % batch_size or batch_size)]
    return min(len(part) for shard in shards for part in torch.arange(shard).chunk(pieces))


def _objective(config: dict[str, Any], **arguments: torch.Tensor) -> Any:
    """Builds the objective and checks that it returns a scalar for the example arguments, passed in this order."""
    objective, target = build_object("objective", config["objective"]), config["objective"]["_target_"]
    shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in arguments.items())
    advice = "; correct it, or type objective=cross_entropy for a pair, objective=two_outputs for one network"
    with raising_user_error(f"objective: {target} fails for {shapes}", advice), torch.random.fork_rng(devices=[]):
        loss = copy.deepcopy(objective)(*arguments.values())
    if not isinstance(loss, torch.Tensor) or loss.shape != ():
        got = list(loss.shape) if isinstance(loss, torch.Tensor) else type(loss).__name__
        raise UserError(
            f"objective: {target} returns {got} for {shapes}, needs a scalar tensor, the mean over the examples"
        )
    return objective


def _optimizers(config: dict[str, Any], networks: Mapping[str, nn.Module]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the factories of optimizers and of learning-rate schedulers by network, after trying both on a copy.

    A network without a scheduler has no entry in the second dict.
    """
    optimizers, schedulers = {}, {}
    schedule = Schedule(**config["schedule"])
    for name, network in networks.items():
        node = config["optimizer"][name]
        optimizers[name] = build_object(
            f"optimizer.{name}", node, _partial_=True, lr=config["lr"][name], **_fused_argument(node)
        )
        optimizer = _build_and_step_optimizer(
            name, node["_target_"], partial(optimizers[name], copy.deepcopy(network).parameters())
        )
        if config["scheduler"][name] is not None:
            schedulers[name] = build_object(f"scheduler.{name}", config["scheduler"][name], _partial_=True)
            epochs = sum(name in (*schedule.stage(e).training_networks, "network") for e in range(schedule.epochs))
            _check_scheduler(name, partial(schedulers[name], optimizer), epochs)
    return optimizers, schedulers


def _build_and_step_optimizer(
    name: str, target: str, build: Callable[[], torch.optim.Optimizer]
) -> torch.optim.Optimizer:
    """Builds an optimizer and takes a step with it: some optimizers need a closure, or gradients of another kind."""
    with raising_user_error(f"optimizer.{name}: {target} cannot be built"):
        optimizer = build()
    for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
        parameter.grad = torch.zeros_like(parameter)
    with raising_user_error(
        f"optimizer.{name}: {target} cannot take the steps of a run", "; type optimizer=sgd or optimizer=adam"
    ):
        optimizer.step()
    return optimizer


def _check_scheduler(name: str, build: Callable[[], LRScheduler], epochs: int) -> None:
    """Builds a scheduler and steps it once for each epoch of the run: some schedulers allow only a number of steps."""
    with raising_user_error(f"scheduler.{name}: cannot be built"):
        scheduler = build()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that the optimizer took no step between two of the scheduler
        for epoch in range(epochs):
            failure = f"scheduler.{name}: fails after {epoch} of the {epochs} epochs in which its network trains"
            with raising_user_error(failure, "; it must take one step after each of these epochs"):
                step_scheduler(scheduler, 1.0)


def _fused_argument(node: Any) -> dict[str, bool]:
    """Returns ``fused=True`` for SGD and Adam, or no argument if the config has ``fused``, ``foreach`` or the like."""
    fused = isinstance(node, Mapping) and node.get("_target_") in ("torch.optim.SGD", "torch.optim.Adam")
    return {"fused": True} if fused and not {"fused", "foreach", "differentiable"} & set(node) else {}
