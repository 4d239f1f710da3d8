/* What libfuse offers and pyfuse3 does not hand on, and requests that need no Python.
 *
 * This library is loaded before pyfuse3 with its symbols global, so pyfuse3's calls of three functions come here first.
 * fuse_session_new: operations that pyfuse3 lacks are added to its table (vosfs/libfuse.py sets who answers them), and
 * listings learn which directory they are of.  fuse_reply_open: the kernel need not ask at close(2) of what was only read.
 * fuse_session_receive_buf: what can be answered here is, before Python sees that there was anything.  fuse_reply_buf:
 * threads that fetch bytes go on while others are copied into the kernel.
 *
 * All of it runs in pyfuse3's one thread, under the interpreter's lock, which is given up for long copies only.
 */

#define FUSE_USE_VERSION 35
#define _GNU_SOURCE
#include <Python.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <fuse3/fuse_lowlevel.h>
#include <linux/fuse.h>

#define EXPORT __attribute__((visibility("default")))

/* Set before a session begins, by vosfs/libfuse.py.  One that is not set is not there: the kernel has its own way then. */
EXPORT void (*vosfs_fallocate)(fuse_req_t, uint64_t fh, int mode, off_t offset, off_t length);
EXPORT void (*vosfs_lseek)(fuse_req_t, uint64_t fh, off_t offset, int whence);
EXPORT void (*vosfs_copy_file_range)(fuse_req_t, uint64_t from, off_t offset, uint64_t to, off_t to_offset,
				     size_t length, int flags);
/* Whether a session has what is here. */
EXPORT int vosfs_sessions;

static struct fuse_lowlevel_ops theirs;

/* A kernel that was told that opendir(3) need not ask has no handle for a listing, and pyfuse3 passes on nothing else. */

static void name_directory(fuse_ino_t ino, struct fuse_file_info *fi)
{
	if (!fi->fh)
		fi->fh = ino;
}

static void readdir_of(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
	name_directory(ino, fi);
	theirs.readdir(req, ino, size, off, fi);
}

static void readdirplus_of(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
	name_directory(ino, fi);
	theirs.readdirplus(req, ino, size, off, fi);
}

static void fsyncdir_of(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
	name_directory(ino, fi);
	theirs.fsyncdir(req, ino, datasync, fi);
}

static void fallocate_of(fuse_req_t req, fuse_ino_t ino, int mode, off_t offset, off_t length,
			 struct fuse_file_info *fi)
{
	(void)ino;
	vosfs_fallocate(req, fi->fh, mode, offset, length);
}

static void lseek_of(fuse_req_t req, fuse_ino_t ino, off_t offset, int whence, struct fuse_file_info *fi)
{
	(void)ino;
	vosfs_lseek(req, fi->fh, offset, whence);
}

static void copy_file_range_of(fuse_req_t req, fuse_ino_t from, off_t offset, struct fuse_file_info *fi,
			       fuse_ino_t to, off_t to_offset, struct fuse_file_info *to_fi, size_t length, int flags)
{
	(void)from, (void)to;
	vosfs_copy_file_range(req, fi->fh, offset, to_fi->fh, to_offset, length, flags);
}

/* Standing handles: an open(2) to read a file that has one is answered with it, as often as there are programs
 * (vosfs/standing.py).
 */

struct standing {
	uint64_t ino, fh;
	uint64_t opens;		/* that the kernel has not released */
	bool stands;		/* for further opens; not any more once it was withdrawn */
	struct standing *next;
};

#define BUCKETS 1024
static struct standing *buckets[BUCKETS];

static struct standing **bucket(uint64_t ino)
{
	return &buckets[(ino ^ ino >> 32) % BUCKETS];
}

static struct standing *standing_for(uint64_t ino)
{
	struct standing *s = *bucket(ino);

	while (s && !(s->ino == ino && s->stands))
		s = s->next;
	return s;
}

/* Where the one of this handle hangs; at NULL if there is none. */

static struct standing **standing_at(uint64_t ino, uint64_t fh)
{
	struct standing **at = bucket(ino);

	while (*at && !((*at)->ino == ino && (*at)->fh == fh))
		at = &(*at)->next;
	return at;
}

static void drop(struct standing **at)
{
	struct standing *gone = *at;

	*at = gone->next;
	free(gone);
}

