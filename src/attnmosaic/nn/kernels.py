"""Compiles `fused.c` for one shape of images and filters, loads it with ctypes, and calls its functions."""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.autograd.profiler import record_function

SOURCE = Path(__file__).with_name("fused.c")
FLAGS = ("-O3", "-std=gnu11", "-ffp-contract=fast", "-fPIC", "-shared")
"""Without ``-ffast-math``: a value that is not a number must reach the loss."""

VECTORS: dict[str, tuple[int, tuple[str, ...]]] = {
    "avx512": (64, ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mprefer-vector-width=512")),
    "avx2": (32, ("-mavx2", "-mfma")),
    "generic": (16, ()),
}
"""Bytes of a vector and flags of the compiler, widest first."""

_POINTER, _INT = ctypes.c_void_p, ctypes.c_int64
_ARGUMENTS = {
    "convolve": [_POINTER] * 2 + [_INT] + [_POINTER] * 8,
    "convolve_backward": [_POINTER] * 2 + [_INT] + [_POINTER] * 11,
    "aggregate": [_POINTER] * 2 + [_INT] * 2 + [_POINTER] * 2,
    "aggregate_backward": [_POINTER] * 2 + [_INT] * 2 + [_POINTER] * 2,
}
"""Types of the arguments of each function of `fused.c`."""


class UnavailableError(Exception):
    """A kernel cannot be compiled or loaded, or is wrong; the message has the reason in one line."""


def compiler() -> list[str]:
    """Returns the command of the C compiler: ``CC``, or the first of cc, gcc and clang.

    Raises:
        UnavailableError: there is none.
    """
    try:
        named = shlex.split(os.environ.get("CC", ""))  # can have arguments, as in "ccache gcc"
    except ValueError as error:
        raise UnavailableError(f"CC: {error}") from error
    path = next(filter(None, map(shutil.which, named[:1] or ("cc", "gcc", "clang"))), None)
    if path is None:
        tried = named[0] if named else "cc, gcc, clang"
        raise UnavailableError(f"no C compiler found, tried {tried}; install gcc or clang")
    return [path, *named[1:]]


def vectors_of_cpu() -> tuple[str, ...]:
    """Returns the keys of `VECTORS` that this CPU has, widest first.

    Torch's ``ATEN_CPU_CAPABILITY`` limits them.
    """
    names = tuple(VECTORS)
    capability = torch.backends.cpu.get_cpu_capability().lower()
    return names[names.index(capability) :] if capability in names else ("generic",)


class _Pointers(ctypes.Structure):
    """The struct ``images`` of `fused.c`."""

    _fields_ = [(name, _POINTER) for name in ("table", "rows", "factor", "offset")]


@dataclass(frozen=True, eq=False)
class Images:
    """Images that a kernel reads: scaled images, or rows of a table of pixels.

    Attributes:
        table: scaled images, ``[n, H, W, C]``, or pixels, uint8 ``[U, H, W, C]``; contiguous.
        rows: rows of the pixels; None for scaled images.
        factor: factor of each channel; a pixel is scaled to ``pixel * factor - offset``.
        offset: offset of each channel.
    """

    table: Float[Tensor, "n H W C"] | UInt8[Tensor, "U H W C"]
    rows: Int64[Tensor, " n"] | None = None
    factor: Float[Tensor, " C"] | None = None
    offset: Float[Tensor, " C"] | None = None

    def __len__(self) -> int:
        return len(self.table if self.rows is None else self.rows)

    def part(self, part: slice) -> "Images":
        """Returns some of the images."""
        return Images(self.table[part]) if self.rows is None else replace(self, rows=self.rows[part])


@dataclass(frozen=True)
class Kernel:
    """Two convolutions, each followed by 2 x 2 max pooling and ReLU, compiled for one shape of images and filters.

    Attributes:
        image: ``(C, H, W)`` of an image.
        filters: numbers of filters of the two convolutions.
        side: side of the filters, K.
        padding: zeros around the input of each convolution.
        dtype: torch.float32 or torch.float64.
        vectors: key of `VECTORS`.
        folder: folder of compiled kernels.
    """

    image: tuple[int, int, int]
    filters: tuple[int, int]
    side: int
    padding: int
    dtype: torch.dtype
    vectors: str
    folder: str

    @property
    def maps(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Height and width of the pooled output of each convolution."""
        border = 2 * self.padding - self.side + 1
        first = (self.image[1] + border) // 2, (self.image[2] + border) // 2
        return first, ((first[0] + border) // 2, (first[1] + border) // 2)

    @property
    def defines(self) -> dict[str, int | str]:
        """The parameters of `fused.c`, by name."""
        width, _ = VECTORS[self.vectors]
        lanes, fewest = width // self.dtype.itemsize, 16 // self.dtype.itemsize
        while lanes > fewest and lanes // 2 >= self.maps[0][1]:
            lanes //= 2  # a small image has fewer columns than a vector has lanes
        real, lane = ("float", "int32_t") if self.dtype == torch.float32 else ("double", "int64_t")
        names = ("C", "H", "W", "F1", "F2", "K", "PAD", "WIDTH", "COLUMNS", "REAL", "LANE")
        values = (*self.image, *self.filters, self.side, self.padding, width, lanes, real, lane)
        return dict(zip(names, values, strict=True))

    @property
    def arguments(self) -> list[str]:
        """The compiler's arguments, without input and output."""
        return [*FLAGS, *VECTORS[self.vectors][1], *(f"-D{name}={value}" for name, value in self.defines.items())]

    @property
    def weight_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of filters and biases of both convolutions, as torch has them."""
        (first, second), side = self.filters, self.side
        return [(first, self.image[0], side, side), (first,), (second, first, side, side), (second,)]

    @property
    def path(self) -> Path:
        """Path of the compiled kernel, which has its own name for each source, shape, width and system."""
        system = [*self.arguments, platform.machine(), platform.system()]
        key = hashlib.sha256("\0".join(system).encode() + SOURCE.read_bytes()).hexdigest()
        return Path(self.folder).expanduser() / f"fused-{self.vectors}-{key[:16]}.so"

    def compile(self) -> Path:
        """Returns the path of the compiled kernel; compiles it if it is not in the folder, in a second or two.

        Raises:
            UnavailableError: there is no C compiler, it fails, or the folder cannot be written to.
        """
        path = self.path
        try:
            if path.exists():  # compiled before, perhaps on another machine that has a compiler
                return path
            command = [*compiler(), *self.arguments, str(SOURCE), "-o"]
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                built = Path(folder, path.name)
                subprocess.run([*command, str(built)], check=True, capture_output=True, text=True, errors="replace")
                built.replace(path)  # in one step, because other processes can compile and load it at the same time
        except subprocess.CalledProcessError as error:
            reason = next(iter(error.stderr.splitlines()), f"exit status {error.returncode}")
            raise UnavailableError(f"{command[0]} failed: {reason}") from error
        except OSError as error:
            raise UnavailableError(f"{path.parent}: {error.strerror}") from error
        return path

    def call(self, function: str, images: Images, *arguments: Tensor | int | None) -> None:
        """Calls a function of `fused.c` on images, with pointers to the values of the tensors."""
        library = _library(self)
        tensors = (images.table, images.rows, images.factor, images.offset)
        pointers = _Pointers(*(None if tensor is None else tensor.data_ptr() for tensor in tensors))
        space = torch.empty(library.space_bytes(), dtype=torch.uint8)
        values = (value.data_ptr() if isinstance(value, Tensor) else value for value in arguments)
        with record_function(f"fused::{function}"):  # a profiler of torch sees its own functions only
            getattr(library, function)(space.data_ptr(), ctypes.addressof(pointers), *values)


@functools.cache
def _library(kernel: Kernel) -> ctypes.CDLL:
    """Loads a kernel.

    Raises:
        UnavailableError: it cannot be compiled or loaded.
    """
    if kernel.vectors not in vectors_of_cpu():
        raise UnavailableError(f"this CPU does not have {kernel.vectors}")
    try:
        library = ctypes.CDLL(str(kernel.compile()))
    except OSError:
        try:
            kernel.path.unlink(missing_ok=True)  # a damaged file: compile it once more
            library = ctypes.CDLL(str(kernel.compile()))
        except OSError as error:
            raise UnavailableError(str(error)) from error
    library.space_bytes.restype = ctypes.c_size_t
    for name, arguments in _ARGUMENTS.items():
        getattr(library, name).argtypes, getattr(library, name).restype = arguments, None
    return library
