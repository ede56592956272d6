"""From a checked config to the objects it describes."""

import copy
import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from hydra.utils import get_object, instantiate
from torch import nn

from attnmosaic.config.schedule import Schedule
from attnmosaic.config.schema import PAIR, processes_of
from attnmosaic.core.errors import UserError
from attnmosaic.data.datamodule import MosaicDataModule
from attnmosaic.data.numbers import NumbersDataModule
from attnmosaic.nn.attention import WhereWhat
from attnmosaic.training.base import RunModule, step_scheduler
from attnmosaic.training.instantiation import first_line, make, remedy
from attnmosaic.training.stagewise import StagewiseModule
from attnmosaic.training.two_outputs import TwoOutputModule


def build_network(config: dict[str, Any], name: str, in_shape: tuple[int, ...], outputs: int, seed: int) -> nn.Module:
    """Makes one network, its first weights following from (seed, name) alone.

    ``in_shape`` and ``outputs`` are passed to a target that takes them, so that sizes stand in one place.

    Args:
        config: ``_target_`` and its arguments.
        name: "where" or "what".
        in_shape: shape of a patch, ``(C, H, W)`` or ``(D,)``.
        outputs: outputs the network must have.
        seed: init seed.

    Raises:
        UserError: the target cannot be built with its arguments, does not take such patches, or gives another number
            of outputs.
    """
    given = _derived(config, in_shape=in_shape, outputs=outputs)
    network, got = _make_network(config, f"model.{name}", given, 2 * seed + PAIR.index(name), torch.zeros(2, *in_shape))
    if tuple(got.shape) != (2, outputs):
        raise UserError(
            f"model.{name}: {config['_target_']} gives {tuple(got.shape[1:])} outputs for each patch, "
            f"needs ({outputs},)"
        )
    return network


def build_two_outputs(config: dict[str, Any], in_shape: tuple[int, ...], results: int, seed: int) -> nn.Module:
    """Makes a network that takes images and numbers, its first weights following from the seed alone.

    ``in_shape`` and ``outputs``, the number of results, are passed to a target that takes them.

    Args:
        config: ``_target_`` and its arguments.
        in_shape: ``(C, H, W)`` of an image.
        results: number of classes that the second output must have; the first must have 10.
        seed: init seed.

    Raises:
        UserError: the target cannot be built with its arguments, does not take such images, or gives other outputs.
    """
    given = _derived(config, in_shape=in_shape, outputs=results)
    tried = torch.zeros(2, *in_shape), torch.zeros(2, dtype=torch.int64)
    network, got = _make_network(config, "model.network", given, 2 * seed, *tried)
    if not isinstance(got, tuple) or [tuple(logits.shape) for logits in got] != [(2, 10), (2, results)]:
        raise UserError(f"model.network: {config['_target_']} must give two outputs, of 10 and of {results} logits")
    return network


def _derived(config: dict[str, Any], **derived: Any) -> dict[str, Any]:
    """Returns those of the derived arguments that a target takes and the config does not give."""
    accepted = inspect.signature(get_object(config["_target_"])).parameters
    return {key: value for key, value in derived.items() if key in accepted and key not in config}


