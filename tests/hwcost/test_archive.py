import numpy as np
import pytest
from safetensors.numpy import save

from hwcost.archive import pack, unpack


def test_arrays_of_any_shape_and_the_head_come_back_and_equal_content_gives_equal_bytes() -> None:
    arrays = {"b": np.float32(3.5).reshape(()), "a": np.arange(6).reshape(2, 3).T, "none": np.zeros((0, 4))}
    data = pack('{"x": 1}', arrays)
    assert data == pack('{"x": 1}', dict(reversed(arrays.items())))
    head, found = unpack(data)
    assert head == '{"x": 1}'
    assert all(
        np.array_equal(found[name], value) and found[name].shape == value.shape for name, value in arrays.items()
    )


@pytest.mark.parametrize("damage", [b"", b"\x00" * 8, b"\xff" * 40, b"\x02\x00\x00\x00\x00\x00\x00\x00{}"])
def test_what_was_not_packed_is_refused(damage: bytes) -> None:
    with pytest.raises(ValueError, match="a safetensors document"):
        unpack(damage)
    with pytest.raises(ValueError, match="not a safetensors document"):
        unpack(pack("head", {"a": np.ones(3)})[:-2])


def test_a_flipped_bit_is_noticed_wherever_it_is() -> None:
    data = pack("head", {"a": np.linspace(0, 1, 7, dtype=np.float32)})
    for index in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[index // 8] ^= 1 << index % 8
        with pytest.raises(ValueError, match="a safetensors document"):
            unpack(bytes(damaged))


def test_a_document_of_the_library_that_was_not_packed_here_is_refused() -> None:
    with pytest.raises(ValueError, match="damaged, or that something else wrote"):
        unpack(save({"a": np.ones(3)}, metadata={"head": "head"}))
