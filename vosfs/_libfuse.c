/* What libfuse offers and pyfuse3 does not hand on.
 *
 * This library is loaded before pyfuse3 with its symbols global, so pyfuse3's calls of two functions come here first.
 * fuse_session_new: operations that pyfuse3 lacks are added to its table (vosfs/libfuse.py sets who answers them), and
 * listings learn which directory they are of.  fuse_reply_open: the kernel need not ask at close(2) of what was only read.
 */

#define FUSE_USE_VERSION 35
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stddef.h>
#include <fuse3/fuse_lowlevel.h>

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

static const struct fuse_lowlevel_ops *completed(const struct fuse_lowlevel_ops *op)
{
	static struct fuse_lowlevel_ops ops;

	theirs = ops = *op;
	if (theirs.readdir)
		ops.readdir = readdir_of;
	if (theirs.readdirplus)
		ops.readdirplus = readdirplus_of;
	if (theirs.fsyncdir)
		ops.fsyncdir = fsyncdir_of;
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
