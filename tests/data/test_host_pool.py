"""A pool that stays in main memory: the same numbers, sent ahead, and never much of it at once."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.fake_device import Device
from omegaconf import DictConfig
from torch import Tensor

from attnmosaic.core.errors import UserError
from attnmosaic.data import host_pool
from attnmosaic.data.host_pool import Ahead, HostPool, placed
from attnmosaic.data.pool import Pool

Config = Callable[..., DictConfig]
CPU = torch.device("cpu")


def image_pool(n: int = 40) -> Pool:
    pixels = torch.randint(256, (n, 4, 4, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Pool(pixels, torch.arange(n) % 4, tuple("abcd"), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


@pytest.mark.parametrize("points", [False, True])
def test_the_same_patches_announced_or_not(points: bool) -> None:
    pool = Pool(torch.randn(30, 2, dtype=torch.float64), torch.arange(30) % 3, tuple("abc")) if points else image_pool()
    near, (host,) = pool.to(CPU, torch.float32), placed([pool], CPU, torch.float32, "host")
    table = torch.randint(len(pool), (25, 7), generator=torch.Generator().manual_seed(1))
    rows = torch.randperm(25, generator=torch.Generator().manual_seed(2))
    parts = rows.split(6)
    with host.ahead(parts, table):
        for part in parts:
            for piece in part.chunk(2):
                assert torch.equal(
                    host.gather_rows(table, piece, torch.float32), near.gather(table[piece], torch.float32)
                )
        behind = host.gather_rows(table, parts[0], torch.float32)  # long gone
    assert torch.equal(behind, near.gather(table[parts[0]], torch.float32))
    assert torch.equal(host.gather(table, torch.float32), near.gather(table, torch.float32))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("patches")]


def test_what_was_announced_is_not_taken_for_something_else(device: Device) -> None:
    """Tensors that hold the same numbers, or lie beside a part, are no part of it."""
    (host,) = placed([image_pool()], CPU, torch.float32, "host")
    near = image_pool()
    every = torch.arange(40)
    parts = every[:30].split(10)
    with host.ahead(parts):
        for asked in (torch.arange(10), every[5:15], every[:20:2], every[28:33], every.flip(0)[:10]):
            assert torch.equal(host.gather(asked, torch.float32), near.gather(asked, torch.float32))
        assert device.events.count(("received", 0)) == 0, "nothing of it was a part"
        assert torch.equal(host.gather(every[10:20], torch.float32), near.gather(every[10:20], torch.float32))
        assert torch.equal(host.gather(every[12:14], torch.float32), near.gather(every[12:14], torch.float32))


def test_the_next_part_is_sent_while_one_is_used() -> None:
    """Before a part has been used, the next one is on its way, and no further one."""
    device, table, rows = Device(), torch.arange(100).view(50, 2), torch.arange(50)
    arrived = [threading.Event() for _ in range(5)]
    send = device.send

    def telling(*given: Any) -> Any:
        sent = send(*given)
        arrived[sent[0]].set()
        return sent

    device.send = telling  # type: ignore[method-assign]
    parts = rows.split(10)
    coming = Ahead(table, parts, lambda part: part, 1, device)
    try:
        for number, part in enumerate(parts):
            patches = coming.take(part)
            assert torch.equal(patches, table[part])
            if number < 4:
                assert arrived[number + 1].wait(timeout=60), "nobody asks for it before this"
            assert device.sent == min(number + 2, 5)
            assert coming.take(part[3:5]) is not None
            assert device.sent == min(number + 2, 5), "slices of a part are there with it"
    finally:
        coming.close()
    assert [event for event in device.events if event[0] == "received"] == [("received", n) for n in range(5)]


def test_the_device_is_through_with_a_part_before_another_is_sent() -> None:
    """Each part but the first waits for a mark that was set after all that used the part two before it."""
    seen: list[tuple[int, int | None]] = []

    class Marked(Device):
        def send(self, table: Tensor, index: Callable[[], Tensor], made: int, used: int | None) -> tuple[int, Tensor]:
            seen.append((self.sent, used))
            return super().send(table, index, made, used)

    device, rows = Marked(), torch.arange(50)
    coming = Ahead(torch.arange(50), rows.split(10), lambda part: part, 1, device)
    for part in rows.split(10):
        coming.take(part)
    coming.close()
    # Received so far, when the mark was set: all parts up to the one two before.
    assert seen == [(0, 0), (1, 0), (2, 1), (3, 2), (4, 3)]


def test_an_error_on_the_way_is_told(device: Device) -> None:
    (host,) = placed([image_pool()], CPU, torch.float32, "host")
    rows = torch.tensor([1, 2, 99])
    with pytest.raises(IndexError), host.ahead([rows]):
        host.gather(rows, torch.float32)
    assert not host._announced
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("patches")]


@pytest.mark.parametrize(("free", "where"), [(5_000, "host"), (7_679, "host"), (7_680, "device")])
def test_where_a_pool_is_put(free: int, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU if all pools take at most half of what is free: two pools of 40 images are 3,840 bytes."""
    put: list[str] = []

    class There(Pool):
        def to(self, device: torch.device, dtype: torch.dtype) -> "Pool":
            put.append(device.type)
            return Pool(self.patches, self.labels, self.classes)

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**9))
    monkeypatch.setattr(host_pool, "carrier", lambda device: Device())
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *_, **__: tensor)
    one = image_pool()
    pools = [There(one.patches, one.labels, one.classes) for _ in range(2)]
    kept = placed(pools, torch.device("cuda"), torch.float32, "auto")
    assert put == (["cpu"] * 2 if where == "host" else ["cuda"] * 2)
    assert all(isinstance(pool, HostPool) == (where == "host") for pool in kept)
    put.clear()
    placed(pools, torch.device("cuda"), torch.float32, "device")
    assert put == ["cuda"] * 2
    put.clear()
    placed(pools, CPU, torch.float32, "auto")
    assert put == ["cpu"] * 2, "a CPU's pool lies there anyway"


def test_a_slip(config: Config) -> None:
    from attnmosaic.config.validation import check

    with pytest.raises(UserError, match=r"compute\.pool.*got 'disk'.*auto.*device.*host"):
        check(config("compute.pool=disk"))
