"""Content that is on tape: HTTP, jobs, properties, audits and moves, with a real program that brings files back."""

import json
import os
import random
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlencode

import msgspec
import pytest
import trio

from server import daemon as composition
from server.jobs import state_of
from tests.clients.support import start_configured
from tests.conftest import BIN, Daemon, eventually
from tests.server.support import (
    ROOT,
    ask,
    create,
    fetch,
    is_fault,
    log_text,
    node,
    node_document,
    store,
    update,
    vosfsd,
)
from tests.server.test_killed import DYING, SEED, TRIED
from tests.server.test_storages import audited, config_of, files, left_after_a_collection, moved
from tests.services.hsm import Robot
from tests.vospace.support import (
    FORM,
    PULL,
    PUSH_FROM,
    Protocol,
    ThirdParty,
    move,
    new_job,
    synctrans,
    tar_bytes,
    transfer,
)
from vosfs import config
from vosfs.metadata import messages as m
from vosfs.metadata.node import LOCALITY, ROOT_ID, STAGE, STORAGE

BYTES = 100_000
TAPE = "tape"


@pytest.fixture
def robot(tmp_path: Path) -> Robot:
    return Robot(tmp_path / "vault")


@pytest.fixture
def space(tmp_path: Path, robot: Robot) -> Iterator[Daemon]:
    """A daemon with a directory, and one behind tape, where everything in /t goes."""
    settings = f'private_endpoints = true\n[storages.{TAPE}]\ndirectory = "{TAPE}"\nstage_command = {json.dumps(robot.command)}\n'
    daemon = start_configured(tmp_path / "space", settings)
    create(daemon, "/t", "ContainerNode", properties={STORAGE: TAPE})
    yield daemon
    daemon.stop()


@pytest.fixture
def data(space: Daemon) -> bytes:
    """The bytes of /t/f, which are on tape by the time that the test begins."""
    made = secrets.token_bytes(BYTES)
    store(space, "/t/f", made)
    return made


def to_tape(space: Daemon, robot: Robot) -> list[Path]:
    """Move all that is in the storage to tape."""
    found = [path for path in files(space, TAPE) if path.stat().st_blocks]
    robot.move(*found)
    return found


def locality(space: Daemon, path: str) -> str | None:
    return node(space, path).properties.get(LOCALITY)


def is_away(answer: tuple[int, dict[str, str], bytes]) -> bool:
    assert is_fault(answer, 503, "NotOnline")
    assert int(answer[1]["Retry-After"]) > 5, "robots are slow"
    return True


def comes(space: Daemon, path: str) -> None:
    eventually(f"{path} is here", lambda: locality(space, path) == "ONLINE")


def restart(space: Daemon) -> None:
    """Start a daemon again that has ended."""
    command = [BIN / "vosfsd", "--config", space.directory / "vosfsd.toml"]
    with open(space.directory.parent / f"{space.directory.name}.log", "a") as log:
        space.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    assert space.process.stdout is not None
    assert space.process.stdout.readline().startswith("READY ")


def test_content_on_tape_is_asked_for_once_and_then_read(space: Daemon, robot: Robot, data: bytes) -> None:
    assert locality(space, "/t/f") == "ONLINE" and fetch(space, "/t/f") == data
    to_tape(space, robot)
    for _ in range(2):
        status, headers, _ = space.request("HEAD", "/files/t/f")
        assert (status, headers["Content-Length"]) == (200, str(BYTES))
        assert locality(space, "/t/f") == "NEARLINE"
    assert robot.asked() == [], "neither HEAD nor getNode brings a tape"
    with robot.busy():
        for _ in range(3):
            assert is_away(space.request("GET", "/files/t/f"))
        assert is_away(space.request("GET", "/files/t/f", headers={"Range": "bytes=10-20"}))
        assert locality(space, "/t/f") == "STAGING"
        store(space, "/t/g", data)
        assert fetch(space, "/t/g") == data, "what is here is read all the same"
    comes(space, "/t/f")
    assert fetch(space, "/t/f") == data
    assert len(robot.asked()) == 1
    assert "WARNING" not in log_text(space), "a tape is a normal day"


