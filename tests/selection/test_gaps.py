import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_bayestune.selection.gaps import decode_gaps, encode_gaps

flat_indices = st.lists(
    st.one_of(
        st.integers(0, 300),
        st.integers(0, 70_000),
        st.integers(0, 2**33),
        # At the escapes of each width and beside them.
        st.sampled_from([254, 255, 256, 509, 510, 511, 65_534, 65_535, 65_536]),
    ),
    unique=True,
).map(sorted)


@given(flat_indices)
def test_round_trip(indices):
    codes, width = encode_gaps(np.array(indices, "int64"))
    assert decode_gaps(codes, width).tolist() == indices


@pytest.mark.parametrize(
    ("indices", "codes", "width"),
    [
        ([], [], 1),
        ([0], [0], 1),
        ([0, 1, 2], [0, 0, 0], 1),
        ([254], [254], 1),
        ([255], [255, 0], 1),
        ([256], [255, 1], 1),
        ([1, 511], [1, 255, 254], 1),
        ([765], [0xFD, 0x02], 2),
        ([65_534], [0xFE, 0xFF], 2),
        ([65_535], [0xFF, 0xFF, 0x00, 0x00], 2),
        ([200_000], [0x40, 0x0D, 0x03, 0x00], 4),
    ],
)
def test_known_codes(indices, codes, width):
    assert encode_gaps(np.array(indices, "int64")) == (bytes(codes), width)


def test_beyond_four_bytes():
    indices = np.array([2**32 - 1, 2**32, 2**34])
    codes, width = encode_gaps(indices)
    assert decode_gaps(codes, width).tolist() == indices.tolist()


@pytest.mark.parametrize(
    ("fraction", "most"), [(0.5, 1.01), (0.05, 1.01), (0.005, 1.45), (0.0005, 2.01)]
)
def test_bytes_per_position(fraction, most):
    rng = np.random.default_rng(0)
    indices = np.flatnonzero(rng.random(2_000_000) < fraction)
    codes, _ = encode_gaps(indices)
    assert len(codes) / len(indices) <= most


@given(st.binary(max_size=64), st.sampled_from([1, 2, 4]))
def test_any_bytes_give_sorted_positions_or_an_error(codes, width):
    try:
        indices = decode_gaps(codes, width)
    except ValueError:
        return
    assert len(indices) <= len(codes) // width
    assert (np.diff(indices) > 0).all()
    assert len(indices) == 0 or indices[0] >= 0


@pytest.mark.parametrize(
    ("codes", "width", "message"),
    [
        (b"\xff", 1, "end within an escape"),
        (b"\x00\x00\xff\xff", 2, "end within an escape"),
        (b"\x00\x00\x00", 2, "3 bytes are not a whole number of 2-byte"),
        (b"", 3, "must be 1, 2 or 4, not 3"),
        (b"", "1", "must be 1, 2 or 4, not '1'"),
        (b"", [], "must be 1, 2 or 4"),
        (b"", True, "must be 1, 2 or 4, not True"),
    ],
)
def test_bad_codes(codes, width, message):
    with pytest.raises(ValueError, match=message):
        decode_gaps(codes, width)
