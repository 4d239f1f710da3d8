"""What several tests build alike."""

from pathlib import Path

import trio

from vosfs.backends.blobs import LocalBlobs
from vosfs.backends.memory import MemoryBackend
from vosfs.cache.blocks import BlockCache
from vosfs.cache.file import FileTable
from vosfs.filesystem import FileSystem
from vosfs.metadata.cached import CachedTree


def file_system(tree: CachedTree, directory: Path, nursery: trio.Nursery) -> FileSystem:
    """A mount without FUSE: small caches in a directory, and blobs in memory."""
    blobs = LocalBlobs(MemoryBackend())
    blocks = BlockCache(directory / "blocks", blobs, 0, nursery)
    return FileSystem(tree, blocks, FileTable(tree, blobs, blocks, directory, 1 << 20), nursery)
