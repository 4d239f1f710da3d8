"""Which handles stand, and that each ends once."""

import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vosfs import standing
from vosfs.standing import LENGTH_MAX, StandingHandles


class Carrier:
    """What the library does, told by hand: programs that open a file again and close it."""

    def __init__(self) -> None:
        self.released: list[int] = []
        self.standing: dict[int, int] = {}
        self._opens: dict[int, int] = {}
        self._withdrawn: set[int] = set()
        self._next = 1
        self.handles = StandingHandles(self.released.append)
        self.handles.stand, self.handles.withdraw = self._stand, self._withdraw

    def _stand(self, id: int, handle: int) -> bool:
        assert id not in self.standing
        self.standing[id] = handle
        return True

    def _withdraw(self, id: int, handle: int) -> bool:
        assert self.standing.pop(id) == handle
        self._withdrawn.add(handle)
        return not self._opens.get(handle)

    def open(self, id: int, length: int = 10, **other: object) -> int:
        """A program opens a file to read it."""
        handle = self.standing.get(id, 0)
        if not handle:
            handle, self._next = self._next, self._next + 1
            state = {"handles": 1, "changed": False, "fresh": True, "has_local": False, "scratch_file": False, **other}
            file = types.SimpleNamespace(node=types.SimpleNamespace(id=id), length=length, **state)
            self._opens[handle] = 1
            self.handles.offer(file, handle)  # type: ignore[arg-type]  # what is asked of a file
        else:
            self._opens[handle] += 1
        return handle

    def close(self, handle: int) -> None:
        """And closes it; the last release of one that does not stand comes to Python."""
        self._opens[handle] -= 1
        if not self._opens[handle] and handle not in self.standing.values():
            assert handle in self._withdrawn or handle not in self.released
            self.released.append(handle)

    def open_handles(self) -> list[int]:
        return [handle for handle, opens in self._opens.items() if opens]


@pytest.mark.parametrize(
    ("why", "other"),
    [
        ("somebody else has it open", {"handles": 2}),
        ("it is not saved", {"changed": True}),
        ("it changed elsewhere", {"fresh": False}),
        ("it is long", {"length": LENGTH_MAX + 1}),
        ("its bytes are in memory for as long as it is open", {"has_local": True}),
    ],
)
def test_some_do_not_stand(why: str, other: dict[str, object]) -> None:
    carrier = Carrier()
    carrier.open(1, **other)  # type: ignore[arg-type]
    assert not carrier.standing, why


def test_one_in_a_scratch_file_stands() -> None:
    carrier = Carrier()
    carrier.open(1, LENGTH_MAX, has_local=True, scratch_file=True)
    assert list(carrier.standing) == [1]


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["open", "open", "open", "close", "end", "end all"]), st.integers(1, 9), st.integers(0, 400)
    ),
    max_size=60,
)


@given(STEPS)
def test_every_handle_ends_once_and_the_limits_hold(steps: list[tuple[str, int, int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(standing, "STANDING_MAX", 4)
        patch.setattr(standing, "STANDING_BYTES_MAX", 1000)
        carrier, lengths = Carrier(), dict[int, int]()
        for step, number, length in steps:
            if step == "open":
                if number not in carrier.standing:
                    lengths[number] = length
                carrier.open(number, length)
            elif step == "close" and (opened := carrier.open_handles()):
                carrier.close(opened[number % len(opened)])
            elif step == "end":
                carrier.handles.end(number)
                assert number not in carrier.standing
            elif step == "end all":
                carrier.handles.end_all()
            assert len(carrier.standing) <= 4 and sum(lengths[id] for id in carrier.standing) <= 1000
        for handle in carrier.open_handles():
            while handle in carrier.open_handles():
                carrier.close(handle)
        carrier.handles.end_all()
        assert sorted(carrier.released) == list(range(1, carrier._next))
