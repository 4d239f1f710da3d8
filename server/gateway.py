"""The gateway binding: what POSIX needs and VOSpace 2.1 cannot say (spec: vospace-2.1, section 6, X1-X12).

Each message is one operation of the store, under the caller's rights, in one transaction.  Nodes are named by id;
an id is 62 random bits that only a listing or look-up reveals, so holding one is proof of having been let in, as
with an NFS file handle; what an operation touches is checked again at each.
"""

import hashlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import trio

from server import quotas
from server.access import Subject
from server.http import Request, Response
from server.service import Service, check_texts, packed, policy_of
from server.signing import LEASE_S
from vosfs.backends.backend import gathered, pieces
from vosfs.backends.storages import Storages
from vosfs.errors import InvalidArgument, InvalidURI, NodeNotFound, PermissionDenied, Stale, VOSpaceError
from vosfs.metadata import content, xml
from vosfs.metadata import messages as m
from vosfs.metadata.node import (
    ANYTHING,
    CONTAINER,
    CORE,
    DATA,
    DEVICES,
    LINK,
    QUOTA,
    ROOT_ID,
    SPECIAL,
    STAGE,
    STAGING_ID,
    STORAGE,
    Attributes,
    Blob,
    Change,
    Content,
    Extent,
    Found,
    Node,
    Quota,
    bytes_left,
)
from vosfs.metadata.store import CHANGES_MAX, OF_ALL, PAGE_NODES_MAX, READ, WRITE, Anyone, Moment, Outcome, Step
from vosfs.uri import RESERVED_NAMES, check_name

log = logging.getLogger(__name__)

MESSAGE_BYTES_MAX = 16 << 20
"""A commit of CHANGES_MAX runs of blobs, or of EXTENTS_MAX inline ones, is the longest."""
POLL_S = 0.25
"""How often a waiting feed looks for changes by other processes."""
BATCH_S = 0.02
"""How long a feed gathers changes before it looks."""
MOMENT_NS_MAX = 120 * 10**9
"""How far a mount's clock may be ahead when it says when something happened."""
_BEGAN_NS = time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
"""What the wall clock was ahead of the one that nobody sets when this process began."""
_ASIDE = (m.Hello, m.Renew, m.Share, m.Delegate, m.GiveBack)
"""Requests that neither look at the tree nor change it."""

_decode = msgspec.msgpack.Decoder(m.AnyRequest).decode
_encode = msgspec.msgpack.Encoder().encode


