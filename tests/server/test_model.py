"""Several clients at once, over HTTP: nothing is lost, nothing is twice, and every answer is one a model could give.

Each example is a trace for each of a few clients, which run at the same time and use three places:

* a container of their own, where every answer and the tree at the end must be exactly the model's;
* a shared tree, where afterwards every node that was made is there once, whoever moved it where;
* one flat container in which they race for three names: there must be an order of all operations, in which each lies
  between its request and its answer, that explains every answer (linearizability).
"""

import contextlib
import copy
import itertools
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lxml import etree

from tests.conftest import Daemon, start_daemon
from tests.server.support import (
    ROOT,
    Answer,
    Raw,
    Shown,
    assert_sound,
    create,
    log_text,
    node_document,
    shown,
    transfer_document,
)

CLIENTS = 4
STEPS_MAX = 12
WITH_COPIES = True
PAGE = 2
"""Children per page of a listing: pages are where things get lost."""
JOB_S_MAX = 20
ACTIVE = ("PENDING", "QUEUED", "EXECUTING")
Path_ = tuple[str, ...]
Step = tuple[Any, ...]
"""(place, operation, arguments...)"""


# -- the model -----------------------------------------------------------------------------------------------------

GONE = frozenset({"NodeNotFound", "ContainerNotFound"})
LINKED = frozenset({"LinkFound", "InvalidURI"})
"""The only links here lead out of the space: where one stands in the way, nothing can be done."""
TAKEN = frozenset({"DuplicateNode"})
WRONG_KIND = frozenset({"InvalidArgument"})
INTO_ITSELF = frozenset({"InvalidURI"})
NONE: frozenset[str] = frozenset()


@dataclass
class Item:
    """A node of the model."""

    kind: str
    tag: str = ""
    title: str = ""
    data: bytes = b""
    children: dict[str, "Item"] = field(default_factory=dict)

    def tags(self) -> Counter[str]:
        """Of this node and all below it."""
        found = Counter([self.tag] if self.tag else [])
        for child in self.children.values():
            found += child.tags()
        return found


class Model:
    """A tree that one client changes: what each operation must answer, and what it does."""

    def __init__(self) -> None:
        self.top = Item("container")

    def at(self, path: Path_) -> Item | None:
        """The node at a path."""
        item: Item | None = self.top
        for name in path:
            item = item.children.get(name) if item else None
        return item

    def barred(self, path: Path_) -> frozenset[str]:
        """The faults of which one must come because of an ancestor; none if all are containers."""
        item = self.top
        for name in path[:-1]:
            child = item.children.get(name)
            if child is None or child.kind == "data":
                return GONE
            if child.kind == "link":
                return LINKED
            item = child
        return NONE

    def missing(self, path: Path_) -> frozenset[str]:
        """The same, also if there is no node at its end."""
        return self.barred(path) or (NONE if self.at(path) else GONE)

    def put_at(self, path: Path_, item: Item) -> None:
        """Add a node."""
        parent = self.at(path[:-1])
        assert parent is not None
        parent.children[path[-1]] = item

    def take(self, path: Path_) -> Item:
        """Remove a node."""
        parent = self.at(path[:-1])
        assert parent is not None
        return parent.children.pop(path[-1])

    def destination(self, source: Path_, target: Path_) -> tuple[Path_, frozenset[str]]:
        """Where a moved or copied node goes, and why not."""
        there = self.at(target)
        if there is not None and there.kind != "container":
            return target, TAKEN | LINKED if there.kind == "link" else TAKEN
        if there is not None:
            target = (*target, source[-1])
        faults = self.barred(target)
        if self.at(target):
            faults |= TAKEN
        if target[: len(source)] == source:
            faults |= INTO_ITSELF
        return target, faults

    # Operations: the faults of which one must come, and otherwise the value.

    def create(self, path: Path_, kind: str, tag: str) -> tuple[frozenset[str], Any]:
        faults = self.barred(path) or (TAKEN if self.at(path) else NONE)
        if not faults:
            self.put_at(path, Item(kind, tag))
        return faults, None

    def move(self, source: Path_, target: Path_) -> tuple[frozenset[str], Any]:
        final, faults = self.destination(source, target)
        faults |= self.missing(source)
        if not faults:
            self.put_at(final, self.take(source))
        return faults, None

    def copy(self, source: Path_, target: Path_) -> tuple[frozenset[str], Any]:
        final, faults = self.destination(source, target)
        faults |= self.missing(source)
        if not faults:
            self.put_at(final, copy.deepcopy(self.at(source)))  # type: ignore[arg-type]
        return faults, None

    def delete(self, path: Path_) -> tuple[frozenset[str], Any]:
        faults = self.missing(path)
        if not faults:
            self.take(path)
        return faults, None

    def set(self, path: Path_, title: str) -> tuple[frozenset[str], Any]:
        faults, item = self.missing(path), self.at(path)
        if item:
            item.title = title
        return faults, None

    def put(self, path: Path_, data: bytes) -> tuple[frozenset[str], Any]:
        item = self.at(path)
        faults = self.barred(path)
        if item and item.kind != "data":
            return LINKED | WRONG_KIND if item.kind == "link" else WRONG_KIND, None
        if not faults and item is None:
            item = Item("data")
            self.put_at(path, item)
        if item:
            item.data = data
        return faults, None

    def read(self, path: Path_) -> tuple[frozenset[str], Any]:
        item = self.at(path)
        if item and item.kind != "data":
            return LINKED | WRONG_KIND if item.kind == "link" else WRONG_KIND, None
        return self.missing(path), item.data if item else None

    def get(self, path: Path_) -> tuple[frozenset[str], Any]:
        item = self.at(path)
        return self.missing(path), (item.kind, item.tag, item.title) if item else None

    def list(self, path: Path_) -> tuple[frozenset[str], Any]:
        item = self.at(path)
        if item is None:
            return self.missing(path), None
        return NONE, [(name, c.kind, c.tag, c.title) for name, c in sorted(item.children.items())]