def _make_network(
    config: dict[str, Any], key: str, given: dict[str, Any], seed: int, *tried: torch.Tensor
) -> tuple[nn.Module, Any]:
    """Makes a network and returns it with what it gives in eval mode for some zeros."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            network: nn.Module = instantiate(config, **given)
        except Exception as error:
            cause = error.__cause__ or error
            arguments = [f"{name}={config[name]}" for name in map(str, config) if name != "_target_"]
            arguments += [f"{name}={value}" for name, value in given.items()]
            what = remedy(key, config, cause) or "; choose another model for these data"
            raise UserError(
                f"{key}: {config['_target_']} cannot be built with {', '.join(arguments) or 'no arguments'} "
                f"({first_line(cause)}){what}"
            ) from error
        try:
            training = network.training
            with torch.no_grad():
                got = network.eval()(*tried)
            network.train(training)
        except Exception as error:
            kind = "patches" if len(tried) == 1 else "images"
            raise UserError(
                f"{key}: {config['_target_']} does not take {kind} of shape {tuple(tried[0].shape[1:])} "
                f"({first_line(error)}); choose another model for these data"
            ) from error
    return network, got


def build_module(config: dict[str, Any], data: MosaicDataModule | NumbersDataModule) -> RunModule:
    """Makes the LightningModule of a run for data that are set up.

    Raises:
        UserError: a network, optimizer, scheduler or objective does not take its arguments or the data.
    """
    if isinstance(data, NumbersDataModule):
        return _two_output_module(config, data)
    return _stagewise_module(config, data)


def build_pair(
    config: dict[str, Any], patch_shape: tuple[int, ...], n_labels: int, *, decreed: bool = False
) -> WhereWhat:
    """Makes the networks of a run on mosaics, their first weights following from its init seed.

    Args:
        config: the run's.
        patch_shape: ``(C, H, W)`` or ``(D,)``.
        n_labels: number of foreground classes, F.
        decreed: the data give the attention weights; there is no where network then.

    Raises:
        UserError: see `build_network`.
    """
    seed = config["seed"]["init"]
    pair = WhereWhat(
        where=None if decreed else build_network(config["model"]["where"], "where", patch_shape, 1, seed),
        what=build_network(config["model"]["what"], "what", patch_shape, n_labels, seed),
    )
    # Lightning would do so too, but only after a checkpoint's weights were rounded to float32.
    return pair.double() if config["precision"] == "float64" else pair


def _stagewise_module(config: dict[str, Any], data: MosaicDataModule) -> StagewiseModule:
    pair = build_pair(config, data.patch_shape, data.n_labels, decreed=data.weights is not None)
    every = {name: getattr(pair, name) for name in PAIR}
    mosaics = data.mosaics["train"]
    dtype = next(pair.parameters()).dtype
    one = torch.zeros(1, *data.patch_shape, dtype=dtype)
    _check_smallest_part(config, "what", len(mosaics), lambda: copy.deepcopy(pair.what).train()(one))
    label = torch.arange(2) % data.n_labels
    alpha = torch.full((2, data.patches), 1 / data.patches, dtype=dtype)
    logits = torch.zeros(2, data.n_labels, dtype=dtype)
    optimizers, schedulers = _optimizers(config, {name: made for name, made in every.items() if made is not None})
    return StagewiseModule(
        pair,
        Schedule(**config["schedule"]),
        _objective(config, logits=logits, alpha=alpha, label=label),
        optimizers,
        schedulers,
        batch_size=config["data"]["batch_size"],
        seed=config["seed"]["order"],
        microbatches=config["optimizer"]["microbatches"],
        clip_norm=config["optimizer"]["clip_norm"],
        cache_gb=config["compute"]["cache_gb"],
        graphs=config["compute"]["engine"] == "auto",
        pool=config["compute"]["pool"],
        patch_shape=data.patch_shape,
        foreground_classes=data.mosaics["train"].foreground_classes,
        config=config,
    )


def _two_output_module(config: dict[str, Any], data: NumbersDataModule) -> TwoOutputModule:
    results, seed = len(data.operation.values), config["seed"]["init"]
    network = build_two_outputs(config["model"]["network"], data.image_shape, results, seed)
    if config["precision"] == "float64":  # see build_pair
        network = network.double()
    dtype = next(network.parameters()).dtype
    two = data.examples["train"].take(torch.zeros(2, dtype=torch.int64), dtype)
    n = len(data.examples["train"])
    _check_smallest_part(config, "network", n, lambda: copy.deepcopy(network).train()(two.image[:1], two.number[:1]))
    logits = {"digit_logits": torch.zeros(2, 10), "result_logits": torch.zeros(2, results)}
    given = {name: value.to(dtype) for name, value in logits.items()}
    optimizers, schedulers = _optimizers(config, {"network": network})
    return TwoOutputModule(
        network,
        Schedule(**config["schedule"]),
        _objective(config, **given, digit=two.digit, result=two.result),
        optimizers["network"],
        schedulers.get("network"),
        operation=data.operation,
        image_shape=data.image_shape,
        seed=config["seed"]["order"],
        clip_norm=config["optimizer"]["clip_norm"],
        pool=config["compute"]["pool"],
        config=config,
    )


def _check_smallest_part(config: dict[str, Any], name: str, n: int, attempt: Callable[[], object]) -> None:
    """Finds out before training whether a minibatch of one would stop it, as batch normalisation does.

    Args:
        config: the run's.
        name: of the network.
        n: training examples.
        attempt: computes one example while the network trains.
    """
    size, pieces = config["data"]["batch_size"], config["optimizer"]["microbatches"] or 1
    processes = processes_of(config)
    if _smallest_part(n, size, processes, pieces) > 1:
        return
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            attempt()
        except ValueError as error:
            sizes = range(size, 2 * size + 2 * processes + 2)
            fits = next((s for s in sizes if _smallest_part(n, s, processes, 1) > 1), n)
            advice = "optimizer.microbatches=null" if fits == size else f"data.batch_size={fits}"
            raise UserError(
                f"data.batch_size: got {size}, which leaves of {n} training examples a part of one, and "
                f"{config['model'][name]['_target_']} does not take it ({first_line(error)}); type {advice}"
            ) from error


def _smallest_part(n: int, batch_size: int, processes: int, pieces: int) -> int:
    """Returns how many examples the smallest part of a minibatch has, of those that are computed on their own."""
    shares = [max(1, size // processes) for size in (min(n, batch_size), n % batch_size or batch_size)]
    return min(len(part) for share in shares for part in torch.arange(share).chunk(pieces))


def _objective(config: dict[str, Any], **arguments: torch.Tensor) -> Any:
    """Makes the objective and checks that it gives one number for such arguments, in this order."""
    objective, target = make("objective", config["objective"]), config["objective"]["_target_"]
    call = objective.forward if isinstance(objective, nn.Module) else objective
    try:
        inspect.signature(call).bind(*arguments)
    except TypeError as error:
        raise UserError(
            f"objective: {target} does not take ({', '.join(arguments)}); "
            "type objective=cross_entropy for a pair, objective=two_outputs for one network"
        ) from error
    shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in arguments.items())
    with torch.random.fork_rng(devices=[]):
        try:
            loss = copy.deepcopy(objective)(*arguments.values())
        except Exception as error:
            raise UserError(
                f"objective: {target} fails for {shapes} ({first_line(error)}); fix it, or type "
                "objective=cross_entropy for a pair, objective=two_outputs for one network"
            ) from error
    if not isinstance(loss, torch.Tensor) or loss.shape != ():
        got = list(loss.shape) if isinstance(loss, torch.Tensor) else type(loss).__name__
        raise UserError(f"objective: {target} gives {got} for {shapes}, needs their mean, a scalar")
    return objective


def _optimizers(config: dict[str, Any], networks: Mapping[str, nn.Module]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns for each network what makes its optimizer, and its scheduler if there is one."""
    # `lr` has its place at the top of the config, whatever the optimizer.
    nodes = config["optimizer"]
    optimizers = {
        n: make(f"optimizer.{n}", nodes[n], _partial_=True, lr=config["lr"][n], **_fused(nodes[n])) for n in networks
    }
    scheduled = [n for n in networks if config["scheduler"][n] is not None]
    schedulers = {n: make(f"scheduler.{n}", config["scheduler"][n], _partial_=True) for n in scheduled}
    schedule = Schedule(**config["schedule"])
    for name, optimizer in optimizers.items():
        copied = copy.deepcopy(networks[name])
        tried = _try(f"optimizer.{name}", optimizer, copied.parameters())
        _try_step(f"optimizer.{name}", nodes[name]["_target_"], tried)
        if name in schedulers:
            epochs = sum(name in (*schedule.stage(e).learners, "network") for e in range(schedule.epochs))
            _try_epochs(f"scheduler.{name}", _try(f"scheduler.{name}", schedulers[name], tried), epochs)
    return optimizers, schedulers


