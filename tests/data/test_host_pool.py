"""Pools in main memory: they give the same patches as pools on the device; where pools are placed."""

import pytest
import torch

from attnmosaic.data.pool import HostPool, Pool, place_pools

CPU = torch.device("cpu")


def image_pool(n: int = 40) -> Pool:
    pixels = torch.randint(256, (n, 4, 4, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Pool(pixels, torch.arange(n) % 4, tuple("abcd"), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


@pytest.mark.parametrize("points", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_host_pool_gives_the_same_patches(points: bool, dtype: torch.dtype) -> None:
    pool = Pool(torch.randn(30, 2, dtype=torch.float64), torch.arange(30) % 3, tuple("abc")) if points else image_pool()
    (on_device,), (host,) = (place_pools([pool], CPU, dtype, where) for where in ("device", "host"))
    assert isinstance(host, HostPool)
    for index in (torch.tensor(7), torch.randint(30, (25, 7)), torch.arange(0)):
        assert torch.equal(host.gather(index, dtype), on_device.gather(index, dtype))
    host.gather(torch.arange(4), dtype).mul_(3)
    assert torch.equal(host.patches, on_device.patches)


@pytest.mark.parametrize(("free", "where"), [(5_000, "host"), (7_679, "host"), (7_680, "device")])
def test_pools_are_on_a_gpu_if_they_need_at_most_half_of_its_free_memory(
    free: int, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two pools of 40 images need 3,840 bytes."""
    devices: list[str] = []

    class RecordedPool(Pool):
        def to(self, device: torch.device, dtype: torch.dtype) -> Pool:
            devices.append(device.type)
            return Pool(self.patches, self.labels, self.classes)

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**9))
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *_, **__: tensor)
    pool = image_pool()
    pools = [RecordedPool(pool.patches, pool.labels, pool.classes) for _ in range(2)]
    placed = place_pools(pools, torch.device("cuda"), torch.float32, "auto")
    assert devices == (["cpu"] * 2 if where == "host" else ["cuda"] * 2)
    assert all(isinstance(pool, HostPool) == (where == "host") for pool in placed)
    devices.clear()
    place_pools(pools, torch.device("cuda"), torch.float32, "device")
    place_pools(pools, CPU, torch.float32, "auto")
    assert devices == ["cuda"] * 2 + ["cpu"] * 2
