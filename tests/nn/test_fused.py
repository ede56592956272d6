"""Fused kernels compute what torch computes: outputs, gradients, values that are not numbers."""

import copy
import itertools
import pickle
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.compilers import needs_compiler
from torch import Tensor, nn

from attnmosaic.nn import fused, kernels
from attnmosaic.nn.attention import WhereWhat, aggregate
from attnmosaic.nn.fused import IndexedPatches, check, features, plain_features
from attnmosaic.nn.kernels import Kernel, UnavailableError, vectors_of_cpu
from attnmosaic.nn.networks import ConvNet

SHAPES = {
    "CIFAR": ((3, 32, 32), (6, 16), 5, 0),
    "CIFAR-100": ((3, 32, 32), (16, 32), 5, 0),
    "MNIST": ((1, 28, 28), (6, 16), 5, 0),
    "digits": ((1, 8, 8), (6, 16), 3, 1),
    "smallest": ((1, 4, 4), (1, 1), 3, 1),
    "four channels, odd sides": ((4, 21, 18), (5, 19), 5, 0),
    "wide": ((2, 12, 75), (7, 33), 3, 0),
    "large border": ((3, 11, 12), (3, 4), 5, 2),
}
TIGHT = {"rtol": 0, "atol": 1e-12}


@pytest.fixture
def folder(kernels_folder: Path) -> str:
    return str(kernels_folder)


@pytest.fixture
def make(folder: str) -> Callable[..., Kernel]:
    def build(name: str = "digits", dtype: torch.dtype = torch.float64, vectors: str | None = None) -> Kernel:
        image, filters, side, padding = SHAPES[name]
        return Kernel(image, filters, side, padding, dtype, vectors or vectors_of_cpu()[0], folder)

    return build


def weights_of(kernel: Kernel, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    (first, second), side = kernel.filters, kernel.side
    shapes = ((first, kernel.image[0], side, side), (first,), (second, first, side, side), (second,))
    return [torch.randn(s, generator=generator, dtype=kernel.dtype).mul_(0.3).requires_grad_() for s in shapes]


def images_of(kernel: Kernel, n: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(n, *kernel.image, generator=generator, dtype=kernel.dtype).requires_grad_()


def indexed(kernel: Kernel, index: Tensor, pixels: Tensor | None = None) -> IndexedPatches:
    """Patches of a pool of 40 images, with another mean and deviation in each channel."""
    channels, height, width = kernel.image
    if pixels is None:
        generator = torch.Generator().manual_seed(3)
        pixels = torch.randint(256, (40, height, width, channels), generator=generator, dtype=torch.uint8)
    factor = torch.linspace(0.004, 0.009, channels, dtype=kernel.dtype)
    offset = torch.linspace(0.9, 1.3, channels, dtype=kernel.dtype)

    def gather(rows: Tensor) -> Tensor:
        return (pixels[rows] * factor - offset).movedim(-1, -3)

    return IndexedPatches(pixels, index, factor, offset, kernel, gather)


def outputs_and_gradients(output: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    grad_output = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).sin().view(output.shape)
    return [output.detach(), *torch.autograd.grad(output, inputs, grad_output)]


@needs_compiler
@pytest.mark.parametrize("vectors", vectors_of_cpu())
@pytest.mark.parametrize("name", SHAPES)
def test_float64_equals_torch(make: Callable[..., Kernel], name: str, vectors: str) -> None:
    kernel = make(name, vectors=vectors)
    images, weights = images_of(kernel), weights_of(kernel)
    ours = outputs_and_gradients(features(kernel, images, weights), [images, *weights])
    expected = outputs_and_gradients(plain_features(images, weights, kernel.padding), [images, *weights])
    for own, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=1e-12 * max(1.0, float(other.abs().max())))


@needs_compiler
@pytest.mark.parametrize("name", ["CIFAR", "MNIST", "digits"])
def test_float32_equals_float64_to_rounding(make: Callable[..., Kernel], name: str) -> None:
    """Against torch's float64 results, on a few random images, which have no near-ties of pooling."""
    kernel, exact = make(name, torch.float32), make(name)
    images, weights = images_of(kernel), weights_of(kernel)
    doubles = [tensor.detach().double().requires_grad_() for tensor in (images, *weights)]
    ours = outputs_and_gradients(features(kernel, images, weights), [images, *weights])
    expected = outputs_and_gradients(plain_features(doubles[0], doubles[1:], exact.padding), doubles)
    for own, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(own.double(), other, rtol=0, atol=2e-5 * float(other.abs().max()))


@needs_compiler
def test_vectors_of_every_width_give_the_same_features(make: Callable[..., Kernel]) -> None:
    """Widths with fused multiply-add; gradients have the same terms in another order."""
    by_width = []
    for vectors in [vectors for vectors in vectors_of_cpu() if vectors != "generic"]:
        kernel = make("CIFAR", torch.float32, vectors)
        images, weights = images_of(kernel), weights_of(kernel)
        by_width.append(outputs_and_gradients(features(kernel, images, weights), [images, *weights]))
    for one, other in itertools.pairwise(by_width):
        assert torch.equal(one[0], other[0])
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * float(a.abs().max()))