# -- a client --------------------------------------------------------------------------------------------------------

TYPES = {"container": "ContainerNode", "data": "DataNode", "link": "LinkNode"}
KINDS = {f"vos:{name}": kind for kind, name in TYPES.items()}
ELSEWHERE = "vos://elsewhere!vospace/x"


class Client:
    """One connection; every operation answers (fault or nothing, value)."""

    def __init__(self, daemon: Daemon) -> None:
        self._raw = Raw(daemon)
        self._token = daemon.token

    def close(self) -> None:
        self._raw.sock.close()

    def ask(self, method: str, path: str, body: bytes = b"") -> Answer:
        """One request; no answer may be a failure of the service."""
        self._raw.send(
            f"{method} /vos{path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {self._token}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        answer = self._raw.answer()
        assert answer.status < 500, (method, path, answer)
        return answer

    @staticmethod
    def _fault(answer: Answer, *expected: int) -> str:
        if answer.status in expected:
            return ""
        assert 400 <= answer.status < 500, answer
        return answer.body.split()[0].decode()

    def create(self, path: str, kind: str, tag: str) -> tuple[str, Any]:
        target = ELSEWHERE if kind == "link" else None
        document = node_document(path, TYPES[kind], {"urn:tag": tag}, target)
        return self._fault(self.ask("PUT", "/nodes" + path, document), 201), None

    def _job(self, source: str, target: str, keep: bool) -> str:
        document = transfer_document(ROOT + source, ROOT + target).replace(
            b"</vos:transfer>", b"<vos:keepBytes>%s</vos:keepBytes></vos:transfer>" % (b"true" if keep else b"false")
        )
        answer = self.ask("POST", "/transfers?PHASE=RUN", document)
        assert answer.status == 303, answer
        job = answer.headers["location"].partition("/vos")[2]
        end = time.monotonic() + JOB_S_MAX
        while (phase := self.ask("GET", f"{job}/phase?WAIT=1").body.decode()) in ACTIVE:
            assert time.monotonic() < end, f"{job} is still {phase}"
        if phase == "COMPLETED":
            return ""
        assert phase == "ERROR", phase
        error = self.ask("GET", f"{job}/error")
        assert error.status == 200, error
        return error.body.split()[0].decode()

    def move(self, source: str, target: str) -> tuple[str, Any]:
        return self._job(source, target, False), None

    def copy(self, source: str, target: str) -> tuple[str, Any]:
        return self._job(source, target, True), None

    def delete(self, path: str) -> tuple[str, Any]:
        return self._fault(self.ask("DELETE", "/nodes" + path), 204), None

    def set(self, path: str, title: str) -> tuple[str, Any]:
        return self._fault(self.ask("POST", "/nodes" + path, node_document(path, "Node", {"title": title})), 200), None

    def put(self, path: str, data: bytes) -> tuple[str, Any]:
        return self._fault(self.ask("PUT", "/files" + path, data), 201), None

    def read(self, path: str) -> tuple[str, Any]:
        answer = self.ask("GET", "/files" + path)
        fault = self._fault(answer, 200)
        return fault, None if fault else answer.body

    def _shown(self, path: str, query: str) -> tuple[str, Shown | None]:
        answer = self.ask("GET", f"/nodes{path}{query}")
        fault = self._fault(answer, 200)
        return fault, None if fault else shown(etree.fromstring(answer.body))

    def get(self, path: str) -> tuple[str, Any]:
        fault, node = self._shown(path, "?limit=0")
        return fault, node and _plain(node)

    def list(self, path: str) -> tuple[str, Any]:
        """All children, by pages of PAGE, of which each begins with the last of the one before."""
        result: list[tuple[str, str, str, str]] = []
        query = f"?limit={PAGE}"
        while True:
            fault, node = self._shown(path, query)
            if fault or node is None:
                return fault, None
            # A child that went away meanwhile is not repeated, and the page begins at its successor.
            fresh = [c for c in node.children if not result or _name(c) > result[-1][0]]
            result += [(_name(c), *_plain(c)) for c in fresh]
            if len(node.children) < PAGE:
                return "", result
            query = f"?limit={PAGE}&uri={node.children[-1].uri.replace(':', '%3A')}"


def _name(node: Shown) -> str:
    return node.uri.rpartition("/")[2]


def _plain(node: Shown) -> tuple[str, str, str]:
    return KINDS[node.type], node.properties.get("urn:tag", ""), node.properties.get("title", "")


# -- one order of all operations ---------------------------------------------------------------------------------------


@dataclass
class Done:
    """An operation of the race: when it was under way, and what it answered."""

    begun: float
    ended: float
    name: str
    arguments: tuple[Any, ...]
    fault: str
    value: Any = None


State = tuple[tuple[str, str], ...]
"""(name, tag) of each node in the race, by name."""


def after(state: State, done: Done) -> State | None:
    """The state after an operation; None if it could not have answered so."""
    there = dict(state)
    first = done.arguments[0] if done.arguments else ""
    if done.name == "list":
        seen = [(name, tag) for name, _, tag, _ in done.value]
        fits = len(seen) == len(state) and all(
            n == m and t in ("", u) for (n, t), (m, u) in zip(seen, state, strict=True)
        )
        return state if fits else None
    if done.name == "create":
        if done.fault:
            return state if done.fault in TAKEN and first in there else None
        return None if first in there else tuple(sorted({**there, first: done.arguments[2]}.items()))
    if done.fault in GONE:
        return None if first in there else state
    if done.name == "move":
        target = done.arguments[1]
        if done.fault:
            return state if done.fault in TAKEN and target in there else None
        if first not in there or target in there:
            return None
        there[target] = there.pop(first)
        return tuple(sorted(there.items()))
    if done.fault or first not in there:
        return None
    if done.name == "delete":
        del there[first]
        return tuple(sorted(there.items()))
    if done.name == "get" and done.value[1] != there[first]:
        return None
    return state


def explained(histories: list[list[Done]], end: State) -> bool:
    """Whether some order of all operations, each between its request and its answer, gives these answers and this end."""
    lengths = tuple(map(len, histories))
    seen: set[tuple[tuple[int, ...], State]] = set()
    todo: list[tuple[tuple[int, ...], State]] = [((0,) * len(histories), ())]
    while todo:
        at, state = todo.pop()
        if (at, state) in seen:
            continue
        seen.add((at, state))
        if at == lengths and state == end:
            return True
        heads = [(i, histories[i][n]) for i, n in enumerate(at) if n < lengths[i]]
        first_end = min((done.ended for _, done in heads), default=0.0)
        for i, done in heads:
            if done.begun <= first_end and (then := after(state, done)) is not None:
                todo.append((at[:i] + (at[i] + 1,) + at[i + 1 :], then))
    return False


# -- traces --------------------------------------------------------------------------------------------------------

NAMES = st.sampled_from("abc")
PLANTED = [
    (("a",), "container"),
    (("a", "b"), "container"),
    (("a", "b", "c"), "data"),
    (("b",), "container"),
    (("c",), "data"),
]
"""What every tree starts from: in an empty one most operations only fail."""
PATHS = st.one_of(
    st.sampled_from([path for path, _ in PLANTED]), st.lists(NAMES, min_size=1, max_size=3).map(tuple),
    st.sampled_from([("a", "a"), ("a", "c"), ("b", "a"), ("b", "b"), ("a", "b", "a"), ("b", "a", "b")]),
)  # fmt: skip
OWN = st.one_of(
    st.tuples(st.just("create"), PATHS, st.sampled_from(["container", "container", "data", "link"])),
    st.tuples(st.just("move"), PATHS, PATHS),
    st.tuples(st.just("copy" if WITH_COPIES else "move"), PATHS, PATHS),
    st.tuples(st.just("delete"), PATHS),
    st.tuples(st.just("set"), PATHS, st.sampled_from("xyz")),
    st.tuples(st.just("put"), PATHS, st.sampled_from([b"", b"some", bytes(40_000)])),
    st.tuples(st.sampled_from(["read", "get", "list"]), PATHS),
).map(lambda step: ("own", *step))
GIVE = st.tuples(st.just("give"), st.just("move"), PATHS, PATHS)
"""From one's own container to the shared one."""
SHARED = [
    st.tuples(st.just("create"), PATHS, st.sampled_from(["container", "container", "data"])),
    st.tuples(st.just("move"), PATHS, PATHS),
    st.tuples(st.just("move"), PATHS, PATHS),
    st.tuples(st.just("set"), PATHS, st.sampled_from("xyz")),
    st.tuples(st.sampled_from(["get", "list"]), PATHS),
]
DELETES = st.tuples(st.just("delete"), PATHS)
COPIES = st.tuples(st.just("copy"), PATHS, PATHS)
RACE = st.one_of(
    st.tuples(st.just("create"), NAMES, st.just("data")), st.tuples(st.just("move"), NAMES, NAMES),
    st.tuples(st.just("delete"), NAMES), st.tuples(st.just("move"), NAMES, NAMES), st.tuples(st.just("get"), NAMES),
    st.tuples(st.just("set"), NAMES, st.sampled_from("xyz")), st.tuples(st.just("list")),
).map(lambda step: ("race", *step))  # fmt: skip


@st.composite
def traces(draw: st.DrawFn) -> list[list[Step]]:
    """What each client does.  With deletions in the shared tree nodes may go, with copies they may be twice: not both."""
    more = draw(st.sampled_from([[], [DELETES], [COPIES]] if WITH_COPIES else [[], [DELETES]]))
    shared = st.one_of(*SHARED, *more).map(lambda step: ("shared", *step))
    steps = st.one_of(OWN, OWN, shared, shared, GIVE, RACE, RACE)
    return draw(st.lists(st.lists(steps, min_size=2, max_size=STEPS_MAX), min_size=CLIENTS, max_size=CLIENTS))


# -- running them ----------------------------------------------------------------------------------------------------

EXPECTED = {
    "create": GONE | TAKEN,
    "move": GONE | TAKEN | INTO_ITSELF,
    "copy": GONE | TAKEN | INTO_ITSELF,
    "delete": GONE,
    "set": GONE,
    "get": GONE,
    "list": GONE,
}
"""The faults that concurrency can cause in the shared tree, in which there are no links."""


class Runner:
    """One client with its trace, its model and what it saw."""

    def __init__(self, daemon: Daemon, base: str, number: int, tags: Iterator[int]) -> None:
        self.client = Client(daemon)
        self.own, self.shared, self.race = f"{base}/o{number}", f"{base}/s", f"{base}/r"
        self.model = Model()
        self.made: Counter[str] = Counter()
        """Tags of the nodes that this client brought into the shared tree."""
        self.history: list[Done] = []
        self._tags = tags

    def run(self, trace: list[Step], start: threading.Barrier) -> None:
        """Do all of it."""
        start.wait(JOB_S_MAX)
        for place, name, *arguments in trace:
            if name == "create":
                arguments.append(f"t{next(self._tags)}")
            getattr(self, "_" + place)(name, tuple(arguments))

    def _call(self, base: str, name: str, arguments: tuple[Any, ...], other: str = "") -> tuple[str, Any]:
        """An operation under ``base``; its second path, if it has one, under ``other``."""
        given = list(arguments)
        if name == "list" and not given:
            given = [()]
        for index in range(2 if name in ("move", "copy") else 1):
            path = (given[index],) if isinstance(given[index], str) else given[index]
            given[index] = "/".join([(other if index and other else base), *path])
        return getattr(self.client, name)(*given)

    def _own(self, name: str, arguments: tuple[Any, ...]) -> None:
        fault, value = self._call(self.own, name, arguments)
        before = copy.deepcopy(self.model.top)
        faults, expected = getattr(self.model, name)(*arguments)
        assert (fault in faults) if faults else not fault, (name, arguments, fault, faults, before)
        if not fault and name == "list" and self.model.at(*arguments).kind != "container":  # type: ignore[union-attr]
            expected = []
        assert fault or value == expected, (name, arguments, value, expected, before)

    def _give(self, name: str, arguments: tuple[Any, ...]) -> None:
        source, target = arguments
        fault, _ = self._call(self.own, name, arguments, self.shared)
        faults = self.model.missing(source)
        if fault:
            assert fault in faults | GONE | TAKEN | LINKED, (arguments, fault)
        else:
            assert not faults, (arguments, faults, self.model.top)
            self.made += self.model.take(source).tags()

    def _shared(self, name: str, arguments: tuple[Any, ...]) -> None:
        fault, value = self._call(self.shared, name, arguments)
        # What was given away may hold links.
        assert not fault or fault in EXPECTED[name] | LINKED, (name, arguments, fault)
        if not fault and name == "create":
            self.made[arguments[2]] += 1
        if not fault and name == "list":
            names = [entry[0] for entry in value]
            assert names == sorted(set(names)), names

    def _race(self, name: str, arguments: tuple[Any, ...]) -> None:
        if name == "list":
            # In one page: two pages are of two moments.
            begun = time.monotonic()
            answer = self.client.ask("GET", f"/nodes{self.race}")
            value: Any = [(_name(c), *_plain(c)) for c in shown(etree.fromstring(answer.body)).children]
            fault = ""
        else:
            begun = time.monotonic()
            fault, value = self._call(self.race, name, arguments)
        self.history.append(Done(begun, time.monotonic(), name, arguments, fault, value))


def walk(client: Client, path: str) -> Item:
    """Everything that is below a container now."""
    item = Item("container")
    fault, entries = client.list(path)
    assert not fault, (path, fault)
    for name, kind, tag, title in entries:
        child = walk(client, f"{path}/{name}") if kind == "container" else Item(kind)
        child.tag, child.title = tag, title
        if kind == "data":
            fault, child.data = client.read(f"{path}/{name}")
            assert not fault, (path, name, fault)
        item.children[name] = child
    return item


def check(runners: list[Runner], steps: list[list[Step]]) -> None:
    """What must hold when all have finished."""
    client = runners[0].client
    for runner in runners:
        assert walk(client, runner.own) == runner.model.top
    found = walk(client, runners[0].shared).tags()
    made = sum((runner.made for runner in runners), Counter())
    done = {(step[0], step[1]) for trace in steps for step in trace}
    if ("shared", "delete") not in done:
        assert not made - found, f"lost: {made - found}"
    if ("shared", "copy") not in done:
        assert not found - made, f"twice, or from nowhere: {found - made}"
    assert set(found) <= set(made)
    end = tuple(sorted((name, item.tag) for name, item in walk(client, runners[0].race).children.items()))
    assert explained([runner.history for runner in runners], end), ([r.history for r in runners], end)


NUMBERS = itertools.count()


def run_at_once(daemon: Daemon, steps: list[list[Step]]) -> None:
    """One example, in containers of its own."""
    base = f"/m{os.getpid()}x{next(NUMBERS)}"
    for path in (base, f"{base}/s", f"{base}/r", *(f"{base}/o{n}" for n in range(CLIENTS))):
        assert create(daemon, path, "ContainerNode")[0] == 201
    tags = itertools.count()
    with contextlib.ExitStack() as stack:
        runners = [Runner(daemon, base, number, tags) for number in range(CLIENTS)]
        for runner in runners:
            stack.callback(runner.client.close)
        for path, kind in PLANTED:
            for runner in runners:
                runner._own("create", (path, kind, f"p{next(tags)}"))
            runners[0]._shared("create", (path, kind, f"p{next(tags)}"))
        for name in "ab":
            runners[0]._race("create", (name, "data", f"p{next(tags)}"))
        start = threading.Barrier(CLIENTS)
        pool = stack.enter_context(ThreadPoolExecutor(CLIENTS))
        for running in [pool.submit(r.run, trace, start) for r, trace in zip(runners, steps, strict=True)]:
            running.result(60)
        check(runners, steps)
        assert not runners[0].client.delete(base)[0]


# -- the tests -------------------------------------------------------------------------------------------------------

UNHURRIED = {"deadline": None, "suppress_health_check": list(HealthCheck)}


@pytest.fixture(scope="module")
def on_postgres(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon on a database of its own."""
    name = f"m{os.urandom(6).hex()}"
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        daemon = start_daemon(
            tmp_path_factory.mktemp("model") / "space", "--dsn", postgres.rpartition("/")[0] + "/" + name
        )
        try:
            yield daemon
        finally:
            assert daemon.stop() == 0
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@given(steps=traces())
@settings(max_examples=25, **UNHURRIED)  # type: ignore[arg-type]
def test_clients_at_once_on_sqlite(space: Daemon, steps: list[list[Step]]) -> None:
    run_at_once(space, steps)


@given(steps=traces())
@settings(max_examples=25, **UNHURRIED)  # type: ignore[arg-type]
def test_clients_at_once_on_postgresql(on_postgres: Daemon, steps: list[list[Step]]) -> None:
    run_at_once(on_postgres, steps)


def test_the_daemons_are_sound(space: Daemon, on_postgres: Daemon) -> None:
    for daemon in (space, on_postgres):
        assert_sound(daemon)
        assert " deadlock" not in log_text(daemon)


def test_the_comparison_can_fail() -> None:
    made = [Done(0, 1, "create", ("a", "data", "t1"), ""), Done(2, 3, "get", ("a",), "", ("data", "t1", ""))]
    assert explained([made], (("a", "t1"),))
    assert not explained([made], ())
    assert not explained([made], (("a", "t2"),))
    both = [[Done(0, 2, "create", ("a", "data", tag), "")] for tag in ("t1", "t2")]
    assert not explained(both, (("a", "t1"),))
    late = Done(4, 5, "get", ("a",), "NodeNotFound")
    assert not explained([made, [late]], (("a", "t1"),))
    early = Done(0, 1, "get", ("a",), "NodeNotFound")
    assert explained([made, [early]], (("a", "t1"),))
    two = [Done(0, 9, "move", ("a", "b"), ""), Done(10, 11, "list", (), "", [("a", "data", "t1", "")])]
    assert not explained([made, two], (("b", "t1"),))


def test_a_lost_node_is_noticed(space: Daemon, tmp_path: Path) -> None:
    steps: list[list[Step]] = [[("own", "get", ("a",))]] + [[] for _ in range(CLIENTS - 1)]
    base = f"/lost{next(NUMBERS)}"
    for path in (base, f"{base}/s", f"{base}/r", *(f"{base}/o{n}" for n in range(CLIENTS))):
        create(space, path, "ContainerNode")
    runners = [Runner(space, base, number, itertools.count()) for number in range(CLIENTS)]
    try:
        runners[0]._shared("create", (("a",), "data", "t0"))
        check(runners, steps)
        space.request("DELETE", f"/nodes{base}/s/a")
        with pytest.raises(AssertionError, match="lost"):
            check(runners, steps)
    finally:
        for runner in runners:
            runner.client.close()
