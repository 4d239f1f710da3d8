"""A real S3 service for one run of the tests: Ceph's object gateway with a monitor and one store in memory.

Three processes on free loopback ports, without systemd or containers: up in two to three seconds, 130 MB of memory.
"""

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.conftest import free_port
from tests.services import START_S, answers, start, until
from vosfs.backends.uploads import Key, Uploads

PROGRAMS = ("ceph", "ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "monmaptool")
ACCESS_KEY, SECRET_KEY = "AKVOSFSTEST", "only-for-tests-0123456789"
STORE_BYTES = 4 << 30

# Each line that is not about places has cost somebody an afternoon: without ms_mon_client_mode=crc the gateway hunts for
# the monitor for ever when there is no authentication; without tcp_nodelay a range of 4 KiB takes 45 ms; paxos waits a
# second for each of the gateway's pools; and its background threads do nothing for tests but keep the CPU warm.
CONFIGURATION = """\
[global]
fsid = {fsid}
mon_host = [v2:127.0.0.1:{mon_v2},v1:127.0.0.1:{mon_v1}]
mon_initial_members = a
public_network = 127.0.0.0/8
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
auth_allow_insecure_global_id_reclaim = false
mon_allow_pool_size_one = true
mon_warn_on_pool_no_redundancy = false
mon_max_pg_per_osd = 1000
mon_data_avail_warn = 2
mon_data_avail_crit = 1
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 1
osd_pool_default_pgp_num = 1
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
paxos_propose_interval = 0.05
paxos_min_wait = 0.01
osd_objectstore = memstore
memstore_device_bytes = {store_bytes}
osd_max_object_name_len = 256
osd_class_load_list = *
osd_class_default_list = *
ms_bind_ipv4 = true
ms_bind_ipv6 = false
debug_ms = 0/0
debug_mon = 0/0
debug_osd = 0/0
debug_rgw = 0/0
debug_paxos = 0/0
run_dir = {root}/run
admin_socket = {root}/run/$name.asok
log_file = {root}/log/$name.log
mon_data = {root}/mon
osd_data = {root}/osd
rgw_data = {root}/rgw
[client.rgw]
rgw_frontends = beast endpoint=127.0.0.1:{port} tcp_nodelay=1
ms_mon_client_mode = crc
rgw_thread_pool_size = 32
rgw_enable_usage_log = false
rgw_run_sync_thread = false
rgw_enable_gc_threads = false
rgw_enable_lc_threads = false
rgw_enable_quota_threads = false
rgw_dynamic_resharding = false
"""


BUCKET = "vosfs"


@dataclass
class S3:
    """A running S3 service, with a key and a bucket."""

    endpoint: str
    admin: Callable[..., bytes]
    """Runs ``radosgw-admin`` with arguments."""
    access_key: str = ACCESS_KEY
    secret_key: str = SECRET_KEY

    def bucket(self, name: str = BUCKET) -> Uploads:
        """Requests about a bucket."""
        return Uploads(f"{self.endpoint}/{name}", "", "us-east-1", Key(self.access_key, self.secret_key), None, 30)

    def poor(self, bytes_max: int) -> "S3":
        """The same for a user, with a bucket of his own, whose objects have ``bytes_max`` together at most."""
        other = S3(self.endpoint, self.admin, "AKPOOR", "only-for-the-poor")
        self.admin(
            "user", "create", "--uid=poor", "--display-name=poor", f"--access-key={other.access_key}",
            f"--secret={other.secret_key}",
        )  # fmt: skip
        self.admin("quota", "set", "--uid=poor", "--quota-scope=user", f"--max-size={bytes_max}")
        self.admin("quota", "enable", "--uid=poor", "--quota-scope=user")
        other.bucket("poor").request("PUT")
        return other

    @property
    def environment(self) -> dict[str, str]:
        """The variables that tell a program where it is and let it in."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint, "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": self.access_key, "AWS_SECRET_ACCESS_KEY": self.secret_key,
        }  # fmt: skip


def missing() -> str:
    """What keeps the service from being started; empty if nothing."""
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    return (
        f"{', '.join(absent)} not installed (apt-get install ceph-mon ceph-osd radosgw ceph-common)" if absent else ""
    )


@contextlib.contextmanager
def running(store_bytes: int = STORE_BYTES) -> Iterator[S3]:
    """The service, until the block ends; it keeps its objects in memory, and nothing that was deleted is collected."""
    # Not below pytest's directory: its sockets' names must stay under 108 bytes.
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    root = Path(tempfile.mkdtemp(prefix="vosfs-rgw-", dir=base))
    processes: list[subprocess.Popen[bytes]] = []
    try:
        yield _start(root, processes, store_bytes)
    finally:
        for process in reversed(processes):
            # Nothing of it is kept, so nothing need be put in order.
            process.kill()
            process.wait()
        shutil.rmtree(root, ignore_errors=True)


def _start(root: Path, processes: list["subprocess.Popen[bytes]"], store_bytes: int) -> S3:
    for name in ("mon", "osd", "rgw", "run", "log"):
        (root / name).mkdir()
    conf, fsid, port = root / "ceph.conf", uuid.uuid4(), free_port()
    mon_v2, mon_v1 = free_port(), free_port()
    conf.write_text(
        CONFIGURATION.format(root=root, fsid=fsid, port=port, mon_v2=mon_v2, mon_v1=mon_v1, store_bytes=store_bytes)
    )

    def run(program: str, *arguments: object) -> bytes:
        command = [program, "-c", str(conf), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, timeout=START_S, cwd=root)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.decode(errors='replace')[-2000:]}"
        return done.stdout

    def begin(program: str, *arguments: object) -> None:
        with open(root / "log" / f"{program}.out", "wb") as out:
            command = [program, "-c", str(conf), *map(str, arguments), "-f"]
            processes.append(start(command, stdout=out, stderr=out, cwd=root))

    address = f"[v2:127.0.0.1:{mon_v2},v1:127.0.0.1:{mon_v1}]"
    run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", address, root / "monmap")
    run("ceph-mon", "--mkfs", "-i", "a", "--monmap", root / "monmap", "--mon-data", root / "mon")
    begin("ceph-mon", "-i", "a", "--mon-data", root / "mon")
    store = str(uuid.uuid4())
    run("ceph", "--connect-timeout", 30, "osd", "new", store)
    run("ceph-osd", "-i", 0, "--mkfs", "--osd-uuid", store, "--osd-data", root / "osd")
    begin("ceph-osd", "-i", 0, "--osd-data", root / "osd")
    until(
        "the store is up", lambda: json.loads(run("ceph", "osd", "stat", "-f", "json"))["num_up_osds"] == 1, processes
    )
    begin("radosgw", "-n", "client.rgw")
    service = S3(f"http://127.0.0.1:{port}", partial(run, "radosgw-admin"))
    until("the gateway answers", lambda: answers(service.endpoint), processes)
    service.admin(
        "user", "create", "--uid=test", "--display-name=test", f"--access-key={ACCESS_KEY}",
        f"--secret={SECRET_KEY}",
    )  # fmt: skip
    service.bucket().request("PUT")
    return service