@needs_compiler
@pytest.mark.parametrize("trained", [("weights",), ("images",), ("weights", "images")], ids=" and ".join)
def test_gradients_that_are_not_needed_change_no_other(make: Callable[..., Kernel], trained: tuple[str, ...]) -> None:
    kernel = make("digits")
    images, weights = images_of(kernel), weights_of(kernel)
    images.requires_grad_("images" in trained)
    for weight in weights:
        weight.requires_grad_("weights" in trained)
    inputs = [tensor for tensor in (images, *weights) if tensor.requires_grad]
    ours = outputs_and_gradients(features(kernel, images, weights), inputs)
    expected = outputs_and_gradients(plain_features(images, weights, kernel.padding), inputs)
    for own, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(own, other, **TIGHT)


@needs_compiler
@pytest.mark.parametrize("name", ["CIFAR", "digits", "four channels, odd sides"])
def test_patches_by_index_equal_gathered_patches(make: Callable[..., Kernel], name: str) -> None:
    kernel = make(name)
    index = torch.tensor([[3, 0, 39, 3], [7, 7, 7, 1], [12, 5, 30, 2]])
    patches, weights = indexed(kernel, index), weights_of(kernel)
    flat = patches.flatten(0, 1)
    ours = outputs_and_gradients(features(kernel, flat, weights), weights)
    expected = outputs_and_gradients(plain_features(flat.gathered, weights, kernel.padding), weights)
    for own, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=1e-11)
    alpha = torch.rand(3, 4, dtype=torch.float64, requires_grad=True)  # does not sum to 1
    for own, other in zip(
        outputs_and_gradients(aggregate(alpha, patches), [alpha]),
        outputs_and_gradients(aggregate(alpha, patches.gathered), [alpha]),
        strict=True,
    ):
        torch.testing.assert_close(own, other, rtol=0, atol=1e-11)


@needs_compiler
def test_of_equal_values_the_first_wins_as_in_torch(make: Callable[..., Kernel]) -> None:
    """Images of blocks of one colour, as in drawings: many of the four values that are pooled are exactly equal."""
    kernel = make("CIFAR")
    blocks = torch.randn(4, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    images = blocks.repeat_interleave(8, 2).repeat_interleave(8, 3).requires_grad_()
    weights = [weight.detach().mul(8).round().div(8).requires_grad_() for weight in weights_of(kernel)]  # exact sums
    ours = outputs_and_gradients(features(kernel, images, weights), [images, *weights])
    expected = outputs_and_gradients(plain_features(images, weights, kernel.padding), [images, *weights])
    for own, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=1e-9)


@needs_compiler
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", ["an image", "a filter", "a bias", "a filter of the second layer"])
def test_values_that_are_not_finite_reach_the_output(make: Callable[..., Kernel], bad: float, where: str) -> None:
    kernel = make("MNIST", torch.float32)  # without a border, whose zeros torch does not multiply
    images, weights = images_of(kernel), weights_of(kernel)
    with torch.no_grad():
        {"an image": images, "a filter": weights[0], "a bias": weights[1]}.get(where, weights[2]).view(-1)[3] = bad
        ours, expected = features(kernel, images, weights), plain_features(images, weights, kernel.padding)
    assert torch.equal(ours.isnan(), expected.isnan())
    assert torch.equal(ours.isinf(), expected.isinf())
    assert (~expected.isfinite()).any() or bad < 0


@needs_compiler
def test_a_gradient_that_is_not_a_number_reaches_the_weights(make: Callable[..., Kernel]) -> None:
    kernel = make("digits", torch.float32)
    images, weights = images_of(kernel), weights_of(kernel)
    (features(kernel, images, weights).sum() * float("nan")).backward()
    assert all(tensor.grad is not None and tensor.grad.isnan().any() for tensor in (images, *weights))