class Gateway:
    """Answers messages."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._store = service.store
        self._handlers: dict[type, Callable[[Any, Subject, Anyone], Awaitable[object]]] = {
            m.Hello: self._hello,
            m.Lookup: self._lookup,
            m.Get: self._get,
            m.Children: self._children,
            m.Create: self._change,
            m.Link: self._change,
            m.Remove: self._change,
            m.Rename: self._change,
            m.SetAttributes: self._set_attributes,
            m.Open: self._open,
            m.Commit: self._change,
            m.Batch: self._batch,
            m.Delegate: self._delegate,
            m.GiveBack: self._give_back,
            m.Properties: self._properties,
            m.SetProperties: self._set_properties,
            m.SpaceUsage: self._usage,
            m.Quotas: self._quotas,
            m.Sync: self._sync,
            m.Renew: self._renew,
            m.Share: self._share,
            m.Changes: self._changes,
        }

        self._steps: dict[type, Callable[[Any, Subject], Step]] = {
            m.Create: self._create,
            m.Link: lambda r, s: Step("link", (r.id, r.parent, _name(r.name)), _moment(r.at_ns)),
            m.Remove: self._remove,
            m.Rename: self._rename,
            m.SetAttributes: self._attributes,
            m.Commit: self._bytes,
        }

    async def handle(self, request: Request) -> Response:
        """Answer one message.  Errors travel as their class and text."""
        try:
            subject, caller = await self._service.caller(request)
            try:
                message = _decode(await request.read(MESSAGE_BYTES_MAX))
            except (msgspec.DecodeError, UnicodeDecodeError) as exc:
                raise InvalidArgument(f"not a message of {m.PROTOCOL}: {exc}") from None
            kind = type(message)
            handler = self._handlers[kind]
            delegation, who = self._service.delegation, (subject.user, caller.origin)
            if kind is m.Changes:
                with delegation.polled(who, request.deserted):
                    return packed(await handler(message, subject, caller))
            if kind in _ASIDE or delegation.holder == who:
                return packed(await handler(message, subject, caller))
            with delegation.at_work(who):
                await delegation.recall()
                return packed(await handler(message, subject, caller))
        except VOSpaceError as exc:
            return packed(m.Failure(type(exc).__name__, str(exc)), exc.status)

    async def _hello(self, r: m.Hello, subject: Subject, caller: Anyone) -> m.Greeting:
        root = await self._store.get(ROOT_ID, caller)
        subject.permit(root, READ)
        return m.Greeting(
            subject.user, self._service.data_url, await self._store.cursor(),
            content.CARRIED_BYTES_MAX if self._service.keeps_bytes else content.INLINE_BYTES_MAX, time.time_ns(),
            # Where bytes are kept elsewhere, that is not known here.
            not self._service.keeps_bytes or self._service.backend.slow,
            self._service.backend.signs,
        )  # fmt: skip

    async def _delegate(self, r: m.Delegate, subject: Subject, caller: Anyone) -> bool:
        root = await self._store.get(ROOT_ID, caller)
        subject.permit(root, WRITE)
        given = bool(caller.origin) and self._service.delegation.ask((subject.user, caller.origin))
        self._service.feed.wake()
        return given

    async def _give_back(self, r: m.GiveBack, subject: Subject, caller: Anyone) -> None:
        self._service.delegation.give_back((subject.user, caller.origin))

    async def _change(self, r: m.Mutation, subject: Subject, caller: Anyone) -> object:
        """One mutation by itself."""
        (outcome,) = await self._do([(r, self._steps[type(r)](r, subject))], caller)
        if isinstance(outcome, VOSpaceError):
            raise outcome
        return await self._shown(outcome, caller)

    async def _do(self, changes: list[tuple[m.Mutation, Step]], caller: Anyone) -> list[Outcome]:
        """Make changes together, durably if one of them has to be."""
        steps, durable, bytes_to_store = [], False, False
        for request, step in changes:
            steps.append(step)
            if isinstance(request, m.Commit):
                durable |= request.durable
                bytes_to_store |= bool(step.arguments[4]) or _is_long(step)
        if bytes_to_store and self._service.keeps_bytes:
            steps = await self._stored(steps)
        return await self._store.apply(steps, caller, durable)

    async def _stored(self, steps: list[Step]) -> list[Step]:
        """The same steps with blobs for bytes that are too many for the database, and all blobs durable.

        Before anything names them: else a power cut could leave a node of a blob that is not, where its old bytes were.
        """
        commits = [number for number, step in enumerate(steps) if step.operation == "commit"]
        long = [n for n in commits if _is_long(steps[n])]
        backend = self._service.backend
        policies = await self._policies(steps, long)

        def store() -> list[Step]:
            done = list(steps)
            for number in long:
                id, base, length, changes, blobs, mtime_ns, md5, atime_ns = done[number].arguments
                inline = [e for e in changes if e.data]
                blob = joined(backend, policies[number], inline, durable=False)
                if len(changes) == 1 and inline_bytes(changes) == length:
                    md5 = hashlib.md5(changes[0].data, usedforsecurity=False).hexdigest()
                slices = iter(laid_out(inline, blob))
                changes = [next(slices) if e.data else e for e in changes]
                arguments = (id, base, length, changes, [*blobs, blob], mtime_ns, md5, atime_ns)
                done[number] = done[number]._replace(arguments=arguments)
            backend.sync([blob.locator for n in commits for blob in done[n].arguments[4]])
            return done

        return await trio.to_thread.run_sync(store)

    async def _policies(self, steps: list[Step], numbers: list[int]) -> dict[int, str]:
        """Which storages the nodes of some commits want: those of their containers, if the same steps make them."""
        made = {step.id: step.arguments[0] for step in steps if step.operation == "create"}
        policies = {}
        for number in numbers:
            id, left = steps[number].arguments[0], dict(made)
            while id in left:
                # Each once: what a client says may go in a circle.
                id = left.pop(id)
            try:
                policies[number] = (await self._store.get(id)).storage
            except NodeNotFound:
                policies[number] = ""
        return policies

    async def _shown(self, outcome: Outcome, caller: Anyone) -> object:
        """What a change gave, as the mount gets it."""
        if not isinstance(outcome, Content):
            return outcome
        if self._service.keeps_bytes:
            outcome = await compact(self._service, outcome, caller) or outcome
        return Content(outcome.node, self._leased(outcome.extents))

    async def _batch(self, r: m.Batch, subject: Subject, caller: Anyone) -> m.Outcomes:
        if len(r.requests) > m.BATCH_MAX:
            raise InvalidArgument(f"a batch has up to {m.BATCH_MAX} requests")
        outcomes, wanted = m.Outcomes([], []), set(r.wanted)
        changes: dict[int, tuple[m.Mutation, Step]] = {}
        done = await self._done_before(r.requests) if r.again else set()
        for number, request in enumerate(r.requests):
            try:
                if isinstance(request, m.Mutation):
                    if (request.id, request.at_ns) in done:
                        # Whether it could be done once more says nothing: a node that was deleted and purged since
                        # could be made again, and its name is another's by now.
                        continue
                    changes[number] = request, self._steps[type(request)](request, subject)
                    continue
                await self._apply(changes, wanted, caller, outcomes)
                changes = {}
                result = await self._handlers[type(request)](request, subject, caller)
            except OF_ALL:
                raise
            except VOSpaceError as exc:
                outcomes.failures.append((number, m.Failure(type(exc).__name__, str(exc))))
            else:
                outcomes.results.append((number, msgspec.Raw(_encode(result))))
        await self._apply(changes, wanted, caller, outcomes)
        return outcomes

    async def _apply(
        self, changes: dict[int, tuple[m.Mutation, Step]], wanted: set[int], caller: Anyone, outcomes: m.Outcomes
    ) -> None:
        """Make the changes that gathered."""
        if not changes:
            return
        for number, outcome in zip(changes, await self._do(list(changes.values()), caller), strict=True):
            if isinstance(outcome, VOSpaceError):
                outcomes.failures.append((number, m.Failure(type(outcome).__name__, str(outcome))))
            elif number in wanted:
                outcomes.results.append((number, msgspec.Raw(_encode(await self._shown(outcome, caller)))))

    async def _done_before(self, requests: list[m.Ordered]) -> set[Moment]:
        """Of steps that come again, those done the first time: the change log has them, with their very nanosecond."""
        steps = (request for request in requests if isinstance(request, m.Mutation))
        return await self._store.happened({(step.id, step.at_ns) for step in steps if step.id and step.at_ns})

    async def _children(self, r: m.Children, subject: Subject, caller: Anyone) -> list[m.Entry]:
        if not 0 < r.limit <= PAGE_NODES_MAX:
            raise InvalidArgument(f"a page has 1 to {PAGE_NODES_MAX} nodes")
        page = await self._store.children(r.parent, r.after, r.limit, caller)
        return [m.Entry(name, await self._as_symlink(node)) for name, node in page]

    async def _get(self, r: m.Get, subject: Subject, caller: Anyone) -> Node:
        return await self._as_symlink(await self._store.get(r.id, caller))

    async def _as_symlink(self, node: Node) -> Node:
        """A LinkNode whose target is a ``vos:`` URI of this space, as a symbolic link that leads there in any mount."""
        if node.kind != LINK or not node.target.startswith(b"vos://"):
            return node
        try:
            path = self._service.authority.path(node.target.decode("ascii", "replace"))
        except InvalidURI:
            return node
        up = [b".."] * await self._store.depth(node.id)
        target = b"/".join([*up, *path]) or b"."
        return msgspec.structs.replace(node, target=target, length=len(target))

    def _create(self, r: m.Create, subject: Subject) -> Step:
        new = r.new
        if r.id in (ROOT_ID, STAGING_ID):
            raise InvalidArgument(f"{r.id} is not an id of a new node")
        if new.kind not in (CONTAINER, DATA, LINK, *SPECIAL):
            raise InvalidArgument(f"{new.kind[:40]!r} is not a kind of node")
        if bool(new.target) != (new.kind == LINK):
            raise InvalidArgument("a link, and only a link, has a target")
        if new.device and new.kind not in DEVICES:
            raise InvalidArgument("only a device has a device number")
        check_texts(new.target, new.content_type)
        for uri, value in new.properties.items():
            xml.check_property(uri, value)
        mine = msgspec.structs.replace(
            new,
            owner=subject.user,
            mode=new.mode & 0o7777,
            public=0,
            group_read="",
            group_write="",
            immutable=0,
            storage="",
            quota=0,
        )
        return Step("create", (r.parent, _name(r.name), mine), _moment(r.at_ns), r.id)

    async def _set_attributes(self, r: m.SetAttributes, subject: Subject, caller: Anyone) -> object:
        if r.change.target is None:
            return await self._change(r, subject, caller)
        check_texts(r.change.target)
        if (await self._store.get(r.id, caller)).kind != LINK:
            raise InvalidArgument("only a link has a target")
        return await self._store.set_attributes(r.id, r.change, caller)

    @staticmethod
    def _attributes(r: m.SetAttributes, subject: Subject) -> Step:
        change = r.change
        if change.target is not None:
            raise InvalidArgument("a target is changed by a request of its own")
        if change.storage is not None:
            raise InvalidArgument(f"{STORAGE} is set as a property")
        check_texts(b"", change.content_type, change.group_read, change.group_write)
        return Step("set_attributes", (r.id, change), _moment(r.at_ns))

    @staticmethod
    def _remove(r: m.Remove, subject: Subject) -> Step:
        if r.kind not in ("leaf", "empty"):
            raise InvalidArgument(f"{r.kind[:40]!r} is not a kind of removal")
        return Step("remove", (r.parent, r.name, r.kind), _moment(r.at_ns), r.id)

    @staticmethod
    def _rename(r: m.Rename, subject: Subject) -> Step:
        if r.flag not in ("", "keep", "exchange"):
            raise InvalidArgument(f"{r.flag[:40]!r} is not a flag of rename")
        return Step("rename", (r.parent, r.name, r.to_parent, _name(r.to_name), r.flag), _moment(r.at_ns), r.id)

    def _leased(self, extents: list[Extent]) -> list[Extent]:
        lease = self._service.signer.lease
        names = {locator: lease(locator) for locator in content.locators(extents)}
        return [content.relocated(e, names[e.locator]) if e.locator else e for e in extents]

    async def _lookup(self, r: m.Lookup, subject: Subject, caller: Anyone) -> Found:
        found = await self._store.find(r.parent, r.name, caller)
        if found.extents is None:
            return Found(await self._as_symlink(found.node), None)
        head = await self._head(found.node.length, found.extents) if r.head else b""
        return Found(found.node, self._leased(found.extents), head)

    async def _head(self, length: int, extents: list[Extent]) -> bytes:
        """The first bytes of a file that is one blob, or begins with enough of one."""
        stop = min(length, m.HEAD_BYTES)
        if not self._service.keeps_bytes or not extents or extents[0].start or extents[0].stop < stop:
            return b""
        head = content.cut(extents[0], 0, stop)
        if not head.locator:
            return b""
        try:
            return await trio.to_thread.run_sync(lambda: gathered(pieces(self._service.backend, [head])))
        except VOSpaceError as exc:
            # Whoever reads the file will be told.
            log.debug("no first bytes: %s", exc)
            return b""

    async def _open(self, r: m.Open, subject: Subject, caller: Anyone) -> Content:
        found = await self._store.open(r.id, caller)
        return Content(found.node, self._leased(found.extents))

    def _bytes(self, r: m.Commit, subject: Subject) -> Step:
        if not 0 <= r.length <= content.LENGTH_MAX or len(r.changes) > content.CHANGES_MAX:
            raise InvalidArgument("length or number of changes is out of bounds")
        blobs: dict[str, Blob] = {}
        changes = []
        for e in r.changes:
            if not 0 <= e.start < e.stop <= content.LENGTH_MAX:
                raise InvalidArgument(f"[{e.start}, {e.stop}) is not a range")
            if e.locator:
                blob = blobs.get(e.locator) or self._service.signer.received(e.locator, subject.user)
                blobs[e.locator] = blob
                if e.data or not 0 <= e.offset <= blob.length - (e.stop - e.start):
                    raise InvalidArgument("an extent reaches beyond its blob")
                e = content.relocated(e, blob.locator)
            elif e.data and len(e.data) != e.stop - e.start:
                raise InvalidArgument("an inline extent's length is not its data's")
            changes.append(e)
        whole = len(changes) == 1 and len(changes[0].data) == r.length <= content.INLINE_BYTES_MAX
        md5 = hashlib.md5(changes[0].data, usedforsecurity=False).hexdigest() if whole else ""
        arguments = (r.id, r.base_version, r.length, changes, list(blobs.values()), r.mtime_ns, md5, r.atime_ns)
        return Step("commit", arguments, _moment(r.at_ns), version=r.version)

    async def _properties(self, r: m.Properties, subject: Subject, caller: Anyone) -> dict[str, str]:
        node = await self._store.get(r.id, caller)
        subject.permit(node, READ)
        return {
            **{uri: value for uri, value, _ in xml.core_properties(node) if uri != CORE + "ispublic"},
            **await quotas.shown(self._store, node),
            **await self._store.properties(r.id, caller),
            **await self._service.locality(node),
        }

    async def _set_properties(self, r: m.SetProperties, subject: Subject, caller: Anyone) -> Node:
        change, attributes = dict(r.change), Attributes()
        if STAGE in change:
            node = await self._store.get(r.id, caller)
            # Who may read it may ask for it.
            subject.permit(node, READ)
            change.pop(STAGE)
            await self._service.stage(node)
            if not change:
                return node
        if STORAGE in change:
            attributes.storage = policy_of(self._service, subject, change.pop(STORAGE) or "")
        quota = None
        if QUOTA in change:
            node = await self._store.get(r.id, caller)
            quota = quotas.asked(subject, change, node.kind, await quotas.shown(self._store, node))
        for uri, value in change.items():
            xml.check_property(uri, value or "")
            if uri in xml.READ_ONLY or uri in xml.AS_ATTRIBUTES:
                raise PermissionDenied(f"{uri} is kept by the service")
        if quota is not None:
            await self._store.set_quota(r.id, quota, caller)
        if attributes != Attributes():
            return await self._store.update(r.id, attributes, change, caller, durable=False)
        return await self._store.set_properties(r.id, change, False, caller)

    async def _usage(self, r: m.SpaceUsage, subject: Subject, caller: Anyone) -> object:
        usage = await self._store.usage()
        # The metadata role does not know the storage's disk; df then shows nothing rather than a guess.
        total, free = (0, 0)
        if self._service.keeps_bytes:
            total, free = await trio.to_thread.run_sync(self._service.backend.space)
        bounds = await self._store.quotas(ROOT_ID)
        left = bytes_left(bounds)
        if left is not None:
            # No more than there is: whichever ends first.
            free = min(left, free) if total else left
            total = bounds[0].used + free
        return msgspec.structs.replace(usage, total_bytes=total, free_bytes=free)

    async def _quotas(self, r: m.Quotas, subject: Subject, caller: Anyone) -> list[Quota]:
        subject.permit(await self._store.get(r.id, caller), READ)
        return await self._store.quotas(r.id)

    async def _sync(self, r: m.Sync, subject: Subject, caller: Anyone) -> None:
        await self._store.sync()

    async def _renew(self, r: m.Renew, subject: Subject, caller: Anyone) -> list[str]:
        locators = [self._service.signer.leased(name) for name in r.names[: content.EXTENTS_MAX]]
        await self._store.renew(locators)
        return [self._service.signer.lease(locator) for locator in locators]

    async def _share(self, r: m.Share, subject: Subject, caller: Anyone) -> list[str]:
        """A leased name is leave to read; with it the bytes could be sent as one's own, so they need not be sent."""
        signer, receipts = self._service.signer, []
        locators = [signer.leased(name) for name in r.names[: content.EXTENTS_MAX]]
        await self._store.renew(locators)
        for locator in locators:
            blob = await self._store.blob(locator)
            if blob is None:
                raise Stale("a blob is gone by now")
            # No longer than the blob is sure to be there, once its own node is gone.
            receipts.append(signer.receipt(blob, subject.user, LEASE_S))
        return receipts

    async def _changes(self, r: m.Changes, subject: Subject, caller: Anyone) -> m.ChangePage:
        root = await self._store.get(ROOT_ID, caller)
        subject.permit(root, READ)
        deadline = trio.current_time() + min(max(r.wait_s, 0), m.WAIT_S_MAX)
        cursor, who, delegation = r.since, (subject.user, caller.origin), self._service.delegation
        while True:
            cursor, found = await self._store.changes(cursor, CHANGES_MAX)
            # A mount knows what it did itself: telling it would cost both sides more than the change did.
            page = [change for change in found if not caller.origin or change.origin != caller.origin]
            if len(found) == CHANGES_MAX and not page:
                # All of it its own, and more to come: a batch of renames is more than a page.
                await trio.lowlevel.checkpoint()
                continue
            left = deadline - trio.current_time()
            state = delegation.state(who)
            if state == m.HELD and len(found) == CHANGES_MAX:
                # The mount may act on what it knows once it knows everything.
                state = m.NOT_HELD
            if page or left <= 0 or state != r.delegation:
                break
            if len(found) < CHANGES_MAX:
                # Nothing, or nothing but its own.
                await self._service.feed.wait(min(left, POLL_S), caller.origin)
            if delegation.state(who) == r.delegation:
                # One look for all changes of a moment; but whoever had the delegation recalled is waiting.
                await trio.sleep(BATCH_S)
        if subject.user != root.owner and not subject.admin:
            page = await self._visible(page, subject)
        return m.ChangePage(cursor, page, state)

    async def _visible(self, page: list[Change], subject: Subject) -> list[Change]:
        """What happened to names in containers, and to nodes, that the subject may read: an id is a key."""
        seen: dict[int, bool] = {}
        for change in page:
            where = change.parent or change.node
            if where == ANYTHING:
                seen[where] = True
            if where not in seen:
                try:
                    seen[where] = subject.may(await self._store.get(where), READ)
                except VOSpaceError:
                    seen[where] = False
        return [change for change in page if seen[change.parent or change.node]]