def _try_step(key: str, target: str, optimizer: torch.optim.Optimizer) -> None:
    """Takes a step on a copy of a network: some optimizers need a closure for it, or gradients of another kind."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    try:
        optimizer.step()
    except Exception as error:
        raise UserError(
            f"{key}: {target} cannot take the steps of a run ({first_line(error)}); type optimizer=sgd or "
            "optimizer=adam"
        ) from error


def _try_epochs(key: str, scheduler: Any, epochs: int) -> None:
    """Steps a scheduler as often as a run will: some take so many steps and no more."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the optimizer has taken one step, and no more
        for epoch in range(epochs):
            try:
                step_scheduler(scheduler, 1.0)
            except Exception as error:
                raise UserError(
                    f"{key}: fails after {epoch} of the {epochs} epochs in which its network learns "
                    f"({first_line(error)}); it steps once after each of them"
                ) from error


def _fused(config: Any) -> dict[str, bool]:
    """Has torch's optimizers update all weights in one call, unless the config says how."""
    fused = isinstance(config, Mapping) and config.get("_target_") in ("torch.optim.SGD", "torch.optim.Adam")
    return {"fused": True} if fused and not {"fused", "foreach", "differentiable"} & set(config) else {}


def _try(key: str, partial: Callable[..., Any], argument: Any) -> Any:
    """Makes an optimizer or scheduler before any training, so that what it does not take is told now."""
    try:
        return partial(argument)
    except (TypeError, ValueError) as error:
        raise UserError(f"{key}: {first_line(error)}") from error