/* A handle whose open is about to be answered stands from now on: 0 if it does not. */

EXPORT int vosfs_stand(uint64_t ino, uint64_t fh)
{
	struct standing *s = standing_for(ino) ? NULL : malloc(sizeof(*s));

	if (!s)
		return 0;
	*s = (struct standing){ .ino = ino, .fh = fh, .opens = 1, .stands = true, .next = *bucket(ino) };
	*bucket(ino) = s;
	return 1;
}

/* It stands no more.  1 if no program has it open; else it is released when the last one closes it. */

EXPORT int vosfs_withdraw(uint64_t ino, uint64_t fh)
{
	struct standing **at = standing_at(ino, fh);

	if (!*at)
		return 0;
	(*at)->stands = false;
	if ((*at)->opens)
		return 0;
	drop(at);
	return 1;
}

static bool only_reads(int flags)
{
	return (flags & (O_ACCMODE | O_TRUNC | O_DIRECT)) == O_RDONLY;
}

static void open_of(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct standing *s = only_reads(fi->flags) ? standing_for(ino) : NULL;

	if (!s) {
		theirs.open(req, ino, fi);
		return;
	}
	fi->fh = s->fh;
	/* Who withdraws it when the file changes elsewhere makes the next open one that drops the pages. */
	fi->keep_cache = 1;
	s->opens++;
	if (fuse_reply_open(req, fi) != 0)
		/* The program was interrupted, and the kernel will not release what it did not get. */
		s->opens--;
}

static void release_of(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct standing **at = standing_at(ino, fi->fh);

	if (*at && (--(*at)->opens || (*at)->stands)) {
		fuse_reply_err(req, 0);
		return;
	}
	if (*at)
		drop(at);
	theirs.release(req, ino, fi);
}

/* Attributes of other namespaces there are none: vosfs/fuse.py says why it is this error.  Of security.capability the
 * kernel asks before the first write to each file.
 */

static bool may_exist(const char *attribute)
{
	return strncmp(attribute, "user.", 5) == 0;
}

static void getxattr_of(fuse_req_t req, fuse_ino_t ino, const char *name, size_t size)
{
	if (may_exist(name))
		theirs.getxattr(req, ino, name, size);
	else
		fuse_reply_err(req, EOPNOTSUPP);
}

/* Whether the operations above will answer a request, and not pyfuse3's, which must be called by pyfuse3. */

static bool answered_here(const struct fuse_buf *buf)
{
	const struct fuse_in_header *in = buf->mem;
	const void *body = in + 1;
	size_t length = buf->size - sizeof(*in);
	const struct standing *s;

	if (buf->flags & FUSE_BUF_IS_FD || buf->size < sizeof(*in))
		return false;
	switch (in->opcode) {
	case FUSE_OPEN:
		return length >= sizeof(struct fuse_open_in) &&
		       only_reads(((const struct fuse_open_in *)body)->flags) && standing_for(in->nodeid);
	case FUSE_RELEASE:
		if (length < sizeof(struct fuse_release_in))
			return false;
		s = *standing_at(in->nodeid, ((const struct fuse_release_in *)body)->fh);
		return s && (s->stands || s->opens > 1);
	case FUSE_GETXATTR:
		return length > sizeof(struct fuse_getxattr_in) &&
		       !may_exist((const char *)body + sizeof(struct fuse_getxattr_in));
	}
	return false;
}

/* When the last request came that was received here behind another, CLOCK_MONOTONIC: pyfuse3's loop knows of the first. */
EXPORT double vosfs_came_s;

/* Before pyfuse3's loop has its turn, and now and then Python's other tasks have theirs. */
#define IN_A_ROW 4
/* Who opens a file reads it and opens the next: to sleep meanwhile, and be woken, costs both sides more than the reading. */
#define SPIN_S 80e-6

/* Bytes whose copying takes longer than to give the interpreter's lock up and have it back. */
#define LONG_COPY (128 << 10)

static double clock_s(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec + now.tv_nsec * 1e-9;
}

static bool another_comes(int fd)
{
	struct pollfd device = { .fd = fd, .events = POLLIN };
	double end = clock_s() + SPIN_S;

	do {
		if (poll(&device, 1, 0) != 0)
			return true;
	} while (clock_s() < end);
	return false;
}

