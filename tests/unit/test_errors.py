"""The error tree is complete: every class has a fault, a status and an errno, and a name that finds it."""

import errno

import pytest

from vosfs import errors
from vosfs.errors import BY_FAULT, BY_NAME, DuplicateNode, InternalFault, NodeNotFound, VOSpaceError, mapped

CLASSES = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, VOSpaceError)]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_every_class_says_what_an_edge_needs(cls: type[VOSpaceError]) -> None:
    assert 400 <= cls.status < 600 and cls.errno in errno.errorcode and cls.fault.isidentifier()
    assert BY_NAME[cls.__name__] is cls
    assert str(cls("vos://a/b is gone")) == "vos://a/b is gone"


def test_a_fault_finds_a_class_of_that_fault() -> None:
    assert {cls.fault for cls in CLASSES} == set(BY_FAULT)
    assert all(cls.fault == fault for fault, cls in BY_FAULT.items())
    assert BY_FAULT["NodeNotFound"] is NodeNotFound and BY_FAULT["DuplicateNode"] is DuplicateNode


def test_mapped_keeps_the_cause() -> None:
    with pytest.raises(NodeNotFound) as caught, mapped({KeyError: NodeNotFound}, "vos://a/b"):
        raise KeyError("x")
    assert isinstance(caught.value.__cause__, KeyError)
    assert str(caught.value) == "vos://a/b: 'x'"


def test_mapped_takes_the_first_that_fits() -> None:
    table: dict[type[Exception], type[VOSpaceError]] = {FileExistsError: DuplicateNode, OSError: InternalFault}
    with pytest.raises(DuplicateNode, match="^there$"), mapped(table):
        raise FileExistsError("there")
    with pytest.raises(InternalFault), mapped(table):
        raise PermissionError("no")


def test_mapped_leaves_the_rest() -> None:
    with pytest.raises(ValueError, match="^as it was$"), mapped({KeyError: NodeNotFound}):
        raise ValueError("as it was")
    with mapped({KeyError: NodeNotFound}):
        pass