@needs_compiler
@pytest.mark.parametrize("frozen", [0, 1, 3])
def test_gradients_of_gradients_of_some_weights(make: Callable[..., Kernel], frozen: int) -> None:
    kernel = make("digits")
    images, weights = images_of(kernel), weights_of(kernel)
    weights[frozen].requires_grad_(False)
    trained = [weight for weight in weights if weight.requires_grad]

    def penalty(output: Tensor) -> list[Tensor]:
        gradients = torch.autograd.grad(output.square().sum(), trained, create_graph=True)
        return outputs_and_gradients(sum(gradient.square().sum() for gradient in gradients), trained)

    ours = penalty(features(kernel, images, weights))
    for own, other in zip(ours, penalty(plain_features(images, weights, kernel.padding)), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-9)


@needs_compiler
def test_gradients_of_gradients(make: Callable[..., Kernel]) -> None:
    """For example for a penalty on the gradient of the attention weights."""
    kernel = make("digits")
    weights, index = weights_of(kernel), torch.arange(12).view(3, 4)
    alpha = torch.rand(3, 4, dtype=torch.float64, requires_grad=True)

    def penalty(patches: IndexedPatches | Tensor, compute: Callable[[Tensor], Tensor]) -> list[Tensor]:
        logits = compute(aggregate(alpha, patches)).square().sum()
        (gradient,) = torch.autograd.grad(logits, alpha, create_graph=True)
        return outputs_and_gradients(gradient.square().sum(), [alpha, *weights])

    patches = indexed(kernel, index)
    ours = penalty(patches, lambda images: features(kernel, images, weights))
    expected = penalty(patches.gathered, lambda images: plain_features(images, weights, kernel.padding))
    for own, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-10, atol=1e-10)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@needs_compiler