EXPORT int fuse_reply_buf(fuse_req_t req, const char *buf, size_t size)
{
	static int (*next)(fuse_req_t, const char *, size_t);
	PyThreadState *state = NULL;
	int result;

	if (!next)
		*(void **)&next = dlsym(RTLD_NEXT, "fuse_reply_buf");
	if (size >= LONG_COPY)
		state = PyEval_SaveThread();
	result = next(req, buf, size);
	if (state)
		PyEval_RestoreThread(state);
	return result;
}

EXPORT int fuse_session_receive_buf(struct fuse_session *se, struct fuse_buf *buf)
{
	static int (*next)(struct fuse_session *, struct fuse_buf *);

	if (!next)
		*(void **)&next = dlsym(RTLD_NEXT, "fuse_session_receive_buf");
	for (int i = 0; i < IN_A_ROW; i++) {
		int got = next(se, buf);

		if (i > 0)
			vosfs_came_s = clock_s();
		if (got <= 0 || !vosfs_sessions || !answered_here(buf))
			return got;
		fuse_session_process_buf(se, buf);
		if (fuse_session_exited(se) || !another_comes(fuse_session_fd(se)))
			break;
	}
	/* To pyfuse3: wait for the next one. */
	return -EINTR;
}

static const struct fuse_lowlevel_ops *completed(const struct fuse_lowlevel_ops *op)
{
	static struct fuse_lowlevel_ops ops;

	theirs = ops = *op;
	/* What stood for another session of this process says nothing in this one. */
	for (int i = 0; i < BUCKETS; i++)
		while (buckets[i])
			drop(&buckets[i]);
	if (theirs.readdir)
		ops.readdir = readdir_of;
	if (theirs.readdirplus)
		ops.readdirplus = readdirplus_of;
	if (theirs.fsyncdir)
		ops.fsyncdir = fsyncdir_of;
	if (theirs.open && theirs.release) {
		ops.open = open_of;
		ops.release = release_of;
	}
	if (theirs.getxattr)
		ops.getxattr = getxattr_of;
	if (vosfs_fallocate)
		ops.fallocate = fallocate_of;
	if (vosfs_lseek)
		ops.lseek = lseek_of;
	if (vosfs_copy_file_range)
		ops.copy_file_range = copy_file_range_of;
	vosfs_sessions++;
	return &ops;
}

#if FUSE_VERSION >= FUSE_MAKE_VERSION(3, 17)

/* What fuse_session_new() is an inline name for since then. */
EXPORT struct fuse_session *fuse_session_new_versioned(struct fuse_args *args, const struct fuse_lowlevel_ops *op,
						       size_t op_size, const struct libfuse_version *version,
						       void *userdata)
{
	struct fuse_session *(*next)(struct fuse_args *, const struct fuse_lowlevel_ops *, size_t,
				     const struct libfuse_version *, void *);

	*(void **)&next = dlsym(RTLD_NEXT, "fuse_session_new_versioned");
	if (!next)
		return NULL;
	return next(args, op_size == sizeof(*op) ? completed(op) : op, op_size, version, userdata);
}

#else

EXPORT struct fuse_session *fuse_session_new(struct fuse_args *args, const struct fuse_lowlevel_ops *op,
					     size_t op_size, void *userdata)
{
	struct fuse_session *(*next)(struct fuse_args *, const struct fuse_lowlevel_ops *, size_t, void *);

	*(void **)&next = dlsym(RTLD_NEXT, "fuse_session_new");
	if (!next)
		return NULL;
	return next(args, op_size == sizeof(*op) ? completed(op) : op, op_size, userdata);
}

#endif

EXPORT int fuse_reply_open(fuse_req_t req, const struct fuse_file_info *theirs_fi)
{
	static int (*next)(fuse_req_t, const struct fuse_file_info *);
	struct fuse_file_info fi = *theirs_fi;

	if (!next)
		*(void **)&next = dlsym(RTLD_NEXT, "fuse_reply_open");
#if FUSE_VERSION >= FUSE_MAKE_VERSION(3, 11)
	if ((fi.flags & (O_ACCMODE | O_TRUNC)) == O_RDONLY)
		fi.noflush = 1;
#endif
	return next(req, &fi);
}
