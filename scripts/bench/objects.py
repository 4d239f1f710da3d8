"""What is measured on an object store: one S3 service for all targets and rounds, each with a bucket of its own.

The service is Ceph's object gateway with its data in memory, as the tests start it.
"""

import itertools
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.processes import AM_ROOT, CHECKOUT
from bench.targets import Mounted, Rclone, Target, Vosfs

sys.path.append(str(CHECKOUT))

from tests.services.rgw import S3, missing, running  # noqa: E402 (after the path)

__all__ = ["ROUND_BYTES", "S3", "missing", "running", "targets"]

ROUND_BYTES = 3 << 30
"""More than a round of all targets leaves in the store."""

_numbers = itertools.count(1)


class S3fs(Mounted):
    """s3fs with its default caching: attributes only."""

    def __init__(self, directory: Path, service: S3, bucket: str) -> None:
        super().__init__(directory)
        self._service = service
        self._bucket = bucket
        self._key = directory / "key"

    def start(self) -> None:
        self.point.mkdir()
        self._key.touch(0o600)
        self._key.write_text(f"{self._service.access_key}:{self._service.secret_key}\n")
        self._mount()

    def _mount(self) -> None:
        client = self.processes.spawn(
            "client", "s3fs", "-f", self._bucket, self.point, "-o", f"passwd_file={self._key}",
            "-o", f"url={self._service.endpoint},use_path_request_style", *(["-o", "allow_other"] if AM_ROOT else []),
        )  # fmt: skip
        self._await_mount(client, "s3fs does not mount")


class RcloneS3(Rclone):
    """rclone mount with its full cache, on the service."""

    def __init__(self, directory: Path, service: S3, bucket: str) -> None:
        super().__init__(directory)
        self._service = service
        self._bucket = bucket

    def _spawn(self, kind: str, *words: object) -> subprocess.Popen[bytes]:
        # rclone 1.60 does not start where this is set; the service is reached without TLS.
        return self.processes.spawn(kind, "env", "-u", "AWS_CA_BUNDLE", "rclone", *words, more=self._environment())

    def _serve(self) -> list[object]:
        service = self._service
        return [
            f":s3:{self._bucket}", "--s3-provider", "Ceph", "--s3-endpoint", service.endpoint,
            "--s3-access-key-id", service.access_key, "--s3-secret-access-key", service.secret_key,
        ]  # fmt: skip


class VosfsS3(Vosfs):
    """The mount, on a daemon whose only storage is the service; names and contents up to 16 KiB are in its SQLite."""

    options: Sequence[str] = ()

    def __init__(self, directory: Path, service: S3, bucket: str) -> None:
        super().__init__(directory)
        self._service = service
        self._bucket = bucket

    def _serve(self) -> None:
        fields = self._ready(
            "--dev", self._directory / "space", "--port", 0, "--objects", f"s3://{self._bucket}/space", *self.options,
            more=self._service.environment,
        )  # fmt: skip
        self._url, self._token_file = fields["url"], fields["token_file"]


class ThroughDaemon(VosfsS3):
    """The same with ``direct = false``: long files come through the daemon too."""

    options = ("--no-direct",)


def targets(service: S3) -> dict[str, Callable[[Path], Target]]:
    """Targets on the service."""

    def on(kind: Callable[[Path, S3, str], Target]) -> Callable[[Path], Target]:
        def make(directory: Path) -> Target:
            bucket = f"bench-{next(_numbers)}"
            service.bucket(bucket).request("PUT")
            return kind(directory, service, bucket)

        return make

    return {"s3fs": on(S3fs), "rclone": on(RcloneS3), "vosfs": on(VosfsS3), "through": on(ThroughDaemon)}