def test_an_endpoint_of_content_on_tape(space: Daemon, robot: Robot, data: bytes) -> None:
    job = synctrans(space, transfer(ROOT + "/t/f", PULL, ["httpget"]))
    endpoint = job.endpoint()
    to_tape(space, robot)
    with robot.busy():
        assert is_away(space.request("GET", endpoint, auth=False))
    comes(space, "/t/f")
    assert space.request("GET", endpoint, auth=False)[2] == data


def test_content_of_several_blobs_is_asked_for_whole(
    space: Daemon, robot: Robot, data: bytes, make_mount: Callable[..., Path]
) -> None:
    point = make_mount(space)
    with open(point / "t/f", "r+b") as stream:
        stream.seek(BYTES // 2)
        stream.write(data[:30_000])
    expected = data[: BYTES // 2] + data[:30_000] + data[BYTES // 2 + 30_000 :]
    assert fetch(space, "/t/f") == expected
    assert len(to_tape(space, robot)) == 2
    with robot.busy():
        assert is_away(space.request("GET", "/files/t/f"))
        eventually("both are asked for", lambda: len(robot.asked()) == 2)
    comes(space, "/t/f")
    assert fetch(space, "/t/f") == expected


def test_the_property_that_asks(space: Daemon, robot: Robot, data: bytes) -> None:
    to_tape(space, robot)
    with robot.busy():
        answer = update(space, "/t/f", properties={STAGE: "true"})
        assert answer[0] == 200 and b"STAGING" in answer[2]
        assert STAGE not in node(space, "/t/f").properties
        eventually("it was asked for", lambda: len(robot.asked()) == 1)
        # A client that sends back what it was shown, some time ago.
        assert update(space, "/t/f", properties={LOCALITY: "ONLINE", "title": "x"})[0] == 200
        assert is_fault(update(space, "/t/f", properties={LOCALITY: "here"}), 403, "PermissionDenied")
        assert is_fault(update(space, "/t/f", properties={STAGE: "at once"}), 400, "InvalidArgument")
    comes(space, "/t/f")
    assert update(space, "/t/f", properties={STAGE: "true"})[0] == 200
    assert len(robot.asked()) == 1 and fetch(space, "/t/f") == data
    assert is_fault(create(space, "/t/n", properties={LOCALITY: "ONLINE"}), 403, "PermissionDenied")
    assert f'uri="{LOCALITY}" readOnly="true"'.encode() in space.request("GET", "/nodes/t/f")[2]


def test_a_listing_looks_at_no_disk(space: Daemon, data: bytes) -> None:
    (child,) = node(space, "/t").children
    assert LOCALITY not in child.properties and STORAGE in child.properties
    assert LOCALITY not in node(space, "/t").properties
    assert LOCALITY not in node(space, "/t/f", "?detail=min").properties


def test_who_may_ask_by_the_gateway(space: Daemon, robot: Robot, data: bytes) -> None:
    update(space, "", "ContainerNode", {"publicread": "true"})
    update(space, "/t", "ContainerNode", {"publicread": "true"})
    update(space, "/t/f", properties={"publicread": "true"})
    container = ask(space, m.Lookup(ROOT_ID, b"t")).node
    file = ask(space, m.Lookup(container.id, b"f")).node
    to_tape(space, robot)
    vosfsd("user", *config_of(space), "alice", "--no-password")
    assert vosfsd("token", *config_of(space), "alice", space.directory / "alice.token").returncode == 0
    alice = {"Authorization": "Bearer " + (space.directory / "alice.token").read_text().strip()}
    with robot.busy():
        assert ask(space, m.Properties(file.id), alice)[LOCALITY] == "NEARLINE"
        assert ask(space, m.SetProperties(file.id, {STAGE: "true"}), alice).id == file.id
        eventually("it was asked for", lambda: len(robot.asked()) == 1)
        refused = ask(space, m.SetProperties(file.id, {STAGE: "true", "urn:x": "y"}), alice)
        assert refused.error == "PermissionDenied"
    update(space, "/t/f", properties={"publicread": "false"})
    assert ask(space, m.SetProperties(file.id, {STAGE: "true"}), alice).error == "PermissionDenied"
    refused = ask(space, m.SetProperties(file.id, {LOCALITY: "ONLINE"}))
    assert refused.error == "PermissionDenied"


def test_a_leased_blob_on_tape(space: Daemon, robot: Robot, data: bytes) -> None:
    """What a mount reads."""
    container = ask(space, m.Lookup(ROOT_ID, b"t")).node
    found = ask(space, m.Lookup(container.id, b"f", True))
    assert found.head == data[: m.HEAD_BYTES]
    to_tape(space, robot)
    with robot.busy():
        again = ask(space, m.Lookup(container.id, b"f", True))
        assert again.head == b"" and robot.asked() == [], "looking up brings no tape"
        name = again.extents[0].locator
        assert is_away(space.request("GET", f"/blobs/{name}", headers={"Range": "bytes=0-99"}))
    comes(space, "/t/f")
    assert space.request("GET", f"/blobs/{name}", headers={"Range": "bytes=0-99"})[2] == data[:100]


def test_an_archive_is_all_there_or_not_begun(space: Daemon, robot: Robot, data: bytes) -> None:
    create(space, "/t/sub", "ContainerNode")
    store(space, "/t/sub/g", data[::-1])
    store(space, "/t/small", b"inline")
    to_tape(space, robot)
    query = f"/pkg?TARGET={ROOT}/t"
    with robot.busy():
        answer = space.request("GET", query)
        assert is_away(answer) and b" 2 files " in answer[2]
        eventually("both are asked for", lambda: len(robot.asked()) == 2)
    comes(space, "/t/f")
    comes(space, "/t/sub/g")
    assert tar_bytes(space.request("GET", query)[2]) == {"t/f": data, "t/sub/g": data[::-1], "t/small": b"inline"}


def test_a_command_that_fails_is_said_and_tried_again(space: Daemon, robot: Robot, data: bytes) -> None:
    to_tape(space, robot)
    with robot.broken():
        assert is_away(space.request("GET", "/files/t/f"))
        eventually("it failed", lambda: locality(space, "/t/f") == "NEARLINE")
    answer = space.request("GET", "/files/t/f")
    assert is_away(answer) and b"failed a moment ago" in answer[2]
    assert "ended with status 1" in log_text(space)
    assert is_fault(update(space, "/t/f", properties={STAGE: "true"}), 503, "ServiceBusy")


# -- jobs ------------------------------------------------------------------------------------------------------------


def test_a_pull_waits_queued_until_the_bytes_are_here(space: Daemon, robot: Robot, data: bytes) -> None:
    to_tape(space, robot)
    with robot.busy():
        job = new_job(space, transfer(ROOT + "/t/f", PULL, ["httpget"]))
        assert robot.asked() == [], "a PENDING job does nothing"
        job.run().reaches("QUEUED")
        eventually("it was asked for", lambda: len(robot.asked()) == 1)
        assert job.results() == {}
    assert job.completed() and space.request("GET", job.endpoint(), auth=False)[2] == data
    assert len(robot.asked()) == 1


def test_a_pull_that_waits_is_aborted(space: Daemon, robot: Robot, data: bytes) -> None:
    to_tape(space, robot)
    with robot.busy():
        job = new_job(space, transfer(ROOT + "/t/f", PULL, ["httpget"])).run().reaches("QUEUED")
        job.abort()
        assert job.phase() == "ABORTED"
    comes(space, "/t/f")
    assert job.phase() == "ABORTED"


def test_a_pull_whose_node_is_deleted_while_it_waits(space: Daemon, robot: Robot, data: bytes) -> None:
    to_tape(space, robot)
    with robot.busy():
        job = new_job(space, transfer(ROOT + "/t/f", PULL, ["httpget"])).run().reaches("QUEUED")
        assert space.request("DELETE", "/nodes/t/f")[0] == 204
        assert job.failed("NodeNotFound")


def test_a_pull_waits_over_a_restart(space: Daemon, robot: Robot, data: bytes) -> None:
    to_tape(space, robot)
    with robot.busy():
        job = new_job(space, transfer(ROOT + "/t/f", PULL, ["httpget"])).run().reaches("QUEUED")
        space.stop(signal.SIGKILL)
        restart(space)
        assert job.phase() == "QUEUED"
        eventually("it is asked for again", lambda: len(robot.asked()) == 2)
    assert job.completed() and space.request("GET", job.endpoint(), auth=False)[2] == data


def test_a_push_to_a_third_party_waits(space: Daemon, robot: Robot, data: bytes) -> None:
    party = ThirdParty()
    try:
        to_tape(space, robot)
        with robot.busy():
            document = transfer(ROOT + "/t/f", PUSH_FROM, [Protocol("httpput", party.url + "/there")])
            job = new_job(space, document).run().reaches("QUEUED")
            eventually("it was asked for", lambda: len(robot.asked()) == 1)
        job.completed()
        assert party.files["/there"] == data
    finally:
        party.close()


async def _long_ago(file: Path, id: str) -> None:
    """A job has waited since 1970."""
    with composition.opened(config.load(file)) as (nodes, _):
        job = await nodes.job(id)
        assert job is not None and job.phase == "QUEUED"
        state = state_of(job)
        assert state.staging_ns
        state.staging_ns = 1
        document = msgspec.json.encode(state).decode()
        assert await nodes.change_job(msgspec.structs.replace(job, document=document), ("QUEUED",))


def test_a_pull_does_not_wait_for_ever(space: Daemon, robot: Robot, data: bytes) -> None:
    to_tape(space, robot)
    with robot.busy():
        job = new_job(space, transfer(ROOT + "/t/f", PULL, ["httpget"])).run().reaches("QUEUED")
        eventually("it is asked for", lambda: len(robot.asked()) == 1)
        space.stop(signal.SIGKILL)
        trio.run(_long_ago, space.directory / "vosfsd.toml", job.url.rpartition("/")[2])
        restart(space)
        assert "did not come from their slow storage in 96 h" in job.failed("NotOnline")


def test_where_a_missing_blob_is(space: Daemon, robot: Robot, data: bytes) -> None:
    (file,) = to_tape(space, robot)
    file.unlink()
    assert locality(space, "/t/f") == "UNAVAILABLE"
    assert is_fault(space.request("GET", "/files/t/f"), 500, "InternalFault")


# -- audits ----------------------------------------------------------------------------------------------------------


def test_an_audit_brings_no_tape(space: Daemon, robot: Robot, data: bytes) -> None:
    (file,) = to_tape(space, robot)
    assert audited(space) == (0, {"near-line": 1}, 0)
    deep = vosfsd("audit", *config_of(space), "--deep")
    assert deep.returncode == 1, "not everything was read"
    assert deep.stdout.splitlines()[-1] == "1 near-line" and len(deep.stdout.splitlines()) == 2
    assert robot.asked() == []
    file.unlink()
    assert audited(space) == (3, {"missing": 1}, 0)


def test_a_lost_copy_is_mended_from_tape_when_that_has_come(space: Daemon, robot: Robot) -> None:
    data = secrets.token_bytes(BYTES)
    create(space, "/both", "ContainerNode", properties={STORAGE: f"default {TAPE}"})
    store(space, "/both/f", data)
    assert locality(space, "/both/f") == "ONLINE"
    (file,) = files(space, "default")
    (far,) = to_tape(space, robot)
    assert locality(space, "/both/f") == "ONLINE" and fetch(space, "/both/f") == data
    os.truncate(file, 10)
    with robot.busy():
        assert is_away(space.request("GET", "/files/both/f"))
        eventually("the copy on tape is asked for", lambda: len(robot.asked()) == 1)
        assert audited(space, "--repair")[:2] == (3, {"wrong length": 1, "near-line": 1})
    eventually("it is here", lambda: far.stat().st_blocks > 0)
    assert fetch(space, "/both/f") == data
    assert audited(space, "--deep", "--repair") == (0, {"wrong length": 1}, 1)
    assert audited(space, "--deep") == (0, {}, 0)


# -- moves -----------------------------------------------------------------------------------------------------------


def test_a_move_waits_for_what_is_on_tape(space: Daemon, robot: Robot, data: bytes) -> None:
    store(space, "/t/here", data)
    away = [path for path in files(space, TAPE) if path.read_bytes() == data][:1]
    robot.move(*away)
    store(space, "/t/small", b"inline")
    with robot.busy():
        job = moved(space, "/t", "default").reaches("EXECUTING")
        eventually("what is here is moved", lambda: len(files(space, "default")) == 1)
        eventually("the other is asked for", lambda: len(robot.asked()) == 1)
        assert job.phase() == "EXECUTING"
        answers = {path: space.request("GET", "/files" + path) for path in ("/t/f", "/t/here")}
        for answer in answers.values():
            assert (answer[0] == 200 and answer[2] == data) or is_away(answer)
        assert sorted(status for status, _, _ in answers.values()) == [200, 503]
    assert job.completed().results()["successcount"] == "final:4"
    assert fetch(space, "/t/f") == data == fetch(space, "/t/here")
    assert len(files(space, "default")) == 2
    assert audited(space, "--deep") == (0, {}, 0)


def test_a_move_to_tape_and_back_by_command(space: Daemon, robot: Robot) -> None:
    data = secrets.token_bytes(BYTES)
    create(space, "/d", "ContainerNode")
    store(space, "/d/f", data)
    move(space, "/d/f", "/d/copy", keep="true").completed()
    done = vosfsd("move-storage", *config_of(space), "/d", TAPE)
    assert (done.returncode, done.stdout) == (0, f"moved 3 nodes, {BYTES} bytes\n"), done.stderr
    assert fetch(space, "/d/f") == data and len(to_tape(space, robot)) == 1
    done = vosfsd("move-storage", *config_of(space), "/d", "default")
    assert (done.returncode, done.stdout) == (0, f"moved 3 nodes, {BYTES} bytes\n"), done.stderr
    assert len(robot.asked()) == 1, "what shares a blob waits for it together"
    assert fetch(space, "/d/f") == data == fetch(space, "/d/copy")
    assert audited(space, "--deep") == (0, {}, 0)


def test_a_move_that_waits_changes_nothing_meanwhile(space: Daemon, robot: Robot, data: bytes) -> None:
    """A node that is looked at again and again is not written again and again."""
    to_tape(space, robot)
    with robot.busy():
        job = moved(space, "/t", "default").reaches("EXECUTING")
        eventually("it waits", lambda: len(robot.asked()) == 1)
        container = ask(space, m.Lookup(ROOT_ID, b"t")).node
        eventually("the policy is set", lambda: ask(space, m.Lookup(container.id, b"f")).node.storage == "default")
        changed = ask(space, m.Lookup(container.id, b"f")).node.ctime_ns
    job.completed()
    assert ask(space, m.Lookup(container.id, b"f")).node.ctime_ns == changed
    assert fetch(space, "/t/f") == data


def test_a_move_from_tape_that_is_killed_between_two_steps(space: Daemon, robot: Robot, tmp_path: Path) -> None:
    """kill -9 between any two steps, the request for the tape and its coming among them."""
    contents = {"/t/a": secrets.token_bytes(BYTES), "/t/b": secrets.token_bytes(2 * BYTES)}
    for path, data in contents.items():
        store(space, path, data)
    armed, rng = tmp_path / "armed", random.Random(SEED)
    killed = 0
    for turn in range(TRIED or 60):
        # What an earlier turn left behind is no longer asked for by anybody: the collector's view of it is judged.
        to_tape(space, robot)
        armed.write_text(str(turn if not TRIED else rng.randrange(40)))
        command = [sys.executable, DYING, armed, "move-storage", *config_of(space), "/t", ("default", TAPE)[turn % 2]]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=60)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        killed += done.returncode != 0
        for path, data in contents.items():
            answer = space.request("GET", "/files" + path)
            if answer[0] == 503:
                comes(space, path)
            assert fetch(space, path) == data
        there, used = left_after_a_collection(space)
        assert there == used
    assert killed
    for path in contents:
        comes(space, path)
    assert audited(space, "--deep") == (0, {}, 0)


def test_a_staged_tree_by_a_recursive_job(space: Daemon, robot: Robot, data: bytes) -> None:
    """async-setprops with the property asks for a whole tree."""
    store(space, "/t/g", data)
    to_tape(space, robot)
    with robot.busy():
        answer = space.request("POST", "/async-setprops", node_document("/t", "ContainerNode", {STAGE: "true"}))
        assert answer[0] == 303
        assert (
            space.request("POST", answer[1]["Location"] + "/phase", urlencode({"PHASE": "RUN"}).encode(), FORM)[0]
            == 303
        )
        eventually("both are asked for", lambda: len(robot.asked()) == 2)
    comes(space, "/t/f")
    comes(space, "/t/g")