def test_equal_numbers_of_threads_give_equal_bits(make: Callable[..., Kernel], threads: Callable[[int], None]) -> None:
    kernel = make("digits", torch.float32)
    images, weights = images_of(kernel, 70), weights_of(kernel)
    patches = indexed(kernel, torch.randint(40, (60, 4), generator=torch.Generator().manual_seed(0)))
    alpha = torch.rand(60, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()

    def compute(n: int) -> list[Tensor]:
        threads(n)
        return [
            *outputs_and_gradients(features(kernel, images, weights), [images, *weights]),
            *outputs_and_gradients(aggregate(alpha, patches), [alpha]),
        ]

    one, three = compute(1), compute(3)
    assert all(torch.equal(a, b) for a, b in zip(three, compute(3), strict=True))
    for a, b in zip(one, three, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    per_image = (0, 1, 6, 7)  # not sums over images, so threads change nothing
    assert all(torch.equal(one[i], three[i]) for i in per_image)


@needs_compiler
@pytest.mark.parametrize("index", [[0, 40], [-1, 3]])
def test_an_index_outside_the_pool_is_an_error(make: Callable[..., Kernel], index: list[int]) -> None:
    kernel = make("digits")
    with pytest.raises(IndexError, match="pool with 40 patches"):
        features(kernel, indexed(kernel, torch.tensor(index)), weights_of(kernel))


@needs_compiler
def test_no_images(make: Callable[..., Kernel]) -> None:
    kernel = make("digits")
    weights = weights_of(kernel)
    empty = outputs_and_gradients(features(kernel, images_of(kernel, 0), weights), weights)
    assert empty[0].shape == (0, 64)
    assert all((gradient == 0).all() for gradient in empty[1:])


# ---- networks


def fuse(network: ConvNet, folder: str, dtype: torch.dtype = torch.float32) -> ConvNet:
    network.fuse(dtype, vectors_of_cpu()[0], folder)
    return network


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Records the functions of kernels that are called."""
    names: list[str] = []
    call = Kernel.call
    monkeypatch.setattr(Kernel, "call", lambda self, name, *rest: (names.append(name), call(self, name, *rest))[1])
    return names


@needs_compiler
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_a_fused_network_equals_the_same_network(folder: str, memory: torch.memory_format, calls: list[str]) -> None:
    network = ConvNet((3, 32, 32), 3).double().to(memory_format=memory)
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    expected = outputs_and_gradients(network(x), [*network.parameters()])
    ours = outputs_and_gradients(fuse(network, folder, torch.float64)(x), [*network.parameters()])
    assert calls[-2:] == ["convolve", "convolve_backward"]
    for own, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(own, other, **TIGHT)


@needs_compiler
def test_a_pair_equals_the_same_pair(folder: str, calls: list[str]) -> None:
    """Where reads patches by index; the aggregate is computed from pixels; What computes it as floats."""
    pair = WhereWhat(ConvNet((1, 8, 8), 1), ConvNet((1, 8, 8), 3)).double()
    plain = copy.deepcopy(pair)
    assert pair.where is not None
    kernel = fuse(pair.where, folder, torch.float64).kernel
    assert kernel is not None
    fuse(pair.what, folder, torch.float64)
    calls.clear()
    patches = indexed(kernel, torch.arange(12).view(3, 4))
    results = [
        outputs_and_gradients(torch.cat(made(given), 1), [*made.parameters()])
        for made, given in ((pair, patches), (plain, patches.gathered))
    ]
    assert calls[:3] == ["convolve", "aggregate", "convolve"]
    assert calls[3:] == ["convolve_backward", "aggregate_backward", "convolve_backward"]
    for own, other in zip(*results, strict=True):
        torch.testing.assert_close(own, other, **TIGHT)


@needs_compiler
@pytest.mark.parametrize(
    "case", ["other type", "other images", "autocast", "weights of another type", "pruned filters", "no bias"]
)
def test_torch_computes_what_a_kernel_does_not(folder: str, case: str, calls: list[str]) -> None:
    network = fuse(ConvNet((1, 28, 28), 3), folder)
    calls.clear()
    x = torch.randn(2, 1, 28, 28)
    if case == "other type":
        network, x = network.double(), x.double()
    if case == "other images":
        x = torch.randn(2, 1, 29, 29)
    if case == "pruned filters":
        network.conv1, network.conv2 = nn.Conv2d(1, 3, 5), nn.Conv2d(3, 16, 5)
    if case == "no bias":
        network.conv1.bias = None
    if case == "weights of another type":
        network.conv1.double()
        with pytest.raises(RuntimeError, match=r"dtype|type"):  # as without a kernel
            network(x)
    else:
        with torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
            assert network(x).shape == (2, 3)
    assert not calls


@needs_compiler
@pytest.mark.parametrize("change", [{"padding_mode": "circular"}, {"bias": False}, {"stride": 2}, {"dilation": 2}])
def test_other_layers_are_not_fused(folder: str, change: dict[str, Any]) -> None:
    network = ConvNet((1, 28, 28), 3)
    network.conv1 = nn.Conv2d(1, 6, 5, **change)
    with pytest.raises(UnavailableError, match="replaced"):
        fuse(network, folder)
    assert network.kernel is None


@needs_compiler
def test_attention_weights_of_another_type_or_shape_are_refused(make: Callable[..., Kernel]) -> None:
    patches = indexed(make("digits"), torch.arange(12).view(3, 4))
    for alpha in (torch.ones(3, 4), torch.ones(3, 5, dtype=torch.float64)):
        with pytest.raises(ValueError, match="attention weights of shape"):
            patches.aggregate(alpha)


@needs_compiler
def test_indexes_of_another_type(make: Callable[..., Kernel]) -> None:
    kernel, index = make("digits"), torch.tensor([3, 0, 39])
    weights = weights_of(kernel)
    expected = features(kernel, indexed(kernel, index), weights)
    assert torch.equal(features(kernel, indexed(kernel, index.to(torch.int32)), weights), expected)


@needs_compiler
def test_hooks_are_called(folder: str) -> None:
    """A hook of a layer needs the layer's own output; a hook of the where network needs its patches as a tensor."""
    where = fuse(ConvNet((1, 8, 8), 1), folder)
    pair = WhereWhat(where, ConvNet((1, 8, 8), 3))
    assert where.kernel is not None
    patches = indexed(where.kernel, torch.arange(12).view(3, 4))
    seen: list[tuple[int, ...]] = []
    for module in (where, where.conv2):
        expected = pair(patches)[1]
        handle = module.register_forward_hook(lambda _, inputs, output: seen.append(tuple(inputs[0].shape)))
        torch.testing.assert_close(pair(patches)[1], expected)
        handle.remove()
    assert seen == [(12, 1, 8, 8), (12, 6, 4, 4)]


@needs_compiler
def test_another_where_network_gets_a_tensor(folder: str) -> None:
    what = fuse(ConvNet((1, 8, 8), 3), folder)
    assert what.kernel is not None
    patches = indexed(what.kernel, torch.arange(12).view(3, 4))
    pair = WhereWhat(nn.Sequential(nn.Flatten(), nn.Linear(64, 1)), what)
    torch.testing.assert_close(pair(patches)[0], pair(patches.gathered)[0])


@needs_compiler
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))])
def test_copies_compute_the_same(folder: str, duplicate: Callable[[ConvNet], ConvNet], calls: list[str]) -> None:
    network = fuse(ConvNet((1, 8, 8), 3), folder)
    x = torch.randn(4, 1, 8, 8)
    assert torch.equal(duplicate(network)(x), network(x))
    assert calls[-2:] == ["convolve", "convolve"]


