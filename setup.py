"""What setup.cfg has no word for: one C file, built with what pyfuse3 is built with (gcc, libfuse3-dev)."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "vosfs._libfuse",
            ["vosfs/_libfuse.c"],
            define_macros=[("_FILE_OFFSET_BITS", "64")],
            extra_compile_args=["-fvisibility=hidden", "-Wall", "-Wextra"],
            # Nothing is taken from libfuse by name, and still it must come next in the order of look-ups.
            extra_link_args=["-Wl,--no-as-needed", "-lfuse3"],
        )
    ]
)