def _moment(at_ns: int) -> int:
    """When a change was made: what its maker says, unless that is nothing or the future.

    The future also by a clock that nobody sets: mounts go by the time that they were told when they came.  When the wall
    clock was set back since, theirs is still the moment under which a change is looked for if it comes twice.
    """
    now, steady = time.time_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME) + _BEGAN_NS
    return at_ns if 0 < at_ns < max(now, steady) + MOMENT_NS_MAX else now


def _name(name: bytes) -> bytes:
    if name in RESERVED_NAMES:
        raise InvalidArgument(f"{name.decode()} is reserved by VOSpace")
    return check_name(name)


async def compact(service: Service, found: Content, caller: Anyone) -> Content | None:
    """Move what a content of many small pieces holds into one blob: the inline runs, or all if that leaves too many.

    None if that is not worth it, failed, or somebody changed the node meanwhile: the content is as good as before.
    """
    node = found.node
    inline = [e for e in found.extents if e.data]
    many = len(content.locators(found.extents)) + len(inline) > content.EXTENTS_MAX
    if node.kind != DATA or not (many or inline_bytes(inline) > content.INLINE_TOTAL_MAX):
        return None
    extents = found.extents if many else inline
    try:
        blob = await trio.to_thread.run_sync(joined, service.backend, node.storage, extents)
        changes = laid_out(extents, blob)
        return await service.store.commit(
            node.id, node.version, node.length, changes, [blob], node.mtime_ns, node.md5, caller=Anyone(caller.origin)
        )
    except (VOSpaceError, OSError) as exc:
        log.warning("node %d was not compacted: %s", node.id, exc)
        return None


def _is_long(commit: Step) -> bool:
    """Whether a commit carries more bytes than the database keeps."""
    return inline_bytes(commit.arguments[3]) > content.INLINE_BYTES_MAX


def inline_bytes(extents: list[Extent]) -> int:
    """How many bytes extents hold themselves."""
    return sum(len(e.data) for e in extents)


def laid_out(extents: list[Extent], blob: Blob) -> list[Extent]:
    """The same runs as slices of a blob that has them one after the other (``joined``)."""
    slices, offset = [], 0
    for e in extents:
        slices.append(Extent(e.start, e.stop, blob.locator, offset))
        offset += e.stop - e.start
    return slices


def joined(backend: Storages, policy: str, extents: list[Extent], durable: bool = True) -> Blob:
    """One blob of all the bytes that extents hold."""
    writer = backend.create(sum(e.stop - e.start for e in extents), policy)
    try:
        for data in pieces(backend, extents):
            writer.write(data)
        return writer.finish(durable)
    finally:
        writer.abort()