# ---- compilers


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Kernel:
    """A kernel that is not compiled yet."""
    monkeypatch.setattr(kernels, "_library", kernels._library.__wrapped__)
    image, filters, side, padding = SHAPES["smallest"]
    return Kernel(image, filters, side, padding, torch.float32, "generic", str(tmp_path / "own"))


@needs_compiler
def test_a_kernel_is_compiled_once(fresh: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    check(fresh)
    assert [path.suffix for path in Path(fresh.folder).iterdir()] == [".so"]
    monkeypatch.setenv("CC", "no_such_compiler")  # as on another machine that shares the folder
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("compiled again"))
    check(fresh)


@needs_compiler
def test_a_damaged_file_is_compiled_again(fresh: Kernel) -> None:
    fresh.path.parent.mkdir()
    fresh.path.write_bytes(b"")
    check(fresh)
    assert fresh.path.stat().st_size > 0


@needs_compiler
def test_a_damaged_file_that_cannot_be_replaced(fresh: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh.path.parent.mkdir()
    fresh.path.write_bytes(b"")

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(UnavailableError, match="Permission denied"):
        check(fresh)


@needs_compiler
def test_a_kernel_of_a_wider_cpu_is_refused(fresh: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a kernel can be in a network that was pickled on another machine."""
    monkeypatch.setattr(kernels, "vectors_of_cpu", lambda: ("narrow",))
    with pytest.raises(UnavailableError, match="does not have generic"):
        check(fresh)


@needs_compiler
def test_another_source_is_compiled_anew(fresh: Kernel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    check(fresh)
    changed = tmp_path / "changed.c"
    changed.write_text(kernels.SOURCE.read_text() + "/* changed */\n")
    monkeypatch.setattr(kernels, "SOURCE", changed)
    check(fresh)
    assert len([*Path(fresh.folder).iterdir()]) == 2


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [("no_such_compiler", "no C compiler found, tried no_such_compiler; install gcc"),
     ("false", "false failed: exit status 1"), ("'unbalanced", "CC: "),
     pytest.param("cc --no-such-option", "failed: .*no-such-option", marks=needs_compiler)],
)  # fmt: skip
def test_a_compiler_that_fails(fresh: Kernel, monkeypatch: pytest.MonkeyPatch, compiler: str, reason: str) -> None:
    monkeypatch.setenv("CC", compiler)
    with pytest.raises(UnavailableError, match=reason):
        check(fresh)


@needs_compiler
def test_a_folder_that_cannot_be_written_to(fresh: Kernel, tmp_path: Path) -> None:
    (tmp_path / "own").write_text("a file")
    with pytest.raises(UnavailableError, match="own: "):
        check(fresh)


@needs_compiler
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("2 * i + y + (p >> 1)", "2 * i + y"),
        ("= m[l]", "= 0 / m[l]"),
        ("s->g[n] = g[i * g_line + j * g_step]", "s->g[n] = 0"),
        ("total = -constant", "total = constant"),
    ],
    ids=["a row", "NaN", "no gradient", "gradient of an aggregate"],
)
def test_wrong_results_are_noticed(
    fresh: Kernel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, right: str, wrong: str
) -> None:
    """As of a faulty compiler."""
    source = kernels.SOURCE.read_text()
    assert source.count(right) == 1
    (tmp_path / "wrong.c").write_text(source.replace(right, wrong))
    for module in (kernels, fused):
        monkeypatch.setattr(module, "SOURCE", tmp_path / "wrong.c")
    with pytest.raises(UnavailableError, match=r"wrong\.c was compiled to wrong results"):
        check(fresh)


def test_vectors_of_other_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    for capability, expected in {
        "AVX512": ("avx512", "avx2", "generic"), "AVX2": ("avx2", "generic"), "DEFAULT": ("generic",),
        "SVE256": ("generic",), "AMX": ("generic",),
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda name=capability: name)
        assert vectors_of_cpu() == expected
